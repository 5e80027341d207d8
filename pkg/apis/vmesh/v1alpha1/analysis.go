package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Analysis is what Istio's analyzers find in a virtual cluster, as istioctl analyze tells
// it. It is answered at virtualclusters/NAME/analysis, and made anew for each request.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,path=analyses,singular=analysis
type Analysis struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Status AnalysisStatus `json:"status,omitempty"`
}

// AnalysisStatus is the answer.
type AnalysisStatus struct {
	// What was found, the worst first.
	// +optional
	// +listType=atomic
	Findings []Finding `json:"findings,omitempty"`
	// The analyzers that broke off, and whose findings are missing; the server's log says why.
	// +optional
	// +listType=atomic
	Failed []string `json:"failed,omitempty"`
}

// Finding is one message of an analyzer.
type Finding struct {
	// Istio's code, such as IST0101.
	Code string `json:"code"`
	// Error, Warning or Info.
	Level string `json:"level"`
	// What is the matter.
	Message string `json:"message"`
	// The object it is about, such as "VirtualService shop/reviews".
	// +optional
	Origin string `json:"origin,omitempty"`
	// The namespace of that object, or its name if it is a namespace.
	// +optional
	Namespace string `json:"namespace,omitempty"`
	// Where Istio explains it.
	// +optional
	DocumentationURL string `json:"documentationUrl,omitempty"`
}

// String is the finding as istioctl analyze prints it.
func (f Finding) String() string {
	origin := ""
	if f.Origin != "" {
		origin = " (" + f.Origin + ")"
	}
	return f.Level + " [" + f.Code + "]" + origin + " " + f.Message
}
