package builtin

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// What the limits of Kubernetes are for an endpoint slice.
const (
	maxSliceEndpoints = 1000
	maxSliceAddresses = 100
	maxSlicePorts     = 20000
)

var protocols = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}

func oneOf[T ~string](path *field.Path, value T, allowed ...T) field.ErrorList {
	if slices.Contains(allowed, value) {
		return nil
	}
	return field.ErrorList{field.NotSupported(path, value, allowed)}
}

func validateService(o, old *corev1.Service) field.ErrorList {
	spec := field.NewPath("spec")
	s := &o.Spec
	errs := oneOf(spec.Child("type"), s.Type,
		corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName)
	errs = append(errs, oneOf(spec.Child("sessionAffinity"), s.SessionAffinity, corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone)...)
	headless := s.ClusterIP == corev1.ClusterIPNone
	if len(s.Ports) == 0 && !headless && s.Type != corev1.ServiceTypeExternalName {
		errs = append(errs, field.Required(spec.Child("ports"), ""))
	}
	errs = append(errs, validateServicePorts(s.Ports, spec.Child("ports"))...)
	errs = append(errs, metav1validation.ValidateLabels(s.Selector, spec.Child("selector"))...)
	switch {
	case s.Type == corev1.ServiceTypeExternalName:
		if s.ClusterIP != "" {
			errs = append(errs, field.Forbidden(spec.Child("clusterIP"), "may not be set when `type` is 'ExternalName'"))
		}
		if s.ExternalName == "" {
			errs = append(errs, field.Required(spec.Child("externalName"), ""))
		} else {
			errs = append(errs, dnsName(spec.Child("externalName"), s.ExternalName)...)
		}
	case headless && s.Type != corev1.ServiceTypeClusterIP:
		errs = append(errs, field.Invalid(spec.Child("clusterIPs").Index(0), s.ClusterIP, "may not be set to 'None' for "+string(s.Type)+" services"))
	}
	for i, ip := range s.ClusterIPs {
		if ip != corev1.ClusterIPNone {
			errs = append(errs, validIP(spec.Child("clusterIPs").Index(i), ip)...)
		}
	}
	if len(s.ClusterIPs) > 0 && s.ClusterIPs[0] != s.ClusterIP {
		errs = append(errs, field.Invalid(spec.Child("clusterIPs"), s.ClusterIPs, "first value must match `clusterIP`"))
	}
	for i, ip := range s.ExternalIPs {
		errs = append(errs, validIP(spec.Child("externalIPs").Index(i), ip)...)
	}
	if old != nil && old.Spec.ClusterIP != "" && old.Spec.Type != corev1.ServiceTypeExternalName && s.Type != corev1.ServiceTypeExternalName {
		errs = append(errs, apivalidation.ValidateImmutableField(s.ClusterIP, old.Spec.ClusterIP, spec.Child("clusterIPs").Index(0))...)
	}
	return errs
}

func validateServicePorts(ports []corev1.ServicePort, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	names := map[string]bool{}
	type id struct {
		protocol corev1.Protocol
		port     int32
	}
	numbers := map[id]bool{}
	for i := range ports {
		p, at := &ports[i], path.Index(i)
		switch {
		case p.Name == "" && len(ports) > 1:
			errs = append(errs, field.Required(at.Child("name"), ""))
		case p.Name != "":
			errs = append(errs, dnsLabel(at.Child("name"), p.Name)...)
			if names[p.Name] {
				errs = append(errs, field.Duplicate(at.Child("name"), p.Name))
			}
			names[p.Name] = true
		}
		errs = append(errs, portNumber(at.Child("port"), int(p.Port))...)
		errs = append(errs, oneOf(at.Child("protocol"), p.Protocol, protocols...)...)
		errs = append(errs, portNumberOrName(at.Child("targetPort"), p.TargetPort)...)
		if p.NodePort != 0 {
			errs = append(errs, portNumber(at.Child("nodePort"), int(p.NodePort))...)
		}
		if p.AppProtocol != nil {
			for _, msg := range validation.IsQualifiedName(*p.AppProtocol) {
				errs = append(errs, field.Invalid(at.Child("appProtocol"), *p.AppProtocol, msg))
			}
		}
		if numbers[id{p.Protocol, p.Port}] {
			errs = append(errs, field.Duplicate(at, corev1.ServicePort{Protocol: p.Protocol, Port: p.Port}))
		}
		numbers[id{p.Protocol, p.Port}] = true
	}
	return errs
}

func portNumber(path *field.Path, port int) field.ErrorList {
	var errs field.ErrorList
	for _, msg := range validation.IsValidPortNum(port) {
		errs = append(errs, field.Invalid(path, port, msg))
	}
	return errs
}

func portNumberOrName(path *field.Path, port intstr.IntOrString) field.ErrorList {
	if port.Type == intstr.Int {
		return portNumber(path, port.IntValue())
	}
	var errs field.ErrorList
	for _, msg := range validation.IsValidPortName(port.StrVal) {
		errs = append(errs, field.Invalid(path, port.StrVal, msg))
	}
	return errs
}

func dnsLabel(path *field.Path, name string) field.ErrorList {
	var errs field.ErrorList
	for _, msg := range validation.IsDNS1123Label(name) {
		errs = append(errs, field.Invalid(path, name, msg))
	}
	return errs
}

// dnsName takes the dot at the end that a complete name may have.
func dnsName(path *field.Path, name string) field.ErrorList {
	bare := name
	if len(bare) > 1 && bare[len(bare)-1] == '.' {
		bare = bare[:len(bare)-1]
	}
	var errs field.ErrorList
	for _, msg := range validation.IsDNS1123Subdomain(bare) {
		errs = append(errs, field.Invalid(path, name, msg))
	}
	return errs
}

func validIP(path *field.Path, ip string) field.ErrorList {
	return validation.IsValidIPForLegacyField(path, ip, false, nil)
}

// endpointIP refuses what can never be an endpoint of a service.
func endpointIP(path *field.Path, ip string) field.ErrorList {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return nil // told by others
	}
	refuse := func(why string) field.ErrorList { return field.ErrorList{field.Invalid(path, ip, why)} }
	switch addr = addr.Unmap(); {
	case addr.IsUnspecified():
		return refuse(fmt.Sprintf("may not be unspecified (%v)", ip))
	case addr.IsLoopback():
		return refuse("may not be in the loopback range (127.0.0.0/8, ::1/128)")
	case addr.IsLinkLocalUnicast():
		return refuse("may not be in the link-local range (169.254.0.0/16, fe80::/10)")
	case addr.IsLinkLocalMulticast():
		return refuse("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
	}
	return nil
}

func validateEndpoints(o, _ *corev1.Endpoints) field.ErrorList {
	var errs field.ErrorList
	for i := range o.Subsets {
		s, path := &o.Subsets[i], field.NewPath("subsets").Index(i)
		if len(s.Addresses)+len(s.NotReadyAddresses) == 0 {
			errs = append(errs, field.Required(path, "must specify `addresses` or `notReadyAddresses`"))
		}
		errs = append(errs, validateEndpointAddresses(s.Addresses, path.Child("addresses"))...)
		errs = append(errs, validateEndpointAddresses(s.NotReadyAddresses, path.Child("notReadyAddresses"))...)
		for j, p := range s.Ports {
			at := path.Child("ports").Index(j)
			if p.Name == "" && len(s.Ports) > 1 {
				errs = append(errs, field.Required(at.Child("name"), ""))
			} else if p.Name != "" {
				errs = append(errs, dnsLabel(at.Child("name"), p.Name)...)
			}
			errs = append(errs, portNumber(at.Child("port"), int(p.Port))...)
			errs = append(errs, oneOf(at.Child("protocol"), p.Protocol, protocols...)...)
		}
	}
	return errs
}

func validateEndpointAddresses(list []corev1.EndpointAddress, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range list {
		at := path.Index(i)
		errs = append(errs, validIP(at.Child("ip"), list[i].IP)...)
		errs = append(errs, endpointIP(at.Child("ip"), list[i].IP)...)
		if list[i].Hostname != "" {
			errs = append(errs, dnsLabel(at.Child("hostname"), list[i].Hostname)...)
		}
	}
	return errs
}

func validateEndpointSlice(o, old *discoveryv1.EndpointSlice) field.ErrorList {
	errs := oneOf(field.NewPath("addressType"), o.AddressType, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN)
	if old != nil {
		errs = append(errs, apivalidation.ValidateImmutableField(o.AddressType, old.AddressType, field.NewPath("addressType"))...)
	}
	errs = append(errs, validateSlicePorts(o.Ports)...)
	path := field.NewPath("endpoints")
	if len(o.Endpoints) > maxSliceEndpoints {
		return append(errs, field.TooMany(path, len(o.Endpoints), maxSliceEndpoints))
	}
	for i := range o.Endpoints {
		e, at := &o.Endpoints[i], path.Index(i)
		switch n := len(e.Addresses); {
		case n == 0:
			errs = append(errs, field.Required(at.Child("addresses"), "must contain at least 1 address"))
		case n > maxSliceAddresses:
			errs = append(errs, field.TooMany(at.Child("addresses"), n, maxSliceAddresses))
		}
		for j, address := range e.Addresses {
			errs = append(errs, sliceAddress(at.Child("addresses").Index(j), o.AddressType, address)...)
		}
		if e.Hostname != nil {
			errs = append(errs, dnsLabel(at.Child("hostname"), *e.Hostname)...)
		}
		if e.NodeName != nil {
			for _, msg := range apivalidation.NameIsDNSSubdomain(*e.NodeName, false) {
				errs = append(errs, field.Invalid(at.Child("nodeName"), *e.NodeName, msg))
			}
		}
	}
	return errs
}

func sliceAddress(path *field.Path, kind discoveryv1.AddressType, address string) field.ErrorList {
	if kind == discoveryv1.AddressTypeFQDN {
		return validation.IsFullyQualifiedDomainName(path, address)
	}
	errs := validIP(path, address)
	if len(errs) > 0 {
		return errs
	}
	if addr, err := netip.ParseAddr(address); err == nil {
		switch {
		case kind == discoveryv1.AddressTypeIPv4 && !addr.Is4():
			errs = append(errs, field.Invalid(path, address, "must be an IPv4 address"))
		case kind == discoveryv1.AddressTypeIPv6 && !addr.Is6():
			errs = append(errs, field.Invalid(path, address, "must be an IPv6 address"))
		}
	}
	return append(errs, endpointIP(path, address)...)
}

func validateSlicePorts(ports []discoveryv1.EndpointPort) field.ErrorList {
	path := field.NewPath("ports")
	if len(ports) > maxSlicePorts {
		return field.ErrorList{field.TooMany(path, len(ports), maxSlicePorts)}
	}
	var errs field.ErrorList
	names := map[string]bool{}
	for i, p := range ports {
		at := path.Index(i)
		name := orEmpty(p.Name)
		if name != "" {
			errs = append(errs, dnsLabel(at.Child("name"), name)...)
		}
		if names[name] {
			errs = append(errs, field.Duplicate(at.Child("name"), name))
		}
		names[name] = true
		if p.Port != nil {
			errs = append(errs, portNumber(at.Child("port"), int(*p.Port))...)
		}
		if p.Protocol != nil {
			errs = append(errs, oneOf(at.Child("protocol"), *p.Protocol, protocols...)...)
		}
		if p.AppProtocol != nil {
			for _, msg := range validation.IsQualifiedName(*p.AppProtocol) {
				errs = append(errs, field.Invalid(at.Child("appProtocol"), *p.AppProtocol, msg))
			}
		}
	}
	return errs
}
