package distribution

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
	"github.com/vmesh-io/vmesh/test/leak"
)

func TestMain(m *testing.M) { leak.VerifyTestMain(m) }

const (
	pendingText = "Unknown Pending: Waiting for the control planes of mesh default"
	allTwo      = "True Distributed: Acknowledged by 2 of 2 control planes"
)

func TestAChangeIsDistributedOnceAllHaveIt(t *testing.T) {
	w := newWorld(t, Options{})
	w.start()
	w.connect("a", "")
	w.connect("b", "")
	w.ack("a", "b")
	w.look()
	w.write("shop/x", "1", nil)
	w.says("shop/x", pendingText)
	w.look()
	w.says("shop/x", pendingText)
	w.ack("a")
	w.look()
	w.says("shop/x", pendingText)
	w.ack("b")
	w.look()
	w.says("shop/x", allTwo)
	if w.writes != 1 || w.pending() != 0 {
		t.Errorf("%d writes, %d still pending", w.writes, w.pending())
	}
	w.look()
	w.connect("c", "")
	w.look()
	w.disconnect("a")
	w.look()
	w.clock.Step(time.Hour)
	w.look()
	if w.writes != 1 {
		t.Errorf("%d writes when control planes came and went", w.writes)
	}
}

// Labels and annotations have no generation, but control planes read them.
func TestWhateverControlPlanesReadCounts(t *testing.T) {
	w := newWorld(t, Options{})
	w.start()
	w.connect("a", "")
	w.write("shop/x", "1", nil)
	w.ack("a")
	w.look()
	w.write("shop/x", "1", map[string]string{"team": "blue"})
	w.says("shop/x", pendingText)
	w.look()
	w.says("shop/x", pendingText)
	w.ack("a")
	w.look()
	w.says("shop/x", "True Distributed: Acknowledged by 1 of 1 control plane")
	before := w.stored["shop/x"]
	w.write("shop/x", "1", map[string]string{"team": "blue"})
	if w.says("shop/x", "True Distributed: Acknowledged by 1 of 1 control plane"); w.pending() != 0 {
		t.Errorf("pending after a write that changed nothing; before %s", before.Body())
	}
}

func TestTheConditionSaysWhatItWaitsFor(t *testing.T) {
	const since = " since 03:04:05"
	for _, c := range []struct {
		name   string
		arrive func(w *world)
		want   string
	}{
		{"behind", func(w *world) {
			w.planes["b"].receiver.Unanswered = w.clock.Now()
			w.clock.Step(Patience)
		}, "False ControlPlaneBehind: Acknowledged by 1 of 2 control planes; behind: b" + since},
		{"not yet behind", func(w *world) {
			w.clock.Step(Patience - time.Millisecond)
		}, pendingText},
		{"gone", func(w *world) {
			w.disconnect("b")
			w.look()
			w.clock.Step(Patience)
		}, "False ControlPlaneGone: Acknowledged by 1 of 2 control planes; no longer connected: b" + since},
		{"gone for good", func(w *world) {
			w.disconnect("b")
			w.look()
			w.clock.Step(Grace)
		}, "True Distributed: Acknowledged by 1 of 1 control plane"},
		{"refused", func(w *world) {
			w.planes["b"].receiver.Refusal = "no such thing"
		}, "False Refused: Acknowledged by 1 of 2 control planes; refused by b: no such thing"},
		{"none left", func(w *world) {
			w.disconnect("a")
			w.disconnect("b")
			w.look()
			w.clock.Step(Grace)
		}, "False NoControlPlanes: Mesh default has no control planes"},
		{"of another revision", func(w *world) {
			w.planes["a"].receiver.Revision, w.planes["b"].receiver.Revision = "blue", "blue"
			w.write("shop/x", "1", map[string]string{"istio.io/rev": "green"})
		}, "False NotSelected: Mesh default has control planes, but it is for none of them: it is labelled istio.io/rev=green"},
		{"of one's revision", func(w *world) {
			w.planes["a"].receiver.Revision, w.planes["b"].receiver.Revision = "green", "blue"
			w.write("shop/x", "1", map[string]string{"istio.io/rev": "green"})
			w.ack("a")
		}, "True Distributed: Acknowledged by 1 of 1 control plane"},
		{"of nobody's namespace", func(w *world) {
			w.claim("elsewhere")
		}, "False NotInMesh: No mesh receives it: namespace shop is none of those that virtual cluster c owns in a mesh"},
		{"not to be rendered", func(w *world) {
			w.write("shop/x", "broken", nil)
		}, "False CannotBeSent: It cannot be sent to control planes: it is broken"},
		{"not released to all", func(w *world) {
			w.planes["b"].stage, w.planes["b"].due = "late", snapshot.Empty
			w.clock.Step(Patience)
		}, "False RollingOut: Acknowledged by 1 of 2 control planes; not yet released to late: see vmesh rollout status"},
		{"filtered for one", func(w *world) {
			w.planes["b"].wants = func(snapshot.Entry) bool { return false }
		}, "True Distributed: Acknowledged by 1 of 1 control plane"},
		{"asking for something else", func(w *world) {
			w.planes["b"].receiver.Asked = false
			w.clock.Step(Patience)
		}, "True Distributed: Acknowledged by 1 of 1 control plane"},
		{"about to ask", func(w *world) {
			w.planes["b"].receiver.Asked = false
		}, pendingText},
		{"come back", func(w *world) {
			w.disconnect("b")
			w.look()
			w.clock.Step(Patience)
			w.look()
			w.connect("b", "")
			w.look()
			w.ack("b")
		}, allTwo},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, Options{})
			w.start()
			w.connect("a", "")
			w.connect("b", "")
			w.look()
			w.write("shop/x", "1", nil)
			w.ack("a")
			c.arrive(w)
			w.look()
			w.says("shop/x", c.want)
			before := w.writes
			w.look()
			w.clock.Step(2 * retryInterval)
			if w.pending() > 0 && c.want != pendingText {
				w.look()
			}
			if w.writes != before {
				t.Errorf("it was written again, without need")
			}
		})
	}
}

func TestWhatAMeshWithoutControlPlanesHoldsSaysSoAtOnce(t *testing.T) {
	w := newWorld(t, Options{})
	w.start()
	w.connect("a", "")
	w.look()
	w.disconnect("a")
	w.look()
	w.clock.Step(Grace)
	w.tracker.Connected("default")
	w.look()
	w.write("shop/x", "1", nil)
	w.says("shop/x", "False NoControlPlanes: Mesh default has no control planes")
	w.look()
	if w.writes != 0 {
		t.Errorf("%d writes", w.writes)
	}
}

func TestAMeshThatNeverHadAControlPlaneSaysSoAtOnce(t *testing.T) {
	w := newWorld(t, Options{})
	w.start()
	w.write("shop/x", "1", nil)
	w.says("shop/x", "False NoControlPlanes: Mesh default has no control planes")
	w.look()
	w.write("shop/x", "2", nil)
	w.says("shop/x", "False NoControlPlanes: Mesh default has no control planes")
	w.look()
	if w.writes != 0 {
		t.Errorf("%d writes", w.writes)
	}
}

func TestARestartWritesNothingForWhatIsDistributed(t *testing.T) {
	var objects []*object.Object
	for i := range 100 {
		o := newObject(t, fmt.Sprintf("shop/x%d", i), "1")
		o.Generation = 3
		c := condition(metav1.ConditionTrue, ReasonDistributed, "Acknowledged by 2 of 2 control planes", 3)
		switch i {
		case 7:
			c = condition(metav1.ConditionUnknown, ReasonPending, "", 3)
		case 8: // whose rival went before that could be told
			c = condition(metav1.ConditionTrue, ReasonInPart, "Acknowledged by 2 of 2 control planes, but a host is taken", 3)
		}
		if err := istio.SetCondition(o, istio.ConditionDistributed, &c, time.Now()); err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
	w := newWorld(t, Options{})
	w.start(objects...)
	w.connect("a", "")
	w.look()
	if w.writes != 0 || w.pending() != 2 {
		t.Fatalf("%d writes, %d pending", w.writes, w.pending())
	}
	w.ack("a")
	w.look()
	w.says("shop/x7", "True Distributed: Acknowledged by 1 of 1 control plane")
	w.says("shop/x8", "True Distributed: Acknowledged by 1 of 1 control plane")
	if w.writes != 2 {
		t.Errorf("%d writes", w.writes)
	}
}

func TestAConditionThatCannotBeWrittenIsTriedAgain(t *testing.T) {
	w := newWorld(t, Options{})
	w.start()
	w.connect("a", "")
	w.write("shop/x", "1", nil)
	w.ack("a")
	w.fail = errors.New("the disk is full")
	w.look()
	w.fail = nil
	w.look()
	w.says("shop/x", pendingText)
	w.clock.Step(retryInterval)
	w.look()
	w.says("shop/x", "True Distributed: Acknowledged by 1 of 1 control plane")
}

// A namespace that leaves a mesh and comes back is not distributed because it once was.
func TestWhatMovesIsNotDistributedWhereItWasBefore(t *testing.T) {
	w := newWorld(t, Options{})
	w.start()
	w.connect("a", "")
	w.write("shop/x", "1", nil)
	w.ack("a")
	w.look()
	w.claim("elsewhere")
	w.ack("a") // by which it forgets
	w.claim("*")
	w.look()
	w.says("shop/x", pendingText)
	w.ack("a")
	w.look()
	w.says("shop/x", "True Distributed: Acknowledged by 1 of 1 control plane")
}

func TestADeletedObjectIsForgotten(t *testing.T) {
	w := newWorld(t, Options{})
	w.start()
	w.connect("a", "")
	w.write("shop/x", "1", nil)
	w.look()
	w.delete("shop/x")
	w.look()
	if w.pending() != 0 || w.writes != 0 || len(w.tracker.pending) != 0 || len(w.tracker.where) != 0 {
		t.Errorf("%d pending, %d writes", w.pending(), w.writes)
	}
}

// A mesh whose status names control planes that another server serves waits for them.
func TestControlPlanesOfOtherServersCount(t *testing.T) {
	w := newWorld(t, Options{})
	w.start()
	w.connect("a", "")
	elsewhere := func(connected bool, acked string) {
		mesh, err := object.From(&v1alpha1.Mesh{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Status: v1alpha1.MeshStatus{ControlPlanes: []v1alpha1.ControlPlaneStatus{
			{ID: "a", Connected: true},
			{ID: "b", Connected: connected, Kinds: []v1alpha1.ControlPlaneKindStatus{{TypeURL: url, AckedVersion: acked}}},
		}}}, v1alpha1.GroupVersion.WithKind("Mesh"))
		if err != nil {
			t.Fatal(err)
		}
		w.observe["meshes"].Changed("MODIFIED", mesh, 1)
		for deadline := time.Now().Add(time.Minute); w.builder.MeshObject("default") != mesh; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the mesh is not observed")
			}
		}
	}
	old := w.list().Version()
	elsewhere(true, old)
	w.write("shop/x", "1", nil)
	w.ack("a")
	w.look()
	w.says("shop/x", pendingText)
	known := w.list().Version()
	w.write("shop/y", "1", nil)
	w.ack("a")
	w.look()
	elsewhere(true, "something else")
	w.look()
	w.says("shop/x", pendingText)
	elsewhere(true, known)
	w.look()
	w.says("shop/x", allTwo)
	w.says("shop/y", pendingText)
	elsewhere(false, known)
	w.clock.Step(Patience)
	w.look()
	w.says("shop/y", "False ControlPlaneGone: Acknowledged by 1 of 2 control planes; no longer connected: b since 03:04:20")
	w.clock.Step(Grace)
	w.look()
	w.says("shop/y", "True Distributed: Acknowledged by 1 of 1 control plane")
}

func TestVirtualClustersTakeTurns(t *testing.T) {
	q := queue{byCluster: map[string][]*pending{}}
	for i := range 5 {
		q.push(&pending{id: id{cluster: "loud", name: fmt.Sprint(i)}})
	}
	q.push(&pending{id: id{cluster: "quiet", name: "q"}})
	got := ""
	for p := q.pop(); p != nil; p = q.pop() {
		got += p.id.name
	}
	if got != "0q1234" {
		t.Errorf("in the order %s", got)
	}
}

func TestNobodyElseChangesTheCondition(t *testing.T) {
	m := Marker{Now: time.Now}
	with := func(body string) *object.Object {
		o := &object.Object{}
		if err := o.UnmarshalJSON([]byte(`{"metadata":{"name":"x"},` + body[1:])); err != nil {
			t.Fatal(err)
		}
		return o
	}
	const mine = `{"lastTransitionTime":"2026-01-02T03:04:05Z","message":"m","observedGeneration":2,"reason":"Pending","status":"Unknown","type":"Distributed"}`
	for _, c := range []struct{ name, old, written, want string }{
		{"forged", `{"status":{"conditions":[` + mine + `]}}`, `{"status":{"conditions":[{"type":"Distributed","status":"True"}]}}`, `"status":{"conditions":[` + mine + `]}`},
		{"forged in other letters", `{"status":{"conditions":[` + mine + `]}}`, `{"status":{"conditions":[{"type":"distributed","status":"True"}]}}`, `"status":{"conditions":[` + mine + `]}`},
		{"forged twice", `{"status":{}}`, `{"status":{"conditions":[{"type":"Distributed"},{"type":"Distributed"}]}}`, `"status":{}`},
		{"taken away", `{"status":{"conditions":[` + mine + `]}}`, `{"spec":{}}`, `"spec":{},"status":{"conditions":[` + mine + `]}`},
		{"others'", `{"status":{"conditions":[` + mine + `,{"type":"Reconciled"}]}}`, `{"status":{"conditions":[{"type":"Reconciled","status":"True"},` + mine + `],"observedGeneration":"4"}}`,
			`"status":{"conditions":[{"status":"True","type":"Reconciled"},` + mine + `],"observedGeneration":"4"}`},
		{"none", `{"spec":{}}`, `{"spec":{},"status":{"conditions":[{"type":"Reconciled"}]}}`, `"spec":{},"status":{"conditions":[{"type":"Reconciled"}]}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := with(c.written)
			m.StatusWritten(t.Context(), o, with(c.old))
			if string(o.Body()) != c.want {
				t.Errorf("got %s\nwant %s", o.Body(), c.want)
			}
			own := with(c.written)
			m.StatusWritten(AsWriter(t.Context()), own, with(c.old))
			if !bytes.Equal(own.Body(), with(c.written).Body()) {
				t.Errorf("what the writer writes became %s", own.Body())
			}
		})
	}
}

// Whatever happens in whatever order, a condition turns true only while every control plane
// that counts holds what is stored.
func TestNeverTrueTooEarlyInAnyOrder(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { anyOrder(t, rand.New(rand.NewPCG(seed, 0))) })
		if t.Failed() {
			return
		}
	}
}

func TestAnObjectThatIsGoneBeforeItWasLookedAtIsForgotten(t *testing.T) {
	w := newWorld(t, Options{})
	w.start()
	w.connect("a", "")
	w.write("shop/x", "1", nil)
	w.delete("shop/x")
	if n := w.pending(); n != 0 {
		t.Errorf("%d are pending", n)
	}
}

func anyOrder(t *testing.T, random *rand.Rand) {
	w := newWorld(t, Options{})
	w.start()
	ids := []string{"a", "b", "c"}
	names := []string{"shop/x", "shop/y", "cart/z", "far/v", "far/w"}
	hosts := func() string { return []string{"", "a.com", "b.com", "a.com_b.com"}[random.IntN(4)] }
	gone := map[string]time.Time{}
	held := map[string]*snapshot.List{} // what a control plane really has, connected or not
	claimed := true
	w.wrote = func(name string, c istio.Condition) {
		if c.Status != metav1.ConditionTrue {
			return
		}
		o := w.stored[name]
		if name == "cart/z" && !claimed {
			t.Fatalf("%s is true outside the mesh", name)
		}
		for _, id := range ids {
			at, away := gone[id]
			if w.planes[id] == nil || away && w.clock.Now().Sub(at) >= Grace {
				continue
			}
			e, ok := snapshot.Empty.Get(name)
			if held[id] != nil {
				e, ok = held[id].Get(name)
			}
			if !ok || !bytes.Contains(e.Resource(), bytes.Trim(o.Field("spec"), `"`)) || !bytes.Contains(e.Resource(), []byte(o.Labels["step"])) {
				t.Fatalf("%s is true, but %s does not have %s %v", name, id, o.Field("spec"), o.Labels)
			}
		}
	}
	text := func() string { return []string{"text-0.", "text-1.", "text-2.", "broken"}[random.IntN(4)] }
	labels := map[string]map[string]string{}
	for step := range 150 {
		name, id := names[random.IntN(len(names))], ids[random.IntN(len(ids))]
		switch random.IntN(12) {
		case 0, 1:
			labels[name] = map[string]string{"step": fmt.Sprintf("step-%d.", step), "hosts": hosts()}
			w.write(name, text(), labels[name])
		case 2:
			if o := w.stored[name]; o != nil {
				labels[name] = map[string]string{"step": fmt.Sprintf("step-%d.", random.IntN(2)), "hosts": hosts()}
				w.write(name, string(bytes.Trim(o.Field("spec"), `"`)), labels[name])
			}
		case 3:
			if w.stored[name] != nil && random.IntN(3) == 0 {
				w.delete(name)
			}
		case 4, 5, 6:
			if p := w.planes[id]; p != nil && p.connected {
				held[id] = w.list()
				w.ack(id)
			}
		case 7:
			if p := w.planes[id]; p != nil && p.connected && random.IntN(3) == 0 {
				w.disconnect(id)
				gone[id] = w.clock.Now()
			}
		case 8:
			if p := w.planes[id]; p == nil || !p.connected {
				w.connect(id, "")
				delete(gone, id)
			}
		case 9:
			w.clock.Step(time.Duration(random.IntN(40)) * time.Second)
		case 10:
			if claimed = !claimed; claimed {
				w.claim("*")
			} else {
				w.claim("shop")
			}
		default:
			if random.IntN(2) == 0 {
				// Something happens between what was decided and its being written.
				w.tracker.decideAll(w.clock.Now())
				w.write(name, text(), labels[name])
				if p, _ := w.tracker.next(); p != nil {
					w.tracker.writeOne(context.Background(), w, p)
				}
				w.settle()
			}
			w.look()
		}
	}
	// In the end all is told, also by a server that knows only what is stored.
	if random.IntN(2) == 0 {
		stored := slices.Collect(maps.Values(w.stored))
		w = newWorld(t, Options{})
		w.start(stored...)
	}
	w.claim("*")
	claimed = true
	for _, id := range ids {
		w.connect(id, "")
		delete(gone, id)
		held[id] = w.list()
		w.ack(id)
	}
	for range 3 {
		w.look()
		w.clock.Step(retryInterval)
	}
	waiting, s := 0, w.builder.Snapshot("default")
	for name, o := range w.stored {
		status, reason := metav1.ConditionTrue, ReasonDistributed
		message, is := s.LacksHosts("VirtualService", o.Namespace, o.Name)
		if is {
			reason = ReasonInPart
		}
		if i := slices.IndexFunc(s.Quarantined, func(q v1alpha1.QuarantinedResource) bool { return q.Namespace == o.Namespace && q.Name == o.Name }); i >= 0 {
			status, reason, message = metav1.ConditionFalse, ReasonCannotBeSent, s.Quarantined[i].Message
		}
		if why, text, held := s.HeldBackReason(o.Cluster(), "VirtualService", o.Namespace, o.Name); held {
			status, reason, message = metav1.ConditionFalse, why, text
		}
		if status == metav1.ConditionFalse {
			waiting++
		}
		if c, _ := istio.GetCondition(o, istio.ConditionDistributed); c.Status != status || c.Reason != reason || !strings.HasSuffix(c.Message, message) {
			t.Errorf("in the end %s says %+v, want %s %s: %s", name, c, status, reason, message)
		}
	}
	if w.pending() != waiting {
		t.Errorf("%d are pending in the end, and %d are not in the mesh", w.pending(), waiting)
	}
}
