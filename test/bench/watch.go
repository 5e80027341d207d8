package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	watchers       = 100
	updatesASecond = 120
	watchRounds    = 3
	watchSeconds   = 8
)

// watch measures how long an event takes to every one of many watchers of all objects.
func (b *bench) watch(ctx context.Context, targets []*target) error {
	for range watchRounds {
		if err := each(targets, func(t *target) error {
			w := newWatching(t, updatesASecond)
			err := w.run(ctx, watchSeconds*updatesASecond)
			if err != nil {
				return err
			}
			b.put("event.p50", t, quantile(w.events, 0.5))
			b.put("event.p99", t, quantile(w.events, 0.99))
			b.put("event.write", t, quantile(w.writes, 0.5))
			b.put("event.cpu", t, w.cpu.total()/milliseconds(w.took))
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// watching is a number of watchers and someone who writes.
type watching struct {
	target  *target
	objects int // that are written in turn

	sent      []atomic.Int64 // when update i was sent, by the clock since begun
	begun     time.Time
	mu        sync.Mutex
	remaining atomic.Int64 // events that are still to come

	events, writes []float64 // in milliseconds
	cpu            use
	took           time.Duration
}

func newWatching(t *target, objects int) *watching {
	return &watching{target: t, objects: objects, begun: time.Now()}
}

// revisionMark is before the number of an update in its object.
var revisionMark = []byte(`"bench.vmesh.io/revision":"`)

// run makes updates at their pace and waits until every watcher has seen all of them.
func (w *watching) run(ctx context.Context, updates int) error {
	w.sent = make([]atomic.Int64, updates)
	w.remaining.Store(int64(updates) * watchers)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	versions, err := w.reset(ctx)
	if err != nil {
		return err
	}
	all := make(chan struct{}) // closed when the last event has come
	streams, streamCtx := errgroup.WithContext(ctx)
	defer func() { _ = streams.Wait() }() // ends by the cancellation
	defer cancel()
	from := versions[len(versions)-1]
	for range watchers {
		connection := w.target.client.connection()
		body, err := w.target.client.open(streamCtx, connection, request{
			method: "GET", path: w.target.base + resourcePath + "?watch=true&allowWatchBookmarks=true&resourceVersion=" + from,
		})
		if err != nil {
			return err
		}
		streams.Go(func() error {
			defer connection.CloseIdleConnections()
			defer body.Close()
			return w.follow(body, all)
		})
	}

	w.cpu, err = w.target.during(func() error {
		begun := time.Now()
		if err := w.write(ctx, versions, updates); err != nil {
			return err
		}
		timeout := time.NewTimer(30 * time.Second)
		defer timeout.Stop()
		select {
		case <-all:
		case <-streamCtx.Done():
			return errors.Join(errors.New("a watch has ended"), context.Cause(streamCtx))
		case <-timeout.C:
			return fmt.Errorf("%d events have not come", w.remaining.Load())
		}
		w.took = time.Since(begun)
		return nil
	})
	return err
}

// reset makes sure that no object bears the mark of an update, and returns the objects' resource versions; the last is
// the highest.
func (w *watching) reset(ctx context.Context) ([]string, error) {
	versions := make([]string, w.objects)
	for i := range versions {
		v := virtualService{"route", i}
		current, err := w.target.client.do(ctx, request{method: "GET", path: w.target.base + v.item()})
		if err != nil {
			return nil, err
		}
		if versions[i], err = w.put(ctx, i, 99999999, resourceVersion(current)); err != nil {
			return nil, err
		}
	}
	return versions, nil
}

// write makes the updates at their pace, whatever time each takes.
func (w *watching) write(ctx context.Context, versions []string, updates int) error {
	group, ctx := errgroup.WithContext(ctx)
	tick := time.NewTicker(time.Second / updatesASecond)
	defer tick.Stop()
	locks := make([]sync.Mutex, w.objects)
	for i := range updates {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return group.Wait()
		}
		group.Go(func() error {
			object := i % w.objects
			locks[object].Lock()
			defer locks[object].Unlock()
			asked := time.Now()
			w.sent[i].Store(int64(asked.Sub(w.begun)))
			version, err := w.put(ctx, object, i, versions[object])
			versions[object] = version
			took := milliseconds(time.Since(asked))
			w.mu.Lock()
			defer w.mu.Unlock()
			w.writes = append(w.writes, took)
			return err
		})
	}
	return group.Wait()
}

func (w *watching) put(ctx context.Context, object, revision int, version string) (string, error) {
	v := virtualService{"route", object}
	answer, err := w.target.client.do(ctx, request{method: "PUT", path: w.target.base + v.item(), body: v.body(revision, version)})
	return resourceVersion(answer), err
}

// follow reads one watch to its end.
func (w *watching) follow(body io.Reader, all chan struct{}) error {
	lines := bufio.NewReaderSize(body, 64<<10)
	var mine []float64
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.events = append(w.events, mine...)
	}()
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			return err
		}
		now := time.Since(w.begun)
		at := bytes.Index(line, revisionMark)
		if at < 0 {
			continue // a bookmark
		}
		at += len(revisionMark)
		revision, err := strconv.Atoi(string(line[at : at+8]))
		if err != nil {
			return fmt.Errorf("reading an event: %w", err)
		}
		if revision >= len(w.sent) {
			continue // of the reset
		}
		mine = append(mine, milliseconds(now-time.Duration(w.sent[revision].Load())))
		if w.remaining.Add(-1) == 0 {
			close(all)
		}
	}
}

// resourceVersion is that of the first object in JSON.
func resourceVersion(data []byte) string {
	_, rest, _ := bytes.Cut(data, []byte(`"resourceVersion":"`))
	version, _, _ := bytes.Cut(rest, []byte(`"`))
	return string(version)
}
