package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coreos/go-oidc"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/vmesh-io/vmesh/pkg/apiserver"
	"github.com/vmesh-io/vmesh/test/e2e/rawapi"
)

// tokenAt is a way into a virtual cluster, or the root if its name is empty, with a token
// and nothing else.
func (s *server) tokenAt(t *testing.T, cluster, token string) *tenant {
	t.Helper()
	url := s.options.URL()
	if cluster != "" {
		url += "/clusters/" + cluster
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: url, CertificateAuthorityData: s.root.CAData}
	config.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	config.CurrentContext = "x"
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		t.Fatal(err)
	}
	client, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		t.Fatal(err)
	}
	return &tenant{name: cluster, config: unlimited(client), kubeconfig: file, raw: rawClient(t, client)}
}

// createToken is what kubectl create token prints.
func createToken(t *testing.T, who *tenant, args ...string) string {
	t.Helper()
	token := strings.TrimSpace(kubectlAs(t, who, append([]string{"create", "token"}, args...)...))
	if strings.Count(token, ".") != 2 || strings.Contains(token, " ") {
		t.Fatalf("kubectl create token %s: %s", strings.Join(args, " "), token)
	}
	return token
}

// unauthorized waits until somebody's credentials are good no more.
func unauthorized(t *testing.T, who *tenant) {
	t.Helper()
	eventually(t, func() error {
		if response := do(t, who.raw, http.MethodGet, "/api", ""); response.Status != 401 {
			return fmt.Errorf("got %v", response)
		}
		return nil
	})
}

func TestAPipelineHasATokenOfItsOwn(t *testing.T) {
	admin := newTenant(t, shared)
	admin.namespace(t, "apps")
	for _, args := range [][]string{
		{"create", "serviceaccount", "ci", "-n", "apps"},
		{"create", "rolebinding", "ci", "-n", "apps", "--clusterrole", "vmesh:traffic-editor", "--serviceaccount", "apps:ci"},
	} {
		if out := kubectlAs(t, admin, args...); !strings.Contains(out, "created") {
			t.Fatal(out)
		}
	}
	token := createToken(t, admin, "ci", "-n", "apps", "--duration", "15m")
	ci := shared.tokenAt(t, admin.name, token)
	for _, want := range []string{"system:serviceaccount:apps:ci", "system:serviceaccounts:apps", "authentication.kubernetes.io/credential-id"} {
		says(t, ci, want, "auth", "whoami")
	}
	says(t, ci, "yes", "auth", "can-i", "create", "virtualservices.networking.istio.io", "-n", "apps")
	says(t, ci, "no", "auth", "can-i", "create", "virtualservices.networking.istio.io", "-n", "default")
	says(t, ci, "no", "auth", "can-i", "create", "serviceaccounts/token", "-n", "apps")
	mustDo(t, ci.raw, http.MethodPost, virtualServices("apps"), virtualService("by-token"))
	refused(t, do(t, ci.raw, http.MethodPost, virtualServices("default"), virtualService("by-token")), 403, "system:serviceaccount:apps:ci")

	// A token of the same in name, made anew, is another's.
	mustDo(t, admin.raw, http.MethodDelete, "/api/v1/namespaces/apps/serviceaccounts/ci", "")
	unauthorized(t, ci)
	if out := kubectlAs(t, admin, "create", "serviceaccount", "ci", "-n", "apps"); !strings.Contains(out, "created") {
		t.Fatal(out)
	}
	unauthorized(t, ci)
	unauthorized(t, shared.tokenAt(t, admin.name, token[:len(token)-8]))
}

func TestATokenEndsWithWhatKubectlBindsItTo(t *testing.T) {
	admin := newTenant(t, shared)
	admin.namespace(t, "apps")
	const inApps = "/api/v1/namespaces/apps"
	for path, body := range map[string]string{
		inApps + "/serviceaccounts": `{"metadata":{"name":"ci"}}`, inApps + "/secrets": `{"metadata":{"name":"lease"}}`,
		inApps + "/pods": `{"metadata":{"name":"web"},"spec":{"serviceAccountName":"ci","nodeName":"n1","containers":[{"name":"c","image":"i"}]}}`,
		"/api/v1/nodes":  `{"metadata":{"name":"n1"}}`,
	} {
		mustDo(t, admin.raw, http.MethodPost, path, body)
	}
	for _, c := range []struct{ kind, name, path, extra string }{
		{"Secret", "lease", inApps + "/secrets/lease", "credential-id"},
		{"Pod", "web", inApps + "/pods/web?gracePeriodSeconds=0", "authentication.kubernetes.io/pod-name"},
		{"Node", "n1", "/api/v1/nodes/n1", "authentication.kubernetes.io/node-name"},
	} {
		t.Run(c.kind, func(t *testing.T) {
			bound := shared.tokenAt(t, admin.name, createToken(t, admin, "ci", "-n", "apps", "--bound-object-kind", c.kind, "--bound-object-name", c.name))
			says(t, bound, c.extra, "auth", "whoami")
			mustDo(t, admin.raw, http.MethodDelete, c.path, "")
			unauthorized(t, bound)
		})
	}
	for _, c := range []struct{ body, part string }{
		{`{"spec":{"expirationSeconds":10}}`, "spec.expirationSeconds"},
		{`{"spec":{"boundObjectRef":{"kind":"ConfigMap","apiVersion":"v1","name":"x"}}}`, "cannot bind token to object of type"},
		{`{"spec":{"boundObjectRef":{"kind":"Secret","apiVersion":"v1","name":"none"}}}`, `secrets "none" not found`},
		{`{"metadata":{"uid":"x"}}`, "does not match the UID of the service account"},
	} {
		response := do(t, admin.raw, http.MethodPost, inApps+"/serviceaccounts/ci/token", c.body)
		if response.Status < 400 || !strings.Contains(response.Text("message"), c.part) {
			t.Errorf("%s: got %v, want %q", c.body, response, c.part)
		}
	}
	long := mustDo(t, admin.raw, http.MethodPost, inApps+"/serviceaccounts/ci/token", `{"spec":{"expirationSeconds":1000000000}}`)
	if !strings.Contains(strings.Join(long.Header.Values("Warning"), ""), "shortened to 31536000 seconds") {
		t.Errorf("the warnings are %q", long.Header.Values("Warning"))
	}
	if out := kubectlAs(t, admin, "create", "token", "none", "-n", "apps"); !strings.Contains(out, `serviceaccounts "none" not found`) {
		t.Error(out)
	}
	legacy := mustDo(t, admin.raw, http.MethodPost, inApps+"/secrets",
		`{"metadata":{"name":"old","annotations":{"kubernetes.io/service-account.name":"ci"}},"type":"kubernetes.io/service-account-token"}`)
	if !strings.Contains(strings.Join(legacy.Header.Values("Warning"), ""), "kubectl create token ci") {
		t.Errorf("the warnings are %q", legacy.Header.Values("Warning"))
	}
}

// As programs in Go ask for them, which speak protobuf with Kubernetes' own kinds.
func TestTypedClientsGetTokensAndReviewThem(t *testing.T) {
	admin := newTenant(t, shared)
	config := rest.CopyConfig(admin.config)
	config.ContentType, config.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	accounts := client.CoreV1().ServiceAccounts("default")
	account, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "typed"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	seconds := int64(1200)
	token, err := accounts.CreateToken(ctx, "typed", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if in := time.Until(token.Status.ExpirationTimestamp.Time); token.UID != account.UID || token.Name != "typed" || len(token.ManagedFields) != 0 || in > 20*time.Minute || in < 18*time.Minute {
		t.Errorf("got %+v", token)
	}
	review, err := client.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token.Status.Token}}, metav1.CreateOptions{})
	if err != nil || !review.Status.Authenticated || review.Status.User.UID != string(account.UID) {
		t.Errorf("got %+v, %v", review, err)
	}
}

func TestTokensAreReviewed(t *testing.T) {
	admin, other := newTenant(t, shared), newTenant(t, shared)
	mustDo(t, admin.raw, http.MethodPost, "/api/v1/namespaces/default/serviceaccounts", `{"metadata":{"name":"app"}}`)
	own := createToken(t, admin, "app")
	vault := createToken(t, admin, "app", "--audience", "vault", "--audience", "x")
	review := func(who *tenant, token string, audiences string) *rawapi.Response {
		return do(t, who.raw, http.MethodPost, "/apis/authentication.k8s.io/v1/tokenreviews",
			fmt.Sprintf(`{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{"token":%q,"audiences":[%s]}}`, token, audiences))
	}
	api := shared.options.URL() + "/clusters/" + admin.name
	for _, c := range []struct {
		name, token, audiences, want string
		who                          *tenant
	}{
		{"for the API", own, "", "[" + api + "]", admin},
		{"for the audience asked for", vault, `"vault","z"`, "[vault]", admin},
		{"for another audience", own, `"vault"`, "", admin},
		{"for the API, of a token that is not for it", vault, "", "", admin},
		{"of another virtual cluster", own, "", "", other},
		{"of another virtual cluster, for its audience", own, fmt.Sprintf("%q", api), "", other},
		{"of nobody", "x", "", "", admin},
	} {
		t.Run(c.name, func(t *testing.T) {
			response := review(c.who, c.token, c.audiences)
			if response.Status != 201 {
				t.Fatalf("got %v", response)
			}
			if c.want == "" {
				if response.Field("status", "authenticated") == true || response.Text("status", "error") == "" || response.Text("status", "user", "username") != "" {
					t.Errorf("got %v", response)
				}
				return
			}
			if response.Text("status", "user", "username") != "system:serviceaccount:default:app" || fmt.Sprint(response.Field("status", "audiences")) != c.want {
				t.Errorf("got %v", response)
			}
		})
	}
	nobody := shared.as(t, admin.name, "nora", "x")
	refused(t, review(nobody, own, ""), 403, "tokenreviews")
	bindCluster(t, admin, "reviewers", "system:auth-delegator", "User", "nora")
	if response := review(nobody, own, ""); response.Field("status", "authenticated") != true {
		t.Errorf("got %v", response)
	}
	if response := review(admin, "", ""); response.Status != 400 {
		t.Errorf("got %v", response)
	}
	if out := kubectlWith(t, admin, fmt.Sprintf(`{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{"token":%q}}`, own), "create", "-o", "jsonpath={.status.user.username}", "-f", "-"); out != "system:serviceaccount:default:app" {
		t.Error(out)
	}
}

// bearer sends a token along.
type bearer struct {
	token string
	next  http.RoundTripper
}

func (b bearer) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(req)
}

// Somebody else's program, that knows vmesh as an OpenID Connect issuer and nothing more.
func TestAnyOpenIDConnectLibraryVerifiesTokens(t *testing.T) {
	admin, other := newTenant(t, shared), newTenant(t, shared)
	var tokens []string
	for _, who := range []*tenant{admin, other} {
		mustDo(t, who.raw, http.MethodPost, "/api/v1/namespaces/default/serviceaccounts", `{"metadata":{"name":"app"}}`)
		tokens = append(tokens, createToken(t, who, "app", "--audience", "bank"))
	}
	reader := createToken(t, admin, "app")
	config := rest.AnonymousClientConfig(admin.config)
	transport, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: bearer{reader, transport}}
	t.Cleanup(client.CloseIdleConnections)
	ctx, cancel := context.WithTimeout(oidc.ClientContext(t.Context(), client), time.Minute)
	defer cancel()
	issuer := shared.options.URL() + "/clusters/" + admin.name
	provider, err := oidc.NewProvider(ctx, issuer)
	if err != nil {
		t.Fatal(err)
	}
	verifier := provider.Verifier(&oidc.Config{ClientID: "bank", SupportedSigningAlgs: []string{oidc.ES256}})
	verified, err := verifier.Verify(ctx, tokens[0])
	if err != nil || verified.Issuer != issuer || verified.Subject != "system:serviceaccount:default:app" {
		t.Errorf("got %+v, %v", verified, err)
	}
	if _, err := verifier.Verify(ctx, tokens[1]); err == nil {
		t.Error("another virtual cluster's token is good here")
	}

	// Who may read it is RBAC's to say, as in Kubernetes.
	anonymous := rawClient(t, config)
	for _, path := range []string{"/openid/v1/jwks", "/.well-known/openid-configuration"} {
		refused(t, do(t, anonymous, http.MethodGet, path, ""), 403)
		mustDo(t, rawClient(t, shared.root), http.MethodGet, path, "")
	}
	bindCluster(t, admin, "anyone", "system:service-account-issuer-discovery", "Group", "system:unauthenticated")
	keys := mustDo(t, anonymous, http.MethodGet, "/openid/v1/jwks", "")
	if got := keys.Header.Get("Content-Type"); got != "application/jwk-set+json" || strings.Contains(string(keys.Body), `"d"`) {
		t.Errorf("got %s %v", got, keys)
	}
}

func TestTokensAreGoodAtHomeAlone(t *testing.T) {
	root := rawClient(t, shared.root)
	removed(t, "reborn")
	createCluster(t, shared, "reborn")
	first, other := shared.tenant(t, "reborn"), newTenant(t, shared)
	account := func(who *tenant) string {
		mustDo(t, who.raw, http.MethodPost, "/api/v1/namespaces/default/serviceaccounts", `{"metadata":{"name":"app"}}`)
		mustDo(t, who.raw, http.MethodPost, rbacAPI+"/clusterrolebindings", `{"metadata":{"name":"app"},`+
			`"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"cluster-admin"},"subjects":[{"kind":"ServiceAccount","name":"app","namespace":"default"}]}`)
		return createToken(t, who, "app")
	}
	token := account(first)
	account(other)
	paths := []string{"/api", "/version", "/livez", "/api/v1/namespaces", "/apis/vmesh.io/v1alpha1/virtualclusters", "/openid/v1/jwks", "/metrics", "/nowhere"}
	for _, place := range []string{other.name, "", "none"} {
		stranger := shared.tokenAt(t, place, token)
		for _, path := range paths {
			for _, verb := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
				if response := do(t, stranger.raw, verb, path, "{}"); response.Status != 401 {
					t.Errorf("%s %s in %q: got %v", verb, path, place, response)
				}
			}
		}
	}
	mustDo(t, shared.tokenAt(t, "reborn", token).raw, http.MethodGet, "/api/v1/namespaces", "")

	// Its keys go with the virtual cluster, and the next of its name has others.
	before := keysOf(t, root, "reborn")
	mustDo(t, root, http.MethodPatch, clustersPath+"/reborn", `{"metadata":{"annotations":{"vmesh.io/confirm-deletion":"reborn"}}}`)
	mustDo(t, root, http.MethodDelete, clustersPath+"/reborn", "")
	eventually(t, func() error {
		if left := keysOf(t, root, "reborn"); len(left) > 0 {
			return fmt.Errorf("the keys %v are left", left)
		}
		return nil
	})
	if response := do(t, shared.tokenAt(t, "reborn", token).raw, http.MethodGet, "/api", ""); response.Status != 401 {
		t.Errorf("in a virtual cluster that is gone: %v", response)
	}
	createCluster(t, shared, "reborn")
	account(shared.tenant(t, "reborn"))
	if response := do(t, shared.tokenAt(t, "reborn", token).raw, http.MethodGet, "/api", ""); response.Status != 401 {
		t.Errorf("in the next virtual cluster of the name: %v", response)
	}
	if after := keysOf(t, root, "reborn"); len(before) != 1 || len(after) != 1 || before[0] == after[0] {
		t.Errorf("the keys were %v and are %v", before, after)
	}
}

// keysOf names the Secrets in the root with a virtual cluster's keys.
func keysOf(t *testing.T, root *rawapi.Client, cluster string) []string {
	t.Helper()
	list := mustDo(t, root, http.MethodGet, "/api/v1/namespaces/vmesh-system/secrets?labelSelector=vmesh.io/virtual-cluster%3D"+cluster, "")
	var names []string
	items, _ := list.Field("items").([]any)
	for _, item := range items {
		names = append(names, item.(map[string]any)["metadata"].(map[string]any)["name"].(string))
	}
	return names
}

func TestAServiceAccountOfTheRootIsAGuest(t *testing.T) {
	admin := newTenant(t, shared)
	root := &tenant{config: shared.root, kubeconfig: shared.options.AdminKubeconfig(), raw: rawClient(t, shared.root)}
	root.namespace(t, "robots")
	mustDo(t, root.raw, http.MethodPost, "/api/v1/namespaces/robots/serviceaccounts", `{"metadata":{"name":"robot"}}`)
	t.Cleanup(func() {
		do(t, root.raw, http.MethodDelete, "/api/v1/namespaces/robots", "")
		do(t, root.raw, http.MethodDelete, rbacAPI+"/clusterrolebindings/robot", "")
		do(t, root.raw, http.MethodDelete, rbacAPI+"/clusterroles/robot", "")
	})
	token := createToken(t, root, "robot", "-n", "robots")
	inside, atRoot := shared.tokenAt(t, admin.name, token), shared.tokenAt(t, "", token)
	says(t, atRoot, "system:serviceaccount:robots:robot", "auth", "whoami")
	refused(t, do(t, atRoot.raw, http.MethodGet, "/api/v1/namespaces/vmesh-system/secrets", ""), 403)
	// One of the same name in the virtual cluster, with every right, is somebody else.
	admin.namespace(t, "robots")
	mustDo(t, admin.raw, http.MethodPost, "/api/v1/namespaces/robots/serviceaccounts", `{"metadata":{"name":"robot"}}`)
	mustDo(t, admin.raw, http.MethodPost, rbacAPI+"/clusterrolebindings", `{"metadata":{"name":"robot"},`+
		`"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"cluster-admin"},"subjects":[{"kind":"ServiceAccount","name":"robot","namespace":"robots"}]}`)
	refused(t, do(t, inside.raw, http.MethodGet, virtualServices("default"), ""), 403, "virtualclusters/proxy")
	mustDo(t, root.raw, http.MethodPost, rbacAPI+"/clusterroles", fmt.Sprintf(`{"metadata":{"name":"robot"},"rules":[{"apiGroups":["vmesh.io"],`+
		`"resources":["virtualclusters/proxy"],"resourceNames":[%q],"verbs":["*"]}]}`, admin.name))
	mustDo(t, root.raw, http.MethodPost, rbacAPI+"/clusterrolebindings", `{"metadata":{"name":"robot"},`+
		`"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"robot"},"subjects":[{"kind":"ServiceAccount","name":"robot","namespace":"robots"}]}`)
	refused(t, do(t, inside.raw, http.MethodGet, virtualServices("default"), ""), 403, "no rule of this virtual cluster")
	// To the virtual cluster's own programs it is nobody.
	response := do(t, admin.raw, http.MethodPost, "/apis/authentication.k8s.io/v1/tokenreviews", fmt.Sprintf(`{"spec":{"token":%q,"audiences":[%q]}}`, token, shared.options.URL()))
	if response.Field("status", "authenticated") == true {
		t.Errorf("got %v", response)
	}
}

// issuer is an OpenID Connect provider over HTTPS.
type issuer struct {
	*httptest.Server
	key  jose.JSONWebKey
	down atomic.Bool
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{key: jose.JSONWebKey{Key: key, KeyID: "k", Algorithm: "ES256", Use: "sig"}}
	i.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if i.down.Load() {
			http.Error(w, "out of order", http.StatusServiceUnavailable)
			return
		}
		var answer any = jose.JSONWebKeySet{Keys: []jose.JSONWebKey{i.key.Public()}}
		if req.URL.Path == "/.well-known/openid-configuration" {
			answer = map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/keys", "id_token_signing_alg_values_supported": []string{"ES256"}}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(i.Server.Close)
	return i
}

func (i *issuer) token(t *testing.T, user string, groups ...string) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: i.key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(map[string]any{
		"iss": i.URL, "aud": "vmesh", "sub": user, "groups": groups, "exp": time.Now().Add(time.Hour).Unix(),
	}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// configuration is a file that trusts the issuer, with whatever else it is to say.
func (i *issuer) configuration(t *testing.T, more string) string {
	t.Helper()
	authority, err := json.Marshal(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate().Raw})))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "authentication.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, `
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt:
- issuer:
    url: %s
    audiences: [vmesh]
    certificateAuthority: %s
  claimMappings:
    username: {expression: '"corp:" + claims.sub'}
    groups: {claim: groups, prefix: "corp:"}
%s
`, i.URL, authority, more), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestPeopleComeInByAnOpenIDConnectIssuer(t *testing.T) {
	i := newIssuer(t)
	file := i.configuration(t, "anonymous: {enabled: true, conditions: [{path: /livez}]}")
	s, err := startServer(filepath.Join(t.TempDir(), "data"), func(o *apiserver.Options) { o.AuthenticationConfig = file })
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	}()
	root := &tenant{config: s.root, kubeconfig: s.options.AdminKubeconfig(), raw: rawClient(t, s.root)}
	defer root.raw.Close()
	createCluster(t, s, "shop")
	admin := s.tenant(t, "shop")

	alice := i.token(t, "alice", "dev")
	atRoot, inside := s.tokenAt(t, "", alice), s.tokenAt(t, "shop", alice)
	eventually(t, func() error {
		if response := do(t, atRoot.raw, http.MethodGet, "/version", ""); response.Status != 200 {
			return fmt.Errorf("got %v", response)
		}
		return nil
	})
	says(t, atRoot, "corp:alice", "auth", "whoami")
	says(t, atRoot, "corp:dev", "auth", "whoami")
	refused(t, do(t, atRoot.raw, http.MethodGet, clustersPath, ""), 403)
	refused(t, do(t, inside.raw, http.MethodGet, virtualServices("default"), ""), 403)
	mustDo(t, root.raw, http.MethodPost, rbacAPI+"/clusterroles", `{"metadata":{"name":"enter"},"rules":[{"apiGroups":["vmesh.io"],"resources":["virtualclusters/proxy"],"verbs":["*"]}]}`)
	bindCluster(t, root, "enter", "enter", "Group", "corp:dev")
	bindCluster(t, admin, "dev", "view", "Group", "corp:dev")
	mustDo(t, inside.raw, http.MethodGet, virtualServices("default"), "")
	says(t, inside, "corp:alice", "auth", "whoami")
	eve := s.tokenAt(t, "", i.token(t, "eve", "system:masters"))
	says(t, eve, "corp:system:masters", "auth", "whoami")
	refused(t, do(t, eve.raw, http.MethodGet, clustersPath, ""), 403)

	// The issuer is away: what is known goes on.
	i.down.Store(true)
	mustDo(t, s.tokenAt(t, "shop", i.token(t, "bob", "dev")).raw, http.MethodGet, virtualServices("default"), "")
	mustDo(t, admin.raw, http.MethodGet, virtualServices("default"), "")

	// Without credentials only what the file says.
	nobody := rawClient(t, rest.AnonymousClientConfig(s.root))
	defer nobody.Close()
	mustDo(t, nobody, http.MethodGet, "/livez", "")
	if response := do(t, nobody, http.MethodGet, "/version", ""); response.Status != 401 {
		t.Errorf("got %v", response)
	}
}

func TestAWrongAuthenticationConfigurationStopsTheStart(t *testing.T) {
	_, err := startServer(filepath.Join(t.TempDir(), "data"), func(o *apiserver.Options) { o.AuthenticationConfig = filepath.Join(t.TempDir(), "none.yaml") })
	if err == nil || !strings.Contains(err.Error(), "--authentication-config") {
		t.Errorf("got %v", err)
	}
}
