// Package parity sends the same requests to vmesh and to a real kube-apiserver that has
// Istio's CRDs, and compares the answers.
package parity

import (
	"embed"
	"encoding/json"
	"fmt"
	"path"
	"strings"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

//go:embed testdata/*.yaml
var tables embed.FS

// Case is a sequence of requests in a namespace of its own.
type Case struct {
	// Name is a sentence.
	Name string `json:"name"`
	// Steps are sent in order.
	Steps []Step `json:"steps"`
}

// nextSecond, in place of a request, waits for the clock's next second: managed fields'
// times are no finer.
const nextSecond = "NEXT SECOND"

// Step is one request.
type Step struct {
	// Do is a method and a path. A path without a leading slash is RESOURCE[@VERSION][/NAME][?QUERY]
	// in the case's namespace. $NS, $RV and $UID stand for that namespace and for the
	// resourceVersion and uid of the last object that was answered.
	Do string `json:"do"`
	// Type is the body's content type, or one of the short forms in contentTypes.
	Type string `json:"type,omitempty"`
	// Accept is what is asked for, or one of the short forms in accepts.
	Accept string `json:"accept,omitempty"`
	// Body is sent as JSON; Raw as it is.
	Body json.RawMessage `json:"body,omitempty"`
	Raw  string          `json:"raw,omitempty"`
	// Differs says why the answers to this step may differ; then only the status codes are compared.
	Differs string `json:"differs,omitempty"`
}

var contentTypes = map[string]string{
	"":          "application/json",
	"yaml":      "application/yaml",
	"cbor":      "application/cbor",
	"merge":     string(types.MergePatchType),
	"jsonpatch": string(types.JSONPatchType),
	"strategic": string(types.StrategicMergePatchType),
	"apply":     string(types.ApplyYAMLPatchType),
}

var accepts = map[string]string{
	"":         "application/json",
	"yaml":     "application/yaml",
	"table":    "application/json;as=Table;v=v1;g=meta.k8s.io",
	"metadata": "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
	"metalist": "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
	"protobuf": "application/vnd.kubernetes.protobuf",
}

func short(table map[string]string, s string) string {
	if long, ok := table[s]; ok {
		return long
	}
	return s
}

// resources are what a path can begin with, and its default version's path.
var resources = map[string]struct{ group, version, plural string }{
	"vs":         {"networking.istio.io", "v1", "virtualservices"},
	"dr":         {"networking.istio.io", "v1", "destinationrules"},
	"se":         {"networking.istio.io", "v1", "serviceentries"},
	"gw":         {"networking.istio.io", "v1", "gateways"},
	"sidecar":    {"networking.istio.io", "v1", "sidecars"},
	"we":         {"networking.istio.io", "v1", "workloadentries"},
	"wg":         {"networking.istio.io", "v1", "workloadgroups"},
	"ef":         {"networking.istio.io", "v1alpha3", "envoyfilters"},
	"pc":         {"networking.istio.io", "v1beta1", "proxyconfigs"},
	"ap":         {"security.istio.io", "v1", "authorizationpolicies"},
	"pa":         {"security.istio.io", "v1", "peerauthentications"},
	"ra":         {"security.istio.io", "v1", "requestauthentications"},
	"telemetry":  {"telemetry.istio.io", "v1", "telemetries"},
	"wasmplugin": {"extensions.istio.io", "v1alpha1", "wasmplugins"},
	"trafficext": {"extensions.istio.io", "v1alpha1", "trafficextensions"},
	"cm":         {"", "v1", "configmaps"},
	"secret":     {"", "v1", "secrets"},
	"svc":        {"", "v1", "services"},
	"sa":         {"", "v1", "serviceaccounts"},
	"pod":        {"", "v1", "pods"},
	"ep":         {"", "v1", "endpoints"},
	"event":      {"", "v1", "events"},
	"eps":        {"discovery.k8s.io", "v1", "endpointslices"},
	"deploy":     {"apps", "v1", "deployments"},
	"lease":      {"coordination.k8s.io", "v1", "leases"},
}

// request spells out a step's method and path.
func (s Step) request(namespace string) (method, url string, err error) {
	method, target, ok := strings.Cut(s.Do, " ")
	if !ok {
		return "", "", fmt.Errorf("%q is not METHOD PATH", s.Do)
	}
	if strings.HasPrefix(target, "/") {
		return method, strings.ReplaceAll(target, "$NS", namespace), nil
	}
	target, query, hasQuery := strings.Cut(target, "?")
	target, name, _ := strings.Cut(target, "/")
	target, version, _ := strings.Cut(target, "@")
	r, ok := resources[target]
	if !ok {
		return "", "", fmt.Errorf("%q: there is no resource %q", s.Do, target)
	}
	if version == "" {
		version = r.version
	}
	url = "/apis/" + r.group + "/" + version
	if r.group == "" {
		url = "/api/" + version
	}
	url = path.Join(url, "namespaces", namespace, r.plural, name)
	if hasQuery {
		url += "?" + query
	}
	return method, url, nil
}

func (s Step) body() []byte {
	if s.Raw != "" {
		return []byte(s.Raw)
	}
	return s.Body
}

// load reads the tables.
func load() (map[string][]Case, error) {
	files, err := tables.ReadDir("testdata")
	if err != nil {
		return nil, err
	}
	all := map[string][]Case{}
	for _, file := range files {
		data, err := tables.ReadFile("testdata/" + file.Name())
		if err != nil {
			return nil, err
		}
		var cases []Case
		if err := yaml.UnmarshalStrict(data, &cases); err != nil {
			return nil, fmt.Errorf("%s: %w", file.Name(), err)
		}
		all[strings.TrimSuffix(file.Name(), ".yaml")] = cases
	}
	return all, nil
}
