package sync

import (
	"context"
	"fmt"
	"strings"
	gosync "sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

// readyWithin is how long a mesh whose releases cannot be read keeps the server from being ready.
const readyWithin = 30 * time.Second

// readiness is what is known of whether every mesh can be served.
type readiness struct {
	mu    gosync.Mutex
	since time.Time // when snapshots were there first, as far as anybody asked
	done  bool
}

// Ready says why control planes are not being answered yet, or nil. At the start every mesh has
// to have its snapshot, and if it has stages what each of them is to receive: a control plane
// that is not answered at its own start gives up. A mesh of which that cannot be found out is
// waited for until readyWithin is over, and no longer: to mend it the API is needed, and the other meshes
// do not suffer. What comes later never makes the server unready.
func (s *Service) Ready() error {
	select {
	case <-s.builder.Synced():
	default:
		return snapshot.ErrNotSynced
	}
	if s.releaser == nil {
		return nil
	}
	r := &s.readiness
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done {
		return nil
	}
	now := s.now()
	if r.since.IsZero() {
		r.since = now
	}
	waiting := s.builder.Undecided()
	if len(waiting) == 0 {
		r.done = true
		return nil
	}
	err := fmt.Errorf("it is not known yet what the stages are to receive of mesh %s", strings.Join(waiting, ", "))
	if now.Sub(r.since) < readyWithin {
		return err
	}
	r.done = true
	klog.Background().Error(err, "Ready without: control planes of these meshes are not answered", "waited", readyWithin)
	return nil
}

// WaitBuilt returns when each of some meshes that there are has a snapshot, or when ctx ends, with its
// error. list is asked for them again and again: one may go.
func (s *Service) WaitBuilt(ctx context.Context, list func(context.Context) ([]string, error)) error {
	for {
		names, err := list(ctx)
		if err != nil {
			return err
		}
		built := map[string]bool{}
		for _, one := range s.builder.Snapshots() {
			built[one.Mesh] = true
		}
		all := true
		for _, name := range names {
			all = all && built[name]
		}
		if all {
			return nil
		}
		select {
		case <-time.After(builtPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

const builtPause = 10 * time.Millisecond
