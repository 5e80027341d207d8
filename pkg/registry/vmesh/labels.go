package vmesh

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// Labels are the labels of a virtual cluster, as the watch cache has them, or etcd where
// the watch cache has not seen the virtual cluster yet. They must not be modified.
func (c *Clusters) Labels(ctx context.Context, name string) (map[string]string, error) {
	obj, err := c.store.Get(RootContext(ctx), name, &metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		obj, err = c.store.Get(RootContext(ctx), name, &metav1.GetOptions{})
	}
	if err != nil {
		return nil, err
	}
	return obj.(*object.Object).Labels, nil
}
