// Package models walks one mesh through the ways to deploy one, as docs/deployment-models.md tells them: real istiods that
// have nothing but a kubeconfig of their home, real APIs of the member clusters, and calls all the while.
package models

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmesh-io/vmesh/test/harness"
	"github.com/vmesh-io/vmesh/test/traffic"
)

// patience is how long anything may take that takes a second or two on a machine that has nothing else to do.
const patience = 2 * time.Minute

func TestMain(m *testing.M) {
	harness.Main(func() (int, error) { return m.Run(), nil })
}

// world is a vmesh, with the clusters and control planes of its mesh.
type world struct {
	t          *testing.T
	ctx        context.Context
	dir        string
	binary     string
	etcd       *harness.Etcd
	vmesh      *harness.Vmesh
	kubeconfig string // of the home
	members    map[string]*harness.Member
	istiods    map[string]*harness.Istiod
}

func newWorld(ctx context.Context, t *testing.T) *world {
	w := &world{t: t, ctx: ctx, dir: t.TempDir(), members: map[string]*harness.Member{}, istiods: map[string]*harness.Istiod{}}
	var err error
	w.binary, err = harness.Build(ctx)
	w.must(err)
	w.etcd, err = harness.StartEtcd(ctx, harness.EtcdOptions{Dir: filepath.Join(w.dir, "etcd")})
	w.must(err)
	harness.StopAfter(t, w.etcd.Stop)
	w.vmesh, err = harness.StartVmesh(ctx, harness.VmeshOptions{DataDir: filepath.Join(w.dir, "vmesh"), Binary: w.binary})
	w.must(err)
	harness.StopAfter(t, w.vmesh.Stop)
	w.kubeconfig, err = w.vmesh.Kubeconfig(ctx, "default")
	w.must(err)
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		logs := map[string]string{"vmesh": w.vmesh.LogFile()}
		for name, istiod := range w.istiods {
			logs[name] = istiod.LogFile()
		}
		for _, name := range slices.Sorted(maps.Keys(logs)) {
			data, _ := os.ReadFile(logs[name])
			t.Logf("%s's last words:\n%s", name, data[max(0, len(data)-8<<10):])
		}
	})
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// root runs kubectl in the root.
func (w *world) root(args ...string) string {
	w.t.Helper()
	out, err := harness.Kubectl(w.ctx, w.vmesh.AdminKubeconfig, "", args...)
	w.must(err)
	return out
}

// cli runs vmesh.
func (w *world) cli(args ...string) string {
	w.t.Helper()
	out, err := exec.CommandContext(w.ctx, w.binary, args...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("vmesh %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// member starts a cluster with service greeter of namespace demo, which two pods serve in a zone of its own.
func (w *world) member(name string, index int) {
	w.t.Helper()
	m, err := harness.StartMember(w.ctx, harness.MemberOptions{Dir: filepath.Join(w.dir, name), EtcdURL: w.etcd.URL, Name: name, Index: index})
	w.must(err)
	harness.StopAfter(w.t, m.Close)
	w.members[name] = m
	w.must(m.AddNode(w.ctx, "node", name, name+"-a"))
	w.must(m.AddService(w.ctx, "demo", "greeter"))
	for range 2 {
		_, err := m.AddBackend(w.ctx, harness.BackendOptions{Namespace: "demo", Service: "greeter", Node: "node", Version: "v1"})
		w.must(err)
	}
}

// join has a cluster join the mesh, and returns when it is ready.
func (w *world) join(name string) {
	w.t.Helper()
	w.cli("join", name, "--kubeconfig", w.members[name].Kubeconfig, "--root-kubeconfig", w.vmesh.AdminKubeconfig)
}

// istiod starts a control plane that has nothing but its home.
func (w *world) istiod(name, revision string) {
	w.t.Helper()
	istiod, err := harness.StartIstiod(w.ctx, harness.IstiodOptions{
		Dir: filepath.Join(w.dir, "istiod-"+name), Kubeconfig: w.kubeconfig, Home: true, PodName: "istiod-" + name,
		ExtraEnv: []string{"REVISION=" + revision},
	})
	w.must(err)
	harness.StopAfter(w.t, istiod.Stop)
	w.istiods[name] = istiod
}

// dial is a client in a cluster, of a control plane.
func (w *world) dial(cluster, istiod string) *traffic.Client {
	w.t.Helper()
	reach := traffic.Wires{}
	for _, m := range w.members {
		reach = traffic.Join(reach, m.Wires)
	}
	client, err := traffic.DialPlaced(w.istiods[istiod].GRPCAddress, traffic.Place{
		Cluster: cluster, Region: cluster, Zone: cluster + "-a", Reach: reach, Labels: map[string]string{"topology.istio.io/cluster": cluster},
	}, "greeter.demo.svc.cluster.local:80")
	w.must(err)
	harness.StopAfter(w.t, func(context.Context) error { return client.Close() })
	w.eventually("calls of "+cluster+" through "+istiod, func() error {
		_, err := client.Call(w.ctx, nil)
		return err
	})
	return client
}

// eventually waits until check has nothing to say.
func (w *world) eventually(what string, check func() error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.t.Fatalf("waiting for %s: %v", what, err)
		}
	}
}

// answers waits until the calls of a client are answered by just these clusters.
func (w *world) answers(client *traffic.Client, clusters ...string) {
	w.t.Helper()
	slices.Sort(clusters)
	w.eventually(fmt.Sprint("answers of ", clusters), func() error {
		counts := client.Counts(w.ctx, 60, nil)
		if got := slices.Sorted(maps.Keys(counts.ByCluster)); counts.Failed > 0 || !slices.Equal(got, clusters) {
			return fmt.Errorf("answered by %v, %d failed: %v", counts.ByCluster, counts.Failed, counts.Errors)
		}
		return nil
	})
}

// condition waits until one of the mesh is as it is to be.
func (w *world) condition(name, want string) {
	w.t.Helper()
	w.root("wait", "mesh/default", "--for=condition="+name+"="+want, "--timeout="+patience.String())
}

// calls are made by a client all the while.
type calls struct {
	client *traffic.Client
	done   chan struct{}
	made   atomic.Int64
	mu     sync.Mutex
	failed map[string]int
	stop   context.CancelFunc
	whose  string
}

// callOn has a client call until end is called.
func (w *world) callOn(whose string, client *traffic.Client) *calls {
	ctx, cancel := context.WithCancel(w.ctx)
	c := &calls{client: client, done: make(chan struct{}), failed: map[string]int{}, stop: cancel, whose: whose}
	go func() {
		defer close(c.done)
		for ctx.Err() == nil {
			// A call is not cut off by the end of the load; no healthy call comes near the limit.
			call, end := context.WithTimeout(w.ctx, 20*time.Second)
			_, err := client.Call(call, nil)
			end()
			c.made.Add(1)
			if err != nil {
				c.mu.Lock()
				c.failed[err.Error()]++
				c.mu.Unlock()
			}
			select {
			case <-time.After(2 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}()
	w.t.Cleanup(func() { cancel(); <-c.done })
	return c
}

// end ends the calls: none may have failed.
func (c *calls) end(t *testing.T) {
	t.Helper()
	c.stop()
	<-c.done
	t.Logf("%s: %d calls", c.whose, c.made.Load())
	if c.made.Load() == 0 {
		t.Errorf("%s has made no call", c.whose)
	}
	for err, n := range c.failed {
		t.Errorf("%s: %d calls failed: %s", c.whose, n, err)
	}
}

// A mesh begins with one cluster and one control plane, and grows: each step is one of the models, and no call of those
// that were there before fails on the way.
func TestAMeshGrowsFromModelToModel(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	w := newWorld(ctx, t)

	// One cluster, one control plane.
	w.root("patch", "mesh", "default", "--type=merge", "-p", `{"spec": {"home": {"virtualCluster": "default"}}}`)
	w.condition("HomeReady", "True")
	w.member("east", 1)
	w.member("west", 2) // which has not joined, but is there: clients could call it
	w.istiod("one", "")
	w.join("east")
	east := w.dial("east", "one")
	w.answers(east, "east")
	fromEast := w.callOn("east", east)

	// Several clusters, one control plane.
	w.join("west")
	w.answers(east, "east", "west")
	west := w.dial("west", "one")
	w.answers(west, "east", "west")
	fromWest := w.callOn("west", west)

	// What the platform settles is for all clusters: here, that calls stay near.
	w.root("patch", "mesh", "default", "--type=merge", "-p", `{"spec": {"locality": {"localFirst": true}}}`)
	w.answers(east, "east")
	w.answers(west, "west")

	// Several control planes, one source of configuration: west gets its own. Its clients move when they start anew.
	w.istiod("two", "")
	westOfTwo := w.dial("west", "two")
	w.answers(westOfTwo, "west")
	fromWestOfTwo := w.callOn("west, of its own control plane", westOfTwo)
	fromWest.end(t)

	// The control plane of west dies: calls of west go on as they were, and what changes does so for east alone.
	w.must(w.istiods["two"].Kill())
	w.must(harness.Apply(ctx, w.kubeconfig, "apiVersion: v1\nkind: Namespace\nmetadata: {name: demo}\n"))
	w.must(harness.Apply(ctx, w.kubeconfig, allTo("west")))
	w.answers(east, "west")
	w.answers(westOfTwo, "west")
	w.must(harness.Apply(ctx, w.kubeconfig, allTo("east")))
	w.answers(east, "east")
	w.answers(westOfTwo, "west")
	// It comes back, and west has what was written meanwhile.
	w.must(w.istiods["two"].Restart(ctx))
	w.answers(westOfTwo, "east")
	_, err := harness.Kubectl(ctx, w.kubeconfig, "", "delete", "virtualservice,destinationrule", "-n", "demo", "--all")
	w.must(err)
	w.answers(westOfTwo, "west")

	// Upgrade by revision: the next one runs beside, receives changes first, and takes over client by client.
	w.root("patch", "mesh", "default", "--type=merge", "-p", `{"spec": {
		"home": {"revisions": ["", "next"]},
		"rollout": {"stages": [{"name": "next", "controlPlanes": {"matchLabels": {"vmesh.io/revision": "next"}}}, {"name": "rest", "controlPlanes": {}}]}}}`)
	w.eventually("the settings of the next revision", func() error {
		_, err := harness.Kubectl(ctx, w.kubeconfig, "", "get", "configmap", "istio-next", "-n", "istio-system")
		return err
	})
	w.istiod("next", "next")
	next := w.dial("east", "next")
	w.answers(next, "east")
	w.must(harness.Apply(ctx, w.kubeconfig, allTo("west")))
	w.answers(next, "west")
	w.answers(east, "east") // not released to it yet
	fromNext := w.callOn("east, of the next revision", next)
	w.cli("rollout", "promote", "default", "--kubeconfig", w.vmesh.AdminKubeconfig)
	w.answers(east, "west")
	fromEast.end(t)
	w.must(w.istiods["one"].Stop(ctx))
	w.answers(next, "west")

	fromNext.end(t)
	fromWestOfTwo.end(t)

	// All of it is one mesh, and says so.
	w.eventually("both control planes are in step", func() error {
		var mesh struct {
			Status struct {
				Connected, InStep int
				Networks          []struct{ Members []string }
			}
		}
		if err := json.Unmarshal([]byte(w.root("get", "mesh", "default", "-o", "json")), &mesh); err != nil {
			return err
		}
		if mesh.Status.Connected != 2 || mesh.Status.InStep != 2 {
			return fmt.Errorf("it is %+v", mesh.Status)
		}
		return nil
	})
}

// allTo has all calls of the service go to one cluster.
func allTo(cluster string) string {
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: greeter, namespace: demo}
spec:
  host: greeter.demo.svc.cluster.local
  subsets:
  - {name: chosen, labels: {topology.istio.io/cluster: %s}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: greeter, namespace: demo}
spec:
  hosts: [greeter.demo.svc.cluster.local]
  http:
  - route: [{destination: {host: greeter.demo.svc.cluster.local, subset: chosen}}]
`, cluster)
}
