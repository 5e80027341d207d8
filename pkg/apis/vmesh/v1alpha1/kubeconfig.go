package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// KubeconfigRequest asks, at virtualclusters/NAME/kubeconfig, for a client certificate
// that is good for that virtual cluster and no other, or for the root if NAME is root. It is answered and
// recorded as a Kubeconfig, not stored; the private key stays with who asks.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
type KubeconfigRequest struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   KubeconfigRequestSpec   `json:"spec"`
	Status KubeconfigRequestStatus `json:"status,omitempty"`
}

// KubeconfigRequestSpec says for whom and for how long a certificate is asked.
type KubeconfigRequestSpec struct {
	// A certificate request in PEM form. Only its public key and signature are read.
	Request []byte `json:"request"`
	// The user's name; "admin" when empty.
	// +optional
	User string `json:"user,omitempty"`
	// The user's groups, which RBAC of the virtual cluster gives their rights;
	// system:masters, the administrators', when empty.
	// +optional
	Groups []string `json:"groups,omitempty"`
	// For how long the certificate is good: 10 minutes to 10 years; a year when unset.
	// +optional
	ExpirationSeconds *int64 `json:"expirationSeconds,omitempty"`
}

// KubeconfigRequestStatus is the answer.
type KubeconfigRequestStatus struct {
	// The name of the Kubeconfig that records the certificate; to delete that is to revoke it.
	// +optional
	Kubeconfig string `json:"kubeconfig,omitempty"`
	// The certificate in PEM form.
	// +optional
	Certificate []byte `json:"certificate,omitempty"`
	// The authorities that sign the server's certificate, in PEM form: the present one
	// and, where it is known already, the next.
	// +optional
	CertificateAuthority []byte `json:"certificateAuthority,omitempty"`
	// The address of the virtual cluster's API.
	// +optional
	Server string `json:"server,omitempty"`
	// When the certificate expires.
	// +optional
	ExpirationTimestamp *metav1.Time `json:"expirationTimestamp,omitempty"`
}
