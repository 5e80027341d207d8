// Package review answers who a caller is, and who may do what. Nothing of it is stored.
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

	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
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
			obj.(*authenticationv1.SelfSubjectReview).Status.UserInfo = infoOf(u)
			return nil
		},
	}
}

func infoOf(u user.Info) authenticationv1.UserInfo {
	extra := map[string]authenticationv1.ExtraValue{}
	for k, v := range u.GetExtra() {
		extra[k] = v
	}
	return authenticationv1.UserInfo{Username: u.GetName(), UID: u.GetUID(), Groups: u.GetGroups(), Extra: extra}
}

// SelfSubjectAccessReview answers whether the caller may do one thing.
func SelfSubjectAccessReview(z authorizer.UnconditionalAuthorizer) rest.Storage {
	return &creater{
		name:   "selfsubjectaccessreview",
		sample: func() runtime.Object { return &authorizationv1.SelfSubjectAccessReview{} },
		answer: func(ctx context.Context, u user.Info, obj runtime.Object) error {
			review := obj.(*authorizationv1.SelfSubjectAccessReview)
			attributes, fieldErr := attributesOf(review.Spec.ResourceAttributes, review.Spec.NonResourceAttributes)
			if fieldErr != nil {
				return invalid("SelfSubjectAccessReview", fieldErr)
			}
			attributes.User = u
			review.Status = decide(ctx, z, attributes)
			return nil
		},
	}
}

// SubjectAccessReview answers whether somebody of the virtual cluster may do one thing.
func SubjectAccessReview(z authorizer.UnconditionalAuthorizer) rest.Storage {
	return &creater{
		name:   "subjectaccessreview",
		sample: func() runtime.Object { return &authorizationv1.SubjectAccessReview{} },
		answer: func(ctx context.Context, _ user.Info, obj runtime.Object) (err error) {
			review := obj.(*authorizationv1.SubjectAccessReview)
			review.Status, err = reviewSubject(ctx, z, "SubjectAccessReview", review.Spec)
			return err
		},
	}
}

// LocalSubjectAccessReview answers the same for what is in a namespace.
func LocalSubjectAccessReview(z authorizer.UnconditionalAuthorizer) rest.Storage {
	return &creater{
		name:       "localsubjectaccessreview",
		namespaced: true,
		sample:     func() runtime.Object { return &authorizationv1.LocalSubjectAccessReview{} },
		answer: func(ctx context.Context, _ user.Info, obj runtime.Object) (err error) {
			review := obj.(*authorizationv1.LocalSubjectAccessReview)
			namespace := request.NamespaceValue(ctx)
			switch a := review.Spec.ResourceAttributes; {
			case namespace == "":
				return apierrors.NewBadRequest("namespace is required on this type: " + namespace)
			case a == nil:
				return invalid("LocalSubjectAccessReview", field.Required(field.NewPath("spec", "resourceAttributes"), "a namespace holds resources only"))
			case a.Namespace != namespace:
				return invalid("LocalSubjectAccessReview", field.Invalid(field.NewPath("spec", "resourceAttributes", "namespace"), a.Namespace, "must match metadata.namespace"))
			}
			review.Status, err = reviewSubject(ctx, z, "LocalSubjectAccessReview", review.Spec)
			return err
		},
	}
}

// reviewSubject asks for somebody who belongs to the virtual cluster: to another's
// identities none of its rules apply.
func reviewSubject(ctx context.Context, z authorizer.UnconditionalAuthorizer, kind string, spec authorizationv1.SubjectAccessReviewSpec) (authorizationv1.SubjectAccessReviewStatus, error) {
	attributes, fieldErr := attributesOf(spec.ResourceAttributes, spec.NonResourceAttributes)
	if fieldErr == nil && spec.User == "" && len(spec.Groups) == 0 {
		fieldErr = field.Invalid(field.NewPath("spec", "user"), spec.User, "at least one of user or group must be specified")
	}
	if fieldErr != nil {
		return authorizationv1.SubjectAccessReviewStatus{}, invalid(kind, fieldErr)
	}
	here, err := logical.Cluster(ctx)
	if err != nil {
		return authorizationv1.SubjectAccessReviewStatus{}, err
	}
	extra := map[string][]string{}
	for k, v := range spec.Extra {
		extra[k] = v
	}
	extra[authn.ExtraCluster] = []string{here}
	attributes.User = &user.DefaultInfo{Name: spec.User, UID: spec.UID, Groups: spec.Groups, Extra: extra}
	return decide(ctx, z, attributes), nil
}

func decide(ctx context.Context, z authorizer.UnconditionalAuthorizer, attributes authorizer.Attributes) authorizationv1.SubjectAccessReviewStatus {
	decision, reason, err := z.Authorize(ctx, attributes)
	status := authorizationv1.SubjectAccessReviewStatus{
		Allowed: decision == authorizer.DecisionAllow,
		Denied:  decision == authorizer.DecisionDeny,
		Reason:  reason,
	}
	if err != nil {
		status.EvaluationError = err.Error()
	}
	return status
}

func invalid(kind string, err *field.Error) error {
	return apierrors.NewInvalid(authorizationv1.SchemeGroupVersion.WithKind(kind).GroupKind(), "", field.ErrorList{err})
}

func attributesOf(resource *authorizationv1.ResourceAttributes, path *authorizationv1.NonResourceAttributes) (authorizer.AttributesRecord, *field.Error) {
	spec := field.NewPath("spec")
	switch {
	case resource != nil && path != nil:
		return authorizer.AttributesRecord{}, field.Invalid(spec.Child("nonResourceAttributes"), path, "cannot be specified in combination with resourceAttributes")
	case resource != nil:
		return authorizer.AttributesRecord{
			Verb: resource.Verb, Namespace: resource.Namespace, APIGroup: resource.Group, APIVersion: resource.Version,
			Resource: resource.Resource, Subresource: resource.Subresource, Name: resource.Name, ResourceRequest: true,
		}, nil
	case path != nil:
		return authorizer.AttributesRecord{Verb: path.Verb, Path: path.Path}, nil
	}
	return authorizer.AttributesRecord{}, field.Invalid(spec, nil, "exactly one of nonResourceAttributes or resourceAttributes must be specified")
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
