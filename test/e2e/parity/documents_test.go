package parity

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/test/e2e/rawapi"
)

// groupVersions are those of Istio's kinds.
var groupVersions = []string{
	"networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3",
	"security.istio.io/v1", "security.istio.io/v1beta1",
	"telemetry.istio.io/v1", "telemetry.istio.io/v1alpha1",
	"extensions.istio.io/v1alpha1",
}

// document is a JSON document of a server.
func document(t *testing.T, client *rawapi.Client, path, accept string) map[string]any {
	t.Helper()
	response, err := ask(t.Context(), client, rawapi.Request{Method: http.MethodGet, Path: path, Accept: accept})
	if err != nil {
		t.Fatal(err)
	}
	tree := response.JSON()
	if response.Status != http.StatusOK || tree == nil {
		t.Fatalf("GET %s: %v", path, response)
	}
	return tree
}

// sameText compares two trees as YAML, whose differences read well.
func sameText(t *testing.T, what string, ours, peer any) {
	t.Helper()
	text := func(v any) string {
		data, err := yaml.Marshal(v)
		if err != nil {
			return err.Error()
		}
		return string(data)
	}
	if diff := cmp.Diff(text(peer), text(ours)); diff != "" {
		t.Errorf("%s (-%s +%s):\n%s", what, thePeer, theVmesh, diff)
	}
}

// istiosOwn keeps the members of a map whose keys are of Istio's groups.
func istiosOwn(v any, prefix string) map[string]any {
	all, _ := v.(map[string]any)
	own := map[string]any{}
	for key, value := range all {
		if strings.HasPrefix(key, prefix) && strings.Contains(key, "istio") {
			own[key] = value
		}
	}
	return own
}

func TestOpenAPIOfIstiosKindsIsTheSame(t *testing.T) {
	clients := servers(t)
	for _, gv := range groupVersions {
		t.Run("v3 "+gv, func(t *testing.T) {
			ours := document(t, clients[theVmesh], "/openapi/v3/apis/"+gv, "application/json")
			peer := document(t, clients[thePeer], "/openapi/v3/apis/"+gv, "application/json")
			schemas := func(doc map[string]any) any {
				components, _ := doc["components"].(map[string]any)
				return istiosOwn(components["schemas"], "io.istio.")
			}
			sameText(t, "schemas", schemas(ours), schemas(peer))
			sameText(t, "paths", routes(ours), routes(peer))
		})
	}
	t.Run("v2", func(t *testing.T) {
		ours := document(t, clients[theVmesh], "/openapi/v2", "application/json")
		peer := document(t, clients[thePeer], "/openapi/v2", "application/json")
		sameText(t, "definitions", istiosOwn(ours["definitions"], "io.istio."), istiosOwn(peer["definitions"], "io.istio."))
	})
}

// Values are published for people and their tools; what they say of fields comes from a table.
func TestValuesOfKubernetesOwnKindsAreTheSame(t *testing.T) {
	clients := servers(t)
	for _, path := range []string{"api/v1", "apis/apps/v1", "apis/admissionregistration.k8s.io/v1", "apis/discovery.k8s.io/v1", "apis/networking.k8s.io/v1"} {
		t.Run(path, func(t *testing.T) {
			ours := enumsOf(document(t, clients[theVmesh], "/openapi/v3/"+path, "application/json"))
			peer := enumsOf(document(t, clients[thePeer], "/openapi/v3/"+path, "application/json"))
			for field := range peer {
				if model, _, ok := strings.Cut(field, " "); !ok || ours[model] == "" {
					delete(peer, field) // part of a kind that is not served
				}
			}
			for field, values := range ours {
				if values == "model" {
					delete(ours, field)
				}
			}
			sameText(t, "values", ours, peer)
		})
	}
}

// enumsOf are the values of each field that has a fixed set of them, by model and field,
// and the models.
func enumsOf(doc map[string]any) map[string]string {
	out := map[string]string{}
	components, _ := doc["components"].(map[string]any)
	schemas, _ := components["schemas"].(map[string]any)
	for model, s := range schemas {
		out[model] = "model"
		properties, _ := s.(map[string]any)["properties"].(map[string]any)
		for field, p := range properties {
			if values, ok := p.(map[string]any)["enum"]; ok {
				out[model+" "+field] = fmt.Sprint(values)
			}
		}
	}
	return out
}

// routes are the methods of each path.
func routes(doc map[string]any) map[string][]string {
	out := map[string][]string{}
	paths, _ := doc["paths"].(map[string]any)
	for path, methods := range paths {
		for method := range methods.(map[string]any) {
			if method != "parameters" {
				out[path] = append(out[path], method)
			}
		}
		slices.Sort(out[path])
	}
	return out
}

func TestDiscoveryOfIstiosKindsIsTheSame(t *testing.T) {
	clients := servers(t)
	t.Run("aggregated", func(t *testing.T) {
		groups := func(client *rawapi.Client) any {
			list := document(t, client, "/apis", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
			out := map[string]any{}
			items, _ := list["items"].([]any)
			for _, item := range items {
				group := item.(map[string]any)
				name := fmt.Sprint(group["metadata"].(map[string]any)["name"])
				if strings.HasSuffix(name, ".istio.io") {
					delete(group, "metadata")
					out[name] = sorted(group)
				}
			}
			return out
		}
		sameText(t, "groups", groups(clients[theVmesh]), groups(clients[thePeer]))
	})
	for _, gv := range groupVersions {
		t.Run(gv, func(t *testing.T) {
			resources := func(client *rawapi.Client) any { return sorted(document(t, client, "/apis/"+gv, "application/json")) }
			sameText(t, "resources", resources(clients[theVmesh]), resources(clients[thePeer]))
		})
	}
}

// sorted orders what is a set, and leaves out what names the storage and what a response's
// kind need not say, as it is that of the resource.
func sorted(v any) any {
	switch v := v.(type) {
	case map[string]any:
		delete(v, "storageVersionHash")
		if kind, ok := v["responseKind"].(map[string]any); ok {
			v["responseKind"] = kind["kind"]
		}
		for key := range v {
			v[key] = sorted(v[key])
			if list, ok := v[key].([]any); ok && key != "versions" {
				sortByText(list)
			}
		}
	case []any:
		for i := range v {
			v[i] = sorted(v[i])
		}
	}
	return v
}
