package history

import (
	"context"
	"crypto/aes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/value"
	aestransformer "k8s.io/apiserver/pkg/storage/value/encrypt/aes"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/storage/embedded"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
	"github.com/vmesh-io/vmesh/test/leak"
)

func TestMain(m *testing.M) {
	leak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("k8s.io/apiserver/pkg/storage/cacher.(*watchCache).waitUntilFreshLocked.func2"),
		goleak.IgnoreTopFunction("k8s.io/apiserver/pkg/storage/cacher.(*watchCache).waitUntilFreshLocked.func1"),
	)
}

var (
	configMaps = resource("configmaps", "ConfigMap")
	secrets    = resource("secrets", "Secret")
)

func resource(name, kind string) logical.Resource {
	return logical.Resource{
		GroupResource: schema.GroupResource{Resource: name}, GVK: schema.GroupVersionKind{Version: "v1", Kind: kind},
		ListGVK: schema.GroupVersionKind{Version: "v1", Kind: kind + "List"}, Namespaced: true,
	}
}

var wide = logical.HistoryBounds{Age: time.Hour, Changes: 1000, Bytes: 1 << 20}

// store is the storage of a resource with its history.
type store struct {
	t        testing.TB
	backend  *logical.Backend
	recorder *Recorder
	storage  storage.Interface
	resource logical.Resource
	client   *clientv3.Client
}

func newStore(t testing.TB, r logical.Resource, adjust func(*logical.BackendConfig)) *store {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	etcd, err := embedded.Start(ctx, embedded.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := etcd.Close(); err != nil {
			t.Error(err)
		}
	})
	return open(t, etcd.Client(), r, adjust)
}

func open(t testing.TB, client *clientv3.Client, r logical.Resource, adjust func(*logical.BackendConfig)) *store {
	t.Helper()
	recorder := NewRecorder(wide)
	config := logical.BackendConfig{Client: client, CompactionInterval: -1, Recorder: recorder}
	if adjust != nil {
		adjust(&config)
	}
	backend, err := logical.NewBackend(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(backend.Close)
	opened, err := backend.Open(r)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := errors.Join(backend.WaitReady(ctx), backend.BeginHistory(ctx)); err != nil {
		t.Fatal(err)
	}
	return &store{t, backend, recorder, opened, r, client}
}

func (s *store) ctx(cluster string) context.Context {
	ctx, cancel := context.WithTimeout(logical.WithCluster(context.Background(), cluster), time.Minute)
	s.t.Cleanup(cancel)
	return ctx
}

func (s *store) key(cluster, name string) string {
	return logical.ResourcePrefix(s.resource.GroupResource) + "/" + cluster + "/default/" + name
}

func (s *store) object(name, value string) *object.Object {
	o := object.New(s.resource.GVK)
	o.Namespace, o.Name, o.UID = "default", name, "u"
	if err := o.SetContent(map[string]any{"data": map[string]any{"value": value}}); err != nil {
		s.t.Fatal(err)
	}
	return o
}

func (s *store) create(cluster, name, value string) error {
	return s.storage.Create(s.ctx(cluster), s.key(cluster, name), s.object(name, value), &object.Object{}, 0)
}

func (s *store) update(cluster, name string, change func(o *object.Object) error) error {
	return s.storage.GuaranteedUpdate(s.ctx(cluster), s.key(cluster, name), &object.Object{}, false, nil,
		func(in runtime.Object, _ storage.ResponseMeta) (runtime.Object, *uint64, error) {
			o := in.(*object.Object) // changed in place, as some do
			return o, nil, change(o)
		}, nil)
}

func (s *store) set(cluster, name, value string) error {
	return s.update(cluster, name, func(o *object.Object) error {
		return o.SetContent(map[string]any{"data": map[string]any{"value": value}})
	})
}

func (s *store) delete(cluster, name string, validate storage.ValidateObjectFunc) error {
	return s.storage.Delete(s.ctx(cluster), s.key(cluster, name), &object.Object{}, nil, validate, nil, storage.DeleteOptions{})
}

func (s *store) must(errs ...error) {
	s.t.Helper()
	if err := errors.Join(errs...); err != nil {
		s.t.Fatal(err)
	}
}

// history is that of a virtual cluster, the newest first, in short.
func (s *store) history(cluster string) []string {
	s.t.Helper()
	records, _, more, err := s.backend.History(s.ctx(cluster), logical.HistoryPage{})
	if err != nil || more {
		s.t.Fatal(err, more)
	}
	out := []string{}
	for _, stored := range records {
		if stored.Err != nil {
			s.t.Fatal(stored.Err)
		}
		r, err := Decode(stored.Data)
		if err != nil {
			s.t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s %s: %s -> %s", r.Operation, r.Name, valueIn(r.Before), valueIn(r.After)))
	}
	return out
}

func valueIn(content []byte) string {
	if len(content) == 0 {
		return "nothing"
	}
	o := &object.Object{}
	if err := o.UnmarshalJSON(content); err != nil {
		return err.Error()
	}
	return strings.Trim(strings.TrimPrefix(string(o.Field("data")), `{"value":`), `"}`)
}

func (s *store) expect(cluster string, want ...string) {
	s.t.Helper()
	if got := s.history(cluster); strings.Join(got, "\n") != strings.Join(want, "\n") {
		s.t.Errorf("the history of %s is\n%s\nwant\n%s", cluster, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestEveryChangeHasARecordWithItsRevision(t *testing.T) {
	s := newStore(t, configMaps, nil)
	s.must(s.create("shop", "x", "1"), s.set("shop", "x", "2"), s.delete("shop", "x", storage.ValidateAllObjectFunc))
	s.must(s.create("other", "x", "9"))
	s.expect("shop", "Delete x: 2 -> nothing", "Update x: 1 -> 2", "Create x: nothing -> 1")
	s.expect("other", "Create x: nothing -> 9")
	o := &object.Object{}
	s.must(s.storage.Get(s.ctx("other"), s.key("other", "x"), storage.GetOptions{}, o))
	records, _, _, err := s.backend.History(s.ctx("other"), logical.HistoryPage{})
	s.must(err)
	if got := fmt.Sprint(records[0].Revision); got != o.ResourceVersion {
		t.Errorf("the record is of revision %s, the object of %s", got, o.ResourceVersion)
	}
}

func TestWhatIsRefusedLeavesNoRecord(t *testing.T) {
	s := newStore(t, configMaps, nil)
	s.must(s.create("shop", "x", "1"))
	no := errors.New("no")
	for name, err := range map[string]error{
		"a second creation":       s.create("shop", "x", "2"),
		"an update that fails":    s.update("shop", "x", func(*object.Object) error { return no }),
		"an update of nothing":    s.set("shop", "y", "2"),
		"a deletion that fails":   s.delete("shop", "x", func(context.Context, runtime.Object) error { return no }),
		"a deletion of nothing":   s.delete("shop", "y", storage.ValidateAllObjectFunc),
		"a wrong virtual cluster": s.storage.Create(s.ctx("other"), s.key("shop", "z"), s.object("z", "1"), &object.Object{}, 0),
	} {
		if err == nil {
			t.Errorf("%s succeeded", name)
		}
	}
	s.expect("shop", "Create x: nothing -> 1")
	s.expect("other")
}

func TestOfWritersThatCollideEachHasARecordOfWhatItReplaced(t *testing.T) {
	s := newStore(t, configMaps, nil)
	s.must(s.create("shop", "x", "0"))
	const writers, writes = 8, 20
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range writes {
				if err := s.set("shop", "x", fmt.Sprintf("%d-%d", w, i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got := s.history("shop")
	if len(got) != writers*writes+1 {
		t.Fatalf("%d records of %d changes", len(got), writers*writes+1)
	}
	before := func(line string) string {
		_, rest, _ := strings.Cut(line, ": ")
		b, _, _ := strings.Cut(rest, " -> ")
		return b
	}
	after := func(line string) string { _, a, _ := strings.Cut(line, " -> "); return a }
	for i := range len(got) - 1 {
		if before(got[i]) != after(got[i+1]) {
			t.Errorf("%q does not follow %q", got[i], got[i+1])
		}
	}
}

func TestWhatIsNoChangeLeavesNoRecord(t *testing.T) {
	s := newStore(t, configMaps, nil)
	s.must(s.create("shop", "x", "1"), s.create("root", "x", "1"))
	s.must(
		s.set("shop", "x", "1"),
		s.update("shop", "x", func(o *object.Object) error {
			return o.SetContent(map[string]any{"data": map[string]any{"value": "1"}, "status": map[string]any{"ok": true}})
		}),
		s.update("shop", "x", func(o *object.Object) error { o.ManagedFields = nil; o.Generation++; return nil }),
	)
	ctx := logical.WithoutRecord(s.ctx("shop"))
	s.must(s.storage.Create(ctx, s.key("shop", "quiet"), s.object("quiet", "1"), &object.Object{}, 0))
	s.expect("shop", "Create x: nothing -> 1")
	if got, err := s.client.Get(t.Context(), "/registry/vmesh.io/changes/root/", clientv3.WithPrefix()); err != nil || len(got.Kvs) > 0 {
		t.Errorf("the root has %d records, %v", len(got.Kvs), err)
	}
}

func TestSecretsHaveNoHistory(t *testing.T) {
	s := newStore(t, secrets, nil)
	s.must(s.create("shop", "x", "hidden"), s.set("shop", "x", "hidden too"), s.delete("shop", "x", storage.ValidateAllObjectFunc))
	if got, err := s.client.Get(t.Context(), "/registry/vmesh.io/", clientv3.WithPrefix()); err != nil || len(got.Kvs) > 0 {
		t.Errorf("there are %d records, %v", len(got.Kvs), err)
	}
}

func TestAnObjectTooLargeForARecordIsStoredAllTheSame(t *testing.T) {
	s := newStore(t, configMaps, nil)
	noise := make([]byte, 1<<20)
	for i, x := 0, uint32(1); i < len(noise); i++ {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		noise[i] = 'a' + byte(x>>8)%26
	}
	s.must(s.create("shop", "x", string(noise)))
	records, _, _, err := s.backend.History(s.ctx("shop"), logical.HistoryPage{})
	s.must(err)
	r, err := Decode(records[0].Data)
	s.must(err)
	if r.Omitted == "" || len(r.After) > 0 || r.Name != "x" {
		t.Errorf("got %+v", r.Head)
	}
}

func encryption(t *testing.T, key byte) value.Transformer {
	t.Helper()
	block, err := aes.NewCipher([]byte(strings.Repeat(string(rune('a'+key)), 32)))
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := aestransformer.NewGCMTransformer(block)
	if err != nil {
		t.Fatal(err)
	}
	return lasting{value.NewPrefixTransformers(errors.New("no key"), value.PrefixTransformer{Prefix: []byte("k8s:enc:aesgcm:v1:k:"), Transformer: gcm})}
}

// lasting says of all errors that they last, as the server does while its key services answer.
type lasting struct{ value.Transformer }

func (l lasting) TransformFromStorage(ctx context.Context, data []byte, at value.Context) ([]byte, bool, error) {
	out, stale, err := l.Transformer.TransformFromStorage(ctx, data, at)
	if err != nil {
		err = errors.Join(logical.ErrCorrupt, err)
	}
	return out, stale, err
}

func TestARecordIsEncryptedAsItsObjectIs(t *testing.T) {
	const canary = "CANARY-OF-THE-HISTORY"
	one := encryption(t, 1)
	s := newStore(t, configMaps, func(c *logical.BackendConfig) {
		c.Transformer = func(gr schema.GroupResource) value.Transformer {
			if gr == configMaps.GroupResource { // and nothing says anything of changes.vmesh.io
				return one
			}
			return nil
		}
	})
	s.must(s.create("shop", "x", canary), s.set("shop", "x", "2"))
	s.expect("shop", "Update x: "+canary+" -> 2", "Create x: nothing -> "+canary)
	all, err := s.client.Get(t.Context(), "/registry/", clientv3.WithPrefix())
	s.must(err)
	for _, kv := range all.Kvs {
		if !strings.HasPrefix(string(kv.Value), "k8s:enc:") {
			t.Errorf("%s is not encrypted: %q", kv.Key, kv.Value)
		}
	}
	// One that is copied to another virtual cluster is not its.
	for _, kv := range all.Kvs {
		if key, is := strings.CutPrefix(string(kv.Key), "/registry/vmesh.io/changes/shop/"); is {
			_, err := s.client.Put(t.Context(), "/registry/vmesh.io/changes/other/"+key, string(kv.Value))
			s.must(err)
		}
	}
	records, _, _, err := s.backend.History(s.ctx("other"), logical.HistoryPage{})
	s.must(err)
	for _, r := range records {
		if r.Err == nil {
			t.Errorf("a copied record is read: %q", r.Data)
		}
	}
	// Rewriting knows them.
	done, err := s.backend.Rewrite(t.Context(), logical.Rewrite{Cluster: "shop"})
	if err != nil || len(done.Unreadable) > 0 || done.Current != 3 {
		t.Errorf("rewriting did %+v, %v", done, err)
	}
}

func TestAHistoryIsPrunedFromItsOldEnd(t *testing.T) {
	for _, c := range []struct {
		name   string
		bounds logical.HistoryBounds
		left   int
	}{
		{"by number", logical.HistoryBounds{Age: time.Hour, Changes: 3, Bytes: 1 << 30}, 3},
		{"by size", logical.HistoryBounds{Age: time.Hour, Changes: 100, Bytes: 700}, -1},
		{"by age", logical.HistoryBounds{Age: time.Nanosecond, Changes: 100, Bytes: 1 << 30}, 0},
		{"not within bounds", wide, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t, configMaps, nil)
			for i := range 10 {
				s.must(s.create("shop", fmt.Sprint("x", i), "1"))
			}
			s.must(s.create("shopping", "x", "1"))
			all, _, _, err := s.backend.History(s.ctx("shop"), logical.HistoryPage{})
			s.must(err)
			removed, err := s.backend.PruneHistory(s.ctx("shop"), "shop", c.bounds)
			s.must(err)
			left := s.history("shop")
			if c.left < 0 {
				if c.left = len(left); c.left == 0 || c.left == 10 {
					t.Fatalf("%d are left", c.left)
				}
			}
			if len(left) != c.left || removed != 10-c.left {
				t.Fatalf("%d were removed, %q are left, want %d", removed, left, c.left)
			}
			for i, line := range left {
				if want := fmt.Sprintf("Create x%d: nothing -> 1", 9-i); line != want {
					t.Errorf("got %q, want %q", line, want)
				}
			}
			h, err := s.backend.HistoryHorizon(s.ctx("shop"))
			s.must(err)
			if removed > 0 && h.Revision != all[len(left)].Revision {
				t.Errorf("the history begins at %d, and lacks %d", h.Revision, all[len(left)].Revision)
			}
			if removed > 0 && h.Time.IsZero() {
				t.Error("it does not say when it begins")
			}
			s.expect("shopping", "Create x: nothing -> 1")
			again, err := s.backend.PruneHistory(s.ctx("shop"), "shop", wide)
			if err != nil || again != 0 {
				t.Errorf("pruning again removes %d, %v", again, err)
			}
		})
	}
}

func TestAWriterThatWritesMuchIsPrunedMeanwhile(t *testing.T) {
	s := newStore(t, configMaps, nil)
	bounds := logical.HistoryBounds{Age: time.Hour, Changes: 16, Bytes: 1 << 20}
	*s.recorder = *NewRecorder(bounds)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { s.recorder.Prune(ctx, s.backend, bounds); close(done) }()
	defer func() { stop(); <-done }()
	for i := range 200 {
		s.must(s.create("shop", fmt.Sprint("x", i), "1"))
	}
	for deadline := time.Now().Add(time.Minute); ; {
		n := len(s.history("shop"))
		if n <= bounds.Changes+bounds.Changes/8 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d changes are kept, of %d", n, bounds.Changes)
		}
		time.Sleep(5 * time.Millisecond) // between looks
	}
}

func TestAllHistoriesAreSweptByAge(t *testing.T) {
	s := newStore(t, configMaps, nil)
	for _, cluster := range []string{"a", "a-b", "ab", "b"} {
		s.must(s.create(cluster, "x", "1"), s.create(cluster, "y", "1"))
	}
	_, err := s.backend.PruneHistory(t.Context(), "ab", logical.HistoryBounds{Age: time.Hour, Changes: 1, Bytes: 1 << 20}) // so that it has a horizon
	s.must(err)
	var seen []string
	for cluster := ""; ; {
		next, stale, err := s.backend.NextHistory(t.Context(), cluster, time.Nanosecond)
		s.must(err)
		if next == "" {
			break
		}
		if cluster = next; stale {
			seen = append(seen, cluster)
		}
	}
	if got := strings.Join(seen, " "); got != "a a-b ab b" && got != "a-b a ab b" {
		t.Errorf("saw %q", got)
	}
	for cluster := ""; ; {
		if cluster = s.recorder.sweep(t.Context(), s.backend, cluster, logical.HistoryBounds{Age: time.Nanosecond, Changes: 100, Bytes: 1 << 20}); cluster == "" {
			break
		}
	}
	for _, cluster := range []string{"a", "a-b", "ab", "b"} {
		s.expect(cluster)
	}
}

func TestAVirtualClusterOfTheNameOfADeletedOneHasNoneOfItsHistory(t *testing.T) {
	s := newStore(t, configMaps, nil)
	s.must(s.create("shop", "x", "1"))
	s.must(s.backend.Purge(t.Context(), "shop", nil))
	s.expect("shop")
	counts, err := s.backend.Count(t.Context(), "shop")
	if err != nil || len(counts) > 0 {
		t.Errorf("%v is left, %v", counts, err)
	}
	// Even if a record had been left behind.
	s.must(s.create("shop", "x", "of the first"))
	_, err = s.client.Put(t.Context(), "/registry/vmesh.io/virtualclusters/root/shop", "{}")
	s.must(err, s.create("shop", "y", "of the second"))
	s.expect("shop", "Create y: nothing -> of the second")
}

func TestAHistoryBeginsWhereRecordingDid(t *testing.T) {
	s := newStore(t, configMaps, nil)
	s.must(s.create("shop", "x", "1"))
	first, err := s.backend.HistoryHorizon(s.ctx("shop"))
	s.must(err)
	// A server without history writes, and then one with.
	off := open(t, s.client, configMaps, func(c *logical.BackendConfig) { c.Recorder = nil })
	s.must(off.create("shop", "unseen", "1"))
	on := open(t, s.client, configMaps, nil)
	second, err := on.backend.HistoryHorizon(on.ctx("shop"))
	s.must(err)
	o := &object.Object{}
	s.must(off.storage.Get(off.ctx("shop"), off.key("shop", "unseen"), storage.GetOptions{}, o))
	unseen, err := off.storage.Versioner().ObjectResourceVersion(o)
	s.must(err)
	if first.Revision >= int64(unseen) || second.Revision <= int64(unseen) {
		t.Errorf("it begins at %d, then at %d; what was not recorded is of %d", first.Revision, second.Revision, unseen)
	}
}

func TestPagesOfAHistoryHaveEachRecordOnce(t *testing.T) {
	s := newStore(t, configMaps, nil)
	for i := range 10 {
		s.must(s.create("shop", fmt.Sprint("x", i), "1"))
	}
	seen, upto := map[int64]bool{}, int64(0)
	for {
		records, _, more, err := s.backend.History(s.ctx("shop"), logical.HistoryPage{Upto: upto, Limit: 3})
		s.must(err)
		for _, r := range records {
			if seen[r.Revision] {
				t.Errorf("%d is there twice", r.Revision)
			}
			seen[r.Revision] = true
		}
		s.must(s.set("shop", "x0", fmt.Sprint(len(seen)))) // what comes meanwhile does not matter
		if !more {
			break
		}
		upto = records[len(records)-1].Revision - 1
	}
	if len(seen) != 10 {
		t.Errorf("saw %d records", len(seen))
	}
}

func BenchmarkCreate(b *testing.B) {
	for name, adjust := range map[string]func(*logical.BackendConfig){
		"with history": nil, "without": func(c *logical.BackendConfig) { c.Recorder = nil },
	} {
		b.Run(name, func(b *testing.B) {
			s := newStore(b, configMaps, adjust)
			ctx := s.ctx("shop")
			i := 0
			b.ReportAllocs()
			begun := processorTime(b)
			defer func() { b.ReportMetric(float64(processorTime(b)-begun)/float64(i), "cpu-ns/op") }()
			for b.Loop() {
				i++
				name := fmt.Sprint("x", i)
				if err := s.storage.Create(ctx, s.key("shop", name), s.object(name, "value"), &object.Object{}, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// processorTime is what the process has used, in nanoseconds; the embedded etcd is in it.
func processorTime(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
