package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"k8s.io/client-go/rest"

	"github.com/vmesh-io/vmesh/test/e2e/rawapi"
)

func TestEqualNamesInTwoVirtualClustersAreTwoObjects(t *testing.T) {
	a, b := newTenant(t, shared), newTenant(t, shared)
	uids := map[string]string{}
	for _, tenant := range []*tenant{a, b} {
		tenant.namespace(t, "shop")
		for _, path := range []string{"/api/v1/namespaces/shop/configmaps", "/api/v1/namespaces/shop/secrets"} {
			mustDo(t, tenant.raw, http.MethodPost, path, fmt.Sprintf(`{"metadata":{"name":"same","labels":{"of":%q}}}`, tenant.name))
		}
		created := mustDo(t, tenant.raw, http.MethodPost, virtualServices("shop"), virtualService("same"))
		uids[tenant.name] = created.Text("metadata", "uid")
	}
	if uids[a.name] == uids[b.name] {
		t.Errorf("both have uid %s", uids[a.name])
	}

	mustDo(t, a.raw, http.MethodPatch, virtualServices("shop")+"/same", `{"spec":{"hosts":["changed"]}}`)
	if got := string(mustDo(t, b.raw, http.MethodGet, virtualServices("shop")+"/same", "").Body); strings.Contains(got, "changed") {
		t.Errorf("the other virtual cluster sees the change: %s", got)
	}
	refused(t, do(t, b.raw, http.MethodDelete, virtualServices("shop")+"/same", fmt.Sprintf(`{"preconditions":{"uid":%q}}`, uids[a.name])),
		http.StatusConflict, "the UID in the precondition")

	mustDo(t, a.raw, http.MethodDelete, virtualServices("shop"), "")
	mustDo(t, a.raw, http.MethodDelete, "/api/v1/namespaces/shop/configmaps", "")
	for _, path := range []string{virtualServices("shop"), "/api/v1/namespaces/shop/configmaps", "/api/v1/configmaps", "/apis/networking.istio.io/v1beta1/virtualservices"} {
		if n := count(mustDo(t, a.raw, http.MethodGet, path, "")); n != 0 {
			t.Errorf("%s has %d objects after all were deleted", path, n)
		}
		if n := count(mustDo(t, b.raw, http.MethodGet, path, "")); n != 1 {
			t.Errorf("the other virtual cluster's %s has %d objects, want 1", path, n)
		}
	}
}

func count(list *rawapi.Response) int {
	items, _ := list.Field("items").([]any)
	return len(items)
}

func TestPagesOfOneVirtualClusterOpenNothingOfAnother(t *testing.T) {
	a, b := newTenant(t, shared), newTenant(t, shared)
	for _, tenant := range []*tenant{a, b} {
		for i := range 5 {
			mustDo(t, tenant.raw, http.MethodPost, "/api/v1/namespaces/default/configmaps",
				fmt.Sprintf(`{"metadata":{"name":"cm-%d"},"data":{"of":%q}}`, i, tenant.name))
		}
	}
	const path = "/api/v1/configmaps?limit=2"
	page := mustDo(t, a.raw, http.MethodGet, path, "")
	token := page.Text("metadata", "continue")
	if token == "" {
		t.Fatalf("no further page: %v", page)
	}
	if left := page.Field("metadata", "remainingItemCount"); left != float64(3) {
		t.Errorf("%v objects remain, want the 3 of this virtual cluster", left)
	}
	for name, client := range map[string]*rawapi.Client{"another": b.raw, "the root": rawClient(t, shared.root)} {
		response := do(t, client, http.MethodGet, path+"&continue="+token, "")
		if strings.Contains(string(response.Body), `"of":"`+a.name+`"`) {
			t.Errorf("%s reads with it: %v", name, response)
		}
	}
}

func TestWatchesSeeNothingOfOtherVirtualClusters(t *testing.T) {
	a, b := newTenant(t, shared), newTenant(t, shared)
	for _, path := range []string{"/api/v1/configmaps", "/api/v1/namespaces/default/configmaps", "/api/v1/namespaces/default/configmaps?fieldSelector=metadata.name%3Dsame"} {
		t.Run(path, func(t *testing.T) {
			events := watchRaw(t, a.config, path)
			mustDo(t, b.raw, http.MethodPost, "/api/v1/namespaces/default/configmaps", `{"metadata":{"name":"same","labels":{"of":"b"}}}`)
			mustDo(t, b.raw, http.MethodDelete, "/api/v1/namespaces/default/configmaps/same", "")
			mustDo(t, a.raw, http.MethodPost, "/api/v1/namespaces/default/configmaps", `{"metadata":{"name":"same","labels":{"of":"a"}}}`)
			mustDo(t, a.raw, http.MethodDelete, "/api/v1/namespaces/default/configmaps/same", "")
			for _, want := range []string{"ADDED", "DELETED"} {
				event := next(t, events)
				if event.Type != want || event.Object.Metadata.Labels["of"] != "a" {
					t.Errorf("got %+v, want %s of this virtual cluster's", event, want)
				}
			}
		})
	}
}

// access is an identity's way to a path of the server.
func access(t *testing.T, identity *rest.Config, base string) *rawapi.Client {
	t.Helper()
	config := rest.CopyConfig(identity)
	config.Host = base
	return rawClient(t, config)
}

func TestIdentities(t *testing.T) {
	a, b := newTenant(t, shared), newTenant(t, shared)
	anonymous := rest.AnonymousClientConfig(shared.root)
	root := shared.options.URL()
	at := func(tenant *tenant) string { return root + "/clusters/" + tenant.name }
	for _, c := range []struct {
		name     string
		identity *rest.Config
		base     string
		path     string
		want     int
	}{
		{"a tenant enters its own virtual cluster", a.config, at(a), "/api/v1/namespaces", 200},
		{"a tenant does not enter another's", a.config, at(b), "/api/v1/namespaces", 401},
		{"a tenant does not learn of another's discovery", a.config, at(b), "/apis", 401},
		{"a tenant does not enter the root", a.config, root, "/apis/vmesh.io/v1alpha1/virtualclusters", 401},
		{"a tenant does not read the process's metrics", a.config, root, "/metrics", 401},
		{"a tenant does not learn which virtual clusters there are", a.config, root + "/clusters/nowhere", "/api/v1/namespaces", 401},
		{"the root's administrator enters every virtual cluster", shared.root, at(a), "/api/v1/namespaces", 200},
		{"the root's administrator is told that there is none of that name", shared.root, root + "/clusters/nowhere", "/api/v1/namespaces", 404},
		{"nobody reads a virtual cluster without an identity", anonymous, at(a), "/api/v1/namespaces", 403},
		{"nobody discovers a virtual cluster without an identity", anonymous, at(a), "/apis", 403},
		{"nobody finds out without an identity that a virtual cluster exists", anonymous, at(a), "/readyz", 403},
		{"nor that it does not", anonymous, root + "/clusters/nowhere", "/readyz", 403},
		{"nobody reads the root without an identity", anonymous, root, "/apis/vmesh.io/v1alpha1/virtualclusters", 403},
		{"a load balancer asks for readiness without an identity", anonymous, root, "/readyz", 200},
		{"and for life", anonymous, root, "/livez", 200},
		{"a tenant's virtual cluster has the version", a.config, at(a), "/version", 200},
		{"a tenant's virtual cluster has readiness", a.config, at(a), "/readyz", 200},
		{"a virtual cluster has no metrics", shared.root, at(a), "/metrics", 404},
		{"a virtual cluster has no profiles", shared.root, at(a), "/debug/pprof/", 404},
		{"a virtual cluster has no logs", shared.root, at(a), "/logs/", 404},
		{"a virtual cluster has no virtual clusters", shared.root, at(a), "/apis/vmesh.io/v1alpha1/virtualclusters", 404},
	} {
		t.Run(c.name, func(t *testing.T) {
			if response := do(t, access(t, c.identity, c.base), http.MethodGet, c.path, ""); response.Status != c.want {
				t.Errorf("GET %s%s: got %v, want %d", c.base, c.path, response, c.want)
			}
		})
	}
}

func TestNobodyBecomesAnotherVirtualClustersByImpersonation(t *testing.T) {
	a, b := newTenant(t, shared), newTenant(t, shared)
	root := shared.options.URL()
	for name, as := range map[string]rest.ImpersonationConfig{
		"a user":                        {UserName: "jane"},
		"the administrators' group":     {UserName: "jane", Groups: []string{"system:masters"}},
		"another's identity":            {UserName: "admin", Groups: []string{"system:masters"}, Extra: map[string][]string{"vmesh.io/virtual-cluster": {b.name}}},
		"the root's identity":           {UserName: "admin", Groups: []string{"system:masters"}, Extra: map[string][]string{"vmesh.io/virtual-cluster": {"root"}}},
		"the root's identity, two ways": {UserName: "admin", Groups: []string{"system:masters"}, Extra: map[string][]string{"vmesh.io/virtual-cluster": {a.name, "root"}}},
	} {
		t.Run(name, func(t *testing.T) {
			config := rest.CopyConfig(a.config)
			config.Impersonate = as
			for path, base := range map[string]string{
				"/api/v1/namespaces":                      root + "/clusters/" + b.name,
				"/apis/vmesh.io/v1alpha1/virtualclusters": root,
				"/metrics": root,
			} {
				if response := do(t, access(t, config, base), http.MethodGet, path, ""); response.Status != 401 && response.Status != 403 {
					t.Errorf("GET %s%s: %v", base, path, response)
				}
			}
			// At home it is at most what its caller is.
			response := do(t, access(t, config, a.config.Host), http.MethodGet, "/api/v1/namespaces", "")
			if response.Status != 200 && response.Status != 403 {
				t.Errorf("at home: %v", response)
			}
		})
	}
}

func TestPathsLeadIntoNoOtherVirtualCluster(t *testing.T) {
	a, b := newTenant(t, shared), newTenant(t, shared)
	for _, tenant := range []*tenant{a, b} {
		mustDo(t, tenant.raw, http.MethodPost, "/api/v1/namespaces/default/configmaps", fmt.Sprintf(`{"metadata":{"name":"here"},"data":{"of":%q}}`, tenant.name))
	}
	const list = "/api/v1/namespaces/default/configmaps"
	from := "/clusters/" + a.name
	for _, path := range []string{
		from + "/../" + b.name + list,
		from + "/%2e%2e/" + b.name + list,
		from + "%2f..%2f" + b.name + list,
		from + "%2F" + b.name + list,
		from + "/clusters/" + b.name + list,
		from + "//clusters/" + b.name + list,
		from + "/..//" + b.name + list,
		from + "/./../" + b.name + list,
		"//clusters/" + b.name + list,
		"/clusters//" + b.name + list,
		"/clusters/./" + b.name + list,
		"/clusters/../clusters/" + b.name + list,
		"/clusters/%74" + b.name[1:] + list,
		"/clusters/" + strings.ToUpper(b.name) + list,
		"/CLUSTERS/" + b.name + list,
		"/%63lusters/" + b.name + list,
		"/clusters/" + b.name + "%00" + list,
		"/clusters/" + b.name + ";" + a.name + list,
		"/clusters/root" + list,
		"/clusters/" + list,
		"/clusters",
		"/clusters/",
		"/clusters/" + a.name + "%2f" + list,
		from + "/api/v1/namespaces/..%2f..%2f" + b.name + "%2fdefault/configmaps",
		from + "/api/v1/namespaces/default/configmaps/..%2f..%2f" + b.name + "%2fdefault%2fhere",
		from + "/api/v1/namespaces/default%2f..%2f..%2f" + b.name + "%2fdefault/configmaps/here",
		from + "/api/v1/namespaces/%2e%2e/configmaps",
		from + "/api/v1/namespaces/default/configmaps/%2e%2e",
	} {
		t.Run(path, func(t *testing.T) {
			response := do(t, access(t, a.config, shared.options.URL()), http.MethodGet, path, "")
			if response.Status < 300 || strings.Contains(string(response.Body), `"of":"`+b.name+`"`) {
				t.Errorf("a tenant gets %v", response)
			}
			// One who may enter both is not let in by a path that can be read in two ways.
			response = do(t, access(t, shared.root, shared.options.URL()), http.MethodGet, path, "")
			if response.Status < 300 {
				t.Errorf("the root's administrator gets %v", response)
			}
		})
	}
	for name, c := range map[string]struct{ path, of string }{
		"its own":             {from + list, a.name},
		"with a trailing /":   {from + list + "/", a.name},
		"an escaped own path": {from + "/api/v1/namespaces/d%65fault/configmaps", a.name},
	} {
		t.Run(name, func(t *testing.T) {
			response := do(t, access(t, a.config, shared.options.URL()), http.MethodGet, c.path, "")
			if response.Status != http.StatusOK || !strings.Contains(string(response.Body), `"of":"`+c.of+`"`) {
				t.Errorf("GET %s: %v", c.path, response)
			}
		})
	}
}
