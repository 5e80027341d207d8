package logical

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

func TestAPurgedClusterIsEmptyAndItsNeighboursAreNot(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	resources := []Resource{configMaps, namespaces, virtualServices}
	const n = purgePage + 100
	stores := map[schema.GroupResource]storage.Interface{}
	for _, r := range resources {
		stores[r.GroupResource] = openResource(t, b, r)
	}
	in := func(name string, r Resource) cluster {
		return cluster{t: t, s: stores[r.GroupResource], r: r, name: name}
	}
	for _, name := range []string{"a", "ab", "b"} {
		for i := range 3 {
			in(name, configMaps).create("default", fmt.Sprint("x", i), name)
			in(name, namespaces).create("", fmt.Sprint("x", i), name)
		}
	}
	a := in("ab", virtualServices)
	for i := range n {
		o := a.new("shop", fmt.Sprintf("x%05d", i), "")
		o.Finalizers = []string{"example.com/stay"}
		if err := a.s.Create(a.ctx(), a.key(o.Namespace, o.Name), o, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	// Resources that this process does not serve, and keys that are no object's.
	plant(t, b, Resource{GroupResource: schema.GroupResource{Group: "old.example.com", Resource: "things"}}, "ab/default/x", "whatever")
	plant(t, b, configMaps, "ab/default/x/y/z", "junk")

	want := map[schema.GroupResource]int64{
		configMaps.GroupResource:                       4,
		namespaces.GroupResource:                       3,
		virtualServices.GroupResource:                  n,
		{Group: "old.example.com", Resource: "things"}: 1,
	}
	counts, err := b.Count(testContext(t), "ab")
	if err != nil || !maps.Equal(counts, want) {
		t.Fatalf("counted %v, %v", counts, err)
	}

	w := a.watch(a.list("", storage.ListOptions{}).ResourceVersion)
	o := observe(t, b, virtualServices.GroupResource)
	if state := o.next(); strings.Count(state, " ab:") != n {
		t.Fatalf("the observer begins with %.100s", state)
	}
	last, total := 0, 0
	if err := b.Purge(testContext(t), "ab", func(removed, of int) {
		if removed < last || removed > of {
			t.Errorf("progress: %d of %d after %d", removed, of, last)
		}
		last, total = removed, of
	}); err != nil {
		t.Fatal(err)
	}
	if last != total || total != n+8 {
		t.Errorf("progress ends at %d of %d", last, total)
	}
	if counts, err := b.Count(testContext(t), "ab"); err != nil || len(counts) != 0 {
		t.Errorf("left are %v, %v", counts, err)
	}
	seen, revisions := map[string]bool{}, map[string]bool{}
	for len(seen) < n {
		event, obj := w.next()
		if event == "BOOKMARK" {
			continue
		}
		if !strings.HasPrefix(event, "DELETED ab shop/x") || seen[obj.Name] || revisions[obj.ResourceVersion] {
			t.Fatalf("got %s at revision %s", event, obj.ResourceVersion)
		}
		seen[obj.Name], revisions[obj.ResourceVersion] = true, true
	}
	for range n {
		if got := o.next(); !strings.HasPrefix(got, "DELETED ab:shop/x") {
			t.Fatalf("the observer is told %s", got)
		}
	}
	for _, name := range []string{"a", "b"} {
		for _, r := range []Resource{configMaps, namespaces} {
			if got := len(in(name, r).list("", storage.ListOptions{}).Items); got != 3 {
				t.Errorf("%s has %d %s", name, got, r.GroupResource)
			}
		}
	}
	for _, r := range resources {
		consistent(t, stores[r.GroupResource])
	}
}

func TestPurgeAndCountOfNothing(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	if err := b.Purge(testContext(t), "a", nil); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"", "a/b", "A"} {
		if err := b.Purge(testContext(t), name, nil); err == nil {
			t.Errorf("%q is purged", name)
		}
		if _, err := b.Count(testContext(t), name); err == nil {
			t.Errorf("%q is counted", name)
		}
	}
}

func TestAllIsThereAfterARestart(t *testing.T) {
	dir := t.TempDir()
	var want []string
	var before *object.List
	func() {
		e := startEtcd(t, dir)
		b := newTestBackend(t, BackendConfig{Client: e.Client()})
		a := cluster{t: t, s: openResource(t, b, configMaps), r: configMaps, name: "a"}
		for i := range 20 {
			a.create("default", fmt.Sprint("x", i), "1")
			a.update("default", fmt.Sprint("x", i), "2")
		}
		a.delete("default", "x7")
		before = a.list("", storage.ListOptions{})
		want = names(before)
		b.Close()
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}()
	b := newTestBackend(t, BackendConfig{Client: startEtcd(t, dir).Client()})
	a := cluster{t: t, s: openResource(t, b, configMaps), r: configMaps, name: "a"}
	for _, rv := range []string{"0", ""} {
		after := a.list("", storage.ListOptions{ResourceVersion: rv})
		if !slices.Equal(names(after), want) {
			t.Errorf("listed %q, want %q", names(after), want)
		}
		for i := range after.Items {
			if !equal(&after.Items[i], &before.Items[i]) {
				t.Errorf("%#v has become %#v", &before.Items[i], &after.Items[i])
			}
		}
	}
	a.watch("").expect("ADDED a default/x0 2")
}
