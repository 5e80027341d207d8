package sync

import (
	"context"
	"fmt"
	"runtime"
	"testing"

	"k8s.io/apimachinery/pkg/watch"

	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

// route is a VirtualService of 1.2 KB, as a team would write it.
func route(b *testing.B, i, revision int) *object.Object {
	namespace := fmt.Sprintf("team-%02d", i%50)
	host := fmt.Sprintf("route-%05d.%s.svc.cluster.local", i, namespace)
	return parse(b, "team", fmt.Sprintf(`{"metadata":{"name":"route-%05[1]d","namespace":%[2]q,"uid":"6f2c1f1e-0000-4000-8000-00000000%04[1]d","creationTimestamp":"2026-01-02T03:04:05Z",
		"labels":{"app":"shop-%05[1]d","team":%[2]q},"annotations":{"bench.vmesh.io/revision":"%08[4]d"}},"spec":{
		"hosts":[%[3]q,"route-%05[1]d.shop.example.com"],"gateways":["istio-ingress/public","mesh"],"exportTo":["."],"http":[
		{"name":"beta","match":[{"headers":{"x-user-group":{"exact":"beta"},"x-client-version":{"prefix":"2."}},"uri":{"prefix":"/api/v1/orders"},"method":{"exact":"GET"}}],
		"route":[{"destination":{"host":%[3]q,"subset":"v2","port":{"number":8080}},"headers":{"response":{"add":{"x-served-by":"canary"}}}}],
		"timeout":"5s","retries":{"attempts":3,"perTryTimeout":"1500ms","retryOn":"5xx,reset,connect-failure"}},
		{"name":"default","route":[{"destination":{"host":%[3]q,"subset":"v1","port":{"number":8080}},"weight":%[5]d},
		{"destination":{"host":%[3]q,"subset":"v2","port":{"number":8080}},"weight":%[6]d}],
		"timeout":"10s","retries":{"attempts":2,"perTryTimeout":"3s","retryOn":"gateway-error,connect-failure"},
		"corsPolicy":{"allowOrigins":[{"exact":"https://shop.example.com"}],"allowMethods":["GET","POST"],"maxAge":"24h"}}]}}`,
		i, namespace, host, revision, 100-revision%100, revision%100))
}

const stored = 10_000

func routes(b *testing.B) []*object.Object {
	items := make([]*object.Object, stored)
	for i := range items {
		items[i] = route(b, i, 0)
	}
	return items
}

// feed starts a builder, gives it the objects and waits for their snapshot.
func feed(b *testing.B, kinds []snapshot.Kind, items []*object.Object) (builder *snapshot.Builder, routes snapshot.Observer, stop func()) {
	builder = snapshot.NewBuilder(kinds, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		builder.Run(ctx)
	}()
	first := map[string][]*object.Object{
		"meshes":          {parse(b, "root", `{"metadata":{"name":"default"}}`)},
		"virtualclusters": {parse(b, "root", `{"metadata":{"name":"team"},"spec":{"mesh":"default","namespaces":["*"]}}`)},
		"virtualservices": items,
	}
	for _, s := range builder.Sources() {
		s.Observer.Replaced(first[s.Resource.Resource], 1)
		if s.Resource.Resource == "virtualservices" {
			routes = s.Observer
		}
	}
	<-builder.Synced()
	return builder, routes, func() {
		cancel()
		<-done
	}
}

func benchKinds(b *testing.B) []snapshot.Kind {
	all, err := istio.Kinds()
	if err != nil {
		b.Fatal(err)
	}
	kinds, err := Kinds(all)
	if err != nil {
		b.Fatal(err)
	}
	return kinds
}

// BenchmarkStart is the way from objects that are in memory to their first snapshot.
func BenchmarkStart(b *testing.B) {
	kinds, items := benchKinds(b), routes(b)
	b.ReportAllocs()
	for b.Loop() {
		builder, _, stop := feed(b, kinds, items)
		b.StopTimer()
		s := builder.Snapshots()[0]
		b.ReportMetric(float64(bytesOf(s))/stored, "B/entry")
		stop()
		b.StartTimer()
	}
}

func bytesOf(s *snapshot.Snapshot) (n int) {
	for _, l := range s.Lists {
		n += l.Bytes()
	}
	return n
}

// BenchmarkChange is the way of one change among many objects into a new snapshot.
func BenchmarkChange(b *testing.B) {
	builder, observer, stop := feed(b, benchKinds(b), routes(b))
	defer stop()
	s := builder.Subscribe("default")
	defer s.Close()
	i := 0
	changes := [2]*object.Object{route(b, 4711, 1), route(b, 4711, 2)}
	b.ReportAllocs()
	for b.Loop() {
		i++
		observer.Changed(watch.Modified, changes[i%2], uint64(i))
		<-s.Changed()
	}
}

// BenchmarkMemory is what the snapshot takes for each object, besides the object.
func BenchmarkMemory(b *testing.B) {
	kinds, items := benchKinds(b), routes(b)
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	for b.Loop() {
		before := heap()
		builder, _, stop := feed(b, kinds, items)
		b.ReportMetric((heap()-before)/stored, "heap-B/object")
		stop()
		runtime.KeepAlive(builder)
	}
	runtime.KeepAlive(items)
}
