package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/vmesh-io/vmesh/test/harness"
)

const (
	quietTenants = 9
	// quietRate is how many requests a second each quiet tenant makes: a third each creates, reads and lists.
	quietRate = 15
	// quietSeconds is how long the quiet ones are watched, alone and with the hostile one.
	quietSeconds = 20
	quietRounds  = 3
	// hostileLead is how long the hostile tenant has been at it when the measurement begins.
	hostileLead = 5 * time.Second
)

// neighbours measures what nine quiet tenants notice of a hostile one. The server has one half of the processors to itself,
// and the clients the other.
func (b *bench) neighbours(ctx context.Context) (err error) {
	if b.options.profileDir != "" {
		if err := os.MkdirAll(b.options.profileDir, 0o755); err != nil {
			return err
		}
	}
	binary, pinned, err := b.pin()
	if err != nil {
		return err
	}
	server, err := harness.StartVmesh(ctx, harness.VmeshOptions{DataDir: filepath.Join(b.dir, "neighbours"), Binary: binary})
	if err != nil {
		return err
	}
	defer func() { _ = server.Kill() }() // its data goes with it
	t := &target{name: nameVmesh, api: server.Process}
	if t.client, err = newClient(server.AdminKubeconfig); err != nil {
		return err
	}
	b.log("%s", pinned)

	var quiet []*quietTenant
	var hostileConfig string
	for i := range quietTenants + 1 {
		name := tenantName(i)
		if err := createTenant(ctx, t, name); err != nil {
			return err
		}
		kubeconfig, err := server.Kubeconfig(ctx, name)
		if err != nil {
			return err
		}
		if i == quietTenants {
			hostileConfig = kubeconfig
			continue
		}
		q := &quietTenant{prefix: fmt.Sprintf("q%d", i)}
		if q.client, err = newClient(kubeconfig); err != nil {
			return err
		}
		defer q.client.close()
		quiet = append(quiet, q)
	}
	if _, err := drive(ctx, 16, hostileObjects, nil, func(ctx context.Context, i int) error {
		_, err := t.client.size(ctx, request{method: "POST", path: "/clusters/" + tenantName(quietTenants) + hostilePath, body: hostileBody("hostile", i, 0)})
		return err
	}); err != nil {
		return err
	}
	if _, err := b.quietRound(ctx, t, quiet, ""); err != nil { // to warm up
		return err
	}
	for range quietRounds {
		alone, err := b.quietRound(ctx, t, quiet, "")
		if err != nil {
			return err
		}
		with, err := b.quietRound(ctx, t, quiet, hostileConfig)
		if err != nil {
			return err
		}
		for _, phase := range []struct {
			id string
			*quietRound
		}{{"alone", alone}, {"with", with}} {
			b.put("quiet."+phase.id+".p50", t, quantile(phase.latencies, 0.5))
			b.put("quiet."+phase.id+".p99", t, quantile(phase.latencies, 0.99))
		}
		b.put("quiet.ratio", t, quantile(with.latencies, 0.99)/quantile(alone.latencies, 0.99))
		b.put("quiet.errors", t, float64(with.errors))
		b.put("quiet.lost", t, float64(with.lost))
		b.put("quiet.expired", t, float64(with.expired))
		b.put("hostile.writes", t, float64(with.hostile.Writes)/with.took.Seconds())
		b.put("hostile.lists", t, float64(with.hostile.Lists)/with.took.Seconds())
		b.put("hostile.rss", t, with.rss)
	}
	return nil
}

// pin keeps this process on the upper half of the processors and returns a program that starts the server on the others.
func (b *bench) pin() (binary, what string, err error) {
	n := runtime.NumCPU()
	if n < 2 {
		return b.vmeshBinary, "one processor: the clients' work blurs the figures", nil
	}
	var mine unix.CPUSet
	for cpu := n / 2; cpu < n; cpu++ {
		mine.Set(cpu)
	}
	// Every thread has an affinity of its own.
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return "", "", err
	}
	for _, thread := range threads {
		var id int
		if _, err := fmt.Sscan(thread.Name(), &id); err != nil {
			return "", "", err
		}
		if err := unix.SchedSetaffinity(id, &mine); err != nil {
			return "", "", fmt.Errorf("choosing processors: %w", err)
		}
	}
	runtime.GOMAXPROCS(n - n/2)
	vmesh, err := filepath.Abs(b.vmeshBinary)
	if err != nil {
		return "", "", err
	}
	binary = filepath.Join(b.dir, "vmesh-pinned")
	script := fmt.Sprintf("#!/bin/sh\nexec taskset -c 0-%d '%s' \"$@\"\n", n/2-1, strings.ReplaceAll(vmesh, "'", `'\''`))
	if err := os.WriteFile(binary, []byte(script), 0o755); err != nil {
		return "", "", err
	}
	return binary, fmt.Sprintf("the server has %d of %d processors, the clients the others", n/2, n), nil
}

// quietTenant is one of the quiet ones.
type quietTenant struct {
	client *client
	prefix string
	made   int
}

// quietRound is what the quiet tenants saw.
type quietRound struct {
	latencies             []float64
	of                    [3][]float64 // the same, of creates, gets and lists
	errors, lost, expired int
	hostile               hostileDone
	took                  time.Duration
	rss                   float64 // the most that the server had, in MiB
}

// quietRound has the quiet tenants do their work, with a hostile one when its kubeconfig is given.
func (b *bench) quietRound(ctx context.Context, t *target, quiet []*quietTenant, hostileConfig string) (*quietRound, error) {
	r := &quietRound{}
	var mu sync.Mutex
	watchCtx, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	var watches []*quietWatch
	for _, q := range quiet {
		from, err := q.version(ctx)
		if err != nil {
			return nil, err
		}
		w := &quietWatch{tenant: q, from: from, seen: map[string]bool{}}
		if err := w.begin(watchCtx); err != nil {
			return nil, err
		}
		watches = append(watches, w)
	}
	begun := time.Now()
	var plague *exec.Cmd
	var plagueOut bytes.Buffer
	if hostileConfig != "" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		plague = exec.CommandContext(ctx, self, "hostile", hostileConfig)
		plague.Stdout, plague.Stderr = &plagueOut, os.Stderr
		plague.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := plague.Start(); err != nil {
			return nil, err
		}
		time.Sleep(hostileLead)
	}

	group, groupCtx := errgroup.WithContext(ctx)
	created := make([]map[string]bool, len(quiet))
	for i, q := range quiet {
		created[i] = map[string]bool{}
		group.Go(func() error {
			return q.work(groupCtx, func(n int, took float64, name string, err error) {
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					r.errors++
					b.log("a quiet tenant's error: %v", err)
					return
				}
				r.latencies = append(r.latencies, took)
				r.of[n%3] = append(r.of[n%3], took)
				if name != "" {
					created[i][name] = true
				}
			})
		})
	}
	if plague != nil && b.options.profileDir != "" {
		group.Go(func() error {
			if err := b.saveProfile(groupCtx, t, "hostile.cpu", fmt.Sprintf("profile?seconds=%d", quietSeconds*3/4)); err != nil {
				return err
			}
			return b.saveProfile(groupCtx, t, "hostile.goroutines", "goroutine?debug=1")
		})
	}
	used, err := t.cpu()
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(quietSeconds * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		rss, err := t.rss()
		if err != nil {
			return nil, err
		}
		r.rss = max(r.rss, rss.total())
	}
	now, err := t.cpu()
	if err != nil {
		return nil, err
	}
	b.log("the server used %.2f cores", now.since(used).total()/1000/quietSeconds)
	if err := group.Wait(); err != nil {
		return nil, err
	}
	// Whoever comes back now asks for what was before the hostile one began.
	for i, w := range watches {
		again := &quietWatch{tenant: w.tenant, from: w.from, seen: map[string]bool{}}
		if err := again.begin(watchCtx); err != nil {
			return nil, err
		}
		for _, w := range []*quietWatch{w, again} {
			lost, expired := w.end(created[i])
			r.lost, r.expired = r.lost+lost, r.expired+expired
		}
	}
	r.took = time.Since(begun)
	if plague != nil {
		if err := plague.Process.Signal(syscall.SIGTERM); err != nil {
			return nil, err
		}
		if err := plague.Wait(); err != nil {
			return nil, fmt.Errorf("the hostile tenant: %w", err)
		}
		if err := json.Unmarshal(plagueOut.Bytes(), &r.hostile); err != nil {
			return nil, err
		}
		b.log("the hostile tenant: %+v", r.hostile)
	}
	for i, what := range []string{"creates", "gets", "lists"} {
		b.log("%s: p50 %.1f ms, p99 %.1f ms", what, quantile(r.of[i], 0.5), quantile(r.of[i], 0.99))
	}
	stopWatching()
	for i, q := range quiet {
		if err := q.clean(ctx, created[i]); err != nil {
			return nil, err
		}
	}
	return r, nil
}

const quietPath = "/apis/networking.istio.io/v1/namespaces/default/virtualservices"

// version is the tenant's current resource version.
func (q *quietTenant) version(ctx context.Context) (string, error) {
	data, err := q.client.do(ctx, request{method: "GET", path: quietPath})
	return resourceVersion(data), err
}

// work makes requests at their pace, whatever time each takes: creates, gets and lists in turn. done is told the number of
// each; took is counted from the moment it was due.
func (q *quietTenant) work(ctx context.Context, done func(n int, took float64, created string, err error)) error {
	const every = time.Second / quietRate
	start := time.Now().Add(rand.N(every))
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range quietSeconds * quietRate {
		due := start.Add(time.Duration(i) * every)
		select {
		case <-time.After(time.Until(due)):
		case <-ctx.Done():
			return ctx.Err()
		}
		name, r := "", request{method: "GET", path: quietPath}
		switch i % 3 {
		case 0:
			q.made++
			v := virtualService{q.prefix, q.made}
			name = v.name()
			r = request{method: "POST", path: quietPath, body: bytes.ReplaceAll(v.body(0, ""), []byte(v.namespace()), []byte("default"))}
		case 1:
			r.path = "/api/v1/namespaces/default"
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
			defer cancel()
			body, err := q.client.open(ctx, q.client.http[0], r)
			if err == nil {
				_, err = bufio.NewReader(body).WriteTo(discard{})
				body.Close()
			}
			done(i, milliseconds(time.Since(due)), name, err)
		})
	}
	return nil
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func (q *quietTenant) clean(ctx context.Context, names map[string]bool) error {
	for name := range names {
		if _, err := q.client.size(ctx, request{method: "DELETE", path: quietPath + "/" + name}); err != nil {
			return err
		}
	}
	return nil
}

// quietWatch counts what a quiet tenant is told of its objects.
type quietWatch struct {
	tenant *quietTenant
	from   string

	mu      sync.Mutex
	seen    map[string]bool
	expired bool
	ended   bool
	conn    *http.Client
}

func (w *quietWatch) begin(ctx context.Context) error {
	w.conn = w.tenant.client.connection()
	body, err := w.tenant.client.open(ctx, w.conn, request{
		method: "GET", path: quietPath + "?watch=true&allowWatchBookmarks=true&resourceVersion=" + w.from,
	})
	if err != nil {
		return err
	}
	go func() {
		defer w.conn.CloseIdleConnections()
		defer body.Close()
		lines := bufio.NewReaderSize(body, 64<<10)
		for {
			line, err := lines.ReadSlice('\n')
			w.mu.Lock()
			switch {
			case err != nil:
				w.ended = true
			case bytes.HasPrefix(line, []byte(`{"type":"ERROR"`)):
				w.expired = true
			case bytes.HasPrefix(line, []byte(`{"type":"ADDED"`)):
				_, rest, _ := bytes.Cut(line, []byte(`"name":"`))
				name, _, _ := bytes.Cut(rest, []byte(`"`))
				w.seen[string(name)] = true
			}
			w.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return nil
}

// end waits for the events of what was created, and counts those that have not come.
func (w *quietWatch) end(created map[string]bool) (lost, expired int) {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		w.mu.Lock()
		lost = 0
		for name := range created {
			if !w.seen[name] {
				lost++
			}
		}
		if w.expired || w.ended {
			expired = 1
		}
		w.mu.Unlock()
		if lost == 0 || expired == 1 || time.Now().After(deadline) {
			return lost, expired
		}
	}
}
