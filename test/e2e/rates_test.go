package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

func TestAVirtualClusterIsHeldToItsRates(t *testing.T) {
	tenant := newTenant(t, shared)
	setRates := func(t *testing.T, rates string) {
		t.Helper()
		mustDo(t, rawClient(t, shared.root), http.MethodPatch, "/apis/vmesh.io/v1alpha1/virtualclusters/"+tenant.name, fmt.Sprintf(`{"spec":{"rates":%s}}`, rates))
	}
	config := tenant.config
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	defer client.CloseIdleConnections()
	ask := func(t *testing.T, method, path, body string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, config.Host+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	refused := func(t *testing.T, resp *http.Response, field string) {
		t.Helper()
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" || !strings.Contains(string(body), field) {
			t.Errorf("got %s, Retry-After %q: %s; want a 429 that names %s", resp.Status, resp.Header.Get("Retry-After"), body, field)
		}
	}
	eventually := func(t *testing.T, method, path, body, field string) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
			resp := ask(t, method, path, body)
			if resp.StatusCode == http.StatusTooManyRequests {
				refused(t, resp, field)
				return
			}
			resp.Body.Close()
		}
		t.Errorf("no request was refused for %s", field)
	}
	const configMaps = "/api/v1/namespaces/default/configmaps"

	t.Run("watches", func(t *testing.T) {
		setRates(t, `{"watches":1}`)
		first := ask(t, http.MethodGet, configMaps+"?watch=true", "")
		if first.StatusCode != http.StatusOK {
			t.Fatalf("the first watch: %s", first.Status)
		}
		refused(t, ask(t, http.MethodGet, configMaps+"?watch=true", ""), "rates.watches")
		first.Body.Close()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			again := ask(t, http.MethodGet, configMaps+"?watch=true", "")
			again.Body.Close()
			if again.StatusCode == http.StatusOK {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("a watch after the first has ended: %s", again.Status)
			}
		}
	})
	t.Run("connections", func(t *testing.T) {
		setRates(t, `{"connections":1}`)
		mustDo(t, tenant.raw, http.MethodGet, configMaps, "")
		second := rest.CopyConfig(config)
		second.Dial = (&net.Dialer{}).DialContext // clients with the same configuration share a connection
		client, err := rest.HTTPClientFor(second)
		if err != nil {
			t.Fatal(err)
		}
		defer client.CloseIdleConnections()
		get := func() *http.Response {
			resp, err := client.Get(config.Host + configMaps + "?limit=1")
			if err != nil {
				t.Fatal(err)
			}
			return resp
		}
		refused(t, get(), "rates.connections")
		mustDo(t, tenant.raw, http.MethodGet, configMaps, "")
		setRates(t, `{"connections":0}`)
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			resp := get()
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("without a limit: %s", resp.Status)
			}
		}
	})
	t.Run("writes", func(t *testing.T) {
		setRates(t, `{"writesPerSecond":1}`)
		// Sixty writes' worth in one body is all that a minute holds.
		large := fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"generateName":"large-"},"data":{"a":%q}}`, strings.Repeat("x", 480<<10))
		eventually(t, http.MethodPost, configMaps, large, "rates.writesPerSecond")
		read := ask(t, http.MethodGet, configMaps+"?limit=1", "")
		read.Body.Close()
		if read.StatusCode != http.StatusOK {
			t.Errorf("a read is answered with %s while writes are refused", read.Status)
		}
	})
	t.Run("requests", func(t *testing.T) {
		setRates(t, `{"requestsPerSecond":1}`)
		done := make(chan struct{})
		defer close(done)
		for range 4 { // requests wait up to a second, so one alone is only slowed down
			go func() {
				for {
					select {
					case <-done:
						return
					default:
					}
					req, err := http.NewRequest(http.MethodGet, config.Host+configMaps+"?limit=1", nil)
					if err != nil {
						return
					}
					if resp, err := client.Do(req); err == nil {
						resp.Body.Close()
					}
				}
			}()
		}
		eventually(t, http.MethodGet, configMaps+"?limit=1", "", "rates.requestsPerSecond")
		other := newTenant(t, shared)
		mustDo(t, other.raw, http.MethodGet, configMaps, "")
	})
}
