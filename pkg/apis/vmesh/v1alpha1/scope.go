package v1alpha1

// VirtualClusterSidecarScope is what the sidecar proxies in a virtual cluster's namespaces
// see of the mesh. vmesh adds a Sidecar without a workload selector to each of them, but
// for the mesh's root namespace and those that have one of their own.
type VirtualClusterSidecarScope struct {
	// What proxies see of the virtual cluster itself: all its namespaces (VirtualCluster), or
	// only the one that they are in (Namespace). Besides that they see the mesh's root
	// namespace, hosts that other virtual clusters grant this one, and spec.sidecarScope.hosts.
	// +optional
	// +kubebuilder:default=VirtualCluster
	Reach SidecarReach `json:"reach,omitempty"`

	// What else proxies see, as the egress hosts of a Sidecar: NAMESPACE/HOST, where the
	// namespace may be * for all and the host * or *.example.com. Only what is exported to
	// the virtual cluster's namespaces is seen.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=1000
	Hosts []EgressHost `json:"hosts,omitempty"`
}

// EgressHost is what a Sidecar imports, as NAMESPACE/HOST.
//
// +kubebuilder:validation:MaxLength=317
// +kubebuilder:validation:XValidation:rule="self.matches('^([*]|[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)/([*]|([*][.])?[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*)$')",message="must be NAMESPACE/HOST: bank/* for all of a namespace, bank/pay.bank.svc.cluster.local for a service, */api.example.com or */*.example.com for hosts of any namespace"
type EgressHost string

// SidecarReach is what sidecar proxies see of their own virtual cluster.
//
// +kubebuilder:validation:Enum=VirtualCluster;Namespace
type SidecarReach string

const (
	// ReachVirtualCluster: all namespaces of the virtual cluster.
	ReachVirtualCluster SidecarReach = "VirtualCluster"
	// ReachNamespace: the proxy's own namespace.
	ReachNamespace SidecarReach = "Namespace"
)

// SidecarScopeStatus is what became of a virtual cluster's sidecar scope.
type SidecarScopeStatus struct {
	// In how many namespaces vmesh's Sidecar stands.
	Namespaces int32 `json:"namespaces"`
	// The egress hosts of those Sidecars. At most 100 are listed.
	// +optional
	// +listType=atomic
	Hosts []string `json:"hosts,omitempty"`
	// Namespaces in which a Sidecar of the virtual cluster's own stands for vmesh's. At most
	// 100 are listed.
	// +optional
	// +listType=atomic
	Replaced []string `json:"replaced,omitempty"`
	// Why vmesh's Sidecars do not stand, or not as they should.
	// +optional
	Message string `json:"message,omitempty"`
}
