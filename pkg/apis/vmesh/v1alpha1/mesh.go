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
// +kubebuilder:printcolumn:name="In Step",type=integer,JSONPath=`.status.inStep`
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.status.version`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Held Back",type=integer,priority=1,JSONPath=`.status.heldBack`
// +kubebuilder:printcolumn:name="Proxies",type=integer,priority=1,JSONPath=`.status.proxies`
// +kubebuilder:printcolumn:name="Synced",type=integer,priority=1,JSONPath=`.status.syncedProxies`
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

	// Who may receive the mesh's configuration as a control plane or relay: users and groups
	// of the root. Its administrators (system:masters) may in any case. Who shows no identity is served
	// where the server allows that: on loopback, unless it was told otherwise.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=100
	Receivers []AccessSubject `json:"receivers,omitempty"`

	// What single control planes are not to receive. Without it each receives all that is
	// meant for its revision.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=32
	Filters []MeshFilter `json:"filters,omitempty"`

	// How changes are released to the control planes. Without it all receive them at once.
	// +optional
	Rollout *MeshRollout `json:"rollout,omitempty"`

	// The virtual cluster where the mesh's control planes live. Without it they need a cluster
	// of their own, with settings and access to members that somebody else keeps there.
	// +optional
	Home *MeshHome `json:"home,omitempty"`

	// The networks of the mesh. With none, all workloads reach each other directly.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=256
	Networks []MeshNetwork `json:"networks,omitempty"`

	// How endpoints are chosen among localities.
	// +optional
	Locality *MeshLocality `json:"locality,omitempty"`

	// What holds for all member clusters.
	// +optional
	Members *MeshMembers `json:"members,omitempty"`
}

// MeshFilter says what some control planes receive.
type MeshFilter struct {
	// A name for it.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`
	// The control planes that it is for, by their labels: see ControlPlaneStatus.
	ControlPlanes metav1.LabelSelector `json:"controlPlanes"`
	// If set, they receive of these virtual clusters only.
	// +optional
	VirtualClusters *metav1.LabelSelector `json:"virtualClusters,omitempty"`
	// If set, they receive these kinds only, as VirtualService.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	Kinds []string `json:"kinds,omitempty"`
	// If set, they receive what is in these namespaces only: names or prefix patterns. What is in
	// the root namespace they receive in any case.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=100
	Namespaces []NamespacePattern `json:"namespaces,omitempty"`
}

// MeshRollout is how changes are released.
type MeshRollout struct {
	// The stages, in order. Control planes that no stage selects belong to the last. Each
	// control plane belongs to the first stage that selects it.
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Stages []MeshStage `json:"stages"`
}

// MeshStage is one step of a release.
type MeshStage struct {
	// A name for it.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`
	// Its control planes, by their labels: see ControlPlaneStatus.
	ControlPlanes metav1.LabelSelector `json:"controlPlanes"`
	// For how long all of the stage must have had the changes before the next stage receives
	// them by itself. Without it, the next waits for a promotion.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^-?(0|([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+)$`
	Bake *metav1.Duration `json:"bake,omitempty"`
}

// MeshStatus is what a mesh is.
type MeshStatus struct {
	// How many virtual clusters name this mesh.
	// +optional
	VirtualClusters int32 `json:"virtualClusters"`
	// How many resources the merged configuration has.
	// +optional
	Resources int32 `json:"resources"`
	// How many control planes are connected, to all servers together.
	// +optional
	Connected int32 `json:"connected"`
	// How many of them have acknowledged all that they were sent.
	// +optional
	InStep int32 `json:"inStep"`
	// How many proxies are connected to them, and how many of those have all that is newest, as
	// far as relays report it.
	// +optional
	Proxies int32 `json:"proxies,omitempty"`
	// +optional
	SyncedProxies int32 `json:"syncedProxies,omitempty"`
	// The version of the snapshot: a hash of all that the newest one holds.
	// +optional
	Version string `json:"version,omitempty"`
	// How many objects of all virtual clusters are held back.
	// +optional
	HeldBack int32 `json:"heldBack"`

	// Where the releases stand; only of a mesh that has stages.
	// +optional
	Rollout *MeshRolloutStatus `json:"rollout,omitempty"`

	// The vmesh servers that control planes are connected to, with the counts of each.
	// +optional
	// +listType=map
	// +listMapKey=name
	Servers []MeshServerStatus `json:"servers,omitempty"`

	// The control planes that are connected, or were within the last hour. At most 100 are
	// listed.
	// +optional
	// +listType=map
	// +listMapKey=id
	// +listMapKey=server
	ControlPlanes []ControlPlaneStatus `json:"controlPlanes,omitempty"`

	// Resources that are stored but cannot be sent, with the reason. At most 100 are listed.
	// +optional
	// +listType=atomic
	Quarantined []QuarantinedResource `json:"quarantined,omitempty"`

	// What became of the home. Absent without one.
	// +optional
	Home *MeshHomeStatus `json:"home,omitempty"`

	// The networks that have members or gateways.
	// +optional
	// +listType=map
	// +listMapKey=name
	Networks []MeshNetworkStatus `json:"networks,omitempty"`

	// The state in detail. Ready says whether the mesh's configuration is being served. InStep
	// says whether all connected control planes have acknowledged what they were sent, leaving
	// out the last five seconds. Of a mesh with a home or members, HomeReady, SettingsCurrent and NetworksConnected
	// say what they say.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// MeshServerStatus is what one vmesh server has to do with a mesh.
type MeshServerStatus struct {
	// The server, as in ControlPlaneStatus.
	Name string `json:"name"`
	// How many control planes are connected to it.
	Connected int32 `json:"connected"`
	// How many of them have acknowledged all that they were sent.
	InStep int32 `json:"inStep"`
	// How many proxies they have, and how many of those are synced, as far as relays report it.
	// +optional
	Proxies int32 `json:"proxies,omitempty"`
	// +optional
	SyncedProxies int32 `json:"syncedProxies,omitempty"`
}

const (
	// ConditionInStep is the condition type that says whether all connected control planes have
	// acknowledged what they were sent.
	ConditionInStep = "InStep"

	// ReasonAcknowledged: they have.
	ReasonAcknowledged = "Acknowledged"
	// ReasonBehind: one has not for more than five seconds.
	ReasonBehind = "Behind"
	// ReasonRefused: one has refused what it was sent.
	ReasonRefused = "Refused"
	// ReasonNoControlPlanes: there is none that could.
	ReasonNoControlPlanes = "NoControlPlanes"
)

// ControlPlaneStatus is one control plane as vmesh sees it.
type ControlPlaneStatus struct {
	// The node id that the control plane gave, with a suffix when several streams give the same.
	ID string `json:"id"`
	// The vmesh server that it is, or was last, connected to: its host's name, and something
	// of the process.
	// +kubebuilder:default=""
	Server string `json:"server"`
	// The control plane's revision; empty when it has none.
	// +optional
	Revision string `json:"revision,omitempty"`
	// What selectors of control planes see: vmesh.io/revision ("default" when it has none),
	// vmesh.io/pod and vmesh.io/namespace, as far as it says so, and the labels that a relay was given.
	// +optional
	Labels map[string]string `json:"labels,omitempty"`
	// The version of the mesh's snapshot of which it has acknowledged all that is meant for it.
	// Control planes with the same version have the same configuration, but for what their
	// revisions and filters leave out.
	// +optional
	Version string `json:"version,omitempty"`
	// The stage of the rollout that it belongs to.
	// +optional
	Stage string `json:"stage,omitempty"`
	// The proxies that are connected to it, where a relay reports them.
	// +optional
	Proxies *ProxyStatus `json:"proxies,omitempty"`
	// The user of the root that it has shown to be; empty for one that has shown no identity.
	// +optional
	User string `json:"user,omitempty"`
	// The address that it connects from.
	// +optional
	Address string `json:"address,omitempty"`
	// Whether a stream is open now.
	Connected bool `json:"connected"`
	// When its present, or else last, stream began.
	ConnectedSince metav1.Time `json:"connectedSince"`
	// Since when there is none, if there is none.
	// +optional
	DisconnectedAt *metav1.Time `json:"disconnectedAt,omitempty"`
	// Since when there is something that it was sent and has not acknowledged. Absent when
	// there is nothing.
	// +optional
	BehindSince *metav1.Time `json:"behindSince,omitempty"`
	// What was sent and acknowledged, for each kind.
	// +optional
	// +listType=map
	// +listMapKey=typeUrl
	Kinds []ControlPlaneKindStatus `json:"kinds,omitempty"`
}

// ProxyStatus is what a relay has found out about the proxies of its control plane.
type ProxyStatus struct {
	// How many are connected.
	Connected int32 `json:"connected"`
	// How many of them have acknowledged all that the control plane has sent since it
	// acknowledged Version.
	Synced int32 `json:"synced"`
	// The snapshot version that this is about.
	// +optional
	Version string `json:"version,omitempty"`
	// When the relay looked.
	ObservedAt metav1.Time `json:"observedAt"`
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
