package xds

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

func TestEveryKindIsAnswered(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(map[string][]*object.Object{"virtualservices": textObjects("n/a=1")})
	c := w.sotw()
	urls := []string{meshConfig, virtualServices, gateways, "telemetry.istio.io/v9/FromTheFuture", "no slashes"}
	c.ask(urls...)
	for _, url := range urls {
		want := ""
		if url == virtualServices {
			want = "n/a=1"
		}
		c.expect(url, want)
		for range stateOfTheWorld.fill(stateOfTheWorld{}, url) {
			c.expect(url, want)
		}
	}
}

// istiod holds the first hundred responses for as long as it runs.
func TestTheFirstHundredResponsesToAnIstiodAreEmpty(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(map[string][]*object.Object{"virtualservices": textObjects("n/a=1")})
	c := w.sotw()
	c.ask(meshConfig, virtualServices)
	for n := range 100 {
		if r := c.receive(); r.TypeUrl != meshConfig || len(r.Resources) > 0 {
			t.Fatalf("response %d is %s with %d resources", n, r.TypeUrl, len(r.Resources))
		}
	}
	c.expect(virtualServices, "n/a=1")
	w.set("n/a", "2")
	c.expect(virtualServices, "n/a=2") // and none is between
	c.ask(meshConfig)                  // of the same stream, it is an acknowledgement
	w.set("n/a", "3")
	c.expect(virtualServices, "n/a=3")
}

func TestAnyVersionOfAKindIsAnswered(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(map[string][]*object.Object{"virtualservices": textObjects("n/a=1")})
	c := w.sotw()
	old := strings.Replace(virtualServices, "/v1/", "/v1alpha3/", 1)
	c.ask(old)
	c.expect(old, "n/a=1")
	w.set("n/a", "2")
	c.expect(old, "n/a=2")
}

func TestNothingIsAnsweredBeforeAllIsRead(t *testing.T) {
	w := newWorld(t, textKinds(), Options{})
	c := w.sotw()
	c.ask(virtualServices)
	w.observers["meshes"].Replaced([]*object.Object{meshObject("default")}, 1)
	w.observers["virtualclusters"].Replaced([]*object.Object{clusterObject("c", "default")}, 1)
	w.observers["namespaces"].Replaced(nil, 1)
	w.observers["virtualservices"].Replaced(textObjects("n/a=1"), 1)
	eventually(t, "the stream to be known", func() bool { return len(w.server.ControlPlanes("default")) == 1 })
	if kinds := w.server.ControlPlanes("default")[0].Kinds; len(kinds) != 0 {
		t.Fatalf("something was sent: %v", kinds)
	}
	w.observers["gateways"].Replaced(nil, 1)
	c.expect(virtualServices, "n/a=1")
}

func TestOnlyWhatChangesIsPushed(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(map[string][]*object.Object{
		"virtualservices": textObjects("n/a=1"), "gateways": textObjects("n/g=1"),
	})
	c := w.sotw()
	c.ask(virtualServices, gateways)
	first := c.expect(virtualServices, "n/a=1")
	c.expect(gateways, "n/g=1")
	w.set("n/a", "1") // no change
	w.set("n/b", "1")
	second := c.expect(virtualServices, "n/a=1 n/b=1")
	if first.VersionInfo == second.VersionInfo || first.Nonce == second.Nonce {
		t.Errorf("versions %s and %s, nonces %s and %s", first.VersionInfo, second.VersionInfo, first.Nonce, second.Nonce)
	}
	if _, _, version := decode(t, first.Resources[0]); version == "" {
		t.Error("a resource has no version")
	} else if _, _, again := decode(t, second.Resources[0]); again != version {
		t.Errorf("the version of what did not change was %s and is %s", version, again)
	}
	w.delete("n/a")
	c.expect(virtualServices, "n/b=1")
	w.delete("n/b")
	c.expect(virtualServices, "")
	w.change("gateways", watch.Modified, textObject("c", "n/g", "2"))
	c.expect(gateways, "n/g=2")
}

func TestChangesBeforeAnAcknowledgementBecomeOneResponse(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(map[string][]*object.Object{"virtualservices": textObjects("n/a=0")})
	c := w.sotw()
	c.ask(virtualServices, gateways)
	unanswered := c.receive()
	c.expect(gateways, "")
	for i := range 100 {
		w.set("n/a", fmt.Sprint(i+1))
	}
	// Another kind does not wait, and passes what does.
	w.change("gateways", watch.Added, textObject("c", "n/g", "1"))
	c.expect(gateways, "n/g=1")
	c.ack(unanswered)
	c.expect(virtualServices, "n/a=100")
}

func TestAChangeThatIsTakenBackIsNotPushed(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(map[string][]*object.Object{"virtualservices": textObjects("n/a=1")})
	c := w.sotw()
	c.ask(virtualServices, gateways)
	unanswered := c.receive()
	c.expect(gateways, "")
	w.set("n/a", "2")
	eventually(t, "the change", func() bool { return w.builder.Snapshots()[0].Lists[0].Version() != unanswered.VersionInfo })
	w.set("n/a", "1")
	eventually(t, "the change back", func() bool { return w.builder.Snapshots()[0].Lists[0].Version() == unanswered.VersionInfo })
	c.ack(unanswered)
	eventually(t, "the acknowledgement", func() bool {
		return slices.ContainsFunc(w.server.ControlPlanes("default")[0].Kinds, func(k v1alpha1.ControlPlaneKindStatus) bool {
			return k.TypeURL == virtualServices && k.AckedVersion == unanswered.VersionInfo
		})
	})
	w.change("gateways", watch.Added, textObject("c", "n/g", "1"))
	c.expect(gateways, "n/g=1")
}

func TestAnAcknowledgementIsNotWaitedForForever(t *testing.T) {
	w := newWorld(t, textKinds(), Options{AckTimeout: 50 * time.Millisecond}).start(nil)
	c := w.sotw()
	c.ask(virtualServices)
	c.receive()
	w.set("n/a", "1")
	c.expect(virtualServices, "n/a=1")
}

func TestARefusedResponseIsSentAgainOnlyWhenItChanges(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(map[string][]*object.Object{"virtualservices": textObjects("n/a=1")})
	c := w.sotw()
	c.ask(virtualServices)
	r := c.receive()
	c.send(&discovery.DiscoveryRequest{TypeUrl: virtualServices, ResponseNonce: r.Nonce, ErrorDetail: &status.Status{Code: 3, Message: "I do not like it"}})
	kind := func() v1alpha1.ControlPlaneKindStatus {
		for _, cp := range w.server.ControlPlanes("default") {
			for _, k := range cp.Kinds {
				return k
			}
		}
		return v1alpha1.ControlPlaneKindStatus{}
	}
	eventually(t, "the refusal to be known", func() bool { return kind().Error == "I do not like it" })
	if k := kind(); k.AckedVersion != "" || k.AckedAt != nil || k.SentVersion != r.VersionInfo || k.Resources != 1 {
		t.Errorf("status %+v", k)
	}
	if n := w.counter("vmesh_xds_nacks_total", map[string]string{"kind": "VirtualService"}); n != 1 {
		t.Errorf("%v refusals counted", n)
	}
	c.ask(gateways)
	c.expect(gateways, "") // and not the other again
	w.set("n/a", "2")
	again := c.expect(virtualServices, "n/a=2")
	eventually(t, "the acknowledgement to be known", func() bool {
		k := kind()
		return k.TypeURL != virtualServices || k.Error == "" && k.AckedVersion == again.VersionInfo
	})
}

func TestNonces(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(map[string][]*object.Object{"virtualservices": textObjects("n/a=1")})
	c := w.sotw()
	c.ask(virtualServices)
	first := c.expect(virtualServices, "n/a=1")
	w.set("n/a", "2")
	second := c.receive()
	// An old nonce neither acknowledges nor asks.
	c.ack(first)
	w.set("n/a", "3")
	c.ask(gateways)
	c.expect(gateways, "")
	c.ack(second)
	c.expect(virtualServices, "n/a=3")
	// No nonce asks anew.
	c.send(&discovery.DiscoveryRequest{TypeUrl: virtualServices})
	c.expect(virtualServices, "n/a=3")
}

func TestControlPlanesAreKnown(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(map[string][]*object.Object{"virtualservices": textObjects("n/a=1", "n/b=1")})
	first, second := w.sotw(), w.sotw()
	first.ask(virtualServices)
	r := first.expect(virtualServices, "n/a=1 n/b=1")
	second.ask(virtualServices)
	second.receive()
	acked := func() bool {
		all := w.server.ControlPlanes("default")
		return len(all) == 2 && all[0].Kinds[0].AckedVersion == r.VersionInfo
	}
	eventually(t, "both to be known", acked)
	all := w.server.ControlPlanes("default")
	if all[0].ID != "istiod" || all[1].ID != "istiod#2" || all[0].Revision != "canary" || !all[0].Connected || all[0].Address == "" || all[0].ConnectedSince.IsZero() {
		t.Errorf("control planes %+v", all)
	}
	if k := all[1].Kinds[0]; k.AckedVersion != "" || k.AckedAt != nil || k.SentVersion != r.VersionInfo || k.SentAt == nil || k.Resources != 2 {
		t.Errorf("what was sent to the second: %+v", k)
	}
	if n := w.counter("vmesh_xds_streams", map[string]string{"mesh": "default", "protocol": "sotw"}); n != 2 {
		t.Errorf("%v streams counted", n)
	}
	w.set("n/a", "2")
	first.expect(virtualServices, "n/a=2 n/b=1")
	eventually(t, "the lag to be measured", func() bool { return w.counter("vmesh_xds_change_lag_seconds", nil) == 1 })
	first.cancel()
	eventually(t, "the first to be gone", func() bool {
		all := w.server.ControlPlanes("default")
		return len(all) == 1 && all[0].ID == "istiod#2"
	})
	third := w.sotw()
	third.ask(virtualServices)
	third.receive()
	if all := w.server.ControlPlanes("default"); len(all) != 2 || all[0].ID != "istiod" {
		t.Errorf("the name is not given again: %+v", all)
	}
}

func TestTheHostNameSaysWhichMesh(t *testing.T) {
	w := newWorld(t, textKinds(), Options{MeshTimeout: 20 * time.Millisecond}).start(map[string][]*object.Object{
		"meshes":          {meshObject("default"), meshObject("pay-ments")},
		"virtualclusters": {clusterObject("c", "default"), clusterObject("d", "pay-ments")},
		"virtualservices": append(textObjects("n/a=1"), textObject("d", "n/a", "2")),
	})
	tests := []struct{ authority, want string }{
		{"127.0.0.1:15010", "n/a=1"},
		{"[::1]:15010", "n/a=1"},
		{"localhost", "n/a=1"},
		{"vmesh.vmesh-system.svc:15010", "n/a=1"},
		{"mesh-default:15010", "n/a=1"},
		{"mesh-:15010", "n/a=1"},
		{"mesh-pay-ments.vmesh-system.svc:15010", "n/a=2"},
		{"MESH-pay-ments", "n/a=2"},
		{"mesh-unknown:15010", ""},
	}
	for _, test := range tests {
		t.Run(test.authority, func(t *testing.T) {
			c := w.sotw(grpc.WithAuthority(test.authority))
			c.ask(virtualServices)
			if test.want != "" {
				c.expect(virtualServices, test.want)
				c.cancel()
			} else if _, err := c.stream.Recv(); grpcstatus.Code(err) != codes.NotFound {
				t.Errorf("the stream ends with %v", err)
			}
		})
	}
	if n := w.counter("vmesh_xds_streams", map[string]string{"mesh": "unknown"}); n != 0 {
		t.Error("a mesh that does not exist has a metric")
	}
}

func TestAStreamWaitsForItsMesh(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(map[string][]*object.Object{"meshes": nil, "virtualservices": textObjects("n/a=1")})
	c := w.sotw()
	c.ask(virtualServices)
	eventually(t, "the stream to be known", func() bool { return len(w.server.ControlPlanes("default")) == 1 })
	w.change("meshes", watch.Added, meshObject("default"))
	c.expect(virtualServices, "n/a=1")
	// When the mesh goes, the stream ends without another word.
	w.change("meshes", watch.Deleted, meshObject("default"))
	if r, err := c.stream.Recv(); grpcstatus.Code(err) != codes.NotFound {
		t.Errorf("received %v, %v", r, err)
	}
}

func TestARestartGivesEqualVersions(t *testing.T) {
	versions := func(items ...string) (list, resource string) {
		w := newWorld(t, textKinds(), Options{}).start(map[string][]*object.Object{"virtualservices": textObjects(items...)})
		defer w.stop()
		c := w.sotw()
		c.ask(virtualServices)
		r := c.receive()
		_, _, resource = decode(t, r.Resources[0])
		return r.VersionInfo, resource
	}
	list1, resource1 := versions("n/a=1", "n/b=2")
	list2, resource2 := versions("n/b=2", "n/a=1")
	if list1 != list2 || resource1 != resource2 {
		t.Errorf("versions %s, %s and after a restart %s, %s", list1, resource1, list2, resource2)
	}
}

func TestAShutdownEndsStreamsWithoutAnotherWord(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(map[string][]*object.Object{"virtualservices": textObjects("n/a=1")})
	c := w.sotw()
	c.ask(virtualServices)
	c.expect(virtualServices, "n/a=1")
	w.stop()
	if r, err := c.stream.Recv(); grpcstatus.Code(err) != codes.Unavailable {
		t.Errorf("received %v, %v", r, err)
	}
}

func TestAReceiverThatTakesNothingIsLeft(t *testing.T) {
	// The quick one, too, needs some of the timeout for 5000 resources.
	w := newWorld(t, textKinds(), Options{SendTimeout: 5 * time.Second, AckTimeout: time.Millisecond}).
		start(map[string][]*object.Object{"virtualservices": manyObjects(5000)})
	slow, quick := w.sotw(grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10)), w.sotw()
	slow.ask(virtualServices)
	quick.ask(virtualServices)
	quick.ack(quick.receive())
	// The slow one takes nothing of the first response, so the second cannot leave.
	w.set("n/a", "1")
	quick.ack(quick.receive())
	eventually(t, "the slow one to be left", func() bool {
		return w.counter("vmesh_xds_slow_receivers_total", map[string]string{"mesh": "default"}) == 1
	})
	eventually(t, "the slow one to be forgotten", func() bool { return len(w.server.ControlPlanes("default")) == 1 })
	w.set("n/a", "2")
	if r := quick.receive(); len(r.Resources) != 5001 {
		t.Errorf("the quick one received %d resources", len(r.Resources))
	}
}

func TestAStreamCannotAskForTooMuch(t *testing.T) {
	tests := []struct {
		name string
		ask  func(*sotwClient)
		code codes.Code
	}{
		{"too many type URLs", func(c *sotwClient) {
			for i := range maxInterests + 1 {
				_ = c.stream.Send(&discovery.DiscoveryRequest{TypeUrl: fmt.Sprint("a/b/", i)})
			}
		}, codes.ResourceExhausted},
		{"a type URL that is too long", func(c *sotwClient) { c.ask(strings.Repeat("x", maxTypeURL+1)) }, codes.ResourceExhausted},
		{"no type URL", func(c *sotwClient) { c.ask("") }, codes.InvalidArgument},
	}
	w := newWorld(t, textKinds(), Options{}).start(nil)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := w.sotw()
			test.ask(c)
			for {
				if _, err := c.stream.Recv(); err != nil {
					if grpcstatus.Code(err) != test.code {
						t.Errorf("the stream ends with %v", err)
					}
					return
				}
			}
		})
	}
}

func TestWhatClientsSayOfThemselvesIsBounded(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(nil)
	c := w.sotw()
	c.send(&discovery.DiscoveryRequest{TypeUrl: virtualServices, Node: node(strings.Repeat("\u00e4", 10_000))})
	r := c.receive()
	c.send(&discovery.DiscoveryRequest{TypeUrl: virtualServices, ResponseNonce: r.Nonce, ErrorDetail: &status.Status{Message: strings.Repeat("x", 10_000)}})
	c.ask("made.up/v1/Kind")
	c.expect("made.up/v1/Kind", "")
	cp := w.server.ControlPlanes("default")[0]
	if len(cp.ID) > 2*maxText || len(cp.Kinds) != 1 || len(cp.Kinds[0].Error) > 2*maxText || !utf8.ValidString(cp.ID) {
		t.Errorf("control plane %+v", cp)
	}
}

func TestAStreamWithoutANodeIsServed(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(nil)
	c := w.sotw()
	c.send(&discovery.DiscoveryRequest{TypeUrl: virtualServices})
	c.expect(virtualServices, "")
	if all := w.server.ControlPlanes("default"); len(all) != 1 || !strings.HasPrefix(all[0].ID, "unknown~127.0.0.1:") {
		t.Errorf("control planes %+v", all)
	}
}
