package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/goleak"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/apiserver"
	"github.com/vmesh-io/vmesh/pkg/pki"
	"github.com/vmesh-io/vmesh/test/e2e/rawapi"
	"github.com/vmesh-io/vmesh/test/harness"
	"github.com/vmesh-io/vmesh/test/leak"
)

// shared is the server of all tests that need none of their own. Each makes virtual
// clusters of its own in it.
var shared *server

func TestMain(m *testing.M) {
	harness.Main(func() (int, error) { return run(m) })
}

func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	log, err := os.Create(filepath.Join(dir, "server.log"))
	if err != nil {
		return 1, err
	}
	defer log.Close()
	klog.SetSlogLogger(slog.New(slog.NewTextHandler(log, nil)))

	// Without analysis of writes: most tests hold answers against those of servers that have none.
	if shared, err = startServer(filepath.Join(dir, "data"), func(o *apiserver.Options) {
		o.AnalysisBudget = 0
		o.TenantWebhookAllow = []string{"127.0.0.0/8"} // where the tests' webhooks are
	}); err != nil {
		return 1, err
	}
	code = m.Run()
	if code != 0 {
		fmt.Fprint(os.Stderr, shared.logTail(log.Name()))
	}
	if err := shared.stop(); err != nil {
		return 1, err
	}
	// What goes on is upstream's and lasts as long as the process.
	return code, leak.Find(
		goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"),
		goleak.IgnoreAnyFunction("k8s.io/apimachinery/pkg/util/wait.Forever"),
		goleak.IgnoreAnyFunction("gopkg.in/natefinch/lumberjack%2ev2.(*Logger).millRun"),
		goleak.IgnoreAnyFunction("k8s.io/apiserver/pkg/storage/cacher.(*watchCache).waitUntilFreshLocked.func2"), // ends after its 3 s
	)
}

// server is a vmesh in this process.
type server struct {
	options *apiserver.Options
	// root is an administrator of the root.
	root *rest.Config
	stop func() error
}

// startServer runs a vmesh on free ports until stop is called, and returns when it is ready.
func startServer(dataDir string, adjust ...func(*apiserver.Options)) (*server, error) {
	options := apiserver.NewOptions()
	options.AddFlags(pflag.NewFlagSet("vmesh", pflag.ContinueOnError)) // for the feature gates that it sets
	ports, err := harness.FreePorts(2)
	if err != nil {
		return nil, err
	}
	options.DataDir, options.SecurePort, options.XDSAddress = dataDir, ports[0], fmt.Sprintf("127.0.0.1:%d", ports[1])
	options.ShutdownPeriod = 30 * time.Second
	for _, a := range adjust {
		a(options)
	}
	ctx, cancel := context.WithCancel(context.Background())
	vmesh, err := apiserver.New(ctx, options)
	if err != nil {
		cancel()
		return nil, err
	}
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- vmesh.Run(ctx, func() { close(ready) }) }()
	stop := func() error {
		cancel()
		err := <-done
		vmesh.Close()
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		return err
	}
	select {
	case <-ready:
	case err := <-done:
		cancel()
		vmesh.Close()
		return nil, fmt.Errorf("the server ended: %w", err)
	case <-time.After(3 * time.Minute):
		return nil, errors.Join(errors.New("the server is not ready after three minutes"), stop())
	}
	root, err := clientcmd.BuildConfigFromFlags("", options.AdminKubeconfig())
	if err != nil {
		return nil, errors.Join(err, stop())
	}
	return &server{options: options, root: unlimited(root), stop: stop}, nil
}

// unlimited takes off client-go's rate limit.
func unlimited(c *rest.Config) *rest.Config {
	c.QPS = -1
	return c
}

func (s *server) logTail(name string) string {
	data, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	return "the end of the server's log:\n" + string(bytes.Join(lines[max(0, len(lines)-20):], []byte("\n"))) + "\n"
}

// tenant is a virtual cluster and an administrator's way into it.
type tenant struct {
	name       string
	config     *rest.Config
	kubeconfig string // a file
	raw        *rawapi.Client
}

var tenants atomic.Int64

// newTenant makes a virtual cluster that owns the namespaces, and is a sandbox when
// there are none. Its name is unlike any other's.
func newTenant(t *testing.T, s *server, namespaces ...string) *tenant {
	t.Helper()
	name := fmt.Sprintf("t%03d", tenants.Add(1))
	createCluster(t, s, name, namespaces...)
	return s.tenant(t, name)
}

func createCluster(t *testing.T, s *server, name string, namespaces ...string) {
	t.Helper()
	spec, err := json.Marshal(map[string]any{"namespaces": namespaces})
	if err != nil {
		t.Fatal(err)
	}
	mustDo(t, rawClient(t, s.root), http.MethodPost, "/apis/vmesh.io/v1alpha1/virtualclusters",
		fmt.Sprintf(`{"apiVersion":"vmesh.io/v1alpha1","kind":"VirtualCluster","metadata":{"name":%q},"spec":%s}`, name, spec))
}

// tenant asks for access to a virtual cluster, as vmesh kubeconfig create does.
func (s *server) tenant(t *testing.T, name string) *tenant {
	t.Helper()
	return s.as(t, name, "admin")
}

// as asks for access as a user with groups; without groups it is an administrator.
func (s *server) as(t *testing.T, name, user string, groups ...string) *tenant {
	t.Helper()
	key, keyPEM, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(map[string]any{
		"apiVersion": "vmesh.io/v1alpha1", "kind": "KubeconfigRequest", "spec": v1alpha1.KubeconfigRequestSpec{Request: csr, User: user, Groups: groups},
	})
	if err != nil {
		t.Fatal(err)
	}
	response := mustDo(t, rawClient(t, s.root), http.MethodPost, "/apis/vmesh.io/v1alpha1/virtualclusters/"+name+"/kubeconfig", string(body))
	var answer v1alpha1.KubeconfigRequest
	if err := json.Unmarshal(response.Body, &answer); err != nil {
		t.Fatal(err)
	}
	kubeconfig := apiserver.Kubeconfig(name, answer.Status.Server, user, answer.Status.CertificateAuthority, answer.Status.Certificate, keyPEM)
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*kubeconfig, file); err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		t.Fatal(err)
	}
	return &tenant{name: name, config: unlimited(config), kubeconfig: file, raw: rawClient(t, config)}
}

func rawClient(t *testing.T, config *rest.Config) *rawapi.Client {
	t.Helper()
	client, err := rawapi.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// namespace makes a namespace.
func (n *tenant) namespace(t *testing.T, name string) {
	t.Helper()
	mustDo(t, n.raw, http.MethodPost, "/api/v1/namespaces", fmt.Sprintf(`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":%q}}`, name))
}

// do sends a JSON request, or a merge patch.
func do(t *testing.T, client *rawapi.Client, method, path, body string) *rawapi.Response {
	t.Helper()
	// Cleanups send requests too, when the test's own context is done.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	contentType := "application/json"
	if method == http.MethodPatch {
		contentType = "application/merge-patch+json"
	}
	response, err := client.Do(ctx, rawapi.Request{Method: method, Path: path, ContentType: contentType, Body: []byte(body)})
	if err != nil {
		t.Fatal(err)
	}
	return response
}

// mustDo is do for what must succeed.
func mustDo(t *testing.T, client *rawapi.Client, method, path, body string) *rawapi.Response {
	t.Helper()
	response := do(t, client, method, path, body)
	if response.Status >= 300 {
		t.Fatalf("%s %s: %v", method, path, response)
	}
	return response
}

// refused checks that a request is refused with a status code and a message that has all
// the parts.
func refused(t *testing.T, response *rawapi.Response, status int, parts ...string) {
	t.Helper()
	if response.Status != status {
		t.Errorf("got %v, want status %d", response, status)
	}
	for _, part := range parts {
		if message := response.Text("message"); !strings.Contains(message, part) {
			t.Errorf("the message %q lacks %q", message, part)
		}
	}
}

// eventually waits until check has nothing to complain about.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-poll.C {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// virtualService is the body of a minimal VirtualService.
func virtualService(name string) string {
	return fmt.Sprintf(`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":%q},`+
		`"spec":{"hosts":["reviews"],"http":[{"route":[{"destination":{"host":"reviews"}}]}]}}`, name)
}

func virtualServices(namespace string) string {
	return "/apis/networking.istio.io/v1/namespaces/" + namespace + "/virtualservices"
}

// ownEtcd starts an etcd for servers of the test's own.
func ownEtcd(t *testing.T, dir string) *harness.Etcd {
	t.Helper()
	etcd, err := harness.StartEtcd(t.Context(), harness.EtcdOptions{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := etcd.Kill(); err != nil {
			t.Error(err)
		}
	})
	return etcd
}
