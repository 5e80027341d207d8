package logical

import (
	"bytes"
	"context"
	"crypto/aes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher/consistency"
	"k8s.io/apiserver/pkg/storage/value"
	aestransformer "k8s.io/apiserver/pkg/storage/value/encrypt/aes"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// broken is what an etcd may hold that is no config map of virtual cluster a.
var broken = map[string]string{
	"a/default/garbage":         "\x00\x01\x02",
	"a/default/empty":           "",
	"a/default/null":            "null",
	"a/default/truncated":       `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"truncated","namespace":"default"},"data":{"valu`,
	"a/default/malformed":       `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"malformed","namespace":"default"},"data":{]}`,
	"a/default/other-kind":      `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"other-kind","namespace":"default"}}`,
	"a/default/other-name":      `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x","namespace":"default"}}`,
	"a/default/other-namespace": `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"other-namespace","namespace":"x"}}`,
	"a/default/bad-metadata":    `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"bad-metadata","namespace":"default","labels":[]}}`,
}

func plant(t testing.TB, b *Backend, r Resource, path, value string) {
	t.Helper()
	if _, err := b.config.Client.Put(testContext(t), b.config.Prefix+ResourcePrefix(r.GroupResource)+"/"+path, value); err != nil {
		t.Fatal(err)
	}
}

func stored(t testing.TB, b *Backend, r Resource, path string) string {
	t.Helper()
	resp, err := b.config.Client.Get(testContext(t), b.config.Prefix+ResourcePrefix(r.GroupResource)+"/"+path)
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return "NOT FOUND"
	}
	return string(resp.Kvs[0].Value)
}

// consistent compares the watch cache with etcd.
func consistent(t testing.TB, s storage.Interface) {
	t.Helper()
	st := s.(*store)
	digest, err := consistency.NewChecker(st.resourcePrefix+"/", schema.GroupResource{}, st.codec.newList, st.cacher, st.etcd).CalculateDigests(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if digest.CacheDigest != digest.EtcdDigest {
		t.Errorf("the watch cache is not what etcd is: %v", digest.DiffDetail)
	}
}

func TestWhatCannotBeReadIsQuarantinedAndHidesNothing(t *testing.T) {
	for _, when := range []string{"before the start", "while watching"} {
		t.Run(when, func(t *testing.T) {
			registry := prometheus.NewRegistry()
			b := newTestBackend(t, BackendConfig{Registerer: registry})
			spoil := func() {
				for path, value := range broken {
					plant(t, b, configMaps, path, value)
				}
				// Not even keys of objects:
				plant(t, b, configMaps, "a", "x")
				plant(t, b, configMaps, "a/default", "x")
				plant(t, b, configMaps, "a/default/x/y/z", "x")
				plant(t, b, configMaps, "NO-CLUSTER/default/x", "x")
			}
			if when == "before the start" {
				spoil()
			}
			s := openResource(t, b, configMaps)
			a := cluster{t: t, s: s, r: configMaps, name: "a"}
			other := cluster{t: t, s: s, r: configMaps, name: "b"}
			a.create("default", "healthy", "1")
			other.create("default", "healthy", "2")
			if when == "while watching" {
				spoil()
			}

			for _, rv := range []string{"", "0"} {
				l := a.list("default", storage.ListOptions{})
				for path := range broken {
					name := strings.TrimPrefix(path, "a/default/")
					i := slices.IndexFunc(l.Items, func(o object.Object) bool { return o.Name == name })
					if i < 0 {
						t.Errorf("resourceVersion %q: %s is not listed", rv, name)
						continue
					}
					o := &l.Items[i]
					reason, is := Quarantined(o)
					if !is || reason == "" || o.Namespace != "default" || o.Cluster() != "a" || o.Kind != "ConfigMap" || o.APIVersion != "v1" || o.ResourceVersion == "" || len(o.Body()) > 0 {
						t.Errorf("%s is listed as %#v", name, o)
					}
				}
				if !slices.Contains(names(l), "a:default/healthy=1") {
					t.Errorf("resourceVersion %q: the healthy object is not listed", rv)
				}
			}
			if got := names(other.list("", storage.ListOptions{})); !slices.Equal(got, []string{"b:default/healthy=2"}) {
				t.Errorf("the other cluster lists %q", got)
			}
			consistent(t, s)
			if got := testutil.ToFloat64(b.metrics.quarantined.WithLabelValues("configmaps")); got != float64(len(broken)+4) {
				t.Errorf("the metric says %v", got)
			}
			if n, err := testutil.GatherAndCount(registry, "vmesh_storage_quarantined_objects"); n != 1 || err != nil {
				t.Errorf("%d metrics are registered, %v", n, err)
			}
			if err := b.Ready()[configMaps.GroupResource]; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAQuarantinedObjectCanBeDeletedAndReplaced(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	for path, value := range broken {
		plant(t, b, configMaps, path, value)
	}
	s := openResource(t, b, configMaps)
	a := cluster{t: t, s: s, r: configMaps, name: "a"}
	w := a.watch(a.list("", storage.ListOptions{}).ResourceVersion)
	for path := range broken {
		if broken[path] == "" {
			continue // TestTheDeletionOfAnEmptyValueIsNotMissed
		}
		name := strings.TrimPrefix(path, "a/default/")

		// What keeps nothing but the placeholder's metadata would lose what is stored.
		out := &object.Object{}
		for what, update := range map[string]func(o *object.Object){
			"nothing":      func(*object.Object) {},
			"only a label": func(o *object.Object) { o.Labels = map[string]string{"a": "b"} },
		} {
			err := s.GuaranteedUpdate(a.ctx(), a.key("default", name), out, false, nil, func(in runtime.Object, _ storage.ResponseMeta) (runtime.Object, *uint64, error) {
				o := in.(*object.Object).DeepCopy()
				update(o)
				return o, nil, nil
			}, nil)
			if !apierrors.IsBadRequest(err) {
				t.Errorf("%s: an update of %s: got %v", name, what, err)
			}
		}
		if got := stored(t, b, configMaps, path); got != broken[path] {
			t.Errorf("%s: refused updates have changed it to %q", name, got)
		}

		replaced := a.update("default", name, "new")
		if _, is := Quarantined(replaced); is || replaced.UID == "" || replaced.CreationTimestamp.IsZero() || text(replaced) != "new" {
			t.Errorf("%s was replaced by %#v", name, replaced)
		}
		if strings.Contains(stored(t, b, configMaps, path), QuarantineAnnotation) {
			t.Errorf("%s is stored with the annotation", name)
		}
		w.expect("MODIFIED a default/" + name + " new")

		plant(t, b, configMaps, path, broken[path])
		w.expect("MODIFIED a default/" + name + " QUARANTINED")
		if got := a.delete("default", name); got.Name != name {
			t.Errorf("the deletion of %s returns %#v", name, got)
		}
		w.expect("DELETED a default/" + name + " QUARANTINED")
		if got := stored(t, b, configMaps, path); got != "NOT FOUND" {
			t.Errorf("%s is still there: %q", name, got)
		}
	}
	if got := testutil.ToFloat64(b.metrics.quarantined.WithLabelValues("configmaps")); got != 1 {
		t.Errorf("the metric says %v", got)
	}
	consistent(t, s)
}

// Upstream's watch cache never learns that an empty value is gone.
func TestTheDeletionOfAnEmptyValueIsNotMissed(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	s := openResource(t, b, configMaps)
	a := cluster{t: t, s: s, r: configMaps, name: "a"}
	o := observe(t, b, configMaps.GroupResource)
	o.expect("REPLACED")
	plant(t, b, configMaps, "a/default/x", "")
	o.expect("ADDED a:default/x=QUARANTINED")
	a.delete("default", "x")
	o.expect("REPLACED")
	ctx := testContext(t)
	for len(a.listWhenReady(ctx, "0").Items) > 0 {
		if ctx.Err() != nil {
			t.Fatal("the watch cache keeps it")
		}
	}
	consistent(t, s)
}

func TestTheQuarantineAnnotationIsNotAUsersToSet(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	s := openResource(t, b, configMaps)
	a := cluster{t: t, s: s, r: configMaps, name: "a"}

	o := a.new("default", "x", "1")
	o.Annotations = map[string]string{QuarantineAnnotation: "I say so", "other": "stays"}
	out := &object.Object{}
	if err := s.Create(a.ctx(), a.key("default", "x"), o, out, 0); err != nil {
		t.Fatal(err)
	}
	if _, set := out.Annotations[QuarantineAnnotation]; set || out.Annotations["other"] != "stays" {
		t.Errorf("it has annotations %v", out.Annotations)
	}

	o = object.New(configMaps.GVK)
	o.Namespace, o.Name, o.Annotations = "default", "y", map[string]string{QuarantineAnnotation: ""}
	if err := s.Create(a.ctx(), a.key("default", "y"), o, out, 0); !apierrors.IsBadRequest(err) {
		t.Errorf("without a body: got %v", err)
	}

	plant(t, b, configMaps, "a/default/z", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"z","namespace":"default","annotations":{"vmesh.io/quarantined":"x"}}}`)
	z, err := a.get("default", "z")
	if _, is := Quarantined(z); is || err != nil {
		t.Errorf("what bears the annotation in etcd is %#v, %v", z, err)
	}
}

func TestEveryVersionOfAKindIsRead(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	plant(t, b, virtualServices, "a/shop/old", `{"apiVersion":"networking.istio.io/v1alpha3","kind":"VirtualService","metadata":{"name":"old","namespace":"shop"},"spec":{}}`)
	a := cluster{t: t, s: openVirtualServices(t, b), r: virtualServices, name: "a"}
	o, err := a.get("shop", "old")
	if _, is := Quarantined(o); is || err != nil || o.APIVersion != "networking.istio.io/v1" {
		t.Errorf("got %#v, %v", o, err)
	}
}

func TestObjectsAreEncryptedInsideTheirKeys(t *testing.T) {
	block, err := aes.NewCipher([]byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := aestransformer.NewGCMTransformer(block)
	if err != nil {
		t.Fatal(err)
	}
	b := newTestBackend(t, BackendConfig{Transformer: func(gr schema.GroupResource) value.Transformer {
		if gr == configMaps.GroupResource {
			return corruptible{gcm}
		}
		return nil
	}})
	s := openResource(t, b, configMaps)
	a := cluster{t: t, s: s, r: configMaps, name: "a"}
	w := a.watch("")
	w.expect("SYNCED")
	a.create("default", "x", "a secret")
	w.expect("ADDED a default/x a secret")
	raw := stored(t, b, configMaps, "a/default/x")
	if bytes.Contains([]byte(raw), []byte("secret")) || bytes.Contains([]byte(raw), []byte("ConfigMap")) {
		t.Errorf("stored is %q", raw)
	}
	if got := a.update("default", "x", "another"); text(got) != "another" {
		t.Errorf("got %#v", got)
	}
	w.expect("MODIFIED a default/x another")
	// Moved to another key, a value cannot be read: the key is authenticated.
	plant(t, b, configMaps, "b/default/x", stored(t, b, configMaps, "a/default/x"))
	other := cluster{t: t, s: s, r: configMaps, name: "b"}
	if o, err := other.get("default", "x"); err != nil || text(o) != "QUARANTINED" {
		t.Errorf("got %#v, %v", o, err)
	}
	a.update("default", "x", "third")
	w.expect("MODIFIED a default/x third")
}

// corruptible tells that what AES-GCM refuses is refused for good.
type corruptible struct{ value.Transformer }

func (c corruptible) TransformFromStorage(ctx context.Context, data []byte, dataCtx value.Context) ([]byte, bool, error) {
	out, stale, err := c.Transformer.TransformFromStorage(ctx, data, dataCtx)
	if err != nil {
		err = errors.Join(err, ErrCorrupt)
	}
	return out, stale, err
}

// An observer is told of quarantined objects as of any other.
func TestObserversSeeQuarantinedObjects(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	plant(t, b, configMaps, "a/default/x", "junk")
	openResource(t, b, configMaps)
	o := observe(t, b, configMaps.GroupResource)
	o.expect("REPLACED a:default/x=QUARANTINED")
	plant(t, b, configMaps, "a/default/x", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x","namespace":"default"},"data":{"value":"1"}}`)
	o.expect(string(watch.Modified) + " a:default/x=1")
	plant(t, b, configMaps, "a/default/x", "junk")
	o.expect(string(watch.Modified) + " a:default/x=QUARANTINED")
}
