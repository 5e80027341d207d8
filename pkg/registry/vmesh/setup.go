package vmesh

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apiserver/pkg/endpoints/request"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/util/dryrun"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/quota"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// beginCreate sets the virtual cluster up before it can be seen, so that it is ready
// when it is.
func (c *Clusters) beginCreate(ctx context.Context, obj runtime.Object, options *metav1.CreateOptions) (genericregistry.FinishFunc, error) {
	o := obj.(*object.Object)
	if dryrun.IsDryRun(options.DryRun) || logical.ValidName(o.Name) != nil || o.Name == logical.Root {
		// Nothing is written, or validation is about to refuse it.
		return func(context.Context, bool) {}, nil
	}
	vc, err := Decode(o)
	if err != nil {
		return func(context.Context, bool) {}, nil // validation names the field
	}
	// An update that creates, as an apply does, has begun already, and ends by itself.
	end := func(bool) {}
	if _, begun := ctx.Value(writeKey{}).(*write); !begun {
		w, err := c.begin(ctx, o.Name)
		if err != nil {
			return nil, err
		}
		end = func(success bool) { c.end(w, success, 0) }
	}
	fresh := false // nothing was there when we began, so what is there now is ours
	finishCreate := func(ctx context.Context, success bool) {
		if fresh && !success {
			ctx := context.WithoutCancel(ctx)
			// Another replica may have made it after all: then it is not ours to clear.
			exists, err := c.stored(ctx, o.Name)
			if err == nil && !exists {
				err = c.clear(ctx, o.Name)
			}
			if err != nil {
				utilruntime.HandleErrorWithContext(ctx, err, "Removing what a virtual cluster was set up with", "virtualCluster", o.Name)
			}
		}
		end(success)
	}
	setUp := func() error {
		exists, err := c.stored(ctx, o.Name)
		if err != nil || exists {
			return err // etcd will say that it exists
		}
		fresh = true
		if err := c.clear(ctx, o.Name); err != nil {
			return err
		}
		for _, namespace := range c.systemNamespaces(ctx, vc, fromEtcd) {
			if err := c.createNamespace(ctx, o.Name, namespace); err != nil {
				return err
			}
		}
		return nil
	}
	if err := setUp(); err != nil {
		finishCreate(ctx, false)
		return nil, err
	}
	return finishCreate, nil
}

// stored says whether a virtual cluster is in etcd.
func (c *Clusters) stored(ctx context.Context, name string) (bool, error) {
	_, err := c.get(ctx, name)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// clear removes what an earlier virtual cluster of the name may have left behind, by a
// write that was under way when it was deleted.
func (c *Clusters) clear(ctx context.Context, name string) error {
	counts, err := c.backend.Count(ctx, name)
	if err != nil {
		return err
	}
	for _, n := range counts {
		if n > 0 {
			return c.backend.Purge(ctx, name, nil)
		}
	}
	return nil
}

// IsSystemNamespace says whether the context's virtual cluster always has a namespace.
func (c *Clusters) IsSystemNamespace(ctx context.Context, namespace string) bool {
	if namespace == metav1.NamespaceDefault {
		return true
	}
	cluster, err := logical.Cluster(ctx)
	if err != nil || cluster == logical.Root {
		return false
	}
	claims, ok := c.Claims().Claims(cluster)
	return ok && namespace == c.rootNamespace(ctx, claims.Mesh, fromCache)
}

// The resource versions of reads: what the watch cache has, and what etcd has.
const fromCache, fromEtcd = "0", ""

// systemNamespaces exist in every virtual cluster, as clients expect.
func (c *Clusters) systemNamespaces(ctx context.Context, vc *v1alpha1.VirtualCluster, from string) []string {
	return []string{metav1.NamespaceDefault, c.rootNamespace(ctx, ownership.ClaimsOf(vc).Mesh, from)}
}

// EnsureNamespaces makes those of the system namespaces that a virtual cluster lacks:
// its mesh may have got another root namespace since it was set up.
func (c *Clusters) EnsureNamespaces(ctx context.Context, vc *v1alpha1.VirtualCluster) error {
	for _, name := range c.systemNamespaces(ctx, vc, fromCache) {
		inside := request.WithNamespace(logical.WithCluster(ctx, vc.Name), metav1.NamespaceNone)
		_, err := c.namespaces.Get(inside, name, &metav1.GetOptions{ResourceVersion: "0"})
		if apierrors.IsNotFound(err) {
			err = c.createNamespace(ctx, vc.Name, name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *Clusters) rootNamespace(ctx context.Context, mesh, from string) string {
	const fallback = "istio-system"
	obj, err := c.meshes.Get(RootContext(ctx), mesh, &metav1.GetOptions{ResourceVersion: from})
	if err != nil {
		return fallback
	}
	var m v1alpha1.Mesh
	if err := obj.(*object.Object).Into(&m); err != nil || m.Spec.RootNamespace == "" {
		return fallback
	}
	return m.Spec.RootNamespace
}

func (c *Clusters) createNamespace(ctx context.Context, cluster, name string) error {
	namespace := object.New(schema.GroupVersionKind{Version: "v1", Kind: "Namespace"})
	namespace.Name = name
	ctx = request.WithNamespace(logical.WithCluster(ctx, cluster), metav1.NamespaceNone)
	_, err := c.namespaces.Create(quota.Exempt(ctx), namespace, rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("creating namespace %s: %w", name, err)
	}
	return nil
}

// EnsureDefaults makes the namespace that clients expect of the root, and, in an empty
// store, the mesh and the virtual cluster that a first use needs.
func (c *Clusters) EnsureDefaults(ctx context.Context) error {
	ctx = RootContext(ctx)
	if err := c.createNamespace(ctx, logical.Root, metav1.NamespaceDefault); err != nil {
		return err
	}
	for _, s := range []*resource.Store{c.meshes, c.store} {
		list, err := s.List(ctx, &internalversion.ListOptions{Limit: 1})
		if err != nil {
			return fmt.Errorf("looking for what there is: %w", err)
		}
		if len(list.(*object.List).Items) > 0 {
			return nil
		}
	}
	for _, d := range []struct {
		store *resource.Store
		spec  map[string]any
	}{
		{c.meshes, map[string]any{"rootNamespace": "istio-system"}},
		{c.store, map[string]any{
			"mesh": v1alpha1.DefaultName, "namespaces": []any{string(v1alpha1.AnyNamespace)}, "hosts": []any{string(v1alpha1.AnyHost)},
			"guardRails": map[string]any{"exportTo": []any{string(v1alpha1.AnyNamespace)}, "gatewaySelectors": defaultSelectors()},
		}},
	} {
		o := object.New(d.store.Kind().GVK(Version))
		o.Name = v1alpha1.DefaultName
		if err := o.SetContent(map[string]any{"spec": d.spec}); err != nil {
			return err
		}
		if _, err := d.store.Create(ctx, o, rest.ValidateAllObjectFunc, &metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("creating %s %s: %w", d.store.Kind().Singular(), o.Name, err)
		}
	}
	return nil
}

// defaultSelectors are the labels of the gateways that Istio's own charts install.
func defaultSelectors() []any {
	var selectors []any
	for _, gateway := range []string{"ingressgateway", "egressgateway", "eastwestgateway", "ingress", "egress"} {
		selectors = append(selectors, map[string]any{"matchLabels": map[string]any{"istio": gateway}})
	}
	return selectors
}
