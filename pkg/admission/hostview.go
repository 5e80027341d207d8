package admission

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/warning"

	"github.com/vmesh-io/vmesh/pkg/authz"
)

// HostNamespaces says whether the host cluster has a namespace that takes new objects.
type HostNamespaces func(ctx context.Context, name string) (bool, error)

// HostView fits writes through the host view into the virtual cluster that serves it. A
// namespace that the host has and the virtual cluster has not is made with the first
// object in it. References to owners are left out: the owners are the host's, nobody
// deletes by them, and the virtual cluster's collector would take the object for an
// orphan.
type HostView struct {
	*NamespaceLifecycle
	namespaces rest.Creater
	host       HostNamespaces
	newObject  func(name string) runtime.Object
}

var _ admission.MutationInterface = (*HostView)(nil)

// NewHostView goes around the plugin that wants namespaces to exist. newObject makes the
// namespace to store.
func NewHostView(lifecycle *NamespaceLifecycle, namespaces rest.Creater, newObject func(name string) runtime.Object, host HostNamespaces) *HostView {
	return &HostView{NamespaceLifecycle: lifecycle, namespaces: namespaces, newObject: newObject, host: host}
}

// Handles implements admission.Interface.
func (v *HostView) Handles(o admission.Operation) bool {
	return o == admission.Update || v.NamespaceLifecycle.Handles(o)
}

// Admit implements admission.MutationInterface.
func (v *HostView) Admit(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	if authz.InHostView(ctx) && a.GetOperation() != admission.Delete {
		if err := dropOwners(ctx, a); err != nil {
			return err
		}
	}
	if a.GetOperation() == admission.Update {
		return nil
	}
	err := v.NamespaceLifecycle.Admit(ctx, a, o)
	if !authz.InHostView(ctx) || a.GetOperation() != admission.Create || !apierrors.IsNotFound(err) {
		return err
	}
	has, away := v.host(ctx, a.GetNamespace())
	if away != nil {
		return apierrors.NewServiceUnavailable(fmt.Sprintf("the host cluster does not say whether it has namespace %q: %v", a.GetNamespace(), away))
	}
	if !has {
		return err
	}
	if a.IsDryRun() {
		return nil // it would be made
	}
	ctx = request.WithNamespace(ctx, metav1.NamespaceNone)
	_, err = v.namespaces.Create(ctx, v.newObject(a.GetNamespace()), rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err // as it is: a quota's refusal, for one, is an answer
	}
	return v.NamespaceLifecycle.Admit(ctx, a, o)
}

// dropOwners takes the references out that the stored object does not have.
func dropOwners(ctx context.Context, a admission.Attributes) error {
	if a.GetSubresource() != "" {
		return nil
	}
	obj, err := meta.Accessor(a.GetObject())
	if err != nil {
		return err
	}
	owners := obj.GetOwnerReferences()
	if len(owners) == 0 {
		return nil
	}
	stored := sets.Set[types.UID]{}
	if old := a.GetOldObject(); old != nil {
		before, err := meta.Accessor(old)
		if err != nil {
			return err
		}
		for _, owner := range before.GetOwnerReferences() {
			stored.Insert(owner.UID)
		}
	}
	var kept []metav1.OwnerReference
	for _, owner := range owners {
		if stored.Has(owner.UID) {
			kept = append(kept, owner)
			continue
		}
		warning.AddWarning(ctx, "", oneLine(fmt.Sprintf(
			"metadata.ownerReferences: left out %s %q: the object lives in a virtual cluster, and is not deleted with an owner in the host cluster", owner.Kind, owner.Name)))
	}
	obj.SetOwnerReferences(kept)
	return nil
}
