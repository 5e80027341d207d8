package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"time"

	"github.com/vmesh-io/vmesh/test/harness"
)

// target is a server under measurement: vmesh, or kube-apiserver with its etcd.
type target struct {
	name   string
	base   string    // the path before /apis of the cluster that holds the objects
	begin  beginFunc // starts the processes on what is stored
	client *client
	// kubeconfig is the way in, as an administrator.
	kubeconfig string

	api   *harness.Process
	store *harness.Process // nil when it is part of api
	xds   string
}

// beginFunc starts what a target consists of and returns how to get in.
type beginFunc func(ctx context.Context, t *target) (kubeconfig string, err error)

func (b *bench) vmesh(dir string, args ...string) *target {
	var server *harness.Vmesh
	return &target{name: nameVmesh, base: "/clusters/default", begin: func(ctx context.Context, t *target) (string, error) {
		var err error
		if server == nil {
			server, err = harness.StartVmesh(ctx, harness.VmeshOptions{DataDir: filepath.Join(b.dir, dir), Binary: b.vmeshBinary, ExtraArgs: args})
		} else {
			err = server.Restart(ctx)
		}
		if err != nil {
			return "", err
		}
		t.api, t.xds = server.Process, server.XDSAddress
		return server.AdminKubeconfig, nil
	}}
}

func (b *bench) peer() *target { return b.peerAt("") }

// peerAt is a peer of its own directory.
func (b *bench) peerAt(dir string) *target {
	installed := false
	begin := func(ctx context.Context, t *target) (string, error) {
		etcd, err := harness.StartEtcd(ctx, harness.EtcdOptions{Dir: filepath.Join(b.dir, dir, "etcd"), Binary: b.etcdBinary})
		if err != nil {
			return "", err
		}
		t.store = etcd.Process
		api, err := harness.StartKubeAPIServer(ctx, harness.KubeAPIServerOptions{
			Dir: filepath.Join(b.dir, dir, "kube-apiserver"), EtcdURL: etcd.URL, Binary: b.apiserverBinary,
		})
		if err != nil {
			return "", err
		}
		t.api = api.Process
		return api.Kubeconfig, nil
	}
	return &target{name: namePeer, begin: func(ctx context.Context, t *target) (string, error) {
		// The CRDs are part of the peer: every start that is timed has them.
		if !installed {
			kubeconfig, err := begin(ctx, t)
			if err != nil {
				return "", err
			}
			if err := harness.InstallIstioCRDs(ctx, kubeconfig); err != nil {
				return "", err
			}
			installed = true
			if err := t.stop(ctx); err != nil {
				return "", err
			}
		}
		return begin(ctx, t)
	}}
}

// prepare starts a target for the first time, without timing it, and stops it.
func (t *target) prepare(ctx context.Context) error {
	if _, err := t.start(ctx); err != nil {
		return err
	}
	return t.stop(ctx)
}

// start starts the target on what it has stored, and says how long it took to /readyz.
func (t *target) start(ctx context.Context) (time.Duration, error) {
	begun := time.Now()
	kubeconfig, err := t.begin(ctx, t)
	if err != nil {
		return 0, err
	}
	took := time.Since(begun)
	t.kubeconfig = kubeconfig
	t.client, err = newClient(kubeconfig)
	return took, err
}

func (t *target) processes() []*harness.Process {
	var all []*harness.Process
	for _, p := range []*harness.Process{t.api, t.store} {
		if p != nil {
			all = append(all, p)
		}
	}
	return all
}

func (t *target) stop(ctx context.Context) error {
	if t.client != nil {
		t.client.close()
	}
	var errs []error
	for _, p := range t.processes() {
		errs = append(errs, p.Stop(ctx))
	}
	return errors.Join(errs...)
}

func (t *target) kill() error {
	var errs []error
	for _, p := range t.processes() {
		errs = append(errs, p.Kill())
	}
	return errors.Join(errs...)
}

// use is what the processes have used so far, or hold.
type use struct {
	api, store float64
}

func (u use) total() float64 { return u.api + u.store }

func (u use) since(before use) use { return use{u.api - before.api, u.store - before.store} }

// cpu is processor time in milliseconds.
func (t *target) cpu() (use, error) {
	return t.sum(func(p *harness.Process) (float64, error) {
		d, err := p.CPU()
		return milliseconds(d), err
	})
}

// rss and anon are resident memory in MiB, with and without file-backed pages.
func (t *target) rss() (use, error) {
	return t.sum(func(p *harness.Process) (float64, error) {
		n, err := p.RSS()
		return float64(n) / (1 << 20), err
	})
}

func (t *target) anon() (use, error) {
	return t.sum(func(p *harness.Process) (float64, error) {
		n, err := p.AnonRSS()
		return float64(n) / (1 << 20), err
	})
}

func (t *target) sum(read func(*harness.Process) (float64, error)) (u use, err error) {
	if u.api, err = read(t.api); err == nil && t.store != nil {
		u.store, err = read(t.store)
	}
	return u, err
}

// during runs a load and says what CPU it cost.
func (t *target) during(run func() error) (use, error) {
	before, err := t.cpu()
	if err != nil {
		return use{}, err
	}
	if err := run(); err != nil {
		return use{}, err
	}
	after, err := t.cpu()
	return after.since(before), err
}

const (
	// Memory has settled when it has changed by less than a hundredth for so long. A runtime takes its time to return
	// what it does not need; vmesh does when nothing has been written for a while.
	settleWindow = 22 * time.Second
	settleLimit  = 100 * time.Second
	settleStep   = 500 * time.Millisecond
)

// settle waits until the memory of all targets is stable.
func settle(ctx context.Context, targets []*target) error {
	var history []float64
	for deadline := time.Now().Add(settleLimit); time.Now().Before(deadline); {
		sum := 0.0
		if err := each(targets, func(t *target) error {
			anon, err := t.anon()
			sum += anon.total()
			return err
		}); err != nil {
			return err
		}
		history = append(history, sum)
		if n := int(settleWindow / settleStep); len(history) > n {
			low, high := sum, sum
			for _, was := range history[len(history)-n:] {
				low, high = math.Min(low, was), math.Max(high, was)
			}
			if high-low < sum/100 {
				return nil
			}
		}
		select {
		case <-time.After(settleStep):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// collect has a server collect its garbage.
func (t *target) collect(ctx context.Context) error {
	// Twice: what has a finalizer goes with the second.
	for range 2 {
		if _, err := t.client.size(ctx, request{method: "GET", path: "/debug/pprof/heap?gc=1"}); err != nil {
			return err
		}
	}
	return nil
}

// metric sums the samples of a metric.
func (t *target) metric(ctx context.Context, name string) (float64, error) {
	data, err := t.client.do(ctx, request{method: "GET", path: "/metrics"})
	if err != nil {
		return 0, err
	}
	sum, found := 0.0, false
	for line := range strings.Lines(string(data)) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		var value float64
		if _, err := fmt.Sscan(rest[strings.LastIndexByte(rest, ' ')+1:], &value); err != nil {
			return 0, fmt.Errorf("metric %s: %w", name, err)
		}
		sum, found = sum+value, true
	}
	if !found {
		return 0, fmt.Errorf("there is no metric %s", name)
	}
	return sum, nil
}
