package authz

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/authz/rbac"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// identity is a user of a virtual cluster, or of none.
func identity(of, name string, groups ...string) user.Info {
	u := &user.DefaultInfo{Name: name, Groups: append(groups, user.AllAuthenticated), Extra: map[string][]string{}}
	if of == "" {
		u.Groups = []string{user.AllUnauthenticated}
	} else {
		u.Extra[authn.ExtraCluster] = []string{of}
	}
	return u
}

// fed is an authorizer whose index knows the objects, by virtual cluster.
func fed(t *testing.T, objects map[string][]runtime.Object) *Authorizer {
	t.Helper()
	index := rbac.NewIndex()
	byResource := map[string][]*object.Object{}
	for cluster, all := range objects {
		for _, typed := range all {
			o, err := object.From(typed, typed.GetObjectKind().GroupVersionKind())
			if err != nil {
				t.Fatal(err)
			}
			o.SetCluster(cluster)
			resource := "virtualclusters"
			switch typed.(type) {
			case *rbacv1.ClusterRole:
				resource = "clusterroles"
			case *rbacv1.ClusterRoleBinding:
				resource = "clusterrolebindings"
			}
			byResource[resource] = append(byResource[resource], o)
		}
	}
	for gr, o := range index.Observers() {
		o.Replaced(byResource[gr.Resource], 1)
	}
	return New(index)
}

func role(name string, rules ...rbacv1.PolicyRule) *rbacv1.ClusterRole {
	return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}
}

func binding(role, kind, name string) *rbacv1.ClusterRoleBinding {
	return &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: role + "-" + name}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: role}, Subjects: []rbacv1.Subject{{Kind: kind, Name: name}},
	}
}

func entering(name string, verbs ...string) *rbacv1.ClusterRole {
	return role("enter", rbacv1.PolicyRule{Verbs: verbs, APIGroups: []string{"vmesh.io"}, Resources: []string{"virtualclusters/proxy"}, ResourceNames: []string{name}})
}

func ask(verb, group, resource string) authorizer.AttributesRecord {
	return authorizer.AttributesRecord{Verb: verb, APIGroup: group, Resource: resource, Namespace: "default", ResourceRequest: true}
}

func TestWhoseIdentityItIsDecidesFirst(t *testing.T) {
	z := fed(t, map[string][]runtime.Object{
		"shop": {binding("view", "User", "alice"), binding("cluster-admin", "Group", user.SystemPrivilegedGroup), binding("view", "Group", "everyone")},
		logical.Root: {
			entering("shop", "get", "list"), binding("enter", "User", "carol"), binding("enter", "User", "dan"),
			&v1alpha1.VirtualCluster{ObjectMeta: metav1.ObjectMeta{Name: "shop"}, Spec: v1alpha1.VirtualClusterSpec{Access: []v1alpha1.VirtualClusterAccess{
				{Role: "edit", Subjects: []v1alpha1.AccessSubject{{Kind: "User", Name: "carol"}, {Kind: "User", Name: "erin"}}},
			}}},
		},
	})
	const masters = user.SystemPrivilegedGroup
	list, create := ask("list", "", "pods"), ask("create", "", "pods")
	path := func(path string) authorizer.AttributesRecord {
		return authorizer.AttributesRecord{Verb: "get", Path: path}
	}
	for _, c := range []struct {
		name   string
		u      user.Info
		where  string
		a      authorizer.AttributesRecord
		want   bool
		reason string
	}{
		{"a member", identity("shop", "alice"), "shop", list, true, `ClusterRole "view"`},
		{"a member without the right", identity("shop", "alice"), "shop", create, false, "no rule of this virtual cluster allows it"},
		{"a member of another virtual cluster", identity("pay", "alice"), "shop", list, false, "belongs to another"},
		{"an administrator", identity("shop", "admin", masters), "shop", create, true, ""},
		{"an administrator of another virtual cluster", identity("pay", "admin", masters), "shop", list, false, "belongs to another"},
		{"an administrator in the root", identity("shop", "admin", masters), logical.Root, list, false, "belongs to another"},
		{"an administrator of the root", identity(logical.Root, "admin", masters), "shop", create, true, ""},
		{"an administrator of nothing", &user.DefaultInfo{Name: "x", Groups: []string{masters}}, "shop", list, false, ""},
		{"nobody", identity("", user.Anonymous), "shop", list, false, ""},
		{"nobody discovers", identity("", user.Anonymous), "shop", path("/apis"), false, ""},
		{"nobody learns that there is one", identity("", user.Anonymous), "shop", path("/readyz"), false, ""},
		{"nobody asks the root whether it is ready", identity("", user.Anonymous), logical.Root, path("/readyz"), true, ""},
		{"no user at all", nil, "shop", list, false, ""},
		{"a guest with a grant", identity(logical.Root, "carol"), "shop", list, true, "spec.access"},
		{"a guest with a grant who may not enter for that", identity(logical.Root, "carol"), "shop", create, false, `the verb "create" on virtualclusters/proxy`},
		{"a guest elsewhere", identity(logical.Root, "carol"), "pay", list, false, "does not let this identity enter"},
		{"a guest without a grant", identity(logical.Root, "dan"), "shop", list, false, "no rule of this virtual cluster"},
		{"a guest without a grant, but in a group", identity(logical.Root, "dan", "everyone"), "shop", list, true, `to Group "everyone"`},
		{"a guest without a grant discovers", identity(logical.Root, "dan"), "shop", path("/apis"), true, ""},
		{"a guest asks what it may", identity(logical.Root, "dan"), "shop", ask("create", "authorization.k8s.io", "selfsubjectaccessreviews"), true, ""},
		{"a grant does not let in", identity(logical.Root, "erin"), "shop", list, false, "does not let this identity enter"},
		{"a grant is no member's", identity("shop", "carol"), "shop", list, false, "no rule of this virtual cluster"},
		{"an entrance is no right in the root", identity(logical.Root, "carol"), logical.Root, list, false, "no rule of the root allows it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.a.User = c.u
			ctx := logical.WithCluster(context.Background(), c.where)
			decision, reason, err := z.Authorize(ctx, c.a)
			if err != nil || (decision == authorizer.DecisionAllow) != c.want || !strings.Contains(reason, c.reason) {
				t.Errorf("got %v (%s, %v), want %t (%s)", decision, reason, err, c.want, c.reason)
			}
		})
	}
	if _, _, err := z.Authorize(context.Background(), list); !errors.Is(err, logical.ErrNoCluster) {
		t.Errorf("without a virtual cluster: %v", err)
	}
	ctx := logical.WithCluster(context.Background(), "shop")
	rules, err := z.Rules(ctx, identity(logical.Root, "carol"), "default")
	if err != nil || len(rules) == 0 {
		t.Fatalf("a guest has the rules %v, %v", rules, err)
	}
	for _, r := range rules {
		if slices.Contains(r.Verbs, "create") || slices.Contains(r.Verbs, "*") {
			t.Errorf("a guest is shown what the root does not let it do: %v", r)
		}
	}
}

func TestBeforeRolesAreKnownOnlyAdministratorsAreLetIn(t *testing.T) {
	z := New(rbac.NewIndex())
	ctx := logical.WithCluster(context.Background(), "shop")
	for name, want := range map[string]authorizer.Decision{"alice": authorizer.DecisionNoOpinion, "admin": authorizer.DecisionAllow} {
		a := ask("list", "", "pods")
		a.User = identity("shop", name)
		if name == "admin" {
			a.User = identity("shop", name, user.SystemPrivilegedGroup)
		}
		decision, _, err := z.Authorize(ctx, a)
		if decision != want || (want != authorizer.DecisionAllow) != errors.Is(err, rbac.ErrNotReady) {
			t.Errorf("%s: %v, %v", name, decision, err)
		}
	}
	if _, err := z.Rules(ctx, identity("shop", "alice"), ""); !errors.Is(err, rbac.ErrNotReady) {
		t.Errorf("rules: %v", err)
	}
	if err := z.Enter(ctx, authorizer.AttributesRecord{User: identity(logical.Root, "carol")}); !errors.Is(err, rbac.ErrNotReady) {
		t.Errorf("entering: %v", err)
	}
}
