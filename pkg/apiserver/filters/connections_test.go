package filters

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/fairness"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// connectionsServer serves with who asks in a header, and two connections for each virtual cluster.
func connectionsServer(t *testing.T, http2 bool) *httptest.Server {
	t.Helper()
	connections := fairness.NewConnections()
	handler := WithConnections(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), connections, rated{}, fairness.Limits{Connections: 2}, codecs())
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		cluster := req.Header.Get("X-Cluster")
		ctx := request.WithUser(req.Context(), &user.DefaultInfo{Name: "u", Extra: map[string][]string{authn.ExtraCluster: {cluster}}})
		ctx = request.WithRequestInfo(logical.WithCluster(ctx, cluster), &request.RequestInfo{})
		handler.ServeHTTP(w, req.WithContext(ctx))
	}))
	server.EnableHTTP2 = http2
	server.Listener = connections.Listen(server.Listener)
	server.StartTLS()
	t.Cleanup(server.Close)
	return server
}

func TestConnectionsOfAVirtualClusterAreBounded(t *testing.T) {
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(protocol, func(t *testing.T) {
			server := connectionsServer(t, protocol == "HTTP/2.0")
			dialed := 0
			newClient := func() *http.Client {
				transport := server.Client().Transport.(*http.Transport).Clone()
				transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
					dialed++
					return (&net.Dialer{}).DialContext(ctx, network, address)
				}
				t.Cleanup(transport.CloseIdleConnections)
				return &http.Client{Transport: transport}
			}
			ask := func(c *http.Client, cluster string) (int, string) {
				t.Helper()
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("X-Cluster", cluster)
				resp, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Fatal(err)
				}
				if resp.Proto != protocol {
					t.Fatalf("the protocol is %s", resp.Proto)
				}
				return resp.StatusCode, string(body)
			}
			first, second, third := newClient(), newClient(), newClient()
			for _, c := range []*http.Client{first, second, first} {
				if status, body := ask(c, "shop"); status != http.StatusOK {
					t.Fatalf("within the limit: %d %s", status, body)
				}
			}
			for range 2 {
				before := dialed
				if status, body := ask(third, "shop"); status != http.StatusTooManyRequests || !strings.Contains(body, "rates.connections") {
					t.Fatalf("one more than may be: %d %s", status, body)
				}
				// That the server closes it takes a moment to be seen.
				if dialed == before {
					t.Fatal("the refused connection was used once more")
				}
				third.CloseIdleConnections()
			}
			for _, cluster := range []string{"books", logical.Root} {
				if status, body := ask(newClient(), cluster); status != http.StatusOK {
					t.Fatalf("%s: %d %s", cluster, status, body)
				}
			}
			if status, body := ask(first, "books"); status != http.StatusOK {
				t.Fatalf("a connection that is another's already: %d %s", status, body)
			}
			first.CloseIdleConnections()
			for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
				if status, _ := ask(third, "shop"); status == http.StatusOK {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("a closed connection still counts")
				}
			}
		})
	}
}

func TestARefusedConnectionIsClosed(t *testing.T) {
	server := connectionsServer(t, false)
	var last *tls.Conn
	for range 3 {
		c, err := tls.Dial("tcp", server.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nX-Cluster: shop\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		last = c
	}
	if err := last.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(last); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("the connection is still open after %q: %v", rest, err)
	}
}
