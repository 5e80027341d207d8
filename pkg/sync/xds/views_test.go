package xds

import (
	"encoding/json"
	"maps"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

func nodeOf(t *testing.T, id, metadata string) *core.Node {
	t.Helper()
	n := &core.Node{Id: id}
	if metadata != "" {
		n.Metadata = &structpb.Struct{}
		if err := n.Metadata.UnmarshalJSON([]byte(metadata)); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

func TestAControlPlaneHasTheLabelsThatItsNodeGivesIt(t *testing.T) {
	for _, c := range []struct {
		name, id, metadata string
		want               map[string]string
	}{
		{"an istiod without a revision", "sidecar~10.0.0.1~istiod-5f-x.istio-system~istio-system.svc.cluster.local", "",
			map[string]string{"vmesh.io/revision": "default", "vmesh.io/pod": "istiod-5f-x", "vmesh.io/namespace": "istio-system"}},
		{"one with", "sidecar~10.0.0.1~istiod.0.sys~d", `{"ISTIO_REVISION": "canary"}`,
			map[string]string{"vmesh.io/revision": "canary", "vmesh.io/pod": "istiod.0", "vmesh.io/namespace": "sys"}},
		{"a relay's labels", "relay", `{"VMESH_LABELS": {"region": "eu", "vmesh.io/revision": "mine", "bad key!": "x", "n": 1, "long": "in valid"}}`,
			map[string]string{"vmesh.io/revision": "default", "region": "eu", "n": ""}},
		{"no node id", "a~b", "", map[string]string{"vmesh.io/revision": "default"}},
		{"an empty pod", "a~b~.ns~d", "", map[string]string{"vmesh.io/revision": "default"}},
	} {
		if got := labelsOf(nodeOf(t, c.id, c.metadata)); !maps.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	if got := labelsOf(nil); got["vmesh.io/revision"] != "default" {
		t.Errorf("no node: %v", got)
	}
}

func meshOfSpec(t *testing.T, spec string) *object.Object {
	t.Helper()
	o := meshObject("default")
	var content any
	if err := json.Unmarshal([]byte(spec), &content); err != nil {
		t.Fatal(err)
	}
	if err := o.SetContent(map[string]any{"spec": content}); err != nil {
		t.Fatal(err)
	}
	o.DropContent()
	return o
}

// askAs asks for virtual services as some control plane.
func (c *sotwClient) askAs(n *core.Node) {
	c.t.Helper()
	c.send(&discovery.DiscoveryRequest{TypeUrl: virtualServices, Node: n})
}

func (c *sotwClient) expectAs(n *core.Node, want string) {
	c.t.Helper()
	r := c.receive()
	if got := read(c.t, r.Resources); got != want {
		c.t.Fatalf("%s received %q, want %q", n.Id, got, want)
	}
	c.send(&discovery.DiscoveryRequest{TypeUrl: virtualServices, ResponseNonce: r.Nonce, VersionInfo: r.VersionInfo, Node: n})
}

func (w *world) status(id string) v1alpha1.ControlPlaneStatus {
	for _, c := range w.server.ControlPlanes("default") {
		if c.ID == id {
			return c
		}
	}
	return v1alpha1.ControlPlaneStatus{}
}

func TestEachControlPlaneReceivesItsViewAndTellsTheVersionOfTheWhole(t *testing.T) {
	canaryOnly := textObject("c", "n/canary", "1")
	canaryOnly.Labels = map[string]string{"istio.io/rev": "canary"}
	w := newWorld(t, textKinds(), Options{}).start(map[string][]*object.Object{
		"virtualservices": append(textObjects("n/a=1", "m/a=1"), canaryOnly),
	})
	nodes := []*core.Node{
		nodeOf(t, "plain", ""),
		nodeOf(t, "stable", `{"ISTIO_REVISION": "stable"}`),
		nodeOf(t, "canary", `{"ISTIO_REVISION": "canary"}`),
		nodeOf(t, "eu", `{"ISTIO_REVISION": "canary", "VMESH_LABELS": {"region": "eu"}}`),
	}
	clients := make([]*sotwClient, len(nodes))
	for i, n := range nodes {
		clients[i] = w.sotw()
		clients[i].askAs(n)
	}
	expect := func(wants ...string) {
		t.Helper()
		for i, want := range wants {
			if want != "" {
				clients[i].expectAs(nodes[i], want)
			}
		}
		eventually(t, "all to have the newest", func() bool {
			version := w.builder.Snapshots()[0].Version
			for _, n := range nodes {
				if w.status(n.Id).Version != version {
					return false
				}
			}
			return true
		})
	}
	expect("m/a=1 n/a=1 n/canary=1", "m/a=1 n/a=1", "m/a=1 n/a=1 n/canary=1", "m/a=1 n/a=1 n/canary=1")
	w.change("meshes", watch.Modified, meshOfSpec(t, `{"filters": [{"name": "eu", "controlPlanes": {"matchLabels": {"region": "eu"}}, "namespaces": ["m"]}]}`))
	expect("", "", "", "m/a=1")
	w.set("n/a", "2")
	expect("m/a=1 n/a=2 n/canary=1", "m/a=1 n/a=2", "m/a=1 n/a=2 n/canary=1", "")
	// One that says it has become another is brought to that one's view.
	nodes[3] = nodeOf(t, "eu", `{"ISTIO_REVISION": "stable", "VMESH_LABELS": {"region": "us"}}`)
	clients[3].send(&discovery.DiscoveryRequest{TypeUrl: gateways, Node: nodes[3]})
	var got []string
	for range 2 {
		r := clients[3].receive()
		got = append(got, r.TypeUrl+" "+read(t, r.Resources))
		clients[3].send(&discovery.DiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce, Node: nodes[3]})
	}
	if !(got[0] == virtualServices+" m/a=1 n/a=2" || got[1] == virtualServices+" m/a=1 n/a=2") {
		t.Fatalf("received %q", got)
	}
	if got := w.status("eu").Labels["region"]; got != "us" {
		t.Errorf("it is known as of region %q", got)
	}
}

func TestAStageHasItsOwnSnapshotAndAnUnknownOneIsSentNothing(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(map[string][]*object.Object{"virtualservices": textObjects("n/a=1")})
	late, early := nodeOf(t, "late", ""), nodeOf(t, "early", `{"VMESH_LABELS": {"stage": "early"}}`)
	a, b := w.sotw(), w.sotw()
	a.askAs(early)
	a.expectAs(early, "n/a=1")
	b.askAs(late)
	b.expectAs(late, "n/a=1")
	w.change("meshes", watch.Modified, meshOfSpec(t, `{"rollout": {"stages": [{"name": "one", "controlPlanes": {"matchLabels": {"stage": "early"}}}, {"name": "two", "controlPlanes": {}}]}}`))
	w.set("n/a", "2")
	eventually(t, "the stages to be known", func() bool { return w.status("late").Stage == "two" && w.status("early").Stage == "one" })
	s := w.builder.Snapshots()[0]
	eventually(t, "the change", func() bool {
		s = w.builder.Snapshots()[0]
		e, _ := s.Lists[0].Get("n/a")
		return w.textOf(e) == "2"
	})
	// Nobody has said what the stages have: what comes first is what is said then.
	w.builder.SetStages("default", s.Policy.Epoch, map[string]*snapshot.Snapshot{"one": s.Stage(s.Lists)})
	a.expectAs(early, "n/a=2")
	w.set("n/a", "3")
	w.builder.SetStages("default", s.Policy.Epoch, map[string]*snapshot.Snapshot{"one": s.Stage(s.Lists), "two": s.Stage(s.Lists)})
	b.expectAs(late, "n/a=2")
}

func (w *world) textOf(e snapshot.Entry) string {
	b := e.Resource()
	return string(b[len(b)-1:])
}
