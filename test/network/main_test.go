// Package network tests a mesh of several clusters with a real istiod, real APIs of the members, and real calls: who is told of
// which endpoints, and whether calls arrive, within a network and from one to another.
package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vmesh-io/vmesh/test/harness"
	"github.com/vmesh-io/vmesh/test/traffic"
)

// shared is what all tests have: a vmesh and three members. The pods of east and apart have the same addresses.
var shared struct {
	dir               string
	etcd              *harness.Etcd
	vmesh             *harness.Vmesh
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
	if shared.etcd, err = harness.StartEtcd(ctx, harness.EtcdOptions{Dir: filepath.Join(shared.dir, "etcd")}); err != nil {
		return 1, err
	}
	defer func() { stop(shared.etcd.Stop) }()
	if shared.vmesh, err = harness.StartVmesh(ctx, harness.VmeshOptions{DataDir: filepath.Join(shared.dir, "vmesh")}); err != nil {
		return 1, err
	}
	defer func() { stop(shared.vmesh.Stop) }()
	for _, member := range []struct {
		into **harness.Member
		harness.MemberOptions
	}{
		{&shared.east, harness.MemberOptions{Name: "east", Index: 1}},
		{&shared.west, harness.MemberOptions{Name: "west", Index: 2}},
		{&shared.apart, harness.MemberOptions{Name: "apart", Index: 3, PodIndex: 1}},
	} {
		member.Dir, member.EtcdURL = filepath.Join(shared.dir, member.Name), shared.etcd.URL
		started, err := harness.StartMember(ctx, member.MemberOptions)
		if err != nil {
			return 1, err
		}
		defer func() { stop(started.Close) }()
		*member.into = started
	}
	return m.Run(), nil
}

// mesh is an istiod that reads all it knows from a virtual cluster of its own and from members.
type mesh struct {
	*harness.Istiod
	home kubernetes.Interface
}

// settings are the two keys of config map istio.
type settings struct {
	Mesh     map[string]any
	Networks map[string]any
}

// startMesh starts the istiod of a mesh with those members.
func startMesh(ctx context.Context, t *testing.T, s settings, members ...*harness.Member) *mesh {
	t.Helper()
	name := strings.ToLower(t.Name())
	name = name[len(name)-min(len(name), 40):]
	vc := fmt.Sprintf("apiVersion: vmesh.io/v1alpha1\nkind: VirtualCluster\nmetadata: {name: %s}\nspec: {}\n", name)
	must(t, harness.Apply(ctx, shared.vmesh.AdminKubeconfig, vc))
	_, err := harness.Kubectl(ctx, shared.vmesh.AdminKubeconfig, "", "wait", "--for=condition=Ready", "--timeout=60s", "virtualcluster/"+name)
	must(t, err)
	kubeconfig, err := shared.vmesh.Kubeconfig(ctx, name)
	must(t, err)
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	must(t, err)
	m := &mesh{}
	m.home, err = kubernetes.NewForConfig(config)
	must(t, err)
	must(t, harness.Apply(ctx, kubeconfig, "apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system}\n"))
	m.settle(ctx, t, s)
	for _, member := range members {
		m.join(ctx, t, member)
	}
	m.Istiod, err = harness.StartIstiod(ctx, harness.IstiodOptions{
		Dir: t.TempDir(), Kubeconfig: kubeconfig, Debounce: 10 * time.Millisecond,
		// Without the files, it reads the config map.
		ExtraArgs: []string{"--meshConfig", filepath.Join(shared.dir, "no-mesh"), "--networksConfig", filepath.Join(shared.dir, "no-networks")},
	})
	must(t, err)
	harness.StopAfter(t, m.Stop)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("istiod's log:\n%s", logOf(m.LogFile()))
		}
	})
	return m
}

// settle writes the settings.
func (m *mesh) settle(ctx context.Context, t *testing.T, s settings) {
	t.Helper()
	config := map[string]any{"configSources": []any{map[string]any{"address": "xds://" + shared.vmesh.XDSAddress, "tlsSettings": map[string]any{"mode": "DISABLE"}}}}
	for key, value := range s.Mesh {
		config[key] = value
	}
	meshConfig, err := json.Marshal(config)
	must(t, err)
	networks, err := json.Marshal(map[string]any{"networks": s.Networks})
	must(t, err)
	configMap := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "istio", Namespace: "istio-system"},
		Data:       map[string]string{"mesh": string(meshConfig), "meshNetworks": string(networks)},
	}
	maps := m.home.CoreV1().ConfigMaps("istio-system")
	if _, err := maps.Update(ctx, configMap, metav1.UpdateOptions{}); err == nil {
		return
	}
	_, err = maps.Create(ctx, configMap, metav1.CreateOptions{})
	must(t, err)
}

// join gives istiod access to a member.
func (m *mesh) join(ctx context.Context, t *testing.T, member *harness.Member) {
	t.Helper()
	secret, err := member.RemoteSecret()
	must(t, err)
	_, err = m.home.CoreV1().Secrets(secret.Namespace).Create(ctx, secret, metav1.CreateOptions{})
	must(t, err)
}

// dial is a client at a place, which ends with the test.
func (m *mesh) dial(t *testing.T, place traffic.Place, target string) *traffic.Client {
	t.Helper()
	client, err := traffic.DialPlaced(m.GRPCAddress, place, target)
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
