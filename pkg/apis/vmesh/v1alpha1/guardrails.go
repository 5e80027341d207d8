package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// HostPattern names hosts outside of the mesh's namespaces: one by its name
// (api.example.com), those below a domain (*.example.com), or by a star alone every host
// that no other pattern of the mesh names.
type HostPattern string

// AnyHost is the pattern of every host that no other names.
const AnyHost HostPattern = "*"

// VirtualClusterGuardRails are what a virtual cluster may do in its mesh beyond what is
// safe for the others. They are asked about what reaches the mesh: objects in namespaces
// that the virtual cluster owns. What is not set is not allowed.
type VirtualClusterGuardRails struct {
	// Kinds that act beneath or beside the others and are off unless listed: EnvoyFilter,
	// WasmPlugin, TrafficExtension, ProxyConfig.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	Kinds []RestrictedKind `json:"kinds,omitempty"`

	// Namespaces of others to which objects may be exported: names, prefix patterns, or *
	// for all. The virtual cluster's own namespaces are always allowed, and those of gateways
	// that it is granted. Objects that do not say where they are exported to are exported to
	// all of these that are named in full, unless * is here: then everywhere.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=1000
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^(\*|[a-z0-9][-a-z0-9]*\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$`
	ExportTo []NamespacePattern `json:"exportTo,omitempty"`

	// Workloads that Gateways may select, by labels all of which the Gateway must name
	// alike: a Gateway's selector is not bound to its namespace. Without any, Gateways are
	// refused.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=100
	GatewaySelectors []WorkloadLabels `json:"gatewaySelectors,omitempty"`
}

// RestrictedKind is a kind that must be allowed by name.
//
// +kubebuilder:validation:Enum=EnvoyFilter;WasmPlugin;TrafficExtension;ProxyConfig
type RestrictedKind string

// WorkloadLabels are labels of workloads.
type WorkloadLabels struct {
	// The labels.
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=16
	MatchLabels map[string]string `json:"matchLabels"`
}

// VirtualClusterGrant lets another virtual cluster of the mesh use what this one owns.
type VirtualClusterGrant struct {
	// The virtual cluster that it is given to.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	To string `json:"to"`

	// Gateways that its VirtualServices may be bound to, as namespace/name.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=100
	// +kubebuilder:validation:items:MaxLength=317
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`
	Gateways []string `json:"gateways,omitempty"`

	// Hosts that its objects may speak for: hosts that this virtual cluster claims, or
	// services of its namespaces as NAME.NAMESPACE.svc.cluster.local.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=100
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	Hosts []HostPattern `json:"hosts,omitempty"`
}

// VirtualClusterHandover lets another virtual cluster of the mesh take namespaces over: once
// that claims one of them, by the same pattern, it owns it, in one step.
type VirtualClusterHandover struct {
	// The virtual cluster that may claim them.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	To string `json:"to"`

	// The namespaces, each as it is in spec.namespaces.
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=1000
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^([a-z0-9][-a-z0-9]*\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$`
	Namespaces []NamespacePattern `json:"namespaces"`
}

// ReceivedGrant is a grant as the one that it is given to sees it.
type ReceivedGrant struct {
	// The virtual cluster that gives it.
	From string `json:"from"`
	// As in the grant.
	// +optional
	// +listType=set
	Gateways []string `json:"gateways,omitempty"`
	// As in the grant.
	// +optional
	// +listType=set
	Hosts []HostPattern `json:"hosts,omitempty"`
}

// HeldBackResource is an object that is stored and does not reach the mesh, because it may
// not, or because an older one has its place.
type HeldBackResource struct {
	// Its kind.
	Kind string `json:"kind"`
	// Its namespace.
	Namespace string `json:"namespace"`
	// Its name.
	Name string `json:"name"`
	// Why, as one word.
	Reason string `json:"reason"`
	// Why, with the field and the remedy.
	Message string `json:"message"`
}

const (
	// ConditionConforming is the condition type that says whether everything that a virtual
	// cluster holds of its mesh reaches it, as far as it may.
	ConditionConforming = "Conforming"
	// ReasonConforming: nothing is held back.
	ReasonConforming = "NothingHeldBack"
	// ReasonHeldBack: there are objects that may not reach the mesh.
	ReasonHeldBack = "HeldBack"

	// ConditionDistributed is the condition type that says whether the present generation
	// of an object is at all the control planes that it is meant for.
	ConditionDistributed = "Distributed"
)

// Conforming is the condition of a virtual cluster of which nothing is held back.
func Conforming() metav1.Condition {
	return metav1.Condition{Type: ConditionConforming, Status: metav1.ConditionTrue, Reason: ReasonConforming, Message: "Nothing is held back from the mesh."}
}
