package istio_test

import (
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// machinery is what a field manager needs of an API server.
type machinery struct{}

func (machinery) Default(runtime.Object) {}

func (machinery) New(gvk schema.GroupVersionKind) (runtime.Object, error) {
	return object.New(gvk), nil
}

func (machinery) Convert(in, out, context any) error { return nil }

func (machinery) ConvertToVersion(in runtime.Object, gv runtime.GroupVersioner) (runtime.Object, error) {
	out := in.(*object.Object).DeepCopy()
	out.APIVersion = gv.(schema.GroupVersion).String()
	return out, nil
}

func (machinery) ConvertFieldLabel(gvk schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}

func BenchmarkManagedFields(b *testing.B) {
	k := find(b, "virtualservices")
	converter, err := k.TypeConverter()
	if err != nil {
		b.Fatal(err)
	}
	gvk := k.GVK("v1")
	m, err := managedfields.NewDefaultFieldManager(converter, machinery{}, machinery{}, machinery{}, gvk, gvk.GroupVersion(), "", nil)
	if err != nil {
		b.Fatal(err)
	}
	obj, _, err := k.Decode("v1", []byte(virtualService), true)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		obj.ManagedFields = nil
		out, err := m.Update(object.New(gvk), obj, "kubectl")
		if err != nil {
			b.Fatal(err)
		}
		if len(out.(*object.Object).ManagedFields) != 1 {
			b.Fatal("no managed fields")
		}
	}
}
