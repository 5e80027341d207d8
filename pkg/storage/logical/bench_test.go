package logical

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

var virtualServices = Resource{
	GroupResource: schema.GroupResource{Group: "networking.istio.io", Resource: "virtualservices"},
	GVK:           schema.GroupVersionKind{Group: "networking.istio.io", Version: "v1", Kind: "VirtualService"},
	ListGVK:       schema.GroupVersionKind{Group: "networking.istio.io", Version: "v1", Kind: "VirtualServiceList"},
	Namespaced:    true,
}

// newVirtualService is one of about 1.2 KB as JSON, as kubectl apply leaves it.
func newVirtualService(namespace, name string) *object.Object {
	o := object.New(virtualServices.GVK)
	o.Namespace, o.Name = namespace, name
	o.UID = types.UID("5a1f0b0e-7d1c-4c53-9d0f-" + fmt.Sprintf("%012x", len(name)))
	o.Generation = 1
	o.CreationTimestamp = metav1.NewTime(time.Unix(1700000000, 0))
	o.Labels = map[string]string{"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "shop"}
	o.ManagedFields = []metav1.ManagedFieldsEntry{{
		Manager: "kubectl", Operation: metav1.ManagedFieldsOperationApply, APIVersion: "networking.istio.io/v1",
		Time: &o.CreationTimestamp, FieldsType: "FieldsV1",
		FieldsV1: &metav1.FieldsV1{Raw: []byte(`{"f:metadata":{"f:labels":{"f:app.kubernetes.io/name":{},"f:app.kubernetes.io/part-of":{}}},"f:spec":{"f:hosts":{},"f:http":{}}}`)},
	}}
	host := name + ".shop.svc.cluster.local"
	route := func(subset string, weight int64) any {
		return map[string]any{"destination": map[string]any{"host": host, "subset": subset, "port": map[string]any{"number": int64(8080)}}, "weight": weight}
	}
	err := o.SetContent(map[string]any{"spec": map[string]any{
		"hosts": []any{host, name + ".example.com"},
		"http": []any{
			map[string]any{"match": []any{map[string]any{"headers": map[string]any{"x-version": map[string]any{"exact": "v2"}}}}, "route": []any{route("v2", 100)}},
			map[string]any{"timeout": "5s", "retries": map[string]any{"attempts": int64(3), "perTryTimeout": "2s"}, "route": []any{route("v1", 80), route("v2", 20)}},
		},
	}})
	if err != nil {
		panic(err)
	}
	o.DropContent()
	return o
}

func vsKey(cluster, namespace, name string) string {
	return ResourcePrefix(virtualServices.GroupResource) + "/" + cluster + "/" + namespace + "/" + name
}

func openVirtualServices(t testing.TB, b *Backend) storage.Interface {
	t.Helper()
	s, err := b.Open(virtualServices)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := b.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

func parallel(b *testing.B, workers int, do func(worker, i int) error) {
	b.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, workers)
	defer reportCPU(b)()
	for w := range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				i := int(next.Add(1)) - 1
				if i >= b.N {
					return
				}
				if err := do(w, i); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	wg.Wait()
	select {
	case err := <-errs:
		b.Fatal(err)
	default:
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}

// reportCPU measures until what it returns is called. Unlike wall time it means
// something on a machine that others use as well.
func reportCPU(b *testing.B) func() {
	before := cpuTime(b)
	return func() { b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N), "cpu-us/op") }
}

// cpuTime is what the process has used, of all cores.
func cpuTime(t testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkCreate(b *testing.B) {
	for _, workers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("logical/clients=%d", workers), func(b *testing.B) {
			backend := newTestBackend(b, BackendConfig{})
			s := openVirtualServices(b, backend)
			b.ReportAllocs()
			b.ResetTimer()
			parallel(b, workers, func(_, i int) error {
				cluster := "c" + strconv.Itoa(i%100)
				name := "vs-" + strconv.Itoa(i)
				return s.Create(WithCluster(context.Background(), cluster), vsKey(cluster, "shop", name), newVirtualService("shop", name), &object.Object{}, 0)
			})
		})
		b.Run(fmt.Sprintf("rawetcd/clients=%d", workers), func(b *testing.B) {
			client := startEtcd(b, b.TempDir()).Client()
			vs := newVirtualService("shop", "vs-100000")
			value := string(vs.AppendJSON(nil, vs.APIVersion, vs.Kind))
			b.ReportAllocs()
			b.ResetTimer()
			parallel(b, workers, func(_, i int) error {
				_, err := client.Put(context.Background(), "/registry/networking.istio.io/virtualservices/c"+strconv.Itoa(i%100)+"/shop/vs-"+strconv.Itoa(i), value)
				return err
			})
		})
	}
}

// fill creates n objects in each of a number of clusters.
func fill(t testing.TB, s storage.Interface, clusters, n int) {
	t.Helper()
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	var next atomic.Int64
	for range 32 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				i := int(next.Add(1)) - 1
				if i >= clusters*n || failed.Load() != nil {
					return
				}
				cluster, name := fmt.Sprintf("c%05d", i/n), fmt.Sprintf("vs-%d", i%n)
				if err := s.Create(WithCluster(context.Background(), cluster), vsKey(cluster, "shop", name), newVirtualService("shop", name), nil, 0); err != nil {
					failed.Store(&err)
				}
			}
		}()
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		t.Fatal(*err)
	}
}

func BenchmarkListOneCluster(b *testing.B) {
	for _, clusters := range []int{10, 10000} {
		backend := newTestBackend(b, BackendConfig{})
		s := openVirtualServices(b, backend)
		fill(b, s, clusters, 1)
		ctx := WithCluster(context.Background(), "mine")
		for i := range 100 {
			name := "vs-" + strconv.Itoa(i)
			if err := s.Create(ctx, vsKey("mine", "shop", name), newVirtualService("shop", name), nil, 0); err != nil {
				b.Fatal(err)
			}
		}
		key := ResourcePrefix(virtualServices.GroupResource) + "/mine"
		for _, rv := range []string{"", "0"} {
			b.Run(fmt.Sprintf("list/rv=%q/clusters=%d", rv, clusters), func(b *testing.B) {
				b.ReportAllocs()
				defer reportCPU(b)()
				for b.Loop() {
					list := &object.List{}
					if err := s.GetList(ctx, key, storage.ListOptions{ResourceVersion: rv, Recursive: true, Predicate: storage.Everything}, list); err != nil {
						b.Fatal(err)
					}
					if len(list.Items) != 100 {
						b.Fatalf("%d items", len(list.Items))
					}
				}
			})
		}
		b.Run(fmt.Sprintf("watchlist/clusters=%d", clusters), func(b *testing.B) {
			b.ReportAllocs()
			yes := true
			p := storage.Everything
			p.AllowWatchBookmarks = true
			defer reportCPU(b)()
			for b.Loop() {
				w, err := s.Watch(ctx, key, storage.ListOptions{Recursive: true, Predicate: p, SendInitialEvents: &yes, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan})
				if err != nil {
					b.Fatal(err)
				}
				n := 0
				for e := range w.ResultChan() {
					if e.Type == watch.Bookmark {
						break
					}
					n++
				}
				if n != 100 {
					b.Fatalf("%d events", n)
				}
				w.Stop()
			}
		})
	}
}

func rss(t testing.TB) (anon int) {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip(err)
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			n, err := strconv.Atoi(strings.Fields(v)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	return 0
}

// BenchmarkMemory reports the heap and the anonymous memory that an object takes right
// after 10 000 were created. Run it alone: the process keeps what others have used.
func BenchmarkMemory(b *testing.B) {
	const n = 10000
	for b.Loop() {
		dir := b.TempDir()
		e := startEtcd(b, dir)
		backend := newTestBackend(b, BackendConfig{Client: e.Client()})
		s := openVirtualServices(b, backend)
		settle := func() (heap, anon int) {
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return int(m.HeapAlloc), rss(b)
		}
		heap0, anon0 := settle()
		fill(b, s, 100, n/100)
		heap1, anon1 := settle()
		b.ReportMetric(float64(heap1-heap0)/n, "heapB/object")
		b.ReportMetric(float64(anon1-anon0)/n, "anonB/object")
	}
}

// BenchmarkReady measures a start with 10 000 stored objects: etcd's, and from there
// until the watch cache is warm.
func BenchmarkReady(b *testing.B) {
	dir := b.TempDir()
	e := startEtcd(b, dir)
	first := newTestBackend(b, BackendConfig{Client: e.Client()})
	fill(b, openVirtualServices(b, first), 100, 100)
	first.Close()
	if err := e.Close(); err != nil {
		b.Fatal(err)
	}
	var start, warm time.Duration
	b.ResetTimer()
	for b.Loop() {
		begin := time.Now()
		e := startEtcd(b, dir)
		start += time.Since(begin)
		begin = time.Now()
		backend := newTestBackend(b, BackendConfig{Client: e.Client()})
		openVirtualServices(b, backend)
		warm += time.Since(begin)
		b.StopTimer()
		backend.Close()
		if err := e.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(start.Milliseconds())/float64(b.N), "etcd-ms")
	b.ReportMetric(float64(warm.Milliseconds())/float64(b.N), "warm-ms")
}

func BenchmarkCodec(b *testing.B) {
	c := &codec{format: newObjects(virtualServices.GVK, virtualServices.ListGVK), namespaced: true}
	vs := newVirtualService("shop", "vs-1")
	vs.SetCluster("c1")
	data, err := encoded(c, vs)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("encode", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := encoded(c, vs); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := c.Decode(data, nil, &object.Object{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("valid", func(b *testing.B) {
		_, _, payload, _ := openEnvelope(data)
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			json.Valid(payload)
		}
	})
}

func encoded(c *codec, o *object.Object) ([]byte, error) {
	var w sliceWriter
	err := c.Encode(o, &w)
	return w, err
}

type sliceWriter []byte

func (w *sliceWriter) Write(p []byte) (int, error) {
	*w = append(*w, p...)
	return len(p), nil
}
