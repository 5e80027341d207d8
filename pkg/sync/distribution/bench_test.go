package distribution

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

// What the condition adds to a write of an object of 1 KiB.
func BenchmarkMark(b *testing.B) {
	o := newObject(b, "shop/x", strings.Repeat("x", 1000))
	o.Generation = 1
	m := Marker{
		Now: time.Now, Cluster: func(context.Context) (string, error) { return "c", nil },
		Outlook: func(string, string) istio.Condition {
			return condition(metav1.ConditionUnknown, ReasonPending, "Waiting for the control planes of mesh default", 0)
		},
	}
	b.ReportAllocs()
	for b.Loop() {
		m.Written(b.Context(), o.DeepCopy(), nil)
	}
}

// What an object costs that has arrived, whenever it is told of.
func BenchmarkSettled(b *testing.B) {
	w := newWorld(b, Options{})
	w.start()
	w.connect("a", "")
	w.write("shop/x", strings.Repeat("x", 1000), nil)
	w.ack("a")
	w.look()
	p := snapshot.Placement{Object: w.stored["shop/x"], Mesh: "default"}
	b.ReportAllocs()
	for b.Loop() {
		if !w.tracker.settled(p) {
			b.Fatal("it is not settled")
		}
	}
}

// What it costs to look at 10 000 objects that wait for one of 100 control planes.
func BenchmarkDecide(b *testing.B) {
	w := newWorld(b, Options{})
	w.start()
	for i := range 10000 {
		o := newObject(b, fmt.Sprintf("ns-%d/x-%d", i%50, i), "text")
		o.Generation = 1
		w.keep(o)
		w.change("ADDED", o)
	}
	w.settle()
	for i := range 100 {
		id := fmt.Sprint(i)
		w.connect(id, "")
		if i > 0 {
			w.ack(id)
		}
	}
	w.tracker.decideAll(w.clock.Now())
	if w.pending() != 10000 {
		b.Fatal(w.pending())
	}
	for b.Loop() {
		w.tracker.decideAll(w.clock.Now())
	}
}
