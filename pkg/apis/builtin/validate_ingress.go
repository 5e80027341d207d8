package builtin

import (
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateIngress(o, _ *networkingv1.Ingress) field.ErrorList {
	spec := field.NewPath("spec")
	var errs field.ErrorList
	if len(o.Spec.Rules) == 0 && o.Spec.DefaultBackend == nil {
		errs = append(errs, field.Invalid(spec, o.Spec.Rules, "either `defaultBackend` or `rules` must be specified"))
	}
	if o.Spec.DefaultBackend != nil {
		errs = append(errs, validateIngressBackend(spec.Child("defaultBackend"), o.Spec.DefaultBackend)...)
	}
	for i, r := range o.Spec.Rules {
		at := spec.Child("rules").Index(i)
		check := validation.IsDNS1123Subdomain
		if strings.HasPrefix(r.Host, "*.") {
			check = validation.IsWildcardDNS1123Subdomain
		}
		if r.Host != "" {
			for _, msg := range check(r.Host) {
				errs = append(errs, field.Invalid(at.Child("host"), r.Host, msg))
			}
		}
		if r.HTTP == nil {
			continue
		}
		if len(r.HTTP.Paths) == 0 {
			errs = append(errs, field.Required(at.Child("http", "paths"), ""))
		}
		for j := range r.HTTP.Paths {
			p, at := &r.HTTP.Paths[j], at.Child("http", "paths").Index(j)
			switch {
			case p.PathType == nil:
				errs = append(errs, field.Required(at.Child("pathType"), "pathType must be specified"))
			case *p.PathType != networkingv1.PathTypeImplementationSpecific && !strings.HasPrefix(p.Path, "/"):
				errs = append(errs, field.Invalid(at.Child("path"), p.Path, "must be an absolute path"))
			}
			if p.PathType != nil {
				errs = append(errs, oneOf(at.Child("pathType"), *p.PathType,
					networkingv1.PathTypeExact, networkingv1.PathTypePrefix, networkingv1.PathTypeImplementationSpecific)...)
			}
			errs = append(errs, validateIngressBackend(at.Child("backend"), &p.Backend)...)
		}
	}
	return errs
}

func validateIngressBackend(path *field.Path, b *networkingv1.IngressBackend) field.ErrorList {
	switch {
	case b.Resource != nil && b.Service != nil:
		return field.ErrorList{field.Invalid(path, "", "cannot set both resource and service backends")}
	case b.Resource != nil:
		return nil
	case b.Service == nil || b.Service.Name == "":
		return field.ErrorList{field.Required(path.Child("service", "name"), "")}
	}
	port := path.Child("service", "port")
	switch p := b.Service.Port; {
	case p.Name != "" && p.Number != 0:
		return field.ErrorList{field.Invalid(path, "", "cannot set both port name & port number")}
	case p.Name == "" && p.Number == 0:
		return field.ErrorList{field.Required(port, "port name or number is required")}
	case p.Number != 0:
		return portNumber(port.Child("number"), int(p.Number))
	default:
		var errs field.ErrorList
		for _, msg := range validation.IsValidPortName(p.Name) {
			errs = append(errs, field.Invalid(port.Child("name"), p.Name, msg))
		}
		return errs
	}
}

func validateIngressClass(o, old *networkingv1.IngressClass) field.ErrorList {
	path := field.NewPath("spec", "controller")
	var errs field.ErrorList
	if old != nil && old.Spec.Controller != o.Spec.Controller {
		errs = append(errs, field.Invalid(path, o.Spec.Controller, "field is immutable"))
	}
	if o.Spec.Controller == "" {
		return append(errs, field.Required(path, ""))
	}
	return append(errs, validation.IsDomainPrefixedPath(path, o.Spec.Controller)...)
}
