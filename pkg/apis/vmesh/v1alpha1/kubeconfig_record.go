package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Kubeconfig is the record of a client certificate that vmesh has signed. While it is
// there the certificate is good, until it expires; to delete it is to revoke the
// certificate. It is made at virtualclusters/NAME/kubeconfig and nowhere else.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,path=kubeconfigs,singular=kubeconfig
// +kubebuilder:selectablefield:JSONPath=`.spec.virtualCluster`
// +kubebuilder:selectablefield:JSONPath=`.spec.user`
// +kubebuilder:printcolumn:name="Virtual Cluster",type=string,JSONPath=`.spec.virtualCluster`
// +kubebuilder:printcolumn:name="User",type=string,JSONPath=`.spec.user`
// +kubebuilder:printcolumn:name="Groups",type=string,JSONPath=`.spec.groups`
// +kubebuilder:printcolumn:name="Expires",type=string,JSONPath=`.spec.expires`
// +kubebuilder:printcolumn:name="Last Used",type=date,JSONPath=`.status.lastUsed`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Fingerprint",type=string,priority=1,JSONPath=`.spec.fingerprint`
type Kubeconfig struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// What was signed. It cannot be changed.
	Spec KubeconfigSpec `json:"spec"`
	// What has become of it. Written by vmesh.
	// +optional
	Status KubeconfigStatus `json:"status,omitempty"`
}

// KubeconfigSpec says what a certificate was signed for.
type KubeconfigSpec struct {
	// The virtual cluster that the identity belongs to, or root.
	VirtualCluster string `json:"virtualCluster"`
	// The user's name.
	User string `json:"user"`
	// The user's groups.
	// +optional
	// +listType=atomic
	Groups []string `json:"groups,omitempty"`
	// When the certificate expires. A week later this record is removed.
	Expires metav1.Time `json:"expires"`
	// The SHA-256 of the certificate (of its DER form), in hexadecimal, as
	// openssl x509 -fingerprint -sha256 prints it, without the colons.
	Fingerprint string `json:"fingerprint"`
}

// KubeconfigStatus says what has become of a certificate.
type KubeconfigStatus struct {
	// When it was last used, give or take ten minutes. Absent while it never was.
	// +optional
	LastUsed *metav1.Time `json:"lastUsed,omitempty"`
}

// KubeconfigList is a list of kubeconfigs.
//
// +kubebuilder:object:root=true
type KubeconfigList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Kubeconfig `json:"items"`
}
