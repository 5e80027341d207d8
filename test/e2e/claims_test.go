package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/test/harness"
)

// sharedMesh makes a mesh and virtual clusters of it, by name and spec.
func sharedMesh(t *testing.T, mesh string, specs map[string]string) map[string]*tenant {
	t.Helper()
	root := rawClient(t, shared.root)
	mustDo(t, root, http.MethodPost, "/apis/vmesh.io/v1alpha1/meshes", fmt.Sprintf(`{"apiVersion":"vmesh.io/v1alpha1","kind":"Mesh","metadata":{"name":%q},"spec":{}}`, mesh))
	t.Cleanup(func() {
		do(t, rawClient(t, shared.root), http.MethodDelete, "/apis/vmesh.io/v1alpha1/meshes/"+mesh, "")
	})
	tenants := map[string]*tenant{}
	for name, spec := range specs {
		removed(t, name)
		mustDo(t, root, http.MethodPost, clustersPath, virtualCluster(name, spec))
		tenants[name] = shared.tenant(t, name)
	}
	return tenants
}

func statusOf(t *testing.T, cluster string) v1alpha1.VirtualCluster {
	t.Helper()
	var vc v1alpha1.VirtualCluster
	if err := json.Unmarshal(mustDo(t, rawClient(t, shared.root), http.MethodGet, clustersPath+"/"+cluster, "").Body, &vc); err != nil {
		t.Fatal(err)
	}
	return vc
}

// TestWhatIsNotAllowedAnyMoreIsHeldBackAndTold takes a host from a team that uses it, and
// gives it back.
func TestWhatIsNotAllowedAnyMoreIsHeldBackAndTold(t *testing.T) {
	t.Parallel()
	teams := sharedMesh(t, "held", map[string]string{
		"held-shop": `{"mesh":"held","namespaces":["shop"],"hosts":["shop.example.com","*.shop.example.com"]}`,
		"held-bank": `{"mesh":"held","namespaces":["bank"]}`,
	})
	root := rawClient(t, shared.root)
	shop := teams["held-shop"]
	shop.namespace(t, "shop")
	for _, name := range []string{"good", "bad"} {
		host := map[string]string{"good": "reviews.shop.svc.cluster.local", "bad": "api.shop.example.com"}[name]
		mustDo(t, shop.raw, http.MethodPost, virtualServices("shop"), strings.Replace(virtualService(name), `"hosts":["reviews"]`, fmt.Sprintf(`"hosts":[%q]`, host), 1))
	}
	refused(t, do(t, root, http.MethodPatch, clustersPath+"/held-bank", `{"spec":{"hosts":["*.example.com"]}}`), http.StatusUnprocessableEntity,
		`"*.example.com" overlaps with "shop.example.com"`, `virtual cluster "held-shop" owns in mesh "held"`)
	refused(t, do(t, root, http.MethodPatch, clustersPath+"/held-bank", `{"spec":{"grants":[{"to":"held-shop","hosts":["shop.example.com"]}]}}`), http.StatusUnprocessableEntity,
		"spec.grants[0].hosts[0]", "only what it owns can be granted")

	mesh := func(resources, heldBack int32) {
		t.Helper()
		eventually(t, func() error {
			var m v1alpha1.Mesh
			if err := json.Unmarshal(mustDo(t, root, http.MethodGet, "/apis/vmesh.io/v1alpha1/meshes/held", "").Body, &m); err != nil {
				return err
			}
			if m.Status.Resources != resources || m.Status.HeldBack != heldBack {
				return fmt.Errorf("%d resources, %d held back; want %d and %d", m.Status.Resources, m.Status.HeldBack, resources, heldBack)
			}
			return nil
		})
	}
	mesh(2, 0)

	// The same change asked about and then made.
	give := `{"name":"held-shop","mesh":"held","namespaces":["shop"],"hosts":["shop.example.com"]}`
	take := `{"name":"held-bank","mesh":"held","namespaces":["bank"],"hosts":["*.shop.example.com"]}`
	ask := func(clusters ...string) v1alpha1.ClaimReviewStatus {
		t.Helper()
		var review v1alpha1.ClaimReview
		if err := json.Unmarshal(mustDo(t, root, http.MethodPost, "/apis/vmesh.io/v1alpha1/claimreviews", fmt.Sprintf(
			`{"apiVersion":"vmesh.io/v1alpha1","kind":"ClaimReview","spec":{"virtualClusters":[%s]}}`, strings.Join(clusters, ","))).Body, &review); err != nil {
			t.Fatal(err)
		}
		return review.Status
	}
	if alone := ask(take); len(alone.Conflicts) != 1 || !strings.Contains(alone.Conflicts[0], `"*.shop.example.com" overlaps`) {
		t.Errorf("alone the claim would be refused, and the review says %+v", alone)
	}
	both := ask(give, take)
	if len(both.Conflicts) != 0 || both.HeldBackCount != 1 || both.HeldBack[0].Name != "bad" || both.HeldBack[0].VirtualCluster != "held-shop" || both.LetInCount != 0 {
		t.Errorf("the review says %+v", both)
	}
	mesh(2, 0)

	mustDo(t, root, http.MethodPatch, clustersPath+"/held-shop", `{"spec":{"hosts":["shop.example.com"]}}`)
	mustDo(t, root, http.MethodPatch, clustersPath+"/held-bank", `{"spec":{"hosts":["*.shop.example.com"]}}`)
	mesh(1, 1)
	eventually(t, func() error {
		s := statusOf(t, "held-shop").Status
		if s.HeldBackCount != 1 || len(s.HeldBack) != 1 || s.HeldBack[0].Name != "bad" || s.HeldBack[0].Reason != "HostNotOwned" || !strings.Contains(s.HeldBack[0].Message, `virtual cluster "held-bank"`) {
			return fmt.Errorf("the loser's status is %+v", s)
		}
		return nil
	})
	admin := shared.options.AdminKubeconfig()
	if out, err := harness.Kubectl(t.Context(), admin, "", "wait", "--for=condition=Conforming=False", "virtualcluster/held-shop", "--timeout=60s"); err != nil {
		t.Errorf("%s%v", out, err)
	}
	if out, err := harness.Kubectl(t.Context(), admin, "", "get", "virtualcluster", "held-shop", "-o", "wide"); err != nil || !strings.Contains(out, "HELD BACK") || !strings.Contains(out, `["shop.example.com"]`) {
		t.Errorf("kubectl shows %s%v", out, err)
	}
	eventually(t, func() error {
		out, err := harness.Kubectl(t.Context(), admin, "", "get", "events", "--field-selector", "involvedObject.name=held-shop,reason=HeldBack", "-o", "jsonpath={.items[*].message}")
		if err != nil || !strings.Contains(out, "VirtualService shop/bad (HostNotOwned)") {
			return fmt.Errorf("the events are %q, %v", out, err)
		}
		return nil
	})
	metrics := string(mustDo(t, root, http.MethodGet, "/metrics", "").Body)
	if want := `vmesh_snapshot_held_back{mesh="held",reason="HostNotOwned"} 1`; !strings.Contains(metrics, want) {
		t.Errorf("the metrics lack %s", want)
	}

	// A grant lets it in again, and both sides see it.
	mustDo(t, root, http.MethodPatch, clustersPath+"/held-bank", `{"spec":{"grants":[{"to":"held-shop","hosts":["api.shop.example.com"]}]}}`)
	mesh(2, 0)
	eventually(t, func() error {
		s := statusOf(t, "held-shop").Status
		if s.HeldBackCount != 0 || len(s.HeldBack) != 0 || fmt.Sprint(s.Grants) != "[{held-bank [] [api.shop.example.com]}]" {
			return fmt.Errorf("its status is %+v", s)
		}
		return nil
	})
	if out, err := harness.Kubectl(t.Context(), admin, "", "wait", "--for=condition=Conforming", "virtualcluster/held-shop", "virtualcluster/held-bank", "--timeout=60s"); err != nil {
		t.Errorf("%s%v", out, err)
	}
}
