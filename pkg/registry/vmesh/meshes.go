package vmesh

import (
	"context"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
)

// MeshREST serves meshes. One that virtual clusters name cannot be deleted: its control
// planes would lose their configuration.
type MeshREST struct {
	*resource.REST
	clusters *Clusters
}

// MeshREST makes the storage of meshes.
func (c *Clusters) MeshREST() *MeshREST { return &MeshREST{c.meshes.REST(Version), c} }

// Delete implements rest.GracefulDeleter.
func (r *MeshREST) Delete(ctx context.Context, name string, validate rest.ValidateObjectFunc, options *metav1.DeleteOptions) (runtime.Object, bool, error) {
	return r.REST.Delete(ctx, name, r.unused(validate), options)
}

// DeleteCollection implements rest.CollectionDeleter, with the same condition for each.
func (r *MeshREST) DeleteCollection(ctx context.Context, validate rest.ValidateObjectFunc, options *metav1.DeleteOptions, list *internalversion.ListOptions) (runtime.Object, error) {
	return r.REST.DeleteCollection(ctx, r.unused(validate), options, list)
}

func (r *MeshREST) unused(validate rest.ValidateObjectFunc) rest.ValidateObjectFunc {
	return func(ctx context.Context, obj runtime.Object) error {
		if validate != nil {
			if err := validate(ctx, obj); err != nil {
				return err
			}
		}
		mesh := obj.(*object.Object)
		list, err := r.clusters.store.List(RootContext(ctx), &internalversion.ListOptions{})
		if err != nil {
			return fmt.Errorf("looking for the mesh's virtual clusters: %w", err)
		}
		var users []string
		for i := range list.(*object.List).Items {
			vc, err := Decode(&list.(*object.List).Items[i])
			if err != nil {
				return err
			}
			if vc.Spec.Mesh == mesh.Name {
				users = append(users, vc.Name)
			}
		}
		const shown = 5
		switch {
		case len(users) == 0:
			return nil
		case len(users) > shown:
			users = append(users[:shown], fmt.Sprintf("and %d more", len(users)-shown))
		}
		return apierrors.NewForbidden(r.DefaultQualifiedResource, mesh.Name, fmt.Errorf(
			"virtual clusters belong to it (%s): delete them or change their spec.mesh first", strings.Join(users, ", ")))
	}
}
