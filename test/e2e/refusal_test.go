package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/vmesh-io/vmesh/test/e2e/rawapi"
)

const networking = "/apis/networking.istio.io/v1/namespaces/default/"

func TestBadInputIsRefusedNamesItsFieldAndIsNotStored(t *testing.T) {
	tenant := newTenant(t, shared)
	route := `"http":[{"route":[{"destination":{"host":"a"}}]}]`
	for _, c := range []struct {
		name, path, body string
		status           int
		parts            []string
	}{
		{"an unknown field, when it is asked to be strict", "virtualservices?fieldValidation=Strict",
			`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a"},"spec":{"hosts":["a"],"htp":[],` + route + `}}`,
			400, []string{`unknown field "spec.htp"`}},
		{"a duplicate field, when it is asked to be strict", "virtualservices?fieldValidation=Strict",
			`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a"},"spec":{"hosts":["a"],"hosts":["b"],` + route + `}}`,
			400, []string{`duplicate field "spec.hosts"`}},
		{"a value of the wrong type", "virtualservices",
			`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a"},"spec":{"hosts":"a",` + route + `}}`,
			422, []string{"spec.hosts", "must be of type array"}},
		{"a value that the enumeration lacks", "destinationrules",
			`{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"a"},"spec":{"host":"a","trafficPolicy":{"loadBalancer":{"simple":"BEST"}}}}`,
			422, []string{"spec.trafficPolicy.loadBalancer.simple", "Unsupported value"}},
		{"a broken rule", "serviceentries",
			`{"apiVersion":"networking.istio.io/v1","kind":"ServiceEntry","metadata":{"name":"a"},"spec":{"hosts":["a.b"],"ports":[{"number":80,"name":"a"},{"number":80,"name":"b"}]}}`,
			422, []string{"spec.ports", "port number cannot be duplicated"}},
		{"what Istio does not take: weights", "virtualservices",
			`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a"},"spec":{"hosts":["a"],"http":[{"route":[{"destination":{"host":"a"},"weight":-5}]}]}}`,
			422, []string{"spec", "weight"}},
		{"what Istio does not take: a destination without a host", "virtualservices",
			`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a"},"spec":{"hosts":["a"],"http":[{"route":[{"destination":{"host":"a b"}}]}]}}`,
			422, []string{"spec", "a b"}},
		{"what Istio does not take: no route", "virtualservices",
			`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a"},"spec":{"hosts":["a"]}}`,
			422, []string{"spec", "http, tcp or tls must be provided"}},
		{"what Istio does not take: a gateway's host", "gateways",
			`{"apiVersion":"networking.istio.io/v1","kind":"Gateway","metadata":{"name":"a"},"spec":{"servers":[{"port":{"number":80,"name":"http","protocol":"HTTP"},"hosts":["*.*.com"]}]}}`,
			422, []string{"spec", "*.com"}},
		{"what Istio does not take: a bad regular expression", "virtualservices",
			`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a"},"spec":{"hosts":["a"],"http":[{"match":[{"uri":{"regex":"[a"}}],"route":[{"destination":{"host":"a"}}]}]}}`,
			422, []string{"spec"}},
		{"an invalid name", "virtualservices",
			`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"A_b"},"spec":{"hosts":["a"],` + route + `}}`,
			422, []string{"metadata.name", "A_b"}},
		{"no name", "virtualservices",
			`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{},"spec":{"hosts":["a"],` + route + `}}`,
			422, []string{"metadata.name", "name or generateName is required"}},
		{"an invalid label", "virtualservices",
			`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a","labels":{"a b":"c"}},"spec":{"hosts":["a"],` + route + `}}`,
			422, []string{"metadata.labels"}},
		{"no JSON", "virtualservices", `{"apiVersion":`, 400, []string{"VirtualService"}},
		{"nothing", "virtualservices", ``, 400, []string{"VirtualService"}},
		{"null", "virtualservices", `null`, 400, []string{"VirtualService"}},
		{"null members", "virtualservices", `{"apiVersion":null,"kind":null,"metadata":null,"spec":null}`, 400, []string{"VirtualService"}},
		{"no kind", "virtualservices", `{"apiVersion":"networking.istio.io/v1","metadata":{"name":"a"}}`, 400, []string{"Kind", "missing"}},
		{"no version", "virtualservices", `{"kind":"VirtualService","metadata":{"name":"a"}}`, 400, []string{"does not match the expected API version"}},
		{"another kind", "virtualservices", `{"apiVersion":"networking.istio.io/v1","kind":"Gateway","metadata":{"name":"a"},"spec":{}}`, 422, []string{"kind", "must be VirtualService"}},
		{"a kind that there is not", "virtualservices", `{"apiVersion":"nowhere.io/v1","kind":"Thing","metadata":{"name":"a"}}`, 400, []string{"Thing"}},
		{"a number that is none", "wasmplugins@extensions.istio.io/v1alpha1",
			`{"apiVersion":"extensions.istio.io/v1alpha1","kind":"WasmPlugin","metadata":{"name":"a"},"spec":{"url":"oci://a/b","pluginConfig":{"a":1e999}}}`,
			400, nil},
		{"nesting without end", "wasmplugins@extensions.istio.io/v1alpha1",
			`{"apiVersion":"extensions.istio.io/v1alpha1","kind":"WasmPlugin","metadata":{"name":"a"},"spec":{"url":"oci://a/b","pluginConfig":{"a":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}}}`,
			400, nil},
		{"a text that is no UTF-8", "virtualservices",
			`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a","annotations":{"a":"` + "\xff\xfe" + `"}},"spec":{"hosts":["a",7],` + route + `}}`,
			422, nil},
		{"more than a request may have", "virtualservices",
			`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a","annotations":{"a":"` + strings.Repeat("x", 4<<20) + `"}},"spec":{"hosts":["a"],` + route + `}}`,
			413, []string{"limit is"}},
		{"more than etcd takes", "wasmplugins@extensions.istio.io/v1alpha1",
			`{"apiVersion":"extensions.istio.io/v1alpha1","kind":"WasmPlugin","metadata":{"name":"a"},"spec":{"url":"oci://a/b","pluginConfig":{"a":"` + strings.Repeat("x", 2<<20) + `"}}}`,
			413, []string{"larger than etcd takes"}},
		{"annotations larger than an object may have", "virtualservices",
			`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a","annotations":{"a":"` + strings.Repeat("x", 300<<10) + `"}},"spec":{"hosts":["a"],` + route + `}}`,
			422, []string{"metadata.annotations"}},
		{"a secret that is too large", "/api/v1/namespaces/default/secrets",
			`{"metadata":{"name":"a"},"stringData":{"a":"` + strings.Repeat("x", 2<<20) + `"}}`, 422, []string{"data"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := networking + c.path
			if resource, gv, ok := strings.Cut(c.path, "@"); ok {
				path = "/apis/" + gv + "/namespaces/default/" + resource
			}
			if strings.HasPrefix(c.path, "/") {
				path = c.path
			}
			refused(t, do(t, tenant.raw, http.MethodPost, path, c.body), c.status, c.parts...)
			list, _, _ := strings.Cut(path, "?")
			if n := count(mustDo(t, tenant.raw, http.MethodGet, list, "")); n != 0 {
				t.Errorf("%d objects are stored", n)
			}
		})
	}
}

func TestARefusedChangeLeavesTheObjectAsItWas(t *testing.T) {
	tenant := newTenant(t, shared)
	path := virtualServices("default") + "/reviews"
	before := mustDo(t, tenant.raw, http.MethodPost, virtualServices("default"), virtualService("reviews")).JSON()
	for _, c := range []struct {
		name   string
		send   rawapi.Request
		status int
		parts  []string
	}{
		{"a patch that Istio does not take", rawapi.Request{Method: http.MethodPatch, ContentType: "application/merge-patch+json", Body: []byte(`{"spec":{"http":[{"route":[{"destination":{"host":"a"},"weight":-1}]}]}}`)}, 422, []string{"weight"}},
		{"a patch to a wrong type", rawapi.Request{Method: http.MethodPatch, ContentType: "application/merge-patch+json", Body: []byte(`{"spec":{"hosts":"a"}}`)}, 422, []string{"spec.hosts"}},
		{"a patch of a name", rawapi.Request{Method: http.MethodPatch, ContentType: "application/merge-patch+json", Body: []byte(`{"metadata":{"name":"b"}}`)}, 400, []string{"name"}},
		{"a patch of a uid", rawapi.Request{Method: http.MethodPatch, ContentType: "application/merge-patch+json", Body: []byte(`{"metadata":{"uid":"b"}}`)}, 422, []string{"metadata.uid", "immutable"}},
		{"an apply that Istio does not take", rawapi.Request{Method: http.MethodPatch, ContentType: "application/apply-patch+yaml", Body: []byte(`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"reviews"},"spec":{"exportTo":["a b"]}}`)}, 422, []string{"spec"}},
		{"an update without a version", rawapi.Request{Method: http.MethodPut, ContentType: "application/json", Body: []byte(virtualService("reviews"))}, 422, []string{"metadata.resourceVersion"}},
		{"a strategic merge patch", rawapi.Request{Method: http.MethodPatch, ContentType: "application/strategic-merge-patch+json", Body: []byte(`{"spec":{"hosts":["b"]}}`)}, 415, []string{"application/merge-patch+json"}},
		{"a patch in protobuf", rawapi.Request{Method: http.MethodPatch, ContentType: "application/vnd.kubernetes.protobuf", Body: []byte("k8s\x00")}, 415, nil},
		{"an update in protobuf", rawapi.Request{Method: http.MethodPut, ContentType: "application/vnd.kubernetes.protobuf", Body: []byte("k8s\x00")}, 415, nil},
		{"an answer in protobuf", rawapi.Request{Method: http.MethodGet, Accept: "application/vnd.kubernetes.protobuf"}, 406, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.send.Path = path
			if c.send.ContentType == "application/apply-patch+yaml" {
				c.send.Path += "?fieldManager=test"
			}
			response, err := tenant.raw.Do(t.Context(), c.send)
			if err != nil {
				t.Fatal(err)
			}
			refused(t, response, c.status, c.parts...)
			if after := mustDo(t, tenant.raw, http.MethodGet, path, "").JSON(); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("the object is now %v, was %v", after, before)
			}
		})
	}
}

func TestIstiosWarningsAreGivenWithTheWrite(t *testing.T) {
	tenant := newTenant(t, shared)
	for _, c := range []struct{ name, path, body, warning string }{
		{"a filter of Envoy's", "/apis/networking.istio.io/v1alpha3/namespaces/default/envoyfilters",
			`{"apiVersion":"networking.istio.io/v1alpha3","kind":"EnvoyFilter","metadata":{"name":"a"},"spec":{"configPatches":[{"applyTo":"CLUSTER","patch":{"operation":"MERGE","value":{"name":"x"}}}]}}`,
			"internal implementation details"},
		{"a selector that selects nothing", "/apis/security.istio.io/v1/namespaces/default/peerauthentications",
			`{"apiVersion":"security.istio.io/v1","kind":"PeerAuthentication","metadata":{"name":"a"},"spec":{"selector":{}}}`,
			"workload selector"},
		{"a route behind one that takes all", virtualServices("default"),
			`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a"},"spec":{"hosts":["a"],"http":[{"route":[{"destination":{"host":"a"}}]},{"match":[{"uri":{"prefix":"/b"}}],"route":[{"destination":{"host":"b"}}]}]}}`,
			"rule"},
	} {
		t.Run(c.name, func(t *testing.T) {
			response := mustDo(t, tenant.raw, http.MethodPost, c.path, c.body)
			if got := strings.Join(response.Header.Values("Warning"), "; "); !strings.Contains(got, c.warning) {
				t.Errorf("warnings are %q, want one of %q", got, c.warning)
			}
		})
	}
}
