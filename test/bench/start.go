package main

import (
	"context"
	"fmt"
	"time"
)

// startTimes is how often each start is timed.
const startTimes = 5

// startEmpty times starts with nothing stored, and leaves the targets running.
func (b *bench) startEmpty(ctx context.Context, targets []*target) error {
	times := 1
	if b.want(1) {
		times = startTimes
	}
	if err := each(targets, func(t *target) error { return t.prepare(ctx) }); err != nil {
		return err
	}
	for i := range times {
		if err := each(targets, func(t *target) error {
			took, err := t.start(ctx)
			if err != nil {
				return err
			}
			if b.want(1) {
				b.put("start.empty", t, took.Seconds())
			}
			if i < times-1 {
				return t.stop(ctx)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	if !b.want(2) {
		return nil
	}
	if err := settle(ctx, targets); err != nil {
		return err
	}
	return each(targets, func(t *target) error {
		rss, err := t.rss()
		if err != nil {
			return err
		}
		b.put("rss.idle", t, rss.total())
		b.put("rss.idle.api", t, rss.api)
		return nil
	})
}

// startLoaded times starts with all objects stored, each on its own: a server that starts takes all cores.
func (b *bench) startLoaded(ctx context.Context, targets []*target) error {
	full := map[*target]int64{}
	if err := each(targets, func(t *target) error {
		var err error
		full[t], err = t.client.size(ctx, request{method: "GET", path: t.base + resourcePath})
		if err != nil {
			return err
		}
		return t.stop(ctx)
	}); err != nil {
		return err
	}
	for range startTimes {
		if err := each(targets, func(t *target) error {
			begun := time.Now()
			took, err := t.start(ctx)
			if err != nil {
				return err
			}
			size, err := t.client.eventually(ctx, request{method: "GET", path: t.base + resourcePath})
			if err != nil {
				return err
			}
			b.put("start.loaded", t, took.Seconds())
			b.put("start.list", t, time.Since(begun).Seconds())
			if size < full[t]*99/100 {
				return fmt.Errorf("the first LIST after a start has %d bytes, where there were %d", size, full[t])
			}
			return t.stop(ctx)
		}); err != nil {
			return err
		}
	}
	return each(targets, func(t *target) error {
		if _, err := t.start(ctx); err != nil {
			return err
		}
		// What comes next is measured on a server that is warm.
		_, err := t.client.eventually(ctx, request{method: "GET", path: t.base + resourcePath})
		return err
	})
}
