package network

import (
	"context"
	"testing"

	"github.com/vmesh-io/vmesh/test/harness"
)

func TestMembersOfOneNetworkWhosePodsHaveTheSameAddressesAreTold(t *testing.T) {
	ctx := begin(t)
	// Each member counts its addresses on its own: there is one soon that both have.
	must(t, shared.east.AddService(ctx, "overlap", "greeter"))
	must(t, shared.apart.AddService(ctx, "overlap", "greeter"))
	east, apart := map[string]bool{}, map[string]bool{}
	for same := false; !same; {
		if len(east) > 200 {
			t.Fatalf("east has %v and apart %v", east, apart)
		}
		for member, addresses := range map[*harness.Member]map[string]bool{shared.east: east, shared.apart: apart} {
			b, err := member.AddBackend(ctx, harness.BackendOptions{Namespace: "overlap", Service: "greeter"})
			must(t, err)
			harness.StopAfter(t, b.Remove)
			addresses[b.IP] = true
		}
		for address := range east {
			same = same || apart[address]
		}
	}
	moveTo := func(ctx context.Context, network string) error {
		_, err := harness.Kubectl(ctx, shared.vmesh.AdminKubeconfig, "", "patch", "membercluster", "apart", "--type=merge", "--patch", `{"spec":{"network":"`+network+`"}}`)
		return err
	}
	conflicting := func(want string) {
		t.Helper()
		_, err := harness.Kubectl(ctx, shared.vmesh.AdminKubeconfig, "", "wait", "membercluster/apart", "membercluster/east", "--for=condition=Conflicting="+want, "--timeout=3m")
		must(t, err)
	}
	conflicting("False")
	harness.StopAfter(t, func(ctx context.Context) error { return moveTo(ctx, island) })
	must(t, moveTo(ctx, coast))
	conflicting("True")
	must(t, moveTo(ctx, island))
	conflicting("False")
}
