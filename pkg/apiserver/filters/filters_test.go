package filters

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/vmesh-io/vmesh/pkg/authz"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

func TestResolve(t *testing.T) {
	for _, c := range []struct {
		name, url, cluster, inner string
		prefixed                  bool
	}{
		{"the root", "/apis/vmesh.io/v1alpha1/virtualclusters", "", "", false},
		{"a virtual cluster", "/clusters/shop/api/v1/namespaces", "shop", "/api/v1/namespaces", true},
		{"its top", "/clusters/shop/", "shop", "/", true},
		{"its top without a slash", "/clusters/shop", "shop", "/", true},
		{"its query stays", "/clusters/shop/api?limit=1", "shop", "/api?limit=1", true},
		{"an encoded name in the rest", "/clusters/shop/api/v1/a%2Fb", "shop", "/api/v1/a%2Fb", true},
		{"a prefix in a virtual cluster is plain text", "/clusters/shop/clusters/other/api", "shop", "/clusters/other/api", true},
		{"no name", "/clusters/", "", "", true},
		{"no name and no slash", "/clusters", "", "", true},
		{"an encoded slash in the name", "/clusters/shop%2Fapi/v1", "", "", true},
		{"an encoded letter in the name", "/clusters/%73hop/api", "", "", true},
		{"an encoded prefix", "/%63lusters/shop/api/%2F", "", "", true},
		{"dots", "/clusters/../clusters/shop/api", "", "", true},
		{"two slashes", "/clusters//shop/api", "", "", true},
		{"capitals in the name", "/clusters/Shop/api", "", "", true},
		{"capitals in the prefix", "/Clusters/shop/api", "", "", false},
		{"the root's own name", "/clusters/root/api", "", "", true},
		{"a longer prefix", "/clustersx/shop/api", "", "", false},
		{"dots in the rest", "/clusters/shop/api/../../other/api", "", "", true},
		{"encoded dots in the rest", "/clusters/shop/%2e%2e/other/api", "", "", true},
		{"a dot in the rest", "/clusters/shop/./api", "", "", true},
		{"two slashes in the rest", "/clusters/shop//api", "", "", true},
		{"two slashes at the end", "/clusters/shop/api//", "", "", true},
		{"a slash at the end", "/clusters/shop/api/", "shop", "/api/", true},
		{"dots in a name", "/clusters/shop/api/v1/configmaps/a..b", "shop", "/api/v1/configmaps/a..b", true},
		{"through a host", proxyPrefix + "shop/proxy/api/v1?watch=true", "shop", "/api/v1?watch=true", true},
		{"its top through a host", proxyPrefix + "shop/proxy", "shop", "/", true},
		{"the virtual cluster itself", proxyPrefix + "shop", "", "", false},
		{"its status", proxyPrefix + "shop/status", "", "", false},
		{"a longer subresource", proxyPrefix + "shop/proxyx/api", "", "", false},
		{"capitals in the subresource", proxyPrefix + "shop/Proxy/api", "", "", false},
		{"capitals in a host's prefix", "/apis/vmesh.io/v1alpha1/VirtualClusters/shop/proxy/api", "", "", false},
		{"another version", "/apis/vmesh.io/v1/virtualclusters/shop/proxy/api", "", "", false},
		{"the root through a host", proxyPrefix + "root/proxy/api", "", "", true},
		{"no name through a host", proxyPrefix + "/proxy/api", "", "", true},
		{"capitals in the name through a host", proxyPrefix + "Shop/proxy/api", "", "", true},
		{"an encoded slash before proxy", proxyPrefix + "shop%2Fproxy/api", "", "", true},
		{"an encoded slash in the name through a host", proxyPrefix + "shop%2Fother/proxy/api", "", "", false},
		{"an encoded letter of proxy", proxyPrefix + "shop/%70roxy/api/%2F", "", "", true},
		{"dots through a host", proxyPrefix + "shop/proxy/../../other/proxy/api", "", "", true},
		{"dots before the name", proxyPrefix + "../virtualclusters/shop/proxy/api", "", "", false},
		{"a proxy in a proxy is plain text", proxyPrefix + "shop/proxy" + proxyPrefix + "other/proxy/api", "shop", proxyPrefix + "other/proxy/api", true},
		{"a prefix in a proxy is plain text", proxyPrefix + "shop/proxy/clusters/other/api", "shop", "/clusters/other/api", true},
		{"a proxy in a virtual cluster is plain text", "/clusters/shop" + proxyPrefix + "other/proxy/api", "shop", proxyPrefix + "other/proxy/api", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			u, err := url.Parse(c.url)
			if err != nil {
				t.Fatal(err)
			}
			before := *u
			cluster, inner, prefixed := Resolve(u)
			if cluster != c.cluster || prefixed != c.prefixed {
				t.Errorf("resolved to %q, %t; want %q, %t", cluster, prefixed, c.cluster, c.prefixed)
			}
			if c.inner != "" && (inner == nil || inner.RequestURI() != c.inner) {
				t.Errorf("inner URL is %v, want %s", inner, c.inner)
			}
			if *u != before {
				t.Error("the caller's URL was changed")
			}
		})
	}
}

func FuzzResolve(f *testing.F) {
	for _, seed := range []string{"/clusters/shop/api", "/clusters/a%2fb/api", "/clusters/a/../b", "//clusters/a", "/clusters/a/%2e%2e/b?x", proxyPrefix + "a/proxy/api/%2F",
		proxyPrefix + "a%2Fproxy", proxyPrefix + "a/proxy/../b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := url.ParseRequestURI(raw)
		if err != nil {
			return
		}
		cluster, inner, prefixed := Resolve(u)
		if cluster == "" {
			if inner != nil {
				t.Fatalf("%q names no virtual cluster and has an inner URL", raw)
			}
			return
		}
		if !prefixed || logical.ValidName(cluster) != nil || cluster == logical.Root {
			t.Fatalf("%q was resolved to %q", raw, cluster)
		}
		spelled := false
		for _, want := range []string{clustersPrefix + cluster + inner.Path, proxyPrefix + cluster + proxySuffix + inner.Path} {
			spelled = spelled || u.Path == want || u.Path == strings.TrimSuffix(want, "/")
		}
		if !spelled {
			t.Fatalf("%q was taken apart into %q and %q", u.Path, cluster, inner.Path)
		}
		// No program on the way makes another path of it.
		if cleaned := path.Clean(inner.Path); cleaned != inner.Path && cleaned+"/" != inner.Path {
			t.Fatalf("%q leaves %q, which may be read as %q", raw, inner.Path, cleaned)
		}
		// Both spellings of the rest must say the same.
		if decoded, err := url.PathUnescape(inner.EscapedPath()); err != nil || decoded != inner.Path {
			t.Fatalf("%q leaves %q, which is spelled %q", raw, inner.Path, inner.EscapedPath())
		}
	})
}

func TestEachClusterGetsItsOwnContext(t *testing.T) {
	var cluster, path string
	seen := http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		cluster, _ = logical.Cluster(req.Context())
		path = req.URL.Path
		if authz.InHostView(req.Context()) {
			path = "view:" + path
		}
	})
	other := http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		seen(nil, req)
		path = "root:" + path
	})
	handler := WithCluster(other, seen, &HostView{Cluster: "mesh", Groups: sets.New("networking.istio.io")})
	for _, c := range []struct {
		target, cluster, path string
		code                  int
	}{
		{"/api", logical.Root, "root:/api", 200},
		{"/clusters/shop/api", "shop", "/api", 200},
		{"/clusters/Shop/api", "", "", 404},
		{proxyPrefix + "shop/proxy/api", "shop", "/api", 200},
		{proxyPrefix + "Shop/proxy/api", "", "", 404},
		{proxyPrefix + "shop", logical.Root, "root:" + proxyPrefix + "shop", 200},
		{"/apis/networking.istio.io", logical.Root, "root:/apis/networking.istio.io", 200},
		{"/apis/networking.istio.io/v1", logical.Root, "root:/apis/networking.istio.io/v1", 200},
		{"/apis/networking.istio.io/v1/virtualservices", "mesh", "view:/apis/networking.istio.io/v1/virtualservices", 200},
		{"/apis/networking.istio.io/v1/namespaces/a%2Fb/virtualservices", "mesh", "view:/apis/networking.istio.io/v1/namespaces/a/b/virtualservices", 200},
		{"/apis/networking.istio.io/v1/../../../clusters/shop/api", "", "", 404},
		{"/apis/networking.istio.io/../vmesh.io/v1alpha1/virtualclusters", "", "", 404},
		{"/apis/networking.istio.io//v1/virtualservices", "", "", 404},
		{"/apis/networking.istio.io%2Fv1/virtualservices", "", "", 404},
		{"/apis/Networking.istio.io/v1/virtualservices", logical.Root, "root:/apis/Networking.istio.io/v1/virtualservices", 200},
		{"/apis/security.istio.io/v1/peerauthentications", logical.Root, "root:/apis/security.istio.io/v1/peerauthentications", 200},
		{"/clusters/shop/apis/networking.istio.io/v1/virtualservices", "shop", "/apis/networking.istio.io/v1/virtualservices", 200},
	} {
		cluster, path = "", ""
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, c.target, nil))
		if w.Code != c.code || cluster != c.cluster || path != c.path {
			t.Errorf("%s: code %d, cluster %q, path %q", c.target, w.Code, cluster, path)
		}
	}
}

func codecs() runtime.NegotiatedSerializer {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	scheme.AddUnversionedTypes(schema.GroupVersion{Version: "v1"}, &metav1.Status{})
	return serializer.NewCodecFactory(scheme)
}

type clusterStates map[string]string

func (c clusterStates) State(_ context.Context, name string) (exists, deleting bool, frozen string, err error) {
	switch c[name] {
	case "broken":
		return false, false, "", errors.New("etcd is away")
	case "frozen":
		frozen = "we are moving"
	}
	return c[name] != "", c[name] == "deleting", frozen, nil
}

func TestState(t *testing.T) {
	states := clusterStates{"here": "serving", "going": "deleting", "broken": "broken", "cold": "frozen"}
	handler := WithState(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), states, codecs())
	for _, c := range []struct {
		cluster, verb string
		code          int
	}{
		{"here", "create", 200}, {"here", "get", 200},
		{"nowhere", "get", 404}, {"nowhere", "create", 404},
		{"going", "get", 200}, {"going", "list", 200}, {"going", "watch", 200},
		{"going", "create", 403}, {"going", "delete", 403}, {"going", "patch", 403},
		{"cold", "get", 200}, {"cold", "list", 200}, {"cold", "watch", 200},
		{"cold", "create", 403}, {"cold", "update", 403}, {"cold", "patch", 403}, {"cold", "delete", 403}, {"cold", "deletecollection", 403},
		{"broken", "get", 500}, {"", "get", 500},
	} {
		ctx := request.WithRequestInfo(context.Background(), &request.RequestInfo{IsResourceRequest: true, Verb: c.verb})
		if c.cluster != "" {
			ctx = logical.WithCluster(ctx, c.cluster)
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil).WithContext(ctx))
		if w.Code != c.code {
			t.Errorf("%s in %q: code %d, want %d", c.verb, c.cluster, w.Code, c.code)
		}
	}
}

func TestAFrozenVirtualClusterTakesWhatChangesNoConfiguration(t *testing.T) {
	handler := WithState(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), clusterStates{"cold": "frozen"}, codecs())
	for _, c := range []struct {
		name string
		info request.RequestInfo
		code int
	}{
		{"an event", request.RequestInfo{Resource: "events"}, 200},
		{"an event of the newer group", request.RequestInfo{APIGroup: "events.k8s.io", Resource: "events"}, 200},
		{"a lease", request.RequestInfo{APIGroup: "coordination.k8s.io", Resource: "leases"}, 200},
		{"a token", request.RequestInfo{Resource: "serviceaccounts", Subresource: "token"}, 200},
		{"a service account", request.RequestInfo{Resource: "serviceaccounts"}, 403},
		{"a question about rights", request.RequestInfo{APIGroup: "authorization.k8s.io", Resource: "selfsubjectaccessreviews"}, 200},
		{"a question about a token", request.RequestInfo{APIGroup: "authentication.k8s.io", Resource: "tokenreviews"}, 200},
		{"a role", request.RequestInfo{APIGroup: "rbac.authorization.k8s.io", Resource: "roles"}, 403},
		{"a status", request.RequestInfo{APIGroup: "networking.istio.io", Resource: "virtualservices", Subresource: "status"}, 403},
		{"something named like an event", request.RequestInfo{APIGroup: "networking.istio.io", Resource: "events"}, 403},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.info.IsResourceRequest, c.info.Verb = true, "create"
			ctx := request.WithRequestInfo(logical.WithCluster(t.Context(), "cold"), &c.info)
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/", nil).WithContext(ctx))
			if w.Code != c.code || c.code == 403 && !strings.Contains(w.Body.String(), "frozen and takes no writes: we are moving") {
				t.Errorf("code %d: %s", w.Code, w.Body)
			}
		})
	}
	w := httptest.NewRecorder()
	ctx := request.WithRequestInfo(logical.WithCluster(t.Context(), "cold"), &request.RequestInfo{Verb: "get"})
	if handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/version", nil).WithContext(ctx)); w.Code != 200 {
		t.Errorf("/version: code %d", w.Code)
	}
}
