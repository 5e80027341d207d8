package codec

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/vmesh-io/vmesh/pkg/apis/builtin"
	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

var (
	virtualService = schema.GroupVersionKind{Group: "networking.istio.io", Version: "v1", Kind: "VirtualService"}
	configMap      = schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"}
)

func newCodec(t *testing.T) *Codec {
	t.Helper()
	core, err := builtin.Kinds()
	if err != nil {
		t.Fatal(err)
	}
	mesh, err := istio.Kinds()
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(slices.Concat(core, mesh))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func serializerOf(t *testing.T, c *Codec, mediaType string) runtime.SerializerInfo {
	t.Helper()
	info, ok := runtime.SerializerInfoForMediaType(c.SupportedMediaTypes(), mediaType)
	if !ok {
		t.Fatalf("no serializer for %s", mediaType)
	}
	return info
}

func read(t *testing.T, c *Codec, gvk schema.GroupVersionKind, body string) *object.Object {
	t.Helper()
	o, _, err := c.DecoderToVersion(serializerOf(t, c, runtime.ContentTypeJSON).Serializer, nil).Decode([]byte(body), &gvk, nil)
	if err != nil {
		t.Fatal(err)
	}
	return o.(*object.Object)
}

func TestWhatIsWrittenInAFormatIsReadFromIt(t *testing.T) {
	c := newCodec(t)
	for _, kind := range []struct {
		name, body string
		gvk        schema.GroupVersionKind
		formats    []string
	}{
		{"a kind with a Go type", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","creationTimestamp":null},"data":{"k":"v"}}`, configMap,
			[]string{runtime.ContentTypeJSON, runtime.ContentTypeYAML, runtime.ContentTypeProtobuf}},
		{"a kind without", `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a"},"spec":{"hosts":["b"]}}`, virtualService,
			[]string{runtime.ContentTypeJSON, runtime.ContentTypeYAML}},
	} {
		for _, format := range kind.formats {
			t.Run(kind.name+" as "+format, func(t *testing.T) {
				o := read(t, c, kind.gvk, kind.body)
				list := &object.List{TypeMeta: metav1.TypeMeta{APIVersion: o.APIVersion, Kind: o.Kind + "List"}, ListMeta: metav1.ListMeta{ResourceVersion: "7"}, Items: []object.Object{*o}}
				s := serializerOf(t, c, format).Serializer
				encoder, decoder := c.EncoderForVersion(s, kind.gvk.GroupVersion()), c.DecoderToVersion(s, nil)
				var w bytes.Buffer
				if err := encoder.Encode(o, &w); err != nil {
					t.Fatal(err)
				}
				again, gvk, err := decoder.Decode(w.Bytes(), nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				if got := again.(*object.Object); *gvk != kind.gvk || got.Name != "a" || string(got.Body()) != string(o.Body()) {
					t.Errorf("got %s %s %s", gvk, got.Name, got.Body())
				}
				w.Reset()
				if err := encoder.Encode(list, &w); err != nil || w.Len() == 0 {
					t.Errorf("the list: %q, %v", w.String(), err)
				}
			})
		}
	}
	t.Run("a kind without a Go type has no protobuf form", func(t *testing.T) {
		o := read(t, c, virtualService, `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a"}}`)
		encoder := c.EncoderForVersion(serializerOf(t, c, runtime.ContentTypeProtobuf).Serializer, virtualService.GroupVersion())
		if err := encoder.Encode(o, &bytes.Buffer{}); !errors.Is(err, errNoProtobuf) {
			t.Errorf("got %v", err)
		}
	})
}

func TestFaultsOfABodyAreNamed(t *testing.T) {
	c := newCodec(t)
	for _, f := range []struct {
		name, format, body, want string
		strict                   bool // the fault is one to a strict reader alone
	}{
		{"an unknown field", runtime.ContentTypeJSON, `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","spec":{"htp":1}}`, `unknown field "spec.htp"`, true},
		{"a key twice", runtime.ContentTypeYAML, "{apiVersion: v1, kind: ConfigMap, data: {a: b, a: c}}", `key "a" already set in map`, true},
		{"no kind", runtime.ContentTypeJSON, `{"apiVersion":"networking.istio.io/v1"}`, "Object 'Kind' is missing", false},
		{"another kind", runtime.ContentTypeJSON, `{"apiVersion":"apps/v1","kind":"DaemonSet"}`, "DaemonSet", false},
		{"another version", runtime.ContentTypeJSON, `{"apiVersion":"networking.istio.io/v9","kind":"VirtualService"}`, "networking.istio.io/v9", false},
		{"no JSON", runtime.ContentTypeJSON, `{"apiVersion":`, "json parse error", false},
	} {
		t.Run(f.name, func(t *testing.T) {
			info := serializerOf(t, c, f.format)
			_, _, err := c.DecoderToVersion(info.StrictSerializer, nil).Decode([]byte(f.body), &virtualService, nil)
			if err == nil || !strings.Contains(err.Error(), f.want) || runtime.IsStrictDecodingError(err) != f.strict {
				t.Errorf("a strict reader gets %v", err)
			}
			if _, _, err := c.DecoderToVersion(info.Serializer, nil).Decode([]byte(f.body), &virtualService, nil); (err == nil) != f.strict {
				t.Errorf("a lenient reader gets %v", err)
			}
		})
	}
}

// Otherwise whoever makes a node would be recorded as the manager of members that its
// Go type always writes.
func TestANewObjectHasWhatItsGoTypeAlwaysWrites(t *testing.T) {
	c := newCodec(t)
	for kind, want := range map[string]string{"Node": "spec status", "Pod": "spec status", "ConfigMap": ""} {
		o, err := c.New(schema.GroupVersionKind{Version: "v1", Kind: kind})
		if err != nil {
			t.Fatal(err)
		}
		for _, member := range strings.Fields(want) {
			if len(o.(*object.Object).Field(member)) == 0 {
				t.Errorf("a new %s lacks %s: %s", kind, member, o.(*object.Object).Body())
			}
		}
		if want == "" && len(o.(*object.Object).Body()) > 0 {
			t.Errorf("a new %s has %s", kind, o.(*object.Object).Body())
		}
	}
	o, err := c.New(virtualService)
	if err != nil || len(o.(*object.Object).Body()) > 0 {
		t.Errorf("a new VirtualService has %s, %v", o.(*object.Object).Body(), err)
	}
}

func TestDeprecatedVersionsHaveWarnings(t *testing.T) {
	got := newCodec(t).Deprecations()
	endpoints := schema.GroupVersionResource{Version: "v1", Resource: "endpoints"}
	if len(got) != 1 || got[endpoints] != "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice" {
		t.Errorf("the warnings are %v", got)
	}
}
