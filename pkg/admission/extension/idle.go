package extension

import (
	"context"
	"time"

	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// What is made of a virtual cluster's objects (plugins, compiled expressions) takes some
// hundred KiB and some milliseconds. So it is let go of where nobody has written for a
// while, and never kept for more than so many virtual clusters. The root's, which all
// writes may have to pass, is kept.
const (
	idleAfter = 10 * time.Minute
	maxMade   = 500
)

// use notes that the rules are in use.
func (h *holdings) use(now time.Time) {
	if second := now.Unix(); h.used.Load() != second {
		h.used.Store(second)
	}
}

// keep counts what has been made. It is called with h.mu held.
func (p *Plugin) keep(cluster string, h *holdings) {
	if cluster == logical.Root || h.counted {
		return
	}
	h.counted = true
	if p.made.Add(1) <= maxMade {
		return
	}
	var oldest *holdings
	p.clusters.Range(func(_, other any) bool {
		o := other.(*holdings)
		if o != h && o.rules.Load() != nil && (oldest == nil || o.used.Load() < oldest.used.Load()) {
			oldest = o
		}
		return true
	})
	// One that is being made or changed is not the right one.
	if oldest != nil && oldest.mu.TryLock() {
		p.drop(oldest)
		oldest.mu.Unlock()
	}
}

// drop lets go of what has been made. It is called with h.mu held.
func (p *Plugin) drop(h *holdings) {
	if !h.counted {
		return
	}
	h.counted, h.last = false, nil
	h.rules.Store(nil)
	p.made.Add(-1)
}

// Run lets go of what is not used, until ctx is done.
func (p *Plugin) Run(ctx context.Context) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			p.dropIdle(now)
		}
	}
}

func (p *Plugin) dropIdle(now time.Time) {
	limit := now.Add(-idleAfter).Unix()
	p.clusters.Range(func(_, other any) bool {
		if h := other.(*holdings); h.used.Load() < limit && h.mu.TryLock() {
			p.drop(h)
			h.mu.Unlock()
		}
		return true
	})
}
