package snapshot

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/watch"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// meshWith is a mesh m with a spec, which is JSON.
func meshWith(spec string) *object.Object {
	o := meshObject("m")
	var content any
	if err := json.Unmarshal([]byte(spec), &content); err != nil {
		panic(err)
	}
	if err := o.SetContent(map[string]any{"spec": content}); err != nil {
		panic(err)
	}
	o.DropContent()
	return o
}

func labelled(o *object.Object, set map[string]string) *object.Object {
	o.Labels = set
	return o
}

func (f *fixture) controlPlane(revision string, set map[string]string) *Subscription {
	s := f.subscribe("m")
	s.Select(ControlPlane{Revision: revision, Labels: set})
	return s
}

func TestARevisionReceivesWhatIsMeantForItAndForAll(t *testing.T) {
	f := newFixture(t, testKinds(1))
	f.start(map[string][]*object.Object{
		"meshes": {meshObject("m")}, "virtualclusters": {clusterObject("c", "m", 0, "*")},
		"kind0s": {
			text("c", "n", "all", "1"),
			labelled(text("c", "n", "canary", "1"), map[string]string{"app": "x", "istio.io/rev": "canary"}),
			labelled(text("c", "n", "stable", "1"), map[string]string{"istio.io/rev": "stable"}),
			labelled(text("c", "n", "empty", "1"), map[string]string{"istio.io/rev": ""}),
			labelled(text("c", "n", "default", "1"), map[string]string{"istio.io/rev": "default"}),
		},
	})
	for _, c := range []struct{ revision, want string }{
		{"canary", "0:n/all=1 0:n/canary=1"},
		{"stable", "0:n/all=1 0:n/stable=1"},
		{"other", "0:n/all=1"},
		{"default", "0:n/all=1 0:n/default=1"},
		// It does not look at the label, whatever that says.
		{"", "0:n/all=1 0:n/canary=1 0:n/default=1 0:n/empty=1 0:n/stable=1"},
	} {
		f.waitFor(f.controlPlane(c.revision, nil), c.want)
	}
	canary, also := f.controlPlane("canary", nil), f.controlPlane("canary", map[string]string{"a": "b"})
	one, two := f.waitFor(canary, "0:n/all=1 0:n/canary=1"), f.waitFor(also, "0:n/all=1 0:n/canary=1")
	if one != two {
		t.Error("two control planes of a revision have a view each")
	}
	f.kind(0).Changed(watch.Modified, labelled(text("c", "n", "all", "2"), map[string]string{"istio.io/rev": "stable"}), 2)
	f.waitFor(canary, "0:n/canary=1")
	f.kind(0).Changed(watch.Modified, text("c", "n", "stable", "2"), 3)
	f.waitFor(canary, "0:n/canary=1 0:n/stable=2")
	f.kind(0).Changed(watch.Deleted, text("c", "n", "canary", "1"), 4)
	whole := f.waitFor(f.subscribe("m"), "0:n/all=2 0:n/default=1 0:n/empty=1 0:n/stable=2")
	if got := f.waitFor(canary, "0:n/stable=2"); got.Version != whole.Version {
		t.Errorf("a view has version %s of %s", got.Version, whole.Version)
	}
}

func TestAViewThatShowsAllIsTheListItself(t *testing.T) {
	f := newFixture(t, testKinds(1))
	f.start(map[string][]*object.Object{
		"meshes": {meshObject("m")}, "virtualclusters": {clusterObject("c", "m", 0, "*")}, "kind0s": {text("c", "n", "a", "1")},
	})
	s, all := f.controlPlane("canary", nil), f.subscribe("m")
	for i := range 3 {
		f.kind(0).Changed(watch.Modified, text("c", "n", "a", fmt.Sprint(i)), uint64(i+2))
		want := fmt.Sprint("0:n/a=", i)
		if f.waitFor(s, want).Lists[0] != f.waitFor(all, want).Lists[0] {
			t.Fatal("it is a copy")
		}
	}
}

func TestFiltersLeaveOutWhatTheyDoNotName(t *testing.T) {
	f := newFixture(t, testKinds(2))
	team := func(name, tier string, patterns ...string) *object.Object {
		return labelled(clusterObject(name, "m", 0, patterns...), map[string]string{"tier": tier})
	}
	f.start(map[string][]*object.Object{
		"meshes": {meshObject("m")}, "virtualclusters": {team("c", "gold", "n", "root"), team("d", "lead", "p-*")},
		"kind0s": {text("c", "n", "a", "1"), text("c", "root", "a", "1"), text("d", "p-1", "a", "1")},
		"kind1s": {text("c", "n", "a", "1"), text("d", "p-1", "a", "1")},
	})
	all := "0:n/a=1 0:p-1/a=1 0:root/a=1 1:n/a=1 1:p-1/a=1"
	eu, us := f.controlPlane("", map[string]string{"region": "eu"}), f.controlPlane("", map[string]string{"region": "us"})
	f.waitFor(eu, all)
	const header = `{"rootNamespace": "root", "filters": [{"name": "f", "controlPlanes": {"matchLabels": {"region": "eu"}}, `
	for i, step := range []struct{ filter, want string }{
		{`"kinds": ["Kind1"]}]}`, "1:n/a=1 1:p-1/a=1"},
		{`"namespaces": ["p-*"]}]}`, "0:p-1/a=1 0:root/a=1 1:p-1/a=1"},
		{`"virtualClusters": {"matchLabels": {"tier": "gold"}}}]}`, "0:n/a=1 0:root/a=1 1:n/a=1"},
		{`"namespaces": ["n"]}, {"name": "g", "controlPlanes": {}, "kinds": ["Kind0"]}]}`, "0:n/a=1 0:root/a=1"},
	} {
		f.observers["meshes"].Changed(watch.Modified, meshWith(header+step.filter), uint64(i+2))
		f.waitFor(eu, step.want)
	}
	f.waitFor(us, "0:n/a=1 0:p-1/a=1 0:root/a=1") // the last one is for all
	f.observers["meshes"].Changed(watch.Modified, meshWith(header+`"virtualClusters": {"matchLabels": {"tier": "gold"}}}]}`), 9)
	f.waitFor(eu, "0:n/a=1 0:root/a=1 1:n/a=1")
	f.observers["virtualclusters"].Changed(watch.Modified, team("d", "gold", "p-*"), 10)
	f.waitFor(eu, all)
	f.observers["virtualclusters"].Changed(watch.Modified, team("c", "lead", "n", "root"), 11)
	f.waitFor(eu, "0:p-1/a=1 1:p-1/a=1")
	// What cannot be read changes nothing.
	broken := meshObject("m")
	broken.Annotations = map[string]string{QuarantinedAnnotation: "garbled"}
	f.observers["meshes"].Changed(watch.Modified, broken, 12)
	f.kind(0).Changed(watch.Added, text("d", "p-1", "b", "1"), 13)
	f.waitFor(eu, "0:p-1/a=1 0:p-1/b=1 1:p-1/a=1")
	// A control plane that says it is another has another view at once.
	eu.Select(ControlPlane{Labels: map[string]string{"region": "us"}})
	f.waitFor(eu, "0:n/a=1 0:p-1/a=1 0:p-1/b=1 0:root/a=1 1:n/a=1 1:p-1/a=1")
	f.observers["meshes"].Changed(watch.Modified, meshObject("m"), 14)
	f.waitFor(us, "0:n/a=1 0:p-1/a=1 0:p-1/b=1 0:root/a=1 1:n/a=1 1:p-1/a=1")
	f.builder.mu.Lock()
	defer f.builder.mu.Unlock()
	if n := len(f.builder.feeds["m"].views); n > 1 { // us may not have looked since
		t.Errorf("%d views are left", n)
	}
}

func TestAMeshThatCannotBeReadHoldsItsControlPlanes(t *testing.T) {
	f := newFixture(t, testKinds(1))
	broken := meshObject("m")
	broken.Annotations = map[string]string{QuarantinedAnnotation: "garbled"}
	f.start(map[string][]*object.Object{"meshes": {broken}, "virtualclusters": {clusterObject("c", "m", 0, "*")}, "kind0s": {text("c", "n", "a", "1")}})
	s := f.controlPlane("", nil)
	f.wait(s, "to be held", func(_ *Snapshot, err error) bool { return err == ErrHeld })
	f.observers["meshes"].Changed(watch.Modified, meshObject("m"), 2)
	f.waitFor(s, "0:n/a=1")
}

func TestAStageIsHeldUntilItIsKnownWhatItHas(t *testing.T) {
	f := newFixture(t, testKinds(1))
	stages := meshWith(`{"rollout": {"stages": [{"name": "one", "controlPlanes": {"matchLabels": {"s": "1"}}}, {"name": "two", "controlPlanes": {}}]}}`)
	f.start(map[string][]*object.Object{"meshes": {stages}, "virtualclusters": {clusterObject("c", "m", 0, "*")}, "kind0s": {text("c", "n", "a", "1")}})
	one, two := f.controlPlane("", map[string]string{"s": "1"}), f.controlPlane("", nil)
	held := func(_ *Snapshot, err error) bool { return err == ErrHeld }
	f.wait(one, "to be held", held)
	f.wait(two, "to be held", held)
	if one.Stage() != "one" || two.Stage() != "two" {
		t.Errorf("stages %q, %q", one.Stage(), two.Stage())
	}
	all := f.subscribe("m")
	newest := f.waitFor(all, "0:n/a=1")
	f.builder.SetStages("m", newest.Policy.Epoch+1, map[string]*Snapshot{"one": newest})
	f.wait(one, "to be held", held)
	f.builder.SetStages("m", newest.Policy.Epoch, map[string]*Snapshot{"one": newest.Stage(newest.Lists), "two": newest.Stage([]*List{Empty})})
	f.waitFor(one, "0:n/a=1")
	f.waitFor(two, "")
	f.observers["meshes"].Changed(watch.Modified, meshObject("m"), 2)
	f.waitFor(two, "0:n/a=1")
	f.observers["meshes"].Changed(watch.Modified, stages, 3)
	f.wait(two, "to be held in the second time", held)
}

// What may not be in the mesh any more waits for no release.
func TestWhatIsHeldBackLeavesEveryStageAtOnce(t *testing.T) {
	f := newFixture(t, testKinds(1))
	stages := meshWith(`{"rollout": {"stages": [{"name": "one", "controlPlanes": {"matchLabels": {"s": "1"}}}, {"name": "two", "controlPlanes": {}}]}}`)
	f.start(map[string][]*object.Object{
		"meshes": {stages}, "virtualclusters": {clusterObject("c", "m", 0, "n", "keeps")},
		"kind0s": {text("c", "n", "a", "1"), text("c", "keeps", "b", "1")},
	})
	two, all := f.controlPlane("", nil), f.subscribe("m")
	older := f.waitFor(all, "0:keeps/b=1 0:n/a=1")
	f.builder.SetStages("m", older.Policy.Epoch, map[string]*Snapshot{"one": older, "two": older.Stage(older.Lists)})
	f.waitFor(two, "0:keeps/b=1 0:n/a=1")
	f.kind(0).Changed(watch.Modified, text("c", "keeps", "b", "2"), 2)
	f.observers["virtualclusters"].Changed(watch.Modified, clusterObject("c", "m", 0, "keeps"), 3)
	f.waitFor(all, "0:keeps/b=2")
	f.waitFor(two, "0:keeps/b=1")
	f.observers["virtualclusters"].Changed(watch.Modified, clusterObject("c", "m", 0, "n", "keeps"), 4)
	f.waitFor(all, "0:keeps/b=2 0:n/a=1")
	f.waitFor(two, "0:keeps/b=1 0:n/a=1")
}

// Random changes of everything against a filter that looks at each object anew.
func TestRandomViewsAreAsInTheNaiveModel(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 2))
			kinds := testKinds(2)
			f := newFixture(t, kinds)
			tiers := map[string]string{"c": "gold", "d": "lead"}
			spaces := map[string][]string{"c": {"n0", "n1"}, "d": {"n2", "n3"}}
			team := func(name string) *object.Object {
				return labelled(clusterObject(name, "m", 0, spaces[name]...), map[string]string{"tier": tiers[name]})
			}
			f.start(map[string][]*object.Object{"meshes": {meshObject("m")}, "virtualclusters": {team("c"), team("d")}})
			type rule struct{ kinds, namespaces, tier string }
			var rules []rule
			objects := map[string]*object.Object{} // by kind:namespace/name
			revisions := []string{"", "a", "b"}
			var planes []*Subscription
			for i := range 6 {
				planes = append(planes, f.controlPlane(revisions[i%3], map[string]string{"p": fmt.Sprint(i % 2)}))
			}
			want := func(i int) string {
				var all []string
				for k := range kinds {
					for n := range 4 {
						for name := range 6 {
							id := fmt.Sprintf("%d:n%d/o%d", k, n, name)
							o := objects[id]
							if o == nil {
								continue
							}
							rev, has := o.Labels["istio.io/rev"]
							shown := !has || revisions[i%3] == "" || rev == revisions[i%3]
							if i%2 == 1 {
								for _, r := range rules {
									shown = shown && (r.kinds == "" || r.kinds == kinds[k].Name) && (r.namespaces == "" || r.namespaces == o.Namespace || o.Namespace == "n0") &&
										(r.tier == "" || r.tier == tiers[o.Cluster()])
								}
							}
							if shown {
								all = append(all, id+strings.Trim(string(o.Field("spec")), `"`))
							}
						}
					}
				}
				return strings.Join(all, " ")
			}
			for step := range 150 {
				revision := uint64(step + 2)
				switch random.IntN(10) {
				case 0:
					rules = nil
					var filters []string
					for range random.IntN(3) {
						r := rule{}
						say := `{"name": "f` + fmt.Sprint(len(rules)) + `", "controlPlanes": {"matchLabels": {"p": "1"}}`
						switch random.IntN(3) {
						case 0:
							r.kinds = kinds[random.IntN(2)].Name
							say += `, "kinds": ["` + r.kinds + `"]}`
						case 1:
							r.namespaces = fmt.Sprint("n", random.IntN(4))
							say += `, "namespaces": ["` + r.namespaces + `"]}`
						default:
							r.tier = []string{"gold", "lead"}[random.IntN(2)]
							say += `, "virtualClusters": {"matchLabels": {"tier": "` + r.tier + `"}}}`
						}
						rules, filters = append(rules, r), append(filters, say)
					}
					f.observers["meshes"].Changed(watch.Modified, meshWith(`{"rootNamespace": "n0", "filters": [`+strings.Join(filters, ",")+`]}`), revision)
				case 1:
					name := []string{"c", "d"}[random.IntN(2)]
					tiers[name] = []string{"gold", "lead"}[random.IntN(2)]
					f.observers["virtualclusters"].Changed(watch.Modified, team(name), revision)
				case 2:
					for id, o := range objects {
						f.kind(int(id[0]-'0')).Changed(watch.Deleted, o, revision)
						delete(objects, id)
						break
					}
				default:
					k, n := random.IntN(2), random.IntN(4)
					o := text([]string{"c", "c", "d", "d"}[n], fmt.Sprint("n", n), fmt.Sprint("o", random.IntN(6)), fmt.Sprint(random.IntN(3)))
					if random.IntN(2) == 0 {
						o.Labels = map[string]string{"istio.io/rev": revisions[1+random.IntN(2)]}
					}
					objects[fmt.Sprintf("%d:%s/%s", k, o.Namespace, o.Name)] = o
					f.kind(k).Changed(watch.Modified, o, revision)
				}
				if random.IntN(3) == 0 {
					for i, p := range planes {
						f.waitFor(p, want(i))
					}
				}
			}
			for i, p := range planes {
				f.waitFor(p, want(i))
			}
		})
	}
}

func TestAStoredEntryComesBackAsItWas(t *testing.T) {
	o := labelled(text("c", "n", "a", "1"), map[string]string{"istio.io/rev": "x"})
	out, _ := renderOne(&testKinds(1)[0], o, rights{}, "n/a", nil)
	r := out.entry
	if out.err != nil {
		t.Fatal(out.err)
	}
	list := Empty.apply([]change{{key: "n/a", entry: r}}, o.CreationTimestamp.Time)
	e, _ := list.Get("n/a")
	back, err := Empty.Restore(map[string][]byte{"n/a": e.Encode()}, o.CreationTimestamp.Time)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := back.Get("n/a")
	if rev, _ := got.label("istio.io/rev"); back.Version() != list.Version() || string(got.Resource()) != string(e.Resource()) || got.Cluster() != "c" || rev != "x" {
		t.Errorf("it came back as %q of %q", got.Resource(), got.Cluster())
	}
}

func FuzzStoredEntries(f *testing.F) {
	out, _ := renderOne(&testKinds(1)[0], text("c", "n", "a", "1"), rights{}, "n/a", nil)
	r := out.entry
	if out.err != nil {
		f.Fatal(out.err)
	}
	e, _ := Empty.apply([]change{{key: "n/a", entry: r}}, time.Time{}).Get("n/a")
	f.Add(e.Encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := Empty.Restore(map[string][]byte{"n/a": data}, time.Time{})
		if err != nil || len(data) == 0 {
			return
		}
		e, ok := l.Get("n/a")
		if !ok || e.Name() != "n/a" {
			t.Fatalf("%q has no entry", data)
		}
		_ = e.Resource()
		_, _ = e.label("x")
	})
}
