package rbac

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/component-helpers/auth/rbac/validation"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/authz/rbac"
)

// checkRole refuses a role that allows what its writer is not allowed, unless the writer
// has the verb escalate on it.
func checkRole(ctx context.Context, r *REST, o, old *object.Object) error {
	u, exempt, err := r.writer(ctx, o, old)
	if exempt || err != nil {
		return err
	}
	namespace := request.NamespaceValue(ctx)
	question := authorizer.AttributesRecord{
		User: u, Verb: "escalate", APIGroup: rbacv1.GroupName, APIVersion: "*", Resource: r.resource.Resource,
		Namespace: namespace, ResourceRequest: true,
	}
	if info, ok := request.RequestInfoFrom(ctx); ok {
		question.Name = info.Name // empty for a creation, as in Kubernetes
	}
	if decision, _, err := r.Authority.Authorize(ctx, question); decision == authorizer.DecisionAllow {
		return nil
	} else if err != nil {
		return apierrors.NewInternalError(err)
	}
	var role rbacv1.ClusterRole // a Role has less of the same
	if err := o.Into(&role); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	if err := r.holds(ctx, u, namespace, role.Rules); err != nil {
		return apierrors.NewForbidden(r.resource, o.Name, err)
	}
	var before rbacv1.ClusterRole
	if old != nil {
		_ = old.Into(&before) // what cannot be read aggregates nothing
	}
	if aggregates(&role) || aggregates(&before) {
		// It may come to hold anything.
		if err := r.holds(ctx, u, namespace, rbac.Everything); err != nil {
			return apierrors.NewForbidden(r.resource, o.Name, fmt.Errorf("must have cluster-admin privileges to use the aggregationRule"))
		}
	}
	return nil
}

func aggregates(r *rbacv1.ClusterRole) bool {
	return r.AggregationRule != nil && len(r.AggregationRule.ClusterRoleSelectors) > 0
}

// checkBinding refuses a binding of a role that allows what its writer is not allowed,
// unless the writer has the verb bind on that role.
func checkBinding(ctx context.Context, r *REST, o, old *object.Object) error {
	u, exempt, err := r.writer(ctx, o, old)
	if exempt || err != nil {
		return err
	}
	namespace := request.NamespaceValue(ctx)
	var binding rbacv1.RoleBinding // a ClusterRoleBinding has the same
	if err := o.Into(&binding); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	ref := binding.RoleRef
	question := authorizer.AttributesRecord{
		User: u, Verb: "bind", APIGroup: ref.APIGroup, APIVersion: "*", Name: ref.Name, Namespace: namespace, ResourceRequest: true,
	}
	switch ref.Kind {
	case "ClusterRole":
		question.Resource = "clusterroles"
	case "Role":
		question.Resource = "roles"
	}
	if question.Resource != "" {
		if decision, _, err := r.Authority.Authorize(ctx, question); decision == authorizer.DecisionAllow {
			return nil
		} else if err != nil {
			return apierrors.NewInternalError(err)
		}
	}
	rules, err := r.Authority.RoleRules(ctx, ref, namespace)
	if err != nil {
		return err
	}
	if err := r.holds(ctx, u, namespace, rules); err != nil {
		return apierrors.NewForbidden(r.resource, o.Name, err)
	}
	return nil
}

// writer is who writes, and whether that needs no check.
func (r *REST) writer(ctx context.Context, o, old *object.Object) (u user.Info, exempt bool, err error) {
	u, ok := request.UserFrom(ctx)
	if !ok {
		return nil, false, apierrors.NewInternalError(fmt.Errorf("the request has no user"))
	}
	return u, r.Authority.Administrator(ctx, u) || old != nil && onlyForDeletion(o, old), nil
}

// onlyForDeletion says whether a write changes nothing but what the garbage collector
// needs to delete the object.
func onlyForDeletion(o, old *object.Object) bool {
	now := o.ObjectMeta
	now.OwnerReferences, now.Finalizers, now.ManagedFields, now.SelfLink = old.OwnerReferences, old.Finalizers, old.ManagedFields, old.SelfLink
	return bytes.Equal(o.Body(), old.Body()) && apiequality.Semantic.DeepEqual(now, old.ObjectMeta)
}

// holds says which of the rules a user lacks, in the words of Kubernetes.
func (r *REST) holds(ctx context.Context, u user.Info, namespace string, rules []rbacv1.PolicyRule) error {
	held, unresolved := r.Authority.Rules(ctx, u, namespace)
	covered, missing := validation.Covers(held, rules)
	if covered {
		return nil
	}
	message := fmt.Sprintf("user %q (groups=%q) is attempting to grant RBAC permissions not currently held:\n%s",
		u.GetName(), u.GetGroups(), strings.Join(describe(missing), "\n"))
	if unresolved != nil {
		message += fmt.Sprintf("; resolution errors: %v", unresolved)
	}
	return fmt.Errorf("%s", message)
}

// describe writes rules of one verb each in as few lines as they take, sorted.
func describe(missing []rbacv1.PolicyRule) []string {
	verbs := map[string][]string{}
	for _, r := range missing {
		of := r
		of.Verbs = nil
		text := compact(of)
		verbs[text] = append(verbs[text], r.Verbs...)
	}
	var lines []string
	for text, all := range verbs {
		separator := ", "
		if text == "" {
			separator = ""
		}
		lines = append(lines, fmt.Sprintf("{%s%sVerbs:%q}", text, separator, all))
	}
	slices.Sort(lines)
	return lines
}

func compact(r rbacv1.PolicyRule) string {
	var parts []string
	for _, p := range []struct {
		name   string
		values []string
	}{{"APIGroups", r.APIGroups}, {"Resources", r.Resources}, {"NonResourceURLs", r.NonResourceURLs}, {"ResourceNames", r.ResourceNames}} {
		if len(p.values) > 0 {
			parts = append(parts, fmt.Sprintf("%s:%q", p.name, p.values))
		}
	}
	return strings.Join(parts, ", ")
}
