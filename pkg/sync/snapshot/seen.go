package snapshot

import (
	"slices"
	"strconv"
)

// Seen is up to where the sources were read, so that two servers on one etcd can tell who has
// seen more. It never changes once it is given away.
type Seen struct {
	// Has are the revisions up to which everything was taken in: of namespaces, of meshes, of
	// virtual clusters, and of each kind.
	Has []uint64
	// Knows are the revisions of the last changes that were taken in, as far as they are known:
	// never greater than Has.
	Knows []uint64
}

func newSeen(kinds int) Seen {
	return Seen{Has: make([]uint64, kinds+3), Knows: make([]uint64, kinds+3)}
}

// note takes note of an event.
func (s *Seen) note(e event) {
	at := e.source - namespaces // the least
	s.Has[at] = max(s.Has[at], e.revision)
	switch e.kind {
	case progressed:
	case replaced:
		for _, o := range e.items {
			if revision, err := strconv.ParseUint(o.ResourceVersion, 10, 64); err == nil {
				s.Knows[at] = max(s.Knows[at], revision)
			}
		}
	default:
		s.Knows[at] = max(s.Knows[at], e.revision)
	}
}

func (s *Seen) clone() *Seen {
	return &Seen{slices.Clone(s.Has), slices.Clone(s.Knows)}
}

// Seen is what the present snapshots have in them, at least; nil while no mesh has stages.
func (b *Builder) Seen() *Seen { return b.seen.Load() }
