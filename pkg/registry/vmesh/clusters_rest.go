package vmesh

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/util/dryrun"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// ClusterREST serves virtual clusters.
type ClusterREST struct {
	*resource.REST
	clusters *Clusters
}

// REST makes the storage of virtual clusters.
func (c *Clusters) REST() *ClusterREST { return &ClusterREST{c.store.REST(Version), c} }

// Update implements rest.Updater. Storage's own hook for it ends before anything is
// written, when what is claimed is not safe yet.
func (r *ClusterREST) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, createValidation rest.ValidateObjectFunc,
	updateValidation rest.ValidateObjectUpdateFunc, forceAllowCreate bool, options *metav1.UpdateOptions) (obj runtime.Object, created bool, err error) {
	if !dryrun.IsDryRun(options.DryRun) {
		w, busy := r.clusters.begin(ctx, name)
		if busy != nil {
			return nil, false, busy
		}
		defer func() {
			// Whatever admission does, a panic included: later writes wait for the end.
			written, ok := obj.(*object.Object)
			if err != nil || !ok {
				r.clusters.end(w, false, 0)
				return
			}
			r.clusters.end(w, true, stateOf(written).revision)
		}()
		ctx = context.WithValue(ctx, writeKey{}, w)
	}
	return r.REST.Update(ctx, name, info, createValidation, updateValidation, forceAllowCreate, options)
}

// Delete implements rest.GracefulDeleter. A virtual cluster that holds objects is
// deleted only when its annotation vmesh.io/confirm-deletion bears its name, and never
// while one of them is protected. Of a mark that is set in the same moment nothing is
// promised: who is to rely on it marks the virtual cluster too.
func (r *ClusterREST) Delete(ctx context.Context, name string, validate rest.ValidateObjectFunc, options *metav1.DeleteOptions) (runtime.Object, bool, error) {
	return r.REST.Delete(ctx, name, r.confirmed(validate), options)
}

func (r *ClusterREST) confirmed(validate rest.ValidateObjectFunc) rest.ValidateObjectFunc {
	return func(ctx context.Context, obj runtime.Object) error {
		if validate != nil {
			if err := validate(ctx, obj); err != nil {
				return err
			}
		}
		o := obj.(*object.Object)
		if o.DeletionTimestamp != nil {
			return nil
		}
		if err := r.clusters.protected(ctx, o.Name); err != nil {
			return err
		}
		if o.Annotations[v1alpha1.AnnotationConfirmDeletion] == o.Name {
			return nil
		}
		held, err := r.clusters.held(ctx, o)
		if err != nil {
			return err
		}
		if held == 0 {
			return nil
		}
		return apierrors.NewForbidden(r.DefaultQualifiedResource, o.Name, fmt.Errorf(
			"it holds %d objects, which would be removed with it; to confirm, first set the annotation: kubectl annotate virtualcluster %s %s=%s",
			held, o.Name, v1alpha1.AnnotationConfirmDeletion, o.Name))
	}
}

// held counts the objects that users put into a virtual cluster.
func (c *Clusters) held(ctx context.Context, o *object.Object) (int64, error) {
	vc, err := Decode(o)
	if err != nil {
		return 0, err
	}
	counts, err := c.backend.Count(ctx, o.Name)
	if err != nil {
		return 0, fmt.Errorf("counting what %s holds: %w", o.Name, err)
	}
	delete(counts, logical.HistoryResource)
	var held int64
	for _, n := range counts {
		held += n
	}
	for _, name := range c.systemNamespaces(ctx, vc, fromEtcd) {
		inside := request.WithNamespace(logical.WithCluster(ctx, o.Name), metav1.NamespaceNone)
		if _, err := c.namespaces.Get(inside, name, &metav1.GetOptions{ResourceVersion: "0"}); err == nil {
			held--
		}
	}
	return max(held, 0), nil
}
