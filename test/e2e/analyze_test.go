package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/apiserver"
	"github.com/vmesh-io/vmesh/test/harness"
)

// corePlurals are the kinds of Kubernetes' own that Istio's analyzers read.
var corePlurals = map[string]string{
	"Namespace": "namespaces", "Service": "services", "Pod": "pods", "Secret": "secrets", "ConfigMap": "configmaps", "Node": "nodes",
	"MutatingWebhookConfiguration.admissionregistration.k8s.io":   "mutatingwebhookconfigurations",
	"ValidatingWebhookConfiguration.admissionregistration.k8s.io": "validatingwebhookconfigurations",
	"Deployment.apps": "deployments",
}

// TestAnalysesAgreeWithIstioctl holds what vmesh finds in a virtual cluster against what
// the real istioctl analyze finds there, with the configuration that Istio's own analyzers
// are tested with.
func TestAnalysesAgreeWithIstioctl(t *testing.T) {
	t.Parallel()
	tenant := newTenant(t, shared)
	plurals := resourcesOf(t, tenant)
	for kind, plural := range corePlurals {
		plurals[kind] = plural
	}
	written := write(t, tenant, plurals, analyzerSamples(t, plurals))

	theirs := istioctlAnalyze(t, "--kubeconfig", tenant.kubeconfig)
	analyze(t, tenant)
	ours := analyze(t, tenant) // from what the first has kept
	count, codes := map[string]int{}, map[string]bool{}
	for _, f := range theirs {
		count[about(f)]++
		codes[f.Code] = true
	}
	for _, f := range ours {
		count[about(f)]--
	}
	for what, n := range count {
		switch {
		case n > 0:
			t.Errorf("istioctl alone finds %d times %s", n, what)
		case n < 0:
			t.Errorf("vmesh alone finds %d times %s", -n, what)
		}
	}
	t.Logf("%d findings of %d codes in %d objects", len(theirs), len(codes), len(written))
	if len(codes) < 15 {
		t.Errorf("%d codes are too few to tell anything", len(codes))
	}
}

// TestAnalysesFindWhatIstioctlFindsInFiles is the same with the files alone. From those
// istioctl reads Istio's kinds, to which it adds its ingress gateway; it leaves out the
// analyzers that read Services and the like as well, and so finds less.
func TestAnalysesFindWhatIstioctlFindsInFiles(t *testing.T) {
	t.Parallel()
	tenant := newTenant(t, shared)
	plurals := resourcesOf(t, tenant)
	written := write(t, tenant, plurals, analyzerSamples(t, plurals))
	var files []byte
	for _, o := range written {
		data, err := yaml.Marshal(o.Object)
		if err != nil {
			t.Fatal(err)
		}
		files = append(append(files, "---\n"...), data...)
	}
	file := filepath.Join(t.TempDir(), "all.yaml")
	if err := os.WriteFile(file, files, 0o600); err != nil {
		t.Fatal(err)
	}
	theirs := istioctlAnalyze(t, "--use-kube=false", file)

	mustDo(t, tenant.raw, http.MethodPost, "/api/v1/namespaces/istio-system/pods", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"istio-ingressgateway-dummypod",`+
		`"labels":{"istio":"ingressgateway"}},"spec":{"containers":[{"name":"istio-proxy","image":"auto"}]}}`)
	mustDo(t, tenant.raw, http.MethodPost, "/api/v1/namespaces/istio-system/services", `{"apiVersion":"v1","kind":"Service","metadata":{"name":"istio-ingressgateway"},`+
		`"spec":{"selector":{"istio":"ingressgateway"},"ports":[{"name":"http2","port":80,"targetPort":80},{"name":"https","port":443,"targetPort":443},`+
		`{"name":"tcp","port":31400,"targetPort":31400},{"name":"tls","port":15443,"targetPort":15443}]}}`)
	ours := map[string]bool{}
	for _, f := range analyze(t, tenant) {
		ours[about(f)] = true
	}
	codes := map[string]bool{}
	for _, f := range theirs {
		codes[f.Code] = true
		if !ours[about(f)] {
			t.Errorf("istioctl alone finds %s", f)
		}
	}
	t.Logf("%d findings of %d codes in %d objects", len(theirs), len(codes), len(written))
	if len(codes) < 10 {
		t.Errorf("%d codes are too few to tell anything", len(codes))
	}
}

// TestWritesAreAnsweredWithWhatTheyAdd is what kubectl shows.
func TestWritesAreAnsweredWithWhatTheyAdd(t *testing.T) {
	server, err := startServer(t.TempDir(), func(o *apiserver.Options) { o.AnalysisBudget = 10 * time.Second }) // however busy the machine
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.stop(); err != nil {
			t.Error(err)
		}
	})
	tenant := newTenant(t, server)
	tenant.namespace(t, "shop")
	warnings := func(method, path, body string) []string {
		t.Helper()
		if method != http.MethodDelete { // as kubectl does, which has a share of its own
			separator := "?"
			if strings.Contains(path, "?") {
				separator = "&"
			}
			path += separator + "fieldManager=kubectl-create"
		}
		return mustDo(t, tenant.raw, method, path, body).Header.Values("Warning")
	}
	expect := func(got []string, codes ...string) {
		t.Helper()
		ok := len(got) == len(codes)
		for i := range got {
			ok = ok && strings.Contains(got[i], codes[i])
		}
		if !ok {
			t.Errorf("got %q, want %q", got, codes)
		}
	}
	route := virtualService("reviews")
	expect(warnings(http.MethodPost, virtualServices("shop")+"?dryRun=All", route), `Error [IST0101] (VirtualService shop/reviews) Referenced host not found: \"reviews\"`)
	expect(warnings(http.MethodPost, virtualServices("shop"), route), "[IST0101]")
	expect(warnings(http.MethodPatch, virtualServices("shop")+"/reviews", `{"metadata":{"labels":{"a":"b"}}}`))
	expect(warnings(http.MethodPatch, virtualServices("shop")+"/reviews", `{"spec":{"gateways":["edge"]}}`), "Referenced gateway not found", "[IST0132]")

	// What was written a moment ago counts, whatever its kind.
	for i := range 20 {
		name := fmt.Sprintf("s%d", i)
		expect(warnings(http.MethodPost, "/api/v1/namespaces/shop/services",
			fmt.Sprintf(`{"apiVersion":"v1","kind":"Service","metadata":{"name":%q},"spec":{"ports":[{"name":"http","port":80}]}}`, name)))
		expect(warnings(http.MethodPost, virtualServices("shop"), strings.ReplaceAll(route, "reviews", name)))
	}
	expect(warnings(http.MethodDelete, "/api/v1/namespaces/shop/services/s7", ""), "(VirtualService shop/s7) Referenced host not found")
}

func TestAnAnalysisIsOfOneVirtualClusterThatExists(t *testing.T) {
	t.Parallel()
	broken, whole := newTenant(t, shared), newTenant(t, shared)
	mustDo(t, broken.raw, http.MethodPost, virtualServices("default"), virtualService("reviews"))
	if got := analyze(t, broken); !slices.ContainsFunc(got, func(f v1alpha1.Finding) bool { return f.Code == "IST0101" }) {
		t.Errorf("got %v", got)
	}
	if got := analyze(t, whole); slices.ContainsFunc(got, func(f v1alpha1.Finding) bool { return f.Code == "IST0101" }) {
		t.Errorf("another virtual cluster has %v", got)
	}
	refused(t, do(t, rawClient(t, shared.root), http.MethodGet, "/apis/vmesh.io/v1alpha1/virtualclusters/nobody/analysis", ""), http.StatusNotFound)
	if got := do(t, broken.raw, http.MethodGet, "/apis/vmesh.io/v1alpha1/virtualclusters/"+broken.name+"/analysis", ""); got.Status != http.StatusNotFound {
		t.Errorf("a virtual cluster answers %v", got)
	}
}

// analyze asks vmesh.
func analyze(t *testing.T, tenant *tenant) []v1alpha1.Finding {
	t.Helper()
	response := mustDo(t, rawClient(t, shared.root), http.MethodGet, "/apis/vmesh.io/v1alpha1/virtualclusters/"+tenant.name+"/analysis", "")
	var answer v1alpha1.Analysis
	if err := json.Unmarshal(response.Body, &answer); err != nil {
		t.Fatal(err)
	}
	if len(answer.Status.Failed) > 0 {
		t.Errorf("analyzers that broke off: %v", answer.Status.Failed)
	}
	return answer.Status.Findings
}

// istioctlAnalyze asks the real istioctl.
func istioctlAnalyze(t *testing.T, args ...string) []v1alpha1.Finding {
	t.Helper()
	istioctl, err := harness.Tool(t.Context(), "istioctl")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, istioctl, append([]string{"analyze", "-A", "-o", "json"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("istioctl analyze: %v, %v: %s", err, ctx.Err(), stderr.Bytes())
	}
	var found []v1alpha1.Finding
	if err := json.Unmarshal(out, &found); err != nil {
		t.Fatalf("istioctl analyze: %v: %s %s", err, out, stderr.Bytes())
	}
	return found
}

// about is what a finding is and of which object. The text may name others in any order.
func about(f v1alpha1.Finding) string {
	if f.Code == "IST0155" {
		f.Code = "IST0151" // which of the two it is depends on the order, which istioctl leaves to chance
	}
	return f.Level + " [" + f.Code + "] " + f.Origin
}

// analyzerSamples are the objects that the Istio module tests its analyzers with, without a
// status, each name once.
func analyzerSamples(t *testing.T, plurals map[string]string) []*unstructured.Unstructured {
	t.Helper()
	module, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "istio.io/istio").Output()
	if err != nil {
		t.Fatalf("finding the Istio module: %v", err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(module)), "pkg/config/analysis/analyzers/testdata/*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("the Istio module has no samples: %v", err)
	}
	seen := map[string]bool{}
	var out []*unstructured.Unstructured
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for part := range bytes.SplitSeq(append([]byte("\n"), data...), []byte("\n---")) {
			o := &unstructured.Unstructured{}
			if yaml.Unmarshal(part, &o.Object) != nil || o.Object == nil {
				continue
			}
			if plurals[o.GroupVersionKind().GroupKind().String()] == "" {
				continue
			}
			if o.GetLabels()["istio/multiCluster"] == "true" {
				continue // istioctl would go on to the cluster that it is the access to
			}
			delete(o.Object, "status")
			o.SetUID("")
			o.SetResourceVersion("")
			id := o.GroupVersionKind().GroupKind().String() + "/" + o.GetNamespace() + "/" + o.GetName()
			if !seen[id] {
				seen[id] = true
				out = append(out, o)
			}
		}
	}
	return out
}

// write creates the objects and the namespaces they need, and returns those that are accepted.
func write(t *testing.T, tenant *tenant, plurals map[string]string, objects []*unstructured.Unstructured) []*unstructured.Unstructured {
	t.Helper()
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int {
		if a.GetKind() == b.GetKind() || a.GetKind() != "Namespace" && b.GetKind() != "Namespace" {
			return 0
		}
		if a.GetKind() == "Namespace" {
			return -1
		}
		return 1
	})
	clusterScoped := []string{"Namespace", "Node", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"}
	var written []*unstructured.Unstructured
	for _, o := range objects {
		gvk := o.GroupVersionKind()
		path := "/apis/" + gvk.GroupVersion().String()
		if gvk.Group == "" {
			path = "/api/v1"
		}
		if !slices.Contains(clusterScoped, gvk.Kind) {
			if o.GetNamespace() == "" {
				o.SetNamespace("default")
			}
			do(t, tenant.raw, http.MethodPost, "/api/v1/namespaces", fmt.Sprintf(`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":%q}}`, o.GetNamespace()))
			path += "/namespaces/" + o.GetNamespace()
		}
		body, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		if do(t, tenant.raw, http.MethodPost, path+"/"+plurals[gvk.GroupKind().String()], string(body)).Status == http.StatusCreated {
			written = append(written, o)
		}
	}
	return written
}
