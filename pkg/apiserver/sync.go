package apiserver

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/registry/vmesh"
	"github.com/vmesh-io/vmesh/pkg/sync"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
	"github.com/vmesh-io/vmesh/pkg/sync/xds"
)

// assembleSync makes the meshes' config source: snapshots of what the watch caches
// hold, served to control planes.
func (s *Server) assembleSync(mesh []*kind.Kind, meshes *resource.Store, creds *credentials, gate *receivers) error {
	var err error
	var current func(context.Context) (uint64, error)
	if s.backend.Shared() {
		current = func(ctx context.Context) (uint64, error) {
			return s.backend.Current(ctx, meshes.Kind().GroupResource())
		}
	}
	s.sync, err = sync.New(sync.Config{
		Kinds: mesh,
		Observe: func(ctx context.Context, gr schema.GroupResource, o snapshot.Observer) error {
			return s.backend.Observe(ctx, gr, o)
		},
		Current:   current,
		Writer:    meshStatus{meshes},
		Plain:     s.xdsPlain,
		TLS:       s.xdsOnTLS,
		TLSConfig: xdsTLS(creds),
		XDS:       xds.Options{Gate: gate},
		Register:  register,
	})
	if err != nil {
		return err
	}
	s.loops = append(s.loops, loop{"config source", s.sync.Run}, s.observe(meshes, gate))
	return nil
}

// meshStatus writes statuses through the storage, as any client would.
type meshStatus struct{ meshes *resource.Store }

// UpdateMeshStatus implements status.Writer.
func (m meshStatus) UpdateMeshStatus(ctx context.Context, name string, mutate func(*v1alpha1.MeshStatus) error) error {
	_, _, err := m.meshes.StatusREST(vmesh.Version).Update(vmesh.RootContext(ctx), name,
		rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
			o := old.(*object.Object).DeepCopy()
			var mesh v1alpha1.Mesh
			if err := o.Into(&mesh); err != nil {
				return nil, err
			}
			if err := mutate(&mesh.Status); err != nil {
				return nil, err
			}
			return o, vmesh.SetStatus(o, mesh.Status)
		}), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil // deleted meanwhile
	}
	return err
}
