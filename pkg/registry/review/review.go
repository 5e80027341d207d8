// Package review answers questions about the caller: who am I, what may I do. Nothing
// of it is stored.
package review

import (
	"context"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
)

// creater is a REST storage that can only be posted to: the answer is the object that
// was sent, completed.
type creater struct {
	name       string
	namespaced bool
	sample     func() runtime.Object
	answer     func(ctx context.Context, u user.Info, obj runtime.Object) error
}

var (
	_ rest.Creater              = (*creater)(nil)
	_ rest.Scoper               = (*creater)(nil)
	_ rest.SingularNameProvider = (*creater)(nil)
)

func (c *creater) New() runtime.Object     { return c.sample() }
func (c *creater) Destroy()                {}
func (c *creater) NamespaceScoped() bool   { return c.namespaced }
func (c *creater) GetSingularName() string { return c.name }

func (c *creater) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, _ *metav1.CreateOptions) (runtime.Object, error) {
	u, ok := request.UserFrom(ctx)
	if !ok {
		return nil, apierrors.NewBadRequest("no user present on request")
	}
	if validate != nil {
		if err := validate(ctx, obj.DeepCopyObject()); err != nil {
			return nil, err
		}
	}
	if err := c.answer(ctx, u, obj); err != nil {
		return nil, err
	}
	return obj, nil
}

// SelfSubjectReview answers who the caller is.
func SelfSubjectReview() rest.Storage {
	return &creater{
		name:   "selfsubjectreview",
		sample: func() runtime.Object { return &authenticationv1.SelfSubjectReview{} },
		answer: func(_ context.Context, u user.Info, obj runtime.Object) error {
			extra := map[string]authenticationv1.ExtraValue{}
			for k, v := range u.GetExtra() {
				extra[k] = v
			}
			obj.(*authenticationv1.SelfSubjectReview).Status.UserInfo = authenticationv1.UserInfo{
				Username: u.GetName(), UID: u.GetUID(), Groups: u.GetGroups(), Extra: extra,
			}
			return nil
		},
	}
}

// SelfSubjectAccessReview answers whether the caller may do one thing.
func SelfSubjectAccessReview(z authorizer.Authorizer) rest.Storage {
	return &creater{
		name:   "selfsubjectaccessreview",
		sample: func() runtime.Object { return &authorizationv1.SelfSubjectAccessReview{} },
		answer: func(ctx context.Context, u user.Info, obj runtime.Object) error {
			review := obj.(*authorizationv1.SelfSubjectAccessReview)
			attributes, fieldErr := attributesOf(review.Spec)
			if fieldErr != nil {
				return apierrors.NewInvalid(authorizationv1.SchemeGroupVersion.WithKind("SelfSubjectAccessReview").GroupKind(), "", field.ErrorList{fieldErr})
			}
			attributes.User = u
			decision, reason, evalErr := z.Authorize(ctx, attributes)
			review.Status = authorizationv1.SubjectAccessReviewStatus{
				Allowed: decision == authorizer.DecisionAllow,
				Denied:  decision == authorizer.DecisionDeny,
				Reason:  reason,
			}
			if evalErr != nil {
				review.Status.EvaluationError = evalErr.Error()
			}
			return nil
		},
	}
}

func attributesOf(spec authorizationv1.SelfSubjectAccessReviewSpec) (authorizer.AttributesRecord, *field.Error) {
	path := field.NewPath("spec")
	switch {
	case spec.ResourceAttributes != nil && spec.NonResourceAttributes != nil:
		return authorizer.AttributesRecord{}, field.Invalid(path.Child("nonResourceAttributes"), spec.NonResourceAttributes, "cannot be specified in combination with resourceAttributes")
	case spec.ResourceAttributes != nil:
		a := spec.ResourceAttributes
		return authorizer.AttributesRecord{
			Verb: a.Verb, Namespace: a.Namespace, APIGroup: a.Group, APIVersion: a.Version,
			Resource: a.Resource, Subresource: a.Subresource, Name: a.Name, ResourceRequest: true,
		}, nil
	case spec.NonResourceAttributes != nil:
		return authorizer.AttributesRecord{Verb: spec.NonResourceAttributes.Verb, Path: spec.NonResourceAttributes.Path}, nil
	}
	return authorizer.AttributesRecord{}, field.Invalid(path, nil, "exactly one of nonResourceAttributes or resourceAttributes must be specified")
}

// SelfSubjectRulesReview answers all that the caller may do in a namespace.
func SelfSubjectRulesReview(resolver authorizer.RuleResolver) rest.Storage {
	return &creater{
		name:   "selfsubjectrulesreview",
		sample: func() runtime.Object { return &authorizationv1.SelfSubjectRulesReview{} },
		answer: func(ctx context.Context, u user.Info, obj runtime.Object) error {
			review := obj.(*authorizationv1.SelfSubjectRulesReview)
			if review.Spec.Namespace == "" {
				return apierrors.NewBadRequest("spec.namespace: no namespace on request")
			}
			resources, paths, incomplete, err := resolver.RulesFor(ctx, u, review.Spec.Namespace)
			status := authorizationv1.SubjectRulesReviewStatus{Incomplete: incomplete, ResourceRules: []authorizationv1.ResourceRule{}, NonResourceRules: []authorizationv1.NonResourceRule{}}
			for _, r := range resources {
				status.ResourceRules = append(status.ResourceRules, authorizationv1.ResourceRule{
					Verbs: r.GetVerbs(), APIGroups: r.GetAPIGroups(), Resources: r.GetResources(), ResourceNames: r.GetResourceNames(),
				})
			}
			for _, r := range paths {
				status.NonResourceRules = append(status.NonResourceRules, authorizationv1.NonResourceRule{Verbs: r.GetVerbs(), NonResourceURLs: r.GetNonResourceURLs()})
			}
			if err != nil {
				status.EvaluationError = err.Error()
			}
			review.Status = status
			return nil
		},
	}
}
