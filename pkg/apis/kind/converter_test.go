package kind_test

import (
	"encoding/json"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apiextensions-apiserver/pkg/controller/openapi/builder"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/kind/kindtest"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// upstreamConverter is the converter that kube-apiserver would build for a definition.
func upstreamConverter(t *testing.T, k *kind.Kind) managedfields.TypeConverter {
	t.Helper()
	crd, err := k.CRD()
	if err != nil {
		t.Fatal(err)
	}
	named := *crd
	named.Spec.Names.ListKind = k.ListKind()
	spec, err := builder.BuildOpenAPIV3(&named, "v1", builder.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := managedfields.NewTypeConverter(spec.Components.Schemas, false)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestMergeSchemaIsUpstreams compares which fields an object is seen to own.
func TestMergeSchemaIsUpstreams(t *testing.T) {
	crd := widgets(t)
	k, err := kind.New(crd, kind.Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	ours, err := k.TypeConverter()
	if err != nil {
		t.Fatal(err)
	}
	upstream := upstreamConverter(t, k)
	reference, err := kindtest.NewReference(crd, "v1")
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for seed := range uint64(400) {
		g := &kindtest.Generator{Rand: rand.New(rand.NewPCG(seed, 3)), Faults: [...]float64{0, 0.05}[seed%2]}
		tree := g.Object(reference.Structural)
		tree["apiVersion"], tree["kind"] = "test.vmesh.io/v1", "Widget"
		tree["metadata"] = map[string]any{"name": "one", "labels": map[string]any{"a": "b"}}
		data, err := json.Marshal(tree)
		if err != nil {
			t.Fatal(err)
		}
		o := &object.Object{}
		if err := o.UnmarshalJSON(data); err != nil {
			t.Fatal(err)
		}
		u, err := o.Unstructured()
		if err != nil {
			t.Fatal(err)
		}
		for _, options := range [][]typed.ValidationOptions{nil, {typed.AllowDuplicates}} {
			want, wantErr := upstream.ObjectToTyped(&unstructured.Unstructured{Object: u}, options...)
			got, gotErr := ours.ObjectToTyped(o, options...)
			if (wantErr != nil) != (gotErr != nil) {
				t.Fatalf("%s\ngot %v, upstream %v", data, gotErr, wantErr)
			}
			if wantErr != nil {
				refused++
				continue
			}
			wantSet, err := want.ToFieldSet()
			if err != nil {
				t.Fatal(err)
			}
			gotSet, err := got.ToFieldSet()
			if err != nil {
				t.Fatal(err)
			}
			if !wantSet.Equals(gotSet) {
				t.Fatalf("%s\nfields differ: %s, upstream: %s", data, gotSet, wantSet)
			}
		}
	}
	t.Logf("%d refused", refused)
}

func TestApplyMergesAndCompletes(t *testing.T) {
	k, err := kind.New(widgets(t), kind.Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	gvk := k.GVK("v1")
	manager := kindtest.FieldManager(t, k, "v1")
	apply := func(live runtime.Object, who, spec string, force bool) (runtime.Object, error) {
		patch := &unstructured.Unstructured{}
		if err := patch.UnmarshalJSON([]byte(`{"apiVersion":"test.vmesh.io/v1","kind":"Widget","metadata":{"name":"one"},"spec":` + spec + `}`)); err != nil {
			t.Fatal(err)
		}
		return manager.Apply(live, patch, who, force)
	}
	live, err := apply(object.New(gvk), "first", `{"colour":"red","parts":[{"name":"a","value":"1"}]}`, false)
	if err != nil {
		t.Fatal(err)
	}
	live, err = apply(live, "second", `{"parts":[{"name":"b"}],"filled":{}}`, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := apply(live, "second", `{"colour":"blue"}`, false); err == nil {
		t.Error("taking over another's field needs force")
	}
	if _, err := apply(live, "second", `{"unheard":"of"}`, false); err == nil {
		t.Error("an unknown field was applied")
	}
	if _, err := apply(live, "second", `{"tags":["a","a"]}`, false); err == nil {
		t.Error("a repeated item of a set was applied")
	}
	o := live.(*object.Object)
	want := `"spec":{"colour":"red","count":3,"filled":{"deep":7},"parts":[{"name":"a","value":"1"},{"name":"b","value":"v"}],"port":"http"}`
	if diff := cmp.Diff(want, string(o.Body())); diff != "" {
		t.Errorf("applied object differs (-want +got):\n%s", diff)
	}
	if len(o.ManagedFields) != 2 {
		t.Errorf("managed fields: %v", o.ManagedFields)
	}
}

func TestUnknownVersionsAreMissingAndNotBroken(t *testing.T) {
	k, err := kind.New(widgets(t), kind.Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	converter, err := k.TypeConverter()
	if err != nil {
		t.Fatal(err)
	}
	_, err = converter.ObjectToTyped(object.New(k.GVK("v9")))
	if !runtime.IsNotRegisteredError(err) {
		t.Errorf("got %v: managed fields of a version that is gone could not be dropped", err)
	}
}

func TestResetFields(t *testing.T) {
	k, err := kind.New(widgets(t), kind.Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		status bool
		want   map[string]string
	}{
		{false, map[string]string{"test.vmesh.io/v1": ".status"}},
		{true, map[string]string{"test.vmesh.io/v1": ".metadata\n.spec"}},
	} {
		got := map[string]string{}
		for version, set := range k.ResetFields(c.status) {
			got[string(version)] = set.String()
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("of a status write: %v (-want +got):\n%s", c.status, diff)
		}
	}
}
