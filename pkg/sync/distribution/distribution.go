// Package distribution tells on each object whether the control planes of its mesh have
// it as it is: in its condition Distributed, for which clients can wait.
//
// Whoever writes an object takes the condition away in the same write (see Marker). It
// becomes true again once every control plane that is to have the object has acknowledged
// a list with this very content, and only if the stored object is then still the one that
// was looked at, by its resource version. So it is never true too early, whatever is
// delayed or written in between. Only objects that wait for something are remembered.
package distribution

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/clock"

	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
	"github.com/vmesh-io/vmesh/pkg/sync/xds"
)

// Reasons of the condition.
const (
	// ReasonDistributed: all control planes that are to have it have it.
	ReasonDistributed = "Distributed"
	// ReasonInPart: all have it, but some of its hosts are those of an older object of another
	// virtual cluster, so that it has no effect for these.
	ReasonInPart = "DistributedInPart"
	// ReasonPending: it was written a moment ago.
	ReasonPending = "Pending"
	// ReasonBehind: a control plane that is connected does not acknowledge it.
	ReasonBehind = "ControlPlaneBehind"
	// ReasonGone: a control plane that was connected is not, and may come back.
	ReasonGone = "ControlPlaneGone"
	// ReasonRefused: a control plane says that it cannot take it.
	ReasonRefused = "Refused"
	// ReasonRollingOut: a release has not come to all stages yet, or was aborted.
	ReasonRollingOut = "RollingOut"
	// ReasonNoControlPlanes: the mesh has none.
	ReasonNoControlPlanes = "NoControlPlanes"
	// ReasonNotSelected: the mesh has control planes, but it is for none of them.
	ReasonNotSelected = "NotSelected"
	// ReasonCannotBeSent: vmesh cannot make of it what control planes read.
	ReasonCannotBeSent = "CannotBeSent"
	// ReasonNotInMesh: it is in no mesh.
	ReasonNotInMesh = "NotInMesh"
)

const (
	// Patience is for how long a change may be on its way before the condition says what
	// it waits for.
	Patience = 15 * time.Second
	// Grace is for how long a control plane that has gone is waited for: istiod tries to
	// come back after 90 s at most.
	Grace = 2 * time.Minute
)

// Snapshots are what control planes are sent; a snapshot.Builder has them.
type Snapshots interface {
	Snapshot(mesh string) *snapshot.Snapshot
	Receives(cluster, namespace string) (mesh string, known bool)
	MeshObject(name string) *object.Object
}

// Receivers are those to whom they are sent; an xds.Server knows them.
type Receivers interface {
	Receivers(mesh string, kind int) []xds.Receiver
}

// Writer writes conditions.
type Writer interface {
	// WriteCondition lets decide look at an object as it is stored, and writes the condition
	// that it returns, unless that is nil or the object is gone. decide may be called
	// several times; what it decided last is written to that state of the object or not at all.
	WriteCondition(ctx context.Context, ref Ref, decide func(current *object.Object) *istio.Condition) error
}

// Ref names an object.
type Ref struct {
	Resource                 schema.GroupResource
	Cluster, Namespace, Name string
}

// Options are how a Tracker works. Zero values mean the defaults.
type Options struct {
	// Patience and Grace are those above by default.
	Patience, Grace time.Duration
	// Rate is how many conditions are written in a second when there are many to write,
	// and Burst how many at once; 200 and 200 by default.
	Rate  float64
	Burst int
	// Clock is the real one by default.
	Clock clock.WithTicker
	// Metrics may be nil.
	Metrics *Metrics
}

// condition makes one of this package's.
func condition(status metav1.ConditionStatus, reason, message string, generation int64) istio.Condition {
	return istio.Condition{Status: status, Reason: reason, Message: message, ObservedGeneration: generation}
}

// writerKey marks the contexts of this package's own writes.
type writerKey struct{}

// AsWriter is the context in which a Writer writes: only there a write of the status
// changes the condition.
func AsWriter(ctx context.Context) context.Context { return context.WithValue(ctx, writerKey{}, true) }

// Marker sees to the condition in whatever is written: it implements the registry's hook.
type Marker struct {
	// Outlook is the condition of an object that is being written, without its generation.
	Outlook func(cluster, namespace string) istio.Condition
	// Cluster is the virtual cluster of a request.
	Cluster func(context.Context) (string, error)
	// Now is the time.
	Now func() time.Time
}

// Written sets the condition of an object that is about to be written, if control planes
// will read another object than before. A condition that cannot be set is left to validation.
func (m Marker) Written(ctx context.Context, o, old *object.Object) {
	if old != nil && o.Generation == old.Generation && snapshot.SameToReader(o, old) {
		return
	}
	cluster, err := m.Cluster(ctx)
	if err != nil {
		return // the storage refuses such a write
	}
	c := m.Outlook(cluster, o.Namespace)
	c.ObservedGeneration = o.Generation
	_ = istio.SetCondition(o, istio.ConditionDistributed, &c, m.Now())
}

// StatusWritten puts the condition back that somebody else changes: so no write of a
// status can bring back what was true of another state of the object.
func (m Marker) StatusWritten(ctx context.Context, o, old *object.Object) {
	if ctx.Value(writerKey{}) != nil {
		return
	}
	var kept *istio.Condition
	if c, ok := istio.GetCondition(old, istio.ConditionDistributed); ok {
		kept = &c
	}
	_ = istio.SetCondition(o, istio.ConditionDistributed, kept, m.Now())
}

// controlPlanes are the control planes that a mesh's status tells of.
func controlPlanes(o *object.Object) []v1alpha1.ControlPlaneStatus {
	var mesh v1alpha1.Mesh
	if o == nil || o.Into(&mesh) != nil {
		return nil
	}
	return mesh.Status.ControlPlanes
}
