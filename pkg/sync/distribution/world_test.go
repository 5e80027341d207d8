package distribution

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	testclock "k8s.io/utils/clock/testing"

	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/policy"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
	"github.com/vmesh-io/vmesh/pkg/sync/xds"
)

const url = "networking.istio.io/v1/VirtualService"

// world is a storage, a builder and control planes that do what they are told, with a
// tracker that looks when it is told to.
type world struct {
	t       testing.TB
	clock   *testclock.FakeClock
	builder *snapshot.Builder
	tracker *Tracker
	marker  Marker
	observe map[string]snapshot.Observer

	placed atomic.Pointer[object.Object] // the last of nobody's that the tracker was told of

	mu       sync.Mutex
	stored   map[string]*object.Object
	writing  string // the object that is being written
	revision int64
	writes   int
	fail     error
	wrote    func(name string, c istio.Condition) // may be nil

	planes map[string]*plane
}

// plane is a control plane.
type plane struct {
	receiver  xds.Receiver
	connected bool
	wants     func(snapshot.Entry) bool
	stage     string // of releases, which have come to due
	due       *snapshot.List
}

func newWorld(t testing.TB, options Options) *world {
	w := &world{
		t: t, clock: testclock.NewFakeClock(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)), stored: map[string]*object.Object{}, planes: map[string]*plane{},
		observe: map[string]snapshot.Observer{},
	}
	kinds := []snapshot.Kind{{
		Resource: schema.GroupResource{Group: "networking.istio.io", Resource: "virtualservices"}, Name: "VirtualService", TypeURL: url,
		MessageName: "google.protobuf.StringValue",
		AppendMessage: func(dst []byte, o *object.Object) ([]byte, error) {
			text := strings.Trim(string(o.Field("spec")), `"`)
			if text == "broken" {
				return nil, errors.New("it is broken")
			}
			return proto.MarshalOptions{}.MarshalAppend(dst, wrapperspb.String(text))
		},
		Admit: func(o *object.Object, _ *ownership.View, _ *policy.Exports) (*object.Object, []policy.Violation, error) {
			return o, nil, nil
		},
		Share: share,
	}}
	w.builder = snapshot.NewBuilder(kinds, nil)
	options.Clock = w.clock
	w.tracker = New(kinds, w.builder, w, options)
	w.builder.Follow(w)
	w.marker = Marker{
		Outlook: w.tracker.Outlook, Now: w.clock.Now,
		Cluster: func(context.Context) (string, error) { return clusterOf(w.writing), nil },
	}
	for _, s := range w.builder.Sources() {
		w.observe[s.Resource.Resource] = s.Observer
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.builder.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return w
}

// share is what an object says for the hosts that its label names.
func share(o *object.Object, owners *ownership.View) *policy.Shared {
	hosts := strings.Split(o.Labels["hosts"], "_")
	entry := &object.Object{}
	entry.Namespace, entry.Name, entry.CreationTimestamp = o.Namespace, o.Name, o.CreationTimestamp
	if o.Labels["hosts"] == "" || entry.SetContent(map[string]any{"spec": map[string]any{"hosts": []any{hosts[0], hosts[len(hosts)-1]}}}) != nil {
		return nil
	}
	return policy.Share("ServiceEntry", entry, owners)
}

// start reads all sources: virtual cluster c owns all namespaces of mesh "default" but one,
// which is d's, and lets that speak for its hosts.
func (w *world) start(objects ...*object.Object) {
	for _, o := range objects {
		w.keep(o)
	}
	mesh, d := &object.Object{}, &object.Object{}
	mesh.Name, d.Name = "default", "d"
	if err := d.SetContent(map[string]any{"spec": map[string]any{"mesh": "default", "namespaces": []any{"far"}}}); err != nil {
		w.t.Fatal(err)
	}
	w.observe["namespaces"].Replaced(nil, 1)
	w.observe["virtualservices"].Replaced(objects, 1)
	w.observe["virtualclusters"].Replaced([]*object.Object{w.cluster("*"), d}, 1)
	w.observe["meshes"].Replaced([]*object.Object{mesh}, 1)
	<-w.builder.Synced()
	w.settle()
}

func (w *world) cluster(namespaces ...any) *object.Object {
	o := &object.Object{}
	o.Name, o.CreationTimestamp = "c", metav1.Unix(1, 0) // after d, which keeps its namespace
	if err := o.SetContent(map[string]any{"spec": map[string]any{
		"mesh": "default", "namespaces": namespaces, "hosts": []any{"a.com", "b.com"},
		"grants": []any{map[string]any{"to": "d", "hosts": []any{"a.com", "b.com"}}},
	}}); err != nil {
		w.t.Fatal(err)
	}
	return o
}

// claim has the virtual cluster own other namespaces.
func (w *world) claim(namespaces ...any) {
	w.observe["virtualclusters"].Changed(watch.Modified, w.cluster(namespaces...), 1)
	w.settle()
}

// Placed implements snapshot.Follower.
func (w *world) Placed(p []snapshot.Placement) {
	w.tracker.Placed(p)
	for _, p := range p {
		if p.Object.Cluster() == "nobody" {
			w.placed.Store(p.Object)
		}
	}
}

// settle waits until the tracker was told of all that has happened: the last is an object
// that is nobody's.
func (w *world) settle() {
	w.t.Helper()
	last := newObject(w.t, "nowhere/last", "")
	last.SetCluster("nobody")
	w.observe["virtualservices"].Changed(watch.Modified, last, 1)
	for deadline := time.Now().Add(time.Minute); w.placed.Load() != last; time.Sleep(20 * time.Microsecond) {
		if time.Now().After(deadline) {
			w.t.Fatal("the tracker was not told")
		}
	}
}

// clusterOf is the virtual cluster that an object is of.
func clusterOf(name string) string {
	if strings.HasPrefix(name, "far/") {
		return "d"
	}
	return "c"
}

func newObject(t testing.TB, name, text string) *object.Object {
	o := &object.Object{}
	o.Namespace, o.Name, _ = strings.Cut(name, "/")
	o.SetCluster(clusterOf(name))
	if err := o.SetContent(map[string]any{"spec": text}); err != nil {
		t.Fatal(err)
	}
	o.DropContent()
	return o
}

func (w *world) keep(o *object.Object) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.revision++
	o.ResourceVersion = strconv.FormatInt(w.revision, 10)
	w.stored[o.Namespace+"/"+o.Name] = o
}

func (w *world) change(t watch.EventType, o *object.Object) {
	w.observe["virtualservices"].Changed(t, o, uint64(w.revision))
}

// write writes an object as a user does.
func (w *world) write(name, text string, labels map[string]string) *object.Object {
	w.t.Helper()
	o, old := newObject(w.t, name, text), w.stored[name]
	o.Labels = labels
	w.writing = name
	if old == nil {
		o.Generation = 1
		o.CreationTimestamp = metav1.Unix(w.revision*7%10, 0)
		o.UID = types.UID(fmt.Sprint(w.revision))
	} else {
		o.UID, o.Generation, o.CreationTimestamp = old.UID, old.Generation, old.CreationTimestamp
		if string(o.Field("spec")) != string(old.Field("spec")) {
			o.Generation++
		}
		if c, has := istio.GetCondition(old, istio.ConditionDistributed); has {
			if err := istio.SetCondition(o, istio.ConditionDistributed, &c, w.clock.Now()); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	w.marker.Written(w.t.Context(), o, old)
	w.keep(o)
	w.change(watch.Modified, o)
	w.settle()
	return o
}

func (w *world) delete(name string) {
	o := w.stored[name]
	delete(w.stored, name)
	w.change(watch.Deleted, o)
	w.settle()
}

// WriteCondition implements Writer.
func (w *world) WriteCondition(_ context.Context, ref Ref, decide func(*object.Object) *istio.Condition) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return w.fail
	}
	name := ref.Namespace + "/" + ref.Name
	old := w.stored[name]
	if old == nil {
		return nil
	}
	c := decide(old)
	if c == nil {
		return nil
	}
	o := old.DeepCopy()
	if err := istio.SetCondition(o, istio.ConditionDistributed, c, w.clock.Now()); err != nil {
		return err
	}
	w.revision++
	w.writes++
	o.ResourceVersion = strconv.FormatInt(w.revision, 10)
	w.stored[name] = o
	if w.wrote != nil {
		w.wrote(name, *c)
	}
	w.change(watch.Modified, o)
	return nil
}

// Receivers implements Receivers.
func (w *world) Receivers(string, int) []xds.Receiver {
	var out []xds.Receiver
	for _, p := range w.planes {
		if p.connected {
			r := p.receiver
			r.Due, r.Wants = w.list(), func(snapshot.Entry) bool { return true }
			if p.stage != "" {
				r.Stage, r.Due = p.stage, p.due
			}
			if p.wants != nil {
				r.Wants = p.wants
			}
			out = append(out, r)
		}
	}
	return out
}

func (w *world) list() *snapshot.List { return w.builder.Snapshot("default").Lists[0] }

// connect has a control plane come, or come back.
func (w *world) connect(id, revision string) {
	p := w.planes[id]
	if p == nil {
		p = &plane{}
		w.planes[id] = p
	}
	p.connected = true
	p.receiver = xds.Receiver{ID: id, Revision: revision, Began: w.clock.Now(), Asked: true, Unanswered: w.clock.Now()}
	w.tracker.Connected("default")
}

func (w *world) disconnect(id string) {
	w.planes[id].connected = false
	w.tracker.Connected("default")
}

func (w *world) ack(ids ...string) {
	for _, id := range ids {
		w.planes[id].receiver.Acked, w.planes[id].receiver.Unanswered, w.planes[id].receiver.Refusal = w.list(), time.Time{}, ""
	}
	w.tracker.Acknowledged("default")
}

// look has the tracker decide and write all that it wants to.
func (w *world) look() {
	w.t.Helper()
	w.tracker.decideAll(w.clock.Now())
	for p, _ := w.tracker.next(); p != nil; p, _ = w.tracker.next() {
		w.tracker.writeOne(w.t.Context(), w, p)
	}
	w.settle()
}

func (w *world) says(name, want string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	got := "nothing"
	if o := w.stored[name]; o == nil {
		w.t.Fatalf("there is no %s", name)
	} else if c, has := istio.GetCondition(o, istio.ConditionDistributed); has {
		got = fmt.Sprintf("%s %s: %s", c.Status, c.Reason, c.Message)
		if c.ObservedGeneration != o.Generation {
			got += " of an older generation"
		}
	}
	if got != want {
		w.t.Errorf("%s says %q, want %q", name, got, want)
	}
}

// pending is how many objects wait, once the tracker has looked at all it was told.
func (w *world) pending() int {
	w.tracker.decideAll(w.clock.Now())
	return int(w.tracker.waiting.Load())
}
