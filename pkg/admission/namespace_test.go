package admission

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// known are the namespaces of virtual clusters. The watch cache lags behind: it has not
// those whose names begin with "new".
type known map[string]*object.Object

func (k known) Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error) {
	cluster, err := logical.Cluster(ctx)
	if err != nil {
		return nil, err
	}
	if of := request.NamespaceValue(ctx); of != "" {
		return nil, apierrors.NewBadRequest("namespaces are in no namespace")
	}
	o, ok := k[cluster+"/"+name]
	if !ok || options.ResourceVersion == "0" && name == "new" {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, name)
	}
	return o, nil
}

func TestObjectsAreCreatedInLivingNamespacesOfTheSameVirtualCluster(t *testing.T) {
	living, dying := &object.Object{}, &object.Object{ObjectMeta: metav1.ObjectMeta{Name: "dying", DeletionTimestamp: &metav1.Time{}}}
	l := NewNamespaceLifecycle(known{"shop/a": living, "shop/new": living, "shop/dying": dying, "other/b": living},
		func(_ context.Context, namespace string) bool { return namespace == "default" })
	configMaps, namespaces := schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"}, schema.GroupVersionKind{Version: "v1", Kind: "Namespace"}
	for _, c := range []struct {
		name            string
		kind            schema.GroupVersionKind
		namespace, what string
		operation       admission.Operation
		refused         func(error) bool
	}{
		{"in a namespace", configMaps, "a", "x", admission.Create, nil},
		{"in one that the watch cache has not seen", configMaps, "new", "x", admission.Create, nil},
		{"in none", configMaps, "", "x", admission.Create, nil},
		{"in one that is not there", configMaps, "none", "x", admission.Create, apierrors.IsNotFound},
		{"in one of another virtual cluster", configMaps, "b", "x", admission.Create, apierrors.IsNotFound},
		{"in one that is emptied", configMaps, "dying", "x", admission.Create, func(err error) bool { return apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) }},
		{"a namespace", namespaces, "none", "none", admission.Create, nil},
		{"a deletion in one that is emptied", configMaps, "dying", "x", admission.Delete, nil},
		{"the deletion of a namespace", namespaces, "a", "a", admission.Delete, nil},
		{"the deletion of one that must stay", namespaces, "default", "default", admission.Delete, apierrors.IsForbidden},
		{"the deletion of its namesake of another kind", configMaps, "default", "default", admission.Delete, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := request.WithNamespace(logical.WithCluster(context.Background(), "shop"), c.namespace)
			resource := schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
			err := l.Admit(ctx, admission.NewAttributesRecord(nil, nil, c.kind, c.namespace, c.what, resource, "", c.operation, nil, false, nil), nil)
			if c.refused == nil && err != nil || c.refused != nil && !c.refused(err) {
				t.Errorf("got %v", err)
			}
			if status, ok := err.(apierrors.APIStatus); ok && apierrors.IsNotFound(err) && status.Status().Details.Kind != "namespaces" {
				t.Errorf("the error is about %s", status.Status().Details.Kind)
			}
		})
	}
}
