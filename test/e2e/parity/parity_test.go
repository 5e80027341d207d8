package parity

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vmesh-io/vmesh/test/e2e/rawapi"
	"github.com/vmesh-io/vmesh/test/harness"
)

var (
	peerKubeconfig  = flag.String("peer-kubeconfig", "", "an administrator's kubeconfig of a kube-apiserver 1.37 with Istio's CRDs; started here when empty")
	vmeshKubeconfig = flag.String("vmesh-kubeconfig", "", "an administrator's kubeconfig of a virtual cluster; started here when empty")
)

// kubeconfigs are those of the two servers, by the names that failures give them.
var kubeconfigs = map[string]string{}

const (
	theVmesh = "vmesh"
	thePeer  = "kube-apiserver"
)

func TestMain(m *testing.M) {
	harness.Main(func() (int, error) { return run(m) })
}

func run(m *testing.M) (code int, err error) {
	// The tools may have to be built first.
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "parity")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if kubeconfigs[theVmesh] = *vmeshKubeconfig; *vmeshKubeconfig == "" {
		vmesh, err := harness.StartVmesh(ctx, harness.VmeshOptions{
			DataDir:   filepath.Join(dir, "vmesh"),
			ExtraArgs: []string{"--analysis-budget=0"}, // the other side has no analyzers
		})
		if err != nil {
			return 1, err
		}
		defer vmesh.Stop(ctx)
		if kubeconfigs[theVmesh], err = vmesh.Kubeconfig(ctx, "default"); err != nil {
			return 1, err
		}
		if err := allowAllKinds(ctx, vmesh); err != nil {
			return 1, err
		}
	}
	if kubeconfigs[thePeer] = *peerKubeconfig; *peerKubeconfig == "" {
		etcd, err := harness.StartEtcd(ctx, harness.EtcdOptions{Dir: filepath.Join(dir, "etcd")})
		if err != nil {
			return 1, err
		}
		defer etcd.Stop(ctx)
		peer, err := harness.StartKubeAPIServer(ctx, harness.KubeAPIServerOptions{Dir: filepath.Join(dir, "kube-apiserver"), EtcdURL: etcd.URL})
		if err != nil {
			return 1, err
		}
		defer peer.Stop(ctx)
		kubeconfigs[thePeer] = peer.Kubeconfig
		if err := harness.InstallIstioCRDs(ctx, peer.Kubeconfig); err != nil {
			return 1, err
		}
	}
	return m.Run(), nil
}

// allowAllKinds switches on the kinds that a virtual cluster must be allowed by name.
func allowAllKinds(ctx context.Context, vmesh *harness.Vmesh) error {
	_, err := harness.Kubectl(ctx, vmesh.AdminKubeconfig, "", "patch", "virtualcluster", "default", "--type=merge", "--patch",
		`{"spec":{"guardRails":{"kinds":["EnvoyFilter","WasmPlugin","TrafficExtension","ProxyConfig"]}}}`)
	return err
}

// servers are clients of the two.
func servers(t *testing.T) map[string]*rawapi.Client {
	t.Helper()
	clients := map[string]*rawapi.Client{}
	for name, kubeconfig := range kubeconfigs {
		client, err := rawapi.New(kubeconfig)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.Close)
		clients[name] = client
	}
	return clients
}

func TestSameRequestsGetTheSameAnswers(t *testing.T) {
	tables, err := load()
	if err != nil {
		t.Fatal(err)
	}
	clients := servers(t)
	// Unlike any before it, should the servers outlive this run.
	run := fmt.Sprintf("p%x", time.Now().UnixMilli()&0xffffff)
	for table, cases := range tables {
		t.Run(table, func(t *testing.T) {
			for i, c := range cases {
				t.Run(c.Name, func(t *testing.T) {
					t.Parallel()
					namespace := fmt.Sprintf("%s-%s-%d", run, table, i)
					var peer, ours []rawapi.Response
					for name, client := range clients {
						responses := play(t, client, namespace, c)
						if name == thePeer {
							peer = responses
						} else {
							ours = responses
						}
					}
					ourRevisions, peerRevisions := revisions{}, revisions{}
					for i, step := range c.Steps {
						compare(t, step, normalize(&ours[i], ourRevisions), normalize(&peer[i], peerRevisions))
					}
				})
			}
		})
	}
}

// play sends a case to a server.
func play(t *testing.T, client *rawapi.Client, namespace string, c Case) []rawapi.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	created, err := ask(ctx, client, rawapi.Request{
		Method: http.MethodPost, Path: "/api/v1/namespaces", ContentType: "application/json",
		Body: fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":%q}}`, namespace),
	})
	if err != nil {
		t.Fatal(err)
	}
	if created.Status != http.StatusCreated {
		t.Fatalf("creating the namespace: %v", created)
	}
	var responses []rawapi.Response
	var rv, uid, token string
	for _, step := range c.Steps {
		if step.Do == nextSecond {
			waitForNextSecond(t)
			responses = append(responses, rawapi.Response{})
			continue
		}
		method, path, err := step.request(namespace)
		if err != nil {
			t.Fatal(err)
		}
		fill := strings.NewReplacer("$NS", namespace, "$RV", rv, "$UID", uid, "$CONTINUE", token).Replace
		request := rawapi.Request{Method: method, Path: fill(path), Accept: short(accepts, step.Accept), Body: []byte(fill(string(step.body())))}
		if len(request.Body) > 0 {
			request.ContentType = short(contentTypes, step.Type)
		}
		response, err := ask(ctx, client, request)
		if err != nil {
			t.Fatalf("%s: %v", step.Do, err)
		}
		responses = append(responses, *response)
		if at := response.Text("metadata", "resourceVersion"); at != "" {
			rv, token = at, response.Text("metadata", "continue")
		}
		if id := response.Text("metadata", "uid"); id != "" {
			uid = id
		}
	}
	return responses
}

// ask sends a request again for as long as the server says when to come back, as every
// Kubernetes client does: kube-apiserver refuses to list a custom resource while its watch
// cache starts. An error means that there was no answer.
func ask(ctx context.Context, client *rawapi.Client, request rawapi.Request) (*rawapi.Response, error) {
	for {
		response, err := client.Do(ctx, request)
		if err != nil || response.Status != http.StatusTooManyRequests {
			return response, err
		}
		after, err := strconv.Atoi(response.Header.Get("Retry-After"))
		if err != nil {
			return response, nil // it does not say when
		}
		select {
		case <-time.After(time.Duration(after) * time.Second):
		case <-ctx.Done():
			return response, nil
		}
	}
}

// waitForNextSecond waits until times that are kept in whole seconds are later than any
// that were written before.
func waitForNextSecond(t *testing.T) {
	now := time.Now()
	select {
	case <-time.After(now.Truncate(time.Second).Add(time.Second).Sub(now)):
	case <-t.Context().Done():
	}
}

func compare(t *testing.T, step Step, ours, peer answer) {
	t.Helper()
	if step.Differs != "" {
		if ours.Status != peer.Status {
			t.Errorf("%s\n%s answers\n%s%s answers\n%s", step.Do, theVmesh, render(ours), thePeer, render(peer))
		}
		return
	}
	if diff := cmp.Diff(render(peer), render(ours)); diff != "" {
		t.Errorf("%s (-%s +%s):\n%s", step.Do, thePeer, theVmesh, diff)
	}
}
