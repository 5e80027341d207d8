package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/test/e2e/rawapi"
	"github.com/vmesh-io/vmesh/test/harness"
)

// Where the Istio module keeps configuration that it tests and shows itself with.
var istioSamples = []string{"samples", "pkg/config", "tests/integration", "istioctl"}

// sample is one object of the Istio module's.
type sample struct {
	from   string
	object *unstructured.Unstructured
	body   []byte
}

// TestIstioctlAndVmeshAgree sends the Istio module's samples to vmesh and to the real
// istioctl validate: what one takes, the other takes.
func TestIstioctlAndVmeshAgree(t *testing.T) {
	tenant := newTenant(t, shared)
	resources := resourcesOf(t, tenant)
	samples := collectSamples(t, resources)
	verdicts := istioctlValidate(t, samples)

	accepted, rejected := 0, 0
	for i, s := range samples {
		theirs := verdicts[i]
		ours := dryCreate(t, tenant, resources, s, "Ignore")
		if ours.Status < 300 && strings.Contains(theirs.refusal, "unknown field") {
			// A cluster drops what it does not know, unless it is asked to refuse it, as kubectl does.
			ours = dryCreate(t, tenant, resources, s, "Strict")
		}
		if ours.Status < 300 {
			accepted++
		} else {
			rejected++
		}
		if refusedBySchema(ours) {
			continue // in a cluster too that comes before Istio's validation; istioctl knows no schemas
		}
		if (ours.Status < 300) != (theirs.refusal == "") {
			t.Errorf("%s: istioctl says %q, vmesh says %.300v", s.from, theirs.refusal, ours)
		}
		warning := strings.Join(ours.Header.Values("Warning"), "; ")
		if ours.Status < 300 && (warning == "") != (theirs.warning == "") {
			t.Errorf("%s: istioctl warns %q, vmesh warns %q", s.from, theirs.warning, warning)
		}
	}
	t.Logf("%d samples are accepted, %d are rejected", accepted, rejected)
	if accepted < 300 || rejected < 100 {
		t.Errorf("%d accepted and %d rejected samples are too few to tell anything", accepted, rejected)
	}
}

// collectSamples gives each object of the module's samples once, under a name of its own.
func collectSamples(t *testing.T, resources map[string]string) []sample {
	t.Helper()
	module, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "istio.io/istio").Output()
	if err != nil {
		t.Fatalf("finding the Istio module: %v", err)
	}
	dir := strings.TrimSpace(string(module))
	var samples []sample
	seen := map[string]bool{}
	for _, folder := range istioSamples {
		err := filepath.WalkDir(filepath.Join(dir, folder), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".yaml") {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for i, object := range documents(data) {
				if resources[object.GroupVersionKind().GroupKind().String()] == "" || seen[fmt.Sprint(object.Object)] {
					continue
				}
				seen[fmt.Sprint(object.Object)] = true
				object.SetName(fmt.Sprintf("sample-%d", len(samples)))
				body, err := json.Marshal(object)
				if err != nil {
					return err
				}
				samples = append(samples, sample{fmt.Sprintf("%s#%d", strings.TrimPrefix(path, dir+"/"), i), object, body})
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return samples
}

// documents are the objects in a YAML file; what is none is left out.
func documents(data []byte) []*unstructured.Unstructured {
	var out []*unstructured.Unstructured
	for part := range bytes.SplitSeq(data, []byte("\n---")) {
		content := map[string]any{}
		if yaml.Unmarshal(part, &content) != nil || content["kind"] == nil || content["apiVersion"] == nil {
			continue
		}
		object := &unstructured.Unstructured{Object: content}
		object.SetNamespace("default")
		object.SetResourceVersion("")
		out = append(out, object)
	}
	return out
}

// resourcesOf are the plurals of Istio's kinds, by kind and group.
func resourcesOf(t *testing.T, tenant *tenant) map[string]string {
	t.Helper()
	list := mustDo(t, tenant.raw, http.MethodGet, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "")
	out := map[string]string{}
	items, _ := list.Field("items").([]any)
	for _, item := range items {
		crd := item.(map[string]any)
		spec := crd["spec"].(map[string]any)
		names := spec["names"].(map[string]any)
		out[fmt.Sprintf("%s.%s", names["kind"], spec["group"])] = names["plural"].(string)
	}
	return out
}

func dryCreate(t *testing.T, tenant *tenant, resources map[string]string, s sample, fieldValidation string) *rawapi.Response {
	t.Helper()
	gvk := s.object.GroupVersionKind()
	return do(t, tenant.raw, http.MethodPost, fmt.Sprintf("/apis/%s/%s/namespaces/default/%s?dryRun=All&fieldValidation=%s",
		gvk.Group, gvk.Version, resources[gvk.GroupKind().String()], fieldValidation), string(s.body))
}

// refusedBySchema tells a refusal by the schema or its rules from one by Istio's
// validation, which names the spec as a whole.
func refusedBySchema(r *rawapi.Response) bool {
	if r.Status < 300 {
		return false
	}
	causes, _ := r.Field("details", "causes").([]any)
	for _, c := range causes {
		if c, ok := c.(map[string]any); ok && c["field"] == "spec" {
			return false
		}
	}
	return true
}

// TestIstioctlAnalyzesAVirtualCluster checks that everything is there that analyze waits for.
func TestIstioctlAnalyzesAVirtualCluster(t *testing.T) {
	tenant := newTenant(t, shared)
	tenant.namespace(t, "shop")
	mustDo(t, tenant.raw, http.MethodPost, virtualServices("shop"),
		`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a"},"spec":{"hosts":["a.b"],"gateways":["none"],"http":[{"route":[{"destination":{"host":"a.b"}}]}]}}`)
	istioctl, err := harness.Tool(t.Context(), "istioctl")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, istioctl, "analyze", "-A", "--kubeconfig", tenant.kubeconfig).CombinedOutput()
	if want := "[IST0101] (VirtualService shop/a) Referenced gateway not found"; !strings.Contains(string(out), want) {
		t.Errorf("got %v: %s", err, out)
	}
}

// verdict is what istioctl says of a sample: nothing, when it is content.
type verdict struct{ warning, refusal string }

func istioctlValidate(t *testing.T, samples []sample) []verdict {
	t.Helper()
	istioctl, err := harness.Tool(t.Context(), "istioctl")
	if err != nil {
		t.Fatal(err)
	}
	var all bytes.Buffer
	for _, s := range samples {
		fmt.Fprintf(&all, "---\n%s\n", s.body)
	}
	cmd := exec.CommandContext(t.Context(), istioctl, "validate", "-f", "-")
	cmd.Stdin = &all
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatalf("istioctl accepts everything: %s", out)
	}
	verdicts := make([]verdict, len(samples))
	refusals := false
	for line := range strings.Lines(string(out)) {
		// Warnings come before errors, each as * Kind/namespace/name: text
		refusals = refusals || strings.HasPrefix(line, "Error: ")
		subject, text, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok || !strings.HasPrefix(subject, "* ") {
			continue
		}
		var i int
		if _, err := fmt.Sscanf(subject[strings.LastIndexByte(subject, '/')+1:], "sample-%d", &i); err != nil {
			t.Fatalf("istioctl says %q", line)
		}
		if refusals {
			verdicts[i].refusal += text
		} else {
			verdicts[i].warning += text
		}
	}
	return verdicts
}
