package snapshot

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// queueSize is how many changes may wait for Run before observers have to.
const queueSize = 1024

// Builder keeps a snapshot of every mesh up to date. Changes that arrive while
// others are being worked on are taken together; a single one is never held back.
type Builder struct {
	kinds   []Kind
	metrics *Metrics
	events  chan event
	stopped chan struct{}
	synced  chan struct{}
	// policies receives when a mesh's policy has changed.
	policies chan struct{}
	seen     atomic.Pointer[Seen]

	follower Follower // may be nil

	mu          sync.Mutex
	feeds       map[string]*feed
	owners      *ownership.Index          // as of the last publication; nil until all was read
	meshObjects map[string]*object.Object // by name
	told        map[string]struct{}       // virtual clusters whose status tells of what is shared
	tells       uint64                    // counts its changes
}

// event is what an observer was told.
type event struct {
	source   int // a kind, or one of the below
	kind     watch.EventType
	object   *object.Object
	items    []*object.Object // with kind replaced
	revision uint64
	ask      func(*model) // with a question
	observed time.Time
	flushed  chan struct{} // of Flush, and nothing else
}

const (
	virtualClusters = -1
	meshes          = -2
	namespaces      = -3
	question        = -4

	replaced   watch.EventType = "REPLACED"
	progressed watch.EventType = "PROGRESSED"
)

// NewBuilder makes a builder for some kinds. Metrics may be nil. Nothing happens
// before Run is called.
func NewBuilder(kinds []Kind, metrics *Metrics) *Builder {
	return &Builder{
		kinds:    kinds,
		metrics:  metrics,
		events:   make(chan event, queueSize),
		stopped:  make(chan struct{}),
		synced:   make(chan struct{}),
		policies: make(chan struct{}, 1),
		feeds:    map[string]*feed{},
		told:     map[string]struct{}{},
	}
}

// Kinds are the kinds that snapshots have lists of, in their order. They must not
// be modified.
func (b *Builder) Kinds() []Kind { return b.kinds }

// Sources are the resources to observe, all of which must be read before there are
// snapshots. Each is to be observed once. Observers may be called before Run, block
// when Run cannot keep up, and do nothing after its end.
func (b *Builder) Sources() []Source {
	sources := []Source{
		{schema.GroupResource{Group: v1alpha1.GroupVersion.Group, Resource: "meshes"}, &observer{b, meshes}},
		{schema.GroupResource{Group: v1alpha1.GroupVersion.Group, Resource: "virtualclusters"}, &observer{b, virtualClusters}},
		{schema.GroupResource{Resource: "namespaces"}, &observer{b, namespaces}},
	}
	for i, k := range b.kinds {
		sources = append(sources, Source{k.Resource, &observer{b, i}})
	}
	return sources
}

// Synced is closed once all sources were read and snapshots are there.
func (b *Builder) Synced() <-chan struct{} { return b.synced }

type observer struct {
	builder *Builder
	source  int
}

func (o *observer) Replaced(items []*object.Object, revision uint64) {
	o.builder.send(event{source: o.source, kind: replaced, items: items, revision: revision, observed: time.Now()})
}

func (o *observer) Changed(t watch.EventType, obj *object.Object, revision uint64) {
	o.builder.send(event{source: o.source, kind: t, object: obj, revision: revision, observed: time.Now()})
}

func (o *observer) Progressed(revision uint64) {
	o.builder.send(event{source: o.source, kind: progressed, revision: revision, observed: time.Now()})
}

func (b *Builder) send(e event) {
	select {
	case b.events <- e:
	case <-b.stopped:
	}
}

// Run builds snapshots until ctx ends. It must be called once.
func (b *Builder) Run(ctx context.Context) {
	defer close(b.stopped)
	m := newModel(b.kinds)
	m.followed = b.follower != nil
	missing := map[int]bool{virtualClusters: true, meshes: true, namespaces: true}
	for i := range b.kinds {
		missing[i] = true
	}
	var waiting []chan struct{}
	for {
		var e event
		select {
		case e = <-b.events:
		case <-ctx.Done():
			return
		}
		observed := e.observed
		for n := 1; ; n++ {
			if e.flushed != nil {
				waiting = append(waiting, e.flushed)
			} else {
				b.apply(ctx, m, e)
			}
			if e.kind == replaced {
				delete(missing, e.source)
			}
			if n == queueSize || len(b.events) == 0 {
				break
			}
			e = <-b.events // nobody else receives
		}
		if len(missing) > 0 {
			continue
		}
		m.settled = true
		m.settle()
		m.relabel()
		b.publish(m, observed)
		if placements := m.placements(); len(placements) > 0 {
			b.follower.Placed(placements)
		}
		waiting = tellFlushed(waiting)
	}
}

func (b *Builder) apply(ctx context.Context, m *model, e event) {
	if e.source != question {
		m.seen.note(e)
	}
	if e.kind == progressed {
		return
	}
	switch e.source {
	case virtualClusters:
		var errs []error
		b.hear(e)
		switch e.kind {
		case replaced:
			errs = m.replaceVirtualClusters(e.items)
		case watch.Deleted:
			m.removeVirtualCluster(e.object.Name)
		default:
			errs = append(errs, m.setVirtualCluster(e.object))
		}
		for _, err := range errs {
			if err != nil {
				klog.FromContext(ctx).Error(err, "Keeping the virtual cluster's claims as they were")
			}
		}
	case meshes:
		var errs []error
		switch e.kind {
		case replaced:
			errs = m.replaceMeshes(e.items)
			for _, o := range e.items {
				b.observeMesh(o)
			}
		case watch.Deleted:
			m.removeMesh(e.object.Name)
		default:
			errs = append(errs, m.setMesh(e.object))
			b.observeMesh(e.object)
		}
		for _, err := range errs {
			if err != nil {
				klog.FromContext(ctx).Error(err, "Keeping the mesh's filters and stages as they were")
			}
		}
	case question:
		m.settle() // what came before it counts
		e.ask(m)
	case namespaces:
		switch e.kind {
		case replaced:
			m.replaceNamespaces(e.items)
		default:
			m.setNamespace(e.object.Cluster(), e.object.Name, e.kind != watch.Deleted)
		}
	default:
		switch e.kind {
		case replaced:
			m.replaceObjects(e.source, e.items)
		case watch.Deleted:
			m.removeObject(e.source, e.object.Cluster(), e.object.Namespace, e.object.Name)
		default:
			m.setObject(e.source, e.object)
		}
	}
}

// hear takes note of what virtual clusters' statuses tell, as they are stored.
func (b *Builder) hear(e event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	items := e.items
	if e.kind == replaced {
		if len(b.told) > 0 {
			b.told = map[string]struct{}{}
			b.tells++
		}
	} else {
		items = []*object.Object{e.object}
	}
	for _, o := range items {
		status := o.Field("status")
		tells := e.kind != watch.Deleted && (bytes.Contains(status, []byte(`"heldBackCount"`)) || bytes.Contains(status, []byte(`"grants"`)) ||
			bytes.Contains(status, []byte(`"sidecarScope"`)))
		if _, told := b.told[o.Name]; told == tells {
			continue
		}
		if b.tells++; tells {
			b.told[o.Name] = struct{}{}
		} else {
			delete(b.told, o.Name)
		}
	}
}

// Sharing are what is owned in all meshes, as of the present snapshots and nil before there
// are any; the virtual clusters whose stored status tells of what is held back, granted or in
// their scope; and a number that changes when they do.
func (b *Builder) Sharing() (index *ownership.Index, told []string, change uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.owners, slices.Collect(maps.Keys(b.told)), b.tells
}

// publish advances every mesh and tells its subscribers.
func (b *Builder) publish(m *model, observed time.Time) {
	next := map[string]*Snapshot{}
	for name, mesh := range m.meshes {
		if mesh.advance(b.kinds, observed, m.rightsIn(mesh), b.metrics.rendered(b.kinds)) {
			next[name] = mesh.snapshot()
		}
		m.touchTurned(mesh)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.remember(m)
	for name, snapshot := range next {
		f := b.feed(name)
		old := f.state.Load().snapshot
		if old == nil && snapshot.Policy != nil || old != nil && old.Policy != snapshot.Policy {
			b.notePolicy()
		}
		if stages := f.stages.Load(); stages != nil && (snapshot.Policy == nil || snapshot.Policy.Epoch != stages.epoch) {
			f.stages.Store(nil)
		}
		var before *HeldBack
		if old != nil {
			before = old.HeldBack
		}
		b.metrics.published(b.kinds, snapshot, before)
		f.set(state{snapshot: snapshot})
	}
	if m.epochs > 0 {
		b.seen.Store(m.seen.clone())
	}
	for name, f := range b.feeds {
		if m.meshes[name] != nil {
			continue
		}
		if s := f.state.Load(); s.snapshot != nil || s.err != ErrNoMesh {
			if s.snapshot != nil {
				b.metrics.vanished(b.kinds, name)
			}
			f.stages.Store(nil)
			f.set(state{err: ErrNoMesh})
			b.notePolicy()
		}
		b.forgetIfUnused(f)
	}
	if !b.isSynced() {
		close(b.synced)
	}
}

// Policies receives when a mesh's policy has changed, or a mesh has gone. It is for one
// receiver.
func (b *Builder) Policies() <-chan struct{} { return b.policies }

func (b *Builder) notePolicy() {
	select {
	case b.policies <- struct{}{}:
	default:
	}
}

func (b *Builder) isSynced() bool {
	select {
	case <-b.synced:
		return true
	default:
		return false
	}
}

// feed is one mesh's present snapshot and those who want to know when it changes.
type feed struct {
	mesh        string
	kinds       []Kind
	state       atomic.Pointer[state]
	stages      atomic.Pointer[stages]     // nil until somebody releases
	subscribers map[*Subscription]struct{} // guarded by the builder's lock
	views       map[string]*view           // guarded by the builder's lock

	lawfulMu sync.Mutex
	lawfulOf map[string]*lawful // by stage
}

type state struct {
	snapshot *Snapshot
	err      error // why there is none
}

func (f *feed) set(s state) {
	f.state.Store(&s)
	f.wake()
}

func (f *feed) wake() {
	for sub := range f.subscribers {
		select {
		case sub.changed <- struct{}{}:
		default: // it has yet to look at the change before
		}
	}
}

// feed must be called with the lock held.
func (b *Builder) feed(mesh string) *feed {
	f := b.feeds[mesh]
	if f == nil {
		f = &feed{mesh: mesh, kinds: b.kinds, subscribers: map[*Subscription]struct{}{}, views: map[string]*view{}}
		s := state{err: ErrNotSynced}
		if b.isSynced() {
			s.err = ErrNoMesh
		}
		f.state.Store(&s)
		b.feeds[mesh] = f
	}
	return f
}

func (b *Builder) forgetIfUnused(f *feed) {
	if len(f.subscribers) == 0 && f.state.Load().snapshot == nil {
		delete(b.feeds, f.mesh)
	}
}

// Subscription follows one mesh. It is safe for concurrent use.
type Subscription struct {
	builder *Builder
	feed    *feed
	changed chan struct{}

	who    atomic.Pointer[ControlPlane] // nil: one who is to see all
	mu     sync.Mutex                   // guards what follows
	choice choice
}

// Subscribe follows a mesh, whether there is one of that name or not. The
// subscription must be closed.
func (b *Builder) Subscribe(mesh string) *Subscription {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &Subscription{builder: b, feed: b.feed(mesh), changed: make(chan struct{}, 1)}
	s.feed.subscribers[s] = struct{}{}
	return s
}

// Changed receives when Snapshot would give something new. Several changes may give
// one value.
func (s *Subscription) Changed() <-chan struct{} { return s.changed }

// Snapshot is what the subscriber is to have at present, or else ErrNotSynced, ErrNoMesh
// or ErrHeld. Unless there are filters, stages or a revision, it takes no lock.
func (s *Subscription) Snapshot() (*Snapshot, error) {
	now := s.feed.state.Load()
	who := s.who.Load()
	if now.err != nil || who == nil || now.snapshot.Policy == nil && who.Revision == "" {
		return now.snapshot, now.err
	}
	return s.choose(now.snapshot, who)
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.builder.mu.Lock()
	defer s.builder.mu.Unlock()
	delete(s.feed.subscribers, s)
	s.feed.release(s.choice.view)
	s.choice = choice{}
	s.builder.forgetIfUnused(s.feed)
}

// Snapshots are the present snapshots of all meshes, sorted by their names.
func (b *Builder) Snapshots() []*Snapshot {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []*Snapshot
	for _, name := range slices.Sorted(maps.Keys(b.feeds)) {
		if s := b.feeds[name].state.Load().snapshot; s != nil {
			all = append(all, s)
		}
	}
	return all
}
