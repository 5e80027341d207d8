package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vmesh-io/vmesh/test/e2e/rawapi"
	"github.com/vmesh-io/vmesh/test/harness"
)

// collector is where OpenTelemetry spans are sent to.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer
	address string

	mu    sync.Mutex
	spans []*tracev1.Span
}

func startCollector(t *testing.T) *collector {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{address: l.Addr().String()}
	server := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(server, c)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *collector) Export(_ context.Context, r *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, of := range r.ResourceSpans {
		for _, scope := range of.ScopeSpans {
			c.spans = append(c.spans, scope.Spans...)
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// all are the spans so far.
func (c *collector) all() []*tracev1.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spans[:len(c.spans):len(c.spans)]
}

func attributeOf(span *tracev1.Span, key string) string {
	for _, a := range span.Attributes {
		if a.Key == key {
			return a.Value.GetStringValue()
		}
	}
	return ""
}

func writeFile(t *testing.T, name, content string) string {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// encryptionConfig encrypts resources with the first of the keys that are named.
func encryptionConfig(resources string, keys ...string) string {
	var list []string
	for _, name := range keys {
		list = append(list, fmt.Sprintf("{name: %s, secret: %s}", name, base64.StdEncoding.EncodeToString([]byte((name + strings.Repeat("0123456789", 4))[:32]))))
	}
	return fmt.Sprintf("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [%s]\n  providers:\n"+
		"  - secretbox: {keys: [%s]}\n  - identity: {}\n", resources, strings.Join(list, ", "))
}

const auditPolicy = `
apiVersion: audit.k8s.io/v1
kind: Policy
omitManagedFields: true
rules:
- level: None
  nonResourceURLs: ["/readyz*"]
- level: Metadata
  resources: [{group: "", resources: [secrets]}, {group: vmesh.io, resources: [virtualclusters/kubeconfig]}]
- level: None
  resources: [{group: "", resources: [events]}]
- level: RequestResponse
`

// traced is a server that leaves as many traces as it can.
type traced struct {
	*harness.Vmesh
	collector          *collector
	dir, auditLog, log string
	root, tenant       *rest.Config
	rootAPI, api       *rawapi.Client
	kubeconfig         string
}

func startTraced(t *testing.T) *traced {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	dir := t.TempDir()
	s := &traced{collector: startCollector(t), dir: dir, auditLog: filepath.Join(dir, "audit.log"), log: filepath.Join(dir, "server.log")}
	var err error
	s.Vmesh, err = harness.StartVmesh(ctx, harness.VmeshOptions{DataDir: filepath.Join(dir, "data"), LogFile: s.log, ExtraArgs: []string{
		"-v=10",
		"--audit-policy-file", writeFile(t, filepath.Join(dir, "policy.yaml"), auditPolicy), "--audit-log-path", s.auditLog,
		"--tracing-config-file", writeFile(t, filepath.Join(dir, "tracing.yaml"), fmt.Sprintf(
			"apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration\nendpoint: %s\nsamplingRatePerMillion: 1000000\n", s.collector.address)),
		"--encryption-provider-config", writeFile(t, filepath.Join(dir, "encryption.yaml"), encryptionConfig("secrets", "one")),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	if s.kubeconfig, err = s.Kubeconfig(ctx, "default"); err != nil {
		t.Fatal(err)
	}
	for file, config := range map[string]**rest.Config{s.AdminKubeconfig: &s.root, s.kubeconfig: &s.tenant} {
		if *config, err = clientcmd.BuildConfigFromFlags("", file); err != nil {
			t.Fatal(err)
		}
	}
	s.rootAPI, s.api = rawClient(t, s.root), rawClient(t, s.tenant)
	return s
}

// events are the audit events so far.
func (s *traced) events(t *testing.T) []auditv1.Event {
	t.Helper()
	data, err := os.ReadFile(s.auditLog)
	if err != nil {
		t.Fatal(err)
	}
	var events []auditv1.Event
	for _, line := range bytes.Split(bytes.TrimSpace(data), []byte("\n")) {
		var event auditv1.Event
		if err := json.Unmarshal(line, &event); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		events = append(events, event)
	}
	return events
}

func send(t *testing.T, client *rawapi.Client, method, path, contentType, body string) *rawapi.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	response, err := client.Do(ctx, rawapi.Request{Method: method, Path: path, ContentType: contentType, Body: []byte(body)})
	if err != nil {
		t.Fatal(err)
	}
	return response
}

// TestTracesSayWhereAndKeepSecrets runs a server at its most talkative through all that is
// done to secrets, right and wrong.
func TestTracesSayWhereAndKeepSecrets(t *testing.T) {
	s := startTraced(t)
	const canary = "Kanarienvogel-4711-im-Bergwerk"
	inBase64 := base64.StdEncoding.EncodeToString([]byte(canary))
	const secrets = "/api/v1/namespaces/default/secrets"
	secret := func(name, data string) string {
		return fmt.Sprintf(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":%q},%s}`, name, data)
	}
	good := `"data":{"password":"` + inBase64 + `"}`

	for _, c := range []struct {
		name, method, path, contentType, body string
		status                                int
	}{
		{"a creation", http.MethodPost, secrets, "application/json", secret("a", good), 201},
		{"a second creation", http.MethodPost, secrets, "application/json", secret("a", good), 409},
		{"a creation in YAML", http.MethodPost, secrets, "application/yaml", secret("y", good), 201},
		{"an apply", http.MethodPatch, secrets + "/b?fieldManager=x", "application/apply-patch+yaml", secret("b", `"stringData":{"password":"`+canary+`"}`), 201},
		{"another apply", http.MethodPatch, secrets + "/b?fieldManager=y", "application/apply-patch+yaml", secret("b", `"data":{"password":"`+inBase64+`"}`), 200},
		{"an apply of another type", http.MethodPatch, secrets + "/b?fieldManager=y", "application/apply-patch+yaml", secret("b", `"data":{"password":["`+canary+`"]}`), 0},
		{"an update", http.MethodPut, secrets + "/a", "application/json", secret("a", `"stringData":{"password":"`+canary+`","more":"`+canary+`"}`), 200},
		{"a merge patch", http.MethodPatch, secrets + "/a", "application/merge-patch+json", `{"stringData":{"third":"` + canary + `"}}`, 200},
		{"a strategic merge patch", http.MethodPatch, secrets + "/a", "application/strategic-merge-patch+json", `{"stringData":{"fourth":"` + canary + `"}}`, 0},
		{"a JSON patch whose test fails", http.MethodPatch, secrets + "/a", "application/json-patch+json", `[{"op":"test","path":"/data/password","value":"` + canary + `"}]`, 422},
		{"data that is not base64", http.MethodPost, secrets, "application/json", secret("c", `"data":{"password":"`+canary+`!"}`), 0},
		{"data of another type", http.MethodPost, secrets, "application/json", secret("c", `"data":["`+canary+`"]`), 0},
		{"data that is a text", http.MethodPost, secrets, "application/json", secret("c", `"data":"`+canary+`"`), 0},
		{"a number too many", http.MethodPost, secrets, "application/json", secret("c", `"data":{"n":5},"stringData":{"p":"`+canary+`"}`), 0},
		{"a body that ends too soon", http.MethodPost, secrets, "application/json", secret("c", good)[:80] + canary, 400},
		{"a field that there is not, strictly", http.MethodPost, secrets + "?fieldValidation=Strict", "application/json", secret("c", `"password":"`+canary+`"`), 400},
		{"a key that cannot be", http.MethodPost, secrets, "application/json", secret("c", `"stringData":{"not a key":"`+canary+`"}`), 422},
		{"a TLS secret without a key", http.MethodPost, secrets, "application/json", secret("c", `"type":"kubernetes.io/tls","stringData":{"tls.crt":"`+canary+`"}`), 0},
		{"an update of what is immutable", http.MethodPost, secrets, "application/json", secret("i", `"immutable":true,`+good), 201},
		{"an update of what is immutable", http.MethodPut, secrets + "/i", "application/json", secret("i", `"immutable":true,"stringData":{"password":"`+canary+`2"}`), 0},
		{"another type", http.MethodPut, secrets + "/a", "application/json", secret("a", `"type":"other",`+good), 422},
		{"a list", http.MethodGet, secrets, "", "", 200},
		{"a watch", http.MethodGet, secrets + "?watch=1&timeoutSeconds=1", "", "", 200},
		{"a table", http.MethodGet, secrets + "/a", "", "", 200},
		{"a deletion", http.MethodDelete, secrets + "/b", "", "", 200},
		{"a deletion of all", http.MethodDelete, secrets + "?labelSelector=x%3Dy", "", "", 200},
	} {
		response := send(t, s.api, c.method, c.path, c.contentType, c.body)
		if c.status != 0 && response.Status != c.status {
			t.Errorf("%s: got %v, want %d", c.name, response, c.status)
		}
	}
	// Tokens, in a header and by mistake in other places.
	bearer := rest.AnonymousClientConfig(s.tenant)
	bearer.BearerToken = canary
	if response := send(t, rawClient(t, bearer), http.MethodGet, secrets, "", ""); response.Status < 401 || response.Status > 403 {
		t.Errorf("a token that is none: got %v", response)
	}
	basic := rest.AnonymousClientConfig(s.tenant)
	basic.Username, basic.Password = "admin", canary
	if response := send(t, rawClient(t, basic), http.MethodGet, secrets, "", ""); response.Status < 401 || response.Status > 403 {
		t.Errorf("a password: got %v", response)
	}
	if response := send(t, s.rootAPI, http.MethodPost, "/apis/vmesh.io/v1alpha1/virtualclusters/default/kubeconfig", "application/json",
		`{"apiVersion":"vmesh.io/v1alpha1","kind":"KubeconfigRequest","spec":{"user":"x","request":"`+inBase64+`"}}`); response.Status < 400 {
		t.Errorf("a request that is none: got %v", response)
	}
	// What is no secret is recorded in full, by each way of writing.
	const maps = "/api/v1/namespaces/default/configmaps"
	configMap := func(name, text string) string {
		return fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q},"data":{"text":%q}}`, name, text)
	}
	for _, c := range [][4]string{
		{http.MethodPost, maps, "application/json", configMap("m1", "created")},
		{http.MethodPatch, maps + "/m2?fieldManager=x", "application/apply-patch+yaml", configMap("m2", "applied")},
		{http.MethodPut, maps + "/m1", "application/json", configMap("m1", "updated")},
		{http.MethodPatch, maps + "/m1", "application/merge-patch+json", `{"data":{"text":"patched"}}`},
		{http.MethodGet, maps, "", ""},
	} {
		if response := send(t, s.api, c[0], c[1], c[2], c[3]); response.Status >= 300 {
			t.Errorf("%s %s: got %v", c[0], c[1], response)
		}
	}
	stray := rest.CopyConfig(s.tenant)
	stray.Host = strings.Replace(stray.Host, "/clusters/default", "/clusters/elsewhere", 1)
	if response := send(t, rawClient(t, stray), http.MethodGet, "/api?x=1", "", ""); response.Status != 401 {
		t.Errorf("another virtual cluster: got %v", response)
	}
	metrics := mustDo(t, s.rootAPI, http.MethodGet, "/metrics", "")
	if err := s.Stop(t.Context()); err != nil { // flushes
		t.Fatal(err)
	}

	t.Run("secrets are in no trace", func(t *testing.T) {
		var spans bytes.Buffer
		for _, span := range s.collector.all() {
			fmt.Fprintln(&spans, span)
		}
		places := map[string][]byte{"the metrics": metrics.Body, "the spans": spans.Bytes()}
		err := filepath.WalkDir(s.dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			places[path], err = os.ReadFile(path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(places[s.log]) < 10000 || !bytes.Contains(places[s.log], []byte("httplog.go")) {
			t.Errorf("the log has only %d bytes", len(places[s.log]))
		}
		for place, content := range places {
			for _, secret := range []string{canary, inBase64[:len(inBase64)-4]} {
				if at := bytes.Index(content, []byte(secret)); at >= 0 {
					if !strings.Contains(place, "etcd") {
						t.Errorf("%s has it: ...%q...", place, content[max(0, at-700):min(len(content), at+100)])
						continue
					}
					t.Errorf("%s has it", place)
				}
			}
		}
	})

	t.Run("audit events", func(t *testing.T) {
		seen := map[string]bool{}
		for _, e := range s.events(t) {
			cluster := e.Annotations["vmesh.io/virtual-cluster"]
			want := "root"
			if rest, ok := strings.CutPrefix(e.RequestURI, "/clusters/"); ok {
				want, _, _ = strings.Cut(rest, "/")
			}
			if cluster != want {
				t.Errorf("%s of %s is annotated as of %q", e.Stage, e.RequestURI, cluster)
			}
			seen[want] = true
			if strings.Contains(e.RequestURI, "secrets") {
				if e.Level != "Metadata" || e.RequestObject != nil || e.ResponseObject != nil {
					t.Errorf("%s is recorded as %s", e.RequestURI, e.Level)
				}
			}
			if strings.Contains(e.RequestURI, "configmaps") && e.Stage == "ResponseComplete" {
				var request, response string
				if e.RequestObject != nil {
					request = string(e.RequestObject.Raw)
				}
				if e.ResponseObject != nil {
					response = string(e.ResponseObject.Raw)
				}
				text := map[string]string{"create": "created", "update": "updated", "patch": `"text"`}[e.Verb]
				if !strings.Contains(request, text) || !strings.Contains(response, `"text":"`) || !strings.Contains(response, `"uid":"`) {
					t.Errorf("%s %s is recorded with %s and %s", e.Verb, e.RequestURI, request, response)
				}
				if strings.Contains(response, "managedFields") {
					t.Errorf("%s %s is recorded with managed fields: %s", e.Verb, e.RequestURI, response)
				}
				seen[e.Verb] = true
			}
			if e.RequestURI == "/clusters/elsewhere/api?x=1" && e.ResponseStatus != nil && e.ResponseStatus.Code == 401 {
				seen["unauthorized"] = true
			}
		}
		for _, want := range []string{"root", "default", "elsewhere", "create", "update", "patch", "list", "unauthorized"} {
			if !seen[want] {
				t.Errorf("no event: %s", want)
			}
		}
	})

	t.Run("spans", func(t *testing.T) {
		byID := map[string]*tracev1.Span{}
		for _, span := range s.collector.all() {
			byID[string(span.SpanId)] = span
		}
		path := func(span *tracev1.Span) (names []string) {
			for ; span != nil; span = byID[string(span.ParentSpanId)] {
				names = append([]string{span.Name}, names...)
			}
			return names
		}
		seen := map[string]bool{}
		for _, span := range byID {
			seen[strings.Join(path(span), " > ")] = true
			if len(span.ParentSpanId) > 0 {
				continue
			}
			target := attributeOf(span, "http.target")
			want := "root"
			if strings.HasPrefix(target, "/clusters/default/") {
				want = "default"
			}
			if got := attributeOf(span, "vmesh.io/virtual-cluster"); got != want {
				t.Errorf("%s has virtual cluster %q", target, got)
			}
		}
		for _, want := range []string{
			"POST /api/v1/namespaces/{:namespace}/configmaps > Create > Create etcd3",
			"PATCH /api/v1/namespaces/{:namespace}/configmaps/{:name} > Patch > GuaranteedUpdate etcd3",
			"PUT /api/v1/namespaces/{:namespace}/configmaps/{:name} > Update > GuaranteedUpdate etcd3",
		} {
			if !seen[want] {
				t.Errorf("no span %s; there are %d others", want, len(seen))
				for other := range seen {
					t.Log(other)
				}
			}
		}
	})
}
