package v1alpha1

import "strings"

// below is what every host below a domain ends in (.example.com), and whether the pattern
// is of that form. AnyHost is below everything.
func (p HostPattern) below() (string, bool) { return strings.CutPrefix(string(p), "*") }

// Matches says whether the pattern names the host, or all hosts of another pattern.
// AnyHost matches all: that others come before it is for HostOwner to know.
func (p HostPattern) Matches(host string) bool {
	if suffix, ok := p.below(); ok {
		return strings.HasSuffix(host, suffix)
	}
	return string(p) == host
}

// Overlaps says whether there can be a host that both patterns claim. AnyHost overlaps
// with nothing but itself, since it yields to every other.
func (p HostPattern) Overlaps(q HostPattern) bool {
	if p == AnyHost || q == AnyHost {
		return p == q
	}
	return p.Matches(string(q)) || q.Matches(string(p))
}

const serviceSuffix = ".svc.cluster.local"

// ServiceNamespace is the namespace of a mesh's service by its host,
// NAME.NAMESPACE.svc.cluster.local, where the name may be a star for all services of the
// namespace.
func ServiceNamespace(host string) (namespace string, ok bool) {
	rest, ok := strings.CutSuffix(host, serviceSuffix)
	if !ok {
		return "", false
	}
	name, namespace, ok := strings.Cut(rest, ".")
	if !ok || name == "" || namespace == "" || strings.ContainsAny(namespace, ".*") {
		return "", false
	}
	return namespace, true
}
