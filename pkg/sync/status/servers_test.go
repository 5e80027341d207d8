package status

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

// fleet is several servers on one etcd.
type fleet struct {
	clock   *clocktesting.FakeClock
	status  v1alpha1.MeshStatus
	writes  int
	alive   map[string]bool
	changes uint64
	err     error // of asking who is alive
	events  []string
}

// peer is one of them.
type peer struct {
	*fleet
	name      string
	reporter  *Reporter
	connected []v1alpha1.ControlPlaneStatus
}

func newFleet() *fleet {
	return &fleet{clock: clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0)), alive: map[string]bool{}}
}

func (f *fleet) start(name string) *peer {
	p := &peer{fleet: f, name: name}
	p.reporter = NewReporter(p, p, p)
	p.reporter.clock, p.reporter.Servers = f.clock, p
	p.reporter.Tell = func(_ context.Context, mesh, kind, reason, message string) {
		f.events = append(f.events, fmt.Sprintf("%s %s %s %s", mesh, kind, reason, message))
	}
	f.alive[name] = true
	return p
}

func (p *peer) Name() string                { return p.name }
func (p *peer) Shared() bool                { return true }
func (p *peer) Registered() <-chan struct{} { return alone{}.Registered() }
func (p *peer) Changes() uint64             { return p.changes }
func (p *peer) Alive(_ context.Context, name string) (bool, error) {
	return p.alive[name], p.err
}
func (p *peer) Snapshots() []*snapshot.Snapshot {
	return []*snapshot.Snapshot{{Mesh: "m", VirtualClusters: 2}}
}
func (p *peer) ControlPlanes(string) []v1alpha1.ControlPlaneStatus {
	return (&v1alpha1.MeshStatus{ControlPlanes: p.connected}).DeepCopy().ControlPlanes
}
func (p *peer) UpdateMeshStatus(_ context.Context, _ string, mutate func(*v1alpha1.MeshStatus) error) error {
	next := *p.fleet.status.DeepCopy()
	if err := mutate(&next); err != nil {
		return err
	}
	if !equality.Semantic.DeepEqual(next, p.fleet.status) {
		p.writes++
		p.fleet.status = next
	}
	return nil
}

func (p *peer) Sharing() (*ownership.Index, []string, uint64) { return nil, nil, 0 }
func (p *peer) UpdateVirtualClusterStatus(context.Context, string, func(*v1alpha1.VirtualClusterStatus) error) error {
	return errors.New("no virtual cluster has anything to tell")
}

func (p *peer) has(ids ...string) {
	p.connected = nil
	for _, id := range ids {
		c := controlPlane(id)
		c.ConnectedSince = metav1.NewTime(p.clock.Now().Truncate(time.Second))
		c.Kinds = []v1alpha1.ControlPlaneKindStatus{{TypeURL: "networking.istio.io/v1/VirtualService", SentVersion: "1", AckedVersion: "1"}}
		p.connected = append(p.connected, c)
	}
}

func (p *peer) look(t *testing.T) {
	t.Helper()
	if err := p.reporter.reportAll(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// planes are the control planes as +id@server.
func (f *fleet) planes() string {
	var out []string
	for _, c := range f.status.ControlPlanes {
		out = append(out, map[bool]string{true: "+", false: "-"}[c.Connected]+c.ID+"@"+c.Server)
	}
	return strings.Join(out, " ")
}

func (f *fleet) expect(t *testing.T, step, planes string, connected int32) {
	t.Helper()
	if got := f.planes(); got != planes || f.status.Connected != connected || f.status.InStep != connected {
		t.Errorf("%s: %q, %d connected and %d in step, want %q, %d", step, got, f.status.Connected, f.status.InStep, planes, connected)
	}
}

func TestEachServerAnswersForItsOwnControlPlanes(t *testing.T) {
	f := newFleet()
	a, b := f.start("a"), f.start("b")
	a.has("one", "two")
	b.has("three")
	a.look(t)
	b.look(t)
	f.expect(t, "both", "+one@a +three@b +two@a", 3)
	if len(f.status.Servers) != 2 || f.status.Servers[0].Connected != 2 || f.status.Servers[1].Name != "b" {
		t.Errorf("servers %+v", f.status.Servers)
	}
	writes := f.writes
	for range 200 {
		f.clock.Step(time.Second)
		a.look(t)
		b.look(t)
	}
	if f.writes != writes {
		t.Errorf("%d writes although nothing has changed", f.writes-writes)
	}
	a.has("one")
	a.look(t)
	f.expect(t, "one of them goes", "+one@a +three@b -two@a", 2)
	b.has("three", "two")
	b.look(t)
	f.expect(t, "and to the other server", "+one@a +three@b +two@b", 3)
	a.look(t)
	f.expect(t, "which the first one leaves", "+one@a +three@b +two@b", 3)
	// One may be connected to both, as when it has two sources.
	a.has("one", "two")
	a.look(t)
	f.expect(t, "to both", "+one@a +three@b +two@a +two@b", 4)
}

func TestWhatADeadServerSaidIsTakenBack(t *testing.T) {
	f := newFleet()
	a, b := f.start("a"), f.start("b")
	a.has("one", "two")
	b.has("three")
	a.look(t)
	b.look(t)
	f.alive["a"] = false
	f.clock.Step(time.Second)
	b.look(t)
	f.expect(t, "not noticed yet", "+one@a +three@b +two@a", 3)
	f.changes++
	// Who cannot be asked takes nothing back.
	f.err = errors.New("etcd is away")
	if err := b.reporter.reportAll(t.Context()); !errors.Is(err, f.err) {
		t.Errorf("error %v", err)
	}
	f.expect(t, "etcd is away", "+one@a +three@b +two@a", 3)
	f.err = nil
	b.look(t)
	f.expect(t, "noticed", "-one@a +three@b -two@a", 1)
	if at := f.status.ControlPlanes[0].DisconnectedAt; at == nil || !at.Time.Equal(f.clock.Now()) || len(f.status.Servers) != 1 {
		t.Errorf("gone at %v, servers %+v", at, f.status.Servers)
	}
	b.has("three", "one")
	b.look(t)
	f.expect(t, "one comes over", "+one@b +three@b -two@a", 2)
	f.clock.Step(Memory - time.Second)
	b.look(t)
	f.expect(t, "not yet an hour", "+one@b +three@b -two@a", 2)
	f.clock.Step(time.Second)
	b.look(t)
	f.expect(t, "an hour", "+one@b +three@b", 2)
}

func TestAServerThatWasTakenForDeadSaysAgainWhatItSaid(t *testing.T) {
	f := newFleet()
	a, b := f.start("a"), f.start("b")
	a.has("one")
	b.has("two")
	a.look(t)
	b.look(t)
	f.alive["a"] = false
	f.changes++
	b.look(t)
	f.expect(t, "taken for dead", "-one@a +two@b", 1)
	f.alive["a"] = true
	f.changes++
	a.look(t)
	f.expect(t, "and is not", "+one@a +two@b", 2)
	// Even when it has not noticed that it was.
	f.status.ControlPlanes = f.status.ControlPlanes[1:]
	f.clock.Step(reviewEvery)
	a.look(t)
	f.expect(t, "after a minute", "+one@a +two@b", 2)
}

func TestAMeshIsInStepWhenAllHaveAcknowledged(t *testing.T) {
	f := newFleet()
	a, b := f.start("a"), f.start("b")
	condition := func(step string, status metav1.ConditionStatus, reason string, parts ...string) {
		t.Helper()
		a.look(t)
		b.look(t)
		c := meta.FindStatusCondition(f.status.Conditions, v1alpha1.ConditionInStep)
		if c == nil || c.Status != status || c.Reason != reason {
			t.Fatalf("%s: %+v", step, c)
		}
		for _, part := range parts {
			if !strings.Contains(c.Message, part) {
				t.Errorf("%s: the message %q lacks %q", step, c.Message, part)
			}
		}
	}
	condition("nobody", metav1.ConditionUnknown, "NoControlPlanes")
	a.has("sidecar~10.0.0.1~istiod-0.istio-system~istio-system.svc")
	b.has("two")
	condition("all", metav1.ConditionTrue, "Acknowledged")
	since := metav1.NewTime(f.clock.Now())
	a.connected[0].BehindSince = &since
	f.clock.Step(Grace - time.Second)
	condition("a moment", metav1.ConditionTrue, "Acknowledged")
	if f.status.InStep != 1 {
		t.Errorf("%d in step", f.status.InStep)
	}
	f.clock.Step(time.Second)
	condition("five seconds", metav1.ConditionFalse, "Behind", "istiod-0.istio-system has not acknowledged", since.UTC().Format(time.RFC3339))
	a.connected[0].Kinds[0].Error = "it is no good"
	condition("refused", metav1.ConditionFalse, "Refused", "istiod-0.istio-system has refused VirtualService: it is no good")
	b.connected[0].BehindSince = &since
	condition("both", metav1.ConditionFalse, "Refused", "and 1 more are behind")
	a.has("one")
	b.has("two")
	condition("all again", metav1.ConditionTrue, "Acknowledged")
}

func TestWhatHappensToControlPlanesIsTold(t *testing.T) {
	f := newFleet()
	f.status.ControlPlanes = []v1alpha1.ControlPlaneStatus{{ID: "old", Server: "before", Connected: true}}
	a, b := f.start("a"), f.start("b")
	told := func(step string, want ...string) {
		t.Helper()
		a.look(t)
		b.look(t)
		if !slices.Equal(f.events, want) {
			t.Errorf("%s: told %q, want %q", step, f.events, want)
		}
		f.events = nil
		f.clock.Step(time.Minute) // for the next event to be told
	}
	told("nothing")
	f.clock.Step(-time.Minute)
	a.has("old")
	told("the run before knew it")
	a.has("old", "one", "two")
	told("two come", "m Normal ControlPlaneConnected 2 control planes are connected: one, two")
	f.clock.Step(-time.Minute)
	a.has("old")
	told("they go, which may pass")
	a.has("old", "two")
	b.has("one")
	told("late they come back, one to another server", "m Warning ControlPlaneGone Control plane one is no longer connected", "m Normal ControlPlaneConnected Control plane one is connected")
}

func TestAControlPlaneThatGoesToAnotherServerIsNotToldOf(t *testing.T) {
	f := newFleet()
	a, b := f.start("a"), f.start("b")
	a.has("one")
	look := func(after time.Duration) {
		f.clock.Step(after)
		a.look(t)
		b.look(t)
	}
	look(0)
	f.events = nil
	a.has()
	look(time.Second)
	b.has("one")
	look(5 * time.Second)
	look(20 * time.Second)
	look(20 * time.Second)
	if len(f.events) != 0 {
		t.Errorf("told %q", f.events)
	}
	b.has()
	look(time.Second)
	look(9 * time.Second)
	if len(f.events) != 0 {
		t.Errorf("told %q", f.events)
	}
	look(time.Second)
	if want := []string{"m Warning ControlPlaneGone Control plane one is no longer connected"}; !slices.Equal(f.events, want) {
		t.Errorf("told %q, want %q", f.events, want)
	}
	f.events = nil
	a.has("one")
	look(time.Second)
	look(time.Minute)
	if want := []string{"m Normal ControlPlaneConnected Control plane one is connected"}; !slices.Equal(f.events, want) {
		t.Errorf("told %q, want %q", f.events, want)
	}
}

func TestAControlPlaneThatIsBehindOrRefusesIsTold(t *testing.T) {
	f := newFleet()
	a := f.start("a")
	a.has("one")
	a.look(t)
	f.events = nil
	step := func(name string, after time.Duration, want ...string) {
		t.Helper()
		f.clock.Step(after)
		a.look(t)
		if !slices.Equal(f.events, want) {
			t.Errorf("%s: told %q, want %q", name, f.events, want)
		}
		f.events = nil
	}
	since := metav1.NewTime(f.clock.Now())
	a.connected[0].BehindSince = &since
	step("not long", 29*time.Second)
	step("long", time.Second, "m Warning ControlPlaneBehind Control plane one has acknowledged nothing for 30 seconds")
	step("still", time.Minute)
	a.connected[0].BehindSince = nil
	step("no longer", time.Second, "m Normal ControlPlaneCaughtUp Control plane one has acknowledged everything again")
	a.connected[0].BehindSince, a.connected[0].Kinds[0].Error = &since, "no good"
	step("refused", time.Second, "m Warning ControlPlaneRefused Control plane one has refused VirtualService: no good")
	step("refused still", time.Minute)
	a.connected[0].Kinds[0].Error = "worse"
	step("refused again", time.Second, "m Warning ControlPlaneRefused Control plane one has refused VirtualService: worse")
}

func TestEventsAboutControlPlanesAreNoStorm(t *testing.T) {
	f := newFleet()
	a := f.start("a")
	a.look(t)
	var ids []string
	for i := range 600 {
		ids = append(ids, fmt.Sprintf("plane-%03d", i))
		a.has(ids...)
		f.clock.Step(time.Second)
		a.look(t)
	}
	if most := tellBurst + 600/20 + 1; len(f.events) > most {
		t.Errorf("%d events, of at most %d", len(f.events), most)
	}
	if last := f.events[len(f.events)-1]; !strings.Contains(last, "control planes are connected: plane-") || !strings.Contains(last, " more") {
		t.Errorf("the last is %q", last)
	}
	if n := len(f.status.ControlPlanes); n != maxControlPlanes || f.status.Connected != 600 {
		t.Errorf("%d are listed, %d connected", n, f.status.Connected)
	}
}
