package ownership

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

func claims(cluster, mesh string, age int, patterns ...v1alpha1.NamespacePattern) Claims {
	return Claims{Cluster: cluster, Mesh: mesh, Namespaces: patterns, Created: time.Unix(int64(1000-age), 0)}
}

func TestOwner(t *testing.T) {
	tests := []struct {
		name            string
		claims          []Claims
		mesh, namespace string
		owner           string
	}{
		{"nobody owns what nobody claims", []Claims{claims("a", "m", 0, "shop")}, "m", "bank", ""},
		{"a name is owned by who claims it", []Claims{claims("a", "m", 0, "shop"), claims("b", "m", 0, "bank")}, "m", "shop", "a"},
		{"a prefix owns what begins with it", []Claims{claims("a", "m", 0, "shop-*")}, "m", "shop-eu", "a"},
		{"a prefix owns what it is followed by nothing in", []Claims{claims("a", "m", 0, "shop-*")}, "m", "shop-", "a"},
		{"a prefix does not own what it is not in", []Claims{claims("a", "m", 0, "shop-*")}, "m", "shop", ""},
		{"the star owns the rest", []Claims{claims("a", "m", 9, "*"), claims("b", "m", 0, "shop")}, "m", "bank", "a"},
		{"the star yields to a younger name", []Claims{claims("a", "m", 9, "*"), claims("b", "m", 0, "shop")}, "m", "shop", "b"},
		{"the star yields to a younger prefix", []Claims{claims("a", "m", 9, "*"), claims("b", "m", 0, "shop-*")}, "m", "shop-eu", "b"},
		{"meshes are apart", []Claims{claims("a", "m", 0, "shop"), claims("b", "n", 0, "*")}, "n", "shop", "b"},
		{"of two that claim a name the older owns it", []Claims{claims("a", "m", 1, "shop"), claims("b", "m", 2, "shop")}, "m", "shop", "b"},
		{"of two of one age the lesser name owns", []Claims{claims("b", "m", 1, "shop"), claims("a", "m", 1, "shop")}, "m", "shop", "a"},
		{"an older prefix comes before a younger name", []Claims{claims("a", "m", 2, "s*"), claims("b", "m", 1, "shop")}, "m", "shop", "a"},
		{"an older name comes before a younger prefix", []Claims{claims("a", "m", 1, "s*"), claims("b", "m", 2, "shop")}, "m", "shop", "b"},
		{"an older short prefix comes before a younger long one", []Claims{claims("a", "m", 2, "s*"), claims("b", "m", 1, "sh*")}, "m", "shop", "a"},
		{"the older star owns", []Claims{claims("a", "m", 1, "*"), claims("b", "m", 2, "*")}, "m", "shop", "b"},
		{"a namespace without a name is nobody's but the star's", []Claims{claims("a", "m", 1, "*")}, "m", "", "a"},
		{"a pattern too long for any namespace is harmless", []Claims{claims("a", "m", 1, v1alpha1.NamespacePattern(strings.Repeat("x", 100)+"*"))}, "m", strings.Repeat("x", 100), ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			owner, ok := New(test.claims...).Owner(test.mesh, test.namespace)
			if owner != test.owner || ok != (test.owner != "") {
				t.Errorf("Owner = %q, %v, want %q", owner, ok, test.owner)
			}
		})
	}
}

func TestConflict(t *testing.T) {
	all := []Claims{
		claims("star", "m", 0, "*"),
		claims("shop", "m", 0, "shop", "shop-*"),
		claims("bank", "m", 0, "bank"),
		claims("other", "n", 0, "games", "*"),
	}
	tests := []struct {
		name     string
		self     string
		patterns []v1alpha1.NamespacePattern
		want     string // owner, the owner's pattern, the pattern
	}{
		{"a free name", "new", []v1alpha1.NamespacePattern{"pets"}, ""},
		{"a taken name", "new", []v1alpha1.NamespacePattern{"pets", "bank"}, "bank bank bank"},
		{"a name within a taken prefix", "new", []v1alpha1.NamespacePattern{"shop-eu"}, "shop shop-* shop-eu"},
		{"a prefix that holds a taken name", "new", []v1alpha1.NamespacePattern{"ba*"}, "bank bank ba*"},
		{"a prefix that holds a taken prefix", "new", []v1alpha1.NamespacePattern{"shop-*"}, "shop shop-* shop-*"},
		{"a prefix within a taken prefix", "new", []v1alpha1.NamespacePattern{"shop-eu-*"}, "shop shop-* shop-eu-*"},
		{"a second star", "new", []v1alpha1.NamespacePattern{"*"}, "star * *"},
		{"one's own", "shop", []v1alpha1.NamespacePattern{"shop", "shop-*", "sho*"}, ""},
		{"one's own star", "star", []v1alpha1.NamespacePattern{"*"}, ""},
		{"what another mesh has", "new", []v1alpha1.NamespacePattern{"games"}, ""},
		{"nothing", "new", nil, ""},
	}
	x := New(all...)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := ""
			if owner, theirs, ours, found := x.Conflict("m", test.self, test.patterns); found {
				got = fmt.Sprint(owner, " ", theirs, " ", ours)
			}
			if got != test.want {
				t.Errorf("Conflict = %q, want %q", got, test.want)
			}
		})
	}
}

func TestClaimsOfUsesDefaultMesh(t *testing.T) {
	now := metav1.Now()
	vc := &v1alpha1.VirtualCluster{ObjectMeta: metav1.ObjectMeta{Name: "a", CreationTimestamp: now, DeletionTimestamp: &now}}
	vc.Spec.Namespaces = []v1alpha1.NamespacePattern{"shop"}
	x := New(ClaimsOf(vc))
	if owner, _ := x.Owner(v1alpha1.DefaultName, "shop"); owner != "a" {
		t.Errorf("a virtual cluster that is being deleted lost its claims: owner is %q", owner)
	}
}

func TestANamespaceGoesOverWithOneClaim(t *testing.T) {
	old := claims("old", "m", 9, "shop", "shop-*", "rest")
	old.Handovers = []v1alpha1.VirtualClusterHandover{{To: "new", Namespaces: []v1alpha1.NamespacePattern{"shop", "shop-*"}}}
	x := New(old, claims("other", "m", 8, "other"), claims("new", "m", 1, "mine"))
	owner := func(want string) {
		t.Helper()
		for _, ns := range []string{"shop", "shop-eu"} {
			if got, _ := x.Owner("m", ns); got != want {
				t.Errorf("%s is %s's, want %s", ns, got, want)
			}
		}
	}
	conflicts := func(self string, p v1alpha1.NamespacePattern, want string) {
		t.Helper()
		if got, _, _, _ := x.Conflict("m", self, []v1alpha1.NamespacePattern{p}); got != want {
			t.Errorf("%s of %s is in conflict with %q, want %q", p, self, got, want)
		}
	}
	owner("old")
	for ns, want := range map[string]bool{"shop": true, "shop-eu": true, "rest": false, "other": false, "free": false} {
		if got := x.View("new", "root").TakesOver(ns); got != want {
			t.Errorf("new may take over %s: %v", ns, got)
		}
		if x.View("other", "root").TakesOver(ns) {
			t.Errorf("somebody else may take over %s", ns)
		}
	}
	conflicts("new", "shop", "")
	conflicts("new", "shop-*", "")
	conflicts("new", "shop-eu", "old") // it has to be what is handed over
	conflicts("new", "s*", "old")
	conflicts("new", "rest", "old")
	conflicts("other", "shop", "old")
	taken := claims("new", "m", 1, "mine", "shop", "shop-*")
	x = x.With(taken)
	owner("new")
	conflicts("old", "shop", "") // while it hands it over
	conflicts("other", "shop", "new")
	kept := claims("old", "m", 9, "shop", "shop-*")
	x = x.With(kept)
	conflicts("old", "shop", "new")
	conflicts("new", "shop", "old")
	owner("old") // as between all that overlap nevertheless
	x = x.With(claims("old", "m", 9, "rest"))
	owner("new")
	conflicts("new", "shop", "")
}

// TestAgreesWithTheDefinition compares an index that takes thousands of random
// updates with what the definition says, and sees that no update shows in the
// indexes made before it.
func TestAgreesWithTheDefinition(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	word := func() string {
		b := make([]byte, 1+random.IntN(4))
		for i := range b {
			b[i] = "ab"[random.IntN(2)]
		}
		return string(b)
	}
	now := map[string]Claims{}
	x := New()
	type past struct {
		index *Index
		owner string
		ns    string
	}
	var pasts []past
	for range 3000 {
		cluster := fmt.Sprintf("c%d", random.IntN(8))
		if random.IntN(4) == 0 {
			delete(now, cluster)
			x = x.Without(cluster)
		} else {
			var patterns []v1alpha1.NamespacePattern
			for range random.IntN(4) {
				switch random.IntN(8) {
				case 0:
					patterns = append(patterns, "*")
				case 1, 2, 3:
					patterns = append(patterns, v1alpha1.NamespacePattern(word()+"*"))
				default:
					patterns = append(patterns, v1alpha1.NamespacePattern(word()))
				}
			}
			c := claims(cluster, fmt.Sprintf("m%d", random.IntN(2)), random.IntN(3), patterns...)
			for _, p := range patterns {
				if p != "*" && random.IntN(3) == 0 {
					c.Handovers = append(c.Handovers, v1alpha1.VirtualClusterHandover{To: fmt.Sprintf("c%d", random.IntN(8)), Namespaces: []v1alpha1.NamespacePattern{p}})
				}
			}
			now[cluster] = c
			x = x.With(c)
		}
		mesh, ns := fmt.Sprintf("m%d", random.IntN(2)), word()
		want := naiveOwner(now, mesh, ns)
		if got, _ := x.Owner(mesh, ns); got != want {
			t.Fatalf("Owner(%s, %s) = %q, want %q; claims %v", mesh, ns, got, want, now)
		}
		var some Claims
		for _, some = range now {
			break
		}
		p := v1alpha1.NamespacePattern(ns)
		if len(some.Handovers) > 0 && random.IntN(2) == 0 {
			p = some.Handovers[0].Namespaces[0]
		} else if random.IntN(2) == 0 {
			p += "*"
		}
		owner, theirs, ours, found := x.Conflict(mesh, "c0", []v1alpha1.NamespacePattern{p})
		if want := naiveConflict(now, mesh, "c0", p); found != want {
			t.Fatalf("Conflict(%s, %s) = %v, want %v; claims %v", mesh, p, found, want, now)
		} else if found && (ours != p || !theirs.Overlaps(p) || !slices.Contains(now[owner].Namespaces, theirs)) {
			t.Fatalf("Conflict(%s, %s) = %s %s %s; claims %v", mesh, p, owner, theirs, ours, now)
		}
		if random.IntN(50) == 0 {
			pasts = append(pasts, past{x, naiveOwner(now, "m0", ns), ns})
		}
		for _, p := range pasts {
			if got, _ := p.index.Owner("m0", p.ns); got != p.owner {
				t.Fatalf("an older index changed: Owner(m0, %s) = %q, was %q", p.ns, got, p.owner)
			}
		}
	}
}

func naiveOwner(all map[string]Claims, mesh, ns string) string {
	best := func(star, handed bool) string {
		var oldest Claims
		for _, c := range all {
			for _, p := range c.Namespaces {
				if c.Mesh != mesh || (p == v1alpha1.AnyNamespace) != star || !p.Matches(ns) || handsOver(c, p, "") != handed {
					continue
				}
				if oldest.Cluster == "" || c.Created.Before(oldest.Created) || c.Created.Equal(oldest.Created) && c.Cluster < oldest.Cluster {
					oldest = c
				}
			}
		}
		return oldest.Cluster
	}
	return cmp.Or(best(false, false), best(false, true), best(true, false))
}

func handsOver(c Claims, p v1alpha1.NamespacePattern, to string) bool {
	for _, h := range c.Handovers {
		if (to == "" || h.To == to) && slices.Contains(h.Namespaces, p) {
			return true
		}
	}
	return false
}

func naiveConflict(all map[string]Claims, mesh, self string, p v1alpha1.NamespacePattern) bool {
	for _, c := range all {
		if c.Mesh == mesh && c.Cluster != self && slices.ContainsFunc(c.Namespaces, func(q v1alpha1.NamespacePattern) bool {
			return p.Overlaps(q) && (p != q || !handsOver(c, p, self) && !handsOver(all[self], p, c.Cluster))
		}) {
			return true
		}
	}
	return false
}

func manyClusters(n int) *Index {
	all := make([]Claims, n)
	for i := range all {
		all[i] = claims(fmt.Sprintf("cluster-%d", i), "default", i, v1alpha1.NamespacePattern(fmt.Sprintf("team-%d", i)))
	}
	return New(append(all, claims("default", "default", 1<<20, "*"), claims("shop", "default", 0, "shop-*"))...)
}

func BenchmarkOwner(b *testing.B) {
	x := manyClusters(10_000)
	b.ReportAllocs()
	for b.Loop() {
		x.Owner("default", "team-7777")
	}
}

func BenchmarkWith(b *testing.B) {
	x := manyClusters(10_000)
	c := claims("new", "default", 0, "new")
	b.ReportAllocs()
	for b.Loop() {
		x.With(c)
	}
}

func BenchmarkConflict(b *testing.B) {
	x := manyClusters(10_000)
	b.ReportAllocs()
	for b.Loop() {
		x.Conflict("default", "new", []v1alpha1.NamespacePattern{"new-*"})
	}
}

func TestIsSafeForConcurrentUse(t *testing.T) {
	x := manyClusters(100)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 200 {
				name := fmt.Sprintf("new-%d-%d", i, n)
				y := x.With(claims(name, "default", 0, v1alpha1.NamespacePattern(name)))
				if owner, _ := y.Owner("default", name); owner != name {
					t.Errorf("Owner = %q, want %q", owner, name)
				}
				if owner, _ := x.Owner("default", name); owner != "default" {
					t.Errorf("Owner = %q, want default", owner)
				}
				y.Without(name)
			}
		})
	}
	wg.Wait()
}
