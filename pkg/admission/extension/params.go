package extension

import (
	"context"
	"fmt"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/tools/cache"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// Param is a kind whose objects can be parameters of policies.
type Param struct {
	Kind  *kind.Kind
	Store Store
}

// Store is the storage of a kind, for all virtual clusters.
type Store interface {
	Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error)
	List(ctx context.Context, options *internalversion.ListOptions) (runtime.Object, error)
}

// params are the objects of a kind in one virtual cluster. It is an informer and lister to
// upstream's dispatchers; what it answers comes from the watch caches, and it holds nothing.
type params struct {
	Param
	cluster, namespace string
	apiVersion         string
}

func (e *Endpoint) param(cluster string, k *admissionregistrationv1.ParamKind) (*params, error) {
	gv, err := schema.ParseGroupVersion(k.APIVersion)
	if err != nil {
		return nil, fmt.Errorf("spec.paramKind.apiVersion: %w", err)
	}
	p, ok := e.Params[schema.GroupKind{Group: gv.Group, Kind: k.Kind}]
	if !ok || !p.Kind.Serves(gv.Version) {
		return nil, fmt.Errorf("spec.paramKind: there is no kind %s in %s", k.Kind, k.APIVersion)
	}
	return &params{Param: p, cluster: cluster, apiVersion: k.APIVersion}, nil
}

func (p *params) scope() meta.RESTScope {
	if p.Kind.Namespaced() {
		return meta.RESTScopeNamespace
	}
	return meta.RESTScopeRoot
}

// Informer implements informers.GenericInformer.
func (p *params) Informer() cache.SharedIndexInformer { return synced{} }

// Lister implements informers.GenericInformer.
func (p *params) Lister() cache.GenericLister { return p }

// ByNamespace implements cache.GenericLister.
func (p *params) ByNamespace(namespace string) cache.GenericNamespaceLister {
	in := *p
	in.namespace = namespace
	return &in
}

func (p *params) context() context.Context {
	return request.WithNamespace(logical.WithCluster(context.Background(), p.cluster), p.namespace)
}

// Get implements cache.GenericLister. What the watch cache does not have may only just
// have been written.
func (p *params) Get(name string) (runtime.Object, error) {
	found, err := p.Store.Get(p.context(), name, &metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		found, err = p.Store.Get(p.context(), name, &metav1.GetOptions{})
	}
	if err != nil {
		return nil, err
	}
	o, ok := found.(*object.Object)
	if !ok {
		return nil, fmt.Errorf("%s %s is a %T", p.Kind, name, found)
	}
	return p.tree(o)
}

// List implements cache.GenericLister.
func (p *params) List(selector labels.Selector) ([]runtime.Object, error) {
	found, err := p.Store.List(p.context(), &internalversion.ListOptions{LabelSelector: selector, ResourceVersion: "0"})
	if err != nil {
		return nil, err
	}
	list, ok := found.(*object.List)
	if !ok {
		return nil, fmt.Errorf("listing %s: got a %T", p.Kind, found)
	}
	out := make([]runtime.Object, len(list.Items))
	for i := range list.Items {
		if out[i], err = p.tree(&list.Items[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (p *params) tree(o *object.Object) (runtime.Object, error) {
	if reason, is := logical.Quarantined(o); is {
		return nil, fmt.Errorf("%s %s cannot be read: %s", p.Kind, o.Name, reason)
	}
	shown := *o
	shown.APIVersion = p.apiVersion
	tree, err := shown.Unstructured()
	if err != nil {
		return nil, err
	}
	return &unstructured.Unstructured{Object: tree}, nil
}
