package apiserver

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/vmesh-io/vmesh/test/harness"
)

// webhook is a webhook server.
type webhook struct {
	*httptest.Server
	mu     sync.Mutex
	seen   []*admissionv1.AdmissionRequest
	answer func(*admissionv1.AdmissionRequest, *admissionv1.AdmissionResponse)
}

func newWebhook(t *testing.T, answer func(*admissionv1.AdmissionRequest, *admissionv1.AdmissionResponse)) *webhook {
	t.Helper()
	w := &webhook{answer: answer}
	w.Server = httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(req.Body).Decode(&review); err != nil || review.Request == nil {
			http.Error(rw, fmt.Sprint("no review: ", err), http.StatusBadRequest)
			return
		}
		w.mu.Lock()
		w.seen = append(w.seen, review.Request)
		w.mu.Unlock()
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
		if w.answer != nil {
			w.answer(review.Request, review.Response)
		}
		review.Request = nil
		_ = json.NewEncoder(rw).Encode(review)
	}))
	t.Cleanup(w.Close)
	return w
}

func (w *webhook) calls() []*admissionv1.AdmissionRequest {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.seen)
}

func (w *webhook) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = nil
}

// client is the clientConfig of the webhook, as JSON.
func (w *webhook) client() string {
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.Certificate().Raw})
	return fmt.Sprintf(`{"url":%q,"caBundle":%q}`, w.URL+"/review", base64.StdEncoding.EncodeToString(ca))
}

// away is the client of a webhook that is away. It is at no port where one was: the next one may
// be given that, and answers with the same certificate.
func away(t *testing.T) string {
	t.Helper()
	ports, err := harness.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`{"url":"https://127.0.0.1:%d/review"}`, ports[0])
}

func patches(ops string) func(*admissionv1.AdmissionRequest, *admissionv1.AdmissionResponse) {
	return func(_ *admissionv1.AdmissionRequest, r *admissionv1.AdmissionResponse) {
		jsonPatch := admissionv1.PatchTypeJSONPatch
		r.PatchType, r.Patch = &jsonPatch, []byte(ops)
	}
}

// answer is what a request was answered.
type answer struct {
	status   int
	body     string
	warnings []string
}

// message is what kubectl would show.
func (a answer) message() string {
	var s struct{ Message string }
	_ = json.Unmarshal([]byte(a.body), &s)
	return s.Message
}

// world is a virtual cluster, or the root.
type world struct {
	t      *testing.T
	root   *rest.Config
	name   string
	client *http.Client
}

func newWorld(t *testing.T, root *rest.Config, name string) *world {
	t.Helper()
	client, err := rest.HTTPClientFor(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	return &world{t, root, name, client}
}

func (w *world) do(method, path, contentType, body string) answer {
	w.t.Helper()
	url := w.root.Host
	if w.name != "" {
		url += "/clusters/" + w.name
	}
	req, err := http.NewRequestWithContext(w.t.Context(), method, url+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := w.client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer{resp.StatusCode, string(data), resp.Header.Values("Warning")}
}

func (w *world) post(path, body string) answer {
	w.t.Helper()
	return w.do(http.MethodPost, path, "application/json", body)
}

func (w *world) must(a answer) answer {
	w.t.Helper()
	if a.status >= 300 {
		w.t.Fatalf("answered %d %s", a.status, a.body)
	}
	return a
}

const registrations = "/apis/admissionregistration.k8s.io/v1/"

// register creates a webhook configuration with one webhook.
func (w *world) register(kind, name, annotations, hook string) {
	w.t.Helper()
	w.must(w.post(registrations+strings.ToLower(kind)+"webhookconfigurations", fmt.Sprintf(
		`{"apiVersion":"admissionregistration.k8s.io/v1","kind":"%sWebhookConfiguration","metadata":{"name":%q,"annotations":{%s}},"webhooks":[%s]}`, kind, name, annotations, hook)))
}

// unregister deletes what register made.
func (w *world) unregister(kind, name string) {
	w.t.Helper()
	w.must(w.do(http.MethodDelete, registrations+strings.ToLower(kind)+"webhookconfigurations/"+name, "application/json", ""))
}

// hook is a webhook of a configuration for config maps and virtual services; more goes
// into it besides, and stands against the defaults.
func hook(client, more string) string {
	out := map[string]any{
		"name": "hook.example.com", "sideEffects": "None", "admissionReviewVersions": []string{"v1"}, "clientConfig": json.RawMessage(client),
		"rules": []any{map[string]any{"apiGroups": []string{"", "networking.istio.io"}, "apiVersions": []string{"v1"}, "operations": []string{"*"}, "resources": []string{"configmaps", "virtualservices"}}},
	}
	if more != "" {
		if err := json.Unmarshal([]byte(more), &out); err != nil {
			panic(err)
		}
	}
	data, err := json.Marshal(out)
	if err != nil {
		panic(err)
	}
	return string(data)
}

// eventually repeats what the watch of the registration may be behind for.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// settled waits until a dry run reaches the webhook.
func (w *world) settled(hook *webhook) {
	w.t.Helper()
	eventually(w.t, "the webhook is called", func() bool {
		w.post("/api/v1/namespaces/default/configmaps?dryRun=All", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"probe","labels":{"probe":"yes"}}}`)
		return len(hook.calls()) > 0
	})
	hook.forget()
}

func startExtension(t *testing.T, adjust func(*Options)) (*rest.Config, func()) {
	t.Helper()
	o := NewOptions()
	o.DataDir, o.XDSAddress, o.SecurePort = t.TempDir(), "", freePort(t)
	o.TenantWebhookAllow = []string{"127.0.0.0/8"}
	if adjust != nil {
		adjust(o)
	}
	return start(t, o)
}

const configMaps = "/api/v1/namespaces/default/configmaps"

func configMap(name, more string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q}%s}`, name, more)
}

const route = `"hosts":["a"],"http":[{"route":[{"destination":{"host":"a"}}]}]`

func virtualService(version, name string) string {
	return fmt.Sprintf(`{"apiVersion":"networking.istio.io/%s","kind":"VirtualService","metadata":{"name":%q},"spec":{%s}}`, version, name, route)
}

func TestWebhooksActAsInKubernetes(t *testing.T) {
	root, stop := startExtension(t, nil)
	defer stop()
	clusters := 0
	// fresh is a virtual cluster of its own.
	fresh := func(t *testing.T) *world {
		clusters++
		name := fmt.Sprintf("w%d", clusters)
		createCluster(t, root, name, "{}")
		return newWorld(t, root, name)
	}

	t.Run("every way of writing is shown to them and can be changed by them", func(t *testing.T) {
		w := fresh(t)
		h := newWebhook(t, nil)
		h.answer = func(r *admissionv1.AdmissionRequest, resp *admissionv1.AdmissionResponse) {
			if r.Operation != admissionv1.Delete {
				patches(`[{"op":"add","path":"/metadata/labels","value":{"by":"webhook"}}]`)(r, resp)
			}
		}
		w.register("Mutating", "m", "", hook(h.client(), ""))
		w.settled(h)
		const services = "/apis/networking.istio.io/v1/namespaces/default/virtualservices"
		for _, c := range []struct {
			name, method, path, contentType, body string
			operation                             admissionv1.Operation
			subresource                           string
		}{
			{"a creation", http.MethodPost, services, "application/json", virtualService("v1", "a"), admissionv1.Create, ""},
			{"a creation by YAML", http.MethodPost, configMaps, "application/yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: b\n", admissionv1.Create, ""},
			{"a generated name", http.MethodPost, configMaps, "application/json", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"generateName":"g-"}}`, admissionv1.Create, ""},
			{"an apply that creates", http.MethodPatch, services + "/c?fieldManager=x", string(types.ApplyYAMLPatchType), virtualService("v1", "c"), admissionv1.Create, ""},
			{"an apply that changes", http.MethodPatch, services + "/c?fieldManager=x", string(types.ApplyYAMLPatchType),
				strings.Replace(virtualService("v1", "c"), `"hosts":["a"]`, `"hosts":["z"]`, 1), admissionv1.Update, ""},
			{"an update", http.MethodPut, configMaps + "/b", "application/json", configMap("b", `,"data":{"a":"b"}`), admissionv1.Update, ""},
			{"a merge patch", http.MethodPatch, services + "/a", string(types.MergePatchType), `{"spec":{"hosts":["y"]}}`, admissionv1.Update, ""},
			{"a strategic merge patch", http.MethodPatch, configMaps + "/b", string(types.StrategicMergePatchType), `{"data":{"a":"c"}}`, admissionv1.Update, ""},
			{"a JSON patch", http.MethodPatch, configMaps + "/b", string(types.JSONPatchType), `[{"op":"add","path":"/data/x","value":"y"}]`, admissionv1.Update, ""},
			{"a deletion", http.MethodDelete, configMaps + "/b", "application/json", "", admissionv1.Delete, ""},
		} {
			t.Run(c.name, func(t *testing.T) {
				h.forget()
				got := w.must(w.do(c.method, c.path, c.contentType, c.body))
				calls := h.calls()
				if len(calls) != 1 {
					t.Fatalf("%d calls", len(calls))
				}
				r := calls[0]
				if r.Operation != c.operation || r.SubResource != c.subresource || r.Namespace != "default" {
					t.Errorf("called with %s %s %s", r.Operation, r.SubResource, r.Namespace)
				}
				if r.UserInfo.Username == "" || r.Resource.Version != "v1" || r.RequestKind == nil {
					t.Errorf("called with %+v", r)
				}
				if (len(r.Object.Raw) > 0) != (c.operation != admissionv1.Delete) || (len(r.OldObject.Raw) > 0) != (c.operation != admissionv1.Create) {
					t.Errorf("objects: %s, before %s", r.Object.Raw, r.OldObject.Raw)
				}
				if c.operation == admissionv1.Delete {
					return
				}
				var sent struct{ APIVersion, Kind string }
				if err := json.Unmarshal(r.Object.Raw, &sent); err != nil || sent.Kind != r.Kind.Kind {
					t.Errorf("sent %s (%v)", r.Object.Raw, err)
				}
				if !strings.Contains(got.body, `"by":"webhook"`) {
					t.Errorf("answered %s", got.body)
				}
				var o struct {
					Metadata struct{ Name, ResourceVersion string }
				}
				if err := json.Unmarshal([]byte(got.body), &o); err != nil {
					t.Fatal(err)
				}
				path, _, _ := strings.Cut(c.path, "?")
				if c.method == http.MethodPost {
					path += "/" + o.Metadata.Name
				}
				// A read at a version waits for the watch cache. A write that began from an older state
				// there is tried anew and calls twice, in Kubernetes too.
				path += "?resourceVersion=" + o.Metadata.ResourceVersion
				if stored := w.must(w.do(http.MethodGet, path, "", "")); !strings.Contains(stored.body, `"by":"webhook"`) {
					t.Errorf("stored %s", stored.body)
				}
			})
		}
	})

	t.Run("a status is a subresource of its own", func(t *testing.T) {
		w := fresh(t)
		h := newWebhook(t, nil)
		w.register("Validating", "v", "", hook(h.client(), `{"rules":[{"apiGroups":["networking.istio.io"],"apiVersions":["*"],"operations":["*"],"resources":["virtualservices/status"]},
			{"apiGroups":[""],"apiVersions":["v1"],"operations":["*"],"resources":["configmaps"]}]}`))
		w.settled(h)
		const services = "/apis/networking.istio.io/v1/namespaces/default/virtualservices"
		w.must(w.post(services, virtualService("v1", "a")))
		if n := len(h.calls()); n != 0 {
			t.Fatalf("%d calls of a creation", n)
		}
		w.must(w.do(http.MethodPatch, services+"/a/status", string(types.MergePatchType), `{"status":{"observedGeneration":"1"}}`))
		if calls := h.calls(); len(calls) != 1 || calls[0].SubResource != "status" {
			t.Errorf("calls %v", calls)
		}
	})

	t.Run("each is sent the version that it knows", func(t *testing.T) {
		for _, c := range []struct {
			policy, knows string
			called        bool
		}{{"Equivalent", "v1", true}, {"Equivalent", "v1alpha3", true}, {"Exact", "v1", false}, {"Exact", "v1beta1", true}} {
			t.Run(c.policy+" "+c.knows, func(t *testing.T) {
				w := fresh(t)
				h := newWebhook(t, patches(`[{"op":"add","path":"/spec/hosts/1","value":"added"}]`))
				w.register("Mutating", "m", "", hook(h.client(), fmt.Sprintf(`{"matchPolicy":%q,"objectSelector":{"matchExpressions":[{"key":"probe","operator":"DoesNotExist"}]},
					"rules":[{"apiGroups":["networking.istio.io"],"apiVersions":[%q],"operations":["CREATE"],"resources":["virtualservices"]}]}`, c.policy, c.knows)))
				const services = "/apis/networking.istio.io/v1beta1/namespaces/default/virtualservices"
				n := 0
				var got answer
				create := func() bool {
					n++
					got = w.must(w.post(services, virtualService("v1beta1", fmt.Sprintf("a%d", n))))
					return len(h.calls()) > 0
				}
				if !c.called {
					for range 50 {
						create()
						time.Sleep(10 * time.Millisecond)
					}
					if len(h.calls()) > 0 {
						t.Error("it was called")
					}
					return
				}
				eventually(t, "it is called", create)
				r := h.calls()[0]
				if r.Kind.Version != c.knows || r.Resource.Version != c.knows || r.RequestKind.Version != "v1beta1" || r.RequestResource.Version != "v1beta1" ||
					!bytes.Contains(r.Object.Raw, []byte(`"apiVersion":"networking.istio.io/`+c.knows+`"`)) {
					t.Errorf("kind %v, asked %v: %s", r.Kind, r.RequestKind, r.Object.Raw)
				}
				if !strings.Contains(got.body, `"added"`) || !strings.Contains(got.body, `"apiVersion":"networking.istio.io/v1beta1"`) {
					t.Errorf("answered %s", got.body)
				}
			})
		}
	})

	t.Run("selectors and conditions choose", func(t *testing.T) {
		w := fresh(t)
		w.must(w.post("/api/v1/namespaces", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"watched","labels":{"watch":"yes"}}}`))
		const probed = `{"key":"probe","operator":"Exists"}`
		for i, c := range []struct {
			name, more, namespace, object string
			called                        bool
			status                        int
		}{
			{"a namespace that is selected", `{"namespaceSelector":{"matchLabels":{"watch":"yes"}}}`, "watched", "", true, 201},
			{"a namespace that is not", `{"namespaceSelector":{"matchLabels":{"watch":"yes"}}}`, "default", "", false, 201},
			{"an object that is selected", `{"objectSelector":{"matchLabels":{"a":"b"}}}`, "default", `,"labels":{"a":"b"}`, true, 201},
			{"an object that is not", `{"objectSelector":{"matchLabels":{"a":"b"}}}`, "default", `,"labels":{"a":"c"}`, false, 201},
			{"a condition that is met", `{"matchConditions":[{"name":"c","expression":"object.metadata.name.startsWith('x') && request.operation == 'CREATE'"}]}`, "default", "", true, 201},
			{"a condition that is not", `{"matchConditions":[{"name":"c","expression":"object.metadata.name == 'y'"}]}`, "default", "", false, 201},
			{"a condition about permissions", `{"matchConditions":[{"name":"c","expression":"authorizer.group('').resource('secrets').namespace('default').check('get').allowed()"}]}`, "default", "", true, 201},
			{"a condition that cannot be decided", `{"matchConditions":[{"name":"c","expression":"object.data.nothing == 'y'"}]}`, "default", "", false, 403},
			{"the same, when failures are ignored", `{"failurePolicy":"Ignore","matchConditions":[{"name":"c","expression":"object.data.nothing == 'y'"}]}`, "default", "", false, 201},
		} {
			t.Run(c.name, func(t *testing.T) {
				h := newWebhook(t, nil)
				// A second webhook of the configuration shows when the first is in force.
				mark := newWebhook(t, nil)
				w.register("Validating", "v", "", hook(h.client(), c.more)+","+hook(mark.client(), `{"name":"mark.example.com","objectSelector":{"matchExpressions":[`+probed+`]}}`))
				defer w.unregister("Validating", "v")
				eventually(t, "it is in force", func() bool {
					w.post("/api/v1/namespaces/kube-system/configmaps?dryRun=All", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"probe","labels":{"probe":"yes"}},"data":{"nothing":"z"}}`)
					w.post(configMaps+"?dryRun=All", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"probe","labels":{"probe":"yes"}},"data":{"nothing":"z"}}`)
					return len(mark.calls()) > 0
				})
				h.forget()
				got := w.post("/api/v1/namespaces/"+c.namespace+"/configmaps", fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x%d"%s}}`, i, c.object))
				if got.status != c.status {
					t.Errorf("answered %d %s", got.status, got.body)
				}
				if called := len(h.calls()) > 0; called != c.called {
					t.Errorf("called: %v", called)
				}
			})
		}
	})

	t.Run("what they answer is told", func(t *testing.T) {
		w := fresh(t)
		h := newWebhook(t, nil)
		h.answer = func(r *admissionv1.AdmissionRequest, resp *admissionv1.AdmissionResponse) {
			resp.Warnings = []string{"think twice"}
			resp.AuditAnnotations = map[string]string{"seen": "yes"}
			if strings.Contains(string(r.Object.Raw), `"bad"`) {
				resp.Allowed = false
				resp.Result = nil
			}
		}
		w.register("Validating", "v", "", hook(h.client(), ""))
		w.settled(h)
		got := w.must(w.post(configMaps, configMap("good", "")))
		if len(got.warnings) != 1 || !strings.Contains(got.warnings[0], "think twice") {
			t.Errorf("warnings %q", got.warnings)
		}
		got = w.post(configMaps, configMap("bad", ""))
		if got.status != http.StatusForbidden && got.status != http.StatusBadRequest || !strings.Contains(got.message(), `admission webhook "hook.example.com" denied the request`) {
			t.Errorf("answered %d %s", got.status, got.body)
		}
		if got := w.do(http.MethodGet, configMaps+"/bad", "", ""); got.status != http.StatusNotFound {
			t.Errorf("it is stored: %s", got.body)
		}
		h.forget()
		w.must(w.post(configMaps+"?dryRun=All", configMap("dry", "")))
		if calls := h.calls(); len(calls) != 1 || calls[0].DryRun == nil || !*calls[0].DryRun {
			t.Errorf("a dry run: %v", calls)
		}
	})

	t.Run("one that is away or slow fails what it guards, or not, as it says", func(t *testing.T) {
		gone := away(t)
		release := make(chan struct{})
		slow := newWebhook(t, func(*admissionv1.AdmissionRequest, *admissionv1.AdmissionResponse) { <-release })
		defer close(release)
		for _, c := range []struct {
			name, more string
			client     string
			kind       string
			status     int
			message    string
		}{
			{"away", `{"failurePolicy":"Fail"}`, gone, "Validating", 500, "failed calling webhook"},
			{"away and ignored", `{"failurePolicy":"Ignore"}`, gone, "Validating", 201, ""},
			{"away, mutating", `{"failurePolicy":"Fail"}`, gone, "Mutating", 500, "failed calling webhook"},
			{"away and ignored, mutating", `{"failurePolicy":"Ignore"}`, gone, "Mutating", 201, ""},
			{"slow", `{"failurePolicy":"Fail","timeoutSeconds":1}`, slow.client(), "Validating", 500, "deadline exceeded"},
			{"slow and ignored", `{"failurePolicy":"Ignore","timeoutSeconds":1}`, slow.client(), "Validating", 201, ""},
			{"another's certificate", `{"failurePolicy":"Fail"}`, strings.Replace(slow.client(), `"caBundle"`, `"caBundle":null,"x"`, 1), "Validating", 500, "certificate"},
			{"a service that is not there", `{"failurePolicy":"Fail"}`, `{"service":{"name":"nobody","namespace":"nowhere","path":"/x"}}`, "Validating", 500, "nobody.nowhere.svc"},
		} {
			t.Run(c.name, func(t *testing.T) {
				w := fresh(t)
				client := c.client
				if c.name == "another's certificate" {
					client = fmt.Sprintf(`{"url":%q}`, slow.URL)
				}
				mark := newWebhook(t, nil)
				w.register("Validating", "mark", "", hook(mark.client(), `{"objectSelector":{"matchLabels":{"probe":"yes"}}}`))
				w.register(c.kind, "v", "", hook(client, c.more))
				n := 0
				var got answer
				create := func() bool {
					n++
					began := time.Now()
					got = w.post(configMaps, configMap(fmt.Sprintf("x%d", n), ""))
					if took := time.Since(began); took > 20*time.Second {
						t.Fatalf("it took %s", took)
					}
					return got.status == c.status && strings.Contains(got.message(), c.message)
				}
				t.Cleanup(func() {
					if t.Failed() {
						t.Logf("the last creation was answered %d %s", got.status, got.body)
					}
				})
				eventually(t, fmt.Sprintf("a creation is answered %d %s", c.status, c.message), create)
			})
		}
	})

	t.Run("those that want to be called again are when something has changed", func(t *testing.T) {
		for _, c := range []struct {
			policy string
			calls  int
		}{{"Never", 1}, {"IfNeeded", 2}} {
			t.Run(c.policy, func(t *testing.T) {
				w := fresh(t)
				first, second := newWebhook(t, nil), newWebhook(t, patches(`[{"op":"add","path":"/data","value":{"by":"second"}}]`))
				w.register("Mutating", "a", "", hook(first.client(), fmt.Sprintf(`{"reinvocationPolicy":%q}`, c.policy)))
				w.register("Mutating", "b", "", hook(second.client(), ""))
				w.settled(second)
				first.forget()
				w.must(w.post(configMaps, configMap("x", "")))
				calls := first.calls()
				if len(calls) != c.calls || len(second.calls()) != 1 {
					t.Fatalf("%d and %d calls", len(calls), len(second.calls()))
				}
				if last := calls[len(calls)-1]; (c.calls == 2) != strings.Contains(string(last.Object.Raw), "second") {
					t.Errorf("called with %s", last.Object.Raw)
				}
			})
		}
	})

	t.Run("what they make of an object is held to its kind", func(t *testing.T) {
		const services = "/apis/networking.istio.io/v1/namespaces/default/virtualservices"
		for _, c := range []struct {
			name, patch string
			status      int
			want        string
		}{
			{"an unknown field is dropped", `[{"op":"add","path":"/spec/nonsense","value":1},{"op":"add","path":"/spec/gateways","value":["mesh"]}]`, 201, `"gateways":["mesh"]`},
			{"a wrong type is refused", `[{"op":"replace","path":"/spec/hosts","value":"a"}]`, 422, "spec.hosts"},
			{"what Istio does not take is refused", `[{"op":"remove","path":"/spec/http"}]`, 422, "http, tcp or tls must be provided"},
			{"a patch that does not fit", `[{"op":"replace","path":"/spec/none/at/all","value":1}]`, 500, ""},
			{"another name is refused", `[{"op":"replace","path":"/metadata/namespace","value":"other"}]`, 400, "namespace"},
		} {
			t.Run(c.name, func(t *testing.T) {
				w := fresh(t)
				h := newWebhook(t, patches(c.patch))
				w.register("Mutating", "m", "", hook(h.client(), `{"rules":[{"apiGroups":["networking.istio.io"],"apiVersions":["v1"],"operations":["CREATE"],"resources":["virtualservices"]}]}`))
				n := 0
				var got answer
				eventually(t, "it is called", func() bool {
					n++
					got = w.post(services, virtualService("v1", fmt.Sprintf("a%d", n)))
					return len(h.calls()) > 0
				})
				if got.status != c.status || !strings.Contains(got.body, c.want) || strings.Contains(got.body, `"nonsense"`) {
					t.Errorf("answered %d %s", got.status, got.body)
				}
			})
		}
	})

	t.Run("they do not stand in the way of their own removal", func(t *testing.T) {
		w := fresh(t)
		h := newWebhook(t, func(_ *admissionv1.AdmissionRequest, r *admissionv1.AdmissionResponse) { r.Allowed = false })
		w.register("Validating", "v", "", hook(h.client(), `{"rules":[{"apiGroups":["*"],"apiVersions":["*"],"operations":["*"],"resources":["*/*"]}]}`))
		w.settled(h)
		w.must(w.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", `{"apiVersion":"authorization.k8s.io/v1","kind":"SelfSubjectAccessReview","spec":{"nonResourceAttributes":{"path":"/","verb":"get"}}}`))
		w.unregister("Validating", "v")
		eventually(t, "it is gone", func() bool { return w.post(configMaps, configMap("x", "")).status == 201 })
	})

	t.Run("a namespace is emptied with their consent", func(t *testing.T) {
		w := fresh(t)
		w.must(w.post("/api/v1/namespaces", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"old"}}`))
		w.must(w.post("/api/v1/namespaces/old/configmaps", configMap("kept", "")))
		h := newWebhook(t, nil)
		h.answer = func(r *admissionv1.AdmissionRequest, resp *admissionv1.AdmissionResponse) {
			resp.Allowed = r.Name != "kept" || r.Operation != admissionv1.Delete
		}
		w.register("Validating", "v", "", hook(h.client(), ""))
		w.settled(h)
		w.must(w.do(http.MethodDelete, "/api/v1/namespaces/old", "application/json", ""))
		eventually(t, "the namespace says what it waits for", func() bool {
			return strings.Contains(w.do(http.MethodGet, "/api/v1/namespaces/old", "", "").body, `denied the request`)
		})
		if i := slices.IndexFunc(h.calls(), func(r *admissionv1.AdmissionRequest) bool { return r.Name == "kept" }); i < 0 ||
			h.calls()[i].UserInfo.Username != "system:serviceaccount:kube-system:namespace-controller" || len(h.calls()[i].OldObject.Raw) == 0 {
			t.Errorf("calls %+v", h.calls())
		}
		w.unregister("Validating", "v")
		eventually(t, "the namespace is gone", func() bool { return w.do(http.MethodGet, "/api/v1/namespaces/old", "", "").status == 404 })
	})

	t.Run("they see their own virtual cluster alone", func(t *testing.T) {
		a, b := fresh(t), fresh(t)
		h := newWebhook(t, func(_ *admissionv1.AdmissionRequest, r *admissionv1.AdmissionResponse) { r.Allowed = false })
		a.register("Validating", "v", "", hook(h.client(), ""))
		a.settled(h)
		b.must(b.post(configMaps, configMap("x", "")))
		r := newWorld(t, root, "")
		r.must(r.post(configMaps, configMap("x", "")))
		if n := len(h.calls()); n != 0 {
			t.Errorf("%d calls for others", n)
		}
		if got := a.post(configMaps, configMap("x", "")); got.status < 400 {
			t.Errorf("answered %d", got.status)
		}
	})
}

func TestWebhooksOfVirtualClustersMayNotBeEverywhere(t *testing.T) {
	root, stop := startExtension(t, func(o *Options) { o.TenantWebhookAllow = nil })
	defer stop()
	createCluster(t, root, "shop", "{}")
	h := newWebhook(t, nil)
	w := newWorld(t, root, "shop")
	w.register("Validating", "v", "", hook(h.client(), ""))
	n := 0
	eventually(t, "it is refused", func() bool {
		n++
		got := w.post(configMaps, configMap(fmt.Sprintf("x%d", n), ""))
		return got.status == 500 && strings.Contains(got.message(), "may not be at 127.0.0.1")
	})
	if n := len(h.calls()); n > 0 {
		t.Errorf("%d calls", n)
	}
	// The root's may.
	r := newWorld(t, root, "")
	r.register("Validating", "v", "", hook(h.client(), ""))
	r.settled(h)
}
