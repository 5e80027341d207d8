package kindtest

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// FieldManager is upstream's field manager for a version of a kind.
func FieldManager(t *testing.T, k *kind.Kind, version string) *managedfields.FieldManager {
	t.Helper()
	converter, err := k.TypeConverter()
	if err != nil {
		t.Fatal(err)
	}
	m := machinery{k}
	gvk := k.GVK(version)
	manager, err := managedfields.NewDefaultFieldManager(converter, m, m, m, gvk, gvk.GroupVersion(), "", fieldpath.NewExcludeFilterSetMap(k.ResetFields(false)))
	if err != nil {
		t.Fatal(err)
	}
	return manager
}

// machinery is as much of an API server as a field manager needs.
type machinery struct{ kind *kind.Kind }

func (machinery) New(gvk schema.GroupVersionKind) (runtime.Object, error) {
	return object.New(gvk), nil
}

func (machinery) Convert(any, any, any) error { panic("not used") }

func (machinery) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}

func (machinery) ConvertToVersion(in runtime.Object, gv runtime.GroupVersioner) (runtime.Object, error) {
	out := in.(*object.Object).DeepCopy()
	out.APIVersion = gv.(schema.GroupVersion).String()
	return out, nil
}

func (m machinery) Default(obj runtime.Object) {
	o := obj.(*object.Object)
	if err := m.kind.Complete(o.GroupVersionKind().Version, o); err != nil {
		panic(err)
	}
}

// managed holds what the kind records of managed fields by itself against what the
// field manager does of the same body.
func (c *comparison) managed(t *testing.T, data []byte) {
	t.Helper()
	created, _, err := c.kind.Decode(c.version, data, false)
	if err != nil {
		t.Fatal(err)
	}
	empty := func() *object.Object { return object.New(c.kind.GVK(c.version)) }
	if c.kind.RecordCreation(created, "me", time.Now()) {
		want, _, err := c.kind.Decode(c.version, data, false)
		if err != nil {
			t.Fatal(err)
		}
		// What does not fit the schema makes the field manager give up; validation follows.
		if result, err := c.fields.Update(empty(), want, "me"); err == nil {
			c.recorded++
			compareObjects(t, "created", data, result.(*object.Object), created)
		}
	}
	configuration, ok := c.kind.ParseConfiguration(c.version, data)
	if !ok {
		return
	}
	patch := &unstructured.Unstructured{}
	if err := json.Unmarshal(data, &patch.Object); err != nil {
		t.Fatal(err)
	}
	patch.Object = runtime.DeepCopyJSON(integers(patch.Object).(map[string]any))
	if diff := cmp.Diff(patch.Object, configuration.Object); diff != "" {
		t.Errorf("%s\nthe configuration differs (-body +parsed):\n%s", data, diff)
	}
	first, ok, err := configuration.First("me", time.Now())
	if err != nil {
		t.Errorf("%s\n%v", data, err)
	}
	want, wantErr := c.fields.Apply(empty(), patch, "me", false)
	if ok && wantErr != nil {
		t.Errorf("%s\nwas applied, where the field manager says %v", data, wantErr)
	}
	if wantErr != nil {
		return
	}
	if ok {
		c.applied++
		compareObjects(t, "applied", data, want.(*object.Object), first)
	}
	merged, err := c.fields.Apply(empty(), configuration, "me", false)
	if err != nil {
		t.Errorf("%s\napplying the configuration: %v", data, err)
		return
	}
	compareObjects(t, "merged", data, want.(*object.Object), merged.(*object.Object))
}

func compareObjects(t *testing.T, how string, data []byte, want, got *object.Object) {
	t.Helper()
	if diff := cmp.Diff(want.TypeMeta, got.TypeMeta); diff != "" {
		t.Errorf("%s\n%s, types differ (-field manager +kind):\n%s", data, how, diff)
	}
	if diff := cmp.Diff(want.ObjectMeta, got.ObjectMeta, cmpopts.IgnoreTypes(&metav1.Time{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%s\n%s, metadata differs (-field manager +kind):\n%s", data, how, diff)
	}
	if diff := cmp.Diff(string(want.Body()), string(got.Body())); diff != "" {
		t.Errorf("%s\n%s, bodies differ (-field manager +kind):\n%s", data, how, diff)
	}
}

// integers makes int64 of the whole numbers of a tree, as decoding does.
func integers(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, member := range v {
			v[k] = integers(member)
		}
	case []any:
		for i, item := range v {
			v[i] = integers(item)
		}
	case float64:
		if v == float64(int64(v)) {
			return int64(v)
		}
	}
	return v
}
