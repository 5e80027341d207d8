package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// VirtualCluster is an isolated API endpoint under /clusters/NAME: one team's
// namespaces and mesh configuration, reached with any Kubernetes client.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,path=virtualclusters,singular=virtualcluster,shortName=vcl,categories=vmesh
// +kubebuilder:printcolumn:name="Mesh",type=string,JSONPath=`.spec.mesh`
// +kubebuilder:printcolumn:name="Namespaces",type=string,JSONPath=`.spec.namespaces`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Hosts",type=string,priority=1,JSONPath=`.spec.hosts`
// +kubebuilder:printcolumn:name="Held Back",type=integer,priority=1,JSONPath=`.status.heldBackCount`
// +kubebuilder:printcolumn:name="URL",type=string,priority=1,JSONPath=`.status.url`
// +kubebuilder:printcolumn:name="Objects",type=integer,priority=1,JSONPath=`.status.usage.objects`
// +kubebuilder:printcolumn:name="Bytes",type=integer,priority=1,JSONPath=`.status.usage.bytes`
// +kubebuilder:printcolumn:name="Frozen",type=string,priority=1,JSONPath=`.spec.freeze.reason`
type VirtualCluster struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// What the virtual cluster is to be.
	// +optional
	// +kubebuilder:default={}
	Spec VirtualClusterSpec `json:"spec,omitempty"`
	// What it is. Written by vmesh.
	// +optional
	Status VirtualClusterStatus `json:"status,omitempty"`
}

// VirtualClusterSpec is what a virtual cluster is to be.
type VirtualClusterSpec struct {
	// The mesh that this virtual cluster contributes to.
	// +optional
	// +kubebuilder:default=default
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Mesh string `json:"mesh,omitempty"`

	// The namespaces of the mesh that this virtual cluster owns: names (shop), prefix
	// patterns (shop-*), or * for every namespace that no other virtual cluster owns. No
	// two virtual clusters of a mesh may own the same namespace. What lies in other
	// namespaces of the virtual cluster stays there and does not reach the mesh; with no
	// namespaces at all the virtual cluster is a sandbox.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=1000
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^(\*|[a-z0-9][-a-z0-9]*\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$`
	Namespaces []NamespacePattern `json:"namespaces,omitempty"`

	// The hosts outside of the mesh's namespaces that this virtual cluster owns: names
	// (api.example.com), domains (*.example.com), or * for every host that no other virtual
	// cluster owns. No two virtual clusters of a mesh may own the same host.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=1000
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:Pattern=`^(\*|(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*)$`
	Hosts []HostPattern `json:"hosts,omitempty"`

	// What the virtual cluster may do in its mesh beyond what is safe for the others.
	// +optional
	GuardRails *VirtualClusterGuardRails `json:"guardRails,omitempty"`

	// If set, sidecar proxies in the virtual cluster's namespaces see only a part of the mesh,
	// which makes their configuration, and every push to them, smaller. What they do not see
	// they cannot call by its mesh configuration. A namespace's own Sidecar without a workload
	// selector stands for that of vmesh.
	// +optional
	SidecarScope *VirtualClusterSidecarScope `json:"sidecarScope,omitempty"`

	// What other virtual clusters of the mesh may use of what this one owns.
	// +optional
	// +listType=map
	// +listMapKey=to
	// +kubebuilder:validation:MaxItems=1000
	Grants []VirtualClusterGrant `json:"grants,omitempty"`

	// Which of its namespaces others may take over. Until they claim them, they stay its own.
	// +optional
	// +listType=map
	// +listMapKey=to
	// +kubebuilder:validation:MaxItems=1000
	Handovers []VirtualClusterHandover `json:"handovers,omitempty"`

	// What users and groups of the root may do in this virtual cluster, once the root's
	// RBAC lets them enter it (virtualclusters/proxy). It acts like ClusterRoleBindings,
	// which cannot be seen, changed or removed from inside.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=100
	Access []VirtualClusterAccess `json:"access,omitempty"`

	// The most that the virtual cluster may hold. Creations and updates that would exceed
	// it are refused; deletions never are. Without it there is no limit.
	// +optional
	Quota *VirtualClusterQuota `json:"quota,omitempty"`

	// If set, the virtual cluster is read-only: every write of it is refused, with the
	// reason, whoever asks. It goes on serving its mesh.
	// +optional
	Freeze *VirtualClusterFreeze `json:"freeze,omitempty"`

	// How much may be asked of this virtual cluster.
	// +optional
	Rates *VirtualClusterRates `json:"rates,omitempty"`
}

// VirtualClusterQuota limits what a virtual cluster may hold. What is not set is not
// limited. Events and leases do not count.
type VirtualClusterQuota struct {
	// How many objects of all kinds together, the namespaces that every virtual cluster
	// has included.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Objects *int64 `json:"objects,omitempty"`

	// How many bytes all objects together: the length of their JSON, metadata and managed
	// fields included, as it is stored before encryption.
	// +optional
	Bytes *resource.Quantity `json:"bytes,omitempty"`

	// How many objects of single kinds, by resource and group as kubectl api-resources
	// -o name has them: configmaps, virtualservices.networking.istio.io.
	// +optional
	// +kubebuilder:validation:MaxProperties=200
	Kinds map[string]ObjectCount `json:"kinds,omitempty"`
}

// ObjectCount is a number of objects.
//
// +kubebuilder:validation:Minimum=0
type ObjectCount int64

// VirtualClusterFreeze makes a virtual cluster read-only.
type VirtualClusterFreeze struct {
	// Why, for those whose writes are refused.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Reason string `json:"reason"`
}

// VirtualClusterAccess gives users and groups of the root a role in a virtual cluster.
type VirtualClusterAccess struct {
	// Whom it is given to.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=100
	Subjects []AccessSubject `json:"subjects"`

	// The name of a ClusterRole of the virtual cluster: view, edit, admin, cluster-admin,
	// vmesh:traffic-editor, or one of its own. Of the roles that every virtual cluster
	// has, at least the rules that they have everywhere are given.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self != '.' && self != '..' && !self.contains('/') && !self.contains('%')",message="is not the name of a ClusterRole"
	Role string `json:"role"`
}

// SubjectKind is the kind of an AccessSubject.
//
// +kubebuilder:validation:Enum=User;Group
type SubjectKind string

// The kinds of subjects.
const (
	UserSubject  SubjectKind = "User"
	GroupSubject SubjectKind = "Group"
)

// AccessSubject is a user or a group of the root.
type AccessSubject struct {
	// User or Group.
	Kind SubjectKind `json:"kind"`

	// The name of the user or group. The root's administrators (system:masters) may do
	// everything in any case.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
}

// VirtualClusterStatus is what a virtual cluster is.
type VirtualClusterStatus struct {
	// The address of the virtual cluster's API.
	// +optional
	URL string `json:"url,omitempty"`

	// How far a deletion has come. Absent while the virtual cluster is not being deleted.
	// +optional
	Deletion *DeletionStatus `json:"deletion,omitempty"`

	// Objects that do not reach the mesh because they may not, or because an older one has
	// their place. At most 100 are listed.
	// +optional
	// +listType=atomic
	HeldBack []HeldBackResource `json:"heldBack,omitempty"`
	// How many objects are held back.
	// +optional
	HeldBackCount int32 `json:"heldBackCount,omitempty"`

	// What other virtual clusters let this one use.
	// +optional
	// +listType=map
	// +listMapKey=from
	Grants []ReceivedGrant `json:"grants,omitempty"`

	// What became of the sidecar scope. Absent without one.
	// +optional
	SidecarScope *SidecarScopeStatus `json:"sidecarScope,omitempty"`

	// How much there is of what the quota limits, as it was a few seconds ago at most.
	// +optional
	Usage *VirtualClusterUsage `json:"usage,omitempty"`

	// The state in detail; Ready says whether the virtual cluster serves its API.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// VirtualClusterUsage is how much there is of what a quota limits.
type VirtualClusterUsage struct {
	// How many objects of all kinds together.
	// +optional
	Objects *int64 `json:"objects,omitempty"`
	// How many bytes all objects together.
	// +optional
	Bytes *int64 `json:"bytes,omitempty"`
	// How many objects of the kinds that have limits of their own.
	// +optional
	Kinds map[string]ObjectCount `json:"kinds,omitempty"`
}

// DeletionStatus says how far the removal of a virtual cluster's objects has come.
type DeletionStatus struct {
	// How many objects there were when the deletion began.
	Total int64 `json:"total"`
	// How many of them are gone.
	Removed int64 `json:"removed"`
}

const (
	// ConditionReady is the condition type that says whether an object does its work.
	ConditionReady = "Ready"

	// ReasonServing: the virtual cluster answers requests.
	ReasonServing = "Serving"
	// ReasonFrozen: the virtual cluster answers reads and refuses writes.
	ReasonFrozen = "Frozen"
	// ReasonDeleting: the virtual cluster is being emptied and refuses writes.
	ReasonDeleting = "Deleting"

	// AnnotationConfirmDeletion is the second asking that deleting a virtual cluster which
	// still holds objects takes: its value must be the virtual cluster's name.
	AnnotationConfirmDeletion = "vmesh.io/confirm-deletion"

	// LabelProtected marks, with the value "true", what must not be deleted: any object, or
	// a namespace or virtual cluster with all that it holds. "false" is as good as none;
	// no other value is taken.
	LabelProtected = "vmesh.io/protected"

	// AnnotationAppliesTo says, on a webhook configuration or a binding of an admission
	// policy in the root, where it applies: "root", which is the default; "all", which is
	// all virtual clusters; or a selector of virtual clusters by their labels.
	AnnotationAppliesTo = "vmesh.io/applies-to"

	// FinalizerPurge keeps a deleted VirtualCluster until all it holds is removed.
	FinalizerPurge = "vmesh.io/purge"
)

// VirtualClusterList is a list of virtual clusters.
//
// +kubebuilder:object:root=true
type VirtualClusterList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []VirtualCluster `json:"items"`
}
