package v1alpha1

import "strings"

// NamespacePattern names namespaces of a mesh: one by its name, those that begin
// alike by a prefix and a star (shop-*), or by a star alone every namespace that no
// other pattern of the mesh names.
type NamespacePattern string

// AnyNamespace is the pattern of every namespace that no other names.
const AnyNamespace NamespacePattern = "*"

func (p NamespacePattern) prefix() (string, bool) { return strings.CutSuffix(string(p), "*") }

// Matches says whether the pattern names the namespace. AnyNamespace matches all:
// that others come before it is for Owner to know.
func (p NamespacePattern) Matches(namespace string) bool {
	if prefix, ok := p.prefix(); ok {
		return strings.HasPrefix(namespace, prefix)
	}
	return string(p) == namespace
}

// Overlaps says whether there can be a namespace that both patterns claim.
// AnyNamespace overlaps with nothing but itself, since it yields to every other.
func (p NamespacePattern) Overlaps(q NamespacePattern) bool {
	if p == AnyNamespace || q == AnyNamespace {
		return p == q
	}
	pp, pIsPrefix := p.prefix()
	qp, qIsPrefix := q.prefix()
	switch {
	case pIsPrefix && qIsPrefix:
		return strings.HasPrefix(pp, qp) || strings.HasPrefix(qp, pp)
	case pIsPrefix:
		return strings.HasPrefix(string(q), pp)
	case qIsPrefix:
		return strings.HasPrefix(string(p), qp)
	}
	return p == q
}
