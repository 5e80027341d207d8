package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// theMesh is what the tests of this package share: shop and bank are teams, edge has the
// gateways and the root namespace, and rest has what is left.
func theMesh(change ...func(map[string]*ownership.Claims)) *ownership.Index {
	all := map[string]*ownership.Claims{
		"shop": {
			Namespaces: []v1alpha1.NamespacePattern{"shop", "shop-*"}, Hosts: []v1alpha1.HostPattern{"shop.example.com", "*.shop.example.com", "192.0.2.1"},
			Rails: &v1alpha1.VirtualClusterGuardRails{GatewaySelectors: []v1alpha1.WorkloadLabels{{MatchLabels: map[string]string{"istio": "shop-gateway"}}}},
		},
		"bank": {
			Namespaces: []v1alpha1.NamespacePattern{"bank", "local"}, Hosts: []v1alpha1.HostPattern{"bank.example.com", "*.bank.example.com", "bank.io"},
			Grants: []v1alpha1.VirtualClusterGrant{{To: "shop", Hosts: []v1alpha1.HostPattern{"open.bank.example.com", "*.open.bank.example.com", "rates.bank.svc.cluster.local"}}},
		},
		"edge": {
			Namespaces: []v1alpha1.NamespacePattern{"edge", "istio-system"},
			Grants: []v1alpha1.VirtualClusterGrant{
				{To: "shop", Gateways: []string{"edge/public", "bank/not-theirs"}, Hosts: []v1alpha1.HostPattern{"vault.bank.example.com"}},
			},
		},
		"rest": {Namespaces: []v1alpha1.NamespacePattern{"*"}, Hosts: []v1alpha1.HostPattern{"*"}},
	}
	for _, c := range change {
		c(all)
	}
	var claims []ownership.Claims
	for name, c := range all {
		c.Cluster, c.Mesh = name, "default"
		claims = append(claims, *c)
	}
	return ownership.New(claims...)
}

// ungranted gives grants as they are written, also those that are not the giver's to give.
type ungranted struct {
	*ownership.View
	grants []v1alpha1.ReceivedGrant
}

func (u ungranted) Grants() []v1alpha1.ReceivedGrant { return u.grants }

func view(index *ownership.Index, cluster string) Owners {
	v := ungranted{View: index.View(cluster, "istio-system")}
	for c := range index.All() {
		for _, g := range c.Grants {
			if g.To == cluster {
				v.grants = append(v.grants, v1alpha1.ReceivedGrant{From: c.Cluster, Gateways: g.Gateways, Hosts: g.Hosts})
			}
		}
	}
	return v
}

// an is an object with a spec in JSON.
func an(t testing.TB, kind, namespace, spec string) *object.Object {
	t.Helper()
	o := object.New(schema.GroupVersionKind{Group: "networking.istio.io", Version: "v1", Kind: kind})
	o.Namespace, o.Name = namespace, "it"
	var content map[string]any
	if err := json.Unmarshal([]byte(`{"spec":`+spec+`}`), &content); err != nil {
		t.Fatal(err)
	}
	if err := o.SetContent(content); err != nil {
		t.Fatal(err)
	}
	return o
}

func describe(violations []Violation) string {
	var all []string
	for _, v := range violations {
		all = append(all, fmt.Sprintf("%s %s: %s", v.Field, v.Reason, v.Message))
	}
	return strings.Join(all, "\n")
}

func TestAHostIsSpokenForByWhoeverOwnsIt(t *testing.T) {
	index := theMesh()
	for _, c := range []struct {
		cluster, host string
		allowed       bool
	}{
		// Services of the own namespaces, in all that DNS and Istio take for them.
		{"shop", "reviews.shop.svc.cluster.local", true},
		{"shop", "reviews.shop-eu.svc.cluster.local", true},
		{"shop", "REVIEWS.Shop.svc.cluster.local", true},
		{"shop", "reviews.shop.svc.cluster.local.", true},
		{"shop", "reviews.shop.svc.clusterset.local", true},
		{"shop", "reviews.shop.svc", true},
		{"shop", "reviews.shop", true},
		{"shop", "*.shop.svc.cluster.local", true},
		{"shop", "*s.shop.svc.cluster.local", true},
		{"shop", "pod-0.reviews.shop.svc.cluster.local", true},
		{"shop", "*.reviews.shop.svc.cluster.local", true},
		{"shop", "outbound_.80_._.reviews.shop.svc.cluster.local", true},
		// Those of others.
		{"shop", "reviews.bank.svc.cluster.local", false},
		{"shop", "REVIEWS.BANK.SVC.CLUSTER.LOCAL", false},
		{"shop", "reviews.bank.svc.cluster.local.", false},
		{"shop", "reviews.bank.svc.clusterset.local", false},
		{"shop", "reviews.bank.svc", false},
		{"shop", "reviews.bank", false},
		{"shop", "Reviews.Bank.", false},
		{"shop", "*.bank", false},
		{"shop", "*s.bank", false},
		{"shop", "*.bank.svc", false},
		{"shop", "*.bank.svc.cluster.local", false},
		{"shop", "*s.bank.svc.cluster.local", false},
		{"shop", "shop.bank.svc.cluster.local", false},
		{"shop", "reviews.shop.bank.svc.cluster.local", false},
		{"shop", "outbound_.80_._.reviews.bank.svc.cluster.local", false},
		{"shop", "reviews.legacy", false},
		{"shop", "reviews.legacy.svc.cluster.local", false},
		{"shop", "reviews.shopping.svc.cluster.local", false},
		// Wildcards of more than the own. A star is any text for Istio.
		{"shop", "*", false},
		{"shop", "*.", false},
		{"shop", "*shop", false},
		{"shop", "*.local", false},
		{"shop", "*.cluster.local", false},
		{"shop", "*.svc.cluster.local", false},
		{"shop", "*op.svc.cluster.local", false},
		{"shop", "*shop.svc.cluster.local", false},
		{"shop", "*-eu.svc.cluster.local", false},
		{"shop", "*.svc", false},
		{"shop", "*.svc.clusterset.local", false},
		{"shop", "*.shop", false},
		{"shop", "*.com", false},
		{"shop", "*.example.com", false},
		{"shop", "*shop.example.com", false},
		{"shop", "*.bank.example.com", false},
		// Names in the mesh's domain that are no services.
		{"shop", "shop.svc.cluster.local", false},
		{"shop", "svc.cluster.local", false},
		{"shop", "cluster.local", false},
		{"shop", "10-0-0-1.shop.pod.cluster.local", false},
		{"shop", "shop.svc", false},
		// Names that mean something else to each caller.
		{"shop", "reviews", false},
		{"shop", "reviews.", false},
		{"rest", "reviews", false},
		// Claimed hosts.
		{"shop", "shop.example.com", true},
		{"shop", "Shop.Example.com.", true},
		{"shop", "api.shop.example.com", true},
		{"shop", "v2.api.shop.example.com", true},
		{"shop", "*.shop.example.com", true},
		{"shop", "*.api.shop.example.com", true},
		{"shop", "*-api.shop.example.com", true},
		{"shop", "*api.shop.example.com", true},
		{"shop", "example.com", false},
		{"shop", "bookshop.example.com", false},
		{"shop", "bank.example.com", false},
		{"shop", "api.bank.example.com", false},
		{"shop", "shop.example.com.evil.org", false},
		{"shop", "reviews.shop.svc.cluster.local.evil.org", false},
		{"bank", "bank.io", true},
		{"shop", "bank.io", false},
		// A domain whose last label is a namespace of others.
		{"bank", "printer.local", true},
		{"shop", "printer.local", false},
		{"rest", "printer.local", false},
		// All that nobody else claims.
		{"rest", "anything.org", true},
		{"rest", "a.anything.org", true},
		{"rest", "*.anything.org", true},
		{"rest", "x.example.com", true},
		{"rest", "reviews.legacy.svc.cluster.local", true},
		{"rest", "reviews.legacy", true},
		{"rest", "reviews.bank", false},
		{"rest", "api.bank.example.com", false},
		{"rest", "*.example.com", false},
		{"rest", "*.com", false},
		{"rest", "*.io", false},
		{"rest", "*", false},
		{"rest", "*.svc.cluster.local", false},
		// Addresses.
		{"shop", "192.0.2.1", true},
		{"shop", "192.0.2.2", false},
		{"shop", "192.0.2.0/24", false},
		{"shop", "2001:db8::1", false},
		{"rest", "192.0.2.2", false},
		{"rest", "*.0.2.1", false},
		// What nobody can own.
		{"rest", "", false},
		{"rest", ".", false},
		{"rest", "..", false},
		{"rest", "a..b", false},
		{"rest", ".example.org", false},
		{"rest", "example.org..", false},
		{"rest", "a.*.example.org", false},
		{"rest", "**", false},
		{"rest", "*.*.org", false},
		{"rest", "example.org:8080", false},
		{"rest", "bank/reviews.org", false},
		{"rest", "example.org ", false},
		{"rest", "exämple.org", false},
		{"rest", "bank.io\u200b", false},
		// Granted ones, if they were the giver's to give.
		{"shop", "open.bank.example.com", true},
		{"shop", "a.open.bank.example.com", true},
		{"shop", "*.open.bank.example.com", true},
		{"shop", "rates.bank.svc.cluster.local", true},
		{"shop", "rates.bank.svc", true},
		{"shop", "rates.bank", true},
		{"shop", "*.rates.bank.svc.cluster.local", false},
		{"shop", "vault.bank.example.com", false},
		{"rest", "open.bank.example.com", false},
	} {
		t.Run(c.cluster+" "+c.host, func(t *testing.T) {
			owners := view(index, c.cluster)
			ch := &checker{self: c.cluster, owners: owners}
			reason, message := ch.host(c.host)
			if (reason == "") != c.allowed || (message == "") != c.allowed {
				t.Errorf("got %q: %s", reason, message)
			}
		})
	}
}

func TestWhoIsAloneInAMeshSpeaksForEverything(t *testing.T) {
	alone := func(c map[string]*ownership.Claims) {
		delete(c, "shop")
		delete(c, "bank")
		delete(c, "edge")
	}
	owners := view(theMesh(alone), "rest")
	for _, host := range []string{"*", "*.local", "*.svc.cluster.local", "example.com", "reviews.any", "reviews", "10.0.0.1"} {
		if reason, message := (&checker{self: "rest", owners: owners}).host(host); reason != "" {
			t.Errorf("%s: %s", host, message)
		}
	}
	withoutHosts := func(c map[string]*ownership.Claims) { c["rest"].Hosts = nil }
	owners = view(theMesh(alone, withoutHosts), "rest")
	for host, allowed := range map[string]bool{"*": false, "*.local": true, "*.svc.cluster.local": true, "reviews.any.svc.cluster.local": true, "example.com": false, "a.example.com": false} {
		if reason, message := (&checker{self: "rest", owners: owners}).host(host); (reason == "") != allowed {
			t.Errorf("without hosts, %s: %s %s", host, reason, message)
		}
	}
}

func TestWhatAnObjectMayDo(t *testing.T) {
	index := theMesh()
	for _, c := range []struct {
		name, cluster, kind, namespace, spec string
		want                                 string // field and reason of each violation
	}{
		{"a route of an own service by its short name", "shop", virtualService, "shop", `{"hosts":["reviews"]}`, ""},
		{"a short name with a star", "shop", virtualService, "shop", `{"hosts":["*reviews"]}`, ""},
		{"any service by a star", "shop", virtualService, "shop", `{"hosts":["*"],"gateways":["edge/public"]}`, "spec.hosts[0] HostNotOwned"},
		{"several hosts", "shop", virtualService, "shop", `{"hosts":["reviews","reviews.bank.svc.cluster.local","bank.io"]}`, "spec.hosts[1] HostNotOwned, spec.hosts[2] HostNotOwned"},
		{"traffic that goes to others", "shop", virtualService, "shop",
			`{"hosts":["reviews"],"http":[{"route":[{"destination":{"host":"reviews.bank.svc.cluster.local"}}],"mirror":{"host":"x.bank.svc.cluster.local"}}]}`, ""},
		{"a delegate of others", "shop", virtualService, "shop", `{"hosts":["reviews"],"http":[{"delegate":{"name":"a","namespace":"bank"}}]}`, ""},
		{"a delegate", "shop", virtualService, "shop", `{"http":[{"route":[{"destination":{"host":"reviews"}}]}]}`, ""},
		{"an object that reaches no mesh", "shop", virtualService, "bank", `{"hosts":["reviews.bank"],"exportTo":["*"]}`, ""},
		{"an object of somebody without claims", "sandbox", virtualService, "shop", `{"hosts":["*"]}`, ""},

		{"own gateways", "shop", virtualService, "shop", `{"hosts":["reviews"],"gateways":["mesh","a","shop/a","./a","shop-eu/a","a.shop","a.shop.svc.cluster.local"]}`, ""},
		{"a granted gateway", "shop", virtualService, "shop", `{"hosts":["shop.example.com"],"gateways":["edge/public"]}`, ""},
		{"a granted gateway by its old name", "shop", virtualService, "shop", `{"hosts":["shop.example.com"],"gateways":["public.edge.svc.cluster.local"]}`, ""},
		{"gateways of others", "shop", virtualService, "shop",
			`{"hosts":["shop.example.com"],"gateways":["edge/private","bank/not-theirs","private.edge","private.edge.svc.cluster.local","nobody/a","/a","*/public","edge/mesh"]}`,
			"spec.gateways[0] GatewayNotAllowed, spec.gateways[1] GatewayNotAllowed, spec.gateways[2] GatewayNotAllowed, spec.gateways[3] GatewayNotAllowed, " +
				"spec.gateways[4] GatewayNotAllowed, spec.gateways[5] GatewayNotAllowed, spec.gateways[6] GatewayNotAllowed, spec.gateways[7] GatewayNotAllowed"},

		{"an export to the own", "shop", virtualService, "shop", `{"hosts":["reviews"],"exportTo":[".","shop-eu"]}`, ""},
		{"an export to the namespace of a granted gateway", "shop", virtualService, "shop", `{"hosts":["reviews"],"exportTo":[".","edge"]}`, ""},
		{"an export to all", "shop", virtualService, "shop", `{"hosts":["reviews"],"exportTo":["*"]}`, "spec.exportTo[0] ExportNotAllowed"},
		{"an export to others", "shop", destinationRule, "shop", `{"host":"reviews","exportTo":[".","bank"]}`, "spec.exportTo[1] ExportNotAllowed"},
		{"an export to nobody's", "shop", serviceEntry, "shop", `{"hosts":["shop.example.com"],"exportTo":["legacy"]}`, "spec.exportTo[0] ExportNotAllowed"},
		{"an export to nothing", "shop", serviceEntry, "shop", `{"hosts":["shop.example.com"],"exportTo":["~"]}`, ""},

		{"a route by the address, for others", "shop", virtualService, "shop",
			`{"hosts":["reviews"],"tcp":[{"route":[]},{"match":[{"port":80},{"destinationSubnets":["10.96.0.0/16"]}]}],"exportTo":[".","edge"]}`, "spec.exportTo[1] AddressNotAllowed"},
		{"a route by the address and the name, for others", "shop", virtualService, "shop",
			`{"hosts":["reviews"],"tls":[{"match":[{"sniHosts":["reviews"],"destinationSubnets":["10.96.0.0/16"]}]}],"exportTo":["edge"]}`, "spec.exportTo[0] AddressNotAllowed"},
		{"a route by the address, for the own", "shop", virtualService, "shop", `{"hosts":["reviews"],"tcp":[{"match":[{"destinationSubnets":["10.96.0.0/16"]}]}],"exportTo":["."]}`, ""},
		{"a route by the port, for others", "shop", virtualService, "shop", `{"hosts":["reviews"],"tcp":[{"match":[{"port":80,"destinationSubnets":[]}]}],"exportTo":["edge"]}`, ""},

		{"a rule for an own service", "shop", destinationRule, "shop", `{"host":"reviews"}`, ""},
		{"a rule for an own service by its name", "shop", destinationRule, "shop", `{"host":"reviews.shop.svc.cluster.local","subsets":[{"name":"v1"}]}`, ""},
		{"a rule for others", "shop", destinationRule, "shop", `{"host":"reviews.bank.svc.cluster.local","trafficPolicy":{"tls":{"mode":"DISABLE"}}}`, "spec.host HostNotOwned"},
		{"a rule for all", "shop", destinationRule, "shop", `{"host":"*.local"}`, "spec.host HostNotOwned"},
		{"a rule for the mesh in its root namespace", "edge", destinationRule, "istio-system", `{"host":"*.local","exportTo":["*"]}`, ""},
		{"a rule for the mesh elsewhere", "edge", destinationRule, "edge", `{"host":"*.local"}`, "spec.host HostNotOwned"},
		{"a route for the mesh in its root namespace", "edge", virtualService, "istio-system", `{"hosts":["bank.io"]}`, "spec.hosts[0] HostNotOwned"},

		{"an entry for a claimed host", "shop", serviceEntry, "shop", `{"hosts":["shop.example.com"],"ports":[{"number":443,"protocol":"TLS"}]}`, ""},
		{"an entry for a host of others", "shop", serviceEntry, "shop", `{"hosts":["bank.io"],"ports":[{"number":443,"protocol":"TLS"}]}`, "spec.hosts[0] HostNotOwned"},
		{"an entry for a service of others", "shop", serviceEntry, "shop", `{"hosts":["reviews.bank.svc.cluster.local"]}`, "spec.hosts[0] HostNotOwned"},
		{"an entry for a short name, which is every caller's", "shop", serviceEntry, "shop", `{"hosts":["reviews"]}`, "spec.hosts[0] HostNotOwned"},
		{"an entry with an address, for the own", "shop", serviceEntry, "shop", `{"hosts":["shop.example.com"],"addresses":["10.96.0.10"],"exportTo":["."]}`, ""},
		{"an entry with an address, for others", "shop", serviceEntry, "shop",
			`{"hosts":["shop.example.com"],"addresses":["0.0.0.0/0"],"resolution":"NONE","exportTo":["shop","edge"]}`, "spec.exportTo[1] AddressNotAllowed"},
		{"an entry that takes a port, for others", "shop", serviceEntry, "shop",
			`{"hosts":["shop.example.com"],"ports":[{"number":80,"protocol":"HTTP"},{"number":5432,"protocol":"tcp"}],"exportTo":["edge"]}`, "spec.exportTo[0] AddressNotAllowed"},
		{"an entry whose port says nothing, for others", "shop", serviceEntry, "shop",
			`{"hosts":["shop.example.com"],"ports":[{"number":80}],"exportTo":["edge"]}`, "spec.exportTo[0] AddressNotAllowed"},
		{"an entry by name, for others", "shop", serviceEntry, "shop",
			`{"hosts":["shop.example.com"],"ports":[{"number":80,"protocol":"http"},{"number":443,"protocol":"HTTPS"}],"exportTo":["edge"]}`, ""},
		{"an entry with an address in the root namespace", "edge", serviceEntry, "istio-system", `{"hosts":["x.edge.svc.cluster.local"],"addresses":["10.0.0.1"],"exportTo":["*"]}`, ""},

		{"a gateway", "shop", gateway, "shop",
			`{"selector":{"istio":"shop-gateway","more":"x"},"servers":[{"hosts":["./shop.example.com","*/api.shop.example.com","bank/reviews.shop"],"tls":{"credentialName":"cert"}}]}`, ""},
		{"a gateway on pods of others", "shop", gateway, "shop", `{"selector":{"istio":"ingressgateway"},"servers":[{"hosts":["shop.example.com"]}]}`, "spec.selector SelectorNotAllowed"},
		{"a gateway on all pods", "shop", gateway, "shop", `{"servers":[{"hosts":["shop.example.com"]}]}`, "spec.selector SelectorNotAllowed"},
		{"a gateway on all pods, in another way", "shop", gateway, "shop", `{"selector":{},"servers":[{"hosts":["shop.example.com"]}]}`, "spec.selector SelectorNotAllowed"},
		{"a gateway of who has none allowed", "bank", gateway, "bank", `{"selector":{"istio":"ingressgateway"},"servers":[{"hosts":["bank.io"]}]}`, "spec.selector SelectorNotAllowed"},
		{"a gateway for hosts of others", "shop", gateway, "shop", `{"selector":{"istio":"shop-gateway"},"servers":[{"hosts":["shop.example.com"]},{"hosts":["*","./bank.io","*/*.bank.io"]}]}`,
			"spec.servers[1].hosts[0] HostNotOwned, spec.servers[1].hosts[1] HostNotOwned, spec.servers[1].hosts[2] HostNotOwned"},
		{"a gateway with secrets of others", "shop", gateway, "shop",
			`{"selector":{"istio":"shop-gateway"},"servers":[{"hosts":["shop.example.com"],"tls":{"credentialName":"kubernetes-gateway://bank/cert","credentialNames":["ok","kubernetes://bank/cert"],"caCertCredentialName":"configmap://bank/ca"}}]}`,
			"spec.servers[0].tls.caCertCredentialName ReferenceNotAllowed, spec.servers[0].tls.credentialName ReferenceNotAllowed, spec.servers[0].tls.credentialNames[1] ReferenceNotAllowed"},
		{"a gateway with secrets of its own", "shop", gateway, "shop",
			`{"selector":{"istio":"shop-gateway"},"servers":[{"hosts":["shop.example.com"],"tls":{"credentialNames":["kubernetes-gateway://shop/cert","kubernetes://cert","builtin://"]}}]}`, ""},

		{"a filter", "shop", "EnvoyFilter", "shop", `{}`, "kind KindNotAllowed"},
		{"a plugin", "shop", "WasmPlugin", "shop", `{}`, "kind KindNotAllowed"},
		{"an extension", "shop", "TrafficExtension", "shop", `{}`, "kind KindNotAllowed"},
		{"a proxy's configuration", "edge", "ProxyConfig", "istio-system", `{}`, "kind KindNotAllowed"},
		{"a policy", "shop", "AuthorizationPolicy", "shop", `{"selector":{"matchLabels":{"app":"x"}}}`, ""},
		{"a sidecar", "shop", "Sidecar", "shop", `{"egress":[{"hosts":["*/*"]}]}`, ""},
		{"a workload", "shop", "WorkloadEntry", "shop", `{"address":"10.0.0.1"}`, ""},

		{"an object without a spec", "shop", virtualService, "shop", `null`, ""},
		{"hosts that are none", "shop", virtualService, "shop", `{"hosts":null,"gateways":null,"exportTo":null}`, ""},
		{"something that cannot be read", "shop", virtualService, "shop", `{"hosts":"reviews.bank"}`, "spec Unreadable"},
		{"something that cannot be read in a list", "shop", gateway, "shop", `{"servers":["x"]}`, "spec Unreadable"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			violations := Check(c.kind, an(t, c.kind, c.namespace, c.spec), view(index, c.cluster))
			for _, v := range violations {
				got = append(got, v.Field+" "+v.Reason)
				if v.Message == "" || strings.Contains(v.Message, `namespace ""`) {
					t.Errorf("says %q", v.Message)
				}
			}
			if strings.Join(got, ", ") != c.want {
				t.Errorf("got %s", describe(violations))
			}
		})
	}
}

func TestGuardRailsAllowMore(t *testing.T) {
	index := theMesh(func(c map[string]*ownership.Claims) {
		c["shop"].Rails = &v1alpha1.VirtualClusterGuardRails{
			Kinds:            []v1alpha1.RestrictedKind{"EnvoyFilter"},
			ExportTo:         []v1alpha1.NamespacePattern{"bank", "legacy-*"},
			GatewaySelectors: []v1alpha1.WorkloadLabels{{MatchLabels: map[string]string{"a": "1", "b": "2"}}, {}},
		}
		c["bank"].Rails = &v1alpha1.VirtualClusterGuardRails{ExportTo: []v1alpha1.NamespacePattern{"*"}}
	})
	for _, c := range []struct {
		cluster, kind, spec string
		allowed             bool
	}{
		{"shop", "EnvoyFilter", `{}`, true},
		{"shop", "WasmPlugin", `{}`, false},
		{"shop", virtualService, `{"hosts":["a"],"exportTo":["bank","legacy-1"]}`, true},
		{"shop", virtualService, `{"hosts":["a"],"exportTo":["legacy"]}`, false},
		{"shop", virtualService, `{"hosts":["a"],"exportTo":["*"]}`, false},
		{"bank", virtualService, `{"hosts":["a"],"exportTo":["*"]}`, true},
		{"bank", virtualService, `{"hosts":["a"],"exportTo":["shop"]}`, true},
		{"shop", gateway, `{"selector":{"a":"1","b":"2","c":"3"}}`, true},
		{"shop", gateway, `{"selector":{"a":"1"}}`, false},
		{"shop", gateway, `{"selector":{"a":"1","b":"3"}}`, false},
		{"shop", gateway, `{"selector":{}}`, false},
	} {
		t.Run(c.cluster+" "+c.kind+" "+c.spec, func(t *testing.T) {
			if got := Check(c.kind, an(t, c.kind, c.cluster, c.spec), view(index, c.cluster)); (len(got) == 0) != c.allowed {
				t.Errorf("got %s", describe(got))
			}
		})
	}
}

func TestWhatIsIstiosOwnIsRefused(t *testing.T) {
	owners := view(theMesh(), "shop")
	o := an(t, gateway, "shop", `{"selector":{"istio":"shop-gateway"},"servers":[{"hosts":["shop.example.com"]}]}`)
	o.Annotations = map[string]string{"internal.istio.io/gateway-service": "ingress.edge.svc.cluster.local", "note": "x", "internal.istio.io/parents": "x"}
	o.Labels = map[string]string{"internal.istio.io/always-push": "true", "istio.io/rev": "canary"}
	want := "metadata.annotations[internal.istio.io/gateway-service] metadata.annotations[internal.istio.io/parents] metadata.labels[internal.istio.io/always-push]"
	var got []string
	for _, v := range Check(gateway, o, owners) {
		got = append(got, v.Field)
	}
	if strings.Join(got, " ") != want {
		t.Errorf("got %s", got)
	}
}

func TestMessagesNameTheOwnerAndTheRemedy(t *testing.T) {
	index := theMesh()
	for _, c := range []struct{ cluster, kind, spec, want string }{
		{"shop", virtualService, `{"hosts":["reviews.bank.svc.cluster.local"]}`,
			`"reviews.bank.svc.cluster.local" is a service of namespace "bank", which virtual cluster "bank" owns: name a host of your own, or have reviews.bank.svc.cluster.local granted to virtual cluster "shop" in spec.grants of "bank"`},
		{"shop", virtualService, `{"hosts":["reviews.bank"]}`,
			`"reviews.bank" can be a service of namespace "bank", which virtual cluster "bank" owns: name a host of your own, or have reviews.bank.svc.cluster.local granted to virtual cluster "shop" in spec.grants of "bank"`},
		{"shop", virtualService, `{"hosts":["api.bank.example.com"]}`,
			`"api.bank.example.com" belongs to virtual cluster "bank": name a host of your own, or have api.bank.example.com granted to virtual cluster "shop" in spec.grants of "bank"`},
		{"shop", virtualService, `{"hosts":["*.local"]}`, `"*.local" matches services and hosts of others, such as those of virtual cluster "bank": name hosts of your own one by one`},
		{"shop", virtualService, `{"hosts":["a"],"gateways":["edge/private"]}`,
			`gateway "private" is in namespace "edge", which virtual cluster "edge" owns: use a gateway of your own, or have edge/private granted to virtual cluster "shop" in spec.grants of "edge"`},
		{"shop", virtualService, `{"hosts":["a"],"exportTo":["bank"]}`,
			`namespace "bank" is one that virtual cluster "bank" owns: name namespaces of your own, or have it allowed in spec.guardRails.exportTo of virtual cluster "shop"`},
		{"shop", "EnvoyFilter", `{}`, `EnvoyFilter is off, because it changes proxies in ways that nobody can check: have it allowed in spec.guardRails.kinds of virtual cluster "shop"`},
		{"shop", gateway, `{}`, `a Gateway selects pods of all namespaces, and this one has to name one of these: istio=shop-gateway`},
	} {
		t.Run(c.spec, func(t *testing.T) {
			got := Check(c.kind, an(t, c.kind, "shop", c.spec), view(index, c.cluster))
			if len(got) != 1 || got[0].Message != c.want {
				t.Errorf("got %s", describe(got))
			}
		})
	}
	nobody := theMesh(func(c map[string]*ownership.Claims) { delete(c, "rest") })
	got := Check(virtualService, an(t, virtualService, "shop", `{"hosts":["a.b.org","x.free.svc.cluster.local"],"gateways":["free/a"],"exportTo":["free"]}`), view(nobody, "shop"))
	for i, want := range []string{
		`"a.b.org" is claimed by nobody: name a host of your own, or have it claimed in spec.hosts of virtual cluster "shop"`,
		`"x.free.svc.cluster.local" is a service of namespace "free", which nobody owns: name a host of your own, or have it claimed in spec.namespaces of virtual cluster "shop"`,
		`gateway "free/a" is in no namespace that anybody owns: use a gateway of your own namespaces`,
		`namespace "free" is one that nobody owns: name namespaces of your own, or have it allowed in spec.guardRails.exportTo of virtual cluster "shop"`,
	} {
		if i >= len(got) || got[i].Message != want {
			t.Fatalf("got %s", describe(got))
		}
	}
}

func TestWhatSaysNothingIsExportedToTheOwnNamespaces(t *testing.T) {
	index := theMesh(func(c map[string]*ownership.Claims) {
		c["shop"].Rails = &v1alpha1.VirtualClusterGuardRails{ExportTo: []v1alpha1.NamespacePattern{"legacy", "old-*"}}
		c["bank"].Rails = &v1alpha1.VirtualClusterGuardRails{ExportTo: []v1alpha1.NamespacePattern{"*"}}
	})
	small := theMesh(func(c map[string]*ownership.Claims) {
		c["shop"] = &ownership.Claims{Namespaces: []v1alpha1.NamespacePattern{"shop"}}
	})
	alone := theMesh(func(c map[string]*ownership.Claims) {
		delete(c, "shop")
		delete(c, "bank")
		delete(c, "edge")
	})
	existing := []string{"shop-eu", "shop-us", "default", "bank", "legacy", "istio-system"}
	for _, c := range []struct {
		name                           string
		index                          *ownership.Index
		cluster, kind, namespace, spec string
		want                           string
	}{
		{"a route", index, "shop", virtualService, "shop", `{"hosts":["a"]}`, ". edge legacy shop-eu shop-us"},
		{"a route elsewhere", index, "shop", virtualService, "shop-eu", `{"hosts":["a"],"exportTo":[]}`, ". edge legacy shop shop-us"},
		{"a route by the address", index, "shop", virtualService, "shop", `{"hosts":["a"],"tcp":[{"match":[{"destinationSubnets":["10.0.0.0/8"]}]}]}`, ". shop-eu shop-us"},
		{"a route by the address of who may export to all", index, "bank", virtualService, "bank", `{"hosts":["a"],"tcp":[{"match":[{"destinationSubnets":["10.0.0.0/8"]}]}]}`, ". local"},
		{"a rule", index, "shop", destinationRule, "shop", `{"host":"a"}`, ". edge legacy shop-eu shop-us"},
		{"a rule for workloads of its namespace", index, "shop", destinationRule, "shop", `{"host":"a","workloadSelector":{"matchLabels":{"a":"b"}}}`, "unchanged"},
		{"an entry", index, "shop", serviceEntry, "shop", `{"hosts":["a"]}`, ". edge legacy shop-eu shop-us"},
		{"an entry with an address", index, "shop", serviceEntry, "shop", `{"hosts":["a"],"addresses":["10.0.0.1"]}`, ". shop-eu shop-us"},
		{"an entry with an address of who may export to all", index, "bank", serviceEntry, "bank", `{"hosts":["a"],"addresses":["10.0.0.1"]}`, ". local"},
		{"an entry of who may export to all", index, "bank", serviceEntry, "bank", `{"hosts":["a"]}`, "unchanged"},
		{"a route of who may export to all", index, "bank", virtualService, "bank", `{"hosts":["a"]}`, "unchanged"},
		{"a route that says where", index, "shop", virtualService, "shop", `{"hosts":["a"],"exportTo":["."]}`, "unchanged"},
		{"a gateway", index, "shop", gateway, "shop", `{}`, "unchanged"},
		{"what cannot be read", index, "shop", virtualService, "shop", `{"hosts":3}`, "unchanged"},
		{"the mesh's own", index, "edge", destinationRule, "istio-system", `{"host":"*.local"}`, "unchanged"},
		{"one namespace", small, "shop", virtualService, "shop", `{"hosts":["a"]}`, ". edge"},
		{"a star among others", index, "rest", virtualService, "default", `{"hosts":["a"]}`, ". legacy"},
		{"a star alone", alone, "rest", virtualService, "default", `{"hosts":["a"]}`, "unchanged"},
		{"an entry with an address of who is alone", alone, "rest", serviceEntry, "default", `{"hosts":["a"],"addresses":["10.0.0.1"]}`, "unchanged"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := an(t, c.kind, c.namespace, c.spec)
			before := string(o.Body())
			to, changed := NewExports(view(c.index, c.cluster), existing).ExportTo(c.kind, o)
			got := "unchanged"
			if changed {
				got = strings.Join(to, " ")
			}
			if got != c.want {
				t.Fatalf("got %s", got)
			}
			if !changed {
				return
			}
			exported, err := WithExportTo(o, to)
			if err != nil {
				t.Fatal(err)
			}
			s, err := readSpec(exported)
			if err != nil || !slices.Equal(s.exportTo, to) {
				t.Errorf("exported to %v, %v", s, err)
			}
			if string(o.Body()) != before {
				t.Error("the object was changed")
			}
			if exported.Name != o.Name || exported.Namespace != o.Namespace || len(s.hosts) == 0 && s.host == "" {
				t.Errorf("something is lost: %+v", exported)
			}
			if found := Check(c.kind, exported, view(c.index, c.cluster)); slices.ContainsFunc(found, func(v Violation) bool { return strings.HasPrefix(v.Field, "spec.exportTo") }) {
				t.Errorf("what is made is not allowed: %s", describe(found))
			}
		})
	}
}

func TestExportsAreEqualWhenTheyGiveTheSame(t *testing.T) {
	index := theMesh()
	a, b := NewExports(view(index, "shop"), []string{"shop-eu", "x"}), NewExports(view(index, "shop"), []string{"y", "shop-eu", "shop"})
	if !a.Equal(b) {
		t.Error("they differ by what is not theirs")
	}
	for name, c := range map[string]*Exports{
		"one more namespace": NewExports(view(index, "shop"), []string{"shop-eu", "shop-us"}),
		"everything":         NewExports(view(theMesh(func(c map[string]*ownership.Claims) { c["shop"].Rails.ExportTo = []v1alpha1.NamespacePattern{"*"} }), "shop"), []string{"shop-eu"}),
	} {
		if a.Equal(c) {
			t.Errorf("%s is the same", name)
		}
	}
}

// FuzzHost holds what is decided about one host against what Istio would match by it: who
// may speak for it may not thereby reach a name of others.
func FuzzHost(f *testing.F) {
	index := theMesh()
	for _, s := range []string{"*", "*.local", "reviews.bank", "*s.bank.svc.cluster.local", "API.Bank.example.com.", "*k.io", "*.", "a..b", "10.0.0.1", "*ank.svc.cluster.local"} {
		f.Add(s)
	}
	others := []string{
		"reviews.bank.svc.cluster.local", "reviews.bank.svc.clusterset.local", "reviews.bank.svc", "reviews.bank", "pod.reviews.bank.svc.cluster.local",
		"bank.example.com", "api.bank.example.com", "bank.io", "reviews.edge.svc.cluster.local", "a.istio-system", "reviews.legacy", "x.org", "reviews", "10.0.0.1",
		"bookshop.example.com", "reviews.shopping.svc.cluster.local",
	}
	f.Fuzz(func(t *testing.T, written string) {
		c := &checker{self: "shop", owners: view(index, "shop")}
		reason, message := c.host(written)
		if (reason == "") != (message == "") {
			t.Fatalf("%q: %q %q", written, reason, message)
		}
		if reason != "" {
			return
		}
		// Envoy's and Istio's reading: in lower case, a star being any text, a dot at the end or not.
		pattern := strings.ToLower(written)
		for _, other := range others {
			for _, name := range []string{other, other + "."} {
				suffix, wildcard := strings.CutPrefix(pattern, "*")
				if wildcard && strings.HasSuffix(name, suffix) || name == pattern {
					t.Fatalf("who speaks for %q gets %q", written, name)
				}
			}
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	claims := make([]ownership.Claims, 1000)
	for i := range claims {
		name := fmt.Sprintf("team-%d", i)
		claims[i] = ownership.Claims{
			Cluster: name, Mesh: "default", Namespaces: []v1alpha1.NamespacePattern{v1alpha1.NamespacePattern(name), v1alpha1.NamespacePattern(name + "-*")},
			Hosts:  []v1alpha1.HostPattern{v1alpha1.HostPattern(name + ".example.com"), v1alpha1.HostPattern("*." + name + ".example.com")},
			Grants: []v1alpha1.VirtualClusterGrant{{To: fmt.Sprintf("team-%d", (i+1)%1000), Gateways: []string{name + "/public"}, Hosts: []v1alpha1.HostPattern{"*.open." + v1alpha1.HostPattern(name) + ".example.com"}}},
		}
	}
	index := ownership.New(claims...)
	o := an(b, virtualService, "team-500", `{"hosts":["reviews","reviews.team-500-eu.svc.cluster.local","api.team-500.example.com","a.open.team-499.example.com"],`+
		`"gateways":["mesh","team-499/public"],"exportTo":[".","team-500-eu"],"http":[{"match":[{"headers":{"x":{"exact":"y"}}}],"route":[{"destination":{"host":"reviews","subset":"v1"}}]}]}`)
	b.ReportAllocs()
	for b.Loop() {
		if got := Check(virtualService, o, index.View("team-500", "istio-system")); len(got) > 0 {
			b.Fatal(describe(got))
		}
	}
}

func BenchmarkWithExportTo(b *testing.B) {
	o := an(b, virtualService, "shop", `{"hosts":["reviews"],"http":[{"match":[{"headers":{"x":{"exact":"y"}}}],"route":[{"destination":{"host":"reviews","subset":"v1"}}]}]}`)
	o.DropContent()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := WithExportTo(o, []string{".", "a", "b"}); err != nil {
			b.Fatal(err)
		}
	}
}
