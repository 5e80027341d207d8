package snapshot

import (
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// Follower is told of every object that was written or deleted, that another mesh than
// before receives, or of which a mesh has come to have more, less or nothing.
type Follower interface {
	// Placed tells where the objects are, in the order of their changes, once snapshots
	// tell of them. It is called by the builder's goroutine, which waits for it. The
	// slice may be kept.
	Placed(placements []Placement)
}

// Placement is where an object is.
type Placement struct {
	// Kind is the index of the object's kind.
	Kind int
	// Object is the object as it is stored; shared and read-only.
	Object *object.Object
	// Mesh is the mesh that receives the object, or would but for its content; empty for none.
	Mesh string
	// Moved says that it has only now come to the mesh, or left one.
	Moved bool
	// Gone says that the object no longer exists, and was last as told.
	Gone bool
}

// touched is an object whose place may be new.
type touched struct {
	kind   int
	object *object.Object
	moved  bool
	gone   bool
}

// touch takes note of an object for the follower, if there is one.
func (m *model) touch(kind int, o *object.Object, gone bool) {
	if m.followed {
		m.touched = append(m.touched, touched{kind, o, false, gone})
	}
}

func (m *model) touchSpace(s *space) {
	if m.followed {
		// What is there when all has been read was there before.
		s.each(func(kind int, o *object.Object) { m.touched = append(m.touched, touched{kind, o, m.placed, false}) })
	}
}

// touchTurned takes note of what came to be held back in a mesh, or free.
func (m *model) touchTurned(mesh *mesh) {
	for _, t := range mesh.turned {
		if !m.followed {
			break
		}
		// What is turned by others is known as it was rendered, and its status is newer.
		if t.object = m.current(t.kind, t.object); t.object != nil {
			t.moved = m.placed
			m.touched = append(m.touched, t)
		}
	}
	mesh.turned = nil
}

// current is an object as it was observed last, nil if it is gone.
func (m *model) current(kind int, o *object.Object) *object.Object {
	if c := m.clusters[o.Cluster()]; c != nil {
		if s := c.spaces[o.Namespace]; s != nil {
			return s.objects(kind)[o.Name]
		}
	}
	return nil
}

// placements are where those touched are by now.
func (m *model) placements() []Placement {
	m.placed = true
	if len(m.touched) == 0 {
		return nil
	}
	placements := make([]Placement, 0, len(m.touched))
	for _, t := range m.touched {
		p := Placement{Kind: t.kind, Object: t.object, Moved: t.moved, Gone: t.gone}
		if c := m.clusters[t.object.Cluster()]; c != nil && !t.gone {
			if s := c.spaces[t.object.Namespace]; s != nil && s.mesh != nil {
				p.Mesh = s.mesh.name
			}
		}
		placements = append(placements, p)
	}
	clear(m.touched)
	m.touched = m.touched[:0]
	if cap(m.touched) > queueSize {
		m.touched = nil
	}
	return placements
}

// Follow has one follower told of all placements. It must be called before Run.
func (b *Builder) Follow(f Follower) { b.follower = f }

// SameToReader says whether a control plane would read the same of two states of an object.
func SameToReader(a, b *object.Object) bool { return sameToReader(a, b) }

// Snapshot is a mesh's present snapshot, or nil when there is none.
func (b *Builder) Snapshot(mesh string) *Snapshot {
	b.mu.Lock()
	f := b.feeds[mesh]
	b.mu.Unlock()
	if f == nil {
		return nil
	}
	return f.state.Load().snapshot
}

// MeshObject is a mesh as it was observed last, or nil.
func (b *Builder) MeshObject(name string) *object.Object {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.meshObjects[name]
}

// Receives is the mesh that receives what a namespace of a virtual cluster holds, empty
// for none. It is not known before all sources have been read.
func (b *Builder) Receives(cluster, namespace string) (mesh string, known bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.owners == nil {
		return "", false
	}
	claims, ok := b.owners.Claims(cluster)
	if !ok || b.meshObjects[claims.Mesh] == nil {
		return "", true
	}
	if owner, owned := b.owners.Owner(claims.Mesh, namespace); !owned || owner != cluster {
		return "", true
	}
	return claims.Mesh, true
}

// remember keeps what Receives and MeshObject tell; the builder's lock must be held.
func (b *Builder) remember(m *model) {
	b.owners = m.index
	for name := range b.meshObjects {
		if m.meshes[name] == nil {
			delete(b.meshObjects, name)
		}
	}
}

// observeMesh keeps a mesh as it was observed.
func (b *Builder) observeMesh(o *object.Object) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.meshObjects == nil {
		b.meshObjects = map[string]*object.Object{}
	}
	b.meshObjects[o.Name] = o
}
