package vmesh

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// ReadMesh reads a mesh as the watch cache of its store has it, or nil if there is none.
func ReadMesh(ctx context.Context, meshes *resource.Store, name string) (*v1alpha1.Mesh, error) {
	obj, err := meshes.Get(RootContext(ctx), name, &metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if reason, lost := logical.Quarantined(obj.(*object.Object)); lost {
		return nil, fmt.Errorf("mesh %s is stored, but cannot be read: %s", name, reason)
	}
	mesh := &v1alpha1.Mesh{}
	if err := obj.(*object.Object).Into(mesh); err != nil {
		return nil, fmt.Errorf("decoding mesh %s: %w", name, err)
	}
	return mesh, nil
}

// Mesh reads a mesh as the watch cache has it, or nil if there is none.
func (c *Clusters) Mesh(ctx context.Context, name string) (*v1alpha1.Mesh, error) {
	return ReadMesh(ctx, c.meshes, name)
}
