package istiod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/vmesh-io/vmesh/pkg/relay"
	"github.com/vmesh-io/vmesh/test/harness"
	"github.com/vmesh-io/vmesh/test/traffic"
)

// vmeshCommand runs a command of vmesh, and returns its output and exit code.
func vmeshCommand(ctx context.Context, t *testing.T, args ...string) (string, int) {
	t.Helper()
	binary, err := harness.Build(ctx)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(ctx, binary, args...).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(out), exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(out), 0
}

// shownStatus is what of vmesh status -o json is checked.
type shownStatus struct {
	Mesh, Version, Ready, InStep string
	Resources, VirtualClusters   int
	ControlPlanes                []struct {
		Name, State, Server string
		Proxies             *struct {
			Connected, Synced int
			Version           string
		}
	}
	Proxies *struct{ Connected, Synced int }
	Claims  []struct {
		VirtualCluster string
		Namespaces     []string
	}
	Events []struct{ Reason, Message string }
}

func TestStatusShowsARealIstiod(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	m := startMesh(ctx, t)
	access := []string{"--kubeconfig", m.vmesh.AdminKubeconfig}
	status := func(args ...string) (string, int) {
		return vmeshCommand(ctx, t, append(append([]string{"status"}, args...), access...)...)
	}
	var last shownStatus
	load := func() error {
		out, code := status("default", "-o", "json")
		if code != 0 {
			return fmt.Errorf("exit code %d: %s", code, out)
		}
		last = shownStatus{}
		return json.Unmarshal([]byte(out), &last)
	}
	eventually(ctx, t, "istiod is in step", func() error {
		if err := load(); err != nil {
			return err
		}
		if len(last.ControlPlanes) != 1 || last.ControlPlanes[0].State != "InStep" || last.InStep != "True" || last.Ready != "True" {
			return fmt.Errorf("status %+v", last)
		}
		return nil
	})
	if last.Mesh != "default" || last.Version == "" || last.Resources == 0 || last.VirtualClusters != 1 || last.ControlPlanes[0].Name != "istiod-0.istio-system" ||
		last.ControlPlanes[0].Server == "" || len(last.Claims) != 1 || last.Claims[0].VirtualCluster != "default" || last.Claims[0].Namespaces[0] != "*" {
		t.Errorf("status %+v", last)
	}
	eventually(ctx, t, "it is told of in an event", func() error {
		if err := load(); err != nil {
			return err
		}
		for _, e := range last.Events {
			if e.Reason == "ControlPlaneConnected" && strings.Contains(e.Message, "istiod-0.istio-system") {
				return nil
			}
		}
		return fmt.Errorf("events %+v", last.Events)
	})
	var screen string
	eventually(ctx, t, "the screen shows it", func() error {
		var code int
		screen, code = status("--exit-code")
		for _, want := range []string{"Mesh default: ready, in step", "1 of 1 connected are in step", "istiod-0.istio-system   in step", "VIRTUAL CLUSTER", "ControlPlaneConnected"} {
			if code != 0 || !strings.Contains(screen, want) {
				return fmt.Errorf("exit code %d; the screen lacks %q:\n%s", code, want, screen)
			}
		}
		return nil
	})
	for line := range strings.Lines(screen) {
		if len([]rune(line)) > 101 {
			t.Errorf("a line of %d columns: %s", len(line), line)
		}
	}
	if out, code := status("none"); code != 1 || !strings.Contains(out, `there is no mesh "none"`) {
		t.Errorf("exit code %d: %s", code, out)
	}

	version := last.Version
	if err := harness.Apply(ctx, m.kubeconfig, traffic.Weights(20, 80)); err != nil {
		t.Fatal(err)
	}
	eventually(ctx, t, "the version changes", func() error {
		if err := load(); err != nil {
			return err
		}
		if last.Version == version || last.ControlPlanes[0].State != "InStep" {
			return fmt.Errorf("status %+v", last)
		}
		return nil
	})

	if err := m.istiod.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(ctx, t, "istiod is gone, and told of", func() error {
		out, code := status("--exit-code")
		for _, want := range []string{"istiod-0.istio-system   gone", "ControlPlaneGone", "No control plane is connected"} {
			if code != 3 || !strings.Contains(out, want) {
				return fmt.Errorf("exit code %d; the screen lacks %q:\n%s", code, want, out)
			}
		}
		return nil
	})
}

// reporter stands for a relay: it asks for a mesh by delta, and reports proxies.
type reporter struct {
	stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
}

func startReporter(ctx context.Context, t *testing.T, address, id string) *reporter {
	t.Helper()
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(connection).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&discovery.DeltaDiscoveryRequest{Node: &core.Node{Id: id}, TypeUrl: "networking.istio.io/v1/VirtualService"}); err != nil {
		t.Fatal(err)
	}
	response, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: response.TypeUrl, ResponseNonce: response.Nonce}); err != nil {
		t.Fatal(err)
	}
	return &reporter{stream}
}

func TestProxiesOfARealIstiodAreCounted(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	m := startMesh(ctx, t)
	const more = 4
	for range more {
		client, err := traffic.Dial(m.istiod.GRPCAddress, traffic.Target)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		eventually(ctx, t, "calls go through", func() error {
			_, err := client.Call(ctx, nil)
			return err
		})
	}
	poller, err := relay.NewPoller(m.istiod.DebugURL)
	if err != nil {
		t.Fatal(err)
	}
	since := time.Now()
	observed := func(connected, synced int) {
		t.Helper()
		eventually(ctx, t, fmt.Sprintf("%d of %d proxies are synced", synced, connected), func() error {
			got, err := poller.Observe(ctx, since)
			if err == nil && (got.Connected != connected || got.Synced != synced) {
				err = fmt.Errorf("got %+v", got)
			}
			return err
		})
	}
	// On a busy machine it may be later than "at once".
	if got, err := poller.Observe(ctx, since); err != nil || got.Connected != more+1 || got.Synced != 0 && time.Since(since) < 2*time.Second {
		t.Errorf("at once, when istiod may not have sent anything yet: %+v, %v", got, err)
	}
	observed(more+1, more+1)
	// One that has something to receive, and all acknowledge it.
	since = time.Now()
	if err := harness.Apply(ctx, m.kubeconfig, traffic.Weights(20, 80)); err != nil {
		t.Fatal(err)
	}
	observed(more+1, more+1)
	// The client balances anew a moment after it has acknowledged.
	eventually(ctx, t, "the calls follow", func() error { return splits(ctx, m.client, 0.8, nil) })

	// One that never acknowledges.
	connection, err := grpc.NewClient(m.istiod.GRPCAddress, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(connection).StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	metadata, err := structpb.NewStruct(map[string]any{"GENERATOR": "grpc", "NAMESPACE": "demo"})
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&discovery.DiscoveryRequest{
		Node:    &core.Node{Id: "sidecar~127.0.0.1~mute.demo~demo.svc.cluster.local", Metadata: metadata},
		TypeUrl: "type.googleapis.com/envoy.config.listener.v3.Listener", ResourceNames: []string{traffic.Target},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	observed(more+2, more+1)

	// It reaches vmesh's status.
	r := startReporter(ctx, t, m.vmesh.XDSAddress, "sidecar~127.0.0.1~relay-0.istio-system~istio-system.svc")
	got, err := poller.Observe(ctx, since)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.stream.Send(relay.ProxiesRequest("v1", got)); err != nil {
		t.Fatal(err)
	}
	eventually(ctx, t, "the status has the proxies", func() error {
		out, _ := vmeshCommand(ctx, t, "status", "default", "-o", "json", "--kubeconfig", m.vmesh.AdminKubeconfig)
		var shown shownStatus
		if err := json.Unmarshal([]byte(out), &shown); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		for _, c := range shown.ControlPlanes {
			if c.Name == "relay-0.istio-system" && c.Proxies != nil && c.Proxies.Connected == more+2 && c.Proxies.Synced == more+1 && c.Proxies.Version == shown.Version &&
				shown.Proxies != nil && shown.Proxies.Connected == more+2 {
				return nil
			}
		}
		return fmt.Errorf("status %s", out)
	})
	out, err := harness.Kubectl(ctx, m.vmesh.AdminKubeconfig, "", "get", "meshes", "-o", "wide")
	if err != nil || !strings.Contains(out, "IN STEP") || !strings.Contains(out, "PROXIES") {
		t.Errorf("kubectl shows %s, %v", out, err)
	}
}
