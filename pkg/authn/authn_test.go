package authn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/vmesh-io/vmesh/pkg/pki"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

type uids map[string]string

func (u uids) UID(_ context.Context, cluster string) (string, bool) {
	uid, ok := u[cluster]
	return uid, ok
}

// ownTokens are of the virtual cluster that they name, or of none.
var ownTokens = authenticator.TokenFunc(func(_ context.Context, token string) (*authenticator.Response, bool, error) {
	cluster, uid, ok := strings.Cut(token, "/")
	if !ok {
		return nil, false, nil
	}
	return &authenticator.Response{User: &user.DefaultInfo{Name: "bob", Extra: map[string][]string{ExtraCluster: {cluster}, ExtraClusterUID: {uid}}}}, true, nil
})

func TestTokensAreGoodWhereTheyBelong(t *testing.T) {
	request := New(func() (x509.VerifyOptions, bool) { return x509.VerifyOptions{}, true }, uids{"shop": "uid-2", "other": "uid-3"}, ownTokens, anonymous.NewAuthenticator(nil))
	for _, c := range []struct{ name, authorization, cluster, who string }{
		{"at home", "Bearer shop/uid-2", "shop", "bob"},
		{"at home, in another case", "bearer shop/uid-2", "shop", "bob"},
		{"elsewhere", "Bearer shop/uid-2", "other", ""},
		{"in the root", "Bearer shop/uid-2", logical.Root, ""},
		{"of an earlier virtual cluster of the name", "Bearer shop/uid-1", "shop", ""},
		{"of one that is gone", "Bearer gone/uid-9", "gone", ""},
		{"the root's, in a virtual cluster", "Bearer root/", "shop", "bob"},
		{"nobody's", "Bearer x", "shop", ""},
		{"another scheme", "Basic eDp5", "shop", user.Anonymous},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := httptest.NewRequest("GET", "/api", nil)
			req = req.WithContext(logical.WithCluster(req.Context(), c.cluster))
			req.Header.Set("Authorization", c.authorization)
			resp, ok, err := request.AuthenticateRequest(req)
			switch {
			case c.who == "" && (ok || err == nil):
				t.Errorf("let in as %v, %v", resp, err)
			case c.who != "" && (!ok || resp.User.GetName() != c.who):
				t.Errorf("refused: %v", err)
			case c.who == "bob" && req.Header.Get("Authorization") != "":
				t.Error("the token goes on with the request")
			}
		})
	}
}

func TestIdentitiesAreGoodWhereTheyBelong(t *testing.T) {
	authority, err := pki.LoadOrCreateAuthority(t.TempDir(), "ca")
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := pki.LoadOrCreateAuthority(t.TempDir(), "ca")
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority.PEM)
	known := uids{"shop": "uid-2", "other": "uid-3"}
	request := New(func() (x509.VerifyOptions, bool) {
		return x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, true
	}, known, ownTokens, anonymous.NewAuthenticator(nil))

	issue := func(a *pki.Authority, uri *url.URL) *x509.Certificate {
		t.Helper()
		key, _, err := pki.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		certPEM, _, err := a.IssueClient(key.Public(), pki.Client{User: "alice", Groups: []string{user.SystemPrivilegedGroup}, URI: uri, TTL: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		return parseCertificate(t, certPEM)
	}
	shop := issue(authority, ClusterURI("shop", "uid-2"))
	for _, c := range []struct {
		name    string
		cert    *x509.Certificate
		cluster string
		who     string // empty when refused
	}{
		{"at home", shop, "shop", "alice"},
		{"at home again, from memory", shop, "shop", "alice"},
		{"elsewhere", shop, "other", ""},
		{"in the root", shop, logical.Root, ""},
		{"of an earlier virtual cluster of the name", issue(authority, ClusterURI("shop", "uid-1")), "shop", ""},
		{"of one that is gone", issue(authority, ClusterURI("gone", "uid-9")), "gone", ""},
		{"without a UID", issue(authority, ClusterURI("shop", "")), "shop", ""},
		{"the root's, in the root", issue(authority, ClusterURI(logical.Root, "")), logical.Root, "alice"},
		{"the root's, in a virtual cluster", issue(authority, ClusterURI(logical.Root, "")), "shop", "alice"},
		{"bound to nothing", issue(authority, &url.URL{Scheme: "spiffe", Host: "x", Path: "/clusters/shop/uid-2"}), "shop", ""},
		{"of another authority", issue(stranger, ClusterURI("shop", "uid-2")), "shop", ""},
		{"nobody", nil, "shop", user.Anonymous},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := httptest.NewRequest("GET", "/api", nil)
			req = req.WithContext(logical.WithCluster(req.Context(), c.cluster))
			req.TLS = &tls.ConnectionState{}
			if c.cert != nil {
				req.TLS.PeerCertificates = []*x509.Certificate{c.cert}
			}
			resp, ok, err := request.AuthenticateRequest(req)
			switch {
			case c.who == "" && ok:
				t.Errorf("let in as %v", resp.User)
			case c.who != "" && (!ok || resp.User.GetName() != c.who):
				t.Errorf("refused: %v", err)
			}
		})
	}
	// An identity ends with its virtual cluster, remembered or not.
	delete(known, "shop")
	req := httptest.NewRequest("GET", "/api", nil)
	req = req.WithContext(logical.WithCluster(req.Context(), "shop"))
	req.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{shop}}
	if _, ok, _ := request.AuthenticateRequest(req); ok {
		t.Error("the identity outlived its virtual cluster")
	}
}

func TestACertificateMustNameItsUser(t *testing.T) {
	if _, ok, err := fromCertificate([]*x509.Certificate{{Subject: pkix.Name{}, URIs: []*url.URL{ClusterURI("shop", "u")}}}); ok || err == nil {
		t.Error("a certificate without a name is somebody")
	}
}

func parseCertificate(t *testing.T, certPEM []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(certPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
