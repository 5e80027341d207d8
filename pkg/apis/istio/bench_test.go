package istio_test

import (
	"runtime"
	"testing"

	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/kind"
)

// virtualService is a VirtualService of 1.2 KB, as the project's benchmarks store.
const virtualService = `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"reviews-route","namespace":"shop","labels":{"app":"reviews","team":"catalogue"},"annotations":{"example.com/owner":"catalogue@example.com"}},"spec":{"hosts":["reviews.shop.svc.cluster.local","reviews.example.com"],"gateways":["mesh","shop/public"],"exportTo":["."],"http":[{"name":"canary-users","match":[{"headers":{"x-user-group":{"exact":"canary"},"x-build":{"prefix":"v2."}},"uri":{"prefix":"/api/v2"}}],"route":[{"destination":{"host":"reviews.shop.svc.cluster.local","subset":"v2","port":{"number":9080}},"weight":100}],"retries":{"attempts":3,"perTryTimeout":"2s","retryOn":"gateway-error,connect-failure,refused-stream"},"timeout":"10s"},{"name":"default","match":[{"uri":{"prefix":"/"},"method":{"regex":"GET|HEAD"}}],"route":[{"destination":{"host":"reviews.shop.svc.cluster.local","subset":"v1","port":{"number":9080}},"weight":80,"headers":{"request":{"set":{"x-route":"v1"}}}},{"destination":{"host":"reviews.shop.svc.cluster.local","subset":"v2","port":{"number":9080}},"weight":20}],"fault":{"delay":{"percentage":{"value":0.1},"fixedDelay":"5s"}},"corsPolicy":{"allowOrigins":[{"exact":"https://example.com"}],"allowMethods":["GET","POST"],"maxAge":"24h"}}]}}`

func find(tb testing.TB, resource string) *kind.Kind {
	tb.Helper()
	kinds, err := istio.Kinds()
	if err != nil {
		tb.Fatal(err)
	}
	for _, k := range kinds {
		if k.Resource() == resource {
			return k
		}
	}
	tb.Fatalf("no kind %s", resource)
	return nil
}

func BenchmarkKinds(b *testing.B) {
	for b.Loop() {
		if _, err := istio.Kinds(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWarm measures making and compiling all kinds, as a server does at start.
// heap-KiB is what they keep.
func BenchmarkWarm(b *testing.B) {
	var kinds []*kind.Kind
	before := heap()
	for b.Loop() {
		var err error
		if kinds, err = istio.Kinds(); err != nil {
			b.Fatal(err)
		}
		for _, k := range kinds {
			if err := k.Warm(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(heap()-before)/1024, "heap-KiB")
	runtime.KeepAlive(kinds)
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func BenchmarkDecode(b *testing.B) {
	k := find(b, "virtualservices")
	data := []byte(virtualService)
	b.Logf("%d bytes", len(data))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := k.Decode("v1", data, true); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSchemaValidate(b *testing.B) {
	k := find(b, "virtualservices")
	k.Hooks.Validate = nil
	benchmarkValidate(b, k)
}

func BenchmarkValidate(b *testing.B) { benchmarkValidate(b, find(b, "virtualservices")) }

func benchmarkValidate(b *testing.B, k *kind.Kind) {
	obj, _, err := k.Decode("v1", []byte(virtualService), true)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, errs := k.Validate(b.Context(), "v1", obj, nil); len(errs) > 0 {
			b.Fatal(errs)
		}
	}
}

func BenchmarkMessage(b *testing.B) {
	k := find(b, "virtualservices")
	s, err := istio.ResourceOf(k)
	if err != nil {
		b.Fatal(err)
	}
	obj, _, err := k.Decode("v1", []byte(virtualService), true)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Message(obj); err != nil {
			b.Fatal(err)
		}
	}
}
