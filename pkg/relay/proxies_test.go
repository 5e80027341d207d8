package relay

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vmesh-io/vmesh/test/leak"
)

const listenerType, clusterType = "type.googleapis.com/envoy.config.listener.v3.Listener", "type.googleapis.com/envoy.config.cluster.v3.Cluster"

type proxyKinds map[string]map[string]any // type URL to what istiod tells

func sentKind(nonce, acked string, at time.Time) map[string]any {
	return map[string]any{"sent": nonce, "acked": acked, "sentTime": at.Format(time.RFC3339Nano)}
}

func TestProxiesCountAsSyncedOnceTheyHaveAcknowledged(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	since := ago(10 * time.Second)
	has := proxyKinds{clusterType: sentKind("2", "2", ago(5*time.Second)), listenerType: sentKind("2", "2", ago(5*time.Second))}
	idle := proxyKinds{clusterType: sentKind("1", "1", ago(time.Hour)), "never sent": sentKind("", "", time.Time{})}
	for _, c := range []struct {
		name    string
		since   time.Time
		proxies []proxyKinds
		synced  int
	}{
		{"none", since, nil, 0},
		{"what was sent is acknowledged", since, []proxyKinds{has}, 1},
		{"one kind is not", since, []proxyKinds{has, {clusterType: sentKind("2", "2", ago(5*time.Second)), listenerType: sentKind("2", "1", ago(5*time.Second))}}, 1},
		{"one kind was refused", since, []proxyKinds{has, {clusterType: {"sent": "2", "acked": "2", "sentTime": ago(5 * time.Second), "lastError": "no"}}}, 1},
		{"there is nothing for one", since, []proxyKinds{has, idle}, 2},
		{"istiod may not have sent it yet", ago(time.Second), []proxyKinds{idle}, 0},
		{"istiod is sending to others", since, []proxyKinds{idle, {clusterType: sentKind("2", "2", ago(pushQuiet/2))}}, 1},
		{"endpoints change by themselves", since, []proxyKinds{idle, {endpointType: sentKind("2", "2", ago(pushQuiet/2))}}, 2},
		{"istiod is sending to this one", since, []proxyKinds{{clusterType: sentKind("2", "2", ago(sendQuiet/2))}}, 0},
		{"it was behind before", since, []proxyKinds{{clusterType: sentKind("1", "0", ago(time.Hour))}}, 0},
	} {
		list := []any{}
		for _, p := range c.proxies {
			list = append(list, map[string]any{"proxy": "p", "resources": p})
		}
		data, err := json.Marshal(list)
		if err != nil {
			t.Fatal(err)
		}
		got, err := countProxies(strings.NewReader(string(data)), c.since, now)
		if want := (Proxies{Connected: len(c.proxies), Synced: c.synced, ObservedAt: now}); err != nil || got != want {
			t.Errorf("%s: got %+v, %v, want %+v", c.name, got, err, want)
		}
	}
}

func TestOlderIstiodsAreUnderstood(t *testing.T) {
	now := time.Now()
	got, err := countProxies(strings.NewReader(`[{"proxy":"a","cluster_sent":"1","cluster_acked":"1"},{"proxy":"b","route_sent":"2","route_acked":"1"}]`), now.Add(-time.Minute), now)
	if err != nil || got.Connected != 2 || got.Synced != 1 {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestAnswersThatAreNoListOfProxiesAreErrors(t *testing.T) {
	for _, answer := range []string{"", "{}", "null", `"a"`, "[1]", "[{}", `[{"resources":3}]`, "<html>"} {
		if got, err := countProxies(strings.NewReader(answer), time.Now(), time.Now()); err == nil {
			t.Errorf("%q: got %+v", answer, got)
		}
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "["+strings.Repeat(`{"proxy":"a"},`, 100)+`{"proxy":"a"}]`)
	}))
	defer server.Close()
	p, err := NewPoller(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := p.Observe(t.Context(), time.Now()); err != nil || got.Connected != 101 {
		t.Errorf("got %+v, %v", got, err)
	}
	p.most = 1000
	if got, err := p.Observe(t.Context(), time.Now()); err == nil || !strings.Contains(err.Error(), "larger than 1000 bytes") {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestTheDebugPagesAreReadOnLoopbackOnly(t *testing.T) {
	for address, good := range map[string]bool{
		DefaultDebugURL: true, "http://localhost:8080": true, "http://[::1]:8080/": true,
		"http://10.0.0.1:15014": false, "http://istiod.istio-system:15014": false, "https://127.0.0.1:15014": false, "127.0.0.1:15014": false, "": false, "http://127.0.0.1:1/debug": false,
	} {
		if _, err := NewPoller(address); (err == nil) != good {
			t.Errorf("%q: %v", address, err)
		}
	}
}

func TestAnIstiodWithoutDebugPagesIsSaidToBeSo(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	p, err := NewPoller(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Observe(t.Context(), time.Now()); err == nil || !strings.Contains(err.Error(), "ENABLE_DEBUG_ON_HTTP") {
		t.Errorf("error %v", err)
	}
}

func TestRunReportsTheVersionThatWasAcknowledged(t *testing.T) {
	defer leak.VerifyNone(t, goleak.IgnoreCurrent())
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `[{"proxy":"a"}]`) }))
	defer server.Close()
	p, err := NewPoller(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var version string
	var got Proxies
	p.Run(ctx, func() (string, time.Time) { return "v7", time.Now().Add(-time.Minute) }, func(v string, proxies Proxies) {
		version, got = v, proxies
		cancel()
	})
	if version != "v7" || got.Connected != 1 || got.Synced != 1 || time.Since(got.ObservedAt) > time.Minute {
		t.Errorf("reported %q %+v", version, got)
	}
	r := ProxiesRequest(version, got)
	if fields := r.Node.Metadata.Fields["VMESH_PROXIES"].GetStructValue().AsMap(); fields["connected"] != 1.0 || fields["synced"] != 1.0 || fields["version"] != "v7" || fields["observedAt"] == "" {
		t.Errorf("it is sent as %v", fields)
	}
}

func TestObservationsTakeALittleOfTheTime(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{
		time.Millisecond: minProxiesEvery, 200 * time.Millisecond: 10 * time.Second, 9 * time.Second: maxProxiesEvery,
	} {
		if got := (&Poller{took: took}).Interval(); got != want {
			t.Errorf("after %s: %s, want %s", took, got, want)
		}
	}
}

func FuzzAnswersAboutProxies(f *testing.F) {
	f.Add(`[{"proxy":"a","resources":{"x":{"sent":"1","acked":"1","sentTime":"2026-01-02T03:04:05Z"}}}]`)
	f.Add(`[{"cluster_sent":"1"}]`)
	f.Fuzz(func(t *testing.T, answer string) {
		got, err := countProxies(strings.NewReader(answer), time.Unix(0, 0), time.Now())
		if err == nil && (got.Synced > got.Connected || got.Synced < 0) {
			t.Errorf("counted %+v", got)
		}
	})
}

func BenchmarkCounting5000Proxies(b *testing.B) {
	at := time.Now().Add(-time.Hour)
	resources := proxyKinds{}
	for _, url := range []string{clusterType, listenerType, endpointType, "type.googleapis.com/envoy.config.route.v3.RouteConfiguration", "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"} {
		resources[url] = sentKind("2026-11-23T11:05:00Z/1234a8c8f0f4-0a54-4bdb-8e0e-0f1e2d3c4b5a", "2026-11-23T11:05:00Z/1234a8c8f0f4-0a54-4bdb-8e0e-0f1e2d3c4b5a", at)
	}
	proxy, err := json.Marshal(map[string]any{"proxy": "productpage-v1-5d4c7b8f9-abcde.shop", "cluster_id": "Kubernetes", "istio_version": "1.31.0", "resources": resources})
	if err != nil {
		b.Fatal(err)
	}
	answer := "[" + strings.TrimSuffix(strings.Repeat(string(proxy)+",", 5000), ",") + "]"
	b.SetBytes(int64(len(answer)))
	b.ReportAllocs()
	for b.Loop() {
		if got, err := countProxies(strings.NewReader(answer), at, time.Now()); err != nil || got.Connected != 5000 {
			b.Fatal(got, err)
		}
	}
}
