package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// load is what a number of workers did.
type load struct {
	ops       int
	elapsed   time.Duration
	latencies []float64 // in milliseconds, in no order
}

func (l load) rate() float64 { return float64(l.ops) / l.elapsed.Seconds() }

// drive has workers do op for 0 to n-1, each as soon as it has done the last, until all are done or stop, if not nil, is
// closed. It ends with the first error.
func drive(ctx context.Context, workers, n int, stop <-chan struct{}, op func(ctx context.Context, i int) error) (load, error) {
	var next atomic.Int64
	var mu sync.Mutex
	var all load
	group, ctx := errgroup.WithContext(ctx)
	begun := time.Now()
	for range workers {
		group.Go(func() error {
			var mine []float64
			defer func() {
				mu.Lock()
				defer mu.Unlock()
				all.latencies = append(all.latencies, mine...)
			}()
			for {
				select {
				case <-stop:
					return nil
				default:
				}
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				asked := time.Now()
				if err := op(ctx, i); err != nil {
					return fmt.Errorf("operation %d: %w", i, err)
				}
				mine = append(mine, milliseconds(time.Since(asked)))
			}
		})
	}
	err := group.Wait()
	all.elapsed = time.Since(begun)
	all.ops = len(all.latencies)
	return all, err
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
