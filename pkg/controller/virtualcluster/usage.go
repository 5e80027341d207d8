package virtualcluster

import (
	"bytes"
	"context"
	"time"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/quota"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/registry/vmesh"
)

// usageEvery is how often the usage of one virtual cluster is written at most, and how old
// it may be.
const usageEvery = 3 * time.Second

// Counter knows what virtual clusters hold.
type Counter interface {
	Usage(ctx context.Context, cluster string, limits *quota.Limits) (*v1alpha1.VirtualClusterUsage, error)
	OnChange(changed func(cluster string))
}

// Usage writes into the status of virtual clusters how much of their quota is used. It is
// a logical.Observer of virtual clusters.
type Usage struct {
	store   *resource.Store
	counter Counter
	queue   workqueue.TypedRateLimitingInterface[string]
}

// NewUsage makes the controller; it works while Run does. It must be made before anything
// is written.
func NewUsage(store *resource.Store, counter Counter) *Usage {
	u := &Usage{store: store, counter: counter, queue: workqueue.NewTypedRateLimitingQueue(
		workqueue.NewTypedItemExponentialFailureRateLimiter[string](usageEvery, time.Minute))}
	counter.OnChange(func(cluster string) { u.queue.AddAfter(cluster, usageEvery) })
	return u
}

// Replaced implements logical.Observer.
func (u *Usage) Replaced(items []*object.Object, _ uint64) {
	for _, o := range items {
		if concerns(o) {
			u.queue.Add(o.Name)
		}
	}
}

// Changed implements logical.Observer.
func (u *Usage) Changed(t watch.EventType, o *object.Object, _ uint64) {
	switch {
	case !concerns(o):
	case t == watch.Modified:
		// Most often by this controller's own write; should servers disagree for a moment,
		// they do so slowly.
		u.queue.AddAfter(o.Name, usageEvery)
	default:
		u.queue.Add(o.Name)
	}
}

// Progressed implements logical.Observer.
func (u *Usage) Progressed(uint64) {}

// concerns says whether a virtual cluster has a quota, or had one.
func concerns(o *object.Object) bool {
	return bytes.Contains(o.Field("spec"), []byte(`"quota"`)) || bytes.Contains(o.Field("status"), []byte(`"usage"`))
}

// Run works until ctx is done.
func (u *Usage) Run(ctx context.Context) {
	drain(ctx, u.queue, u.report, func(name string, err error) {
		klog.FromContext(ctx).V(1).Info("Reporting a virtual cluster's usage is tried again", "virtualCluster", name, "reason", err.Error())
	})
}

func (u *Usage) report(ctx context.Context, name string) error {
	obj, err := u.store.Get(ctx, name, &metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		_, err = u.counter.Usage(ctx, name, nil)
		return err
	}
	if err != nil {
		return err
	}
	vc, err := vmesh.Decode(obj.(*object.Object))
	if err != nil || vc.DeletionTimestamp != nil {
		return nil // quarantined, or soon gone
	}
	usage, err := u.counter.Usage(ctx, name, quota.LimitsOf(vc.Spec.Quota))
	if err != nil || apiequality.Semantic.DeepEqual(usage, vc.Status.Usage) {
		return err
	}
	return update(ctx, u.store.StatusREST(vmesh.Version), name, func(o *object.Object) error {
		vc, err := vmesh.Decode(o)
		if err != nil {
			return err
		}
		vc.Status.Usage = usage
		return vmesh.SetStatus(o, vc.Status)
	})
}
