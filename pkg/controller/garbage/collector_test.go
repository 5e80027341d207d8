package garbage

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

func TestForegroundDeletionRemovesDependentsBeforeTheirOwners(t *testing.T) {
	s := newStorage(t)
	w := s.world(t, "order")
	w.make(thing{id: "configmaps/x/root"})
	depth := map[string]int{"root": 0}
	for i := range 4 {
		branch := fmt.Sprintf("branch-%d", i)
		depth[branch] = 1
		w.make(thing{id: "secrets/x/" + branch, owners: []owner{{of: "configmaps/x/root", block: true}}})
		for j := range 4 {
			leaf := fmt.Sprintf("leaf-%d-%d", i, j)
			depth[leaf] = 2
			w.make(thing{id: "configmaps/x/" + leaf, owners: []owner{{of: "secrets/x/" + branch, block: true}}})
		}
	}
	var mu sync.Mutex
	removed := map[string]uint64{}
	r := s.start(t, nil, func(_ string, o logical.Observer) logical.Observer {
		return &between{Observer: o, before: func(t watch.EventType, o *object.Object, revision uint64) {
			if t == watch.Deleted {
				mu.Lock()
				defer mu.Unlock()
				removed[o.Name] = revision
			}
		}}
	})
	w.delete("configmaps/x/root", foreground)
	w.eventuallyAre(map[string]string{})
	w.settle(r)
	mu.Lock()
	defer mu.Unlock()
	if len(removed) != len(depth) {
		t.Fatalf("%d objects were removed, want %d", len(removed), len(depth))
	}
	for name, at := range removed {
		switch depth[name] {
		case 1:
			if at > removed["root"] {
				t.Errorf("%s outlived its owner", name)
			}
		case 2:
			if owner := "branch-" + name[len("leaf-"):len("leaf-")+1]; at > removed[owner] {
				t.Errorf("%s outlived its owner", name)
			}
		}
	}
}

// between looks at changes before an observer is told.
type between struct {
	logical.Observer
	before func(t watch.EventType, o *object.Object, revision uint64)
}

func (b *between) Changed(t watch.EventType, o *object.Object, revision uint64) {
	b.before(t, o, revision)
	b.Observer.Changed(t, o, revision)
}

func TestReferencesReachNoOtherVirtualCluster(t *testing.T) {
	s := newStorage(t)
	ours, theirs := s.world(t, "ours"), s.world(t, "theirs")
	r := s.start(t, nil, nil)
	ours.make(thing{id: "configmaps/x/owner"}, thing{id: "configmaps/x/orphaned"}, thing{id: "configmaps/x/plain"})
	theirs.make(thing{id: "configmaps/x/plain"})
	for _, name := range []string{"owner", "orphaned"} {
		// They know our UIDs, and have something that they do not let go.
		theirs.make(thing{id: "secrets/x/of-" + name, finalizers: []string{keeper},
			owners: []owner{{of: "configmaps/x/" + name, uid: ours.uids["configmaps/x/"+name], block: true}}})
	}
	theirs.make(thing{id: "secrets/x/of-plain", owners: []owner{{of: "configmaps/x/plain", block: true}}})
	ours.delete("configmaps/x/owner", foreground)
	ours.delete("configmaps/x/orphaned", orphan)
	ours.delete("configmaps/x/plain", background)
	ours.eventuallyAre(map[string]string{})
	want := map[string]string{
		"configmaps/x/plain": "", "secrets/x/of-plain": "plain!",
		// For them the owners never were.
		"secrets/x/of-owner": "owner!,deleting:" + keeper, "secrets/x/of-orphaned": "orphaned!,deleting:" + keeper,
	}
	theirs.eventuallyAre(want)
	theirs.settle(r)
	theirs.are(want)
	ours.are(map[string]string{})
}

func TestUnservedKindsOfAVirtualClusterAreNotAbsent(t *testing.T) {
	s := newStorage(t)
	w := s.world(t, "narrow")
	sources := append([]Source(nil), s.sources...)
	for i := range sources {
		if sources[i].Store == s.stores["serviceentries"] {
			sources[i].Serves = func(cluster string) bool { return cluster != "narrow" }
		}
	}
	r := s.startWith(t, sources, nil, nil)
	w.make(thing{id: "configmaps/x/owned", owners: []owner{{of: "serviceentries/x/never"}}})
	wide := s.world(t, "wide")
	wide.make(thing{id: "configmaps/x/owned", owners: []owner{{of: "serviceentries/x/never"}}})
	wide.eventuallyAre(map[string]string{})
	w.settle(r)
	w.are(map[string]string{"configmaps/x/owned": "never"})
}

// corrupt makes a stored object unreadable.
func (w *world) corrupt(id string) {
	w.t.Helper()
	plural, namespace, name := split(id)
	key := "/registry" + logical.ResourcePrefix(w.stores[plural].Kind().GroupResource()) + "/" + w.cluster + "/" + namespace + "/" + name
	resp, err := w.client.Put(w.ctx, key, "not an object")
	if err != nil {
		w.t.Fatal(err)
	}
	// The watch cache must have it, or the test's own reads would not see it.
	if _, err := w.stores[plural].Get(w.in(w.cluster, namespace), name, &metav1.GetOptions{ResourceVersion: fmt.Sprint(resp.Header.Revision)}); err != nil {
		w.t.Fatal(err)
	}
}

func TestQuarantinedObjectsAreLetAloneAndAreNotAbsent(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprintf("collector starts late: %t", late), func(t *testing.T) {
			s := newStorage(t)
			w := s.world(t, "quarantine")
			var r *running
			if !late {
				r = s.start(t, nil, nil)
			}
			w.make(
				thing{id: "configmaps/x/owner"},
				thing{id: "configmaps/x/of-unreadable", owners: []owner{{of: "configmaps/x/owner"}}},
				thing{id: "configmaps/x/gone"},
				thing{id: "configmaps/x/unreadable", owners: []owner{{of: "configmaps/x/gone"}}},
				thing{id: "configmaps/x/foreground"},
				thing{id: "secrets/x/unreadable", owners: []owner{{of: "configmaps/x/foreground", block: true}}},
			)
			w.corrupt("configmaps/x/owner")
			w.corrupt("configmaps/x/unreadable")
			w.corrupt("secrets/x/unreadable")
			w.make(thing{id: "configmaps/x/late", owners: []owner{{of: "configmaps/x/owner"}}})
			w.delete("configmaps/x/gone", background)
			w.delete("configmaps/x/foreground", foreground)
			if late {
				r = s.start(t, nil, nil)
			}
			want := map[string]string{
				"configmaps/x/owner": "quarantined", "configmaps/x/of-unreadable": "owner", "configmaps/x/late": "owner",
				"configmaps/x/unreadable": "quarantined", "secrets/x/unreadable": "quarantined",
			}
			w.eventuallyAre(want)
			w.eventually("the dependents of the unreadable owner are tried", func() bool {
				r.index.mu.Lock()
				working := r.index.queue != nil
				r.index.mu.Unlock()
				return working && r.queue.NumRequeues(key{w.cluster, w.uids["configmaps/x/late"]}) > 1
			})
			w.are(want)

			// Somebody gives up on what cannot be read.
			w.delete("configmaps/x/owner", background)
			delete(want, "configmaps/x/owner")
			delete(want, "configmaps/x/of-unreadable")
			delete(want, "configmaps/x/late")
			w.eventuallyAre(want)
			w.settle(r)
			w.are(want)
		})
	}
}

// gate holds what an observer is told until it is opened.
type gate struct {
	logical.Observer
	shut   atomic.Bool
	opened chan struct{}
}

func (g *gate) wait() {
	if g.shut.Load() {
		<-g.opened
	}
}

func (g *gate) Changed(t watch.EventType, o *object.Object, revision uint64) {
	g.wait()
	g.Observer.Changed(t, o, revision)
}

func (g *gate) Progressed(revision uint64) {
	g.wait()
	g.Observer.Progressed(revision)
}

func TestAnOwnerIsNotFinalizedBeforeAllItsDependentsAreKnown(t *testing.T) {
	for policy, want := range map[metav1.DeletionPropagation]map[string]string{
		orphan:     {"secrets/x/owned": ""},
		foreground: {},
	} {
		t.Run(string(policy), func(t *testing.T) {
			s := newStorage(t)
			w := s.world(t, "lag")
			g := &gate{opened: make(chan struct{})}
			r := s.start(t, nil, func(plural string, o logical.Observer) logical.Observer {
				if plural != "secrets" {
					return o
				}
				g.Observer = o
				return g
			})
			var open sync.Once
			t.Cleanup(func() { open.Do(func() { close(g.opened) }) })
			<-r.synced
			g.shut.Store(true)
			w.make(thing{id: "configmaps/x/owner"}, thing{id: "secrets/x/owned", owners: []owner{{of: "configmaps/x/owner", block: true}}})
			w.delete("configmaps/x/owner", policy)
			k := key{w.cluster, w.uids["configmaps/x/owner"]}
			w.eventually("the owner was tried several times", func() bool {
				r.index.mu.Lock()
				working := r.index.queue != nil
				r.index.mu.Unlock()
				return working && r.queue.NumRequeues(k) > 3
			})
			if objects := w.objects(); len(objects) != 2 {
				t.Fatalf("only %v is left", objects)
			}
			open.Do(func() { close(g.opened) })
			w.eventuallyAre(want)
			w.settle(r)
			w.are(want)
		})
	}
}

func TestNothingIsDoneBeforeAllSourcesAreKnown(t *testing.T) {
	s := newStorage(t)
	w := s.world(t, "unsynced")
	w.make(thing{id: "configmaps/x/owned", owners: []owner{{of: "configmaps/x/never"}}})
	c := New(s.sources, nil)
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(done)
		c.Run(ctx)
	}()
	list, revision := w.list("configmaps")
	for _, source := range s.sources[1:] {
		if source.Store.Kind().Resource() == "configmaps" {
			c.Observer(source.Store).Replaced(list, revision)
		} else {
			c.Observer(source.Store).Replaced(nil, revision)
		}
	}
	select {
	case <-c.synced:
		t.Error("the collector takes itself for synced")
	default:
	}
	cancel()
	<-done
	w.are(map[string]string{"configmaps/x/owned": "never"})
	if c.Observer(nil) != nil {
		t.Error("there is an observer for a store that is none of the collector's")
	}
}

func (w *world) list(plural string) ([]*object.Object, uint64) {
	w.t.Helper()
	s := w.stores[plural]
	list := &object.List{}
	ctx := logical.WithCluster(w.ctx, w.cluster)
	if err := s.Storage.Storage.GetList(ctx, logical.ResourcePrefix(s.Kind().GroupResource())+"/"+w.cluster, everything(), list); err != nil {
		w.t.Fatal(err)
	}
	var items []*object.Object
	for i := range list.Items {
		items = append(items, &list.Items[i])
	}
	revision, err := s.Storage.Storage.Versioner().ParseResourceVersion(list.ResourceVersion)
	if err != nil {
		w.t.Fatal(err)
	}
	return items, revision
}

// deaf is an observer that is not told of single changes for a while, as if they had
// been lost.
type deaf struct {
	logical.Observer
	is atomic.Bool
}

func (d *deaf) Changed(t watch.EventType, o *object.Object, revision uint64) {
	if !d.is.Load() {
		d.Observer.Changed(t, o, revision)
	}
}

func (d *deaf) Progressed(revision uint64) {
	if !d.is.Load() {
		d.Observer.Progressed(revision)
	}
}

func TestChangesThatWereMissedAreMadeUpForByTheNextList(t *testing.T) {
	s := newStorage(t)
	w := s.world(t, "missed")
	d := &deaf{}
	r := s.start(t, nil, func(plural string, o logical.Observer) logical.Observer {
		if plural != "configmaps" {
			return o
		}
		d.Observer = o
		return d
	})
	<-r.synced
	w.make(
		thing{id: "configmaps/x/plain"}, thing{id: "configmaps/x/owner"},
		thing{id: "configmaps/x/owned", owners: []owner{{of: "configmaps/x/owner"}}},
		thing{id: "secrets/x/of-plain", owners: []owner{{of: "configmaps/x/plain"}}},
		thing{id: "secrets/x/of-owned", owners: []owner{{of: "configmaps/x/owned"}}},
	)
	revision, err := s.stores["configmaps"].Storage.Storage.GetCurrentResourceVersion(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	w.eventually("all is known", func() bool { return r.caughtUp(w.ctx, revision) == nil })
	d.is.Store(true)
	w.delete("configmaps/x/plain", background)
	w.delete("configmaps/x/owner", background)
	w.update("configmaps/x/owned", func(o *object.Object) { o.OwnerReferences = nil })
	w.make(thing{id: "configmaps/x/new", owners: []owner{{of: "configmaps/x/owner"}}})
	items, revision := w.list("configmaps")
	w.eventually("the watch cache has it", func() bool {
		_, err := s.stores["configmaps"].Get(w.in(w.cluster, "x"), "new", &metav1.GetOptions{ResourceVersion: fmt.Sprint(revision)})
		return err == nil
	})
	d.Observer.Replaced(items, revision)
	d.is.Store(false)
	want := map[string]string{"configmaps/x/owned": "", "secrets/x/of-owned": "owned"}
	w.eventuallyAre(want)
	w.settle(r)
	w.are(want)
	w.indexed(r, want)
}

// refusal is admission that refuses to delete or update some objects.
type refusal struct {
	name  string
	tried atomic.Int64
	users sync.Map
}

func (r *refusal) Handles(admission.Operation) bool { return true }

func (r *refusal) Validate(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	r.users.Store(a.GetUserInfo().GetName(), true)
	if a.GetName() != r.name {
		return nil
	}
	r.tried.Add(1)
	return apierrors.NewForbidden(a.GetResource().GroupResource(), a.GetName(), errors.New("it is protected"))
}

func TestAdmissionJudgesWhatTheCollectorDoes(t *testing.T) {
	s := newStorage(t)
	w := s.world(t, "admission")
	admit := &refusal{name: "protected"}
	r := s.start(t, admit, nil)
	w.make(
		thing{id: "configmaps/x/owner"},
		thing{id: "configmaps/x/protected", owners: []owner{{of: "configmaps/x/never"}}},
		thing{id: "secrets/x/protected", owners: []owner{{of: "configmaps/x/never"}, {of: "configmaps/x/owner"}}},
		thing{id: "secrets/x/free", owners: []owner{{of: "configmaps/x/never"}, {of: "configmaps/x/owner"}}},
		thing{id: "configmaps/x/free", owners: []owner{{of: "configmaps/x/never"}}},
	)
	want := map[string]string{
		"configmaps/x/owner": "", "configmaps/x/protected": "never", "secrets/x/protected": "never,owner", "secrets/x/free": "owner",
	}
	w.eventuallyAre(want)
	w.eventually("it was tried again", func() bool { return admit.tried.Load() > 4 })
	w.settle(r)
	w.are(want)
	if _, ok := admit.users.Load("system:serviceaccount:kube-system:generic-garbage-collector"); !ok {
		t.Error("the collector does not come as itself")
	}
}

// deleter notes what it is asked to delete.
type deleter struct {
	rest.GracefulDeleter
	asked sync.Map
}

func (d *deleter) Delete(ctx context.Context, name string, validate rest.ValidateObjectFunc, options *metav1.DeleteOptions) (runtime.Object, bool, error) {
	d.asked.Store(name, *options.Preconditions.UID)
	return d.GracefulDeleter.Delete(ctx, name, validate, options)
}

func TestAKindsOwnDeleterIsUsedWithTheUIDAsPrecondition(t *testing.T) {
	s := newStorage(t)
	w := s.world(t, "deleter")
	d := &deleter{GracefulDeleter: s.stores["nodes"].Store}
	sources := append([]Source(nil), s.sources...)
	for i := range sources {
		if sources[i].Store == s.stores["nodes"] {
			sources[i].Deleter = d
		}
	}
	r := s.startWith(t, sources, nil, nil)
	w.make(thing{id: "nodes//owned", owners: []owner{{of: "nodes//never"}}})
	w.eventuallyAre(map[string]string{})
	w.settle(r)
	if uid, _ := d.asked.Load("owned"); uid != w.uids["nodes//owned"] {
		t.Errorf("asked to delete UID %v, want %v", uid, w.uids["nodes//owned"])
	}
}

// The state of a random graph in which objects are deleted in the background and in
// the foreground while others are made depends on what was deleted, not on when: an
// object is there if it was not deleted and has an owner that is there, or never had
// one.
func TestRandomGraphsEndAsIfAllHappenedAtOnce(t *testing.T) {
	const objects, clusters = 150, 2
	for seed := range uint64(3) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			s := newStorage(t)
			r := s.start(t, nil, nil)
			var wg sync.WaitGroup
			worlds := make([]*world, clusters)
			wants := make([]map[string]string, clusters)
			for i := range clusters {
				worlds[i] = s.world(t, fmt.Sprintf("random-%d", i))
				wg.Go(func() { wants[i] = worlds[i].play(rand.New(rand.NewPCG(seed, uint64(i))), objects) })
			}
			wg.Wait()
			for i, w := range worlds {
				w.eventually(fmt.Sprintf("%s is as it should be: %v", w.cluster, wants[i]), func() bool { return sameKeys(w.objects(), wants[i]) })
			}
			worlds[0].settle(r)
			for i, w := range worlds {
				got := w.objects()
				if !sameKeys(got, wants[i]) {
					t.Errorf("%s: got %v, want %v", w.cluster, got, wants[i])
				}
				w.indexed(r, got)
			}
		})
	}
}

func sameKeys(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k := range a {
		if _, ok := b[k]; !ok {
			return false
		}
	}
	return true
}

// play makes and deletes objects, and returns those that are to stay.
func (w *world) play(rnd *rand.Rand, objects int) map[string]string {
	plurals := []string{"configmaps", "secrets"}
	var made []thing
	deleted := map[string]bool{}
	for i := range objects {
		th := thing{id: fmt.Sprintf("%s/x/o-%d", plurals[rnd.IntN(2)], i)}
		seen := map[types.UID]bool{}
		for range rnd.IntN(4) {
			if len(made) == 0 || rnd.IntN(20) == 0 {
				th.owners = append(th.owners, owner{of: "configmaps/x/never", uid: types.UID(fmt.Sprintf("never-%d", rnd.Int()))})
				continue
			}
			of := made[rnd.IntN(len(made))].id
			if !seen[w.uids[of]] {
				seen[w.uids[of]] = true
				th.owners = append(th.owners, owner{of: of, block: rnd.IntN(2) == 0})
			}
		}
		w.make(th)
		made = append(made, th)
		if rnd.IntN(4) == 0 {
			id := made[rnd.IntN(len(made))].id
			policy := background
			if rnd.IntN(2) == 0 {
				policy = foreground
			}
			plural, namespace, name := split(id)
			if _, _, err := w.stores[plural].Delete(w.in(w.cluster, namespace), name, rest.ValidateAllObjectFunc,
				&metav1.DeleteOptions{PropagationPolicy: &policy}); err != nil && !apierrors.IsNotFound(err) {
				w.t.Error(err)
			}
			deleted[id] = true
		}
	}
	stay := map[string]string{}
	for _, th := range made { // owners come before what they own
		owned := len(th.owners) == 0
		for _, o := range th.owners {
			_, there := stay[o.of]
			owned = owned || there
		}
		if owned && !deleted[th.id] {
			stay[th.id] = ""
		}
	}
	return stay
}

// All changes of all kinds come through Changed, and nearly none has to do with owners.
func BenchmarkChangedWithoutOwners(b *testing.B) {
	plain := object.New(metav1.SchemeGroupVersion.WithKind("ConfigMap"))
	plain.Name, plain.Namespace, plain.UID = "plain", "x", "6c2ac153-7dbc-4e6f-a1f5-9b7e3b1a3b4c"
	plain.SetCluster("tenant")
	for _, owned := range []int{0, 1, 10000} {
		b.Run(fmt.Sprintf("%d owned objects elsewhere", owned), func(b *testing.B) {
			x := &index{}
			s := &source{index: x, ready: func() {}}
			for i := range owned {
				o := plain.DeepCopy()
				o.UID = types.UID(fmt.Sprintf("6c2ac153-7dbc-4e6f-a1f5-%012d", i))
				o.OwnerReferences = []metav1.OwnerReference{{UID: types.UID(fmt.Sprintf("0e1b2b1c-7dbc-4e6f-a1f5-%012d", i/10))}}
				x.put(s, o)
			}
			b.ReportAllocs()
			for b.Loop() {
				s.Changed(watch.Modified, plain, 1)
			}
		})
	}
}
