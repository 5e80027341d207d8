package xds

import (
	"math"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// proxiesReport is a relay's request.
func proxiesReport(t testing.TB, fields map[string]any) *discovery.DeltaDiscoveryRequest {
	t.Helper()
	report, err := structpb.NewStruct(map[string]any{proxiesMetadata: fields})
	if err != nil {
		t.Fatal(err)
	}
	return &discovery.DeltaDiscoveryRequest{TypeUrl: proxiesURL, Node: &core.Node{Metadata: report}}
}

func TestAReportAboutProxiesIsToldOfItsControlPlaneAlone(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(map[string][]*object.Object{"virtualservices": textObjects("a/a=1")})
	one, other := w.delta(), w.delta()
	for id, c := range map[string]*deltaClient{"one": one, "other": other} {
		c.send(&discovery.DeltaDiscoveryRequest{Node: node(id)})
		c.expect("a/a=1")
	}
	observed := time.Now().Add(-time.Minute).UTC().Truncate(time.Second)
	report := func(connected, synced int, after time.Duration) {
		one.send(proxiesReport(t, map[string]any{"connected": connected, "synced": synced, "version": "v1", "observedAt": observed.Add(after).Format(time.RFC3339)}))
	}
	of := func(id string) *v1alpha1.ProxyStatus {
		for _, c := range w.server.ControlPlanes("default") {
			if c.ID == id {
				if c.Revision != "canary" {
					t.Errorf("the report took the revision away: %+v", c)
				}
				return c.Proxies
			}
		}
		return nil
	}
	report(20, 19, 0)
	eventually(t, "the report", func() bool { return of("one") != nil })
	if got := *of("one"); got.Connected != 20 || got.Synced != 19 || got.Version != w.builder.Snapshot("default").Version || !got.ObservedAt.Time.Equal(observed) {
		t.Errorf("told %+v", got)
	}
	// The time alone is news only now and then.
	report(20, 19, 10*time.Second)
	report(20, 20, 20*time.Second)
	eventually(t, "the next report", func() bool { return of("one").Synced == 20 })
	report(20, 20, 30*time.Second)
	report(20, 20, 55*time.Second)
	eventually(t, "the time", func() bool { return of("one").ObservedAt.Time.Equal(observed.Add(55 * time.Second)) })
	if of("other") != nil {
		t.Error("another stream has it too")
	}
	// It is no subscription, and the stream goes on.
	w.set("a/a", "2")
	one.expect("a/a=2")
	other.expect("a/a=2")
	for _, c := range w.server.ControlPlanes("default") {
		if len(c.Kinds) != 1 {
			t.Errorf("kinds %+v", c.Kinds)
		}
	}
}

func TestAReportAboutProxiesThatIsWrongIsDropped(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(nil)
	good := map[string]any{"connected": 2, "synced": 1, "version": "v", "observedAt": "2026-01-02T03:04:05Z"}
	c := w.delta()
	c.send(&discovery.DeltaDiscoveryRequest{Node: node("relay")})
	c.expect("")
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: proxiesURL})
	for name, wrong := range map[string][]any{
		"connected":  {-1, 1.5, "2", nil, 1e12, math.Inf(1)},
		"synced":     {-1, 3, true},
		"observedAt": {"yesterday", 3, nil},
		"version":    {strings.Repeat("v", maxText+1)},
	} {
		for _, value := range wrong {
			report := map[string]any{}
			for k, v := range good {
				report[k] = v
			}
			report[name] = value
			parsed, err := structpb.NewValue(report)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parseProxies(parsed, time.Now()); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%s %v: error %v", name, value, err)
			}
		}
	}
	c.send(proxiesReport(t, map[string]any{"connected": -1}))
	c.send(proxiesReport(t, good))
	eventually(t, "the good one", func() bool {
		all := w.server.ControlPlanes("default")
		return len(all) == 1 && all[0].Proxies != nil && all[0].Proxies.Connected == 2
	})
	for result, want := range map[string]float64{"taken": 1, "refused": 2} {
		if got := w.counter("vmesh_xds_proxy_reports_total", map[string]string{"result": result}); got != want {
			t.Errorf("%v reports were %s, want %v", got, result, want)
		}
	}
}

func TestAReportAboutProxiesCannotBeginAStream(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(nil)
	c := w.delta()
	c.send(proxiesReport(t, map[string]any{"connected": 1, "synced": 1, "observedAt": "2026-01-02T03:04:05Z"}))
	if _, err := c.stream.Recv(); err == nil || !strings.Contains(err.Error(), "ask for something") {
		t.Errorf("error %v", err)
	}
}

func TestAClockThatIsAheadDoesNotReportTheFuture(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	v, err := structpb.NewValue(map[string]any{"connected": 1, "synced": 0, "observedAt": "2027-01-02T03:04:05Z"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := parseProxies(v, now); err != nil || !got.ObservedAt.Time.Equal(now) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func FuzzReportsAboutProxies(f *testing.F) {
	f.Add([]byte(`{"connected":1,"synced":1,"version":"v","observedAt":"2026-01-02T03:04:05Z"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		v := &structpb.Value{}
		if v.UnmarshalJSON(data) != nil {
			return
		}
		got, err := parseProxies(v, time.Now())
		if err == nil && (got.Connected < 0 || got.Synced < 0 || got.Synced > got.Connected || got.Connected > maxProxies || len(got.Version) > maxText) {
			t.Errorf("took %+v", got)
		}
	})
}

func TestAControlPlaneIsBehindUntilItAcknowledges(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(map[string][]*object.Object{"virtualservices": textObjects("a/a=1")})
	c := w.delta()
	plane := func() v1alpha1.ControlPlaneStatus {
		all := w.server.ControlPlanes("default")
		if len(all) != 1 {
			return v1alpha1.ControlPlaneStatus{}
		}
		return all[0]
	}
	c.send(&discovery.DeltaDiscoveryRequest{Node: node("istiod")})
	first := c.receive()
	if p := plane(); p.BehindSince == nil || p.Acknowledged() {
		t.Errorf("before the first acknowledgement: %+v", p)
	}
	c.ack(first)
	eventually(t, "it to be in step", func() bool { p := plane(); return p.Acknowledged() })
	w.set("a/a", "2")
	next := c.receive()
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: next.TypeUrl, ResponseNonce: next.Nonce, ErrorDetail: &rpcstatus.Status{Message: "no"}})
	eventually(t, "its refusal", func() bool { p := plane(); return p.Refused() != nil && p.Refused().Error == "no" })
	if p := plane(); p.BehindSince == nil {
		t.Error("one that refused counts as in step")
	}
	w.set("a/a", "3")
	c.expect("a/a=3")
	eventually(t, "it to be in step again", func() bool { p := plane(); return p.Acknowledged() && p.Refused() == nil })
}
