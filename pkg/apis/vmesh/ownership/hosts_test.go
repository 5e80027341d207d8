package ownership

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/policy"
)

func hosts(cluster string, age int, patterns ...v1alpha1.HostPattern) Claims {
	c := claims(cluster, "m", age)
	c.Hosts = patterns
	return c
}

func TestHostOwner(t *testing.T) {
	all := New(hosts("rest", 0, "*"), hosts("shop", 0, "shop.example.com", "*.shop.example.com"), hosts("bank", 0, "*.bank.io"),
		hosts("old", 9, "*.x.net"), hosts("young", 1, "a.x.net", "*.b.x.net"))
	tests := []struct{ name, self, host, owner, by string }{
		{"a name that is claimed", "shop", "shop.example.com", "shop", "shop.example.com"},
		{"a name below a domain", "shop", "a.b.shop.example.com", "shop", "*.shop.example.com"},
		{"a domain does not hold itself", "bank", "bank.io", "rest", "*"},
		{"nor what only ends alike", "bank", "mybank.io", "rest", "*"},
		{"a name that nobody else claims", "shop", "example.org", "rest", "*"},
		{"a wildcard of one's own", "shop", "*.shop.example.com", "shop", "*.shop.example.com"},
		{"a narrower one", "shop", "*.eu.shop.example.com", "shop", "*.shop.example.com"},
		{"a wider one is not one's own", "shop", "*.example.com", "rest", "*"},
		{"nor is it the star's, which yields", "rest", "*.example.com", "shop", "shop.example.com"},
		{"the star's where nobody else is", "rest", "*.example.org", "rest", "*"},
		{"all hosts are not the star's while others claim some", "rest", "*", "shop", "shop.example.com"},
		{"the older owns what two claim", "young", "a.x.net", "old", "*.x.net"},
		{"and the wildcard whole", "old", "*.x.net", "old", "*.x.net"},
		{"and the narrower wildcard", "young", "*.b.x.net", "old", "*.x.net"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if owner, by := all.HostOwner("m", test.self, test.host); owner != test.owner || string(by) != test.by {
				t.Errorf("HostOwner = %q by %q, want %q by %q", owner, by, test.owner, test.by)
			}
		})
	}
	if owner, by := New().HostOwner("m", "a", "*"); owner != "" || by != "" {
		t.Errorf("nobody's is %q's by %q", owner, by)
	}
	alone := New(hosts("rest", 0, "*"))
	if owner, _ := alone.HostOwner("m", "rest", "*"); owner != "rest" {
		t.Errorf("with nobody else all hosts are %q's", owner)
	}
}

func TestHostConflict(t *testing.T) {
	x := New(hosts("rest", 0, "*"), hosts("shop", 0, "shop.example.com", "*.eu.example.com"), hosts("bank", 0, "*.bank.io"))
	tests := []struct {
		name, self string
		hosts      []v1alpha1.HostPattern
		want       string
	}{
		{"a free name", "new", []v1alpha1.HostPattern{"api.example.org"}, ""},
		{"a taken name", "new", []v1alpha1.HostPattern{"api.example.org", "shop.example.com"}, "shop shop.example.com shop.example.com"},
		{"a name below a taken domain", "new", []v1alpha1.HostPattern{"a.b.bank.io"}, "bank *.bank.io a.b.bank.io"},
		{"the domain itself", "new", []v1alpha1.HostPattern{"bank.io"}, ""},
		{"a domain that holds a taken name", "new", []v1alpha1.HostPattern{"*.com"}, "shop shop.example.com *.com"},
		{"a domain that holds a taken domain", "new", []v1alpha1.HostPattern{"*.io"}, "bank *.bank.io *.io"},
		{"a domain below a taken domain", "new", []v1alpha1.HostPattern{"*.de.eu.example.com"}, "shop *.eu.example.com *.de.eu.example.com"},
		{"what only ends alike", "new", []v1alpha1.HostPattern{"mybank.io", "*.neu.example.com"}, ""},
		{"a second star", "new", []v1alpha1.HostPattern{"*"}, "rest * *"},
		{"one's own", "bank", []v1alpha1.HostPattern{"*.bank.io", "*.io", "x.bank.io"}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := ""
			if owner, theirs, ours, found := x.HostConflict("m", test.self, test.hosts); found {
				got = fmt.Sprint(owner, " ", theirs, " ", ours)
			}
			if got != test.want {
				t.Errorf("HostConflict = %q, want %q", got, test.want)
			}
		})
	}
}

func TestGrantsAreGoodForWhatIsTheGiversAlone(t *testing.T) {
	edge := hosts("edge", 0, "*.example.com")
	edge.Namespaces = []v1alpha1.NamespacePattern{"ingress"}
	edge.Grants = []v1alpha1.VirtualClusterGrant{{To: "shop",
		Gateways: []string{"ingress/public", "bank/private"},
		Hosts:    []v1alpha1.HostPattern{"shop.example.com", "*.eu.example.com", "auth.ingress.svc.cluster.local", "*.ingress.svc.cluster.local", "auth.bank.svc.cluster.local", "bank.io", "*"}}}
	far := claims("far", "other", 0, "ns")
	far.Grants = []v1alpha1.VirtualClusterGrant{{To: "shop", Gateways: []string{"ns/gw"}}}
	x := New(edge, far, claims("shop", "m", 0, "shop"), claims("bank", "m", 0, "bank"))
	want := `[{edge [ingress/public] [shop.example.com *.eu.example.com auth.ingress.svc.cluster.local *.ingress.svc.cluster.local]}]`
	if got := fmt.Sprint(x.Granted("shop")); got != want {
		t.Errorf("Granted = %s, want %s", got, want)
	}
	if got := x.Granted("bank"); len(got) > 0 {
		t.Errorf("bank is granted %v", got)
	}
	edge.Namespaces = nil
	want = `[{edge [] [shop.example.com *.eu.example.com]}]`
	if got := fmt.Sprint(x.With(edge).Granted("shop")); got != want {
		t.Errorf("Granted = %s, want %s", got, want)
	}
	if got := x.Without("edge").Granted("shop"); len(got) > 0 {
		t.Errorf("of one that is gone: %v", got)
	}
	if got := slices.Collect(x.Grantees()); !slices.Equal(got, []string{"shop"}) {
		t.Errorf("Grantees = %v", got)
	}
}

// TestHostsAgreeWithTheDefinition is TestAgreesWithTheDefinition for hosts, grants and for
// whom a change concerns: whoever sees something else afterwards must be among them.
func TestHostsAgreeWithTheDefinition(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	name := func() string {
		labels := make([]string, 1+random.IntN(3))
		for i := range labels {
			labels[i] = []string{"a", "b", "ab"}[random.IntN(3)]
		}
		return strings.Join(labels, ".")
	}
	pattern := func() v1alpha1.HostPattern {
		switch random.IntN(8) {
		case 0:
			return "*"
		case 1, 2, 3:
			return v1alpha1.HostPattern("*." + name())
		}
		return v1alpha1.HostPattern(name())
	}
	now := map[string]Claims{}
	x := New()
	for range 4000 {
		cluster := fmt.Sprintf("c%d", random.IntN(6))
		before := x
		old := now[cluster]
		c := Claims{Cluster: cluster}
		if random.IntN(4) == 0 {
			delete(now, cluster)
			x = x.Without(cluster)
		} else {
			c = claims(cluster, fmt.Sprintf("m%d", random.IntN(2)), random.IntN(3))
			for range random.IntN(4) {
				c.Hosts = append(c.Hosts, pattern())
			}
			for range random.IntN(3) {
				c.Namespaces = append(c.Namespaces, []v1alpha1.NamespacePattern{"a", "b", "a*", "*"}[random.IntN(4)])
			}
			if random.IntN(3) == 0 {
				c.Grants = []v1alpha1.VirtualClusterGrant{{To: fmt.Sprintf("c%d", random.IntN(6)), Hosts: []v1alpha1.HostPattern{pattern()}, Gateways: []string{"a/g"}}}
			}
			for _, p := range c.Namespaces {
				if p != "*" && random.IntN(3) == 0 {
					c.Handovers = append(c.Handovers, v1alpha1.VirtualClusterHandover{To: fmt.Sprintf("c%d", random.IntN(6)), Namespaces: []v1alpha1.NamespacePattern{p}})
				}
			}
			now[cluster] = c
			x = x.With(c)
		}
		mesh, self := fmt.Sprintf("m%d", random.IntN(2)), fmt.Sprintf("c%d", random.IntN(6))
		host := name()
		if got, _ := x.HostOwner(mesh, self, host); got != naiveHostOwner(now, mesh, host) {
			t.Fatalf("HostOwner(%s, %s) = %q, want %q; claims %v", mesh, host, got, naiveHostOwner(now, mesh, host), now)
		}
		p := pattern()
		owner, theirs, ours, found := x.HostConflict(mesh, self, []v1alpha1.HostPattern{p})
		want := false
		for _, c := range now {
			want = want || c.Mesh == mesh && c.Cluster != self && slices.ContainsFunc(c.Hosts, p.Overlaps)
		}
		if found != want {
			t.Fatalf("HostConflict(%s, %s) = %v, want %v; claims %v", mesh, p, found, want, now)
		} else if found && (ours != p || !theirs.Overlaps(p) || !slices.Contains(now[owner].Hosts, theirs)) {
			t.Fatalf("HostConflict(%s, %s) = %s %s %s; claims %v", mesh, p, owner, theirs, ours, now)
		}
		concerned := x.Concerned(old, c)
		for other := range now {
			if _, is := concerned[other]; is || other == cluster {
				continue
			}
			was, is := before.View(other, "root"), x.View(other, "root")
			if fmt.Sprint(was.Grants()) != fmt.Sprint(is.Grants()) {
				t.Fatalf("the grants of %s change from %v to %v, and it is not concerned by %v to %v", other, was.Grants(), is.Grants(), old, c)
			}
			if len(now[other].Namespaces) > 0 && (was.Neighbour() == "") != (is.Neighbour() == "") {
				t.Fatalf("the neighbour of %s changes from %q to %q, and it is not concerned by %v to %v", other, was.Neighbour(), is.Neighbour(), old, c)
			}
			// What somebody else may not do is the same, whoever of the others owns it.
			for _, host := range []string{"a", "a.b", "b.a.ab", "*.a", "*.b.a", "*", "ab.ab"} {
				a, _ := was.HostOwner(host)
				b, _ := is.HostOwner(host)
				if (a == other) != (b == other) {
					t.Fatalf("%s was %s's, is %s's, and %s is not concerned by %v to %v; claims %v", host, a, b, other, old, c, now)
				}
			}
			for _, ns := range []string{"a", "b", "ab"} {
				a, b := violations(t, was, ns), violations(t, is, ns)
				if a != b {
					t.Fatalf("%s was not allowed %q in namespace %s, is not allowed %q, and is not concerned by %v to %v; claims %v", other, a, ns, b, old, c, now)
				}
			}
			for _, ns := range []string{"a", "b", "ab"} {
				a, _ := was.NamespaceOwner(ns)
				b, _ := is.NamespaceOwner(ns)
				if (a == other) != (b == other) {
					t.Fatalf("namespace %s was %s's, is %s's, and %s is not concerned by %v to %v", ns, a, b, other, old, c)
				}
			}
		}
	}
	if x.endings.Len() > x.hosts.tree.Len() {
		t.Errorf("there are %d endings of %d hosts", x.endings.Len(), x.hosts.tree.Len())
	}
	for c := range x.All() {
		if _, is := now[c.Cluster]; !is {
			t.Errorf("there is still %v", c)
		}
		delete(now, c.Cluster)
	}
	if len(now) > 0 {
		t.Errorf("missing: %v", slices.Collect(maps.Keys(now)))
	}
}

// violations are the fields in which a view does not allow all kinds of hosts.
func violations(t *testing.T, v *View, namespace string) string {
	o := &object.Object{}
	o.Namespace = namespace
	if err := o.SetContent(map[string]any{"spec": map[string]any{
		"hosts":    []any{"a", "a.b", "b.ab", "b.a.ab", "*.a", "*.b.a", "*", "a.b.svc.cluster.local", "*.ab.svc.cluster.local", "*.local"},
		"gateways": []any{"a/g", "mesh"}, "exportTo": []any{"a", "b", "ab", "*"},
	}}); err != nil {
		t.Fatal(err)
	}
	var fields []string
	for _, violation := range policy.Check("VirtualService", o, v) {
		fields = append(fields, violation.Field)
	}
	return strings.Join(fields, " ")
}

func naiveHostOwner(all map[string]Claims, mesh, host string) string {
	best := func(star bool) string {
		var oldest Claims
		for _, c := range all {
			for _, p := range c.Hosts {
				if c.Mesh != mesh || (p == v1alpha1.AnyHost) != star || !p.Matches(host) {
					continue
				}
				if oldest.Cluster == "" || c.Created.Before(oldest.Created) || c.Created.Equal(oldest.Created) && c.Cluster < oldest.Cluster {
					oldest = c
				}
			}
		}
		return oldest.Cluster
	}
	if owner := best(false); owner != "" {
		return owner
	}
	return best(true)
}

func TestServicesAreKnownByTheirHosts(t *testing.T) {
	for host, want := range map[string]string{
		"reviews.shop.svc.cluster.local": "shop", "*.shop.svc.cluster.local": "shop", "svc.cluster.local": "", "shop.svc.cluster.local": "",
		"a.reviews.shop.svc.cluster.local": "", "reviews.shop": "", "*.svc.cluster.local": "", ".shop.svc.cluster.local": "", "api.example.com": "",
	} {
		if got, ok := v1alpha1.ServiceNamespace(host); got != want || ok != (want != "") {
			t.Errorf("%s is of %q, %v", host, got, ok)
		}
	}
}

// sharing is a mesh of n virtual clusters, each with a namespace, hosts and a grant.
func sharing(n int) *Index {
	all := make([]Claims, n)
	for i := range all {
		all[i] = claims(fmt.Sprintf("cluster-%d", i), "default", i, v1alpha1.NamespacePattern(fmt.Sprintf("team-%d", i)))
		all[i].Hosts = []v1alpha1.HostPattern{v1alpha1.HostPattern(fmt.Sprintf("*.team-%d.example.com", i)), v1alpha1.HostPattern(fmt.Sprintf("team-%d.example.com", i))}
		all[i].Grants = []v1alpha1.VirtualClusterGrant{{To: fmt.Sprintf("cluster-%d", (i+1)%n), Hosts: []v1alpha1.HostPattern{v1alpha1.HostPattern(fmt.Sprintf("team-%d.example.com", i))}}}
	}
	return New(all...)
}

func BenchmarkSharing(b *testing.B) {
	for _, n := range []int{1_000, 10_000} {
		x := sharing(n)
		b.Run(fmt.Sprint("HostOwner/", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				x.HostOwner("default", "cluster-777", "api.team-777.example.com")
			}
		})
		b.Run(fmt.Sprint("HostConflict/", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				x.HostConflict("default", "new", []v1alpha1.HostPattern{"*.new.example.com"})
			}
		})
		b.Run(fmt.Sprint("View/", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				x.View("cluster-777", "istio-system")
			}
		})
		b.Run(fmt.Sprint("With/", n), func(b *testing.B) {
			c, _ := x.Claims("cluster-777")
			b.ReportAllocs()
			for b.Loop() {
				x.With(c)
			}
		})
		b.Run(fmt.Sprint("Concerned/", n), func(b *testing.B) {
			c, _ := x.Claims("cluster-777")
			b.ReportAllocs()
			for b.Loop() {
				x.Concerned(Claims{}, c)
			}
		})
		b.Run(fmt.Sprint("ConcernedByPrefix/", n), func(b *testing.B) {
			c := claims("new", "default", 0, "new-*")
			b.ReportAllocs()
			for b.Loop() {
				x.Concerned(Claims{}, c)
			}
		})
	}
}
