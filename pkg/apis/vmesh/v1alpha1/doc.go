// Package v1alpha1 is vmesh's own API, served by the root: the virtual clusters,
// and the meshes that they are merged into.
//
// +kubebuilder:object:generate=true
// +groupName=vmesh.io
package v1alpha1

import "k8s.io/apimachinery/pkg/runtime/schema"

// GroupVersion is the group and version of every type in this package.
var GroupVersion = schema.GroupVersion{Group: "vmesh.io", Version: "v1alpha1"}

// DefaultName is the name of the mesh and of the virtual cluster that exist from the
// first start on.
const DefaultName = "default"
