package garbage

import (
	"sync/atomic"

	"k8s.io/apimachinery/pkg/watch"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// source is one kind, as the collector sees it. It is a logical.Observer of the kind.
type source struct {
	Source
	index *index
	ready func() // called once, with the index locked, when the first state is known

	synced bool // guarded by the index's lock
	// revision is up to where the kind's changes have been told. What a change of that
	// revision puts into the index is in it.
	revision atomic.Uint64
}

// Replaced implements logical.Observer.
func (s *source) Replaced(items []*object.Object, revision uint64) {
	x := s.index
	x.mu.Lock()
	defer x.mu.Unlock()
	x.round++
	for _, o := range items {
		if o.UID != "" {
			x.put(s, o)
		}
	}
	for _, n := range x.nodes {
		if n.source == s && n.round != x.round {
			x.remove(n)
		}
	}
	s.revision.Store(revision)
	if s.synced {
		// An owner may be gone that the index knows by nothing but its UID.
		x.wakeAll()
		return
	}
	s.synced = true
	s.ready()
}

// Changed implements logical.Observer. All changes of all kinds come through here.
func (s *source) Changed(t watch.EventType, o *object.Object, revision uint64) {
	x := s.index
	if !concerns(o) {
		// The revision comes first: whoever puts a reference to this object into the
		// index from now on will see, when looking for the owner, what has become of it.
		s.revision.Store(revision)
		if x.size.Load() == 0 {
			return
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case o.UID == "":
		x.lose(s, o) // it is quarantined
	case t == watch.Deleted:
		if n := x.nodes[key{o.Cluster(), o.UID}]; n != nil {
			x.remove(n)
		}
	default:
		x.put(s, o)
	}
	s.revision.Store(revision)
}

// Progressed implements logical.Observer.
func (s *source) Progressed(revision uint64) { s.revision.Store(revision) }
