// Package status tells in each Mesh's status what is served and to whom, and in that of
// virtual clusters what of them is not.
package status

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

// Writer writes the status of meshes.
type Writer interface {
	// UpdateMeshStatus lets mutate change a mesh's present status, again when somebody
	// else changes it meanwhile, and writes it if it is then another. It returns
	// mutate's error as it is.
	UpdateMeshStatus(ctx context.Context, name string, mutate func(*v1alpha1.MeshStatus) error) error
	// UpdateVirtualClusterStatus does the same for a virtual cluster, and tells in an event
	// when its condition Conforming becomes another.
	UpdateVirtualClusterStatus(ctx context.Context, name string, mutate func(*v1alpha1.VirtualClusterStatus) error) error
}

// Snapshots are what is served; a snapshot.Builder has them.
type Snapshots interface {
	Snapshots() []*snapshot.Snapshot
	// Shared are what is owned, nil before all is read; the virtual clusters whose status
	// tells of it; and a number that changes when they do.
	Shared() (index *ownership.Index, told []string, change uint64)
}

// ControlPlanes are those who receive it; an xds.Server knows them.
type ControlPlanes interface {
	ControlPlanes(mesh string) []v1alpha1.ControlPlaneStatus
}

const (
	// Interval is the time between two looks, and so the least between two writes of
	// one mesh's status.
	Interval = time.Second
	// Memory is for how long a control plane that has gone is still told of.
	Memory = time.Hour

	// What is told in detail is bounded, for a status is stored as one value.
	maxControlPlanes = 100
	maxQuarantined   = 100
)

// Reporter keeps the status of all meshes up to date.
type Reporter struct {
	writer        Writer
	snapshots     Snapshots
	controlPlanes ControlPlanes
	clock         clock.WithTicker
	meshes        map[string]*report
	clusters      map[string]*sharing // what was written last, where it is something
	shared        shared
	failed        int // virtual clusters that could not be written
}

// report is what is known of one mesh's status.
type report struct {
	written *v1alpha1.MeshStatus // what was written last, without conditions; nil if nothing was
	known   map[string]v1alpha1.ControlPlaneStatus
	gone    map[string]time.Time // those known that are not connected, and since when
}

// NewReporter makes a reporter. Nothing happens before Run is called.
func NewReporter(writer Writer, snapshots Snapshots, controlPlanes ControlPlanes) *Reporter {
	return &Reporter{writer: writer, snapshots: snapshots, controlPlanes: controlPlanes, clock: clock.RealClock{}, meshes: map[string]*report{}, clusters: map[string]*sharing{}}
}

// Run reports until ctx ends. A status that cannot be written is tried again at the
// next look.
func (r *Reporter) Run(ctx context.Context) {
	ticker := r.clock.NewTicker(Interval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C():
		case <-ctx.Done():
			return
		}
		if err := r.reportAll(ctx); err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Writing the status of meshes and virtual clusters")
		}
	}
}

func (r *Reporter) reportAll(ctx context.Context) error {
	var errs []error
	present := map[string]struct{}{}
	snapshots := r.snapshots.Snapshots()
	for _, s := range snapshots {
		present[s.Mesh] = struct{}{}
		if err := r.report(ctx, s); err != nil {
			errs = append(errs, fmt.Errorf("mesh %s: %w", s.Mesh, err))
		}
	}
	maps.DeleteFunc(r.meshes, func(name string, _ *report) bool {
		_, ok := present[name]
		return !ok
	})
	if err := r.reportClusters(ctx, snapshots); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (r *Reporter) report(ctx context.Context, s *snapshot.Snapshot) error {
	m := r.meshes[s.Mesh]
	if m == nil {
		m = &report{known: map[string]v1alpha1.ControlPlaneStatus{}, gone: map[string]time.Time{}}
		r.meshes[s.Mesh] = m
	}
	m.look(r.controlPlanes.ControlPlanes(s.Mesh), r.clock.Now())
	desired := m.status(s)
	if m.written != nil && equality.Semantic.DeepEqual(m.written, desired) {
		return nil
	}
	first := m.written == nil
	err := r.writer.UpdateMeshStatus(ctx, s.Mesh, func(status *v1alpha1.MeshStatus) error {
		if first {
			m.adopt(status.ControlPlanes, r.clock.Now())
			desired = m.status(s)
		}
		conditions := status.Conditions
		*status = *desired.DeepCopy()
		status.Conditions = conditions
		meta.SetStatusCondition(&status.Conditions, ready(s))
		return nil
	})
	if err != nil {
		return err
	}
	m.written = desired
	return nil
}

// look takes note of who is connected and who no longer is.
func (m *report) look(connected []v1alpha1.ControlPlaneStatus, now time.Time) {
	here := make(map[string]struct{}, len(connected))
	for _, c := range connected {
		here[c.ID] = struct{}{}
		m.known[c.ID] = c
		delete(m.gone, c.ID)
	}
	for id, c := range m.known {
		if _, ok := here[id]; ok {
			continue
		}
		if _, ok := m.gone[id]; !ok {
			c.Connected = false
			m.known[id], m.gone[id] = c, now
		}
	}
	m.forget(now)
}

// forget drops those that have been gone for too long, and the first to go of too
// many.
func (m *report) forget(now time.Time) {
	byAge := slices.SortedFunc(maps.Keys(m.gone), func(a, b string) int {
		return cmp.Or(m.gone[b].Compare(m.gone[a]), cmp.Compare(a, b))
	})
	for i, id := range byAge {
		if i >= maxControlPlanes || now.Sub(m.gone[id]) >= Memory {
			delete(m.known, id)
			delete(m.gone, id)
		}
	}
}

// adopt takes over those whom the run of vmesh before knew.
func (m *report) adopt(stored []v1alpha1.ControlPlaneStatus, now time.Time) {
	for _, c := range stored {
		if _, ok := m.known[c.ID]; !ok {
			c.Connected = false
			m.known[c.ID], m.gone[c.ID] = *c.DeepCopy(), now
		}
	}
	m.forget(now)
}

// status is what is to be written, but for the conditions. Of too many control
// planes it leaves out those that have gone first.
func (m *report) status(s *snapshot.Snapshot) *v1alpha1.MeshStatus {
	told := slices.SortedFunc(maps.Values(m.known), func(a, b v1alpha1.ControlPlaneStatus) int {
		switch {
		case a.Connected == b.Connected:
			return cmp.Compare(a.ID, b.ID)
		case a.Connected:
			return -1
		default:
			return 1
		}
	})
	told = told[:min(len(told), maxControlPlanes)]
	slices.SortFunc(told, func(a, b v1alpha1.ControlPlaneStatus) int { return cmp.Compare(a.ID, b.ID) })
	return &v1alpha1.MeshStatus{
		VirtualClusters: int32(s.VirtualClusters),
		Resources:       int32(s.Resources()),
		HeldBack:        int32(s.HeldBack.Len()),
		Connected:       int32(len(m.known) - len(m.gone)),
		ControlPlanes:   told,
		Quarantined:     s.Quarantined[:min(len(s.Quarantined), maxQuarantined)],
	}
}

func ready(s *snapshot.Snapshot) metav1.Condition {
	c := metav1.Condition{
		Type:    v1alpha1.ConditionReady,
		Status:  metav1.ConditionTrue,
		Reason:  v1alpha1.ReasonServing,
		Message: "The configuration of the mesh is being served",
	}
	if n := len(s.Quarantined); n > 0 {
		c.Message += fmt.Sprintf(", but for %d stored resources that cannot be sent: see quarantined", n)
	}
	return c
}
