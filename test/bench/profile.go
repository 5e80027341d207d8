package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
)

// profileSeconds is how long each load is profiled.
const profileSeconds = 10

// profile runs each load once more, for its profile alone: a profile costs CPU, so none is taken while measuring.
func (b *bench) profile(ctx context.Context, targets []*target) error {
	if err := os.MkdirAll(b.options.profileDir, 0o755); err != nil {
		return err
	}
	for _, p := range []struct {
		row  int
		name string
		run  func(ctx context.Context, t *target, stop <-chan struct{}) error
	}{
		{7, "create", profileCreate},
		{6, "list", profileList},
		{9, "apply", profileApply},
		{10, "watch", profileWatch},
		{12, "push", profilePush},
	} {
		if !b.want(p.row) {
			continue
		}
		if err := each(targets, func(t *target) error {
			if p.name == "push" && t.xds == "" {
				return nil
			}
			b.log("%-14s  profiling %s", t.name, p.name)
			return b.profileLoad(ctx, t, p.name, p.run)
		}); err != nil {
			return fmt.Errorf("profiling %s: %w", p.name, err)
		}
	}
	return each(targets, func(t *target) error {
		return b.saveProfile(ctx, t, "heap", "heap?gc=1")
	})
}

func (b *bench) profileLoad(ctx context.Context, t *target, name string, run func(context.Context, *target, <-chan struct{}) error) error {
	stop := make(chan struct{})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return run(ctx, t, stop) })
	group.Go(func() error {
		defer close(stop)
		return b.saveProfile(ctx, t, name+".cpu", fmt.Sprintf("profile?seconds=%d", profileSeconds))
	})
	if err := group.Wait(); err != nil {
		return err
	}
	return b.saveProfile(context.WithoutCancel(ctx), t, name+".allocs", "allocs")
}

func (b *bench) saveProfile(ctx context.Context, t *target, name, page string) error {
	data, err := t.client.do(ctx, request{method: "GET", path: "/debug/pprof/" + page})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.options.profileDir, t.name+"."+name+".pprof"), data, 0o644)
}

// profileTenants profiles the creation of virtual clusters where there are many, and what these hold.
func (b *bench) profileTenants(ctx context.Context, t *target, many int) error {
	if err := os.MkdirAll(b.options.profileDir, 0o755); err != nil {
		return err
	}
	if err := b.saveProfile(ctx, t, "clusters.heap", "heap?gc=1"); err != nil {
		return err
	}
	b.log("%-14s  profiling clusters", t.name)
	return b.profileLoad(ctx, t, "clusters", func(ctx context.Context, t *target, stop <-chan struct{}) error {
		_, err := drive(ctx, 16, math.MaxInt32, stop, func(ctx context.Context, i int) error {
			return createTenant(ctx, t, tenantName(many+i))
		})
		return err
	})
}

func profileCreate(ctx context.Context, t *target, stop <-chan struct{}) error {
	_, err := drive(ctx, 16, math.MaxInt32, stop, func(ctx context.Context, i int) error {
		v := virtualService{"profiled", i}
		_, err := t.client.size(ctx, request{method: "POST", path: t.base + v.collection(), body: v.body(0, "")})
		return err
	})
	return err
}

func profileList(ctx context.Context, t *target, stop <-chan struct{}) error {
	_, err := drive(ctx, 1, math.MaxInt32, stop, func(ctx context.Context, _ int) error {
		_, err := t.client.size(ctx, request{method: "GET", path: t.base + resourcePath})
		return err
	})
	return err
}

func profileApply(ctx context.Context, t *target, stop <-chan struct{}) error {
	for revision := 2; ; revision++ {
		select {
		case <-stop:
			return nil
		default:
		}
		if _, err := applyAll(ctx, t, 0, 500, revision, stop); err != nil {
			return err
		}
	}
}

func profileWatch(ctx context.Context, t *target, _ <-chan struct{}) error {
	return newWatching(t, updatesASecond).run(ctx, profileSeconds*updatesASecond)
}

func profilePush(ctx context.Context, t *target, stop <-chan struct{}) error {
	change, err := changes(ctx, t)
	if err != nil {
		return err
	}
	var clients []*xdsClient
	for i := range manyClients {
		c, err := connectXDS(ctx, sotwMethod, t.xds, i, 1)
		if err != nil {
			return err
		}
		defer c.close()
		clients = append(clients, c)
	}
	for {
		select {
		case <-stop:
			return nil
		case <-time.After(pushPause):
		}
		if err := change(); err != nil {
			return err
		}
		for _, c := range clients {
			if _, err := c.next(); err != nil {
				return err
			}
		}
	}
}
