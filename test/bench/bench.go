package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/vmesh-io/vmesh/test/harness"
)

// bench is one run.
type bench struct {
	options options
	only    map[int]bool // nil for all
	dir     string
	begun   time.Time
	machine string
	results results

	vmeshBinary, apiserverBinary, etcdBinary string
}

// want says whether one of the rows is to be measured.
func (b *bench) want(rows ...int) bool {
	if b.only == nil {
		return true
	}
	for _, row := range rows {
		if b.only[row] {
			return true
		}
	}
	return false
}

// scaled is a number of objects at this run's scale.
func (b *bench) scaled(n int) int { return max(20, int(float64(n)*b.options.scale)) }

// log tells who waits what is going on.
func (b *bench) log(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(b.begun).Seconds(), fmt.Sprintf(format, args...))
}

// put records a sample and shows it.
func (b *bench) put(id string, target *target, value float64) {
	b.putNamed(id, target.name, value)
}

func (b *bench) putNamed(id, name string, value float64) {
	r := rowOf(id)
	b.results.add(id, name, value)
	b.log("%-14s  %2d %s: %s", name, r.number, r.what, r.format(value))
}

// each runs a measurement on every target in turn.
func each(targets []*target, measure func(*target) error) error {
	for _, t := range targets {
		if err := measure(t); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	return nil
}

func (b *bench) run(ctx context.Context) error {
	if err := b.findBinaries(ctx); err != nil {
		return err
	}
	if b.want(1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 16) || b.options.profileDir != "" {
		if err := b.objects(ctx); err != nil {
			return err
		}
	}
	if b.want(4, 5, 14) {
		if err := b.tenants(ctx); err != nil {
			return fmt.Errorf("virtual clusters: %w", err)
		}
	}
	if b.want(17) {
		if err := b.scope(ctx); err != nil {
			return fmt.Errorf("istiod's pushes: %w", err)
		}
	}
	if b.want(18) {
		for _, load := range b.options.shardLoads {
			if err := b.shards(ctx, load); err != nil {
				return fmt.Errorf("shards: %w", err)
			}
		}
	}
	if b.want(19) {
		if err := b.claims(ctx); err != nil {
			return fmt.Errorf("claims: %w", err)
		}
	}
	if b.want(20, 21) {
		if err := b.view(ctx); err != nil {
			return fmt.Errorf("services of members: %w", err)
		}
	}
	if b.want(22) {
		if err := b.join(ctx); err != nil {
			return fmt.Errorf("a member that joins: %w", err)
		}
	}
	if b.want(13) {
		// Last: it leaves this process with fewer processors.
		if err := b.neighbours(ctx); err != nil {
			return fmt.Errorf("a hostile tenant: %w", err)
		}
	}
	return nil
}

// findBinaries builds what is not built yet, before anything is timed.
func (b *bench) findBinaries(ctx context.Context) error {
	var err error
	if b.vmeshBinary = b.options.vmeshBinary; b.vmeshBinary == "" {
		b.log("building vmesh")
		if b.vmeshBinary, err = harness.Build(ctx); err != nil {
			return err
		}
	}
	if b.options.peer || b.want(17, 18, 22) {
		if b.apiserverBinary, err = harness.Tool(ctx, "kube-apiserver"); err != nil {
			return err
		}
	}
	if b.options.peer || b.want(8, 17, 18) {
		if b.etcdBinary, err = harness.Tool(ctx, "etcd"); err != nil {
			return err
		}
	}
	return nil
}

// objects measures all that has to do with many objects in one cluster.
func (b *bench) objects(ctx context.Context) error {
	targets := []*target{b.vmesh("vmesh")}
	if b.options.peer {
		targets = append(targets, b.peer())
	}
	// Nobody waits for the ends of those that are still running here.
	defer func() { _ = each(targets, (*target).kill) }()

	if err := b.startEmpty(ctx, targets); err != nil {
		return fmt.Errorf("starting: %w", err)
	}
	if !b.want(1, 3, 6, 7, 8, 9, 10, 11, 12, 16) && b.options.profileDir == "" {
		return nil
	}
	if err := b.load(ctx, targets); err != nil {
		return fmt.Errorf("loading: %w", err)
	}
	for _, stage := range []struct {
		rows []int
		name string
		run  func(context.Context, []*target) error
	}{
		{[]int{1}, "starting with objects", b.startLoaded},
		{[]int{6}, "listing", b.list},
		{[]int{10}, "watching", b.watch},
		{[]int{11, 12}, "pushing", func(ctx context.Context, targets []*target) error { return b.push(ctx, targets[0], b.scaled(10000)) }},
		{[]int{9}, "applying", b.apply},
		{[]int{16}, "pushing to many", func(ctx context.Context, targets []*target) error {
			return b.manyPlanes(ctx, targets[0], b.scaled(10000))
		}},
	} {
		if !b.want(stage.rows...) {
			continue
		}
		if err := stage.run(ctx, targets); err != nil {
			return fmt.Errorf("%s: %w", stage.name, err)
		}
	}
	if b.options.profileDir != "" {
		return b.profile(ctx, targets)
	}
	return nil
}
