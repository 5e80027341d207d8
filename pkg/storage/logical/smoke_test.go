package logical

import (
	"context"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/storage/embedded"
)

type logObserver struct{ t *testing.T }

func (l logObserver) Replaced(items []*object.Object, rev uint64) {
	l.t.Log("replaced", len(items), rev)
}
func (l logObserver) Changed(t watch.EventType, o *object.Object, rev uint64) {
	l.t.Log("changed", t, o.Cluster(), o.Namespace, o.Name, rev)
}
func (l logObserver) Progressed(rev uint64) { l.t.Log("progressed", rev) }

func TestSmoke(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	e, err := embedded.Start(ctx, embedded.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	b, err := NewBackend(BackendConfig{Client: e.Client()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	gv := schema.GroupVersion{Group: "networking.istio.io", Version: "v1"}
	gr := schema.GroupResource{Group: gv.Group, Resource: "virtualservices"}
	s, err := b.Open(Resource{GroupResource: gr, GVK: gv.WithKind("VirtualService"), ListGVK: gv.WithKind("VirtualServiceList"), Namespaced: true})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := b.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	t.Log("ready", time.Since(begin))
	octx, stop := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- b.Observe(octx, gr, logObserver{t}) }()
	for _, c := range []string{"a", "b"} {
		ctx := WithCluster(ctx, c)
		o := &object.Object{ObjectMeta: metav1.ObjectMeta{Name: "x", Namespace: "ns", UID: "1"}}
		o.SetContent(map[string]any{"spec": map[string]any{"hosts": []any{"h"}}})
		out := &object.Object{}
		if err := s.Create(ctx, ResourcePrefix(gr)+"/"+c+"/ns/x", o, out, 0); err != nil {
			t.Fatal(err)
		}
		t.Log(out)
		l := &object.List{}
		begin := time.Now()
		if err := s.GetList(ctx, ResourcePrefix(gr)+"/"+c, storage.ListOptions{Recursive: true, Predicate: storage.Everything}, l); err != nil {
			t.Fatal(err)
		}
		t.Log(time.Since(begin), len(l.Items), l.ResourceVersion)
		yes := true
		p := storage.Everything
		p.AllowWatchBookmarks = true
		w, err := s.Watch(ctx, ResourcePrefix(gr)+"/"+c, storage.ListOptions{Recursive: true, Predicate: p, SendInitialEvents: &yes, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			ev := <-w.ResultChan()
			t.Logf("%v %v", ev.Type, ev.Object)
		}
		if err := s.Delete(ctx, ResourcePrefix(gr)+"/"+c+"/ns/x", out, nil, storage.ValidateAllObjectFunc, nil, storage.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		ev := <-w.ResultChan()
		t.Logf("%v %v", ev.Type, ev.Object)
		w.Stop()
	}
	stop()
	t.Log(<-done)
}
