package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Mesh is one Istio mesh: the virtual clusters that name it, merged into one
// configuration, and the control planes that receive it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,path=meshes,singular=mesh,categories=vmesh
// +kubebuilder:printcolumn:name="Virtual Clusters",type=integer,JSONPath=`.status.virtualClusters`
// +kubebuilder:printcolumn:name="Resources",type=integer,JSONPath=`.status.resources`
// +kubebuilder:printcolumn:name="Control Planes",type=integer,JSONPath=`.status.connected`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Mesh struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// What the mesh is to be.
	// +optional
	// +kubebuilder:default={}
	Spec MeshSpec `json:"spec,omitempty"`
	// What it is. Written by vmesh.
	// +optional
	Status MeshStatus `json:"status,omitempty"`
}

// MeshSpec is what a mesh is to be.
type MeshSpec struct {
	// The namespace whose resources apply to the whole mesh. It exists in every virtual
	// cluster of the mesh, and belongs to the one that owns it.
	// +optional
	// +kubebuilder:default=istio-system
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	RootNamespace string `json:"rootNamespace,omitempty"`
}

// MeshStatus is what a mesh is.
type MeshStatus struct {
	// How many virtual clusters name this mesh.
	// +optional
	VirtualClusters int32 `json:"virtualClusters"`
	// How many resources the merged configuration has.
	// +optional
	Resources int32 `json:"resources"`
	// How many control planes are connected.
	// +optional
	Connected int32 `json:"connected"`

	// The control planes that are connected, or were within the last hour.
	// +optional
	// +listType=map
	// +listMapKey=id
	ControlPlanes []ControlPlaneStatus `json:"controlPlanes,omitempty"`

	// Resources that are stored but cannot be sent, with the reason. At most 100 are listed.
	// +optional
	// +listType=atomic
	Quarantined []QuarantinedResource `json:"quarantined,omitempty"`

	// The state in detail; Ready says whether the mesh's configuration is being served.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// ControlPlaneStatus is one control plane as vmesh sees it.
type ControlPlaneStatus struct {
	// The node id that the control plane gave, with a suffix when several streams give the same.
	ID string `json:"id"`
	// The control plane's revision; empty when it has none.
	// +optional
	Revision string `json:"revision,omitempty"`
	// The address that it connects from.
	// +optional
	Address string `json:"address,omitempty"`
	// Whether a stream is open now.
	Connected bool `json:"connected"`
	// When its present, or else last, stream began.
	ConnectedSince metav1.Time `json:"connectedSince"`
	// What was sent and acknowledged, for each kind.
	// +optional
	// +listType=map
	// +listMapKey=typeUrl
	Kinds []ControlPlaneKindStatus `json:"kinds,omitempty"`
}

// ControlPlaneKindStatus is what a control plane was sent of one kind.
type ControlPlaneKindStatus struct {
	// The type URL, as networking.istio.io/v1/VirtualService.
	TypeURL string `json:"typeUrl"`
	// How many resources the last response had.
	Resources int32 `json:"resources"`
	// The version of the last response, and when it was sent.
	// +optional
	SentVersion string `json:"sentVersion,omitempty"`
	// +optional
	SentAt *metav1.Time `json:"sentAt,omitempty"`
	// The last version that the control plane acknowledged, and when.
	// +optional
	AckedVersion string `json:"ackedVersion,omitempty"`
	// +optional
	AckedAt *metav1.Time `json:"ackedAt,omitempty"`
	// What the control plane said when it refused a response.
	// +optional
	Error string `json:"error,omitempty"`
}

// QuarantinedResource is a stored resource that cannot be sent.
type QuarantinedResource struct {
	// The virtual cluster that holds it.
	VirtualCluster string `json:"virtualCluster"`
	// Its kind.
	Kind string `json:"kind"`
	// Its namespace.
	Namespace string `json:"namespace"`
	// Its name.
	Name string `json:"name"`
	// Why it cannot be sent.
	Message string `json:"message"`
}

// MeshList is a list of meshes.
//
// +kubebuilder:object:root=true
type MeshList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Mesh `json:"items"`
}
