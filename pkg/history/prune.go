package history

import (
	"context"
	"time"

	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

const (
	// pruneEvery is how often what has grown is held against the bounds; what has grown
	// much is at once.
	pruneEvery = time.Minute
	// sweepEvery is how often all histories are held against the age, and sweepPause what
	// lies between two of them, which makes 100 a second.
	sweepEvery = time.Hour
	sweepPause = 10 * time.Millisecond
)

// Pruner removes records; it is the storage.
type Pruner interface {
	PruneHistory(ctx context.Context, cluster string, bounds logical.HistoryBounds) (removed int, err error)
	NextHistory(ctx context.Context, after string, age time.Duration) (cluster string, stale bool, err error)
}

// Prune keeps histories within the bounds until ctx is done: those that this server
// writes to, and by age those of all virtual clusters. It knows of the first ones only while they are
// written to.
func (r *Recorder) Prune(ctx context.Context, p Pruner, bounds logical.HistoryBounds) {
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	sweep := time.NewTimer(pruneEvery) // soon after the start: nobody has pruned while the server was down
	defer sweep.Stop()
	for swept := ""; ; {
		full := false
		select {
		case <-ctx.Done():
			return
		case <-sweep.C:
			if swept = r.sweep(ctx, p, swept, bounds); swept != "" {
				sweep.Reset(sweepPause)
			} else {
				sweep.Reset(sweepEvery)
			}
			continue
		case <-tick.C:
		case <-r.full:
			full = true
		}
		for _, cluster := range r.take(full) {
			r.prune(ctx, p, cluster, bounds)
		}
	}
}

func (r *Recorder) prune(ctx context.Context, p Pruner, cluster string, bounds logical.HistoryBounds) {
	if _, err := p.PruneHistory(ctx, cluster, bounds); err != nil && ctx.Err() == nil {
		klog.FromContext(ctx).Error(err, "A history is larger than it should be, until it is written to again", "virtualCluster", cluster)
	}
}

// sweep holds the history that comes after one against the age, and returns whose it is; empty
// after the last.
func (r *Recorder) sweep(ctx context.Context, p Pruner, after string, bounds logical.HistoryBounds) string {
	next, stale, err := p.NextHistory(ctx, after, bounds.Age)
	if err != nil {
		if ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Pruning histories by age failed and is tried again in an hour")
		}
		return ""
	}
	if stale {
		r.prune(ctx, p, next, bounds)
	}
	return next
}
