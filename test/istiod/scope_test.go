package istiod

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/test/harness"
)

// sidecar is a sidecar proxy as istiod sees it, which asks for its clusters.
type sidecar struct {
	mu    sync.Mutex
	hosts []string // of the clusters that it has, sorted
	err   error    // why it gets no more
}

func startSidecar(ctx context.Context, t *testing.T, address, namespace, ip string) *sidecar {
	t.Helper()
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(connection).StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const clusters = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	text := structpb.NewStringValue
	if err := stream.Send(&discovery.DiscoveryRequest{TypeUrl: clusters, Node: &core.Node{
		Id:       fmt.Sprintf("sidecar~%s~proxy.%[2]s~%[2]s.svc.cluster.local", ip, namespace),
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"NAMESPACE": text(namespace), "CLUSTER_ID": text("Kubernetes"), "ISTIO_VERSION": text("1.31.0")}},
	}}); err != nil {
		t.Fatal(err)
	}
	s := &sidecar{}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			r, err := stream.Recv()
			if err == nil {
				if err = s.take(r); err == nil {
					err = stream.Send(&discovery.DiscoveryRequest{TypeUrl: clusters, VersionInfo: r.VersionInfo, ResponseNonce: r.Nonce})
				}
			}
			if err != nil {
				s.mu.Lock()
				s.err = err
				s.mu.Unlock()
				return
			}
		}
	})
	t.Cleanup(func() {
		_ = connection.Close()
		running.Wait()
	})
	return s
}

func (s *sidecar) take(r *discovery.DiscoveryResponse) error {
	hosts := map[string]struct{}{}
	for _, resource := range r.Resources {
		var c cluster.Cluster
		if err := resource.UnmarshalTo(&c); err != nil {
			return err
		}
		// outbound|PORT|SUBSET|HOST
		if parts := strings.Split(c.Name, "|"); len(parts) == 4 && parts[0] == "outbound" {
			hosts[parts[3]] = struct{}{}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hosts = slices.Sorted(maps.Keys(hosts))
	return nil
}

// sees says what of what it is to see is not so. Hosts that end in none of the suffixes do not count.
func (s *sidecar) sees(want ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	got := slices.DeleteFunc(slices.Clone(s.hosts), func(host string) bool { return !strings.HasSuffix(host, ".scope.example") })
	if !slices.Equal(got, want) {
		return fmt.Errorf("it has clusters of %v, want %v", got, want)
	}
	return nil
}

func TestAProxySeesOnlyItsVirtualClustersScope(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	m := startMesh(ctx, t)
	admin := m.vmesh.AdminKubeconfig
	must := func(_ string, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := harness.Apply(ctx, admin, `apiVersion: vmesh.io/v1alpha1
kind: VirtualCluster
metadata: {name: shop}
spec: {namespaces: [shop, shop-*], hosts: ["*.shop.scope.example"], guardRails: {exportTo: ["*"]}}
---
apiVersion: vmesh.io/v1alpha1
kind: VirtualCluster
metadata: {name: bank}
spec: {namespaces: [bank], hosts: ["*.bank.scope.example"], guardRails: {exportTo: ["*"]}}
`); err != nil {
		t.Fatal(err)
	}
	kubeconfigs := map[string]string{}
	for _, name := range []string{"shop", "bank"} {
		kubeconfig, err := m.vmesh.Kubeconfig(ctx, name)
		must(kubeconfig, err)
		kubeconfigs[name] = kubeconfig
	}
	service := func(namespace, host string) string {
		return fmt.Sprintf(`apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %[3]s, namespace: %[1]s}
spec: {hosts: [%[2]s], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 127.0.0.1}]}
---
`, namespace, host, strings.SplitN(host, ".", 2)[0])
	}
	const web, eu, pay, audit = "web.shop.scope.example", "eu.shop.scope.example", "pay.bank.scope.example", "audit.bank.scope.example"
	for name, manifests := range map[string]string{"shop": service("shop", web) + service("shop-eu", eu), "bank": service("bank", pay) + service("bank", audit)} {
		if err := harness.Apply(ctx, kubeconfigs[name], manifests); err != nil {
			t.Fatal(err)
		}
	}
	shop := startSidecar(ctx, t, m.istiod.GRPCAddress, "shop", "10.9.0.1")
	bank := startSidecar(ctx, t, m.istiod.GRPCAddress, "bank", "10.9.0.2")
	everything := []string{audit, eu, pay, web}
	patch := func(name, spec string) func() {
		return func() {
			t.Helper()
			must(harness.Kubectl(ctx, admin, "", "patch", "virtualcluster", name, "--type=merge", "--patch", `{"spec":`+spec+`}`))
		}
	}
	own := func(spec string) func() {
		return func() {
			t.Helper()
			if err := harness.Apply(ctx, kubeconfigs["shop"], "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: ours, namespace: shop}\nspec: "+spec+"\n"); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, step := range []struct {
		name   string
		do     func()
		shop   []string
		status string
	}{
		{"without a scope", func() {}, everything, `null`},
		{"with one", patch("shop", `{"sidecarScope":{}}`), []string{eu, web}, `{"namespaces":2,"hosts":["istio-system/*","shop-eu/*","shop/*"]}`},
		{"with a grant", patch("bank", `{"grants":[{"to":"shop","hosts":["pay.bank.scope.example"]}]}`), []string{eu, pay, web},
			`{"namespaces":2,"hosts":["*/pay.bank.scope.example","istio-system/*","shop-eu/*","shop/*"]}`},
		{"with a Sidecar of its own for some workloads", own(`{workloadSelector: {labels: {app: other}}, egress: [{hosts: ["*/*"]}]}`), []string{eu, pay, web},
			`{"namespaces":2,"hosts":["*/pay.bank.scope.example","istio-system/*","shop-eu/*","shop/*"]}`},
		{"with a Sidecar of its own", own(`{egress: [{hosts: ["bank/*"]}]}`), []string{audit, pay},
			`{"namespaces":1,"hosts":["*/pay.bank.scope.example","istio-system/*","shop-eu/*","shop/*"],"replaced":["shop"]}`},
		{"when that is gone", func() { must(harness.Kubectl(ctx, kubeconfigs["shop"], "", "delete", "sidecar", "-n", "shop", "ours")) }, []string{eu, pay, web},
			`{"namespaces":2,"hosts":["*/pay.bank.scope.example","istio-system/*","shop-eu/*","shop/*"]}`},
		{"with a reach of its namespace, and more hosts", patch("shop", `{"sidecarScope":{"reach":"Namespace","hosts":["bank/audit.bank.scope.example"]}}`), []string{audit, pay, web},
			`{"namespaces":2,"hosts":["*/pay.bank.scope.example","./*","bank/audit.bank.scope.example","istio-system/*"]}`},
		{"with it off", patch("shop", `{"sidecarScope":null}`), everything, `null`},
	} {
		step.do()
		eventually(ctx, t, step.name+" the proxy sees it", func() error { return shop.sees(step.shop...) })
		if err := bank.sees(everything...); err != nil && step.name != "without a scope" {
			t.Errorf("%s: another's proxy: %v", step.name, err)
		}
		var want any
		if err := json.Unmarshal([]byte(step.status), &want); err != nil {
			t.Fatal(err)
		}
		eventually(ctx, t, step.name+" the status tells it", func() error {
			out, err := harness.Kubectl(ctx, admin, "", "get", "virtualcluster", "shop", "-o", "json")
			if err != nil {
				return err
			}
			var vc v1alpha1.VirtualCluster
			if err := json.Unmarshal([]byte(out), &vc); err != nil {
				return err
			}
			data, err := json.Marshal(vc.Status.SidecarScope)
			if err != nil {
				return err
			}
			var got any
			if err := json.Unmarshal(data, &got); err != nil {
				return err
			}
			if a, b := fmt.Sprint(got), fmt.Sprint(want); a != b {
				return fmt.Errorf("it is %s, want %s", data, step.status)
			}
			return nil
		})
	}
	if _, err := harness.Kubectl(ctx, kubeconfigs["shop"], `{"apiVersion":"networking.istio.io/v1","kind":"Sidecar","metadata":{"name":"vmesh:scope","namespace":"shop"},"spec":{"egress":[{"hosts":["*/*"]}]}}`,
		"create", "-f", "-"); err == nil || !strings.Contains(err.Error(), "metadata.name") {
		t.Errorf("a Sidecar under vmesh's name: %v", err)
	}
}
