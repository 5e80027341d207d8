package istiod

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vmesh-io/vmesh/test/harness"
)

// fleet is a vmesh with several istiods that serve the same mesh.
type fleet struct {
	vmesh      *harness.Vmesh
	istiods    []*harness.Istiod
	kubeconfig string
	routes     dynamic.ResourceInterface // the VirtualServices of namespace shop
}

func startFleet(ctx context.Context, t *testing.T, istiods int) *fleet {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	f := &fleet{}
	var err error
	f.vmesh, err = harness.StartVmesh(ctx, harness.VmeshOptions{DataDir: filepath.Join(dir, "vmesh")})
	must(err)
	harness.StopAfter(t, f.vmesh.Stop)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("vmesh's last words:\n%s", tail(f.vmesh.LogFile()))
		}
	})
	f.kubeconfig, err = f.vmesh.Kubeconfig(ctx, "default")
	must(err)
	for i := range istiods {
		istiod, err := harness.StartIstiod(ctx, harness.IstiodOptions{
			Dir: filepath.Join(dir, fmt.Sprintf("istiod-%d", i)), Kubeconfig: f.kubeconfig, XDSAddresses: []string{f.vmesh.XDSAddress},
			PodName: fmt.Sprintf("istiod-%d", i),
		})
		must(err)
		harness.StopAfter(t, istiod.Stop)
		f.istiods = append(f.istiods, istiod)
	}
	must(harness.Apply(ctx, f.kubeconfig, "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"))
	config, err := clientcmd.BuildConfigFromFlags("", f.kubeconfig)
	must(err)
	config.QPS = -1
	client, err := dynamic.NewForConfig(config)
	must(err)
	f.routes = client.Resource(schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "virtualservices"}).Namespace("shop")
	return f
}

// route is a VirtualService that bears a number which tells its states apart.
func route(name string, number int) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
		"metadata": map[string]any{"name": name, "namespace": "shop"},
		"spec": map[string]any{
			"hosts": []any{name + ".shop.svc.cluster.local"},
			"http":  []any{map[string]any{"timeout": fmt.Sprintf("%ds", number+1), "route": []any{map[string]any{"destination": map[string]any{"host": name}}}}},
		},
	}}
}

// state is what there is to tell one state of a route from another.
func state(o *unstructured.Unstructured) string {
	routes, _, _ := unstructured.NestedSlice(o.Object, "spec", "http")
	timeout := ""
	if len(routes) > 0 {
		if m, ok := routes[0].(map[string]any); ok {
			timeout = fmt.Sprint(m["timeout"])
		}
	}
	return timeout + " " + o.GetLabels()["step"]
}

// distributed is an object's condition, in words, and whether it is true of this generation.
func distributed(o *unstructured.Unstructured) (bool, string) {
	conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, c := range conditions {
		m, _ := c.(map[string]any)
		if m["type"] != "Distributed" {
			continue
		}
		text := fmt.Sprintf("%v %v: %v", m["status"], m["reason"], m["message"])
		return m["status"] == "True" && m["observedGeneration"] == o.GetGeneration(), text
	}
	return false, "no condition"
}

// Whenever the condition turns true, both istiods show that very state.
func TestDistributedIsNeverTrueTooEarly(t *testing.T) {
	changes := 1000
	if n, err := strconv.Atoi(os.Getenv("VMESH_DISTRIBUTED_CHANGES")); err == nil {
		changes = n
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	f := startFleet(ctx, t, 2)
	const writers = 4
	group, ctx := errgroup.WithContext(ctx)
	began := time.Now()
	waited := make([]time.Duration, writers)
	for w := range writers {
		group.Go(func() error {
			name := fmt.Sprintf("route-%d", w)
			random := rand.New(rand.NewPCG(uint64(w), 1))
			watch, err := f.routes.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
			if err != nil {
				return err
			}
			defer watch.Stop()
			exists := false
			for n := range changes / writers {
				start := time.Now()
				written, err := f.change(ctx, name, n, random.IntN(10), &exists)
				if err != nil {
					return fmt.Errorf("change %d of %s: %w", n, name, err)
				}
				if is, text := distributed(written); is {
					return fmt.Errorf("change %d of %s was answered with %q", n, name, text)
				}
				for {
					var o *unstructured.Unstructured
					select {
					case e := <-watch.ResultChan():
						var ok bool
						if o, ok = e.Object.(*unstructured.Unstructured); !ok {
							return fmt.Errorf("the watch ended with %v", e.Object)
						}
					case <-time.After(time.Minute):
						return fmt.Errorf("change %d of %s is not distributed", n, name)
					case <-ctx.Done():
						return ctx.Err()
					}
					if is, text := distributed(o); !is || o.GetUID() != written.GetUID() {
						continue
					} else if state(o) != state(written) {
						return fmt.Errorf("%s is %q of %q after %q was written", name, text, state(o), state(written))
					} else if !strings.Contains(text, "2 of 2 control planes") {
						return fmt.Errorf("%s says %q", name, text)
					}
					break
				}
				waited[w] += time.Since(start)
				for i, istiod := range f.istiods {
					shown, err := istiod.Configz(ctx)
					if err != nil {
						return err
					}
					got := "nothing"
					for j := range shown {
						if shown[j].GetKind() == "VirtualService" && shown[j].GetName() == name {
							got = state(&shown[j])
						}
					}
					if got != state(written) {
						return fmt.Errorf("change %d: istiod-%d has %q of %s, which says that %q is distributed", n, i, got, name, state(written))
					}
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	var total time.Duration
	for _, w := range waited {
		total += w
	}
	t.Logf("%d changes in %s; from a write to its condition %s on average", changes, time.Since(began).Round(time.Millisecond), (total / time.Duration(changes)).Round(100*time.Microsecond))
}

// change changes what istiod reads of a route: its spec, or only a label, or all of it at once.
func (f *fleet) change(ctx context.Context, name string, n, how int, exists *bool) (*unstructured.Unstructured, error) {
	switch {
	case !*exists:
		*exists = true
		return f.routes.Create(ctx, route(name, n), metav1.CreateOptions{})
	case how == 0:
		if err := f.routes.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			return nil, err
		}
		return f.routes.Create(ctx, route(name, n), metav1.CreateOptions{})
	case how < 4:
		patch := fmt.Sprintf(`{"metadata":{"labels":{"step":"%d"}}}`, n)
		return f.routes.Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	case how < 7:
		applied, err := json.Marshal(route(name, n))
		if err != nil {
			return nil, err
		}
		force := true
		return f.routes.Patch(ctx, name, types.ApplyPatchType, applied, metav1.PatchOptions{FieldManager: "test", Force: &force})
	default:
		// As kubectl replace does: with the status of the state before, which was true.
		o, err := f.routes.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		o.Object["spec"] = route(name, n).Object["spec"]
		return f.routes.Update(ctx, o, metav1.UpdateOptions{})
	}
}

func TestDistributedSaysWhatItWaitsFor(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	f := startFleet(ctx, t, 2)
	wait := func(what string) {
		t.Helper()
		if out, err := harness.Kubectl(ctx, f.kubeconfig, "", "wait", "-n", "shop", "--for=condition=Distributed"+what, "--timeout=60s", "virtualservices/reviews"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	says := func(want string) {
		t.Helper()
		o, err := f.routes.Get(ctx, "reviews", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, text := distributed(o); !strings.Contains(text, want) {
			t.Errorf("says %q, want %q", text, want)
		}
	}
	apply := func(number int) {
		t.Helper()
		manifest, err := json.Marshal(route("reviews", number))
		if err != nil {
			t.Fatal(err)
		}
		if err := harness.Apply(ctx, f.kubeconfig, string(manifest)); err != nil {
			t.Fatal(err)
		}
	}
	apply(1)
	wait("")
	says("True Distributed: Acknowledged by 2 of 2 control planes")

	// One that stands still.
	if err := f.istiods[0].Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	apply(2)
	wait("=False")
	says("ControlPlaneBehind: Acknowledged by 1 of 2 control planes; behind: istiod-0")
	if err := f.istiods[0].Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	wait("")

	// One that has gone, and comes back.
	if err := f.istiods[1].Kill(); err != nil {
		t.Fatal(err)
	}
	apply(3)
	wait("=False")
	says("ControlPlaneGone: Acknowledged by 1 of 2 control planes; no longer connected: istiod-1")
	if err := f.istiods[1].Restart(ctx); err != nil {
		t.Fatal(err)
	}
	wait("")

	// A label has no generation, but istiod reads it.
	if _, err := harness.Kubectl(ctx, f.kubeconfig, "", "label", "-n", "shop", "virtualservices/reviews", "step=4"); err != nil {
		t.Fatal(err)
	}
	wait("")
	says("2 of 2 control planes")
}
