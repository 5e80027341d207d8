package admission

import (
	"context"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/policy"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

func testRails(t *testing.T) *GuardRails {
	t.Helper()
	kinds, err := istio.Kinds()
	if err != nil {
		t.Fatal(err)
	}
	index := ownership.New(
		ownership.Claims{Cluster: "shop", Mesh: "m", Namespaces: []v1alpha1.NamespacePattern{"shop", "shop-*"}},
		ownership.Claims{Cluster: "bank", Mesh: "m", Namespaces: []v1alpha1.NamespacePattern{"bank", "vault-*"},
			Handovers: []v1alpha1.VirtualClusterHandover{{To: "shop", Namespaces: []v1alpha1.NamespacePattern{"vault-*"}}}},
		ownership.Claims{Cluster: "sandbox", Mesh: "m"},
	)
	return NewGuardRails(func(_ context.Context, cluster string) (policy.Owners, bool) {
		claims, known := index.Claims(cluster)
		return index.View(cluster, "istio-system"), known && len(claims.Namespaces) > 0
	}, func(_ context.Context, namespace string) bool {
		return namespace == "default" || namespace == "istio-system"
	}, kinds)
}

func route(t *testing.T, spec map[string]any) *object.Object {
	t.Helper()
	o := object.New(virtualServiceKind)
	o.Namespace, o.Name = "shop", "it"
	if err := o.SetContent(map[string]any{"spec": spec}); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestWhatActsOnOthersIsRefused(t *testing.T) {
	rails := testRails(t)
	mine, theirs := map[string]any{"hosts": []any{"reviews"}}, map[string]any{"hosts": []any{"reviews.bank.svc.cluster.local", "x.bank"}}
	marked := func(o *object.Object, annotation string) *object.Object {
		o.Annotations = map[string]string{annotation: "x"}
		return o
	}
	labelled := route(t, theirs)
	labelled.Labels, labelled.Finalizers = map[string]string{"a": "b"}, []string{"a/b"}
	withStatus := route(t, theirs)
	if err := withStatus.SetContent(map[string]any{"spec": theirs, "status": map[string]any{"a": "b"}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name        string
		cluster     string
		old, new    *object.Object
		subresource string
		causes      int
	}{
		{name: "a creation", cluster: "shop", new: route(t, theirs), causes: 2},
		{name: "the creation of something harmless", cluster: "shop", new: route(t, mine)},
		{name: "an update", cluster: "shop", old: route(t, mine), new: route(t, theirs), causes: 2},
		{name: "an update of something that was let in before", cluster: "shop", old: route(t, theirs), new: labelled},
		{name: "a change of it to the better", cluster: "shop", old: route(t, theirs), new: route(t, mine)},
		{name: "a change of it to something as bad", cluster: "shop", old: route(t, theirs), new: route(t, map[string]any{"hosts": []any{"y.bank"}}), causes: 1},
		{name: "an annotation of Istio's own", cluster: "shop", old: route(t, mine), new: marked(route(t, mine), "internal.istio.io/parents"), causes: 1},
		{name: "another annotation", cluster: "shop", old: route(t, theirs), new: marked(route(t, theirs), "note")},
		{name: "a status", cluster: "shop", old: route(t, theirs), new: withStatus, subresource: "status"},
		{name: "a sandbox", cluster: "sandbox", new: route(t, theirs)},
		{name: "nobody that is known", cluster: "stranger", new: route(t, theirs)},
		{name: "the root", cluster: logical.Root, new: route(t, theirs)},
	} {
		t.Run(c.name, func(t *testing.T) {
			operation := admission.Create
			var old runtime.Object
			if c.old != nil {
				operation, old = admission.Update, c.old
			}
			a := admission.NewAttributesRecord(c.new, old, virtualServiceKind, "shop", "it", schema.GroupVersionResource{Group: virtualServiceKind.Group, Resource: "virtualservices"},
				c.subresource, operation, nil, false, nil)
			err := rails.Validate(logical.WithCluster(t.Context(), c.cluster), a, nil)
			if c.causes == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			status, ok := err.(apierrors.APIStatus)
			if !ok || !apierrors.IsInvalid(err) || len(status.Status().Details.Causes) != c.causes {
				t.Fatalf("got %v", err)
			}
		})
	}
	if rails.Handles(admission.Delete) {
		t.Error("deletions are asked")
	}
}

func TestOtherKindsAreNotAskedAbout(t *testing.T) {
	gvk := schema.GroupVersionKind{Group: "gateway.networking.k8s.io", Version: "v1", Kind: "Gateway"}
	o := object.New(gvk)
	o.Namespace = "shop"
	a := admission.NewAttributesRecord(o, nil, gvk, "shop", "it", schema.GroupVersionResource{}, "", admission.Create, nil, false, nil)
	if err := testRails(t).Validate(logical.WithCluster(t.Context(), "shop"), a, nil); err != nil {
		t.Error(err)
	}
}

type namespaces struct{ made []string }

func (n *namespaces) New() runtime.Object { return &object.Object{} }

func (n *namespaces) Create(_ context.Context, obj runtime.Object, _ rest.ValidateObjectFunc, _ *metav1.CreateOptions) (runtime.Object, error) {
	n.made = append(n.made, obj.(*object.Object).Name)
	return obj, nil
}

func TestNamespacesAreMadeWithinTheClaims(t *testing.T) {
	rails := testRails(t)
	gvk := schema.GroupVersionKind{Version: "v1", Kind: "Namespace"}
	for _, c := range []struct{ cluster, namespace, refused string }{
		{"shop", "shop", ""},
		{"shop", "shop-eu", ""},
		{"shop", "default", ""},
		{"shop", "istio-system", ""},
		{"shop", "bank", `virtual cluster "shop", which owns shop, shop-* in its mesh, and virtual cluster "bank" owns it`},
		{"shop", "vault-eu", ""},
		{"shop", "other", `nobody owns it: choose another name, or have it claimed in spec.namespaces`},
		{"sandbox", "bank", ""},
		{logical.Root, "bank", ""},
	} {
		t.Run(c.cluster+" "+c.namespace, func(t *testing.T) {
			o := object.New(gvk)
			o.Name = c.namespace
			ctx := logical.WithCluster(t.Context(), c.cluster)
			a := admission.NewAttributesRecord(o, nil, gvk, "", c.namespace, schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}, "", admission.Create, nil, false, nil)
			store := &namespaces{}
			_, created := rails.Creating(store).Create(ctx, o, nil, nil)
			for _, err := range []error{rails.Validate(ctx, a, nil), created} {
				if c.refused == "" && err != nil || c.refused != "" && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), c.refused)) {
					t.Errorf("got %v", err)
				}
			}
			if (len(store.made) > 0) != (c.refused == "") {
				t.Errorf("made %v", store.made)
			}
			update := admission.NewAttributesRecord(o, o, gvk, "", c.namespace, schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}, "", admission.Update, nil, false, nil)
			if err := rails.Validate(ctx, update, nil); err != nil {
				t.Errorf("an update: %v", err)
			}
		})
	}
}
