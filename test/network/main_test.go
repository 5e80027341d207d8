// Package network tests a mesh of several clusters with a real istiod, real APIs of the members, and real calls: who is told of
// which endpoints, and whether calls arrive, within a network and from one to another.
package network

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/test/harness"
	"github.com/vmesh-io/vmesh/test/traffic"
)

// The networks of the mesh: east and west share one, and the pods of apart, in the other, have the same addresses as those of east.
const coast, island = "coast", "island"

// home is the virtual cluster where the mesh's istiod lives.
const home = "mesh-home"

// shared is what all tests have: a mesh of three members, kept by a vmesh, and its istiod.
var shared struct {
	dir               string
	vmesh             *harness.Vmesh
	istiod            *harness.Istiod
	east, west, apart *harness.Member
}

func TestMain(m *testing.M) {
	harness.Main(func() (int, error) { return run(m) })
}

func run(m *testing.M) (code int, err error) {
	shared.dir, err = os.MkdirTemp("", "network")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(shared.dir)
	// Tools may have to be built.
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	stop := func(stop func(context.Context) error) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		err = errors.Join(err, stop(ctx))
	}
	etcd, err := harness.StartEtcd(ctx, harness.EtcdOptions{Dir: filepath.Join(shared.dir, "etcd")})
	if err != nil {
		return 1, err
	}
	defer func() { stop(etcd.Stop) }()
	if shared.vmesh, err = harness.StartVmesh(ctx, harness.VmeshOptions{
		DataDir: filepath.Join(shared.dir, "vmesh"), ExtraArgs: []string{"--member-check-interval", "300ms"},
	}); err != nil {
		return 1, err
	}
	defer func() { stop(shared.vmesh.Stop) }()
	if err := harness.Apply(ctx, shared.vmesh.AdminKubeconfig, fmt.Sprintf(`
apiVersion: vmesh.io/v1alpha1
kind: VirtualCluster
metadata: {name: %[1]s}
---
apiVersion: vmesh.io/v1alpha1
kind: Mesh
metadata: {name: default}
spec:
  home: {virtualCluster: %[1]s}
  networks: [{name: coast}, {name: island}]
---
apiVersion: v1
kind: Namespace
metadata: {name: vmesh-system}
`, home)); err != nil {
		return 1, err
	}
	for _, member := range []struct {
		into    **harness.Member
		network string
		harness.MemberOptions
	}{
		{&shared.east, coast, harness.MemberOptions{Name: "east", Index: 1}},
		{&shared.west, coast, harness.MemberOptions{Name: "west", Index: 2}},
		{&shared.apart, island, harness.MemberOptions{Name: "apart", Index: 3, PodIndex: 1}},
	} {
		member.Dir, member.EtcdURL = filepath.Join(shared.dir, member.Name), etcd.URL
		started, err := harness.StartMember(ctx, member.MemberOptions)
		if err != nil {
			return 1, err
		}
		defer func() { stop(started.Close) }()
		*member.into = started
		if err := join(ctx, started, member.network); err != nil {
			return 1, err
		}
	}
	if _, err := harness.Kubectl(ctx, shared.vmesh.AdminKubeconfig, "", "wait", "--for=condition=HomeReady", "--timeout=60s", "mesh/default"); err != nil {
		return 1, err
	}
	kubeconfig, err := shared.vmesh.Kubeconfig(ctx, home)
	if err != nil {
		return 1, err
	}
	if shared.istiod, err = harness.StartIstiod(ctx, harness.IstiodOptions{
		Dir: filepath.Join(shared.dir, "istiod"), Kubeconfig: kubeconfig, Home: true, Debounce: 10 * time.Millisecond,
	}); err != nil {
		return 1, err
	}
	defer func() { stop(shared.istiod.Stop) }()
	return m.Run(), nil
}

// join has a member belong to the mesh.
func join(ctx context.Context, member *harness.Member, network string) error {
	kubeconfig, err := member.InlineKubeconfig()
	if err != nil {
		return err
	}
	return harness.Apply(ctx, shared.vmesh.AdminKubeconfig, fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: %[1]s, namespace: vmesh-system}
data: {kubeconfig: %[3]s}
---
apiVersion: vmesh.io/v1alpha1
kind: MemberCluster
metadata: {name: %[1]s}
spec: {network: %[2]s, access: {secret: %[1]s}}
`, member.Name, network, base64.StdEncoding.EncodeToString(kubeconfig)))
}

// settle gives the networks gateways, as the Mesh has them.
func settle(ctx context.Context, t *testing.T, coastGateways, islandGateways []v1alpha1.MeshNetworkGateway) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"networks": []v1alpha1.MeshNetwork{
		{Name: coast, Gateways: coastGateways}, {Name: island, Gateways: islandGateways},
	}}})
	must(t, err)
	_, err = harness.Kubectl(ctx, shared.vmesh.AdminKubeconfig, "", "patch", "mesh", "default", "--type=merge", "--patch", string(patch))
	must(t, err)
}

// begin has no network a gateway, and shows the logs of a test that fails.
func begin(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	t.Cleanup(cancel)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("istiod's log:\n%s", logOf(shared.istiod.LogFile()))
			t.Logf("vmesh's log:\n%s", logOf(shared.vmesh.LogFile()))
		}
	})
	settle(ctx, t, nil, nil)
	return ctx
}

// dial is a client at a place, which ends with the test.
func dial(t *testing.T, place traffic.Place, target string) *traffic.Client {
	t.Helper()
	client, err := traffic.DialPlaced(shared.istiod.GRPCAddress, place, target)
	must(t, err)
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return client
}

// serve gives members a service of a namespace with backends, which end with the test.
func serve(ctx context.Context, t *testing.T, namespace, service string, backends int, options harness.BackendOptions, members ...*harness.Member) []*harness.Backend {
	t.Helper()
	var all []*harness.Backend
	for _, member := range members {
		must(t, member.AddService(ctx, namespace, service))
		for range backends {
			options.Namespace, options.Service = namespace, service
			b, err := member.AddBackend(ctx, options)
			must(t, err)
			harness.StopAfter(t, b.Remove)
			all = append(all, b)
		}
	}
	return all
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func logOf(file string) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-5000):])
}

// eventually tries until check finds nothing wrong, for a minute at most.
func eventually(ctx context.Context, t *testing.T, check func(context.Context) error) {
	t.Helper()
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-poll.C {
		err := check(ctx)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func isAbout(err error, what string) bool { return err != nil && strings.Contains(err.Error(), what) }
