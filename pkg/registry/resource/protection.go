package resource

import (
	"context"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/quota"
)

const protectedValue = "true"

var (
	protected   = mustRequire(selection.Equals)
	unprotected = labels.NewSelector().Add(mustRequire(selection.NotEquals))
)

func mustRequire(op selection.Operator) labels.Requirement {
	r, err := labels.NewRequirement(v1alpha1.LabelProtected, op, []string{protectedValue})
	if err != nil {
		panic("making the selector of protected objects: " + err.Error())
	}
	return *r
}

// Unprotected selects what may be deleted.
func Unprotected() labels.Selector { return unprotected }

// IsProtected says whether an object is marked as one that must not be deleted.
func IsProtected(o *object.Object) bool { return o.Labels[v1alpha1.LabelProtected] == protectedValue }

// validateProtection refuses marks that somebody may take for one that protects, so that
// a list by the label tells the truth.
func validateProtection(o, old *object.Object) *field.Error {
	value, has := o.Labels[v1alpha1.LabelProtected]
	if !has || value == protectedValue || value == "false" || old != nil && old.Labels[v1alpha1.LabelProtected] == value {
		return nil
	}
	return field.NotSupported(field.NewPath("metadata", "labels").Key(v1alpha1.LabelProtected), value, []string{protectedValue, "false"})
}

// Guard makes a validation of deletions refuse protected objects. What is being deleted
// already is not protected any more. It sees the object that is deleted, as etcd has it.
func Guard(gr schema.GroupResource, validate rest.ValidateObjectFunc) rest.ValidateObjectFunc {
	return func(ctx context.Context, obj runtime.Object) error {
		if o, ok := obj.(*object.Object); ok && IsProtected(o) && o.DeletionTimestamp == nil {
			namespace := ""
			if o.Namespace != "" {
				namespace = "-n " + o.Namespace + " "
			}
			return apierrors.NewForbidden(gr, o.Name, fmt.Errorf("it is protected from deletion: to delete it, first take the label away: kubectl label %s%s %s %s-",
				namespace, gr, o.Name, v1alpha1.LabelProtected))
		}
		if validate == nil {
			return nil
		}
		return validate(ctx, obj)
	}
}

// Delete implements rest.GracefulDeleter. Protected objects are refused, whoever asks;
// a quota never stands in the way.
func (s *Store) Delete(ctx context.Context, name string, validate rest.ValidateObjectFunc, options *metav1.DeleteOptions) (runtime.Object, bool, error) {
	return s.Store.Delete(quota.Exempt(ctx), name, Guard(s.DefaultQualifiedResource, validate), options)
}

// DeleteCollection implements rest.CollectionDeleter. If any of the collection is
// protected, nothing is deleted; one that becomes so meanwhile is not deleted.
func (s *Store) DeleteCollection(ctx context.Context, validate rest.ValidateObjectFunc, options *metav1.DeleteOptions, list *internalversion.ListOptions) (runtime.Object, error) {
	held, err := s.protected(ctx, list)
	if err != nil {
		return nil, err
	}
	if len(held) > 0 {
		return nil, apierrors.NewForbidden(s.DefaultQualifiedResource, "", fmt.Errorf("nothing is deleted, because the collection has %s", Describe(held)))
	}
	return s.Store.DeleteCollection(quota.Exempt(ctx), Guard(s.DefaultQualifiedResource, validate), options, list)
}

// protected are the protected objects of a collection that are not being deleted already.
func (s *Store) protected(ctx context.Context, of *internalversion.ListOptions) ([]string, error) {
	options := &internalversion.ListOptions{}
	selector := labels.NewSelector().Add(protected)
	if of != nil {
		options.FieldSelector = of.FieldSelector
		if of.LabelSelector != nil {
			more, selectable := of.LabelSelector.Requirements()
			if !selectable {
				return nil, nil
			}
			selector = selector.Add(more...)
		}
	}
	options.LabelSelector = selector
	list, err := s.List(ctx, options)
	if err != nil {
		return nil, err
	}
	var found []string
	for i := range list.(*object.List).Items {
		o := &list.(*object.List).Items[i]
		if o.DeletionTimestamp != nil {
			continue
		}
		name := o.Name
		if o.Namespace != "" {
			name = o.Namespace + "/" + name
		}
		found = append(found, s.DefaultQualifiedResource.String()+" "+name)
	}
	return found, nil
}

// Protected are the protected objects in the context's namespace, or in all namespaces,
// as etcd has them.
func Protected(ctx context.Context, stores []*Store) ([]string, error) {
	var found []string
	for _, s := range stores {
		some, err := s.protected(ctx, nil)
		if err != nil {
			return nil, fmt.Errorf("looking for protected %s: %w", s.DefaultQualifiedResource, err)
		}
		found = append(found, some...)
	}
	return found, nil
}

// Describe names some protected objects, and what to do about them.
func Describe(held []string) string {
	const shown = 3
	names := strings.Join(held[:min(shown, len(held))], ", ")
	switch {
	case len(held) == 1:
		return fmt.Sprintf("an object that is protected from deletion (%s): first take its label %s away", names, v1alpha1.LabelProtected)
	case len(held) > shown:
		names += fmt.Sprintf(" and %d more", len(held)-shown)
	}
	return fmt.Sprintf("%d objects that are protected from deletion (%s): first take their label %s away", len(held), names, v1alpha1.LabelProtected)
}
