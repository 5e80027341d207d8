// Package virtualcluster empties virtual clusters that are being deleted.
package virtualcluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/registry/vmesh"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// progressEvery is how often the status of a deletion is written.
const progressEvery = time.Second

// Purger removes all keys of a virtual cluster.
type Purger interface {
	Purge(ctx context.Context, cluster string, progress func(removed, total int)) error
	Count(ctx context.Context, cluster string) (map[schema.GroupResource]int64, error)
}

// Purge removes what deleted virtual clusters hold, and then themselves. It is a
// logical.Observer of virtual clusters.
type Purge struct {
	// Tell writes an event about a virtual cluster into the root. It may be nil.
	Tell func(ctx context.Context, o *object.Object, reason, message string)

	store  *resource.Store
	purger Purger
	queue  workqueue.TypedRateLimitingInterface[string]
}

// New makes the controller; it works while Run does.
func New(store *resource.Store, purger Purger) *Purge {
	return &Purge{
		store: store, purger: purger,
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](50*time.Millisecond, 30*time.Second)),
	}
}

// Replaced implements logical.Observer.
func (p *Purge) Replaced(items []*object.Object, revision uint64) {
	for _, o := range items {
		p.Changed(watch.Modified, o, revision)
	}
}

// Changed implements logical.Observer.
func (p *Purge) Changed(t watch.EventType, o *object.Object, _ uint64) {
	if t != watch.Deleted && o.DeletionTimestamp != nil {
		p.queue.Add(o.Name)
	}
}

// Progressed implements logical.Observer.
func (p *Purge) Progressed(uint64) {}

// Run works until ctx is done. Virtual clusters are emptied one after the other.
func (p *Purge) Run(ctx context.Context) {
	drain(ctx, p.queue, p.purge, func(name string, err error) {
		klog.FromContext(ctx).Error(err, "Emptying a virtual cluster failed and is tried again", "virtualCluster", name)
	})
}

func (p *Purge) purge(ctx context.Context, name string) error {
	obj, err := p.store.Get(ctx, name, &metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	o := obj.(*object.Object)
	if o.DeletionTimestamp == nil {
		return nil // deleted and made anew
	}
	var total, before int64
	written := time.Time{}
	for {
		// Writes that were under way when the deletion began may end after a pass.
		counts, err := p.purger.Count(ctx, name)
		if err != nil {
			return err
		}
		var left int64
		for _, n := range counts {
			left += n
		}
		if left == 0 && !written.IsZero() {
			break
		}
		total = before + left - counts[logical.HistoryResource]
		if written.IsZero() {
			p.tell(ctx, o, "DeletionBegun", fmt.Sprintf("All that the virtual cluster holds is being removed: %d objects.", total))
		}
		if err := p.report(ctx, name, before, total); err != nil {
			return err
		}
		written = time.Now()
		if left == 0 {
			break
		}
		var reportErr error
		err = p.purger.Purge(ctx, name, func(removed, _ int) {
			if time.Since(written) >= progressEvery && reportErr == nil {
				written, reportErr = time.Now(), p.report(ctx, name, before+int64(removed), total)
			}
		})
		if err := errors.Join(err, reportErr); err != nil {
			return err
		}
		before = total
	}
	if err := update(ctx, p.store.REST(vmesh.Version), name, func(o *object.Object) error {
		var kept []string
		for _, f := range o.Finalizers {
			if f != v1alpha1.FinalizerPurge {
				kept = append(kept, f)
			}
		}
		o.Finalizers = kept
		return nil
	}); err != nil {
		return err
	}
	p.tell(ctx, o, "DeletionFinished", fmt.Sprintf("All that the virtual cluster held is removed: %d objects.", total))
	return nil
}

func (p *Purge) tell(ctx context.Context, o *object.Object, reason, message string) {
	if p.Tell != nil {
		p.Tell(ctx, o, reason, message)
	}
}

// report writes how far the deletion has come.
func (p *Purge) report(ctx context.Context, name string, removed, total int64) error {
	return update(ctx, p.store.StatusREST(vmesh.Version), name, func(o *object.Object) error {
		vc, err := vmesh.Decode(o)
		if err != nil {
			return err
		}
		vc.Status.Deletion = &v1alpha1.DeletionStatus{Total: total, Removed: removed}
		apimeta.SetStatusCondition(&vc.Status.Conditions, metav1.Condition{
			Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonDeleting,
			Message: fmt.Sprintf("%d of %d objects are removed.", removed, total), ObservedGeneration: o.Generation,
		})
		return vmesh.SetStatus(o, vc.Status)
	})
}

func update(ctx context.Context, updater rest.Updater, name string, change func(*object.Object) error) error {
	_, _, err := updater.Update(ctx, name, rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
		o := old.(*object.Object).DeepCopy()
		return o, change(o)
	}), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
