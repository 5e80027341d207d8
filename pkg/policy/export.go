package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// exportTo checks where an object says that it is exported to.
func (c *checker) exportTo(s *spec) {
	if c.inRoot() {
		return // it is the mesh's
	}
	for i, to := range s.exportTo {
		if to == "." || to == "~" || to != "*" && c.owns(to) || c.mayExport(to) {
			continue
		}
		message := fmt.Sprintf("* is all namespaces of the mesh: name namespaces of your own, or have * allowed in spec.guardRails.exportTo of virtual cluster %q", c.self)
		if to != "*" {
			owner, _ := c.owners.NamespaceOwner(to)
			whose := "nobody owns"
			if owner != "" {
				whose = fmt.Sprintf("virtual cluster %q owns", owner)
			}
			message = fmt.Sprintf("namespace %q is one that %s: name namespaces of your own, or have it allowed in spec.guardRails.exportTo of virtual cluster %q", to, whose, c.self)
		}
		c.violated(at("spec.exportTo", i), ReasonExportNotAllowed, message)
	}
}

// mayExport says whether objects may be exported to a namespace of others, or all (*):
// by the guard rails, or because a gateway there is granted, whose pods have to see what
// they are to serve.
func (c *checker) mayExport(to string) bool {
	if rails := c.owners.Rails(); rails != nil {
		for _, p := range rails.ExportTo {
			if p == v1alpha1.AnyNamespace || to != "*" && p.Matches(to) {
				return true
			}
		}
	}
	return to != "*" && c.gatewayIn(to)
}

// gatewayIn says whether a gateway of a namespace is granted.
func (c *checker) gatewayIn(namespace string) bool {
	owner, _ := c.owners.NamespaceOwner(namespace)
	if owner == "" {
		return false
	}
	for _, g := range c.owners.Grants() {
		if g.From == owner && slices.ContainsFunc(g.Gateways, func(gateway string) bool { return strings.HasPrefix(gateway, namespace+"/") }) {
			return true
		}
	}
	return false
}

// Exports are where the objects of one virtual cluster go that do not say where. It is made
// once for a state of what is owned, and does not change.
type Exports struct {
	owners Owners
	// all is when what is exported everywhere is not seen by anybody else, or may be.
	all bool
	// own are the namespaces that are its own, and shared these and those of others that it
	// may export to; both sorted.
	own, shared []string
}

// NewExports makes them. existing are the namespaces of the virtual cluster: of those that
// it owns by a prefix or a star, it takes those that there are.
func NewExports(owners Owners, existing []string) *Exports {
	c := &checker{self: owners.Cluster(), owners: owners}
	e := &Exports{owners: owners}
	own, shared := map[string]struct{}{}, map[string]struct{}{}
	for _, namespace := range existing {
		if c.owns(namespace) {
			own[namespace] = struct{}{}
		}
	}
	for _, p := range owners.Namespaces() {
		if !strings.HasSuffix(string(p), "*") && c.owns(string(p)) {
			own[string(p)] = struct{}{}
		}
	}
	maps.Copy(shared, own)
	if rails := owners.Rails(); rails != nil {
		for _, p := range rails.ExportTo {
			e.all = e.all || p == v1alpha1.AnyNamespace
			if !strings.HasSuffix(string(p), "*") {
				shared[string(p)] = struct{}{}
			}
		}
	}
	for _, g := range owners.Grants() {
		for _, gateway := range g.Gateways {
			if namespace, _, ok := strings.Cut(gateway, "/"); ok && c.gatewayIn(namespace) {
				shared[namespace] = struct{}{}
			}
		}
	}
	if everything, _ := c.allServices(); everything {
		e.all = true
	}
	e.own, e.shared = slices.Sorted(maps.Keys(own)), slices.Sorted(maps.Keys(shared))
	return e
}

// Own are the namespaces that are the virtual cluster's own, sorted; not to be modified.
func (e *Exports) Own() []string { return e.own }

// Equal says whether both give the same for every object.
func (e *Exports) Equal(to *Exports) bool {
	return e.all == to.all && e.owners.RootNamespace() == to.owners.RootNamespace() && slices.Equal(e.own, to.own) && slices.Equal(e.shared, to.shared)
}

// ExportTo is where an object is exported to, if that is not what it says: one of a kind
// that can be exported, which does not say where. That is the namespaces that are its
// virtual cluster's own, those that its guard rails name, and those of gateways that it is
// granted; all, if the guard rails say so. What takes connections by their address or port
// goes to the own alone. Objects of the root namespace are the mesh's.
func (e *Exports) ExportTo(kind string, o *object.Object) (to []string, changed bool) {
	switch kind {
	case virtualService, destinationRule, serviceEntry:
	default:
		return nil, false
	}
	c := &checker{self: e.owners.Cluster(), owners: e.owners, namespace: o.Namespace}
	if c.inRoot() || e.all && kind == destinationRule {
		return nil, false
	}
	s, err := readSpec(o)
	if err != nil || len(s.exportTo) > 0 || kind == destinationRule && s.selective {
		// One that selects workloads is for its own namespace, whatever it says.
		return nil, false
	}
	namespaces, all := e.shared, e.all
	if s.takesConnections() {
		everything, _ := c.allServices()
		namespaces, all = e.own, everything
	}
	if all {
		return nil, false
	}
	to = make([]string, 1, len(namespaces)+1)
	to[0] = "."
	for _, namespace := range namespaces {
		if namespace != o.Namespace { // Istio takes no namespace twice
			to = append(to, namespace)
		}
	}
	return to, true
}

// WithExportTo is an object that is exported to some namespaces and is the given one in all
// else. The given one is not modified, and shares its metadata.
func WithExportTo(o *object.Object, to []string) (*object.Object, error) {
	content, err := o.Content()
	if err != nil {
		return nil, fmt.Errorf("reading %s %s/%s: %w", o.Kind, o.Namespace, o.Name, err)
	}
	old, _ := content["spec"].(map[string]any)
	spec := maps.Clone(old)
	if spec == nil {
		spec = map[string]any{}
	}
	namespaces := make([]any, len(to))
	for i, namespace := range to {
		namespaces[i] = namespace
	}
	spec["exportTo"] = namespaces
	content = maps.Clone(content)
	content["spec"] = spec
	exported := *o
	if err := exported.SetContent(content); err != nil {
		return nil, err
	}
	exported.DropContent()
	return &exported, nil
}
