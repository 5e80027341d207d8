package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"github.com/vmesh-io/vmesh/pkg/apiserver"
	"github.com/vmesh-io/vmesh/test/harness"
)

// startWebhook is a webhook that labels, warns, and refuses what is labelled "forbidden".
func startWebhook(t *testing.T) (clientConfig string) {
	t.Helper()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(req.Body).Decode(&review); err != nil || review.Request == nil {
			http.Error(w, "no review", http.StatusBadRequest)
			return
		}
		response := &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
		if req.URL.Path == "/label" {
			jsonPatch := admissionv1.PatchTypeJSONPatch
			response.PatchType, response.Patch = &jsonPatch, []byte(`[{"op":"add","path":"/metadata/annotations","value":{"reviewed":"yes"}}]`)
		} else {
			response.Allowed = !strings.Contains(review.Request.Name, "forbidden")
			response.Warnings = []string{"config maps are watched"}
			response.AuditAnnotations = map[string]string{"seen": review.Request.Name}
		}
		review.Request, review.Response = nil, response
		_ = json.NewEncoder(w).Encode(review)
	}))
	t.Cleanup(server.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	return fmt.Sprintf("{url: %q, caBundle: %s}", server.URL+"/PATH", base64.StdEncoding.EncodeToString(ca))
}

const webhookConfiguration = `
apiVersion: admissionregistration.k8s.io/v1
kind: %sWebhookConfiguration
metadata: {name: %s}
webhooks:
- name: hook.example.com
  clientConfig: %s
  admissionReviewVersions: [v1]
  sideEffects: None
  timeoutSeconds: 5
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}]
`

func TestKubectlShowsWhatWebhooksSay(t *testing.T) {
	tenant, other := newTenant(t, shared), newTenant(t, shared)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	client := startWebhook(t)
	for kind, path := range map[string]string{"Mutating": "label", "Validating": "review"} {
		if err := harness.Apply(ctx, tenant.kubeconfig, fmt.Sprintf(webhookConfiguration, kind, strings.ToLower(kind), strings.Replace(client, "PATH", path, 1))); err != nil {
			t.Fatal(err)
		}
	}
	// Both are in force once one of each has shown.
	for n := 0; ; n++ {
		out, err := harness.Kubectl(ctx, tenant.kubeconfig, "", "create", "configmap", fmt.Sprintf("a%d", n), "-o", "jsonpath={.metadata.annotations.reviewed}")
		_, refused := harness.Kubectl(ctx, tenant.kubeconfig, "", "create", "configmap", fmt.Sprintf("forbidden%d", n))
		if err == nil && strings.Contains(out, "yes") && refused != nil {
			if want := `admission webhook "hook.example.com" denied the request`; !strings.Contains(refused.Error(), want) || !strings.Contains(refused.Error(), "Warning: config maps are watched") {
				t.Errorf("kubectl shows %v", refused)
			}
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("the webhooks never came into force: %s %v %v", out, err, refused)
		}
	}
	if _, err := harness.Kubectl(ctx, other.kubeconfig, "", "create", "configmap", "forbidden"); err != nil {
		t.Errorf("another virtual cluster: %v", err)
	}
}

func TestWhatWebhooksNoteIsInTheAuditLog(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "audit.log")
	s, err := startServer(filepath.Join(dir, "data"), func(o *apiserver.Options) {
		o.TenantWebhookAllow = []string{"127.0.0.0/8"}
		o.Audit.PolicyFile, o.Audit.LogOptions.Path = writeFile(t, filepath.Join(dir, "policy.yaml"), "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\n"), log
		o.Audit.LogOptions.BatchOptions.Mode = "blocking"
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
	shop := newTenant(t, s)
	client := strings.Replace(startWebhook(t), "PATH", "review", 1)
	if err := harness.Apply(t.Context(), shop.kubeconfig, fmt.Sprintf(webhookConfiguration, "Validating", "own", client)); err != nil {
		t.Fatal(err)
	}
	rail := strings.Replace(fmt.Sprintf(webhookConfiguration, "Validating", "rail", client), "metadata: {name: rail}", "metadata: {name: rail, annotations: {vmesh.io/applies-to: all}}", 1)
	if err := harness.Apply(t.Context(), s.options.AdminKubeconfig(), rail); err != nil {
		t.Fatal(err)
	}
	n := 0
	eventually(t, func() error {
		n++
		name := fmt.Sprint("a", n)
		mustDo(t, shop.raw, http.MethodPost, "/api/v1/namespaces/default/configmaps", fmt.Sprintf(`{"metadata":{"name":%q}}`, name))
		data, err := os.ReadFile(log)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(data)) {
			var event auditv1.Event
			if err := json.Unmarshal([]byte(line), &event); err != nil {
				return err
			}
			if a := event.Annotations; a["hook.example.com/seen"] == name && a["platform.hook.example.com/seen"] == name && a["vmesh.io/virtual-cluster"] == shop.name {
				return nil
			}
		}
		return fmt.Errorf("no event tells what the webhooks noted of %s", name)
	})
}
