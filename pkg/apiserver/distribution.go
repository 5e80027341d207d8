package apiserver

import (
	"context"
	"errors"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/quota"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
	"github.com/vmesh-io/vmesh/pkg/sync/distribution"
)

// markDistribution has every write of Istio's kinds say that it is not distributed yet. It
// comes before any storage of them is made.
func (s *Server) markDistribution(mesh []*kind.Kind, stores map[schema.GroupResource]*resource.Store) {
	marker := distribution.Marker{
		Cluster: logical.Cluster,
		Now:     time.Now,
		Outlook: func(cluster, namespace string) istio.Condition { return s.sync.Outlook(cluster, namespace) },
	}
	for _, k := range mesh {
		stores[k.GroupResource()].Mark(marker)
	}
}

// conditions writes conditions through the storage, as any client would, but nobody's quota
// keeps them from being written.
type conditions map[schema.GroupResource]*resource.StatusREST

func newConditions(mesh []*kind.Kind, stores map[schema.GroupResource]*resource.Store) conditions {
	c := conditions{}
	for _, k := range mesh {
		c[k.GroupResource()] = stores[k.GroupResource()].StatusREST(k.StorageVersion())
	}
	return c
}

// errUnwanted says that nothing is to be written after all.
var errUnwanted = errors.New("the object has changed")

// WriteCondition implements distribution.Writer.
func (c conditions) WriteCondition(ctx context.Context, ref distribution.Ref, decide func(*object.Object) *istio.Condition) error {
	ctx = distribution.AsWriter(quota.Exempt(request.WithNamespace(logical.WithCluster(ctx, ref.Cluster), ref.Namespace)))
	_, _, err := c[ref.Resource].Update(ctx, ref.Name, rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
		condition := decide(old.(*object.Object))
		if condition == nil {
			return nil, errUnwanted
		}
		o := old.(*object.Object).DeepCopy()
		return o, istio.SetCondition(o, istio.ConditionDistributed, condition, time.Now())
	}), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) || errors.Is(err, errUnwanted) {
		return nil
	}
	return err
}
