package events

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/vmesh-io/vmesh/pkg/apis/builtin"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/storage/embedded"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

func newStore(t *testing.T) *resource.Store {
	t.Helper()
	etcd, err := embedded.Start(t.Context(), embedded.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = etcd.Close() })
	backend, err := logical.NewBackend(logical.BackendConfig{Client: etcd.Client(), Prefix: "/registry", CompactionInterval: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(backend.Close)
	kinds, err := builtin.Kinds()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range kinds {
		if k.GroupResource() == (schema.GroupResource{Resource: "events"}) {
			store, err := resource.NewStore(k, backend)
			if err != nil {
				t.Fatal(err)
			}
			if err := backend.WaitReady(t.Context()); err != nil {
				t.Fatal(err)
			}
			return store
		}
	}
	t.Fatal("there is no kind of events")
	return nil
}

func TestEventsAreToldOnceADayInTheirVirtualCluster(t *testing.T) {
	store := newStore(t)
	one, other := NewRecorder(store, "vmesh", "a"), NewRecorder(store, "vmesh", "b")
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	about := corev1.ObjectReference{APIVersion: "v1", Kind: "Namespace", Name: "shop", UID: "u"}
	inside := corev1.ObjectReference{APIVersion: "v1", Kind: "ConfigMap", Namespace: "shop", Name: "c", UID: "v"}
	for _, tell := range []struct {
		r               *Recorder
		cluster         string
		about           corev1.ObjectReference
		reason, message string
		at              time.Time
	}{
		{one, logical.Root, about, "Soon", "It ends.", now},
		{one, logical.Root, about, "Soon", "It ends.", now.Add(time.Hour)},
		{other, logical.Root, about, "Soon", "It ends.", now.Add(time.Hour)},
		{one, logical.Root, about, "Soon", "It ends.", now.Add(24 * time.Hour)},
		{one, logical.Root, about, "Soon", "It has ended.", now},
		{one, "bank", about, "Soon", "It ends.", now},
		{one, "bank", inside, "Soon", "It ends.", now},
	} {
		if err := tell.r.write(context.Background(), tell.cluster, tell.about, corev1.EventTypeWarning, tell.reason, tell.message, tell.at); err != nil {
			t.Fatal(err)
		}
	}
	for where, want := range map[[2]string]int{{logical.Root, "default"}: 3, {"bank", "default"}: 1, {"bank", "shop"}: 1, {"other", "default"}: 0} {
		ctx := request.WithNamespace(logical.WithCluster(t.Context(), where[0]), where[1])
		list, err := store.List(ctx, &internalversion.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		items := list.(*object.List).Items
		if len(items) != want {
			t.Errorf("in %v there are %d events, want %d", where, len(items), want)
		}
		for i := range items {
			var event corev1.Event
			if err := items[i].Into(&event); err != nil || event.Type != corev1.EventTypeWarning || event.Source.Host != "a" || event.LastTimestamp.IsZero() {
				t.Errorf("the event is %+v, %v", event, err)
			}
		}
	}
	if err := one.write(context.Background(), logical.Root, corev1.ObjectReference{Kind: "Namespace", Name: "Not A Name"}, "Odd", "x", "y", now); err == nil {
		t.Error("an event that cannot be is written")
	}
}

func TestWhatHappensAgainIsCounted(t *testing.T) {
	store := newStore(t)
	one, other := NewRecorder(store, "vmesh", "a"), NewRecorder(store, "vmesh", "b")
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	about := corev1.ObjectReference{APIVersion: "vmesh.io/v1alpha1", Kind: "Mesh", Name: "m", UID: "u"}
	for _, tell := range []struct {
		r  *Recorder
		at time.Time
	}{
		{one, now},
		{other, now.Add(time.Second)}, // the same, seen by another server
		{other, now.Add(time.Minute)},
		{one, now.Add(time.Minute + time.Second)},
		{one, now.Add(time.Hour)},
	} {
		if err := tell.r.again(context.Background(), logical.Root, about, corev1.EventTypeNormal, "Came", "It is here.", tell.at); err != nil {
			t.Fatal(err)
		}
	}
	list, err := store.List(request.WithNamespace(logical.WithCluster(t.Context(), logical.Root), "default"), &internalversion.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	items := list.(*object.List).Items
	if len(items) != 1 {
		t.Fatalf("there are %d events", len(items))
	}
	var event corev1.Event
	if err := items[0].Into(&event); err != nil || event.Count != 3 || !event.LastTimestamp.Time.Equal(now.Add(time.Hour)) || !event.FirstTimestamp.Time.Equal(now) {
		t.Errorf("the event is %+v, %v", event, err)
	}
}
