package logical

import (
	"context"
	"fmt"
	"os"
	"reflect"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/storage/embedded"
	"github.com/vmesh-io/vmesh/test/leak"
)

func TestMain(m *testing.M) {
	leak.VerifyTestMain(m,
		// A read that had to wait for its watch cache leaves a timer of three seconds.
		goleak.IgnoreAnyFunction("k8s.io/apiserver/pkg/storage/cacher.(*watchCache).waitUntilFreshLocked.func2"),
		goleak.IgnoreTopFunction("k8s.io/apiserver/pkg/storage/cacher.(*watchCache).waitUntilFreshLocked.func1"),
		// The logger of upstream's test suites flushes for ever.
		goleak.IgnoreAnyFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"),
	)
}

const testTimeout = time.Minute

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

func startEtcd(t testing.TB, dir string) *embedded.Etcd {
	t.Helper()
	e, err := embedded.Start(testContext(t), embedded.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func newTestBackend(t testing.TB, c BackendConfig) *Backend {
	t.Helper()
	if c.Client == nil {
		c.Client = startEtcd(t, t.TempDir()).Client()
	}
	b, err := NewBackend(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

var (
	configMaps = Resource{
		GroupResource: schema.GroupResource{Resource: "configmaps"},
		GVK:           schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"},
		ListGVK:       schema.GroupVersionKind{Version: "v1", Kind: "ConfigMapList"},
		Namespaced:    true,
	}
	namespaces = Resource{
		GroupResource: schema.GroupResource{Resource: "namespaces"},
		GVK:           schema.GroupVersionKind{Version: "v1", Kind: "Namespace"},
		ListGVK:       schema.GroupVersionKind{Version: "v1", Kind: "NamespaceList"},
	}
)

// cluster is the storage of a resource as one virtual cluster's client sees it.
type cluster struct {
	t    testing.TB
	s    storage.Interface
	r    Resource
	name string
}

func openResource(t testing.TB, b *Backend, r Resource) storage.Interface {
	t.Helper()
	s, err := b.Open(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.WaitReady(testContext(t)); err != nil {
		t.Fatal(err)
	}
	return s
}

func (c cluster) ctx() context.Context { return WithCluster(testContext(c.t), c.name) }

func (c cluster) key(namespace, name string) string {
	return c.root() + "/" + join(namespace, name)
}

func (c cluster) root() string { return ResourcePrefix(c.r.GroupResource) + "/" + c.name }

func (c cluster) new(namespace, name, value string) *object.Object {
	o := object.New(c.r.GVK)
	o.Namespace, o.Name = namespace, name
	if err := o.SetContent(map[string]any{"data": map[string]any{"value": value}}); err != nil {
		c.t.Fatal(err)
	}
	return o
}

func (c cluster) create(namespace, name, value string) *object.Object {
	c.t.Helper()
	out := &object.Object{}
	if err := c.s.Create(c.ctx(), c.key(namespace, name), c.new(namespace, name, value), out, 0); err != nil {
		c.t.Fatalf("creating %s/%s in %s: %v", namespace, name, c.name, err)
	}
	return out
}

func (c cluster) tryUpdate(namespace, name, value string) (*object.Object, error) {
	out := &object.Object{}
	err := c.s.GuaranteedUpdate(c.ctx(), c.key(namespace, name), out, false, nil, func(in runtime.Object, _ storage.ResponseMeta) (runtime.Object, *uint64, error) {
		o := in.(*object.Object).DeepCopy()
		return o, nil, o.SetContent(map[string]any{"data": map[string]any{"value": value}})
	}, nil)
	return out, err
}

func (c cluster) update(namespace, name, value string) *object.Object {
	c.t.Helper()
	out, err := c.tryUpdate(namespace, name, value)
	if err != nil {
		c.t.Fatalf("updating %s/%s in %s: %v", namespace, name, c.name, err)
	}
	return out
}

func (c cluster) delete(namespace, name string) *object.Object {
	c.t.Helper()
	out := &object.Object{}
	if err := c.s.Delete(c.ctx(), c.key(namespace, name), out, nil, storage.ValidateAllObjectFunc, nil, storage.DeleteOptions{}); err != nil {
		c.t.Fatalf("deleting %s/%s in %s: %v", namespace, name, c.name, err)
	}
	return out
}

func (c cluster) get(namespace, name string) (*object.Object, error) {
	out := &object.Object{}
	return out, c.s.Get(c.ctx(), c.key(namespace, name), storage.GetOptions{}, out)
}

func (c cluster) list(namespace string, opts storage.ListOptions) *object.List {
	c.t.Helper()
	key := c.root()
	if namespace != "" {
		key += "/" + namespace
	}
	return c.listKey(key, opts)
}

func (c cluster) listKey(key string, opts storage.ListOptions) *object.List {
	c.t.Helper()
	opts.Recursive = true
	if opts.Predicate.Label == nil {
		limit, token := opts.Predicate.Limit, opts.Predicate.Continue
		opts.Predicate = storage.Everything
		opts.Predicate.Limit, opts.Predicate.Continue = limit, token
	}
	l := &object.List{}
	if err := c.s.GetList(c.ctx(), key, opts, l); err != nil {
		c.t.Fatalf("listing %s in %s: %v", key, c.name, err)
	}
	return l
}

// listWhenReady lists as soon as the watch cache can.
func (c cluster) listWhenReady(ctx context.Context, revision string) *object.List {
	c.t.Helper()
	for {
		l := &object.List{}
		opts := storageEverything()
		opts.ResourceVersion = revision
		err := c.s.GetList(c.ctx(), c.root(), opts, l)
		if err == nil {
			return l
		}
		if !apierrors.IsTooManyRequests(err) || ctx.Err() != nil {
			c.t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

// watch begins with the state, as WatchList, for an empty revision.
func (c cluster) watch(revision string) *watcher {
	c.t.Helper()
	opts := storage.ListOptions{ResourceVersion: revision, Recursive: true, Predicate: storage.Everything}
	opts.Predicate.AllowWatchBookmarks = true
	if revision == "" {
		yes := true
		opts.SendInitialEvents, opts.ResourceVersionMatch = &yes, metav1.ResourceVersionMatchNotOlderThan
	}
	w, err := c.s.Watch(c.ctx(), c.root(), opts)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(w.Stop)
	return &watcher{t: c.t, w: w}
}

type watcher struct {
	t testing.TB
	w watch.Interface
}

// next is the next event, bookmarks included, as a short text and as it is.
func (w *watcher) next() (string, *object.Object) {
	w.t.Helper()
	select {
	case e, ok := <-w.w.ResultChan():
		if !ok {
			return "CLOSED", nil
		}
		obj := e.Object
		if c, ok := obj.(runtime.CacheableObject); ok {
			obj = c.GetObject()
		}
		switch o := obj.(type) {
		case *object.Object:
			if e.Type == watch.Bookmark {
				if o.Annotations[metav1.InitialEventsAnnotationKey] == "true" {
					return "SYNCED", o
				}
				return "BOOKMARK", o
			}
			return fmt.Sprintf("%s %s %s %s", e.Type, o.Cluster(), join(o.Namespace, o.Name), text(o)), o
		case *metav1.Status:
			return fmt.Sprintf("%s %d %s", e.Type, o.Code, o.Reason), nil
		default:
			w.t.Fatalf("got a %T", obj)
		}
	case <-time.After(testTimeout):
		w.t.Fatal("no event came")
	}
	return "", nil
}

// change is the next event that is no bookmark.
func (w *watcher) change() string {
	w.t.Helper()
	for {
		if e, _ := w.next(); e != "BOOKMARK" && e != "SYNCED" {
			return e
		}
	}
}

func (w *watcher) expect(events ...string) {
	w.t.Helper()
	for _, want := range events {
		got, _ := w.next()
		for got == "BOOKMARK" {
			got, _ = w.next()
		}
		if got != want {
			w.t.Fatalf("got event %q, want %q", got, want)
		}
	}
}

// text is what new and update have put into an object.
func text(o *object.Object) string {
	if _, is := Quarantined(o); is {
		return "QUARANTINED"
	}
	var data struct{ Value string }
	content, err := o.Content()
	if err != nil {
		return err.Error()
	}
	if m, ok := content["data"].(map[string]any); ok {
		data.Value, _ = m["value"].(string)
	}
	return data.Value
}

func names(l *object.List) []string {
	out := []string{}
	for i := range l.Items {
		o := &l.Items[i]
		out = append(out, o.Cluster()+":"+join(o.Namespace, o.Name)+"="+text(o))
	}
	return out
}

func seed(t testing.TB) int64 {
	n := time.Now().UnixNano()
	if s := os.Getenv("VMESH_TEST_SEED"); s != "" {
		var err error
		if n, err = strconv.ParseInt(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("replay with VMESH_TEST_SEED=%d", n)
	return n
}

func equal(a, b *object.Object) bool {
	return equality.Semantic.DeepEqual(a.TypeMeta, b.TypeMeta) && reflect.DeepEqual(a.ObjectMeta, b.ObjectMeta) &&
		string(a.Body()) == string(b.Body()) && a.Cluster() == b.Cluster()
}

func storageEverything() storage.ListOptions {
	return storage.ListOptions{Recursive: true, Predicate: storage.Everything}
}

func namesOf(l runtime.Object) []string {
	if l, ok := l.(*object.List); ok {
		return names(l)
	}
	return nil
}
