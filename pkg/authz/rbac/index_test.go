package rbac

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// of makes a stored object.
func of(t testing.TB, cluster string, typed runtime.Object) *object.Object {
	t.Helper()
	o, err := object.From(typed, typed.GetObjectKind().GroupVersionKind())
	if err != nil {
		t.Fatal(err)
	}
	o.SetCluster(cluster)
	return o
}

// feeder gives an index objects, as storage does.
type feeder struct {
	*Index
	by map[string]logical.Observer
}

func newFeeder() *feeder {
	f := &feeder{NewIndex(), map[string]logical.Observer{}}
	for gr, o := range f.Observers() {
		f.by[gr.Resource] = o
	}
	return f
}

func (f *feeder) ready() *feeder {
	for _, o := range f.by {
		o.Replaced(nil, 1)
	}
	return f
}

func resourceOf(typed runtime.Object) string {
	switch typed.(type) {
	case *rbacv1.Role:
		return "roles"
	case *rbacv1.ClusterRole:
		return "clusterroles"
	case *rbacv1.RoleBinding:
		return "rolebindings"
	case *rbacv1.ClusterRoleBinding:
		return "clusterrolebindings"
	}
	return "virtualclusters"
}

func (f *feeder) put(t testing.TB, cluster string, all ...runtime.Object) {
	t.Helper()
	for _, typed := range all {
		f.by[resourceOf(typed)].Changed(watch.Modified, of(t, cluster, typed), 2)
	}
}

func (f *feeder) drop(t testing.TB, cluster string, typed runtime.Object) {
	t.Helper()
	f.by[resourceOf(typed)].Changed(watch.Deleted, of(t, cluster, typed), 3)
}

func clusterRoleOf(name string, labels map[string]string, rules ...rbacv1.PolicyRule) *rbacv1.ClusterRole {
	return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Rules: rules}
}

func roleOf(namespace, name string, rules ...rbacv1.PolicyRule) *rbacv1.Role {
	return &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Rules: rules}
}

func toUser(name string) rbacv1.Subject { return rbacv1.Subject{Kind: "User", Name: name} }

func globally(name, role string, subjects ...rbacv1.Subject) *rbacv1.ClusterRoleBinding {
	return &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: role}, Subjects: subjects}
}

func within(namespace, name, kind, role string, subjects ...rbacv1.Subject) *rbacv1.RoleBinding {
	return &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, RoleRef: rbacv1.RoleRef{Kind: kind, Name: role}, Subjects: subjects}
}

func asking(verb, namespace, resource string) authorizer.AttributesRecord {
	return authorizer.AttributesRecord{Verb: verb, Namespace: namespace, Resource: resource, ResourceRequest: true}
}

func (f *feeder) may(cluster, who string, a authorizer.Attributes) (bool, string) {
	return f.Allows(Subject{Cluster: cluster, User: &user.DefaultInfo{Name: who, Groups: []string{"dev", user.AllAuthenticated}}}, a)
}

func TestDecisions(t *testing.T) {
	pods := rule([]string{"get"}, "", "pods")
	for _, c := range []struct {
		name    string
		objects []runtime.Object
		who     string
		asked   authorizer.AttributesRecord
		want    bool
		reason  string
	}{
		{"nothing", nil, "alice", asking("get", "shop", "pods"), false, ""},
		{
			"everywhere", []runtime.Object{clusterRoleOf("r", nil, pods), globally("b", "r", toUser("alice"))}, "alice", asking("get", "shop", "pods"), true,
			`RBAC: allowed by ClusterRoleBinding "b" of ClusterRole "r" to User "alice"`,
		},
		{"outside of namespaces", []runtime.Object{clusterRoleOf("r", nil, pods), globally("b", "r", toUser("alice"))}, "alice", asking("get", "", "pods"), true, ""},
		{"for somebody else", []runtime.Object{clusterRoleOf("r", nil, pods), globally("b", "r", toUser("bob"))}, "alice", asking("get", "shop", "pods"), false, ""},
		{
			"in a namespace, by a ClusterRole", []runtime.Object{clusterRoleOf("r", nil, pods), within("shop", "b", "ClusterRole", "r", toUser("alice"))}, "alice", asking("get", "shop", "pods"), true,
			`RBAC: allowed by RoleBinding "b/shop" of ClusterRole "r" to User "alice"`,
		},
		{
			"in a namespace, by a Role, for a group", []runtime.Object{roleOf("shop", "r", pods), within("shop", "b", "Role", "r", rbacv1.Subject{Kind: "Group", Name: "dev"})}, "alice", asking("get", "shop", "pods"), true,
			`RBAC: allowed by RoleBinding "b/shop" of Role "r" to Group "dev"`,
		},
		{"not in another namespace", []runtime.Object{roleOf("shop", "r", pods), within("shop", "b", "Role", "r", toUser("alice"))}, "alice", asking("get", "other", "pods"), false, ""},
		{"not outside of namespaces", []runtime.Object{roleOf("shop", "r", pods), within("shop", "b", "Role", "r", toUser("alice"))}, "alice", asking("get", "", "pods"), false, ""},
		{"not by another namespace's Role", []runtime.Object{roleOf("other", "r", pods), within("shop", "b", "Role", "r", toUser("alice"))}, "alice", asking("get", "shop", "pods"), false, `RBAC: role.rbac.authorization.k8s.io "r" not found`},
		{"a ClusterRole is no Role", []runtime.Object{clusterRoleOf("r", nil, pods), within("shop", "b", "Role", "r", toUser("alice"))}, "alice", asking("get", "shop", "pods"), false, "not found"},
		{
			"a Role cannot be bound everywhere", []runtime.Object{roleOf("shop", "r", pods), clusterRoleOf("r", nil, pods), &rbacv1.ClusterRoleBinding{
				ObjectMeta: metav1.ObjectMeta{Name: "b"}, RoleRef: rbacv1.RoleRef{Kind: "Role", Name: "r"}, Subjects: []rbacv1.Subject{toUser("alice")},
			}}, "alice", asking("get", "shop", "pods"), false, "not found",
		},
		{"a role that there is not, beside one that there is", []runtime.Object{clusterRoleOf("r", nil, pods), globally("a", "gone", toUser("alice")), globally("b", "r", toUser("alice"))}, "alice", asking("get", "shop", "pods"), true, `"b"`},
		{
			"a service account", []runtime.Object{clusterRoleOf("r", nil, pods), globally("b", "r", rbacv1.Subject{Kind: "ServiceAccount", Namespace: "ci", Name: "bot"})},
			"system:serviceaccount:ci:bot", asking("get", "shop", "pods"), true, `to ServiceAccount "bot/ci"`,
		},
		{"a service account of another namespace", []runtime.Object{clusterRoleOf("r", nil, pods), globally("b", "r", rbacv1.Subject{Kind: "ServiceAccount", Namespace: "ci", Name: "bot"})}, "system:serviceaccount:shop:bot", asking("get", "shop", "pods"), false, ""},
		{
			"a service account of the binding's namespace", []runtime.Object{clusterRoleOf("r", nil, pods), within("shop", "b", "ClusterRole", "r", rbacv1.Subject{Kind: "ServiceAccount", Name: "bot"})},
			"system:serviceaccount:shop:bot", asking("get", "shop", "pods"), true, "",
		},
		{"a service account of no namespace", []runtime.Object{clusterRoleOf("r", nil, pods), globally("b", "r", rbacv1.Subject{Kind: "ServiceAccount", Name: "bot"})}, "system:serviceaccount::bot", asking("get", "shop", "pods"), false, ""},
		{"a kind of subject that there is not", []runtime.Object{clusterRoleOf("r", nil, pods), globally("b", "r", rbacv1.Subject{Kind: "Robot", Name: "alice"})}, "alice", asking("get", "shop", "pods"), false, ""},
		{"a default role", []runtime.Object{within("shop", "b", "ClusterRole", "view", toUser("alice"))}, "alice", asking("list", "shop", "pods"), true, `ClusterRole "view"`},
		{"what a default role lacks", []runtime.Object{within("shop", "b", "ClusterRole", "view", toUser("alice"))}, "alice", asking("list", "shop", "secrets"), false, ""},
		{"a default role of default roles", []runtime.Object{within("shop", "b", "ClusterRole", "admin", toUser("alice"))}, "alice", asking("list", "shop", "pods"), true, ""},
		{
			"a default role with more", []runtime.Object{
				globally("b", "admin", toUser("alice")),
				clusterRoleOf("x", map[string]string{"rbac.authorization.k8s.io/aggregate-to-view": "true"}, rule([]string{"get"}, "", "things")),
			}, "alice", asking("get", "shop", "things"), true, "",
		},
		{"a default role overridden", []runtime.Object{clusterRoleOf("view", nil), globally("b", "view", toUser("alice"))}, "alice", asking("get", "shop", "pods"), false, ""},
		{"a default binding", nil, "alice", authorizer.AttributesRecord{Verb: "get", Path: "/apis/x"}, true, `ClusterRoleBinding "system:discovery"`},
		{"a default binding overridden", []runtime.Object{globally("system:discovery", "system:discovery")}, "alice", authorizer.AttributesRecord{Verb: "get", Path: "/apis/x"}, false, ""},
		{
			"an aggregate, whatever it says itself", []runtime.Object{
				&rbacv1.ClusterRole{
					ObjectMeta: metav1.ObjectMeta{Name: "sum"}, Rules: []rbacv1.PolicyRule{rule([]string{"*"}, "*", "*")},
					AggregationRule: &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"to": "sum"}}}},
				}, clusterRoleOf("part", map[string]string{"to": "sum"}, pods), globally("b", "sum", toUser("alice")),
			}, "alice", asking("delete", "shop", "pods"), false, "",
		},
		{
			"an aggregate of an aggregate that aggregates it", []runtime.Object{
				&rbacv1.ClusterRole{
					ObjectMeta:      metav1.ObjectMeta{Name: "one", Labels: map[string]string{"to": "two"}},
					AggregationRule: &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"to": "one"}}}},
				},
				&rbacv1.ClusterRole{
					ObjectMeta:      metav1.ObjectMeta{Name: "two", Labels: map[string]string{"to": "one"}},
					AggregationRule: &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"to": "two"}}}},
				},
				clusterRoleOf("part", map[string]string{"to": "two"}, pods), globally("b", "one", toUser("alice")),
			}, "alice", asking("get", "shop", "pods"), true, "",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFeeder().ready()
			f.put(t, "here", c.objects...)
			got, reason := f.may("here", c.who, c.asked)
			if got != c.want || !strings.Contains(reason, c.reason) {
				t.Errorf("got %t (%s), want %t (%s)", got, reason, c.want, c.reason)
			}
			if c.objects != nil && c.asked.ResourceRequest { // some paths are for everybody
				if got, _ := f.may("there", c.who, c.asked); got {
					t.Error("another virtual cluster allows it, too")
				}
			}
			for _, o := range c.objects {
				f.drop(t, "here", o)
			}
			f.clusters.Range(func(cluster, _ any) bool {
				t.Errorf("virtual cluster %s costs something with nothing in it", cluster)
				return true
			})
		})
	}
}

func TestNothingIsDecidedBeforeAllIsKnown(t *testing.T) {
	f := newFeeder()
	for _, o := range f.by {
		if err := f.Ready(); !errors.Is(err, ErrNotReady) {
			t.Fatalf("ready too early: %v", err)
		}
		o.Replaced(nil, 1)
	}
	if err := f.Ready(); err != nil {
		t.Error(err)
	}
}

func TestWhatCannotBeReadAllowsNothing(t *testing.T) {
	f := newFeeder().ready()
	f.put(t, "here", globally("b", "view", toUser("alice")), globally("c", "own", toUser("alice")), clusterRoleOf("own", nil, rule([]string{"get"}, "", "things")))
	broken := func(o *object.Object, content map[string]any) *object.Object {
		if err := o.SetContent(content); err != nil {
			t.Fatal(err)
		}
		return o
	}
	quarantined := func(o *object.Object) *object.Object {
		empty := &object.Object{ObjectMeta: metav1.ObjectMeta{Name: o.Name, Annotations: map[string]string{logical.QuarantineAnnotation: "broken"}}}
		empty.SetCluster(o.Cluster())
		return empty
	}
	view := of(t, "here", clusterRoleOf("view", nil))
	for _, bad := range []*object.Object{broken(view.DeepCopy(), map[string]any{"rules": "x"}), quarantined(view)} {
		f.by["clusterroles"].Changed(watch.Modified, bad, 2)
		if ok, reason := f.may("here", "alice", asking("get", "shop", "pods")); ok || !strings.Contains(reason, `"view" cannot be read`) {
			t.Errorf("got %t: %s", ok, reason)
		}
		if ok, _ := f.may("here", "alice", asking("get", "shop", "things")); !ok {
			t.Error("what can be read is not")
		}
	}
	binding := of(t, "here", globally("c", "own"))
	for _, bad := range []*object.Object{broken(binding.DeepCopy(), map[string]any{"roleRef": map[string]any{"kind": "ClusterRole", "name": "own"}, "subjects": "x"}), quarantined(binding)} {
		f.by["clusterrolebindings"].Changed(watch.Modified, bad, 2)
		if ok, _ := f.may("here", "alice", asking("get", "shop", "things")); ok {
			t.Error("a binding that cannot be read binds")
		}
	}
}

func TestWhatTheRootGrantsIsForItsOwnIdentities(t *testing.T) {
	f := newFeeder().ready()
	cluster := func(access ...v1alpha1.VirtualClusterAccess) *v1alpha1.VirtualCluster {
		return &v1alpha1.VirtualCluster{ObjectMeta: metav1.ObjectMeta{Name: "here"}, Spec: v1alpha1.VirtualClusterSpec{Access: access}}
	}
	carol := &user.DefaultInfo{Name: "carol", Groups: []string{"platform"}}
	ask := func(cluster string, granted bool, resource string) bool {
		ok, _ := f.Allows(Subject{Cluster: cluster, User: carol, Guest: granted}, asking("get", "shop", resource))
		return ok
	}
	f.put(t, logical.Root, cluster(
		v1alpha1.VirtualClusterAccess{Role: "view", Subjects: []v1alpha1.AccessSubject{{Kind: "Group", Name: "platform"}}},
		v1alpha1.VirtualClusterAccess{Role: "own", Subjects: []v1alpha1.AccessSubject{{Kind: "User", Name: "carol"}}},
	))
	f.put(t, "here", clusterRoleOf("own", nil, rule([]string{"get"}, "", "things")))
	if !ask("here", true, "pods") || !ask("here", true, "things") {
		t.Error("a grant does not count")
	}
	if ask("here", false, "pods") || ask("there", true, "pods") || ask(logical.Root, true, "pods") {
		t.Error("a grant counts for others, or elsewhere")
	}
	f.put(t, "here", clusterRoleOf("view", nil, rule([]string{"get"}, "", "more")))
	if !ask("here", true, "pods") || !ask("here", true, "more") {
		t.Error("a grant is less than the default role, or than the role")
	}
	f.put(t, logical.Root, cluster())
	if ask("here", true, "pods") {
		t.Error("a grant outlives its end")
	}
	f.put(t, "here", globally("bots", "cluster-admin", rbacv1.Subject{Kind: "ServiceAccount", Namespace: "ci", Name: "bot"}, rbacv1.Subject{Kind: "Group", Name: "system:serviceaccounts:ci"}))
	bot := &user.DefaultInfo{Name: "system:serviceaccount:ci:bot", Groups: []string{"system:serviceaccounts", "system:serviceaccounts:ci"}}
	allowed := func(guest bool) bool {
		ok, _ := f.Allows(Subject{Cluster: "here", User: bot, Guest: guest}, asking("get", "shop", "pods"))
		return ok
	}
	if !allowed(false) || allowed(true) {
		t.Errorf("a service account: %t, of the root: %t", allowed(false), allowed(true))
	}
	f.put(t, "here", globally("bots", "cluster-admin", rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: "User", Name: bot.Name}))
	if !allowed(false) || allowed(true) {
		t.Errorf("a service account that is bound as a user: %t, of the root: %t", allowed(false), allowed(true))
	}
	f.put(t, logical.Root, cluster(v1alpha1.VirtualClusterAccess{Role: "view", Subjects: []v1alpha1.AccessSubject{{Kind: "User", Name: bot.Name}}}))
	if !allowed(true) {
		t.Error("a service account of the root that the root grants a role has none")
	}
}

// model is the state that an index is given, kept as it came.
type model map[string]map[string]runtime.Object // by virtual cluster, then by resource and name

// reconciled are the ClusterRoles and their bindings that a virtual cluster has in the
// end, defaults included, once a controller has aggregated what there is to aggregate.
func (m model) reconciled(cluster string) (map[string]*rbacv1.ClusterRole, map[string]*rbacv1.ClusterRoleBinding) {
	roles := map[string]*rbacv1.ClusterRole{}
	for _, r := range DefaultClusterRoles() {
		roles[r.Name] = r
	}
	bindings := map[string]*rbacv1.ClusterRoleBinding{}
	for _, b := range DefaultClusterRoleBindings() {
		bindings[b.Name] = b
	}
	for _, o := range m[cluster] {
		switch o := o.(type) {
		case *rbacv1.ClusterRole:
			roles[o.Name] = o.DeepCopy()
		case *rbacv1.ClusterRoleBinding:
			bindings[o.Name] = o
		}
	}
	// What the controller does, until it has nothing to do any more.
	for _, r := range roles {
		if r.AggregationRule != nil {
			r.Rules = nil
		}
	}
	for changed := true; changed; {
		changed = false
		for _, r := range roles {
			if r.AggregationRule == nil {
				continue
			}
			for _, s := range r.AggregationRule.ClusterRoleSelectors {
				selector, _ := metav1.LabelSelectorAsSelector(&s)
				for _, other := range roles {
					if other == r || !selector.Matches(labels.Set(other.Labels)) {
						continue
					}
					for _, add := range other.Rules {
						if !slices.ContainsFunc(r.Rules, func(has rbacv1.PolicyRule) bool { return reflect.DeepEqual(has, add) }) {
							r.Rules, changed = append(r.Rules, add), true
						}
					}
				}
			}
		}
	}
	return roles, bindings
}

// allows evaluates as Kubernetes documents it, from the objects themselves.
func (m model) allows(cluster string, roles map[string]*rbacv1.ClusterRole, bindings map[string]*rbacv1.ClusterRoleBinding, u *user.DefaultInfo, a authorizer.AttributesRecord) bool {
	find := func(resource, namespace, name string) runtime.Object {
		return m[cluster][resource+" "+namespace+"/"+name]
	}
	applies := func(subjects []rbacv1.Subject, namespace string) bool {
		for _, s := range subjects {
			switch {
			case s.Kind == "User" && s.Name == u.Name, s.Kind == "Group" && slices.Contains(u.Groups, s.Name):
				return true
			case s.Kind == "ServiceAccount":
				if s.Namespace == "" {
					s.Namespace = namespace
				}
				if s.Namespace != "" && u.Name == "system:serviceaccount:"+s.Namespace+":"+s.Name {
					return true
				}
			}
		}
		return false
	}
	ruled := func(rules []rbacv1.PolicyRule) bool {
		return slices.ContainsFunc(rules, func(r rbacv1.PolicyRule) bool { return allows(&r, questionOf(a)) })
	}
	for _, b := range bindings {
		if r := roles[b.RoleRef.Name]; applies(b.Subjects, "") && r != nil && ruled(r.Rules) {
			return true
		}
	}
	for _, o := range m[cluster] {
		b, ok := o.(*rbacv1.RoleBinding)
		if !ok || b.Namespace != a.Namespace || !applies(b.Subjects, b.Namespace) {
			continue
		}
		if b.RoleRef.Kind == "ClusterRole" {
			if r := roles[b.RoleRef.Name]; r != nil && ruled(r.Rules) {
				return true
			}
		} else if r, ok := find("roles", b.Namespace, b.RoleRef.Name).(*rbacv1.Role); ok && ruled(r.Rules) {
			return true
		}
	}
	return false
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func randomObject(r *rand.Rand) runtime.Object {
	names := []string{"a", "b", "c", "view", "edit", "system:discovery"}
	namespace := pick(r, "x", "y")
	meta := metav1.ObjectMeta{Name: pick(r, names...)}
	var rules []rbacv1.PolicyRule
	for range r.IntN(3) {
		if r.IntN(4) == 0 {
			rules = append(rules, rbacv1.PolicyRule{Verbs: []string{pick(r, "get", "*")}, NonResourceURLs: []string{pick(r, "/a", "/a/*", "*")}})
			continue
		}
		p := rbacv1.PolicyRule{
			Verbs: []string{pick(r, "get", "list", "*")}, APIGroups: []string{pick(r, "", "g", "*")}, Resources: []string{pick(r, "pods", "secrets", "pods/status", "*/status", "*")},
		}
		if r.IntN(4) == 0 {
			p.ResourceNames = []string{pick(r, "p", "q")}
		}
		rules = append(rules, p)
	}
	ref := rbacv1.RoleRef{Kind: pick(r, "ClusterRole", "ClusterRole", "Role"), Name: pick(r, names...)}
	var subjects []rbacv1.Subject
	for range r.IntN(3) {
		subjects = append(subjects, pick(r, toUser("alice"), toUser("bob"), rbacv1.Subject{Kind: "Group", Name: "dev"}, rbacv1.Subject{Kind: "ServiceAccount", Name: "bot"},
			rbacv1.Subject{Kind: "ServiceAccount", Namespace: "y", Name: "bot"}))
	}
	switch r.IntN(4) {
	case 0:
		meta.Namespace = namespace
		return &rbacv1.Role{ObjectMeta: meta, Rules: rules}
	case 1:
		o := &rbacv1.ClusterRole{ObjectMeta: meta, Rules: rules}
		if r.IntN(2) == 0 {
			o.Labels = map[string]string{pick(r, "to", "rbac.authorization.k8s.io/aggregate-to-view"): pick(r, "true", "b")}
		}
		if r.IntN(4) == 0 {
			o.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"to": pick(r, "true", "b")}}}}
		}
		return o
	case 2:
		meta.Namespace = namespace
		return &rbacv1.RoleBinding{ObjectMeta: meta, RoleRef: ref, Subjects: subjects}
	default:
		ref.Kind = "ClusterRole"
		return &rbacv1.ClusterRoleBinding{ObjectMeta: meta, RoleRef: ref, Subjects: subjects}
	}
}

func TestTheIndexDecidesAsTheObjectsSay(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		f, m := newFeeder().ready(), model{}
		clusters := []string{"one", "two", "root"}
		for range 60 {
			cluster := pick(r, clusters...)
			o := randomObject(r)
			accessor := o.(metav1.Object)
			key := resourceOf(o) + " " + accessor.GetNamespace() + "/" + accessor.GetName()
			if m[cluster] == nil {
				m[cluster] = map[string]runtime.Object{}
			}
			if r.IntN(4) == 0 {
				delete(m[cluster], key)
				f.drop(t, cluster, o)
			} else {
				m[cluster][key] = o
				f.put(t, cluster, o)
			}
			if r.IntN(20) == 0 { // a list instead of changes
				for resource, observer := range f.by {
					var items []*object.Object
					for cluster, objects := range m {
						for key, o := range objects {
							if strings.HasPrefix(key, resource+" ") {
								items = append(items, of(t, cluster, o))
							}
						}
					}
					observer.Replaced(items, 9)
				}
			}
			cluster = pick(r, clusters...)
			roles, bindings := m.reconciled(cluster)
			for range 10 {
				u := &user.DefaultInfo{Name: pick(r, "alice", "bob", "system:serviceaccount:x:bot", "system:serviceaccount:y:bot"), Groups: []string{pick(r, "dev", "ops"), user.AllAuthenticated}}
				a := authorizer.AttributesRecord{Verb: pick(r, "get", "list"), Path: pick(r, "/a", "/a/b", "/c", "/api")}
				if r.IntN(4) > 0 {
					a = authorizer.AttributesRecord{
						Verb: a.Verb, APIGroup: pick(r, "", "g"), Resource: pick(r, "pods", "secrets"), Subresource: pick(r, "", "", "status"),
						Namespace: pick(r, "", "x", "y"), Name: pick(r, "", "p", "q"), ResourceRequest: true,
					}
				}
				got, reason := f.Allows(Subject{Cluster: cluster, User: u}, a)
				if want := m.allows(cluster, roles, bindings, u, a); got != want {
					state, _ := json.MarshalIndent(m[cluster], "", " ")
					t.Fatalf("seed %d: in %s, %v asks %+v: got %t (%s), want %t; there is\n%s", seed, cluster, u, a, got, reason, want, state)
				}
				rules, _ := f.Rules(Subject{Cluster: cluster, User: u}, a.Namespace)
				if listed := slices.ContainsFunc(rules, func(r rbacv1.PolicyRule) bool { return allows(&r, questionOf(a)) }); listed != got {
					t.Fatalf("seed %d: the list of rules says %t, the decision %t", seed, listed, got)
				}
			}
		}
	}
}

func TestDecisionsGoOnWhileTheIndexChanges(t *testing.T) {
	f := newFeeder().ready()
	f.put(t, "here", globally("b", "own", toUser("alice")), clusterRoleOf("own", nil, rule([]string{"get"}, "", "things")))
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if ok, reason := f.may("here", "alice", asking("get", "shop", "things")); !ok {
					t.Error(reason)
					return
				}
				if ok, _ := f.may("there", "alice", asking("get", "shop", "things")); ok {
					t.Error("allowed where nothing allows it")
					return
				}
			}
		})
	}
	for i := range 500 {
		f.put(t, "here", roleOf("x", fmt.Sprint("r", i)), within("x", fmt.Sprint("b", i), "Role", "r", toUser("bob")))
		f.put(t, "there", clusterRoleOf(fmt.Sprint("r", i), nil))
	}
	close(done)
	wg.Wait()
}
