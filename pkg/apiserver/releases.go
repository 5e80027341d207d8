package apiserver

import (
	"context"
	"fmt"
	"os"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/storage/value"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/events"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/registry/vmesh"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
	"github.com/vmesh-io/vmesh/pkg/sync"
	"github.com/vmesh-io/vmesh/pkg/sync/release"
)

// releases is how the changes of meshes are released in stages. What the stages have lies
// beside the objects in etcd, encrypted as they are.
func (s *Server) releases(mesh []*kind.Kind, meshes, eventStore *resource.Store) (*release.Config, error) {
	kinds, err := sync.Kinds(mesh)
	if err != nil {
		return nil, err
	}
	var transformer func(schema.GroupResource) value.Transformer
	if s.encryption != nil {
		transformer = s.encryption.transformer
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	recorder := events.NewRecorder(eventStore, "vmesh", host)
	s.stages = release.NewStore(s.etcdClient, s.options.Etcd.Prefix+"-releases", kinds, transformer)
	config := &release.Config{
		Store: s.stages,
		HasStages: func(ctx context.Context, uid string) (bool, error) {
			list, err := meshes.List(vmesh.RootContext(ctx), &internalversion.ListOptions{})
			if err != nil {
				return false, fmt.Errorf("listing meshes: %w", err)
			}
			for i := range list.(*object.List).Items {
				if o := &list.(*object.List).Items[i]; string(o.UID) == uid {
					var mesh v1alpha1.Mesh
					err := o.Into(&mesh)
					return err != nil || mesh.Spec.Rollout != nil, nil // one that cannot be read may have some
				}
			}
			return false, nil
		},
		Event: func(ctx context.Context, mesh, uid, kind, reason, message string) {
			recorder.Event(ctx, logical.Root, corev1.ObjectReference{
				APIVersion: v1alpha1.GroupVersion.String(), Kind: "Mesh", Name: mesh, UID: types.UID(uid),
			}, kind, reason, message)
		},
		Shared: s.backend.Shared(),
	}
	if config.Shared {
		config.ControlPlanes = func(ctx context.Context, name string) ([]v1alpha1.ControlPlaneStatus, error) {
			obj, err := meshes.Get(vmesh.RootContext(ctx), name, &metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return nil, nil
			}
			if err != nil {
				return nil, err
			}
			var mesh v1alpha1.Mesh
			err = obj.(*object.Object).Into(&mesh)
			return mesh.Status.ControlPlanes, err
		}
	}
	return config, nil
}
