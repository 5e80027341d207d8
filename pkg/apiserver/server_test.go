package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// start runs a server and returns the root administrator's access, and how to stop it.
func start(t *testing.T, o *Options) (*rest.Config, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	server, err := New(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- server.Run(ctx, func() { close(ready) }) }()
	stop := func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the server ended with %v", err)
		}
		server.Close()
	}
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("the server ended before it was ready: %v", err)
	case <-time.After(3 * time.Minute):
		t.Fatal("the server was not ready within three minutes")
	}
	config, err := clientcmd.BuildConfigFromFlags("", o.AdminKubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	return config, stop
}

func in(t *testing.T, root *rest.Config, cluster string) *kubernetes.Clientset {
	t.Helper()
	config := rest.CopyConfig(root)
	if cluster != "" {
		config.Host += "/clusters/" + cluster
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func createCluster(t *testing.T, root *rest.Config, name, spec string) {
	t.Helper()
	body := fmt.Sprintf(`{"apiVersion":%q,"kind":"VirtualCluster","metadata":{"name":%q},"spec":%s}`, v1alpha1.GroupVersion, name, spec)
	path := "/apis/" + v1alpha1.GroupVersion.String() + "/virtualclusters"
	if err := in(t, root, "").RESTClient().Post().AbsPath(path).SetHeader("Content-Type", "application/json").
		Body([]byte(body)).Do(context.Background()).Error(); err != nil {
		t.Fatal(err)
	}
}

func TestARestartKeepsWhatAllVirtualClustersHold(t *testing.T) {
	ctx := context.Background()
	o := NewOptions()
	o.DataDir, o.XDSAddress, o.SecurePort = t.TempDir(), "", freePort(t)
	clusters := []string{"default", "shop", "bank"}
	root, stop := start(t, o)
	for _, name := range clusters {
		if name != "default" {
			createCluster(t, root, name, "{}")
		}
		// The same names in each: they differ by their virtual cluster alone.
		settings := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings"}, Data: map[string]string{"of": name}}
		if _, err := in(t, root, name).CoreV1().ConfigMaps("default").Create(ctx, settings, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	stop()

	root, stop = start(t, o)
	defer stop()
	for _, name := range clusters {
		client := in(t, root, name)
		// From etcd, and from the watch cache.
		for _, version := range []string{"", "0"} {
			namespaces, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{ResourceVersion: version})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for i := range namespaces.Items {
				got = append(got, namespaces.Items[i].Name)
			}
			if want := []string{"default", "istio-system"}; !slices.Equal(got, want) {
				t.Errorf("resource version %q: %s has namespaces %v, want %v", version, name, got, want)
			}
			maps, err := client.CoreV1().ConfigMaps("").List(ctx, metav1.ListOptions{ResourceVersion: version})
			if err != nil {
				t.Fatal(err)
			}
			if len(maps.Items) != 1 || maps.Items[0].Data["of"] != name {
				t.Errorf("resource version %q: %s has config maps %v", version, name, maps.Items)
			}
		}
	}
}

// Who is sent here as soon as it says that it is ready finds what a first use needs.
func TestAFirstStartIsReadyWhenTheFirstMeshIsThere(t *testing.T) {
	o := NewOptions()
	o.DataDir, o.XDSAddress, o.SecurePort = t.TempDir(), "", freePort(t)
	ctx, cancel := context.WithCancel(t.Context())
	server, err := New(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx, nil) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the server ended with %v", err)
		}
		server.Close()
	}()
	for deadline := time.Now().Add(time.Minute); server.NotReady() != nil; {
		if time.Now().After(deadline) {
			t.Fatalf("not ready within a minute: %v", server.NotReady())
		}
	}
	if all := server.sync.Snapshots().Snapshots(); len(all) != 1 || all[0].Mesh != "default" {
		t.Errorf("when it is ready there are snapshots %v", all)
	}
	config, err := clientcmd.BuildConfigFromFlags("", o.AdminKubeconfig())
	if err != nil {
		t.Fatalf("when it is ready, the administrator has no kubeconfig: %v", err)
	}
	if _, err := in(t, config, "default").CoreV1().Namespaces().Get(ctx, "default", metav1.GetOptions{}); err != nil {
		t.Errorf("when it is ready: %v", err)
	}
}

func TestVirtualClustersFollowTheirSurroundings(t *testing.T) {
	ctx := context.Background()
	o := NewOptions()
	o.DataDir, o.XDSAddress, o.SecurePort = t.TempDir(), "", freePort(t)
	eventually := func(what string, is func() bool) {
		t.Helper()
		if err := wait.PollUntilContextTimeout(ctx, 20*time.Millisecond, time.Minute, true,
			func(context.Context) (bool, error) { return is(), nil }); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	hasNamespace := func(root *rest.Config, cluster, namespace string) func() bool {
		return func() bool {
			_, err := in(t, root, cluster).CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
			return err == nil
		}
	}
	root, stop := start(t, o)
	createCluster(t, root, "shop", "{}")
	createCluster(t, root, "apart", `{"mesh":"apart"}`)
	if err := in(t, root, "").RESTClient().Patch(types.MergePatchType).AbsPath("/apis/" + v1alpha1.GroupVersion.String() + "/meshes/default").
		Body([]byte(`{"spec":{"rootNamespace":"mesh-root"}}`)).Do(ctx).Error(); err != nil {
		t.Fatal(err)
	}
	for _, cluster := range []string{"default", "shop"} {
		eventually("the new root namespace in "+cluster, hasNamespace(root, cluster, "mesh-root"))
	}
	if hasNamespace(root, "apart", "mesh-root")() {
		t.Error("the root namespace of one mesh is in a virtual cluster of another")
	}
	stop()

	o.SecurePort = freePort(t)
	root, stop = start(t, o)
	defer stop()
	eventually("the new address in the status", func() bool {
		data, err := in(t, root, "").RESTClient().Get().AbsPath("/apis/" + v1alpha1.GroupVersion.String() + "/virtualclusters/shop").DoRaw(ctx)
		var vc v1alpha1.VirtualCluster
		return err == nil && json.Unmarshal(data, &vc) == nil && vc.Status.URL == o.URL()+"/clusters/shop"
	})
}
