package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/vmesh-io/vmesh/pkg/apis/kind/jsonscan"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// ReasonHostTaken: an older object of another virtual cluster speaks for the same host in
// the same places.
const ReasonHostTaken = "HostTaken"

// Shared is what an object says for hosts for which, by a grant, another virtual cluster may
// speak as well. It does not change.
type Shared struct {
	// Hosts are these hosts in full and in lower case, sorted.
	Hosts []string
	// takes says that it leaves nothing of them to who comes after it, and yields that nothing
	// is left of what it says for one that is taken. If it is about them alone, it has no
	// effect where all of them are taken.
	takes, yields, alone bool
	// Whoever is in one of these namespaces sees it, everybody if all is set. They are sorted.
	exportTo []string
	all      bool

	kind, cluster, namespace, name string
	created                        int64
}

// Share finds out what an object, as the mesh sees it, says for hosts that are shared by a
// grant; nil if that is nothing. Only what cannot be in the mesh twice counts: ServiceEntries,
// and VirtualServices for the sidecars. Control planes merge VirtualServices at a gateway, and
// look for DestinationRules where the caller is, then where the service is.
func Share(kind string, o *object.Object, owners Owners) *Shared {
	if kind != virtualService && kind != serviceEntry || !shares(owners) {
		return nil
	}
	s, err := readSpec(o)
	if err != nil {
		return nil // Check has refused it
	}
	out := &Shared{kind: kind, cluster: owners.Cluster(), namespace: o.Namespace, name: o.Name, created: o.CreationTimestamp.Unix()}
	if !out.export(s.exportTo) {
		return nil
	}
	out.takes, out.yields, out.alone = true, true, true
	for _, written := range s.hosts {
		name := strings.ToLower(written)
		if kind == virtualService && isShort(written) {
			name += "." + o.Namespace + serviceDomains[0]
		}
		if sharedHost(name, owners) {
			out.Hosts = append(out.Hosts, name)
		} else {
			out.alone = false
		}
	}
	if len(out.Hosts) == 0 {
		return nil
	}
	if kind == virtualService {
		if len(s.gateways) > 0 {
			// At gateways it is merged with others and says something in any case.
			sidecars := slices.Contains(s.gateways, meshGateway)
			out.takes, out.yields = sidecars, sidecars
			out.alone = out.alone && !slices.ContainsFunc(s.gateways, func(g string) bool { return g != meshGateway })
		}
		everything, httpOnly, ok := readRoutes(o)
		out.takes, out.yields = out.takes && everything && ok, out.yields && httpOnly && ok
	}
	if !out.takes && !out.yields {
		return nil
	}
	slices.Sort(out.Hosts)
	out.Hosts = slices.Compact(out.Hosts)
	return out
}

// shares says whether hosts are granted to the virtual cluster or by it.
func shares(owners Owners) bool {
	return slices.ContainsFunc(owners.Grants(), func(g v1alpha1.ReceivedGrant) bool { return len(g.Hosts) > 0 }) ||
		slices.ContainsFunc(owners.Given(), func(g v1alpha1.VirtualClusterGrant) bool { return len(g.Hosts) > 0 })
}

// sharedHost says whether a grant, received or given, names a host, by whichever of its names.
func sharedHost(name string, owners Owners) bool {
	h, ok := parseHost(name)
	if !ok {
		return false
	}
	names := []host{h, {text: h.text + serviceDomains[0], wildcard: h.wildcard}}
	if _, canonical, is := h.service(); is {
		names = append(names, canonical)
	}
	named := func(p v1alpha1.HostPattern) bool {
		return slices.ContainsFunc(names, func(h host) bool { return covers(p, h) })
	}
	return slices.ContainsFunc(owners.Grants(), func(g v1alpha1.ReceivedGrant) bool { return slices.ContainsFunc(g.Hosts, named) }) ||
		slices.ContainsFunc(owners.Given(), func(g v1alpha1.VirtualClusterGrant) bool { return slices.ContainsFunc(g.Hosts, named) })
}

// export takes in where the object is exported to, as Istio reads it; false for nowhere.
func (s *Shared) export(to []string) bool {
	if s.all = len(to) == 0 || slices.Contains(to, "*"); s.all {
		return true
	}
	if slices.Contains(to, "~") {
		return false
	}
	for _, namespace := range to {
		if namespace == "." {
			namespace = s.namespace
		}
		s.exportTo = append(s.exportTo, namespace)
	}
	slices.Sort(s.exportTo)
	s.exportTo = slices.Compact(s.exportTo)
	return true
}

func (s *Shared) seenIn(namespace string) bool {
	if s.all {
		return true
	}
	_, is := slices.BinarySearch(s.exportTo, namespace)
	return is
}

// Compare orders what is said by age, the oldest first, as control planes do: by the second,
// then by names.
func (s *Shared) Compare(to *Shared) int {
	if order := cmp.Compare(s.created, to.created); order != 0 {
		return order
	}
	if s.kind == serviceEntry { // where the host is looked at before, and not the object's name
		return cmp.Or(cmp.Compare(s.namespace, to.namespace), cmp.Compare(s.name, to.name))
	}
	return cmp.Or(cmp.Compare(s.name, to.name), cmp.Compare(s.namespace, to.namespace))
}

// TakesFrom says whether a younger object of another virtual cluster comes too late with a
// host of both: whoever sees that sees this one too, and outside of its own namespace,
// where it is seen at all, it is nowhere nearer. What is exported to a namespace by its name
// is nearer than what is exported to all, and a ServiceEntry of the callers' own namespace is
// nearest.
func (s *Shared) TakesFrom(younger *Shared) bool {
	if !s.takes || !younger.yields || s.cluster == younger.cluster || s.kind != younger.kind || s.Compare(younger) >= 0 {
		return false
	}
	if younger.all {
		return s.all
	}
	outside := false
	for _, namespace := range younger.exportTo {
		if !s.seenIn(namespace) {
			return false
		}
		if namespace == younger.namespace {
			continue
		}
		outside = true
		if s.all && (s.kind != serviceEntry || namespace != s.namespace) {
			return false
		}
	}
	return outside
}

// Alone says whether the object is about hosts that are shared and nothing else, and thus
// without any effect when all of them are taken.
func (s *Shared) Alone() bool { return s.alone }

// Cluster is the virtual cluster of the object.
func (s *Shared) Cluster() string { return s.cluster }

// Taken says that an object has lost a host, which this one has: a VirtualService for the
// sidecars, as at gateways all are merged.
func (s *Shared) Taken(host string) Violation {
	where := ""
	if s.kind == virtualService {
		where = " at gateway mesh"
	}
	return Violation{Field: "spec.hosts", Reason: ReasonHostTaken, Message: fmt.Sprintf(
		"%q is taken%s: %s %s/%s of virtual cluster %q is older and is seen by all that would see this one: agree on one of them, or export this one to its own namespace alone (exportTo: [\".\"])",
		host, where, s.kind, s.namespace, s.name, s.cluster)}
}

// readRoutes says whether a VirtualService has HTTP routes that leave nothing of a host to
// others, whoever calls and on whichever port, and whether all its routes are HTTP's.
func readRoutes(o *object.Object) (everything, httpOnly, ok bool) {
	c := jsonscan.New(o.Field("spec"))
	httpOnly = true
	ok = c.Members(func(name []byte) bool {
		switch string(name) {
		case "http":
			return each(c, func() bool {
				always, ok := readMatches(c)
				everything = everything || always
				return ok
			})
		case "tls", "tcp":
			return each(c, func() bool {
				httpOnly = false
				return c.Skip()
			})
		}
		return c.Skip()
	})
	return everything, httpOnly, ok
}

// readMatches says whether a route is there for every caller and port. Requests that it does
// not match find no other VirtualService then.
func readMatches(c *jsonscan.Cursor) (always, ok bool) {
	matches, delegate := 0, false
	ok = c.Members(func(name []byte) bool {
		switch string(name) {
		case "delegate":
			delegate = true // which may not be found
			return c.Skip()
		case "match":
			return each(c, func() bool {
				matches++
				every := true
				ok := c.Null() || c.Members(func(name []byte) bool {
					switch string(name) {
					case "name", "uri", "scheme", "method", "authority", "headers", "queryParams", "ignoreUriCase", "withoutHeaders", "statPrefix":
					default:
						every = false
					}
					return c.Skip()
				})
				always = always || every
				return ok
			})
		}
		return c.Skip()
	})
	return (always || matches == 0) && !delegate, ok
}
