package host

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// viewUser is a person whom the host lets write Istio's kinds, and the virtual cluster of the host view, too.
func viewUser(t *testing.T) *person {
	t.Helper()
	newCluster(t, view, "[{role: cluster-admin, subjects: [{kind: Group, name: mesh-users}]}]")
	if _, err := shared.admin(t.Context(), "", "get", "clusterrole", "mesh-editor"); err != nil {
		grant(t, "mesh-editor", []string{"--verb", "*", "--resource", "virtualservices.networking.istio.io,destinationrules.networking.istio.io,peerauthentications.security.istio.io"},
			[]string{"--group", "mesh-users", "--user", "ungranted"})
	}
	return newPerson(t, "vic", "mesh-users")
}

func TestTheHostsToolsWorkOnTheHostView(t *testing.T) {
	p := viewUser(t)
	by(t, shared.admin, "", "create", "namespace", "checkout")
	manifest := virtualService("checkout", "pay", "pay.example")
	if out, err := p.tries(t, manifest, "diff", "-f", "-"); err == nil || !strings.Contains(out, "+kind: VirtualService") {
		t.Errorf("diff: %v\n%s", err, out)
	}
	p.does(t, manifest, "apply", "--dry-run=server", "-f", "-")
	inside := newPerson(t, "admin", "system:masters").in(t, view)
	inside.isRefused(t, "", []string{"get", "namespace", "checkout"}, []string{"NotFound"})
	p.does(t, manifest, "apply", "-f", "-")
	inside.does(t, "", "get", "namespace", "checkout")
	if out := p.does(t, manifest, "apply", "-f", "-"); !strings.Contains(out, "unchanged") {
		t.Errorf("applied twice: %s", out)
	}
	for _, version := range []string{"v1", "v1beta1", "v1alpha3"} {
		if out := p.does(t, "", "get", "virtualservices."+version+".networking.istio.io", "-n", "checkout", "-o", "name"); out != "virtualservice.networking.istio.io/pay\n" {
			t.Errorf("in %s there is %q", version, out)
		}
	}
	if out := p.does(t, "", "get", "vs", "-A", "-o", "name"); !strings.Contains(out, "virtualservice.networking.istio.io/pay\n") {
		t.Errorf("there is %q", out)
	}
	for field, want := range map[string]string{"vs.spec.http.route": "FIELD: route", "peerauthentication.spec.mtls": "FIELD: mtls"} {
		if out := p.does(t, "", "explain", field); !strings.Contains(out, want) {
			t.Errorf("explained as %s", out)
		}
	}
	p.isRefused(t, strings.Replace(manifest, "hosts:", "hsots:", 1), []string{"apply", "-f", "-"}, []string{`unknown field "spec.hsots"`})
	// As for any kind of the host, its namespaces count.
	p.isRefused(t, virtualService("nowhere", "pay", "pay.example"), []string{"apply", "-f", "-"}, []string{`namespaces "nowhere" not found`})
	inside.isRefused(t, "", []string{"get", "namespace", "nowhere"}, []string{"NotFound"})
	p.does(t, "", "patch", "vs", "pay", "-n", "checkout", "--type=merge", "-p", `{"spec":{"hosts":["other.example"]}}`)
	p.does(t, "", "delete", "vs", "pay", "-n", "checkout")
	if out := p.does(t, "", "get", "vs", "-n", "checkout", "-o", "name"); out != "" {
		t.Errorf("left over: %q", out)
	}
}

func TestTheHostViewIsOpenToWhomBothSidesLetIn(t *testing.T) {
	viewUser(t)
	newPerson(t, "stranger").isRefused(t, "", []string{"get", "vs", "-A"}, []string{"cannot list", "stranger"})
	newPerson(t, "ungranted").isRefused(t, "", []string{"get", "vs", "-A"}, []string{"no rule of this virtual cluster allows it"})
	// A right in the host view is none on the virtual cluster's other kinds.
	newPerson(t, "vic", "mesh-users").in(t, view).isRefused(t, "", []string{"get", "configmaps", "-A"}, []string{"virtualclusters/proxy"})
}

func TestObjectsOfTheHostViewHaveNoOwnersInTheHost(t *testing.T) {
	p := viewUser(t)
	by(t, shared.admin, "", "create", "namespace", "owned")
	uid := "0b6f6a1c-0000-4000-8000-000000000000"
	owned := strings.Replace(virtualService("owned", "a", "a.example"), "namespace: owned}",
		"namespace: owned, ownerReferences: [{apiVersion: v1, kind: ConfigMap, name: boss, uid: "+uid+"}]}", 1)
	p.does(t, owned, "apply", "-f", "-")
	if out := p.does(t, "", "get", "vs", "a", "-n", "owned", "-o", "jsonpath={.metadata.ownerReferences}"); out != "" {
		t.Errorf("it is owned by %s", out)
	}
	// Owners within the virtual cluster stay, when they are written there, and when the host writes afterwards.
	inside := newPerson(t, "admin", "system:masters").in(t, view)
	inside.does(t, "", "create", "configmap", "boss", "-n", "owned")
	uid = inside.does(t, "", "get", "configmap", "boss", "-n", "owned", "-o", "jsonpath={.metadata.uid}")
	inside.does(t, "", "patch", "vs", "a", "-n", "owned", "--type=merge", "-p", `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"ConfigMap","name":"boss","uid":"`+uid+`"}]}}`)
	p.does(t, "", "label", "vs", "a", "-n", "owned", "x=y")
	if out := p.does(t, "", "get", "vs", "a", "-n", "owned", "-o", "jsonpath={.metadata.ownerReferences[*].uid}"); out != uid {
		t.Errorf("it is owned by %q, and was by %q", out, uid)
	}
}

func TestMeshConfigurationOutlivesTheHostsNamespace(t *testing.T) {
	p := viewUser(t)
	by(t, shared.admin, "", "create", "namespace", "doomed")
	by(t, shared.admin, "", "create", "configmap", "proof", "-n", "doomed")
	p.does(t, virtualService("doomed", "survivor", "a.example"), "apply", "-f", "-")

	by(t, shared.admin, "", "delete", "namespace", "doomed", "--wait=false")
	eventually(t, time.Minute, func() error {
		if _, err := shared.admin(t.Context(), "", "get", "namespace", "doomed"); err == nil || !strings.Contains(err.Error(), "NotFound") {
			return fmt.Errorf("the namespace is still there: %v", err)
		}
		return nil
	})
	survives := func() {
		t.Helper()
		if out := p.does(t, "", "get", "vs", "-n", "doomed", "-o", "name"); out != "virtualservice.networking.istio.io/survivor\n" {
			t.Fatalf("there is %q", out)
		}
	}
	survives()
	by(t, shared.admin, "", "create", "namespace", "doomed")
	survives()
	if _, err := shared.admin(t.Context(), "", "get", "configmap", "proof", "-n", "doomed"); err == nil {
		t.Error("the host's own object has survived as well: nothing was deleted")
	}

	// The host's controllers are told of nothing that they could delete, and if they try all the same, nothing happens.
	if out := by(t, shared.admin, "", "api-resources", "--verbs=delete", "-o", "name"); strings.Contains(out, "istio.io") || !strings.Contains(out, "configmaps") {
		t.Errorf("to be deleted there are %s", out)
	}
	if out := by(t, shared.admin, "", "get", "--raw", "/apis/networking.istio.io/v1"); strings.Contains(out, "delete") || !strings.Contains(out, `"virtualservices"`) {
		t.Errorf("legacy discovery tells %s", out)
	}
	path := "/apis/networking.istio.io/v1/namespaces/doomed/virtualservices"
	for _, controller := range []string{"system:serviceaccount:kube-system:namespace-controller", "system:serviceaccount:kube-system:generic-garbage-collector", "system:kube-controller-manager"} {
		for _, args := range [][]string{{"delete", "--raw", path}, {"delete", "--raw", path + "/survivor"}, {"get", "--raw", path}} {
			_, err := shared.admin(t.Context(), "", append(args, "--as", controller, "--as-group", "system:masters")...)
			if err == nil || !strings.Contains(err.Error(), "MethodNotAllowed") && !strings.Contains(err.Error(), "not allow this method") {
				t.Errorf("%s %v: %v", controller, args, err)
			}
		}
	}
	survives()
}
