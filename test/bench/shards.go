package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/vmesh-io/vmesh/test/harness"
	"github.com/vmesh-io/vmesh/test/traffic"
)

const (
	shardRounds  = 2  // how often an istiod is started anew with each feed and each debounce
	shardChanges = 20 // of each of them
	shardWarmUp  = 4  // with them it is an even number: the last change leaves what the first finds
	shardsMost   = 256
	// shardPatience is how long a change may take to shift calls.
	shardPatience = 30 * time.Second
	lagSum        = "vmesh_xds_change_lag_seconds_sum"
	lagCount      = "vmesh_xds_change_lag_seconds_count"
)

// To whom the objects are exported: to their own namespaces, as vmesh has it where nothing is said, or to all, as Istio has it.
const (
	exportedToOwn = "own"
	exportedToAll = "all"
)

// shardLoad is what istiods hold while an object changes.
type shardLoad struct {
	objects int
	exports string
}

// feedID is how a feed's figures are called.
func (l shardLoad) feedID(shards string) string {
	return fmt.Sprintf("shards.%d.%s.%s.", l.objects, l.exports, shards)
}

// create makes the objects.
func (l shardLoad) create(ctx context.Context, t *target, objects int) error {
	exports := []byte(`"exportTo":["."],`)
	_, err := drive(ctx, 16, objects, nil, func(ctx context.Context, i int) error {
		v := virtualService{"route", i}
		body := v.body(0, "")
		if l.exports == exportedToAll {
			body = bytes.Replace(body, exports, nil, 1)
		}
		_, err := t.client.size(ctx, request{method: "POST", path: t.base + v.collection(), body: body})
		return err
	})
	return err
}

// rows are the figures, for some numbers of shards.
func (l shardLoad) rows(feeds []string) []row {
	most := func(figure string) string { return "its own watch's " + figure }
	var all []row
	add := func(id, what, unit, reach string) {
		all = append(all, row{id: id, number: 18, what: what, unit: unit, reach: reach})
	}
	for _, shards := range feeds {
		id := l.feedID(shards)
		add(id+"cpu", fmt.Sprintf("istiod's CPU for a changed VirtualService among %d, exported to %s, through a relay with --shards %s", l.objects, l.exports, shards), "ms", most("CPU"))
		add(id+"rss", "anonymous RSS of that istiod", "MiB", most("RSS"))
		add(id+"call", "from the write's 200 to the first shifted gRPC call, p50", "ms", most("time"))
		add(id+"call.quick", "the same with a debounce of 5 ms", "ms", most("time"))
		ack := ""
		if l.objects <= 10000 {
			ack = "8 ms"
		}
		add(id+"ack", "from the change to istiod's acknowledgement as vmesh knows it, p50", "ms", ack)
		add(id+"relay.cpu", "CPU of the relay for a change", "ms", "")
		add(id+"relay.rss", "anonymous RSS of the relay", "MiB", "")
		if shards == "auto" {
			add(id+"count", "shards that --shards auto has chosen", "", "")
		}
	}
	return all
}

// feed is what an istiod has its configuration from.
type feed struct {
	name    string // a number of shards, or namePeer
	target  *target
	options harness.IstiodOptions
	relay   *harness.Relay // nil for the peer
	ids     []string       // of the figures, but for their ends
}

// shards compares an istiod that a relay feeds over some sources with one that watches the CRDs of a kube-apiserver.
func (b *bench) shards(ctx context.Context, l shardLoad) (err error) {
	binary, err := harness.Tool(ctx, "istiod")
	if err != nil {
		return err
	}
	address, err := freeAddress()
	if err != nil {
		return err
	}
	dir := fmt.Sprintf("shards-%d-%s", l.objects, l.exports)
	ours := b.vmesh(filepath.Join(dir, "vmesh"), "--xds-tls-address", address)
	theirs := b.peerAt(filepath.Join(dir, "peer"))
	both := []*target{ours, theirs}
	defer func() { err = errors.Join(err, each(both, (*target).kill)) }()
	var backends [2]*traffic.Backend
	for i := range backends {
		if backends[i], err = traffic.StartBackend(fmt.Sprint("v", i+1)); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, backends[i].Stop()) }()
	}
	b.log("loading %d objects, exported to %s", b.scaled(l.objects), l.exports)
	if err := each(both, func(t *target) error {
		if _, err := t.start(ctx); err != nil {
			return err
		}
		if t == theirs && !b.options.peer {
			return nil // it is istiods' own API all the same
		}
		if err := makeNamespaces(ctx, t); err != nil {
			return err
		}
		if err := l.create(ctx, t, b.scaled(l.objects)); err != nil {
			return err
		}
		return makeGreeter(ctx, t, backends)
	}); err != nil {
		return err
	}
	for round := range shardRounds {
		feeds := b.options.shardFeeds
		if b.options.peer {
			feeds = append([]string{namePeer}, feeds...)
		}
		for _, shards := range feeds {
			f := &feed{name: shards, target: ours, options: harness.IstiodOptions{Binary: binary, Kubeconfig: theirs.kubeconfig}}
			where := filepath.Join(b.dir, dir, fmt.Sprintf("%s-%d", shards, round))
			if shards == namePeer {
				f.target, f.options.WatchKubernetes = theirs, true
				for _, s := range b.options.shardFeeds {
					f.ids = append(f.ids, l.feedID(s))
				}
			} else {
				f.ids = []string{l.feedID(shards)}
			}
			if err := b.feedIstiod(ctx, f, address, where, l.objects); err != nil {
				return fmt.Errorf("%s: %w", shards, err)
			}
		}
	}
	return nil
}

// feedIstiod measures one feed, with each debounce.
func (b *bench) feedIstiod(ctx context.Context, f *feed, upstream, dir string, objects int) (err error) {
	debug, err := freeAddress()
	if err != nil {
		return err
	}
	if f.name != namePeer {
		if f.relay, err = harness.StartRelay(ctx, harness.RelayOptions{
			Dir: filepath.Join(dir, "relay"), Binary: b.vmeshBinary, Upstream: []string{upstream}, Kubeconfig: f.target.kubeconfig, MaxShards: shardsMost,
			// It asks istiod about its proxies, as it does beside any.
			ExtraArgs: []string{"--shards", f.name, "--istiod-debug-url", "http://" + debug},
		}); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.relay.Kill()) }()
		if err := f.relay.WaitReady(ctx); err != nil {
			return err
		}
		if f.options.XDSAddresses, err = f.relay.Sources(); err != nil {
			return err
		}
		if f.name == "auto" {
			f.put(b, "count", float64(len(f.options.XDSAddresses)))
		}
	}
	for _, debounce := range []time.Duration{0, 5 * time.Millisecond} {
		options := f.options
		options.Dir, options.Debounce, options.ExtraArgs = filepath.Join(dir, debounce.String()), debounce, []string{"--monitoringAddr", debug}
		if err := b.fedIstiod(ctx, f, options, objects); err != nil {
			return err
		}
	}
	return nil
}

// put records a figure under every feed that it is to be compared with.
func (f *feed) put(b *bench, figure string, value float64) {
	for i, id := range f.ids {
		if i == 0 {
			b.log("%-14s  18 %s, %s: %s", f.target.name, f.name, figure, rowOf(id+figure).format(value))
		}
		b.results.add(id+figure, f.target.name, value)
	}
}

// fedIstiod measures one istiod.
func (b *bench) fedIstiod(ctx context.Context, f *feed, options harness.IstiodOptions, objects int) (err error) {
	istiod, err := harness.StartIstiod(ctx, options)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, istiod.Kill()) }()
	client, err := traffic.Dial(istiod.GRPCAddress, traffic.Target)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	processes := []*harness.Process{istiod.Process}
	if f.relay != nil {
		processes = append(processes, f.relay.Process)
	}
	// Between two changes istiod is done with the first: one costs the same whatever else goes on.
	pause := max(500*time.Millisecond, time.Duration(objects)*40*time.Microsecond)
	var before []float64
	var calls, acks []float64
	var lag lagged
	for n := range shardWarmUp + shardChanges {
		if n == shardWarmUp {
			if before, err = cpus(processes); err != nil {
				return err
			}
			calls, acks = nil, nil
		}
		if f.relay != nil {
			if lag, err = lagOf(ctx, f.target); err != nil {
				return err
			}
		}
		version := fmt.Sprint("v", n%2+1)
		if err := shift(ctx, f.target, version); err != nil {
			return err
		}
		written := time.Now()
		shifted, err := awaitCall(ctx, client, version)
		if err != nil {
			return err
		}
		calls = append(calls, milliseconds(shifted.Sub(written)))
		select {
		case <-time.After(time.Until(written.Add(pause))):
		case <-ctx.Done():
			return ctx.Err()
		}
		if f.relay != nil {
			took, err := awaitLag(ctx, f.target, lag)
			if err != nil {
				return err
			}
			acks = append(acks, took)
		}
	}
	after, err := cpus(processes)
	if err != nil {
		return err
	}
	f.put(b, "cpu", (after[0]-before[0])/shardChanges)
	call := "call"
	if options.Debounce != 0 {
		call = "call.quick"
	}
	f.put(b, call, quantile(calls, 0.5))
	rss, err := istiod.AnonRSS()
	if err != nil {
		return err
	}
	f.put(b, "rss", float64(rss)/(1<<20))
	if f.relay == nil {
		return nil
	}
	f.put(b, "ack", quantile(acks, 0.5))
	f.put(b, "relay.cpu", (after[1]-before[1])/shardChanges)
	if rss, err = f.relay.AnonRSS(); err == nil {
		f.put(b, "relay.rss", float64(rss)/(1<<20))
	}
	return err
}

// cpus are the processor times of some processes in milliseconds.
func cpus(processes []*harness.Process) (all []float64, err error) {
	for _, p := range processes {
		used, err := p.CPU()
		if err != nil {
			return nil, err
		}
		all = append(all, milliseconds(used))
	}
	return all, nil
}

// lagged is how many changes were acknowledged, and how long they took together, in seconds.
type lagged struct{ sum, count float64 }

func lagOf(ctx context.Context, t *target) (l lagged, err error) {
	// Before the first acknowledgement there is no such metric.
	if l.sum, err = t.metric(ctx, lagSum); err != nil {
		if _, err := t.metric(ctx, entriesTotal); err != nil {
			return l, err
		}
		return lagged{}, nil
	}
	l.count, err = t.metric(ctx, lagCount)
	return l, err
}

// awaitLag is how long one change more took, in milliseconds.
func awaitLag(ctx context.Context, t *target, before lagged) (float64, error) {
	for deadline := time.Now().Add(shardPatience); ; time.Sleep(100 * time.Millisecond) {
		now, err := lagOf(ctx, t)
		switch {
		case err != nil:
			return 0, err
		case now.count == before.count+1:
			return (now.sum - before.sum) * 1000, nil
		case now.count > before.count || time.Now().After(deadline):
			return 0, fmt.Errorf("%v changes were acknowledged within %s where there was one", now.count-before.count, shardPatience)
		}
	}
}

// awaitCall calls until a version answers.
func awaitCall(ctx context.Context, client *traffic.Client, version string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, shardPatience)
	defer cancel()
	for {
		got, err := client.Call(ctx, map[string]string{traffic.VersionHeader: "any"})
		now := time.Now()
		if err == nil && got == version {
			return now, nil
		}
		if ctx.Err() != nil {
			return now, fmt.Errorf("no call was answered by %s within %s; the last by %q, %v", version, shardPatience, got, err)
		}
		time.Sleep(500 * time.Microsecond)
	}
}

// makeGreeter makes the service that is called, and its routes.
func makeGreeter(ctx context.Context, t *target, backends [2]*traffic.Backend) error {
	if _, err := t.client.size(ctx, request{
		method: "POST", path: t.base + "/api/v1/namespaces", body: []byte(`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"demo"}}`),
	}); err != nil {
		return err
	}
	port := func(i int) string { return strconv.Itoa(backends[i].Port) }
	if err := applyGreeter(ctx, t, "ServiceEntry", "serviceentries", `{"hosts":["greeter.demo.example"],"location":"MESH_INTERNAL","resolution":"STATIC","ports":[{"number":80,"name":"grpc","protocol":"GRPC"}],`+
		`"endpoints":[{"address":"127.0.0.1","ports":{"grpc":`+port(0)+`},"labels":{"version":"v1"}},{"address":"127.0.0.1","ports":{"grpc":`+port(1)+`},"labels":{"version":"v2"}}]}`); err != nil {
		return err
	}
	if err := applyGreeter(ctx, t, "DestinationRule", "destinationrules",
		`{"host":"greeter.demo.example","subsets":[{"name":"v1","labels":{"version":"v1"}},{"name":"v2","labels":{"version":"v2"}}]}`); err != nil {
		return err
	}
	return shift(ctx, t, "v2")
}

// shift has calls with the header answered by a version. Both versions are in use by other calls: no client has to
// connect, or to part.
func shift(ctx context.Context, t *target, version string) error {
	return applyGreeter(ctx, t, "VirtualService", "virtualservices", `{"hosts":["greeter.demo.example"],"http":[`+
		`{"match":[{"headers":{"`+traffic.VersionHeader+`":{"exact":"any"}}}],"route":[{"destination":{"host":"greeter.demo.example","subset":"`+version+`"}}]},`+
		`{"route":[{"destination":{"host":"greeter.demo.example","subset":"v1"},"weight":50},{"destination":{"host":"greeter.demo.example","subset":"v2"},"weight":50}]}]}`)
}

func applyGreeter(ctx context.Context, t *target, kind, resource, spec string) error {
	_, err := t.client.size(ctx, request{
		method: "PATCH", path: t.base + "/apis/networking.istio.io/v1/namespaces/demo/" + resource + "/greeter?fieldManager=bench", contentType: "application/apply-patch+yaml",
		body: []byte(`{"apiVersion":"networking.istio.io/v1","kind":"` + kind + `","metadata":{"name":"greeter","namespace":"demo"},"spec":` + spec + `}`),
	})
	return err
}

func freeAddress() (string, error) {
	ports, err := harness.FreePorts(1)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0]), nil
}
