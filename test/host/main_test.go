// Package host tests vmesh behind the aggregation layer of a real kube-apiserver, with the real namespace controller and
// garbage collector, registered by the manifests that an operator applies.
package host

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/vmesh-io/vmesh/test/harness"
)

// view is the virtual cluster from which the host is served Istio's groups.
const view = "mesh"

// shared is the host cluster of all tests, with a vmesh.
var shared *stack

// stack is a host cluster and the vmesh that is registered with it.
type stack struct {
	dir     string
	host    *harness.KubeAPIServer
	vmesh   *harness.Vmesh
	started []*harness.Process
}

func TestMain(m *testing.M) {
	harness.Main(func() (int, error) { return run(m) })
}

func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "host")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	shared = &stack{dir: dir}
	defer func() { err = errors.Join(err, shared.stop()) }()
	// Tools may have to be built.
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	if err := shared.start(ctx); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

func (s *stack) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if s.host != nil {
		s.started = append(s.started, s.host.Process)
	}
	if s.vmesh != nil {
		s.started = append(s.started, s.vmesh.Process)
	}
	var errs []error
	for _, p := range slices.Backward(s.started) {
		errs = append(errs, p.Stop(ctx))
	}
	return errors.Join(errs...)
}

// start does what the operator's guide says.
func (s *stack) start(ctx context.Context) error {
	etcd, err := harness.StartEtcd(ctx, harness.EtcdOptions{Dir: filepath.Join(s.dir, "etcd")})
	if err != nil {
		return err
	}
	s.started = append(s.started, etcd.Process)
	if s.host, err = harness.StartKubeAPIServer(ctx, harness.KubeAPIServerOptions{Dir: filepath.Join(s.dir, "host"), EtcdURL: etcd.URL}); err != nil {
		return err
	}
	controllers, err := s.host.StartControllers(ctx, "namespace-controller", "garbage-collector-controller")
	if err != nil {
		return err
	}
	s.started = append(s.started, controllers)

	root, err := harness.RepoRoot()
	if err != nil {
		return err
	}
	if _, err := s.admin(ctx, "", "apply", "-k", filepath.Join(root, "manifests", "base")); err != nil {
		return err
	}
	kubeconfig, err := s.vmeshKubeconfig(ctx)
	if err != nil {
		return err
	}
	s.vmesh, err = harness.StartVmesh(ctx, harness.VmeshOptions{DataDir: filepath.Join(s.dir, "vmesh"), ExtraArgs: []string{
		"--host-kubeconfig", kubeconfig, "--host-view", view, "--tls-host", "vmesh.vmesh-system.svc",
	}})
	if err != nil {
		return err
	}
	overlay, err := s.overlay(root)
	if err != nil {
		return err
	}
	if _, err := s.admin(ctx, "", "apply", "-k", overlay); err != nil {
		return err
	}
	if _, err = s.admin(ctx, "", "wait", "--for=condition=Available", "--timeout=60s", "apiservice/v1alpha1.vmesh.io", "apiservice/v1.networking.istio.io"); err != nil {
		return err
	}
	// The host tells of a group in its discovery a moment after it is available.
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-poll.C {
		known, err := s.admin(ctx, "", "api-resources", "-o", "name")
		if err == nil && strings.Contains(known, "virtualclusters.vmesh.io") && strings.Contains(known, "virtualservices.networking.istio.io") {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("the discovery of the host lacks what vmesh serves: %s", known), err)
		}
	}
}

// vmeshKubeconfig is how vmesh reaches the host: as the service account of the manifests.
func (s *stack) vmeshKubeconfig(ctx context.Context) (string, error) {
	token, err := s.admin(ctx, "", "create", "token", "vmesh", "--namespace", "vmesh-system")
	if err != nil {
		return "", err
	}
	config, err := clientcmd.LoadFromFile(s.host.Kubeconfig)
	if err != nil {
		return "", err
	}
	config.AuthInfos = map[string]*clientcmdapi.AuthInfo{"admin": {Token: strings.TrimSpace(token)}}
	file := filepath.Join(s.dir, "vmesh-host.kubeconfig")
	return file, clientcmd.WriteToFile(*config, file)
}

// overlay says where vmesh is, and what authority its serving certificate has.
func (s *stack) overlay(root string) (string, error) {
	ca, err := os.ReadFile(filepath.Join(s.dir, "vmesh", "pki", "server-ca.crt"))
	if err != nil {
		return "", err
	}
	dir := filepath.Join(s.dir, "overlay")
	manifests, err := filepath.Rel(dir, filepath.Join(root, "manifests"))
	if err != nil {
		return "", err
	}
	kustomization := fmt.Sprintf(`apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [%[1]s/external]
components: [%[1]s/host-view]
patches:
- target: {kind: Service, name: vmesh}
  patch: |-
    - {op: replace, path: /spec/externalName, value: localhost}
- target: {kind: APIService}
  patch: |-
    - {op: add, path: /spec/caBundle, value: %[2]s}
    - {op: replace, path: /spec/service/port, value: %[3]d}
`, manifests, base64.StdEncoding.EncodeToString(ca), s.vmesh.Port)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(kustomization), 0o644)
}

// admin runs kubectl in the host as its administrator.
func (s *stack) admin(ctx context.Context, stdin string, args ...string) (string, error) {
	return harness.Kubectl(ctx, s.host.Kubeconfig, stdin, args...)
}

// root runs kubectl in vmesh's root, past the host.
func (s *stack) root(ctx context.Context, stdin string, args ...string) (string, error) {
	return harness.Kubectl(ctx, s.vmesh.AdminKubeconfig, stdin, args...)
}

// person is a user of the host.
type person struct{ kubeconfig string }

func newPerson(t *testing.T, name string, groups ...string) *person {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := shared.host.WriteKubeconfig(file, name, groups...); err != nil {
		t.Fatal(err)
	}
	return &person{file}
}

// in is the person's kubeconfig of a virtual cluster, by way of the host: only its server differs.
func (p *person) in(t *testing.T, cluster string) *person {
	t.Helper()
	config, err := clientcmd.LoadFromFile(p.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.Clusters["kubernetes"].Server += "/apis/vmesh.io/v1alpha1/virtualclusters/" + cluster + "/proxy"
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		t.Fatal(err)
	}
	return &person{file}
}

func (p *person) config(t *testing.T) *rest.Config {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", p.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// does runs kubectl, which must succeed.
func (p *person) does(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := p.tries(t, stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (p *person) tries(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	return harness.Kubectl(ctx, p.kubeconfig, stdin, args...)
}

// isRefused runs kubectl, which must fail with a message that has all the parts.
func (p *person) isRefused(t *testing.T, stdin string, args, parts []string) {
	t.Helper()
	out, err := p.tries(t, stdin, args...)
	if err == nil {
		t.Errorf("kubectl %s was let in: %s", strings.Join(args, " "), out)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("kubectl %s: the message lacks %q: %v", strings.Join(args, " "), part, err)
		}
	}
}

// by does something as an administrator, which must succeed.
func by(t *testing.T, kubectl func(context.Context, string, ...string) (string, error), stdin string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	out, err := kubectl(ctx, stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// eventually waits until check has nothing to complain about.
func eventually(t *testing.T, within time.Duration, check func() error) {
	t.Helper()
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(within); ; <-poll.C {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
