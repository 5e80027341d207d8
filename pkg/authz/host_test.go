package authz

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// theHost allows what it lists, and remembers what it was asked.
type theHost struct {
	allows []string
	away   error
	asked  []string
}

func (h *theHost) Authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	for key := range a.GetUser().GetExtra() {
		if strings.HasPrefix(key, authn.ExtraPrefix) {
			return authorizer.DecisionNoOpinion, "", fmt.Errorf("the host is told %s", key)
		}
	}
	question := fmt.Sprintf("%s %s %s/%s/%s %s", a.GetUser().GetName(), a.GetVerb(), a.GetAPIGroup(), a.GetResource(), a.GetSubresource(), a.GetName())
	if !a.IsResourceRequest() {
		question = fmt.Sprintf("%s %s %s", a.GetUser().GetName(), a.GetVerb(), a.GetPath())
	}
	h.asked = append(h.asked, question)
	if h.away != nil {
		return authorizer.DecisionNoOpinion, "", h.away
	}
	if slices.Contains(h.allows, question) {
		return authorizer.DecisionAllow, "", nil
	}
	return authorizer.DecisionNoOpinion, "", nil
}

func hostIdentity(name string, groups ...string) user.Info {
	u := identity(logical.Root, name, groups...).(*user.DefaultInfo)
	u.Extra[authn.ExtraHost] = []string{"true"}
	return u
}

func TestTheHostDecidesAboutItsUsersAndThenTheVirtualCluster(t *testing.T) {
	objects := map[string][]runtime.Object{
		"shop": {binding("view", "User", "bound")},
		"pay":  {},
		logical.Root: {
			// The root's RBAC is not asked about users of the host.
			binding("cluster-admin", "User", "eve"),
			&v1alpha1.VirtualCluster{ObjectMeta: metav1.ObjectMeta{Name: "shop"}, Spec: v1alpha1.VirtualClusterSpec{Access: []v1alpha1.VirtualClusterAccess{
				{Role: "edit", Subjects: []v1alpha1.AccessSubject{{Kind: "Group", Name: "platform"}}},
			}}},
		},
	}
	const masters = user.SystemPrivilegedGroup
	pods := func(verb string) authorizer.AttributesRecord { return ask(verb, "", "pods") }
	routes := func(verb string) authorizer.AttributesRecord {
		return ask(verb, "networking.istio.io", "virtualservices")
	}
	fleet := authorizer.AttributesRecord{Verb: "list", APIGroup: "vmesh.io", Resource: "virtualclusters", ResourceRequest: true}
	const enterShop = "vmesh.io/virtualclusters/proxy shop"
	for _, c := range []struct {
		name   string
		u      user.Info
		where  string
		view   bool
		a      authorizer.AttributesRecord
		allows []string
		want   bool
		reason string
		asked  int
	}{
		{"an entrance and a grant", hostIdentity("alice", "platform"), "shop", false, pods("list"), []string{"alice get " + enterShop}, true, "spec.access", 1},
		{"an entrance and a binding", hostIdentity("bound"), "shop", false, pods("watch"), []string{"bound get " + enterShop}, true, "ClusterRole \"view\"", 1},
		{"a deletion of many is a deletion", hostIdentity("alice", "platform"), "shop", false, pods("deletecollection"), []string{"alice delete " + enterShop}, true, "", 1},
		{"an entrance for reading only", hostIdentity("alice", "platform"), "shop", false, pods("create"), []string{"alice get " + enterShop}, false, `the verb "create" on virtualclusters/proxy`, 1},
		{"an entrance alone", hostIdentity("carol"), "shop", false, pods("list"), []string{"carol get " + enterShop}, false, "no rule of this virtual cluster", 1},
		{"an entrance to another virtual cluster", hostIdentity("alice", "platform"), "pay", false, pods("list"), []string{"alice get " + enterShop}, false, "does not let this identity enter", 1},
		{"a grant alone", hostIdentity("alice", "platform"), "shop", false, pods("list"), nil, false, "the host cluster does not let this identity enter", 1},
		{"the root's RBAC does not let in", hostIdentity("eve"), "shop", false, pods("list"), nil, false, "the host cluster does not let", 1},
		{"the host's administrator", hostIdentity("admin", masters), "shop", false, pods("create"), nil, true, "", 0},
		{"the fleet", hostIdentity("alice"), logical.Root, false, fleet, []string{"alice list vmesh.io/virtualclusters/ "}, true, "", 1},
		{"the fleet without the right", hostIdentity("eve"), logical.Root, false, fleet, nil, false, "the host cluster does not allow it", 1},
		{"the root's secrets are not the host's", hostIdentity("alice"), logical.Root, false, ask("get", "", "secrets"), []string{"alice get /secrets/ "}, false, "nothing in the root but vmesh.io", 0},
		{"a description", hostIdentity("system:aggregator"), logical.Root, false, authorizer.AttributesRecord{Verb: "get", Path: "/openapi/v2"}, []string{"system:aggregator get /openapi/v2"}, true, "", 1},
		{"a direct guest is the root's", identity(logical.Root, "alice", "platform"), "shop", false, pods("list"), []string{"alice get " + enterShop}, false, "the root does not let", 0},
		{"in the host view the host is asked what is wanted", hostIdentity("alice", "platform"), "shop", true, routes("list"), []string{"alice list networking.istio.io/virtualservices/ "}, true, "spec.access", 1},
		{"an entrance is no right in the host view", hostIdentity("alice", "platform"), "shop", true, routes("list"), []string{"alice get " + enterShop}, false, "the host cluster does not allow it", 1},
		{"the host view without a grant", hostIdentity("carol"), "shop", true, routes("list"), []string{"carol list networking.istio.io/virtualservices/ "}, false, "no rule of this virtual cluster", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			z, host := fed(t, objects), &theHost{allows: c.allows}
			z.AskHost(host)
			c.a.User = c.u
			ctx := logical.WithCluster(t.Context(), c.where)
			if c.view {
				ctx = WithHostView(ctx)
			}
			decision, reason, err := z.Authorize(ctx, c.a)
			if err != nil || (decision == authorizer.DecisionAllow) != c.want || !strings.Contains(reason, c.reason) {
				t.Errorf("got %v (%s, %v), want %t (%s)", decision, reason, err, c.want, c.reason)
			}
			if len(host.asked) != c.asked {
				t.Errorf("the host was asked %q", host.asked)
			}
			if c.asked == 0 {
				return
			}
			host.away = errors.New("connection refused")
			if decision, _, err = z.Authorize(ctx, c.a); decision == authorizer.DecisionAllow || !errors.Is(err, ErrHostAway) || !errors.Is(z.HostAnswers(ctx, c.a), ErrHostAway) {
				t.Errorf("without the host: %v, %v", decision, err)
			}
		})
	}
}

func TestWithoutAHostToAskItsUsersAreTheRoots(t *testing.T) {
	z := fed(t, map[string][]runtime.Object{
		"shop":       {binding("view", "User", "alice")},
		logical.Root: {entering("shop", "get", "list"), binding("enter", "User", "alice")},
	})
	ctx := logical.WithCluster(t.Context(), "shop")
	for name, want := range map[string]bool{"alice": true, "eve": false} {
		a := ask("list", "", "pods")
		a.User = hostIdentity(name)
		if decision, reason, err := z.Authorize(ctx, a); err != nil || (decision == authorizer.DecisionAllow) != want {
			t.Errorf("%s: %v (%s), %v", name, decision, reason, err)
		}
	}
}

func TestRulesOfAHostsUserAreThoseThatTheHostLetsItUse(t *testing.T) {
	z := fed(t, map[string][]runtime.Object{"shop": {binding("edit", "User", "alice")}})
	host := &theHost{allows: []string{"alice get vmesh.io/virtualclusters/proxy shop"}}
	z.AskHost(host)
	ctx := logical.WithCluster(t.Context(), "shop")
	rules, err := z.Rules(ctx, hostIdentity("alice"), "default")
	if err != nil || len(rules) == 0 {
		t.Fatalf("got %v, %v", rules, err)
	}
	verbs := map[string]bool{}
	for _, r := range rules {
		for _, v := range r.Verbs {
			verbs[v] = true
		}
	}
	if !verbs["list"] || verbs["create"] || verbs["*"] {
		t.Errorf("the verbs are %v", slices.Sorted(maps.Keys(verbs)))
	}
	host.away = errors.New("connection refused")
	if rules, err := z.Rules(ctx, hostIdentity("alice"), "default"); !errors.Is(err, ErrHostAway) || len(rules) > 0 {
		t.Errorf("without the host: %v, %v", rules, err)
	}
	if err := z.HostAnswers(ctx, authorizer.AttributesRecord{User: identity("shop", "alice")}); err != nil {
		t.Errorf("a member has to wait for the host: %v", err)
	}
}
