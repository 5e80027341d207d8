package sync

import (
	"context"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/watch"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

// observed is an observer that remembers up to where it was told.
type observed struct {
	snapshot.Observer
	revision atomic.Uint64
}

func (o *observed) Replaced(items []*object.Object, revision uint64) {
	o.Observer.Replaced(items, revision)
	o.revision.Store(revision)
}

func (o *observed) Changed(t watch.EventType, obj *object.Object, revision uint64) {
	o.Observer.Changed(t, obj, revision)
	// Others of this revision may follow.
	if revision > 0 {
		o.revision.Store(max(o.revision.Load(), revision-1))
	}
}

func (o *observed) Progressed(revision uint64) {
	o.Observer.Progressed(revision)
	o.revision.Store(max(o.revision.Load(), revision))
}

// fresh returns when the snapshots hold all that is stored at the time of the call. So who changes
// from one server to another is not taken back to before what the other has told, by watches
// that are a moment behind.
func (s *Service) fresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, freshWithin)
	defer cancel()
	revision, err := s.config.Current(ctx)
	if err != nil {
		return err
	}
	for _, o := range s.observed {
		for waited := time.Duration(0); o.revision.Load() < revision; waited += freshPause {
			if waited >= freshAgain { // the answer has got lost
				waited = 0
				if _, err := s.config.Current(ctx); err != nil {
					return err
				}
			}
			select {
			case <-time.After(freshPause):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return s.builder.Flush(ctx)
}

const (
	// freshWithin is how long a stream waits, before its client is told to try elsewhere.
	freshWithin = 3 * time.Second
	freshPause  = 2 * time.Millisecond
	freshAgain  = 100 * time.Millisecond
)
