package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/apiserver"
	"github.com/vmesh-io/vmesh/test/e2e/rawapi"
	"github.com/vmesh-io/vmesh/test/harness"
)

// controlPlane is a light one: it acknowledges all that it is sent of one kind, until it is stopped.
func startControlPlane(t *testing.T, address, id string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(connection).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const kind = "networking.istio.io/v1/VirtualService"
	if err := stream.Send(&discovery.DeltaDiscoveryRequest{Node: &core.Node{Id: id}, TypeUrl: kind}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			r, err := stream.Recv()
			if err != nil || stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: kind, ResponseNonce: r.Nonce}) != nil {
				return
			}
		}
	}()
	stop = func() {
		cancel()
		<-done
		_ = connection.Close()
	}
	t.Cleanup(stop)
	return stop
}

const meshesPath = "/apis/vmesh.io/v1alpha1/meshes"

func meshStatus(t *testing.T, client *rawapi.Client, mesh string) *v1alpha1.Mesh {
	t.Helper()
	m := &v1alpha1.Mesh{}
	if err := json.Unmarshal(mustDo(t, client, http.MethodGet, meshesPath+"/"+mesh, "").Body, m); err != nil {
		t.Fatal(err)
	}
	return m
}

// shows says what a mesh's status lacks: control planes as +id or -id, in their order.
func shows(m *v1alpha1.Mesh, want string, servers int) error {
	var got []string
	connected := 0
	for _, c := range m.Status.ControlPlanes {
		state := "-"
		if c.Connected {
			state = "+"
			connected++
		}
		if c.Connected == (c.DisconnectedAt != nil) || c.Server == "" {
			return fmt.Errorf("control plane %+v", c)
		}
		got = append(got, state+c.ID)
	}
	if s := strings.Join(got, " "); s != want || int(m.Status.Connected) != connected || int(m.Status.InStep) != connected || len(m.Status.Servers) != servers {
		return fmt.Errorf("got %q, %d connected, %d in step, servers %+v; want %q, %d", s, m.Status.Connected, m.Status.InStep, m.Status.Servers, want, servers)
	}
	return nil
}

// TestAMeshShowsTheControlPlanesOfAllServers has control planes connected to two servers on
// one etcd, of which one is killed.
func TestAMeshShowsTheControlPlanesOfAllServers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	etcd := ownEtcd(t, dir)
	one, err := startServer(filepath.Join(dir, "one"), func(o *apiserver.Options) { o.Etcd.Servers = []string{etcd.URL} })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := one.stop(); err != nil {
			t.Error(err)
		}
	})
	client := rawClient(t, one.root)
	other, err := harness.StartVmesh(t.Context(), harness.VmeshOptions{DataDir: filepath.Join(dir, "other"), ExtraArgs: []string{"--etcd-servers", etcd.URL}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := other.Kill(); err != nil {
			t.Error(err)
		}
	})
	expect := func(want string, servers int) *v1alpha1.Mesh {
		t.Helper()
		var m *v1alpha1.Mesh
		eventually(t, func() error {
			m = meshStatus(t, client, "default")
			return shows(m, want, servers)
		})
		return m
	}
	startControlPlane(t, one.options.XDSAddress, "a")
	stopB := startControlPlane(t, other.XDSAddress, "b")
	startControlPlane(t, other.XDSAddress, "c")
	m := expect("+a +b +c", 2)
	if m.Status.ControlPlanes[0].Server == m.Status.ControlPlanes[1].Server || m.Status.Version == "" {
		t.Errorf("status %+v", m.Status)
	}
	// A change is acknowledged by all, and each server says so of its own.
	createCluster(t, one, "shop", "shop")
	shop := one.tenant(t, "shop")
	shop.namespace(t, "shop")
	mustDo(t, shop.raw, http.MethodPost, virtualServices("shop"), virtualService("reviews"))
	eventually(t, func() error {
		next := meshStatus(t, client, "default")
		version := ""
		for _, c := range next.Status.ControlPlanes {
			if len(c.Kinds) != 1 || c.Kinds[0].Resources != 1 || c.Kinds[0].AckedVersion == "" || version != "" && c.Kinds[0].AckedVersion != version {
				return fmt.Errorf("control planes %+v", next.Status.ControlPlanes)
			}
			version = c.Kinds[0].AckedVersion
		}
		if next.Status.Version == m.Status.Version {
			return fmt.Errorf("the version is still %s", m.Status.Version)
		}
		return nil
	})
	// When nothing happens nothing is written.
	expect("+a +b +c", 2)
	eventually(t, func() error { // what came last may be on its way
		before := meshStatus(t, client, "default")
		select {
		case <-time.After(3 * time.Second):
		case <-t.Context().Done():
		}
		if after := meshStatus(t, client, "default"); after.ResourceVersion != before.ResourceVersion {
			return fmt.Errorf("the status was written although nothing had changed: it was %+v and is %+v", before.Status, after.Status)
		}
		return nil
	})

	stopB()
	expect("+a -b +c", 2)
	startControlPlane(t, one.options.XDSAddress, "b")
	expect("+a +b +c", 2)
	if err := other.Kill(); err != nil {
		t.Fatal(err)
	}
	expect("+a +b -c", 1)
	startControlPlane(t, one.options.XDSAddress, "c")
	expect("+a +b +c", 1)
}

func TestTheDeletionOfAVirtualClusterIsTold(t *testing.T) {
	t.Parallel()
	n := newTenant(t, shared, "told")
	n.namespace(t, "told")
	client := rawClient(t, shared.root)
	mustDo(t, client, http.MethodPatch, clustersPath+"/"+n.name, fmt.Sprintf(`{"metadata":{"annotations":{"vmesh.io/confirm-deletion":%q}}}`, n.name))
	mustDo(t, client, http.MethodDelete, clustersPath+"/"+n.name, "")
	for _, reason := range []string{"DeletionBegun", "DeletionFinished"} {
		eventually(t, func() error {
			list := mustDo(t, client, http.MethodGet, "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name="+n.name+",reason="+reason, "")
			if !strings.Contains(string(list.Body), `"kind":"VirtualCluster"`) {
				return fmt.Errorf("no event %s: %s", reason, list.Body)
			}
			return nil
		})
	}
}
