package host

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmesh-io/vmesh/test/harness"
)

// An istiod with a home is a pod and a service to the host, and no more.
func TestTheManifestsOfAnIstiodWithAHomeAreTakenByAHost(t *testing.T) {
	root, err := harness.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	by(t, shared.admin, "apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system}\n", "apply", "-f", "-")
	for _, components := range []string{"", "components: [%s/istiod/relay]"} {
		dir := filepath.Join(t.TempDir(), "overlay")
		manifests, err := filepath.Rel(dir, filepath.Join(root, "manifests"))
		if err != nil {
			t.Fatal(err)
		}
		if components != "" {
			components = fmt.Sprintf(components, manifests)
		}
		kustomization := fmt.Sprintf("apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [%s/istiod]\nimages: [{name: istiod, newName: istio/pilot, newTag: '1'}]\n%s\n", manifests, components)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(kustomization), 0o644); err != nil {
			t.Fatal(err)
		}
		out := by(t, shared.admin, "", "apply", "-k", dir, "--dry-run=server", "--validate=strict", "-o", "name")
		got := strings.Fields(out)
		slices.Sort(got)
		if want := []string{"deployment.apps/istiod", "service/istiod"}; !slices.Equal(got, want) {
			t.Errorf("they make %v, want %v", got, want)
		}
		containers := by(t, shared.admin, "", "apply", "-k", dir, "--dry-run=server", "-o", "jsonpath={..spec.template.spec.containers[*].image} {..spec.template.spec.initContainers[*].image} {..spec.template.spec.automountServiceAccountToken}")
		want := "istio/pilot:1  false"
		if components != "" {
			want = "istio/pilot:1 vmesh false"
		}
		if strings.TrimSpace(containers) != want {
			t.Errorf("the pod has %q, want %q", containers, want)
		}
	}
}
