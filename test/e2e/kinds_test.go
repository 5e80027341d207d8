package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/discovery"
	"sigs.k8s.io/yaml"
)

// samples is a valid spec of each of Istio's kinds.
var samples = map[string]string{
	"AuthorizationPolicy":   `{rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/b]}}], to: [{operation: {methods: [GET]}}]}]}`,
	"DestinationRule":       `{host: a, subsets: [{name: v1, labels: {version: v1}}], trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}`,
	"EnvoyFilter":           `{configPatches: [{applyTo: CLUSTER, patch: {operation: MERGE, value: {name: x}}}]}`,
	"Gateway":               `{selector: {istio: ingress}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]}`,
	"PeerAuthentication":    `{mtls: {mode: STRICT}}`,
	"ProxyConfig":           `{concurrency: 2, environmentVariables: {A: b}}`,
	"RequestAuthentication": `{jwtRules: [{issuer: a, jwksUri: "https://a/b"}]}`,
	"ServiceEntry":          `{hosts: [a.example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 1.2.3.4}]}`,
	"Sidecar":               `{egress: [{hosts: ["./*"]}]}`,
	"Telemetry":             `{tracing: [{randomSamplingPercentage: 12.5}]}`,
	"TrafficExtension":      `{wasm: {url: "oci://a/b"}}`,
	"VirtualService":        `{hosts: [a], http: [{timeout: 5s, route: [{destination: {host: a}, weight: 100}]}]}`,
	"WasmPlugin":            `{url: "oci://a/b", pluginConfig: {a: [1, {b: 2.5}]}}`,
	"WorkloadEntry":         `{address: 1.2.3.4, labels: {app: a}}`,
	"WorkloadGroup":         `{metadata: {labels: {app: a}}, template: {serviceAccount: a}}`,
}

func TestEveryKindOfIstiosInEveryVersionIsOneObject(t *testing.T) {
	tenant := newTenant(t, shared)
	client, err := discovery.NewDiscoveryClientForConfig(tenant.config)
	if err != nil {
		t.Fatal(err)
	}
	_, lists, err := client.ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	type resource struct {
		plural, group string
		versions      []string
		status        bool
	}
	kinds := map[string]*resource{}
	for _, list := range lists {
		group, version, _ := strings.Cut(list.GroupVersion, "/")
		if !strings.HasSuffix(group, ".istio.io") {
			continue
		}
		for _, r := range list.APIResources {
			if kinds[r.Kind] == nil {
				kinds[r.Kind] = &resource{group: group}
			}
			if plural, sub, isSub := strings.Cut(r.Name, "/"); isSub {
				kinds[r.Kind].status = kinds[r.Kind].status || plural != "" && sub == "status"
				continue
			}
			kinds[r.Kind].plural = r.Name
			kinds[r.Kind].versions = append(kinds[r.Kind].versions, version)
		}
	}
	for kind := range samples {
		if kinds[kind] == nil {
			t.Errorf("%s is not served", kind)
		}
	}
	for kind, r := range kinds {
		t.Run(kind, func(t *testing.T) {
			sample, ok := samples[kind]
			if !ok {
				t.Fatal("there is no sample of it here")
			}
			path := func(version string) string {
				return "/apis/" + r.group + "/" + version + "/namespaces/default/" + r.plural
			}
			spec, err := yaml.YAMLToJSON([]byte(sample))
			if err != nil {
				t.Fatal(err)
			}
			for _, written := range r.versions {
				name := "written-in-" + written
				created := mustDo(t, tenant.raw, http.MethodPost, path(written),
					fmt.Sprintf(`{"apiVersion":"%s/%s","kind":%q,"metadata":{"name":%q},"spec":%s}`, r.group, written, kind, name, spec))
				var want map[string]any
				if err := yaml.Unmarshal(spec, &want); err != nil {
					t.Fatal(err)
				}
				if got := created.Field("spec"); fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("%v was written and %v is answered", want, got)
				}
				for _, read := range r.versions {
					got := unstructured.Unstructured{Object: mustDo(t, tenant.raw, http.MethodGet, path(read)+"/"+name, "").JSON()}
					if got.GetAPIVersion() != r.group+"/"+read || got.GetKind() != kind {
						t.Errorf("asked for %s, got %s %s", read, got.GetAPIVersion(), got.GetKind())
					}
					if fmt.Sprint(got.Object["spec"]) != fmt.Sprint(want) || string(got.GetUID()) != created.Text("metadata", "uid") ||
						got.GetResourceVersion() != created.Text("metadata", "resourceVersion") {
						t.Errorf("written in %s, read in %s: %v", written, read, got.Object)
					}
					mustDo(t, tenant.raw, http.MethodGet, path(read)+"/"+name+"/status", "")
				}
			}
			for _, version := range r.versions {
				if n := count(mustDo(t, tenant.raw, http.MethodGet, path(version), "")); n != len(r.versions) {
					t.Errorf("%s has %d objects, want %d", version, n, len(r.versions))
				}
			}
			last := slices.Sorted(slices.Values(r.versions))[0]
			mustDo(t, tenant.raw, http.MethodDelete, path(last), "")
			for _, version := range r.versions {
				if n := count(mustDo(t, tenant.raw, http.MethodGet, path(version), "")); n != 0 {
					t.Errorf("%s has %d objects after all were deleted", version, n)
				}
			}
			mustDo(t, tenant.raw, http.MethodGet, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/"+r.plural+"."+r.group, "")
		})
	}
}

func TestDefinitionsAreReadOnly(t *testing.T) {
	tenant := newTenant(t, shared)
	const path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
	if n := count(mustDo(t, tenant.raw, http.MethodGet, path, "")); n != len(samples) {
		t.Errorf("there are %d definitions, want %d", n, len(samples))
	}
	one := mustDo(t, tenant.raw, http.MethodGet, path+"/virtualservices.networking.istio.io", "")
	established := false
	conditions, _ := one.Field("status", "conditions").([]any)
	for _, c := range conditions {
		if c := c.(map[string]any); c["type"] == "Established" && c["status"] == "True" {
			established = true
		}
	}
	if !established {
		t.Errorf("a definition is not established: %v", one.Field("status"))
	}
	for _, method := range []string{http.MethodPatch, http.MethodDelete, http.MethodPut} {
		refused(t, do(t, tenant.raw, method, path+"/virtualservices.networking.istio.io", `{}`), http.StatusMethodNotAllowed)
	}
	refused(t, do(t, tenant.raw, http.MethodPost, path, `{}`), http.StatusMethodNotAllowed)
	events := watchFrom(t, tenant.config, path+"?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true")
	for range len(samples) {
		if e := next(t, events); e.Type != "ADDED" {
			t.Errorf("got %+v", e)
		}
	}
	if e := next(t, events); e.Type != "BOOKMARK" || e.Object.Metadata.Annotations["k8s.io/initial-events-end"] != "true" {
		t.Errorf("got %+v, want the bookmark that ends the initial events", e)
	}
}
