package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/vmesh-io/vmesh/pkg/connectivity"
	"github.com/vmesh-io/vmesh/test/harness"
	"github.com/vmesh-io/vmesh/test/traffic"
)

// checks runs vmesh check network, and returns what it prints and its exit code.
func checks(ctx context.Context, t *testing.T, args ...string) (out, errOut string, code int) {
	t.Helper()
	binary, err := harness.Build(ctx)
	must(t, err)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var stdout, stderr strings.Builder
	cmd := exec.CommandContext(ctx, binary, append([]string{"check", "network", "--istiod", shared.istiod.GRPCAddress}, args...)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// finds waits until the check finds exactly these problems, as FROM TO REASON HOSTS.
func finds(ctx context.Context, t *testing.T, args []string, want ...string) connectivity.Report {
	t.Helper()
	slices.Sort(want)
	var report connectivity.Report
	eventually(ctx, t, func(ctx context.Context) error {
		out, errOut, code := checks(ctx, t, append(args, "-o", "json")...)
		report = connectivity.Report{}
		if err := json.Unmarshal([]byte(out), &report); err != nil {
			return fmt.Errorf("%w: %s%s", err, out, errOut)
		}
		var got []string
		for _, p := range report.Problems {
			var hosts []string
			for _, s := range p.Services {
				host, _, _ := strings.Cut(s, ".")
				hosts = append(hosts, host)
			}
			got = append(got, strings.TrimSpace(strings.Join([]string{p.From, p.To, string(p.Reason), strings.Join(hosts, ",")}, " ")))
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("found %q, not %q: %s%s", got, want, out, errOut)
		}
		if (code == 0) != (len(want) == 0) || code > 1 {
			return fmt.Errorf("the exit code is %d: %s", code, errOut)
		}
		return nil
	})
	return report
}

func TestTheCheckTellsWhatIsNotConnectedAndWhy(t *testing.T) {
	ctx := begin(t)
	trust, err := traffic.NewTrust()
	must(t, err)
	serve(ctx, t, "checked", "greeter", 1, securely(t, trust, "checked"), shared.east, shared.west, shared.apart)
	toCoast, toIsland := gateway(ctx, t, "", coast, coastWires()), gateway(ctx, t, "", island, shared.apart.Wires)
	settle(ctx, t, by(toCoast), by(toIsland))
	members := []string{"--kubeconfig", shared.vmesh.AdminKubeconfig}

	report := finds(ctx, t, members)
	for i, want := range []connectivity.Route{
		{From: coast, To: coast, How: connectivity.Direct, Services: 1, Reached: 1},
		{From: coast, To: island, How: connectivity.Gateways, Gateways: []string{address(toIsland)}, Services: 1, Reached: 1},
		{From: island, To: coast, How: connectivity.Gateways, Gateways: []string{address(toCoast)}, Services: 1, Reached: 1},
		{From: island, To: island, How: connectivity.Direct, Services: 1, Reached: 1},
	} {
		if got := report.Routes[i]; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("route %d is %v, not %v", i, got, want)
		}
	}
	out, errOut, _ := checks(ctx, t, members...)
	if !strings.Contains(out, "TO coast") || !strings.Contains(out, "1 gateway") || !strings.Contains(errOut, "All networks are connected") {
		t.Errorf("printed as %s%s", out, errOut)
	}
	t.Logf("a mesh that is whole:\n%s%s", out, errOut)
	dials(ctx, t, toIsland)

	// A member that the control plane does not read.
	finds(ctx, t, []string{"--member", "east=coast", "--member", "west=coast", "--member", "apart=island", "--member", "lost=island"}, "island NotRead")
	// A service that is not secure, and one that is in part.
	bare := serve(ctx, t, "checked", "bare", 1, harness.BackendOptions{}, shared.apart)
	finds(ctx, t, members, "east island NoMutualTLS bare", "west island NoMutualTLS bare")
	finds(ctx, t, append(members, "--from", "east"), "east island NoMutualTLS bare")
	finds(ctx, t, append(members, "--from", "apart"))
	must(t, bare[0].Remove(ctx))
	finds(ctx, t, members)
	// A member that is drained.
	drain := func(patch string) {
		t.Helper()
		_, err := harness.Kubectl(ctx, shared.vmesh.AdminKubeconfig, "", "patch", "membercluster", "apart", "--type=merge", "--patch", patch)
		must(t, err)
	}
	drain(`{"spec":{"drain":{"reason":"repairs"}}}`)
	eventually(ctx, t, func(ctx context.Context) error {
		out, errOut, code := checks(ctx, t, members...)
		if code != 0 || !strings.Contains(out, "no endpoints") || !strings.Contains(errOut, "Warning: member apart is left out: drained: repairs") {
			return fmt.Errorf("exit code %d: %s%s", code, out, errOut)
		}
		return nil
	})
	drain(`{"spec":{"drain":null}}`)
	eventually(ctx, t, func(ctx context.Context) error {
		if out, errOut, code := checks(ctx, t, members...); code != 0 || !strings.Contains(out, "1 gateway   direct") {
			return fmt.Errorf("exit code %d: %s%s", code, out, errOut)
		}
		return nil
	})
	// A network without a gateway.
	settle(ctx, t, by(toCoast), nil)
	finds(ctx, t, members, "east island NoGateway greeter", "west island NoGateway greeter")
	out, errOut, _ = checks(ctx, t, members...)
	if !strings.Contains(out, "no way") || !strings.Contains(out, "greeter.checked.svc.cluster.local:80") || !strings.Contains(errOut, "not all is connected: 2 problems") {
		t.Errorf("printed as %s%s", out, errOut)
	}
	t.Logf("a mesh that is broken:\n%s%s", out, errOut)
	// None at all.
	settle(ctx, t, nil, nil)
	finds(ctx, t, members, "apart coast NoGateway greeter", "east island NoGateway greeter", "west island NoGateway greeter")
}

// dials tries what the check would with --dial, with the wires of a place.
func dials(ctx context.Context, t *testing.T, toIsland *harness.Gateway) {
	t.Helper()
	connection, err := grpc.NewClient(shared.istiod.GRPCAddress, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer connection.Close()
	report, err := connectivity.Check(ctx, connectivity.Options{
		ControlPlane: connection, Namespace: "istio-system",
		Members: []connectivity.Member{{Name: "east", Network: coast}, {Name: "west", Network: coast}, {Name: "apart", Network: island}},
	})
	must(t, err)
	try := func() map[string]connectivity.Attempt {
		attempts, err := report.Dial(ctx, "east", coastWires().Dial)
		must(t, err)
		byNetwork := map[string]connectivity.Attempt{}
		for _, a := range attempts {
			if a.To == coast && a.Error != "" {
				t.Errorf("an endpoint in its own network: %+v", a)
			}
			byNetwork[a.To] = a
		}
		if len(attempts) != 3 {
			t.Errorf("tried %+v", attempts)
		}
		return byNetwork
	}
	if a := try()[island]; a.Error != "" || a.Server != "spiffe://cluster.local/ns/checked/sa/default" || !a.Gateway {
		t.Errorf("through the gateway: %+v", a)
	}
	must(t, toIsland.Stop(ctx))
	if a := try()[island]; !strings.Contains(a.Error, "refused") {
		t.Errorf("through a gateway that is down: %+v", a)
	}
	must(t, toIsland.Restart(ctx))
	if a := try()[island]; a.Error != "" {
		t.Errorf("through the gateway again: %+v", a)
	}
}
