package v1alpha1

// VirtualClusterRates bound how much may be asked of a virtual cluster. Where a rate is
// absent, the server's default holds; zero is no limit. What is over is refused with 429.
type VirtualClusterRates struct {
	// Requests per second, on average over a minute; watches count when they begin.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000
	RequestsPerSecond *int32 `json:"requestsPerSecond,omitempty"`

	// Writes per second, on average over a minute. Every 8 KiB of a body count as one.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000
	WritesPerSecond *int32 `json:"writesPerSecond,omitempty"`

	// Watches that may be open at a time.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000
	Watches *int32 `json:"watches,omitempty"`

	// Connections (TCP) that the virtual cluster's own identities may have open at a time.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000
	Connections *int32 `json:"connections,omitempty"`
}
