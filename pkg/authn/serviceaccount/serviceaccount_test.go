package serviceaccount

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

const ciName = "system:serviceaccount:apps:ci"

func TestATokenIsItsServiceAccountAtHome(t *testing.T) {
	w := newWorld(t)
	for cluster, uid := range map[string]string{"shop": "uid-shop", "other": "uid-other", logical.Root: ""} {
		token := w.issue(t, cluster, func(b *Bound) { b.Pod, b.Node = &Ref{"web", "uid-web"}, &Ref{"n9", ""} })
		for range 2 { // verified, then remembered
			resp, ok, err := w.AuthenticateToken(in(cluster), token)
			if err != nil || !ok {
				t.Fatalf("%s: refused: %v", cluster, err)
			}
			u := resp.User
			want := []string{"system:serviceaccounts", "system:serviceaccounts:apps", user.AllAuthenticated}
			if u.GetName() != ciName || u.GetUID() != "uid-ci-"+cluster || !slices.Equal(u.GetGroups(), want) {
				t.Errorf("%s: taken for %+v", cluster, u)
			}
			for key, value := range map[string]string{
				authn.ExtraCluster: cluster, authn.ExtraClusterUID: uid, "authentication.kubernetes.io/pod-name": "web", "authentication.kubernetes.io/node-name": "n9",
			} {
				if got := u.GetExtra()[key]; len(got) != 1 || got[0] != value {
					t.Errorf("%s: extra %s is %q, want %q", cluster, key, got, value)
				}
			}
			if got := u.GetExtra()[user.CredentialIDKey]; len(got) != 1 || !strings.HasPrefix(got[0], "JTI=") {
				t.Errorf("%s: the credential is %q", cluster, got)
			}
		}
	}
}

// forge makes a token that says what change makes of a good one's claims, signed anew.
func (w *world) forge(t *testing.T, sign jose.SigningKey, change func(*claims), header ...func(*jose.SignerOptions)) string {
	t.Helper()
	u, err := parse(w.issue(t, "shop"))
	if err != nil {
		t.Fatal(err)
	}
	c := u.claims
	if change != nil {
		change(&c)
	}
	options := &jose.SignerOptions{}
	for _, h := range header {
		h(options)
	}
	signer, err := jose.NewSigner(sign, options)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(c).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func (w *world) signingKey(t *testing.T, cluster string) jose.SigningKey {
	t.Helper()
	uid, err := w.uid(in(cluster), cluster)
	if err != nil {
		t.Fatal(err)
	}
	k, err := w.keys.signing(in(cluster), cluster, uid)
	if err != nil {
		t.Fatal(err)
	}
	return jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: k.private, KeyID: k.id}}
}

func TestTokensAreRefused(t *testing.T) {
	w := newWorld(t)
	good := w.issue(t, "shop")
	parts := strings.Split(good, ".")
	own := w.signingKey(t, "shop")
	ownKey := own.Key.(jose.JSONWebKey)
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	publicDER, err := x509.MarshalPKIXPublicKey(ownKey.Key.(*ecdsa.PrivateKey).Public())
	if err != nil {
		t.Fatal(err)
	}
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER})
	raw := func(v any) string {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(data)
	}
	payload := func(change func(m map[string]any)) string {
		data, err := base64.RawURLEncoding.DecodeString(parts[1])
		if err != nil {
			t.Fatal(err)
		}
		m := map[string]any{}
		if err := json.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		return raw(m)
	}
	for _, c := range []struct {
		name, cluster, token, want string
	}{
		{"in another virtual cluster", "other", good, "belongs to https://vmesh/clusters/shop"},
		{"in the root", logical.Root, good, "belongs to https://vmesh/clusters/shop"},
		{"of another virtual cluster that claims to be of this one", "shop",
			w.forge(t, w.signingKey(t, "other"), nil), "none of the keys"},
		{"with the key of this one and the UID of another", "shop",
			w.forge(t, own, func(c *claims) { c.Origin.ClusterUID = "uid-other" }), "earlier virtual cluster"},
		{"without the UID", "shop", w.forge(t, own, func(c *claims) { c.Origin.ClusterUID = "" }), "earlier virtual cluster"},
		{"that claims to be the root's", "shop", w.forge(t, own, func(c *claims) { c.Issuer = "https://vmesh" }), "none of the keys"},
		{"of an issuer that is a prefix", "shop", w.forge(t, own, func(c *claims) { c.Issuer = "https://vmesh/clusters/sho" }), "belongs to"},
		{"of a strange issuer", "shop", w.forge(t, own, func(c *claims) { c.Issuer = "https://elsewhere" }), errNobody.Error()},
		{"that has ended", "shop", w.forge(t, own, func(c *claims) { c.Expiry = jwt.NewNumericDate(w.clock.Now()) }), "expired"},
		{"that never ends", "shop", w.forge(t, own, func(c *claims) { c.Expiry = nil }), "lacks"},
		{"that has not begun", "shop", w.forge(t, own, func(c *claims) { c.NotBefore = jwt.NewNumericDate(w.clock.Now().Add(time.Minute)) }), "not valid yet"},
		{"for another audience", "shop", w.forge(t, own, func(c *claims) { c.Audience = []string{"vault"} }), "audiences"},
		{"for the root's audience", "shop", w.forge(t, own, func(c *claims) { c.Audience = []string{"https://vmesh"} }), "audiences"},
		{"for no audience", "shop", w.forge(t, own, func(c *claims) { c.Audience = nil }), "audiences"},
		{"whose subject is another", "shop", w.forge(t, own, func(c *claims) { c.Subject = "system:serviceaccount:apps:admin" }), "lacks"},
		{"whose subject is no service account", "shop", w.forge(t, own, func(c *claims) { c.Subject = "admin" }), "lacks"},
		{"of a service account without a UID", "shop", w.forge(t, own, func(c *claims) { c.Bound.ServiceAccount.UID = "" }), "lacks"},
		{"of a service account that is not there", "shop", w.forge(t, own, func(c *claims) {
			c.Subject, c.Bound.ServiceAccount.Name = "system:serviceaccount:apps:x", "x"
		}), "gone"},
		{"of another virtual cluster's service account", "shop", w.forge(t, own, func(c *claims) { c.Bound.ServiceAccount.UID = "uid-ci-other" }), "earlier service account"},
		{"signed by a stranger under the key's name", "shop",
			w.forge(t, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: stranger, KeyID: ownKey.KeyID}}, nil), "signature"},
		{"signed by a stranger who brings the key", "shop",
			w.forge(t, jose.SigningKey{Algorithm: jose.ES256, Key: stranger}, nil, func(o *jose.SignerOptions) { o.EmbedJWK = true }), errNobody.Error()},
		{"signed by a stranger's RSA key", "shop",
			w.forge(t, jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: rsaKey, KeyID: ownKey.KeyID}}, nil), errNobody.Error()},
		{"with the public key as a shared secret", "shop",
			w.forge(t, jose.SigningKey{Algorithm: jose.HS256, Key: jose.JSONWebKey{Key: publicPEM, KeyID: ownKey.KeyID}}, nil), errNobody.Error()},
		{"with the public key's DER as a shared secret", "shop",
			w.forge(t, jose.SigningKey{Algorithm: jose.HS256, Key: jose.JSONWebKey{Key: publicDER, KeyID: ownKey.KeyID}}, nil), errNobody.Error()},
		{"without the name of a key", "shop", w.forge(t, jose.SigningKey{Algorithm: jose.ES256, Key: ownKey.Key}, nil), errNobody.Error()},
		{"of algorithm none", "shop", raw(map[string]string{"alg": "none", "kid": ownKey.KeyID}) + "." + parts[1] + ".", errNobody.Error()},
		{"of algorithm none, with a signature", "shop", raw(map[string]string{"alg": "none", "kid": ownKey.KeyID}) + "." + parts[1] + "." + parts[2], errNobody.Error()},
		{"of algorithm NoNe", "shop", raw(map[string]string{"alg": "NoNe", "kid": ownKey.KeyID}) + "." + parts[1] + ".", errNobody.Error()},
		{"without its signature", "shop", parts[0] + "." + parts[1] + ".", "signature"},
		{"with another payload", "shop", parts[0] + "." + payload(func(m map[string]any) { m["exp"] = 1 << 40 }) + "." + parts[2], "signature"},
		{"with another header", "shop", raw(map[string]string{"alg": "ES256", "kid": ownKey.KeyID, "typ": "JWT"}) + "." + parts[1] + "." + parts[2], "signature"},
		{"with a critical header that nobody knows", "shop",
			raw(map[string]any{"alg": "ES256", "kid": ownKey.KeyID, "crit": []string{"x"}, "x": 1}) + "." + parts[1] + "." + parts[2], "signature"},
		{"in JSON form", "shop", `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`, errNobody.Error()},
		{"with spaces", "shop", parts[0] + ". " + parts[1] + "." + parts[2], errNobody.Error()},
		{"of two parts", "shop", parts[0] + "." + parts[1], errNobody.Error()},
		{"of four parts", "shop", good + "." + parts[2], errNobody.Error()},
		{"that is empty", "shop", "", errNobody.Error()},
		{"that is very long", "shop", strings.Repeat("a", maxLength) + "." + parts[1] + "." + parts[2], errNobody.Error()},
		{"in a virtual cluster that is not there", "gone", w.forge(t, own, func(c *claims) { c.Issuer = "https://vmesh/clusters/gone" }), "no virtual cluster"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if name, err := who(w.Tokens, in(c.cluster), c.token); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("taken for %q, refused with %v, want %q", name, err, c.want)
			}
		})
	}
	if name, err := who(w.Tokens, in("shop"), good); err != nil || name != ciName {
		t.Errorf("the good one: %q, %v", name, err)
	}
}

// Each case takes away what a token rests on, when the token has been verified already and
// is remembered, and before it has been.
func TestATokenEndsWithWhatItIsBoundTo(t *testing.T) {
	deleting := func(o string, uid string, at time.Time) func(s *store) {
		return func(s *store) {
			dying := named(o[strings.LastIndex(o, "/")+1:], uid)
			dying.DeletionTimestamp = &metav1.Time{Time: at}
			s.put(o, dying)
		}
	}
	for _, c := range []struct {
		name  string
		bind  func(*Bound)
		then  func(w *world)
		want  string // why it is refused; empty when it goes on
		check func(error) bool
	}{
		{name: "nothing happens", bind: func(*Bound) {}, then: func(*world) {}},
		{name: "the service account is deleted", bind: func(*Bound) {}, then: func(w *world) { w.accounts.remove("shop/apps/ci") }, want: "gone"},
		{name: "the service account is made anew", bind: func(*Bound) {}, then: func(w *world) { w.accounts.put("shop/apps/ci", named("ci", "uid-2")) }, want: "earlier service account"},
		{name: "the service account is being deleted", bind: func(*Bound) {}, then: func(w *world) { deleting("shop/apps/ci", "uid-ci-shop", w.clock.Now())(w.accounts) }, want: "being deleted"},
		{name: "its namesake elsewhere is deleted", bind: func(*Bound) {}, then: func(w *world) { w.accounts.remove("other/apps/ci") }},
		{name: "the secret is deleted", bind: func(b *Bound) { b.Secret = &Ref{"lease", "uid-lease"} }, then: func(w *world) { w.secrets.remove("shop/apps/lease") }, want: "gone"},
		{name: "the secret is made anew", bind: func(b *Bound) { b.Secret = &Ref{"lease", "uid-lease"} }, then: func(w *world) { w.secrets.put("shop/apps/lease", named("lease", "uid-2")) }, want: "earlier secret"},
		{name: "a secret that it is not bound to is deleted", bind: func(*Bound) {}, then: func(w *world) { w.secrets.remove("shop/apps/lease") }},
		{name: "the pod is deleted", bind: func(b *Bound) { b.Pod = &Ref{"web", "uid-web"} }, then: func(w *world) { w.pods.remove("shop/apps/web") }, want: "gone"},
		{name: "the pod has a while to end", bind: func(b *Bound) { b.Pod = &Ref{"web", "uid-web"} }, then: func(w *world) { deleting("shop/apps/web", "uid-web", w.clock.Now().Add(time.Minute))(w.pods) }},
		{name: "the pod should have ended", bind: func(b *Bound) { b.Pod = &Ref{"web", "uid-web"} }, then: func(w *world) { deleting("shop/apps/web", "uid-web", w.clock.Now())(w.pods) }, want: "being deleted"},
		{name: "the pod's node is deleted", bind: func(b *Bound) { b.Pod, b.Node = &Ref{"web", "uid-web"}, &Ref{"n1", "uid-n1"} }, then: func(w *world) { w.nodes.remove("shop//n1") }},
		{name: "the node is deleted", bind: func(b *Bound) { b.Node = &Ref{"n1", "uid-n1"} }, then: func(w *world) { w.nodes.remove("shop//n1") }, want: "gone"},
		{name: "the virtual cluster is deleted", bind: func(*Bound) {}, then: func(w *world) { delete(w.clusters, "shop") }, want: "no virtual cluster"},
		{name: "the virtual cluster is made anew", bind: func(*Bound) {}, then: func(w *world) { w.clusters["shop"] = "uid-2" }, check: func(err error) bool {
			return strings.Contains(err.Error(), "earlier virtual cluster") || strings.Contains(err.Error(), "none of the keys")
		}},
		{name: "an hour passes", bind: func(*Bound) {}, then: func(w *world) { w.clock.SetTime(w.clock.Now().Add(time.Hour)) }, want: "expired"},
	} {
		for _, known := range []bool{true, false} {
			name := c.name
			if known {
				name += ", the token being remembered"
			}
			t.Run(name, func(t *testing.T) {
				w := newWorld(t)
				token := w.issue(t, "shop", c.bind)
				if known {
					if _, err := who(w.Tokens, in("shop"), token); err != nil {
						t.Fatal(err)
					}
				}
				c.then(w)
				_, err := who(w.Tokens, in("shop"), token)
				switch {
				case c.check != nil:
					if err == nil || !c.check(err) {
						t.Errorf("got %v", err)
					}
				case c.want == "" && err != nil, c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
					t.Errorf("got %v, want %q", err, c.want)
				}
			})
		}
	}
}

func TestATokenIsGoodFromTheMomentItIsMade(t *testing.T) {
	w := newWorld(t)
	w.accounts.lagging, w.secrets.lagging, w.spaces.lagging = true, true, true
	w.accounts.put("shop/apps/ci", named("ci", "uid-new"))
	token := w.issue(t, "shop", func(b *Bound) { b.ServiceAccount.UID = "uid-new" })
	if _, err := who(w.Tokens, in("shop"), token); err != nil {
		t.Errorf("here: %v", err)
	}
	if _, err := who(w.replica(), in("shop"), token); err != nil {
		t.Errorf("at another replica: %v", err)
	}
}

func TestAudiencesAreThoseThatAreAskedFor(t *testing.T) {
	w := newWorld(t)
	both, _, err := w.Issue(in("shop"), account("shop"), []string{"vault", w.Issuer("shop")}, w.clock.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	root := w.issue(t, logical.Root)
	for _, c := range []struct {
		name, cluster, token string
		asked, want          authenticator.Audiences
	}{
		{"none: the API's own", "shop", both, nil, authenticator.Audiences{"https://vmesh/clusters/shop"}},
		{"one of the token's", "shop", both, authenticator.Audiences{"vault", "x"}, authenticator.Audiences{"vault"}},
		{"none of the token's", "shop", both, authenticator.Audiences{"x"}, nil},
		{"the root's, of a token of the root in a virtual cluster", "shop", root, authenticator.Audiences{"https://vmesh"}, nil},
		{"none, of a token of the root in a virtual cluster", "shop", root, nil, authenticator.Audiences{"https://vmesh"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := in(c.cluster)
			if c.asked != nil {
				ctx = authenticator.WithAudiences(ctx, c.asked)
			}
			for range 2 {
				resp, ok, err := w.AuthenticateToken(ctx, c.token)
				if (ok && err == nil) != (c.want != nil) || ok && !slices.Equal(resp.Audiences, c.want) {
					t.Errorf("got %+v, %t, %v, want %q", resp, ok, err, c.want)
				}
			}
		})
	}
}

func encodeKey(t *testing.T, k crypto.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func TestKeysRotateWithAnOverlap(t *testing.T) {
	w := newWorld(t)
	before := w.issue(t, "shop")
	old := w.keysSecret(t, "uid-shop").Data[KeysEntry]
	next, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(next)
	if err != nil {
		t.Fatal(err)
	}
	// As openssl ecparam writes it.
	fresh := append(pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 8}}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})...)
	w.writeKeys(t, "uid-shop", slices.Concat(fresh, old))
	after := w.issue(t, "shop")
	if headerOf(t, before).KeyID == headerOf(t, after).KeyID {
		t.Error("the new key does not sign")
	}
	for name, token := range map[string]string{"before": before, "after": after} {
		if _, err := who(w.Tokens, in("shop"), token); err != nil {
			t.Errorf("the token from %s: %v", name, err)
		}
	}
	if got := published(t, w.Tokens, "shop"); len(got) != 2 {
		t.Errorf("%d keys are published", len(got))
	}
	// The old key is taken away; what was verified is remembered for a moment.
	w.writeKeys(t, "uid-shop", fresh)
	w.clock.SetTime(w.clock.Now().Add(verifiedFor + time.Second))
	if _, err := who(w.Tokens, in("shop"), before); err == nil {
		t.Error("the old key is good still")
	}
	if _, err := who(w.Tokens, in("shop"), after); err != nil {
		t.Errorf("the new key: %v", err)
	}
	// All keys are taken away: the next token has one of its own.
	w.secrets.remove(at(inKeys(in("shop")), SecretName("uid-shop")))
	w.clock.SetTime(w.clock.Now().Add(verifiedFor + time.Second))
	anew := w.issue(t, "shop")
	if _, err := who(w.Tokens, in("shop"), after); err == nil {
		t.Error("a key is good still that is not there")
	}
	if _, err := who(w.Tokens, in("shop"), anew); err != nil {
		t.Errorf("the key made anew: %v", err)
	}
}

func headerOf(t *testing.T, token string) jose.Header {
	t.Helper()
	u, err := parse(token)
	if err != nil {
		t.Fatal(err)
	}
	return u.signed.Headers[0]
}

func TestWhatIsNoKeyIsNamed(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	publicDER, err := x509.MarshalPKIXPublicKey(p256.Public())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, want string
		pem        []byte
	}{
		{"nothing", "no key in PEM", nil},
		{"text", "no key in PEM", []byte("secret")},
		{"a key of another curve", "key 1 is none of the curve P-256", encodeKey(t, p384)},
		{"a broken key", "key 2:", append(encodeKey(t, p256), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})...)},
		{"a public key alone", "holds no private key", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER})},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.writeKeys(t, "uid-shop", c.pem)
			_, _, err := w.Issue(in("shop"), account("shop"), []string{"x"}, w.clock.Now(), time.Hour)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "vmesh-system/token-keys-uid-shop") {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestReplicasThatMakeAKeyAtOnceUseTheSame(t *testing.T) {
	w := newWorld(t)
	w.secrets.lagging = true
	var wg sync.WaitGroup
	tokens := make([]string, 8)
	for i := range tokens {
		replica := w.replica()
		wg.Go(func() {
			token, _, err := replica.Issue(in("shop"), account("shop"), []string{w.Issuer("shop")}, w.clock.Now(), time.Hour)
			if err != nil {
				t.Error(err)
			}
			tokens[i] = token
		})
	}
	wg.Wait()
	for _, token := range tokens {
		if a, b := headerOf(t, token).KeyID, headerOf(t, tokens[0]).KeyID; a != b {
			t.Errorf("signed by %s and by %s", a, b)
		}
	}
}

func TestKeysGoWithTheirVirtualCluster(t *testing.T) {
	w := newWorld(t)
	w.issue(t, "shop")
	w.issue(t, logical.Root)
	secret := w.keysSecret(t, "uid-shop")
	if owners := secret.OwnerReferences; len(owners) != 1 || owners[0].Kind != "VirtualCluster" || owners[0].Name != "shop" || owners[0].UID != "uid-shop" {
		t.Errorf("the owners are %+v", owners)
	}
	if secret.Namespace != KeysNamespace || secret.Type != KeysType || secret.Labels[LabelCluster] != "shop" {
		t.Errorf("the secret is %+v", secret.ObjectMeta)
	}
	if root := w.keysSecret(t, ""); len(root.OwnerReferences) != 0 || root.Name != "token-keys-root" {
		t.Errorf("the root's is %+v", root.ObjectMeta)
	}
}

// Anyone can send tokens that name keys which there are not.
func TestStrangeKeysDoNotLoadEtcd(t *testing.T) {
	w := newWorld(t)
	w.issue(t, "shop")
	before := w.secrets.etcdReads()
	for range 100 {
		if k, err := w.keys.find(in("shop"), "uid-shop", "strange"); k != nil || err != nil {
			t.Fatal(k, err)
		}
	}
	if reads := w.secrets.etcdReads() - before; reads > 2 {
		t.Errorf("%d reads of etcd", reads)
	}
}

func published(t *testing.T, tokens *Tokens, cluster string) []jose.JSONWebKey {
	t.Helper()
	var set jose.JSONWebKeySet
	get(t, tokens, cluster, KeysPath, &set)
	for _, k := range set.Keys {
		if !k.IsPublic() || k.Algorithm != "ES256" || k.Use != "sig" {
			t.Errorf("published: %+v", k)
		}
	}
	return set.Keys
}

func get(t *testing.T, tokens *Tokens, cluster, path string, into any) {
	t.Helper()
	w := httptest.NewRecorder()
	tokens.Handlers()[path].ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil).WithContext(in(cluster)))
	if w.Code != http.StatusOK {
		t.Fatalf("%s: %d %s", path, w.Code, w.Body)
	}
	if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
		t.Fatal(err)
	}
}

func TestAnIssuerIsDescribedPerVirtualCluster(t *testing.T) {
	w := newWorld(t)
	if got := published(t, w.Tokens, "shop"); len(got) != 0 {
		t.Errorf("before the first token: %v", got)
	}
	w.issue(t, "shop")
	if got := published(t, w.Tokens, "shop"); len(got) != 1 || got[0].KeyID != w.signingKey(t, "shop").Key.(jose.JSONWebKey).KeyID {
		t.Errorf("after it: %v", got)
	}
	if got := published(t, w.Tokens, "other"); len(got) != 0 {
		t.Errorf("another virtual cluster's: %v", got)
	}
	var c configuration
	get(t, w.Tokens, "shop", ConfigurationPath, &c)
	if c.Issuer != "https://vmesh/clusters/shop" || c.JWKSURI != "https://vmesh/clusters/shop/openid/v1/jwks" || !slices.Equal(c.Algorithms, algorithms) {
		t.Errorf("got %+v", c)
	}
	refused := httptest.NewRecorder()
	w.Handlers()[KeysPath].ServeHTTP(refused, httptest.NewRequest(http.MethodPost, KeysPath, nil).WithContext(in("shop")))
	if refused.Code != http.StatusMethodNotAllowed {
		t.Errorf("a POST is answered with %d", refused.Code)
	}
}

// Whatever comes in, what is accepted says what a signed token says.
func FuzzATokenThatWasNotIssuedIsRefused(f *testing.F) {
	w := newWorld(f)
	good := w.issue(f, "shop")
	signed, err := parse(good)
	if err != nil {
		f.Fatal(err)
	}
	parts := strings.Split(good, ".")
	for _, seed := range []string{good, "", ".", "..", "a.b.c", parts[0] + ".." + parts[2], parts[1] + "." + parts[0] + "." + parts[2], good + "=", strings.ToLower(good)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, token string) {
		resp, ok, err := w.AuthenticateToken(in("shop"), token)
		if !ok || err != nil {
			return
		}
		u, err := parse(token)
		if err != nil || u.claims.ID != signed.claims.ID || resp.User.GetName() != ciName {
			t.Fatalf("%q is taken for %+v", token, resp.User)
		}
	})
}

func BenchmarkAuthenticateToken(b *testing.B) {
	w := newWorld(b)
	token := w.issue(b, "shop")
	ctx := in("shop")
	run := func(forget bool) func(b *testing.B) {
		return func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if forget {
					w.verified.RemoveAll(func(any) bool { return true })
				}
				if _, _, err := w.AuthenticateToken(ctx, token); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	b.Run("remembered", run(false))
	b.Run("verified", run(true))
}
