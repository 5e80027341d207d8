package admission

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/warning"

	"github.com/vmesh-io/vmesh/pkg/analysis"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

type recorder struct{ texts []string }

func (r *recorder) AddWarning(_, text string) { r.texts = append(r.texts, text) }

func TestAnalysisIsAskedOfWritesThatSomebodyReads(t *testing.T) {
	gvk := schema.GroupVersionKind{Group: "networking.istio.io", Version: "v1", Kind: "VirtualService"}
	obj := object.New(gvk)
	for _, c := range []struct {
		name        string
		cluster     string
		subresource string
		inside      bool
		operation   admission.Operation
		options     runtime.Object
		asked       bool
		byHand      bool
	}{
		{name: "kubectl create", cluster: "shop", operation: admission.Create, options: &metav1.CreateOptions{FieldManager: "kubectl-create"}, asked: true, byHand: true},
		{name: "kubectl apply", cluster: "shop", operation: admission.Update, options: &metav1.UpdateOptions{FieldManager: "kubectl-client-side-apply"}, asked: true, byHand: true},
		{name: "a program's update", cluster: "shop", operation: admission.Update, options: &metav1.UpdateOptions{FieldManager: "argocd"}, asked: true},
		{name: "a deletion", cluster: "shop", operation: admission.Delete, options: &metav1.DeleteOptions{}, asked: true},
		{name: "a status", cluster: "shop", operation: admission.Update, subresource: "status", options: &metav1.UpdateOptions{}},
		{name: "the root", cluster: logical.Root, operation: admission.Create, options: &metav1.CreateOptions{}},
		{name: "no virtual cluster", operation: admission.Create, options: &metav1.CreateOptions{}},
		{name: "a controller inside", cluster: "shop", inside: true, operation: admission.Delete, options: &metav1.DeleteOptions{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got *analysis.Write
			p := NewAnalysis(func(_ context.Context, w analysis.Write) []v1alpha1.Finding { got = &w; return nil })
			ctx := t.Context()
			if c.cluster != "" {
				ctx = logical.WithCluster(ctx, c.cluster)
			}
			if !c.inside {
				ctx = request.WithRequestInfo(ctx, &request.RequestInfo{IsResourceRequest: true})
			}
			var to, old runtime.Object = obj, nil
			if c.operation != admission.Create {
				old = obj
			}
			if c.operation == admission.Delete {
				to = nil
			}
			a := admission.NewAttributesRecord(to, old, gvk, "shop", "a", schema.GroupVersionResource{}, c.subresource, c.operation, c.options, false, nil)
			if err := p.Validate(ctx, a, nil); err != nil {
				t.Fatal(err)
			}
			if (got != nil) != c.asked {
				t.Fatalf("asked: %v", got != nil)
			}
			if got != nil && (got.ByHand != c.byHand || got.Cluster != c.cluster || got.Kind != gvk.GroupKind() ||
				(got.Old != nil) != (old != nil) || (got.New != nil) != (to != nil)) {
				t.Errorf("asked about %+v", got)
			}
		})
	}
}

func TestFindingsBecomeWarnings(t *testing.T) {
	many := make([]v1alpha1.Finding, maxWarnings+3)
	for i := range many {
		many[i] = v1alpha1.Finding{Code: "IST0001", Level: "Error", Message: fmt.Sprint(i)}
	}
	for _, c := range []struct {
		name     string
		findings []v1alpha1.Finding
		want     []string
	}{
		{"none", nil, nil},
		{"one of several lines", []v1alpha1.Finding{{Code: "IST0133", Level: "Warning", Origin: "Gateway shop/edge", Message: "a\n\tb \xff"}},
			[]string{"Warning [IST0133] (Gateway shop/edge) a b ?"}},
		{"too many", many, []string{"and 3 more findings: run istioctl analyze"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &recorder{}
			ctx := warning.WithWarningRecorder(logical.WithCluster(t.Context(), "shop"), r)
			ctx = request.WithRequestInfo(ctx, &request.RequestInfo{IsResourceRequest: true})
			p := NewAnalysis(func(context.Context, analysis.Write) []v1alpha1.Finding { return c.findings })
			a := admission.NewAttributesRecord(object.New(schema.GroupVersionKind{}), nil, schema.GroupVersionKind{}, "", "", schema.GroupVersionResource{}, "",
				admission.Create, &metav1.CreateOptions{}, false, nil)
			if err := p.Validate(ctx, a, nil); err != nil {
				t.Fatal(err)
			}
			if len(r.texts) > maxWarnings {
				if len(r.texts) != maxWarnings+1 {
					t.Errorf("%d warnings", len(r.texts))
				}
				r.texts = r.texts[maxWarnings:]
			}
			if !slices.Equal(r.texts, c.want) {
				t.Errorf("got %s", strings.Join(r.texts, "\n"))
			}
		})
	}
}
