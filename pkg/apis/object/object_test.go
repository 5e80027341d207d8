package object

import (
	"encoding/json"
	"strings"
	"testing"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/randfill"
)

const sample = `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"reviews","namespace":"shop",` +
	`"uid":"7c0ff4a5","resourceVersion":"12","generation":3,"creationTimestamp":"2026-03-01T10:00:00Z",` +
	`"labels":{"app":"reviews","quoted":"a\"b"},"annotations":{"note":"grün"},` +
	`"ownerReferences":[{"apiVersion":"v1","kind":"ConfigMap","name":"owner","uid":"u"}],"finalizers":["a/b"],` +
	`"managedFields":[{"manager":"kubectl","operation":"Apply","apiVersion":"networking.istio.io/v1","time":"2026-03-01T10:00:00Z",` +
	`"fieldsType":"FieldsV1","fieldsV1":{"f:spec":{"f:hosts":{}}}}]},"spec":{"hosts":["reviews"],"weight":80,"ratio":0.5},"status":{"ok":true}}`

func decode(t *testing.T, data string) *Object {
	t.Helper()
	o := &Object{}
	if err := o.Decode([]byte(data)); err != nil {
		t.Fatal(err)
	}
	return o
}

// canonical is JSON with its keys sorted, for comparison.
func canonical(t *testing.T, data []byte) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestDecodeKeepsEverythingThatWasWritten(t *testing.T) {
	o := decode(t, sample)
	again := o.AppendJSON(nil, o.APIVersion, o.Kind)
	if got, want := canonical(t, again), canonical(t, []byte(sample)); got != want {
		t.Errorf("wrote\n%s\nread\n%s", want, got)
	}
}

func TestBodyIsFoundWhereverMetadataStands(t *testing.T) {
	for name, data := range map[string]string{
		"metadata first":  `{"kind":"K","metadata":{"name":"a"},"data":{"x":"y"},"spec":{}}`,
		"metadata amidst": `{"data":{"x":"y"},"metadata":{"name":"a"},"kind":"K","spec":{}}`,
		"metadata last":   `{"data":{"x":"y"},"spec":{},"kind":"K","metadata":{"name":"a"}}`,
		"white space":     "{ \"kind\" : \"K\" ,\n\"metadata\":{\"name\":\"a\"}, \"data\":{\"x\":\"y\"},\"spec\":{} \n}",
	} {
		t.Run(name, func(t *testing.T) {
			o := decode(t, data)
			if o.Name != "a" || o.Kind != "K" {
				t.Errorf("read name %q, kind %q", o.Name, o.Kind)
			}
			if got := string(o.Body()); strings.ReplaceAll(got, " ", "") != `"data":{"x":"y"},"spec":{}` {
				t.Errorf("body is %s", got)
			}
			if got := string(o.Field("data")); got != `{"x":"y"}` {
				t.Errorf("data is %s", got)
			}
		})
	}
}

func TestDecodeRefusesWhatIsNoObject(t *testing.T) {
	for _, data := range []string{``, `[]`, `"x"`, `{`, `{"metadata":3}`, `{"metadata":{"name":3}}`, `{"kind"}`, `{"kind":"K",}`, `{"kind":"K" "x":1}`,
		`{"metadata":{"generation":"x"}}`, `{"metadata":{"managedFields":[3]}}`, `{"metadata":{"creationTimestamp":"yesterday"}}`} {
		if err := (&Object{}).Decode([]byte(data)); err == nil {
			t.Errorf("decoded %s", data)
		}
	}
}

func TestMetadataIsReadAndWrittenAsEncodingJSONDoes(t *testing.T) {
	fill := randfill.NewWithSeed(1).NilChance(0.3).NumElements(0, 4).Funcs(
		func(f *metav1.FieldsV1, _ randfill.Continue) { f.SetRawBytes([]byte(`{"f:a":{}}`)) },
		func(s *metav1.ObjectMeta, c randfill.Continue) {
			c.FillNoCustom(s)
			s.SelfLink = "" // long out of use, and not carried
		},
		func(m *metav1.Time, c randfill.Continue) { *m = metav1.Unix(int64(c.Uint32())+1, 0) },
	)
	for range 500 {
		var m, direct metav1.ObjectMeta
		fill.Fill(&m)
		want, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if got := appendMetadata(nil, &m); canonical(t, got) != canonical(t, dropNulls(t, want)) {
			t.Fatalf("wrote\n%s\nencoding/json writes\n%s", got, want)
		}
		var reference metav1.ObjectMeta
		if err := json.Unmarshal(want, &reference); err != nil {
			t.Fatal(err)
		}
		if err := decodeMetadata(dropNulls(t, want), &direct); err != nil {
			t.Fatal(err)
		}
		if !apiequality.Semantic.DeepEqual(direct, reference) {
			t.Fatalf("read\n%#v\nencoding/json reads\n%#v", direct, reference)
		}
	}
}

// dropNulls takes "creationTimestamp":null away, which is written for a zero time only.
func dropNulls(t *testing.T, data []byte) []byte {
	t.Helper()
	return []byte(strings.ReplaceAll(string(data), `"creationTimestamp":null`, `"generation":0`))
}

func TestCopiesShareTheBodyAndNotTheMetadata(t *testing.T) {
	o := decode(t, sample)
	o.SetCluster("shop")
	c := o.DeepCopy()
	c.Labels["app"] = "other"
	if o.Labels["app"] != "reviews" {
		t.Error("the copy's labels are the original's")
	}
	if &c.Body()[0] != &o.Body()[0] {
		t.Error("the body was copied")
	}
	if c.Cluster() != "shop" {
		t.Error("the copy is of no virtual cluster")
	}
}

func TestClusterNeverShows(t *testing.T) {
	o := decode(t, sample)
	o.SetCluster("sentinel-cluster")
	u, err := o.Unstructured()
	if err != nil {
		t.Fatal(err)
	}
	tree, _ := json.Marshal(u)
	for _, data := range [][]byte{o.AppendJSON(nil, "v1", "K"), tree} {
		if strings.Contains(string(data), "sentinel-cluster") {
			t.Errorf("the virtual cluster shows in %s", data)
		}
	}
}

func TestSetContentIsCanonical(t *testing.T) {
	o := &Object{}
	if err := o.SetContent(map[string]any{"spec": map[string]any{"b": int64(1), "a": []any{"x<y", nil, true, 1.5}}, "data": map[string]any{}}); err != nil {
		t.Fatal(err)
	}
	if got, want := string(o.Body()), `"data":{},"spec":{"a":["x<y",null,true,1.5],"b":1}`; got != want {
		t.Errorf("body is %s, want %s", got, want)
	}
	if err := o.SetContent(map[string]any{"spec": struct{}{}}); err == nil {
		t.Error("a struct was taken for a tree")
	}
}

func TestTreeRoundTrip(t *testing.T) {
	var u unstructured.Unstructured
	if err := u.UnmarshalJSON([]byte(sample)); err != nil {
		t.Fatal(err)
	}
	o, err := FromUnstructured(u.DeepCopy().Object)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := o.Unstructured()
	if err != nil {
		t.Fatal(err)
	}
	if !apiequality.Semantic.DeepEqual(tree, u.Object) {
		t.Errorf("got %v, want %v", tree, u.Object)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte(`{"metadata":{"labels":{"a":null}},"x":[1,{"y":"\\u0000"}]}`))
	f.Add([]byte("{\"apiVersion\":\"\x84\"}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		o := &Object{}
		if o.Decode(data) != nil || !json.Valid(data) {
			return
		}
		again := &Object{}
		first := o.AppendJSON(nil, o.APIVersion, o.Kind)
		if !json.Valid(first) {
			t.Fatalf("%s was written as %s", data, first)
		}
		if err := again.Decode(first); err != nil {
			t.Fatalf("cannot read %s, which was written: %v", first, err)
		}
		if second := again.AppendJSON(nil, again.APIVersion, again.Kind); string(first) != string(second) {
			t.Fatalf("wrote %s, then %s", first, second)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if err := (&Object{}).Decode([]byte(sample)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendJSON(b *testing.B) {
	o := &Object{}
	if err := o.Decode([]byte(sample)); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	var buffer []byte
	for b.Loop() {
		buffer = o.AppendJSON(buffer[:0], o.APIVersion, o.Kind)
	}
}
