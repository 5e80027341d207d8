package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ClaimReview asks what a change of claims, guard rails, grants or meshes would do. It is
// answered, not stored, and changes nothing.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
type ClaimReview struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   ClaimReviewSpec   `json:"spec"`
	Status ClaimReviewStatus `json:"status,omitempty"`
}

// ClaimReviewSpec is what would be changed, all of it together.
type ClaimReviewSpec struct {
	// Virtual clusters as they would be, present ones and new ones.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=1000
	VirtualClusters []PlannedVirtualCluster `json:"virtualClusters,omitempty"`
	// Meshes as they would be.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=100
	Meshes []PlannedMesh `json:"meshes,omitempty"`
}

// PlannedVirtualCluster is what a virtual cluster would be, as far as it matters.
type PlannedVirtualCluster struct {
	// Its name.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`
	// As in VirtualCluster.
	// +optional
	// +kubebuilder:default=default
	Mesh string `json:"mesh,omitempty"`
	// As in VirtualCluster.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=1000
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^(\*|[a-z0-9][-a-z0-9]*\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$`
	Namespaces []NamespacePattern `json:"namespaces,omitempty"`
	// As in VirtualCluster.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=1000
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:Pattern=`^(\*|(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*)$`
	Hosts []HostPattern `json:"hosts,omitempty"`
	// As in VirtualCluster.
	// +optional
	GuardRails *VirtualClusterGuardRails `json:"guardRails,omitempty"`
	// As in VirtualCluster.
	// +optional
	// +listType=map
	// +listMapKey=to
	// +kubebuilder:validation:MaxItems=1000
	Grants []VirtualClusterGrant `json:"grants,omitempty"`
	// As in VirtualCluster.
	// +optional
	// +listType=map
	// +listMapKey=to
	// +kubebuilder:validation:MaxItems=1000
	Handovers []VirtualClusterHandover `json:"handovers,omitempty"`
}

// PlannedMesh is what a mesh would be, as far as it matters.
type PlannedMesh struct {
	// Its name.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`
	// As in Mesh.
	// +optional
	// +kubebuilder:default=istio-system
	RootNamespace string `json:"rootNamespace,omitempty"`
}

// ClaimReviewStatus is the answer.
type ClaimReviewStatus struct {
	// What would be refused when it is written, and why.
	// +optional
	// +listType=atomic
	Conflicts []string `json:"conflicts,omitempty"`
	// What would be taken, but not without a warning.
	// +optional
	// +listType=atomic
	Warnings []string `json:"warnings,omitempty"`
	// How many objects reach their mesh and would not any more.
	HeldBackCount int32 `json:"heldBackCount"`
	// How many do not and would.
	LetInCount int32 `json:"letInCount"`
	// Those that would be held back, with the reason. At most 1000 are listed.
	// +optional
	// +listType=atomic
	HeldBack []ReviewedResource `json:"heldBack,omitempty"`
	// Those that would be let in, with the reason why they are not now. At most 1000 are
	// listed.
	// +optional
	// +listType=atomic
	LetIn []ReviewedResource `json:"letIn,omitempty"`
}

// ReviewedResource is an object that a change would hold back or let in.
type ReviewedResource struct {
	// The virtual cluster that holds it.
	VirtualCluster   string `json:"virtualCluster"`
	HeldBackResource `json:",inline"`
}
