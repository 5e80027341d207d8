package virtualcluster

import (
	"context"
	"errors"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/registry/vmesh"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// Settle gives virtual clusters what they lack when their surroundings have changed: the
// root namespace, when their mesh has another, and their address, when the server has.
type Settle struct {
	store    *resource.Store
	clusters *vmesh.Clusters
	queue    workqueue.TypedRateLimitingInterface[task]
}

// task is one virtual cluster, or all of a mesh.
type task struct {
	cluster, mesh string
	// address says to correct the address too. That is for starts alone: several servers
	// that were given different addresses would correct each other for ever.
	address bool
}

// NewSettle makes the controller; it works while Run does.
func NewSettle(store *resource.Store, clusters *vmesh.Clusters) *Settle {
	return &Settle{store: store, clusters: clusters, queue: workqueue.NewTypedRateLimitingQueue(
		workqueue.NewTypedItemExponentialFailureRateLimiter[task](50*time.Millisecond, 30*time.Second))}
}

// Clusters observes virtual clusters.
func (s *Settle) Clusters() *ClusterChanges { return &ClusterChanges{s} }

// Meshes observes meshes.
func (s *Settle) Meshes() *MeshChanges { return &MeshChanges{settle: s, roots: map[string]string{}} }

// ClusterChanges is a logical.Observer of virtual clusters.
type ClusterChanges struct{ settle *Settle }

// Replaced implements logical.Observer.
func (c *ClusterChanges) Replaced(items []*object.Object, _ uint64) {
	for _, o := range items {
		c.settle.queue.Add(task{cluster: o.Name, address: true})
	}
}

// Changed implements logical.Observer.
func (c *ClusterChanges) Changed(t watch.EventType, o *object.Object, _ uint64) {
	if t == watch.Modified { // a new one was set up when it was created
		c.settle.queue.Add(task{cluster: o.Name})
	}
}

// Progressed implements logical.Observer.
func (c *ClusterChanges) Progressed(uint64) {}

// MeshChanges is a logical.Observer of meshes.
type MeshChanges struct {
	settle *Settle
	roots  map[string]string // by mesh, the root namespace that was seen last
}

// Replaced implements logical.Observer.
func (m *MeshChanges) Replaced(items []*object.Object, revision uint64) {
	for _, o := range items {
		m.Changed(watch.Modified, o, revision)
	}
}

// Changed implements logical.Observer. Most changes are of a mesh's status.
func (m *MeshChanges) Changed(t watch.EventType, o *object.Object, _ uint64) {
	root := ""
	if t != watch.Deleted {
		var mesh v1alpha1.Mesh
		if err := o.Into(&mesh); err != nil {
			return // quarantined: its virtual clusters keep what they have
		}
		root = mesh.Spec.RootNamespace
	}
	if known, ok := m.roots[o.Name]; ok && known == root {
		return
	}
	m.roots[o.Name] = root
	m.settle.queue.Add(task{mesh: o.Name})
}

// Progressed implements logical.Observer.
func (m *MeshChanges) Progressed(uint64) {}

// Run works until ctx is done.
func (s *Settle) Run(ctx context.Context) {
	drain(ctx, s.queue, s.do, func(t task, err error) {
		klog.FromContext(ctx).V(1).Info("Settling is tried again", "virtualCluster", t.cluster, "mesh", t.mesh, "reason", err.Error())
	})
}

func (s *Settle) do(ctx context.Context, t task) error {
	if t.mesh != "" {
		return s.settleMesh(ctx, t.mesh)
	}
	obj, err := s.store.Get(ctx, t.cluster, &metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, lost := logical.Quarantined(obj.(*object.Object)); lost {
		return nil
	}
	vc, err := vmesh.Decode(obj.(*object.Object))
	if err != nil || vc.DeletionTimestamp != nil {
		return nil // quarantined, or soon gone
	}
	err = s.clusters.EnsureNamespaces(ctx, vc)
	if url := s.clusters.URL(vc.Name); t.address && vc.Status.URL != url {
		err = errors.Join(err, s.correct(ctx, vc.Name, url))
	}
	return err
}

// settleMesh queues the virtual clusters of a mesh.
func (s *Settle) settleMesh(ctx context.Context, mesh string) error {
	list, err := s.store.List(ctx, &internalversion.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return err
	}
	for i := range list.(*object.List).Items {
		vc, err := vmesh.Decode(&list.(*object.List).Items[i])
		if err == nil && vc.Spec.Mesh == mesh {
			s.queue.Add(task{cluster: vc.Name})
		}
	}
	return nil
}

// correct writes a virtual cluster's address.
func (s *Settle) correct(ctx context.Context, name, url string) error {
	return update(ctx, s.store.StatusREST(vmesh.Version), name, func(o *object.Object) error {
		vc, err := vmesh.Decode(o)
		if err != nil {
			return err
		}
		vc.Status.URL = url
		return vmesh.SetStatus(o, vc.Status)
	})
}
