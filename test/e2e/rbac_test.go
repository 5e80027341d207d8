package e2e

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vmesh-io/vmesh/pkg/storage/logical"
	"github.com/vmesh-io/vmesh/test/e2e/rawapi"
	"github.com/vmesh-io/vmesh/test/harness"
)

const rbacAPI = "/apis/rbac.authorization.k8s.io/v1"

// kubectlAs runs kubectl and returns all that it says.
func kubectlAs(t *testing.T, who *tenant, args ...string) string {
	t.Helper()
	return kubectlWith(t, who, "", args...)
}

func kubectlWith(t *testing.T, who *tenant, stdin string, args ...string) string {
	t.Helper()
	out, err := harness.Kubectl(t.Context(), who.kubeconfig, stdin, args...)
	if err != nil {
		out += err.Error()
	}
	return out
}

// says waits until kubectl says something: roles are effective a moment after they are written.
func says(t *testing.T, who *tenant, want string, args ...string) {
	t.Helper()
	eventually(t, func() error {
		if got := kubectlAs(t, who, args...); !strings.Contains(got, want) {
			return fmt.Errorf("kubectl %s: got %q, want %q in it", strings.Join(args, " "), got, want)
		}
		return nil
	})
}

// in is an identity of the root on its way into a virtual cluster.
func (n *tenant) in(t *testing.T, cluster string) *tenant {
	t.Helper()
	config, err := clientcmd.LoadFromFile(n.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range config.Clusters {
		c.Server += "/clusters/" + cluster
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		t.Fatal(err)
	}
	rest, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		t.Fatal(err)
	}
	return &tenant{name: cluster, config: unlimited(rest), kubeconfig: file, raw: rawClient(t, rest)}
}

func bindCluster(t *testing.T, admin *tenant, name, role, kind, subject string) {
	t.Helper()
	mustDo(t, admin.raw, http.MethodPost, rbacAPI+"/clusterrolebindings", fmt.Sprintf(`{"metadata":{"name":%q},`+
		`"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":%q},`+
		`"subjects":[{"apiGroup":"rbac.authorization.k8s.io","kind":%q,"name":%q}]}`, name, role, kind, subject))
}

func bindIn(t *testing.T, admin *tenant, namespace, name, roleKind, role, kind, subject string) {
	t.Helper()
	mustDo(t, admin.raw, http.MethodPost, rbacAPI+"/namespaces/"+namespace+"/rolebindings", fmt.Sprintf(`{"metadata":{"name":%q},`+
		`"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":%q,"name":%q},`+
		`"subjects":[{"apiGroup":"rbac.authorization.k8s.io","kind":%q,"name":%q}]}`, name, roleKind, role, kind, subject))
}

func TestDefaultRolesGiveWhatTheyAreNamedAfter(t *testing.T) {
	admin := newTenant(t, shared)
	viewer, traffic, security := shared.as(t, admin.name, "vera", "viewers"), shared.as(t, admin.name, "tom", "dev"), shared.as(t, admin.name, "sue", "sec")
	nobody := shared.as(t, admin.name, "nora", "nothing")
	bindCluster(t, admin, "viewers", "view", "Group", "viewers")
	bindCluster(t, admin, "traffic", "vmesh:traffic-editor", "User", "tom")
	bindCluster(t, admin, "security", "vmesh:security-editor", "Group", "sec")
	mustDo(t, admin.raw, http.MethodPost, virtualServices("default"), virtualService("reviews"))

	says(t, viewer, "reviews", "get", "virtualservices")
	for _, c := range []struct {
		name string
		who  *tenant
		want string
		args []string
	}{
		{"a reader does not write", viewer, "forbidden", []string{"delete", "virtualservice", "reviews"}},
		{"a reader does not see secrets", viewer, "forbidden", []string{"get", "secrets"}},
		{"a reader may ask", viewer, "yes", []string{"auth", "can-i", "list", "gateways.networking.istio.io"}},
		{"a reader is told no", viewer, "no", []string{"auth", "can-i", "create", "gateways.networking.istio.io"}},
		{"who is a reader", viewer, "vera", []string{"auth", "whoami"}},
		{"what a reader may do", viewer, "*.networking.istio.io", []string{"auth", "can-i", "--list"}},
		{"traffic is for its editor", traffic, "patched", []string{"patch", "virtualservice", "reviews", "--type=merge", "-p", `{"metadata":{"labels":{"a":"b"}}}`}},
		{"raw Envoy configuration is not traffic", traffic, "no", []string{"auth", "can-i", "create", "envoyfilters.networking.istio.io"}},
		{"security is not traffic", traffic, "no", []string{"auth", "can-i", "create", "peerauthentications.security.istio.io"}},
		{"security is for its editor", security, "yes", []string{"auth", "can-i", "create", "peerauthentications.security.istio.io"}},
		{"traffic is not security", security, "no", []string{"auth", "can-i", "create", "virtualservices.networking.istio.io"}},
		{"an administrator may all", admin, "*.*", []string{"auth", "can-i", "--list"}},
		{"without a binding there is nothing", nobody, "no rule of this virtual cluster allows it", []string{"get", "virtualservices"}},
		{"but discovery", nobody, "virtualservices", []string{"api-resources"}},
		{"somebody else's rights are asked about by impersonation", admin, "no", []string{"auth", "can-i", "delete", "virtualservices", "--as=vera", "--as-group=viewers"}},
	} {
		t.Run(c.name, func(t *testing.T) { says(t, c.who, c.want, c.args...) })
	}

	other := newTenant(t, shared)
	stranger := shared.as(t, other.name, "tom", "viewers", "sec")
	mustDo(t, other.raw, http.MethodPost, rbacAPI+"/clusterroles", `{"metadata":{"name":"vmesh:nothing"},"rules":[]}`)
	refused(t, do(t, stranger.raw, http.MethodGet, virtualServices("default"), ""), 403, "no rule of this virtual cluster")
}

func TestANamespacesAdministratorStaysInItAndGivesNoMoreThanItHas(t *testing.T) {
	admin := newTenant(t, shared)
	admin.namespace(t, "shop")
	lead := shared.as(t, admin.name, "lea", "leads")
	bindIn(t, admin, "shop", "leads", "ClusterRole", "admin", "Group", "leads")
	says(t, lead, "yes", "auth", "can-i", "create", "roles.rbac.authorization.k8s.io", "-n", "shop")

	roles := func(namespace string) string { return rbacAPI + "/namespaces/" + namespace + "/roles" }
	role := func(name, group, resource, verb string) string {
		return fmt.Sprintf(`{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"Role","metadata":{"name":%q},"rules":[{"apiGroups":[%q],"resources":[%q],"verbs":[%q]}]}`, name, group, resource, verb)
	}
	mustDo(t, lead.raw, http.MethodPost, roles("shop"), role("gateways", "networking.istio.io", "gateways", "get"))
	refused(t, do(t, lead.raw, http.MethodPost, roles("shop"), role("nodes", "", "nodes", "get")), 403,
		"is attempting to grant RBAC permissions not currently held", `{APIGroups:[""], Resources:["nodes"], Verbs:["get"]}`)
	refused(t, do(t, lead.raw, http.MethodPost, roles("default"), role("gateways", "networking.istio.io", "gateways", "get")), 403)
	refused(t, do(t, lead.raw, http.MethodPatch, roles("shop")+"/gateways", `{"rules":[{"apiGroups":["*"],"resources":["*"],"verbs":["*"]}]}`), 403, "not currently held")
	refused(t, do(t, lead.raw, http.MethodPost, rbacAPI+"/clusterrolebindings", `{"metadata":{"name":"me"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"cluster-admin"}}`), 403)
	binding := func(role string) string {
		return fmt.Sprintf(`{"metadata":{"generateName":"b"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":%q},`+
			`"subjects":[{"apiGroup":"rbac.authorization.k8s.io","kind":"User","name":"new"}]}`, role)
	}
	bindings := rbacAPI + "/namespaces/shop/rolebindings"
	refused(t, do(t, lead.raw, http.MethodPost, bindings, binding("cluster-admin")), 403, "not currently held")
	refused(t, do(t, lead.raw, http.MethodPost, bindings, binding("nowhere")), 404, "nowhere")
	mustDo(t, lead.raw, http.MethodPost, bindings, binding("vmesh:traffic-editor"))
	newcomer := shared.as(t, admin.name, "new", "x")
	says(t, newcomer, "yes", "auth", "can-i", "create", "virtualservices.networking.istio.io", "-n", "shop")
	says(t, newcomer, "no", "auth", "can-i", "create", "virtualservices.networking.istio.io", "-n", "default")

	// The verbs that lift the checks.
	mustDo(t, admin.raw, http.MethodPost, rbacAPI+"/clusterroles", `{"metadata":{"name":"lifting"},"rules":[`+
		`{"apiGroups":["rbac.authorization.k8s.io"],"resources":["roles"],"verbs":["escalate"]},`+
		`{"apiGroups":["rbac.authorization.k8s.io"],"resources":["clusterroles"],"verbs":["bind"],"resourceNames":["cluster-admin"]}]}`)
	bindIn(t, admin, "shop", "lifting", "ClusterRole", "lifting", "User", "lea")
	says(t, lead, "yes", "auth", "can-i", "escalate", "roles.rbac.authorization.k8s.io", "-n", "shop")
	mustDo(t, lead.raw, http.MethodPost, roles("shop"), role("nodes", "", "nodes", "get"))
	mustDo(t, lead.raw, http.MethodPost, bindings, binding("cluster-admin"))
}

func TestDefaultRolesAreReadLikeOthersAndOverridden(t *testing.T) {
	admin := newTenant(t, shared)
	for _, want := range []string{"cluster-admin", "admin", "edit", "view", "system:discovery", "vmesh:traffic-editor", "vmesh:security-editor", "vmesh:read-only"} {
		says(t, admin, want, "get", "clusterroles", "-l", "kubernetes.io/bootstrapping=rbac-defaults")
	}
	says(t, admin, "system:masters", "describe", "clusterrolebinding", "cluster-admin")
	says(t, admin, "virtualservices", "describe", "clusterrole", "admin")
	says(t, admin, "cannot be deleted", "delete", "clusterrole", "view")
	says(t, admin, "already exists", "create", "clusterrole", "view", "--verb=get", "--resource=pods")

	view := rbacAPI + "/clusterroles/view"
	first, second := mustDo(t, admin.raw, http.MethodGet, view, ""), mustDo(t, admin.raw, http.MethodGet, view, "")
	if a, b := first.Text("metadata", "uid"), second.Text("metadata", "uid"); a == "" || a != b {
		t.Errorf("the UID is %q and then %q", a, b)
	}
	if n := count(mustDo(t, admin.raw, http.MethodGet, rbacAPI+"/clusterroles?fieldSelector=metadata.name%3Dview", "")); n != 1 {
		t.Errorf("%d roles have that name", n)
	}
	// A list page by page is the list.
	names, next := map[string]bool{}, ""
	whole := count(mustDo(t, admin.raw, http.MethodGet, rbacAPI+"/clusterroles", ""))
	mustDo(t, admin.raw, http.MethodPost, rbacAPI+"/clusterroles", `{"metadata":{"name":"own"},"rules":[]}`)
	for {
		page := mustDo(t, admin.raw, http.MethodGet, rbacAPI+"/clusterroles?limit=4&continue="+next, "")
		items := page.JSON()["items"].([]any)
		if len(items) > 4 {
			t.Fatalf("a page of %d", len(items))
		}
		for _, item := range items {
			names[item.(map[string]any)["metadata"].(map[string]any)["name"].(string)] = true
		}
		if next = page.Text("metadata", "continue"); next == "" {
			break
		}
	}
	if len(names) != whole+1 {
		t.Errorf("page by page there are %d, at once %d", len(names), whole+1)
	}

	// A role of one's own becomes part of those that aggregate.
	viewer := shared.as(t, admin.name, "vera", "viewers")
	bindCluster(t, admin, "viewers", "view", "Group", "viewers")
	says(t, viewer, "no", "auth", "can-i", "get", "secrets")
	mustDo(t, admin.raw, http.MethodPost, rbacAPI+"/clusterroles", `{"metadata":{"name":"more","labels":{"rbac.authorization.k8s.io/aggregate-to-view":"true"}},`+
		`"rules":[{"apiGroups":[""],"resources":["secrets"],"verbs":["get"]}]}`)
	says(t, viewer, "yes", "auth", "can-i", "get", "secrets")
	says(t, admin, "secrets", "describe", "clusterrole", "view")
	mustDo(t, admin.raw, http.MethodPost, rbacAPI+"/clusterroles", `{"metadata":{"name":"all-of-it"},"aggregationRule":{"clusterRoleSelectors":[{"matchLabels":{"rbac.authorization.k8s.io/aggregate-to-view":"true"}}]}}`)
	says(t, admin, "secrets", "get", "clusterrole", "all-of-it", "-o", "yaml")

	// What is written over a default counts until it is deleted.
	if got := kubectlWith(t, admin, `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRole","metadata":{"name":"view"},"rules":[{"apiGroups":[""],"resources":["nodes"],"verbs":["get"]}]}`, "replace", "-f", "-"); !strings.Contains(got, "replaced") {
		t.Fatal(got)
	}
	says(t, viewer, "no", "auth", "can-i", "get", "virtualservices")
	says(t, viewer, "yes", "auth", "can-i", "get", "nodes")
	says(t, admin, "deleted", "delete", "clusterrole", "view")
	says(t, viewer, "yes", "auth", "can-i", "get", "virtualservices")
	says(t, admin, "labeled (server dry run)", "label", "clusterrole", "view", "team=a", "--dry-run=server")
	if got := kubectlAs(t, admin, "get", "clusterrole", "-l", "team=a", "-o", "name"); got != "" {
		t.Errorf("a dry run has labeled %s", got)
	}
	says(t, admin, "labeled", "label", "clusterrole", "view", "team=a")
	says(t, admin, "clusterrole.rbac.authorization.k8s.io/view", "get", "clusterrole", "-l", "team=a", "-o", "name")
	says(t, viewer, "yes", "auth", "can-i", "get", "virtualservices")
	says(t, admin, "deleted", "delete", "clusterrole", "view")
	reconcile := `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRole","metadata":{"name":"view"},"aggregationRule":{"clusterRoleSelectors":[{"matchLabels":{"x":"y"}}]}}`
	if got := kubectlWith(t, admin, reconcile, "auth", "reconcile", "-f", "-"); !strings.Contains(got, "reconciled") {
		t.Error(got)
	}
	if got := kubectlWith(t, admin, strings.Replace(reconcile, `"view"`, `"edit"`, 1), "apply", "--server-side", "--force-conflicts", "-f", "-"); !strings.Contains(got, "serverside-applied") {
		t.Error(got)
	}
}

func TestImpersonationEndsAtTheVirtualCluster(t *testing.T) {
	admin := newTenant(t, shared)
	helper := shared.as(t, admin.name, "hal", "helpers")
	bindCluster(t, admin, "viewers", "view", "User", "vera")
	mustDo(t, admin.raw, http.MethodPost, rbacAPI+"/clusterroles", `{"metadata":{"name":"as-vera"},"rules":[{"apiGroups":[""],"resources":["users"],"verbs":["impersonate"],"resourceNames":["vera"]}]}`)
	bindCluster(t, admin, "helpers", "as-vera", "Group", "helpers")
	says(t, helper, "items: []", "get", "virtualservices", "-o", "yaml", "--as=vera")
	for _, c := range []struct {
		want string
		who  *tenant
		args []string
	}{
		{"forbidden", helper, []string{"get", "virtualservices"}},
		{"forbidden", helper, []string{"delete", "virtualservice", "x", "--as=vera"}},
		{`cannot impersonate resource "users"`, helper, []string{"get", "virtualservices", "--as=admin"}},
		{`cannot impersonate resource "groups"`, helper, []string{"get", "virtualservices", "--as=vera", "--as-group=dev"}},
		{"cannot be impersonated", helper, []string{"get", "virtualservices", "--as=vera", "--as-group=system:masters"}},
		{"cannot be impersonated", admin, []string{"get", "virtualservices", "--as=vera", "--as-group=system:masters"}},
		{"items: []", admin, []string{"get", "virtualservices", "-o", "yaml", "--as=vera"}},
		{"vera", admin, []string{"auth", "whoami", "--as=vera"}},
	} {
		says(t, c.who, c.want, c.args...)
	}
}

func TestTheRootSaysWhoEntersWhichVirtualCluster(t *testing.T) {
	admin := newTenant(t, shared)
	other := newTenant(t, shared)
	root := &tenant{raw: rawClient(t, shared.root)}
	carol := shared.as(t, logical.Root, "carol", "platform-"+admin.name)
	inside := carol.in(t, admin.name)

	refused(t, do(t, carol.raw, http.MethodGet, "/apis/vmesh.io/v1alpha1/virtualclusters", ""), 403, "no rule of the root allows it")
	refused(t, do(t, inside.raw, http.MethodGet, "/api", ""), 403, "does not let this identity enter", "virtualclusters/proxy")
	mustDo(t, root.raw, http.MethodPost, rbacAPI+"/clusterroles", fmt.Sprintf(`{"metadata":{"name":"enter-%[1]s"},"rules":[`+
		`{"apiGroups":["vmesh.io"],"resources":["virtualclusters/proxy"],"verbs":["get","list","watch","create"],"resourceNames":["%[1]s"]}]}`, admin.name))
	bindCluster(t, root, "enter-"+admin.name, "enter-"+admin.name, "Group", "platform-"+admin.name)
	eventually(t, func() error {
		if response := do(t, inside.raw, http.MethodGet, "/api", ""); response.Status != 200 {
			return fmt.Errorf("got %v", response)
		}
		return nil
	})
	refused(t, do(t, carol.in(t, other.name).raw, http.MethodGet, "/api", ""), 403, "does not let this identity enter")
	refused(t, do(t, inside.raw, http.MethodGet, virtualServices("default"), ""), 403, "no rule of this virtual cluster")

	// What the root grants counts inside, and is the root's to take.
	path := "/apis/vmesh.io/v1alpha1/virtualclusters/" + admin.name
	refused(t, do(t, root.raw, http.MethodPatch, path, `{"spec":{"access":[{"subjects":[{"kind":"Robot","name":"x"}],"role":"edit"}]}}`), 422, "spec.access[0].subjects[0].kind")
	refused(t, do(t, root.raw, http.MethodPatch, path, `{"spec":{"access":[{"subjects":[],"role":"a/b"}]}}`), 422, "spec.access[0]")
	mustDo(t, root.raw, http.MethodPatch, path, `{"spec":{"access":[{"subjects":[{"kind":"User","name":"carol"}],"role":"edit"}]}}`)
	eventually(t, func() error {
		if response := do(t, inside.raw, http.MethodGet, virtualServices("default"), ""); response.Status != 200 {
			return fmt.Errorf("got %v", response)
		}
		return nil
	})
	mustDo(t, inside.raw, http.MethodPost, virtualServices("default"), virtualService("reviews"))
	refused(t, do(t, inside.raw, http.MethodDelete, virtualServices("default")+"/reviews", ""), 403, `the verb "delete"`)
	// A user of that name of the virtual cluster's own is somebody else.
	refused(t, do(t, shared.as(t, admin.name, "carol", "x").raw, http.MethodGet, virtualServices("default"), ""), 403)

	says(t, inside, "yes", "auth", "can-i", "create", "virtualservices.networking.istio.io")
	says(t, inside, "no", "auth", "can-i", "delete", "virtualservices.networking.istio.io")

	mustDo(t, root.raw, http.MethodPatch, path, `{"spec":{"access":null}}`)
	eventually(t, func() error {
		if response := do(t, inside.raw, http.MethodGet, virtualServices("default"), ""); response.Status != 403 {
			return fmt.Errorf("got %v", response)
		}
		return nil
	})
	refused(t, do(t, carol.raw, http.MethodPost, "/apis/vmesh.io/v1alpha1/virtualclusters/root/kubeconfig", `{"spec":{"request":""}}`), 403)
}

func TestWatchesFollowDefaultRoles(t *testing.T) {
	admin := newTenant(t, shared)
	client, err := kubernetes.NewForConfig(admin.config)
	if err != nil {
		t.Fatal(err)
	}
	roles := client.RbacV1().ClusterRoles()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	yes := true
	for name, options := range map[string]metav1.ListOptions{
		"from now":                     {},
		"with what there is":           {},
		"with what there is, streamed": {SendInitialEvents: &yes, AllowWatchBookmarks: true, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan},
	} {
		t.Run(name, func(t *testing.T) {
			list, err := roles.List(ctx, metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if name == "from now" {
				options.ResourceVersion = list.ResourceVersion
			}
			w, err := roles.Watch(ctx, options)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Stop()
			for range 4 { // with several watchers, they share what is sent
				another, err := roles.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
				if err != nil {
					t.Fatal(err)
				}
				defer another.Stop()
			}
			next := func() (watch.EventType, *rbacv1.ClusterRole) {
				t.Helper()
				for e := range w.ResultChan() {
					if role, ok := e.Object.(*rbacv1.ClusterRole); ok && (e.Type != watch.Bookmark || role.Annotations[metav1.InitialEventsAnnotationKey] != "") {
						return e.Type, role
					}
				}
				t.Fatal("the watch has ended")
				return "", nil
			}
			if name != "from now" {
				for range list.Items {
					if event, _ := next(); event != watch.Added {
						t.Fatalf("got %s", event)
					}
				}
			}
			if options.SendInitialEvents != nil {
				if event, _ := next(); event != watch.Bookmark {
					t.Fatalf("got %s", event)
				}
			}
			view, err := roles.Get(ctx, "view", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			was := view.UID
			view.AggregationRule, view.Rules = nil, nil
			if view, err = roles.Update(ctx, view, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			if view.UID == was || view.CreationTimestamp.IsZero() {
				t.Errorf("what is stored has the identity of the default: %v", view.ObjectMeta)
			}
			if event, role := next(); event != watch.Modified || role.UID != view.UID || len(role.Rules) != 0 {
				t.Errorf("overriding is told as %s of %v", event, role)
			}
			if err := roles.Delete(ctx, "view", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			if event, role := next(); event != watch.Modified || role.UID != was || len(role.Rules) == 0 || role.ResourceVersion == "1" {
				t.Errorf("the end of it is told as %s of %v", event, role)
			}
			if _, err := roles.Create(ctx, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "own"}}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			if event, role := next(); event != watch.Added || role.Name != "own" {
				t.Errorf("got %s of %s", event, role.Name)
			}
			if err := roles.Delete(ctx, "own", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			if event, role := next(); event != watch.Deleted || role.Name != "own" {
				t.Errorf("got %s of %s", event, role.Name)
			}
		})
	}
}

func TestAccessReviews(t *testing.T) {
	admin, other := newTenant(t, shared), newTenant(t, shared)
	bindIn(t, admin, "default", "viewers", "ClusterRole", "view", "User", "vera")
	review := func(who *tenant, path, body string) *rawapi.Response {
		return do(t, who.raw, http.MethodPost, "/apis/authorization.k8s.io/v1/"+path, body)
	}
	const what = `"resourceAttributes":{"verb":"get","resource":"pods","namespace":"default"}`
	for _, c := range []struct {
		name, path, body string
		who              *tenant
		want             string
	}{
		{"somebody", "subjectaccessreviews", `{"spec":{"user":"vera",` + what + `}}`, admin, "true"},
		{"somebody, of a namespace", "namespaces/default/localsubjectaccessreviews", `{"spec":{"user":"vera",` + what + `}}`, admin, "true"},
		{"somebody, of a namespace that there is not", "namespaces/nowhere/localsubjectaccessreviews", `{"spec":{"user":"vera","resourceAttributes":{"verb":"get","resource":"pods","namespace":"nowhere"}}}`, admin, "false"},
		{"somebody elsewhere", "subjectaccessreviews", `{"spec":{"user":"vera",` + what + `}}`, other, "false"},
		{"somebody of the root", "subjectaccessreviews", `{"spec":{"user":"x","groups":["system:masters"],"extra":{"vmesh.io/virtual-cluster":["root"]},` + what + `}}`, other, "true"},
		{"oneself", "selfsubjectaccessreviews", `{"spec":{` + what + `}}`, admin, "true"},
	} {
		t.Run(c.name, func(t *testing.T) {
			response := review(c.who, c.path, c.body)
			if got := fmt.Sprint(response.Field("status", "allowed")); got != c.want {
				t.Errorf("got %v", response)
			}
		})
	}
	refused(t, review(admin, "namespaces/default/localsubjectaccessreviews", `{"spec":{"user":"vera","resourceAttributes":{"verb":"get","resource":"pods","namespace":"shop"}}}`), 422, "spec.resourceAttributes.namespace")
	refused(t, review(admin, "subjectaccessreviews", `{"spec":{`+what+`}}`), 422, "at least one of user or group")
	refused(t, review(shared.as(t, admin.name, "vera", "x"), "subjectaccessreviews", `{"spec":{"user":"vera",`+what+`}}`), 403)
}

func TestARoleIsEffectiveWhenItsWriteIsAnswered(t *testing.T) {
	admin := newTenant(t, shared)
	lead := shared.as(t, admin.name, "lea", "leads")
	for i := range 20 {
		name := fmt.Sprint("lead-", i)
		bindIn(t, admin, "default", name, "ClusterRole", "admin", "User", "lea")
		roles := rbacAPI + "/namespaces/default/roles"
		mustDo(t, lead.raw, http.MethodPost, roles, fmt.Sprintf(`{"metadata":{"name":%q},"rules":[{"apiGroups":[""],"resources":["pods"],"verbs":["get"]}]}`, name))
		bindIn(t, lead, "default", "use-"+name, "Role", name, "User", "new")
		mustDo(t, admin.raw, http.MethodDelete, rbacAPI+"/namespaces/default/rolebindings/"+name, "")
		refused(t, do(t, lead.raw, http.MethodGet, roles, ""), 403)
	}
}
