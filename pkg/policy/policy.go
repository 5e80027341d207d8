// Package policy says what a virtual cluster may put into a mesh that it shares: which
// hosts its objects may speak for, where they may be exported to, which kinds, gateways
// and workloads they may use.
//
// Everything that is asked here is pure: the answer follows from the object and from what
// is owned, so that admission, the snapshot and a planned change get the same one.
package policy

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// Owners is what is owned in a mesh, as one virtual cluster of it sees it. It answers the
// same as long as it is used, and is asked by any number of goroutines.
type Owners interface {
	// Cluster is the virtual cluster's name.
	Cluster() string
	// RootNamespace is the mesh's.
	RootNamespace() string
	// Namespaces are the patterns of the namespaces that it claims; not to be modified.
	Namespaces() []v1alpha1.NamespacePattern
	// Rails are its guard rails; nil for none, which allows nothing.
	Rails() *v1alpha1.VirtualClusterGuardRails
	// Grants are what others of the mesh let it use, as they say. Whether a grant is the
	// giver's to give is asked of NamespaceOwner and HostOwner. Not to be modified.
	Grants() []v1alpha1.ReceivedGrant
	// Given are what it lets others use, as it says. Not to be modified.
	Given() []v1alpha1.VirtualClusterGrant

	// NamespaceOwner is the virtual cluster that owns a namespace, and the pattern by which
	// it does; empty if nobody does.
	NamespaceOwner(namespace string) (cluster string, by v1alpha1.NamespacePattern)
	// TakesOver says whether it may claim a namespace that another one owns, who hands it over.
	TakesOver(namespace string) bool
	// HostOwner is the virtual cluster that claims a host outside of the mesh's namespaces,
	// and the pattern by which it does; empty if nobody does. Of a wildcard (*.example.com,
	// or *) it is this virtual cluster only if it owns every host that the wildcard can
	// match; else another one that owns some of them; else nobody. Hosts are in lower case.
	HostOwner(host string) (cluster string, by v1alpha1.HostPattern)
	// Neighbour is another virtual cluster that claims namespaces of the mesh; empty if
	// there is none.
	Neighbour() string
}

// Violation is something in an object that its virtual cluster may not do.
type Violation struct {
	// Field is where, such as spec.hosts[0].
	Field string
	// Reason is why, as one word in CamelCase.
	Reason string
	// Message is why, with the owner's name, if somebody else is, and the remedy.
	Message string
}

// The reasons of violations.
const (
	// ReasonHostNotOwned: the object speaks for a host that is not the virtual cluster's.
	ReasonHostNotOwned = "HostNotOwned"
	// ReasonExportNotAllowed: the object is exported to where it may not be.
	ReasonExportNotAllowed = "ExportNotAllowed"
	// ReasonGatewayNotAllowed: the object is bound to a gateway that it may not use.
	ReasonGatewayNotAllowed = "GatewayNotAllowed"
	// ReasonKindNotAllowed: the kind must be allowed by name.
	ReasonKindNotAllowed = "KindNotAllowed"
	// ReasonSelectorNotAllowed: the object selects workloads that it may not.
	ReasonSelectorNotAllowed = "SelectorNotAllowed"
	// ReasonReferenceNotAllowed: the object works through something in a namespace of others.
	ReasonReferenceNotAllowed = "ReferenceNotAllowed"
	// ReasonAddressNotAllowed: the object takes addresses that could be those of others.
	ReasonAddressNotAllowed = "AddressNotAllowed"
	// ReasonInternal: the object uses what is Istio's own.
	ReasonInternal = "Internal"
	// ReasonUnreadable: it cannot be said what the object does.
	ReasonUnreadable = "Unreadable"
)

// The kinds of Istio that have a rule of their own.
const (
	virtualService  = "VirtualService"
	destinationRule = "DestinationRule"
	serviceEntry    = "ServiceEntry"
	gateway         = "Gateway"
)

// meshGateway is what VirtualServices call the sidecars of the mesh.
const meshGateway = "mesh"

// internal is what labels and annotations of Istio's own begin with.
const internal = "internal.istio.io/"

// restricted are the kinds that must be allowed by name, and why.
var restricted = map[string]string{
	"EnvoyFilter":      "it changes proxies in ways that nobody can check",
	"WasmPlugin":       "it runs code in proxies",
	"TrafficExtension": "it runs code in proxies",
	"ProxyConfig":      "it changes how proxies run",
}

// Check says what in an object of one of Istio's kinds (as VirtualService) its virtual
// cluster may not do in its mesh. Of an object in a namespace that the virtual cluster
// does not own it says nothing, since that does not reach the mesh.
//
// Kinds without a rule act on workloads of their own namespace alone: AuthorizationPolicy,
// PeerAuthentication, RequestAuthentication, Telemetry, Sidecar, WorkloadEntry and
// WorkloadGroup, whatever they select or refer to. In the root namespace they act on the
// whole mesh, and that namespace has one owner. What a Sidecar takes in from elsewhere is
// what was exported to it. A WorkloadEntry is an endpoint of services of its own namespace,
// whatever address it has.
func Check(kind string, o *object.Object, owners Owners) []Violation {
	if cluster, _ := owners.NamespaceOwner(o.Namespace); cluster != owners.Cluster() {
		return nil
	}
	c := &checker{self: owners.Cluster(), owners: owners, namespace: o.Namespace}
	c.internals("annotations", o.Annotations)
	c.internals("labels", o.Labels)
	if why, is := restricted[kind]; is {
		rails := owners.Rails()
		if rails == nil || !slices.Contains(rails.Kinds, v1alpha1.RestrictedKind(kind)) {
			c.violated("kind", ReasonKindNotAllowed, fmt.Sprintf("%s is off, because %s: have it allowed in spec.guardRails.kinds of virtual cluster %q", kind, why, c.self))
		}
		return c.violations
	}
	switch kind {
	case virtualService, destinationRule, serviceEntry, gateway:
	default:
		return c.violations
	}
	s, err := readSpec(o)
	if err != nil {
		c.violated("spec", ReasonUnreadable, fmt.Sprintf("it cannot be said what the object does: %v", err))
		return c.violations
	}
	switch kind {
	case virtualService:
		c.virtualService(s)
	case destinationRule:
		c.destinationRule(s)
	case serviceEntry:
		c.serviceEntry(s)
	case gateway:
		c.gateway(s)
	}
	return c.violations
}

// checker gathers what is wrong with one object.
type checker struct {
	self       string
	owners     Owners
	namespace  string // the object's
	violations []Violation
}

func (c *checker) violated(field, reason, message string) {
	c.violations = append(c.violations, Violation{Field: field, Reason: reason, Message: message})
}

// at is the field of an item of a list.
func at(list string, i int) string { return list + "[" + strconv.Itoa(i) + "]" }

// inRoot says whether the object acts on the whole mesh by its place. It got there because
// the virtual cluster owns that place.
func (c *checker) inRoot() bool { return c.namespace == c.owners.RootNamespace() }

func (c *checker) owns(namespace string) bool {
	cluster, _ := c.owners.NamespaceOwner(namespace)
	return cluster == c.self
}

// internals refuses what Istio marks the objects with that it makes itself: a Gateway with
// internal.istio.io/gateway-service selects by service in any namespace and not by labels,
// and parents and route semantics change whose an object is.
func (c *checker) internals(field string, of map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(Internals(of))) {
		c.violated("metadata."+field+"["+key+"]", ReasonInternal, "this is for what Istio makes itself: leave it out")
	}
}

// Internals are those of an object's labels or annotations that Check looks at; nil for
// none.
func Internals(of map[string]string) map[string]string {
	var out map[string]string
	for key, value := range of {
		if strings.HasPrefix(key, internal) {
			if out == nil {
				out = map[string]string{}
			}
			out[key] = value
		}
	}
	return out
}

// virtualService checks who is spoken for. Where requests go, to destinations, mirrors and
// delegates, is not asked: they are the virtual cluster's own, and whoever receives them
// decides by policies of his own namespace. A delegate is read, not changed, and is
// found only if it is exported here.
func (c *checker) virtualService(s *spec) {
	c.hosts("spec.hosts", s.hosts, true)
	for i, g := range s.gateways {
		if g == meshGateway {
			continue
		}
		namespace, name := resolveGateway(g, c.namespace)
		if namespace != "" && c.owns(namespace) || c.grantedGateway(namespace, name) {
			continue
		}
		owner, _ := c.owners.NamespaceOwner(namespace)
		message := fmt.Sprintf("gateway %q is in no namespace that anybody owns: use a gateway of your own namespaces", g)
		if owner != "" && namespace != "" {
			message = fmt.Sprintf("gateway %q is in namespace %q, which virtual cluster %q owns: use a gateway of your own, or have %s/%s granted to virtual cluster %q in spec.grants of %q",
				name, namespace, owner, namespace, name, c.self, owner)
		}
		c.violated(at("spec.gateways", i), ReasonGatewayNotAllowed, message)
	}
	c.exportTo(s)
	c.connections(s)
}

// resolveGateway is how Istio reads the name of a gateway: NAMESPACE/NAME, ./NAME, a name
// in the same namespace, or of old NAME.NAMESPACE and whatever follows.
func resolveGateway(s, local string) (namespace, name string) {
	if namespace, name, ok := strings.Cut(s, "/"); ok {
		if namespace == "." {
			namespace = local
		}
		return namespace, name
	}
	name, rest, dotted := strings.Cut(s, ".")
	if !dotted {
		return local, s
	}
	namespace, _, _ = strings.Cut(rest, ".")
	return namespace, name
}

func (c *checker) grantedGateway(namespace, name string) bool {
	owner, _ := c.owners.NamespaceOwner(namespace)
	if owner == "" {
		return false
	}
	for _, g := range c.owners.Grants() {
		if g.From == owner && slices.Contains(g.Gateways, namespace+"/"+name) {
			return true
		}
	}
	return false
}

// hosts checks a list of hosts. Istio completes names without dots with the object's own
// namespace where short is set, and elsewhere takes them as they are.
func (c *checker) hosts(field string, hosts []string, short bool) {
	for i, written := range hosts {
		if short && isShort(written) {
			continue
		}
		if reason, message := c.host(written); reason != "" {
			c.violated(at(field, i), reason, message)
		}
	}
}

// isShort says whether Istio completes a name: one without dots that is neither a star nor
// an address. One that begins with a star matches services of the own namespace then.
func isShort(written string) bool {
	if written == "*" || strings.Contains(written, ".") {
		return false
	}
	_, address := parseAddress(written)
	return !address
}

// destinationRule checks whose traffic is told how to go. In the root namespace it is the
// default for the whole mesh, behind what services and callers say in theirs.
func (c *checker) destinationRule(s *spec) {
	if !c.inRoot() && !isShort(s.host) {
		if reason, message := c.host(s.host); reason != "" {
			c.violated("spec.host", reason, message)
		}
	}
	c.exportTo(s)
}

// serviceEntry checks what is added to the mesh. Names are taken as they are, for callers
// of every namespace that it is exported to. Its endpoints, and the workloads of its own
// namespace that it selects, are where calls of its own hosts go.
func (c *checker) serviceEntry(s *spec) {
	c.hosts("spec.hosts", s.hosts, false)
	c.exportTo(s)
	c.connections(s)
}

// connections refuses to take the connections of others by something else than their name.
func (c *checker) connections(s *spec) {
	if everything, _ := c.allServices(); everything || c.inRoot() || !s.takesConnections() {
		return
	}
	for i, to := range s.exportTo {
		if to == "." || to == "~" || to != "*" && c.owns(to) {
			continue
		}
		why := "without the protocol HTTP, HTTP2, GRPC, HTTPS or TLS a port takes all connections to it that are for no known service"
		switch {
		case len(s.addresses) > 0:
			why = "spec.addresses may be those of others' services, and proxies go by the address"
		case s.subnets:
			why = "destinationSubnets may be those of others' services, and proxies go by the address"
		}
		c.violated(at("spec.exportTo", i), ReasonAddressNotAllowed, fmt.Sprintf(
			"what is exported to %s would take the connections of others there: %s: export it to namespaces of virtual cluster %q alone, or leave that out", to, why, c.self))
	}
}

// takesConnections says whether proxies tell by something else than the name whether a
// connection is for a ServiceEntry or VirtualService: by an address, which can be anyone's,
// or by the port alone. HTTP and TLS bear the name in themselves.
func (s *spec) takesConnections() bool {
	if len(s.addresses) > 0 || s.subnets {
		return true
	}
	for _, p := range s.protocols {
		switch strings.ToUpper(p) {
		case "HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTP_PROXY", "HTTPS", "TLS":
		default:
			return true
		}
	}
	return false
}

// gateway checks which proxies are made to listen and for what: a Gateway's selector finds
// pods of all namespaces, and none at all finds all.
func (c *checker) gateway(s *spec) {
	c.selector(s.selector)
	for i, server := range s.servers {
		field := at("spec.servers", i)
		for j, written := range server.hosts {
			// NAMESPACE/HOST: the namespace says whose VirtualServices may be bound to it, to
			// which theirs and this one's owners have both to agree.
			if _, after, ok := strings.Cut(written, "/"); ok {
				written = after
			}
			if reason, message := c.host(written); reason != "" {
				c.violated(at(field+".hosts", j), reason, message)
			}
		}
		for _, secret := range server.credentials {
			// A plain name is a secret beside the proxy. TYPE://NAMESPACE/NAME is anywhere.
			kind, path, typed := strings.Cut(secret.name, "://")
			namespace, _, elsewhere := strings.Cut(path, "/")
			if !typed || kind == "builtin" || kind == "invalid" || !elsewhere && kind == "kubernetes" || c.owns(namespace) {
				continue
			}
			c.violated(field+"."+secret.field, ReasonReferenceNotAllowed, fmt.Sprintf(
				"%q is in a namespace that virtual cluster %q does not own: name a secret in the namespace of the gateway's pods by its name alone", secret.name, c.self))
		}
	}
}

func (c *checker) selector(selector map[string]string) {
	rails := c.owners.Rails()
	if rails == nil || len(rails.GatewaySelectors) == 0 {
		c.violated("spec.selector", ReasonSelectorNotAllowed, fmt.Sprintf(
			"a Gateway selects pods of all namespaces: have the labels of those that it may select allowed in spec.guardRails.gatewaySelectors of virtual cluster %q", c.self))
		return
	}
	var allowed []string
	for _, labels := range rails.GatewaySelectors {
		if within(selector, labels.MatchLabels) {
			return
		}
		allowed = append(allowed, describeLabels(labels.MatchLabels))
	}
	c.violated("spec.selector", ReasonSelectorNotAllowed, fmt.Sprintf(
		"a Gateway selects pods of all namespaces, and this one has to name one of these: %s", strings.Join(allowed, "; ")))
}

// within says whether a selector names all of some labels, of which there are any.
func within(selector, labels map[string]string) bool {
	for key, value := range labels {
		if named, ok := selector[key]; !ok || named != value {
			return false
		}
	}
	return len(labels) > 0
}

func describeLabels(labels map[string]string) string {
	pairs := make([]string, 0, len(labels))
	for key, value := range labels {
		pairs = append(pairs, key+"="+value)
	}
	slices.Sort(pairs)
	return strings.Join(pairs, ",")
}
