package builtin

import (
	"slices"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateNamespace(o, _ *corev1.Namespace) field.ErrorList {
	var errs field.ErrorList
	for i, name := range o.Spec.Finalizers {
		path := field.NewPath("spec", "finalizers").Index(i)
		for _, msg := range validation.IsQualifiedName(string(name)) {
			errs = append(errs, field.Invalid(path, name, msg))
		}
		if name != corev1.FinalizerKubernetes && !slices.Contains([]byte(name), '/') {
			errs = append(errs, field.Invalid(path, name, "name is neither a standard finalizer name nor is it fully qualified"))
		}
	}
	return errs
}

func validatePod(o, old *corev1.Pod) field.ErrorList {
	spec := field.NewPath("spec")
	errs := validatePodSpec(&o.Spec, spec)
	if old != nil && old.Spec.NodeName != "" && old.Spec.NodeName != o.Spec.NodeName {
		errs = append(errs, field.Forbidden(spec.Child("nodeName"), "a pod stays on its node"))
	}
	return errs
}

// validatePodSpec is as much as a pod that no node runs needs: its containers have names,
// images and sound ports.
func validatePodSpec(s *corev1.PodSpec, spec *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(s.Containers) == 0 {
		errs = append(errs, field.Required(spec.Child("containers"), ""))
	}
	names := map[string]bool{}
	for _, list := range []struct {
		name       string
		containers []corev1.Container
	}{{"initContainers", s.InitContainers}, {"containers", s.Containers}} {
		for i := range list.containers {
			c, at := &list.containers[i], spec.Child(list.name).Index(i)
			if c.Name == "" {
				errs = append(errs, field.Required(at.Child("name"), ""))
			} else {
				errs = append(errs, dnsLabel(at.Child("name"), c.Name)...)
			}
			if names[c.Name] {
				errs = append(errs, field.Duplicate(at.Child("name"), c.Name))
			}
			names[c.Name] = true
			if c.Image == "" {
				errs = append(errs, field.Required(at.Child("image"), ""))
			}
			for j, p := range c.Ports {
				errs = append(errs, portNumber(at.Child("ports").Index(j).Child("containerPort"), int(p.ContainerPort))...)
				errs = append(errs, oneOf(at.Child("ports").Index(j).Child("protocol"), p.Protocol, protocols...)...)
			}
		}
	}
	return append(errs, oneOf(spec.Child("restartPolicy"), s.RestartPolicy,
		corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)...)
}

func validateEvent(o, _ *corev1.Event) field.ErrorList {
	return eventNamespace(field.NewPath("involvedObject", "namespace"), o.Namespace, o.InvolvedObject.Namespace)
}

func validateGroupEvent(o, old *eventsv1.Event) field.ErrorList {
	errs := eventNamespace(field.NewPath("regarding", "namespace"), o.Namespace, o.Regarding.Namespace)
	if old != nil {
		return errs
	}
	if o.EventTime.IsZero() {
		errs = append(errs, field.Required(field.NewPath("eventTime"), ""))
	}
	for _, member := range []struct{ name, value string }{
		{"reportingController", o.ReportingController}, {"reportingInstance", o.ReportingInstance}, {"action", o.Action}, {"reason", o.Reason},
	} {
		if member.value == "" {
			errs = append(errs, field.Required(field.NewPath(member.name), ""))
		}
	}
	return append(errs, oneOf(field.NewPath("type"), o.Type, corev1.EventTypeNormal, corev1.EventTypeWarning)...)
}

// eventNamespace: an event lies beside what it is about; what has no namespace has its
// events in the default one.
func eventNamespace(path *field.Path, own, about string) field.ErrorList {
	if about == own || about == "" && (own == corev1.NamespaceDefault || own == "kube-system") {
		return nil
	}
	return field.ErrorList{field.Invalid(path, about, "does not match event.namespace")}
}

func validateLease(o, _ *coordinationv1.Lease) field.ErrorList {
	var errs field.ErrorList
	spec := field.NewPath("spec")
	if s := o.Spec.LeaseDurationSeconds; s != nil && *s <= 0 {
		errs = append(errs, field.Invalid(spec.Child("leaseDurationSeconds"), *s, "must be greater than 0"))
	}
	if n := o.Spec.LeaseTransitions; n != nil && *n < 0 {
		errs = append(errs, field.Invalid(spec.Child("leaseTransitions"), *n, "must be greater than or equal to 0"))
	}
	if o.Spec.PreferredHolder != nil && *o.Spec.PreferredHolder != "" && (o.Spec.Strategy == nil || *o.Spec.Strategy == "") {
		errs = append(errs, field.Forbidden(spec.Child("preferredHolder"), "may only be specified if `strategy` is defined"))
	}
	return errs
}
