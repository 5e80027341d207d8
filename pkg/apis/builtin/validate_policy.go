package builtin

import (
	"slices"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/util/webhook"
)

// maxWebhookSeconds is the longest a webhook may take to answer.
const maxWebhookSeconds = 30

// hook is what the two kinds of webhooks have in common.
type hook struct {
	name              string
	client            admissionregistrationv1.WebhookClientConfig
	rules             []admissionregistrationv1.RuleWithOperations
	failure           *admissionregistrationv1.FailurePolicyType
	match             *admissionregistrationv1.MatchPolicyType
	sideEffects       *admissionregistrationv1.SideEffectClass
	timeout           *int32
	reviews           []string
	namespaces, items *metav1.LabelSelector
}

func validateMutatingWebhooks(o, _ *admissionregistrationv1.MutatingWebhookConfiguration) field.ErrorList {
	var hooks []hook
	for i := range o.Webhooks {
		w := &o.Webhooks[i]
		hooks = append(hooks, hook{
			w.Name, w.ClientConfig, w.Rules, w.FailurePolicy, w.MatchPolicy, w.SideEffects, w.TimeoutSeconds, w.AdmissionReviewVersions,
			w.NamespaceSelector, w.ObjectSelector,
		})
	}
	errs := validateHooks(hooks)
	for i := range o.Webhooks {
		if p := o.Webhooks[i].ReinvocationPolicy; p != nil {
			errs = append(errs, oneOf(field.NewPath("webhooks").Index(i).Child("reinvocationPolicy"), *p,
				admissionregistrationv1.IfNeededReinvocationPolicy, admissionregistrationv1.NeverReinvocationPolicy)...)
		}
	}
	return errs
}

func validateValidatingWebhooks(o, _ *admissionregistrationv1.ValidatingWebhookConfiguration) field.ErrorList {
	var hooks []hook
	for i := range o.Webhooks {
		w := &o.Webhooks[i]
		hooks = append(hooks, hook{
			w.Name, w.ClientConfig, w.Rules, w.FailurePolicy, w.MatchPolicy, w.SideEffects, w.TimeoutSeconds, w.AdmissionReviewVersions,
			w.NamespaceSelector, w.ObjectSelector,
		})
	}
	return validateHooks(hooks)
}

func validateHooks(hooks []hook) field.ErrorList {
	var errs field.ErrorList
	names := map[string]bool{}
	for i := range hooks {
		path := field.NewPath("webhooks").Index(i)
		errs = append(errs, hooks[i].validate(path)...)
		if names[hooks[i].name] {
			errs = append(errs, field.Duplicate(path.Child("name"), hooks[i].name))
		}
		names[hooks[i].name] = true
	}
	return errs
}

func (h *hook) validate(path *field.Path) field.ErrorList {
	errs := validation.IsFullyQualifiedName(path.Child("name"), h.name)
	for i := range h.rules {
		errs = append(errs, validateHookRule(path.Child("rules").Index(i), &h.rules[i])...)
	}
	if h.failure != nil {
		errs = append(errs, oneOf(path.Child("failurePolicy"), *h.failure, admissionregistrationv1.Fail, admissionregistrationv1.Ignore)...)
	}
	if h.match != nil {
		errs = append(errs, oneOf(path.Child("matchPolicy"), *h.match, admissionregistrationv1.Equivalent, admissionregistrationv1.Exact)...)
	}
	if h.sideEffects == nil {
		errs = append(errs, field.Required(path.Child("sideEffects"), "must specify one of None, NoneOnDryRun"))
	} else {
		errs = append(errs, oneOf(path.Child("sideEffects"), *h.sideEffects,
			admissionregistrationv1.SideEffectClassNone, admissionregistrationv1.SideEffectClassNoneOnDryRun)...)
	}
	if h.timeout != nil && (*h.timeout < 1 || *h.timeout > maxWebhookSeconds) {
		errs = append(errs, field.Invalid(path.Child("timeoutSeconds"), *h.timeout, "the timeout value must be between 1 and 30 seconds"))
	}
	errs = append(errs, metav1validation.ValidateLabelSelector(h.namespaces, metav1validation.LabelSelectorValidationOptions{}, path.Child("namespaceSelector"))...)
	errs = append(errs, metav1validation.ValidateLabelSelector(h.items, metav1validation.LabelSelectorValidationOptions{}, path.Child("objectSelector"))...)
	errs = append(errs, validateClientConfig(path.Child("clientConfig"), &h.client)...)
	return append(errs, validateReviewVersions(path.Child("admissionReviewVersions"), h.reviews)...)
}

func validateClientConfig(path *field.Path, c *admissionregistrationv1.WebhookClientConfig) field.ErrorList {
	switch {
	case (c.URL == nil) == (c.Service == nil):
		return field.ErrorList{field.Required(path, "exactly one of url or service is required")}
	case c.URL != nil:
		return webhook.ValidateWebhookURL(path.Child("url"), *c.URL, true)
	}
	port := int32(443)
	if c.Service.Port != nil {
		port = *c.Service.Port
	}
	return webhook.ValidateWebhookService(path.Child("service"), c.Service.Name, c.Service.Namespace, c.Service.Path, port)
}

func validateReviewVersions(path *field.Path, versions []string) field.ErrorList {
	const known = "v1, v1beta1"
	if len(versions) == 0 {
		return field.ErrorList{field.Required(path, "must specify one of "+known)}
	}
	var errs field.ErrorList
	for i, v := range versions {
		if slices.Contains(versions[:i], v) {
			errs = append(errs, field.Invalid(path.Index(i), v, "duplicate version"))
			continue
		}
		for _, msg := range validation.IsDNS1035Label(v) {
			errs = append(errs, field.Invalid(path.Index(i), v, msg))
		}
	}
	if !slices.Contains(versions, "v1") && !slices.Contains(versions, "v1beta1") {
		errs = append(errs, field.Invalid(path, versions, "must include at least one of "+known))
	}
	return errs
}

func validateHookRule(path *field.Path, r *admissionregistrationv1.RuleWithOperations) field.ErrorList {
	var errs field.ErrorList
	if len(r.Operations) == 0 {
		errs = append(errs, field.Required(path.Child("operations"), ""))
	}
	if len(r.Operations) > 1 && slices.Contains(r.Operations, admissionregistrationv1.OperationAll) {
		errs = append(errs, field.Invalid(path.Child("operations"), r.Operations, "if '*' is present, must not specify other operations"))
	}
	for i, op := range r.Operations {
		errs = append(errs, oneOf(path.Child("operations").Index(i), op, admissionregistrationv1.OperationAll, admissionregistrationv1.Create,
			admissionregistrationv1.Update, admissionregistrationv1.Delete, admissionregistrationv1.Connect)...)
	}
	for _, list := range []struct {
		name   string
		values []string
		empty  bool // a value may be empty
	}{{"apiGroups", r.APIGroups, true}, {"apiVersions", r.APIVersions, false}, {"resources", r.Resources, false}} {
		at := path.Child(list.name)
		if len(list.values) == 0 {
			errs = append(errs, field.Required(at, ""))
		}
		if len(list.values) > 1 && slices.Contains(list.values, "*") && list.name != "resources" {
			errs = append(errs, field.Invalid(at, list.values, "if '*' is present, nothing else may be"))
		}
		for i, v := range list.values {
			if v == "" && !list.empty {
				errs = append(errs, field.Required(at.Index(i), ""))
			}
		}
	}
	errs = append(errs, validateHookResources(path.Child("resources"), r.Resources)...)
	if r.Scope != nil {
		errs = append(errs, oneOf(path.Child("scope"), *r.Scope,
			admissionregistrationv1.ClusterScope, admissionregistrationv1.NamespacedScope, admissionregistrationv1.AllScopes)...)
	}
	return errs
}

// validateHookResources refuses patterns of which one takes in another.
func validateHookResources(path *field.Path, resources []string) field.ErrorList {
	var errs field.ErrorList
	if len(resources) > 1 && slices.Contains(resources, "*/*") {
		errs = append(errs, field.Invalid(path, resources, "if '*/*' is present, must not specify other resources"))
	}
	plain := slices.ContainsFunc(resources, func(r string) bool { return r != "*" && !strings.Contains(r, "/") })
	if plain && slices.Contains(resources, "*") {
		errs = append(errs, field.Invalid(path, resources, "if '*' is present, must not specify other resources without subresources"))
	}
	for i, r := range resources {
		of, sub, ok := strings.Cut(r, "/")
		if !ok {
			continue
		}
		if before := resources[:i]; sub != "*" && slices.Contains(before, of+"/*") {
			errs = append(errs, field.Invalid(path.Index(i), r, "if '"+of+"/*' is present, must not specify "+r))
		} else if of != "*" && slices.Contains(before, "*/"+sub) {
			errs = append(errs, field.Invalid(path.Index(i), r, "if '*/"+sub+"' is present, must not specify "+r))
		}
	}
	return errs
}

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

func validateClusterRole(o, _ *rbacv1.ClusterRole) field.ErrorList {
	errs := validatePolicyRules(o.Rules, true)
	if o.AggregationRule == nil {
		return errs
	}
	path := field.NewPath("aggregationRule", "clusterRoleSelectors")
	if len(o.AggregationRule.ClusterRoleSelectors) == 0 {
		errs = append(errs, field.Required(path, "at least one clusterRoleSelector required if aggregationRule is non-nil"))
	}
	for i := range o.AggregationRule.ClusterRoleSelectors {
		s := &o.AggregationRule.ClusterRoleSelectors[i]
		errs = append(errs, metav1validation.ValidateLabelSelector(s, metav1validation.LabelSelectorValidationOptions{}, path.Index(i))...)
	}
	return errs
}

// validatePolicyRules checks rules; only those of a cluster role may name URLs.
func validatePolicyRules(rules []rbacv1.PolicyRule, urls bool) field.ErrorList {
	var errs field.ErrorList
	for i := range rules {
		r, path := &rules[i], field.NewPath("rules").Index(i)
		if len(r.Verbs) == 0 {
			errs = append(errs, field.Required(path.Child("verbs"), "verbs must contain at least one value"))
		}
		if len(r.NonResourceURLs) > 0 {
			if !urls {
				errs = append(errs, field.Invalid(path.Child("nonResourceURLs"), r.NonResourceURLs, "namespaced rules cannot apply to non-resource URLs"))
			}
			if len(r.APIGroups)+len(r.Resources)+len(r.ResourceNames) > 0 {
				errs = append(errs, field.Invalid(path.Child("nonResourceURLs"), r.NonResourceURLs, "rules cannot apply to both regular resources and non-resource URLs"))
			}
			continue
		}
		if len(r.APIGroups) == 0 {
			errs = append(errs, field.Required(path.Child("apiGroups"), "resource rules must supply at least one api group"))
		}
		if len(r.Resources) == 0 {
			errs = append(errs, field.Required(path.Child("resources"), "resource rules must supply at least one resource"))
		}
	}
	return errs
}

func validateBinding(role rbacv1.RoleRef, subjects []rbacv1.Subject, namespaced bool) field.ErrorList {
	path := field.NewPath("roleRef")
	kinds := []string{"ClusterRole"}
	if namespaced {
		kinds = []string{"Role", "ClusterRole"}
	}
	errs := oneOf(path.Child("apiGroup"), role.APIGroup, rbacv1.GroupName)
	errs = append(errs, oneOf(path.Child("kind"), role.Kind, kinds...)...)
	if role.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), ""))
	}
	for i, s := range subjects {
		at := field.NewPath("subjects").Index(i)
		if s.Name == "" {
			errs = append(errs, field.Required(at.Child("name"), ""))
		}
		switch s.Kind {
		case rbacv1.ServiceAccountKind:
			errs = append(errs, oneOf(at.Child("apiGroup"), s.APIGroup, "")...)
			if !namespaced && s.Namespace == "" {
				errs = append(errs, field.Required(at.Child("namespace"), ""))
			}
		case rbacv1.UserKind, rbacv1.GroupKind:
			errs = append(errs, oneOf(at.Child("apiGroup"), s.APIGroup, rbacv1.GroupName)...)
		default:
			errs = append(errs, field.NotSupported(at.Child("kind"), s.Kind, []string{rbacv1.ServiceAccountKind, rbacv1.UserKind, rbacv1.GroupKind}))
		}
	}
	return errs
}

// changedRole is the error for a binding that comes to mean another role.
func changedRole(role rbacv1.RoleRef) *field.Error {
	return field.Invalid(field.NewPath("roleRef"), role, "cannot change roleRef")
}
