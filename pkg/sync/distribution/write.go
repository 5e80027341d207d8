package distribution

import (
	"context"

	"golang.org/x/time/rate"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// queue are the objects whose conditions are to be written: the virtual clusters take
// turns, so that one with many does not keep the others waiting.
type queue struct {
	byCluster map[string][]*pending
	turns     []string
}

func (q *queue) push(p *pending) {
	cluster := p.id.cluster
	if len(q.byCluster[cluster]) == 0 {
		q.turns = append(q.turns, cluster)
	}
	q.byCluster[cluster] = append(q.byCluster[cluster], p)
}

func (q *queue) pop() *pending {
	if len(q.turns) == 0 {
		return nil
	}
	cluster := q.turns[0]
	q.turns = q.turns[1:]
	all := q.byCluster[cluster]
	if len(all) == 1 {
		delete(q.byCluster, cluster)
	} else {
		q.byCluster[cluster] = all[1:]
		q.turns = append(q.turns, cluster)
	}
	return all[0]
}

// write writes what is queued until ctx ends.
func (t *Tracker) write(ctx context.Context, writer Writer, limit *rate.Limiter) {
	for {
		select {
		case <-t.work:
		case <-ctx.Done():
			return
		}
		for {
			p, more := t.next()
			if p == nil {
				break
			}
			if more {
				t.more()
			}
			if limit.Wait(ctx) != nil {
				return
			}
			t.writeOne(ctx, writer, p)
		}
	}
}

func (t *Tracker) more() {
	select {
	case t.work <- struct{}{}:
	default:
	}
}

// next takes what is still to be written off the queue.
func (t *Tracker) next() (p *pending, more bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p = t.queue.pop(); p != nil && p.desired == nil; p = t.queue.pop() {
		p.queued = false
	}
	return p, len(t.queue.turns) > 0
}

// writeOne writes one condition, if it is then still to be written.
func (t *Tracker) writeOne(ctx context.Context, writer Writer, p *pending) {
	t.mu.Lock()
	p.queued = false
	desired, looked := p.desired, p.object
	t.mu.Unlock()
	if desired == nil {
		return
	}
	ref := Ref{Resource: t.kinds[p.id.kind].Resource, Cluster: p.id.cluster, Namespace: p.id.namespace, Name: p.id.name}
	err := writer.WriteCondition(ctx, ref, func(current *object.Object) *istio.Condition {
		// Any other state of the object is told of as well, and looked at then.
		if current.UID != looked.UID || current.ResourceVersion != looked.ResourceVersion {
			return nil
		}
		return desired
	})
	now := t.clock.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	// What was written is told of in a moment, and takes this one's place.
	p.notYet = now.Add(retryInterval)
	if err != nil {
		if ctx.Err() == nil {
			t.options.Metrics.failed()
			klog.FromContext(ctx).Error(err, "Writing a condition", "virtualCluster", ref.Cluster, "resource", ref.Resource, "namespace", ref.Namespace, "name", ref.Name)
		}
		return
	}
	t.options.Metrics.wrote(desired.Reason)
	if desired.Status == metav1.ConditionTrue {
		t.options.Metrics.distributed(now.Sub(p.since))
	}
}
