package members

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

func TestAKubeconfigThatCannotBeUsedIsRefusedForItsReason(t *testing.T) {
	a := newAPI(t)
	cert, key := certificate(t, time.Now().Add(time.Hour))
	with := func(change func(*clientcmdapi.Config)) []byte {
		return kubeconfig(a.URL, a.authority(), "secret-token", change)
	}
	for name, c := range map[string]struct {
		data         []byte
		reason, says string
	}{
		"empty":           {nil, ReasonNoKubeconfig, "is empty"},
		"text":            {[]byte("secret-token"), ReasonBadKubeconfig, "is none"},
		"another kind":    {[]byte("kind: Pod\nspec: {token: secret-token}"), ReasonBadKubeconfig, "is none"},
		"no context":      {with(func(c *clientcmdapi.Config) { c.CurrentContext = "" }), ReasonBadKubeconfig, "set current-context"},
		"unknown context": {with(func(c *clientcmdapi.Config) { c.CurrentContext = "y" }), ReasonBadKubeconfig, "no such context"},
		"unknown cluster": {with(func(c *clientcmdapi.Config) { c.Contexts["x"].Cluster = "d" }), ReasonBadKubeconfig, "no cluster d"},
		"unknown user":    {with(func(c *clientcmdapi.Config) { c.Contexts["x"].AuthInfo = "v" }), ReasonBadKubeconfig, "no user v"},
		"no server":       {with(func(c *clientcmdapi.Config) { c.Clusters["c"].Server = "" }), ReasonBadKubeconfig, "set server"},
		"http":            {with(func(c *clientcmdapi.Config) { c.Clusters["c"].Server = "http://127.0.0.1:1" }), ReasonInsecureServer, "without https"},
		"password in the address": {with(func(c *clientcmdapi.Config) { c.Clusters["c"].Server = "https://a:secret-token@127.0.0.1:1" }),
			ReasonBadKubeconfig, "more than a host"},
		"unverified": {with(func(c *clientcmdapi.Config) {
			c.Clusters["c"].InsecureSkipTLSVerify, c.Clusters["c"].CertificateAuthorityData = true, nil
		}), ReasonInsecureServer, "insecure-skip-tls-verify"},
		"authority in a file": {with(func(c *clientcmdapi.Config) { c.Clusters["c"].CertificateAuthority = "/etc/passwd" }), ReasonUnsafeKubeconfig, "in a file"},
		"bad authority":       {kubeconfig(a.URL, []byte("secret-token"), "secret-token", nil), ReasonBadKubeconfig, "cannot be read"},
		"token in a file":     {with(func(c *clientcmdapi.Config) { c.AuthInfos["u"].TokenFile = "/etc/passwd" }), ReasonUnsafeKubeconfig, "in a file"},
		"certificate in a file": {with(func(c *clientcmdapi.Config) { c.AuthInfos["u"].ClientCertificate = "/etc/passwd" }),
			ReasonUnsafeKubeconfig, "in a file"},
		"a program": {with(func(c *clientcmdapi.Config) {
			c.AuthInfos["u"].Exec = &clientcmdapi.ExecConfig{Command: "/bin/true", APIVersion: "client.authentication.k8s.io/v1"}
		}), ReasonUnsafeKubeconfig, "runs a program"},
		"a program of another user": {with(func(c *clientcmdapi.Config) {
			c.AuthInfos["v"] = &clientcmdapi.AuthInfo{Exec: &clientcmdapi.ExecConfig{Command: "/bin/true", APIVersion: "client.authentication.k8s.io/v1"}}
		}), ReasonUnsafeKubeconfig, "for user v"},
		"an auth provider": {with(func(c *clientcmdapi.Config) {
			c.AuthInfos["u"].AuthProvider = &clientcmdapi.AuthProviderConfig{Name: "oidc"}
		}), ReasonUnsafeKubeconfig, "auth provider"},
		"impersonation": {with(func(c *clientcmdapi.Config) { c.AuthInfos["u"].Impersonate = "admin" }), ReasonUnsafeKubeconfig, "impersonates"},
		"no credential": {with(func(c *clientcmdapi.Config) { c.AuthInfos["u"].Token = "" }), ReasonNoCredential, "neither a token"},
		"half a credential": {with(func(c *clientcmdapi.Config) {
			c.AuthInfos["u"].Token, c.AuthInfos["u"].ClientCertificateData = "", cert
		}),
			ReasonNoCredential, "neither a token"},
		"key of another certificate": {with(func(c *clientcmdapi.Config) {
			_, other := certificate(t, time.Now().Add(time.Hour))
			*c.AuthInfos["u"] = clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: other}
		}), ReasonBadKubeconfig, "do not belong together"},
		"no certificate": {with(func(c *clientcmdapi.Config) {
			*c.AuthInfos["u"] = clientcmdapi.AuthInfo{ClientCertificateData: []byte("secret-token"), ClientKeyData: key}
		}), ReasonBadKubeconfig, "no PEM"},
	} {
		t.Run(name, func(t *testing.T) {
			_, f := parseAccess("kubeconfig", c.data)
			if f == nil {
				t.Fatal("it is taken")
			}
			if f.Reason != c.reason || !strings.Contains(f.Message, c.says) {
				t.Errorf("%s: %s", f.Reason, f.Message)
			}
			if strings.Contains(f.Message, "secret-token") {
				t.Errorf("it quotes what is secret: %s", f.Message)
			}
			if f.Away {
				t.Error("it counts as away")
			}
		})
	}
}

func TestAnAccessSaysWhoseItIsAndUntilWhen(t *testing.T) {
	a := newAPI(t)
	issued := time.Unix(1_900_000_000, 0)
	got, f := parseAccess("kubeconfig", a.kubeconfig(jwt("system:serviceaccount:istio-system:vmesh", issued, issued.Add(2*time.Hour), "")))
	if f != nil {
		t.Fatal(f)
	}
	if got.user != "system:serviceaccount:istio-system:vmesh" || !got.expires.Equal(issued.Add(2*time.Hour)) || got.claims == nil ||
		got.claims.name != "vmesh" || got.claims.namespace != "istio-system" || got.claims.life() != 2*time.Hour || got.claims.audiences[0] != "here" {
		t.Errorf("a token is read as %+v %+v", got, got.claims)
	}
	if got.config.BearerToken != "" {
		t.Error("the config has a token that cannot be renewed")
	}
	if got, f = parseAccess("kubeconfig", a.kubeconfig("opaque")); f != nil || !got.expires.IsZero() || got.claims != nil {
		t.Errorf("a token that says nothing is read as %+v, %v", got, f)
	}
	if got, f = parseAccess("kubeconfig", a.kubeconfig(jwt("someone", issued, issued.Add(time.Hour), ""))); f != nil || got.claims != nil || got.expires.IsZero() {
		t.Errorf("a token of no service account is read as %+v, %v", got, f)
	}
	if got, f = parseAccess("kubeconfig", a.kubeconfig(jwt("system:serviceaccount:a:../b", issued, issued.Add(time.Hour), ""))); f != nil || got.claims != nil {
		t.Errorf("a token of an account with a path for a name is read as %+v, %v", got, f)
	}
	until := time.Now().Add(time.Hour).Truncate(time.Second)
	cert, key := certificate(t, until)
	got, f = parseAccess("kubeconfig", kubeconfig(a.URL, a.authority(), "", func(c *clientcmdapi.Config) {
		*c.AuthInfos["u"] = clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
	}))
	if f != nil || got.user != "someone" || !got.expires.Equal(until) || got.claims != nil {
		t.Errorf("a certificate is read as %+v, %v", got, f)
	}
}

func TestALookSaysWhyAnAPICannotBeUsed(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer closed.Close() // listens, and never answers
	other := newAPI(t)
	const account = "istio-system:vmesh"
	for name, c := range map[string]struct {
		set          func(*api)
		kubeconfig   func(*api) []byte
		timeout      time.Duration
		reason, says string
		away         bool
	}{
		"silence": {kubeconfig: func(a *api) []byte { return kubeconfig("https://"+closed.Addr().String(), a.authority(), "x", nil) },
			timeout: 200 * time.Millisecond, reason: ReasonUnreachable, says: "does not answer in time", away: true},
		"unknown name": {kubeconfig: func(a *api) []byte { return kubeconfig("https://no-such-host.invalid:6443", a.authority(), "x", nil) },
			reason: ReasonUnreachable, says: "no-such-host.invalid", away: true},
		"another authority": {kubeconfig: func(a *api) []byte {
			cert, _ := certificate(t, time.Now().Add(time.Hour))
			return kubeconfig(a.URL, cert, "x", nil)
		}, reason: ReasonCertificateUnknown, says: "certificate-authority-data"},
		"another name": {kubeconfig: func(a *api) []byte {
			return kubeconfig(a.URL, a.authority(), "x", func(c *clientcmdapi.Config) { c.Clusters["c"].TLSServerName = "elsewhere" })
		}, reason: ReasonCertificateUnknown, says: "other names"},
		"revoked":           {set: func(a *api) { a.revoked["x"] = true }, reason: ReasonUnauthorized, says: "revoked"},
		"expired":           {kubeconfig: func(a *api) []byte { return expired(a, account) }, reason: ReasonUnauthorized, says: "expired at"},
		"clocks":            {set: func(a *api) { a.clock = time.Hour; a.revoked["x"] = true }, reason: ReasonClockSkew, says: "1h0m0s apart"},
		"no right":          {set: func(a *api) { a.forbidden = "/api/v1/namespaces" }, reason: ReasonForbidden, says: "may not list namespaces"},
		"server in trouble": {set: func(a *api) { a.status = 503 }, reason: ReasonFailing, says: "503", away: true},
		"too many requests": {set: func(a *api) { a.status = 429 }, reason: ReasonFailing, says: "too many"},
		"a website":         {set: func(a *api) { a.broken = "<html>" }, reason: ReasonNotKubernetes, says: "not as the API of Kubernetes"},
		"nothing there":     {set: func(a *api) { a.status = 404 }, reason: ReasonNotKubernetes, says: "404"},
		"a redirect":        {set: func(a *api) { a.redirect = other.URL }, reason: ReasonNotKubernetes, says: "not followed"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t)
			data := a.kubeconfig("x")
			if c.kubeconfig != nil {
				data = c.kubeconfig(a)
			}
			if c.set != nil {
				a.set(c.set)
			}
			got, f := parseAccess("kubeconfig", data)
			if f != nil {
				t.Fatal(f)
			}
			defer got.client.CloseIdleConnections()
			timeout := c.timeout
			if timeout == 0 {
				timeout = time.Minute
			}
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			_, f = got.look(ctx)
			if f == nil {
				t.Fatal("nothing is found wrong")
			}
			if f.Reason != c.reason || !strings.Contains(f.Message, c.says) || f.Away != c.away {
				t.Errorf("%s, away %t: %s", f.Reason, f.Away, f.Message)
			}
		})
	}
}

func expired(a *api, account string) []byte {
	token := jwt("system:serviceaccount:"+account, time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour), "")
	a.set(func(a *api) { a.revoked[token] = true })
	return a.kubeconfig(token)
}

func TestALookShowsWhatAMemberIs(t *testing.T) {
	a := newAPI(t)
	a.set(func(a *api) { a.clock = -10 * time.Second })
	got, f := parseAccess("kubeconfig", a.kubeconfig("x"))
	if f != nil {
		t.Fatal(f)
	}
	defer got.client.CloseIdleConnections()
	s, f := got.look(t.Context())
	if f != nil {
		t.Fatal(f)
	}
	if s.version != "v1.37.2" || string(s.uid) != a.uid || s.latency <= 0 || s.skew < -12*time.Second || s.skew > -8*time.Second {
		t.Errorf("%+v", s)
	}
}

func TestOnlyABoundedPartOfAnAnswerIsRead(t *testing.T) {
	huge := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		part := make([]byte, 1<<16)
		for range 1 << 10 {
			if _, err := w.Write(part); err != nil {
				return
			}
		}
	}))
	defer huge.Close()
	got, f := parseAccess("kubeconfig", (&api{Server: huge}).kubeconfig("x"))
	if f != nil {
		t.Fatal(f)
	}
	defer got.client.CloseIdleConnections()
	_, _, body, f := got.call(t.Context(), http.MethodGet, "/", nil)
	if f != nil || len(body) != maxAnswer {
		t.Errorf("%d bytes are read: %v", len(body), f)
	}
}

func FuzzNoKubeconfigBreaksTheParser(f *testing.F) {
	f.Add([]byte("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'https://a'}}]\nusers: [{name: u, user: {token: a.e30.b}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\n"))
	f.Add([]byte(`{"kind":"Config","contexts":[{"name":"x","context":{}}],"current-context":"x"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, f := parseAccess("kubeconfig", data)
		if (a == nil) == (f == nil) {
			t.Error("neither an access nor a fault, or both")
		}
		if a != nil && a.server.Scheme != "https" {
			t.Error("an access without https")
		}
	})
}
