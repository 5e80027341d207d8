package istio_test

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/proto"
	"istio.io/istio/pkg/config"

	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/kind/kindtest"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// sameMessage fails the test unless an object's message is the one that the Istio
// module makes of its spec.
func sameMessage(t *testing.T, r *istio.Resource, o *object.Object) {
	t.Helper()
	instance, err := r.Schema.NewInstance()
	if err != nil {
		t.Fatal(err)
	}
	want := instance.(proto.Message)
	var wantErr error
	if spec := o.Field("spec"); spec != nil {
		wantErr = config.ApplyJSON(want, string(spec))
	}
	got, err := r.Message(o)
	if (err != nil) != (wantErr != nil) {
		t.Fatalf("%s\ngot error %v, Istio's: %v", o.Body(), err, wantErr)
	}
	if err == nil && !proto.Equal(want, got) {
		t.Fatalf("%s\ngot  %v\nwant %v", o.Body(), got, want)
	}
}

func TestMessagesOfSamplesAreIstios(t *testing.T) {
	kinds := byGroupKind(t)
	resources := map[*kind.Kind]*istio.Resource{}
	seen := 0
	for _, s := range samples(t, "pkg/config", "pkg/test/datasets", "samples", "tests", "pilot/pkg") {
		k := kinds[s.kind+"."+s.group]
		if k == nil {
			continue
		}
		if resources[k] == nil {
			r, err := istio.ResourceOf(k)
			if err != nil {
				t.Fatal(err)
			}
			resources[k] = r
		}
		o := &object.Object{}
		if err := o.UnmarshalJSON(s.json); err != nil {
			continue
		}
		seen++
		sameMessage(t, resources[k], o)
	}
	t.Logf("%d samples", seen)
	if seen < 300 || len(resources) != len(kinds) {
		t.Errorf("only %d samples of %d kinds", seen, len(resources))
	}
}

func TestMessagesOfRandomObjectsAreIstios(t *testing.T) {
	kinds, err := istio.Kinds()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range kinds {
		r, err := istio.ResourceOf(k)
		if err != nil {
			t.Fatal(err)
		}
		crd, err := k.CRD()
		if err != nil {
			t.Fatal(err)
		}
		reference, err := kindtest.NewReference(crd, k.StorageVersion())
		if err != nil {
			t.Fatal(err)
		}
		for seed := range uint64(80) {
			g := &kindtest.Generator{Rand: rand.New(rand.NewPCG(seed, 2)), Faults: [...]float64{0, 0.02}[seed%2]}
			data, err := json.Marshal(g.Object(reference.Structural))
			if err != nil {
				t.Fatal(err)
			}
			o := &object.Object{}
			if err := o.UnmarshalJSON(data); err != nil {
				t.Fatal(err)
			}
			sameMessage(t, r, o)
		}
	}
}

func TestEqualSpecsHaveEqualBytes(t *testing.T) {
	k := find(t, "destinationrules")
	r, err := istio.ResourceOf(k)
	if err != nil {
		t.Fatal(err)
	}
	body := `{"kind":"DestinationRule","spec":{"host":"reviews","subsets":[{"name":"v1","labels":{"a":"1","b":"2","c":"3","d":"4"}}]}}`
	var first []byte
	for range 20 {
		o := &object.Object{}
		if err := o.UnmarshalJSON([]byte(body)); err != nil {
			t.Fatal(err)
		}
		data, err := r.AppendMessage(nil, o)
		if err != nil {
			t.Fatal(err)
		}
		if first != nil && !bytes.Equal(first, data) {
			t.Fatal("two encodings of one spec differ")
		}
		first = data
	}
}

func FuzzMessage(f *testing.F) {
	k := find(f, "virtualservices")
	r, err := istio.ResourceOf(k)
	if err != nil {
		f.Fatal(err)
	}
	filters, err := istio.ResourceOf(find(f, "envoyfilters"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(virtualService))
	f.Add([]byte(`{"spec":{"configPatches":[{"applyTo":"CLUSTER","patch":{"operation":"MERGE","value":{"a":[1,null,true,"x",{"b":1.5}]}}}]}}`))
	f.Add([]byte(`{"spec":{"http":[{"timeout":"1.5h","retries":{"attempts":"3"},"match":[{"headers":{"a":{"exact":"ä\u00e4"}}}]}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		o := &object.Object{}
		if o.UnmarshalJSON(data) != nil {
			return
		}
		sameMessage(t, r, o)
		sameMessage(t, filters, o)
	})
}
