package admission

import (
	"context"
	"errors"
	"slices"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/warning"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/authz"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// creating makes namespaces in what is known.
type creating struct {
	known
	made []string
}

func (c *creating) New() runtime.Object { return &object.Object{} }

func (c *creating) Create(ctx context.Context, obj runtime.Object, _ rest.ValidateObjectFunc, _ *metav1.CreateOptions) (runtime.Object, error) {
	cluster, err := logical.Cluster(ctx)
	if err != nil {
		return nil, err
	}
	o := obj.(*object.Object)
	if c.known[cluster+"/"+o.Name] != nil {
		return nil, apierrors.NewAlreadyExists(schema.GroupResource{Resource: "namespaces"}, o.Name)
	}
	c.known[cluster+"/"+o.Name] = o
	c.made = append(c.made, cluster+"/"+o.Name)
	return o, nil
}

var virtualServiceKind = schema.GroupVersionKind{Group: "networking.istio.io", Version: "v1", Kind: "VirtualService"}

func TestNamespacesOfTheHostAreMadeWithTheFirstObjectInThem(t *testing.T) {
	for _, c := range []struct {
		name, namespace string
		view, dryRun    bool
		operation       admission.Operation
		hostAway        bool
		made            []string
		refused         func(error) bool
	}{
		{name: "one that both have", namespace: "both", view: true},
		{name: "one that the host has", namespace: "host", view: true, made: []string{"mesh/host"}},
		{name: "one that the host has, dry", namespace: "host", view: true, dryRun: true},
		{name: "one that nobody has", namespace: "none", view: true, refused: apierrors.IsNotFound},
		{name: "one that nobody has, dry", namespace: "none", view: true, dryRun: true, refused: apierrors.IsNotFound},
		{name: "one that the host has, from within", namespace: "host", refused: apierrors.IsNotFound},
		{name: "one that is there while the host is away", namespace: "both", view: true, hostAway: true},
		{name: "one that is not there while the host is away", namespace: "host", view: true, hostAway: true, refused: apierrors.IsServiceUnavailable},
		{name: "an update", namespace: "host", view: true, operation: admission.Update},
		{name: "a deletion", namespace: "host", view: true, operation: admission.Delete},
	} {
		t.Run(c.name, func(t *testing.T) {
			namespaces := &creating{known: known{"mesh/both": &object.Object{}}}
			v := NewHostView(NewNamespaceLifecycle(namespaces, func(context.Context, string) bool { return false }), namespaces,
				func(name string) runtime.Object { return &object.Object{ObjectMeta: metav1.ObjectMeta{Name: name}} },
				func(_ context.Context, name string) (bool, error) {
					if c.hostAway {
						return false, errors.New("connection refused")
					}
					return name != "none", nil
				})
			ctx := request.WithNamespace(logical.WithCluster(t.Context(), "mesh"), c.namespace)
			if c.view {
				ctx = authz.WithHostView(ctx)
			}
			if c.operation == "" {
				c.operation = admission.Create
			}
			if !v.Handles(c.operation) {
				t.Fatalf("%s is passed over", c.operation)
			}
			o := object.New(virtualServiceKind)
			err := v.Admit(ctx, admission.NewAttributesRecord(o, o, virtualServiceKind, c.namespace, "x", schema.GroupVersionResource{}, "", c.operation, nil, c.dryRun, nil), nil)
			if c.refused == nil && err != nil || c.refused != nil && !c.refused(err) {
				t.Errorf("got %v", err)
			}
			if !slices.Equal(namespaces.made, c.made) {
				t.Errorf("made %v, want %v", namespaces.made, c.made)
			}
		})
	}
}

func TestOwnersInTheHostAreLeftOut(t *testing.T) {
	inside, outside := metav1.OwnerReference{Kind: "ConfigMap", Name: "in", UID: "1"}, metav1.OwnerReference{Kind: "Deployment", Name: "out", UID: "2"}
	with := func(owners ...metav1.OwnerReference) *object.Object {
		o := object.New(virtualServiceKind)
		o.OwnerReferences = owners
		return o
	}
	namespaces := known{"mesh/a": &object.Object{}}
	v := NewHostView(NewNamespaceLifecycle(namespaces, nil), nil, nil, nil)
	for _, c := range []struct {
		name        string
		view        bool
		obj, old    *object.Object
		subresource string
		want        []metav1.OwnerReference
		warnings    int
	}{
		{"a new object's", true, with(outside), nil, "", nil, 1},
		{"what is added", true, with(inside, outside), with(inside), "", []metav1.OwnerReference{inside}, 1},
		{"none that is stored", true, with(inside), with(inside), "", []metav1.OwnerReference{inside}, 0},
		{"none of a status", true, with(outside), with(inside), "status", []metav1.OwnerReference{outside}, 0},
		{"none that is written from within", false, with(outside), nil, "", []metav1.OwnerReference{outside}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			warnings := &recorder{}
			ctx := request.WithNamespace(logical.WithCluster(warning.WithWarningRecorder(t.Context(), warnings), "mesh"), "a")
			if c.view {
				ctx = authz.WithHostView(ctx)
			}
			operation, old := admission.Create, runtime.Object(nil)
			if c.old != nil {
				operation, old = admission.Update, c.old
			}
			a := admission.NewAttributesRecord(c.obj, old, virtualServiceKind, "a", "x", schema.GroupVersionResource{}, c.subresource, operation, nil, false, nil)
			if err := v.Admit(ctx, a, nil); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(c.obj.OwnerReferences, c.want) || len(warnings.texts) != c.warnings {
				t.Errorf("left %v with warnings %q", c.obj.OwnerReferences, warnings.texts)
			}
		})
	}
}
