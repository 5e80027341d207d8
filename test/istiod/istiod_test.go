// Package istiod tests vmesh with those it is there for: the real istiod, and real
// clients that istiod routes.
package istiod

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmesh-io/vmesh/test/harness"
	"github.com/vmesh-io/vmesh/test/traffic"
)

// mesh is a vmesh, an istiod that has nothing else, and a client whose calls it routes.
type mesh struct {
	vmesh      *harness.Vmesh
	istiod     *harness.Istiod
	client     *traffic.Client
	kubeconfig string
}

// startMesh starts one with an 80/20 split, and returns when calls go through.
func startMesh(ctx context.Context, t *testing.T) *mesh {
	t.Helper()
	m := &mesh{}
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	m.vmesh, err = harness.StartVmesh(ctx, harness.VmeshOptions{DataDir: filepath.Join(dir, "vmesh")})
	must(err)
	harness.StopAfter(t, m.vmesh.Stop)
	m.kubeconfig, err = m.vmesh.Kubeconfig(ctx, "default")
	must(err)

	var backends [2]*traffic.Backend
	for i, version := range []string{"v1", "v2"} {
		backends[i], err = traffic.StartBackend(version)
		must(err)
		harness.StopAfter(t, func(context.Context) error { return backends[i].Stop() })
	}
	must(harness.Apply(ctx, m.kubeconfig, traffic.Service(backends[0], backends[1])))
	must(harness.Apply(ctx, m.kubeconfig, traffic.Weights(80, 20)))
	m.istiod, err = harness.StartIstiod(ctx, harness.IstiodOptions{
		Dir: filepath.Join(dir, "istiod"), Kubeconfig: m.kubeconfig, XDSAddresses: []string{m.vmesh.XDSAddress},
	})
	must(err)
	harness.StopAfter(t, m.istiod.Stop)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("istiod's last words:\n%s", tail(m.istiod.LogFile()))
			t.Logf("vmesh's last words:\n%s", tail(m.vmesh.LogFile()))
		}
	})
	m.client, err = traffic.Dial(m.istiod.GRPCAddress, traffic.Target)
	must(err)
	harness.StopAfter(t, func(context.Context) error { return m.client.Close() })
	eventually(ctx, t, "calls go through", func() error {
		_, err := m.client.Call(ctx, nil)
		return err
	})
	return m
}

func tail(file string) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-8<<10):])
}

// eventually waits until check has nothing to say, or the context ends.
func eventually(ctx context.Context, t *testing.T, what string, check func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := check()
		if err == nil {
			return
		}
		if ctx.Err() == nil {
			last = err // and not that the time is over
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waiting until %s: %v", what, last)
		}
	}
}

// splits says how far the share of v2 is from what is wanted, if it is too far.
func splits(ctx context.Context, c *traffic.Client, v2 float64, headers map[string]string) error {
	const calls = 400
	counts, err := traffic.Split(ctx, c, calls, headers)
	if err != nil {
		return err
	}
	// Four standard deviations of so many independent calls, or none where it is all or nothing.
	tolerance := 4 * math.Sqrt(v2*(1-v2)/calls)
	if share := float64(counts["v2"]) / calls; math.Abs(share-v2) > tolerance {
		return fmt.Errorf("v2 got %.0f%% of the calls, want %.0f%% ± %.0f%%", share*100, v2*100, tolerance*100)
	}
	return nil
}

func TestCallsMoveAsWritten(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	m := startMesh(ctx, t)
	for _, step := range []struct {
		name    string
		apply   string
		headers map[string]string
		v2      float64
	}{
		{"80/20", traffic.Weights(80, 20), nil, 0.2},
		{"20/80", traffic.Weights(20, 80), nil, 0.8},
		{"by header", traffic.ByHeader(99, 1), map[string]string{traffic.VersionHeader: "v2"}, 1},
		{"by header, without it", traffic.ByHeader(99, 1), nil, 0.01},
	} {
		t.Run(step.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			if err := harness.Apply(ctx, m.kubeconfig, step.apply); err != nil {
				t.Fatal(err)
			}
			eventually(ctx, t, "the calls follow", func() error { return splits(ctx, m.client, step.v2, step.headers) })
		})
	}
}

func TestIstiodShowsWhatWasApplied(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	m := startMesh(ctx, t)
	manifests, err := os.ReadFile("testdata/every-kind.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := harness.Kubectl(ctx, m.vmesh.AdminKubeconfig, "", "patch", "virtualcluster", "default", "--type=merge", "--patch",
		`{"spec":{"guardRails":{"kinds":["EnvoyFilter","WasmPlugin","TrafficExtension","ProxyConfig"]}}}`); err != nil {
		t.Fatal(err)
	}
	if err := harness.Apply(ctx, m.kubeconfig, string(manifests)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(ctx, time.Minute)
	defer cancel()
	want := map[string]bool{}
	for _, kind := range everyKind {
		want[kind+" sample/sample"] = true
	}
	eventually(ctx, t, "istiod has every kind", func() error {
		shown, err := m.istiod.Configz(ctx)
		if err != nil {
			return err
		}
		missing := map[string]bool{}
		for name := range want {
			missing[name] = true
		}
		for _, o := range shown {
			delete(missing, o.GetKind()+" "+o.GetNamespace()+"/"+o.GetName())
		}
		if len(missing) > 0 {
			return fmt.Errorf("istiod lacks %v", missing)
		}
		return nil
	})
	if _, err := harness.Kubectl(ctx, m.kubeconfig, string(manifests), "delete", "--wait=false", "--ignore-not-found", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	eventually(ctx, t, "istiod has none of them any more", func() error {
		shown, err := m.istiod.Configz(ctx)
		if err != nil {
			return err
		}
		for _, o := range shown {
			if o.GetNamespace() == "sample" {
				return fmt.Errorf("istiod still has %s %s", o.GetKind(), o.GetName())
			}
		}
		return nil
	})
}

// everyKind are the kinds that istiod keeps as configuration and shows.
var everyKind = []string{
	"VirtualService", "DestinationRule", "ServiceEntry", "Gateway", "Sidecar", "WorkloadEntry", "WorkloadGroup", "EnvoyFilter",
	"ProxyConfig", "AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication", "Telemetry", "WasmPlugin", "TrafficExtension",
}

// What lies in a namespace that its virtual cluster does not own reaches nobody, and a
// namespace's owner is heard at once when ownership moves.
func TestOnlyOwnedNamespacesReachIstiod(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	m := startMesh(ctx, t)
	admin := m.vmesh.AdminKubeconfig
	cluster := func(name, namespaces string) string {
		return fmt.Sprintf("apiVersion: vmesh.io/v1alpha1\nkind: VirtualCluster\nmetadata: {name: %s}\nspec: {namespaces: [%s], hosts: [mine.example, not-mine.example]}\n", name, namespaces)
	}
	entry := func(namespace, host string) string {
		return fmt.Sprintf(`apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: probe, namespace: %[1]s}
spec: {hosts: [%[2]s], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}
`, namespace, host)
	}
	// What there is before the claims are made may lie anywhere.
	if err := harness.Apply(ctx, admin, cluster("shop", "")+"---\n"+strings.ReplaceAll(cluster("sandbox", ""), "mine.example", "play.example")); err != nil {
		t.Fatal(err)
	}
	for name, manifests := range map[string]string{
		"shop":    entry("shop-eu", "mine.example") + "---\n" + entry("elsewhere", "not-mine.example"),
		"sandbox": entry("play", "sandbox.example"),
		"default": entry("shop", "hijack.example") + "---\n" + entry("rest", "rest.example"),
	} {
		kubeconfig, err := m.vmesh.Kubeconfig(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		if err := harness.Apply(ctx, kubeconfig, manifests); err != nil {
			t.Fatal(err)
		}
	}
	has := func(want ...string) func() error {
		return func() error {
			shown, err := m.istiod.Configz(ctx)
			if err != nil {
				return err
			}
			got := map[string]bool{}
			for _, o := range shown {
				if o.GetKind() == "ServiceEntry" && o.GetName() == "probe" {
					got[o.GetNamespace()] = true
				}
			}
			wanted := map[string]bool{}
			for _, w := range want {
				wanted[w] = true
			}
			if fmt.Sprint(got) != fmt.Sprint(wanted) {
				return fmt.Errorf("istiod has it in %v, want %v", got, wanted)
			}
			return nil
		}
	}
	ctx, cancel = context.WithTimeout(ctx, time.Minute)
	defer cancel()
	eventually(ctx, t, "the catch-all owner has all that nobody claims", has("shop", "rest"))
	if err := harness.Apply(ctx, admin, cluster("shop", "shop, \"shop-*\"")); err != nil {
		t.Fatal(err)
	}
	eventually(ctx, t, "istiod has what is owned", has("shop-eu", "rest"))
	if err := harness.Apply(ctx, admin, cluster("shop", "\"shop-*\"")); err != nil {
		t.Fatal(err)
	}
	eventually(ctx, t, "the catch-all owner is heard", has("shop-eu", "rest", "shop"))
	if err := harness.Apply(ctx, admin, cluster("shop", "\"shop-*\", elsewhere")); err != nil {
		t.Fatal(err)
	}
	eventually(ctx, t, "the new owner is heard", has("shop-eu", "rest", "shop", "elsewhere"))
}
