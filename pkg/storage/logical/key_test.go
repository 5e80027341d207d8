package logical

import (
	"context"
	"errors"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/validation/path"
	"k8s.io/apimachinery/pkg/runtime/schema"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
)

func TestClusterNamesAreDNSLabels(t *testing.T) {
	for name, valid := range map[string]bool{
		"a": true, "a1-b": true, "0": true, Root: true, strings.Repeat("a", 63): true,
		"": false, "-a": false, "a-": false, "A": false, "a.b": false, "a/b": false, "ä": false, "a b": false, "..": false, strings.Repeat("a", 64): false,
	} {
		if got := ValidName(name) == nil; got != valid {
			t.Errorf("%q: valid is %v", name, got)
		}
		if got := validName(name); got != valid {
			t.Errorf("%q: valid in the hot path is %v", name, got)
		}
	}
}

func TestAContextWithoutAClusterIsAnError(t *testing.T) {
	ctx := context.Background()
	if _, err := Cluster(ctx); !errors.Is(err, ErrNoCluster) {
		t.Errorf("got %v", err)
	}
	if _, err := Cluster(WithCluster(ctx, "")); !errors.Is(err, ErrNoCluster) {
		t.Errorf("an empty name: got %v", err)
	}
	if _, err := Cluster(WithCluster(ctx, "a/b")); err == nil {
		t.Error("a name with a slash is taken")
	}
	if _, err := Cluster(WithAllClusters(ctx)); !errors.Is(err, ErrNoCluster) {
		t.Errorf("all clusters: got %v", err)
	}
	if got, err := Cluster(WithCluster(ctx, "a")); err != nil || got != "a" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestKeysHaveTheClusterFirst(t *testing.T) {
	ctx := WithCluster(context.Background(), "c")
	in := func(namespace string) context.Context { return genericapirequest.WithNamespace(ctx, namespace) }
	vs := schema.GroupResource{Group: "networking.istio.io", Resource: "virtualservices"}
	ns := schema.GroupResource{Resource: "namespaces"}

	for _, c := range []struct {
		name string
		got  string
		want string
	}{
		{"all namespaces", KeyRootFunc(vs, true)(ctx), "/networking.istio.io/virtualservices/c"},
		{"one namespace", KeyRootFunc(vs, true)(in("n")), "/networking.istio.io/virtualservices/c/n"},
		{"a cluster-scoped resource has no namespace", KeyRootFunc(ns, false)(in("n")), "/core/namespaces/c"},
		{"no cluster", KeyRootFunc(vs, true)(context.Background()), ""},
		{"a namespace that is none", KeyRootFunc(vs, true)(in("../d")), ""},
	} {
		if c.got != c.want {
			t.Errorf("%s: root is %q, want %q", c.name, c.got, c.want)
		}
	}

	for _, c := range []struct {
		name       string
		gr         schema.GroupResource
		namespaced bool
		ctx        context.Context
		object     string
		want       string // empty for an error
	}{
		{"namespaced", vs, true, in("n"), "x", "/networking.istio.io/virtualservices/c/n/x"},
		{"cluster-scoped", ns, false, ctx, "x", "/core/namespaces/c/x"},
		{"cluster-scoped with a namespace in the request", ns, false, in("x"), "x", "/core/namespaces/c/x"},
		{"a namespace named as the cluster", vs, true, in("c"), "c", "/networking.istio.io/virtualservices/c/c/c"},
		{"no namespace", vs, true, ctx, "x", ""},
		{"no name", vs, true, in("n"), "", ""},
		{"no cluster", vs, true, genericapirequest.WithNamespace(context.Background(), "n"), "x", ""},
		{"a slash in the name", vs, true, in("n"), "x/y", ""},
		{"dots for a name", vs, true, in("n"), "..", ""},
		{"a slash in the namespace", vs, true, in("n/m"), "x", ""},
		{"dots for a namespace", vs, true, in(".."), "x", ""},
	} {
		got, err := KeyFunc(c.gr, c.namespaced)(c.ctx, c.object)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: got %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}

func TestParseKey(t *testing.T) {
	const prefix = "/registry/g/r"
	for _, c := range []struct {
		key        string
		namespaced bool
		want       [3]string // zero for an error
	}{
		{"/registry/g/r/c/n/x", true, [3]string{"c", "n", "x"}},
		{"/registry/g/r/c/x", false, [3]string{"c", "", "x"}},
		{"/registry/g/r/c/c/c", true, [3]string{"c", "c", "c"}},
		{"/registry/g/r/c/system:masters", false, [3]string{"c", "", "system:masters"}},
		{"/registry/g/r/c/n/x", false, [3]string{}},
		{"/registry/g/r/c/x", true, [3]string{}},
		{"/registry/g/r/c/n/x/y", true, [3]string{}},
		{"/registry/g/r/c/n/", true, [3]string{}},
		{"/registry/g/r/c//x", true, [3]string{}},
		{"/registry/g/r//n/x", true, [3]string{}},
		{"/registry/g/r/C/n/x", true, [3]string{}},
		{"/registry/g/rr/c/n/x", true, [3]string{}},
		{"/registry/g/r", true, [3]string{}},
		{"", true, [3]string{}},
	} {
		cluster, namespace, name, err := ParseKey(prefix, c.key, c.namespaced)
		if got := [3]string{cluster, namespace, name}; err == nil && got != c.want || (err == nil) != (c.want != [3]string{}) {
			t.Errorf("%s: got %q, %v; want %q", c.key, got, err, c.want)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	const prefix = "/registry/g/r"
	for _, rest := range []string{"/c/n/x", "/c/x", "//", "", "/c/n/x/y", "/../n/x", "/c/%2f/x"} {
		f.Add(prefix+rest, true)
		f.Add(prefix+rest, false)
	}
	f.Fuzz(func(t *testing.T, key string, namespaced bool) {
		cluster, namespace, name, err := ParseKey(prefix, key, namespaced)
		if err != nil {
			if cluster+namespace+name != "" {
				t.Fatalf("an error and %q %q %q", cluster, namespace, name)
			}
			return
		}
		if ValidName(cluster) != nil || name == "" || namespaced != (namespace != "") {
			t.Fatalf("%q: got %q %q %q", key, cluster, namespace, name)
		}
		if got := prefix + "/" + joinPath(cluster, namespace, name); got != key {
			t.Fatalf("%q becomes %q", key, got)
		}
		if got, ok := keyCluster(prefix, key); !ok || got != cluster {
			t.Fatalf("%q is of %q, not of %q", key, got, cluster)
		}
	})
}

func FuzzClusterName(f *testing.F) {
	for _, name := range []string{"a", "a-b", "-", "A", "é", "a\x00"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if got, want := validName(name), ValidName(name) == nil; got != want {
			t.Fatalf("%q: %v in the hot path, %v as a rule", name, got, want)
		}
	})
}

// FuzzKeyFunc: whatever is asked for, a key is of the request's cluster, namespace and
// name, or there is none.
func FuzzKeyFunc(f *testing.F) {
	gr := schema.GroupResource{Group: "g", Resource: "r"}
	f.Add("c", "n", "x")
	f.Add("c", "n", "../../d/n/x")
	f.Add("c", "../d", "x")
	f.Add("c/d", "n", "x")
	f.Fuzz(func(t *testing.T, cluster, namespace, name string) {
		ctx := genericapirequest.WithNamespace(WithCluster(context.Background(), cluster), namespace)
		key, err := KeyFunc(gr, true)(ctx, name)
		if err != nil {
			return
		}
		c, ns, n, err := ParseKey("/g/r", key, true)
		if err != nil || c != cluster || ns != namespace || n != name {
			t.Fatalf("%q of %q %q %q is parsed as %q %q %q, %v", key, cluster, namespace, name, c, ns, n, err)
		}
		root := KeyRootFunc(gr, true)(ctx)
		if !strings.HasPrefix(key, root+"/") || len(path.IsValidPathSegmentName(namespace)) > 0 {
			t.Fatalf("%q is not below %q", key, root)
		}
	})
}
