package garbage

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/builtin"
	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/storage/embedded"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
	"github.com/vmesh-io/vmesh/test/leak"
)

// patience is how long a test waits for what must come.
const patience = 2 * time.Minute

func TestMain(m *testing.M) {
	leak.VerifyTestMain(m,
		// client-go's and klog's helpers end a while after their owners.
		goleak.IgnoreAnyFunction("k8s.io/apiserver/pkg/storage/cacher.(*watchCache).waitUntilFreshLocked.func2"),
		goleak.IgnoreTopFunction("k8s.io/apiserver/pkg/storage/cacher.(*watchCache).waitUntilFreshLocked.func1"),
		goleak.IgnoreAnyFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"),
	)
}

// storage is an etcd with the stores of a few kinds. Tests that share one use virtual
// clusters of their own.
type storage struct {
	client  *clientv3.Client
	backend *logical.Backend
	stores  map[string]*resource.Store // by plural name
	sources []Source
}

func newStorage(t testing.TB) *storage {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	etcd, err := embedded.Start(ctx, embedded.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := etcd.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &storage{client: etcd.Client(), stores: map[string]*resource.Store{}}
	if s.backend, err = logical.NewBackend(logical.BackendConfig{Client: s.client}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.backend.Close)
	core, err := builtin.Kinds()
	if err != nil {
		t.Fatal(err)
	}
	mesh, err := istio.Kinds()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range slices.Concat(core, mesh) {
		if !slices.Contains([]string{"configmaps", "secrets", "nodes", "serviceentries"}, k.Resource()) {
			continue
		}
		store, err := resource.NewStore(k, s.backend)
		if err != nil {
			t.Fatal(err)
		}
		s.stores[k.Resource()] = store
		s.sources = append(s.sources, Source{Store: store})
	}
	if err := s.backend.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

// world is the virtual clusters of one test.
type world struct {
	*storage
	t       testing.TB
	ctx     context.Context
	cluster string
	uids    map[string]types.UID // of all objects that were ever made, by id
}

func (s *storage) world(t testing.TB, cluster string) *world {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return &world{storage: s, t: t, ctx: ctx, cluster: cluster, uids: map[string]types.UID{}}
}

// running is a collector at work.
type running struct {
	*Collector
	wait func()
}

// start runs a collector of all kinds until the test ends. watch may stand between
// the storage and an observer.
func (s *storage) start(t testing.TB, admit admission.Interface, watch func(plural string, o logical.Observer) logical.Observer, adjust ...func(*Collector)) *running {
	t.Helper()
	return s.startWith(t, s.sources, admit, watch, adjust...)
}

func (s *storage) startWith(t testing.TB, sources []Source, admit admission.Interface, watch func(plural string, o logical.Observer) logical.Observer,
	adjust ...func(*Collector)) *running {
	t.Helper()
	c := New(sources, admit)
	for _, a := range adjust {
		a(c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, source := range sources {
		k := source.Store.Kind()
		o := c.Observer(source.Store)
		if watch != nil {
			o = watch(k.Resource(), o)
		}
		wg.Go(func() {
			if err := s.backend.Observe(ctx, k.GroupResource(), o); err != context.Canceled {
				t.Errorf("observing %s: %v", k, err)
			}
		})
	}
	var work sync.WaitGroup
	work.Go(func() { c.Run(ctx) })
	r := &running{Collector: c, wait: func() {
		c.queue.ShutDownWithDrain()
		work.Wait()
	}}
	t.Cleanup(func() {
		cancel()
		work.Wait()
		wg.Wait()
	})
	return r
}

// settle waits until the collector has nothing more to do with what is stored now, and
// ends it.
func (w *world) settle(r *running) {
	w.t.Helper()
	<-r.synced
	revision, err := w.stores["configmaps"].Storage.Storage.GetCurrentResourceVersion(w.ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	w.eventually("the observers have seen everything", func() bool {
		err := r.caughtUp(w.ctx, revision)
		if err != nil && err != errBehind {
			w.t.Fatal(err)
		}
		return err == nil
	})
	w.eventually("the collector works", func() bool {
		r.index.mu.Lock()
		defer r.index.mu.Unlock()
		return r.index.queue != nil
	})
	r.wait()
}

// eventually polls: there is nothing to be notified of when a collector does no more.
func (w *world) eventually(what string, condition func() bool) {
	w.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-w.ctx.Done():
			w.t.Fatalf("timed out waiting until %s; there is %v", what, w.objects())
		}
	}
}

// owner is a reference to an object by its id. Fields that are set make it a false one.
type owner struct {
	of         string
	block      bool
	uid        types.UID
	apiVersion string
	kind       string
}

// thing is an object to make; its id is PLURAL/NAMESPACE/NAME.
type thing struct {
	id         string
	owners     []owner
	finalizers []string
}

func (w *world) in(cluster, namespace string) context.Context {
	return request.WithNamespace(logical.WithCluster(w.ctx, cluster), namespace)
}

func split(id string) (plural, namespace, name string) {
	parts := strings.Split(id, "/")
	return parts[0], parts[1], parts[2]
}

func (w *world) make(things ...thing) {
	w.t.Helper()
	for _, th := range things {
		plural, namespace, name := split(th.id)
		k := w.stores[plural].Kind()
		o := object.New(k.GVK(k.StorageVersion()))
		o.Name, o.Namespace, o.Finalizers = name, namespace, th.finalizers
		o.OwnerReferences = w.references(th.owners)
		if plural == "serviceentries" {
			if err := o.SetContent(map[string]any{"spec": map[string]any{"hosts": []any{name + ".example.com"}, "resolution": "DNS",
				"ports": []any{map[string]any{"number": int64(80), "name": "http", "protocol": "HTTP"}}}}); err != nil {
				w.t.Fatal(err)
			}
		}
		obj, err := w.stores[plural].Create(w.in(w.cluster, namespace), o, rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
		if err != nil {
			w.t.Fatalf("making %s: %v", th.id, err)
		}
		w.uids[th.id] = obj.(*object.Object).UID
	}
}

func (w *world) references(owners []owner) []metav1.OwnerReference {
	var refs []metav1.OwnerReference
	for _, ow := range owners {
		plural, _, name := split(ow.of)
		ref := metav1.OwnerReference{Name: name, UID: w.uids[ow.of], APIVersion: "v1", Kind: "Unserved"}
		if s := w.stores[plural]; s != nil {
			ref.APIVersion, ref.Kind = kindOf(s.Kind())
		}
		if ow.block {
			ref.BlockOwnerDeletion = &ow.block
		}
		if ow.uid != "" || ref.UID == "" {
			ref.UID = ow.uid
		}
		if ref.UID == "" {
			ref.UID = "never-was"
		}
		if ow.apiVersion != "" {
			ref.APIVersion = ow.apiVersion
		}
		if ow.kind != "" {
			ref.Kind = ow.kind
		}
		refs = append(refs, ref)
	}
	return refs
}

func kindOf(k *kind.Kind) (apiVersion, name string) {
	gvk := k.GVK(k.StorageVersion())
	return gvk.GroupVersion().String(), gvk.Kind
}

func (w *world) delete(id string, policy metav1.DeletionPropagation) {
	w.t.Helper()
	plural, namespace, name := split(id)
	_, _, err := w.stores[plural].Delete(w.in(w.cluster, namespace), name, rest.ValidateAllObjectFunc, &metav1.DeleteOptions{PropagationPolicy: &policy})
	if err != nil {
		w.t.Fatalf("deleting %s: %v", id, err)
	}
}

func (w *world) update(id string, change func(*object.Object)) {
	w.t.Helper()
	plural, namespace, name := split(id)
	info := rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
		o := old.(*object.Object).DeepCopy()
		change(o)
		return o, nil
	})
	_, _, err := w.stores[plural].Update(w.in(w.cluster, namespace), name, info, rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	if err != nil {
		w.t.Fatalf("updating %s: %v", id, err)
	}
}

func (w *world) loseFinalizer(id, finalizer string) {
	w.t.Helper()
	w.update(id, func(o *object.Object) {
		o.Finalizers = slices.DeleteFunc(o.Finalizers, func(f string) bool { return f == finalizer })
	})
}

// objects are all objects of the virtual cluster, each as the names of its owners,
// with what else matters.
func (w *world) objects() map[string]string {
	all := map[string]string{}
	for plural, s := range w.stores {
		ctx := logical.WithAllClusters(context.Background())
		list := &object.List{}
		key := logical.ResourcePrefix(s.Kind().GroupResource()) + "/" + w.cluster
		if err := s.Storage.Storage.GetList(logical.WithCluster(ctx, w.cluster), key, everything(), list); err != nil {
			w.t.Fatalf("listing %s: %v", plural, err)
		}
		for i := range list.Items {
			o := &list.Items[i]
			var is []string
			for _, r := range o.OwnerReferences {
				name := r.Name
				if blocks(&r) {
					name += "!"
				}
				is = append(is, name)
			}
			if o.DeletionTimestamp != nil {
				is = append(is, "deleting:"+strings.Join(o.Finalizers, "+"))
			}
			if quarantined(o) {
				is = append(is, "quarantined")
			}
			all[plural+"/"+o.Namespace+"/"+o.Name] = strings.Join(is, ",")
		}
	}
	return all
}

func (w *world) eventuallyAre(want map[string]string) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("there is %v", want), func() bool { return maps.Equal(w.objects(), want) })
}

func (w *world) are(want map[string]string) {
	w.t.Helper()
	if got := w.objects(); !maps.Equal(got, want) {
		w.t.Errorf("got  %v,\nwant %v", got, want)
	}
}

// indexed checks that the index holds the objects that have owners or are finalized,
// the owners, and nothing else of the virtual cluster.
func (w *world) indexed(r *running, objects map[string]string) {
	w.t.Helper()
	r.index.mu.Lock()
	defer r.index.mu.Unlock()
	got := map[string]bool{}
	for k, n := range r.index.nodes {
		if k.cluster != w.cluster {
			continue
		}
		if n.source == nil {
			if len(n.dependents) == 0 {
				w.t.Errorf("owner %s without dependents is indexed", k.uid)
			}
			continue
		}
		got[n.source.Store.Kind().Resource()+"/"+n.namespace+"/"+n.name] = true
		blocking := 0
		for _, blocks := range n.dependents {
			if blocks {
				blocking++
			}
		}
		if blocking != n.blocking {
			w.t.Errorf("%s is said to be held by %d objects, and is by %d", n.name, n.blocking, blocking)
		}
	}
	want := map[string]bool{}
	for id, is := range objects {
		if is != "" && is != "deleting:"+keeper {
			want[id] = true
		}
	}
	if !maps.Equal(got, want) {
		w.t.Errorf("indexed are %v, want %v", got, want)
	}
	if int(r.index.size.Load()) != len(r.index.nodes) {
		w.t.Errorf("size is %d with %d nodes", r.index.size.Load(), len(r.index.nodes))
	}
}
