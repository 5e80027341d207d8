package authn

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authentication/request/headerrequest"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"

	"github.com/vmesh-io/vmesh/pkg/pki"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

func proxyConfig(t *testing.T, ca []byte) *authenticatorfactory.RequestHeaderConfig {
	t.Helper()
	content, err := dynamiccertificates.NewStaticCAContent("front-proxy", ca)
	if err != nil {
		t.Fatal(err)
	}
	return &authenticatorfactory.RequestHeaderConfig{
		CAContentProvider: content, AllowedClientNames: headerrequest.StaticStringSlice{"front-proxy-client"},
		UsernameHeaders: headerrequest.StaticStringSlice{"X-Remote-User"}, UIDHeaders: headerrequest.StaticStringSlice{},
		GroupHeaders: headerrequest.StaticStringSlice{"X-Remote-Group"}, ExtraHeaderPrefixes: headerrequest.StaticStringSlice{"X-Remote-Extra-"},
	}
}

func clientCertificate(t *testing.T, a *pki.Authority, name string) *x509.Certificate {
	t.Helper()
	key, _, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	certPEM, _, err := a.IssueClient(key.Public(), pki.Client{User: name, URI: KubeconfigURI("shop", "uid", "record"), TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return parseCertificate(t, certPEM)
}

func TestOnlyTheProxysCertificateMakesItsHeadersCount(t *testing.T) {
	proxies, err := pki.LoadOrCreateAuthority(t.TempDir(), "front-proxy-ca")
	if err != nil {
		t.Fatal(err)
	}
	clients, err := pki.LoadOrCreateAuthority(t.TempDir(), "client-ca")
	if err != nil {
		t.Fatal(err)
	}
	next := authenticator.RequestFunc(func(*http.Request) (*authenticator.Response, bool, error) {
		return &authenticator.Response{User: &user.DefaultInfo{Name: "direct"}}, true, nil
	})
	a := WithFrontProxy(next, proxyConfig(t, proxies.Bundle()))
	for _, c := range []struct {
		name string
		cert *x509.Certificate
		with http.Header
		want string
	}{
		{"the proxy", clientCertificate(t, proxies, "front-proxy-client"), http.Header{"X-Remote-User": {"alice"}}, "alice"},
		{"the proxy without a user", clientCertificate(t, proxies, "front-proxy-client"), http.Header{"X-Remote-Group": {"system:masters"}}, "direct"},
		{"another name of the proxy's authority", clientCertificate(t, proxies, "someone"), http.Header{"X-Remote-User": {"alice"}}, "direct"},
		{"a client's certificate with the proxy's name", clientCertificate(t, clients, "front-proxy-client"), http.Header{"X-Remote-User": {"alice"}}, "direct"},
		{"no certificate", nil, http.Header{"X-Remote-User": {"alice"}}, "direct"},
		{"no headers", clientCertificate(t, clients, "bob"), nil, "direct"},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := httptest.NewRequest(http.MethodGet, "/api", nil)
			req.Header = c.with
			req.TLS = &tls.ConnectionState{}
			if c.cert != nil {
				req.TLS.PeerCertificates = []*x509.Certificate{c.cert}
			}
			resp, ok, err := a.AuthenticateRequest(req)
			if err != nil || !ok || resp.User.GetName() != c.want {
				t.Fatalf("got %v, %t, %v; want %s", resp, ok, err, c.want)
			}
			if FromHost(resp.User) != (c.want == "alice") {
				t.Errorf("%v is marked wrongly", resp.User)
			}
		})
	}
}

// notYet is an authority that is still to be read.
type notYet struct {
	dynamiccertificates.CAContentProvider
}

func (notYet) VerifyOptions() (x509.VerifyOptions, bool) { return x509.VerifyOptions{}, false }

func TestBeforeTheProxysAuthorityIsKnownNobodyIsTheProxy(t *testing.T) {
	proxies, err := pki.LoadOrCreateAuthority(t.TempDir(), "front-proxy-ca")
	if err != nil {
		t.Fatal(err)
	}
	headers := proxyConfig(t, proxies.Bundle())
	headers.CAContentProvider = notYet{}
	a := WithFrontProxy(authenticator.RequestFunc(func(*http.Request) (*authenticator.Response, bool, error) { return nil, false, errors.New("refused") }), headers)
	req := httptest.NewRequest(http.MethodGet, "/api", nil)
	req.Header.Set("X-Remote-User", "alice")
	req.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{clientCertificate(t, proxies, "front-proxy-client")}}
	if resp, ok, err := a.AuthenticateRequest(req); ok || err == nil {
		t.Errorf("let in as %v", resp)
	}
}

func TestTheProxyDoesNotSayToWhichVirtualClusterSomebodyBelongs(t *testing.T) {
	u := hostUser(&user.DefaultInfo{Name: "alice", UID: "1", Groups: []string{"dev"}, Extra: map[string][]string{
		"vmesh.io/virtual-cluster": {"shop"}, "vmesh.io/virtual-cluster-uid": {"uid"}, "VMESH.io/Virtual-Cluster": {"shop"}, "vmesh.io/other": {"x"}, "scopes": {"a", "b"},
	}})
	want := map[string][]string{ExtraCluster: {logical.Root}, ExtraClusterUID: {""}, ExtraHost: {"true"}, "scopes": {"a", "b"}}
	if got := u.GetExtra(); !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, c := range []struct {
		name   string
		of     user.DefaultInfo
		groups string
	}{
		{"a user", user.DefaultInfo{Name: "alice", Groups: []string{"dev", user.AllAuthenticated}}, "dev system:authenticated"},
		{"one without groups, as the aggregator", user.DefaultInfo{Name: "system:aggregator"}, "system:authenticated"},
		{"nobody", user.DefaultInfo{Name: user.Anonymous, Groups: []string{user.AllUnauthenticated}}, "system:unauthenticated"},
		{"nobody without groups", user.DefaultInfo{Name: user.Anonymous}, ""},
	} {
		if got := strings.Join(hostUser(&c.of).GetGroups(), " "); got != c.groups {
			t.Errorf("%s: got groups %q, want %q", c.name, got, c.groups)
		}
	}
}
