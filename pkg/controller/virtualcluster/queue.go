package virtualcluster

import (
	"context"

	"k8s.io/client-go/util/workqueue"

	"github.com/vmesh-io/vmesh/pkg/registry/vmesh"
)

// drain does what is queued, one after another and in the root, until ctx is done. What
// fails is told and tried again, later each time.
func drain[T comparable](ctx context.Context, queue workqueue.TypedRateLimitingInterface[T], do func(context.Context, T) error, failed func(T, error)) {
	stop := context.AfterFunc(ctx, queue.ShutDown)
	defer stop()
	for {
		item, shutdown := queue.Get()
		if shutdown {
			return
		}
		if err := do(vmesh.RootContext(ctx), item); err != nil && ctx.Err() == nil {
			failed(item, err)
			queue.AddRateLimited(item)
		} else {
			queue.Forget(item)
		}
		queue.Done(item)
	}
}
