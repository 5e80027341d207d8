package snapshot

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/policy"
)

// admit stands for the policy. An object's text may name a host after an @, which must be
// its virtual cluster's own or granted, and may end in a + for the namespaces that it goes
// to.
func admit(o *object.Object, owners *ownership.View, exports *policy.Exports) (*object.Object, []policy.Violation, error) {
	text := strings.Trim(string(o.Field("spec")), `"`)
	plain, list := strings.CutSuffix(text, "+")
	if _, host, speaks := strings.Cut(plain, "@"); speaks {
		owner, _ := owners.HostOwner(host)
		granted := slices.ContainsFunc(owners.Grants(), func(g v1alpha1.ReceivedGrant) bool { return slices.Contains(g.Hosts, v1alpha1.HostPattern(host)) })
		if owner != owners.Cluster() && !granted {
			return nil, []policy.Violation{{Field: "spec", Reason: policy.ReasonHostNotOwned, Message: host + " is " + owner + "'s"}}, nil
		}
	}
	if strings.Contains(text, "unsure") {
		return nil, nil, errors.New("who knows")
	}
	if !list {
		return o, nil, nil
	}
	service := &object.Object{}
	if err := service.SetContent(map[string]any{"spec": map[string]any{}}); err != nil {
		return nil, nil, err
	}
	to, _ := exports.ExportTo("ServiceEntry", service)
	shown := o.DeepCopy()
	return shown, nil, shown.SetContent(map[string]any{"spec": plain + "+" + strings.Join(to, ",") + owners.RootNamespace()})
}

func guardedKinds(n int) []Kind {
	kinds := testKinds(n)
	for i := range kinds {
		kinds[i].Admit = admit
	}
	return kinds
}

func claiming(c ownership.Claims) *object.Object {
	o := &object.Object{}
	o.Name = c.Cluster
	o.SetCluster("root")
	o.CreationTimestamp = metav1.NewTime(c.Created)
	list := []any{}
	for _, p := range c.Namespaces {
		list = append(list, string(p))
	}
	hosts := []any{}
	for _, p := range c.Hosts {
		hosts = append(hosts, string(p))
	}
	grants := []any{}
	for _, g := range c.Grants {
		given := []any{}
		for _, h := range g.Hosts {
			given = append(given, string(h))
		}
		grants = append(grants, map[string]any{"to": g.To, "hosts": given})
	}
	handovers := []any{}
	for _, h := range c.Handovers {
		over := []any{}
		for _, p := range h.Namespaces {
			over = append(over, string(p))
		}
		handovers = append(handovers, map[string]any{"to": h.To, "namespaces": over})
	}
	spec := map[string]any{"mesh": c.Mesh, "namespaces": list, "hosts": hosts, "grants": grants, "handovers": handovers}
	if c.Scope != nil {
		more := []any{}
		for _, h := range c.Scope.Hosts {
			more = append(more, string(h))
		}
		spec["sidecarScope"] = map[string]any{"reach": string(c.Scope.Reach), "hosts": more}
	}
	if err := o.SetContent(map[string]any{"spec": spec}); err != nil {
		panic(err)
	}
	return o
}

func claims(cluster string, namespaces string, hosts string, grants ...v1alpha1.VirtualClusterGrant) ownership.Claims {
	c := ownership.Claims{Cluster: cluster, Mesh: "m", Created: time.Unix(1000, 0), Grants: grants}
	for _, p := range strings.Fields(namespaces) {
		c.Namespaces = append(c.Namespaces, v1alpha1.NamespacePattern(p))
	}
	for _, p := range strings.Fields(hosts) {
		c.Hosts = append(c.Hosts, v1alpha1.HostPattern(p))
	}
	return c
}

func grantOf(to string, hosts ...v1alpha1.HostPattern) v1alpha1.VirtualClusterGrant {
	return v1alpha1.VirtualClusterGrant{To: to, Hosts: hosts}
}

func describeHeld(s *Snapshot) string {
	var all []string
	for h := range s.HeldBack.All() {
		all = append(all, fmt.Sprintf("%s/%s:%s/%s=%s", h.VirtualCluster, strings.TrimPrefix(h.Kind, "Kind"), h.Namespace, h.Name, h.Reason))
	}
	return strings.Join(all, " ")
}

func (f *fixture) waitForBoth(s *Subscription, want, held string) *Snapshot {
	f.t.Helper()
	return f.wait(s, want+" with "+held+" held back", func(s *Snapshot, err error) bool {
		return err == nil && describe(s) == want && describeHeld(s) == held
	})
}

func TestWhatIsNotAllowedIsHeldBackAndNothingElseSuffers(t *testing.T) {
	f := newFixture(t, guardedKinds(2))
	f.start(map[string][]*object.Object{
		"meshes": {meshObject("m")},
		"virtualclusters": {claiming(claims("shop", "shop", "shop.com")), claiming(claims("bank", "bank", "bank.com")),
			claiming(claims("rest", "*", "*")), claiming(claims("sandbox", "", ""))},
		"kind0s": {text("shop", "shop", "a", "1@shop.com"), text("shop", "shop", "b", "1@bank.com"), text("bank", "bank", "a", "1@bank.com"),
			text("rest", "other", "a", "1@x.com"), text("rest", "other", "b", "1@shop.com"), text("shop", "bank", "z", "1"), text("sandbox", "shop", "a", "1")},
		"kind1s": {text("shop", "shop", "a", "1@y.com")},
	})
	s := f.subscribe("m")
	set := func(c ownership.Claims) { f.observers["virtualclusters"].Changed(watch.Modified, claiming(c), 9) }
	const (
		all  = "0:bank/a=1@bank.com 0:other/a=1@x.com 0:shop/a=1@shop.com"
		none = "rest/0:other/b=HostNotOwned shop/0:bank/z=NotOwner shop/0:shop/b=HostNotOwned shop/1:shop/a=HostNotOwned"
	)
	first := f.waitForBoth(s, all, none)
	if reason, message, held := first.HeldBackReason("shop", "Kind0", "shop", "b"); !held || reason != "HostNotOwned" || message != "spec: bank.com is bank's" {
		t.Errorf("it is held back (%v) for %s: %s", held, reason, message)
	}
	if _, message, _ := first.HeldBackReason("shop", "Kind0", "bank", "z"); !strings.Contains(message, `belongs to virtual cluster "bank"`) {
		t.Errorf("the loser is told %q", message)
	}
	if _, _, held := first.HeldBackReason("bank", "Kind0", "bank", "a"); held {
		t.Error("what is allowed is held back")
	}
	if got := first.HeldBack.Reasons(); got["HostNotOwned"] != 3 || got["NotOwner"] != 1 {
		t.Errorf("reasons %v", got)
	}
	for _, step := range []struct {
		name       string
		do         func()
		want, held string
	}{
		{"a grant lets in", func() { set(claims("bank", "bank", "bank.com", grantOf("shop", "bank.com"))) },
			"0:bank/a=1@bank.com 0:other/a=1@x.com 0:shop/a=1@shop.com 0:shop/b=1@bank.com",
			"rest/0:other/b=HostNotOwned shop/0:bank/z=NotOwner shop/1:shop/a=HostNotOwned"},
		{"and its end holds back", func() { set(claims("bank", "bank", "bank.com")) }, all, none},
		{"a claim takes from the star", func() { set(claims("shop", "shop", "shop.com *.y.com y.com x.com")) },
			"0:bank/a=1@bank.com 0:shop/a=1@shop.com 1:shop/a=1@y.com",
			"rest/0:other/a=HostNotOwned rest/0:other/b=HostNotOwned shop/0:bank/z=NotOwner shop/0:shop/b=HostNotOwned"},
		{"and gives back to it", func() { set(claims("shop", "shop", "")) },
			"0:bank/a=1@bank.com 0:other/a=1@x.com 0:other/b=1@shop.com",
			"shop/0:bank/z=NotOwner shop/0:shop/a=HostNotOwned shop/0:shop/b=HostNotOwned shop/1:shop/a=HostNotOwned"},
		{"and back again", func() { set(claims("shop", "shop", "shop.com")) }, all, none},
		{"a change makes an object what may not be", func() { f.kind(0).Changed(watch.Modified, text("shop", "shop", "a", "2@bank.com"), 10) },
			"0:bank/a=1@bank.com 0:other/a=1@x.com", "rest/0:other/b=HostNotOwned shop/0:bank/z=NotOwner shop/0:shop/a=HostNotOwned shop/0:shop/b=HostNotOwned shop/1:shop/a=HostNotOwned"},
		{"and another what may", func() { f.kind(0).Changed(watch.Modified, text("shop", "shop", "a", "1@shop.com"), 11) }, all, none},
		{"a namespace goes over", func() {
			f.observers["virtualclusters"].Changed(watch.Modified, claiming(claims("bank", "", "bank.com")), 12)
			f.observers["virtualclusters"].Changed(watch.Modified, claiming(claims("shop", "shop bank", "shop.com")), 13)
		}, "0:bank/z=1 0:other/a=1@x.com 0:shop/a=1@shop.com", "rest/0:other/b=HostNotOwned shop/0:shop/b=HostNotOwned shop/1:shop/a=HostNotOwned"},
		{"what is held back is deleted", func() {
			f.kind(0).Changed(watch.Deleted, text("shop", "shop", "b", "1@bank.com"), 14)
			f.kind(1).Changed(watch.Deleted, text("shop", "shop", "a", "1@y.com"), 14)
		}, "0:bank/z=1 0:other/a=1@x.com 0:shop/a=1@shop.com", "rest/0:other/b=HostNotOwned"},
		{"all claims go", func() {
			f.observers["virtualclusters"].Replaced([]*object.Object{claiming(claims("shop", "", ""))}, 15)
		}, "", ""},
	} {
		step.do()
		f.waitForBoth(s, step.want, step.held)
	}
}

func TestANamespaceThatIsHandedOverIsNeverWithoutItsObjects(t *testing.T) {
	f := newFixture(t, testKinds(1))
	bank := claims("bank", "bank", "")
	f.start(map[string][]*object.Object{
		"meshes":          {meshObject("m")},
		"virtualclusters": {claiming(claims("shop", "shop", "")), claiming(bank)},
		"kind0s":          {text("bank", "bank", "a", "old"), text("bank", "bank", "b", "old"), text("shop", "bank", "a", "new"), text("shop", "bank", "c", "new")},
	})
	s := f.subscribe("m")
	f.waitForBoth(s, "0:bank/a=old 0:bank/b=old", "shop/0:bank/a=NotOwner shop/0:bank/c=NotOwner")
	set := func(c ownership.Claims) *Snapshot {
		t.Helper()
		f.observers["virtualclusters"].Changed(watch.Modified, claiming(c), 9)
		if err := f.builder.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		now, err := s.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		return now
	}
	before, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	bank.Handovers = []v1alpha1.VirtualClusterHandover{{To: "shop", Namespaces: []v1alpha1.NamespacePattern{"bank"}}}
	if now := set(bank); now.Version != before.Version {
		t.Errorf("with the offer there is %s", describe(now))
	}
	const after, held = "0:bank/a=new 0:bank/c=new", "bank/0:bank/a=NotOwner bank/0:bank/b=NotOwner"
	if now := set(claims("shop", "shop bank", "")); describe(now) != after || describeHeld(now) != held {
		t.Errorf("with the claim there is %s, and held back %s", describe(now), describeHeld(now))
	}
	if now := set(claims("bank", "other", "")); describe(now) != after || describeHeld(now) != held {
		t.Errorf("without the old claim there is %s, and held back %s", describe(now), describeHeld(now))
	}
}

func TestTheOwnerIsToldWhoIsItNow(t *testing.T) {
	f := newFixture(t, guardedKinds(1))
	f.start(map[string][]*object.Object{
		"meshes":          {meshObject("m")},
		"virtualclusters": {claiming(claims("shop", "shop", "")), claiming(claims("bank", "bank", ""))},
		"kind0s":          {text("shop", "shop", "a", "1@x.com")},
	})
	s := f.subscribe("m")
	f.waitForBoth(s, "", "shop/0:shop/a=HostNotOwned")
	f.observers["virtualclusters"].Changed(watch.Modified, claiming(claims("bank", "bank", "x.com")), 2)
	f.wait(s, "the owner's name", func(s *Snapshot, err error) bool {
		_, message, _ := s.HeldBackReason("shop", "Kind0", "shop", "a")
		return message == "spec: x.com is bank's"
	})
}

func TestWhatIsReadNoMoreLeavesWhenItsLastGoodFormMayNotStay(t *testing.T) {
	f := newFixture(t, guardedKinds(1))
	garbled := text("shop", "shop", "a", "")
	if err := garbled.SetContent(nil); err != nil {
		t.Fatal(err)
	}
	garbled.Annotations = map[string]string{QuarantinedAnnotation: "it was garbled"}
	f.start(map[string][]*object.Object{
		"meshes":          {meshObject("m")},
		"virtualclusters": {claiming(claims("shop", "shop", "shop.com"))},
		"kind0s":          {text("shop", "shop", "a", "1@shop.com"), text("shop", "shop", "b", "1")},
	})
	s := f.subscribe("m")
	set := func(c ownership.Claims) { f.observers["virtualclusters"].Changed(watch.Modified, claiming(c), 9) }
	f.waitForBoth(s, "0:shop/a=1@shop.com 0:shop/b=1", "")
	f.kind(0).Changed(watch.Modified, garbled, 2)
	f.wait(s, "its quarantine", func(s *Snapshot, _ error) bool { return len(s.Quarantined) == 1 })
	set(claims("shop", "shop", "shop.com other.com"))
	f.kind(0).Changed(watch.Modified, text("shop", "shop", "b", "2"), 3)
	f.waitForBoth(s, "0:shop/a=1@shop.com 0:shop/b=2", "")
	set(claims("shop", "shop", ""))
	f.waitForBoth(s, "0:shop/b=2", "shop/0:shop/a=HostNotOwned")
	set(claims("shop", "shop", "shop.com"))
	f.kind(0).Changed(watch.Modified, text("shop", "shop", "a", "unsure"), 4)
	f.waitForBoth(s, "0:shop/b=2", "")
	f.kind(0).Changed(watch.Modified, text("shop", "shop", "a", "3@shop.com"), 5)
	f.waitForBoth(s, "0:shop/a=3@shop.com 0:shop/b=2", "")
}

func TestWhatObjectsShowFollowsNamespacesAndTheRoot(t *testing.T) {
	f := newFixture(t, guardedKinds(1))
	f.start(map[string][]*object.Object{
		"meshes":          {meshObject("m")},
		"virtualclusters": {claiming(claims("shop", "shop shop-*", ""))},
		"kind0s":          {text("shop", "shop", "a", "1+"), text("shop", "shop", "b", "1")},
	})
	s := f.subscribe("m")
	namespace := func(name string) *object.Object {
		o := &object.Object{}
		o.Name = name
		o.SetCluster("shop")
		return o
	}
	f.waitFor(s, "0:shop/a=1+.,shopistio-system 0:shop/b=1")
	f.observers["namespaces"].Changed(watch.Added, namespace("shop-b"), 2)
	f.observers["namespaces"].Changed(watch.Added, namespace("shop-a"), 3)
	f.observers["namespaces"].Changed(watch.Added, namespace("shop"), 4)
	f.observers["namespaces"].Changed(watch.Added, namespace("strange"), 4)
	f.waitFor(s, "0:shop/a=1+.,shop,shop-a,shop-bistio-system 0:shop/b=1")
	f.observers["namespaces"].Changed(watch.Deleted, namespace("shop-b"), 5)
	f.waitFor(s, "0:shop/a=1+.,shop,shop-aistio-system 0:shop/b=1")
	f.observers["namespaces"].Replaced([]*object.Object{namespace("shop-c")}, 6)
	f.waitFor(s, "0:shop/a=1+.,shop,shop-cistio-system 0:shop/b=1")
	mesh := meshObject("m")
	if err := mesh.SetContent(map[string]any{"spec": map[string]any{"rootNamespace": "mesh"}}); err != nil {
		t.Fatal(err)
	}
	f.observers["meshes"].Changed(watch.Modified, mesh, 7)
	f.waitFor(s, "0:shop/a=1+.,shop,shop-cmesh 0:shop/b=1")
}

func TestHeldBackIsSharedBetweenSnapshots(t *testing.T) {
	f := newFixture(t, guardedKinds(1))
	f.start(map[string][]*object.Object{
		"meshes":          {meshObject("m")},
		"virtualclusters": {claiming(claims("shop", "shop", ""))},
		"kind0s":          {text("shop", "shop", "a", "1@x.com")},
	})
	s := f.subscribe("m")
	before := f.waitForBoth(s, "", "shop/0:shop/a=HostNotOwned")
	f.kind(0).Changed(watch.Added, text("shop", "shop", "b", "1"), 2)
	after := f.waitForBoth(s, "0:shop/b=1", "shop/0:shop/a=HostNotOwned")
	if before.HeldBack != after.HeldBack {
		t.Error("what is held back was copied without a change")
	}
	f.kind(0).Changed(watch.Deleted, text("shop", "shop", "a", "1@x.com"), 3)
	f.waitForBoth(s, "0:shop/b=1", "")
	if before.HeldBack.Len() != 1 {
		t.Error("an older snapshot changed")
	}
	var none *HeldBack
	if _, held := none.Get("a", "b", "c", "d"); held || none.Len() != 0 || len(none.Reasons()) != 0 {
		t.Error("a nil one is not empty")
	}
	for range none.All() {
		t.Error("a nil one has something")
	}
}

// TestAgreesWithANaiveRebuild drives the builder with random events of all sources
// and compares what it serves, and what it holds back, with what follows from the
// definition.
func TestAgreesWithANaiveRebuild(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			agreesWithANaiveRebuild(t, rand.New(rand.NewPCG(seed, 5)))
		})
	}
}

func agreesWithANaiveRebuild(t *testing.T, random *rand.Rand) {
	type id struct{ cluster, namespace, name string }
	const kinds = 3
	const sidecars = 2
	f := newFixture(t, scopingKinds(kinds))
	meshNames := []string{"m0", "m1"}
	meshes := map[string]*object.Object{}
	specs := map[string]ownership.Claims{}
	namespaces := map[string]map[string]bool{}
	objects := [kinds]map[id]*object.Object{{}, {}, {}}
	subscriptions := map[string]*Subscription{}
	for _, m := range meshNames {
		subscriptions[m] = f.subscribe(m)
	}
	f.start(nil)

	pick := func(prefix string, n int) string { return fmt.Sprint(prefix, random.IntN(n)) }
	host := func() string { return []string{"a.x", "b.x", "y", "*.x"}[random.IntN(4)] }
	namespaceNames := []string{"q", "n1", "n2", "n10", "n11"}
	namespace := func(cluster, name string) *object.Object {
		o := &object.Object{}
		o.Name = name
		o.SetCluster(cluster)
		return o
	}
	listed := func() (all []*object.Object) {
		for _, c := range specs {
			all = append(all, claiming(c))
		}
		return all
	}
	for step := range 1500 {
		revision := uint64(step + 2)
		switch random.IntN(14) {
		case 0:
			name := pick("m", len(meshNames))
			if meshes[name] != nil && random.IntN(3) == 0 {
				delete(meshes, name)
				f.observers["meshes"].Changed(watch.Deleted, meshObject(name), revision)
			} else {
				o := meshObject(name)
				if err := o.SetContent(map[string]any{"spec": map[string]any{"rootNamespace": pick("r", 2)}}); err != nil {
					t.Fatal(err)
				}
				meshes[name] = o
				f.observers["meshes"].Changed(watch.Added, o, revision)
			}
		case 1, 2, 3:
			name := pick("c", 5)
			if old, is := specs[name]; is && random.IntN(4) == 0 {
				delete(specs, name)
				f.observers["virtualclusters"].Changed(watch.Deleted, claiming(old), revision)
				break
			}
			c := ownership.Claims{Cluster: name, Mesh: pick("m", 3), Created: time.Unix(int64(random.IntN(3)), 0)}
			for range random.IntN(3) {
				c.Namespaces = append(c.Namespaces, []v1alpha1.NamespacePattern{"*", "n*", "n1*", "n1", "n2", "n10", "q"}[random.IntN(7)])
			}
			for range random.IntN(3) {
				c.Hosts = append(c.Hosts, []v1alpha1.HostPattern{"*", "*.x", "a.x", "y"}[random.IntN(4)])
			}
			if random.IntN(3) > 0 {
				c.Scope = &v1alpha1.VirtualClusterSidecarScope{Reach: []v1alpha1.SidecarReach{v1alpha1.ReachNamespace, v1alpha1.ReachVirtualCluster}[random.IntN(2)]}
				for range random.IntN(2) {
					c.Scope.Hosts = append(c.Scope.Hosts, v1alpha1.EgressHost(pick("n", 2)+"/*"))
				}
			}
			for range random.IntN(2) {
				c.Grants = append(c.Grants, grantOf(pick("c", 5), v1alpha1.HostPattern(host())))
			}
			specs[name] = c
			f.observers["virtualclusters"].Changed(watch.Modified, claiming(c), revision)
		case 4:
			cluster, name := pick("c", 6), namespaceNames[random.IntN(len(namespaceNames))]
			if namespaces[cluster] == nil {
				namespaces[cluster] = map[string]bool{}
			}
			if namespaces[cluster][name] {
				delete(namespaces[cluster], name)
				f.observers["namespaces"].Changed(watch.Deleted, namespace(cluster, name), revision)
			} else {
				namespaces[cluster][name] = true
				f.observers["namespaces"].Changed(watch.Added, namespace(cluster, name), revision)
			}
		case 5:
			switch kind := random.IntN(9) - 2; {
			case kind >= 0 && kind < kinds:
				// Listed anew, after changes that were never told.
				for i := range objects[kind] {
					if random.IntN(4) == 0 {
						delete(objects[kind], i)
					} else if random.IntN(4) == 0 {
						objects[kind][i] = text(i.cluster, i.namespace, i.name, fmt.Sprint(step))
					}
				}
				f.kind(kind).Replaced(slices.Collect(maps.Values(objects[kind])), revision)
			case kind == -1:
				f.observers["virtualclusters"].Replaced(listed(), revision)
			case kind == -2:
				var all []*object.Object
				for cluster, names := range namespaces {
					for name := range names {
						if random.IntN(4) == 0 {
							delete(names, name)
						} else {
							all = append(all, namespace(cluster, name))
						}
					}
				}
				f.observers["namespaces"].Replaced(all, revision)
			}
		default:
			kind := random.IntN(kinds)
			i := id{pick("c", 6), namespaceNames[random.IntN(len(namespaceNames))], pick("o", 4)}
			old := objects[kind][i]
			if old != nil && random.IntN(3) == 0 {
				delete(objects[kind], i)
				f.kind(kind).Changed(watch.Deleted, old, revision)
				break
			}
			content := fmt.Sprint(random.IntN(3))
			if kind == sidecars && random.IntN(2) == 0 {
				content = "selects" + content
			}
			if random.IntN(2) == 0 {
				content += "@" + host()
			}
			if random.IntN(3) == 0 {
				content += "+"
			}
			o := text(i.cluster, i.namespace, i.name, content)
			objects[kind][i] = o
			f.kind(kind).Changed(watch.Added, o, revision)
		}
		if random.IntN(5) > 0 {
			continue // let several come together
		}
		index := ownership.New(slices.Collect(maps.Values(specs))...)
		for _, name := range meshNames {
			mesh := meshes[name]
			if mesh == nil {
				f.wait(subscriptions[name], "no mesh", func(_ *Snapshot, err error) bool { return err == ErrNoMesh })
				continue
			}
			root, _ := rootNamespace(mesh)
			var want, held, scopes []string
			ruled := map[string]bool{}
			for kind := range kinds {
				var lines []string
				for i, o := range objects[kind] {
					c := specs[i.cluster]
					if c.Mesh != name || len(c.Namespaces) == 0 {
						continue
					}
					back := fmt.Sprintf("%s/%s:%s/%s=", i.cluster, strings.TrimPrefix(f.kinds[kind].Name, "Kind"), i.namespace, i.name)
					if owner, _ := index.Owner(name, i.namespace); owner != i.cluster {
						held = append(held, back+ReasonNotOwner)
						continue
					}
					shown, violations, err := admit(o, index.View(i.cluster, root),
						policy.NewExports(index.View(i.cluster, root), slices.Sorted(maps.Keys(namespaces[i.cluster]))))
					if err != nil {
						t.Fatal(err)
					}
					if len(violations) > 0 {
						held = append(held, back+violations[0].Reason)
						continue
					}
					content := strings.Trim(string(shown.Field("spec")), `"`)
					lines = append(lines, fmt.Sprintf("%d:%s/%s%s", kind, i.namespace, i.name, content))
					if kind == sidecars && !strings.Contains(content, "selects") {
						ruled[i.namespace] = true
					}
				}
				if kind == sidecars {
					for cluster, c := range specs {
						if c.Mesh != name || c.Scope == nil {
							continue
						}
						var exist []string
						for namespace := range namespaces[cluster] {
							exist = append(exist, namespace)
						}
						told, scope := naiveScope(index, cluster, root, exist, ruled)
						lines = append(lines, told...)
						scopes = append(scopes, scope)
					}
				}
				slices.SortFunc(lines, func(a, b string) int {
					return strings.Compare(a[:strings.Index(a, "=")], b[:strings.Index(b, "=")])
				})
				want = append(want, lines...)
			}
			slices.SortFunc(held, func(a, b string) int {
				return strings.Compare(strings.ReplaceAll(a, "=", "/"), strings.ReplaceAll(b, "=", "/"))
			})
			f.wait(subscriptions[name], strings.Join(want, " ")+"\nheld back "+strings.Join(held, " ")+"\nscopes "+strings.Join(scopes, "; "), func(s *Snapshot, err error) bool {
				if err != nil || describe(s) != strings.Join(want, " ") {
					return false
				}
				got := strings.Fields(describeHeld(s))
				slices.SortFunc(got, func(a, b string) int {
					return strings.Compare(strings.ReplaceAll(a, "=", "/"), strings.ReplaceAll(b, "=", "/"))
				})
				return slices.Equal(got, held) && describeScopes(s) == strings.Join(slices.Sorted(slices.Values(scopes)), "; ")
			})
		}
	}
}
