package filters

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/endpoints/request"

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
	for _, seed := range []string{"/clusters/shop/api", "/clusters/a%2fb/api", "/clusters/a/../b", "//clusters/a", "/clusters/a/%2e%2e/b?x"} {
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
		if want := "/clusters/" + cluster + inner.Path; u.Path != want && u.Path != strings.TrimSuffix(want, "/") {
			t.Fatalf("%q was taken apart into %q and %q", u.Path, cluster, inner.Path)
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
	})
	other := http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		seen(nil, req)
		path = "root:" + path
	})
	handler := WithCluster(other, seen, nil)
	for _, c := range []struct {
		target, cluster, path string
		code                  int
	}{
		{"/api", logical.Root, "root:/api", 200},
		{"/clusters/shop/api", "shop", "/api", 200},
		{"/clusters/Shop/api", "", "", 404},
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

func (c clusterStates) State(_ context.Context, name string) (exists, deleting bool, err error) {
	if c[name] == "broken" {
		return false, false, errors.New("etcd is away")
	}
	return c[name] != "", c[name] == "deleting", nil
}

func TestState(t *testing.T) {
	states := clusterStates{"here": "serving", "going": "deleting", "broken": "broken"}
	handler := WithState(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), states, codecs())
	for _, c := range []struct {
		cluster, verb string
		code          int
	}{
		{"here", "create", 200}, {"here", "get", 200},
		{"nowhere", "get", 404}, {"nowhere", "create", 404},
		{"going", "get", 200}, {"going", "list", 200}, {"going", "watch", 200},
		{"going", "create", 403}, {"going", "delete", 403}, {"going", "patch", 403},
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
