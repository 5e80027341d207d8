package extension

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// namespaces reads the namespaces of one virtual cluster: as lister from the watch cache,
// as client from etcd. It costs nothing to have.
type namespaces struct {
	corelisters.NamespaceListerExpansion
	storage rest.Getter
	cluster string
}

func (p *Plugin) namespaces(cluster string) *namespaces {
	return &namespaces{storage: p.config.Namespaces, cluster: cluster}
}

// Get implements corelisters.NamespaceLister.
func (n *namespaces) Get(name string) (*corev1.Namespace, error) {
	return n.read(context.Background(), name, &metav1.GetOptions{ResourceVersion: "0"})
}

// List implements corelisters.NamespaceLister. Nobody calls it.
func (n *namespaces) List(labels.Selector) ([]*corev1.Namespace, error) {
	return nil, errNoSuch("namespaces")
}

func (n *namespaces) read(ctx context.Context, name string, options *metav1.GetOptions) (*corev1.Namespace, error) {
	found, err := n.storage.Get(request.WithNamespace(logical.WithCluster(ctx, n.cluster), metav1.NamespaceNone), name, options)
	if apierrors.IsNotFound(err) {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, name)
	}
	if err != nil {
		return nil, err
	}
	o, ok := found.(*object.Object)
	if !ok {
		return nil, fmt.Errorf("namespace %s is a %T", name, found)
	}
	if reason, is := logical.Quarantined(o); is {
		return nil, fmt.Errorf("namespace %s cannot be read: %s", name, reason)
	}
	ns := &corev1.Namespace{}
	if err := o.Into(ns); err != nil {
		return nil, fmt.Errorf("reading namespace %s: %w", name, err)
	}
	return ns, nil
}

// client is a client as far as upstream's matchers use one.
func (n *namespaces) client() kubernetes.Interface { return client{of: n} }

type client struct {
	kubernetes.Interface
	of *namespaces
}

func (c client) CoreV1() typedcorev1.CoreV1Interface { return coreV1{of: c.of} }

type coreV1 struct {
	typedcorev1.CoreV1Interface
	of *namespaces
}

func (c coreV1) Namespaces() typedcorev1.NamespaceInterface { return liveNamespaces{of: c.of} }

type liveNamespaces struct {
	typedcorev1.NamespaceInterface
	of *namespaces
}

func (l liveNamespaces) Get(ctx context.Context, name string, options metav1.GetOptions) (*corev1.Namespace, error) {
	return l.of.read(ctx, name, &options)
}
