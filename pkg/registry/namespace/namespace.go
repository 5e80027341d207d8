// Package namespace is the storage of namespaces: deleting one empties it first.
package namespace

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/endpoints/request"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage"
	storeerr "k8s.io/apiserver/pkg/storage/errors"
	"k8s.io/apiserver/pkg/util/dryrun"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/quota"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
)

// Version is the version that namespaces are served in.
const Version = "v1"

func setMember(obj *object.Object, content map[string]any, name string, value any) error {
	changed := map[string]any{name: value}
	for k, v := range content {
		if k != name {
			changed[k] = v
		}
	}
	return obj.SetContent(changed)
}

// Terminating says whether a namespace is being emptied.
func Terminating(o *object.Object) bool { return o.DeletionTimestamp != nil }

// REST serves namespaces.
type REST struct {
	*resource.REST
	// Contents are the stores of all namespaced kinds.
	Contents []*resource.Store
}

// FinalizeREST serves the finalize subresource: whoever takes care of a namespace's
// contents removes its finalizer from the spec there.
type FinalizeREST struct {
	*resource.StatusREST
	store *genericregistry.Store
}

// NewREST makes the storage of namespaces and of their finalize subresource.
func NewREST(s *resource.Store) (*REST, *FinalizeREST) {
	s.ShouldDeleteDuringUpdate = func(ctx context.Context, key string, obj, existing runtime.Object) bool {
		return len(finalizers(obj.(*object.Object))) == 0 && genericregistry.ShouldDeleteDuringUpdate(ctx, key, obj, existing)
	}
	finalize := *s.Store
	finalize.UpdateStrategy = finalizeStrategy{s.UpdateStrategy}
	s.UpdateStrategy = updateStrategy{s.UpdateStrategy}
	return &REST{REST: s.REST(Version)}, &FinalizeREST{StatusREST: s.StatusREST(Version), store: &finalize}
}

func finalizers(o *object.Object) []corev1.FinalizerName {
	var namespace corev1.Namespace
	if err := o.Into(&namespace); err != nil {
		// Storage quarantined it: nothing in it can be told, so nothing holds it.
		return nil
	}
	return namespace.Spec.Finalizers
}

// Delete implements rest.GracefulDeleter: it marks the namespace, which is removed when
// it is empty and its finalizers are gone. One that is protected, or holds an object that
// is, is refused. Of an object that becomes so in the same moment no more is promised than
// that it is not deleted: its namespace then waits for it.
func (r *REST) Delete(ctx context.Context, name string, validate rest.ValidateObjectFunc, options *metav1.DeleteOptions) (runtime.Object, bool, error) {
	ctx = quota.Exempt(ctx)
	obj, err := r.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return nil, false, err
	}
	o := obj.(*object.Object)
	if options == nil {
		options = metav1.NewDeleteOptions(0)
	}
	if options.Preconditions == nil {
		options.Preconditions = &metav1.Preconditions{}
	}
	if options.Preconditions.UID == nil {
		options.Preconditions.UID = &o.UID
	}
	if *options.Preconditions.UID != o.UID {
		return nil, false, apierrors.NewConflict(r.DefaultQualifiedResource, name, fmt.Errorf(
			"precondition failed: UID in precondition: %v, UID in object meta: %v", *options.Preconditions.UID, o.UID))
	}
	if rv := options.Preconditions.ResourceVersion; rv != nil && *rv != o.ResourceVersion {
		return nil, false, apierrors.NewConflict(r.DefaultQualifiedResource, name, fmt.Errorf(
			"precondition failed: ResourceVersion in precondition: %v, ResourceVersion in object meta: %v", *rv, o.ResourceVersion))
	}
	if o.DeletionTimestamp == nil {
		marked, err := r.mark(ctx, name, resource.Guard(r.DefaultQualifiedResource, r.guardContents(validate)), options)
		return marked, false, err
	}
	if len(finalizers(o)) == 0 {
		return r.REST.Delete(ctx, name, validate, options)
	}
	return o, false, nil
}

// guardContents makes a validation of deletions refuse namespaces that hold protected objects.
func (r *REST) guardContents(validate rest.ValidateObjectFunc) rest.ValidateObjectFunc {
	return func(ctx context.Context, obj runtime.Object) error {
		name := obj.(*object.Object).Name
		held, err := resource.Protected(request.WithNamespace(ctx, name), r.Contents)
		if err != nil {
			return err
		}
		if len(held) > 0 {
			return apierrors.NewForbidden(r.DefaultQualifiedResource, name, fmt.Errorf("it holds %s", resource.Describe(held)))
		}
		if validate == nil {
			return nil
		}
		return validate(ctx, obj)
	}
}

// mark writes the time of deletion and the phase that goes with it.
func (r *REST) mark(ctx context.Context, name string, validate rest.ValidateObjectFunc, options *metav1.DeleteOptions) (runtime.Object, error) {
	key, err := r.KeyFunc(ctx, name)
	if err != nil {
		return nil, err
	}
	out := r.NewFunc()
	preconditions := &storage.Preconditions{UID: options.Preconditions.UID, ResourceVersion: options.Preconditions.ResourceVersion}
	err = r.Storage.GuaranteedUpdate(ctx, key, out, false, preconditions, storage.SimpleUpdate(func(existing runtime.Object) (runtime.Object, error) {
		o, ok := existing.(*object.Object)
		if !ok {
			return nil, fmt.Errorf("expected a namespace, got %T", existing)
		}
		if err := validate(ctx, o); err != nil {
			return nil, err
		}
		o = o.DeepCopy()
		if o.DeletionTimestamp == nil {
			now := metav1.Now()
			o.DeletionTimestamp = &now
		}
		content, err := o.Content()
		if err != nil {
			return nil, err
		}
		status := map[string]any{}
		if before, ok := content["status"].(map[string]any); ok {
			for k, v := range before {
				status[k] = v
			}
		}
		status["phase"] = string(corev1.NamespaceTerminating)
		if err := setMember(o, content, "status", status); err != nil {
			return nil, err
		}
		// As with other objects, an orphaned or foreground deletion is for the garbage collector to finish.
		if options.OrphanDependents != nil && *options.OrphanDependents && !slices.Contains(o.Finalizers, metav1.FinalizerOrphanDependents) {
			o.Finalizers = append(o.Finalizers, metav1.FinalizerOrphanDependents)
		}
		o.DropContent()
		return o, nil
	}), dryrun.IsDryRun(options.DryRun), nil)
	if err != nil {
		return nil, storeerr.InterpretDeleteError(err, r.DefaultQualifiedResource, name)
	}
	return out, nil
}

// DeleteCollection is refused: namespaces are deleted one by one, as upstream has it.
func (r *REST) DeleteCollection(context.Context, rest.ValidateObjectFunc, *metav1.DeleteOptions, *internalversion.ListOptions) (runtime.Object, error) {
	return nil, apierrors.NewMethodNotSupported(r.DefaultQualifiedResource, "deletecollection")
}

// Update implements rest.Updater.
func (r *FinalizeREST) Update(ctx context.Context, name string, objInfo rest.UpdatedObjectInfo, createValidation rest.ValidateObjectFunc,
	updateValidation rest.ValidateObjectUpdateFunc, _ bool, options *metav1.UpdateOptions) (runtime.Object, bool, error) {
	return r.store.Update(ctx, name, objInfo, createValidation, updateValidation, false, options)
}

// GetResetFields implements rest.ResetFieldsStrategy: all but the spec.
func (r *FinalizeREST) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	return map[fieldpath.APIVersion]*fieldpath.Set{
		Version: fieldpath.NewSet(fieldpath.MakePathOrDie("metadata"), fieldpath.MakePathOrDie("status")),
	}
}

// updateStrategy keeps the spec, which has nothing but the finalizers that hold a
// namespace until it is empty: without them it would be gone before what it holds.
type updateStrategy struct{ rest.RESTUpdateStrategy }

func (s updateStrategy) PrepareForUpdate(ctx context.Context, obj, old runtime.Object) {
	s.RESTUpdateStrategy.PrepareForUpdate(ctx, obj, old)
	o, was := obj.(*object.Object), old.(*object.Object)
	wanted, wantedErr := o.Content()
	content, err := was.Content()
	if wantedErr != nil || err != nil {
		return // a broken body is refused by validation; what storage quarantined has no spec to keep
	}
	if err := setMember(o, wanted, "spec", content["spec"]); err != nil {
		panic("encoding a decoded tree: " + err.Error())
	}
}

// finalizeStrategy lets a write change the spec's finalizers and nothing else.
type finalizeStrategy struct{ rest.RESTUpdateStrategy }

func (s finalizeStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	o, was := obj.(*object.Object), old.(*object.Object)
	if o == was {
		return // copying an object into itself would lose what is copied
	}
	wanted, wantedErr := o.Content()
	content, err := was.Content()
	managed := o.ManagedFields
	was.DeepCopyInto(o)
	o.ManagedFields = managed
	if wantedErr != nil || err != nil {
		return // the broken body is left as it is; validation says so
	}
	if err := setMember(o, content, "spec", wanted["spec"]); err != nil {
		panic("encoding a decoded tree: " + err.Error())
	}
}
