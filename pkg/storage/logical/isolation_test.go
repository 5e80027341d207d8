package logical

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/storage"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// neighbours are clusters whose names are made to be mistaken for one another, and
// for the namespaces in them.
func neighbours(t testing.TB, b *Backend, r Resource) []cluster {
	s := openResource(t, b, r)
	var out []cluster
	for _, name := range []string{"a", "ab", "a-b", Root} {
		out = append(out, cluster{t: t, s: s, r: r, name: name})
	}
	return out
}

func TestClustersWithTheSameNamesDoNotSeeEachOther(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	all := neighbours(t, b, configMaps)
	for _, c := range all {
		for _, namespace := range []string{"a", "ab", "default"} {
			for _, name := range []string{"a", "x"} {
				c.create(namespace, name, c.name)
			}
		}
	}
	mine := func(c cluster, namespaces ...string) []string {
		var want []string
		for _, namespace := range namespaces {
			want = append(want, c.name+":"+namespace+"/a="+c.name, c.name+":"+namespace+"/x="+c.name)
		}
		return want
	}
	for _, c := range all {
		for _, rv := range []string{"", "0"} {
			if got, want := names(c.list("", storage.ListOptions{ResourceVersion: rv})), mine(c, "a", "ab", "default"); !slices.Equal(got, want) {
				t.Errorf("%s, resourceVersion %q: listed %q", c.name, rv, got)
			}
		}
		if got := names(c.list("a", storage.ListOptions{})); !slices.Equal(got, mine(c, "a")) {
			t.Errorf("%s: listed %q in namespace a", c.name, got)
		}
		if o, err := c.get("a", "x"); err != nil || text(o) != c.name || o.Cluster() != c.name {
			t.Errorf("%s: got %v, %v", c.name, o, err)
		}
	}

	all[0].update("default", "x", "changed")
	all[0].delete("a", "a")
	for _, c := range all[1:] {
		if o, err := c.get("default", "x"); err != nil || text(o) != c.name {
			t.Errorf("%s: after a neighbour's update: got %v, %v", c.name, o, err)
		}
		if _, err := c.get("a", "a"); err != nil {
			t.Errorf("%s: after a neighbour's deletion: %v", c.name, err)
		}
	}
	if got := len(all[0].list("", storage.ListOptions{}).Items); got != 5 {
		t.Errorf("%d are left of 6", got)
	}
}

// TestARestartKeepsObjectsOfTheSameNameApart starts a watch cache over what is in etcd
// already.
func TestARestartKeepsObjectsOfTheSameNameApart(t *testing.T) {
	client := startEtcd(t, t.TempDir()).Client()
	first := newTestBackend(t, BackendConfig{Client: client})
	for _, c := range neighbours(t, first, configMaps) {
		c.create("default", "x", c.name)
		c.create("default", "y", c.name)
	}
	first.Close()
	for _, c := range neighbours(t, newTestBackend(t, BackendConfig{Client: client}), configMaps) {
		for _, rv := range []string{"", "0"} {
			want := []string{c.name + ":default/x=" + c.name, c.name + ":default/y=" + c.name}
			if got := names(c.list("", storage.ListOptions{ResourceVersion: rv})); !slices.Equal(got, want) {
				t.Errorf("%s, resourceVersion %q: listed %q", c.name, rv, got)
			}
		}
	}
}

func TestAWatchTellsOfItsClusterOnly(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	all := neighbours(t, b, configMaps)
	all[1].create("default", "before", "1")
	watchers := make([]*watcher, len(all))
	for i, c := range all {
		watchers[i] = c.watch("")
	}
	for i, c := range all {
		if i == 1 {
			watchers[i].expect("ADDED ab default/before 1")
		}
		watchers[i].expect("SYNCED")
		c.create("default", "x", "1")
		c.update("default", "x", c.name)
		c.delete("default", "x")
	}
	for i, c := range all {
		watchers[i].expect(
			"ADDED "+c.name+" default/x 1",
			"MODIFIED "+c.name+" default/x "+c.name,
			"DELETED "+c.name+" default/x "+c.name,
		)
	}
	for i, c := range all { // nothing else came in between
		c.create("default", "last", "")
		watchers[i].expect("ADDED " + c.name + " default/last ")
	}
}

func TestAWatchOfANamespaceOrAnObjectTellsOfItsClusterOnly(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	all := neighbours(t, b, namespaces)
	one := all[0]
	p := storage.SelectionPredicate{Label: labels.Everything(), Field: fields.OneTermEqualSelector("metadata.name", "default"), GetAttrs: storage.DefaultClusterScopedAttr}
	raw, err := one.s.Watch(one.ctx(), one.root()+"/default", storage.ListOptions{ResourceVersion: "1", Predicate: p})
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Stop()
	w := &watcher{t: t, w: raw}
	for _, c := range slices.Backward(all) {
		c.create("", "default", c.name)
		c.create("", "other", c.name)
	}
	one.update("", "default", "2")
	w.expect("ADDED a default a", "MODIFIED a default 2")
}

func TestAContinueTokenReadsNothingOfAnotherCluster(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	all := neighbours(t, b, configMaps)
	for _, c := range all {
		for i := range 5 {
			c.create("default", fmt.Sprint("x", i), c.name)
		}
	}
	for _, from := range all {
		page := from.list("", storage.ListOptions{Predicate: storage.SelectionPredicate{Limit: 2}})
		if len(page.Items) != 2 || page.Continue == "" {
			t.Fatalf("got %d items and token %q", len(page.Items), page.Continue)
		}
		for _, to := range all {
			rest := to.list("", storage.ListOptions{Predicate: storage.SelectionPredicate{Limit: 10, Continue: page.Continue}})
			if len(rest.Items) != 3 {
				t.Errorf("a token of %s reads %q of %s", from.name, names(rest), to.name)
			}
			for _, name := range names(rest) {
				if !strings.HasPrefix(name, to.name+":") {
					t.Errorf("a token of %s reads %s for %s", from.name, name, to.name)
				}
			}
		}
	}
}

func TestARequestForAKeyOfAnotherClusterIsRefused(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	all := neighbours(t, b, configMaps)
	mine, theirs := all[0], all[1]
	theirs.create("default", "x", "1")
	s := mine.s
	for name, ctx := range map[string]context.Context{
		"another cluster":       mine.ctx(),
		"no cluster":            testContext(t),
		"all clusters, a write": WithAllClusters(testContext(t)),
	} {
		out := &object.Object{}
		key := theirs.key("default", "x")
		update := func(in runtime.Object, _ storage.ResponseMeta) (runtime.Object, *uint64, error) {
			t.Errorf("%s: the update is asked for", name)
			return in, nil, nil
		}
		results := map[string]error{
			"Create":                   s.Create(ctx, theirs.key("default", "y"), mine.new("default", "y", ""), out, 0),
			"Delete":                   s.Delete(ctx, key, out, nil, storage.ValidateAllObjectFunc, nil, storage.DeleteOptions{}),
			"GuaranteedUpdate":         s.GuaranteedUpdate(ctx, key, out, false, nil, update, nil),
			"GuaranteedUpdate, create": s.GuaranteedUpdate(ctx, theirs.key("default", "y"), out, true, nil, update, nil),
		}
		if !allClusters(ctx) {
			opts := storage.ListOptions{Recursive: true, Predicate: storage.Everything}
			results["Get"] = s.Get(ctx, key, storage.GetOptions{}, out)
			results["Get, cached"] = s.Get(ctx, key, storage.GetOptions{ResourceVersion: "0"}, out)
			for _, key := range []string{theirs.root(), ResourcePrefix(configMaps.GroupResource), ResourcePrefix(configMaps.GroupResource) + "/", mine.root() + "/../ab", "/core/secrets/a", ""} {
				results["GetList "+key] = s.GetList(ctx, key, opts, &object.List{})
				w, err := s.Watch(ctx, key, opts)
				if err == nil {
					w.Stop()
				}
				results["Watch "+key] = err
			}
		}
		for verb, err := range results {
			if err == nil {
				t.Errorf("%s: %s is served", name, verb)
			}
		}
	}
	if got := names(theirs.list("", storage.ListOptions{})); !slices.Equal(got, []string{"ab:default/x=1"}) {
		t.Errorf("there is %q", got)
	}
}

func TestAllClustersAreReadByTheProcessOnly(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	all := neighbours(t, b, configMaps)
	for _, c := range all {
		c.create("default", "x", c.name)
	}
	ctx := WithAllClusters(testContext(t))
	l := &object.List{}
	if err := all[0].s.GetList(ctx, ResourcePrefix(configMaps.GroupResource), storage.ListOptions{Recursive: true, Predicate: storage.Everything}, l); err != nil {
		t.Fatal(err)
	}
	if got := names(l); !slices.Equal(got, []string{"a-b:default/x=a-b", "a:default/x=a", "ab:default/x=ab", "root:default/x=root"}) {
		t.Errorf("got %q", got)
	}
	raw, err := all[0].s.Watch(ctx, ResourcePrefix(configMaps.GroupResource), storage.ListOptions{ResourceVersion: l.ResourceVersion, Recursive: true, Predicate: storage.Everything})
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Stop()
	w := &watcher{t: t, w: raw}
	for _, c := range all {
		c.update("default", "x", "2")
		w.expect("MODIFIED " + c.name + " default/x 2")
	}
}

func TestWhatAWriteReturnsIsWhatAReadReturns(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	s := openVirtualServices(t, b)
	c := cluster{t: t, s: s, r: virtualServices, name: "a"}
	check := func(verb string, got *object.Object) {
		t.Helper()
		read, err := c.get("shop", "cart")
		if err != nil {
			t.Fatal(err)
		}
		if !equal(got, read) {
			t.Errorf("%s returns\n%#v, a read\n%#v", verb, got, read)
		}
	}
	vs := newVirtualService("shop", "cart")
	vs.Annotations, vs.Finalizers = map[string]string{}, []string{}
	vs.CreationTimestamp.Time = vs.CreationTimestamp.Add(123456789)
	vs.SelfLink = "/somewhere"
	out := &object.Object{}
	if err := s.Create(c.ctx(), c.key("shop", "cart"), vs, out, 0); err != nil {
		t.Fatal(err)
	}
	check("Create", out)
	check("GuaranteedUpdate", c.update("shop", "cart", "new"))
	check("GuaranteedUpdate that changes nothing", c.update("shop", "cart", "new"))
	stored, err := b.config.Client.Get(testContext(t), "/registry"+c.key("shop", "cart"))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(stored.Kvs[0].Value); strings.Contains(got, "selfLink") || strings.Contains(got, "resourceVersion") || !strings.HasPrefix(got, `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService",`) {
		t.Errorf("stored is %s", got)
	}
	before, err := c.get("shop", "cart")
	if err != nil {
		t.Fatal(err)
	}
	if deleted := c.delete("shop", "cart"); string(deleted.Body()) != string(before.Body()) || deleted.Cluster() != "a" {
		t.Errorf("Delete returns %#v", deleted)
	}
}
