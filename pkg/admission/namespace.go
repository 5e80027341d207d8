// Package admission decides what may come in, after authorization and before storage.
package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// NamespaceLifecycle refuses new objects in namespaces that do not exist or are being
// emptied, and the deletion of the namespaces that every virtual cluster has. Upstream's
// plugin of that name remembers namespaces by their bare names and would mix up virtual
// clusters.
type NamespaceLifecycle struct {
	*admission.Handler
	namespaces rest.Getter
	immortal   func(ctx context.Context, namespace string) bool
}

var _ admission.MutationInterface = (*NamespaceLifecycle)(nil)

// NewNamespaceLifecycle reads namespaces from their storage. immortal says which ones the
// context's virtual cluster always has.
func NewNamespaceLifecycle(namespaces rest.Getter, immortal func(ctx context.Context, namespace string) bool) *NamespaceLifecycle {
	return &NamespaceLifecycle{admission.NewHandler(admission.Create, admission.Delete), namespaces, immortal}
}

var (
	namespaceKind = schema.GroupKind{Kind: "Namespace"}
	// accessReviews ask about a namespace, and make nothing in it.
	accessReviews = schema.GroupResource{Group: "authorization.k8s.io", Resource: "localsubjectaccessreviews"}
)

// Admit implements admission.MutationInterface. It changes nothing, but comes before
// validation: that there is no such namespace is said first.
func (l *NamespaceLifecycle) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetOperation() == admission.Delete {
		if a.GetKind().GroupKind() == namespaceKind && l.immortal(ctx, a.GetName()) {
			return apierrors.NewForbidden(a.GetResource().GroupResource(), a.GetName(), fmt.Errorf("this namespace may not be deleted: every virtual cluster has it"))
		}
		return nil
	}
	if a.GetNamespace() == "" || a.GetKind().GroupKind() == namespaceKind || a.GetResource().GroupResource() == accessReviews {
		return nil
	}
	namespace, err := l.get(ctx, a.GetNamespace())
	if err != nil {
		return err
	}
	if namespace.DeletionTimestamp == nil {
		return nil
	}
	forbidden := apierrors.NewForbidden(a.GetResource().GroupResource(), a.GetName(),
		fmt.Errorf("unable to create new content in namespace %s because it is being terminated", namespace.Name))
	forbidden.ErrStatus.Details.Causes = append(forbidden.ErrStatus.Details.Causes, metav1.StatusCause{
		Type: corev1.NamespaceTerminatingCause, Message: fmt.Sprintf("namespace %s is being terminated", namespace.Name), Field: "metadata.namespace",
	})
	return forbidden
}

// get reads a namespace from the watch cache, and from etcd when the cache has none:
// it may be a moment old.
func (l *NamespaceLifecycle) get(ctx context.Context, name string) (*object.Object, error) {
	ctx = request.WithNamespace(ctx, metav1.NamespaceNone)
	obj, err := l.namespaces.Get(ctx, name, &metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		obj, err = l.namespaces.Get(ctx, name, &metav1.GetOptions{})
	}
	if apierrors.IsNotFound(err) {
		// The storage's error would name the resource that the request is for.
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, name)
	}
	if err != nil {
		return nil, err
	}
	return obj.(*object.Object), nil
}
