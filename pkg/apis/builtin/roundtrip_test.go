package builtin

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"reflect"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/applyconfigurations"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/randfill"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// newFuzzer makes values that JSON can hold.
func newFuzzer(seed int64) *randfill.Filler {
	custom := func(serializer.CodecFactory) []any {
		return []any{
			func(q *resource.Quantity, c randfill.Continue) {
				*q = *resource.NewQuantity(c.Int63n(1000), resource.DecimalSI)
			},
			func(v *intstr.IntOrString, c randfill.Continue) { *v = intstr.FromInt32(c.Int31()) },
			func(t *metav1.MicroTime, c randfill.Continue) {
				*t = metav1.MicroTime{Time: time.Unix(c.Int63n(1<<32), 1000).Local()}
			},
			func(j *apiextensionsv1.JSON, _ randfill.Continue) { j.Raw = []byte(`"x"`) },
			func(f *metav1.FieldsV1, _ randfill.Continue) { f.Raw = []byte(`{"f:a":{}}`) },
			func(e *runtime.RawExtension, _ randfill.Continue) { e.Raw = []byte(`{"a":1}`) },
		}
	}
	codecs := serializer.NewCodecFactory(scheme.Scheme)
	return fuzzer.FuzzerFor(fuzzer.MergeFuzzerFuncs(metafuzzer.Funcs, custom), rand.NewSource(seed), codecs).MaxDepth(12)
}

func allKinds(t testing.TB) []*kind.Kind {
	t.Helper()
	kinds, err := Kinds()
	if err != nil {
		t.Fatal(err)
	}
	return kinds
}

// fuzzed is a filled value of a kind's Go type with its JSON.
func fuzzed(t testing.TB, k *kind.Kind, f *randfill.Filler) (runtime.Object, []byte) {
	t.Helper()
	value := k.Hooks.NewTyped()
	f.Fill(value)
	value.GetObjectKind().SetGroupVersionKind(k.GVK(k.StorageVersion()))
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return value, data
}

func TestSchemasCoverTheirGoTypes(t *testing.T) {
	for _, k := range allKinds(t) {
		if k.Resource() == "customresourcedefinitions" {
			continue // its recursive schemas are cut short, and it is read-only
		}
		t.Run(k.String(), func(t *testing.T) {
			f := newFuzzer(1)
			for range 20 {
				_, data := fuzzed(t, k, f)
				_, strictErrs, err := k.Decode(k.StorageVersion(), data, true)
				if err != nil {
					t.Fatalf("decoding %s: %v", data, err)
				}
				if len(strictErrs) > 0 {
					t.Fatalf("the schema lacks fields: %v", strictErrs[0])
				}
			}
		})
	}
}

func TestDecodingKeepsEverythingThatWasWritten(t *testing.T) {
	for _, k := range allKinds(t) {
		if k.Resource() == "customresourcedefinitions" {
			continue
		}
		t.Run(k.String(), func(t *testing.T) {
			f := newFuzzer(2)
			for range 20 {
				_, data := fuzzed(t, k, f)
				o, _, err := k.Decode(k.StorageVersion(), data, false)
				if err != nil {
					t.Fatal(err)
				}
				got, err := o.Unstructured()
				if err != nil {
					t.Fatal(err)
				}
				var want map[string]any
				if err := json.Unmarshal(data, &want); err != nil {
					t.Fatal(err)
				}
				delete(want, "stringData") // moved into data
				if path := missing(want, plain(t, got), ""); path != "" {
					t.Fatalf("%s was lost", path)
				}
			}
		})
	}
}

// plain is a tree as encoding/json decodes it.
func plain(t testing.TB, tree map[string]any) map[string]any {
	t.Helper()
	data, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// missing is the first path of want that got lacks or has another value at. Values that
// are empty may be written or left out.
func missing(want, got any, path string) string {
	switch want := want.(type) {
	case map[string]any:
		members, ok := got.(map[string]any)
		if !ok {
			if len(want) == 0 {
				return ""
			}
			return path
		}
		for key, v := range want {
			if m := missing(v, members[key], path+"."+key); m != "" {
				return m
			}
		}
	case []any:
		items, ok := got.([]any)
		if !ok || len(items) != len(want) {
			if len(want) == 0 {
				return ""
			}
			return path
		}
		for i := range want {
			if m := missing(want[i], items[i], fmt.Sprintf("%s[%d]", path, i)); m != "" {
				return m
			}
		}
	default:
		if want != nil && want != "" && want != false && !reflect.DeepEqual(want, got) && !defaulted(path) {
			return fmt.Sprintf("%s: %v, not %v", path, got, want)
		}
	}
	return ""
}

// defaulted tells whether a member says the same as another that wins over it.
func defaulted(path string) bool {
	return strings.HasSuffix(path, ".spec.serviceAccount") || path == ".metadata.labels.kubernetes.io/metadata.name" || strings.HasPrefix(path, ".spec.sessionAffinityConfig")
}

func TestDecodingTwiceChangesNothing(t *testing.T) {
	for _, k := range allKinds(t) {
		t.Run(k.String(), func(t *testing.T) {
			f := newFuzzer(3)
			for range 5 {
				_, data := fuzzed(t, k, f)
				once, _, err := k.Decode(k.StorageVersion(), data, false)
				if err != nil {
					t.Fatal(err)
				}
				again, err := once.MarshalJSON()
				if err != nil {
					t.Fatal(err)
				}
				twice, _, err := k.Decode(k.StorageVersion(), again, false)
				if err != nil {
					t.Fatal(err)
				}
				if string(twice.Body()) != string(once.Body()) {
					t.Fatalf("first:\n%s\nthen:\n%s", once.Body(), twice.Body())
				}
			}
		})
	}
}

// The facts of the table are Kubernetes' own if the merge schema made with them gives
// the fields that client-go's generated one gives.
func TestMergeSchemasAreThoseOfClientGo(t *testing.T) {
	theirs := applyconfigurations.NewTypeConverter(scheme.Scheme)
	for _, k := range allKinds(t) {
		gvk := k.GVK(k.StorageVersion())
		if !scheme.Scheme.Recognizes(gvk) {
			continue
		}
		t.Run(k.String(), func(t *testing.T) {
			ours, err := k.TypeConverter()
			if err != nil {
				t.Fatal(err)
			}
			f := newFuzzer(4)
			for range 10 {
				value, _ := fuzzed(t, k, f)
				value.(metav1.Object).SetManagedFields(nil) // nobody manages them
				o, err := object.From(value, gvk)
				if err != nil {
					t.Fatal(err)
				}
				want := fieldsOf(t, func() (*typed.TypedValue, error) { return theirs.ObjectToTyped(value, typed.AllowDuplicates) })
				got := fieldsOf(t, func() (*typed.TypedValue, error) { return ours.ObjectToTyped(o, typed.AllowDuplicates) })
				if diff := want.Difference(got); !diff.Empty() {
					t.Fatalf("client-go has fields more: %s", diff)
				}
				if diff := got.Difference(want); !diff.Empty() {
					t.Fatalf("client-go lacks fields: %s", diff)
				}
			}
		})
	}
}

func fieldsOf(t testing.TB, convert func() (*typed.TypedValue, error)) *fieldpath.Set {
	t.Helper()
	value, err := convert()
	if err != nil {
		t.Fatal(err)
	}
	set, err := value.ToFieldSet()
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func TestMergedObjectsComeBackWhole(t *testing.T) {
	for _, k := range allKinds(t) {
		if k.Resource() == "customresourcedefinitions" {
			continue
		}
		t.Run(k.String(), func(t *testing.T) {
			converter, err := k.TypeConverter()
			if err != nil {
				t.Fatal(err)
			}
			value, _ := fuzzed(t, k, newFuzzer(5))
			o, err := object.From(value, k.GVK(k.StorageVersion()))
			if err != nil {
				t.Fatal(err)
			}
			tv, err := converter.ObjectToTyped(o, typed.AllowDuplicates)
			if err != nil {
				t.Fatal(err)
			}
			back, err := converter.TypedToObject(tv)
			if err != nil {
				t.Fatal(err)
			}
			again := k.Hooks.NewTyped()
			if err := back.(*object.Object).Into(again); err != nil {
				t.Fatal(err)
			}
			first := k.Hooks.NewTyped()
			if err := o.Into(first); err != nil {
				t.Fatal(err)
			}
			if !apiequality.Semantic.DeepEqual(first, again) {
				t.Errorf("before: %+v\nafter: %+v", first, again)
			}
		})
	}
}
