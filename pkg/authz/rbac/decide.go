package rbac

import (
	"fmt"
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

// Subject is who is asked about, in one virtual cluster.
type Subject struct {
	Cluster string
	User    user.Info
	// Guest says that the user is the root's: what the root grants applies, and what is
	// for the virtual cluster's own service accounts does not.
	Guest bool
}

// origin is where a rule comes from.
type origin struct {
	binding *binding
	grant   *grant
	subject *subject
	role    string
}

func (o origin) String() string {
	switch {
	case o.grant != nil:
		return fmt.Sprintf("spec.access of the VirtualCluster in the root, of ClusterRole %q to %s", o.role, o.subject)
	case o.binding.namespace.Value() == "":
		return fmt.Sprintf("ClusterRoleBinding %q of ClusterRole %q to %s", o.binding.name.Value(), o.role, o.subject)
	}
	kind := "Role"
	if o.binding.roleKind == clusterRole {
		kind = "ClusterRole"
	}
	return fmt.Sprintf("RoleBinding %q of %s %q to %s", o.binding.name.Value()+"/"+o.binding.namespace.Value(), kind, o.role, o.subject)
}

// Allows says whether a rule allows what is asked; the user of the attributes does not
// count. The reason tells which, or what is wrong with bindings that might. The index
// must be ready.
func (x *Index) Allows(s Subject, a authorizer.Attributes) (bool, string) {
	var allowed bool
	var reason string
	var errs []error
	q := questionOf(a)
	x.visit(s, a.GetNamespace(), func(from origin, sets []*ruleSet, err error) bool {
		if err != nil {
			errs = append(errs, err)
			return true
		}
		for _, set := range sets {
			for i := range set.rules {
				if allows(&set.rules[i], q) {
					allowed, reason = true, "RBAC: allowed by "+from.String()
					return false
				}
			}
		}
		return true
	})
	if !allowed && len(errs) > 0 {
		reason = fmt.Sprintf("RBAC: %v", utilerrors.NewAggregate(errs))
	}
	return allowed, reason
}

// Rules are all rules that apply to somebody in a namespace, or outside of all. With an
// error they are those that could be found. They must not be modified.
func (x *Index) Rules(s Subject, namespace string) ([]rbacv1.PolicyRule, error) {
	var rules []rbacv1.PolicyRule
	var errs []error
	x.visit(s, namespace, func(_ origin, sets []*ruleSet, err error) bool {
		if err != nil {
			errs = append(errs, err)
		}
		rules = append(rules, flatten(sets)...)
		return true
	})
	return rules, utilerrors.NewAggregate(errs)
}

// RoleRules are the rules of the role that a binding refers to. They must not be modified.
func (x *Index) RoleRules(cluster string, ref rbacv1.RoleRef, namespace string) ([]rbacv1.PolicyRule, error) {
	sets, err := x.resolve(x.policy(cluster), roleKindOf(ref.Kind), ref.Name, namespace)
	return flatten(sets), err
}

// Aggregated are the rules of a ClusterRole that aggregates others; false when there is
// none of that name that does. They must not be modified.
func (x *Index) Aggregated(cluster, name string) ([]rbacv1.PolicyRule, bool) {
	p := x.policy(cluster)
	if sets, ok := p.aggregated[name]; ok {
		return flatten(sets), true
	}
	if d := x.defaults.roles[name]; d != nil && d.aggregates() && p.role("", name) == nil {
		return flatten(d.parts), true
	}
	return nil, false
}

func flatten(sets []*ruleSet) []rbacv1.PolicyRule {
	if len(sets) == 1 {
		return slices.Clip(sets[0].rules)
	}
	var rules []rbacv1.PolicyRule
	for _, s := range sets {
		rules = append(rules, s.rules...)
	}
	return rules
}

// visit gives the rules of every binding that applies to somebody, until it is told to
// stop: those for the whole virtual cluster, then those in the namespace.
func (x *Index) visit(s Subject, namespace string, visitor func(origin, []*ruleSet, error) bool) {
	p := x.policy(s.Cluster)
	if !x.visitBindings(p, s, p.bindingsIn(""), "", visitor) {
		return
	}
	for i := range x.defaults.bindings {
		b := &x.defaults.bindings[i]
		if subjectFor(b.subjects, s.User, s.Guest) == nil || p.hasBinding(b.name) {
			continue
		}
		if !x.visitBindings(p, s, x.defaults.bindings[i:i+1], "", visitor) {
			return
		}
	}
	if s.Guest {
		for i := range p.grants {
			g := &p.grants[i]
			to := subjectFor(g.subjects, s.User, false)
			if to == nil {
				continue
			}
			sets, err := x.resolveGrant(p, g.role.Value())
			if !visitor(origin{grant: g, subject: to, role: g.role.Value()}, sets, err) {
				return
			}
		}
	}
	if namespace != "" {
		x.visitBindings(p, s, p.bindingsIn(namespace), namespace, visitor)
	}
}

func (x *Index) visitBindings(p *policy, s Subject, all []binding, namespace string, visitor func(origin, []*ruleSet, error) bool) bool {
	for i := range all {
		b := &all[i]
		to := subjectFor(b.subjects, s.User, s.Guest)
		if to == nil {
			continue
		}
		sets, err := x.resolve(p, b.roleKind, b.role.Value(), namespace)
		if !visitor(origin{binding: b, subject: to, role: b.role.Value()}, sets, err) {
			return false
		}
	}
	return true
}

// hasBinding says whether a ClusterRoleBinding is stored.
func (p *policy) hasBinding(name name) bool {
	_, ok := slices.BinarySearchFunc(p.bindings, binding{namespace: noNamespace, name: name}, compareBindings)
	return ok
}

// resolve finds the rules of a role.
func (x *Index) resolve(p *policy, kind roleKind, name, namespace string) ([]*ruleSet, error) {
	switch kind {
	case namespacedRole:
		r := p.role(namespace, name)
		if r == nil || namespace == "" {
			return nil, apierrors.NewNotFound(rbacv1.Resource("role"), name)
		}
		return r.sets()
	case clusterRole:
		return x.resolveClusterRole(p, name)
	}
	return nil, fmt.Errorf("unsupported role reference kind")
}

func (x *Index) resolveClusterRole(p *policy, name string) ([]*ruleSet, error) {
	r := p.role("", name)
	if r != nil && !r.aggregates() {
		return r.sets()
	}
	if sets, ok := p.aggregated[name]; ok {
		return sets, nil
	}
	if d := x.defaults.roles[name]; r == nil && d != nil {
		return d.parts, nil
	}
	return nil, apierrors.NewNotFound(rbacv1.Resource("clusterrole"), name)
}

// resolveGrant finds the rules of a ClusterRole that the root grants. A default role
// holds at least what it holds everywhere: what the root grants cannot be taken back
// from inside.
func (x *Index) resolveGrant(p *policy, name string) ([]*ruleSet, error) {
	sets, err := x.resolveClusterRole(p, name)
	if d := x.defaults.roles[name]; d != nil {
		return slices.Concat(d.parts, sets), nil
	}
	return sets, err
}

func (r *role) sets() ([]*ruleSet, error) {
	if r.rules[0] == nil {
		kind := "role"
		if r.namespace.Value() == "" {
			kind = "clusterrole"
		}
		return nil, fmt.Errorf("%s.rbac.authorization.k8s.io %q cannot be read: write it anew, or delete it", kind, r.name.Value())
	}
	return r.rules[:], nil
}
