// Package clusters tests where calls go in a mesh of several clusters: with a real istiod, real APIs of the members, and real calls of
// clients that take their routes from it.
package clusters

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vmesh-io/vmesh/test/harness"
	"github.com/vmesh-io/vmesh/test/traffic"
)

// shared is what all tests have: three members of one network, which have joined the mesh of a vmesh, and an istiod that has nothing
// but the kubeconfig of its home. Each test has a namespace of its own.
var shared struct {
	vmesh             *harness.Vmesh
	istiod            *harness.Istiod
	binary            string
	kubeconfig        string // the virtual cluster's
	home              kubernetes.Interface
	east, west, south *harness.Member
	etcdURL           string        // the members'
	more              traffic.Wires // of a member besides these
}

// Where members are: each node is called as its zone.
var nodes = map[string][]string{"east": {"eu-1"}, "west": {"eu-2", "us-1"}, "south": {"ap-1"}}

func regionOf(zone string) string { region, _, _ := strings.Cut(zone, "-"); return region }

func TestMain(m *testing.M) { harness.Main(func() (int, error) { return run(m) }) }

func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "clusters")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute) // tools may have to be built
	defer cancel()
	stop := func(stop func(context.Context) error) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		err = errors.Join(err, stop(ctx))
	}
	if shared.binary, err = harness.Build(ctx); err != nil {
		return 1, err
	}
	etcd, err := harness.StartEtcd(ctx, harness.EtcdOptions{Dir: filepath.Join(dir, "etcd")})
	if err != nil {
		return 1, err
	}
	defer func() { stop(etcd.Stop) }()
	shared.etcdURL = etcd.URL
	if shared.vmesh, err = harness.StartVmesh(ctx, harness.VmeshOptions{DataDir: filepath.Join(dir, "vmesh"), Binary: shared.binary}); err != nil {
		return 1, err
	}
	defer func() { stop(shared.vmesh.Stop) }()
	if shared.kubeconfig, err = shared.vmesh.Kubeconfig(ctx, "default"); err != nil {
		return 1, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", shared.kubeconfig)
	if err != nil {
		return 1, err
	}
	if shared.home, err = kubernetes.NewForConfig(config); err != nil {
		return 1, err
	}
	if err := root(ctx, "patch", "mesh/default", "--type=merge", "-p", `{"spec":{"home":{"virtualCluster":"default"}}}`); err != nil {
		return 1, err
	}
	for i, into := range []**harness.Member{&shared.east, &shared.west, &shared.south} {
		name := []string{"east", "west", "south"}[i]
		member, err := harness.StartMember(ctx, harness.MemberOptions{Dir: filepath.Join(dir, name), EtcdURL: etcd.URL, Name: name, Index: i + 1})
		if err != nil {
			return 1, err
		}
		defer func() { stop(member.Close) }()
		for _, zone := range nodes[name] {
			if err := member.AddNode(ctx, zone, regionOf(zone), zone); err != nil {
				return 1, err
			}
		}
		join := exec.CommandContext(ctx, shared.binary, "join", name, "--kubeconfig", member.Kubeconfig, "--root-kubeconfig", shared.vmesh.AdminKubeconfig)
		if out, err := join.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("%w: %s", err, out)
		}
		*into = member
	}
	shared.istiod, err = harness.StartIstiod(ctx, harness.IstiodOptions{
		Dir: filepath.Join(dir, "istiod"), Kubeconfig: shared.kubeconfig, Home: true, Debounce: 20 * time.Millisecond,
	})
	if err != nil {
		return 1, err
	}
	defer func() { stop(shared.istiod.Stop) }()
	if code = m.Run(); code != 0 {
		for _, p := range []*harness.Process{shared.istiod.Process, shared.vmesh.Process} {
			if data, err := os.ReadFile(p.LogFile()); err == nil {
				fmt.Fprintf(os.Stderr, "%s's last words:\n%s\n", p.Name(), data[max(0, len(data)-8<<10):])
			}
		}
	}
	return code, nil
}

// root runs kubectl in the root.
func root(ctx context.Context, args ...string) error {
	_, err := harness.Kubectl(ctx, shared.vmesh.AdminKubeconfig, "", args...)
	return err
}

// until has a member's spec otherwise, until the test ends or back is called.
func until(ctx context.Context, t *testing.T, m *harness.Member, spec, before string) (back func()) {
	t.Helper()
	must(t, root(ctx, "patch", "membercluster/"+m.Name, "--type=merge", "-p", spec))
	var once sync.Once
	back = func() {
		once.Do(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := root(ctx, "patch", "membercluster/"+m.Name, "--type=merge", "-p", before); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(back)
	return back
}

// drained drains a member until the test ends, or back is called.
func drained(ctx context.Context, t *testing.T, m *harness.Member) (back func()) {
	t.Helper()
	return until(ctx, t, m, `{"spec":{"drain":{"reason":"new racks"}}}`, `{"spec":{"drain":null}}`)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// start makes a context for a test, and a namespace in the virtual cluster that ends with it.
func start(t *testing.T) (ctx context.Context, namespace string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	t.Cleanup(cancel)
	namespace = strings.ToLower(t.Name()[4:])
	namespace = namespace[:min(len(namespace), 50)]
	_, err := shared.home.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	must(t, err)
	return ctx, namespace
}

// serve starts a backend of service greeter in a zone of a member.
func serve(ctx context.Context, t *testing.T, m *harness.Member, namespace, zone string) *harness.Backend {
	t.Helper()
	if _, err := m.Client.CoreV1().Services(namespace).Get(ctx, "greeter", metav1.GetOptions{}); err != nil {
		must(t, m.AddService(ctx, namespace, "greeter"))
	}
	b, err := m.AddBackend(ctx, harness.BackendOptions{Namespace: namespace, Service: "greeter", Node: zone, Version: "v1"})
	must(t, err)
	harness.StopAfter(t, b.Remove)
	return b
}

// sees waits until the mesh's view of service greeter has so many ready endpoints in each cluster: CLUSTER=N, by name.
func sees(ctx context.Context, t *testing.T, namespace, want string) {
	t.Helper()
	waitFor(ctx, t, "the view of the service is "+want, func() error {
		got, err := harness.Kubectl(ctx, shared.kubeconfig, "", "get", "meshservice/greeter", "-n", namespace, "-o", "jsonpath={range .status.clusters[*]}{.name}={.ready} {end}")
		if err == nil && strings.TrimSpace(got) != want {
			err = errors.New(got)
		}
		return err
	})
}

// from is a client in a zone of a member.
func from(t *testing.T, m *harness.Member, namespace, zone string) *traffic.Client {
	t.Helper()
	client, err := traffic.DialPlaced(shared.istiod.GRPCAddress, traffic.Place{
		Cluster: m.Name, Namespace: namespace, Region: regionOf(zone), Zone: zone, Reach: traffic.Join(shared.east.Wires, shared.west.Wires, shared.south.Wires, shared.more),
	}, "greeter."+namespace+".svc.cluster.local:80")
	must(t, err)
	harness.StopAfter(t, func(context.Context) error { return client.Close() })
	return client
}

// calls is how many are counted. A share of them in percent is within near of what it is to be, with all but certainty (more than five
// standard deviations).
const calls, near = 500, 12.0

// share is a share of calls in percent.
type share map[string]float64

// goes waits until calls of a client go where they are to go, none fails, and so it stays for as many calls.
func goes(ctx context.Context, t *testing.T, what string, c *traffic.Client, want share) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	check := func(n int) error {
		counts := c.Counts(ctx, n, nil)
		if counts.Failed > 0 {
			return fmt.Errorf("%d of %d calls failed: %v", counts.Failed, counts.Calls, counts.Errors)
		}
		for _, cluster := range slices.Sorted(maps.Keys(nodes)) {
			got, want := float64(counts.ByCluster[cluster])*100/float64(n), want[cluster]
			if got < want-near || got > want+near || (want == 0 || want == 100) && got != want {
				return fmt.Errorf("cluster %s got %.1f %% of the calls, and is to get %.1f %%: %v", cluster, got, want, counts.ByCluster)
			}
		}
		return nil
	}
	var last error
	for ctx.Err() == nil {
		if err := check(calls); err == nil {
			if err = check(calls); err != nil {
				t.Fatalf("%s: it did not stay so: %v", what, err)
			}
			return
		} else if ctx.Err() == nil {
			last = err
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%s: %v", what, last)
}

// vmesh runs a command as a user of the virtual cluster.
func vmesh(ctx context.Context, t *testing.T, args ...string) string {
	t.Helper()
	out, err := vmeshMay(ctx, args...)
	if err != nil {
		t.Fatalf("vmesh %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func vmeshMay(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, shared.binary, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+shared.kubeconfig)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// rule sets one, and waits until istiod has it.
func rule(ctx context.Context, t *testing.T, namespace string, flags ...string) string {
	t.Helper()
	return vmesh(ctx, t, append([]string{"traffic", "greeter", "-n", namespace, "--yes", "--wait"}, flags...)...)
}

// load calls without pause from several clients until it is stopped.
type load struct {
	cancel context.CancelFunc
	done   chan traffic.Counts
	n      int
}

func startLoad(ctx context.Context, clients ...*traffic.Client) *load {
	ctx, cancel := context.WithCancel(ctx)
	l := &load{cancel: cancel, done: make(chan traffic.Counts), n: len(clients)}
	for _, c := range clients {
		go func() {
			sum := traffic.Counts{ByCluster: map[string]int{}, Errors: map[string]int{}}
			for ctx.Err() == nil {
				// A call that is under way when the load ends is not one that failed.
				counts := c.Counts(context.WithoutCancel(ctx), 1, nil)
				sum.Calls += counts.Calls
				sum.Failed += counts.Failed
				for key, n := range counts.ByCluster {
					sum.ByCluster[key] += n
				}
				for key, n := range counts.Errors {
					sum.Errors[key] += n
				}
			}
			l.done <- sum
		}()
	}
	return l
}

// stop ends the load and says what became of the calls.
func (l *load) stop() traffic.Counts {
	l.cancel()
	all := traffic.Counts{ByCluster: map[string]int{}, Errors: map[string]int{}}
	for range l.n {
		counts := <-l.done
		all.Calls += counts.Calls
		all.Failed += counts.Failed
		for key, n := range counts.ByCluster {
			all.ByCluster[key] += n
		}
		for key, n := range counts.Errors {
			all.Errors[key] += n
		}
	}
	return all
}

// raced is the error of grpc-go's own: when routes name a cluster that they did not name before, it takes them a moment earlier than the
// balancer that has it. It takes no xDS server to happen, and no proxy has it.
const raced = "unknown cluster selected for RPC"

// none fails a test in which calls have failed.
func (l *load) none(t *testing.T) {
	t.Helper()
	l.noneBut(t, "")
}

// noneBut fails a test in which calls have failed with another error.
func (l *load) noneBut(t *testing.T, text string) {
	t.Helper()
	counts := l.stop()
	t.Logf("%d calls, %d failed: %v", counts.Calls, counts.Failed, counts.ByCluster)
	for said, n := range counts.Errors {
		if text != "" && strings.Contains(said, text) {
			counts.Failed -= n
			t.Logf("%d of them for the client: %s", n, said)
		}
	}
	if counts.Failed > 0 || counts.Calls == 0 {
		t.Errorf("%d of %d calls failed: %v", counts.Failed, counts.Calls, counts.Errors)
	}
}
