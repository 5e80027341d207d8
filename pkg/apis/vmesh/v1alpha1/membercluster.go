package v1alpha1

import (
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// MembersNamespace is the namespace of the root that holds the Secrets of member clusters.
const MembersNamespace = "vmesh-system"

// The keys of a member cluster's Secret.
const (
	// MemberKubeconfigKey is vmesh's own access to the member's API.
	MemberKubeconfigKey = "kubeconfig"
	// MemberIstiodKubeconfigKey is the access that control planes are given; without it they
	// are given vmesh's own.
	MemberIstiodKubeconfigKey = "istiod-kubeconfig"
)

const (
	// AnnotationClusterUID of a MemberCluster is the UID of the member's namespace kube-system, by which
	// a cluster is known whatever its address.
	AnnotationClusterUID = "vmesh.io/cluster-uid"
	// LabelMember is on all that vmesh join makes: the name of the member.
	LabelMember = "vmesh.io/member"
	// LabelManagedBy is ManagedBy on all that vmesh makes, by itself or by vmesh join.
	LabelManagedBy = "app.kubernetes.io/managed-by"
	ManagedBy      = "vmesh"
	// ReasonLeaving is the reason of a drain by vmesh leave.
	ReasonLeaving = "leaving"
)

// MemberCluster is a real Kubernetes cluster whose workloads belong to a mesh. Its name is
// what Istio calls the cluster's id.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,path=memberclusters,singular=membercluster,shortName=mcl,categories=vmesh
// +kubebuilder:printcolumn:name="Mesh",type=string,JSONPath=`.spec.mesh`
// +kubebuilder:printcolumn:name="Network",type=string,JSONPath=`.spec.network`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Services",type=integer,JSONPath=`.status.services`
// +kubebuilder:printcolumn:name="Endpoints",type=integer,JSONPath=`.status.endpoints`
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.status.version`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Latency",type=string,priority=1,JSONPath=`.status.latency`
// +kubebuilder:printcolumn:name="Localities",type=string,priority=1,JSONPath=`.status.localities`
// +kubebuilder:printcolumn:name="Seen",type=date,priority=1,JSONPath=`.status.lastSeen`
type MemberCluster struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// What the member is to be.
	// +optional
	// +kubebuilder:default={}
	Spec MemberClusterSpec `json:"spec,omitempty"`
	// What it is. Written by vmesh.
	// +optional
	Status MemberClusterStatus `json:"status,omitempty"`
}

// MemberClusterSpec is what a member cluster is to be.
type MemberClusterSpec struct {
	// The mesh that its workloads belong to. To change it, let the cluster leave and join anew.
	// +optional
	// +kubebuilder:default=default
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="is fixed: let the cluster leave, and join the other mesh"
	Mesh string `json:"mesh,omitempty"`

	// The network of its workloads: one of the mesh's spec.networks. Members of the same network reach
	// each other's workloads directly, those of others through gateways. Empty for the one network that needs no name.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$`
	Network string `json:"network,omitempty"`

	// Where it is, as far as its nodes do not say so themselves (topology.kubernetes.io/region and zone).
	// +optional
	Locality *Locality `json:"locality,omitempty"`

	// How its API is reached.
	Access MemberClusterAccess `json:"access"`

	// Whether the control planes read its services. Disabled, it shares the mesh's configuration and
	// nothing else: what is to cross over takes a ServiceEntry.
	// +optional
	// +kubebuilder:default=Enabled
	Discovery MemberDiscovery `json:"discovery,omitempty"`

	// If set, no call goes to its workloads any more as long as others serve.
	// +optional
	Drain *MemberClusterDrain `json:"drain,omitempty"`
}

// MemberDiscovery says whether control planes read a member's services.
//
// +kubebuilder:validation:Enum=Enabled;Disabled
type MemberDiscovery string

// The states of discovery.
const (
	DiscoveryEnabled  MemberDiscovery = "Enabled"
	DiscoveryDisabled MemberDiscovery = "Disabled"
)

// Locality is where something is.
type Locality struct {
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[^/]*$`
	Region string `json:"region,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[^/]*$`
	Zone string `json:"zone,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[^/]*$`
	SubZone string `json:"subZone,omitempty"`
}

// MemberClusterAccess is how a member's API is reached.
type MemberClusterAccess struct {
	// The name of a Secret in the root's namespace vmesh-system, with the keys kubeconfig and, if control planes
	// are to have an access of their own, istiod-kubeconfig. A kubeconfig must hold all it needs: certificates and tokens
	// inline, no files and no programs. Tokens of service accounts that may make tokens for themselves are renewed by vmesh.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Secret string `json:"secret"`
}

// MemberClusterDrain takes a member out of traffic.
type MemberClusterDrain struct {
	// Why, for those who look.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Reason string `json:"reason"`
}

// MemberClusterStatus is what a member cluster is.
type MemberClusterStatus struct {
	// The version of its Kubernetes.
	// +optional
	Version string `json:"version,omitempty"`
	// How long its API took to answer, at the last look.
	// +optional
	Latency *metav1.Duration `json:"latency,omitempty"`
	// By how much its clock is ahead of vmesh's, if that is more than a second.
	// +optional
	ClockSkew *metav1.Duration `json:"clockSkew,omitempty"`
	// When its API answered last.
	// +optional
	LastSeen *metav1.Time `json:"lastSeen,omitempty"`

	// How many services, endpoints (those that are ready included) and nodes it has.
	// +optional
	Services int32 `json:"services"`
	// +optional
	Endpoints int32 `json:"endpoints"`
	// +optional
	ReadyEndpoints int32 `json:"readyEndpoints"`
	// +optional
	Nodes int32 `json:"nodes"`
	// The localities of its nodes, as REGION/ZONE. At most 100 are listed.
	// +optional
	// +listType=atomic
	Localities []string `json:"localities,omitempty"`

	// What it alone serves: what a drain would take from the mesh. Up to some minutes old, and absent until its services
	// have been read.
	// +optional
	OnlyHere *MemberOnlyHere `json:"onlyHere,omitempty"`

	// The access that vmesh and the control planes have.
	// +optional
	// +listType=map
	// +listMapKey=key
	Credentials []MemberCredential `json:"credentials,omitempty"`

	// The state in detail. Ready says whether the control planes have its services as they are to have them. Reachable says
	// whether its API answers vmesh; Discovered whether vmesh has read its services; AccessGiven whether control
	// planes are given access; Conflicting whether it clashes with other members, as by pod addresses.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// MemberOnlyHere is what one member alone serves.
type MemberOnlyHere struct {
	// How many services have ready endpoints in it, and in no other member of the mesh that is reachable and not drained.
	Services int32 `json:"services"`
	// Their names, as NAMESPACE/NAME. The first 10 are listed.
	// +optional
	// +listType=atomic
	Names []string `json:"names,omitempty"`
}

// String tells the services, as far as they are listed.
func (o *MemberOnlyHere) String() string {
	names := strings.Join(o.Names, ", ")
	if more := int(o.Services) - len(o.Names); more > 0 {
		names += fmt.Sprintf(" and %d more", more)
	}
	return names
}

// MemberCredential is one access to a member's API.
type MemberCredential struct {
	// The key of the Secret that holds it.
	Key string `json:"key"`
	// Whose it is, as far as the credential says so.
	// +optional
	User string `json:"user,omitempty"`
	// Until when it is good. Absent if it does not end, or does not say.
	// +optional
	ExpiresAt *metav1.Time `json:"expiresAt,omitempty"`
	// When vmesh renewed it last.
	// +optional
	RenewedAt *metav1.Time `json:"renewedAt,omitempty"`
	// Why it could not be renewed, if it could not.
	// +optional
	Error string `json:"error,omitempty"`
}

// Condition types of member clusters, besides Ready.
const (
	ConditionReachable   = "Reachable"
	ConditionDiscovered  = "Discovered"
	ConditionAccessGiven = "AccessGiven"
	ConditionConflicting = "Conflicting"
)

// MemberClusterList is a list of member clusters.
//
// +kubebuilder:object:root=true
type MemberClusterList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []MemberCluster `json:"items"`
}
