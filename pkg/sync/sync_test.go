package sync

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	gosync "sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	networking "istio.io/api/networking/v1alpha3"
	"istio.io/istio/pilot/pkg/config/memory"
	"istio.io/istio/pkg/adsc"
	istioconfig "istio.io/istio/pkg/config"
	"istio.io/istio/pkg/config/schema/collections"
	"istio.io/istio/pkg/config/schema/gvk"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/component-base/metrics"

	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
	"github.com/vmesh-io/vmesh/test/leak"
)

// store stands for the storage: it tells observers what it holds.
type store struct {
	mu        gosync.Mutex
	initial   map[string][]*object.Object
	observers map[string]snapshot.Observer
	revision  uint64
}

func (s *store) observe(ctx context.Context, gr schema.GroupResource, o snapshot.Observer) error {
	s.mu.Lock()
	s.observers[gr.Resource] = o
	o.Replaced(s.initial[gr.Resource], 1)
	s.mu.Unlock()
	<-ctx.Done()
	return ctx.Err()
}

func (s *store) change(resource string, t watch.EventType, o *object.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	s.observers[resource].Changed(t, o, s.revision)
}

// writer keeps the status that was written last.
type writer struct {
	mu     gosync.Mutex
	status v1alpha1.MeshStatus
}

func (w *writer) UpdateMeshStatus(_ context.Context, _ string, mutate func(*v1alpha1.MeshStatus) error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return mutate(&w.status)
}

func (w *writer) UpdateVirtualClusterStatus(context.Context, string, func(*v1alpha1.VirtualClusterStatus) error) error {
	return nil
}

func parse(t testing.TB, cluster, text string) *object.Object {
	t.Helper()
	o := &object.Object{}
	if err := json.Unmarshal([]byte(text), o); err != nil {
		t.Fatal(err)
	}
	o.SetCluster(cluster)
	return o
}

func virtualService(t testing.TB, cluster, namespace, name, destination string) *object.Object {
	return parse(t, cluster, fmt.Sprintf(`{
		"metadata": {"namespace": %q, "name": %q, "creationTimestamp": "2026-01-02T03:04:05Z", "labels": {"team": "shop"}},
		"spec": {"hosts": ["%s.example"], "http": [{"route": [{"destination": {"host": %q}, "weight": 100}], "timeout": "3s"}]}
	}`, namespace, name, name, destination))
}

func eventually(t testing.TB, what string, met func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !met(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestIstiodsOwnClient lets the very code by which istiod reads a config source read
// this one.
func TestIstiodsOwnClient(t *testing.T) {
	// Istio's collections leave goroutines of their own; all of ours must end.
	kinds, err := istio.Kinds()
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &store{observers: map[string]snapshot.Observer{}, initial: map[string][]*object.Object{
		"meshes":          {parse(t, "root", `{"metadata":{"name":"default"}}`)},
		"virtualclusters": {parse(t, "root", `{"metadata":{"name":"team"},"spec":{"mesh":"default","namespaces":["shop"],"hosts":["*.example"]}}`)},
		"virtualservices": {virtualService(t, "team", "shop", "web", "one"), virtualService(t, "team", "sandbox", "web", "one")},
		"serviceentries": {parse(t, "team", `{
			"metadata": {"namespace": "shop", "name": "db"},
			"spec": {"hosts": ["db.example"], "location": "MESH_EXTERNAL", "resolution": "STATIC",
				"ports": [{"number": 5432, "name": "tcp", "protocol": "TCP"}], "endpoints": [{"address": "10.0.0.1"}]}}`)},
	}}
	written := &writer{}
	registry := metrics.NewKubeRegistry()
	service, err := New(Config{Kinds: kinds, Observe: s.observe, Writer: written, Plain: listener, Register: registry.MustRegister})
	if err != nil {
		t.Fatal(err)
	}
	if service.Ready() == nil {
		t.Error("ready before it runs")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	leaks := goleak.IgnoreCurrent()
	go func() { done <- service.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		leak.VerifyNone(t, leaks,
			goleak.IgnoreAnyFunction("istio.io/istio/pilot/pkg/config/memory.(*Controller).Run"),
			goleak.IgnoreAnyFunction("istio.io/istio/pkg/queue.(*queueImpl).Run"),
			goleak.IgnoreAnyFunction("istio.io/istio/pkg/kube/krt.(*processorListener[...]).run"))
	})

	client, err := adsc.New(listener.Addr().String(), &adsc.ADSConfig{
		InitialDiscoveryRequests: adsc.ConfigInitialRequests(),
		Config:                   adsc.Config{Namespace: "istio-system", Workload: "istiod-0", Revision: ""},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	config := memory.NewController(memory.Make(collections.Pilot))
	client.Store = config
	if err := client.Run(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the client to have read everything", client.HasSynced)
	if service.Ready() != nil {
		t.Error("not ready though it serves")
	}

	get := func(namespace, name string) *istioconfig.Config {
		return config.Get(gvk.VirtualService, name, namespace)
	}
	destination := func() string {
		c := get("shop", "web")
		if c == nil {
			return ""
		}
		return c.Spec.(*networking.VirtualService).Http[0].Route[0].Destination.Host
	}
	eventually(t, "the virtual service", func() bool { return destination() == "one.shop.svc.cluster.local" })
	c := get("shop", "web")
	if c.Labels["team"] != "shop" || !c.CreationTimestamp.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) || c.ResourceVersion == "" {
		t.Errorf("metadata %+v", c.Meta)
	}
	if timeout := c.Spec.(*networking.VirtualService).Http[0].Timeout; timeout.AsDuration() != 3*time.Second {
		t.Errorf("timeout %v", timeout)
	}
	if get("sandbox", "web") != nil {
		t.Error("what is in a namespace that is not owned reached the mesh")
	}
	if config.Get(gvk.ServiceEntry, "db", "shop") == nil {
		t.Error("the service entry is missing")
	}

	s.change("virtualservices", watch.Modified, virtualService(t, "team", "shop", "web", "two"))
	eventually(t, "the change", func() bool { return destination() == "two.shop.svc.cluster.local" })
	version := get("shop", "web").ResourceVersion
	again := virtualService(t, "team", "shop", "web", "two")
	again.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl"}}
	s.change("virtualservices", watch.Modified, again)
	s.change("virtualservices", watch.Added, virtualService(t, "team", "shop", "api", "one"))
	eventually(t, "another", func() bool { return get("shop", "api") != nil })
	if now := get("shop", "web").ResourceVersion; now != version {
		t.Errorf("the version went from %s to %s without a change", version, now)
	}

	// An object that cannot be read takes nothing away.
	broken := parse(t, "team", `{"metadata":{"namespace":"shop","name":"web"},"spec":{"http":"no list"}}`)
	s.change("virtualservices", watch.Modified, broken)
	s.change("virtualservices", watch.Deleted, virtualService(t, "team", "shop", "api", "one"))
	eventually(t, "the deletion", func() bool { return get("shop", "api") == nil })
	if destination() != "two.shop.svc.cluster.local" {
		t.Errorf("the broken object's last good form is gone: %q", destination())
	}

	eventually(t, "the status", func() bool {
		written.mu.Lock()
		defer written.mu.Unlock()
		st := &written.status
		if st.VirtualClusters != 1 || st.Resources != 2 || st.Connected != 1 || len(st.Quarantined) != 1 || len(st.ControlPlanes) != 1 {
			return false
		}
		acked := 0
		for _, k := range st.ControlPlanes[0].Kinds {
			if k.AckedVersion != "" && k.AckedVersion == k.SentVersion {
				acked++
			}
		}
		return acked == len(collections.Pilot.All())+1
	})
}
