package apiserver

import (
	"context"
	"errors"
	goruntime "runtime"
	"sync"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
)

// warmth says whether the schemas of all kinds are compiled.
type warmth struct {
	done   chan struct{}
	result error
}

func newWarmth() *warmth { return &warmth{done: make(chan struct{})} }

var errCold = errors.New("schemas are being compiled")

// run compiles the kinds, on all processors.
func (w *warmth) run(ctx context.Context, kinds []*kind.Kind) error {
	defer close(w.done)
	next := make(chan *kind.Kind)
	var wg sync.WaitGroup
	var mu sync.Mutex
	for range goruntime.GOMAXPROCS(0) {
		wg.Go(func() {
			for k := range next {
				if k.Hooks.Builtin {
					continue // large, seldom written, and compiled at first use
				}
				if err := k.Warm(ctx); err != nil {
					mu.Lock()
					w.result = errors.Join(w.result, err)
					mu.Unlock()
				}
			}
		})
	}
	for _, k := range kinds {
		next <- k
	}
	close(next)
	wg.Wait()
	return w.result
}

func (w *warmth) err() error {
	select {
	case <-w.done:
		return w.result
	default:
		return errCold
	}
}

func (w *warmth) wait(ctx context.Context) error {
	select {
	case <-w.done:
		return w.result
	case <-ctx.Done():
		return ctx.Err()
	}
}
