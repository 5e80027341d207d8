package meshservice

import (
	"context"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/rest"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	vmeshkinds "github.com/vmesh-io/vmesh/pkg/apis/vmesh"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/discovery"
	"github.com/vmesh-io/vmesh/pkg/discovery/discoverytest"
	"github.com/vmesh-io/vmesh/pkg/members"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

func ptr[T any](v T) *T { return &v }

// owners are who owns what, by namespace.
type owners map[string]string

type fixedOwners struct{ owners }

func (f *fixedOwners) Owner(_, namespace string) (string, bool) {
	owner, ok := f.owners[namespace]
	return owner, ok
}

// nothing is a configuration without meshes.
type nothing struct{}

func (nothing) Kinds() []snapshot.Kind             { return nil }
func (nothing) Snapshot(string) *snapshot.Snapshot { return nil }
func (nothing) MeshObject(string) *object.Object   { return nil }

// fixture serves meshservices of members whose APIs are simulated.
type fixture struct {
	t     *testing.T
	rest  *REST
	view  *discovery.View
	apis  map[string]*discoverytest.Server
	scope atomic.Pointer[Scope]
}

// see changes what the virtual cluster sees.
func (f *fixture) see(change func(*Scope)) {
	scope := *f.scope.Load()
	change(&scope)
	f.scope.Store(&scope)
}

func newFixture(t *testing.T, names ...string) *fixture {
	t.Helper()
	k, err := vmeshkinds.MeshServices()
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, view: discovery.New(nil), apis: map[string]*discoverytest.Server{}}
	f.scope.Store(&Scope{Cluster: "shop", Mesh: "default", Of: &fixedOwners{owners{"shop": "shop", "bank": "bank"}}})
	f.rest = New(k, f.view, func(context.Context) (Scope, error) { return *f.scope.Load(), nil }, NewRoutes(func() Configuration { return nothing{} }, f.view))
	f.rest.tick = 10 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = f.view.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	for _, name := range names {
		f.apis[name] = discoverytest.New()
		server := httptest.NewServer(f.apis[name])
		t.Cleanup(server.Close)
		t.Cleanup(func() { f.view.Gone(name) })
		f.view.Changed(members.Member{Name: name, Mesh: "default", Discovered: true, Config: &rest.Config{Host: server.URL}})
	}
	for _, name := range names {
		f.eventually(name+" is read", func() bool { return f.view.Reading(name).Synced })
	}
	return f
}

func (f *fixture) eventually(what string, is func() bool) {
	f.t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			f.t.Fatalf("not within a minute: %s", what)
		}
	}
}

// set makes a service of a member, and waits until the view has it.
func (f *fixture) set(member, namespace, name string, of map[string]string) {
	f.t.Helper()
	_, before := f.view.List("default", func(string) bool { return true })
	f.apis[member].Set(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: of},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}},
	})
	f.changedSince(before)
}

func (f *fixture) changedSince(version uint64) {
	f.t.Helper()
	f.eventually("the view has changed", func() bool {
		_, now := f.view.List("default", func(string) bool { return true })
		return now > version
	})
}

func (f *fixture) delete(member, namespace, name string) {
	f.t.Helper()
	_, before := f.view.List("default", func(string) bool { return true })
	f.apis[member].Delete(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}})
	f.changedSince(before)
}

func in(namespace string) context.Context {
	return request.WithNamespace(context.Background(), namespace)
}

func (f *fixture) list(namespace string, options *internalversion.ListOptions) (names []string, version string) {
	f.t.Helper()
	obj, err := f.rest.List(in(namespace), options)
	if err != nil {
		f.t.Fatal(err)
	}
	list := obj.(*object.List)
	for _, o := range list.Items {
		names = append(names, o.Namespace+"/"+o.Name)
	}
	return names, list.ResourceVersion
}

func TestAVirtualClusterSeesTheServicesOfItsNamespaces(t *testing.T) {
	f := newFixture(t, "east", "west")
	f.set("east", "shop", "a", map[string]string{"tier": "front"})
	f.set("west", "shop", "b", nil)
	f.set("east", "bank", "c", nil)
	f.set("east", "nobodys", "d", nil)
	front, err := labels.Parse("tier=front")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		namespace string
		options   *internalversion.ListOptions
		home      bool
		want      []string
	}{
		"its namespaces": {"", nil, false, []string{"shop/a", "shop/b"}},
		"one of them":    {"shop", nil, false, []string{"shop/a", "shop/b"}},
		"another's":      {"bank", nil, false, nil},
		"the home":       {"", nil, true, []string{"bank/c", "nobodys/d", "shop/a", "shop/b"}},
		"by label":       {"", &internalversion.ListOptions{LabelSelector: front}, true, []string{"shop/a"}},
		"by name":        {"", &internalversion.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", "c")}, true, []string{"bank/c"}},
	} {
		t.Run(name, func(t *testing.T) {
			f.see(func(s *Scope) { s.Home = c.home })
			if got, _ := f.list(c.namespace, c.options); !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
	f.see(func(s *Scope) { s.Home = false })
	if _, err := f.rest.Get(in("bank"), "c", nil); !apierrors.IsNotFound(err) {
		t.Errorf("a service of another's namespace: %v", err)
	}
	first, err := f.rest.Get(in("shop"), "a", nil)
	if err != nil {
		t.Fatal(err)
	}
	f.set("west", "shop", "a", nil)
	second, err := f.rest.Get(in("shop"), "a", nil)
	if err != nil {
		t.Fatal(err)
	}
	a, b := first.(*object.Object), second.(*object.Object)
	if a.UID != b.UID || a.UID == "" || a.ResourceVersion >= b.ResourceVersion {
		t.Errorf("UIDs %q and %q, versions %s and then %s", a.UID, b.UID, a.ResourceVersion, b.ResourceVersion)
	}
}

// events reads what a watch tells until one of them is of a name, and says all as TYPE NAME.
func events(t *testing.T, w watch.Interface, until string) []string {
	t.Helper()
	var all []string
	for {
		select {
		case e, open := <-w.ResultChan():
			if !open {
				t.Fatalf("the watch has ended, after %v", all)
			}
			one := string(e.Type)
			if o, is := e.Object.(*object.Object); is {
				one = strings.TrimSpace(one + " " + o.Name)
			}
			if status, is := e.Object.(*metav1.Status); is {
				one += fmt.Sprintf(" %d", status.Code)
			}
			if all = append(all, one); one == until {
				return all
			}
		case <-time.After(time.Minute):
			t.Fatalf("no more events within a minute, after %v", all)
		}
	}
}

func TestAWatchTellsWhatBecomesOfServices(t *testing.T) {
	f := newFixture(t, "east", "west")
	f.set("east", "shop", "a", nil)
	f.set("east", "shop", "gone", nil)
	f.set("east", "bank", "other", nil)
	_, version := f.list("", nil)
	f.set("west", "shop", "a", nil)
	f.set("west", "shop", "short", nil)
	f.delete("west", "shop", "short") // made and gone since: nobody needs to know
	f.delete("east", "shop", "gone")
	f.set("east", "shop", "last", nil)
	w, err := f.rest.Watch(in(""), &internalversion.ListOptions{ResourceVersion: version})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if got, want := events(t, w, "ADDED last"), []string{"MODIFIED a", "DELETED gone", "ADDED last"}; !slices.Equal(got, want) {
		t.Errorf("since the list: %v, want %v", got, want)
	}
	f.delete("west", "shop", "a")
	f.set("east", "bank", "other", map[string]string{"x": "y"})
	f.set("east", "shop", "next", nil)
	if got, want := events(t, w, "ADDED next"), []string{"MODIFIED a", "ADDED next"}; !slices.Equal(got, want) {
		t.Errorf("then: %v, want %v", got, want)
	}
	// Claims change: what is seen comes and goes.
	f.see(func(s *Scope) { s.Of = &fixedOwners{owners{"shop": "bank", "bank": "shop"}} })
	got := []string{events(t, w, "ADDED other")[0]}
	for range 3 {
		e := <-w.ResultChan()
		got = append(got, string(e.Type)+" "+e.Object.(*object.Object).Name)
	}
	slices.Sort(got)
	if want := []string{"ADDED other", "DELETED a", "DELETED last", "DELETED next"}; !slices.Equal(got, want) {
		t.Errorf("when claims change: %v, want %v", got, want)
	}
	f.see(func(s *Scope) { s.Mesh = "elsewhere" })
	if got := events(t, w, "ERROR 410"); len(got) != 1 {
		t.Errorf("in another mesh: %v", got)
	}
}

func TestAWatchBeginsWithWhatThereIs(t *testing.T) {
	f := newFixture(t, "east")
	f.set("east", "shop", "a", nil)
	for name, c := range map[string]struct {
		options *internalversion.ListOptions
		until   string
		want    []string
	}{
		"without a version":      {&internalversion.ListOptions{}, "ADDED a", []string{"ADDED a"}},
		"from any version":       {&internalversion.ListOptions{ResourceVersion: "0"}, "ADDED a", []string{"ADDED a"}},
		"with initial events":    {&internalversion.ListOptions{SendInitialEvents: ptr(true), AllowWatchBookmarks: true}, "BOOKMARK", []string{"ADDED a", "BOOKMARK"}},
		"without initial events": {&internalversion.ListOptions{SendInitialEvents: ptr(false)}, "ADDED b", []string{"ADDED b"}},
	} {
		t.Run(name, func(t *testing.T) {
			w, err := f.rest.Watch(in(""), c.options)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Stop()
			if c.until == "ADDED b" {
				f.set("east", "shop", "b", nil)
				defer f.delete("east", "shop", "b")
			}
			if got := events(t, w, c.until); !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
	foreign := mustVersion(t, f)
	for foreign&0x7fff == mustVersion(t, f)&0x7fff { // two processes may draw the same number
		_, foreign = discovery.New(nil).List("default", func(string) bool { return false })
	}
	for version, is := range map[string]func(error) bool{
		"1": apierrors.IsResourceExpired, encodeVersion(foreign): apierrors.IsResourceExpired, "x": apierrors.IsBadRequest,
	} {
		if _, err := f.rest.Watch(in(""), &internalversion.ListOptions{ResourceVersion: version}); !is(err) {
			t.Errorf("from version %s: %v", version, err)
		}
	}
}

func mustVersion(t *testing.T, f *fixture) uint64 {
	t.Helper()
	_, version := f.view.List("default", func(string) bool { return false })
	return version
}

func TestAWatchOfLabelsTellsWhenTheyDoNotMatchAnyMore(t *testing.T) {
	f := newFixture(t, "east")
	front, err := labels.Parse("tier=front")
	if err != nil {
		t.Fatal(err)
	}
	f.set("east", "shop", "a", map[string]string{"tier": "front"})
	f.set("east", "shop", "b", nil)
	w, err := f.rest.Watch(in(""), &internalversion.ListOptions{LabelSelector: front})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	events(t, w, "ADDED a")
	f.set("east", "shop", "a", map[string]string{"tier": "back"})
	f.set("east", "shop", "b", map[string]string{"tier": "front"})
	if got, want := events(t, w, "ADDED b"), []string{"DELETED a", "ADDED b"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestAWatchLeavesNothingBehind(t *testing.T) {
	f := newFixture(t, "east")
	ignore := goleak.IgnoreCurrent()
	for range 5 {
		w, err := f.rest.Watch(in(""), nil)
		if err != nil {
			t.Fatal(err)
		}
		w.Stop()
	}
	goleak.VerifyNone(t, ignore)
}

func TestServicesAreToldInShort(t *testing.T) {
	http := []discovery.Port{{Name: "http", Port: 80, Protocol: "TCP"}}
	away := time.Unix(1000, 0)
	st := Status(discovery.Service{Namespace: "shop", Name: "a", Clusters: []discovery.Cluster{
		{Member: "east", Network: "n1", Type: "ClusterIP", Ports: http, Endpoints: 3, Ready: 2, Localities: []discovery.Locality{{Name: "eu/a", Endpoints: 3, Ready: 2}}},
		{Member: "north", Network: "n1", Type: "ClusterIP", Ports: http, Endpoints: 2, Ready: 2, Drained: true, Localities: []discovery.Locality{{Name: "eu/b", Endpoints: 2, Ready: 2}}},
		{Member: "west", Network: "n2", Type: "ClusterIP", Headless: true, AwaySince: away, Endpoints: 1, Ready: 1,
			Ports: []discovery.Port{{Name: "web", Port: 80, Protocol: "TCP"}, {Name: "x", Port: 90, Protocol: "TCP", AppProtocol: "grpc"}}, Localities: []discovery.Locality{{Name: "", Endpoints: 1, Ready: 1}}},
	}})
	want := v1alpha1.MeshServiceSummary{
		Clusters: "east,north(drained),west(away)", Networks: "n1,n2", Localities: "eu/a,eu/b", Ready: "3/6", Ports: "http:80,tcp:80,grpc:90",
	}
	if st.Summary != want {
		t.Errorf("summary\n%+v, want\n%+v", st.Summary, want)
	}
	if want := []string{
		"ClusterIP in east,north; ClusterIP without an address (headless) in west",
		"port 80: http (http) in east,north; web (tcp) in west",
		"port 90: absent in east,north; x (grpc) in west",
	}; !slices.Equal(st.Differences, want) {
		t.Errorf("differences\n%s, want\n%s", strings.Join(st.Differences, "\n"), strings.Join(want, "\n"))
	}
	if st.Endpoints != 6 || st.Ready != 3 || st.Host != "a.shop.svc.cluster.local" || st.Clusters[2].AwaySince == nil {
		t.Errorf("got %+v", st)
	}
	if got := some([]string{"a", "b", "c", "d", "e", "f"}); got != "a,b,c,d,+2" {
		t.Errorf("many: %s", got)
	}
}

// aRouting is what rules say.
func aRouting(rules ...*rule) *routing {
	r := &routing{known: true, exact: map[string][]*rule{}}
	for _, one := range rules {
		for _, h := range one.hosts {
			if strings.HasPrefix(h, "*") {
				r.wild = append(r.wild, one)
			} else {
				r.exact[h] = append(r.exact[h], one)
			}
		}
	}
	return r
}

const host = "a.shop.svc.cluster.local"

func aRule(kind, namespace, name string, change ...func(*rule)) *rule {
	r := &rule{cluster: namespace, kind: kind, namespace: namespace, name: name, hosts: []string{host}, created: time.Unix(1000, 0)}
	for _, c := range change {
		c(r)
	}
	return r
}

func TestRoutesAreThoseThatTheVirtualClusterMayKnow(t *testing.T) {
	exportTo := func(to ...string) func(*rule) { return func(r *rule) { r.exportTo = to } }
	r := aRouting(
		aRule(virtualServices, "shop", "own"),
		aRule(virtualServices, "bank", "everybody's"),
		aRule(destinationRules, "bank", "for-shop", exportTo("shop")),
		aRule(virtualServices, "bank", "private", exportTo(".")),
		aRule(virtualServices, "bank", "others", exportTo("other")),
		aRule(virtualServices, "shop", "wild", func(r *rule) { r.hosts = []string{"*.shop.svc.cluster.local"} }),
		aRule(virtualServices, "shop", "no", func(r *rule) { r.hosts = []string{"*.bank.svc.cluster.local", "b.shop.svc.cluster.local"} }),
		aRule(destinationRules, "istio-system", "vmesh:locality"),
	)
	of := func(home bool) string {
		return summarizeRoutes("shop", r.routes(&Scope{Cluster: "shop", Home: home}, "shop", host))
	}
	if got, want := of(false), "vs/bank/everybody's,vs/own,vs/wild,dr/bank/for-shop"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := of(true); got != "vs/bank/everybody's,vs/bank/others,vs/bank/private,vs/own,+2" {
		t.Errorf("the home: %s", got)
	}
}

func TestTheDestinationRuleIsTheOneThatIstioChooses(t *testing.T) {
	policy := func(r *rule) { r.policy = true }
	wild := func(r *rule) { r.hosts = []string{"*.svc.cluster.local"} }
	older := func(r *rule) { r.created = time.Unix(500, 0) }
	for name, c := range map[string]struct {
		rules []*rule
		want  string
	}{
		"none":                              {nil, ""},
		"the namespace's before the root's": {[]*rule{aRule(destinationRules, "istio-system", "exact"), aRule(destinationRules, "shop", "wild", wild)}, "wild"},
		"the most specific host":            {[]*rule{aRule(destinationRules, "shop", "wild", wild), aRule(destinationRules, "shop", "exact")}, "exact"},
		"the root's":                        {[]*rule{aRule(destinationRules, "istio-system", "wild", wild), aRule(destinationRules, "bank", "others")}, "wild"},
		"the root's, not exported":          {[]*rule{aRule(destinationRules, "istio-system", "wild", wild, func(r *rule) { r.exportTo = []string{"."} })}, ""},
		"the oldest":                        {[]*rule{aRule(destinationRules, "shop", "new"), aRule(destinationRules, "shop", "old", older)}, "old"},
		"the oldest that says something":    {[]*rule{aRule(destinationRules, "shop", "new", policy), aRule(destinationRules, "shop", "old", older)}, "new"},
		"not one for some workloads":        {[]*rule{aRule(destinationRules, "shop", "some", func(r *rule) { r.selected = true })}, ""},
		"not a virtual service":             {[]*rule{aRule(virtualServices, "shop", "vs")}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			for range 2 {
				got := ""
				if found := aRouting(c.rules...).destinationRule("shop", host); found != nil {
					got = found.name
				}
				if got != c.want {
					t.Errorf("got %q, want %q", got, c.want)
				}
				slices.Reverse(c.rules)
			}
		})
	}
}

func TestTheRuleOfLocalitiesIsToldWithWhatKeepsItFromWorking(t *testing.T) {
	setting := func(l *networking.LocalityLoadBalancerSetting) func(*rule) {
		return func(r *rule) {
			r.policy, r.balancing = true, &networking.LoadBalancerSettings{LocalityLbSetting: l}
		}
	}
	outlier := func(r *rule) { r.policy, r.outlier = true, true }
	of := func(rules ...*rule) *routing { return aRouting(rules...) }
	no := false
	meshSays := func(l *v1alpha1.MeshLocality, r *routing) *routing { r.spec.Locality = l; return r }
	for name, c := range map[string]struct {
		r        *routing
		service  discovery.Service
		want     string // LOCALITY FROM OUTLIER
		warnings int
	}{
		"nothing said": {of(), discovery.Service{}, "LocalFirst, Mesh m, ", 1},
		"everywhere":   {meshSays(&v1alpha1.MeshLocality{LocalFirst: &no}, of()), discovery.Service{}, "Everywhere, Mesh m, ", 0},
		"the mesh's, managed": {
			meshSays(&v1alpha1.MeshLocality{Failover: []v1alpha1.MeshFailover{{From: "a", To: "b"}}}, of(aRule(destinationRules, "istio-system", "vmesh:locality", outlier))),
			discovery.Service{}, "Failover, Mesh m, Mesh m", 0,
		},
		"the mesh's shares":       {meshSays(&v1alpha1.MeshLocality{Distribute: []v1alpha1.MeshDistribute{{From: "a"}}}, of()), discovery.Service{}, "Distribute, Mesh m, ", 0},
		"a rule without outliers": {of(aRule(destinationRules, "shop", "a")), discovery.Service{}, "LocalFirst, Mesh m, ", 1},
		"a rule of its own":       {of(aRule(destinationRules, "shop", "a", setting(&networking.LocalityLoadBalancerSetting{FailoverPriority: []string{"x"}}), outlier)), discovery.Service{}, "Failover, DestinationRule shop/a, DestinationRule shop/a", 0},
		"the service itself":      {of(), discovery.Service{Distribution: true}, "LocalFirst, Service shop/a, ", 0},
		"endpoints without a place": {of(aRule(destinationRules, "shop", "a", outlier)), discovery.Service{Clusters: []discovery.Cluster{{Member: "east", Localities: []discovery.Locality{{Endpoints: 1}}}}},
			"LocalFirst, Mesh m, DestinationRule shop/a", 1},
	} {
		t.Run(name, func(t *testing.T) {
			c.service.Namespace, c.service.Name = "shop", "a"
			got := c.r.traffic("m", c.service, host)
			if s := strings.Join([]string{got.Locality, got.From, got.OutlierDetection}, ", "); s != c.want || len(got.Warnings) != c.warnings {
				t.Errorf("got %s, warnings %q; want %s, %d warnings", s, got.Warnings, c.want, c.warnings)
			}
		})
	}
}
