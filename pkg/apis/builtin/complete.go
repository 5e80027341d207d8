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

// completeNamespace gives a namespace the finalizer that stands for its contents, and a
// phase. The finalizer stays for as long as nobody deletes the namespace; after that it
// is the registry's, whose finalize endpoint takes it away.
func completeNamespace(o, old *corev1.Namespace) {
	fillNamespace(o) // its name may have been made up since
	if old != nil {
		if o.DeletionTimestamp == nil {
			o.Spec.Finalizers = old.Spec.Finalizers
		}
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
	if o.Spec.ServiceAccountName == "" {
		o.Spec.ServiceAccountName = o.Spec.DeprecatedServiceAccount
	}
	o.Spec.DeprecatedServiceAccount = o.Spec.ServiceAccountName
	for i := range o.Spec.Volumes {
		if o.Spec.Volumes[i].VolumeSource == (corev1.VolumeSource{}) {
			o.Spec.Volumes[i].EmptyDir = &corev1.EmptyDirVolumeSource{}
		}
	}
	for _, list := range [][]corev1.Container{o.Spec.InitContainers, o.Spec.Containers} {
		for i := range list {
			fillContainer(&list[i], o.Spec.HostNetwork)
		}
	}
}

// completePod gives a new pod its phase: nothing has run it yet.
func completePod(o, old *corev1.Pod) {
	if old == nil {
		o.Status = corev1.PodStatus{Phase: corev1.PodPending}
	}
}

func fillContainer(c *corev1.Container, hostNetwork bool) {
	if c.ImagePullPolicy == "" {
		c.ImagePullPolicy = corev1.PullIfNotPresent
		if latest(c.Image) {
			c.ImagePullPolicy = corev1.PullAlways
		}
	}
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
