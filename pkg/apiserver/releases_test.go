package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"
	mcp "istio.io/api/mcp/v1alpha1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// plane is a control plane that acknowledges all it receives of service entries.
type plane struct {
	names chan string // of each response
}

func connect(ctx context.Context, t *testing.T, address, revision string) *plane {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	node := &core.Node{Id: "sidecar~127.0.0.1~" + revision + "-0.istio-system~d", Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
		"ISTIO_REVISION": structpb.NewStringValue(revision),
	}}}
	ask := &discovery.DiscoveryRequest{Node: node, TypeUrl: "networking.istio.io/v1/ServiceEntry"}
	p := &plane{names: make(chan string, 100)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for stream.Send(ask) == nil {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			var names []string
			for _, one := range r.Resources {
				var resource mcp.Resource
				if one.UnmarshalTo(&resource) == nil {
					names = append(names, resource.Metadata.Name)
				}
			}
			p.names <- strings.Join(names, " ")
			ask = &discovery.DiscoveryRequest{Node: node, TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce, VersionInfo: r.VersionInfo}
		}
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-ended
	})
	return p
}

func (p *plane) receives(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-p.names:
		if got != want {
			t.Fatalf("received %q, want %q", got, want)
		}
	case <-time.After(time.Minute):
		t.Fatalf("waited in vain for %q", want)
	}
}

func (p *plane) receivesNothing(t *testing.T) {
	t.Helper()
	select {
	case got := <-p.names:
		t.Fatalf("received %q", got)
	default:
	}
}

func write(t *testing.T, root *rest.Config, verb, path, body string) error {
	t.Helper()
	client := in(t, root, "").RESTClient()
	switch verb {
	case "create":
		return client.Post().AbsPath(path).SetHeader("Content-Type", "application/json").Body([]byte(body)).Do(t.Context()).Error()
	}
	return client.Patch(types.MergePatchType).AbsPath(path).Body([]byte(body)).Do(t.Context()).Error()
}

const meshPath = "/apis/vmesh.io/v1alpha1/meshes/default"

// waitForRollout waits until the mesh's status is as it should be.
func waitForRollout(t *testing.T, root *rest.Config, check func(v1alpha1.MeshStatus) bool) (mesh v1alpha1.Mesh) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		data, err := in(t, root, "").RESTClient().Get().AbsPath(meshPath).DoRaw(t.Context())
		if err == nil {
			mesh = v1alpha1.Mesh{}
			if err = json.Unmarshal(data, &mesh); err == nil && check(mesh.Status) {
				return mesh
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %v, %+v", err, mesh.Status)
		}
	}
}

func TestReleasesSurviveARestart(t *testing.T) {
	o := NewOptions()
	o.DataDir, o.SecurePort = t.TempDir(), freePort(t)
	o.XDSAddress = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	root, stop := start(t, o)
	const entries = "/clusters/default/apis/networking.istio.io/v1/namespaces/default/serviceentries"
	create := func(name string) {
		t.Helper()
		if err := write(t, root, "create", entries, fmt.Sprintf(`{"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": %q},
			"spec": {"hosts": ["%s.example"], "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}], "resolution": "DNS"}}`, name, name)); err != nil {
			t.Fatal(err)
		}
	}
	create("a")
	waitForRollout(t, root, func(s v1alpha1.MeshStatus) bool { return s.Resources == 1 })
	if err := write(t, root, "patch", meshPath, `{"spec": {"rollout": {"stages": [
		{"name": "canary", "controlPlanes": {"matchLabels": {"vmesh.io/revision": "canary"}}}, {"name": "rest", "controlPlanes": {}}]}}}`); err != nil {
		t.Fatal(err)
	}
	canary, stable := connect(t.Context(), t, o.XDSAddress, "canary"), connect(t.Context(), t, o.XDSAddress, "stable")
	canary.receives(t, "default/a")
	stable.receives(t, "default/a")
	create("b")
	canary.receives(t, "default/a default/b")
	paused := func(s v1alpha1.MeshStatus) bool {
		return s.Rollout != nil && s.Rollout.Phase == v1alpha1.RolloutPaused && s.Rollout.Stages[1].Current == 1
	}
	mesh := waitForRollout(t, root, paused)
	if got := mesh.Status.Rollout; got.Changes != 1 || got.Stage != "canary" || got.Stages[0].Version != mesh.Status.Version || got.Stages[1].Version == mesh.Status.Version {
		t.Errorf("rollout %+v of %s", got, mesh.Status.Version)
	}
	stable.receivesNothing(t)
	stop()
	root, stop = start(t, o)
	defer stop()
	canary, stable = connect(t.Context(), t, o.XDSAddress, "canary"), connect(t.Context(), t, o.XDSAddress, "stable")
	canary.receives(t, "default/a default/b")
	stable.receives(t, "default/a")
	mesh = waitForRollout(t, root, paused)
	if err := write(t, root, "patch", meshPath, fmt.Sprintf(`{"metadata": {"annotations": {"vmesh.io/abort": %q}}}`, mesh.Status.Rollout.ID)); err != nil {
		t.Fatal(err)
	}
	canary.receives(t, "default/a")
	waitForRollout(t, root, func(s v1alpha1.MeshStatus) bool {
		return s.Rollout.Pinned == 1 && s.Rollout.Phase == v1alpha1.RolloutAborted
	})
	if err := write(t, root, "patch", entries+"/b", `{"metadata": {"annotations": {"mended": "yes"}}}`); err != nil {
		t.Fatal(err)
	}
	canary.receives(t, "default/a default/b")
	mesh = waitForRollout(t, root, paused)
	stable.receivesNothing(t)
	if err := write(t, root, "patch", meshPath, fmt.Sprintf(`{"metadata": {"annotations": {"vmesh.io/promote": %q}}}`, mesh.Status.Rollout.ID)); err != nil {
		t.Fatal(err)
	}
	stable.receives(t, "default/a default/b")
	waitForRollout(t, root, func(s v1alpha1.MeshStatus) bool {
		return s.Rollout.Phase == v1alpha1.RolloutComplete && s.Rollout.Pinned == 0
	})
	for body, says := range map[string]string{
		`{"spec": {"filters": [{"name": "f", "controlPlanes": {"matchLabels": {"a b": "c"}}, "kinds": ["VirtualService"]}]}}`: "spec.filters[0].controlPlanes.matchLabels",
		`{"spec": {"filters": [{"name": "f", "controlPlanes": {}, "kinds": ["Deployment"]}]}}`:                                "spec.filters[0].kinds[0]",
		`{"spec": {"filters": [{"name": "f", "controlPlanes": {}}]}}`:                                                         "spec.filters[0]: Required value",
		`{"spec": {"rollout": {"stages": [{"name": "a", "controlPlanes": {}, "bake": "-1s"}]}}}`:                              "spec.rollout.stages[0].bake",
	} {
		if err := write(t, root, "patch", meshPath, body); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want it refused with %s", body, err, says)
		}
	}
}

// A key that is taken out after a rewriting is needed by nothing that stages still have.
func TestARewritingCoversWhatStagesHave(t *testing.T) {
	o := NewOptions()
	o.DataDir, o.SecurePort = t.TempDir(), freePort(t)
	o.XDSAddress = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	keys := func(names ...string) {
		o.Encryption.ConfigFile = encryptionFile(t, strings.Replace(secretboxOf(names...), "[secrets]", "['*.*']", 1))
	}
	keys("one")
	root, stop := start(t, o)
	const entries = "/clusters/default/apis/networking.istio.io/v1/namespaces/default/serviceentries"
	create := func(name string) {
		t.Helper()
		if err := write(t, root, "create", entries, fmt.Sprintf(`{"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": %q},
			"spec": {"hosts": ["%s.example"], "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}], "resolution": "DNS"}}`, name, name)); err != nil {
			t.Fatal(err)
		}
	}
	create("a")
	waitForRollout(t, root, func(s v1alpha1.MeshStatus) bool { return s.Resources == 1 })
	if err := write(t, root, "patch", meshPath, `{"spec": {"rollout": {"stages": [
		{"name": "canary", "controlPlanes": {"matchLabels": {"vmesh.io/revision": "canary"}}}, {"name": "rest", "controlPlanes": {}}]}}}`); err != nil {
		t.Fatal(err)
	}
	connect(t.Context(), t, o.XDSAddress, "canary").receives(t, "default/a")
	create("b")
	paused := func(s v1alpha1.MeshStatus) bool {
		return s.Rollout != nil && s.Rollout.Phase == v1alpha1.RolloutPaused && s.Rollout.Stages[1].Current == 0 && s.Rollout.Changes == 1
	}
	waitForRollout(t, root, paused)
	stop()

	keys("two", "one")
	root, stop = start(t, o)
	rewrite := func() (sum Rewrite) {
		t.Helper()
		for first := true; first || sum.Continue != ""; first = false {
			data, err := in(t, root, "").RESTClient().Post().AbsPath(RewritePath).Param("continue", sum.Continue).DoRaw(t.Context())
			if first {
				data, err = in(t, root, "").RESTClient().Post().AbsPath(RewritePath).DoRaw(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
			var part Rewrite
			if err := json.Unmarshal(data, &part); err != nil {
				t.Fatal(err)
			}
			if len(part.Unreadable) > 0 {
				t.Fatalf("unreadable: %v", part.Unreadable)
			}
			if part.Total != nil {
				sum.Total = part.Total
			}
			sum.Rewritten, sum.Current, sum.Continue = sum.Rewritten+part.Rewritten, sum.Current+part.Current, part.Continue
		}
		return sum
	}
	first := rewrite()
	if again := rewrite(); first.Rewritten == 0 || again.Current <= first.Current {
		t.Errorf("rewritten %+v, and again %+v", first, again)
	}
	stop()

	keys("two")
	root, stop = start(t, o)
	defer stop()
	canary, stable := connect(t.Context(), t, o.XDSAddress, "canary"), connect(t.Context(), t, o.XDSAddress, "stable")
	canary.receives(t, "default/a default/b")
	stable.receives(t, "default/a")
}
