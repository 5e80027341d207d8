package openapi

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	openapi_v3 "github.com/google/gnostic-models/openapiv3"
	"google.golang.org/protobuf/proto"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/kube-openapi/pkg/handler3"

	"github.com/vmesh-io/vmesh/pkg/apis/builtin"
	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/kind"
)

// tested is one service for all tests, as documents are built once.
var tested = sync.OnceValues(func() (http.Handler, error) {
	core, err := builtin.Kinds()
	if err != nil {
		return nil, err
	}
	mesh, err := istio.Kinds()
	if err != nil {
		return nil, err
	}
	m := mux.NewPathRecorderMux("test")
	Install(m, append(core, mesh...))
	return m, nil
})

func get(t testing.TB, path string, header ...string) *http.Response {
	t.Helper()
	handler, err := tested()
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	return w.Result()
}

func body(t testing.TB, r *http.Response) []byte {
	t.Helper()
	data, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// paths lists the v3 documents with their URLs.
func paths(t testing.TB) map[string]string {
	t.Helper()
	var list handler3.OpenAPIV3Discovery
	if err := json.Unmarshal(body(t, get(t, "/openapi/v3")), &list); err != nil {
		t.Fatal(err)
	}
	urls := map[string]string{}
	for path, v := range list.Paths {
		urls[path] = v.ServerRelativeURL
	}
	return urls
}

func TestEveryGroupVersionHasADocument(t *testing.T) {
	urls := paths(t)
	for _, want := range []string{"api/v1", "apis/networking.istio.io/v1", "apis/networking.istio.io/v1alpha3", "apis/discovery.k8s.io/v1", "apis/apiextensions.k8s.io/v1"} {
		if urls[want] == "" {
			t.Errorf("%s is not listed", want)
		}
	}
	for path, url := range urls {
		r := get(t, url)
		if r.StatusCode != http.StatusOK || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %s, %s", path, r.Status, r.Header.Get("Content-Type"))
		}
		if !strings.Contains(r.Header.Get("Cache-Control"), "immutable") {
			t.Errorf("%s may not be kept by its hash", path)
		}
	}
}

func TestEveryReferenceLeadsSomewhere(t *testing.T) {
	check := func(t *testing.T, data []byte, prefix string, models func(map[string]any) any) {
		var doc map[string]any
		if err := json.Unmarshal(data, &doc); err != nil {
			t.Fatal(err)
		}
		known, ok := models(doc).(map[string]any)
		if !ok || len(known) == 0 {
			t.Fatal("there are no models")
		}
		for _, ref := range references(doc) {
			name, ok := strings.CutPrefix(ref, prefix)
			if !ok && strings.HasPrefix(ref, "#/parameters/") {
				continue
			}
			if _, found := known[name]; !found {
				t.Errorf("%s leads nowhere", ref)
			}
		}
	}
	for path, url := range paths(t) {
		t.Run(path, func(t *testing.T) {
			check(t, body(t, get(t, url)), "#/components/schemas/", func(doc map[string]any) any { return doc["components"].(map[string]any)["schemas"] })
		})
	}
	t.Run("v2", func(t *testing.T) {
		check(t, body(t, get(t, "/openapi/v2")), "#/definitions/", func(doc map[string]any) any { return doc["definitions"] })
	})
}

func references(v any) []string {
	var found []string
	switch v := v.(type) {
	case map[string]any:
		for key, member := range v {
			if ref, ok := member.(string); ok && key == "$ref" {
				found = append(found, ref)
			}
			found = append(found, references(member)...)
		}
	case []any:
		for _, item := range v {
			found = append(found, references(item)...)
		}
	}
	return found
}

func TestBuiltinKindsAreDescribedForPatches(t *testing.T) {
	var doc struct {
		Paths      map[string]map[string]json.RawMessage
		Components struct {
			Schemas map[string]struct {
				GVK        []map[string]string `json:"x-kubernetes-group-version-kind"`
				Properties map[string]struct {
					Strategy string   `json:"x-kubernetes-patch-strategy"`
					Key      string   `json:"x-kubernetes-patch-merge-key"`
					Keys     []string `json:"x-kubernetes-list-map-keys"`
				}
			}
		}
	}
	if err := json.Unmarshal(body(t, get(t, "/openapi/v3/api/v1")), &doc); err != nil {
		t.Fatal(err)
	}
	ports := doc.Components.Schemas["io.k8s.api.core.v1.ServiceSpec"].Properties["ports"]
	if ports.Strategy != "merge" || ports.Key != "port" || !slices.Equal(ports.Keys, []string{"port", "protocol"}) {
		t.Errorf("ports are merged by %+v", ports)
	}
	if gvk := doc.Components.Schemas["io.k8s.api.core.v1.Service"].GVK; len(gvk) != 1 || gvk[0]["kind"] != "Service" || gvk[0]["group"] != "" {
		t.Errorf("a service is a %v", gvk)
	}
	if doc.Components.Schemas["io.k8s.api.core.v1.ServiceList"].Properties == nil {
		t.Error("there is no list of services")
	}
	patch := string(doc.Paths["/api/v1/namespaces/{namespace}/services/{name}"]["patch"])
	for _, want := range []string{"application/strategic-merge-patch+json", "application/apply-patch+yaml", "application/merge-patch+json"} {
		if !strings.Contains(patch, want) {
			t.Errorf("services cannot be patched by %s", want)
		}
	}
}

func TestDocumentsComeInTheFormThatIsAskedFor(t *testing.T) {
	for _, c := range []struct {
		path, accept, want string
		status             int
	}{
		{"/openapi/v2", "", "application/json", http.StatusOK},
		{"/openapi/v2", "application/json", "application/json", http.StatusOK},
		{"/openapi/v2", "text/html, */*;q=0.1", "application/json", http.StatusOK},
		{"/openapi/v2", protobufV2, protobufV2, http.StatusOK},
		{"/openapi/v2", protobufV2Old, protobufV2, http.StatusOK},
		{"/openapi/v2", protobufV2 + ";q=0.5, application/json", "application/json", http.StatusOK},
		{"/openapi/v3/apis/coordination.k8s.io/v1", protobufV3, protobufV3, http.StatusOK},
		{"/openapi/v3/apis/coordination.k8s.io/v1", protobufV2, "", http.StatusNotAcceptable},
		{"/openapi/v3", "application/json", "application/json", http.StatusOK},
		{"/openapi/v3/", "", "application/json", http.StatusOK},
		{"/openapi/v3/apis/nobody.example.com/v1", "", "text/plain; charset=utf-8", http.StatusNotFound},
	} {
		r := get(t, c.path, "Accept", c.accept)
		if r.StatusCode != c.status || r.Header.Get("Content-Type") != c.want {
			t.Errorf("%s as %q: %s, %s", c.path, c.accept, r.Status, r.Header.Get("Content-Type"))
		}
		if r.StatusCode == http.StatusOK && !strings.Contains(r.Header.Get("Vary"), "Accept") {
			t.Errorf("%s: a cache may mix forms up", c.path)
		}
	}
}

func TestProtobufSaysTheSame(t *testing.T) {
	var v2 openapi_v2.Document
	if err := proto.Unmarshal(body(t, get(t, "/openapi/v2", "Accept", protobufV2)), &v2); err != nil {
		t.Fatal(err)
	}
	var v3 openapi_v3.Document
	if err := proto.Unmarshal(body(t, get(t, "/openapi/v3/api/v1", "Accept", protobufV3)), &v3); err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, d := range v2.GetDefinitions().GetAdditionalProperties() {
		names[d.GetName()] = true
	}
	for _, want := range []string{"io.k8s.api.core.v1.Pod", "io.istio.networking.v1.VirtualService", "io.istio.networking.v1alpha3.VirtualService"} {
		if !names[want] {
			t.Errorf("v2 lacks %s", want)
		}
	}
	if len(v3.GetPaths().GetPath()) == 0 {
		t.Error("v3 has no paths")
	}
}

func TestClientsKeepWhatTheyHave(t *testing.T) {
	first := get(t, "/openapi/v2")
	etag := first.Header.Get("Etag")
	if len(etag) < 10 {
		t.Fatalf("the ETag is %q", etag)
	}
	if again := get(t, "/openapi/v2", "If-None-Match", etag); again.StatusCode != http.StatusNotModified {
		t.Errorf("the same document is sent again: %s", again.Status)
	}
	if other := get(t, "/openapi/v2", "If-None-Match", `"other"`); other.StatusCode != http.StatusOK {
		t.Errorf("another ETag gives %s", other.Status)
	}
}

func TestAnOldHashLeadsToTheNewOne(t *testing.T) {
	url := paths(t)["api/v1"]
	r := get(t, "/openapi/v3/api/v1?hash=OLD")
	if r.StatusCode != http.StatusMovedPermanently || r.Header.Get("Location") != url {
		t.Errorf("%s to %q, want %q", r.Status, r.Header.Get("Location"), url)
	}
}

func TestCompressionIsUpToTheClient(t *testing.T) {
	plain := body(t, get(t, "/openapi/v3/api/v1"))
	for _, c := range []struct {
		accept string
		want   string
	}{{"gzip", "gzip"}, {"br, gzip;q=0.5", "gzip"}, {"gzip;q=0", ""}, {"identity", ""}} {
		r := get(t, "/openapi/v3/api/v1", "Accept-Encoding", c.accept)
		if got := r.Header.Get("Content-Encoding"); got != c.want {
			t.Errorf("%q gives %q", c.accept, got)
			continue
		}
		data := body(t, r)
		if c.want == "gzip" {
			z, err := gzip.NewReader(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			if data, err = io.ReadAll(z); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(data, plain) {
			t.Errorf("%q gives another document", c.accept)
		}
	}
}

func TestDocumentsAreTheSameInEveryProcess(t *testing.T) {
	build := func() string {
		kinds, err := builtin.Kinds()
		if err != nil {
			t.Fatal(err)
		}
		hash, err := New(kinds).v2.hash()
		if err != nil {
			t.Fatal(err)
		}
		return hash
	}
	if first, second := build(), build(); first != second {
		t.Errorf("hashes are %s and %s", first, second)
	}
}

func TestAFailureIsToldAndNotKept(t *testing.T) {
	fails := true
	d := newDocument(func() ([]byte, error) {
		if fails {
			return nil, errors.New("broken schema")
		}
		return []byte(`{}`), nil
	}, nil)
	ask := func() *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		d.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
		return w
	}
	if w := ask(); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "broken schema") {
		t.Errorf("a failure is %d, %q", w.Code, w.Body)
	}
	fails = false
	if w := ask(); w.Code != http.StatusOK || w.Body.String() != "{}" {
		t.Errorf("afterwards it is %d, %q", w.Code, w.Body)
	}
}

func TestManyClientsAtOnceBuildOnce(t *testing.T) {
	kinds, err := builtin.Kinds()
	if err != nil {
		t.Fatal(err)
	}
	builds := 0 // guarded by the document
	d := newDocument(func() ([]byte, error) { builds++; return buildV3([]served{{leases(kinds), "v1"}}) }, nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := d.hash(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if builds != 1 {
		t.Errorf("it was built %d times", builds)
	}
}

func leases(kinds []*kind.Kind) *kind.Kind {
	return kinds[slices.IndexFunc(kinds, func(k *kind.Kind) bool { return k.Resource() == "leases" })]
}
