package logical

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

func modified() watch.Event { return watch.Event{Type: watch.Modified, Object: &metav1.Status{}} }

// unbuffered has no room: each event waits until it is taken, or the watch is stopped.
type unbuffered struct {
	events  chan watch.Event
	stopped chan struct{}
}

func (u unbuffered) ResultChan() <-chan watch.Event { return u.events }
func (u unbuffered) Stop()                          { close(u.stopped) }

// send says whether an event was taken.
func (u unbuffered) send(e watch.Event) bool {
	select {
	case u.events <- e:
		return true
	case <-u.stopped:
		return false
	}
}

func TestAWatchThatIsNotReadIsEndedAndDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		changes := unbuffered{make(chan watch.Event), make(chan struct{})}
		w := newBufferedWatch(t.Context(), []watch.Event{modified(), modified()}, changes)
		begun := time.Now()
		taken := 0
		for taken < 2*maxPending && changes.send(modified()) {
			taken++
		}
		if taken == 2*maxPending || time.Since(begun) > 0 {
			t.Errorf("%d events were taken, in %s", taken, time.Since(begun))
		}
		told := 0
		for range w.ResultChan() {
			told++
		}
		if told != cap(w.result) {
			t.Errorf("%d events can still be read, want the %d that were handed on", told, cap(w.result))
		}
	})
}

func TestAWatchHasBegunWhenItHasToldWhatThereWas(t *testing.T) {
	for _, c := range []struct {
		name            string
		initial, replay int
	}{{"with nothing to tell", 0, 0}, {"with a state", 30, 0}, {"with history", 0, 30}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var begun atomic.Bool
				initial := make([]watch.Event, c.initial)
				for i := range initial {
					initial[i] = modified()
				}
				changes := watch.NewFake()
				w := newBufferedWatch(WithWatchBegun(t.Context(), func() { begun.Store(true) }), initial, changes)
				defer w.Stop()
				for range c.replay {
					changes.Modify(&metav1.Status{})
				}
				synctest.Wait()
				if begun.Load() {
					t.Fatal("it has begun before its history can have come")
				}
				time.Sleep(2 * beginning)
				synctest.Wait()
				if waiting := c.initial+c.replay > 0; begun.Load() == waiting {
					t.Fatalf("begun: %t while %d events are not read", begun.Load(), c.initial+c.replay)
				}
				for range c.initial + c.replay {
					<-w.ResultChan()
				}
				synctest.Wait()
				if !begun.Load() {
					t.Error("it has not begun although all was read")
				}
			})
		})
	}
}
