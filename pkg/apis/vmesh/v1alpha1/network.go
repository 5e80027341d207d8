package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

const (
	// AnnotationSettingsOf, on a config map of a home, names the mesh whose settings vmesh keeps there.
	AnnotationSettingsOf = "vmesh.io/settings-of"
	// AnnotationSettingsState is what vmesh remembers of those settings.
	AnnotationSettingsState = "vmesh.io/settings-state"
)

// MeshHome is where a mesh's control planes live: what an istiod keeps in its own
// cluster, it keeps in a virtual cluster, whose kubeconfig is all that it needs.
type MeshHome struct {
	// The virtual cluster. vmesh keeps the mesh's settings (config map istio) and the access to member clusters
	// (Secrets) in its namespace of the mesh's root namespace.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	VirtualCluster string `json:"virtualCluster"`

	// Where control planes read the mesh's configuration from, as xds://127.0.0.1:15010: the addresses of vmesh, or those of the
	// relay beside istiod. By default, those that vmesh listens on itself.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	ConfigSources []string `json:"configSources,omitempty"`

	// The revisions of its control planes, each with a config map of its own (istio-REVISION) of the same content. Empty for those without a revision.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	Revisions []string `json:"revisions,omitempty"`

	// Any other settings of Istio's MeshConfig. Those that vmesh sets itself (configSources, rootNamespace, localityLbSetting)
	// cannot be given here.
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	// +kubebuilder:validation:Type=object
	// +kubebuilder:validation:Schemaless
	MeshConfig *runtime.RawExtension `json:"meshConfig,omitempty"`
}

// MeshNetwork is one network of a mesh: workloads that reach each other directly.
type MeshNetwork struct {
	// Its name, as members have it in spec.network.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`
	// The east-west gateways by which other networks reach it.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	Gateways []MeshNetworkGateway `json:"gateways,omitempty"`
}

// MeshNetworkGateway is an east-west gateway: either an address, or a service of a member, which is
// looked up.
//
// +kubebuilder:validation:XValidation:rule="has(self.address) != has(self.service)",message="set either address or service"
type MeshNetworkGateway struct {
	// An IP address, or a host that every proxy resolves.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Address string `json:"address,omitempty"`
	// A service of a member cluster in this network, with addresses of a load balancer or external ones.
	// +optional
	Service *MeshNetworkGatewayService `json:"service,omitempty"`
	// The port for calls of other networks.
	// +optional
	// +kubebuilder:default=15443
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port,omitempty"`
	// Where it is, so that near ones are preferred. A service's is its member's.
	// +optional
	Locality *Locality `json:"locality,omitempty"`
}

// MeshNetworkGatewayService names a service of a member cluster.
type MeshNetworkGatewayService struct {
	// The member cluster.
	// +kubebuilder:validation:MinLength=1
	Member string `json:"member"`
	// +optional
	// +kubebuilder:default=istio-system
	Namespace string `json:"namespace,omitempty"`
	// +kubebuilder:validation:MinLength=1
	Name string `json:"name"`
}

// MeshLocality is how endpoints are chosen among localities, unless a DestinationRule says otherwise.
//
// +kubebuilder:validation:XValidation:rule="(has(self.failover) ? 1 : 0) + (has(self.failoverPriority) ? 1 : 0) + (has(self.distribute) ? 1 : 0) <= 1",message="set one of failover, failoverPriority and distribute at most"
type MeshLocality struct {
	// Whether endpoints near the caller come first. True by default; false spreads calls over all endpoints.
	// +optional
	LocalFirst *bool `json:"localFirst,omitempty"`
	// Where calls go when a region has no healthy endpoint left.
	// +optional
	// +listType=map
	// +listMapKey=from
	// +kubebuilder:validation:MaxItems=64
	Failover []MeshFailover `json:"failover,omitempty"`
	// Labels, of callers and endpoints, which in this order say who is near, as topology.istio.io/cluster.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	FailoverPriority []string `json:"failoverPriority,omitempty"`
	// Shares of the calls from a locality, in percent.
	// +optional
	// +listType=map
	// +listMapKey=from
	// +kubebuilder:validation:MaxItems=64
	Distribute []MeshDistribute `json:"distribute,omitempty"`
	// When an endpoint is left out for failing. Istio fails over only where there is such a rule, so there is one
	// by default: five errors in a row, for 30 s at least.
	// +optional
	OutlierDetection *MeshOutlierDetection `json:"outlierDetection,omitempty"`
}

// MeshFailover is where calls go from a region.
type MeshFailover struct {
	// +kubebuilder:validation:MinLength=1
	From string `json:"from"`
	// +kubebuilder:validation:MinLength=1
	To string `json:"to"`
}

// MeshDistribute is how the calls of a locality are shared out.
type MeshDistribute struct {
	// REGION/ZONE/*, with fewer or no wildcards.
	// +kubebuilder:validation:MinLength=1
	From string `json:"from"`
	// The share of each locality in percent; together 100.
	// +kubebuilder:validation:MinProperties=1
	To map[string]int32 `json:"to"`
}

// MeshOutlierDetection is when an endpoint is left out.
type MeshOutlierDetection struct {
	// After how many errors in a row; 5 by default.
	// +optional
	// +kubebuilder:validation:Minimum=1
	ConsecutiveErrors *int32 `json:"consecutiveErrors,omitempty"`
	// How often is looked; 10s by default.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^-?(0|([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+)$`
	Interval *metav1.Duration `json:"interval,omitempty"`
	// For how long at least; 30s by default.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^-?(0|([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+)$`
	BaseEjectionTime *metav1.Duration `json:"baseEjectionTime,omitempty"`
	// The most that may be left out, in percent; 100 by default, so that a whole locality can.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	MaxEjectionPercent *int32 `json:"maxEjectionPercent,omitempty"`
}

// MeshMembers is what holds for all member clusters of a mesh.
type MeshMembers struct {
	// What becomes of the endpoints of a member whose API does not answer: Keep, until it does or the member leaves, or
	// Remove, after a while.
	// +optional
	// +kubebuilder:default=Keep
	WhenAway WhenAway `json:"whenAway,omitempty"`
	// After how long they are removed; 10m by default.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^-?(0|([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+)$`
	RemoveAfter *metav1.Duration `json:"removeAfter,omitempty"`
}

// WhenAway says what becomes of a member's endpoints while its API does not answer.
//
// +kubebuilder:validation:Enum=Keep;Remove
type WhenAway string

// What may become of them.
const (
	KeepWhenAway   WhenAway = "Keep"
	RemoveWhenAway WhenAway = "Remove"
)

// MeshHomeStatus is what became of a mesh's home.
type MeshHomeStatus struct {
	// The namespace of the home virtual cluster that holds the settings.
	Namespace string `json:"namespace"`
	// When the settings were written last.
	// +optional
	WrittenAt *metav1.Time `json:"writtenAt,omitempty"`
	// Settings that changed and that control planes read only when they start, by their names in
	// MeshConfig, since SettingsChangedAt. Control planes that started since have them.
	// +optional
	// +listType=atomic
	RestartFor []string `json:"restartFor,omitempty"`
	// +optional
	SettingsChangedAt *metav1.Time `json:"settingsChangedAt,omitempty"`
}

// MeshNetworkStatus is what is known of a network.
type MeshNetworkStatus struct {
	// Its name; empty for that of members which name none.
	Name string `json:"name"`
	// Its members.
	// +optional
	// +listType=atomic
	Members []string `json:"members,omitempty"`
	// The addresses of its gateways, as control planes are told.
	// +optional
	// +listType=atomic
	Gateways []string `json:"gateways,omitempty"`
}

// Condition types of meshes about their members, besides Ready and InStep.
const (
	// ConditionNetworksConnected says whether all networks that have members have gateways, if there are several.
	ConditionNetworksConnected = "NetworksConnected"
	// ConditionHomeReady says whether the home virtual cluster has the mesh's settings.
	ConditionHomeReady = "HomeReady"
	// ConditionSettingsCurrent says whether all control planes have started since settings changed that they read only then.
	ConditionSettingsCurrent = "SettingsCurrent"
)
