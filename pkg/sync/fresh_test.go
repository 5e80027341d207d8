package sync

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

// nothing is an observer that is told, and does nothing.
type nothing struct{ snapshot.Observer }

func (nothing) Progressed(uint64) {}

func TestAStreamWaitsUntilAllIsObservedThatIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		asked := 0
		b := snapshot.NewBuilder(nil, nil)
		s := &Service{builder: b, config: Config{Current: func(context.Context) (uint64, error) { asked++; return 7, nil }}}
		for range 2 {
			s.observed = append(s.observed, &observed{Observer: nothing{}})
		}
		go b.Run(ctx)
		for _, source := range b.Sources() {
			source.Observer.Replaced(nil, 1)
		}
		if err := s.fresh(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with nothing observed: got %v", err)
		}
		if asked < 2 {
			t.Errorf("etcd was asked for progress %d times", asked)
		}
		done := make(chan error)
		go func() { done <- s.fresh(ctx) }()
		s.observed[0].Progressed(7)
		s.observed[1].Progressed(6)
		time.Sleep(50 * time.Millisecond)
		select {
		case err := <-done:
			t.Fatalf("one source lacks the last revision: got %v", err)
		default:
		}
		s.observed[1].Progressed(9)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
