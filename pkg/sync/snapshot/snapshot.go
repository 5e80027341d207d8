// Package snapshot merges what the virtual clusters of a mesh hold into the
// configuration that the mesh's control planes receive: for each kind one sorted,
// versioned list.
//
// A control plane deletes what a response leaves out. So a snapshot exists only
// once all sources have been read, it changes only by what was observed to change,
// and a resource that cannot be rendered keeps its last good form and touches
// nothing else. A resource that its virtual cluster may not have in the mesh is held
// back: it has no last good form, for it may not act.
package snapshot

import (
	"errors"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/policy"
)

// QuarantinedAnnotation marks an object that the storage layer could not decode,
// with the reason. Its content is not to be trusted.
const QuarantinedAnnotation = "vmesh.io/quarantined"

var (
	// ErrNotSynced says that the sources have not all been read yet.
	ErrNotSynced = errors.New("the configuration has not been read yet")
	// ErrNoMesh says that there is no such mesh.
	ErrNoMesh = errors.New("there is no such mesh")
	// ErrHeld says that it is not certain what a control plane is to receive: it is to keep
	// what it has.
	ErrHeld = errors.New("it is not certain what this control plane is to receive")
)

// Kind is one kind of resource that control planes receive.
type Kind struct {
	// Resource is what the kind is stored as.
	Resource schema.GroupResource
	// Name is the kind, as VirtualService.
	Name string
	// TypeURL is what control planes ask for, as networking.istio.io/v1/VirtualService.
	TypeURL string
	// MessageName is the full name of the kind's message, as
	// istio.networking.v1alpha3.VirtualService.
	MessageName string
	// AppendMessage appends the wire form of an object's spec as that message, the
	// same bytes for the same spec. It must be safe for concurrent use and must not
	// keep or modify the object.
	AppendMessage func(dst []byte, o *object.Object) ([]byte, error)
	// Admit says what keeps an object of a virtual cluster out of the mesh, and else gives
	// the object as the mesh is to see it, which may be the same. exports are of the
	// same virtual cluster. It must be safe for concurrent use and must not keep or modify
	// the object. Without it all objects are let in.
	Admit func(o *object.Object, owners *ownership.View, exports *policy.Exports) (*object.Object, []policy.Violation, error)
	// Share says what an object that is let in, as the mesh is to see it, says for hosts that
	// others may speak for too; nil for nothing. Of those that cannot be in the mesh together the
	// oldest is. It is as safe as Admit, without which it is not asked, and may be nil.
	Share func(o *object.Object, owners *ownership.View) *policy.Shared
}

// Observer is told what a source holds and how it changes. Its methods are called
// one after the other; Replaced is the first. Objects are shared and read-only.
type Observer interface {
	// Replaced gives all objects there are as of a revision.
	Replaced(items []*object.Object, revision uint64)
	// Changed gives one object that was added, modified or deleted.
	Changed(t watch.EventType, o *object.Object, revision uint64)
	// Progressed says that there is nothing new up to a revision.
	Progressed(revision uint64)
}

// Source is a resource that must be observed, and by whom.
type Source struct {
	Resource schema.GroupResource
	Observer Observer
}

// Snapshot is the configuration of a mesh at one moment. It never changes.
type Snapshot struct {
	// Mesh is the mesh's name.
	Mesh string
	// Version is equal for snapshots of equal content. What is made of a snapshot for single
	// control planes has the version of the whole.
	Version string
	// Policy is what the mesh says about who receives what; nil when all receive everything.
	Policy *Policy
	// Lists are the resources, one list for each kind, in the order of the kinds.
	Lists []*List
	// VirtualClusters is how many virtual clusters name the mesh.
	VirtualClusters int
	// Quarantined are the objects that cannot be rendered, sorted.
	Quarantined []v1alpha1.QuarantinedResource
	// HeldBack are the objects that may not reach the mesh; nil for none.
	HeldBack *HeldBack
	// InPart are objects that are in the mesh, but without some of their hosts, which older ones
	// of other virtual clusters have; nil for none. Their VirtualCluster is empty.
	InPart *HeldBack
	// Scopes are what the sidecars of virtual clusters see that have a scope; nil for none.
	Scopes *Scopes

	order uint64 // greater than that of all that were made before
}

// Resources is the number of resources of all kinds.
func (s *Snapshot) Resources() int {
	n := 0
	for _, l := range s.Lists {
		n += l.Len()
	}
	return n
}
