package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmesh-io/vmesh/test/harness"
)

var builtVmesh = sync.OnceValues(func() (string, error) { return harness.Build(context.Background()) })

// vmeshCommand runs the program on the shared server's data directory and returns all that it says.
func vmeshCommand(t *testing.T, args ...string) string {
	t.Helper()
	binary, err := builtVmesh()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), binary, append(args, "--data-dir", shared.options.DataDir)...).CombinedOutput()
	if err != nil {
		return string(out) + err.Error()
	}
	return string(out)
}

func TestKubeconfigsAreMadeListedAndRevoked(t *testing.T) {
	shop, bank := newTenant(t, shared), newTenant(t, shared)
	file := filepath.Join(t.TempDir(), "alice.kubeconfig")
	user := "alice@" + shop.name + ".example.com"
	if got := vmeshCommand(t, "kubeconfig", "create", shop.name, bank.name, "--user", user, "-o", file); !strings.Contains(got, "wrote "+file) {
		t.Fatal(got)
	}
	alice := func(cluster string, args ...string) string {
		t.Helper()
		out, err := harness.Kubectl(t.Context(), file, "", append([]string{"--context", cluster}, args...)...)
		if err != nil {
			out += err.Error()
		}
		return out
	}
	for _, cluster := range []string{shop.name, bank.name} {
		if got := alice(cluster, "auth", "whoami"); !strings.Contains(got, user) || !strings.Contains(got, "["+cluster+"]") {
			t.Errorf("in %s alice is %s", cluster, got)
		}
	}
	list := func(cluster string, args ...string) []string {
		t.Helper()
		out := strings.TrimSpace(vmeshCommand(t, append([]string{"kubeconfig", "list", cluster, "--user", user}, args...)...))
		return strings.Split(out, "\n")
	}
	var name string
	eventually(t, func() error {
		lines := list(shop.name)
		fields := strings.Fields(lines[len(lines)-1])
		if len(lines) != 2 || len(fields) != 7 || fields[1] != shop.name || fields[2] != user || fields[3] != `["system:masters"]` || fields[5] == "<none>" {
			return fmt.Errorf("listed %q", lines)
		}
		name = fields[0]
		return nil
	})
	if got := kubectlAs(t, &tenant{kubeconfig: shared.options.AdminKubeconfig()}, "get", "kubeconfig", name); !strings.Contains(got, "LAST USED") {
		t.Error(got)
	}

	// A second file adds to the first.
	if got := vmeshCommand(t, "kubeconfig", "create", bank.name, "--user", "bob", "-o", file); !strings.Contains(got, "--merge") {
		t.Error(got)
	}
	if got := vmeshCommand(t, "kubeconfig", "create", "nowhere", "--user", user); !strings.Contains(got, `there is no virtual cluster "nowhere"`) || !strings.Contains(got, "exit status 1") {
		t.Error(got)
	}
	if got := vmeshCommand(t, "kubeconfig", "create", shop.name, "nowhere", "--user", user); strings.Contains(got, "clusters:") || len(list(shop.name)) != 2 {
		t.Errorf("of one that could not be made half is left: %s", got)
	}

	// Revoking ends what is open, and refuses what comes, at once.
	kubectl, err := harness.Tool(t.Context(), "kubectl")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	watch := exec.CommandContext(ctx, kubectl, "--kubeconfig", file, "--context", shop.name, "get", "configmaps", "-n", "default", "--watch")
	out, err := watch.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	mustDo(t, shop.raw, http.MethodPost, "/api/v1/namespaces/default/configmaps", `{"metadata":{"name":"seen"}}`)
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "seen") {
	}
	if got := vmeshCommand(t, "kubeconfig", "revoke", name); !strings.Contains(got, `"`+name+`" revoked`) {
		t.Fatal(got)
	}
	if got := alice(shop.name, "get", "namespaces"); !strings.Contains(got, "Unauthorized") {
		t.Errorf("after the revocation: %s", got)
	}
	for lines.Scan() {
	}
	if _ = watch.Wait(); ctx.Err() != nil {
		t.Error("the watch goes on")
	}
	if got := alice(bank.name, "get", "namespaces"); !strings.Contains(got, "Active") {
		t.Errorf("the other context: %s", got)
	}
	for _, c := range []struct{ args, want string }{
		{"kubeconfig revoke " + name, "there is no kubeconfig"},
		{"kubeconfig revoke --virtual-cluster " + bank.name + " --user " + user, "revoked"},
		{"kubeconfig revoke --virtual-cluster " + bank.name + " --user " + user, "there is no such kubeconfig"},
		{"kubeconfig list " + bank.name + " --user " + user, "No kubeconfigs found"},
		{"kubeconfig list " + bank.name + " -o json", `"kind": "Kubeconfig"`},
	} {
		if got := vmeshCommand(t, strings.Fields(c.args)...); !strings.Contains(got, c.want) {
			t.Errorf("vmesh %s: %s", c.args, got)
		}
	}
}

func TestKubeconfigsAreMadeOnlyWhereTheirCertificateIsSigned(t *testing.T) {
	root := rawClient(t, shared.root)
	const path = "/apis/vmesh.io/v1alpha1/kubeconfigs"
	made := func(metadata string) string {
		return `{"apiVersion":"vmesh.io/v1alpha1","kind":"Kubeconfig","metadata":` + metadata +
			`,"spec":{"virtualCluster":"root","user":"x","groups":["system:masters"],"expires":"2099-01-01T00:00:00Z","fingerprint":"00"}}`
	}
	refused(t, do(t, root, http.MethodPost, path, made(`{"name":"mine"}`)), 422, "spec", "vmesh kubeconfig create")
	refused(t, do(t, root, http.MethodPost, path+"?dryRun=All", made(`{"generateName":"mine-"}`)), 422, "vmesh kubeconfig create")
	if got := kubectlWith(t, &tenant{kubeconfig: shared.options.AdminKubeconfig()}, made(`{"name":"mine"}`), "apply", "--server-side", "-f", "-"); !strings.Contains(got, "vmesh kubeconfig create") {
		t.Error(got)
	}
	vc := newTenant(t, shared)
	names := strings.Fields(kubectlAs(t, &tenant{kubeconfig: shared.options.AdminKubeconfig()}, "get", "kubeconfigs", "-o", "name", "--field-selector", "spec.virtualCluster="+vc.name))
	if len(names) != 1 {
		t.Fatalf("there are %q", names)
	}
	refused(t, do(t, root, http.MethodPatch, path+strings.TrimPrefix(names[0], "kubeconfig.vmesh.io"), `{"spec":{"expires":"2099-01-01T00:00:00Z"}}`), 422, "cannot be changed")
	mustDo(t, root, http.MethodPatch, path+strings.TrimPrefix(names[0], "kubeconfig.vmesh.io"), `{"metadata":{"labels":{"owner":"platform"}}}`)

	// Nobody else's rights reach them, and they go with their virtual cluster.
	refused(t, do(t, vc.raw, http.MethodGet, path, ""), 404)
	carol := shared.as(t, "root", "carol-"+vc.name, "nothing")
	refused(t, do(t, carol.raw, http.MethodDelete, path+strings.TrimPrefix(names[0], "kubeconfig.vmesh.io"), ""), 403)
	mustDo(t, root, http.MethodDelete, "/apis/vmesh.io/v1alpha1/virtualclusters/"+vc.name, "")
	eventually(t, func() error {
		if response := do(t, root, http.MethodGet, path+strings.TrimPrefix(names[0], "kubeconfig.vmesh.io"), ""); response.Status != 404 {
			return fmt.Errorf("got %v", response)
		}
		return nil
	})
}
