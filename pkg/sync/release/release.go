// Package release brings the changes of a mesh to its control planes in stages.
//
// The first stage has what is newest, but for what an aborted rollout left pinned; later ones
// keep an older generation, whole, until the stage before has had the newest for its bake time,
// or somebody promotes it. A change that comes during a rollout joins it: the first stage has it
// at once and bakes anew.
//
// All that a stage has is in etcd before a control plane sees it. Where the releases stand is
// decided by whichever server is first: every decision is a transaction that holds only if
// nobody else has decided since.
package release

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

const (
	// look is how often control planes are asked what they have during a rollout.
	look = 200 * time.Millisecond
	// idle is how often otherwise, for the status alone.
	idle = time.Second
	// retry is the pause after an error of etcd.
	retry = time.Second
	// patience is how long a server waits to see itself what another has decided about,
	// before it reads all of it.
	patience = 500 * time.Millisecond
	// tidyEvery is after how many generations superseded ones are deleted.
	tidyEvery = 64
	maxPinned = 100
)

// Config is what a Releaser needs.
type Config struct {
	Builder *snapshot.Builder
	Store   *Store
	// ControlPlanes are those of a mesh, by whichever server they are connected to.
	ControlPlanes func(ctx context.Context, mesh string) ([]v1alpha1.ControlPlaneStatus, error)
	// HasStages says whether the mesh of a UID is there and has stages, as etcd has it.
	HasStages func(ctx context.Context, uid string) (bool, error)
	// Event tells of something in a mesh; it may be nil.
	Event func(ctx context.Context, mesh, uid, kind, reason, message string)
	// Shared says that other servers decide as well.
	Shared bool
	// Now is the time; time.Now if it is nil.
	Now func() time.Time
}

// Releaser releases the changes of all meshes that have stages.
type Releaser struct {
	config Config

	mu     sync.Mutex
	status map[string]*v1alpha1.MeshRolloutStatus
}

// New makes a releaser. Nothing happens before Run is called.
func New(config Config) *Releaser {
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Event == nil {
		config.Event = func(context.Context, string, string, string, string, string) {}
	}
	return &Releaser{config: config, status: map[string]*v1alpha1.MeshRolloutStatus{}}
}

// Status is where the releases of a mesh stand; nil when it has no stages. It must not be
// modified.
func (r *Releaser) Status(mesh string) *v1alpha1.MeshRolloutStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status[mesh]
}

func (r *Releaser) setStatus(mesh string, s *v1alpha1.MeshRolloutStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s == nil {
		delete(r.status, mesh)
	} else {
		r.status[mesh] = s
	}
}

// id is one mesh in one of the times in which it has stages.
type id struct {
	mesh  string
	epoch uint64
}

// Run releases until ctx ends. It must be called once.
func (r *Releaser) Run(ctx context.Context) {
	select {
	case <-r.config.Builder.Synced():
	case <-ctx.Done():
		return
	}
	type running struct {
		stop context.CancelFunc
		done chan struct{}
		uid  string
	}
	active := map[id]running{}
	over := map[string]bool{} // UIDs of meshes whose stages went, and of which something is left
	begun := false
	defer func() {
		for _, m := range active {
			<-m.done
		}
	}()
	for {
		wanted := map[id]*snapshot.Policy{}
		for _, s := range r.config.Builder.Snapshots() {
			if s.Policy != nil && len(s.Policy.Stages) > 0 {
				wanted[id{s.Mesh, s.Policy.Epoch}] = s.Policy
			}
		}
		for key, m := range active {
			if wanted[key] == nil {
				m.stop()
				<-m.done
				r.setStatus(key.mesh, nil)
				delete(active, key)
				over[m.uid] = true
			}
		}
		var again <-chan time.Time
		var err error
		if !begun {
			err = r.leftBehind(ctx, wanted, over)
			begun = err == nil
		}
		if err = errors.Join(err, r.forget(ctx, wanted, over)); err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Deleting what is left of releases")
		}
		if err != nil || len(over) > 0 {
			again = time.After(retry)
		}
		for key, p := range wanted {
			if _, known := active[key]; known || over[p.UID] {
				continue
			}
			one, cancel := context.WithCancel(ctx)
			m := newMesh(r, key, p.UID)
			done := make(chan struct{})
			active[key] = running{cancel, done, p.UID}
			go func() {
				defer close(done)
				m.run(one)
			}()
		}
		if !waitFor(ctx, again, r.config.Builder.Policies()) {
			return
		}
	}
}

// waitFor returns when either receives, or false when ctx ends.
func waitFor(ctx context.Context, timer <-chan time.Time, changed <-chan struct{}) bool {
	select {
	case <-ctx.Done():
		return false
	case <-timer:
	case <-changed:
	}
	return true
}

// leftBehind finds what is known of meshes that have no stages any more.
func (r *Releaser) leftBehind(ctx context.Context, wanted map[id]*snapshot.Policy, over map[string]bool) error {
	uids, err := r.config.Store.meshes(ctx)
	if err != nil {
		return fmt.Errorf("looking for releases: %w", err)
	}
	for _, uid := range uids {
		over[uid] = true
	}
	for _, p := range wanted {
		delete(over, p.UID)
	}
	return nil
}

// forget deletes what is known of meshes whose stages went. One that has got stages again begins
// anew, with what it serves.
func (r *Releaser) forget(ctx context.Context, wanted map[id]*snapshot.Policy, over map[string]bool) error {
	again := map[string]bool{}
	for _, p := range wanted {
		again[p.UID] = true
	}
	for uid := range over {
		if !again[uid] {
			// Here and in etcd: the watch may be late, and another server may have seen more.
			has, err := r.config.HasStages(ctx, uid)
			if err != nil {
				return err
			}
			if has {
				continue
			}
		}
		if err := r.config.Store.forget(ctx, uid); err != nil {
			return err
		}
		delete(over, uid)
	}
	return nil
}

// pin holds a resource as it was before an aborted rollout, for as long as it is as that had it.
type pin struct {
	version string   // what is held back; empty for an absence
	keys    []string // of the log
}

// mesh releases one mesh.
type mesh struct {
	r *Releaser
	id
	uid   string
	wake  chan struct{}
	stale atomic.Bool // somebody has written the state

	tasks   sync.WaitGroup
	folding atomic.Bool

	state    *state // nil when it must be read
	revision int64
	contents map[int64][]*snapshot.List // of generations in use
	pins     map[entryKey]pin
	missing  time.Time // since when a content is awaited

	seen   *snapshot.Seen     // newest has at least this in it
	newest *snapshot.Snapshot // head was made of it
	head   []*snapshot.List

	baking    time.Time // since when all of the present stage have the newest; zero if they have not
	bakes     string    // and the id then
	published map[string]*snapshot.Snapshot
}

func newMesh(r *Releaser, key id, uid string) *mesh {
	return &mesh{r: r, id: key, uid: uid, wake: make(chan struct{}, 1), published: map[string]*snapshot.Snapshot{}}
}

func (m *mesh) run(ctx context.Context) {
	defer m.tasks.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if m.r.config.Shared {
		m.tasks.Go(func() {
			for ctx.Err() == nil {
				m.r.config.Store.watch(ctx, m.uid, func() {
					m.stale.Store(true)
					select {
					case m.wake <- struct{}{}:
					default:
					}
				})
				m.stale.Store(true) // the watch has ended, and may have missed something
				waitFor(ctx, time.After(retry), nil)
			}
		})
	}
	sub := m.r.config.Builder.Subscribe(m.mesh)
	defer sub.Close()
	log := klog.FromContext(ctx).WithValues("mesh", m.mesh)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		again := look
		m.seen = m.r.config.Builder.Seen() // before the snapshot, which then has at least this
		if newest, err := sub.Snapshot(); err == nil && newest.Policy != nil && newest.Policy.Epoch == m.epoch {
			again, err = m.step(ctx, newest)
			switch {
			case errors.Is(err, errConflict):
				m.stale.Store(true)
				again = 0
			case err != nil && ctx.Err() == nil:
				log.Error(err, "Releasing in stages: all stages keep what they have")
				m.state = nil // it is not certain what was written
				again = retry
				if status := m.r.Status(m.mesh); status != nil {
					failed := *status
					failed.Message = "All stages keep what they have: " + err.Error()
					m.r.setStatus(m.mesh, &failed)
				}
			}
		}
		if again == 0 {
			if ctx.Err() != nil {
				return
			}
			continue
		}
		if again > 0 {
			timer.Reset(again)
		}
		select {
		case <-ctx.Done():
			return
		case <-sub.Changed():
		case <-m.wake:
		case <-timer.C:
		}
	}
}

// step decides one thing, if there is one to decide, and returns when to be called again: zero
// for at once, below zero for when something has changed.
func (m *mesh) step(ctx context.Context, newest *snapshot.Snapshot) (time.Duration, error) {
	if m.state == nil || m.stale.Swap(false) {
		if wait, err := m.read(ctx, newest); err != nil || wait != 0 {
			return wait, err
		}
	}
	policy := newest.Policy
	if next, changed := m.state.arrange(policy.Stages); changed {
		return 0, m.commit(ctx, next, nil)
	}
	if m.state.underway() && policy.Abort != "" && m.state.names(policy.Abort) {
		return 0, m.abort(ctx)
	}
	head, loosened, err := m.pinned(newest)
	if err != nil {
		return 0, err
	}
	behind := m.behind()
	if changed := !m.same(head, m.contents[m.state.Head]); (changed || len(loosened) > 0) && !behind {
		return 0, m.take(ctx, head, loosened, changed)
	} else if !changed {
		m.contents[m.state.Head] = head // the same, in memory that is shared
	}
	if m.state.underway() && policy.Promote == m.state.id() {
		return 0, m.advance(ctx, policy, "it was promoted")
	}
	m.publish(newest)
	status, bakedAt, err := m.look(ctx, policy)
	if err != nil {
		return 0, err
	}
	m.r.setStatus(m.mesh, status)
	if !m.state.underway() && !behind {
		return idle, nil
	}
	if left := bakedAt.Sub(m.r.config.Now()); bakedAt.IsZero() {
		return look, nil
	} else if left > 0 {
		return min(left, look), nil
	}
	stage := policy.Stages[m.state.frontier()]
	return 0, m.advance(ctx, policy, fmt.Sprintf("stage %s has had it for %s", stage.Name, stage.Bake.Duration))
}

// read takes over where the releases stand. Of what this server has not seen, it waits for a
// moment to see it, and then reads it; when there is nothing, it begins.
func (m *mesh) read(ctx context.Context, newest *snapshot.Snapshot) (time.Duration, error) {
	st, revision, at, err := m.r.config.Store.getState(ctx, m.uid)
	if err != nil {
		m.stale.Store(true)
		return 0, err
	}
	if st == nil || st.Initializing {
		return 0, m.begin(ctx, newest, st, revision)
	}
	if m.state != nil && st.Good >= m.state.Good && slices.Equal(st.Aborted, m.state.Aborted) {
		contents, complete := map[int64][]*snapshot.List{}, true
		head, _, err := m.pinned(newest)
		if err != nil {
			return 0, err
		}
		for _, g := range st.generations() {
			switch {
			case m.contents[g] != nil && m.state.Versions[g] == st.Versions[g]:
				contents[g] = m.contents[g]
			case m.version(head) == st.Versions[g]:
				contents[g] = head
			default:
				complete = false
			}
		}
		if complete {
			m.state, m.revision, m.contents, m.missing = st, revision, contents, time.Time{}
			return 0, nil
		}
		if now := m.r.config.Now(); m.missing.IsZero() {
			m.missing = now
		} else if now.Sub(m.missing) > patience {
			m.missing = time.Time{}
		}
		if !m.missing.IsZero() {
			m.stale.Store(true)
			return look / 10, nil
		}
	}
	return 0, m.load(ctx, st, revision, at)
}

// load reads all that there is of a state.
func (m *mesh) load(ctx context.Context, st *state, revision, at int64) error {
	store := m.r.config.Store
	base, err := store.base(ctx, m.uid, at)
	if err == nil {
		var logs []logged
		if logs, err = store.log(ctx, m.uid, at); err == nil {
			return m.build(st, revision, base, logs)
		}
	}
	m.stale.Store(true)
	if compacted(err) {
		return errConflict // again, from the start
	}
	return fmt.Errorf("reading what the stages have: %w", err)
}

func (m *mesh) build(st *state, revision int64, base []map[string][]byte, logs []logged) error {
	now := m.r.config.Now()
	lists := slices.Repeat([]*snapshot.List{snapshot.Empty}, len(m.r.config.Store.kinds))
	var err error
	for kind, entries := range base {
		if lists[kind], err = lists[kind].Restore(entries, now); err != nil {
			return err
		}
	}
	contents, pins := map[int64][]*snapshot.List{}, map[entryKey]pin{}
	for _, l := range logs {
		if st.aborted(l.gen) {
			p := pins[l.key]
			p.version, p.keys = "", append(p.keys, l.path)
			if len(l.value) > 0 {
				one, err := snapshot.Empty.Restore(map[string][]byte{l.key.name: l.value}, now)
				if err != nil {
					return err
				}
				e, _ := one.Get(l.key.name)
				p.version = e.Version()
			}
			pins[l.key] = p
		}
	}
	next := 0
	for _, g := range st.generations() {
		changes := map[int]map[string][]byte{}
		for ; next < len(logs) && logs[next].gen <= g; next++ {
			l := logs[next]
			if st.aborted(l.gen) {
				continue
			}
			if changes[l.key.kind] == nil {
				changes[l.key.kind] = map[string][]byte{}
			}
			changes[l.key.kind][l.key.name] = l.value
		}
		lists = slices.Clone(lists)
		for kind, to := range changes {
			if lists[kind], err = lists[kind].Restore(to, now); err != nil {
				return err
			}
		}
		contents[g] = lists
		if got := m.version(lists); got != st.Versions[g] {
			return fmt.Errorf("generation %d is stored as %s and was %s: remove spec.rollout of the mesh and set it again to begin anew", g, got, st.Versions[g])
		}
	}
	m.state, m.revision, m.contents, m.pins, m.newest = st, revision, contents, pins, nil
	return nil
}

// version is that of the content of lists, whatever kinds there are that it has nothing of.
func (m *mesh) version(lists []*snapshot.List) string {
	text := ""
	for i, l := range lists {
		if l.Len() > 0 {
			text += m.r.config.Store.kinds[i].Name + " " + l.Version() + "\n"
		}
	}
	return hash(text)
}

func (m *mesh) same(a, b []*snapshot.List) bool {
	return slices.EqualFunc(a, b, func(a, b *snapshot.List) bool { return a == b || a.Version() == b.Version() })
}

// begin makes what all have now the first good generation.
func (m *mesh) begin(ctx context.Context, newest *snapshot.Snapshot, found *state, revision int64) error {
	var writes []write
	store := m.r.config.Store
	for kind, l := range newest.Lists {
		for e := range l.All() {
			key := store.baseKey(m.uid) + store.entryKey(entryKey{kind, e.Name()})
			writes = append(writes, write{key: key, kind: kind, value: e.Encode(), present: true})
		}
	}
	st := &state{Last: 1, Head: 1, Good: 1, Versions: map[int64]string{1: m.version(newest.Lists)}}
	for _, stage := range newest.Policy.Stages {
		st.Stages = append(st.Stages, stageState{stage.Name, 1})
	}
	m.knows(st)
	revision, err := store.commit(ctx, m.uid, revision, found, st, writes)
	if err != nil {
		return err
	}
	m.state, m.revision, m.pins, m.newest = st, revision, nil, nil
	m.contents = map[int64][]*snapshot.List{1: newest.Lists}
	return nil
}

func (m *mesh) commit(ctx context.Context, next *state, writes []write) error {
	revision, err := m.r.config.Store.commit(ctx, m.uid, m.revision, m.state, next, writes)
	if err != nil {
		return err
	}
	m.state, m.revision = next, revision
	use := next.generations()
	maps.DeleteFunc(m.contents, func(g int64, _ []*snapshot.List) bool { return !slices.Contains(use, g) })
	return nil
}

// pinned is what the first stage is to have of the newest, and the pins that hold no longer.
func (m *mesh) pinned(newest *snapshot.Snapshot) (lists []*snapshot.List, loosened []entryKey, err error) {
	if m.newest == newest {
		return m.head, nil, nil
	}
	if len(m.pins) == 0 {
		m.newest, m.head = newest, newest.Lists
		return newest.Lists, nil, nil
	}
	held := map[int]map[string][]byte{}
	good := m.contents[m.state.Head]
	for key, p := range m.pins {
		version := ""
		if e, ok := newest.Lists[key.kind].Get(key.name); ok {
			version = e.Version()
		}
		if version != p.version {
			loosened = append(loosened, key)
			continue
		}
		if held[key.kind] == nil {
			held[key.kind] = map[string][]byte{}
		}
		held[key.kind][key.name] = nil
		if e, ok := good[key.kind].Get(key.name); ok {
			held[key.kind][key.name] = e.Encode()
		}
	}
	lists = slices.Clone(newest.Lists)
	for kind, to := range held {
		if lists[kind], err = lists[kind].Restore(to, lists[kind].Changed()); err != nil {
			return nil, nil, err
		}
	}
	if len(loosened) == 0 {
		m.newest, m.head = newest, lists
	}
	return lists, loosened, nil
}

// behind says that another server has given a stage what this one has not seen yet: what this
// one would give it is older.
func (m *mesh) behind() bool {
	if !m.r.config.Shared || m.seen == nil {
		return false
	}
	for i, revision := range m.state.Seen {
		if i < len(m.seen.Has) && m.seen.Has[i] < revision {
			return true
		}
	}
	return false
}

// knows adds what is newest to what generations have in them.
func (m *mesh) knows(st *state) {
	if !m.r.config.Shared || m.seen == nil {
		return
	}
	seen := slices.Clone(m.seen.Knows)
	for i := range min(len(seen), len(st.Seen)) {
		seen[i] = max(seen[i], st.Seen[i])
	}
	st.Seen = seen
}

// take gives the first stage what is newest. With it a rollout begins, or goes on from the start.
func (m *mesh) take(ctx context.Context, head []*snapshot.List, loosened []entryKey, changed bool) error {
	next := m.state.clone()
	store := m.r.config.Store
	var writes []write
	for _, key := range loosened {
		for _, path := range m.pins[key].keys {
			writes = append(writes, write{key: path})
		}
	}
	if len(loosened) == len(m.pins) {
		next.Aborted = nil
	}
	m.knows(next)
	began := false
	if changed {
		now := m.r.config.Now().UTC()
		began = !next.underway()
		next.Last++
		next.Head = next.Last
		next.Versions[next.Head] = m.version(head)
		next.Stages[0].Generation = next.Head
		next.ChangedAt = now
		prefix := store.logKey(m.uid, next.Head)
		for kind, l := range head {
			l.Diff(m.contents[m.state.Head][kind], func(e snapshot.Entry) {
				key := entryKey{kind, e.Name()}
				writes = append(writes, write{key: prefix + store.entryKey(key), kind: kind, value: e.Encode(), present: true})
			}, func(name string) {
				writes = append(writes, write{key: prefix + store.entryKey(entryKey{kind, name}), kind: kind, present: true})
			})
		}
		if next.settle(); next.underway() && began {
			next.Rollout++
			next.StartedAt, next.WasAborted = now, false
		}
	}
	was := m.state
	if err := m.commit(ctx, next, writes); err != nil {
		return err
	}
	m.contents[next.Head] = head
	for _, key := range loosened {
		delete(m.pins, key)
	}
	m.newest = nil
	switch {
	case next.underway() && began:
		m.event(ctx, corev1.EventTypeNormal, "RolloutBegan", "Rollout %d began: stage %s receives it", next.Rollout, next.Stages[0].Name)
	case was.underway() && !next.underway():
		m.event(ctx, corev1.EventTypeNormal, "RolloutCompleted", "Rollout %d is complete: its changes were taken back", next.Rollout)
	}
	m.tidy(ctx)
	return nil
}

// advance gives the next stage what the first has.
func (m *mesh) advance(ctx context.Context, policy *snapshot.Policy, why string) error {
	next := m.state.clone()
	at := next.frontier() + 1
	next.Stages[at].Generation = next.Head
	next.settle()
	if err := m.commit(ctx, next, nil); err != nil {
		return err
	}
	stage := policy.Stages[at].Name
	m.event(ctx, corev1.EventTypeNormal, "RolloutAdvanced", "Rollout %d (%s): stage %s receives it: %s", next.Rollout, next.Versions[next.Head], stage, why)
	if !next.underway() {
		m.event(ctx, corev1.EventTypeNormal, "RolloutCompleted", "Rollout %d is complete: all stages have received it", next.Rollout)
	}
	m.tidy(ctx)
	return nil
}

// tidy folds once all stages have the same, and now and then before, beside all else.
func (m *mesh) tidy(ctx context.Context) {
	if m.state.underway() && m.state.Last%tidyEvery != 0 || !m.folding.CompareAndSwap(false, true) {
		return
	}
	st := m.state.clone()
	m.tasks.Go(func() {
		defer m.folding.Store(false)
		if err := m.r.config.Store.fold(ctx, m.uid, st); err != nil && ctx.Err() == nil {
			// What is left is folded another time.
			klog.FromContext(ctx).Error(err, "Tidying up after a rollout", "mesh", m.mesh)
		}
	})
}

// abort returns all stages to what they all had.
func (m *mesh) abort(ctx context.Context) error {
	next := m.state.clone()
	next.Aborted = append(next.Aborted, span{next.Good + 1, next.Last})
	next.Head, next.WasAborted = next.Good, true
	for i := range next.Stages {
		next.Stages[i].Generation = next.Good
	}
	next = next.clone() // without the versions that are not in use
	if err := m.commit(ctx, next, nil); err != nil {
		return err
	}
	m.event(ctx, corev1.EventTypeWarning, "RolloutAborted", "Rollout %d was aborted: all stages return to what they had before", next.Rollout)
	m.state = nil // the pins are to be read
	return nil
}

func (m *mesh) event(ctx context.Context, kind, reason, format string, args ...any) {
	m.r.config.Event(ctx, m.mesh, m.uid, kind, reason, fmt.Sprintf(format, args...))
}

// publish gives the control planes of each stage what it has.
func (m *mesh) publish(newest *snapshot.Snapshot) {
	changed := len(m.published) != len(m.state.Stages)
	next := map[string]*snapshot.Snapshot{}
	made := map[int64]*snapshot.Snapshot{}
	for _, stage := range m.state.Stages {
		content := m.contents[stage.Generation]
		old := m.published[stage.Name]
		if old != nil && slices.Equal(old.Lists, content) {
			next[stage.Name] = old
			continue
		}
		if made[stage.Generation] == nil {
			made[stage.Generation] = newest.Stage(content)
		}
		next[stage.Name], changed = made[stage.Generation], true
	}
	if changed {
		m.r.config.Builder.SetStages(m.mesh, m.epoch, next)
		m.published = next
	}
}

// look asks the control planes what they have. bakedAt is when the next stage is to receive
// what the present one has, or zero if that cannot be said.
func (m *mesh) look(ctx context.Context, policy *snapshot.Policy) (_ *v1alpha1.MeshRolloutStatus, bakedAt time.Time, err error) {
	all, err := m.r.config.ControlPlanes(ctx, m.mesh)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("asking what the control planes have: %w", err)
	}
	st, now := m.state, m.r.config.Now()
	out := &v1alpha1.MeshRolloutStatus{Phase: v1alpha1.RolloutComplete}
	for _, stage := range st.Stages {
		s := v1alpha1.MeshStageStatus{Name: stage.Name, Version: m.published[stage.Name].Version}
		for _, c := range all {
			if c.Connected && c.Stage == stage.Name {
				s.ControlPlanes++
				if c.Version == s.Version {
					s.Current++
				}
			}
		}
		out.Stages = append(out.Stages, s)
	}
	m.listPins(out)
	if !st.underway() {
		m.baking = time.Time{}
		if st.WasAborted && out.Pinned > 0 {
			out.Phase = v1alpha1.RolloutAborted
			out.Message = fmt.Sprintf("Rollout %d was aborted: what it changed is held at its last good form until it is written again", st.Rollout)
		}
		return out, time.Time{}, nil
	}
	at := st.frontier()
	present, following := out.Stages[at], out.Stages[at+1].Name
	out.ID, out.Stage = st.id(), present.Name
	out.StartedAt, out.ChangedAt = timestamp(st.StartedAt), timestamp(st.ChangedAt)
	out.Changes = m.changes()
	if m.bakes != out.ID || present.ControlPlanes == 0 || present.Current < present.ControlPlanes {
		m.baking, m.bakes = time.Time{}, out.ID
	}
	switch bake := policy.Stages[at].Bake; {
	case present.ControlPlanes == 0:
		out.Phase = v1alpha1.RolloutWaiting
		out.Message = fmt.Sprintf("No control plane of stage %s is connected: stage %s waits for a promotion, or for one", present.Name, following)
	case present.Current < present.ControlPlanes:
		out.Phase = v1alpha1.RolloutWaiting
		out.Message = fmt.Sprintf("%d of %d control planes of stage %s have it", present.Current, present.ControlPlanes, present.Name)
	case bake == nil:
		out.Phase = v1alpha1.RolloutPaused
		out.Message = fmt.Sprintf("Stage %s has it: stage %s waits for a promotion", present.Name, following)
	default:
		if m.baking.IsZero() {
			m.baking = now
		}
		bakedAt = m.baking.Add(bake.Duration)
		out.Phase, out.PromotionAt = v1alpha1.RolloutBaking, timestamp(bakedAt)
		out.Message = fmt.Sprintf("Stage %s has it: stage %s receives it after %s", present.Name, following, bake.Duration)
	}
	return out, bakedAt, nil
}

// changes is how many resources differ between the first stage and the last.
func (m *mesh) changes() (n int32) {
	first, last := m.contents[m.state.Head], m.contents[m.state.Stages[len(m.state.Stages)-1].Generation]
	for kind := range first {
		if first[kind] != last[kind] {
			first[kind].Diff(last[kind], func(snapshot.Entry) { n++ }, func(string) { n++ })
		}
	}
	return n
}

func timestamp(t time.Time) *metav1.Time {
	if t.IsZero() {
		return nil
	}
	out := metav1.NewTime(t.Truncate(time.Second))
	return &out
}
