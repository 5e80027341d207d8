package rbac

import (
	"runtime"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

func TestWhatARuleAllows(t *testing.T) {
	get := func(group, resource, subresource, name string) authorizer.AttributesRecord {
		return authorizer.AttributesRecord{Verb: "get", APIGroup: group, Resource: resource, Subresource: subresource, Name: name, ResourceRequest: true}
	}
	path := func(path string) authorizer.AttributesRecord {
		return authorizer.AttributesRecord{Verb: "get", Path: path}
	}
	resources := func(all ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: all}
	}
	urls := func(all ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{Verbs: []string{"get"}, NonResourceURLs: all}
	}
	all := rbacv1.PolicyRule{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}}
	named := resources("pods")
	named.ResourceNames = []string{"a", "b"}
	for _, c := range []struct {
		name  string
		rule  rbacv1.PolicyRule
		asked authorizer.AttributesRecord
		want  bool
	}{
		{"the resource", resources("pods"), get("", "pods", "", ""), true},
		{"another resource", resources("pods"), get("", "services", "", ""), false},
		{"one of several", resources("services", "pods"), get("", "pods", "", "x"), true},
		{"another verb", resources("pods"), authorizer.AttributesRecord{Verb: "list", Resource: "pods", ResourceRequest: true}, false},
		{"another group", resources("pods"), get("metrics.k8s.io", "pods", "", ""), false},
		{"a resource is not its subresource", resources("pods"), get("", "pods", "status", ""), false},
		{"a subresource", resources("pods/status"), get("", "pods", "status", ""), true},
		{"a subresource is not its resource", resources("pods/status"), get("", "pods", "", ""), false},
		{"a subresource is not another", resources("pods/status"), get("", "pods", "log", ""), false},
		{"a subresource of any", resources("*/status"), get("", "pods", "status", ""), true},
		{"a subresource of any is not another", resources("*/status"), get("", "pods", "scale", ""), false},
		{"a subresource of any is not one that ends alike", resources("*/status"), get("", "pods", "tus", ""), false},
		{"a subresource of any is no resource", resources("*/status"), get("", "pods", "", ""), false},
		{"a resource's star is nothing", resources("pods/*"), get("", "pods", "status", ""), false},
		{"all resources are all subresources", resources("*"), get("", "pods", "status", ""), true},
		{"a resource with a slash, as some ask", resources("pods/log"), get("", "pods/log", "", ""), true},
		{"stars", all, get("x.io", "things", "status", "a"), true},
		{"stars for resources are not for paths", all, path("/metrics"), false},
		{"a name", named, get("", "pods", "", "b"), true},
		{"another name", named, get("", "pods", "", "c"), false},
		{"a name is not a list", named, get("", "pods", "", ""), false},
		{"a star is not a name", rbacv1.PolicyRule{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"pods"}, ResourceNames: []string{"*"}}, get("", "pods", "", "a"), false},
		{"no groups", rbacv1.PolicyRule{Verbs: []string{"get"}, Resources: []string{"pods"}}, get("", "pods", "", ""), false},
		{"no verbs", rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods"}}, get("", "pods", "", ""), false},
		{"a path", urls("/metrics"), path("/metrics"), true},
		{"another path", urls("/metrics"), path("/metrics/slis"), false},
		{"what is below a path", urls("/healthz/*"), path("/healthz/ping"), true},
		{"a path is not below itself", urls("/healthz/*"), path("/healthz"), false},
		{"what begins like a path", urls("/healthz*"), path("/healthz"), true},
		{"a star in the middle is one", urls("/a/*/c"), path("/a/b/c"), false},
		{"all paths", urls("*"), path("/anything"), true},
		{"paths are not for resources", urls("*"), get("", "pods", "", ""), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := allows(&c.rule, questionOf(c.asked)); got != c.want {
				t.Errorf("got %t", got)
			}
		})
	}
}

func TestEqualRulesAreKeptOnceAndForgotten(t *testing.T) {
	var sets ruleSets
	const data = `[{"apiGroups":[""],"resources":["pods"],"verbs":["get"]}]`
	a, err := sets.of([]byte(data))
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := sets.of([]byte(data)); a != b {
		t.Error("equal rules are kept twice")
	}
	runtime.KeepAlive(a)
	if _, err := sets.of([]byte(`{"not":"rules"}`)); err == nil {
		t.Error("what is no list of rules was read")
	}
	a = nil
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		runtime.GC()
		sets.mu.Lock()
		n := len(sets.byJSON)
		sets.mu.Unlock()
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d sets are kept that no role has", n)
		}
	}
}
