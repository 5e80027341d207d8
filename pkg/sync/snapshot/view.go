package snapshot

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/encoding/protowire"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/policy"
)

// revisionLabel is how an object says which revision of Istio it is for.
const revisionLabel = "istio.io/rev"

var orders atomic.Uint64

func nextOrder() uint64 { return orders.Add(1) }

// seal gives a new snapshot its version and its place in time.
func (s *Snapshot) seal() {
	h := sha256.New()
	for _, l := range s.Lists {
		h.Write(l.sum[:])
	}
	s.Version = base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:versionLength*6/8])
	s.order = nextOrder()
}

// stages is what each stage of a mesh receives, in one epoch.
type stages struct {
	epoch uint64
	of    map[string]*Snapshot
}

// Stage makes what a stage receives out of lists that were served before; the rest is s's.
// The same content has the same version.
func (s *Snapshot) Stage(lists []*List) *Snapshot {
	out := *s
	out.Lists = slices.Clone(lists)
	out.seal()
	return &out
}

// SetStages says what each stage of a mesh receives, by its name. It does nothing when the
// mesh is not in that epoch any more: see Policy.Epoch. Control planes of a stage that is not
// among them keep what they have.
func (b *Builder) SetStages(mesh string, epoch uint64, of map[string]*Snapshot) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.feeds[mesh]
	if f == nil {
		return
	}
	if s := f.state.Load(); s.snapshot == nil || s.snapshot.Policy == nil || s.snapshot.Policy.Epoch != epoch {
		return
	}
	f.stages.Store(&stages{epoch, maps.Clone(of)})
	f.wake()
}

// Undecided are the meshes, sorted, that have stages of which nobody has said yet what they
// receive.
func (b *Builder) Undecided() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var names []string
	for name, f := range b.feeds {
		s := f.state.Load().snapshot
		if s == nil || s.Policy == nil || len(s.Policy.Stages) == 0 {
			continue
		}
		if told := f.stages.Load(); told == nil || told.epoch != s.Policy.Epoch {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Select says who the subscriber is. From then on it has what that one is to have.
func (s *Subscription) Select(who ControlPlane) {
	s.who.Store(&who)
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Stage is the stage of releases that the subscriber belongs to; empty when there are none.
func (s *Subscription) Stage() string {
	now, who := s.feed.state.Load(), s.who.Load()
	if now.snapshot == nil || who == nil {
		return ""
	}
	return now.snapshot.Policy.Stage(*who)
}

// lawful is what a stage receives, without what has since come to be held back: that waits
// for no release, and no abort brings it back.
type lawful struct {
	from, result *Snapshot
	held         *HeldBack
	newest       *Snapshot // if something stays until who has its place in this one comes
}

func (f *feed) lawful(stage string, from, newest *Snapshot) *Snapshot {
	held := newest.HeldBack
	if held.Len() == 0 {
		return from
	}
	f.lawfulMu.Lock()
	defer f.lawfulMu.Unlock()
	if had := f.lawfulOf[stage]; had != nil && had.from == from && had.held == held && (had.newest == nil || had.newest == newest) {
		return had.result
	}
	out := *from
	out.Lists = slices.Clone(from.Lists)
	hidden := make([][]change, len(f.kinds))
	var until *Snapshot
	for h := range held.All() {
		if h.Reason == policy.ReasonHostTaken {
			continue // it may be there until who has its place is
		}
		at := slices.IndexFunc(f.kinds, func(k Kind) bool { return k.Name == h.Kind })
		if at < 0 {
			continue
		}
		// Under the same name there may be another virtual cluster's by now.
		name := key(h.Namespace, h.Name)
		if e, is := out.Lists[at].Get(name); is && e.Cluster() == h.VirtualCluster {
			if _, moved := newest.Lists[at].Get(name); moved && h.Reason == ReasonNotOwner {
				until = newest // its namespace went over to another, and so will it
				continue
			}
			hidden[at] = append(hidden[at], change{key: name})
		}
	}
	for i := range hidden {
		if len(hidden[i]) > 0 {
			out.Lists[i] = out.Lists[i].apply(hidden[i], out.Lists[i].changed)
		}
	}
	out.seal() // even with nothing hidden: it comes after what was shown before
	if f.lawfulOf == nil {
		f.lawfulOf = map[string]*lawful{}
	}
	f.lawfulOf[stage] = &lawful{from, &out, held, until}
	return &out
}

// Means says whether the subscriber is to have a resource of the newest snapshot, sooner or
// later: no revision and no filter keeps it away, though a stage may still wait for it.
func (s *Subscription) Means(kind int, e Entry) bool {
	now, who := s.feed.state.Load(), s.who.Load()
	if now.snapshot == nil || who == nil || now.snapshot.Policy == nil && who.Revision == "" {
		return true
	}
	if _, err := s.choose(now.snapshot, who); err != nil && s.Stage() == "" {
		return true
	}
	s.mu.Lock()
	v := s.choice.view
	s.mu.Unlock()
	if v == nil {
		return true
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	var shown *List
	if v.result != nil {
		shown = v.result.Lists[kind]
	}
	return v.shows(kind, e, shown)
}

// choice is what a subscription receives: a stage's snapshot or the newest, and of it a view,
// or all.
type choice struct {
	who    *ControlPlane
	policy *Policy
	stage  string
	view   *view
}

// choose finds what a subscriber is to have of a mesh.
func (s *Subscription) choose(newest *Snapshot, who *ControlPlane) (*Snapshot, error) {
	policy := newest.Policy
	if policy != nil && policy.unknown {
		return nil, ErrHeld
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.choice.who != who || s.choice.policy != policy {
		next := choice{who: who, policy: policy, stage: policy.Stage(*who)}
		s.builder.mu.Lock()
		next.view = s.feed.hold(next.stage, who, policy)
		s.feed.release(s.choice.view)
		s.builder.mu.Unlock()
		s.choice = next
	}
	from := newest
	if s.choice.stage != "" {
		now := s.feed.stages.Load()
		if now == nil || now.epoch != policy.Epoch || now.of[s.choice.stage] == nil {
			return nil, ErrHeld
		}
		from = s.feed.lawful(s.choice.stage, now.of[s.choice.stage], newest)
	}
	if s.choice.view == nil {
		return from, nil
	}
	return s.choice.view.of(from, policy), nil
}

// view is what some control planes receive of one stage of a mesh. It is worked out when one
// of them asks, and then there for all.
type view struct {
	key      string
	users    int // guarded by the builder's lock
	kinds    []Kind
	revision string
	filters  []filter
	root     string

	mu       sync.Mutex
	from     *Snapshot // what result was made of
	policy   uint64    // and its order
	clusters *clusterLabels
	result   *Snapshot
}

// hold is the view of a control plane; nil when it receives everything. The builder's lock must
// be held.
func (f *feed) hold(stage string, who *ControlPlane, policy *Policy) *view {
	v := &view{kinds: f.kinds, revision: who.Revision}
	if policy != nil {
		v.root = policy.rootNamespace
		for _, one := range policy.filters {
			if one.controlPlanes.Matches(labels.Set(who.Labels)) {
				v.filters = append(v.filters, one)
			}
		}
	}
	if len(v.filters) == 0 {
		v.root = ""
		if v.revision == "" {
			return nil
		}
	}
	v.key = fmt.Sprintf("%q %q %q", stage, v.revision, v.root)
	for _, one := range v.filters {
		v.key += "\n" + one.text
	}
	if known := f.views[v.key]; known != nil {
		v = known
	} else {
		f.views[v.key] = v
	}
	v.users++
	return v
}

// release lets go of a view; it may be nil. The builder's lock must be held.
func (f *feed) release(v *view) {
	if v == nil {
		return
	}
	if v.users--; v.users == 0 {
		delete(f.views, v.key)
	}
}

// of brings the view to a snapshot, and gives what it shows of it, or of a later one. It reads
// what has changed since the last, and all only when it begins or when the labels of virtual
// clusters have changed that a filter asks for.
func (v *view) of(from *Snapshot, policy *Policy) *Snapshot {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.from != nil && (v.from.order > from.order || policy != nil && v.policy > policy.order) {
		return v.result // somebody else has seen later
	}
	var clusters *clusterLabels
	if policy != nil && slices.ContainsFunc(v.filters, func(f filter) bool { return f.virtualClusters != nil }) {
		clusters = policy.clusters
	}
	if v.from == from && v.clusters == clusters {
		return v.result
	}
	anew := v.from == nil || v.clusters != clusters
	out := *from
	out.Lists = make([]*List, len(from.Lists))
	v.clusters = clusters
	for i, list := range from.Lists {
		var was, shown *List
		if v.from != nil {
			was, shown = v.from.Lists[i], v.result.Lists[i]
		}
		if anew {
			out.Lists[i] = v.show(i, list, shown)
		} else {
			out.Lists[i] = v.follow(i, list, was, shown)
		}
		if shown != nil && shown.Version() == out.Lists[i].Version() && out.Lists[i] != list {
			out.Lists[i] = shown // the same content, in memory that is there already
		}
	}
	v.from, v.result = from, &out
	if policy != nil {
		v.policy = policy.order
	}
	return v.result
}

// show is a view of a whole list. shown is what it showed before; it may be nil.
func (v *view) show(kind int, list, shown *List) *List {
	var hidden []change
	for e := range list.All() {
		if !v.shows(kind, e, shown) {
			hidden = append(hidden, change{key: e.Name()})
		}
	}
	return list.apply(hidden, list.changed)
}

// follow brings a view from one list to the next.
func (v *view) follow(kind int, list, was, shown *List) *List {
	if list == was {
		return shown
	}
	whole := shown == was // so far it shows all there is
	var changes, hidden []change
	list.diff(was, func(a, b *entry) bool { return a.sum == b.sum && a.cluster == b.cluster }, func(e Entry) {
		switch {
		case !v.shows(kind, e, shown):
			hidden = append(hidden, change{key: e.Name()})
		case !whole:
			changes = append(changes, change{key: e.Name(), entry: e.rendered()})
		}
	}, func(name string) {
		if !whole {
			hidden = append(hidden, change{key: name})
		}
	})
	if whole {
		return list.apply(hidden, list.changed)
	}
	return shown.apply(append(changes, hidden...), list.changed)
}

// shows says whether the view shows an entry. Where that cannot be said, it does as it did.
func (v *view) shows(kind int, e Entry, shown *List) bool {
	if v.revision != "" {
		// As istiod itself decides (LabelsInRevision): without the label it is for all, and an
		// istiod without a revision takes all.
		if rev, labelled := e.label(revisionLabel); labelled && rev != v.revision {
			return false
		}
	}
	for _, f := range v.filters {
		if len(f.kinds) > 0 && !slices.Contains(f.kinds, v.kinds[kind].Name) {
			return false
		}
		namespace, _, _ := strings.Cut(e.Name(), "/")
		if len(f.namespaces) > 0 && namespace != v.root &&
			!slices.ContainsFunc(f.namespaces, func(p v1alpha1.NamespacePattern) bool { return p.Matches(namespace) }) {
			return false
		}
		if f.virtualClusters == nil || e.Cluster() == "" { // the mesh's own
			continue
		}
		set, known := v.clusters.of[e.Cluster()]
		switch {
		case known && !f.virtualClusters.Matches(set):
			return false
		case !known && shown != nil:
			if _, did := shown.Get(e.Name()); !did {
				return false
			}
		}
	}
	return true
}

// rendered is the entry as it goes into another list.
func (e Entry) rendered() *rendered {
	x := e.chunk.entries[e.at]
	r := &rendered{entry: x, key: e.Name(), data: e.chunk.data[x.start:x.end:x.end]}
	r.start, r.end, r.body, r.name = 0, x.end-x.start, x.body-x.start, x.name-x.start
	return r
}

// Cluster is the virtual cluster that the resource comes from; empty for what comes from the mesh itself.
func (e Entry) Cluster() string { return e.chunk.entries[e.at].cluster }

// label reads one label of the resource from its wire form.
func (e Entry) label(key string) (value string, found bool) {
	metadata := field(field(e.Resource(), anyValue), resourceMetadata)
	for len(metadata) > 0 {
		number, kind, n := protowire.ConsumeTag(metadata)
		if n < 0 {
			return "", false
		}
		metadata = metadata[n:]
		if number != metadataLabels || kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, metadata); n < 0 {
				return "", false
			}
			metadata = metadata[n:]
			continue
		}
		entry, n := protowire.ConsumeBytes(metadata)
		if n < 0 {
			return "", false
		}
		metadata = metadata[n:]
		if string(field(entry, mapKey)) == key {
			return string(field(entry, mapValue)), true
		}
	}
	return "", false
}

// field is the first of a message's fields of a number, which must be of bytes.
func field(message []byte, wanted protowire.Number) []byte {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return nil
		}
		message = message[n:]
		if number == wanted && kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(message)
			return value
		}
		if n = protowire.ConsumeFieldValue(number, kind, message); n < 0 {
			return nil
		}
		message = message[n:]
	}
	return nil
}
