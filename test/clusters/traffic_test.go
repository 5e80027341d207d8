package clusters

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vmesh-io/vmesh/test/harness"
)

func TestCallsStayInTheCluster(t *testing.T) {
	ctx, ns := start(t)
	serve(ctx, t, shared.east, ns, "eu-1")
	west := serve(ctx, t, shared.west, ns, "eu-2")
	atEast, atWest, atSouth := from(t, shared.east, ns, "eu-1"), from(t, shared.west, ns, "eu-2"), from(t, shared.south, ns, "ap-1")
	goes(ctx, t, "before", atEast, share{"east": 50, "west": 50})
	load := startLoad(ctx, atEast, atWest)
	sees(ctx, t, ns, "east=1 west=1")
	rule(ctx, t, ns, "--local-only")
	goes(ctx, t, "from east", atEast, share{"east": 100})
	goes(ctx, t, "from west", atWest, share{"west": 100})
	goes(ctx, t, "from a cluster that the rule does not name", atSouth, share{"east": 50, "west": 50})
	load.noneBut(t, raced)

	// They stay even where nobody serves.
	must(t, west.SetReady(ctx, false))
	waitFor(ctx, t, "calls fail in west", func() error {
		if counts := atWest.Counts(ctx, 20, nil); counts.Failed < 20 {
			return fmt.Errorf("%v", counts)
		}
		return nil
	})
	goes(ctx, t, "from east all the while", atEast, share{"east": 100})
	must(t, west.SetReady(ctx, true))
	goes(ctx, t, "from west again", atWest, share{"west": 100})
	load = startLoad(ctx, atEast, atWest)
	rule(ctx, t, ns, "--clear")
	goes(ctx, t, "as before", atEast, share{"east": 50, "west": 50})
	load.noneBut(t, raced)
}

func TestCallsAreSplitAndMovedInStepsWithoutAFailure(t *testing.T) {
	ctx, ns := start(t)
	serve(ctx, t, shared.east, ns, "eu-1")
	serve(ctx, t, shared.west, ns, "eu-2")
	clients := []string{"eu-1", "ap-1"}
	atEast, atSouth := from(t, shared.east, ns, clients[0]), from(t, shared.south, ns, clients[1])
	goes(ctx, t, "before", atEast, share{"east": 50, "west": 50})
	goes(ctx, t, "before", atSouth, share{"east": 50, "west": 50})
	load := startLoad(ctx, atEast, atSouth)
	for _, east := range []int{10, 90, 100, 50, 0, 100} {
		rule(ctx, t, ns, "--split", fmt.Sprintf("east=%d,west=%d", east, 100-east))
		want := share{"east": float64(east), "west": float64(100 - east)}
		goes(ctx, t, fmt.Sprintf("at %d %%", east), atEast, want)
		goes(ctx, t, fmt.Sprintf("at %d %% in the south", east), atSouth, want)
	}
	rule(ctx, t, ns, "--clear")
	goes(ctx, t, "as before", atEast, share{"east": 50, "west": 50})
	load.noneBut(t, raced)
}

func TestOneClusterIsPreferredWhileItServes(t *testing.T) {
	ctx, ns := start(t)
	serve(ctx, t, shared.east, ns, "eu-1")
	west := serve(ctx, t, shared.west, ns, "eu-2")
	serve(ctx, t, shared.south, ns, "ap-1")
	atEast, atSouth := from(t, shared.east, ns, "eu-1"), from(t, shared.south, ns, "ap-1")
	goes(ctx, t, "before", atEast, share{"east": 33.3, "west": 33.3, "south": 33.3})
	rule(ctx, t, ns, "--prefer", "west")
	goes(ctx, t, "from east", atEast, share{"west": 100})
	goes(ctx, t, "from south", atSouth, share{"west": 100})
	must(t, west.StopServer())
	goes(ctx, t, "when it fails", atEast, share{"east": 50, "south": 50})
	must(t, west.StartServer())
	goes(ctx, t, "when it serves again", atEast, share{"west": 100})

	rule(ctx, t, ns, "--local-first")
	goes(ctx, t, "each its own: east", atEast, share{"east": 100})
	goes(ctx, t, "each its own: south", atSouth, share{"south": 100})
}

func TestARegionFailsOverToTheOneThatIsNamed(t *testing.T) {
	ctx, ns := start(t)
	serve(ctx, t, shared.east, ns, "eu-1")
	us := serve(ctx, t, shared.west, ns, "us-1")
	south := serve(ctx, t, shared.south, ns, "ap-1")
	atSouth := from(t, shared.south, ns, "ap-1")
	goes(ctx, t, "before", atSouth, share{"east": 33.3, "west": 33.3, "south": 33.3})
	rule(ctx, t, ns, "--failover", "ap=us,us=eu")
	goes(ctx, t, "local first", atSouth, share{"south": 100})
	must(t, south.StopServer())
	goes(ctx, t, "to the region that is named", atSouth, share{"west": 100})
	must(t, us.StopServer())
	goes(ctx, t, "to the rest", atSouth, share{"east": 100})
	must(t, us.StartServer())
	must(t, south.StartServer())
	goes(ctx, t, "back", atSouth, share{"south": 100})
}

func TestAServiceIsDrainedFromAClusterWithoutAFailure(t *testing.T) {
	ctx, ns := start(t)
	serve(ctx, t, shared.east, ns, "eu-1")
	west := serve(ctx, t, shared.west, ns, "eu-2")
	serve(ctx, t, shared.south, ns, "ap-1")
	atEast, atWest := from(t, shared.east, ns, "eu-1"), from(t, shared.west, ns, "eu-2")
	goes(ctx, t, "before", atEast, share{"east": 33.3, "west": 33.3, "south": 33.3})
	goes(ctx, t, "before", atWest, share{"east": 33.3, "west": 33.3, "south": 33.3})
	load := startLoad(ctx, atEast, atWest)
	sees(ctx, t, ns, "east=1 south=1 west=1")
	rule(ctx, t, ns, "--drain", "west")
	goes(ctx, t, "from east", atEast, share{"east": 50, "south": 50})
	goes(ctx, t, "from the drained one", atWest, share{"east": 50, "south": 50})
	must(t, west.StopServer()) // which nobody calls any more
	must(t, west.StartServer())
	rule(ctx, t, ns, "--drain", "west", "--local-only")
	goes(ctx, t, "local from east", atEast, share{"east": 100})
	goes(ctx, t, "from the drained one all the same", atWest, share{"east": 50, "south": 50})
	rule(ctx, t, ns, "--clear")
	goes(ctx, t, "as before", atEast, share{"east": 33.3, "west": 33.3, "south": 33.3})
	load.noneBut(t, raced)
}

func TestARuleComesIntoAUsersRouteAndGoesAgain(t *testing.T) {
	ctx, ns := start(t)
	serve(ctx, t, shared.east, ns, "eu-1")
	serve(ctx, t, shared.west, ns, "eu-2")
	const mine = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: mine, namespace: %[1]s}
spec:
  hosts: [greeter]
  http:
  - timeout: 30s
    route: [{destination: {host: greeter}}]
`
	must(t, harness.Apply(ctx, shared.kubeconfig, fmt.Sprintf(mine, ns)))
	client := from(t, shared.east, ns, "eu-1")
	goes(ctx, t, "before", client, share{"east": 50, "west": 50})
	sees(ctx, t, ns, "east=1 west=1")
	load := startLoad(ctx, client)
	before := vmesh(ctx, t, "traffic", "greeter", "-n", ns)
	if out := rule(ctx, t, ns, "--split", "east=80,west=20"); !strings.Contains(out, "virtualservice/mine updated") {
		t.Errorf("it says\n%s", out)
	}
	goes(ctx, t, "split", client, share{"east": 80, "west": 20})
	if out := vmesh(ctx, t, "traffic", "greeter", "-n", ns); !strings.Contains(out, "80 %") || !strings.Contains(out, "1/1") || strings.Contains(before, "80 %") {
		t.Errorf("it shows\n%s", out)
	}
	if out := vmesh(ctx, t, "traffic", "greeter", "-n", ns, "--split", "east=50,wset=50", "--dry-run=server"); !strings.Contains(out, `cluster "wset" does not have the service: those that have it are east, west`) {
		t.Errorf("of a cluster that there is not, it says\n%s", out)
	}
	for typed, want := range map[string]string{"traffic -n " + ns + " g": "greeter", "traffic greeter -n " + ns + " --split east=50,": "east=50,west=", "traffic greeter -n " + ns + " --prefer w": "west"} {
		if out := vmesh(ctx, t, append([]string{"__complete"}, strings.Split(typed, " ")...)...); !strings.Contains("\n"+out, "\n"+want+"\n") {
			t.Errorf("%s is completed by\n%s", typed, out)
		}
	}
	rule(ctx, t, ns, "--clear")
	goes(ctx, t, "as before", client, share{"east": 50, "west": 50})
	load.noneBut(t, raced)
	got, err := harness.Kubectl(ctx, shared.kubeconfig, "", "get", "virtualservice,destinationrule", "-n", ns, "-o", "jsonpath={range .items[*]}{.metadata.name} {.spec}{end}")
	must(t, err)
	if got != `mine {"hosts":["greeter"],"http":[{"route":[{"destination":{"host":"greeter"}}],"timeout":"30s"}]}` {
		t.Errorf("it leaves %s", got)
	}
	// The user may apply it from the server's side: no field of it is anybody else's.
	_, err = harness.Kubectl(ctx, shared.kubeconfig, strings.Replace(fmt.Sprintf(mine, ns), "30s", "20s", 1), "apply", "--server-side", "--field-manager", "kubectl-client-side-apply", "-f", "-")
	must(t, err)
	// What was done can be undone as any change.
	rule(ctx, t, ns, "--split", "east=100,west=0")
	goes(ctx, t, "split anew", client, share{"east": 100})
	vmesh(ctx, t, "rollback", "-n", ns, "--to-time", "0s", "--yes") // nothing to do
	revision, err := harness.Kubectl(ctx, shared.kubeconfig, "", "get", "changes", "-n", ns, "-o", "jsonpath={.items[?(@.object.kind=='DestinationRule')].metadata.name}")
	must(t, err)
	first := strings.Fields(revision)[0] // the newest change of the rule: subsets that were made anew
	vmesh(ctx, t, "rollback", "-n", ns, "--to-revision", fmt.Sprint(number(t, first)-1), "--yes")
	goes(ctx, t, "rolled back", client, share{"east": 50, "west": 50})
}

func number(t *testing.T, text string) (n int) {
	t.Helper()
	_, err := fmt.Sscan(text, &n)
	must(t, err)
	return n
}

// TestWhatCrossesOverWithoutAccess: no control plane has south's access, and a ServiceEntry says what others may call.
func TestWhatCrossesOverWithoutAccess(t *testing.T) {
	ctx, ns := start(t)
	serve(ctx, t, shared.east, ns, "eu-1")
	until(ctx, t, shared.south, `{"spec":{"discovery":"Disabled"}}`, `{"spec":{"discovery":"Enabled"}}`)
	south := serve(ctx, t, shared.south, ns, "ap-1")
	client := from(t, shared.east, ns, "eu-1")
	goes(ctx, t, "what south has is not seen", client, share{"east": 100})
	const entry = `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: greeter-of-south, namespace: %[1]s}
spec:
  hosts: [greeter.south.example]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: grpc, protocol: GRPC, targetPort: %[2]d}]
  endpoints:
  - address: %[3]s
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: greeter, namespace: %[1]s}
spec:
  hosts: [greeter.%[1]s.svc.cluster.local]
  http:
  - route:
    - {destination: {host: greeter.%[1]s.svc.cluster.local}, weight: 70}
    - {destination: {host: greeter.south.example, port: {number: 80}}, weight: 30}
`
	must(t, harness.Apply(ctx, shared.kubeconfig, fmt.Sprintf(entry, ns, shared.south.Port, south.IP)))
	goes(ctx, t, "what south has said", client, share{"east": 70, "south": 30})
}

// patience is for what makes pauses that grow: istiod's informers, and gRPC's connections.
const patience = 5 * time.Minute

// waitFor waits until check has nothing to say.
func waitFor(ctx context.Context, t *testing.T, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last error
	for ctx.Err() == nil {
		err := check()
		if err == nil {
			return
		}
		if ctx.Err() == nil {
			last = err
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("waiting until %s: %v", what, last)
}
