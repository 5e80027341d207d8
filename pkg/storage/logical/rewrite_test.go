package logical

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/apiserver/pkg/storage/value/encrypt/identity"
	"k8s.io/apiserver/pkg/storage/value/encrypt/secretbox"
)

// keys are an encryption whose keys can be changed while the storage is open.
type keys struct {
	now atomic.Pointer[value.Transformer]
}

// use sets the keys: the first is written with. "" is no encryption.
func (k *keys) use(names ...string) {
	var all []value.PrefixTransformer
	for _, name := range names {
		if name == "" {
			all = append(all, value.PrefixTransformer{Transformer: identity.NewEncryptCheckTransformer()})
			continue
		}
		var key [32]byte
		copy(key[:], name)
		all = append(all, value.PrefixTransformer{Prefix: []byte("k8s:enc:secretbox:v1:" + name + ":"), Transformer: secretbox.NewSecretboxTransformer(key)})
	}
	t := value.NewPrefixTransformers(errors.New("no matching prefix found"), all...)
	k.now.Store(&t)
}

func (k *keys) TransformFromStorage(ctx context.Context, data []byte, dataCtx value.Context) ([]byte, bool, error) {
	out, stale, err := (*k.now.Load()).TransformFromStorage(ctx, data, dataCtx)
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return out, stale, err
}

func (k *keys) TransformToStorage(ctx context.Context, data []byte, dataCtx value.Context) ([]byte, error) {
	return (*k.now.Load()).TransformToStorage(ctx, data, dataCtx)
}

func newKeys(names ...string) (*keys, BackendConfig) {
	k := &keys{}
	k.use(names...)
	return k, BackendConfig{Transformer: func(schema.GroupResource) value.Transformer { return k }}
}

// rewriteAll rewrites in parts, and fails if there are more than objects.
func rewriteAll(t testing.TB, b *Backend, r Rewrite) Rewritten {
	t.Helper()
	var sum Rewritten
	for range 1000 {
		part, err := b.Rewrite(testContext(t), r)
		if err != nil {
			t.Fatal(err)
		}
		sum.Rewritten, sum.Current, sum.Unreadable = sum.Rewritten+part.Rewritten, sum.Current+part.Current, append(sum.Unreadable, part.Unreadable...)
		if r.From = part.Next; r.From == "" {
			return sum
		}
	}
	t.Fatal("it does not end")
	return sum
}

func TestAValueThatIsCopiedToAnotherKeyIsNotRead(t *testing.T) {
	_, config := newKeys("one")
	b := newTestBackend(t, config)
	s := openResource(t, b, configMaps)
	a := cluster{t: t, s: s, r: configMaps, name: "a"}
	a.create("default", "x", "a secret")
	raw := stored(t, b, configMaps, "a/default/x")
	if strings.Contains(raw, "a secret") {
		t.Errorf("stored is %q", raw)
	}
	for _, path := range []string{"b/default/x", "a/other/x", "a/default/y"} {
		plant(t, b, configMaps, path, raw)
		of, object, _ := strings.Cut(path, "/")
		namespace, name, _ := strings.Cut(object, "/")
		o, err := (cluster{t: t, s: s, r: configMaps, name: of}).get(namespace, name)
		if err != nil {
			t.Fatal(err)
		}
		if reason, is := Quarantined(o); !is || !strings.Contains(reason, "copied to this one") {
			t.Errorf("%s: got %#v", path, o)
		}
	}
}

func TestWhatIsEncryptedElsewhereOrWithoutAKeyIsQuarantined(t *testing.T) {
	k, config := newKeys("one")
	b := newTestBackend(t, config)
	s := openResource(t, b, configMaps)
	a := cluster{t: t, s: s, r: configMaps, name: "a"}
	foreign, err := k.TransformToStorage(t.Context(), []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x","namespace":"default"}}`), value.DefaultContext("/x"))
	if err != nil {
		t.Fatal(err)
	}
	plant(t, b, configMaps, "a/default/x", string(foreign))
	o, err := a.get("default", "x")
	if err != nil {
		t.Fatal(err)
	}
	if reason, is := Quarantined(o); !is || !strings.Contains(reason, "another program") {
		t.Errorf("got %#v", o)
	}

	plain := newTestBackend(t, BackendConfig{Client: b.config.Client})
	c := cluster{t: t, s: openResource(t, plain, configMaps), r: configMaps, name: "a"}
	if o, err = c.get("default", "x"); err != nil {
		t.Fatal(err)
	}
	if reason, is := Quarantined(o); !is || !strings.Contains(reason, "no encryption configuration") {
		t.Errorf("without a configuration: got %#v", o)
	}
}

func TestARewriteStoresEverythingWithTheNewestKey(t *testing.T) {
	k, config := newKeys("")
	b := newTestBackend(t, config)
	s := openResource(t, b, configMaps)
	const each = 130 // more than a page
	for _, name := range []string{"a", "b"} {
		for i := range each {
			(cluster{t: t, s: s, r: configMaps, name: name}).create("default", fmt.Sprintf("x%d", i), name)
		}
	}
	plant(t, b, virtualServices, "a/shop/old", `{"apiVersion":"v1"}`) // of a resource that is not open
	plant(t, b, configMaps, "a/default/garbage", "not JSON")
	if got := rewriteAll(t, b, Rewrite{}); got.Rewritten != 0 || got.Current != 2*each+2 || len(got.Unreadable) != 0 {
		t.Errorf("with nothing to do: %+v", got)
	}
	begins := func(prefix string, paths ...string) {
		t.Helper()
		for _, path := range paths {
			if raw := stored(t, b, configMaps, path); !strings.HasPrefix(raw, prefix) {
				t.Errorf("%s is stored as %q", path, raw)
			}
		}
	}

	k.use("one", "")
	if got := rewriteAll(t, b, Rewrite{Cluster: "b", Resources: []schema.GroupResource{configMaps.GroupResource}, Limit: 1}); got.Rewritten != each || got.Current != 0 {
		t.Errorf("one virtual cluster: %+v", got)
	}
	begins("k8s:enc:secretbox:v1:one:", "b/default/x0", "b/default/x129")
	begins("{", "a/default/x0")
	if n, err := b.CountRewrite(t.Context(), Rewrite{}); n != 2*each+2 || err != nil {
		t.Errorf("%d are counted, %v", n, err)
	}
	if got := rewriteAll(t, b, Rewrite{Limit: 50}); got.Rewritten != each+2 || got.Current != each {
		t.Errorf("all: %+v", got)
	}
	begins("k8s:enc:secretbox:v1:one:", "a/default/x0", "a/default/garbage")
	if raw := stored(t, b, virtualServices, "a/shop/old"); !strings.HasPrefix(raw, "k8s:enc:secretbox:v1:one:") {
		t.Errorf("what is not open is stored as %q", raw)
	}

	k.use("two", "one")
	(cluster{t: t, s: s, r: configMaps, name: "a"}).update("default", "x1", "new")
	if got := rewriteAll(t, b, Rewrite{}); got.Rewritten != 2*each+1 || got.Current != 1 {
		t.Errorf("rotated: %+v", got)
	}
	k.use("two")
	for _, name := range []string{"a", "b"} {
		for _, o := range (cluster{t: t, s: s, r: configMaps, name: name}).list("", storageEverything()).Items {
			if o.Name != "garbage" && o.Name != "x1" && text(&o) != name {
				t.Errorf("%s of %s is now %q", o.Name, name, text(&o))
			}
		}
	}
	consistent(t, s)
}

func TestARewriteLeavesWhatItCannotReadAndTellsOfIt(t *testing.T) {
	k, config := newKeys("one")
	b := newTestBackend(t, config)
	s := openResource(t, b, configMaps)
	a := cluster{t: t, s: s, r: configMaps, name: "a"}
	a.create("default", "x", "1")
	raw := stored(t, b, configMaps, "a/default/x")
	k.use("two")
	a.create("default", "y", "2")
	got := rewriteAll(t, b, Rewrite{})
	if got.Current != 1 || got.Rewritten != 0 || len(got.Unreadable) != 1 {
		t.Fatalf("got %+v", got)
	}
	if u := got.Unreadable[0]; u.Resource != configMaps.GroupResource || u.Cluster != "a" || u.Object != "default/x" || !strings.Contains(u.Reason, "no matching prefix") {
		t.Errorf("got %+v", u)
	}
	if stored(t, b, configMaps, "a/default/x") != raw {
		t.Error("it was changed")
	}
}

// A server that was started without a key, and is given it, need not be started again.
func TestARewriteFreesWhatCanBeReadAgainFromQuarantine(t *testing.T) {
	k, config := newKeys("one")
	etcd := startEtcd(t, t.TempDir())
	config.Client = etcd.Client()
	before := newTestBackend(t, config)
	(cluster{t: t, s: openResource(t, before, configMaps), r: configMaps, name: "a"}).create("default", "x", "1")

	k.use("two")
	b := newTestBackend(t, config)
	s := openResource(t, b, configMaps)
	a := cluster{t: t, s: s, r: configMaps, name: "a"}
	w := a.watch("")
	w.expect("ADDED a default/x QUARANTINED", "SYNCED")
	k.use("one", "two")
	if got := rewriteAll(t, b, Rewrite{}); got.Rewritten != 1 {
		t.Errorf("got %+v", got)
	}
	w.expect("MODIFIED a default/x 1")
}

func TestARewriteLosesNoWriteOfOthers(t *testing.T) {
	k, config := newKeys("one")
	b := newTestBackend(t, config)
	s := openResource(t, b, configMaps)
	a := cluster{t: t, s: s, r: configMaps, name: "a"}
	a.create("default", "x", "0")
	const rounds = 50
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := make(chan struct{})
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if i%2 == 0 {
				k.use("two", "one")
			} else {
				k.use("one", "two")
			}
			if _, err := b.Rewrite(context.WithoutCancel(t.Context()), Rewrite{}); err != nil && !strings.Contains(err.Error(), "all the time") {
				t.Error(err)
				return
			}
		}
	})
	for i := range rounds {
		a.update("default", "x", fmt.Sprint(i))
		if o, err := a.get("default", "x"); err != nil || text(o) != fmt.Sprint(i) {
			t.Errorf("after %d: got %v, %v", i, o, err)
		}
	}
	close(stop)
}

// Events end by themselves, and must go on to.
func TestARewriteKeepsTheTimeToLive(t *testing.T) {
	k, config := newKeys("")
	b := newTestBackend(t, config)
	s := openResource(t, b, configMaps)
	a := cluster{t: t, s: s, r: configMaps, name: "a"}
	if err := s.Create(a.ctx(), a.key("default", "x"), a.new("default", "x", "1"), a.new("", "", ""), 3600); err != nil {
		t.Fatal(err)
	}
	lease := func() int64 {
		resp, err := b.config.Client.Get(testContext(t), b.config.Prefix+a.key("default", "x"))
		if err != nil || len(resp.Kvs) != 1 {
			t.Fatal(resp, err)
		}
		return resp.Kvs[0].Lease
	}
	before := lease()
	k.use("one", "")
	if got := rewriteAll(t, b, Rewrite{}); got.Rewritten != 1 {
		t.Errorf("got %+v", got)
	}
	if after := lease(); before == 0 || after != before {
		t.Errorf("its lease was %d and is %d", before, after)
	}
}

func TestARewriteStoresTheVersionThatIsStoredNow(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	plant(t, b, virtualServices, "a/shop/old", `{"apiVersion":"networking.istio.io/v1alpha3","kind":"VirtualService","metadata":{"name":"old","namespace":"shop"},"spec":{}}`)
	openVirtualServices(t, b)
	if got := rewriteAll(t, b, Rewrite{}); got.Rewritten != 1 {
		t.Errorf("got %+v", got)
	}
	if raw := stored(t, b, virtualServices, "a/shop/old"); !bytes.Contains([]byte(raw), []byte(`"networking.istio.io/v1"`)) {
		t.Errorf("stored is %q", raw)
	}
	if got := rewriteAll(t, b, Rewrite{}); got.Current != 1 {
		t.Errorf("the second time: %+v", got)
	}
}

// An encryption that does not answer ends the rewriting; nothing counts as unreadable.
func TestAnEncryptionThatDoesNotAnswerIsAnError(t *testing.T) {
	b := newTestBackend(t, BackendConfig{Transformer: func(schema.GroupResource) value.Transformer { return away{} }})
	plant(t, b, configMaps, "a/default/x", "k8s:enc:kms:v2:x")
	got, err := b.Rewrite(t.Context(), Rewrite{})
	if !errors.Is(err, errAway) || len(got.Unreadable) != 0 {
		t.Errorf("got %+v, %v", got, err)
	}
}

var errAway = errors.New("the key management does not answer")

type away struct{}

func (away) TransformFromStorage(context.Context, []byte, value.Context) ([]byte, bool, error) {
	return nil, false, errAway
}
func (away) TransformToStorage(context.Context, []byte, value.Context) ([]byte, error) {
	return nil, errAway
}
