package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/test/harness"
)

// twoTeams are mallory and bank in one mesh, whose platform has a gateway that mallory may
// use, and the root namespace.
func twoTeams(t *testing.T) (mallory *tenant) {
	t.Helper()
	root := rawClient(t, shared.root)
	mustDo(t, root, http.MethodPost, "/apis/vmesh.io/v1alpha1/meshes", `{"apiVersion":"vmesh.io/v1alpha1","kind":"Mesh","metadata":{"name":"hijack"},"spec":{}}`)
	t.Cleanup(func() {
		do(t, rawClient(t, shared.root), http.MethodDelete, "/apis/vmesh.io/v1alpha1/meshes/hijack", "")
	})
	removed(t, "mallory", "bank", "platform")
	for name, spec := range map[string]string{
		"mallory": `{"mesh":"hijack","namespaces":["mallory","mallory-*"],"hosts":["mallory.example.com"],"guardRails":{"gatewaySelectors":[{"matchLabels":{"istio":"mallory"}}]}}`,
		"bank":    `{"mesh":"hijack","namespaces":["bank"],"hosts":["bank.example.com","*.bank.example.com"]}`,
		"platform": `{"mesh":"hijack","namespaces":["edge","istio-system"],"guardRails":{"gatewaySelectors":[{"matchLabels":{"istio":"ingressgateway"}}]},
			"grants":[{"to":"mallory","gateways":["edge/public"]}]}`,
	} {
		mustDo(t, root, http.MethodPost, clustersPath, virtualCluster(name, spec))
	}
	mallory = shared.tenant(t, "mallory")
	mallory.namespace(t, "mallory")
	return mallory
}

// resources are where the kinds of the attempts are.
var resources = map[string]string{
	"VirtualService": "virtualservices", "DestinationRule": "destinationrules", "ServiceEntry": "serviceentries", "Gateway": "gateways", "EnvoyFilter": "envoyfilters",
	"ProxyConfig": "proxyconfigs", "WasmPlugin": "wasmplugins", "TrafficExtension": "trafficextensions",
}

// Every way that is known of taking another team's calls, of those that Istio lets through:
// the ones of the advisory ISTIO-SECURITY-2026-002 and of issues of Istio first.
func TestOneTeamCannotTakeTheCallsOfAnother(t *testing.T) {
	mallory := twoTeams(t)
	const (
		route   = `http: [{route: [{destination: {host: proxy.mallory.svc.cluster.local}}]}]`
		ofBank  = `virtual cluster "bank"`
		port    = `ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS`
		servers = `port: {number: 80, name: http, protocol: HTTP}`
	)
	for _, c := range []struct {
		name, version, kind, spec, metadata string
		field                               string
		parts                               []string
	}{
		{name: "the advisory: a route for any service on all sidecars", kind: "VirtualService", spec: `{hosts: [payments.bank.svc.cluster.local], ` + route + `}`,
			field: "spec.hosts[0]", parts: []string{`service of namespace "bank"`, ofBank, "spec.grants"}},
		{name: "the advisory: with the gateway named", kind: "VirtualService", spec: `{hosts: [payments.bank.svc.cluster.local], gateways: [mesh], ` + route + `}`, field: "spec.hosts[0]", parts: []string{ofBank}},
		{name: "the advisory: for a host outside", kind: "VirtualService", spec: `{hosts: [api.bank.example.com], ` + route + `}`, field: "spec.hosts[0]", parts: []string{ofBank}},
		{name: "the advisory: for a host that nobody has claimed", kind: "VirtualService", spec: `{hosts: [login.example.org], ` + route + `}`, field: "spec.hosts[0]", parts: []string{"nobody", "spec.hosts"}},
		{name: "the advisory: for all services", kind: "VirtualService", spec: `{hosts: ["*.svc.cluster.local"], ` + route + `}`, field: "spec.hosts[0]", parts: []string{"matches services and hosts of others"}},
		{name: "10039: routes of other namespaces", kind: "VirtualService", spec: `{hosts: [mine, payments.bank.svc.cluster.local], exportTo: [bank], ` + route + `}`, field: "spec.exportTo[0]", parts: []string{ofBank}},
		{name: "10039: a gateway of others", kind: "VirtualService", spec: `{hosts: [mallory.example.com], gateways: [edge/private], ` + route + `}`, field: "spec.gateways[0]", parts: []string{`virtual cluster "platform"`, "edge/private"}},
		{name: "10039: noise for all sidecars", kind: "VirtualService", spec: `{hosts: [mine], exportTo: ["*"], ` + route + `}`, field: "spec.exportTo[0]", parts: []string{"spec.guardRails.exportTo"}},
		{name: "13008: an entry for a host of others", kind: "ServiceEntry", spec: `{hosts: [api.bank.example.com], ` + port + `, endpoints: [{address: proxy.mallory.svc.cluster.local}]}`,
			field: "spec.hosts[0]", parts: []string{ofBank}},
		{name: "13008: an entry for a service of others", kind: "ServiceEntry", spec: `{hosts: [payments.bank.svc.cluster.local], ` + port + `}`, field: "spec.hosts[0]", parts: []string{ofBank}},
		{name: "15216: a filter without a selector", version: "v1alpha3", kind: "EnvoyFilter", spec: `{configPatches: [{applyTo: HTTP_FILTER, match: {context: ANY}, patch: {operation: INSERT_BEFORE, value: {name: x}}}]}`,
			field: "kind", parts: []string{"EnvoyFilter is off", "spec.guardRails.kinds"}},
		{name: "23111: a filter for outgoing calls", version: "v1alpha3", kind: "EnvoyFilter",
			spec:  `{configPatches: [{applyTo: HTTP_FILTER, match: {context: SIDECAR_OUTBOUND}, patch: {operation: INSERT_BEFORE, value: {name: envoy.filters.http.lua}}}]}`,
			field: "kind", parts: []string{"EnvoyFilter is off"}},

		// The same by other spellings.
		{name: "in capitals", kind: "VirtualService", spec: `{hosts: [Payments.BANK.svc.cluster.local], ` + route + `}`, field: "spec.hosts[0]", parts: []string{ofBank}},
		{name: "with a dot at the end", kind: "VirtualService", spec: `{hosts: [payments.bank.svc.cluster.local.], ` + route + `}`, field: "spec.hosts[0]", parts: []string{ofBank}},
		{name: "as callers write it", kind: "VirtualService", spec: `{hosts: [payments.bank], ` + route + `}`, field: "spec.hosts[0]", parts: []string{`can be a service of namespace "bank"`}},
		{name: "as callers may write it", kind: "VirtualService", spec: `{hosts: [payments.bank.svc], ` + route + `}`, field: "spec.hosts[0]", parts: []string{ofBank}},
		{name: "as other clusters write it", kind: "VirtualService", spec: `{hosts: [payments.bank.svc.clusterset.local], ` + route + `}`, field: "spec.hosts[0]", parts: []string{ofBank}},
		{name: "by a part of its name", kind: "VirtualService", spec: `{hosts: ["*ments.bank.svc.cluster.local"], ` + route + `}`, field: "spec.hosts[0]", parts: []string{ofBank}},
		{name: "by a part of its namespace", kind: "VirtualService", spec: `{hosts: ["*ank.svc.cluster.local"], ` + route + `}`, field: "spec.hosts[0]"},
		{name: "all short names of its namespace", kind: "VirtualService", spec: `{hosts: ["*.bank"], ` + route + `}`, field: "spec.hosts[0]", parts: []string{ofBank}},
		{name: "a domain around its hosts", kind: "VirtualService", spec: `{hosts: ["*.example.com"], ` + route + `}`, field: "spec.hosts[0]"},
		{name: "by its address", kind: "VirtualService", spec: `{hosts: [10.96.7.7], tcp: [{route: [{destination: {host: proxy}}]}]}`, field: "spec.hosts[0]", parts: []string{"an address"}},
		{name: "pods of a headless service", kind: "VirtualService", spec: `{hosts: [db-0.db.bank.svc.cluster.local], ` + route + `}`, field: "spec.hosts[0]", parts: []string{ofBank}},
		{name: "all at the public gateway", kind: "VirtualService", spec: `{hosts: ["*"], gateways: [edge/public], ` + route + `}`, field: "spec.hosts[0]"},
		{name: "a host of bank's at the public gateway", kind: "VirtualService", spec: `{hosts: [bank.example.com], gateways: [edge/public], ` + route + `}`, field: "spec.hosts[0]", parts: []string{ofBank}},
		{name: "a gateway by its old name", kind: "VirtualService", spec: `{hosts: [mallory.example.com], gateways: [private.edge.svc.cluster.local], ` + route + `}`, field: "spec.gateways[0]", parts: []string{`"platform"`}},
		{name: "a connection that passes through", kind: "VirtualService", field: "spec.hosts[0]", parts: []string{ofBank},
			spec: `{hosts: [outbound_.443_._.payments.bank.svc.cluster.local], gateways: [edge/public], tls: [{match: [{sniHosts: [outbound_.443_._.payments.bank.svc.cluster.local]}], route: [{destination: {host: proxy}}]}]}`},

		// By other kinds.
		{name: "no TLS for a service of others", kind: "DestinationRule", spec: `{host: payments.bank.svc.cluster.local, trafficPolicy: {tls: {mode: DISABLE}}}`, field: "spec.host", parts: []string{ofBank}},
		{name: "no TLS for all", kind: "DestinationRule", spec: `{host: "*.local", trafficPolicy: {tls: {mode: DISABLE}}}`, field: "spec.host"},
		{name: "a short name that every namespace uses", kind: "ServiceEntry", spec: `{hosts: [payments], ` + port + `}`, field: "spec.hosts[0]", parts: []string{"every namespace"}},
		{name: "an address, for others", kind: "ServiceEntry", spec: `{hosts: [mallory.example.com], addresses: [10.96.7.7], exportTo: [edge], ` + port + `}`, field: "spec.exportTo[0]", parts: []string{"spec.addresses"}},
		{name: "all addresses, for others", kind: "ServiceEntry", field: "spec.exportTo[0]", parts: []string{"spec.addresses"},
			spec: `{hosts: [mallory.example.com], addresses: [0.0.0.0/0], exportTo: [edge], ports: [{number: 443, name: tcp, protocol: TCP}], resolution: NONE}`},
		{name: "a port, for others", kind: "ServiceEntry", field: "spec.exportTo[0]", parts: []string{"all connections"},
			spec: `{hosts: [mallory.example.com], exportTo: [edge], ports: [{number: 5432, name: db, protocol: TCP}], resolution: DNS}`},
		{name: "the pods of the public gateway", kind: "Gateway", spec: `{selector: {istio: ingressgateway}, servers: [{hosts: [mallory.example.com], ` + servers + `}]}`, field: "spec.selector", parts: []string{"istio=mallory"}},
		{name: "all pods", kind: "Gateway", spec: `{servers: [{hosts: [mallory.example.com], ` + servers + `}]}`, field: "spec.selector"},
		{name: "a gateway for hosts of others", kind: "Gateway", spec: `{selector: {istio: mallory}, servers: [{hosts: ["*/bank.example.com"], ` + servers + `}]}`, field: "spec.servers[0].hosts[0]", parts: []string{ofBank}},
		{name: "the certificate of others", kind: "Gateway", field: "spec.servers[0].tls.credentialName",
			spec: `{selector: {istio: mallory}, servers: [{hosts: [mallory.example.com], port: {number: 443, name: https, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: "kubernetes-gateway://bank/cert"}}]}`},
		{name: "a gateway that says that Istio made it", kind: "Gateway", metadata: `annotations: {internal.istio.io/gateway-service: public.edge.svc.cluster.local}`,
			spec: `{selector: {istio: mallory}, servers: [{hosts: [mallory.example.com], ` + servers + `}]}`, field: "metadata.annotations[internal.istio.io/gateway-service]"},
		{name: "how proxies run", version: "v1beta1", kind: "ProxyConfig", spec: `{environmentVariables: {A: b}}`, field: "kind", parts: []string{"spec.guardRails.kinds"}},
		{name: "code in proxies", version: "extensions.istio.io/v1alpha1", kind: "WasmPlugin", spec: `{url: "oci://mallory/x"}`, field: "kind", parts: []string{"spec.guardRails.kinds"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			group, version := "networking.istio.io", "v1"
			switch g, v, ok := strings.Cut(c.version, "/"); {
			case ok:
				group, version = g, v
			case c.version != "":
				version = c.version
			}
			manifest := fmt.Sprintf("apiVersion: %s/%s\nkind: %s\nmetadata: {name: attempt, namespace: mallory, %s}\nspec: %s\n", group, version, c.kind, c.metadata, c.spec)
			body, err := yaml.YAMLToJSON([]byte(manifest))
			if err != nil {
				t.Fatal(err)
			}
			path := fmt.Sprintf("/apis/%s/%s/namespaces/mallory/%s", group, version, resources[c.kind])
			response := do(t, mallory.raw, http.MethodPost, path, string(body))
			refused(t, response, http.StatusUnprocessableEntity, append(c.parts, c.field)...)
			causes, _ := response.Field("details", "causes").([]any)
			found := false
			for _, cause := range causes {
				cause := cause.(map[string]any)
				found = found || cause["field"] == c.field
				if strings.HasPrefix(fmt.Sprint(cause["reason"]), "FieldValueInvalid") {
					t.Errorf("Istio refuses it by itself: %v", cause)
				}
			}
			if !found {
				t.Errorf("no cause is about %s: %v", c.field, response)
			}
			refused(t, do(t, mallory.raw, http.MethodGet, path+"/attempt", ""), http.StatusNotFound)
		})
	}
}

// What cannot be made in one go cannot be made in steps either, by none of the ways to write.
func TestNoWayToWriteIsAWayAround(t *testing.T) {
	mallory := twoTeams(t)
	good := `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a"},"spec":{"hosts":["a"],"http":[{"route":[{"destination":{"host":"a"}}]}]}}`
	bad := strings.Replace(good, `"hosts":["a"]`, `"hosts":["payments.bank.svc.cluster.local"]`, 1)
	list := "/apis/networking.istio.io/v1/namespaces/mallory/virtualservices"
	created := mustDo(t, mallory.raw, http.MethodPost, list, good)
	const want = http.StatusUnprocessableEntity

	refused(t, do(t, mallory.raw, http.MethodPatch, list+"/a", `{"spec":{"hosts":["payments.bank.svc.cluster.local"]}}`), want, `"bank"`)
	refused(t, do(t, mallory.raw, http.MethodPut, list+"/a", strings.Replace(bad, `"name":"a"`, fmt.Sprintf(`"name":"a","resourceVersion":%q`, created.Text("metadata", "resourceVersion")), 1)), want, `"bank"`)
	refused(t, do(t, mallory.raw, http.MethodPost, list+"?dryRun=All", strings.Replace(bad, `"name":"a"`, `"name":"b"`, 1)), want, `"bank"`)
	refused(t, do(t, mallory.raw, http.MethodPost, strings.Replace(list, "/v1/", "/v1alpha3/", 1), strings.NewReplacer("istio.io/v1", "istio.io/v1alpha3", `"name":"a"`, `"name":"b"`).Replace(bad)), want, `"bank"`)
	refused(t, do(t, mallory.raw, http.MethodPost, list, strings.Replace(bad, `"name":"a"`, `"generateName":"b-"`, 1)), want, `"bank"`)
	refused(t, do(t, mallory.raw, http.MethodPatch, list+"/a", `{"metadata":{"annotations":{"internal.istio.io/route-semantics":"gateway"}}}`), want, "internal.istio.io/route-semantics")

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	manifest := strings.Replace(bad, `"name":"a"`, `"name":"a","namespace":"mallory"`, 1)
	for _, how := range [][]string{{"apply", "-f", "-"}, {"apply", "--server-side", "--force-conflicts", "-f", "-"}, {"create", "-f", "-"}, {"replace", "--force", "-f", "-"}} {
		if out, err := harness.Kubectl(ctx, mallory.kubeconfig, manifest, how...); err == nil || !strings.Contains(err.Error(), `spec.hosts[0]: Forbidden: "payments.bank.svc.cluster.local" is a service of namespace "bank", which virtual cluster "bank" owns`) &&
			!strings.Contains(err.Error(), "already exists") {
			t.Errorf("kubectl %s: %s %v", strings.Join(how, " "), out, err)
		}
	}
	mustDo(t, mallory.raw, http.MethodPost, list, strings.Replace(good, `"name":"a"`, `"name":"still"`, 1))
	got := mustDo(t, mallory.raw, http.MethodGet, list+"/still", "")
	if hosts := fmt.Sprint(got.Field("spec", "hosts")); hosts != "[a]" {
		t.Errorf("hosts are %s", hosts)
	}
}

// What was let in before the claims changed can be kept, touched and removed, but not made
// anew.
func TestWhatIsNoLongerAllowedCanBeRemoved(t *testing.T) {
	mallory := twoTeams(t)
	root := rawClient(t, shared.root)
	claim := func(hosts string) {
		mustDo(t, root, http.MethodPatch, clustersPath+"/mallory", fmt.Sprintf(`{"spec":{"hosts":[%s]}}`, hosts))
	}
	list := "/apis/networking.istio.io/v1/namespaces/mallory/virtualservices"
	entry := `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a","finalizers":["example.com/wait"]},"spec":{"hosts":["mallory.example.com"],"http":[{"route":[{"destination":{"host":"a"}}]}]}}`
	mustDo(t, mallory.raw, http.MethodPost, list, entry)
	claim("")
	refused(t, do(t, mallory.raw, http.MethodPost, list, strings.Replace(entry, `"name":"a"`, `"name":"b"`, 1)), http.StatusUnprocessableEntity, "claimed by nobody")
	refused(t, do(t, mallory.raw, http.MethodPatch, list+"/a", `{"spec":{"http":[{"timeout":"1s","route":[{"destination":{"host":"a"}}]}]}}`), http.StatusUnprocessableEntity, "claimed by nobody")
	mustDo(t, mallory.raw, http.MethodPatch, list+"/a", `{"metadata":{"labels":{"a":"b"},"annotations":{"note":"x"}}}`)
	mustDo(t, mallory.raw, http.MethodPatch, list+"/a/status", `{"status":{"conditions":[]}}`)
	mustDo(t, mallory.raw, http.MethodDelete, list+"/a", "")
	mustDo(t, mallory.raw, http.MethodPatch, list+"/a", `{"metadata":{"finalizers":null}}`)
	refused(t, do(t, mallory.raw, http.MethodGet, list+"/a", ""), http.StatusNotFound)
	claim(`"mallory.example.com"`)
	mustDo(t, mallory.raw, http.MethodPost, list, entry)
	mustDo(t, mallory.raw, http.MethodPatch, list+"/a", `{"metadata":{"finalizers":null}}`)
}

// A grant is given by the owner's VirtualCluster, and is taken away there.
func TestAGrantLetsATeamUseWhatIsAnothers(t *testing.T) {
	mallory := twoTeams(t)
	root := rawClient(t, shared.root)
	list := "/apis/networking.istio.io/v1/namespaces/mallory/virtualservices"
	spec := func(name, hosts, gateways string) string {
		return fmt.Sprintf(`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":%q},"spec":{"hosts":[%q],"gateways":[%q],"http":[{"route":[{"destination":{"host":"a"}}]}]}}`, name, hosts, gateways)
	}
	mustDo(t, mallory.raw, http.MethodPost, list, spec("public", "mallory.example.com", "edge/public"))
	refused(t, do(t, mallory.raw, http.MethodPost, list, spec("shared", "shared.bank.example.com", "edge/public")), http.StatusUnprocessableEntity, `"bank"`)
	mustDo(t, root, http.MethodPatch, clustersPath+"/bank", `{"spec":{"grants":[{"to":"mallory","hosts":["shared.bank.example.com","rates.bank.svc.cluster.local"]}]}}`)
	mustDo(t, mallory.raw, http.MethodPost, list, spec("shared", "shared.bank.example.com", "edge/public"))
	mustDo(t, mallory.raw, http.MethodPost, list, spec("rates", "rates.bank.svc.cluster.local", "mesh"))
	refused(t, do(t, mallory.raw, http.MethodPost, list, spec("more", "payments.bank.svc.cluster.local", "mesh")), http.StatusUnprocessableEntity, `"bank"`)
	mustDo(t, root, http.MethodPatch, clustersPath+"/bank", `{"spec":{"grants":null}}`)
	refused(t, do(t, mallory.raw, http.MethodPost, list, spec("again", "shared.bank.example.com", "edge/public")), http.StatusUnprocessableEntity, `"bank"`)
	// Nobody gives away what he has not.
	mustDo(t, root, http.MethodPatch, clustersPath+"/mallory", `{"spec":{"grants":[{"to":"platform","hosts":["mallory.example.com"]}]}}`)
}

func TestNamespacesAreMadeWithinTheClaims(t *testing.T) {
	mallory := twoTeams(t)
	body := func(name string) string {
		data, _ := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": name}})
		return string(data)
	}
	refused(t, do(t, mallory.raw, http.MethodPost, "/api/v1/namespaces", body("bank")), http.StatusForbidden, `virtual cluster "bank" owns it`, "mallory, mallory-*")
	refused(t, do(t, mallory.raw, http.MethodPost, "/api/v1/namespaces", body("free")), http.StatusForbidden, "nobody owns it", "spec.namespaces")
	refused(t, do(t, mallory.raw, http.MethodPost, "/api/v1/namespaces", body("edge")), http.StatusForbidden, `virtual cluster "platform" owns it`)
	mustDo(t, mallory.raw, http.MethodPost, "/api/v1/namespaces", body("mallory-eu"))
	for _, name := range []string{"default", "istio-system"} {
		mustDo(t, mallory.raw, http.MethodGet, "/api/v1/namespaces/"+name, "")
	}
	// The root namespace is there, and what it holds reaches nobody.
	mustDo(t, mallory.raw, http.MethodPost, "/apis/security.istio.io/v1/namespaces/istio-system/authorizationpolicies",
		`{"apiVersion":"security.istio.io/v1","kind":"AuthorizationPolicy","metadata":{"name":"open"},"spec":{}}`)
}
