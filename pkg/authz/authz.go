// Package authz says what a caller may do in the virtual cluster that the request is
// for: whose identity it is decides first, and then that virtual cluster's RBAC.
package authz

import (
	"context"
	"errors"
	"fmt"
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/authz/rbac"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// open are the paths that anyone may read in the root, as load balancers do. In a
// virtual cluster the answer would tell anyone whether there is one of that name.
var open = []string{"/livez", "/readyz", "/healthz", "/version"}

// Authorizer decides by the RBAC of the context's virtual cluster. Members of
// system:masters are administrators of the virtual cluster that their identity belongs
// to, the root's of every one. Other identities of the root may enter a virtual cluster
// as far as the root's RBAC allows them the verb of their request on
// virtualclusters/proxy; inside, its RBAC and the VirtualCluster's spec.access decide.
// Nothing that was decided is remembered, except by a host cluster's authorization, which
// decides in the root's place about users that the host vouches for: see AskHost.
type Authorizer struct {
	rules *rbac.Index
	host  Host
}

var (
	_ authorizer.Authorizer   = (*Authorizer)(nil)
	_ authorizer.RuleResolver = (*Authorizer)(nil)
)

// New decides by an index. Until that is ready, only administrators are let in, and
// everything else is an error: see Ready.
func New(rules *rbac.Index) *Authorizer { return &Authorizer{rules: rules} }

// Ready is the reason why nothing can be decided yet, or nil.
func (z *Authorizer) Ready() error { return z.rules.Ready() }

// standing is what an identity is where the request is for.
type standing int

const (
	stranger standing = iota
	member            // of the virtual cluster, or a caller without credentials
	guest             // the root's, in a virtual cluster
	administrator
)

func standingOf(u user.Info, here string) standing {
	if u == nil {
		return stranger
	}
	of, masters := authn.Cluster(u), slices.Contains(u.GetGroups(), user.SystemPrivilegedGroup)
	switch {
	case masters && of != "" && (of == here || of == logical.Root):
		return administrator
	case masters:
		return stranger
	case of == here, of == "":
		return member
	case of == logical.Root:
		return guest
	}
	return stranger
}

// Administrator says whether a user may do everything in the context's virtual cluster.
func (z *Authorizer) Administrator(ctx context.Context, u user.Info) bool {
	here, err := logical.Cluster(ctx)
	return err == nil && standingOf(u, here) == administrator
}

// Open says whether a request is for what anyone may read.
func Open(ctx context.Context, a authorizer.Attributes) bool {
	here, err := logical.Cluster(ctx)
	return err == nil && here == logical.Root && !a.IsResourceRequest() && a.GetVerb() == "get" && slices.Contains(open, a.GetPath())
}

// Authorize implements authorizer.Authorizer.
func (z *Authorizer) Authorize(ctx context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	here, err := logical.Cluster(ctx)
	if err != nil {
		return authorizer.DecisionDeny, "", err
	}
	if Open(ctx, a) {
		return authorizer.DecisionAllow, "", nil
	}
	u := a.GetUser()
	as := standingOf(u, here)
	switch as {
	case administrator:
		return authorizer.DecisionAllow, "", nil
	case stranger:
		return authorizer.DecisionNoOpinion, "this identity belongs to another virtual cluster", nil
	}
	if here == logical.Root && z.asksHost(u) {
		return z.inRoot(ctx, a)
	}
	if err := z.rules.Ready(); err != nil {
		return authorizer.DecisionNoOpinion, "", err
	}
	if as == guest {
		if err := z.enter(ctx, a, here); errors.Is(err, ErrHostAway) {
			return authorizer.DecisionNoOpinion, "", err
		} else if err != nil {
			return authorizer.DecisionNoOpinion, err.Error(), nil
		}
	}
	allowed, reason := z.rules.Allows(rbac.Subject{Cluster: here, User: u, Guest: as == guest}, a)
	if allowed {
		return authorizer.DecisionAllow, reason, nil
	}
	if reason == "" {
		reason = "no rule of this virtual cluster allows it"
		if here == logical.Root {
			reason = "no rule of the root allows it"
		}
	}
	return authorizer.DecisionNoOpinion, reason, nil
}

// ConditionsAwareAuthorize implements authorizer.Authorizer; no rule here is conditional.
func (z *Authorizer) ConditionsAwareAuthorize(ctx context.Context, a authorizer.Attributes) authorizer.ConditionsAwareDecision {
	return authorizer.ConditionsAwareDecisionFromParts(z.Authorize(ctx, a))
}

// EvaluateConditions implements authorizer.Authorizer.
func (*Authorizer) EvaluateConditions(context.Context, authorizer.ConditionsAwareDecision, authorizer.ConditionsData) (authorizer.Decision, string, error) {
	return authorizer.DecisionDeny, "", authorizer.ErrorConditionEvaluationNotSupported
}

// Enter is why a user may not send a request to the context's virtual cluster, whatever
// that virtual cluster itself allows, or nil. The attributes are the request's.
func (z *Authorizer) Enter(ctx context.Context, a authorizer.Attributes) error {
	here, err := logical.Cluster(ctx)
	if err != nil {
		return err
	}
	switch standingOf(a.GetUser(), here) {
	case guest:
		if err := z.rules.Ready(); err != nil {
			return err
		}
		return z.enter(ctx, a, here)
	case stranger:
		return fmt.Errorf("this identity belongs to another virtual cluster")
	}
	return nil
}

// enter is why a guest may not come in with a request, or nil. In the host view the host
// is asked about the request itself, as for any API of its own.
func (z *Authorizer) enter(ctx context.Context, a authorizer.Attributes, here string) error {
	if u := a.GetUser(); !InHostView(ctx) || !z.asksHost(u) {
		return z.enterWith(ctx, u, here, entryVerb(a))
	}
	err := z.ask(ctx, a)
	if err == nil || errors.Is(err, ErrHostAway) {
		return err
	}
	return fmt.Errorf("the host cluster does not allow it: %w", err)
}

// entrance is the question whether somebody may enter a virtual cluster.
func entrance(u user.Info, cluster, verb string) authorizer.AttributesRecord {
	return authorizer.AttributesRecord{
		User: u, Verb: verb, APIGroup: v1alpha1.GroupVersion.Group, APIVersion: v1alpha1.GroupVersion.Version,
		Resource: "virtualclusters", Subresource: "proxy", Name: cluster, ResourceRequest: true,
	}
}

func (z *Authorizer) enterWith(ctx context.Context, u user.Info, cluster, verb string) error {
	if z.asksHost(u) {
		return z.enterByHost(ctx, u, cluster, verb)
	}
	allowed, reason := z.rules.Allows(rbac.Subject{Cluster: logical.Root, User: u}, entrance(u, cluster, verb))
	if allowed {
		return nil
	}
	if reason != "" {
		reason = ": " + reason
	}
	return fmt.Errorf("the root does not let this identity enter virtual cluster %q: it needs the verb %q on virtualclusters/proxy of vmesh.io, of that name%s", cluster, verb, reason)
}

// requestVerbs are the verbs that requests have. Others stand for what is asked besides
// (bind, escalate, impersonate): the request itself has been let in.
var requestVerbs = []string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}

// entryVerb is the verb that the root must allow for a request. To ask what one may do
// changes nothing, though it is a creation.
func entryVerb(a authorizer.Attributes) string {
	verb := a.GetVerb()
	if a.IsResourceRequest() {
		switch group, resource := a.GetAPIGroup(), a.GetResource(); {
		case group == "authentication.k8s.io" && resource == "selfsubjectreviews",
			group == "authorization.k8s.io" && (resource == "selfsubjectaccessreviews" || resource == "selfsubjectrulesreviews"):
			return "get"
		}
	} else {
		switch verb {
		case "post":
			verb = "create"
		case "put":
			verb = "update"
		}
	}
	if !slices.Contains(requestVerbs, verb) {
		return "get"
	}
	return verb
}

// Rules are what a user may do in the context's virtual cluster: in a namespace, or
// outside of all. With an error they are what could be found. They must not be modified.
func (z *Authorizer) Rules(ctx context.Context, u user.Info, namespace string) ([]rbacv1.PolicyRule, error) {
	here, err := logical.Cluster(ctx)
	if err != nil {
		return nil, err
	}
	as := standingOf(u, here)
	switch as {
	case administrator:
		return rbac.Everything, nil
	case stranger:
		return nil, nil
	}
	if here == logical.Root && z.asksHost(u) {
		return nil, errors.New("the host cluster decides about its users in the root: ask it")
	}
	if err := z.rules.Ready(); err != nil {
		return nil, err
	}
	rules, err := z.rules.Rules(rbac.Subject{Cluster: here, User: u, Guest: as == guest}, namespace)
	if as == guest {
		var away error
		rules, away = z.entered(ctx, rules, u, here)
		err = errors.Join(err, away)
	}
	return rules, err
}

// entered are the rules as far as the root, or the host, lets a guest use them. With an
// error they are those of which that is known.
func (z *Authorizer) entered(ctx context.Context, rules []rbacv1.PolicyRule, u user.Info, here string) ([]rbacv1.PolicyRule, error) {
	var may []string
	for _, verb := range requestVerbs {
		err := z.enterWith(ctx, u, here, verb)
		if errors.Is(err, ErrHostAway) {
			return nil, err
		}
		if err == nil {
			may = append(may, verb)
		}
	}
	if len(may) == len(requestVerbs) {
		return rules, nil
	}
	var out []rbacv1.PolicyRule
	for _, r := range rules {
		var verbs []string
		if slices.Contains(r.Verbs, rbacv1.VerbAll) {
			verbs = may
		} else {
			for _, v := range r.Verbs {
				if slices.Contains(may, v) || !slices.Contains(requestVerbs, v) && len(may) > 0 {
					verbs = append(verbs, v)
				}
			}
		}
		if len(verbs) > 0 {
			r.Verbs = verbs
			out = append(out, r)
		}
	}
	return out, nil
}

// RoleRules are the rules of the role that a binding in a namespace refers to, or one
// outside of all. They must not be modified.
func (z *Authorizer) RoleRules(ctx context.Context, ref rbacv1.RoleRef, namespace string) ([]rbacv1.PolicyRule, error) {
	here, err := logical.Cluster(ctx)
	if err != nil {
		return nil, err
	}
	if err := z.rules.Ready(); err != nil {
		return nil, err
	}
	return z.rules.RoleRules(here, ref, namespace)
}

// RulesFor implements authorizer.RuleResolver.
func (z *Authorizer) RulesFor(ctx context.Context, u user.Info, namespace string) ([]authorizer.ResourceRuleInfo, []authorizer.NonResourceRuleInfo, bool, error) {
	rules, err := z.Rules(ctx, u, namespace)
	var resources []authorizer.ResourceRuleInfo
	var paths []authorizer.NonResourceRuleInfo
	for _, r := range rules {
		if len(r.Resources) > 0 {
			resources = append(resources, &authorizer.DefaultResourceRuleInfo{
				Verbs: r.Verbs, APIGroups: r.APIGroups, Resources: r.Resources, ResourceNames: r.ResourceNames,
			})
		}
		if len(r.NonResourceURLs) > 0 {
			paths = append(paths, &authorizer.DefaultNonResourceRuleInfo{Verbs: r.Verbs, NonResourceURLs: r.NonResourceURLs})
		}
	}
	return resources, paths, err != nil, err
}
