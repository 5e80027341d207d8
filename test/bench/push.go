package main

import (
	"context"
	"fmt"
	"time"
)

const (
	pushTimes    = 120 // changes whose way is timed
	cpuTimes     = 40  // changes whose CPU is summed
	pushPause    = 20 * time.Millisecond
	manyClients  = 10
	entriesTotal = "vmesh_snapshot_entries_marshalled_total"
)

// push measures the way of one change to xDS clients, with count objects stored.
func (b *bench) push(ctx context.Context, t *target, count int) error {
	id := "push.10000"
	if count < b.scaled(10000) {
		id = "push.1000"
	}
	change, err := changes(ctx, t)
	if err != nil {
		return err
	}
	if b.want(11) {
		if err := b.pushLatency(ctx, t, count, id, change); err != nil {
			return err
		}
	}
	if !b.want(12) || id == "push.1000" {
		return nil
	}
	for _, clients := range []int{0, manyClients} {
		if err := b.pushCPU(ctx, t, count, clients, change); err != nil {
			return err
		}
	}
	return nil
}

// changes returns a function that changes one object.
func changes(ctx context.Context, t *target) (func() error, error) {
	w := newWatching(t, 1)
	versions, err := w.reset(ctx)
	revision := 0
	return func() error {
		revision++
		var err error
		versions[0], err = w.put(ctx, 0, revision, versions[0])
		return err
	}, err
}

func (b *bench) pushLatency(ctx context.Context, t *target, count int, id string, change func() error) error {
	client, err := connectXDS(ctx, sotwMethod, t.xds, 0, count)
	if err != nil {
		return err
	}
	defer client.close()
	var latencies []float64
	var last response
	for range pushTimes {
		time.Sleep(pushPause) // changes that come alone, as a person's do
		if err := change(); err != nil {
			return err
		}
		written := time.Now()
		if last, err = client.next(); err != nil {
			return err
		}
		if last.resources < count {
			return fmt.Errorf("a response has %d resources of %d", last.resources, count)
		}
		latencies = append(latencies, milliseconds(last.received.Sub(written)))
	}
	b.put(id+".p50", t, quantile(latencies, 0.5))
	b.put(id+".p99", t, quantile(latencies, 0.99))
	if id == "push.10000" {
		b.put("push.size", t, float64(last.bytes)/(1<<20))
	}
	return nil
}

// pushCPU sums up what changes cost that clients are told of.
func (b *bench) pushCPU(ctx context.Context, t *target, count, clients int, change func() error) error {
	var all []*xdsClient
	for i := range clients {
		c, err := connectXDS(ctx, sotwMethod, t.xds, i, count)
		if err != nil {
			return err
		}
		defer c.close()
		all = append(all, c)
	}
	before, err := t.metric(ctx, entriesTotal)
	if err != nil {
		return err
	}
	cpu, err := t.during(func() error {
		for range cpuTimes {
			time.Sleep(pushPause)
			if err := change(); err != nil {
				return err
			}
			for _, c := range all {
				if _, err := c.next(); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if clients == 0 {
		b.put("push.cpu.none", t, cpu.total()/cpuTimes)
		return nil
	}
	after, err := t.metric(ctx, entriesTotal)
	if err != nil {
		return err
	}
	b.put("push.cpu", t, cpu.total()/cpuTimes)
	b.put("push.entries", t, (after-before)/cpuTimes)
	return nil
}
