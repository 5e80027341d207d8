package snapshot

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/policy"
)

// scopingKinds are guardedKinds of which the last is Sidecar.
func scopingKinds(n int) []Kind {
	kinds := guardedKinds(n)
	k := &kinds[n-1]
	k.Name, k.MessageName, k.AppendMessage = scopeKind, "istio.networking.v1alpha3.Sidecar", renderSidecar
	return kinds
}

// renderSidecar makes a Sidecar of an object whose spec is a text, which selects workloads if
// it has that word in it, and one of a scope, whose spec has hosts. All its hosts are one.
func renderSidecar(dst []byte, o *object.Object) ([]byte, error) {
	message := &networking.Sidecar{}
	var text string
	var spec networkingSpec
	if json.Unmarshal(o.Field("spec"), &text) == nil {
		switch {
		case text == "bad":
			return nil, fmt.Errorf("it is bad")
		case strings.Contains(text, "selects none"):
			message.WorkloadSelector = &networking.WorkloadSelector{}
		case strings.Contains(text, "selects"):
			message.WorkloadSelector = &networking.WorkloadSelector{Labels: map[string]string{"a": "b"}}
		}
	} else if err := json.Unmarshal(o.Field("spec"), &spec); err != nil {
		return nil, err
	} else {
		text = "=" + strings.Join(spec.Egress[0].Hosts, ",")
	}
	message.Egress = []*networking.IstioEgressListener{{Hosts: []string{text}}}
	return proto.MarshalOptions{Deterministic: true}.MarshalAppend(dst, message)
}

type networkingSpec struct{ Egress []struct{ Hosts []string } }

func scoping(c ownership.Claims, reach v1alpha1.SidecarReach, hosts ...v1alpha1.EgressHost) ownership.Claims {
	c.Scope = &v1alpha1.VirtualClusterSidecarScope{Reach: reach, Hosts: hosts}
	return c
}

// naiveScope are the Sidecars of a virtual cluster's scope, from its definition.
func naiveScope(index *ownership.Index, cluster, root string, existing []string, ruled map[string]bool) (lines []string, told string) {
	view := index.View(cluster, root)
	c, _ := index.Claims(cluster)
	own := policy.NewExports(view, existing).Own()
	hosts := []string{root + "/*"}
	for _, h := range c.Scope.Hosts {
		hosts = append(hosts, string(h))
	}
	for _, g := range view.Grants() {
		for _, h := range g.Hosts {
			hosts = append(hosts, "*/"+string(h))
		}
	}
	if c.Scope.Reach == v1alpha1.ReachNamespace {
		hosts = append(hosts, "./*")
	} else {
		for _, namespace := range own {
			hosts = append(hosts, namespace+"/*")
		}
	}
	slices.Sort(hosts)
	text := strings.Join(slices.Compact(hosts), ",")
	var replaced []string
	for _, namespace := range own {
		switch {
		case namespace == root:
		case ruled[namespace]:
			replaced = append(replaced, namespace)
		default:
			lines = append(lines, fmt.Sprintf("2:%s/%s=%s", namespace, ScopeName, text))
		}
	}
	return lines, fmt.Sprintf("%s %d [%s] %v", cluster, len(lines), text, replaced)
}

func describeScopes(s *Snapshot) string {
	var all []string
	for cluster, scope := range s.Scopes.All() {
		line := fmt.Sprintf("%s %d [%s] %v", cluster, scope.Namespaces, strings.Join(scope.Hosts, ","), scope.Replaced)
		if scope.Message != "" {
			line += " " + scope.Message
		}
		all = append(all, line)
	}
	slices.Sort(all)
	return strings.Join(all, "; ")
}

func namespaceObject(cluster, name string) *object.Object {
	o := &object.Object{}
	o.Name = name
	o.SetCluster(cluster)
	return o
}

func TestAScopeIsASidecarInEachNamespaceThatHasNone(t *testing.T) {
	const sidecars = 1
	f := newFixture(t, scopingKinds(2))
	bank := claims("bank", "bank", "bank.com")
	shop := claims("shop", "shop shop-*", "shop.com")
	f.start(map[string][]*object.Object{
		"meshes":          {meshObject("m")},
		"virtualclusters": {claiming(shop), claiming(bank)},
		"namespaces":      {namespaceObject("shop", "shop"), namespaceObject("shop", "shop-a"), namespaceObject("shop", "default"), namespaceObject("bank", "bank")},
		"kind0s":          {text("shop", "shop", "a", "1"), text("bank", "bank", "a", "1")},
		"kind1s":          {text("shop", "shop", "special", "selects"), text("bank", "bank", "default", "1")},
	})
	s := f.subscribe("m")
	set := func(c ownership.Claims) { f.observers["virtualclusters"].Changed(watch.Modified, claiming(c), 9) }
	garbled := text("shop", "shop", "default", "")
	if err := garbled.SetContent(nil); err != nil {
		t.Fatal(err)
	}
	garbled.Annotations = map[string]string{QuarantinedAnnotation: "it was garbled"}
	const rest = "0:bank/a=1 0:shop/a=1 1:bank/default=1 "
	const special = "1:shop/special=selects"
	const all = "istio-system/*,shop-a/*,shop/*"
	f.waitFor(s, rest+special)
	if snapshot, _ := s.Snapshot(); snapshot.Scopes != nil {
		t.Errorf("there are scopes: %v", snapshot.Scopes)
	}
	for _, step := range []struct {
		name         string
		do           func()
		want, scopes string
	}{
		{"it is turned on", func() { set(scoping(shop, v1alpha1.ReachVirtualCluster)) },
			rest + "1:shop-a/vmesh:scope=" + all + " " + special + " 1:shop/vmesh:scope=" + all, "shop 2 [" + all + "] []"},
		{"a namespace is made", func() { f.observers["namespaces"].Changed(watch.Added, namespaceObject("shop", "shop-b"), 10) },
			rest + "1:shop-a/vmesh:scope=istio-system/*,shop-a/*,shop-b/*,shop/* 1:shop-b/vmesh:scope=istio-system/*,shop-a/*,shop-b/*,shop/* " + special +
				" 1:shop/vmesh:scope=istio-system/*,shop-a/*,shop-b/*,shop/*", "shop 3 [istio-system/*,shop-a/*,shop-b/*,shop/*] []"},
		{"and goes", func() { f.observers["namespaces"].Changed(watch.Deleted, namespaceObject("shop", "shop-b"), 11) },
			rest + "1:shop-a/vmesh:scope=" + all + " " + special + " 1:shop/vmesh:scope=" + all, "shop 2 [" + all + "] []"},
		{"the team writes its own", func() { f.kind(sidecars).Changed(watch.Added, text("shop", "shop", "default", "1"), 12) },
			rest + "1:shop-a/vmesh:scope=" + all + " 1:shop/default=1 " + special, "shop 1 [" + all + "] [shop]"},
		{"which cannot be read any more", func() { f.kind(sidecars).Changed(watch.Modified, garbled, 13) },
			rest + "1:shop-a/vmesh:scope=" + all + " 1:shop/default=1 " + special, "shop 1 [" + all + "] [shop]"},
		{"its own comes to select workloads", func() { f.kind(sidecars).Changed(watch.Modified, text("shop", "shop", "default", "selects"), 14) },
			rest + "1:shop-a/vmesh:scope=" + all + " 1:shop/default=selects " + special + " 1:shop/vmesh:scope=" + all, "shop 2 [" + all + "] []"},
		{"with a selector that is empty", func() { f.kind(sidecars).Changed(watch.Modified, text("shop", "shop", "default", "selects none"), 14) },
			rest + "1:shop-a/vmesh:scope=" + all + " 1:shop/default=selects none " + special, "shop 1 [" + all + "] [shop]"},
		{"its own is held back", func() { f.kind(sidecars).Changed(watch.Modified, text("shop", "shop", "default", "1@bank.com"), 15) },
			rest + "1:shop-a/vmesh:scope=" + all + " " + special + " 1:shop/vmesh:scope=" + all, "shop 2 [" + all + "] []"},
		{"and let in by a grant", func() {
			set(claims("bank", "bank", "bank.com", grantOf("shop", "bank.com", "auth.bank.svc.cluster.local")))
		},
			rest + "1:shop-a/vmesh:scope=*/bank.com,bank/auth.bank.svc.cluster.local," + all + " 1:shop/default=1@bank.com " + special,
			"shop 1 [*/bank.com,bank/auth.bank.svc.cluster.local," + all + "] [shop]"},
		{"it is deleted", func() {
			f.kind(sidecars).Changed(watch.Deleted, text("shop", "shop", "default", "1"), 16)
			set(bank)
		}, rest + "1:shop-a/vmesh:scope=" + all + " " + special + " 1:shop/vmesh:scope=" + all, "shop 2 [" + all + "] []"},
		{"each namespace for itself, and more", func() { set(scoping(shop, v1alpha1.ReachNamespace, "bank/*")) },
			rest + "1:shop-a/vmesh:scope=./*,bank/*,istio-system/* " + special + " 1:shop/vmesh:scope=./*,bank/*,istio-system/*", "shop 2 [./*,bank/*,istio-system/*] []"},
		{"a namespace becomes the mesh's root", func() {
			mesh := meshObject("m")
			if err := mesh.SetContent(map[string]any{"spec": map[string]any{"rootNamespace": "shop-a"}}); err != nil {
				t.Fatal(err)
			}
			f.observers["meshes"].Changed(watch.Modified, mesh, 17)
		}, rest + special + " 1:shop/vmesh:scope=./*,bank/*,shop-a/*", "shop 1 [./*,bank/*,shop-a/*] []"},
		{"a namespace goes over", func() {
			set(scoping(claims("shop", "shop-*", "shop.com"), v1alpha1.ReachNamespace))
			set(scoping(claims("bank", "shop bank", "bank.com"), v1alpha1.ReachNamespace))
		}, "0:bank/a=1 1:bank/default=1 1:shop/vmesh:scope=./*,shop-a/*", "bank 1 [./*,shop-a/*] [bank]; shop 0 [./*,shop-a/*] []"},
		{"it is turned off", func() {
			set(shop)
			set(bank)
		}, rest + special, ""},
	} {
		step.do()
		f.wait(s, step.name+": "+step.want+" with "+step.scopes, func(s *Snapshot, err error) bool {
			return err == nil && describe(s) == step.want && describeScopes(s) == step.scopes
		})
	}
}

func TestTheSidecarOfAScopeChangesOnlyWithWhatItSays(t *testing.T) {
	kinds := scopingKinds(2)
	made := 0
	kinds[1].AppendMessage = func(dst []byte, o *object.Object) ([]byte, error) {
		made++
		return renderSidecar(dst, o)
	}
	m := newModel(kinds)
	m.settled = true
	m.addMesh(meshObject("m"))
	set := func(c ownership.Claims) {
		t.Helper()
		if err := m.setVirtualCluster(claiming(c)); err != nil {
			t.Fatal(err)
		}
	}
	rendered := 0
	advance := func() *Snapshot {
		made, rendered = 0, 0
		m.settle()
		mesh := m.meshes["m"]
		mesh.advance(kinds, time.Time{}, m.rightsIn(mesh), func(kind, n int) {
			if kind == 1 {
				rendered += n
			}
		})
		return mesh.snapshot()
	}
	var names []string
	for i := range 100 {
		names = append(names, fmt.Sprintf("n%02d", i))
	}
	many := claims("many", strings.Join(names, " "), "")
	set(scoping(many, v1alpha1.ReachNamespace))
	set(claims("other", "other", "other.com"))
	m.setObject(0, text("many", "n00", "a", "1"))
	first := advance()
	if made != 1 || rendered != 100 || first.Lists[1].Len() != 100 {
		t.Fatalf("made %d messages and %d Sidecars, there are %d", made, rendered, first.Lists[1].Len())
	}
	e, _ := first.Lists[1].Get("n07/" + ScopeName)
	if e.Cluster() != "many" {
		t.Errorf("it is of virtual cluster %q", e.Cluster())
	}
	for _, step := range []struct {
		name     string
		do       func()
		rendered int
	}{
		{"an object changes", func() { m.setObject(0, text("many", "n00", "a", "2")) }, 0},
		{"another virtual cluster changes", func() { set(claims("other", "other another", "other.com")) }, 0},
		{"the claims are written in another order", func() {
			c := scoping(many, v1alpha1.ReachNamespace)
			c.Namespaces = slices.Clone(many.Namespaces)
			slices.Reverse(c.Namespaces)
			set(c)
		}, 0},
		{"a namespace is claimed that does not yet exist", func() {
			c := scoping(many, v1alpha1.ReachNamespace)
			c.Namespaces = append(slices.Clone(many.Namespaces), "new")
			set(c)
		}, 1},
		{"a Sidecar of another namespace of nobody's scope is written", func() { m.setObject(1, text("other", "other", "a", "1")) }, 1}, // itself
		{"one of a namespace", func() { m.setObject(1, text("many", "n05", "a", "selects")) }, 2},
	} {
		before := m.meshes["m"].lists[1]
		step.do()
		after := advance()
		if rendered != step.rendered || made > 1 {
			t.Errorf("%s: rendered %d, want %d; made %d messages", step.name, rendered, step.rendered, made)
		}
		was, _ := before.Get("n07/" + ScopeName)
		if is, ok := after.Lists[1].Get("n07/" + ScopeName); !ok || !is.Same(was) {
			t.Errorf("%s: the Sidecar is another", step.name)
		}
	}
	older := scoping(many, v1alpha1.ReachNamespace)
	older.Created = time.Unix(5, 0)
	set(older)
	if advance(); rendered != 100+1 { // and the one that was written
		t.Errorf("rendered %d with an older virtual cluster", rendered)
	}
}

func TestTooManyNamespacesDoNotSeeEachOther(t *testing.T) {
	m := newModel(scopingKinds(1))
	m.settled = true
	m.addMesh(meshObject("m"))
	for i := range MaxScoped + 1 {
		m.setNamespace("c", fmt.Sprintf("n%04d", i), true)
	}
	told := func(reach v1alpha1.SidecarReach) *Scope {
		t.Helper()
		if err := m.setVirtualCluster(claiming(scoping(claims("c", "*", ""), reach))); err != nil {
			t.Fatal(err)
		}
		m.settle()
		mesh := m.meshes["m"]
		mesh.advance(m.kinds, time.Time{}, m.rightsIn(mesh), func(int, int) {})
		return mesh.snapshot().Scopes.Of("c")
	}
	if s := told(v1alpha1.ReachVirtualCluster); s.Namespaces != 0 || !strings.Contains(s.Message, "1001 namespaces are too many") {
		t.Errorf("told %+v", s)
	}
	if s := told(v1alpha1.ReachNamespace); s.Namespaces != MaxScoped+1 || s.Message != "" {
		t.Errorf("each for itself: told %+v", s)
	}
	m.setNamespace("c", "n0000", false)
	if s := told(v1alpha1.ReachVirtualCluster); s.Namespaces != MaxScoped || s.Message != "" || len(s.Hosts) != MaxScoped+1 {
		t.Errorf("with one less: %d namespaces, %d hosts, %q", s.Namespaces, len(s.Hosts), s.Message)
	}
}

func TestStagesAndFiltersSeeScopesLikeAnyEntry(t *testing.T) {
	f := newFixture(t, scopingKinds(1))
	shop := claims("shop", "shop", "")
	f.start(map[string][]*object.Object{"meshes": {meshObject("m")}, "virtualclusters": {claiming(scoping(shop, v1alpha1.ReachNamespace))}})
	s := f.subscribe("m")
	want := "0:shop/vmesh:scope=./*,istio-system/*"
	before := f.waitFor(s, want)
	// A stage that still has what was there before goes on to have the Sidecar.
	f.observers["virtualclusters"].Changed(watch.Modified, claiming(shop), 2)
	after := f.waitFor(s, "")
	if got := describe(after.Stage(before.Lists)); got != want {
		t.Errorf("a later stage has %s", got)
	}
	// A mesh with a filter by namespace shows it where the namespace is shown.
	mesh := meshObject("m")
	if err := mesh.SetContent(map[string]any{"spec": map[string]any{"filters": []any{
		map[string]any{"name": "f", "controlPlanes": map[string]any{"matchLabels": map[string]any{"zone": "a"}}, "namespaces": []any{"bank"}}}}}); err != nil {
		t.Fatal(err)
	}
	f.observers["meshes"].Changed(watch.Modified, mesh, 3)
	f.observers["virtualclusters"].Changed(watch.Modified, claiming(scoping(claims("shop", "shop bank", ""), v1alpha1.ReachNamespace)), 4)
	s.Select(ControlPlane{Labels: map[string]string{"zone": "a"}})
	f.waitFor(s, "0:bank/vmesh:scope=./*,istio-system/*")
	s.Select(ControlPlane{Labels: map[string]string{"zone": "b"}})
	f.waitFor(s, "0:bank/vmesh:scope=./*,istio-system/* "+want)
}

// BenchmarkScope is what a change costs in a mesh of 100 namespaces with 100 objects each.
func BenchmarkScope(b *testing.B) {
	const namespaces = 100
	for _, reach := range []v1alpha1.SidecarReach{"", v1alpha1.ReachNamespace, v1alpha1.ReachVirtualCluster} {
		kinds := scopingKinds(2)
		m := newModel(kinds)
		m.settled = true
		m.addMesh(meshObject("m"))
		c := claims("c", "*", "")
		if reach != "" {
			c = scoping(c, reach)
		}
		if err := m.setVirtualCluster(claiming(c)); err != nil {
			b.Fatal(err)
		}
		for n := range namespaces {
			m.setNamespace("c", fmt.Sprintf("team-%02d", n), true)
			for i := range 100 {
				m.setObject(0, text("c", fmt.Sprintf("team-%02d", n), fmt.Sprint("o", i), "1"))
			}
		}
		advance := func() {
			m.settle()
			mesh := m.meshes["m"]
			if mesh.advance(kinds, time.Time{}, m.rightsIn(mesh), func(int, int) {}) {
				mesh.snapshot()
			}
		}
		advance()
		name := string(reach)
		if name == "" {
			name = "None"
		}
		b.Run(name+"/object", func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				m.setObject(0, text("c", "team-07", "o7", fmt.Sprint(i)))
				advance()
			}
		})
		b.Run(name+"/sidecar", func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				m.setObject(1, text("c", "team-07", "own", fmt.Sprint(i)))
				advance()
			}
		})
		b.Run(name+"/namespace", func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				m.setNamespace("c", "team-new", i%2 == 0)
				advance()
			}
		})
	}
}
