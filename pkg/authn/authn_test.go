package authn

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
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
	request := New(func() (x509.VerifyOptions, bool) { return x509.VerifyOptions{}, true }, uids{"shop": "uid-2", "other": "uid-3"}, records{}, ownTokens, anonymous.NewAuthenticator(nil))
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

// records has fingerprints by name, or nothing for what was revoked.
type records map[string]string

func (r records) Good(_ context.Context, name, fingerprint string) (bool, error) {
	if r[name] == "broken" {
		return false, errors.New("etcd is away")
	}
	return r[name] == fingerprint, nil
}

// issueAs issues a certificate whose record is something else.
func issueAs(issue func(*pki.Authority, *url.URL) *x509.Certificate, a *pki.Authority, r records, name, record string) *x509.Certificate {
	cluster, uid := "shop", "uid-2"
	if strings.HasPrefix(name, logical.Root) {
		cluster, uid = logical.Root, ""
	}
	cert := issue(a, KubeconfigURI(cluster, uid, name))
	r[name] = record
	return cert
}

func withCertificate(cluster string, cert *x509.Certificate) *http.Request {
	req := httptest.NewRequest("GET", "/api", nil)
	req.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
	return req.WithContext(logical.WithCluster(req.Context(), cluster))
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
	known, records := uids{"shop": "uid-2", "other": "uid-3"}, records{}
	request := New(func() (x509.VerifyOptions, bool) {
		return x509.VerifyOptions{Roots: authority.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, true
	}, known, records, ownTokens, anonymous.NewAuthenticator(nil))

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
		cert := parseCertificate(t, certPEM)
		if name := RecordOf(cert); name != "" {
			records[name] = fmt.Sprintf("%x", sha256.Sum256(cert.Raw))
		}
		return cert
	}
	shop := issue(authority, KubeconfigURI("shop", "uid-2", "shop-alice"))
	revoked := issue(authority, KubeconfigURI("shop", "uid-2", "shop-revoked"))
	delete(records, "shop-revoked")
	double := issue(authority, KubeconfigURI("shop", "uid-2", "shop-double"))
	issue(authority, KubeconfigURI("shop", "uid-2", "shop-double"))
	rootURI := KubeconfigURI(logical.Root, "", "root-admin")
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
		{"of an earlier virtual cluster of the name", issue(authority, KubeconfigURI("shop", "uid-1", "a")), "shop", ""},
		{"of one that is gone", issue(authority, KubeconfigURI("gone", "uid-9", "b")), "gone", ""},
		{"without a UID", issue(authority, KubeconfigURI("shop", "", "c")), "shop", ""},
		{"the root's, in the root", issue(authority, rootURI), logical.Root, "alice"},
		{"the root's, in a virtual cluster", issue(authority, KubeconfigURI(logical.Root, "", "root-bob")), "shop", "alice"},
		{"bound to nothing", issue(authority, &url.URL{Scheme: "spiffe", Host: "x", Path: "/clusters/shop/uid-2"}), "shop", ""},
		{"of another authority", issue(stranger, KubeconfigURI("shop", "uid-2", "d")), "shop", ""},
		{"that was revoked", revoked, "shop", ""},
		{"whose record is of another certificate", double, "shop", ""},
		{"that is not recorded", issue(authority, &url.URL{Scheme: uriScheme, Host: "clusters", Path: "/shop/uid-2"}), "shop", ""},
		{"whose record cannot be looked for", issueAs(issue, authority, records, "shop-broken", "broken"), "shop", ""},
		{"the root's, that was revoked", issueAs(issue, authority, records, "root-revoked", ""), logical.Root, ""},
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
	// A revocation counts at once, remembered or not.
	records["shop-alice"] = ""
	if _, ok, _ := request.AuthenticateRequest(withCertificate("shop", shop)); ok {
		t.Error("a certificate outlived its record")
	}
	records["shop-alice"] = fmt.Sprintf("%x", sha256.Sum256(shop.Raw))
	if _, ok, err := request.AuthenticateRequest(withCertificate("shop", shop)); !ok {
		t.Errorf("with its record it is refused: %v", err)
	}
	// An identity ends with its virtual cluster, remembered or not.
	delete(known, "shop")
	if _, ok, _ := request.AuthenticateRequest(withCertificate("shop", shop)); ok {
		t.Error("the identity outlived its virtual cluster")
	}
}

func TestACertificateMustNameItsUser(t *testing.T) {
	if _, ok, err := fromCertificate([]*x509.Certificate{{Subject: pkix.Name{}, URIs: []*url.URL{KubeconfigURI("shop", "u", "e")}}}); ok || err == nil {
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
