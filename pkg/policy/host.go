package policy

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// serviceDomains are what the names of the mesh's services end in, the canonical one
// first: that of the cluster, that of services of several clusters, and what DNS and Istio
// let callers leave out of the first.
var serviceDomains = [...]string{".svc.cluster.local", ".svc.clusterset.local", ".svc"}

// meshDomains are domains that only services of the mesh are named in. A wildcard of one
// matches services of all namespaces.
var meshDomains = [...]string{"svc.cluster.local", "cluster.local", "svc.clusterset.local", "clusterset.local", "svc"}

// host is a name, or a wildcard: all names that end in it.
type host struct {
	// text is in lower case, without the star, and without the dot that a name may end in.
	// Of a wildcard it is a domain, empty for all.
	text     string
	wildcard bool
}

func (h host) String() string {
	switch {
	case !h.wildcard:
		return h.text
	case h.text == "":
		return "*"
	}
	return "*." + h.text
}

// parseHost reads what Istio and Envoy take for a host. Envoy compares without regard to
// case, and Istio lets a name end in a dot. Istio's star stands for any text and not for
// labels alone: *shop.example.com matches all of bookshop.example.com, a.shop.example.com
// and shop.example.com, so it is taken for the domain around it.
func parseHost(s string) (host, bool) {
	s = strings.TrimSuffix(strings.ToLower(s), ".")
	h := host{text: s}
	if text, wildcard := strings.CutPrefix(s, "*"); wildcard {
		h.wildcard = true
		if domain, whole := strings.CutPrefix(text, "."); whole {
			h.text = domain
		} else {
			_, h.text, _ = strings.Cut(text, ".")
		}
		if text == "" || h.text == "" {
			return host{wildcard: true}, validLabels(strings.TrimPrefix(text, ".")) || text == "" || text == "."
		}
	}
	return h, validLabels(h.text)
}

// validLabels says whether a text is labels with single dots between them. Underscores are
// in the names that Istio makes for passing TLS through.
func validLabels(s string) bool {
	label := 0
	for i := range len(s) {
		switch b := s[i]; {
		case b == '.':
			if label == 0 {
				return false
			}
			label = 0
		case b >= 'a' && b <= 'z', b >= '0' && b <= '9', b == '-', b == '_':
			label++
		default:
			return false
		}
	}
	return label > 0
}

// covers says whether a pattern names a host, or all hosts of a wildcard.
func covers(p v1alpha1.HostPattern, h host) bool {
	pattern, ok := parseHost(string(p))
	if !ok {
		return false
	}
	if !pattern.wildcard {
		return !h.wildcard && h.text == pattern.text
	}
	if pattern.text == "" {
		return true
	}
	return strings.HasSuffix(h.text, "."+pattern.text) || h.wildcard && h.text == pattern.text
}

// service finds the namespace of the service that a host names, or of the services that a
// wildcard matches, and what grants call it.
func (h host) service() (namespace string, canonical host, ok bool) {
	text := h.text
	if h.wildcard {
		text = "*." + text
	}
	for _, domain := range serviceDomains {
		rest, is := strings.CutSuffix(text, domain)
		if !is {
			continue
		}
		// What is before the namespace may have dots: the pods of a headless service.
		at := strings.LastIndexByte(rest, '.')
		if at <= 0 || rest[at+1:] == "" || rest[at+1:] == "*" {
			return "", host{}, false
		}
		rest = strings.TrimPrefix(rest, "*.")
		return rest[strings.LastIndexByte(rest, '.')+1:], host{text: rest + serviceDomains[0], wildcard: h.wildcard}, true
	}
	return "", host{}, false
}

// inMesh says whether a host can only be one of the mesh's services, if anything.
func (h host) inMesh() bool {
	for _, domain := range meshDomains {
		if h.text == domain || strings.HasSuffix(h.text, "."+domain) {
			return true
		}
	}
	return false
}

// allServices says whether all namespaces that there can be in the mesh are the virtual
// cluster's, and else names somebody to whom others belong, if there is anybody.
func (c *checker) allServices() (bool, string) {
	if neighbour := c.owners.Neighbour(); neighbour != "" {
		return false, neighbour
	}
	for _, p := range c.owners.Namespaces() {
		if p == v1alpha1.AnyNamespace {
			return true, ""
		}
	}
	return false, ""
}

// alone says whether there is nobody else in the mesh, and nothing that is not the virtual
// cluster's: then it cannot be in anybody's way.
func (c *checker) alone() bool {
	if all, _ := c.allServices(); !all {
		return false
	}
	cluster, _ := c.owners.HostOwner(string(v1alpha1.AnyHost))
	return cluster == c.self
}

// host says why the virtual cluster may not speak for a host that Istio takes as it is
// written; empty if it may.
func (c *checker) host(written string) (reason, message string) {
	const notOwned = ReasonHostNotOwned
	if c.alone() {
		return "", ""
	}
	if address, is := parseAddress(written); is {
		// A wildcard of hosts names no addresses, although Istio would match *.0.1 with one.
		if cluster, by := c.owners.HostOwner(address); cluster == c.self && string(by) == address {
			return "", ""
		}
		return notOwned, fmt.Sprintf("%q is an address, which may be that of another's service: name a host, or have the address claimed in spec.hosts of virtual cluster %q", written, c.self)
	}
	h, ok := parseHost(written)
	if !ok {
		return notOwned, fmt.Sprintf("%q is no host that anybody can own: name a service of your namespaces, or a host", written)
	}
	if namespace, canonical, is := h.service(); is {
		cluster, _ := c.owners.NamespaceOwner(namespace)
		if cluster == c.self || c.granted(canonical, cluster) {
			return "", ""
		}
		what := "is a service"
		if h.wildcard {
			what = "matches the services"
		}
		return notOwned, c.refusal(written, fmt.Sprintf("%s of namespace %q", what, namespace), cluster, canonical.String(), "namespaces")
	}
	if h.wildcard && (h.text == "" || h.text == "local" || h.inMesh()) {
		all, neighbour := c.allServices()
		external, _ := c.owners.HostOwner(h.String())
		switch {
		case h.text == "" && all && external != c.self:
			neighbour = external
		case h.text == "local" && all && external != c.self && external != "":
			neighbour = external
		case all:
			return "", ""
		}
		return notOwned, c.refusal(written, "matches services and hosts of others", neighbour, "", "")
	}
	if h.inMesh() {
		return notOwned, fmt.Sprintf("%q is in the domain of the mesh's services and names none of them: use NAME.NAMESPACE%s with a namespace that virtual cluster %q owns", written, serviceDomains[0], c.self)
	}
	return c.outside(written, h)
}

// outside is host for what names no service in full. Callers may yet mean one by it: DNS
// and Istio take reviews.shop for the service reviews of the namespace shop, and reviews
// for that of the caller's namespace.
func (c *checker) outside(written string, h host) (reason, message string) {
	claimer, by := c.owners.HostOwner(h.String())
	mine := claimer == c.self
	byName := mine && by != v1alpha1.AnyHost
	namespace, short := h.text, h.wildcard && !strings.Contains(h.text, ".")
	if !h.wildcard {
		switch before, after, two := strings.Cut(h.text, "."); {
		case !two && byName:
			return "", ""
		case !two:
			return ReasonHostNotOwned, fmt.Sprintf("%q is what callers of every namespace call a service of their own: use its full name, %s.NAMESPACE%s", written, before, serviceDomains[0])
		case !strings.Contains(after, "."):
			namespace, short = after, true
		}
	}
	if short {
		inside, pattern := c.owners.NamespaceOwner(namespace)
		explicit := pattern != v1alpha1.AnyNamespace
		full := host{text: h.text + serviceDomains[0], wildcard: h.wildcard}
		switch {
		case inside == "" || inside == c.self:
			// reviews.shop in a namespace that is claimed by its name. Not so by a star, or who
			// has that would own example.com.
			if inside == c.self && explicit && !h.wildcard && (claimer == "" || by == v1alpha1.AnyHost) {
				return "", ""
			}
		case explicit || mine && !byName:
			if c.granted(full, inside) {
				return "", ""
			}
			what := fmt.Sprintf("can be a service of namespace %q", namespace)
			return ReasonHostNotOwned, c.refusal(written, what, inside, full.String(), "namespaces")
		}
	}
	if mine || claimer != "" && by != v1alpha1.AnyHost && covers(by, h) && c.granted(h, claimer) || claimer != "" && !h.wildcard && c.granted(h, claimer) {
		return "", ""
	}
	return ReasonHostNotOwned, c.refusal(written, "", claimer, h.String(), "hosts")
}

// granted says whether the owner of a host lets the virtual cluster speak for it.
func (c *checker) granted(h host, owner string) bool {
	if owner == "" {
		return false
	}
	for _, g := range c.owners.Grants() {
		if g.From != owner {
			continue
		}
		for _, p := range g.Hosts {
			if covers(p, h) {
				return true
			}
		}
	}
	return false
}

// refusal says that a host is somebody else's. claim is the field in which it could be
// claimed; grant is what to ask for.
func (c *checker) refusal(written, what, owner, grant, claim string) string {
	b := &strings.Builder{}
	fmt.Fprintf(b, "%q ", written)
	switch {
	case what != "" && owner != "":
		fmt.Fprintf(b, "%s, which virtual cluster %q owns", what, owner)
		if grant == "" {
			b.Reset()
			fmt.Fprintf(b, "%q %s, such as those of virtual cluster %q", written, what, owner)
		}
	case what != "" && claim != "":
		fmt.Fprintf(b, "%s, which nobody owns", what)
	case what != "":
		fmt.Fprint(b, what)
	case owner != "":
		fmt.Fprintf(b, "belongs to virtual cluster %q", owner)
	default:
		fmt.Fprint(b, "is claimed by nobody")
	}
	switch {
	case owner != "" && grant != "":
		fmt.Fprintf(b, ": name a host of your own, or have %s granted to virtual cluster %q in spec.grants of %q", grant, c.self, owner)
	case claim != "":
		fmt.Fprintf(b, ": name a host of your own, or have it claimed in spec.%s of virtual cluster %q", claim, c.self)
	default:
		fmt.Fprint(b, ": name hosts of your own one by one")
	}
	return b.String()
}

// parseAddress reads an address or a block of them.
func parseAddress(s string) (string, bool) {
	s = strings.TrimSuffix(s, ".")
	if a, err := netip.ParseAddr(s); err == nil {
		return a.String(), true
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.String(), true
	}
	return s, false
}
