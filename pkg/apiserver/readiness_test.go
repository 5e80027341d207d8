package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/healthz"
)

func TestReadyzSaysWhyItIsNot(t *testing.T) {
	var broken error
	checks := []healthz.HealthChecker{
		healthz.PingHealthz,
		healthz.NamedCheck("etcd", func(*http.Request) error { return broken }),
	}
	mux := http.NewServeMux()
	healthz.InstallReadyzHandler(mux, checks...)
	handler := withReasons(mux, checks)
	for _, c := range []struct {
		name   string
		broken error
		path   string
		code   int
		want   string
	}{
		{"ready", nil, "/readyz", 200, "ok"},
		{"ready, in detail", nil, "/readyz?verbose", 200, "[+]etcd ok\n"},
		{"not ready", errors.New("etcd is away"), "/readyz", 500, "[-]etcd failed: etcd is away\n"},
		{"another path", errors.New("etcd is away"), "/nowhere", 404, "404 page not found\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			broken = c.broken
			server := httptest.NewServer(handler) // checks the length that the header gives
			defer server.Close()
			resp, err := http.Get(server.URL + c.path)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != c.code || !strings.Contains(string(body), c.want) {
				t.Errorf("answered %d %q, want %d with %q", resp.StatusCode, body, c.code, c.want)
			}
		})
	}
}

func TestWatchCachesThatLagAreCountedAndAFewNamed(t *testing.T) {
	for _, c := range []struct {
		name    string
		lagging int
		want    string
	}{
		{"none", 0, ""},
		{"one", 1, "1 of 5 watch caches are not in step with etcd: a: storage not ready"},
		{"all", 5, "5 of 5 watch caches are not in step with etcd: a: storage not ready; b: storage not ready; c: storage not ready; ..."},
	} {
		t.Run(c.name, func(t *testing.T) {
			caches := map[schema.GroupResource]error{}
			for i, name := range []string{"a", "b", "c", "d", "e"} {
				caches[schema.GroupResource{Resource: name}] = nil
				if i < c.lagging {
					caches[schema.GroupResource{Resource: name}] = errors.New("storage not ready")
				}
			}
			err := cachesReady(caches)
			if got := fmt.Sprint(err); got != c.want && !(c.want == "" && err == nil) {
				t.Errorf("said %q, want %q", got, c.want)
			}
		})
	}
}

func TestEtcdIsNotAskedForEveryProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		p := &etcdProbe{name: "etcd", read: func(context.Context) error { asked++; return errors.New("away") }}
		for range 3 {
			if err := p.check(); err == nil || !strings.Contains(err.Error(), "etcd does not answer") {
				t.Errorf("an etcd that is away gives %v", err)
			}
		}
		if asked != 1 {
			t.Errorf("etcd was asked %d times within a second", asked)
		}
		time.Sleep(probeEvery)
		if err := p.check(); err == nil || asked != 2 {
			t.Errorf("after that it was asked %d times: %v", asked, err)
		}
	})
}
