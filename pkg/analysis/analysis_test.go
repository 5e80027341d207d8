package analysis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/testutil"
	"sigs.k8s.io/yaml"

	"istio.io/istio/pkg/config"
	"istio.io/istio/pkg/config/analysis"
	"istio.io/istio/pkg/config/analysis/analyzers"
	"istio.io/istio/pkg/config/analysis/msg"
	"istio.io/istio/pkg/config/resource"
	"istio.io/istio/pkg/config/schema/gvk"

	"github.com/vmesh-io/vmesh/pkg/apis/builtin"
	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/test/leak"
)

func TestMain(m *testing.M) {
	leak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"),
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

var allKinds = sync.OnceValue(func() []*kind.Kind {
	mesh, err := istio.Kinds()
	if err != nil {
		panic(err)
	}
	core, err := builtin.Kinds()
	if err != nil {
		panic(err)
	}
	return slices.Concat(core, mesh)
})

// store is what virtual clusters hold.
type store struct {
	mu      sync.Mutex
	objects map[string]map[schema.GroupKind][]object.Object
	kinds   map[schema.GroupResource]schema.GroupKind
	wait    func(context.Context) error
	version int
}

func newStore() *store {
	s := &store{objects: map[string]map[schema.GroupKind][]object.Object{}, kinds: map[schema.GroupResource]schema.GroupKind{}}
	for _, k := range allKinds() {
		s.kinds[k.GroupResource()] = k.GroupKind()
	}
	return s
}

func (s *store) list(ctx context.Context, gr schema.GroupResource, cluster string) ([]object.Object, error) {
	if s.wait != nil {
		if err := s.wait(ctx); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.objects[cluster][s.kinds[gr]]), nil
}

func (s *store) put(cluster string, objects ...*object.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objects[cluster] == nil {
		s.objects[cluster] = map[schema.GroupKind][]object.Object{}
	}
	for _, o := range objects {
		s.version++
		o.ResourceVersion = fmt.Sprint(s.version)
		gk := o.GroupVersionKind().GroupKind()
		s.objects[cluster][gk] = append(slices.DeleteFunc(s.objects[cluster][gk], func(have object.Object) bool {
			return have.Name == o.Name && have.Namespace == o.Namespace
		}), *o)
	}
}

func newEngine(t testing.TB, s *store, adjust ...func(*Config)) (*Engine, metrics.KubeRegistry) {
	t.Helper()
	registry := metrics.NewKubeRegistry()
	c := Config{Kinds: allKinds(), List: s.list, WriteBudget: time.Minute, Register: func(all ...metrics.Registerable) {
		for _, m := range all {
			registry.MustRegister(m)
		}
	}}
	for _, a := range adjust {
		a(&c)
	}
	return New(c), registry
}

// parse reads objects from YAML documents.
func parse(t testing.TB, text string) []*object.Object {
	t.Helper()
	var out []*object.Object
	for part := range strings.SplitSeq(text, "\n---\n") {
		data, err := yaml.YAMLToJSON([]byte(part))
		if err != nil {
			t.Fatal(err)
		}
		o := &object.Object{}
		if err := o.UnmarshalJSON(data); err != nil {
			t.Fatal(err)
		}
		out = append(out, o)
	}
	return out
}

const (
	namespaceShop = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio-injection: enabled}}"
	service       = "apiVersion: v1\nkind: Service\nmetadata: {name: reviews, namespace: shop}\nspec: {ports: [{name: http, port: 80}]}"
	route         = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews, namespace: shop}\n" +
		"spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews}}]}]}"
	otherRoute = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: other, namespace: shop}\n" +
		"spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews}}]}]}"
	subsetRoute = "apiVersion: networking.istio.io/v1beta1\nkind: VirtualService\nmetadata: {name: reviews, namespace: shop}\n" +
		"spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v1}}]}]}"
	gateway = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: edge, namespace: shop}\n" +
		"spec: {selector: {istio: ingressgateway}, servers: [{hosts: ['*'], port: {name: http, number: 80, protocol: HTTP}}]}"
	pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop}\nspec: {containers: [{name: istio-proxy, image: proxyv2}]}"
)

func lines(all []v1alpha1.Finding) string {
	var out []string
	for _, f := range all {
		out = append(out, f.String())
	}
	return strings.Join(out, "\n")
}

func TestAddedTellsWhatAWriteAdds(t *testing.T) {
	const noHost = `Error [IST0101] (VirtualService shop/reviews) Referenced host not found: "reviews"`
	const noSubset = `Error [IST0101] (VirtualService shop/reviews) Referenced host+subset in destinationrule not found: "reviews+v1"`
	for _, c := range []struct {
		name, have, old, to string
		want                string
	}{
		{"a route to nowhere", namespaceShop, "", route, noHost},
		{"a route to a service", service, "", route, ""},
		{"a route to a missing subset, in another version", service, "", subsetRoute, noSubset},
		{"an update that breaks a route", service + "\n---\n" + route, route, subsetRoute, noSubset},
		{"an update of a route that was broken before", service + "\n---\n" + subsetRoute, subsetRoute, strings.Replace(subsetRoute, "hosts: [reviews]", "hosts: [reviews, shop]", 1), ""},
		{"an update that mends a route", service + "\n---\n" + subsetRoute, subsetRoute, route, ""},
		{"a deletion that breaks a route", service + "\n---\n" + route, service, "", noHost},
		{"the deletion of what is broken", route, route, "", ""},
		{"something broken elsewhere", route, "", service, ""},
		{"two that say the same of each other, told once", service + "\n---\n" + otherRoute, "", route,
			`Error [IST0109] (VirtualService shop/reviews) The VirtualServices shop/other,shop/reviews associated with mesh gateway define the same host */reviews.shop.svc.cluster.local which can lead to undefined behavior. ` +
				`This can be fixed by merging the conflicting VirtualServices into a single resource.`},
		{"suppressed by the object", namespaceShop, "", strings.Replace(route, "name: reviews,", "name: reviews, annotations: {galley.istio.io/analyze-suppress: IST0101},", 1), ""},
		{"for information only", service, "", strings.Replace(namespaceShop, ", labels: {istio-injection: enabled}", "", 1), ""},
		{"a selector where there are no workloads", namespaceShop, "", gateway, ""},
		{"a selector that misses the workloads", namespaceShop + "\n---\n" + pod, "", gateway,
			`Error [IST0101] (Gateway shop/edge) Referenced selector not found: "istio=ingressgateway"`},
		{"a kind that no analyzer reads", route, "", "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: a, namespace: shop}", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore()
			s.put("one", parse(t, c.have)...)
			s.put("two", parse(t, service)...)
			e, _ := newEngine(t, s)
			w := Write{Cluster: "one", ByHand: true}
			if c.old != "" {
				w.Old = parse(t, c.old)[0]
				w.Kind = w.Old.GroupVersionKind().GroupKind()
			}
			if c.to != "" {
				w.New = parse(t, c.to)[0]
				w.Kind = w.New.GroupVersionKind().GroupKind()
			}
			for range 2 { // the second time from what is remembered
				if got := lines(e.Added(t.Context(), w)); got != c.want {
					t.Fatalf("got\n%s\nwant\n%s", got, c.want)
				}
			}
		})
	}
}

func TestWhatMembersHaveIsNotMissed(t *testing.T) {
	const rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: reviews, namespace: shop}\nspec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}]}"
	const port = "host: reviews, port: {number: 81}"
	to := func(with string) string { return strings.Replace(route, "host: reviews", with, 1) }
	for _, c := range []struct {
		name, have, write string
		want              string // the codes
	}{
		{"a route to a service of members", namespaceShop, route, ""},
		{"by its whole name", namespaceShop, to("host: reviews.shop.svc.cluster.local"), ""},
		{"with a copy of the calls", namespaceShop, strings.Replace(route, "route: [{destination: {host: reviews}}]", "route: [{destination: {host: reviews}}], mirror: {host: reviews}", 1), ""},
		{"to one in a namespace of others", namespaceShop, to("host: accounts.bank.svc.cluster.local"), ""},
		{"to a service of members of another mesh", namespaceShop, to("host: far"), "IST0101"},
		{"to none", namespaceShop, to("host: nowhere"), "IST0101"},
		{"to none of another namespace", namespaceShop, to("host: reviews.bank.svc.cluster.local"), "IST0101"},
		{"to a subset that no rule has", namespaceShop, subsetRoute, "IST0101"},
		{"to a port that the service in the virtual cluster has not", service, to(port), "IST0101"},
		{"a rule for a service of members", namespaceShop, rule, ""},
		{"a rule for none", namespaceShop, strings.Replace(rule, "host: reviews", "host: nowhere", 1), "IST0174"},
		{"a rule of which members may have the pods", service + "\n---\n" + pod, rule, ""},
		{"a rule of which they have none", strings.ReplaceAll(service, "reviews", "ratings") + "\n---\n" + pod, strings.ReplaceAll(rule, "reviews", "ratings"), "IST0173"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore()
			s.put("one", parse(t, c.have)...)
			e, _ := newEngine(t, s, func(c *Config) {
				c.InMembers = func(cluster, namespace, name string) bool {
					return slices.Contains([]string{"one/shop/reviews", "one/bank/accounts", "two/shop/far"}, cluster+"/"+namespace+"/"+name)
				}
			})
			codes := func(all []v1alpha1.Finding) string {
				var out []string
				for _, f := range all {
					if f.Level != "Info" {
						out = append(out, f.Code)
					}
				}
				return strings.Join(out, " ")
			}
			o := parse(t, c.write)[0]
			if got := e.Added(t.Context(), Write{Cluster: "one", ByHand: true, Kind: o.GroupVersionKind().GroupKind(), New: o}); codes(got) != c.want {
				t.Errorf("the write is warned of %v, want %s", lines(got), c.want)
			}
			s.put("one", o)
			status, err := e.Analyze(t.Context(), "one")
			if err != nil || len(status.Failed) > 0 {
				t.Fatal(err, status.Failed)
			}
			if got := status.Findings; codes(slices.DeleteFunc(got, func(f v1alpha1.Finding) bool { return !strings.HasSuffix(f.Origin, "/"+o.Name) })) != c.want {
				t.Errorf("the virtual cluster has %v, want %s", lines(got), c.want)
			}
		})
	}
}

func TestAnalyzeFollowsTheVirtualCluster(t *testing.T) {
	s := newStore()
	e, _ := newEngine(t, s)
	find := func() string {
		t.Helper()
		status, err := e.Analyze(t.Context(), "one")
		if err != nil || len(status.Failed) > 0 {
			t.Fatal(err, status.Failed)
		}
		return lines(status.Findings)
	}
	if got := find(); got != "" {
		t.Errorf("an empty virtual cluster has %s", got)
	}
	s.put("one", parse(t, route)...)
	if got := find(); !strings.Contains(got, "IST0101") {
		t.Errorf("a route to nowhere: %s", got)
	}
	s.put("one", parse(t, service)...)
	if got := find(); got != "" {
		t.Errorf("a route to a service: %s", got)
	}
	s.put("one", parse(t, subsetRoute)...)
	if got := find(); !strings.Contains(got, "subset") {
		t.Errorf("a route to no subset: %s", got)
	}
}

// What is kept decoded must be what was stored, whatever analyzers do to it.
func TestAnalysesDoNotChangeWhatTheNextOneFinds(t *testing.T) {
	s := newStore()
	s.put("one", parse(t, strings.Replace(gateway, "hosts: ['*']", "hosts: ['*/reviews']", 1))...)
	s.put("one", parse(t, strings.NewReplacer("name: edge", "name: other", "hosts: ['*']", "hosts: ['reviews']").Replace(gateway))...)
	s.put("one", parse(t, strings.Replace(route, "hosts: [reviews]", "hosts: [reviews], gateways: [edge]", 1))...)
	e, _ := newEngine(t, s)
	var first string
	for i := range 3 {
		status, err := e.Analyze(t.Context(), "one")
		if err != nil {
			t.Fatal(err)
		}
		switch got := lines(status.Findings); {
		case i == 0:
			first = got
		case got != first:
			t.Errorf("at first\n%s\nthen\n%s", first, got)
		}
	}
}

func TestAWriteIsAnsweredWithoutAnalysis(t *testing.T) {
	w := func(t *testing.T) Write {
		return Write{Cluster: "one", Kind: schema.GroupKind{Group: "networking.istio.io", Kind: "VirtualService"}, New: parse(t, route)[0]}
	}
	none := rate.NewLimiter(0, 1)
	none.ReserveN(time.Now(), 1)
	for _, c := range []struct {
		name    string
		adjust  func(*Config)
		prepare func(*Engine, *store)
		skipped string
	}{
		{"when it is off", func(c *Config) { c.WriteBudget = 0 }, nil, ""},
		{"when the share of programs is used up", nil, func(e *Engine, _ *store) { e.programs = none }, skippedBusy},
		{"when it takes too long", func(c *Config) { c.WriteBudget = time.Millisecond }, func(_ *Engine, s *store) {
			s.wait = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		}, skippedSlow},
		{"when it took too long just now", nil, func(e *Engine, _ *store) {
			entry, err := e.cache.take(context.Background(), "one")
			if err != nil {
				panic(err)
			}
			e.cache.wasSlow(entry)
			e.cache.give(entry, nil)
			e.cache.sweep(time.Now().Add(keepFor + time.Second))
		}, skippedSlow},
		{"when the virtual cluster cannot be read", nil, func(_ *Engine, s *store) {
			s.wait = func(context.Context) error { return errors.New("no storage") }
		}, skippedFailed},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore()
			var adjust []func(*Config)
			if c.adjust != nil {
				adjust = append(adjust, c.adjust)
			}
			e, registry := newEngine(t, s, adjust...)
			if c.prepare != nil {
				c.prepare(e, s)
			}
			if got := e.Added(t.Context(), w(t)); len(got) > 0 {
				t.Errorf("got %v", got)
			}
			want := ""
			if c.skipped != "" {
				want = fmt.Sprintf("# HELP vmesh_analysis_skipped_total [ALPHA] Writes that were answered without analysis, by reason.\n"+
					"# TYPE vmesh_analysis_skipped_total counter\nvmesh_analysis_skipped_total{reason=%q} 1\n", c.skipped)
			}
			if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "vmesh_analysis_skipped_total"); err != nil {
				t.Error(err)
			}
		})
	}
}

// broken is an analyzer that breaks off after its first finding.
type broken struct{}

func (broken) Metadata() analysis.Metadata {
	return analysis.Metadata{Name: "broken", Inputs: []config.GroupVersionKind{gvk.VirtualService}}
}

func (broken) Analyze(c analysis.Context) {
	c.ForEach(gvk.VirtualService, func(r *resource.Instance) bool {
		c.Report(gvk.VirtualService, msg.NewInternalError(r, "half a truth"))
		panic("no more")
	})
}

func TestAnAnalyzerThatPanicsIsLeftOut(t *testing.T) {
	s := newStore()
	s.put("one", parse(t, otherRoute)...)
	e, registry := newEngine(t, s, func(c *Config) { c.analyzers = append([]analysis.Analyzer{broken{}}, analyzers.All()...) })
	status, err := e.Analyze(t.Context(), "one")
	if err != nil || !slices.Equal(status.Failed, []string{"broken"}) || len(status.Findings) != 1 || status.Findings[0].Code != "IST0101" {
		t.Errorf("got %v, %v", status, err)
	}
	added := e.Added(t.Context(), Write{Cluster: "one", Kind: schema.GroupKind{Group: "networking.istio.io", Kind: "VirtualService"}, New: parse(t, route)[0]})
	if !strings.Contains(lines(added), "[IST0109] (VirtualService shop/reviews)") {
		t.Errorf("a write adds %v", lines(added))
	}
	want := "# HELP vmesh_analysis_panics_total [ALPHA] Analyzers that broke off.\n# TYPE vmesh_analysis_panics_total counter\nvmesh_analysis_panics_total{analyzer=\"broken\"} 3\n"
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "vmesh_analysis_panics_total"); err != nil {
		t.Error(err)
	}
}

func TestDecodedObjectsAreForgotten(t *testing.T) {
	s := newStore()
	e, _ := newEngine(t, s)
	for i := range 3 {
		cluster := fmt.Sprint("c", i)
		for j := range keepObjects/2 - 1 {
			s.put(cluster, parse(t, strings.Replace(service, "name: reviews", fmt.Sprint("name: s", j), 1))...)
		}
		if _, err := e.Analyze(t.Context(), cluster); err != nil {
			t.Fatal(err)
		}
	}
	if got := e.cache.kept; got > keepObjects || got == 0 {
		t.Errorf("%d objects are kept, of at most %d", got, keepObjects)
	}
	e.cache.sweep(time.Now().Add(keepFor + time.Second))
	if len(e.cache.clusters) > 0 || e.cache.kept != 0 {
		t.Errorf("%d virtual clusters are remembered, with %d objects", len(e.cache.clusters), e.cache.kept)
	}
}

func TestAnalysesRunSideBySide(t *testing.T) {
	s := newStore()
	s.put("one", parse(t, service+"\n---\n"+otherRoute)...)
	e, _ := newEngine(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	var wg, runner sync.WaitGroup
	runner.Go(func() { e.Run(ctx) })
	for i := range 8 {
		wg.Go(func() {
			for j := range 20 {
				w := Write{Cluster: "one", Kind: schema.GroupKind{Group: "networking.istio.io", Kind: "VirtualService"}, New: parse(t, route)[0], ByHand: true}
				if got := e.Added(t.Context(), w); len(got) != 1 {
					t.Errorf("got %v", got)
				}
				if i == 0 && j%5 == 0 {
					if _, err := e.Analyze(t.Context(), "one"); err != nil {
						t.Error(err)
					}
					e.cache.sweep(time.Now().Add(time.Hour))
				}
			}
		})
	}
	wg.Wait()
	cancel()
	runner.Wait()
}

// BenchmarkAdded measures a write into virtual clusters of some sizes.
func BenchmarkAdded(b *testing.B) {
	for _, n := range []int{10, 100, 1000, 10000} {
		s := newStore()
		var objects []*object.Object
		for i := range n / 2 {
			name := fmt.Sprint("s", i)
			objects = append(objects, parse(b, strings.ReplaceAll(service, "reviews", name))...)
			objects = append(objects, parse(b, strings.ReplaceAll(route, "reviews", name))...)
		}
		for i, o := range objects {
			o.ResourceVersion = fmt.Sprint(i + 1)
			gk := o.GroupVersionKind().GroupKind()
			if s.objects["one"] == nil {
				s.objects["one"] = map[schema.GroupKind][]object.Object{}
			}
			s.objects["one"][gk] = append(s.objects["one"][gk], *o)
		}
		clean := parse(b, strings.ReplaceAll(route, "reviews", "s0"))[0]
		clean.Labels = map[string]string{"a": "b"}
		nowhere := parse(b, route)[0]
		gk := nowhere.GroupVersionKind().GroupKind()
		for _, c := range []struct {
			name string
			w    Write
		}{
			{"clean", Write{Cluster: "one", Kind: gk, Old: objects[1], New: clean, ByHand: true}},
			{"finding", Write{Cluster: "one", Kind: gk, New: nowhere, ByHand: true}},
		} {
			b.Run(fmt.Sprintf("objects=%d/%s", n, c.name), func(b *testing.B) {
				e, _ := newEngine(b, s)
				e.people = rate.NewLimiter(rate.Inf, 1)
				b.ReportAllocs()
				for b.Loop() {
					e.Added(b.Context(), c.w)
				}
			})
		}
		b.Run(fmt.Sprintf("objects=%d/demand", n), func(b *testing.B) {
			e, _ := newEngine(b, s)
			b.ReportAllocs()
			for b.Loop() {
				e.cache.sweep(time.Now().Add(time.Hour))
				if _, err := e.Analyze(b.Context(), "one"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
