// Package relay tests vmesh's relay as processes: between real servers, and real istiods.
package relay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vmesh-io/vmesh/test/harness"
)

// kubernetes is the API that istiods have for themselves, which lives when those under test do not.
var kubernetes struct {
	*harness.Vmesh
	kubeconfig string
}

func TestMain(m *testing.M) {
	harness.Main(func() (int, error) { return run(m) })
}

func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "relay")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	// Tools may have to be built.
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	if kubernetes.Vmesh, err = harness.StartVmesh(ctx, harness.VmeshOptions{DataDir: filepath.Join(dir, "kubernetes")}); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, kubernetes.Kill()) }()
	if kubernetes.kubeconfig, err = kubernetes.Kubeconfig(ctx, "default"); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// stack is a vmesh with a relay and an istiod.
type stack struct {
	t      *testing.T
	ctx    context.Context
	dir    string
	vmesh  *harness.Vmesh
	tls    string // its xDS over TLS
	team   string // the kubeconfig of virtual cluster default
	relay  *harness.Relay
	istiod *harness.Istiod
}

// newStack starts a vmesh whose mesh default user relay-east may receive.
func newStack(t *testing.T) *stack {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	s := &stack{t: t, ctx: ctx, dir: t.TempDir()}
	s.tls = s.freeAddress()
	var err error
	s.vmesh, err = harness.StartVmesh(ctx, harness.VmeshOptions{DataDir: filepath.Join(s.dir, "vmesh"), ExtraArgs: []string{"--xds-tls-address", s.tls}})
	s.must(err)
	s.onCleanup(func() error { return s.vmesh.Kill() })
	s.team, err = s.vmesh.Kubeconfig(ctx, "default")
	s.must(err)
	s.receivers(`[{"kind":"User","name":"relay-east"}]`)
	t.Cleanup(func() {
		if t.Failed() {
			s.show("vmesh", s.vmesh.LogFile())
			if s.relay != nil {
				s.show("relay", s.relay.LogFile())
			}
			if s.istiod != nil {
				s.show("istiod", s.istiod.LogFile())
			}
		}
	})
	return s
}

func (s *stack) show(name, file string) {
	data, err := os.ReadFile(file)
	s.t.Logf("%s's last words (%v):\n%s", name, err, data[max(0, len(data)-6<<10):])
}

func (s *stack) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *stack) onCleanup(f func() error) {
	s.t.Cleanup(func() {
		if err := f(); err != nil {
			s.t.Error(err)
		}
	})
}

func (s *stack) freeAddress() string {
	s.t.Helper()
	ports, err := harness.FreePorts(1)
	s.must(err)
	return fmt.Sprintf("127.0.0.1:%d", ports[0])
}

// receivers sets the mesh's spec.receivers.
func (s *stack) receivers(list string) {
	s.t.Helper()
	_, err := harness.Kubectl(s.ctx, s.vmesh.AdminKubeconfig, "", "patch", "mesh", "default", "--type", "merge", "-p", `{"spec":{"receivers":`+list+`}}`)
	s.must(err)
}

// identity makes a kubeconfig for a user of the root.
func (s *stack) identity(user string) string {
	s.t.Helper()
	file := filepath.Join(s.dir, user+".kubeconfig")
	s.must(kubeconfigCreate(s.ctx, s.vmesh, user, file))
	return file
}

// startRelay starts a relay that follows some addresses, and returns when it is ready.
func (s *stack) startRelay(upstream ...string) {
	s.t.Helper()
	var err error
	s.relay, err = harness.StartRelay(s.ctx, harness.RelayOptions{
		Dir: filepath.Join(s.dir, "relay"), Upstream: upstream, Kubeconfig: s.identity("relay-east"), ExtraArgs: []string{"--name", "relay-east", "--labels", "region=east"},
	})
	s.must(err)
	s.onCleanup(func() error { return s.relay.Kill() })
	s.must(s.relay.WaitReady(s.ctx))
}

// startIstiod starts one with the sources that the relay has written down.
func (s *stack) startIstiod() {
	s.t.Helper()
	sources, err := s.relay.Sources()
	s.must(err)
	s.istiod, err = harness.StartIstiod(s.ctx, harness.IstiodOptions{
		Dir: filepath.Join(s.dir, "istiod"), Kubeconfig: kubernetes.kubeconfig, XDSAddresses: sources, Debounce: 5 * time.Millisecond,
	})
	s.must(err)
	s.onCleanup(func() error { return s.istiod.Kill() })
}

// entry is a ServiceEntry with a value to tell its states apart.
func entry(name, value string) string {
	return fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %[1]s, namespace: demo, labels: {value: "%[2]s"}}
spec: {hosts: [%[1]s.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}
`, name, value)
}

const demo = "apiVersion: v1\nkind: Namespace\nmetadata: {name: demo}\n---\n"

func (s *stack) apply(kubeconfig, manifests string) {
	s.t.Helper()
	s.must(harness.Apply(s.ctx, kubeconfig, manifests))
}

// set changes the value of an entry, faster than a new kubectl can.
func (s *stack) set(name, value string) {
	s.t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", s.team)
	s.must(err)
	client, err := dynamic.NewForConfig(config)
	s.must(err)
	_, err = client.Resource(schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "serviceentries"}).Namespace("demo").
		Patch(s.ctx, name, types.MergePatchType, []byte(`{"metadata":{"labels":{"value":"`+value+`"}}}`), metav1.PatchOptions{})
	s.must(err)
}

// shown are istiod's ServiceEntries of the test, as name=value.
func (s *stack) shown(ctx context.Context) (map[string]string, error) {
	all, err := s.istiod.Configz(ctx)
	if err != nil {
		return nil, err
	}
	values := map[string]string{}
	for _, o := range all {
		if o.GetKind() == "ServiceEntry" && o.GetNamespace() == "demo" {
			values[o.GetName()] = valueOf(&o)
		}
	}
	return values, nil
}

func valueOf(o *unstructured.Unstructured) string { return o.GetLabels()["value"] }

// expect waits until istiod shows a value, and says when it did.
func (s *stack) expect(name, value string) time.Time {
	s.t.Helper()
	s.eventually("istiod has "+name+"="+value, func() error {
		shown, err := s.shown(s.ctx)
		if err == nil && shown[name] != value {
			err = fmt.Errorf("it has %v", shown)
		}
		return err
	})
	return time.Now()
}

func (s *stack) eventually(what string, check func() error) {
	s.t.Helper()
	var err error
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	s.t.Fatalf("waiting until %s: %v", what, err)
}

// neverLoses watches istiod's configuration until stop is called: what it has once, it has always.
func (s *stack) neverLoses() (stop func()) {
	ctx, cancel := context.WithCancel(s.ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		seen := map[string]string{}
		for ctx.Err() == nil {
			shown, err := s.shown(ctx)
			if err != nil {
				if ctx.Err() == nil {
					s.t.Error(err)
				}
				return
			}
			for name := range seen {
				if _, ok := shown[name]; !ok {
					s.t.Errorf("istiod lost %s", name)
					return
				}
			}
			seen = shown
			time.Sleep(10 * time.Millisecond)
		}
		if len(seen) == 0 {
			s.t.Error("istiod never had anything")
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}
