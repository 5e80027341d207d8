package status

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
	"github.com/vmesh-io/vmesh/test/leak"
)

// world is all that a reporter sees, and what it writes.
type world struct {
	snapshots []*snapshot.Snapshot
	connected []v1alpha1.ControlPlaneStatus
	status    v1alpha1.MeshStatus
	writes    int
	err       error

	index         *ownership.Index
	told          []string
	change        uint64
	clusters      map[string]*v1alpha1.VirtualClusterStatus
	clusterWrites []string
}

func (w *world) Sharing() (*ownership.Index, []string, uint64) { return w.index, w.told, w.change }

func (w *world) UpdateVirtualClusterStatus(_ context.Context, name string, mutate func(*v1alpha1.VirtualClusterStatus) error) error {
	if w.err != nil {
		return w.err
	}
	w.clusterWrites = append(w.clusterWrites, name)
	return mutate(w.clusters[name])
}

func (w *world) Snapshots() []*snapshot.Snapshot { return w.snapshots }

func (w *world) ControlPlanes(mesh string) []v1alpha1.ControlPlaneStatus {
	if mesh != "m" {
		return nil
	}
	return slices.Clone(w.connected)
}

func (w *world) UpdateMeshStatus(_ context.Context, name string, mutate func(*v1alpha1.MeshStatus) error) error {
	if name != "m" {
		return fmt.Errorf("asked to write mesh %q", name)
	}
	if w.err != nil {
		return w.err
	}
	w.writes++
	return mutate(&w.status)
}

func newReporter(w *world) (*Reporter, *clocktesting.FakeClock) {
	r := NewReporter(w, w, w)
	clock := clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0))
	r.clock = clock
	return r, clock
}

func controlPlane(id string) v1alpha1.ControlPlaneStatus {
	return v1alpha1.ControlPlaneStatus{ID: id, Connected: true, ConnectedSince: metav1.Unix(1, 0)}
}

func (w *world) controlPlanes() string {
	out := ""
	for _, c := range w.status.ControlPlanes {
		state := "-"
		if c.Connected {
			state = "+"
		}
		out += state + c.ID
	}
	return out
}

func look(t *testing.T, r *Reporter) {
	t.Helper()
	if err := r.reportAll(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestStatusIsWrittenWhenItChanges(t *testing.T) {
	w := &world{snapshots: []*snapshot.Snapshot{{Mesh: "m", VirtualClusters: 3, Lists: []*snapshot.List{snapshot.Empty}}}}
	w.status.Conditions = []metav1.Condition{{Type: "Other", Status: metav1.ConditionTrue}}
	w.status.Home, w.status.Networks = &v1alpha1.MeshHomeStatus{Namespace: "x"}, []v1alpha1.MeshNetworkStatus{{Name: "y"}}
	r, clock := newReporter(w)
	look(t, r)
	look(t, r)
	if w.writes != 1 || w.status.VirtualClusters != 3 || w.status.Connected != 0 {
		t.Errorf("%d writes, status %+v", w.writes, w.status)
	}
	ready := meta.FindStatusCondition(w.status.Conditions, v1alpha1.ConditionReady)
	if ready == nil || ready.Status != metav1.ConditionTrue || ready.Reason != v1alpha1.ReasonServing {
		t.Errorf("condition %+v", ready)
	}
	if meta.FindStatusCondition(w.status.Conditions, "Other") == nil {
		t.Error("a condition of somebody else is gone")
	}
	if w.status.Home == nil || len(w.status.Networks) != 1 {
		t.Error("what somebody else tells is gone")
	}
	since := ready.LastTransitionTime
	clock.Step(time.Minute)
	w.snapshots = []*snapshot.Snapshot{{Mesh: "m", VirtualClusters: 4, Quarantined: make([]v1alpha1.QuarantinedResource, 150)}}
	look(t, r)
	ready = meta.FindStatusCondition(w.status.Conditions, v1alpha1.ConditionReady)
	if w.writes != 2 || w.status.VirtualClusters != 4 || len(w.status.Quarantined) != 100 || ready.LastTransitionTime != since {
		t.Errorf("%d writes, status %+v", w.writes, w.status)
	}
}

func TestAFailedWriteIsTriedAgain(t *testing.T) {
	w := &world{snapshots: []*snapshot.Snapshot{{Mesh: "m", VirtualClusters: 1}}, err: errors.New("no")}
	w.status.ControlPlanes = []v1alpha1.ControlPlaneStatus{controlPlane("a")}
	r, _ := newReporter(w)
	if err := r.reportAll(t.Context()); !errors.Is(err, w.err) {
		t.Errorf("error %v", err)
	}
	w.err = nil
	look(t, r)
	if w.writes != 1 || w.status.VirtualClusters != 1 || w.controlPlanes() != "-a" {
		t.Errorf("%d writes, status %+v", w.writes, w.status)
	}
}

func TestControlPlanesThatGoAreRememberedForAnHour(t *testing.T) {
	w := &world{snapshots: []*snapshot.Snapshot{{Mesh: "m"}}}
	r, clock := newReporter(w)
	steps := []struct {
		name      string
		after     time.Duration
		connected []string
		want      string
	}{
		{"two come", 0, []string{"a", "b"}, "+a+b"},
		{"one goes", time.Minute, []string{"b"}, "-a+b"},
		{"it comes back", 50 * time.Minute, []string{"a", "b"}, "+a+b"},
		{"it goes again", time.Minute, []string{"b"}, "-a+b"},
		{"not yet an hour", 59 * time.Minute, []string{"b"}, "-a+b"},
		{"an hour", time.Minute, []string{"b"}, "+b"},
	}
	for _, step := range steps {
		clock.Step(step.after)
		w.connected = nil
		for _, id := range step.connected {
			w.connected = append(w.connected, controlPlane(id))
		}
		look(t, r)
		if got := w.controlPlanes(); got != step.want || int(w.status.Connected) != len(step.connected) {
			t.Errorf("%s: %s, %d connected, want %s", step.name, got, w.status.Connected, step.want)
		}
	}
}

func TestTheRunBeforeIsRemembered(t *testing.T) {
	w := &world{snapshots: []*snapshot.Snapshot{{Mesh: "m"}}, connected: []v1alpha1.ControlPlaneStatus{controlPlane("b")}}
	w.status.ControlPlanes = []v1alpha1.ControlPlaneStatus{controlPlane("a"), controlPlane("b")}
	r, clock := newReporter(w)
	look(t, r)
	if got := w.controlPlanes(); got != "-a+b" {
		t.Errorf("control planes %s", got)
	}
	clock.Step(Memory)
	look(t, r)
	if got := w.controlPlanes(); got != "+b" {
		t.Errorf("control planes %s", got)
	}
}

func TestOnlySoManyControlPlanesAreTold(t *testing.T) {
	w := &world{snapshots: []*snapshot.Snapshot{{Mesh: "m"}}}
	r, clock := newReporter(w)
	for i := range 3 * maxControlPlanes {
		w.connected = []v1alpha1.ControlPlaneStatus{controlPlane(fmt.Sprintf("%03d", i))}
		clock.Step(time.Second)
		look(t, r)
	}
	last := w.status.ControlPlanes[maxControlPlanes-1]
	if len(w.status.ControlPlanes) != maxControlPlanes || !last.Connected || w.status.Connected != 1 {
		t.Errorf("%d control planes are told of, the last is %v", len(w.status.ControlPlanes), last)
	}
	w.connected = nil
	for i := range 2 * maxControlPlanes {
		w.connected = append(w.connected, controlPlane(fmt.Sprintf("c%03d", i)))
	}
	look(t, r)
	last = w.status.ControlPlanes[maxControlPlanes-1]
	if len(w.status.ControlPlanes) != maxControlPlanes || !w.status.ControlPlanes[0].Connected || last.ID != "c099" || w.status.Connected != 2*maxControlPlanes {
		t.Errorf("%d control planes are told of, the last is %v", len(w.status.ControlPlanes), last)
	}
}

func TestRunWritesAtMostOnceASecond(t *testing.T) {
	defer leak.VerifyNone(t, goleak.IgnoreCurrent())
	w := &world{snapshots: []*snapshot.Snapshot{{Mesh: "m"}}}
	r, clock := newReporter(w)
	written := make(chan struct{})
	r.writer = writerFunc(func() { written <- struct{}{} })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	for deadline := time.Now().Add(time.Minute); !clock.HasWaiters(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("Run does not wait")
		}
	}
	select {
	case <-written:
		t.Error("written before a second has passed")
	default:
	}
	clock.Step(Interval)
	<-written
	cancel()
	<-done
}

type writerFunc func()

func (f writerFunc) UpdateVirtualClusterStatus(context.Context, string, func(*v1alpha1.VirtualClusterStatus) error) error {
	return nil
}

func (f writerFunc) UpdateMeshStatus(_ context.Context, _ string, mutate func(*v1alpha1.MeshStatus) error) error {
	f()
	return mutate(&v1alpha1.MeshStatus{})
}
