package apiserver

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
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
func (s *Server) assembleSync(mesh []*kind.Kind, stores map[schema.GroupResource]*resource.Store, meshes, virtualClusters *resource.Store, creds *credentials, gate *receivers) error {
	releases, err := s.releases(mesh, meshes, stores[schema.GroupResource{Resource: "events"}])
	if err != nil {
		return err
	}
	peers := s.backend.Peers()
	s.peers = peers
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
		Writer:     statusWriter{meshes, virtualClusters, s.keeper.events},
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
	s.meshes = func(ctx context.Context) ([]string, error) {
		list, err := meshes.List(vmesh.RootContext(ctx), &internalversion.ListOptions{})
		if err != nil {
			return nil, fmt.Errorf("listing meshes: %w", err)
		}
		var names []string
		for _, o := range list.(*object.List).Items {
			names = append(names, o.Name)
		}
		return names, nil
	}
	s.loops = append(s.loops, loop{"config source", s.sync.Run}, loop{"servers on this etcd", peers.Run}, s.observe(meshes, gate))
	return nil
}

// tellOfCluster writes an event about a virtual cluster into the root.
func (s *Server) tellOfCluster(ctx context.Context, o *object.Object, reason, message string) {
	s.keeper.events.Event(ctx, logical.Root, events.Reference(o), corev1.EventTypeNormal, reason, message)
}

// reviewClaims implements vmesh.ReviewClaims.
func (s *Server) reviewClaims(ctx context.Context, clusters []*v1alpha1.VirtualCluster, meshes []*v1alpha1.Mesh) (heldBack, letIn []v1alpha1.ReviewedResource, err error) {
	review, err := s.sync.Snapshots().Review(ctx, snapshot.Plan{VirtualClusters: clusters, Meshes: meshes})
	if err != nil {
		return nil, nil, err
	}
	reviewed := func(all []snapshot.Held) []v1alpha1.ReviewedResource {
		out := make([]v1alpha1.ReviewedResource, len(all))
		for i, h := range all {
			out[i] = v1alpha1.ReviewedResource{VirtualCluster: h.VirtualCluster, HeldBackResource: h.HeldBackResource}
		}
		return out
	}
	return reviewed(review.HeldBack), reviewed(review.LetIn), nil
}

// statusWriter writes statuses through the storage, as any client would.
type statusWriter struct {
	meshes, virtualClusters *resource.Store
	events                  *events.Recorder
}

// UpdateMeshStatus implements status.Writer.
func (w statusWriter) UpdateMeshStatus(ctx context.Context, name string, mutate func(*v1alpha1.MeshStatus) error) error {
	return updateStatus(ctx, w.meshes, name, func(o *object.Object) error {
		var mesh v1alpha1.Mesh
		if err := o.Into(&mesh); err != nil {
			return err
		}
		if err := mutate(&mesh.Status); err != nil {
			return err
		}
		return vmesh.SetStatus(o, mesh.Status)
	})
}

// UpdateVirtualClusterStatus implements status.Writer.
func (w statusWriter) UpdateVirtualClusterStatus(ctx context.Context, name string, mutate func(*v1alpha1.VirtualClusterStatus) error) error {
	var about corev1.ObjectReference
	var before, after *metav1.Condition
	if err := updateStatus(ctx, w.virtualClusters, name, func(o *object.Object) error {
		if _, is := logical.Quarantined(o); is {
			return errUnreadable
		}
		vc, err := vmesh.Decode(o)
		if err != nil {
			return err
		}
		if c := meta.FindStatusCondition(vc.Status.Conditions, v1alpha1.ConditionConforming); c != nil {
			was := *c
			before = &was
		}
		if err := mutate(&vc.Status); err != nil {
			return err
		}
		about, after = events.Reference(o), meta.FindStatusCondition(vc.Status.Conditions, v1alpha1.ConditionConforming)
		return vmesh.SetStatus(o, vc.Status)
	}); err != nil || after == nil {
		if errors.Is(err, errUnreadable) {
			return nil // what its status tells is told by its annotation already
		}
		return err
	}
	if before != nil && before.Status == after.Status && before.Message == after.Message {
		return nil
	}
	kind := corev1.EventTypeWarning
	if after.Status == metav1.ConditionTrue {
		if before == nil {
			return nil
		}
		kind = corev1.EventTypeNormal
	}
	w.events.Event(ctx, logical.Root, about, kind, after.Reason, after.Message)
	return nil
}

var errUnreadable = errors.New("it cannot be read")

// updateStatus changes an object of the root. One that is gone meanwhile is no error.
func updateStatus(ctx context.Context, store *resource.Store, name string, change func(*object.Object) error) error {
	_, _, err := store.StatusREST(vmesh.Version).Update(vmesh.RootContext(ctx), name,
		rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
			o := old.(*object.Object).DeepCopy()
			return o, change(o)
		}), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
