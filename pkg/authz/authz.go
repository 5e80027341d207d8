// Package authz says what a caller may do in the virtual cluster that the request is for.
package authz

import (
	"context"
	"slices"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// open are the paths that anyone may read in the root, as load balancers do. In a
// virtual cluster the answer would tell anyone whether there is one of that name.
var open = []string{"/livez", "/readyz", "/healthz", "/version"}

// Authorizer lets an identity do all in its own virtual cluster and nothing elsewhere.
// The root's administrators (system:masters) may also enter every virtual cluster.
type Authorizer struct{}

var (
	_ authorizer.Authorizer   = Authorizer{}
	_ authorizer.RuleResolver = Authorizer{}
)

// Authorize implements authorizer.Authorizer.
func (Authorizer) Authorize(ctx context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	here, err := logical.Cluster(ctx)
	if err != nil {
		return authorizer.DecisionDeny, "", err
	}
	if here == logical.Root && !a.IsResourceRequest() && a.GetVerb() == "get" && slices.Contains(open, a.GetPath()) {
		return authorizer.DecisionAllow, "", nil
	}
	if allowed(a.GetUser(), here) {
		return authorizer.DecisionAllow, "", nil
	}
	return authorizer.DecisionNoOpinion, "no rule of this virtual cluster allows it", nil
}

// ConditionsAwareAuthorize implements authorizer.Authorizer; no rule here is conditional.
func (z Authorizer) ConditionsAwareAuthorize(ctx context.Context, a authorizer.Attributes) authorizer.ConditionsAwareDecision {
	return authorizer.ConditionsAwareDecisionFromParts(z.Authorize(ctx, a))
}

// EvaluateConditions implements authorizer.Authorizer.
func (Authorizer) EvaluateConditions(context.Context, authorizer.ConditionsAwareDecision, authorizer.ConditionsData) (authorizer.Decision, string, error) {
	return authorizer.DecisionDeny, "", authorizer.ErrorConditionEvaluationNotSupported
}

func allowed(u user.Info, here string) bool {
	if u == nil {
		return false
	}
	switch of := authn.Cluster(u); of {
	case "":
		return false
	case logical.Root:
		return slices.Contains(u.GetGroups(), user.SystemPrivilegedGroup)
	default:
		return of == here
	}
}

// RulesFor implements authorizer.RuleResolver.
func (Authorizer) RulesFor(ctx context.Context, u user.Info, _ string) ([]authorizer.ResourceRuleInfo, []authorizer.NonResourceRuleInfo, bool, error) {
	here, err := logical.Cluster(ctx)
	if err != nil {
		return nil, nil, true, err
	}
	if !allowed(u, here) {
		return nil, nil, false, nil
	}
	all := []string{"*"}
	return []authorizer.ResourceRuleInfo{&authorizer.DefaultResourceRuleInfo{Verbs: all, APIGroups: all, Resources: all}},
		[]authorizer.NonResourceRuleInfo{&authorizer.DefaultNonResourceRuleInfo{Verbs: all, NonResourceURLs: all}}, false, nil
}
