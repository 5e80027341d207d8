package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/vmesh-io/vmesh/pkg/apiserver"
	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/pki"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// matrixIdentity is one kind of caller.
type matrixIdentity struct {
	name    string
	client  *http.Client
	headers map[string]string
	// may says whether a call is for the caller to make, at a virtual cluster or the root.
	may func(target string, c matrixCall) bool
}

func nothing(string, matrixCall) bool { return false }

func everythingAt(targets ...string) func(string, matrixCall) bool {
	return func(target string, _ matrixCall) bool { return slices.Contains(targets, target) }
}

// someAt is what a call has to be for an identity at one place.
func someAt(at string, allowed func(matrixCall) bool) func(string, matrixCall) bool {
	return func(target string, c matrixCall) bool { return target == at && allowed(c) }
}

func reads(c matrixCall) bool { return !c.write && c.name != "keys of tokens" }

// basics are what everyone may who is known at all.
func basics(c matrixCall) bool {
	return slices.Contains([]string{"discovery", "OpenAPI", "version", "readiness", "who am I", "may I"}, c.name)
}

// health is what load balancers may, whoever they are.
func health(c matrixCall) bool { return c.name == "version" || c.name == "readiness" }

// matrixCall is one thing that can be asked of a virtual cluster. NAME in its path and body
// is one that no other call uses.
type matrixCall struct {
	name, method, path, contentType, body string
	write                                 bool
}

// matrixCalls are every verb that there is on resources, and what is beside them.
var matrixCalls = []matrixCall{
	{name: "list", method: "GET", path: "/api/v1/namespaces/default/configmaps"},
	{name: "list of all namespaces", method: "GET", path: "/api/v1/configmaps"},
	{name: "table", method: "GET", path: "/api/v1/configmaps?limit=1"},
	{name: "get", method: "GET", path: "/api/v1/namespaces/default/configmaps/canary"},
	{name: "head", method: "HEAD", path: "/api/v1/namespaces/default/configmaps/canary"},
	{name: "watch", method: "GET", path: "/api/v1/configmaps?watch=1&timeoutSeconds=1"},
	{name: "watch of old", method: "GET", path: "/api/v1/watch/namespaces/default/configmaps?timeoutSeconds=1"},
	{name: "discovery", method: "GET", path: "/apis"},
	{name: "OpenAPI", method: "GET", path: "/openapi/v3"},
	{name: "version", method: "GET", path: "/version"},
	{name: "readiness", method: "GET", path: "/readyz"},
	{name: "who am I", method: "POST", path: "/apis/authentication.k8s.io/v1/selfsubjectreviews", body: `{}`},
	{name: "may I", method: "POST", path: "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body: `{"spec":{"resourceAttributes":{"verb":"list","resource":"secrets"}}}`},
	{name: "keys of tokens", method: "GET", path: "/openid/v1/jwks"},
	{name: "whose is a token", method: "POST", path: "/apis/authentication.k8s.io/v1/tokenreviews", body: `{"spec":{"token":"x"}}`, write: true},
	{name: "make a token", method: "POST", path: "/api/v1/namespaces/default/serviceaccounts/ci/token", body: `{"spec":{"expirationSeconds":600}}`, write: true},
	{name: "create", method: "POST", path: "/api/v1/namespaces/default/configmaps", body: `{"metadata":{"name":"NAME"}}`, write: true},
	{name: "create without running", method: "POST", path: "/api/v1/namespaces/default/configmaps?dryRun=All", body: `{"metadata":{"name":"NAME"}}`, write: true},
	{name: "create a namespace", method: "POST", path: "/api/v1/namespaces", body: `{"metadata":{"name":"NAME"}}`, write: true},
	{name: "create a role", method: "POST", path: "/apis/rbac.authorization.k8s.io/v1/clusterroles", body: `{"metadata":{"name":"NAME"}}`, write: true},
	{name: "merge", method: "PATCH", path: "/api/v1/namespaces/default/configmaps/canary", contentType: "application/merge-patch+json", body: `{"metadata":{"labels":{"by":"NAME"}}}`, write: true},
	{name: "patch", method: "PATCH", path: "/api/v1/namespaces/default/configmaps/canary", contentType: "application/json-patch+json",
		body: `[{"op":"add","path":"/metadata/labels/by","value":"NAME"}]`, write: true},
	{name: "strategic merge", method: "PATCH", path: "/api/v1/namespaces/default/configmaps/canary", contentType: "application/strategic-merge-patch+json",
		body: `{"metadata":{"labels":{"by":"NAME"}}}`, write: true},
	{name: "apply", method: "PATCH", path: "/api/v1/namespaces/default/configmaps/NAME?fieldManager=matrix&force=true", contentType: "application/apply-patch+yaml",
		body: `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"NAME"}}`, write: true},
	{name: "update", method: "PUT", path: "/api/v1/namespaces/default/configmaps/canary", body: `{"metadata":{"name":"canary","labels":{"by":"NAME"}}}`, write: true},
	{name: "delete", method: "DELETE", path: "/api/v1/namespaces/default/configmaps/spare", write: true},
	{name: "delete a collection", method: "DELETE", path: "/api/v1/namespaces/default/secrets", write: true},
}

// plainShape is the one address of a cluster.
func plainShape(cluster, path string) string {
	if cluster == logical.Root {
		return path
	}
	return "/clusters/" + cluster + path
}

// subresourceShape is the other address of a virtual cluster, as a subresource in the root.
func subresourceShape(cluster, path string) string {
	return "/apis/vmesh.io/v1alpha1/virtualclusters/" + cluster + "/proxy" + path
}

// trickShapes are paths that lead nowhere, for anyone, however a server that is less
// careful may read them. home is a cluster that the caller is at home in.
var trickShapes = map[string]func(home, target, path string) string{
	"up from home":           func(home, target, path string) string { return "/clusters/" + home + "/../" + target + path },
	"up from home, escaped":  func(home, target, path string) string { return "/clusters/" + home + "/%2e%2e/" + target + path },
	"up, slashes escaped":    func(home, target, path string) string { return "/clusters/" + home + "%2f..%2f" + target + path },
	"home and target":        func(home, target, path string) string { return "/clusters/" + home + "%2F" + target + path },
	"prefix in prefix":       func(home, target, path string) string { return "/clusters/" + home + "/clusters/" + target + path },
	"prefix in prefix twice": func(home, target, path string) string { return "/clusters/" + home + "//clusters/" + target + path },
	"double slash":           func(_, target, path string) string { return "//clusters/" + target + path },
	"double slash inside":    func(_, target, path string) string { return "/clusters//" + target + path },
	"dot":                    func(_, target, path string) string { return "/clusters/./" + target + path },
	"capitals":               func(_, target, path string) string { return "/clusters/" + strings.ToUpper(target) + path },
	"capital prefix":         func(_, target, path string) string { return "/Clusters/" + target + path },
	"escaped prefix":         func(_, target, path string) string { return "/%63lusters/" + target + path },
	"escaped name": func(_, target, path string) string {
		return fmt.Sprintf("/clusters/%%%x%s", target[0], target[1:]) + path
	},
	"null":            func(_, target, path string) string { return "/clusters/" + target + "%00" + path },
	"parameter":       func(home, target, path string) string { return "/clusters/" + target + ";" + home + path },
	"newline":         func(home, target, path string) string { return "/clusters/" + home + "%0a/clusters/" + target + path },
	"backslash":       func(home, target, path string) string { return "/clusters/" + home + "%5c..%5c" + target + path },
	"proxy in prefix": func(home, target, path string) string { return plainShape(home, subresourceShape(target, path)) },
	"prefix in proxy": func(home, target, path string) string {
		return subresourceShape(home, "/clusters/"+target+path)
	},
	"proxy in proxy":        func(home, target, path string) string { return subresourceShape(home, subresourceShape(target, path)) },
	"up from the proxy":     func(home, target, path string) string { return subresourceShape(home, "/../../"+target+"/proxy"+path) },
	"up, escaped, of proxy": func(home, target, path string) string { return subresourceShape(home+"%2f..%2f"+target, path) },
	"proxy in capitals": func(_, target, path string) string {
		return "/apis/vmesh.io/v1alpha1/VirtualClusters/" + target + "/Proxy" + path
	},
	"proxy of another version": func(_, target, path string) string {
		return "/apis/vmesh.io/v1/virtualclusters/" + target + "/proxy" + path
	},
	"proxy in a namespace": func(_, target, path string) string {
		return "/apis/vmesh.io/v1alpha1/namespaces/default/virtualclusters/" + target + "/proxy" + path
	},
	"another subresource": func(_, target, path string) string {
		return "/apis/vmesh.io/v1alpha1/virtualclusters/" + target + "/status" + path
	},
}

func TestNobodyReachesWhatIsNotTheirs(t *testing.T) {
	m := newMatrix(t)
	t.Run("plain paths", func(t *testing.T) {
		m.each(t, func(t *testing.T, who matrixIdentity) { m.plain(t, who, plainShape) })
	})
	t.Run("subresource", func(t *testing.T) {
		m.each(t, func(t *testing.T, who matrixIdentity) { m.plain(t, who, subresourceShape) })
	})
	t.Run("tricks", func(t *testing.T) { m.each(t, m.tricks) })
	for cluster, before := range m.before {
		if after := m.state(t, cluster); !bytes.Equal(before, after) {
			t.Errorf("%s was changed:\n%s\nwas:\n%s", cluster, after, before)
		}
	}
	if m.asked.n < 5000 || m.let.n == 0 {
		t.Errorf("%d requests, %d let in: this tells nothing", m.asked.n, m.let.n)
	}
	t.Logf("%d requests of %d identities, %d let in where they belong", m.asked.n, len(m.identities), m.let.n)
}

// counter counts under a lock.
type counter struct {
	sync.Mutex
	n int
}

func (c *counter) add() { c.Lock(); c.n++; c.Unlock() }

// matrix is a server with virtual clusters and callers of every kind.
type matrix struct {
	server     *server
	home       string // where most identities belong, and the only one that is written to
	targets    []string
	identities []matrixIdentity
	before     map[string][]byte // of clusters that must stay as they are
	asked, let counter
}

func newMatrix(t *testing.T) *matrix {
	t.Helper()
	issuer := newIssuer(t)
	proxies, err := pki.LoadOrCreateAuthority(t.TempDir(), "front-proxy-ca")
	if err != nil {
		t.Fatal(err)
	}
	proxiesFile := filepath.Join(t.TempDir(), "front-proxy-ca.crt")
	if err := os.WriteFile(proxiesFile, proxies.Bundle(), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := startServer(t.TempDir(), func(o *apiserver.Options) {
		o.AnalysisBudget = 0
		o.AuthenticationConfig = issuer.configuration(t, "")
		o.Host.FrontProxy.ClientCAFile, o.Host.FrontProxy.AllowedNames = proxiesFile, []string{"front-proxy-client"}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
	home, other := newTenant(t, s), newTenant(t, s)
	m := &matrix{server: s, home: home.name, targets: []string{home.name, other.name, logical.Root}, before: map[string][]byte{}}
	root := rawClient(t, s.root)
	for _, target := range m.targets {
		for _, kind := range []string{"configmaps", "secrets"} {
			for _, name := range []string{"canary", "spare"} {
				mustDo(t, root, http.MethodPost, plainShape(target, "/api/v1/namespaces/default/"+kind),
					fmt.Sprintf(`{"metadata":{"name":%q,"labels":{"of":%q}}}`, name, canary(target)))
			}
		}
	}
	m.identities = slices.Concat(m.callers(t, home), m.bearers(t, home, issuer), m.proxied(t, proxies))
	for _, target := range m.targets[1:] {
		m.before[target] = m.state(t, target)
	}
	return m
}

// canary is what nothing but a cluster's objects say.
func canary(cluster string) string { return "canary-of-" + cluster }

// state is all that calls could change in a cluster.
func (m *matrix) state(t *testing.T, cluster string) []byte {
	t.Helper()
	var all bytes.Buffer
	root := rawClient(t, m.server.root)
	for _, path := range []string{"/api/v1/configmaps", "/api/v1/secrets", "/api/v1/namespaces", "/apis/rbac.authorization.k8s.io/v1/clusterroles"} {
		items, err := json.Marshal(mustDo(t, root, http.MethodGet, plainShape(cluster, path), "").Field("items"))
		if err != nil {
			t.Fatal(err)
		}
		all.Write(items)
	}
	return all.Bytes()
}

const rootAdministrator = "the root's administrator"

// callers makes one of every kind.
func (m *matrix) callers(t *testing.T, home *tenant) []matrixIdentity {
	t.Helper()
	s := m.server
	var all []matrixIdentity
	add := func(name string, config *rest.Config, headers map[string]string, may func(string, matrixCall) bool) {
		all = append(all, newCaller(t, name, config, headers, may))
	}
	anonymous := rest.AnonymousClientConfig(s.root)
	add("nobody", anonymous, nil, someAt(logical.Root, health))
	add("an unknown token", anonymous, map[string]string{"Authorization": "Bearer unknown"}, nothing)
	add("a password", anonymous, map[string]string{"Authorization": "Basic YWRtaW46YWRtaW4="}, someAt(logical.Root, health))
	add("nobody who says who they are", anonymous,
		map[string]string{"X-Remote-User": "admin", "X-Remote-Group": "system:masters", "X-Remote-Extra-Vmesh.io%2fvirtual-Cluster": logical.Root}, someAt(logical.Root, health))
	add("nobody who acts as the administrator", anonymous, map[string]string{"Impersonate-User": "admin"}, nothing)

	add("an administrator", home.config, nil, everythingAt(m.home))
	add("an administrator with a front proxy's headers", home.config,
		map[string]string{"X-Remote-User": "admin", "X-Remote-Group": "system:masters"}, everythingAt(m.home))
	add("an administrator who acts as the root's", home.config,
		map[string]string{"Impersonate-User": "admin", "Impersonate-Group": "system:masters"}, nothing)
	add("an administrator who acts as a user", home.config, map[string]string{"Impersonate-User": "jane"}, someAt(m.home, basics))
	add("an administrator who acts as a user of the root", home.config,
		map[string]string{"Impersonate-User": "jane", "Impersonate-Extra-Vmesh.io%2fvirtual-Cluster": logical.Root}, nothing)

	add("a user", s.as(t, m.home, "nora", "nothing").config, nil, someAt(m.home, basics))
	viewer := s.as(t, m.home, "vera", "viewers")
	bindCluster(t, home, "viewers", "view", "Group", "viewers")
	says(t, viewer, "canary", "get", "configmaps")
	add("a reader", viewer.config, nil, someAt(m.home, reads))

	gone := newTenant(t, s)
	root := rawClient(t, s.root)
	add("of a virtual cluster that is gone", gone.config, nil, nothing)
	again := newTenant(t, s)
	for _, name := range []string{gone.name, again.name} {
		mustDo(t, root, http.MethodPatch, "/apis/vmesh.io/v1alpha1/virtualclusters/"+name, fmt.Sprintf(`{"metadata":{"annotations":{"vmesh.io/confirm-deletion":%q}}}`, name))
		mustDo(t, root, http.MethodDelete, "/apis/vmesh.io/v1alpha1/virtualclusters/"+name, "")
		eventually(t, func() error {
			if r := do(t, root, http.MethodGet, "/apis/vmesh.io/v1alpha1/virtualclusters/"+name, ""); r.Status != http.StatusNotFound {
				return fmt.Errorf("it is still there: %v", r)
			}
			return nil
		})
	}
	createCluster(t, s, again.name)
	m.targets = append(m.targets, again.name)
	add("of an earlier virtual cluster of the name", again.config, nil, nothing)

	revoked := s.as(t, m.home, "rex", "system:masters")
	record := mustDo(t, root, http.MethodGet, "/apis/vmesh.io/v1alpha1/kubeconfigs?fieldSelector=spec.user=rex", "").Field("items").([]any)[0]
	name := record.(map[string]any)["metadata"].(map[string]any)["name"].(string)
	mustDo(t, root, http.MethodDelete, "/apis/vmesh.io/v1alpha1/kubeconfigs/"+name, "")
	add("an administrator who was revoked", revoked.config, nil, nothing)

	strangers, err := pki.LoadOrCreateAuthority(t.TempDir(), "client-ca")
	if err != nil {
		t.Fatal(err)
	}
	add("of another authority", m.certified(t, strangers, "admin"), nil, nothing)

	add(rootAdministrator, s.root, nil, everythingAt(m.targets...))
	add("a user of the root", s.as(t, logical.Root, "rita", "nothing").config, nil, someAt(logical.Root, basics))
	guest := s.as(t, logical.Root, "gus", "guests")
	mustDo(t, root, http.MethodPost, rbacAPI+"/clusterroles", fmt.Sprintf(`{"metadata":{"name":"guests"},"rules":[{"apiGroups":["vmesh.io"],`+
		`"resources":["virtualclusters/proxy"],"resourceNames":[%q],"verbs":["*"]}]}`, m.home))
	mustDo(t, root, http.MethodPost, rbacAPI+"/clusterrolebindings", `{"metadata":{"name":"guests"},`+
		`"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"guests"},"subjects":[{"apiGroup":"rbac.authorization.k8s.io","kind":"Group","name":"guests"}]}`)
	mustDo(t, root, http.MethodPatch, "/apis/vmesh.io/v1alpha1/virtualclusters/"+m.home, `{"spec":{"access":[{"role":"view","subjects":[{"kind":"Group","name":"guests"}]}]}}`)
	says(t, guest.in(t, m.home), "canary", "get", "configmaps")
	add("a guest who reads", guest.config, nil, func(target string, c matrixCall) bool {
		return target == m.home && reads(c) || target == logical.Root && basics(c)
	})
	return all
}

// bearers have tokens and nothing else.
func (m *matrix) bearers(t *testing.T, home *tenant, issuer *issuer) []matrixIdentity {
	t.Helper()
	anonymous := rest.AnonymousClientConfig(m.server.root)
	root := &tenant{config: m.server.root, kubeconfig: m.server.options.AdminKubeconfig(), raw: rawClient(t, m.server.root)}
	var all []matrixIdentity
	add := func(name, token string, may func(string, matrixCall) bool) {
		all = append(all, newCaller(t, name, anonymous, map[string]string{"Authorization": "Bearer " + token}, may))
	}
	for _, who := range []*tenant{home, root} {
		mustDo(t, who.raw, http.MethodPost, "/api/v1/namespaces/default/serviceaccounts", `{"metadata":{"name":"ci"}}`)
	}
	for _, name := range []string{"idle", "former", "admin"} {
		mustDo(t, home.raw, http.MethodPost, "/api/v1/namespaces/default/serviceaccounts", fmt.Sprintf(`{"metadata":{"name":%q}}`, name))
	}
	const account = "system:serviceaccount:default:"
	bindCluster(t, home, "ci", "view", "User", account+"ci")
	bindCluster(t, home, "admin", "cluster-admin", "User", account+"admin")
	withKeys := func(allowed func(matrixCall) bool) func(matrixCall) bool {
		return func(c matrixCall) bool { return allowed(c) || c.name == "keys of tokens" }
	}
	add("a pipeline", createToken(t, home, "idle"), someAt(m.home, withKeys(basics)))
	add("a pipeline that reads", createToken(t, home, "ci"), someAt(m.home, withKeys(reads)))
	add("a pipeline that administers", createToken(t, home, "admin"), everythingAt(m.home))
	add("a token for others", createToken(t, home, "admin", "--audience", "vault"), nothing)
	former := createToken(t, home, "former")
	mustDo(t, home.raw, http.MethodDelete, "/api/v1/namespaces/default/serviceaccounts/former", "")
	add("a pipeline that is gone", former, nothing)
	// It is named like the one that reads at home.
	add("a pipeline of the root", createToken(t, root, "ci"), someAt(logical.Root, withKeys(basics)))

	add("a person", issuer.token(t, "alice", "dev"), someAt(logical.Root, basics))
	add("a person who would be an administrator", issuer.token(t, "eve", "system:masters"), someAt(logical.Root, basics))
	add("a person of another issuer", newIssuer(t).token(t, "alice", "dev"), nothing)
	return all
}

// proxied come with a front proxy's certificate, or without.
func (m *matrix) proxied(t *testing.T, proxies *pki.Authority) []matrixIdentity {
	t.Helper()
	proxy, other := m.certified(t, proxies, "front-proxy-client"), m.certified(t, proxies, "someone")
	clusterHeader := "X-Remote-Extra-Vmesh.io%2fvirtual-Cluster"
	gus := map[string]string{"X-Remote-User": "gus", "X-Remote-Group": "guests"}
	gusMay := func(target string, c matrixCall) bool {
		return target == m.home && reads(c) || target == logical.Root && basics(c)
	}
	return []matrixIdentity{
		newCaller(t, "a front proxy alone", proxy, nil, nothing),
		newCaller(t, "a front proxy for nobody in particular", proxy, map[string]string{"X-Remote-User": "rita", clusterHeader: m.home}, someAt(logical.Root, basics)),
		newCaller(t, "a front proxy for a guest", proxy, gus, gusMay),
		newCaller(t, "a certificate of the front proxy's authority", other, gus, nothing),
	}
}

// certified has a client certificate of an authority.
func (m *matrix) certified(t *testing.T, authority *pki.Authority, name string) *rest.Config {
	t.Helper()
	key, keyPEM, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	cert, _, err := authority.IssueClient(key.Public(), pki.Client{
		User: name, Groups: []string{"system:masters"}, URI: authn.KubeconfigURI(logical.Root, "", "admin"), TTL: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(m.server.root)
	config.CertData, config.KeyData = cert, keyPEM
	return config
}

func newCaller(t *testing.T, name string, config *rest.Config, headers map[string]string, may func(string, matrixCall) bool) matrixIdentity {
	t.Helper()
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	plain := *client
	plain.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	t.Cleanup(plain.CloseIdleConnections)
	return matrixIdentity{name, &plain, headers, may}
}

// each runs all identities, some at once.
func (m *matrix) each(t *testing.T, run func(*testing.T, matrixIdentity)) {
	for _, who := range m.identities {
		t.Run(who.name, func(t *testing.T) {
			t.Parallel()
			run(t, who)
		})
	}
}

// plain asks everything of every cluster by an address of it.
func (m *matrix) plain(t *testing.T, who matrixIdentity, address func(cluster, path string) string) {
	for _, target := range m.targets {
		if target == logical.Root && address(target, "") != "" {
			continue // it has but one
		}
		for _, c := range matrixCalls {
			if who.name == rootAdministrator && c.write && target != m.home {
				continue // it may, and what is there must stay as it is
			}
			status, body := m.ask(t, who, address(target, c.path), c)
			allowed := who.may(target, c)
			switch {
			case !allowed && status != http.StatusUnauthorized && status != http.StatusForbidden:
				t.Errorf("%s at %s: got %d %s, want a refusal", c.name, target, status, body)
			case allowed && (status == http.StatusUnauthorized || status == http.StatusForbidden || status >= 500):
				t.Errorf("%s at %s: got %d %s, want it done", c.name, target, status, body)
			}
			if !allowed && strings.Contains(body, canary(target)) {
				t.Errorf("%s at %s tells what is there: %s", c.name, target, body)
			}
			if allowed && status < 300 {
				m.let.add()
			}
		}
	}
}

// tricks asks everything of every cluster by paths that are nobody's.
func (m *matrix) tricks(t *testing.T, who matrixIdentity) {
	for shape, path := range trickShapes {
		for _, target := range m.targets {
			for _, c := range matrixCalls {
				status, body := m.ask(t, who, path(m.home, target, c.path), c)
				if status < 300 || status >= 500 || strings.Contains(body, "canary-of-") {
					t.Errorf("%s, %s at %s: got %d %s", shape, c.name, target, status, body)
				}
			}
		}
	}
}

// ask sends a call.
func (m *matrix) ask(t *testing.T, who matrixIdentity, path string, c matrixCall) (int, string) {
	t.Helper()
	m.asked.add()
	name := fmt.Sprintf("m%d", tenants.Add(1))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, c.method, m.server.options.URL()+strings.ReplaceAll(path, "NAME", name), strings.NewReader(strings.ReplaceAll(c.body, "NAME", name)))
	if err != nil {
		t.Fatal(err)
	}
	if req.Header.Set("Content-Type", c.contentType); c.contentType == "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for key, value := range who.headers {
		req.Header.Set(key, value)
	}
	response, err := who.client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", c.method, path, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", c.method, path, err)
	}
	return response.StatusCode, string(body)
}
