// Package policy says what a virtual cluster may put into a mesh that it shares: which
// hosts its objects may speak for, where they may be exported to, which kinds, gateways
// and workloads they may use.
//
// Everything that is asked here is pure: the answer follows from the object and from what
// is owned, so that admission, the snapshot and a planned change get the same one.
package policy

import (
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

	// NamespaceOwner is the virtual cluster that owns a namespace, and the pattern by which
	// it does; empty if nobody does.
	NamespaceOwner(namespace string) (cluster string, by v1alpha1.NamespacePattern)
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

// Check says what in an object of one of Istio's kinds (as VirtualService) its virtual
// cluster may not do in its mesh. Of an object in a namespace that the virtual cluster
// does not own it says nothing, since that does not reach the mesh.
func Check(kind string, o *object.Object, owners Owners) []Violation {
	return nil
}

// ExportTo is where an object is exported to in the mesh, if that is not what it says:
// one of the kinds that can be exported, which does not say where. existing are the
// namespaces of the virtual cluster, of which those that it owns by a pattern count.
func ExportTo(kind string, o *object.Object, owners Owners, existing []string) (to []string, changed bool) {
	return nil, false
}

// WithExportTo is a copy of an object that is exported to the given namespaces. The object
// is not modified.
func WithExportTo(o *object.Object, to []string) (*object.Object, error) {
	return o, nil
}
