package clusters

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vmesh-io/vmesh/test/harness"
)

// administer runs vmesh join or leave for a member, as the administrator of both.
func administer(ctx context.Context, t *testing.T, m *harness.Member, command string, flags ...string) {
	t.Helper()
	args := append([]string{command, m.Name, "--kubeconfig", m.Kubeconfig, "--root-kubeconfig", shared.vmesh.AdminKubeconfig}, flags...)
	if out, err := exec.CommandContext(ctx, shared.binary, args...).CombinedOutput(); err != nil {
		t.Fatalf("vmesh %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestAMemberJoinsLeavesAndJoinsAgainWithoutAFailedCall(t *testing.T) {
	ctx, ns := start(t)
	serve(ctx, t, shared.east, ns, "eu-1")
	serve(ctx, t, shared.west, ns, "eu-2")
	north, err := harness.StartMember(ctx, harness.MemberOptions{Dir: t.TempDir(), EtcdURL: shared.etcdURL, Name: "north", Index: 4})
	must(t, err)
	harness.StopAfter(t, north.Close)
	shared.more, nodes["north"] = north.Wires, []string{"af-1"}
	t.Cleanup(func() { shared.more = nil; delete(nodes, "north") })
	must(t, north.AddNode(ctx, "af-1", "af", "af-1"))
	serve(ctx, t, north, ns, "af-1")
	controllers, err := north.StartControllers(ctx, "namespace-controller") // else the namespace of the join would not go
	must(t, err)
	harness.StopAfter(t, controllers.Stop)

	atEast, atWest, atNorth := from(t, shared.east, ns, "eu-1"), from(t, shared.west, ns, "eu-2"), from(t, north, ns, "af-1")
	halves, thirds := share{"east": 50, "west": 50}, share{"east": 33.3, "west": 33.3, "north": 33.3}
	everywhere := func(what string, want share) {
		t.Helper()
		goes(ctx, t, "from east "+what, atEast, want)
		goes(ctx, t, "from west "+what, atWest, want)
		goes(ctx, t, "from north "+what, atNorth, want)
	}
	everywhere("before", halves)
	load := startLoad(ctx, atEast, atWest, atNorth)
	for i, when := range []string{"the first time", "again"} {
		administer(ctx, t, north, "join")
		everywhere("joined "+when, thirds)
		administer(ctx, t, north, "leave", "--yes", "--drain-time", "1s")
		everywhere("left "+when, halves)
		for _, look := range []struct{ kubeconfig, what string }{
			{north.Kubeconfig, "namespaces,clusterroles,clusterrolebindings,roles,rolebindings,serviceaccounts,secrets"},
			{shared.vmesh.AdminKubeconfig, "memberclusters,secrets"},
			{shared.kubeconfig, "secrets"},
		} {
			left, err := harness.Kubectl(ctx, look.kubeconfig, "", "get", look.what, "-A", "-o", "name")
			must(t, err)
			for line := range strings.Lines(left) {
				if mine := look.kubeconfig == north.Kubeconfig && strings.Contains(line, "vmesh"); mine || strings.Contains(line, "north") {
					t.Errorf("after leave %d there is %s", i+1, line)
				}
			}
		}
	}
	load.none(t)
}

// outage is how long a member's API is away; MEMBER_OUTAGE has it longer.
func outage(t *testing.T) time.Duration {
	text := os.Getenv("MEMBER_OUTAGE")
	if text == "" {
		return 10 * time.Second
	}
	d, err := time.ParseDuration(text)
	must(t, err)
	return d
}

// stopped kills a member's API, until back is called or the test ends. Its pods go on.
func stopped(ctx context.Context, t *testing.T, m *harness.Member) (back func()) {
	t.Helper()
	must(t, m.Kill())
	up := false
	back = func() {
		if up {
			return
		}
		up = true
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := m.Restart(ctx); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(back)
	return back
}

// aside has a member changed through another API of its own, which neither vmesh nor istiod knows.
func aside(ctx context.Context, t *testing.T, m *harness.Member, change func()) {
	t.Helper()
	other, err := harness.StartKubeAPIServer(ctx, harness.KubeAPIServerOptions{
		Dir: filepath.Join(t.TempDir(), "aside"), EtcdURL: shared.etcdURL, ExtraArgs: []string{"--etcd-prefix", "/" + m.Name, "--disable-admission-plugins", "ServiceAccount"},
	})
	must(t, err)
	defer func() { must(t, other.Stop(context.WithoutCancel(ctx))) }()
	config, err := clientcmd.BuildConfigFromFlags("", other.Kubeconfig)
	must(t, err)
	client, err := kubernetes.NewForConfig(config)
	must(t, err)
	own := m.Client
	m.Client = client
	defer func() { m.Client = own }()
	change()
}

func TestAnOutageOfAMembersAPIIsNotOneOfItsPods(t *testing.T) {
	ctx, ns := start(t)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Minute+outage(t))
	defer cancel()
	serve(ctx, t, shared.east, ns, "eu-1")
	old := serve(ctx, t, shared.south, ns, "ap-1")
	atEast, atSouth := from(t, shared.east, ns, "eu-1"), from(t, shared.south, ns, "ap-1")
	halves := share{"east": 50, "south": 50}
	goes(ctx, t, "from east before", atEast, halves)
	goes(ctx, t, "from south before", atSouth, halves)
	sees(ctx, t, ns, "east=1 south=1")

	load := startLoad(ctx, atEast, atSouth)
	away := time.NewTimer(outage(t))
	begun := time.Now()
	back := stopped(ctx, t, shared.south)
	must(t, root(ctx, "wait", "membercluster/south", "--for=condition=Reachable=False", "--timeout=2m"))
	t.Logf("%s after the API was away, vmesh says so", time.Since(begun).Round(time.Millisecond))
	aside(ctx, t, shared.south, func() {
		serve(ctx, t, shared.south, ns, "ap-1")
		serve(ctx, t, shared.south, ns, "ap-1")
		must(t, old.SetReady(ctx, false))
	})
	select {
	case <-away.C:
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	goes(ctx, t, "from east, while it is away", atEast, halves)
	goes(ctx, t, "from south, while it is away", atSouth, halves)
	back()
	returned := time.Now()
	t.Logf("the API was away for %s", returned.Sub(begun).Round(time.Millisecond))
	type said struct {
		after time.Duration
		err   error
	}
	ready := make(chan said, 1)
	go func() {
		err := root(ctx, "wait", "membercluster/south", "--for=condition=Ready", "--timeout=5m")
		ready <- said{time.Since(returned), err}
	}()
	waitFor(ctx, t, "calls go where the member has changed", func() error {
		counts := atEast.Counts(ctx, 100, nil)
		if counts.Failed > 0 || counts.ByName[old.Name] > 0 || counts.ByCluster["south"] == 0 {
			return fmt.Errorf("%v %v", counts.ByName, counts.Errors)
		}
		return nil
	})
	t.Logf("%s after it was back, calls went as the member had changed", time.Since(returned).Round(time.Millisecond))
	goes(ctx, t, "by its endpoints", atEast, share{"east": 33.3, "south": 66.7})
	is := <-ready
	must(t, is.err)
	t.Logf("%s after it was back, vmesh said so", is.after.Round(time.Millisecond))
	sees(ctx, t, ns, "east=1 south=2")
	load.none(t)
}

// TestAnIstiodThatStartsWhileAMemberIsAwayIsWithoutIt until the member is back. What other members serve, too, goes on without a
// failed call, and what it alone serves is gone.
func TestAnIstiodThatStartsWhileAMemberIsAwayIsWithoutIt(t *testing.T) {
	ctx, ns := start(t)
	serve(ctx, t, shared.east, ns, "eu-1")
	serve(ctx, t, shared.south, ns, "ap-1")
	atEast, atSouth := from(t, shared.east, ns, "eu-1"), from(t, shared.south, ns, "ap-1")
	halves := share{"east": 50, "south": 50}
	goes(ctx, t, "from east before", atEast, halves)
	goes(ctx, t, "from south before", atSouth, halves)
	serve(ctx, t, shared.south, ns+"-alone", "ap-1")
	alone := from(t, shared.east, ns+"-alone", "eu-1")
	goes(ctx, t, "to what it alone serves, before", alone, share{"south": 100})
	load := startLoad(ctx, atEast, atSouth)
	back := stopped(ctx, t, shared.south)
	goes(ctx, t, "to what it alone serves, while its API is away", alone, share{"south": 100})
	must(t, shared.istiod.Stop(ctx))
	begun := time.Now()
	must(t, shared.istiod.Restart(ctx))
	t.Logf("istiod was ready after %s", time.Since(begun).Round(time.Millisecond))
	goes(ctx, t, "from east without it", atEast, share{"east": 100})
	goes(ctx, t, "from south without it", atSouth, share{"east": 100})
	t.Logf("clients went by it after %s", time.Since(begun).Round(time.Millisecond))
	waitFor(ctx, t, "what it alone serves is gone", func() error {
		if counts := alone.Counts(ctx, 20, nil); counts.Failed < 20 {
			return fmt.Errorf("%+v", counts)
		}
		return nil
	})
	back()
	returned := time.Now()
	goes(ctx, t, "from east with it again", atEast, halves)
	t.Logf("its endpoints were back %s after it", time.Since(returned).Round(time.Millisecond))
	goes(ctx, t, "from south with it again", atSouth, halves)
	goes(ctx, t, "to what it alone serves, again", alone, share{"south": 100})
	load.none(t)
}
