package builtin

import (
	"fmt"
	"slices"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions"
	"k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/environment"
)

const (
	// maxMatchConditions is how many a webhook or policy may have.
	maxMatchConditions = 64
	// maxAuditAnnotations is how many a policy may write.
	maxAuditAnnotations = 20
)

// validateMatchConditions compiles the conditions under which a webhook is called.
func validateMatchConditions(path *field.Path, conditions []admissionregistrationv1.MatchCondition) field.ErrorList {
	if len(conditions) == 0 {
		return nil
	}
	c, err := newExpressions(false)
	if err != nil {
		return field.ErrorList{field.InternalError(path, err)}
	}
	return c.conditions(path, conditions)
}

// expressions compiles a policy's expressions, as they will be when they are evaluated.
type expressions struct {
	compiler *plugincel.CompositedCompiler
	declared plugincel.OptionalVariableDeclarations
}

func newExpressions(params bool) (*expressions, error) {
	compiler, err := plugincel.NewCompositedCompiler(environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()))
	if err != nil {
		return nil, err
	}
	return &expressions{compiler, plugincel.OptionalVariableDeclarations{HasParams: params, HasAuthorizer: true}}, nil
}

func (c *expressions) check(path *field.Path, e plugincel.ExpressionAccessor, declared plugincel.OptionalVariableDeclarations) field.ErrorList {
	if strings.TrimSpace(e.GetExpression()) == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	return refused(path, e, c.compiler.CompileCELExpression(e, declared, environment.NewExpressions))
}

func refused(path *field.Path, e plugincel.ExpressionAccessor, result plugincel.CompilationResult) field.ErrorList {
	if result.Error == nil {
		return nil
	}
	if result.Error.Type == cel.ErrorTypeInternal {
		return field.ErrorList{field.InternalError(path, result.Error)}
	}
	return field.ErrorList{field.Invalid(path, e.GetExpression(), result.Error.Detail)}
}

func (c *expressions) conditions(path *field.Path, conditions []admissionregistrationv1.MatchCondition) field.ErrorList {
	if len(conditions) > maxMatchConditions {
		return field.ErrorList{field.TooMany(path, len(conditions), maxMatchConditions)}
	}
	var errs field.ErrorList
	names := map[string]bool{}
	for i := range conditions {
		m, at := &conditions[i], path.Index(i)
		errs = append(errs, c.check(at.Child("expression"), (*matchconditions.MatchCondition)(m), c.declared)...)
		switch {
		case m.Name == "":
			errs = append(errs, field.Required(at.Child("name"), ""))
		case names[m.Name]:
			errs = append(errs, field.Duplicate(at.Child("name"), m.Name))
		default:
			for _, msg := range validation.IsQualifiedName(m.Name) {
				errs = append(errs, field.Invalid(at.Child("name"), m.Name, msg))
			}
		}
		names[m.Name] = true
	}
	return errs
}

// variables also declares them, each for those that come after it.
func (c *expressions) variables(path *field.Path, variables []admissionregistrationv1.Variable) field.ErrorList {
	var errs field.ErrorList
	names := map[string]bool{}
	for i, v := range variables {
		at := path.Index(i)
		switch {
		case v.Name == "":
			errs = append(errs, field.Required(at.Child("name"), "name is not specified"))
		case names[v.Name]:
			errs = append(errs, field.Duplicate(at.Child("name"), v.Name))
		case validation.IsCIdentifier(v.Name) != nil:
			errs = append(errs, field.Invalid(at.Child("name"), v.Name, "name is not a valid CEL identifier"))
		}
		names[v.Name] = true
		if strings.TrimSpace(v.Expression) == "" {
			errs = append(errs, field.Required(at.Child("expression"), "expression is not specified"))
			continue
		}
		e := &validating.Variable{Name: v.Name, Expression: v.Expression}
		errs = append(errs, refused(at.Child("expression"), e, c.compiler.CompileAndStoreVariable(e, c.declared, environment.NewExpressions))...)
	}
	return errs
}

func validateValidatingPolicy(o, old *admissionregistrationv1.ValidatingAdmissionPolicy) field.ErrorList {
	if old != nil && apiequality.Semantic.DeepEqual(o.Spec, old.Spec) {
		return nil
	}
	path := field.NewPath("spec")
	errs := validateParamKind(path.Child("paramKind"), o.Spec.ParamKind)
	errs = append(errs, validateFailurePolicy(path.Child("failurePolicy"), o.Spec.FailurePolicy)...)
	errs = append(errs, validateConstraints(path.Child("matchConstraints"), o.Spec.MatchConstraints)...)
	c, err := newExpressions(o.Spec.ParamKind != nil)
	if err != nil {
		return append(errs, field.InternalError(path, err))
	}
	errs = append(errs, c.variables(path.Child("variables"), o.Spec.Variables)...)
	errs = append(errs, c.conditions(path.Child("matchConditions"), o.Spec.MatchConditions)...)
	if len(o.Spec.Validations) == 0 && len(o.Spec.AuditAnnotations) == 0 {
		errs = append(errs, field.Required(path.Child("validations"), "validations or auditAnnotations must contain at least one item"))
	}
	for i := range o.Spec.Validations {
		errs = append(errs, c.validation(path.Child("validations").Index(i), &o.Spec.Validations[i])...)
	}
	annotations := path.Child("auditAnnotations")
	if n := len(o.Spec.AuditAnnotations); n > maxAuditAnnotations {
		errs = append(errs, field.TooMany(annotations, n, maxAuditAnnotations))
	}
	keys := map[string]bool{}
	for i, a := range o.Spec.AuditAnnotations {
		at := annotations.Index(i)
		for _, msg := range validation.IsQualifiedName(o.Name + "/" + a.Key) {
			errs = append(errs, field.Invalid(at.Child("key"), a.Key, msg))
		}
		if keys[a.Key] {
			errs = append(errs, field.Duplicate(at.Child("key"), a.Key))
		}
		keys[a.Key] = true
		errs = append(errs, c.check(at.Child("valueExpression"), &validating.AuditAnnotationCondition{Key: a.Key, ValueExpression: a.ValueExpression}, c.declared)...)
	}
	return errs
}

func (c *expressions) validation(path *field.Path, v *admissionregistrationv1.Validation) field.ErrorList {
	errs := c.check(path.Child("expression"), &validating.ValidationCondition{Expression: v.Expression, Message: v.Message, Reason: v.Reason}, c.declared)
	switch {
	case v.Message != "" && strings.TrimSpace(v.Message) == "":
		errs = append(errs, field.Invalid(path.Child("message"), v.Message, "message must be non-empty if specified"))
	case strings.ContainsAny(v.Message, "\r\n"):
		errs = append(errs, field.Invalid(path.Child("message"), v.Message, "message must not contain line breaks"))
	case v.Message == "" && strings.ContainsAny(v.Expression, "\r\n"):
		errs = append(errs, field.Required(path.Child("message"), "message must be specified if expression contains line breaks"))
	}
	if v.MessageExpression != "" {
		declared := c.declared
		declared.HasAuthorizer = false
		errs = append(errs, c.check(path.Child("messageExpression"), &validating.MessageExpressionCondition{MessageExpression: v.MessageExpression}, declared)...)
	}
	if v.Reason != nil {
		errs = append(errs, oneOf(path.Child("reason"), *v.Reason,
			metav1.StatusReasonForbidden, metav1.StatusReasonInvalid, metav1.StatusReasonRequestEntityTooLarge, metav1.StatusReasonUnauthorized)...)
	}
	return errs
}

func validateMutatingPolicy(o, old *admissionregistrationv1.MutatingAdmissionPolicy) field.ErrorList {
	if old != nil && apiequality.Semantic.DeepEqual(o.Spec, old.Spec) {
		return nil
	}
	path := field.NewPath("spec")
	errs := validateParamKind(path.Child("paramKind"), o.Spec.ParamKind)
	errs = append(errs, validateFailurePolicy(path.Child("failurePolicy"), o.Spec.FailurePolicy)...)
	errs = append(errs, validateConstraints(path.Child("matchConstraints"), o.Spec.MatchConstraints)...)
	errs = append(errs, oneOf(path.Child("reinvocationPolicy"), o.Spec.ReinvocationPolicy,
		admissionregistrationv1.IfNeededReinvocationPolicy, admissionregistrationv1.NeverReinvocationPolicy)...)
	c, err := newExpressions(o.Spec.ParamKind != nil)
	if err != nil {
		return append(errs, field.InternalError(path, err))
	}
	errs = append(errs, c.variables(path.Child("variables"), o.Spec.Variables)...)
	errs = append(errs, c.conditions(path.Child("matchConditions"), o.Spec.MatchConditions)...)
	if len(o.Spec.Mutations) == 0 {
		errs = append(errs, field.Required(path.Child("mutations"), "mutations must contain at least one item"))
	}
	declared := c.declared
	declared.HasPatchTypes = true
	for i, m := range o.Spec.Mutations {
		at := path.Child("mutations").Index(i)
		if m.PatchType == "" {
			errs = append(errs, field.Required(at.Child("patchType"), ""))
			continue
		}
		errs = append(errs, oneOf(at.Child("patchType"), m.PatchType, admissionregistrationv1.PatchTypeApplyConfiguration, admissionregistrationv1.PatchTypeJSONPatch)...)
		apply, json := at.Child("applyConfiguration"), at.Child("jsonPatch")
		switch m.PatchType {
		case admissionregistrationv1.PatchTypeApplyConfiguration:
			if m.JSONPatch != nil {
				errs = append(errs, field.Forbidden(json, "must not be set when patchType is ApplyConfiguration"))
			}
			if m.ApplyConfiguration == nil {
				errs = append(errs, field.Required(apply, "must be specified when patchType is ApplyConfiguration"))
				continue
			}
			errs = append(errs, c.check(apply.Child("expression"), &patch.ApplyConfigurationCondition{Expression: m.ApplyConfiguration.Expression}, declared)...)
		case admissionregistrationv1.PatchTypeJSONPatch:
			if m.ApplyConfiguration != nil {
				errs = append(errs, field.Forbidden(apply, "must not be set when patchType is JSONPatch"))
			}
			if m.JSONPatch == nil {
				errs = append(errs, field.Required(json, "must be specified when patchType is JSONPatch"))
				continue
			}
			errs = append(errs, c.check(json.Child("expression"), &patch.JSONPatchCondition{Expression: m.JSONPatch.Expression}, declared)...)
		}
	}
	return errs
}

func validateFailurePolicy(path *field.Path, p *admissionregistrationv1.FailurePolicyType) field.ErrorList {
	if p == nil {
		return field.ErrorList{field.Required(path, "")}
	}
	return oneOf(path, *p, admissionregistrationv1.Fail, admissionregistrationv1.Ignore)
}

func validateParamKind(path *field.Path, k *admissionregistrationv1.ParamKind) field.ErrorList {
	if k == nil {
		return nil
	}
	var errs field.ErrorList
	if k.APIVersion == "" {
		errs = append(errs, field.Required(path.Child("apiVersion"), ""))
	} else if _, err := schema.ParseGroupVersion(k.APIVersion); err != nil {
		errs = append(errs, field.Invalid(path.Child("apiVersion"), k.APIVersion, err.Error()))
	}
	if k.Kind == "" {
		errs = append(errs, field.Required(path.Child("kind"), ""))
	}
	return errs
}

// validateConstraints checks what a policy is about, which it has to say.
func validateConstraints(path *field.Path, m *admissionregistrationv1.MatchResources) field.ErrorList {
	if m == nil {
		return field.ErrorList{field.Required(path, "")}
	}
	errs := validateMatchResources(path, m)
	if len(m.ResourceRules) == 0 {
		errs = append(errs, field.Required(path.Child("resourceRules"), ""))
	}
	return errs
}

func validateMatchResources(path *field.Path, m *admissionregistrationv1.MatchResources) field.ErrorList {
	if m == nil {
		return nil
	}
	var errs field.ErrorList
	if m.MatchPolicy != nil {
		errs = append(errs, oneOf(path.Child("matchPolicy"), *m.MatchPolicy, admissionregistrationv1.Equivalent, admissionregistrationv1.Exact)...)
	}
	for name, selector := range map[string]*metav1.LabelSelector{"namespaceSelector": m.NamespaceSelector, "objectSelector": m.ObjectSelector} {
		errs = append(errs, metav1validation.ValidateLabelSelector(selector, metav1validation.LabelSelectorValidationOptions{}, path.Child(name))...)
	}
	for name, rules := range map[string][]admissionregistrationv1.NamedRuleWithOperations{"resourceRules": m.ResourceRules, "excludeResourceRules": m.ExcludeResourceRules} {
		for i := range rules {
			at := path.Child(name).Index(i)
			errs = append(errs, validateHookRule(at, &rules[i].RuleWithOperations)...)
			names := map[string]bool{}
			for j, resource := range rules[i].ResourceNames {
				if resource == "" || strings.Contains(resource, "/") {
					errs = append(errs, field.Invalid(at.Child("resourceNames").Index(j), resource, "must be the name of an object"))
				}
				if names[resource] {
					errs = append(errs, field.Duplicate(at.Child("resourceNames").Index(j), resource))
				}
				names[resource] = true
			}
		}
	}
	return errs
}

func validateValidatingPolicyBinding(o, _ *admissionregistrationv1.ValidatingAdmissionPolicyBinding) field.ErrorList {
	path := field.NewPath("spec")
	errs := validatePolicyName(path.Child("policyName"), o.Spec.PolicyName)
	errs = append(errs, validateParamRef(path.Child("paramRef"), o.Spec.ParamRef)...)
	errs = append(errs, validateMatchResources(path.Child("matchResources"), o.Spec.MatchResources)...)
	actions := path.Child("validationActions")
	if len(o.Spec.ValidationActions) == 0 {
		errs = append(errs, field.Required(actions, "at least one validation action is required"))
	}
	for i, a := range o.Spec.ValidationActions {
		errs = append(errs, oneOf(actions.Index(i), a, admissionregistrationv1.Audit, admissionregistrationv1.Deny, admissionregistrationv1.Warn)...)
		if slices.Contains(o.Spec.ValidationActions[:i], a) {
			errs = append(errs, field.Duplicate(actions.Index(i), a))
		}
	}
	if slices.Contains(o.Spec.ValidationActions, admissionregistrationv1.Deny) && slices.Contains(o.Spec.ValidationActions, admissionregistrationv1.Warn) {
		errs = append(errs, field.Invalid(actions, o.Spec.ValidationActions, "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)"))
	}
	return errs
}

func validateMutatingPolicyBinding(o, _ *admissionregistrationv1.MutatingAdmissionPolicyBinding) field.ErrorList {
	path := field.NewPath("spec")
	errs := validatePolicyName(path.Child("policyName"), o.Spec.PolicyName)
	errs = append(errs, validateParamRef(path.Child("paramRef"), o.Spec.ParamRef)...)
	return append(errs, validateMatchResources(path.Child("matchResources"), o.Spec.MatchResources)...)
}

func validatePolicyName(path *field.Path, name string) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	var errs field.ErrorList
	for _, msg := range validation.IsDNS1123Subdomain(name) {
		errs = append(errs, field.Invalid(path, name, msg))
	}
	return errs
}

func validateParamRef(path *field.Path, r *admissionregistrationv1.ParamRef) field.ErrorList {
	if r == nil {
		return nil
	}
	var errs field.ErrorList
	switch {
	case r.Name != "" && r.Selector != nil:
		errs = append(errs, field.Forbidden(path.Child("name"), "name and selector are mutually exclusive"))
	case r.Name == "" && r.Selector == nil:
		errs = append(errs, field.Required(path, "one of name or selector must be specified"))
	}
	if strings.Contains(r.Name, "/") {
		errs = append(errs, field.Invalid(path.Child("name"), r.Name, "must be the name of an object"))
	}
	if r.Selector != nil {
		errs = append(errs, metav1validation.ValidateLabelSelector(r.Selector, metav1validation.LabelSelectorValidationOptions{}, path.Child("selector"))...)
	}
	if r.ParameterNotFoundAction == nil {
		return append(errs, field.Required(path.Child("parameterNotFoundAction"), fmt.Sprintf("must be %s or %s", admissionregistrationv1.AllowAction, admissionregistrationv1.DenyAction)))
	}
	return append(errs, oneOf(path.Child("parameterNotFoundAction"), *r.ParameterNotFoundAction, admissionregistrationv1.AllowAction, admissionregistrationv1.DenyAction)...)
}
