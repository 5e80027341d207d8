package kind_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/registry/customresource/tableconvertor"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/kind/kindtest"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

func TestCellsAreUpstreams(t *testing.T) {
	crd := widgets(t)
	var columns []apiextensionsv1.CustomResourceColumnDefinition
	for _, path := range []string{
		".spec.colour", ".spec.count", ".spec.ratio", ".spec.flags", ".spec.labels", ".spec.filled.deep", ".spec.filled.deep.deeper", ".spec.parts[0].name",
		".spec.parts[*].name", ".spec.note", ".spec.when", ".spec.any.a.b", ".spec", ".nothing", ".status.ready", ".metadata.creationTimestamp", ".metadata.labels.a", ".metadata.name",
		".kind", `.spec.labels.a\.b`,
	} {
		for _, kind := range []string{"string", "integer", "number", "boolean", "date"} {
			columns = append(columns, apiextensionsv1.CustomResourceColumnDefinition{Name: path, Type: kind, JSONPath: path})
		}
	}
	crd.Spec.Versions[2].AdditionalPrinterColumns = columns
	k, err := kind.New(crd, kind.Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	upstream, err := tableconvertor.New(columns)
	if err != nil {
		t.Fatal(err)
	}
	reference, err := kindtest.NewReference(crd, "v1")
	if err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(150) {
		g := &kindtest.Generator{Rand: rand.New(rand.NewPCG(seed, 4)), Faults: [...]float64{0, 0.1}[seed%2]}
		o := object.New(k.GVK("v1"))
		if err := o.SetContent(g.Object(reference.Structural)); err != nil {
			t.Fatal(err)
		}
		o.Name, o.Labels = "one", map[string]string{"a": "b"}
		if seed%3 > 0 {
			o.CreationTimestamp = metav1.NewTime(time.Now().Add(-time.Hour * 50))
		}
		tree, err := o.Unstructured()
		if err != nil {
			t.Fatal(err)
		}
		want, err := upstream.ConvertToTable(t.Context(), &unstructured.Unstructured{Object: tree}, nil)
		if err != nil {
			t.Fatal(err)
		}
		o.DropContent()
		got, err := k.ConvertToTable(t.Context(), "v1", o, nil)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want.ColumnDefinitions, got.ColumnDefinitions); diff != "" {
			t.Fatalf("columns differ (-upstream +kind):\n%s", diff)
		}
		for i := range want.Rows[0].Cells {
			if diff := cmp.Diff(want.Rows[0].Cells[i], got.Rows[0].Cells[i]); diff != "" {
				t.Errorf("%s\n%s as %s differs (-upstream +kind):\n%s", o.Body(), want.ColumnDefinitions[i].Name, want.ColumnDefinitions[i].Type, diff)
			}
		}
		if t.Failed() {
			return
		}
	}
}

func TestAnUnreadableObjectDoesNotHideOthers(t *testing.T) {
	crd := widgets(t)
	crd.Spec.Versions[2].AdditionalPrinterColumns[0].JSONPath = ".spec.parts[0].name"
	k, err := kind.New(crd, kind.Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	list := &object.List{Items: make([]object.Object, 2)}
	if err := list.Items[0].Decode([]byte(`{"metadata":{"name":"bad"},"spec":{"parts":[1,x]}}`)); err != nil {
		t.Fatal(err)
	}
	if err := list.Items[1].Decode([]byte(`{"metadata":{"name":"good"},"spec":{"parts":[{"name":"a"}]}}`)); err != nil {
		t.Fatal(err)
	}
	table, err := k.ConvertToTable(t.Context(), "v1", list, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := [][]any{{"bad", "<unreadable>", "<unreadable>", "<unreadable>", "<unreadable>"}, {"good", "a", nil, nil, nil}}
	for i := range want {
		if diff := cmp.Diff(want[i], table.Rows[i].Cells); diff != "" {
			t.Errorf("row %d differs (-want +got):\n%s", i, diff)
		}
	}
}
