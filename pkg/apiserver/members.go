package apiserver

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/events"
	"github.com/vmesh-io/vmesh/pkg/members"
	"github.com/vmesh-io/vmesh/pkg/quota"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/registry/vmesh"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// keepMembers makes what keeps the connections to member clusters. reader, which may be nil, and followers are told of them.
func (s *Server) keepMembers(stores map[schema.GroupResource]*resource.Store, memberClusters, meshes *resource.Store, reader members.Reader, followers ...members.Follower) {
	secrets := stores[schema.GroupResource{Resource: "secrets"}]
	keeper := members.NewKeeper(members.Config{
		Storage: &memberStorage{
			members: memberClusters, meshes: meshes, secrets: secrets, namespaces: stores[schema.GroupResource{Resource: "namespaces"}],
			clusters: s.clusters, backend: s.backend, events: s.keeper.events,
		},
		Responsible: s.peers.First, Reader: reader, Every: s.options.MemberCheckInterval, Register: register,
	})
	for _, f := range followers {
		keeper.AddFollower(f)
	}
	s.loops = append(s.loops,
		s.observeCached(memberClusters, keeper.Members()), s.observeCached(meshes, keeper.Meshes()), s.observeCached(secrets, keeper.Secrets()),
		loop{"member clusters", func(ctx context.Context) error { keeper.Run(ctx); return nil }},
	)
}

// memberStorage is a members.Storage.
type memberStorage struct {
	members, meshes, secrets, namespaces *resource.Store
	clusters                             *vmesh.Clusters
	backend                              *logical.Backend
	events                               *events.Recorder
}

// Mesh implements members.Storage.
func (m *memberStorage) Mesh(ctx context.Context, name string) (*v1alpha1.Mesh, error) {
	return vmesh.ReadMesh(ctx, m.meshes, name)
}

// MemberExists implements members.Storage.
func (m *memberStorage) MemberExists(ctx context.Context, name string) (bool, error) {
	_, err := m.members.Get(vmesh.RootContext(ctx), name, &metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

func inNamespace(ctx context.Context, cluster, namespace string) context.Context {
	return request.WithNamespace(logical.WithCluster(ctx, cluster), namespace)
}

// Secret implements members.Storage.
func (m *memberStorage) Secret(ctx context.Context, cluster, namespace, name string, fresh bool) (*corev1.Secret, error) {
	options := &metav1.GetOptions{}
	if !fresh {
		options.ResourceVersion = "0"
	}
	obj, err := m.secrets.Get(inNamespace(ctx, cluster, namespace), name, options)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if reason, lost := logical.Quarantined(obj.(*object.Object)); lost {
		return nil, fmt.Errorf("it is stored, but cannot be read: %s", reason)
	}
	var secret corev1.Secret
	if err := obj.(*object.Object).Into(&secret); err != nil {
		return nil, fmt.Errorf("it cannot be decoded") // what the decoder says may quote it
	}
	return &secret, nil
}

// WriteSecret implements members.Storage. What vmesh keeps in a virtual cluster no quota of that stands against.
func (m *memberStorage) WriteSecret(ctx context.Context, cluster string, secret *corev1.Secret) error {
	o, err := object.From(secret, corev1.SchemeGroupVersion.WithKind("Secret"))
	if err != nil {
		return err
	}
	ctx = quota.Exempt(inNamespace(ctx, cluster, secret.Namespace))
	if secret.ResourceVersion == "" {
		_, err = m.secrets.Create(ctx, o, rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
		return err
	}
	_, _, err = m.secrets.REST("v1").Update(ctx, secret.Name, rest.DefaultUpdatedObjectInfo(o), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	return err
}

// DeleteSecret implements members.Storage.
func (m *memberStorage) DeleteSecret(ctx context.Context, cluster string, secret *corev1.Secret) error {
	_, _, err := m.secrets.Delete(inNamespace(ctx, cluster, secret.Namespace), secret.Name, rest.ValidateAllObjectFunc, &metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &secret.UID, ResourceVersion: &secret.ResourceVersion},
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// HasNamespace implements members.Storage.
func (m *memberStorage) HasNamespace(ctx context.Context, cluster, namespace string) (bool, error) {
	exists, deleting, _, err := m.clusters.State(ctx, cluster)
	if err != nil || !exists || deleting || cluster == logical.Root {
		return false, err
	}
	obj, err := m.namespaces.Get(inNamespace(ctx, cluster, metav1.NamespaceNone), namespace, &metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil && obj.(*object.Object).DeletionTimestamp == nil, err
}

// UpdateStatus implements members.Storage.
func (m *memberStorage) UpdateStatus(ctx context.Context, name string, uid types.UID, change func(*v1alpha1.MemberClusterStatus)) error {
	return updateStatus(ctx, m.members, name, func(o *object.Object) error {
		if o.UID != uid {
			return apierrors.NewNotFound(schema.GroupResource{Group: v1alpha1.GroupVersion.Group, Resource: "memberclusters"}, name)
		}
		var member v1alpha1.MemberCluster
		if err := o.Into(&member); err != nil {
			return err
		}
		change(&member.Status)
		return vmesh.SetStatus(o, member.Status)
	})
}

// Event implements members.Storage.
func (m *memberStorage) Event(ctx context.Context, name string, uid types.UID, kind, reason, message string) {
	m.events.Again(ctx, logical.Root, corev1.ObjectReference{
		APIVersion: v1alpha1.GroupVersion.String(), Kind: "MemberCluster", Name: name, UID: uid,
	}, kind, reason, message)
}

// Lock implements members.Storage.
func (m *memberStorage) Lock(ctx context.Context, name string) (func(), error) {
	return m.backend.Lock(ctx, name)
}
