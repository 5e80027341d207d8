package network

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/vmesh-io/vmesh/test/harness"
	"github.com/vmesh-io/vmesh/test/traffic"
)

func TestCallsOfOneServiceAreAnsweredInAllMembersOfANetwork(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	backends := serve(ctx, t, "one", "greeter", 2, harness.BackendOptions{Version: "v1"}, shared.east, shared.west)
	m := startMesh(ctx, t, settings{}, shared.east, shared.west)
	client := m.dial(t, traffic.Place{Cluster: "east", Namespace: "one", Reach: traffic.Join(shared.east.Wires, shared.west.Wires)}, "greeter.one.svc.cluster.local:80")
	eventually(ctx, t, func(ctx context.Context) error {
		counts := client.Counts(ctx, 100, nil)
		if counts.Failed > 0 || len(counts.ByName) != len(backends) || counts.ByCluster["east"] == 0 || counts.ByCluster["west"] == 0 {
			return fmt.Errorf("calls went as %+v", counts)
		}
		return nil
	})
	// What is not ready is not called, and what is gone neither.
	must(t, backends[0].SetReady(ctx, false))
	must(t, backends[2].Remove(ctx))
	eventually(ctx, t, func(ctx context.Context) error {
		counts := client.Counts(ctx, 100, nil)
		if counts.Failed > 0 || len(counts.ByName) != 2 || counts.ByName[backends[1].Name] == 0 || counts.ByName[backends[3].Name] == 0 {
			return fmt.Errorf("calls went as %+v", counts)
		}
		return nil
	})
}

func TestAnAddressInAnotherNetworkIsNotReached(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	serve(ctx, t, "unreached", "greeter", 1, harness.BackendOptions{}, shared.west)
	m := startMesh(ctx, t, settings{}, shared.east, shared.west)
	client := m.dial(t, traffic.Place{Cluster: "east", Namespace: "unreached", Reach: shared.east.Wires}, "greeter.unreached.svc.cluster.local:80")
	eventually(ctx, t, func(ctx context.Context) error {
		_, err := client.Ask(ctx, nil)
		if err == nil {
			t.Fatal("the call was answered")
		}
		if !isAbout(err, "it is in another network") {
			return fmt.Errorf("the call failed otherwise: %w", err)
		}
		return nil
	})
}
