package rbac

import (
	"cmp"
	"slices"
	"strings"
	"unique"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
)

// name is a string that many objects have in common: names of users, groups, roles and
// namespaces. It takes a word, and is stored once.
type name = unique.Handle[string]

func nameOf(s string) name { return unique.Make(s) }

// noNamespace is that of what is not in a namespace.
var noNamespace = nameOf("")

// role is a Role, or a ClusterRole, which has no namespace.
type role struct {
	namespace, name name
	rules           [1]*ruleSet // nil when the object cannot be read: then it allows nothing, and the reason says so
	labels          []label     // of a ClusterRole
	selectors       []labels.Selector
}

func (r *role) aggregates() bool { return len(r.selectors) > 0 }

// selects says whether another ClusterRole's rules become part of this one's.
func (r *role) selects(other *role) bool {
	return slices.ContainsFunc(r.selectors, func(s labels.Selector) bool { return s.Matches(labelSet(other.labels)) })
}

// label is one of an object's labels; maps of them would cost more than all else.
type label struct{ key, value name }

// labelSet implements labels.Labels.
type labelSet []label

func (s labelSet) Has(key string) bool { _, ok := s.Lookup(key); return ok }

func (s labelSet) Get(key string) string { v, _ := s.Lookup(key); return v }

func (s labelSet) Lookup(key string) (string, bool) {
	for _, l := range s {
		if l.key.Value() == key {
			return l.value.Value(), true
		}
	}
	return "", false
}

func labelsOf(from map[string]string) []label {
	if len(from) == 0 {
		return nil
	}
	out := make([]label, 0, len(from))
	for k, v := range from {
		out = append(out, label{nameOf(k), nameOf(v)})
	}
	return out
}

// binding is a RoleBinding, or a ClusterRoleBinding, which has no namespace.
type binding struct {
	namespace, name name
	role            name
	roleKind        roleKind
	subjects        []subject
}

type roleKind uint8

const (
	noRole roleKind = iota // a kind that there is not
	namespacedRole
	clusterRole
)

func roleKindOf(kind string) roleKind {
	switch kind {
	case "Role":
		return namespacedRole
	case "ClusterRole":
		return clusterRole
	}
	return noRole
}

type subjectKind uint8

const (
	nobody subjectKind = iota // a kind that there is not
	userSubject
	groupSubject
	serviceAccount
)

// subject is one of those that a binding or a grant is for.
type subject struct {
	namespace, name name // the namespace is set for service accounts alone
	kind            subjectKind
}

func subjectsOf(all []rbacv1.Subject, namespace string) []subject {
	out := make([]subject, 0, len(all))
	for _, s := range all {
		switch s.Kind {
		case rbacv1.UserKind:
			out = append(out, subject{name: nameOf(s.Name), kind: userSubject})
		case rbacv1.GroupKind:
			out = append(out, subject{name: nameOf(s.Name), kind: groupSubject})
		case rbacv1.ServiceAccountKind:
			of := cmp.Or(s.Namespace, namespace)
			if of != "" {
				out = append(out, subject{namespace: nameOf(of), name: nameOf(s.Name), kind: serviceAccount})
			}
		}
	}
	return out
}

// is says whether a user is the subject, or belongs to it. A guest is no service account
// of the virtual cluster, whatever it is called.
func (s *subject) is(u user.Info, guest bool) bool {
	switch s.kind {
	case userSubject:
		name := s.name.Value()
		return u.GetName() == name && !(guest && strings.HasPrefix(name, serviceaccount.ServiceAccountUsernamePrefix))
	case groupSubject:
		group := s.name.Value()
		return slices.Contains(u.GetGroups(), group) && !(guest && strings.HasPrefix(group, serviceaccount.AllServiceAccountsGroup))
	case serviceAccount:
		return !guest && serviceaccount.MatchesUsername(s.namespace.Value(), s.name.Value(), u.GetName())
	}
	return false
}

func (s *subject) String() string {
	switch s.kind {
	case userSubject:
		return `User "` + s.name.Value() + `"`
	case groupSubject:
		return `Group "` + s.name.Value() + `"`
	}
	return `ServiceAccount "` + s.name.Value() + "/" + s.namespace.Value() + `"`
}

// subjectFor is the subject that a user is, or belongs to, or nil.
func subjectFor(all []subject, u user.Info, guest bool) *subject {
	for i := range all {
		if all[i].is(u, guest) {
			return &all[i]
		}
	}
	return nil
}

// grant is what the root gives its own identities in a virtual cluster.
type grant struct {
	role     name
	subjects []subject
}

// policy is all that decides in one virtual cluster besides the defaults. It is
// immutable: a change makes a new one.
type policy struct {
	roles    []role    // by namespace and name
	bindings []binding // by namespace and name
	grants   []grant
	// aggregated are the rules of the ClusterRoles that aggregate others, by name, where
	// they are not those of the defaults.
	aggregated map[string][]*ruleSet
}

func (p *policy) empty() bool { return len(p.roles)+len(p.bindings)+len(p.grants) == 0 }

func compare(aNamespace, aName, bNamespace, bName name) int {
	return cmp.Or(strings.Compare(aNamespace.Value(), bNamespace.Value()), strings.Compare(aName.Value(), bName.Value()))
}

func compareRoles(a, b role) int { return compare(a.namespace, a.name, b.namespace, b.name) }

func compareBindings(a, b binding) int { return compare(a.namespace, a.name, b.namespace, b.name) }

func (p *policy) role(namespace, name string) *role {
	i, ok := slices.BinarySearchFunc(p.roles, name, func(r role, name string) int {
		return cmp.Or(strings.Compare(r.namespace.Value(), namespace), strings.Compare(r.name.Value(), name))
	})
	if !ok {
		return nil
	}
	return &p.roles[i]
}

// bindingsIn are the bindings of a namespace, or the ClusterRoleBindings.
func (p *policy) bindingsIn(namespace string) []binding {
	compare := func(b binding, namespace string) int { return strings.Compare(b.namespace.Value(), namespace) }
	from, _ := slices.BinarySearchFunc(p.bindings, namespace, compare)
	to := from
	for to < len(p.bindings) && p.bindings[to].namespace.Value() == namespace {
		to++
	}
	return p.bindings[from:to]
}

// clusterRoles are those that are stored.
func (p *policy) clusterRoles() []role {
	to := slices.IndexFunc(p.roles, func(r role) bool { return r.namespace.Value() != "" })
	if to < 0 {
		to = len(p.roles)
	}
	return p.roles[:to]
}

// aggregate works out what the ClusterRoles that aggregate others hold.
func (p *policy) aggregate(d *defaults) {
	p.aggregated = nil
	stored := p.clusterRoles()
	touches := slices.ContainsFunc(stored, func(r role) bool {
		return r.aggregates() || d.roles[r.name.Value()] != nil || d.selects(&r)
	})
	if !touches {
		return
	}
	var all []*role
	for i := range stored {
		all = append(all, &stored[i])
	}
	for name, r := range d.roles {
		if p.role("", name) == nil {
			all = append(all, &r.role)
		}
	}
	slices.SortFunc(all, func(a, b *role) int { return strings.Compare(a.name.Value(), b.name.Value()) })
	for _, r := range all {
		if !r.aggregates() {
			continue
		}
		parts := aggregateOf(r, all)
		if known := d.roles[r.name.Value()]; known != nil && r == &known.role && slices.Equal(parts, known.parts) {
			continue
		}
		if p.aggregated == nil {
			p.aggregated = map[string][]*ruleSet{}
		}
		p.aggregated[r.name.Value()] = parts
	}
}

// aggregateOf collects the rules of all roles that a role selects, and of those that
// these select, in the order of the roles. What an aggregating role says itself does
// not count, as in Kubernetes, where a controller overwrites it.
func aggregateOf(r *role, all []*role) []*ruleSet {
	reached := map[*role]bool{r: true}
	for queue := []*role{r}; len(queue) > 0; queue = queue[1:] {
		for _, other := range all {
			if !reached[other] && queue[0].selects(other) {
				reached[other] = true
				if other.aggregates() {
					queue = append(queue, other)
				}
			}
		}
	}
	parts := []*ruleSet{}
	for _, other := range all {
		if reached[other] && !other.aggregates() && other.rules[0] != nil && !slices.Contains(parts, other.rules[0]) {
			parts = append(parts, other.rules[0])
		}
	}
	return parts
}
