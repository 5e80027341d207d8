package vmesh

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/policy"
)

// meshRoot is what was read of a mesh.
type meshRoot struct {
	version, namespace string
}

// Owners are what a virtual cluster sees of what is owned in its mesh; ok is false for one
// that claims no namespaces.
func (c *Clusters) Owners(ctx context.Context, cluster string) (owners policy.Owners, ok bool) {
	index := c.Claims()
	claims, known := index.Claims(cluster)
	if !known || len(claims.Namespaces) == 0 {
		return nil, false
	}
	return index.View(cluster, c.cachedRoot(ctx, claims.Mesh)), true
}

// cachedRoot is rootNamespace for those who ask with every write: a mesh is decoded once.
func (c *Clusters) cachedRoot(ctx context.Context, mesh string) string {
	obj, err := c.meshes.Get(RootContext(ctx), mesh, &metav1.GetOptions{ResourceVersion: fromCache})
	if err != nil {
		return c.rootNamespace(ctx, mesh, fromCache)
	}
	version := obj.(*object.Object).ResourceVersion
	if known, ok := c.roots.Load(mesh); ok && known.(meshRoot).version == version {
		return known.(meshRoot).namespace
	}
	root := meshRoot{version, c.rootNamespace(ctx, mesh, fromCache)}
	c.roots.Store(mesh, root)
	return root.namespace
}
