package logical

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"k8s.io/apiserver/pkg/storage/value"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

func testCodec(r Resource) *codec {
	return &codec{format: newObjects(r.GVK, r.ListGVK), namespaced: r.Namespaced}
}

func TestAnObjectComesBackWithTheClusterOfItsKey(t *testing.T) {
	ctx := context.Background()
	c := testCodec(virtualServices)
	tr := &transformer{prefix: []byte("/registry/g/r/")}
	vs := newVirtualService("shop", "cart")
	vs.SetCluster("one")
	vs.ResourceVersion = "17"
	data, err := encoded(c, vs)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := tr.TransformToStorage(ctx, data, value.DefaultContext("/registry/g/r/one/shop/cart"))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"one", "17", "resourceVersion"} {
		if bytes.Contains(stored, []byte(secret)) {
			t.Errorf("what is stored has %q in it: %s", secret, stored)
		}
	}
	data, _, err = tr.TransformFromStorage(ctx, stored, value.DefaultContext("/registry/g/r/two/shop/cart"))
	if err != nil {
		t.Fatal(err)
	}
	obj, _, err := c.Decode(data, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := obj.(*object.Object)
	if got.Cluster() != "two" {
		t.Errorf("its cluster is %q", got.Cluster())
	}
	if string(got.Body()) != string(vs.Body()) || got.UID != vs.UID || got.Kind != "VirtualService" || got.APIVersion != "networking.istio.io/v1" {
		t.Errorf("it is %s", got.AppendJSON(nil, got.APIVersion, got.Kind))
	}
}

func TestAnObjectIsWrittenUnderNoKeyButItsOwn(t *testing.T) {
	c := testCodec(virtualServices)
	tr := &transformer{prefix: []byte("/registry/g/r/")}
	vs := newVirtualService("shop", "cart")
	vs.SetCluster("one")
	data, err := encoded(c, vs)
	if err != nil {
		t.Fatal(err)
	}
	for key, ok := range map[string]bool{
		"/registry/g/r/one/shop/cart":  true,
		"/registry/g/r/two/shop/cart":  false,
		"/registry/g/r/one/shop/cart2": false,
		"/registry/g/r/one/bar/cart":   false,
		"/registry/g/r/one/shop":       false,
		"/registry/g/other/one":        false,
	} {
		if _, err := tr.TransformToStorage(context.Background(), data, value.DefaultContext(key)); (err == nil) != ok {
			t.Errorf("%s: got %v", key, err)
		}
	}
	vs.SetCluster("")
	if data, err = encoded(c, vs); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.TransformToStorage(context.Background(), data, value.DefaultContext("/registry/g/r/one/shop/cart")); err == nil {
		t.Error("an object without a cluster is written")
	}
	if _, err := tr.TransformToStorage(context.Background(), []byte(`{"kind":"VirtualService"}`), value.DefaultContext("/registry/g/r/one/shop/cart")); err == nil {
		t.Error("bytes without an envelope are written")
	}
}

func FuzzEnvelope(f *testing.F) {
	f.Add([]byte("c/n/x"), []byte(`{"a":1}`))
	f.Add([]byte{}, []byte{})
	f.Add([]byte(strings.Repeat("p", 300)), []byte{0xff})
	f.Fuzz(func(t *testing.T, path, payload []byte) {
		data := append(appendEnvelope(nil, intact, string(path)), payload...)
		kind, p, rest, err := openEnvelope(data)
		if err != nil || kind != intact || !bytes.Equal(p, path) || !bytes.Equal(rest, payload) {
			t.Fatalf("got %v %q %q %v", kind, p, rest, err)
		}
		// Anything else is an error or an envelope, and never a panic.
		for _, other := range [][]byte{payload, data[:len(data)/2]} {
			if _, p, rest, err := openEnvelope(other); err == nil && len(p)+len(rest) > len(other) {
				t.Fatalf("%q holds %q and %q", other, p, rest)
			}
		}
	})
}

// FuzzDecode: whatever is stored under whatever key, decoding gives an object of the
// key's cluster, which the watch cache files under that same key, and which encodes.
func FuzzDecode(f *testing.F) {
	vs := newVirtualService("shop", "cart")
	good := string(vs.AppendJSON(nil, vs.APIVersion, vs.Kind))
	for _, data := range []string{good, good[:len(good)/2], "", "null", "{}", `{"metadata":{"name":"cart","namespace":"shop"}}`, `{"apiVersion":"v1","kind":"Pod"}`, `{"metadata":[]}`, "\x00\xff"} {
		f.Add("one/shop/cart", []byte(data))
	}
	f.Add("one", []byte(good))
	f.Add("", []byte(good))
	f.Add("one/shop/cart/more", []byte(good))
	f.Add("ONE/shop/cart", []byte(good))
	c := testCodec(virtualServices)
	tr := &transformer{prefix: []byte("/registry/g/r/")}
	f.Fuzz(func(t *testing.T, path string, data []byte) {
		key := "/registry/g/r/" + path
		sealed, _, err := tr.TransformFromStorage(context.Background(), data, value.DefaultContext(key))
		if err != nil {
			t.Fatal(err)
		}
		obj, _, err := c.Decode(sealed, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		o := obj.(*object.Object)
		filed, err := c.key("/registry/g/r", o)
		if err != nil {
			t.Fatal(err)
		}
		if filed != key && filed != key+"/" {
			t.Fatalf("what is stored under %q is filed under %q", key, filed)
		}
		if _, _, _, err := parsePath(path, true); err != nil {
			if _, is := Quarantined(o); !is {
				t.Fatalf("what is stored under %q is taken for %s", key, o.Name)
			}
		}
		if cluster, _ := keyCluster("/registry/g/r", key); cluster != o.Cluster() && cluster != "" {
			t.Fatalf("what is stored under %q is of cluster %q", key, o.Cluster())
		}
		again, err := encoded(c, o)
		if err != nil {
			t.Fatal(err)
		}
		second, _, err := c.Decode(again, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, is := Quarantined(o); is {
			if _, still := Quarantined(second.(*object.Object)); !still {
				t.Fatal("a quarantined object came back as a healthy one")
			}
		} else if !bytes.Equal(second.(*object.Object).Body(), o.Body()) {
			t.Fatalf("%s became %s", o.Body(), second.(*object.Object).Body())
		}
	})
}

func TestErrorsOfATransformer(t *testing.T) {
	ctx := context.Background()
	c := testCodec(virtualServices)
	key := value.DefaultContext("/registry/g/r/one/shop/cart")
	fail := &failing{err: errors.New("the key service is away")}
	tr := &transformer{prefix: []byte("/registry/g/r/"), inner: fail}
	if _, _, err := tr.TransformFromStorage(ctx, nil, key); !errors.Is(err, fail.err) {
		t.Errorf("an error that may pass: got %v", err)
	}
	fail.err = errors.Join(errors.New("bad padding"), ErrCorrupt)
	data, _, err := tr.TransformFromStorage(ctx, nil, key)
	if err != nil {
		t.Fatal(err)
	}
	obj, _, err := c.Decode(data, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if reason, is := Quarantined(obj.(*object.Object)); !is || !strings.Contains(reason, "bad padding") {
		t.Errorf("an error for good: got %q", reason)
	}
}

type failing struct{ err error }

func (f *failing) TransformFromStorage(context.Context, []byte, value.Context) ([]byte, bool, error) {
	return nil, false, f.err
}

func (f *failing) TransformToStorage(context.Context, []byte, value.Context) ([]byte, error) {
	return nil, f.err
}
