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
	// Sharing is what is owned, nil before all is read; the virtual clusters whose status
	// tells of it; and a number that changes when they do.
	Sharing() (index *ownership.Index, told []string, change uint64)
}

// ControlPlanes are those who receive it; an xds.Server knows them.
type ControlPlanes interface {
	ControlPlanes(mesh string) []v1alpha1.ControlPlaneStatus
}

// Servers are the vmesh servers on one etcd; logical.Peers knows them.
type Servers interface {
	// Name is this one's.
	Name() string
	// Shared says that there may be others.
	Shared() bool
	// Registered is closed once the others can know that this one is alive.
	Registered() <-chan struct{}
	// Alive says whether one is.
	Alive(ctx context.Context, name string) (bool, error)
	// Changes counts what makes it necessary to look at what others wrote.
	Changes() uint64
}

const (
	// Interval is the time between two looks, and so the least between two writes of
	// one mesh's status.
	Interval = time.Second
	// Memory is for how long a control plane that has gone is still told of.
	Memory = time.Hour
	// Grace is how long a control plane may take to acknowledge before the mesh counts as not
	// in step.
	Grace = 5 * time.Second
	// reviewEvery is how often a server that is not alone sees to it that what it wrote is
	// still there.
	reviewEvery = time.Minute

	// What is told in detail is bounded, for a status is stored as one value.
	maxControlPlanes = 100
	maxQuarantined   = 100
)

// Reporter keeps the status of all meshes up to date. Of several servers on one etcd each
// answers for the control planes that are connected to it, and for those of servers that
// have died.
type Reporter struct {
	// Servers are those on this etcd; by default there is but this one.
	Servers Servers
	// Tell writes an event about a mesh. It may be nil.
	Tell func(ctx context.Context, mesh, kind, reason, message string)
	// Metrics may be nil.
	Metrics *Metrics
	// Rollouts tells where the releases of a mesh stand; nil for nowhere. It is to be set before Run.
	Rollouts func(mesh string) *v1alpha1.MeshRolloutStatus

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
	written  *own // what was written last; nil if nothing was
	known    map[string]v1alpha1.ControlPlaneStatus
	merged   []v1alpha1.ControlPlaneStatus // of all servers, as of the last write
	changes  uint64                        // of the servers, as of then
	reviewed time.Time
	expires  time.Time // when the first of those that have gone is forgotten; zero for never
	told     *teller
}

// own is what one server has to say.
type own struct {
	status *v1alpha1.MeshStatus // without conditions, and of control planes only those of this server
	late   []string             // who is behind for longer than Grace
}

// NewReporter makes a reporter. Nothing happens before Run is called.
func NewReporter(writer Writer, snapshots Snapshots, controlPlanes ControlPlanes) *Reporter {
	return &Reporter{Servers: alone{}, writer: writer, snapshots: snapshots, controlPlanes: controlPlanes, clock: clock.RealClock{}, meshes: map[string]*report{}, clusters: map[string]*sharing{}}
}

// alone is a server that shares its etcd with nobody.
type alone struct{}

func (alone) Name() string                                { return "vmesh" }
func (alone) Shared() bool                                { return false }
func (alone) Alive(context.Context, string) (bool, error) { return false, nil }
func (alone) Changes() uint64                             { return 0 }
func (alone) Registered() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// Run reports until ctx ends. A status that cannot be written is tried again at the
// next look.
func (r *Reporter) Run(ctx context.Context) {
	// Before, the others would take this server for one that has died.
	select {
	case <-r.Servers.Registered():
	case <-ctx.Done():
		return
	}
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
		if !ok {
			r.Metrics.forget(name)
		}
		return !ok
	})
	if err := r.reportClusters(ctx, snapshots); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (r *Reporter) report(ctx context.Context, s *snapshot.Snapshot) error {
	now := r.clock.Now()
	m := r.meshes[s.Mesh]
	if m == nil {
		m = &report{known: map[string]v1alpha1.ControlPlaneStatus{}, told: newTeller(now)}
		r.meshes[s.Mesh] = m
	}
	m.look(r.controlPlanes.ControlPlanes(s.Mesh), r.Servers.Name(), now)
	r.Metrics.observe(s.Mesh, m.known, now)
	o := m.own(s, now)
	if r.Rollouts != nil {
		o.status.Rollout = r.Rollouts(s.Mesh)
	}
	if !r.due(m, o, now) {
		r.tell(ctx, s.Mesh, m, now)
		return nil
	}
	changes, me := r.Servers.Changes(), r.Servers.Name()
	var merged, before []v1alpha1.ControlPlaneStatus
	err := r.writer.UpdateMeshStatus(ctx, s.Mesh, func(status *v1alpha1.MeshStatus) error {
		before = status.ControlPlanes
		dead, err := r.dead(ctx, status)
		if err != nil {
			return err
		}
		servers := slices.DeleteFunc(slices.Clone(status.Servers), func(server v1alpha1.MeshServerStatus) bool { return dead[server.Name] || server.Name == me })
		merged = merge(o.status.ControlPlanes, status.ControlPlanes, me, dead, now)
		conditions, home, networks := status.Conditions, status.Home, status.Networks
		*status = *o.status.DeepCopy()
		status.Conditions, status.Home, status.Networks = conditions, home, networks // these others tell
		status.Servers = append(status.Servers, servers...)
		slices.SortFunc(status.Servers, func(a, b v1alpha1.MeshServerStatus) int { return cmp.Compare(a.Name, b.Name) })
		for _, server := range servers {
			status.Connected += server.Connected
			status.InStep += server.InStep
			status.Proxies += server.Proxies
			status.SyncedProxies += server.SyncedProxies
		}
		status.ControlPlanes = merged
		meta.SetStatusCondition(&status.Conditions, ready(s))
		meta.SetStatusCondition(&status.Conditions, inStep(status, now))
		return nil
	})
	if err != nil {
		return err
	}
	m.told.heardOf(before, me, m.known, now)
	m.written, m.merged, m.changes, m.reviewed, m.expires = o, merged, changes, now, expiry(merged)
	r.tell(ctx, s.Mesh, m, now)
	return nil
}

// due says whether there is something to be written, or to be looked at.
func (r *Reporter) due(m *report, o *own, now time.Time) bool {
	switch {
	case m.written == nil || !slices.Equal(m.written.late, o.late) || !equality.Semantic.DeepEqual(m.written.status, o.status):
		return true
	case !m.expires.IsZero() && !now.Before(m.expires):
		return true
	case m.told.doubts(m.merged, m.reviewed, now):
		return true
	}
	return r.Servers.Shared() && (m.changes != r.Servers.Changes() || now.Sub(m.reviewed) >= reviewEvery)
}

// dead are the servers that a status tells of and that are not alive. It is an error not to
// know: then nothing is taken from them.
func (r *Reporter) dead(ctx context.Context, status *v1alpha1.MeshStatus) (map[string]bool, error) {
	dead := map[string]bool{}
	ask := func(name string) error {
		if _, asked := dead[name]; asked || name == r.Servers.Name() {
			return nil
		}
		alive, err := r.Servers.Alive(ctx, name)
		dead[name] = !alive
		return err
	}
	for i := range status.ControlPlanes {
		if err := ask(status.ControlPlanes[i].Server); err != nil {
			return nil, err
		}
	}
	for i := range status.Servers {
		if err := ask(status.Servers[i].Name); err != nil {
			return nil, err
		}
	}
	return dead, nil
}

// look takes note of who is connected and who no longer is.
func (m *report) look(connected []v1alpha1.ControlPlaneStatus, server string, now time.Time) {
	here := make(map[string]struct{}, len(connected))
	for _, c := range connected {
		c.Server = server
		here[c.ID] = struct{}{}
		m.known[c.ID] = c
	}
	for id, c := range m.known {
		if _, ok := here[id]; !ok && c.Connected {
			m.known[id] = gone(c, now)
		}
	}
	maps.DeleteFunc(m.known, func(_ string, c v1alpha1.ControlPlaneStatus) bool { return forgotten(c, now) })
}

// gone is a control plane once it has gone.
func gone(c v1alpha1.ControlPlaneStatus, now time.Time) v1alpha1.ControlPlaneStatus {
	c.Connected, c.Proxies = false, nil
	at := metav1.NewTime(now.Truncate(time.Second))
	c.DisconnectedAt = &at
	return c
}

func forgotten(c v1alpha1.ControlPlaneStatus, now time.Time) bool {
	return !c.Connected && c.DisconnectedAt != nil && now.Sub(c.DisconnectedAt.Time) >= Memory
}

// expiry is when the first of those that have gone is forgotten.
func expiry(merged []v1alpha1.ControlPlaneStatus) time.Time {
	var first time.Time
	for _, c := range merged {
		if !c.Connected && (first.IsZero() || c.DisconnectedAt.Add(Memory).Before(first)) {
			first = c.DisconnectedAt.Add(Memory)
		}
	}
	return first
}

// own is what this server has to say of a snapshot's mesh.
func (m *report) own(s *snapshot.Snapshot, now time.Time) *own {
	o := &own{status: &v1alpha1.MeshStatus{
		VirtualClusters: int32(s.VirtualClusters),
		Resources:       int32(s.Resources()),
		Version:         s.Version,
		HeldBack:        int32(s.HeldBack.Len()),
		Quarantined:     s.Quarantined[:min(len(s.Quarantined), maxQuarantined)],
	}}
	status := o.status
	status.ControlPlanes = slices.Collect(maps.Values(m.known))
	sortByID(status.ControlPlanes)
	for i := range status.ControlPlanes {
		c := &status.ControlPlanes[i]
		if !c.Connected {
			continue
		}
		status.Connected++
		if c.Acknowledged() {
			status.InStep++
		} else if late(c, now) {
			o.late = append(o.late, c.ID)
		}
		if c.Proxies != nil {
			status.Proxies += c.Proxies.Connected
			status.SyncedProxies += c.Proxies.Synced
		}
	}
	if status.Connected > 0 {
		status.Servers = []v1alpha1.MeshServerStatus{{
			Name: status.ControlPlanes[0].Server, Connected: status.Connected, InStep: status.InStep, Proxies: status.Proxies, SyncedProxies: status.SyncedProxies,
		}}
	}
	return o
}

// late says whether a control plane is behind, or has been asking for nothing, for longer
// than Grace.
func late(c *v1alpha1.ControlPlaneStatus, now time.Time) bool {
	since := &c.ConnectedSince
	if c.BehindSince != nil {
		since = c.BehindSince
	}
	return c.Connected && !c.Acknowledged() && now.Sub(since.Time) >= Grace
}

func sortByID(all []v1alpha1.ControlPlaneStatus) {
	slices.SortFunc(all, func(a, b v1alpha1.ControlPlaneStatus) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Server, b.Server))
	})
}

// merge puts what this server has to say in the place of what it said before. What others
// said stays, but for what the servers that have died said of who is connected. One that is
// connected is not also told of as one that has gone. Of too many, those that have gone are
// left out first, the longest gone before.
func merge(mine, stored []v1alpha1.ControlPlaneStatus, server string, dead map[string]bool, now time.Time) []v1alpha1.ControlPlaneStatus {
	all := slices.Clone(mine)
	for _, c := range stored {
		if c.Server == server {
			continue
		}
		if c.Connected && dead[c.Server] || !c.Connected && c.DisconnectedAt == nil {
			c = gone(c, now)
		}
		all = append(all, *c.DeepCopy())
	}
	newest := map[string]v1alpha1.ControlPlaneStatus{} // by id, of those that have gone
	connected := map[string]struct{}{}
	for _, c := range all {
		if c.Connected {
			connected[c.ID] = struct{}{}
		} else if had, ok := newest[c.ID]; !ok || had.DisconnectedAt.Before(c.DisconnectedAt) {
			newest[c.ID] = c
		}
	}
	all = slices.DeleteFunc(all, func(c v1alpha1.ControlPlaneStatus) bool {
		_, here := connected[c.ID]
		return !c.Connected && (here || newest[c.ID].Server != c.Server || forgotten(c, now))
	})
	if len(all) > maxControlPlanes {
		slices.SortFunc(all, func(a, b v1alpha1.ControlPlaneStatus) int {
			switch {
			case a.Connected != b.Connected:
				return map[bool]int{true: -1, false: 1}[a.Connected]
			case a.Connected:
				return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Server, b.Server))
			}
			return cmp.Or(b.DisconnectedAt.Compare(a.DisconnectedAt.Time), cmp.Compare(a.ID, b.ID))
		})
		all = all[:maxControlPlanes]
	}
	sortByID(all)
	return all
}

// inStep tells whether all control planes have acknowledged what they were sent.
func inStep(status *v1alpha1.MeshStatus, now time.Time) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionInStep, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonAcknowledged,
		Message: "All connected control planes have acknowledged what they were sent"}
	var behind []string
	for i := range status.ControlPlanes {
		p := &status.ControlPlanes[i]
		if !late(p, now) {
			continue
		}
		if len(behind) == 0 {
			c.Status, c.Reason, c.Message = metav1.ConditionFalse, v1alpha1.ReasonBehind, p.Name()+" has acknowledged nothing yet"
			if p.BehindSince != nil {
				c.Message = fmt.Sprintf("%s has not acknowledged what it was sent at %s", p.Name(), p.BehindSince.UTC().Format(time.RFC3339))
			}
			if k := p.Refused(); k != nil {
				c.Reason, c.Message = v1alpha1.ReasonRefused, fmt.Sprintf("%s has refused %s: %s", p.Name(), k.Kind(), k.Error)
			}
		}
		behind = append(behind, p.ID)
	}
	switch {
	case len(behind) > 1:
		c.Message += fmt.Sprintf(", and %d more are behind", len(behind)-1)
	case status.Connected == 0:
		c.Status, c.Reason, c.Message = metav1.ConditionUnknown, v1alpha1.ReasonNoControlPlanes, "No control plane is connected"
	}
	return c
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
