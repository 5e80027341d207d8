package extension

import (
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	mutatingpolicy "k8s.io/apiserver/pkg/admission/plugin/policy/mutating"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch"
	validatingpolicy "k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/client-go/informers"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// binding is a binding and what it says of policies, of either kind.
type binding[B any] struct {
	to    *B
	where *where
}

// bindings are the bindings by the name of their policy, in order of their own names.
func bindings[B any](m *maker, kind int, objects []*object.Object, policy func(*B) string) map[string][]binding[B] {
	out := map[string][]binding[B]{}
	for _, o := range objects {
		where, err := m.where(o)
		if err != nil {
			m.broke(err)
			continue
		}
		b, err := read[B](kind, o)
		if err != nil {
			m.broke(err)
			continue
		}
		out[policy(b)] = append(out[policy(b)], binding[B]{b, where})
	}
	return out
}

func (m *maker) validatingPolicies(objects *[kinds]map[string]*object.Object) {
	bound := bindings(m, validatingBindings, sorted(objects[validatingBindings]),
		func(b *admissionregistrationv1.ValidatingAdmissionPolicyBinding) string { return b.Spec.PolicyName })
	for _, o := range sorted(objects[validatingPolicies]) {
		if len(bound[o.Name]) == 0 {
			continue // says nothing, until it is bound
		}
		hook, ok := once(m, validatingPolicies, []*object.Object{o}, func() (*validatingpolicy.PolicyHook, error) {
			policy, err := read[admissionregistrationv1.ValidatingAdmissionPolicy](validatingPolicies, o)
			if err != nil {
				return nil, err
			}
			h := &validatingpolicy.PolicyHook{Policy: policy, Evaluator: compileValidating(policy)}
			h.ParamInformer, h.ParamScope, h.ConfigurationError = m.params(policy.Spec.ParamKind)
			return h, nil
		})
		if !ok {
			continue
		}
		own := *hook
		for _, b := range bound[o.Name] {
			if b.where == nil {
				own.Bindings = append(own.Bindings, b.to)
				continue
			}
			placed := *hook
			placed.Bindings = []*admissionregistrationv1.ValidatingAdmissionPolicyBinding{b.to}
			m.rails = append(m.rails, &rail{where: b.where, validatingPolicy: &placed})
		}
		if len(own.Bindings) > 0 {
			m.rules.validatingPolicies = append(m.rules.validatingPolicies, own)
		}
	}
}

func (m *maker) mutatingPolicies(objects *[kinds]map[string]*object.Object) {
	bound := bindings(m, mutatingBindings, sorted(objects[mutatingBindings]),
		func(b *admissionregistrationv1.MutatingAdmissionPolicyBinding) string { return b.Spec.PolicyName })
	for _, o := range sorted(objects[mutatingPolicies]) {
		if len(bound[o.Name]) == 0 {
			continue
		}
		hook, ok := once(m, mutatingPolicies, []*object.Object{o}, func() (*mutatingpolicy.PolicyHook, error) {
			policy, err := read[admissionregistrationv1.MutatingAdmissionPolicy](mutatingPolicies, o)
			if err != nil {
				return nil, err
			}
			h := &mutatingpolicy.PolicyHook{Policy: policy, Evaluator: compileMutating(policy)}
			if h.ParamInformer, h.ParamScope, h.ConfigurationError = m.params(policy.Spec.ParamKind); h.ConfigurationError == nil {
				h.ConfigurationError = h.Evaluator.Error
			}
			return h, nil
		})
		if !ok {
			continue
		}
		own := *hook
		for _, b := range bound[o.Name] {
			if b.where == nil {
				own.Bindings = append(own.Bindings, b.to)
				continue
			}
			placed := *hook
			placed.Bindings = []*admissionregistrationv1.MutatingAdmissionPolicyBinding{b.to}
			m.rails = append(m.rails, &rail{where: b.where, mutatingPolicy: &placed})
		}
		if len(own.Bindings) > 0 {
			m.rules.mutatingPolicies = append(m.rules.mutatingPolicies, own)
		}
	}
}

// params are the objects that a policy of the maker's virtual cluster can be parametrized
// with, in the form in which upstream's dispatchers look them up.
func (m *maker) params(kind *admissionregistrationv1.ParamKind) (informers.GenericInformer, meta.RESTScope, error) {
	if kind == nil {
		return nil, nil, nil
	}
	p, err := m.endpoint(m.cluster).param(m.cluster, kind)
	if err != nil {
		return nil, nil, err
	}
	return p, p.scope(), nil
}

// What follows makes of a policy what upstream's evaluators are made of: all expressions
// in one environment, in which each variable knows those before it.

// expressions are a policy's, while they are compiled.
type expressions struct {
	*plugincel.CompositedCompiler
	declared plugincel.OptionalVariableDeclarations
}

func newExpressions(params bool, variables []admissionregistrationv1.Variable) (*expressions, error) {
	compiler, err := plugincel.NewCompositedCompiler(environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()))
	if err != nil {
		return nil, err
	}
	e := &expressions{compiler, plugincel.OptionalVariableDeclarations{HasParams: params, HasAuthorizer: true}}
	for _, v := range variables {
		// What cannot be compiled is an error of the expressions that use it.
		compiler.CompileAndStoreVariable(&validatingpolicy.Variable{Name: v.Name, Expression: v.Expression}, e.declared, environment.StoredExpressions)
	}
	return e, nil
}

func (e *expressions) conditions(of []plugincel.ExpressionAccessor, declared plugincel.OptionalVariableDeclarations) plugincel.ConditionEvaluator {
	return e.CompileCondition(of, declared, environment.StoredExpressions)
}

func (e *expressions) matcher(conditions []admissionregistrationv1.MatchCondition, failure *admissionregistrationv1.FailurePolicyType, operation, policy string) matchconditions.Matcher {
	if len(conditions) == 0 {
		return nil
	}
	accessors := make([]plugincel.ExpressionAccessor, len(conditions))
	for i := range conditions {
		accessors[i] = (*matchconditions.MatchCondition)(&conditions[i])
	}
	return matchconditions.NewMatcher(e.conditions(accessors, e.declared), failure, "policy", operation, policy)
}

func compileValidating(policy *admissionregistrationv1.ValidatingAdmissionPolicy) validatingpolicy.Validator {
	spec := &policy.Spec
	e, err := newExpressions(spec.ParamKind != nil, spec.Variables)
	if err != nil {
		return validatingpolicy.NewValidator(nil, nil, nil, nil, spec.FailurePolicy, err)
	}
	validations := make([]plugincel.ExpressionAccessor, len(spec.Validations))
	messages := make([]plugincel.ExpressionAccessor, len(spec.Validations))
	for i, v := range spec.Validations {
		validations[i] = &validatingpolicy.ValidationCondition{Expression: v.Expression, Message: v.Message, Reason: v.Reason}
		if v.MessageExpression != "" {
			messages[i] = &validatingpolicy.MessageExpressionCondition{MessageExpression: v.MessageExpression}
		}
	}
	annotations := make([]plugincel.ExpressionAccessor, len(spec.AuditAnnotations))
	for i, a := range spec.AuditAnnotations {
		annotations[i] = &validatingpolicy.AuditAnnotationCondition{Key: a.Key, ValueExpression: a.ValueExpression}
	}
	unasked := e.declared
	unasked.HasAuthorizer = false
	return validatingpolicy.NewValidator(e.conditions(validations, e.declared), e.matcher(spec.MatchConditions, spec.FailurePolicy, "validate", policy.Name),
		e.conditions(annotations, e.declared), e.conditions(messages, unasked), spec.FailurePolicy, nil)
}

func compileMutating(policy *admissionregistrationv1.MutatingAdmissionPolicy) mutatingpolicy.PolicyEvaluator {
	spec := &policy.Spec
	e, err := newExpressions(spec.ParamKind != nil, spec.Variables)
	if err != nil {
		return mutatingpolicy.PolicyEvaluator{Error: err}
	}
	out := mutatingpolicy.PolicyEvaluator{CompositedCompiler: e.CompositedCompiler, Matcher: e.matcher(spec.MatchConditions, spec.FailurePolicy, "mutate", policy.Name)}
	declared := e.declared
	declared.HasPatchTypes = true
	for i := range spec.Mutations {
		switch mutation := &spec.Mutations[i]; {
		case mutation.JSONPatch != nil:
			out.Mutators = append(out.Mutators, patch.NewJSONPatcher(
				e.CompileMutatingEvaluator(&patch.JSONPatchCondition{Expression: mutation.JSONPatch.Expression}, declared, environment.StoredExpressions)))
		case mutation.ApplyConfiguration != nil:
			out.Mutators = append(out.Mutators, patch.NewApplyConfigurationPatcher(
				e.CompileMutatingEvaluator(&patch.ApplyConfigurationCondition{Expression: mutation.ApplyConfiguration.Expression}, declared, environment.StoredExpressions)))
		}
	}
	return out
}
