package snapshot

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/policy"
)

// sharingKinds are a kind whose objects, made by speaking, share hosts.
func sharingKinds() []Kind {
	kinds := testKinds(1)
	kinds[0].Admit = func(o *object.Object, owners *ownership.View, exports *policy.Exports) (*object.Object, []policy.Violation, error) {
		if violations := policy.Check("ServiceEntry", o, owners); len(violations) > 0 {
			return nil, violations, nil
		}
		return o, nil, nil
	}
	kinds[0].Share = func(o *object.Object, owners *ownership.View) *policy.Shared {
		return policy.Share("ServiceEntry", o, owners)
	}
	kinds[0].AppendMessage = func(dst []byte, o *object.Object) ([]byte, error) {
		if strings.Contains(string(o.Field("spec")), "broken") {
			return nil, fmt.Errorf("broken")
		}
		return append(dst, '=', '1'), nil
	}
	return kinds
}

// speaking is an object that speaks for hosts everywhere.
func speaking(cluster, namespace, name string, age int64, hosts ...string) *object.Object {
	o := object.New(schema.GroupVersionKind{Group: "test.io", Version: "v1", Kind: "Kind0"})
	o.SetCluster(cluster)
	o.Namespace, o.Name, o.CreationTimestamp = namespace, name, metav1.Unix(1000-age, 0)
	list := make([]any, len(hosts))
	for i, h := range hosts {
		list[i] = h
	}
	if err := o.SetContent(map[string]any{"spec": map[string]any{"hosts": list, "exportTo": []any{"*"}}}); err != nil {
		panic(err)
	}
	return o
}

// everywhere has claims with a guard rail that lets export to all.
func everywhere(c ownership.Claims) *object.Object {
	o := claiming(c)
	content, err := o.Content()
	if err != nil {
		panic(err)
	}
	content["spec"].(map[string]any)["guardRails"] = map[string]any{"exportTo": []any{"*"}}
	if err := o.SetContent(content); err != nil {
		panic(err)
	}
	return o
}

func TestOfTwoThatSpeakForOneHostTheOldestIsInTheMesh(t *testing.T) {
	f := newFixture(t, sharingKinds())
	granting := claims("bank", "bank", "a.com b.com c.com", grantOf("shop", "a.com", "b.com", "c.com"), grantOf("wine", "b.com", "c.com"))
	f.start(map[string][]*object.Object{
		"meshes":          {meshObject("m")},
		"virtualclusters": {everywhere(granting), everywhere(claims("shop", "shop", "shop.com")), everywhere(claims("wine", "wine", ""))},
		"kind0s": {
			speaking("bank", "bank", "a", 9, "a.com"),
			speaking("shop", "shop", "a", 5, "a.com"),             // comes too late
			speaking("shop", "shop", "b", 8, "a.com", "b.com"),    // has b alone
			speaking("shop", "shop", "c", 3, "a.com", "shop.com"), // has shop.com alone
			speaking("wine", "wine", "b", 7, "b.com"),             // comes too late
			speaking("wine", "wine", "c", 2, "c.com"),
		},
	})
	s := f.subscribe("m")
	kind := f.kind(0)
	const b, c = "0:shop/b=1 0:shop/c=1", "0:wine/c=1"
	first := f.waitForBoth(s, "0:bank/a=1 "+b+" "+c, "shop/0:shop/a=HostTaken wine/0:wine/b=HostTaken")
	if _, message, _ := first.HeldBackReason("shop", "Kind0", "shop", "a"); !strings.Contains(message, `"a.com" is taken: ServiceEntry bank/a of virtual cluster "bank" is older`) {
		t.Errorf("the loser is told %q", message)
	}
	// Who has lost one of several is told that.
	inPart := func(s *Snapshot, want ...string) {
		t.Helper()
		var got []string
		for h := range s.InPart.All() {
			_, of, _ := strings.Cut(h.Message, "taken: ")
			got = append(got, fmt.Sprintf("%s/%s to %s", h.Namespace, h.Name, strings.Fields(of)[1]))
		}
		if !slices.Equal(got, want) {
			t.Errorf("without some of their hosts are %q, want %q", got, want)
		}
	}
	inPart(first, "shop/b to bank/a", "shop/c to bank/a")
	if message, lacks := first.LacksHosts("Kind0", "shop", "c"); !lacks || !strings.HasPrefix(message, `spec.hosts: "a.com" is taken: ServiceEntry bank/a of virtual cluster "bank" is older`) {
		t.Errorf("who has lost one is told %q", message)
	}
	for _, step := range []struct {
		name       string
		do         func()
		want, held string
	}{
		{"the winner goes", func() { kind.Changed(watch.Deleted, speaking("bank", "bank", "a", 9, "a.com"), 2) },
			"0:shop/a=1 " + b + " " + c, "wine/0:wine/b=HostTaken"},
		{"it comes back as the youngest", func() { kind.Changed(watch.Added, speaking("bank", "bank", "a", 1, "a.com"), 3) },
			"0:shop/a=1 " + b + " " + c, "bank/0:bank/a=HostTaken wine/0:wine/b=HostTaken"},
		{"the winner gives up its host", func() {
			kind.Changed(watch.Modified, speaking("shop", "shop", "a", 5, "shop.com"), 4)
			kind.Changed(watch.Modified, speaking("shop", "shop", "b", 8, "shop.com"), 4)
			kind.Changed(watch.Modified, speaking("shop", "shop", "c", 3, "shop.com"), 4)
		}, "0:bank/a=1 0:shop/a=1 " + b + " 0:wine/b=1 " + c, ""},
	} {
		step.do()
		inPart(f.waitForBoth(s, step.want, step.held))
	}
	set := func(c ownership.Claims) { f.observers["virtualclusters"].Changed(watch.Modified, everywhere(c), 9) }
	kind.Changed(watch.Modified, speaking("shop", "shop", "a", 5, "b.com"), 6)
	f.waitForBoth(s, "0:bank/a=1 "+b+" 0:wine/b=1 "+c, "shop/0:shop/a=HostTaken")
	// A grant that ends holds its objects back for that, and lets in who came after them.
	granting.Grants = granting.Grants[:1]
	set(granting)
	f.waitForBoth(s, "0:bank/a=1 0:shop/a=1 "+b, "wine/0:wine/b=HostNotOwned wine/0:wine/c=HostNotOwned")
	granting.Grants = append(granting.Grants, grantOf("wine", "b.com"))
	set(granting)
	f.waitForBoth(s, "0:bank/a=1 "+b+" 0:wine/b=1", "shop/0:shop/a=HostTaken wine/0:wine/c=HostNotOwned")
	f.observers["virtualclusters"].Changed(watch.Deleted, everywhere(claims("wine", "wine", "")), 10)
	inPart(f.waitForBoth(s, "0:bank/a=1 0:shop/a=1 "+b, ""))
	// It goes together with who is told.
	kind.Changed(watch.Added, speaking("bank", "bank", "d", 0, "a.com", "b.com", "c.com"), 11)
	kind.Changed(watch.Modified, speaking("shop", "shop", "a", 5, "b.com", "a.com"), 11)
	inPart(f.waitForBoth(s, "0:bank/d=1 0:shop/a=1 "+b, "bank/0:bank/a=HostTaken"), "bank/d to shop/a")
	kind.Changed(watch.Deleted, speaking("bank", "bank", "d", 0), 12)
	inPart(f.waitForBoth(s, "0:shop/a=1 "+b, "bank/0:bank/a=HostTaken"))
}

// placed are the objects that a follower was told of last, by their names.
type placed struct {
	mu   sync.Mutex
	last map[string]*object.Object
}

func (p *placed) Placed(placements []Placement) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, at := range placements {
		p.last[at.Object.Cluster()+"/"+key(at.Object.Namespace, at.Object.Name)] = at.Object
	}
}

func (p *placed) revision(name string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o := p.last[name]; o != nil {
		return o.ResourceVersion
	}
	return ""
}

// A status that was written since an object was rendered is not undone by telling of what
// was rendered: who follows would wait for it to be told of what is stored.
func TestAFollowerIsToldOfObjectsAsTheyAreStored(t *testing.T) {
	told := &placed{last: map[string]*object.Object{}}
	f := newFixture(t, sharingKinds(), func(b *Builder) { b.Follow(told) })
	f.start(map[string][]*object.Object{
		"meshes":          {meshObject("m")},
		"virtualclusters": {everywhere(claims("bank", "bank", "a.com b.com", grantOf("shop", "a.com"))), everywhere(claims("shop", "shop", ""))},
		"kind0s":          {speaking("shop", "shop", "a", 9, "a.com"), speaking("bank", "bank", "a", 5, "a.com"), speaking("bank", "bank", "b", 4, "a.com", "b.com")},
	})
	s := f.subscribe("m")
	f.waitForBoth(s, "0:bank/b=1 0:shop/a=1", "bank/0:bank/a=HostTaken")
	for i, o := range []*object.Object{speaking("bank", "bank", "a", 5, "a.com"), speaking("bank", "bank", "b", 4, "a.com", "b.com")} {
		o.ResourceVersion = "7" // and its spec is what it was
		f.kind(0).Changed(watch.Modified, o, uint64(i+2))
	}
	f.kind(0).Changed(watch.Deleted, speaking("shop", "shop", "a", 9, "a.com"), 9)
	f.waitForBoth(s, "0:bank/a=1 0:bank/b=1", "")
	for _, name := range []string{"a", "b"} {
		for deadline := time.Now().Add(time.Minute); told.revision("bank/bank/"+name) != "7"; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("of %s it is told as of %q", name, told.revision("bank/bank/"+name))
			}
		}
	}
}

func TestWhatCannotBeRenderedKeepsItsHostAndItsPlace(t *testing.T) {
	f := newFixture(t, sharingKinds())
	f.start(map[string][]*object.Object{
		"meshes":          {meshObject("m")},
		"virtualclusters": {everywhere(claims("bank", "bank", "a.com", grantOf("shop", "a.com"))), everywhere(claims("shop", "shop", ""))},
		"kind0s":          {speaking("bank", "bank", "a", 9, "a.com"), speaking("shop", "shop", "a", 5, "a.com")},
	})
	s := f.subscribe("m")
	f.waitForBoth(s, "0:bank/a=1", "shop/0:shop/a=HostTaken")
	broken := func(o *object.Object) *object.Object {
		content, err := o.Content()
		if err != nil {
			t.Fatal(err)
		}
		content["spec"].(map[string]any)["broken"] = true
		if err := o.SetContent(content); err != nil {
			t.Fatal(err)
		}
		return o
	}
	quarantined := func(n int, want, held string) {
		t.Helper()
		f.wait(s, fmt.Sprint(n, " quarantined"), func(s *Snapshot, err error) bool {
			return err == nil && len(s.Quarantined) == n && describe(s) == want && describeHeld(s) == held
		})
	}
	f.kind(0).Changed(watch.Modified, broken(speaking("bank", "bank", "a", 9, "a.com")), 2)
	quarantined(1, "0:bank/a=1", "shop/0:shop/a=HostTaken")
	f.kind(0).Changed(watch.Modified, broken(speaking("shop", "shop", "a", 5, "a.com")), 3)
	quarantined(2, "0:bank/a=1", "shop/0:shop/a=HostTaken")
	f.kind(0).Changed(watch.Deleted, speaking("bank", "bank", "a", 9, "a.com"), 4)
	quarantined(1, "0:shop/a=1", "") // in its last good form
	f.kind(0).Changed(watch.Modified, speaking("shop", "shop", "a", 5, "a.com"), 5)
	quarantined(0, "0:shop/a=1", "")
}

func TestAReviewTellsWhoWouldLoseItsHost(t *testing.T) {
	f := newFixture(t, sharingKinds())
	f.start(map[string][]*object.Object{
		"meshes":          {meshObject("m")},
		"virtualclusters": {everywhere(claims("bank", "bank", "a.com", grantOf("wine", "a.com"))), everywhere(claims("shop", "shop", "")), everywhere(claims("wine", "wine", ""))},
		"kind0s":          {speaking("bank", "bank", "a", 5, "a.com"), speaking("shop", "shop", "a", 9, "a.com"), speaking("wine", "wine", "a", 1, "a.com")},
	})
	<-f.builder.Synced()
	s := f.subscribe("m")
	f.waitForBoth(s, "0:bank/a=1", "shop/0:shop/a=HostNotOwned wine/0:wine/a=HostTaken")
	plan := func(c ownership.Claims) Plan {
		p := planned(c)
		p.VirtualClusters[0].Spec.GuardRails = &v1alpha1.VirtualClusterGuardRails{ExportTo: []v1alpha1.NamespacePattern{"*"}}
		return p
	}
	show := func(p Plan) string {
		t.Helper()
		r, err := f.builder.Review(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, h := range r.HeldBack {
			out = append(out, fmt.Sprintf("-%s=%s", h.VirtualCluster, h.Reason))
		}
		for _, h := range r.LetIn {
			out = append(out, fmt.Sprintf("+%s=%s", h.VirtualCluster, h.Reason))
		}
		return strings.Join(out, " ")
	}
	if got := show(plan(claims("bank", "bank", "a.com", grantOf("wine", "a.com"), grantOf("shop", "a.com")))); got != "-bank=HostTaken +shop=HostNotOwned" {
		t.Errorf("a grant to the oldest: %s", got)
	}
	if got := show(plan(claims("bank", "", "a.com", grantOf("wine", "a.com")))); got != "-bank=NotOwner +wine=HostTaken" {
		t.Errorf("the winner's namespace is given up: %s", got)
	}
	if got := show(plan(claims("shop", "shop shop-2", ""))); got != "" {
		t.Errorf("what has nothing to do with it: %s", got)
	}
}

// What is decided step by step is what is decided from scratch.
func TestAContestEndsTheSameHoweverItCameAbout(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	hosts := []string{"a.com", "b.com", "c.com", "own.com"} // the last of which is not shared
	all := claims("c0", "n0", "a.com b.com c.com own.com")
	for i := 1; i < 5; i++ {
		all.Grants = append(all.Grants, grantOf(fmt.Sprint("c", i), "a.com", "b.com", "c.com"))
	}
	index := ownership.New(all)
	for i := 1; i < 5; i++ {
		index = index.With(claims(fmt.Sprint("c", i), fmt.Sprint("n", i), ""))
	}
	var c contest
	present := map[string]*speaker{}
	told := map[*speaker]string{} // what the last word about each was
	decide := func() {
		c.decide(func(s *speaker, wasOut bool) {
			if was := strings.HasPrefix(told[s], "out"); was != wasOut {
				t.Errorf("%s was out: %v, and is told to have been: %v", s.key, was, wasOut)
			}
			if told[s] = ""; s.out {
				told[s] = "out"
			}
			if v, some := s.taken(); some {
				told[s] += v.Message
			}
		})
	}
	for step := range 3000 {
		n := random.IntN(5)
		namespace, name := fmt.Sprint("n", n), fmt.Sprint(random.IntN(4))
		at := key(namespace, name)
		if random.IntN(4) == 0 {
			c.set(at, nil, nil)
			delete(present, at)
		} else {
			var some []string
			for _, h := range hosts {
				if random.IntN(2) == 0 {
					some = append(some, h)
				}
			}
			o := speaking(fmt.Sprint("c", n), namespace, name, int64(random.IntN(10)), some...)
			said := policy.Share("ServiceEntry", o, index.View(o.Cluster(), "istio-system"))
			c.set(at, o, said)
			if delete(present, at); said != nil {
				present[at] = &speaker{key: at, object: o, said: said}
			}
		}
		if random.IntN(3) == 0 {
			continue // several at once
		}
		decide()
		sorted := []*speaker{}
		for _, s := range present {
			sorted = append(sorted, s)
		}
		slices.SortFunc(sorted, func(a, b *speaker) int {
			if olderSpeaker(a, b) {
				return -1
			}
			return 1
		})
		in := map[string]bool{}
		for i, s := range sorted {
			want, taken := "", 0
			for _, h := range s.said.Hosts {
				if by := slices.IndexFunc(sorted[:i], func(o *speaker) bool {
					return in[o.key] && slices.Contains(o.said.Hosts, h) && o.said.TakesFrom(s.said)
				}); by >= 0 {
					if taken++; taken == 1 {
						want = sorted[by].said.Taken(h).Message
					}
				}
			}
			if taken > 1 {
				want += fmt.Sprintf(" (hosts taken in all: %d)", taken)
			}
			if in[s.key] = !s.said.Alone() || taken < len(s.said.Hosts); !in[s.key] {
				want = "out" + want
			}
			if c.out(s.key) == in[s.key] || told[c.all[s.key]] != want {
				t.Fatalf("step %d: %s is out: %v, and was told %q, want %q", step, s.key, c.out(s.key), told[c.all[s.key]], want)
			}
		}
	}
	for at := range present {
		c.set(at, nil, nil)
	}
	if decide(); len(c.all)+len(c.hosts)+c.changed.Len() > 0 {
		t.Errorf("something is left: %+v", c)
	}
}

func TestALaterStageKeepsWhatIsReplacedUntilItHasWhatReplacesIt(t *testing.T) {
	f := newFixture(t, sharingKinds())
	bank := claims("bank", "bank over", "a.com", grantOf("shop", "a.com"))
	bank.Handovers = []v1alpha1.VirtualClusterHandover{{To: "shop", Namespaces: []v1alpha1.NamespacePattern{"over"}}}
	f.start(map[string][]*object.Object{
		"meshes":          {meshWith(`{"rollout": {"stages": [{"name": "one", "controlPlanes": {"matchLabels": {"s": "1"}}}, {"name": "two", "controlPlanes": {}}]}}`)},
		"virtualclusters": {everywhere(bank), everywhere(claims("shop", "shop", ""))},
		"kind0s": {speaking("shop", "shop", "a", 5, "a.com"), speaking("bank", "over", "both", 5, "x.over.svc.cluster.local"),
			speaking("bank", "over", "old", 5, "y.over.svc.cluster.local"), speaking("shop", "over", "both", 5, "x.over.svc.cluster.local")},
	})
	s := f.subscribe("m")
	older := f.waitForBoth(s, "0:over/both=1 0:over/old=1 0:shop/a=1", "shop/0:over/both=NotOwner")
	two := f.subscribe("m")
	two.Select(ControlPlane{})
	f.builder.SetStages("m", older.Policy.Epoch, map[string]*Snapshot{"one": older, "two": older.Stage(older.Lists)})
	f.wait(two, "all", func(s *Snapshot, err error) bool { return err == nil && s.Resources() == 3 })
	f.kind(0).Changed(watch.Added, speaking("bank", "bank", "a", 9, "a.com"), 2)
	f.observers["virtualclusters"].Changed(watch.Modified, everywhere(claims("shop", "shop over", "")), 3)
	f.waitForBoth(s, "0:bank/a=1 0:over/both=1", "bank/0:over/both=NotOwner bank/0:over/old=NotOwner shop/0:shop/a=HostTaken")
	f.wait(two, "what is not replaced gone, and nothing else", func(s *Snapshot, err error) bool {
		return err == nil && describe(s) == "0:over/both=1 0:shop/a=1"
	})
	// What was to come after it does not come.
	f.kind(0).Changed(watch.Deleted, speaking("shop", "over", "both", 5, "x.over.svc.cluster.local"), 4)
	f.wait(two, "what has no successor any more gone", func(s *Snapshot, err error) bool { return err == nil && describe(s) == "0:shop/a=1" })
}
