package builtin

import (
	"slices"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
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
	conditions        []admissionregistrationv1.MatchCondition
}

func validateMutatingWebhooks(o, _ *admissionregistrationv1.MutatingWebhookConfiguration) field.ErrorList {
	var hooks []hook
	for i := range o.Webhooks {
		w := &o.Webhooks[i]
		hooks = append(hooks, hook{
			w.Name, w.ClientConfig, w.Rules, w.FailurePolicy, w.MatchPolicy, w.SideEffects, w.TimeoutSeconds, w.AdmissionReviewVersions,
			w.NamespaceSelector, w.ObjectSelector, w.MatchConditions,
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
			w.NamespaceSelector, w.ObjectSelector, w.MatchConditions,
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
	errs = append(errs, validateMatchConditions(path.Child("matchConditions"), h.conditions)...)
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
