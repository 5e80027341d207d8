package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// MeshService is a service as the mesh sees it: the services of this namespace and name in all
// member clusters, merged. It is made of what the members have, served in virtual clusters, and cannot be written.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,path=meshservices,singular=meshservice,shortName=msvc,categories=vmesh
// +kubebuilder:printcolumn:name="Clusters",type=string,JSONPath=`.status.summary.clusters`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.summary.ready`
// +kubebuilder:printcolumn:name="Ports",type=string,JSONPath=`.status.summary.ports`
// +kubebuilder:printcolumn:name="Locality",type=string,JSONPath=`.status.traffic.locality`
// +kubebuilder:printcolumn:name="Routed By",type=string,JSONPath=`.status.summary.routes`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Networks",type=string,priority=1,JSONPath=`.status.summary.networks`
// +kubebuilder:printcolumn:name="Localities",type=string,priority=1,JSONPath=`.status.summary.localities`
// +kubebuilder:printcolumn:name="Differences",type=string,priority=1,JSONPath=`.status.differences`
type MeshService struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// What the service is.
	// +optional
	Status MeshServiceStatus `json:"status,omitempty"`
}

// MeshServiceStatus is what a service is.
type MeshServiceStatus struct {
	// The host by which the mesh calls it, as reviews.shop.svc.cluster.local.
	Host string `json:"host"`
	// What kubectl shows.
	Summary MeshServiceSummary `json:"summary"`
	// How many endpoints there are in all clusters.
	Endpoints int32 `json:"endpoints"`
	// How many of them are ready, those in drained clusters left out.
	Ready int32 `json:"ready"`
	// What there is in each member cluster.
	// +listType=map
	// +listMapKey=name
	Clusters []MeshServiceCluster `json:"clusters"`
	// In what the clusters differ that should be the same: ports, protocols, kinds of service.
	// +optional
	// +listType=atomic
	Differences []string `json:"differences,omitempty"`
	// The objects of the mesh that say how it is called.
	// +optional
	// +listType=atomic
	Routes []MeshServiceRoute `json:"routes,omitempty"`
	// By what rule endpoints are chosen among localities.
	// +optional
	Traffic *MeshServiceTraffic `json:"traffic,omitempty"`
}

// MeshServiceSummary is a service in a few words.
type MeshServiceSummary struct {
	Clusters   string `json:"clusters"`
	Networks   string `json:"networks,omitempty"`
	Localities string `json:"localities,omitempty"`
	Ready      string `json:"ready"`
	Ports      string `json:"ports,omitempty"`
	Routes     string `json:"routes,omitempty"`
}

// MeshServiceCluster is a service in one member cluster.
type MeshServiceCluster struct {
	// The member cluster.
	Name string `json:"name"`
	// The network of its workloads.
	// +optional
	Network string `json:"network,omitempty"`
	// How old this is, if the member's API does not answer: since when it did not.
	// +optional
	AwaySince *metav1.Time `json:"awaySince,omitempty"`
	// The kind of service, as ClusterIP.
	// +optional
	Type string `json:"type,omitempty"`
	// Whether it has no address of its own.
	// +optional
	Headless bool `json:"headless,omitempty"`
	// Its ports.
	// +optional
	// +listType=atomic
	Ports []MeshServicePort `json:"ports,omitempty"`
	// How many endpoints there are.
	Endpoints int32 `json:"endpoints"`
	// How many of them are ready.
	Ready int32 `json:"ready"`
	// Where they are.
	// +optional
	// +listType=atomic
	Localities []MeshServiceLocality `json:"localities,omitempty"`
	// Whether the member is drained: its endpoints are not called.
	// +optional
	Drained bool `json:"drained,omitempty"`
}

// MeshServicePort is a port of a service.
type MeshServicePort struct {
	// Its name, if it has one.
	// +optional
	Name string `json:"name,omitempty"`
	// Its number.
	Port int32 `json:"port"`
	// The protocol of the transport, as TCP.
	// +optional
	Protocol string `json:"protocol,omitempty"`
	// The protocol of the application, as far as Istio can tell it from name or appProtocol.
	// +optional
	AppProtocol string `json:"appProtocol,omitempty"`
}

// MeshServiceLocality is how many endpoints are in a locality.
type MeshServiceLocality struct {
	// REGION/ZONE/SUBZONE, as far as it is known.
	Locality string `json:"locality"`
	// How many endpoints are there.
	Endpoints int32 `json:"endpoints"`
	// How many of them are ready.
	Ready int32 `json:"ready"`
}

// MeshServiceRoute is an object that says how a service is called.
type MeshServiceRoute struct {
	// The virtual cluster that the object is in.
	VirtualCluster string `json:"virtualCluster,omitempty"`
	// VirtualService or DestinationRule.
	Kind string `json:"kind"`
	// Its namespace.
	Namespace string `json:"namespace"`
	// Its name.
	Name string `json:"name"`
}

// MeshServiceTraffic is the rule by which endpoints are chosen among localities.
type MeshServiceTraffic struct {
	// LocalFirst, Failover, Distribute, or Everywhere.
	Locality string `json:"locality"`
	// What says so: Mesh NAME, or DestinationRule NAMESPACE/NAME.
	From string `json:"from"`
	// Whether endpoints that fail are left out, without which there is no failover, and what says so.
	OutlierDetection string `json:"outlierDetection,omitempty"`
	// What keeps the rule from working as it reads.
	// +optional
	// +listType=atomic
	Warnings []string `json:"warnings,omitempty"`
}

// MeshServiceList is a list of services of a mesh.
//
// +kubebuilder:object:root=true
type MeshServiceList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []MeshService `json:"items"`
}
