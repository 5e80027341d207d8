package main

import (
	"context"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vmesh-io/vmesh/test/harness"
)

// createRounds is how often each number of clients creates its share of the objects.
const createRounds = 3

// load creates the objects: by it creates are measured, and what they cost in memory.
func (b *bench) load(ctx context.Context, targets []*target) error {
	if err := each(targets, func(t *target) error { return makeNamespaces(ctx, t) }); err != nil {
		return err
	}
	before := map[*target]use{}
	if b.want(3) {
		b.log("waiting for memory to settle")
		if err := b.anonAfter(ctx, targets, before); err != nil {
			return err
		}
	}

	total, first := b.scaled(10000), b.scaled(1000)
	if err := each(targets, func(t *target) error {
		_, err := create(ctx, t, 16, 0, first)
		return err
	}); err != nil {
		return err
	}
	if b.want(11) {
		if err := b.push(ctx, targets[0], first); err != nil {
			return err
		}
	}
	if err := b.createRest(ctx, targets, first, total); err != nil {
		return err
	}
	if b.want(8) {
		if err := b.rawPuts(ctx); err != nil {
			return err
		}
	}
	if !b.want(3) {
		return nil
	}

	b.log("waiting for memory to settle")
	if err := settle(ctx, targets); err != nil {
		return err
	}
	settled, collected := map[*target]use{}, map[*target]use{}
	if err := each(targets, func(t *target) error {
		anon, err := t.anon()
		settled[t] = anon
		return err
	}); err != nil {
		return err
	}
	if err := b.anonAfter(ctx, targets, collected); err != nil {
		return err
	}
	return each(targets, func(t *target) error {
		share := func(u use) float64 { return u.since(before[t]).total() * 1024 / float64(total) }
		b.put("anon.object", t, share(settled[t]))
		b.put("anon.object.gc", t, share(collected[t]))
		return nil
	})
}

// makeNamespaces makes those of the load.
func makeNamespaces(ctx context.Context, t *target) error {
	_, err := drive(ctx, 4, namespaces, nil, func(ctx context.Context, i int) error {
		_, err := t.client.size(ctx, request{method: "POST", path: t.base + "/api/v1/namespaces", body: namespaceBody(i)})
		return err
	})
	return err
}

// anonAfter takes the anonymous memory of the targets after a collection.
func (b *bench) anonAfter(ctx context.Context, targets []*target, into map[*target]use) error {
	if err := each(targets, func(t *target) error { return t.collect(ctx) }); err != nil {
		return err
	}
	if err := settle(ctx, targets); err != nil {
		return err
	}
	return each(targets, func(t *target) error {
		anon, err := t.anon()
		into[t] = anon
		return err
	})
}

// create creates objects first to last-1 of the load.
func create(ctx context.Context, t *target, clients, first, last int) (load, error) {
	bodies := make([]request, last-first)
	for i := range bodies {
		v := virtualService{"route", first + i}
		bodies[i] = request{method: "POST", path: t.base + v.collection(), body: v.body(0, "")}
	}
	return drive(ctx, clients, len(bodies), nil, func(ctx context.Context, i int) error {
		_, err := t.client.size(ctx, bodies[i])
		return err
	})
}

func (b *bench) createRest(ctx context.Context, targets []*target, first, last int) error {
	batch := (last - first) / (2 * createRounds)
	for round := range createRounds {
		for turn, clients := range []int{16, 64} {
			from := first + (2*round+turn)*batch
			to := from + batch
			if round == createRounds-1 && turn == 1 {
				to = last
			}
			if err := each(targets, func(t *target) error {
				var done load
				cpu, err := t.during(func() (err error) {
					done, err = create(ctx, t, clients, from, to)
					return err
				})
				if err != nil || !b.want(7, 8) {
					return err
				}
				id := "create.16"
				if clients == 64 {
					id = "create.64"
				}
				b.put(id, t, done.rate())
				b.put("create.cpu", t, cpu.total()/float64(done.ops))
				b.put("create.cpu.api", t, cpu.api/float64(done.ops))
				return nil
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

// rawPuts measures what etcd alone can take on this machine.
func (b *bench) rawPuts(ctx context.Context) error {
	etcd, err := harness.StartEtcd(ctx, harness.EtcdOptions{Dir: filepath.Join(b.dir, "raw-etcd"), Binary: b.etcdBinary})
	if err != nil {
		return err
	}
	defer func() { _ = etcd.Kill() }() // its data goes with it
	clients := make([]*clientv3.Client, connections)
	for i := range clients {
		if clients[i], err = clientv3.New(clientv3.Config{Endpoints: []string{etcd.URL}, DialTimeout: 5 * time.Second}); err != nil {
			return err
		}
		defer clients[i].Close()
	}
	for round := range createRounds {
		done, err := drive(ctx, 64, b.scaled(10000), nil, func(ctx context.Context, i int) error {
			v := virtualService{"route", i}
			_, err := clients[i%connections].Put(ctx, "/raw/"+v.item(), string(v.body(round, "")))
			return err
		})
		if err != nil {
			return err
		}
		b.putNamed("etcd.puts", nameVmesh, done.rate())
	}
	puts, _ := b.results.median("etcd.puts", nameVmesh)
	for _, name := range []string{nameVmesh, namePeer} {
		if rate, ok := b.results.median("create.64", name); ok {
			b.putNamed("create.share", name, rate/puts)
		}
	}
	return nil
}
