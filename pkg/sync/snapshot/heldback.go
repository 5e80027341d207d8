package snapshot

import (
	"cmp"
	"fmt"
	"iter"
	"maps"

	"github.com/google/btree"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

const (
	// ReasonNotOwner is why an object is held back that lies in a namespace that its
	// virtual cluster does not own. The other reasons are those of package policy.
	ReasonNotOwner = "NotOwner"
	// ReasonNoMesh is why nothing of a virtual cluster reaches a mesh that there is not.
	// It is told in reviews only.
	ReasonNoMesh = "NoMesh"
)

// Held is an object of a mesh that is held back.
type Held struct {
	// VirtualCluster is where it is stored.
	VirtualCluster string
	v1alpha1.HeldBackResource
}

func compareHeld(a, b Held) int {
	return cmp.Or(cmp.Compare(a.VirtualCluster, b.VirtualCluster), cmp.Compare(a.Kind, b.Kind),
		cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// HeldBack are the objects of a mesh that are held back, sorted by virtual cluster, kind,
// namespace and name. It never changes. A nil one is empty.
type HeldBack struct {
	tree    *btree.BTreeG[Held]
	reasons map[string]int
}

// NewHeldBack makes one.
func NewHeldBack(all ...Held) *HeldBack {
	var h held
	for _, x := range all {
		h.add(x)
	}
	return h.publish()
}

// Len is how many there are.
func (h *HeldBack) Len() int {
	if h == nil {
		return 0
	}
	return h.tree.Len()
}

// Reasons are how many there are of each reason. It must not be modified.
func (h *HeldBack) Reasons() map[string]int {
	if h == nil {
		return nil
	}
	return h.reasons
}

// All are all of them, in order.
func (h *HeldBack) All() iter.Seq[Held] {
	return func(yield func(Held) bool) {
		if h != nil {
			h.tree.Ascend(yield)
		}
	}
}

// Get finds one, in a time that grows with the logarithm of their number.
func (h *HeldBack) Get(cluster, kind, namespace, name string) (Held, bool) {
	if h == nil {
		return Held{}, false
	}
	return h.tree.Get(heldKey(cluster, kind, namespace, name))
}

func heldKey(cluster, kind, namespace, name string) Held {
	return Held{VirtualCluster: cluster, HeldBackResource: v1alpha1.HeldBackResource{Kind: kind, Namespace: namespace, Name: name}}
}

// HeldBackReason says why an object of a virtual cluster is held back, if it is: as one
// word, and with the field and the remedy.
func (s *Snapshot) HeldBackReason(cluster, kind, namespace, name string) (reason, message string, held bool) {
	h, held := s.HeldBack.Get(cluster, kind, namespace, name)
	return h.Reason, h.Message, held
}

// LacksHosts says of an object in the mesh that some of its hosts are others', and whose.
func (s *Snapshot) LacksHosts(kind, namespace, name string) (message string, lacks bool) {
	h, lacks := s.InPart.Get("", kind, namespace, name)
	return h.Message, lacks
}

// held is a mesh's HeldBack while it is being changed.
type held struct {
	tree    *btree.BTreeG[Held] // nil until there is something
	reasons map[string]int
	changed bool
	now     *HeldBack // as it was published last
}

func (h *held) add(x Held) (changed bool) {
	if h.tree == nil {
		h.tree = btree.NewG(16, func(a, b Held) bool { return compareHeld(a, b) < 0 })
		h.reasons = map[string]int{}
	}
	old, had := h.tree.ReplaceOrInsert(x)
	if had && old == x {
		return false
	}
	if had {
		h.count(old.Reason, -1)
	}
	h.count(x.Reason, 1)
	h.changed = true
	return true
}

func (h *held) remove(cluster, kind, namespace, name string) (changed bool) {
	if h.tree == nil {
		return false
	}
	old, had := h.tree.Delete(heldKey(cluster, kind, namespace, name))
	if !had {
		return false
	}
	h.count(old.Reason, -1)
	h.changed = true
	return true
}

func (h *held) count(reason string, by int) {
	if h.reasons[reason] += by; h.reasons[reason] == 0 {
		delete(h.reasons, reason)
	}
}

// publish is what is held back now, the same as before if nothing has changed.
func (h *held) publish() *HeldBack {
	if h.changed {
		h.changed = false
		h.now = &HeldBack{tree: h.tree.Clone(), reasons: maps.Clone(h.reasons)}
	}
	return h.now
}

// notOwner says why what lies in a namespace does not reach a mesh.
func notOwner(mesh, namespace, owner string) string {
	if owner == "" {
		return fmt.Sprintf("no virtual cluster owns namespace %q in mesh %q: claim it in the VirtualCluster's spec.namespaces, or move the object to a namespace that is owned", namespace, mesh)
	}
	return fmt.Sprintf("namespace %q in mesh %q belongs to virtual cluster %q, and only what that holds of it reaches the mesh: move the object there, or to a namespace of its own virtual cluster", namespace, mesh, owner)
}
