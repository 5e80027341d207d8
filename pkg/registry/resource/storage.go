// Package resource is the REST storage and strategy of every kind that is kept in
// etcd: the kinds differ in their rows of the table and not in code.
package resource

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/util/dryrun"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// deleteWorkers is how many objects of a collection are deleted at once.
const deleteWorkers = 4

// Store is the storage of one kind for all virtual clusters. Its Store may be
// adjusted (hooks, TTL) before REST is called for the first time.
type Store struct {
	*genericregistry.Store
	kind   *kind.Kind
	marker Marker
}

// NewStore opens the kind's storage.
func NewStore(k *kind.Kind, backend *logical.Backend) (*Store, error) {
	row := logical.Resource{
		GroupResource: k.GroupResource(),
		GVK:           k.GVK(k.StorageVersion()),
		ListGVK:       k.ListGVK(k.StorageVersion()),
		Namespaced:    k.Namespaced(),
		GetAttrs: func(obj runtime.Object) (labels.Set, fields.Set, error) {
			o := obj.(*object.Object)
			return o.Labels, k.Fields(o), nil
		},
	}
	opened, err := backend.Open(row)
	if err != nil {
		return nil, err
	}
	s := newStrategy(k, nil)
	return &Store{kind: k, Store: &genericregistry.Store{
		NewFunc:                   func() runtime.Object { return object.New(k.GVK(k.StorageVersion())) },
		NewListFunc:               func() runtime.Object { return newList(k, k.StorageVersion()) },
		DefaultQualifiedResource:  k.GroupResource(),
		SingularQualifiedResource: k.SingularResource(),
		KeyRootFunc:               logical.KeyRootFunc(k.GroupResource(), k.Namespaced()),
		KeyFunc:                   logical.KeyFunc(k.GroupResource(), k.Namespaced()),
		ObjectNameFunc:            func(obj runtime.Object) (string, error) { return obj.(*object.Object).Name, nil },
		PredicateFunc: func(label labels.Selector, field fields.Selector) storage.SelectionPredicate {
			return storage.SelectionPredicate{Label: label, Field: field, GetAttrs: row.GetAttrs}
		},
		EnableGarbageCollection: true,
		DeleteCollectionWorkers: deleteWorkers,
		CreateStrategy:          s,
		UpdateStrategy:          s,
		DeleteStrategy:          s,
		ReadinessCheckFunc:      opened.ReadinessCheck,
		Storage:                 genericregistry.DryRunnableStorage{Storage: opened, Codec: copier{}},
	}}, nil
}

// Mark has a marker complete what is written, before REST and StatusREST are called.
func (s *Store) Mark(marker Marker) {
	s.marker = marker
	st := newStrategy(s.kind, marker)
	s.CreateStrategy, s.UpdateStrategy, s.DeleteStrategy = st, st, st
}

type dryRunKey struct{}

// isDryRun says whether a strategy is asked for a write that will not be stored; upstream
// does not tell it.
func isDryRun(ctx context.Context) bool { return ctx.Value(dryRunKey{}) != nil }

func withDryRun(ctx context.Context, options []string) context.Context {
	if !dryrun.IsDryRun(options) {
		return ctx
	}
	return context.WithValue(ctx, dryRunKey{}, true)
}

// Create implements rest.Creater.
func (s *Store) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, options *metav1.CreateOptions) (runtime.Object, error) {
	return s.Store.Create(withDryRun(ctx, options.DryRun), obj, validate, options)
}

// Update implements rest.Updater.
func (s *Store) Update(
	ctx context.Context, name string, obj rest.UpdatedObjectInfo, validate rest.ValidateObjectFunc, validateUpdate rest.ValidateObjectUpdateFunc,
	forceAllowCreate bool, options *metav1.UpdateOptions,
) (runtime.Object, bool, error) {
	return s.Store.Update(withDryRun(ctx, options.DryRun), name, obj, validate, validateUpdate, forceAllowCreate, options)
}

func newList(k *kind.Kind, version string) *object.List {
	gvk := k.ListGVK(version)
	return &object.List{TypeMeta: metav1.TypeMeta{APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind}}
}

// Kind is the kind that is stored.
func (s *Store) Kind() *kind.Kind { return s.kind }

// REST serves one version of a kind.
type REST struct {
	*Store
	kind    *kind.Kind
	version string
}

var (
	_ rest.StandardStorage      = (*REST)(nil)
	_ rest.ShortNamesProvider   = (*REST)(nil)
	_ rest.CategoriesProvider   = (*REST)(nil)
	_ rest.SingularNameProvider = (*REST)(nil)
	_ rest.ResetFieldsStrategy  = (*REST)(nil)
)

// REST makes the storage of one version.
func (s *Store) REST(version string) *REST {
	return &REST{Store: s, kind: s.kind, version: version}
}

// New implements rest.Storage.
func (r *REST) New() runtime.Object { return object.NewPrototype(r.kind.GVK(r.version)) }

// NewList implements rest.Lister.
func (r *REST) NewList() runtime.Object { return newList(r.kind, r.version) }

// ShortNames implements rest.ShortNamesProvider.
func (r *REST) ShortNames() []string { return r.kind.ShortNames() }

// Categories implements rest.CategoriesProvider.
func (r *REST) Categories() []string { return r.kind.Categories() }

// ConvertToTable implements rest.TableConvertor.
func (r *REST) ConvertToTable(ctx context.Context, obj, options runtime.Object) (*metav1.Table, error) {
	return r.kind.ConvertToTable(ctx, r.version, obj, options)
}

// GetResetFields implements rest.ResetFieldsStrategy.
func (r *REST) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	return r.kind.ResetFields(false)
}

// StatusREST serves the status subresource of one version.
type StatusREST struct {
	store   *genericregistry.Store
	kind    *kind.Kind
	version string
}

var (
	_ rest.Patcher             = (*StatusREST)(nil)
	_ rest.ResetFieldsStrategy = (*StatusREST)(nil)
)

// StatusREST makes the status storage of one version.
func (s *Store) StatusREST(version string) *StatusREST {
	status := *s.Store
	st := statusStrategy{newStrategy(s.kind, s.marker)}
	status.UpdateStrategy = st
	return &StatusREST{store: &status, kind: s.kind, version: version}
}

// New implements rest.Storage.
func (r *StatusREST) New() runtime.Object { return object.NewPrototype(r.kind.GVK(r.version)) }

// Destroy implements rest.Storage; the main storage owns what there is to free.
func (r *StatusREST) Destroy() {}

// Get implements rest.Getter.
func (r *StatusREST) Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error) {
	return r.store.Get(ctx, name, options)
}

// Update implements rest.Updater. A status is never created on its own.
func (r *StatusREST) Update(ctx context.Context, name string, objInfo rest.UpdatedObjectInfo, createValidation rest.ValidateObjectFunc,
	updateValidation rest.ValidateObjectUpdateFunc, _ bool, options *metav1.UpdateOptions) (runtime.Object, bool, error) {
	return r.store.Update(ctx, name, objInfo, createValidation, updateValidation, false, options)
}

// GetResetFields implements rest.ResetFieldsStrategy.
func (r *StatusREST) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	return r.kind.ResetFields(true)
}

// ConvertToTable implements rest.TableConvertor.
func (r *StatusREST) ConvertToTable(ctx context.Context, obj, options runtime.Object) (*metav1.Table, error) {
	return r.kind.ConvertToTable(ctx, r.version, obj, options)
}
