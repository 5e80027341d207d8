package host

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmesh-io/vmesh/test/harness"
)

// answer is what vmesh says to a user of the host, by the front proxy's certificate: so it can be asked while the host's
// kube-apiserver is away, and as it is asked when only its authorization is.
func answer(t *testing.T, vmesh *harness.Vmesh, client *http.Client, user, path string) (int, string) {
	t.Helper()
	return send(t, client, fmt.Sprintf("https://127.0.0.1:%d", vmesh.Port), http.MethodGet, path,
		http.Header{"X-Remote-User": {user}, "X-Remote-Group": {"system:authenticated"}})
}

func TestWithoutTheHostsAuthorizationItsUsersWaitAndOthersGoOn(t *testing.T) {
	newCluster(t, "outage", "[{role: view, subjects: [{kind: User, name: otto}]}]")
	mayEnter(t, "outage", "otto", "get")
	mayEnter(t, "outage", "late", "get")
	const inside = "/clusters/outage/apis/networking.istio.io/v1/namespaces/default/virtualservices"
	proxy := frontProxy(t)
	if code, body := answer(t, shared.vmesh, proxy, "otto", inside); code != http.StatusOK {
		t.Fatalf("otto is not let in: %d %s", code, body)
	}
	asked := time.Now()

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	if err := shared.host.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	code, body := answer(t, shared.vmesh, proxy, "otto", inside)
	if within := time.Since(asked); within < 9*time.Second && code != http.StatusOK {
		t.Errorf("what the host said %s ago does not count any more: %d %s", within, code, body)
	}
	if code, body := answer(t, shared.vmesh, proxy, "late", inside); code != http.StatusServiceUnavailable || !strings.Contains(body, "the host cluster's authorization API does not answer") {
		t.Errorf("somebody who has not asked before: %d %s", code, body)
	}
	eventually(t, time.Minute, func() error {
		if code, body := answer(t, shared.vmesh, proxy, "otto", inside); code != http.StatusServiceUnavailable {
			return fmt.Errorf("after %s otto is answered %d %s", time.Since(asked), code, body)
		}
		return nil
	})
	// The host's administrators and all who come directly need no answer of the host's.
	if code, body := send(t, proxy, fmt.Sprintf("https://127.0.0.1:%d", shared.vmesh.Port), http.MethodGet, inside,
		http.Header{"X-Remote-User": {"admin"}, "X-Remote-Group": {"system:masters"}}); code != http.StatusOK {
		t.Errorf("the host's administrator: %d %s", code, body)
	}
	team, err := shared.vmesh.Kubeconfig(ctx, "outage")
	if err != nil {
		t.Fatal(err)
	}
	member := &person{team}
	member.does(t, virtualService("default", "a", "a.example"), "apply", "-f", "-")
	member.does(t, "", "get", "vs", "-A")
	if _, err := shared.root(ctx, "", "get", "virtualclusters"); err != nil {
		t.Error(err)
	}

	// A vmesh that starts meanwhile serves those, and trusts no front proxy before the host has named it.
	young, err := harness.StartVmesh(ctx, harness.VmeshOptions{DataDir: filepath.Join(t.TempDir(), "young"), Binary: filepath.Join(repoRoot(t), "bin", "vmesh"),
		ExtraArgs: []string{"--host-kubeconfig", filepath.Join(shared.dir, "vmesh-host.kubeconfig")}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := young.Stop(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	}()
	const fleet = "/apis/vmesh.io/v1alpha1/virtualclusters"
	if code, body := answer(t, young, proxy, "otto", fleet); code != http.StatusUnauthorized && code != http.StatusForbidden {
		t.Errorf("a front proxy that nobody has named: %d %s", code, body)
	}

	if err := shared.host.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, func() error {
		code, body := answer(t, shared.vmesh, proxy, "late", inside)
		if code != http.StatusForbidden || !strings.Contains(body, "no rule of this virtual cluster") {
			return fmt.Errorf("with the host again: %d %s", code, body)
		}
		if code, body := answer(t, shared.vmesh, proxy, "otto", inside); code != http.StatusOK {
			return fmt.Errorf("with the host again: %d %s", code, body)
		}
		// It hears of the front proxy by itself; the client needs a connection on which it is asked for that certificate.
		if code, body := answer(t, young, frontProxy(t), "otto", fleet); code != http.StatusForbidden || !strings.Contains(body, `\"otto\"`) {
			return fmt.Errorf("the one that started without the host: %d %s", code, body)
		}
		return nil
	})
}

func TestWithoutVmeshANamespaceOfTheHostWaitsForIt(t *testing.T) {
	p := viewUser(t)
	by(t, shared.admin, "", "create", "namespace", "waiting")
	p.does(t, virtualService("waiting", "survivor", "a.example"), "apply", "-f", "-")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	if err := shared.vmesh.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, func() error {
		out, err := shared.admin(ctx, "", "get", "apiservice", "v1alpha1.vmesh.io", "-o", `jsonpath={.status.conditions[?(@.type=="Available")].status}`)
		if err != nil || out != "False" {
			return fmt.Errorf("available: %s %v", out, err)
		}
		return nil
	})
	by(t, shared.admin, "", "create", "configmap", "fine", "-n", "default") // the host itself goes on
	by(t, shared.admin, "", "delete", "namespace", "waiting", "--wait=false")
	eventually(t, time.Minute, func() error {
		out, err := shared.admin(ctx, "", "get", "namespace", "waiting", "-o", `jsonpath={.status.conditions[?(@.type=="NamespaceDeletionDiscoveryFailure")].status}`)
		if err != nil || out != "True" {
			return fmt.Errorf("the namespace does not say what it waits for: %q %v", out, err)
		}
		return nil
	})
	if err := shared.vmesh.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Minute, func() error {
		if _, err := shared.admin(ctx, "", "get", "namespace", "waiting"); err == nil || !strings.Contains(err.Error(), "NotFound") {
			return fmt.Errorf("the namespace is still there: %v", err)
		}
		return nil
	})
	eventually(t, time.Minute, func() error {
		out, err := p.tries(t, "", "get", "vs", "-n", "waiting", "-o", "name")
		if err != nil || out != "virtualservice.networking.istio.io/survivor\n" {
			return fmt.Errorf("there is %q, %w", out, err)
		}
		return nil
	})
}

func repoRoot(t *testing.T) string {
	t.Helper()
	root, err := harness.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "bin", "vmesh")); err != nil {
		t.Fatal(err)
	}
	return root
}
