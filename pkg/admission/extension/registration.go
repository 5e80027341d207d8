package extension

import (
	"context"
	"fmt"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// checkRegistration checks what is written into the group of webhooks and policies.
func (p *Plugin) checkRegistration(ctx context.Context, a admission.Attributes) error {
	obj, ok := a.GetObject().(*object.Object)
	if !ok || a.GetSubresource() != "" || a.GetOperation() != admission.Create && a.GetOperation() != admission.Update {
		return nil
	}
	cluster, err := logical.Cluster(ctx)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	old, _ := a.GetOldObject().(*object.Object)
	if err := checkAppliesTo(cluster, a, obj, old); err != nil {
		return err
	}
	return p.checkParams(ctx, cluster, a, obj, old)
}

// checkAppliesTo checks the annotation that makes a guard rail of an object.
func checkAppliesTo(cluster string, a admission.Attributes, obj, old *object.Object) error {
	value, set := obj.Annotations[v1alpha1.AnnotationAppliesTo]
	if !set {
		return nil
	}
	if old != nil && old.Annotations[v1alpha1.AnnotationAppliesTo] == value {
		return nil
	}
	var problem string
	resource := a.GetResource().Resource
	_, err := parseWhere(value)
	switch {
	case cluster != logical.Root:
		problem = "may be set in the root only: what is registered in a virtual cluster applies to that"
	case resource == resources[validatingPolicies] || resource == resources[mutatingPolicies]:
		problem = "set it on the policy's bindings: they say where the policy applies"
	case err != nil:
		problem = err.Error()
	default:
		return nil
	}
	path := field.NewPath("metadata", "annotations").Key(v1alpha1.AnnotationAppliesTo)
	return apierrors.NewInvalid(a.GetKind().GroupKind(), a.GetName(), field.ErrorList{field.Invalid(path, value, problem)})
}

// checkParams sees to it that nobody has a policy read for them what they may not read
// themselves: a policy's messages can tell all of its parameters.
func (p *Plugin) checkParams(ctx context.Context, cluster string, a admission.Attributes, obj, old *object.Object) error {
	switch a.GetResource().Resource {
	case resources[validatingPolicies], resources[mutatingPolicies]:
		now, err := paramKindOf(obj)
		if err != nil {
			return apierrors.NewBadRequest(err.Error())
		}
		if now == nil {
			return nil
		}
		if before, err := paramKindOf(old); err == nil && apiequality.Semantic.DeepEqual(before, now) {
			return nil
		}
		path := field.NewPath("spec", "paramKind")
		return p.mayRead(ctx, cluster, a, path, now, &admissionregistrationv1.ParamRef{Name: "*", Namespace: "*"})
	case resources[validatingBindings], resources[mutatingBindings]:
		policy, now, err := paramRefOf(obj)
		if err != nil {
			return apierrors.NewBadRequest(err.Error())
		}
		if now == nil {
			return nil
		}
		if policyBefore, before, err := paramRefOf(old); err == nil && policyBefore == policy && apiequality.Semantic.DeepEqual(before, now) {
			return nil
		}
		kind, err := p.paramKind(ctx, cluster, strings.TrimSuffix(a.GetResource().Resource, "policybindings")+"policies", policy)
		if err != nil {
			return apierrors.NewInternalError(err)
		}
		return p.mayRead(ctx, cluster, a, field.NewPath("spec", "paramRef"), kind, now)
	}
	return nil
}

// mayRead asks whether the writer may read parameters. Of a kind that is not known, or
// not yet, they must be allowed to read everything.
func (p *Plugin) mayRead(ctx context.Context, cluster string, a admission.Attributes, path *field.Path,
	kind *admissionregistrationv1.ParamKind, ref *admissionregistrationv1.ParamRef) error {
	question := authorizer.AttributesRecord{
		User: a.GetUserInfo(), Verb: "get", ResourceRequest: true, APIGroup: "*", APIVersion: "*", Resource: "*", Name: ref.Name, Namespace: ref.Namespace,
	}
	if ref.Name == "" {
		question.Verb = "list"
	}
	if kind != nil {
		if known, err := p.endpoint(cluster).param(cluster, kind); err == nil {
			gvr := known.Kind.GVR(known.Kind.StorageVersion())
			question.APIGroup, question.APIVersion, question.Resource = gvr.Group, gvr.Version, gvr.Resource
			if !known.Kind.Namespaced() {
				question.Namespace = ""
			}
		}
	}
	decision, reason, err := p.config.Authorizer.Authorize(ctx, question)
	if decision == authorizer.DecisionAllow {
		return nil
	}
	if err != nil {
		reason = err.Error()
	}
	what := question.Resource
	if question.APIGroup != "" {
		what += "." + question.APIGroup
	}
	return admission.NewForbidden(a, fmt.Errorf("%s: you need to be allowed to %s %s (name %q, namespace %q), since a policy can tell what its parameters hold: %s",
		path, question.Verb, what, ref.Name, ref.Namespace, reason))
}

// paramKind is the kind of a policy's parameters, as far as there is such a policy.
func (p *Plugin) paramKind(ctx context.Context, cluster, resource, policy string) (*admissionregistrationv1.ParamKind, error) {
	for gk, param := range p.endpoint(cluster).Params {
		if gk.Group != ownGroup || param.Kind.Resource() != resource {
			continue
		}
		found, err := param.Store.Get(request.WithNamespace(ctx, metav1.NamespaceNone), policy, &metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		o, ok := found.(*object.Object)
		if !ok {
			return nil, fmt.Errorf("policy %s is a %T", policy, found)
		}
		return paramKindOf(o)
	}
	return nil, fmt.Errorf("there is no storage of %s", resource)
}

// paramKindOf reads what policies of both kinds have in common.
func paramKindOf(o *object.Object) (*admissionregistrationv1.ParamKind, error) {
	if o == nil {
		return nil, nil
	}
	var policy struct {
		Spec struct {
			ParamKind *admissionregistrationv1.ParamKind `json:"paramKind"`
		} `json:"spec"`
	}
	err := o.Into(&policy)
	return policy.Spec.ParamKind, err
}

func paramRefOf(o *object.Object) (policy string, ref *admissionregistrationv1.ParamRef, err error) {
	if o == nil {
		return "", nil, nil
	}
	var binding struct {
		Spec struct {
			PolicyName string                            `json:"policyName"`
			ParamRef   *admissionregistrationv1.ParamRef `json:"paramRef"`
		} `json:"spec"`
	}
	err = o.Into(&binding)
	return binding.Spec.PolicyName, binding.Spec.ParamRef, err
}
