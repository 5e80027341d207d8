package apiserver

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/events"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/registry/vmesh"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
	"github.com/vmesh-io/vmesh/pkg/sync"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
	"github.com/vmesh-io/vmesh/pkg/sync/xds"
)

// assembleSync makes the meshes' config source: snapshots of what the watch caches
// hold, served to control planes.
func (s *Server) assembleSync(mesh []*kind.Kind, stores map[schema.GroupResource]*resource.Store, meshes *resource.Store, creds *credentials, gate *receivers) error {
	releases, err := s.releases(mesh, meshes, stores[schema.GroupResource{Resource: "events"}])
	if err != nil {
		return err
	}
	peers := s.backend.Peers()
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
		Current:    current,
		Writer:     meshStatus{meshes},
		Conditions: newConditions(mesh, stores),
		Servers:    peers,
		Tell: func(ctx context.Context, mesh, kind, reason, message string) {
			obj, err := meshes.Get(vmesh.RootContext(ctx), mesh, &metav1.GetOptions{ResourceVersion: "0"})
			if err != nil {
				return // deleted meanwhile
			}
			s.keeper.events.Again(ctx, logical.Root, events.Reference(obj.(*object.Object)), kind, reason, message)
		},
		Plain:     s.xdsPlain,
		TLS:       s.xdsOnTLS,
		TLSConfig: xdsTLS(creds),
		XDS:       xds.Options{Gate: gate},
		Releases:  releases,
		Register:  register,
	})
	if err != nil {
		return err
	}
	s.loops = append(s.loops, loop{"config source", s.sync.Run}, loop{"servers on this etcd", peers.Run}, s.observe(meshes, gate))
	return nil
}

// tellOfCluster writes an event about a virtual cluster into the root.
func (s *Server) tellOfCluster(ctx context.Context, o *object.Object, reason, message string) {
	s.keeper.events.Event(ctx, logical.Root, events.Reference(o), corev1.EventTypeNormal, reason, message)
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
