package garbage

import (
	"slices"
	"sync"
	"sync/atomic"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// key names an object. Users write UIDs into references, so that the virtual cluster
// is part of it: nobody's reference reaches another's object.
type key struct {
	cluster string
	uid     types.UID
}

// index holds the objects that have owners, those that the collector has to finalize,
// and the UIDs that are referred to. All other objects leave nothing in it.
type index struct {
	// size is the number of nodes. It is read without the lock to see that there is
	// nothing to look up.
	size atomic.Int64

	mu    sync.Mutex
	nodes map[key]*node
	round uint64         // counts the lists of whole resources
	queue func(key)      // nil until the collector works
	stale map[*node]bool // scratch: owners that may have lost their last dependent
}

// node is an object, or just an owner's UID.
type node struct {
	key
	source          *source // nil for an owner about which nothing else needs to be known
	namespace, name string
	owners          []metav1.OwnerReference
	deleting        bool
	foreground      bool // is being deleted, after its dependents
	orphan          bool // is being deleted, without its dependents
	round           uint64

	dependents map[*node]bool // true for those that hold the owner in a foreground deletion
	blocking   int            // how many of them do
}

// concerns tells whether an object has to be kept in the index for its own sake.
func concerns(o *object.Object) bool {
	return len(o.OwnerReferences) > 0 ||
		o.DeletionTimestamp != nil && (hasFinalizer(o, metav1.FinalizerDeleteDependents) || hasFinalizer(o, metav1.FinalizerOrphanDependents))
}

func hasFinalizer(o *object.Object, name string) bool { return slices.Contains(o.Finalizers, name) }

func blocks(r *metav1.OwnerReference) bool {
	return r.BlockOwnerDeletion != nil && *r.BlockOwnerDeletion
}

func sameOwners(a, b []metav1.OwnerReference) bool {
	return slices.EqualFunc(a, b, func(a, b metav1.OwnerReference) bool {
		return a.UID == b.UID && a.Name == b.Name && a.Kind == b.Kind && a.APIVersion == b.APIVersion && blocks(&a) == blocks(&b)
	})
}

// put takes over an object's state. The lock is held.
func (x *index) put(s *source, o *object.Object) {
	k := key{o.Cluster(), o.UID}
	n := x.nodes[k]
	keep := concerns(o)
	if !keep && (n == nil || n.source == nil) {
		return
	}
	if n == nil {
		n = x.add(k)
	}
	foreground, orphan := n.foreground, n.orphan
	n.source, n.namespace, n.name, n.round = s, o.Namespace, o.Name, x.round
	n.deleting = o.DeletionTimestamp != nil
	n.foreground = n.deleting && hasFinalizer(o, metav1.FinalizerDeleteDependents)
	n.orphan = n.deleting && hasFinalizer(o, metav1.FinalizerOrphanDependents)
	changed := x.setOwners(n, o.OwnerReferences)
	switch {
	case n.foreground && !foreground, n.orphan && !orphan:
		x.wake(n)
		x.wakeDependents(n)
	case changed && len(n.owners) > 0:
		x.wake(n)
	}
	if !keep {
		n.source = nil
		x.dropUnused(n)
	}
}

// remove forgets an object that is gone, and has its dependents looked at. The lock is
// held.
func (x *index) remove(n *node) {
	x.setOwners(n, nil)
	x.wakeDependents(n)
	n.source, n.owners, n.deleting, n.foreground, n.orphan = nil, nil, false, false, false
	x.dropUnused(n)
}

// lose is told of an object that cannot be read: its UID is not known, nor what it
// refers to. Those that refer to it come to wait for what becomes of it. The lock is
// held.
func (x *index) lose(s *source, o *object.Object) {
	gk := s.Store.Kind().GroupKind()
	var gone *node
	for _, n := range x.nodes {
		if n.source == nil || n.cluster != o.Cluster() {
			continue
		}
		if n.source == s && n.namespace == o.Namespace && n.name == o.Name {
			gone = n
		}
		for i := range n.owners {
			if ref := &n.owners[i]; ref.Name == o.Name && schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind).GroupKind() == gk {
				x.wake(n)
				break
			}
		}
	}
	if gone != nil {
		x.remove(gone)
	}
}

func (x *index) add(k key) *node {
	if x.nodes == nil {
		x.nodes = map[key]*node{}
	}
	n := &node{key: k}
	x.nodes[k] = n
	x.size.Store(int64(len(x.nodes)))
	return n
}

func (x *index) dropUnused(n *node) {
	if n.source != nil || len(n.dependents) > 0 || x.nodes[n.key] != n {
		return
	}
	delete(x.nodes, n.key)
	if len(x.nodes) == 0 {
		x.nodes = nil // a map never shrinks by itself
	}
	x.size.Store(int64(len(x.nodes)))
}

// setOwners makes n the dependent of other owners, and tells whether they differ from
// those before.
func (x *index) setOwners(n *node, owners []metav1.OwnerReference) bool {
	if sameOwners(n.owners, owners) {
		return false
	}
	clear(x.stale)
	if x.stale == nil {
		x.stale = map[*node]bool{}
	}
	for i := range n.owners {
		owner := x.nodes[key{n.cluster, n.owners[i].UID}]
		if owner == nil {
			continue
		}
		if holds, ok := owner.dependents[n]; ok {
			if holds {
				owner.blocking--
			}
			delete(owner.dependents, n)
			x.stale[owner] = true
		}
	}
	n.owners = owners
	for i := range owners {
		k := key{n.cluster, owners[i].UID}
		if k == n.key {
			continue // an object that owns itself neither waits for itself nor lives for it
		}
		owner := x.nodes[k]
		if owner == nil {
			owner = x.add(k)
		}
		if owner.dependents == nil {
			owner.dependents = map[*node]bool{}
		}
		held := owner.dependents[n]
		if !held && blocks(&owners[i]) {
			owner.blocking++
		}
		owner.dependents[n] = held || blocks(&owners[i])
	}
	for owner := range x.stale {
		if owner.free() {
			x.wake(owner)
		}
		x.dropUnused(owner)
	}
	return true
}

// free tells whether an object that is to be finalized waits for no dependent.
func (n *node) free() bool {
	return n.orphan && len(n.dependents) == 0 || n.foreground && !n.orphan && n.blocking == 0
}

func (x *index) wake(n *node) {
	if x.queue != nil && n.source != nil {
		x.queue(n.key)
	}
}

func (x *index) wakeDependents(n *node) {
	for d := range n.dependents {
		x.wake(d)
	}
}

func (x *index) wakeAll() {
	for _, n := range x.nodes {
		x.wake(n)
	}
}

// start has every change that calls for work told to queue, and all there is now.
func (x *index) start(queue func(key)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.queue = queue
	x.wakeAll()
}

// item is what the index knows of an object, at one moment.
type item struct {
	key
	source          *source
	namespace, name string
	owners          []metav1.OwnerReference
	deleting        bool
	foreground      bool
	orphan          bool
	free            bool
}

// item looks an object up.
func (x *index) item(k key) (item, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := x.nodes[k]
	if n == nil || n.source == nil {
		return item{}, false
	}
	return item{
		key: k, source: n.source, namespace: n.namespace, name: n.name, owners: n.owners,
		deleting: n.deleting, foreground: n.foreground, orphan: n.orphan, free: n.free(),
	}, true
}

// orphaning tells whether an object is being deleted without its dependents.
func (x *index) orphaning(k key) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := x.nodes[k]
	return n != nil && n.orphan
}

// dependents tells whether an object has dependents, and whether one of them is
// waiting for its own dependents already: then they may wait for each other.
func (x *index) dependents(k key) (has, waiting bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := x.nodes[k]
	if n == nil {
		return false, false
	}
	for d := range n.dependents {
		if d.foreground {
			return true, true
		}
	}
	return len(n.dependents) > 0, false
}
