package resource

import (
	"bytes"
	"context"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage/names"
	"k8s.io/apiserver/pkg/warning"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// strategy is what writing an object of a kind means.
type strategy struct {
	names.NameGenerator
	kind   *kind.Kind
	marker Marker // may be nil
}

// Marker keeps a part of the status that the server itself writes, for kinds that have
// such a part. Its methods are called before validation, and may change the object's
// status and nothing else.
type Marker interface {
	// Written completes an object that is written, with its status as it was; old is
	// nil on create. It is not called for dry runs, whose answers people compare with
	// what is stored.
	Written(ctx context.Context, obj, old *object.Object)
	// StatusWritten puts back what a write of the status must not change.
	StatusWritten(ctx context.Context, obj, old *object.Object)
}

var (
	_ rest.RESTCreateStrategy              = strategy{}
	_ rest.RESTUpdateStrategy              = strategy{}
	_ rest.RESTDeleteStrategy              = strategy{}
	_ rest.GarbageCollectionDeleteStrategy = strategy{}
)

func newStrategy(k *kind.Kind, marker Marker) strategy {
	return strategy{NameGenerator: names.SimpleNameGenerator, kind: k, marker: marker}
}

func (s strategy) ObjectKinds(obj runtime.Object) ([]schema.GroupVersionKind, bool, error) {
	return []schema.GroupVersionKind{obj.GetObjectKind().GroupVersionKind()}, false, nil
}

func (s strategy) Recognizes(gvk schema.GroupVersionKind) bool {
	return gvk.GroupKind() == s.kind.GroupKind()
}

func (s strategy) NamespaceScoped() bool { return s.kind.Namespaced() }

// DefaultGarbageCollectionPolicy deletes dependents in the background.
func (s strategy) DefaultGarbageCollectionPolicy(context.Context) rest.GarbageCollectionPolicy {
	return rest.DeleteDependents
}

// AllowCreateOnUpdate is false: PUT replaces, as for custom resources.
func (s strategy) AllowCreateOnUpdate(context.Context) bool { return false }

// AllowUnconditionalUpdate follows upstream: custom resources must say which version
// they replace, Kubernetes' own kinds need not.
func (s strategy) AllowUnconditionalUpdate(context.Context) bool { return s.kind.Hooks.Builtin }

// hasStatus says whether the status is written through its own endpoint only.
func (s strategy) hasStatus(o *object.Object) bool {
	return s.kind.HasStatus(o.GroupVersionKind().Version)
}

// nodeKind is the one kind that is created with its status: so a kubelet registers itself.
var nodeKind = schema.GroupKind{Kind: "Node"}

func (s strategy) PrepareForCreate(ctx context.Context, obj runtime.Object) {
	o := obj.(*object.Object)
	o.Generation = 0
	if !s.kind.Hooks.Builtin {
		o.Generation = 1
	}
	if s.hasStatus(o) && s.kind.GroupKind() != nodeKind {
		setMember(o, "status", nil, false)
	}
	if s.marker != nil && !isDryRun(ctx) {
		s.marker.Written(ctx, o, nil)
	}
}

func (s strategy) PrepareForUpdate(ctx context.Context, obj, old runtime.Object) {
	o, was := obj.(*object.Object), old.(*object.Object)
	if s.hasStatus(o) {
		if kept := was.Field("status"); !bytes.Equal(kept, o.Field("status")) {
			status, has := member(was, "status")
			setMember(o, "status", status, has)
		}
	}
	if !s.kind.Hooks.Builtin && !bytes.Equal(o.Body(), was.Body()) {
		o.Generation = was.Generation + 1
	}
	if s.marker != nil && !isDryRun(ctx) {
		s.marker.Written(ctx, o, was)
	}
}

func (s strategy) Validate(ctx context.Context, obj runtime.Object) field.ErrorList {
	return s.validate(ctx, obj.(*object.Object), nil)
}

func (s strategy) ValidateUpdate(ctx context.Context, obj, old runtime.Object) field.ErrorList {
	return s.validate(ctx, obj.(*object.Object), old.(*object.Object))
}

func (s strategy) validate(ctx context.Context, o, old *object.Object) field.ErrorList {
	if prepare := s.kind.Hooks.Prepare; prepare != nil {
		// Here and not in PrepareForCreate, which has no way to refuse.
		if err := prepare(o, old); err != nil {
			return field.ErrorList{field.InternalError(nil, err)}
		}
	}
	if err := validateProtection(o, old); err != nil {
		return field.ErrorList{err}
	}
	warnings, errs := s.kind.Validate(ctx, o.GroupVersionKind().Version, o, old)
	if len(errs) > 0 {
		return errs
	}
	for _, w := range warnings {
		warning.AddWarning(ctx, "", w)
	}
	return nil
}

// WarningsOnCreate are none: validation has given them.
// Warnings come with validation.
func (s strategy) WarningsOnCreate(context.Context, runtime.Object) []string { return nil }
func (s strategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}

// Canonicalize forgets the tree: from here on the object is stored and shared.
func (s strategy) Canonicalize(obj runtime.Object) { obj.(*object.Object).DropContent() }

// statusStrategy is what writing the status alone means.
type statusStrategy struct{ strategy }

func (s statusStrategy) PrepareForUpdate(ctx context.Context, obj, old runtime.Object) {
	o, was := obj.(*object.Object), old.(*object.Object)
	if o == was {
		return // copying an object into itself would lose what is copied
	}
	status, has := member(o, "status")
	managed, version := o.ManagedFields, o.APIVersion

	was.DeepCopyInto(o)
	o.ManagedFields, o.APIVersion = managed, version
	if kept, had := member(was, "status"); had != has || !apiequality.Semantic.DeepEqual(kept, status) {
		setMember(o, "status", status, has)
	}
	if s.marker != nil {
		s.marker.StatusWritten(ctx, o, was)
	}
}

func (s statusStrategy) ValidateUpdate(ctx context.Context, obj, old runtime.Object) field.ErrorList {
	o := obj.(*object.Object)
	if reason, lost := logical.Quarantined(old.(*object.Object)); lost {
		// A status would take the place of all that there is, and may be read again some day.
		return field.ErrorList{field.Forbidden(field.NewPath("status"), "the stored object cannot be read, so it has to be replaced as a whole, or deleted: "+reason)}
	}
	return s.kind.ValidateStatus(ctx, o.GroupVersionKind().Version, o, old.(*object.Object))
}
