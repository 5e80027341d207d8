package host

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"

	"github.com/vmesh-io/vmesh/pkg/apiserver"
	"github.com/vmesh-io/vmesh/test/harness"
)

// newCluster makes a virtual cluster, past the host. access are lines of its spec.
func newCluster(t *testing.T, name, access string) {
	t.Helper()
	by(t, shared.root, fmt.Sprintf("apiVersion: vmesh.io/v1alpha1\nkind: VirtualCluster\nmetadata: {name: %s}\nspec:\n  access: %s\n", name, access), "apply", "-f", "-")
}

// grant lets users of the host do something there, by kubectl's arguments.
func grant(t *testing.T, name string, role, binding []string) {
	t.Helper()
	by(t, shared.admin, "", append([]string{"create", "clusterrole", name}, role...)...)
	by(t, shared.admin, "", append([]string{"create", "clusterrolebinding", name, "--clusterrole", name}, binding...)...)
}

func mayEnter(t *testing.T, cluster, user string, verbs string) {
	t.Helper()
	grant(t, "enter-"+cluster+"-"+user, []string{"--verb", verbs, "--resource", "virtualclusters.vmesh.io/proxy", "--resource-name", cluster}, []string{"--user", user})
}

const anyVerb = "get,create,update,patch,delete"

func virtualService(namespace, name, host string) string {
	return fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %s, namespace: %s}
spec:
  hosts: [%s]
  http:
  - route: [{destination: {host: %s}}]
`, name, namespace, host, host)
}

func TestTheHostsKubectlManagesTheFleet(t *testing.T) {
	by(t, shared.admin, "", "create", "clusterrolebinding", "fleet-viewers", "--clusterrole", "vmesh:viewer", "--group", "viewers")
	by(t, shared.admin, "", "create", "clusterrolebinding", "fleet-admin", "--clusterrole", "vmesh:admin", "--user", "olga")
	viewer, admin, nobody := newPerson(t, "vera", "viewers"), newPerson(t, "olga"), newPerson(t, "nina")

	out := viewer.does(t, "", "get", "virtualclusters,meshes", "-o", "name")
	if out != "virtualcluster.vmesh.io/default\nmesh.vmesh.io/default\n" {
		t.Errorf("the fleet is %q", out)
	}
	viewer.isRefused(t, "", []string{"delete", "virtualcluster", "default"}, []string{"cannot delete", "vera"})
	nobody.isRefused(t, "", []string{"get", "virtualclusters"}, []string{"cannot list", "nina"})

	manifest := "apiVersion: vmesh.io/v1alpha1\nkind: VirtualCluster\nmetadata: {name: fleet}\nspec: {namespaces: [fleet]}\n"
	admin.does(t, manifest, "apply", "-f", "-")
	admin.does(t, "", "wait", "--for=condition=Ready", "--timeout=30s", "virtualcluster/fleet")
	if out := admin.does(t, manifest, "apply", "-f", "-"); !strings.Contains(out, "unchanged") {
		t.Errorf("applied twice: %s", out)
	}
	if out := admin.does(t, "", "explain", "virtualcluster.spec.namespaces"); !strings.Contains(out, "FIELD: namespaces") {
		t.Errorf("explained as %s", out)
	}
	// What discovery tells is what those who write roles can know.
	if out := admin.does(t, "", "get", "--raw", "/apis/vmesh.io/v1alpha1"); !strings.Contains(out, `"virtualclusters/proxy"`) {
		t.Errorf("discovery does not know virtualclusters/proxy: %s", out)
	}
	admin.does(t, "", "delete", "virtualcluster", "fleet")
}

func TestAVirtualClusterThroughTheHostIsAWholeCluster(t *testing.T) {
	newCluster(t, "whole", "[{role: cluster-admin, subjects: [{kind: Group, name: whole-team}]}]")
	mayEnter(t, "whole", "wanda", anyVerb)
	p := newPerson(t, "wanda", "whole-team").in(t, "whole")

	for _, part := range []string{"wanda", "whole-team", "system:authenticated"} {
		if out := p.does(t, "", "auth", "whoami"); !strings.Contains(out, part) {
			t.Errorf("%q lacks %s", out, part)
		}
	}
	p.does(t, "", "create", "namespace", "shop")
	one, two := virtualService("shop", "reviews", "one.example"), virtualService("shop", "reviews", "two.example")
	if out := p.does(t, one, "apply", "--dry-run=server", "-f", "-"); !strings.Contains(out, "server dry run") {
		t.Errorf("dry run: %s", out)
	}
	p.isRefused(t, "", []string{"get", "vs", "reviews", "-n", "shop"}, []string{"NotFound"})
	p.does(t, one, "apply", "-f", "-")
	if out := p.does(t, one, "apply", "-f", "-"); !strings.Contains(out, "unchanged") {
		t.Errorf("applied twice: %s", out)
	}
	if out, err := p.tries(t, two, "diff", "-f", "-"); err == nil || !strings.Contains(out, "+    - two.example") && !strings.Contains(out, "+  - two.example") {
		t.Errorf("diff: %v\n%s", err, out)
	}
	// Who edits what somebody else has changed meanwhile is told.
	stale := p.does(t, "", "get", "vs", "reviews", "-n", "shop", "-o", "yaml")
	p.does(t, "", "label", "vs", "reviews", "-n", "shop", "changed=yes")
	p.isRefused(t, stale, []string{"replace", "-f", "-"}, []string{"Conflict"})
	p.isRefused(t, two, []string{"apply", "--server-side", "--field-manager=other", "-f", "-"}, []string{"conflict"})
	p.does(t, two, "apply", "--server-side", "--force-conflicts", "-f", "-")
	if out := p.does(t, "", "explain", "vs.spec.hosts"); !strings.Contains(out, "FIELD: hosts") {
		t.Errorf("explained as %s", out)
	}
	if out := p.does(t, "", "auth", "can-i", "delete", "vs", "-n", "shop"); out != "yes\n" {
		t.Errorf("may not delete: %s", out)
	}
	if out := p.does(t, "", "get", "vs", "-A", "--chunk-size=1", "-l", "changed=yes", "-o", "name"); out != "virtualservice.networking.istio.io/reviews\n" {
		t.Errorf("lists %q", out)
	}
	p.does(t, "", "delete", "namespace", "shop")
	p.isRefused(t, "", []string{"get", "vs", "reviews", "-n", "shop"}, []string{"NotFound"})
}

func TestWatchesThroughTheHostStream(t *testing.T) {
	newCluster(t, "watched", "[{role: cluster-admin, subjects: [{kind: User, name: wally}]}]")
	mayEnter(t, "watched", "wally", anyVerb)
	p := newPerson(t, "wally").in(t, "watched")
	config := p.config(t)
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, config.Host+"/apis/networking.istio.io/v1/virtualservices?watch=true&resourceVersion=0", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	events := make(chan string)
	go func() {
		defer close(events)
		for lines := bufio.NewScanner(response.Body); lines.Scan(); {
			var event struct {
				Type   string
				Object struct{ Metadata struct{ Name string } }
			}
			if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
				event.Type = err.Error()
			}
			select {
			case events <- event.Type + " " + event.Object.Metadata.Name:
			case <-ctx.Done():
				return
			}
		}
	}()
	// Each event comes while the connection stays open: nothing on the way waits for more.
	for _, step := range []struct {
		args []string
		want string
	}{
		{[]string{"create", "-f", "-"}, "ADDED a"}, {[]string{"label", "vs", "a", "-n", "default", "x=y"}, "MODIFIED a"}, {[]string{"delete", "vs", "a", "-n", "default"}, "DELETED a"},
	} {
		p.does(t, virtualService("default", "a", "a.example"), step.args...)
		select {
		case got := <-events:
			if got != step.want {
				t.Errorf("got %s, want %s", got, step.want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("no event %s", step.want)
		}
	}
}

func TestTheHostDecidesFirstAndThenTheVirtualCluster(t *testing.T) {
	newCluster(t, "guarded", "[{role: view, subjects: [{kind: User, name: gina}, {kind: User, name: gus}]}]")
	newCluster(t, "foreign", "[{role: cluster-admin, subjects: [{kind: Group, name: 'system:authenticated'}]}]")
	mayEnter(t, "guarded", "gina", anyVerb)
	mayEnter(t, "guarded", "grace", anyVerb)
	mayEnter(t, "guarded", "rita", "get")

	gina, gus, grace := newPerson(t, "gina"), newPerson(t, "gus"), newPerson(t, "grace")
	gina.in(t, "guarded").does(t, "", "get", "vs", "-n", "default")
	gina.in(t, "guarded").isRefused(t, virtualService("default", "a", "a.example"), []string{"create", "-f", "-"}, []string{"no rule of this virtual cluster allows it"})
	// Raw, since kubectl first reads discovery, and tells of a refusal there no more than that it was one.
	route := "/apis/networking.istio.io/v1/namespaces/default/virtualservices"
	gina.isRefused(t, "", []string{"get", "--raw", hostPrefix + "foreign/proxy" + route}, []string{"virtualclusters/proxy", "gina"})
	gus.isRefused(t, "", []string{"get", "--raw", hostPrefix + "guarded/proxy" + route}, []string{"virtualclusters/proxy", "gus"})
	grace.in(t, "guarded").isRefused(t, "", []string{"get", "vs", "-n", "default"}, []string{"no rule of this virtual cluster allows it"})

	// RBAC inside counts for the host's users and groups.
	inside := newPerson(t, "admin", "system:masters").in(t, "guarded")
	inside.does(t, "", "create", "clusterrolebinding", "grace", "--clusterrole", "vmesh:traffic-editor", "--user", "grace")
	grace.in(t, "guarded").does(t, virtualService("default", "a", "a.example"), "create", "-f", "-")
	// The verb of the request has to be allowed, too.
	inside.does(t, "", "create", "clusterrolebinding", "rita", "--clusterrole", "vmesh:traffic-editor", "--user", "rita")
	rita := newPerson(t, "rita").in(t, "guarded")
	rita.does(t, "", "get", "vs", "a", "-n", "default")
	rita.isRefused(t, "", []string{"delete", "--raw", hostPrefix + "guarded/proxy" + route + "/a"}, []string{"virtualclusters/proxy", "rita"})

	// To act as somebody else is the host's to allow; who one becomes is a user of the host.
	gus.isRefused(t, "", []string{"get", "--raw", hostPrefix + "guarded/proxy" + route, "--as", "gina"}, []string{"cannot impersonate"})
	if out := inside.does(t, "", "auth", "whoami", "--as", "gina", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.groups}"); out != `gina ["system:authenticated"]` {
		t.Errorf("acts as %s", out)
	}

	// Once the host takes the entrance away, it ends within the time for which vmesh remembers.
	by(t, shared.admin, "", "delete", "clusterrolebinding", "enter-guarded-gina")
	eventually(t, time.Minute, func() error {
		if _, err := gina.in(t, "guarded").tries(t, "", "get", "vs", "-n", "default"); err != nil {
			return nil
		}
		return fmt.Errorf("gina still gets in")
	})
}

// direct is a client of vmesh that goes past the host; certificate and key are names of files.
func direct(t *testing.T, certificate, key string) *http.Client {
	t.Helper()
	config := &tls.Config{InsecureSkipVerify: true} // who vmesh is does not matter here
	if certificate != "" {
		pair, err := tls.LoadX509KeyPair(certificate, key)
		if err != nil {
			t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	transport := &http.Transport{TLSClientConfig: config}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

// frontProxy is a client with the certificate of the host's front proxy.
func frontProxy(t *testing.T) *http.Client {
	return direct(t, filepath.Join(shared.host.PKI, "front-proxy.crt"), filepath.Join(shared.host.PKI, "front-proxy.key"))
}

// send asks for a path exactly as it is written.
func send(t *testing.T, client *http.Client, server, method, path string, headers http.Header) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, server, nil)
	if err != nil {
		t.Fatal(err)
	}
	spelled, query, _ := strings.Cut(path, "?")
	// With the host in it, or two slashes at the beginning would be taken for one.
	req.URL = &url.URL{Scheme: req.URL.Scheme, Host: req.URL.Host, Opaque: "//" + req.URL.Host + spelled, RawQuery: query}
	if headers != nil {
		req.Header = headers
	}
	response, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

const (
	hostPrefix = "/apis/vmesh.io/v1alpha1/virtualclusters/"
	configMaps = "/api/v1/namespaces/default/configmaps/secret-of-prey"
)

func TestPathsWithTwoMeaningsOpenNothing(t *testing.T) {
	newCluster(t, "mine", "[{role: cluster-admin, subjects: [{kind: User, name: pat}]}]")
	// pat would be let in by the virtual cluster; the host does not let it enter.
	newCluster(t, "prey", "[{role: cluster-admin, subjects: [{kind: User, name: pat}]}]")
	mayEnter(t, "mine", "pat", anyVerb)
	newPerson(t, "admin", "system:masters").in(t, "prey").does(t, "", "create", "configmap", "secret-of-prey", "-n", "default", "--from-literal=a=b")

	config := newPerson(t, "pat").config(t)
	through, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	past := http.Header{"X-Remote-User": {"pat"}, "X-Remote-Group": {"system:authenticated"}}
	server := fmt.Sprintf("https://127.0.0.1:%d", shared.vmesh.Port)
	if code, body := send(t, through, config.Host, http.MethodGet, hostPrefix+"mine/proxy/api/v1/namespaces/default", nil); code != http.StatusOK {
		t.Fatalf("pat does not get into its own: %d %s", code, body)
	}
	if code, body := send(t, frontProxy(t), server, http.MethodGet, "/clusters/mine/api/v1/namespaces/default", past); code != http.StatusOK {
		t.Fatalf("pat does not get into its own past the host: %d %s", code, body)
	}
	paths := []string{
		hostPrefix + "prey/proxy" + configMaps,
		hostPrefix + "mine/proxy/../../prey/proxy" + configMaps,
		hostPrefix + "mine/proxy/%2e%2e/%2e%2e/prey/proxy" + configMaps,
		hostPrefix + "mine/proxy/..%2f..%2fprey/proxy" + configMaps,
		hostPrefix + "mine%2f..%2fprey/proxy" + configMaps,
		hostPrefix + "mine/../prey/proxy" + configMaps,
		hostPrefix + "mine/proxy/clusters/prey" + configMaps,
		hostPrefix + "mine/proxy" + hostPrefix + "prey/proxy" + configMaps,
		hostPrefix + "mine/proxy//clusters/prey" + configMaps,
		hostPrefix + "/prey/proxy" + configMaps,
		hostPrefix + "prey//proxy" + configMaps,
		hostPrefix + "Prey/proxy" + configMaps,
		hostPrefix + "prey/PROXY" + configMaps,
		hostPrefix + "%70rey/proxy" + configMaps,
		hostPrefix + "mine/proxy" + hostPrefix + "prey",
		hostPrefix + "root/proxy/api/v1/namespaces",
		hostPrefix + "mine/proxy;/prey/proxy" + configMaps,
		hostPrefix + "prey%00/proxy" + configMaps,
		"/apis/vmesh.io/v1alpha1/proxy/virtualclusters/prey/proxy" + configMaps,
		"/apis/vmesh.io/v1alpha1/watch/virtualclusters/prey/proxy" + configMaps,
		"/apis/vmesh.io/v1alpha1/namespaces/default/virtualclusters/prey/proxy" + configMaps,
		"/apis/vmesh.io/v1alpha1/../../../clusters/prey" + configMaps,
		"/apis/networking.istio.io/v1/../../vmesh.io/v1alpha1/virtualclusters/prey/proxy" + configMaps,
		"/apis/networking.istio.io/v1/namespaces/../../../../clusters/prey" + configMaps,
		"/clusters/prey" + configMaps,
		"/clusters/mine/clusters/prey" + configMaps,
		"/clusters/mine/../prey" + configMaps,
		"/clusters/mine%2f..%2fprey" + configMaps,
		"/Clusters/prey" + configMaps,
		"//clusters/prey" + configMaps,
		"/./clusters/prey" + configMaps,
		"/api/v1/namespaces/../../../clusters/prey" + configMaps,
		"/api/v1/secrets",
	}
	for _, path := range paths {
		for name, try := range map[string]func() (int, string){
			"through the host":  func() (int, string) { return send(t, through, config.Host, http.MethodGet, path, nil) },
			"as the host's own": func() (int, string) { return send(t, frontProxy(t), server, http.MethodGet, path, past.Clone()) },
		} {
			if code, body := try(); code < 400 || strings.Contains(body, `"a":"b"`) {
				t.Errorf("%s %s: %d %s", path, name, code, body)
			}
		}
	}
}

func TestHeadersAreTheFrontProxysAlone(t *testing.T) {
	server := fmt.Sprintf("https://127.0.0.1:%d", shared.vmesh.Port)
	masters := http.Header{"X-Remote-User": {"admin"}, "X-Remote-Group": {"system:masters"}}
	newCluster(t, "headers", "[]")
	file := filepath.Join(t.TempDir(), "kubeconfig")
	team, err := shared.vmesh.Kubeconfig(t.Context(), "headers")
	if err != nil {
		t.Fatal(err)
	}
	config := (&person{team}).config(t)
	member, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := shared.host.WriteKubeconfig(file, "front-proxy"); err != nil {
		t.Fatal(err)
	}
	impostor, err := rest.HTTPClientFor(func() *rest.Config {
		c := (&person{file}).config(t)
		c.CAData, c.Insecure = nil, true
		return c
	}())
	if err != nil {
		t.Fatal(err)
	}
	const fleet = "/apis/vmesh.io/v1alpha1/virtualclusters"
	for _, c := range []struct {
		name   string
		client *http.Client
		path   string
		with   http.Header
		code   int
	}{
		{"the front proxy", frontProxy(t), fleet, masters, 200},
		{"the front proxy that names nobody", frontProxy(t), fleet, nil, 401},
		{"the front proxy that names a group only", frontProxy(t), fleet, http.Header{"X-Remote-Group": {"system:masters"}}, 401},
		{"nobody", direct(t, "", ""), fleet, masters, 403},
		{"nobody, elsewhere", direct(t, "", ""), "/clusters/headers/api/v1/namespaces", masters, 403},
		{"a member of a virtual cluster in the root", member, fleet, masters, 401},
		{"a member of a virtual cluster in another", member, "/clusters/default/api/v1/namespaces", masters, 401},
		{"the proxy's name from another authority", impostor, fleet, masters, 401},
		{"what is said of a virtual cluster", frontProxy(t), "/clusters/headers/api/v1/namespaces", http.Header{
			"X-Remote-User": {"eve"}, "X-Remote-Group": {"system:authenticated"}, "X-Remote-Extra-Vmesh.io%2fvirtual-Cluster": {"headers"}, "X-Remote-Extra-Vmesh.io%2Fvirtual-Cluster-Uid": {"x"},
		}, 403},
		{"to act as an administrator", frontProxy(t), "/clusters/headers/api/v1/namespaces", http.Header{
			"X-Remote-User": {"admin"}, "X-Remote-Group": {"system:masters"}, "Impersonate-User": {"eve"}, "Impersonate-Group": {"system:masters"},
		}, 403},
		{"to act as somebody who may not enter", frontProxy(t), "/clusters/headers/api/v1/namespaces", http.Header{
			"X-Remote-User": {"eve"}, "X-Remote-Group": {"system:authenticated"}, "Impersonate-User": {"admin"},
		}, 403},
	} {
		if code, body := send(t, c.client, server, http.MethodGet, c.path, c.with); code != c.code {
			t.Errorf("%s: got %d, want %d: %s", c.name, code, c.code, body)
		}
	}
	// A member's headers are passed over, and it stays who it is.
	code, body := send(t, member, server, http.MethodGet, "/clusters/headers/api/v1/namespaces/default", masters)
	if code != http.StatusOK {
		t.Errorf("a member with such headers at home: %d %s", code, body)
	}
}

func TestTheManifestsForVmeshInTheHostAreValid(t *testing.T) {
	root, err := harness.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	out := by(t, shared.admin, "", "apply", "--dry-run=server", "-k", filepath.Join(root, "manifests", "in-cluster"))
	if !strings.Contains(out, "statefulset.apps/vmesh created") {
		t.Errorf("applied as %s", out)
	}
	options := apiserver.NewOptions()
	flags := pflag.NewFlagSet("vmesh", pflag.ContinueOnError)
	options.AddFlags(flags)
	flags.String("config", "", "")
	if err := apiserver.LoadFile(flags, filepath.Join(root, "manifests", "in-cluster", "config.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := options.Validate(); err != nil {
		t.Error(err)
	}
}
