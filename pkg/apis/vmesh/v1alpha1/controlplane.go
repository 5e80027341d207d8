package v1alpha1

import "strings"

const (
	// What says, in the labels of a control plane, which pod it is.
	controlPlanePod       = "vmesh.io/pod"
	controlPlaneNamespace = "vmesh.io/namespace"
)

// Name is a short name of a control plane for people: POD.NAMESPACE where it says so, and
// otherwise its id. Several streams of one keep the suffixes that tell them apart.
func (c *ControlPlaneStatus) Name() string {
	id, suffix := c.ID, ""
	if i := strings.LastIndexByte(id, '#'); i >= 0 {
		id, suffix = id[:i], id[i:]
	}
	if pod, namespace := c.Labels[controlPlanePod], c.Labels[controlPlaneNamespace]; pod != "" && namespace != "" {
		return pod + "." + namespace + suffix
	}
	// Istio's node ids are TYPE~ADDRESS~POD.NAMESPACE~DOMAIN.
	if parts := strings.Split(id, "~"); len(parts) == 4 && parts[2] != "" {
		return parts[2] + suffix
	}
	return c.ID
}

// Acknowledged says whether a control plane is connected and has acknowledged all that it
// was sent, which is something.
func (c *ControlPlaneStatus) Acknowledged() bool {
	return c.Connected && c.BehindSince == nil && len(c.Kinds) > 0
}

// Refused is the first kind whose last response a control plane has refused, or nil.
func (c *ControlPlaneStatus) Refused() *ControlPlaneKindStatus {
	for i := range c.Kinds {
		if c.Kinds[i].Error != "" {
			return &c.Kinds[i]
		}
	}
	return nil
}

// Kind is the kind's name, as VirtualService.
func (k *ControlPlaneKindStatus) Kind() string {
	return k.TypeURL[strings.LastIndexByte(k.TypeURL, '/')+1:]
}
