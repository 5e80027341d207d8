package builtin

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// fillNamespace gives a namespace its name as a label.
func fillNamespace(o *corev1.Namespace) {
	if o.Labels[corev1.LabelMetadataName] == o.Name || o.Name == "" {
		return
	}
	o.Labels = maps.Clone(o.Labels)
	if o.Labels == nil {
		o.Labels = map[string]string{}
	}
	o.Labels[corev1.LabelMetadataName] = o.Name
}

// completeNamespace gives a new namespace the finalizer that stands for its contents, and
// a phase. From then on the finalizers are the registry's, whose finalize endpoint alone
// takes them away.
func completeNamespace(o, old *corev1.Namespace) {
	fillNamespace(o) // its name may have been made up since
	if old != nil {
		return
	}
	if !slices.Contains(o.Spec.Finalizers, corev1.FinalizerKubernetes) {
		o.Spec.Finalizers = append(o.Spec.Finalizers, corev1.FinalizerKubernetes)
	}
	o.Status = corev1.NamespaceStatus{Phase: corev1.NamespaceActive}
}

// fillConfigMap gives keys without a value the empty value.
func fillConfigMap(o *corev1.ConfigMap) { fillKeys(o.BinaryData) }

// fillSecret moves what was written as text to where it is kept.
func fillSecret(o *corev1.Secret) {
	for key, value := range o.StringData {
		if o.Data == nil {
			o.Data = map[string][]byte{}
		}
		o.Data[key] = []byte(value)
	}
	o.StringData = nil
	fillKeys(o.Data)
}

func fillKeys(data map[string][]byte) {
	for key, value := range data {
		if value == nil {
			data[key] = []byte{}
		}
	}
}

// fillService fills in what follows from a service's type. No addresses are handed out:
// nothing routes to them.
func fillService(o *corev1.Service) {
	s := &o.Spec
	for i := range s.Ports {
		if p := &s.Ports[i]; p.TargetPort == intstr.FromInt32(0) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	if s.SessionAffinity == corev1.ServiceAffinityNone {
		s.SessionAffinityConfig = nil
	} else if s.SessionAffinity == corev1.ServiceAffinityClientIP && (s.SessionAffinityConfig == nil ||
		s.SessionAffinityConfig.ClientIP == nil || s.SessionAffinityConfig.ClientIP.TimeoutSeconds == nil) {
		seconds := corev1.DefaultClientIPServiceAffinitySeconds
		s.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
	external := s.Type == corev1.ServiceTypeNodePort || s.Type == corev1.ServiceTypeLoadBalancer
	if external && s.ExternalTrafficPolicy == "" {
		s.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	}
	if s.InternalTrafficPolicy == nil && (external || s.Type == corev1.ServiceTypeClusterIP) {
		cluster := corev1.ServiceInternalTrafficPolicyCluster
		s.InternalTrafficPolicy = &cluster
	}
	if s.AllocateLoadBalancerNodePorts == nil && s.Type == corev1.ServiceTypeLoadBalancer {
		yes := true
		s.AllocateLoadBalancerNodePorts = &yes
	}
}

// completeService keeps the addresses that a service has if an update names none, and
// makes the address and the list of addresses say the same.
func completeService(o, old *corev1.Service) {
	s := &o.Spec
	if s.Type == corev1.ServiceTypeExternalName {
		return
	}
	if old != nil && old.Spec.Type != corev1.ServiceTypeExternalName && s.ClusterIP == "" && len(s.ClusterIPs) == 0 {
		s.ClusterIP, s.ClusterIPs = old.Spec.ClusterIP, old.Spec.ClusterIPs
	}
	switch {
	case s.ClusterIP != "" && len(s.ClusterIPs) == 0:
		s.ClusterIPs = []string{s.ClusterIP}
	case s.ClusterIP == "" && len(s.ClusterIPs) > 0:
		s.ClusterIP = s.ClusterIPs[0]
	}
}

// fillPod fills in what follows from other members.
func fillPod(o *corev1.Pod) {
	if o.Spec.EnableServiceLinks == nil {
		yes := true
		o.Spec.EnableServiceLinks = &yes
	}
	for _, list := range [][]corev1.Container{o.Spec.InitContainers, o.Spec.Containers} {
		for i := range list {
			fillResources(&list[i], o.Spec.HostNetwork)
		}
	}
	fillPodSpec(&o.Spec)
}

// fillPodSpec does what also goes for the pods that a template describes.
func fillPodSpec(s *corev1.PodSpec) {
	if s.ServiceAccountName == "" {
		s.ServiceAccountName = s.DeprecatedServiceAccount
	}
	s.DeprecatedServiceAccount = s.ServiceAccountName
	for i := range s.Volumes {
		if s.Volumes[i].VolumeSource == (corev1.VolumeSource{}) {
			s.Volumes[i].EmptyDir = &corev1.EmptyDirVolumeSource{}
		}
	}
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			if c := &list[i]; c.ImagePullPolicy == "" {
				c.ImagePullPolicy = corev1.PullIfNotPresent
				if latest(c.Image) {
					c.ImagePullPolicy = corev1.PullAlways
				}
			}
		}
	}
}

// completePod gives a new pod its phase: nothing has run it yet.
func completePod(o, old *corev1.Pod) {
	if old == nil {
		o.Status = corev1.PodStatus{Phase: corev1.PodPending}
	}
}

// fillResources requests what is the limit, and opens ports on the host where there is no
// other network.
func fillResources(c *corev1.Container, hostNetwork bool) {
	for name, limit := range c.Resources.Limits {
		if _, ok := c.Resources.Requests[name]; !ok {
			if c.Resources.Requests == nil {
				c.Resources.Requests = map[corev1.ResourceName]resource.Quantity{}
			}
			c.Resources.Requests[name] = limit.DeepCopy()
		}
	}
	for i := range c.Ports {
		if p := &c.Ports[i]; hostNetwork && p.HostPort == 0 {
			p.HostPort = p.ContainerPort
		}
	}
}

// latest tells whether an image is named without a tag or digest, or by the tag latest.
func latest(image string) bool {
	if strings.Contains(image, "@") {
		return false
	}
	name := image[strings.LastIndex(image, "/")+1:]
	_, tag, tagged := strings.Cut(name, ":")
	return !tagged || tag == "latest"
}

// fillBinding names the API group of what the kind says.
func fillBinding(role *rbacv1.RoleRef, subjects []rbacv1.Subject) {
	if role.APIGroup == "" {
		role.APIGroup = rbacv1.GroupName
	}
	for i := range subjects {
		if s := &subjects[i]; s.APIGroup == "" && (s.Kind == rbacv1.UserKind || s.Kind == rbacv1.GroupKind) {
			s.APIGroup = rbacv1.GroupName
		}
	}
}
