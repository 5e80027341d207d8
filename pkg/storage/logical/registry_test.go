package logical

import (
	"context"
	"slices"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/generic"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	namegenerator "k8s.io/apiserver/pkg/storage/names"
	"k8s.io/client-go/tools/cache"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// anything is a strategy that lets anything pass.
type anything struct {
	runtime.ObjectTyper
	namegenerator.NameGenerator
}

func (anything) ObjectKinds(obj runtime.Object) ([]schema.GroupVersionKind, bool, error) {
	return []schema.GroupVersionKind{obj.GetObjectKind().GroupVersionKind()}, false, nil
}
func (anything) NamespaceScoped() bool                                            { return true }
func (anything) AllowCreateOnUpdate(context.Context) bool                         { return false }
func (anything) AllowUnconditionalUpdate(context.Context) bool                    { return true }
func (anything) PrepareForCreate(context.Context, runtime.Object)                 {}
func (anything) PrepareForUpdate(context.Context, runtime.Object, runtime.Object) {}
func (anything) Canonicalize(runtime.Object)                                      {}
func (anything) Validate(context.Context, runtime.Object) field.ErrorList         { return nil }
func (anything) ValidateUpdate(context.Context, runtime.Object, runtime.Object) field.ErrorList {
	return nil
}
func (anything) WarningsOnCreate(context.Context, runtime.Object) []string { return nil }
func (anything) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}

func newRegistry(t *testing.T, b *Backend, r Resource) *genericregistry.Store {
	t.Helper()
	strategy := anything{NameGenerator: namegenerator.SimpleNameGenerator}
	s := &genericregistry.Store{
		NewFunc:                   newObjects(r.GVK, r.ListGVK).newObject,
		NewListFunc:               newObjects(r.GVK, r.ListGVK).newList,
		DefaultQualifiedResource:  r.GroupResource,
		SingularQualifiedResource: r.GroupResource,
		KeyRootFunc:               KeyRootFunc(r.GroupResource, r.Namespaced),
		KeyFunc:                   KeyFunc(r.GroupResource, r.Namespaced),
		CreateStrategy:            strategy,
		UpdateStrategy:            strategy,
		DeleteStrategy:            strategy,
		TableConvertor:            rest.NewDefaultTableConvertor(r.GroupResource),
	}
	if err := s.CompleteWithOptions(&generic.StoreOptions{RESTOptions: b.RESTOptions(r)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Destroy)
	if err := b.WaitReady(testContext(t)); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestARegistryStoreWorksPerCluster(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	s := newRegistry(t, b, configMaps)
	in := func(name string) context.Context {
		return genericapirequest.WithNamespace(WithCluster(testContext(t), name), "default")
	}
	c := cluster{t: t, r: configMaps}
	for _, name := range []string{"a", "b"} {
		created, err := s.Create(in(name), c.new("default", "x", name), rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if o := created.(*object.Object); o.UID == "" || o.Cluster() != name || o.ResourceVersion == "" {
			t.Errorf("created %#v", o)
		}
	}
	if _, err := s.Create(in("a"), c.new("default", "x", ""), rest.ValidateAllObjectFunc, &metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("creating again: %v", err)
	}
	updated, _, err := s.Update(in("a"), "x", rest.DefaultUpdatedObjectInfo(c.new("default", "x", "2")), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	if err != nil || text(updated.(*object.Object)) != "2" {
		t.Errorf("updated: %v, %v", updated, err)
	}
	l, err := s.List(in("b"), &metainternalversion.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := namesOf(l); !slices.Equal(got, []string{"b:default/x=b"}) {
		t.Errorf("b lists %q", got)
	}
	if _, _, err := s.Delete(in("b"), "x", rest.ValidateAllObjectFunc, &metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(in("b"), "x", &metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("b gets %v", err)
	}
	if got, err := s.Get(in("a"), "x", &metav1.GetOptions{}); err != nil || text(got.(*object.Object)) != "2" {
		t.Errorf("a gets %v, %v", got, err)
	}
	// Without a cluster nothing works.
	none := genericapirequest.WithNamespace(testContext(t), "default")
	if _, err := s.Get(none, "x", &metav1.GetOptions{}); err == nil {
		t.Error("an object of no cluster is served")
	}
	if _, err := s.List(none, &metainternalversion.ListOptions{}); err == nil {
		t.Error("a list of no cluster is served")
	}
	if w, err := s.Watch(none, &metainternalversion.ListOptions{}); err == nil {
		w.Stop()
		t.Error("a watch of no cluster is served")
	}
}

func TestAQuarantinedObjectIsRepairedThroughARegistryStore(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	plant(t, b, configMaps, "a/default/x", "junk")
	plant(t, b, configMaps, "a/default/y", "junk")
	s := newRegistry(t, b, configMaps)
	ctx := genericapirequest.WithNamespace(WithCluster(testContext(t), "a"), "default")
	c := cluster{t: t, r: configMaps}
	updated, _, err := s.Update(ctx, "x", rest.DefaultUpdatedObjectInfo(c.new("default", "x", "new")), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	if err != nil || text(updated.(*object.Object)) != "new" {
		t.Errorf("replacing: %v, %v", updated, err)
	}
	if _, _, err := s.Delete(ctx, "y", rest.ValidateAllObjectFunc, &metav1.DeleteOptions{}); err != nil {
		t.Errorf("deleting: %v", err)
	}
	l, err := s.List(ctx, &metainternalversion.ListOptions{})
	if err != nil || !slices.Equal(namesOf(l), []string{"a:default/x=new"}) {
		t.Errorf("listed %q, %v", namesOf(l), err)
	}
}

func TestARegistryStoreWithAnIndexIsRefused(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	opts := b.RESTOptions(configMaps)
	_, _, err := opts.Decorator(opts.StorageConfig, opts.ResourcePrefix, nil, nil, nil, nil, nil,
		&cache.Indexers{"f:metadata.namespace": func(any) ([]string, error) { return nil, nil }})
	if err == nil {
		t.Error("it is not")
	}
}
