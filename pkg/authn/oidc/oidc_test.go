package oidc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"go.uber.org/goleak"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
	"github.com/vmesh-io/vmesh/test/leak"
)

// provider is an OpenID Connect issuer over HTTPS.
type provider struct {
	*httptest.Server
	mu   sync.Mutex
	keys []jose.JSONWebKey
	down bool
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	p := &provider{}
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		var answer any
		switch {
		case p.down:
			panic(http.ErrAbortHandler)
		case req.URL.Path == "/.well-known/openid-configuration":
			answer = map[string]any{
				"issuer": p.URL, "jwks_uri": p.URL + "/keys", "response_types_supported": []string{"id_token"},
				"subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"ES256"},
			}
		case req.URL.Path == "/keys":
			set := jose.JSONWebKeySet{}
			for _, k := range p.keys {
				set.Keys = append(set.Keys, k.Public())
			}
			answer = set
		default:
			http.NotFound(w, req)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer)
	}))
	p.Config.ErrorLog = nil
	p.StartTLS()
	t.Cleanup(p.Server.Close)
	p.rotate(t)
	return p
}

// rotate makes a new key, the only one.
func (p *provider) rotate(t *testing.T) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = []jose.JSONWebKey{{Key: k, KeyID: fmt.Sprintf("key-%d", time.Now().UnixNano()), Algorithm: "ES256", Use: "sig"}}
}

func (p *provider) setDown(down bool) {
	p.mu.Lock()
	p.down = down
	p.mu.Unlock()
	p.CloseClientConnections()
}

// token is one of alice's, with claims besides or in place of hers.
func (p *provider) token(t *testing.T, claims map[string]any) string {
	t.Helper()
	p.mu.Lock()
	k := p.keys[0]
	p.mu.Unlock()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: k}, nil)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]any{
		"iss": p.URL, "aud": "vmesh", "sub": "alice", "groups": []string{"dev"}, "department": "payments", "unit": p.URL,
		"iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
	}
	maps.Copy(all, claims)
	token, err := jwt.Signed(signer).Claims(all).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// entry is an issuer in a configuration, with its mappings and whatever else, as JSON.
func (p *provider) entry(rest string) string {
	authority, _ := json.Marshal(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw})))
	return fmt.Sprintf(`{"issuer": {"url": %q, "audiences": ["vmesh"], "certificateAuthority": %s}, %s}`, p.URL, authority, rest)
}

const (
	byClaim = `"claimMappings": {"username": {"claim": "sub", "prefix": "corp:"}, "groups": {"claim": "groups", "prefix": "corp:"}}`
	// Names as they are, for tokens that want to be more than they should.
	plain = `"claimMappings": {"username": {"claim": "sub", "prefix": ""}, "groups": {"claim": "groups", "prefix": ""}}`
	byCEL = `"claimValidationRules": [{"expression": "claims.department in ['payments', 'shop']", "message": "department is not served"}],
		"claimMappings": {
			"username": {"expression": "claims.sub + '@' + claims.department"},
			"groups": {"expression": "dyn(claims.groups).map(g, claims.department + ':' + g)"},
			"uid": {"expression": "'u-' + claims.sub"},
			"extra": [{"key": "example.com/department", "valueExpression": "claims.department"}]},
		"userValidationRules": [{"expression": "!user.username.startsWith('root')", "message": "root is nobody"}]`
)

func configuration(anonymous string, entries ...string) string {
	text := `{"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": [` + strings.Join(entries, ",\n") + `]`
	if anonymous != "" {
		text += `, "anonymous": ` + anonymous
	}
	return text + "}"
}

// write replaces a file at once, as configuration management does.
func write(t *testing.T, file, text string) {
	t.Helper()
	next := file + ".next"
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, file); err != nil {
		t.Fatal(err)
	}
}

func urlOf(cluster string) string {
	if cluster == logical.Root {
		return "https://vmesh"
	}
	return "https://vmesh/clusters/" + cluster
}

// start makes an authenticator that watches its file until the test ends.
func start(t *testing.T, text string) (*Authenticator, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "authentication.yaml")
	write(t, file, text)
	a, err := New(file, urlOf)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		a.Close()
	})
	return a, file
}

func TestMain(m *testing.M) {
	leak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

func in(cluster string) context.Context { return logical.WithCluster(context.Background(), cluster) }

func who(a *Authenticator, token string) (user.Info, error) {
	resp, ok, err := a.AuthenticateToken(in("shop"), token)
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, fmt.Errorf("the token is nobody's")
	}
	return resp.User, nil
}

// eventually waits for longer than the file is left unread in the worst case.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(pollInterval + 30*time.Second); ; <-poll.C {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// becomes waits until a token is of a user.
func becomes(t *testing.T, a *Authenticator, token, name string) {
	t.Helper()
	eventually(t, func() error {
		u, err := who(a, token)
		if err == nil && u.GetName() != name {
			err = fmt.Errorf("the token is %q's, want %q", u.GetName(), name)
		}
		return err
	})
}

func TestUsersOfSeveralIssuersAreIdentitiesOfTheRoot(t *testing.T) {
	one, two := newProvider(t), newProvider(t)
	a, _ := start(t, configuration("", one.entry(byClaim), two.entry(byCEL)))
	for _, c := range []struct {
		token, name, uid string
		groups           []string
		extra            map[string]string
	}{
		{one.token(t, nil), "corp:alice", "", []string{"corp:dev", user.AllAuthenticated}, nil},
		{two.token(t, map[string]any{"jti": "7"}), "alice@payments", "u-alice", []string{"payments:dev", user.AllAuthenticated},
			map[string]string{"example.com/department": "payments", user.CredentialIDKey: "JTI=7"}},
	} {
		becomes(t, a, c.token, c.name)
		for _, cluster := range []string{"shop", logical.Root} {
			resp, ok, err := a.AuthenticateToken(in(cluster), c.token)
			if !ok || err != nil {
				t.Fatal(err)
			}
			u := resp.User
			if u.GetUID() != c.uid || !slices.Equal(u.GetGroups(), c.groups) {
				t.Errorf("%s is %+v", c.name, u)
			}
			want := map[string]string{authn.ExtraCluster: logical.Root, authn.ExtraClusterUID: ""}
			maps.Copy(want, c.extra)
			for key, value := range want {
				if got := u.GetExtra()[key]; len(got) != 1 || got[0] != value {
					t.Errorf("%s: extra %s is %q, want %q", c.name, key, got, value)
				}
			}
		}
	}
}

func TestTokensOfIssuersAreRefused(t *testing.T) {
	one, two, stranger := newProvider(t), newProvider(t), newProvider(t)
	a, _ := start(t, configuration("", one.entry(plain), two.entry(byCEL)))
	becomes(t, a, one.token(t, nil), "alice")
	becomes(t, a, two.token(t, nil), "alice@payments")
	for _, c := range []struct{ name, token, want string }{
		{"of an issuer that is not listed", stranger.token(t, nil), "nobody's"},
		{"of one issuer, signed by another", one.token(t, map[string]any{"iss": two.URL}), "verify token"},
		{"of a strange key", stranger.token(t, map[string]any{"iss": one.URL}), "verify token"},
		{"for another audience", one.token(t, map[string]any{"aud": "other"}), "audience"},
		{"that has ended", one.token(t, map[string]any{"exp": time.Now().Add(-time.Minute).Unix()}), "expired"},
		{"of a member of system:masters", one.token(t, map[string]any{"groups": []string{"dev", "system:masters"}}), `member of "system:masters"`},
		{"of a member of a service account's group", one.token(t, map[string]any{"groups": []string{"system:serviceaccounts:kube-system"}}), "groups that begin with"},
		{"named like a service account", one.token(t, map[string]any{"sub": "system:serviceaccount:apps:ci"}), "names that begin with"},
		{"named like the administrator of nodes", one.token(t, map[string]any{"sub": "system:kube-scheduler"}), "names that begin with"},
		{"without a name", one.token(t, map[string]any{"sub": ""}), "no user name"},
		{"of a department that is not served", two.token(t, map[string]any{"department": "x"}), "department is not served"},
		{"of a user that is not let in", two.token(t, map[string]any{"sub": "root"}), "root is nobody"},
		{"without a claim that is needed", two.token(t, map[string]any{"groups": nil}), "group"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if u, err := who(a, c.token); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("taken for %v, refused with %v, want %q", u, err, c.want)
			}
		})
	}
}

func TestAnOutageOfAnIssuerLeavesWhatIsKnown(t *testing.T) {
	t.Parallel()
	known, late := newProvider(t), newProvider(t)
	late.setDown(true)
	a, _ := start(t, configuration("", known.entry(byClaim), late.entry(plain)))
	becomes(t, a, known.token(t, nil), "corp:alice")
	known.setDown(true)
	// Tokens that were not seen before, of keys that were.
	if _, err := who(a, known.token(t, map[string]any{"sub": "bob"})); err != nil {
		t.Errorf("a token of a known key: %v", err)
	}
	before := known.token(t, map[string]any{"sub": "carol"})
	known.rotate(t)
	// Not at the first try, as in TestAnIssuersNewKeyIsFetched.
	eventually(t, func() error {
		u, err := who(a, known.token(t, nil))
		if err == nil {
			t.Fatalf("a token of a new key is %v's", u)
		}
		if !strings.Contains(err.Error(), "fetching keys") {
			return fmt.Errorf("a token of a new key: %w", err)
		}
		return nil
	})
	if _, err := who(a, before); err != nil {
		t.Errorf("a token of the known key, after that: %v", err)
	}
	if _, err := who(a, late.token(t, nil)); err == nil || !strings.Contains(err.Error(), "not initialized") {
		t.Errorf("a token of an issuer that never answered: %v", err)
	}
	known.setDown(false)
	late.setDown(false)
	becomes(t, a, known.token(t, nil), "corp:alice")
	becomes(t, a, late.token(t, nil), "alice")
}

func TestAnIssuersNewKeyIsFetched(t *testing.T) {
	p := newProvider(t)
	a, _ := start(t, configuration("", p.entry(byClaim)))
	becomes(t, a, p.token(t, nil), "corp:alice")
	p.rotate(t)
	// Not at the first try: go-oidc lets a verification share a fetch that has ended already, for the moment until its keys are stored.
	becomes(t, a, p.token(t, nil), "corp:alice")
}

func TestTheFileIsReadAgain(t *testing.T) {
	one, two := newProvider(t), newProvider(t)
	a, file := start(t, configuration("", one.entry(byClaim)))
	ofOne, ofTwo := one.token(t, nil), two.token(t, nil)
	becomes(t, a, ofOne, "corp:alice")
	if _, err := who(a, ofTwo); err == nil {
		t.Fatal("an issuer that is not listed is known")
	}

	// One is away: what is known of it stays, since nothing has changed for it.
	one.setDown(true)
	write(t, file, configuration("", one.entry(byClaim), two.entry(plain)))
	becomes(t, a, ofTwo, "alice")
	if _, err := who(a, one.token(t, map[string]any{"sub": "bob"})); err != nil {
		t.Errorf("the issuer that stayed: %v", err)
	}

	// Other mappings for an issuer: its tokens are good all the while.
	write(t, file, configuration("", one.entry(byClaim), two.entry(byClaim)))
	eventually(t, func() error {
		u, err := who(a, ofTwo)
		if err != nil {
			t.Fatalf("a token is refused while its issuer's mappings change: %v", err)
		}
		if u.GetName() != "corp:alice" {
			return fmt.Errorf("the token is %q's", u.GetName())
		}
		return nil
	})

	failures := reloads(t, "failure")
	write(t, file, configuration("", two.entry(`"claimMappings": {"username": {"expression": "claims."}}`)))
	eventually(t, func() error {
		if now := reloads(t, "failure"); now <= failures {
			return fmt.Errorf("%v failures are counted, before %v", now, failures)
		}
		return nil
	})
	if _, err := who(a, ofTwo); err != nil {
		t.Errorf("a file that cannot be used took what was in effect: %v", err)
	}

	write(t, file, configuration(""))
	eventually(t, func() error {
		if _, err := who(a, ofTwo); err == nil {
			return fmt.Errorf("an issuer that was taken away is known")
		}
		return nil
	})
}

func TestAFileThatIsEmptyWhileItIsWrittenIsNotJudged(t *testing.T) {
	one, two := newProvider(t), newProvider(t)
	a, file := start(t, configuration("", one.entry(byClaim)))
	becomes(t, a, one.token(t, nil), "corp:alice")
	failures := reloads(t, "failure")
	emptied := time.Now()
	write(t, file, "")
	filled := make(chan time.Duration, 1)
	time.AfterFunc(50*time.Millisecond, func() {
		write(t, file, configuration("", two.entry(plain)))
		filled <- time.Since(emptied)
	})
	becomes(t, a, two.token(t, nil), "alice")
	took := <-filled
	if now := reloads(t, "failure"); now != failures && took < fillTime {
		t.Errorf("%v failures are counted, before %v", now, failures)
	}
}

// reloads counts those with a result.
func reloads(t *testing.T, result string) float64 {
	t.Helper()
	families, err := legacyregistry.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "apiserver_authentication_config_controller_automatic_reloads_total" {
			continue
		}
		for _, m := range f.Metric {
			for _, l := range m.Label {
				if l.GetName() == "status" && l.GetValue() == result {
					return m.Counter.GetValue()
				}
			}
		}
	}
	return 0
}

func TestWhoMayBeAnonymous(t *testing.T) {
	for _, c := range []struct {
		name, anonymous string
		open, closed    []string
	}{
		{"nothing said: everywhere", "", []string{"/livez", "/api"}, nil},
		{"enabled", `{"enabled": true}`, []string{"/livez", "/api"}, nil},
		{"on some paths", `{"enabled": true, "conditions": [{"path": "/livez"}]}`, []string{"/livez"}, []string{"/api", "/livez/etcd"}},
		{"not at all", `{"enabled": false}`, nil, []string{"/livez", "/api"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, _ := start(t, configuration(c.anonymous))
			for path, want := range paths(c.open, c.closed) {
				resp, ok, err := a.AuthenticateRequest(httptest.NewRequest(http.MethodGet, path, nil))
				if err != nil || ok != want || ok && resp.User.GetName() != user.Anonymous {
					t.Errorf("%s: got %v, %t, %v", path, resp, ok, err)
				}
			}
		})
	}
}

func paths(open, closed []string) map[string]bool {
	all := map[string]bool{}
	for _, p := range open {
		all[p] = true
	}
	for _, p := range closed {
		all[p] = false
	}
	return all
}

func TestAudiencesOfOtherIssuersTokensAreTheAPIs(t *testing.T) {
	p := newProvider(t)
	a, _ := start(t, configuration("", p.entry(byClaim)))
	token := p.token(t, nil)
	becomes(t, a, token, "corp:alice")
	for _, c := range []struct{ asked, want authenticator.Audiences }{
		{authenticator.Audiences{"https://vmesh/clusters/shop", "x"}, authenticator.Audiences{"https://vmesh/clusters/shop"}},
		{authenticator.Audiences{"https://vmesh/clusters/other"}, nil},
		{authenticator.Audiences{"vmesh"}, nil},
	} {
		resp, ok, err := a.AuthenticateToken(authenticator.WithAudiences(in("shop"), c.asked), token)
		if err != nil || ok != (c.want != nil) || ok && !slices.Equal(resp.Audiences, c.want) {
			t.Errorf("asked for %q: got %+v, %t, %v", c.asked, resp, ok, err)
		}
	}
}

func TestAWrongConfigurationIsRefusedWithItsField(t *testing.T) {
	const issuer = `"issuer": {"url": "https://idp.example.com", "audiences": ["vmesh"]}`
	for _, c := range []struct{ name, text, want string }{
		{"no YAML", "{", "AuthenticationConfiguration"},
		{"another kind", `{"apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration", "resources": []}`, "EncryptionConfiguration"},
		{"an unknown field", `{"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwts": []}`, `unknown field "jwts"`},
		{"no audience", configuration("", `{"issuer": {"url": "https://idp.example.com"}, `+byClaim+`}`), "jwt[0].issuer.audiences"},
		{"plain HTTP", configuration("", `{"issuer": {"url": "http://idp.example.com", "audiences": ["vmesh"]}, `+byClaim+`}`), "jwt[0].issuer.url"},
		{"an issuer twice", configuration("", `{`+issuer+`, `+byClaim+`}`, `{`+issuer+`, `+byClaim+`}`), "jwt[1].issuer.url"},
		{"vmesh itself", configuration("", `{"issuer": {"url": "https://vmesh", "audiences": ["vmesh"]}, `+byClaim+`}`), "jwt[0].issuer.url"},
		{"a virtual cluster", configuration("", `{"issuer": {"url": "https://vmesh/clusters/shop", "audiences": ["vmesh"]}, `+byClaim+`}`), "jwt[0].issuer.url"},
		{"an egress selector", configuration("", `{"issuer": {"url": "https://idp.example.com", "audiences": ["vmesh"], "egressSelectorType": "cluster"}, `+byClaim+`}`), "jwt[0].issuer.egressSelectorType"},
		{"an expression that is none", configuration("", `{`+issuer+`, "claimMappings": {"username": {"expression": "claims."}}}`), "jwt[0].claimMappings.username.expression"},
		{"a value of vmesh's own", configuration("", `{`+issuer+`, "claimMappings": {"username": {"claim": "sub", "prefix": ""},
			"extra": [{"key": "vmesh.io/virtual-cluster", "valueExpression": "'shop'"}]}}`), "jwt[0].claimMappings.extra[0].key"},
		{"paths for nobody", configuration(`{"enabled": false, "conditions": [{"path": "/livez"}]}`), "anonymous.conditions"},
		{"an authority that is none", configuration("", `{"issuer": {"url": "https://idp.example.com", "audiences": ["vmesh"], "certificateAuthority": "x"}, `+byClaim+`}`), "jwt[0].issuer.certificateAuthority"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "authentication.yaml")
			write(t, file, c.text)
			a, err := New(file, urlOf)
			if err == nil {
				a.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), file) {
				t.Errorf("got %v, want %s and the file in it", err, c.want)
			}
		})
	}
	if _, err := New(filepath.Join(t.TempDir(), "none"), urlOf); err == nil {
		t.Error("a file that is not there is no error")
	}
}
