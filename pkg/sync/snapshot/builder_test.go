package snapshot

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/component-base/metrics"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/test/leak"
)

func TestMain(m *testing.M) { leak.VerifyTestMain(m) }

func testKinds(n int) []Kind {
	kinds := make([]Kind, n)
	for i := range kinds {
		name := fmt.Sprintf("Kind%d", i)
		kinds[i] = Kind{
			Resource:      schema.GroupResource{Group: "test.io", Resource: fmt.Sprintf("kind%ds", i)},
			Name:          name,
			TypeURL:       "test.io/v1/" + name,
			MessageName:   messageName,
			AppendMessage: renderText,
		}
	}
	return kinds
}

// fixture is a running builder, fed by hand.
type fixture struct {
	t         *testing.T
	builder   *Builder
	observers map[string]Observer
	kinds     []Kind
}

func newFixture(t *testing.T, kinds []Kind, prepare ...func(*Builder)) *fixture {
	b := NewBuilder(kinds, NewMetrics(metrics.NewKubeRegistry().MustRegister))
	for _, f := range prepare {
		f(b)
	}
	f := &fixture{t: t, builder: b, observers: map[string]Observer{}, kinds: kinds}
	for _, s := range b.Sources() {
		f.observers[s.Resource.Resource] = s.Observer
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return f
}

func (f *fixture) kind(i int) Observer { return f.observers[f.kinds[i].Resource.Resource] }

// start gives every source that has no items of its own an empty first state.
func (f *fixture) start(items map[string][]*object.Object) {
	for resource, o := range f.observers {
		o.Replaced(items[resource], 1)
	}
}

func (f *fixture) wait(s *Subscription, what string, met func(*Snapshot, error) bool) *Snapshot {
	f.t.Helper()
	timeout := time.After(time.Minute)
	for {
		snapshot, err := s.Snapshot()
		if met(snapshot, err) {
			return snapshot
		}
		select {
		case <-s.Changed():
		case <-timeout:
			f.t.Fatalf("waiting for %s: have %s, %v", what, describe(snapshot), err)
		}
	}
}

func (f *fixture) waitFor(s *Subscription, want string) *Snapshot {
	f.t.Helper()
	return f.wait(s, want, func(s *Snapshot, err error) bool { return err == nil && describe(s) == want })
}

func (f *fixture) subscribe(mesh string) *Subscription {
	s := f.builder.Subscribe(mesh)
	f.t.Cleanup(s.Close)
	return s
}

// describe lists a snapshot's resources as kind:namespace/name=text.
func describe(s *Snapshot) string {
	if s == nil {
		return "nothing"
	}
	var all []string
	for i, l := range s.Lists {
		for e := range l.All() {
			// The text is the tail of the message, which is the tail of the entry.
			b := e.Resource()
			at := bytes.LastIndexByte(b, '=')
			all = append(all, fmt.Sprintf("%d:%s%s", i, e.Name(), b[at:]))
		}
	}
	return strings.Join(all, " ")
}

func meshObject(name string) *object.Object {
	o := &object.Object{}
	o.Name = name
	o.SetCluster("root")
	return o
}

func clusterObject(name, mesh string, age int, patterns ...string) *object.Object {
	o := &object.Object{}
	o.Name = name
	o.SetCluster("root")
	o.CreationTimestamp = metav1.Unix(int64(1000-age), 0)
	namespaces := make([]any, len(patterns))
	for i, p := range patterns {
		namespaces[i] = p
	}
	if err := o.SetContent(map[string]any{"spec": map[string]any{"mesh": mesh, "namespaces": namespaces}}); err != nil {
		panic(err)
	}
	return o
}

func text(cluster, namespace, name, text string) *object.Object {
	return testObject(cluster, namespace, name, "="+text)
}

func TestNothingIsServedBeforeAllIsRead(t *testing.T) {
	f := newFixture(t, testKinds(2))
	s := f.subscribe("m")
	f.observers["meshes"].Replaced([]*object.Object{meshObject("m")}, 1)
	f.observers["virtualclusters"].Replaced([]*object.Object{clusterObject("c", "m", 0, "*")}, 1)
	f.observers["namespaces"].Replaced(nil, 1)
	f.kind(0).Replaced([]*object.Object{text("c", "n", "a", "1")}, 1)
	f.kind(0).Changed(watch.Added, text("c", "n", "b", "1"), 2)
	// The builder has taken all of this in once it takes one more than fits its queue.
	for range 2 * queueSize {
		f.kind(0).Changed(watch.Modified, text("c", "n", "b", "1"), 3)
	}
	if got, err := s.Snapshot(); err != ErrNotSynced {
		t.Fatalf("Snapshot = %s, %v", describe(got), err)
	}
	select {
	case <-f.builder.Synced():
		t.Fatal("synced before all was read")
	default:
	}
	f.kind(1).Replaced(nil, 1)
	f.waitFor(s, "0:n/a=1 0:n/b=1")
	<-f.builder.Synced()
}

func TestSnapshotFollowsChanges(t *testing.T) {
	f := newFixture(t, testKinds(2))
	f.start(map[string][]*object.Object{
		"meshes":          {meshObject("m"), meshObject("other")},
		"virtualclusters": {clusterObject("c", "m", 0, "n", "p-*"), clusterObject("d", "m", 9, "*"), clusterObject("sandbox", "m", 0), clusterObject("o", "other", 0, "n")},
		"kind0s":          {text("c", "n", "a", "1"), text("c", "elsewhere", "a", "1"), text("sandbox", "n", "a", "2"), text("stranger", "n", "a", "3"), text("o", "n", "a", "4")},
		"kind1s":          {text("d", "rest", "z", "1"), text("d", "p-1", "z", "1")},
	})
	m, other := f.subscribe("m"), f.subscribe("other")
	f.waitFor(m, "0:n/a=1 1:rest/z=1")
	f.waitFor(other, "0:n/a=4")

	steps := []struct {
		name     string
		do       func()
		m, other string
	}{
		{"an object is added", func() { f.kind(0).Changed(watch.Added, text("c", "p-1", "b", "1"), 2) }, "0:n/a=1 0:p-1/b=1 1:rest/z=1", "0:n/a=4"},
		{"an object is modified", func() { f.kind(0).Changed(watch.Modified, text("c", "n", "a", "2"), 3) }, "0:n/a=2 0:p-1/b=1 1:rest/z=1", "0:n/a=4"},
		{"an object is deleted", func() { f.kind(0).Changed(watch.Deleted, text("c", "n", "a", "2"), 4) }, "0:p-1/b=1 1:rest/z=1", "0:n/a=4"},
		{"a cluster gives up a namespace to the star", func() {
			f.observers["virtualclusters"].Changed(watch.Modified, clusterObject("c", "m", 0, "n"), 5)
		}, "1:p-1/z=1 1:rest/z=1", "0:n/a=4"},
		{"and takes it back", func() {
			f.observers["virtualclusters"].Changed(watch.Modified, clusterObject("c", "m", 0, "n", "p-1"), 6)
		}, "0:p-1/b=1 1:rest/z=1", "0:n/a=4"},
		{"a cluster changes its mesh", func() {
			f.observers["virtualclusters"].Changed(watch.Modified, clusterObject("d", "other", 9, "rest"), 7)
		}, "0:p-1/b=1", "0:n/a=4 1:rest/z=1"},
		{"a sandbox gets a namespace that an older one has", func() {
			f.observers["virtualclusters"].Changed(watch.Modified, clusterObject("sandbox", "other", 0, "n"), 8)
		}, "0:p-1/b=1", "0:n/a=4 1:rest/z=1"},
		{"and wins it when that one goes", func() {
			f.observers["virtualclusters"].Changed(watch.Deleted, clusterObject("o", "other", 0, "n"), 9)
		}, "0:p-1/b=1", "0:n/a=2 1:rest/z=1"},
		{"a cluster comes for objects that are there", func() {
			f.observers["virtualclusters"].Changed(watch.Added, clusterObject("stranger", "m", 0, "n-not", "n"), 9)
		}, "0:p-1/b=1", "0:n/a=2 1:rest/z=1"},
		{"the older one lets go of it", func() {
			f.observers["virtualclusters"].Changed(watch.Modified, clusterObject("c", "m", 0, "p-1"), 10)
		}, "0:n/a=3 0:p-1/b=1", "0:n/a=2 1:rest/z=1"},
		{"a kind is listed anew", func() {
			f.kind(0).Replaced([]*object.Object{text("c", "p-1", "b", "1"), text("c", "p-1", "c", "1"), text("sandbox", "n", "a", "5")}, 11)
		}, "0:p-1/b=1 0:p-1/c=1", "0:n/a=5 1:rest/z=1"},
		{"the clusters are listed anew", func() {
			f.observers["virtualclusters"].Replaced([]*object.Object{clusterObject("d", "other", 9, "*"), clusterObject("sandbox", "m", 9, "*")}, 12)
		}, "0:n/a=5", "1:p-1/z=1 1:rest/z=1"},
	}
	for _, step := range steps {
		before, _ := m.Snapshot()
		step.do()
		f.waitFor(other, step.other)
		after := f.waitFor(m, step.m)
		for i, l := range after.Lists {
			if l.Version() == before.Lists[i].Version() && l != before.Lists[i] {
				t.Errorf("%s: list %d is another without a change", step.name, i)
			}
		}
	}
}

func TestABurstLosesNothing(t *testing.T) {
	const burst = 5 * queueSize
	f := newFixture(t, testKinds(2))
	f.start(map[string][]*object.Object{"meshes": {meshObject("m")}, "virtualclusters": {clusterObject("c", "m", 0, "*")}})
	s := f.subscribe("m")
	var senders sync.WaitGroup
	for kind := range 2 {
		senders.Go(func() {
			for i := range burst {
				f.kind(kind).Changed(watch.Added, text("c", fmt.Sprint("n", i%7), fmt.Sprint(i), "1"), uint64(i+2))
			}
		})
	}
	f.wait(s, "all of them", func(s *Snapshot, err error) bool { return err == nil && s.Resources() == 2*burst })
	senders.Wait()
}

func TestObserversAreFreeOnceTheBuilderHasEnded(t *testing.T) {
	b := NewBuilder(testKinds(1), nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b.Run(ctx)
	for range 2 * queueSize {
		b.Sources()[2].Observer.Changed(watch.Added, text("c", "n", "a", "1"), 1)
	}
}

func TestAMeshThatVanishesEndsWithItsLastState(t *testing.T) {
	f := newFixture(t, testKinds(1))
	f.start(map[string][]*object.Object{
		"meshes":          {meshObject("m")},
		"virtualclusters": {clusterObject("c", "m", 0, "*")},
		"kind0s":          {text("c", "n", "a", "1")},
	})
	s := f.subscribe("m")
	last := f.waitFor(s, "0:n/a=1")
	f.observers["meshes"].Changed(watch.Deleted, meshObject("m"), 2)
	f.wait(s, "no mesh", func(got *Snapshot, err error) bool {
		if err == nil && got != last {
			t.Fatalf("something else was served: %s", describe(got))
		}
		return err == ErrNoMesh
	})
	if all := f.builder.Snapshots(); len(all) != 0 {
		t.Errorf("Snapshots = %v", all)
	}
	f.kind(0).Changed(watch.Added, text("c", "n", "b", "1"), 3)
	f.observers["meshes"].Changed(watch.Added, meshObject("m"), 4)
	f.wait(s, "the mesh", func(got *Snapshot, err error) bool {
		if err == nil && describe(got) != "0:n/a=1 0:n/b=1" {
			t.Fatalf("it came back as %s", describe(got))
		}
		return err == nil
	})
}

func TestWhatCannotBeRenderedKeepsItsLastGoodForm(t *testing.T) {
	bad := func(cluster, namespace, name string) *object.Object {
		return testObject(cluster, namespace, name, "bad")
	}
	placeholder := text("c", "n", "a", "")
	if err := placeholder.SetContent(nil); err != nil {
		t.Fatal(err)
	}
	placeholder.Annotations = map[string]string{QuarantinedAnnotation: "it was garbled"}
	tests := []struct {
		name        string
		do          func(f *fixture)
		want        string
		quarantined string
	}{
		{"an object becomes bad", func(f *fixture) { f.kind(0).Changed(watch.Modified, bad("c", "n", "a"), 2) },
			"0:n/a=1 0:n/b=1", "c n/a: it is bad"},
		{"it panics", func(f *fixture) { f.kind(0).Changed(watch.Modified, testObject("c", "n", "a", "panic"), 2) },
			"0:n/a=1 0:n/b=1", "c n/a: rendering the object: it is very bad"},
		{"storage cannot read it", func(f *fixture) { f.kind(0).Changed(watch.Modified, placeholder, 2) },
			"0:n/a=1 0:n/b=1", "c n/a: it was garbled"},
		{"storage cannot read it when all is listed", func(f *fixture) {
			f.kind(0).Replaced([]*object.Object{placeholder, text("c", "n", "b", "1")}, 2)
		}, "0:n/a=1 0:n/b=1", "c n/a: it was garbled"},
		{"a bad one is added", func(f *fixture) { f.kind(0).Changed(watch.Added, bad("c", "n", "c"), 2) },
			"0:n/a=1 0:n/b=1", "c n/c: it is bad"},
		{"a bad one is repaired", func(f *fixture) {
			f.kind(0).Changed(watch.Modified, bad("c", "n", "a"), 2)
			f.kind(0).Changed(watch.Modified, text("c", "n", "a", "2"), 3)
		}, "0:n/a=2 0:n/b=1", ""},
		{"a bad one is deleted", func(f *fixture) {
			f.kind(0).Changed(watch.Modified, bad("c", "n", "a"), 2)
			f.kind(0).Changed(watch.Deleted, bad("c", "n", "a"), 3)
		}, "0:n/b=1", ""},
		{"a good one is deleted and comes back bad", func(f *fixture) {
			f.kind(0).Changed(watch.Deleted, text("c", "n", "a", "1"), 2)
			f.kind(0).Changed(watch.Added, bad("c", "n", "a"), 3)
		}, "0:n/b=1", "c n/a: it is bad"},
		{"a namespace goes over to a cluster whose object is bad", func(f *fixture) {
			f.kind(0).Changed(watch.Added, bad("d", "n", "a"), 2)
			f.observers["virtualclusters"].Replaced([]*object.Object{clusterObject("c", "m", 0), clusterObject("d", "m", 0, "*")}, 3)
		}, "", "d n/a: it is bad"},
		{"a bad one is in a namespace that is not owned", func(f *fixture) { f.kind(0).Changed(watch.Added, bad("d", "n", "a"), 2) },
			"0:n/a=1 0:n/b=1", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t, testKinds(1))
			f.start(map[string][]*object.Object{
				"meshes":          {meshObject("m")},
				"virtualclusters": {clusterObject("c", "m", 0, "*"), clusterObject("d", "m", 0)},
				"kind0s":          {text("c", "n", "a", "1"), text("c", "n", "b", "1")},
			})
			s := f.subscribe("m")
			f.waitFor(s, "0:n/a=1 0:n/b=1")
			test.do(f)
			f.wait(s, test.want+" and "+test.quarantined, func(s *Snapshot, err error) bool {
				if err != nil {
					return false
				}
				var quarantined []string
				for _, q := range s.Quarantined {
					quarantined = append(quarantined, fmt.Sprintf("%s %s/%s: %s", q.VirtualCluster, q.Namespace, q.Name, q.Message))
				}
				return describe(s) == test.want && strings.Join(quarantined, ", ") == test.quarantined
			})
		})
	}
}

func TestQuarantineFollowsTheObjects(t *testing.T) {
	bad := func(name, text string) *object.Object { return testObject("c", "n", name, text) }
	f := newFixture(t, testKinds(1))
	f.start(map[string][]*object.Object{"meshes": {meshObject("m")}, "virtualclusters": {clusterObject("c", "m", 0, "*")}})
	s := f.subscribe("m")
	steps := []struct {
		name string
		do   func()
		want string
	}{
		{"two are bad", func() {
			f.kind(0).Changed(watch.Added, bad("b", "bad"), 2)
			f.kind(0).Changed(watch.Added, bad("a", "bad"), 3)
		}, "a: it is bad, b: it is bad"},
		{"one is bad in another way", func() { f.kind(0).Changed(watch.Modified, bad("a", "panic"), 4) }, "a: rendering the object: it is very bad, b: it is bad"},
		{"one is as bad as before", func() {
			o := bad("a", "panic")
			o.Labels = map[string]string{"a": "b"}
			f.kind(0).Changed(watch.Modified, o, 5)
			f.kind(0).Changed(watch.Added, bad("c", "bad"), 6)
		}, "a: rendering the object: it is very bad, b: it is bad, c: it is bad"},
		{"one is repaired", func() { f.kind(0).Changed(watch.Modified, text("c", "n", "a", "1"), 7) }, "b: it is bad, c: it is bad"},
		{"one is deleted", func() { f.kind(0).Changed(watch.Deleted, bad("b", "bad"), 8) }, "c: it is bad"},
		{"nothing is owned any more", func() { f.observers["virtualclusters"].Changed(watch.Modified, clusterObject("c", "m", 0), 9) }, ""},
	}
	for _, step := range steps {
		step.do()
		f.wait(s, step.name, func(s *Snapshot, err error) bool {
			if err != nil {
				return false
			}
			var got []string
			for _, q := range s.Quarantined {
				got = append(got, q.Name+": "+q.Message)
			}
			return strings.Join(got, ", ") == step.want
		})
	}
	f.observers["meshes"].Replaced([]*object.Object{meshObject("other")}, 10)
	f.wait(s, "no mesh", func(_ *Snapshot, err error) bool { return err == ErrNoMesh })
}

func TestAnUnreadableVirtualClusterKeepsItsClaims(t *testing.T) {
	f := newFixture(t, testKinds(1))
	f.start(map[string][]*object.Object{
		"meshes":          {meshObject("m")},
		"virtualclusters": {clusterObject("c", "m", 0, "*")},
		"kind0s":          {text("c", "n", "a", "1")},
	})
	s := f.subscribe("m")
	f.waitFor(s, "0:n/a=1")
	placeholder := clusterObject("c", "m", 0)
	placeholder.Annotations = map[string]string{QuarantinedAnnotation: "it was garbled"}
	garbled := clusterObject("c", "m", 0)
	if err := garbled.SetContent(map[string]any{"spec": map[string]any{"namespaces": "none"}}); err != nil {
		t.Fatal(err)
	}
	f.observers["virtualclusters"].Changed(watch.Modified, garbled, 2)
	f.observers["virtualclusters"].Changed(watch.Modified, placeholder, 2)
	f.observers["virtualclusters"].Replaced([]*object.Object{placeholder}, 2)
	f.kind(0).Changed(watch.Added, text("c", "n", "b", "1"), 3)
	f.waitFor(s, "0:n/a=1 0:n/b=1")
}

func TestVirtualClustersAreCounted(t *testing.T) {
	f := newFixture(t, testKinds(1))
	f.start(map[string][]*object.Object{"meshes": {meshObject("m")}})
	s := f.subscribe("m")
	count := func(n int) {
		t.Helper()
		f.wait(s, fmt.Sprint(n, " virtual clusters"), func(s *Snapshot, err error) bool { return err == nil && s.VirtualClusters == n })
	}
	count(0)
	clusters := f.observers["virtualclusters"]
	clusters.Changed(watch.Added, clusterObject("a", "m", 0), 2)
	clusters.Changed(watch.Added, clusterObject("b", "m", 0, "b"), 3)
	count(2)
	clusters.Changed(watch.Modified, clusterObject("b", "other", 0, "b"), 4)
	count(1)
	clusters.Changed(watch.Deleted, clusterObject("a", "m", 0), 5)
	count(0)
}

func TestWritesThatControlPlanesDoNotReadMarshalNothing(t *testing.T) {
	rendered := 0
	kinds := testKinds(1)
	kinds[0].AppendMessage = func(dst []byte, o *object.Object) ([]byte, error) {
		rendered++
		return renderText(dst, o)
	}
	m := newModel(kinds)
	m.settled = true
	m.addMesh(meshObject("m"))
	if err := m.setVirtualCluster(clusterObject("c", "m", 0, "*")); err != nil {
		t.Fatal(err)
	}
	m.setObject(0, text("c", "n", "a", "1"))
	m.setObject(0, text("c", "n", "b", "1"))
	advance := func() bool {
		m.settle()
		return m.meshes["m"].advance(kinds, time.Time{}, m.rightsIn(m.meshes["m"]), func(int, int) {})
	}
	if advance(); rendered != 2 {
		t.Fatalf("rendered %d, want 2", rendered)
	}
	o := text("c", "n", "a", "1")
	o.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "m"}}
	m.setObject(0, o)
	if changed := advance(); changed || rendered != 2 {
		t.Errorf("a write of managed fields: changed %v, rendered %d more", changed, rendered-2)
	}
	m.setObject(0, text("c", "n", "a", "2"))
	if changed := advance(); !changed || rendered != 3 {
		t.Errorf("a change of one spec: changed %v, rendered %d more", changed, rendered-2)
	}
}
