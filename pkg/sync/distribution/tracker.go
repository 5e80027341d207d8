package distribution

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"

	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
	"github.com/vmesh-io/vmesh/pkg/sync/xds"
)

const (
	// settling is how long after a sign of something new the tracker looks, so that what
	// comes together is looked at together; idle is how many times longer than it took to
	// look it then rests.
	settling = 2 * time.Millisecond
	idle     = 10
	// remoteInterval is how often it looks at what other servers say, which nothing tells of.
	remoteInterval = time.Second
	// retryInterval is after how long a condition that could not be written is tried again.
	retryInterval = 5 * time.Second
	// recentLists is how many lists of a kind are compared with what other servers say.
	recentLists = 16
	// writers is how many conditions are written at once: etcd syncs them to disk together.
	writers = 4
	// maxNamed bounds how many control planes a message names.
	maxNamed = 3
)

// Tracker keeps the conditions of all objects. It is told of placements and of
// acknowledgements, and writes while Run runs. All methods are safe for concurrent use.
type Tracker struct {
	kinds     []snapshot.Kind
	snapshots Snapshots
	receivers Receivers
	options   Options
	clock     clock.WithTicker

	wake    chan struct{} // something may be new
	work    chan struct{} // something is to be written
	waiting atomic.Int64  // how many objects are pending
	looked  sync.Map      // the meshes whose control planes are known
	without sync.Map      // those among them that have none

	// What the tracker was told and has not looked at yet. Who tells it never waits for
	// what it does otherwise.
	inbox struct {
		sync.Mutex
		placements []placement
		connected  []connected
		taking     bool // what was taken out is not pending yet
	}

	mu      sync.Mutex
	pending map[string]*meshPending // by mesh; "" for none
	where   map[id]*pending
	peers   map[string]*peers // by mesh
	queue   queue
}

// placement is one that was told, and when.
type placement struct {
	snapshot.Placement
	settled bool
	at      time.Time
}

// id is an object's name among all kinds.
type id struct {
	kind                     int
	cluster, namespace, name string
}

// pending is an object whose condition is not, or not known to be, what it should be.
type pending struct {
	id     id
	key    string // in the lists
	object *object.Object
	mesh   string
	since  time.Time // when this state of it was first seen
	moved  bool      // it has come to the mesh since it was written
	// desired is what the condition is to be; nil while that is open.
	desired *istio.Condition
	// why is what the condition's message has to end with. What else messages say, such as
	// how many have it, is of the moment in which they are written.
	why    string
	queued bool
	notYet time.Time // not to be written before
}

type meshPending struct {
	byKind map[int]map[*pending]struct{}
	// recent are the last lists of each kind that were seen, by their versions, while
	// somebody else serves the mesh too.
	recent map[int][]*snapshot.List
}

// connected are the control planes of a mesh at one moment: one that came and went since
// the tracker looked last counts as gone.
type connected struct {
	mesh      string
	receivers []xds.Receiver
	at        time.Time
}

// peers are the control planes of a mesh.
type peers struct {
	byID   map[string]*peer
	object *object.Object // the mesh, when its status was looked at last
	told   map[string]struct{}
}

// peer is a control plane of a mesh, connected here or elsewhere or gone for a while.
type peer struct {
	here, elsewhere bool
	since           time.Time // if neither, when it went
	revision        string
	kinds           []v1alpha1.ControlPlaneKindStatus // elsewhere: what it has
	version         string                            // elsewhere: of the snapshot that it has whole
}

// New makes a tracker. It must follow the builder and the server that it is given, and
// writes nothing before Run is called.
func New(kinds []snapshot.Kind, snapshots Snapshots, receivers Receivers, options Options) *Tracker {
	if options.Patience == 0 {
		options.Patience = Patience
	}
	if options.Grace == 0 {
		options.Grace = Grace
	}
	if options.Rate == 0 {
		options.Rate = 200
	}
	if options.Burst == 0 {
		options.Burst = 200
	}
	if options.Clock == nil {
		options.Clock = clock.RealClock{}
	}
	return &Tracker{
		kinds: kinds, snapshots: snapshots, receivers: receivers, options: options, clock: options.Clock,
		wake: make(chan struct{}, 1), work: make(chan struct{}, 1),
		pending: map[string]*meshPending{}, where: map[id]*pending{}, peers: map[string]*peers{},
		queue: queue{byCluster: map[string][]*pending{}},
	}
}

// Outlook is the condition of an object that is being written into a namespace of a
// virtual cluster, but for its generation.
func (t *Tracker) Outlook(cluster, namespace string) istio.Condition {
	mesh, known := t.snapshots.Receives(cluster, namespace)
	switch {
	case !known:
		return condition(metav1.ConditionUnknown, ReasonPending, "vmesh is starting", 0)
	case mesh == "":
		return notInMesh(cluster, namespace)
	}
	_, without := t.without.Load(mesh)
	if _, looked := t.looked.Load(mesh); !looked {
		o := t.snapshots.MeshObject(mesh)
		without = o != nil && !bytes.Contains(o.Field("status"), []byte(`"controlPlanes"`)) && len(t.receivers.Receivers(mesh, 0)) == 0
	}
	if without {
		return noControlPlanes(mesh)
	}
	return condition(metav1.ConditionUnknown, ReasonPending, "Waiting for the control planes of mesh "+mesh, 0)
}

func notInMesh(cluster, namespace string) istio.Condition {
	return condition(metav1.ConditionFalse, ReasonNotInMesh,
		fmt.Sprintf("No mesh receives it: namespace %s is none of those that virtual cluster %s owns in a mesh", namespace, cluster), 0)
}

func noControlPlanes(mesh string) istio.Condition {
	return condition(metav1.ConditionFalse, ReasonNoControlPlanes, "Mesh "+mesh+" has no control planes", 0)
}

// Placed implements snapshot.Follower.
func (t *Tracker) Placed(placements []snapshot.Placement) {
	now := t.clock.Now()
	told := make([]placement, 0, len(placements))
	open := false
	for _, p := range placements {
		settled := p.Gone || t.settled(p) && !(p.Moved && p.Mesh != "")
		open = open || !settled
		told = append(told, placement{p, settled, now})
	}
	t.inbox.Lock()
	if !open && len(t.inbox.placements) == 0 && !t.inbox.taking && t.waiting.Load() == 0 {
		t.inbox.Unlock()
		return // there is nothing to forget
	}
	if t.inbox.placements == nil {
		t.inbox.placements = told
	} else {
		t.inbox.placements = append(t.inbox.placements, told...)
	}
	t.inbox.Unlock()
	t.signal()
}

// take takes in what the tracker was told; the lock must be held.
func (t *Tracker) take(now time.Time) {
	t.inbox.Lock()
	placements, changes := t.inbox.placements, t.inbox.connected
	t.inbox.placements, t.inbox.connected = nil, nil
	t.inbox.taking = true
	t.inbox.Unlock()
	defer func() {
		t.inbox.Lock()
		t.inbox.taking = false
		t.inbox.Unlock()
	}()
	for _, p := range placements {
		o := p.Object
		id := id{p.Kind, o.Cluster(), o.Namespace, o.Name}
		if p.settled {
			t.drop(t.where[id])
		} else {
			t.add(id, p.Placement, p.at)
		}
	}
	for _, c := range changes {
		t.look(c.mesh, c.receivers, c.at)
	}
	for _, c := range changes { // two may have been told in the wrong order
		t.look(c.mesh, t.receivers.Receivers(c.mesh, 0), now)
	}
}

// settled says of an object whether its condition is as it is to be, and stays so while
// neither the object nor its place changes.
func (t *Tracker) settled(p snapshot.Placement) bool {
	if _, lost := p.Object.Annotations[snapshot.QuarantinedAnnotation]; lost {
		return true // nothing can be written to it
	}
	if p.Object.DeletionTimestamp != nil {
		return true // whoever waits now waits for its end
	}
	c, has := istio.GetCondition(p.Object, istio.ConditionDistributed)
	current := c.ObservedGeneration == p.Object.Generation
	if p.Mesh == "" {
		return !has || current && c.Status == metav1.ConditionFalse && c.Reason == ReasonNotInMesh
	}
	if !has || !current || c.Status != metav1.ConditionTrue {
		return false
	}
	s := t.snapshots.Snapshot(p.Mesh)
	if s == nil {
		return false
	}
	message, lacks := s.LacksHosts(t.kinds[p.Kind].Name, p.Object.Namespace, p.Object.Name)
	_, listed := s.Lists[p.Kind].Get(p.Object.Namespace + "/" + p.Object.Name)
	return listed && lacks == (c.Reason == ReasonInPart) && strings.HasSuffix(c.Message, message)
}

// add makes an object pending; the lock must be held.
func (t *Tracker) add(id id, p snapshot.Placement, now time.Time) {
	if old := t.where[id]; old != nil {
		if old.object == p.Object && old.mesh == p.Mesh {
			old.moved = old.moved || p.Moved
			return
		}
		// A write of something else, such as of this very condition, is no new change.
		if old.mesh == p.Mesh && old.object.UID == p.Object.UID && old.object.Generation == p.Object.Generation && snapshot.SameToReader(old.object, p.Object) {
			now, p.Moved = old.since, p.Moved || old.moved
		}
		t.drop(old)
	}
	m := t.pending[p.Mesh]
	if m == nil {
		m = &meshPending{byKind: map[int]map[*pending]struct{}{}, recent: map[int][]*snapshot.List{}}
		t.pending[p.Mesh] = m
	}
	if m.byKind[id.kind] == nil {
		m.byKind[id.kind] = map[*pending]struct{}{}
	}
	entry := &pending{id: id, key: id.namespace + "/" + id.name, object: p.Object, mesh: p.Mesh, since: now, moved: p.Moved}
	m.byKind[id.kind][entry] = struct{}{}
	t.where[id] = entry
	t.options.Metrics.pending(t.waiting.Add(1))
}

// drop forgets an object, if it is pending as given; the lock must be held.
func (t *Tracker) drop(p *pending) {
	if p == nil || t.where[p.id] != p {
		return
	}
	delete(t.where, p.id)
	p.desired = nil // should it still be in the queue
	m := t.pending[p.mesh]
	delete(m.byKind[p.id.kind], p)
	if len(m.byKind[p.id.kind]) == 0 {
		delete(m.byKind, p.id.kind)
		delete(m.recent, p.id.kind)
	}
	if len(m.byKind) == 0 {
		delete(t.pending, p.mesh)
	}
	t.options.Metrics.pending(t.waiting.Add(-1))
}

// Connected implements xds.Follower.
func (t *Tracker) Connected(mesh string) {
	c := connected{mesh, t.receivers.Receivers(mesh, 0), t.clock.Now()}
	t.inbox.Lock()
	t.inbox.connected = append(t.inbox.connected, c)
	t.inbox.Unlock()
	t.signal()
}

// Acknowledged implements xds.Follower. It costs next to nothing while nothing waits.
func (t *Tracker) Acknowledged(string) {
	if t.waiting.Load() > 0 {
		t.signal()
	}
}

func (t *Tracker) signal() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// Run writes conditions until ctx ends. It must be called once.
func (t *Tracker) Run(ctx context.Context, writer Writer) {
	var writing sync.WaitGroup
	defer writing.Wait()
	limit := rate.NewLimiter(rate.Limit(t.options.Rate), t.options.Burst)
	for range writers {
		writing.Go(func() { t.write(ctx, writer, limit) })
	}
	pause := func(d time.Duration) bool {
		select {
		case <-t.clock.After(d):
			return true
		case <-ctx.Done():
			return false
		}
	}
	const never = 1000 * time.Hour
	timer := t.clock.NewTimer(never)
	defer timer.Stop()
	for {
		select {
		case <-t.wake:
		case <-timer.C():
		case <-ctx.Done():
			return
		}
		if !pause(settling) {
			return
		}
		began := t.clock.Now()
		next := t.decideAll(began)
		if !pause(idle * t.clock.Now().Sub(began)) {
			return
		}
		if next == 0 {
			next = never
		}
		timer.Reset(next)
	}
}

// decideAll decides about all that is pending, has it written, and says when to look
// again even if nothing happens; 0 for never.
func (t *Tracker) decideAll(now time.Time) (next time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.take(now)
	soon := func(at time.Time) {
		if d := at.Sub(now); d > 0 && (next == 0 || d < next) {
			next = d
		}
	}
	for mesh, m := range t.pending {
		var s *snapshot.Snapshot
		if mesh != "" {
			t.look(mesh, t.receivers.Receivers(mesh, 0), now)
			for _, p := range t.peersOf(mesh) {
				switch {
				case p.elsewhere:
					soon(now.Add(remoteInterval))
				case !p.here:
					soon(p.since.Add(t.options.Grace))
				}
			}
			s = t.snapshots.Snapshot(mesh)
		}
		for kind, some := range m.byKind {
			j := t.judge(mesh, kind, s, m)
			for p := range some {
				t.decide(p, j, now)
				if t.where[p.id] != p {
					continue
				}
				soon(p.since.Add(t.options.Patience))
				soon(p.notYet)
			}
			for _, r := range j.receivers {
				if !r.Asked {
					soon(r.Began.Add(t.options.Patience))
				}
			}
		}
	}
	return next
}

// decide finds what the condition of one object is to be, and queues it if it is not
// that; the lock must be held.
func (t *Tracker) decide(p *pending, j *judgement, now time.Time) {
	verdict, final := t.verdict(p, j, now)
	p.desired = nil
	c, has := istio.GetCondition(p.object, istio.ConditionDistributed)
	if verdict == nil {
		if !p.moved || !has || c.Status != metav1.ConditionTrue {
			return
		}
		// What was true of where it was before is not true here.
		pending := condition(metav1.ConditionUnknown, ReasonPending, "Waiting for the control planes of mesh "+p.mesh, 0)
		verdict = &pending
	}
	verdict.ObservedGeneration = p.object.Generation
	if has && c.Is(*verdict) && strings.HasSuffix(c.Message, p.why) {
		if final {
			t.drop(p)
		}
		return
	}
	p.desired = verdict
	if !p.queued && !p.notYet.After(now) {
		p.queued = true
		t.queue.push(p)
		t.more()
	}
}

// look brings the peers of a mesh up to date; the lock must be held.
func (t *Tracker) look(mesh string, receivers []xds.Receiver, now time.Time) {
	ps := t.peers[mesh]
	if ps == nil {
		if t.snapshots.Snapshot(mesh) == nil {
			return // anybody can ask for any mesh
		}
		ps = &peers{byID: map[string]*peer{}}
		t.peers[mesh] = ps
	}
	here := make(map[string]struct{}, len(receivers))
	for _, r := range receivers {
		here[r.ID] = struct{}{}
		p := ps.byID[r.ID]
		if p == nil {
			p = &peer{}
			ps.byID[r.ID] = p
		}
		p.here, p.elsewhere, p.kinds, p.revision = true, false, nil, r.Revision
	}
	for id, p := range ps.byID {
		if _, is := here[id]; p.here && !is {
			p.here, p.since = false, now
		}
	}
	t.lookElsewhere(mesh, ps, here, now)
	counted := false
	for id, p := range ps.byID {
		_, told := ps.told[id]
		switch {
		case p.here || p.elsewhere || now.Sub(p.since) < t.options.Grace:
			counted = true
		case !told:
			// One of which the status still tells would be taken for one that has just gone.
			delete(ps.byID, id)
		}
	}
	if counted {
		t.without.Delete(mesh)
	} else {
		t.without.Store(mesh, struct{}{})
	}
	t.looked.Store(mesh, struct{}{})
	if len(receivers) == 0 && t.snapshots.Snapshot(mesh) == nil {
		delete(t.peers, mesh)
		t.without.Delete(mesh)
		t.looked.Delete(mesh)
	}
}

// lookElsewhere takes in what the mesh's status tells of control planes that are not
// connected here: another server of the same meshes writes it as well.
func (t *Tracker) lookElsewhere(mesh string, ps *peers, here map[string]struct{}, now time.Time) {
	o := t.snapshots.MeshObject(mesh)
	if o == ps.object {
		return
	}
	ps.object, ps.told = o, map[string]struct{}{}
	for _, c := range controlPlanes(o) {
		ps.told[c.ID] = struct{}{}
		if _, is := here[c.ID]; is {
			continue
		}
		p := ps.byID[c.ID]
		if p == nil {
			p = &peer{since: now}
			ps.byID[c.ID] = p
		}
		if p.elsewhere && !c.Connected {
			p.since = now
		}
		p.elsewhere, p.revision, p.kinds = c.Connected, c.Revision, c.Kinds
	}
	for id, p := range ps.byID {
		if _, is := ps.told[id]; p.elsewhere && !is {
			p.elsewhere, p.since = false, now
		}
	}
}

func (t *Tracker) peersOf(mesh string) map[string]*peer {
	if ps := t.peers[mesh]; ps != nil {
		return ps.byID
	}
	return nil
}

func some(names []string) string {
	slices.Sort(names)
	if more := len(names) - maxNamed; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:maxNamed], ", "), more)
	}
	return strings.Join(names, ", ")
}
