package garbage

import (
	"sync/atomic"
	"testing"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

func protect(o *object.Object)   { o.Labels = map[string]string{v1alpha1.LabelProtected: "true"} }
func unprotect(o *object.Object) { o.Labels = nil }

func TestAProtectedDependentStaysUntilItIsUnmarked(t *testing.T) {
	s := newStorage(t)
	for _, c := range []struct {
		name    string
		cluster string
		delete  func(w *world)
		want    map[string]string
	}{
		{"its owner is gone at once", "in-background", func(w *world) { w.delete("configmaps/x/owner", background) },
			map[string]string{"secrets/x/owned": "owner!"}},
		{"or waits for it, when it is deleted in the foreground", "in-foreground", func(w *world) { w.delete("configmaps/x/owner", foreground) },
			map[string]string{"configmaps/x/owner": "deleting:foregroundDeletion", "secrets/x/owned": "owner!"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := s.world(t, c.cluster)
			r := s.start(t, nil, nil)
			w.make(thing{id: "configmaps/x/owner"},
				thing{id: "secrets/x/owned", owners: []owner{{of: "configmaps/x/owner", block: true}}},
				thing{id: "secrets/x/other", owners: []owner{{of: "configmaps/x/owner", block: true}}})
			w.update("secrets/x/owned", protect)
			c.delete(w)
			w.eventuallyAre(c.want)
			w.update("secrets/x/owned", unprotect)
			w.eventuallyAre(map[string]string{})
			w.settle(r)
		})
	}
}

func TestNothingIsCollectedWhileAVirtualClusterIsPaused(t *testing.T) {
	s := newStorage(t)
	cold, warm := s.world(t, "cold"), s.world(t, "warm")
	var frozen atomic.Bool
	frozen.Store(true)
	asked := make(chan struct{}, 1)
	s.start(t, nil, nil, func(c *Collector) {
		c.Paused = func(cluster string) bool {
			if cluster != "cold" || !frozen.Load() {
				return false
			}
			select {
			case asked <- struct{}{}:
			default:
			}
			return true
		}
	})
	for _, w := range []*world{cold, warm} {
		w.make(thing{id: "configmaps/x/owner"}, thing{id: "secrets/x/owned", owners: []owner{{of: "configmaps/x/owner"}}})
		w.delete("configmaps/x/owner", background)
	}
	warm.eventuallyAre(map[string]string{})
	<-asked
	cold.are(map[string]string{"secrets/x/owned": "owner"})
	frozen.Store(false)
	cold.eventuallyAre(map[string]string{})
}
