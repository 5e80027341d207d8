package main

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// rootServer answers for the root: it signs nothing, and refuses virtual cluster nowhere.
func rootServer(t *testing.T) (kubeconfig string, requests *[]string) {
	t.Helper()
	requests = &[]string{}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		*requests = append(*requests, req.Method+" "+req.URL.RequestURI())
		w.Header().Set("Content-Type", "application/json")
		parts := strings.Split(req.URL.Path, "/")
		cluster := parts[len(parts)-2]
		switch {
		case cluster == "nowhere":
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`))
		case req.Method == http.MethodPost:
			answer := v1alpha1.KubeconfigRequest{Status: v1alpha1.KubeconfigRequestStatus{Kubeconfig: cluster + "-x", Certificate: []byte("c"), Server: "https://" + cluster}}
			answer.APIVersion, answer.Kind = v1alpha1.GroupVersion.String(), "KubeconfigRequest"
			_ = json.NewEncoder(w).Encode(answer)
		default:
			_, _ = w.Write([]byte(`{"kind":"Status","apiVersion":"v1","status":"Success"}`))
		}
	}))
	t.Cleanup(server.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	config := clientcmdConfig(server.URL, ca)
	file := filepath.Join(t.TempDir(), "admin.kubeconfig")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	return file, requests
}

func clientcmdConfig(server string, ca []byte) []byte {
	data, _ := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "x",
		"contexts": []any{map[string]any{"name": "x", "context": map[string]any{"cluster": "x", "user": "x"}}},
		"clusters": []any{map[string]any{"name": "x", "cluster": map[string]any{"server": server, "certificate-authority-data": ca}}},
		"users":    []any{map[string]any{"name": "x", "user": map[string]any{}}},
	})
	return data
}

func TestAKubeconfigHasAContextForEachVirtualCluster(t *testing.T) {
	admin, _ := rootServer(t)
	dir := t.TempDir()
	file, link := filepath.Join(dir, "config"), filepath.Join(dir, "link")
	if _, err := run("kubeconfig", "create", "shop", "bank", "--user", "alice", "--kubeconfig", admin, "-o", file); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	if _, err := run("kubeconfig", "create", "lab", "--user", "alice", "--kubeconfig", admin, "--merge", "-o", link); err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.LoadFromFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, cluster := range []string{"shop", "bank", "lab"} {
		c := config.Contexts[cluster]
		if c == nil || config.Clusters[c.Cluster].Server != "https://"+cluster || len(config.AuthInfos[c.AuthInfo].ClientKeyData) == 0 {
			t.Errorf("the context of %s is %v", cluster, c)
		}
	}
	info, err := os.Lstat(link)
	if err != nil || info.Mode()&os.ModeSymlink == 0 || config.CurrentContext != "shop" {
		t.Errorf("the link is %v, %v; the current context %q", info.Mode(), err, config.CurrentContext)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v, %v", info.Mode(), err)
	}
	// Without --output it is the file that kubectl uses.
	t.Setenv("KUBECONFIG", filepath.Join(dir, "new", "config"))
	if _, err := run("kubeconfig", "create", "shop", "--kubeconfig", admin, "--merge"); err != nil {
		t.Fatal(err)
	}
	if config, err := clientcmd.LoadFromFile(filepath.Join(dir, "new", "config")); err != nil || config.CurrentContext != "shop" {
		t.Errorf("the new file: %v", err)
	}
}

func TestARefusalNamesARemedyOnlyWhereItHelps(t *testing.T) {
	resource := v1alpha1.GroupVersion.WithResource("virtualclusters").GroupResource()
	for message, remedy := range map[string]bool{
		`User "carol" cannot create resource "virtualclusters/kubeconfig"`: true,
		"only administrators of the root give out identities of the root":  true,
		"it is being deleted":           false,
		"it is protected from deletion": false,
	} {
		got := accessRemedy(apierrors.NewForbidden(resource, "shop", errors.New(message)))
		if strings.Contains(got, "admin.kubeconfig") != remedy {
			t.Errorf("the remedy for %q is %q", message, got)
		}
	}
}

func TestWhatNobodyHasGotIsRevoked(t *testing.T) {
	for name, args := range map[string][]string{
		"a virtual cluster that there is not": {"shop", "nowhere"},
		"a file that cannot be written":       {"shop", "-o", "/dev/null/x"},
	} {
		t.Run(name, func(t *testing.T) {
			admin, requests := rootServer(t)
			if _, err := run(append([]string{"kubeconfig", "create", "--kubeconfig", admin}, args...)...); err == nil {
				t.Fatal("it was made")
			}
			if got := (*requests)[len(*requests)-1]; got != "DELETE /apis/vmesh.io/v1alpha1/kubeconfigs/shop-x" {
				t.Errorf("the requests were %q", *requests)
			}
		})
	}
}

func TestKubeconfigsArePrintedAsKubectlDoes(t *testing.T) {
	const table = `{"kind":"Table","apiVersion":"meta.k8s.io/v1","columnDefinitions":[{"name":"Name"},{"name":"Last Used"},{"name":"Fingerprint","priority":1}],` +
		`"rows":[{"cells":["shop-alice-x","4m","00ff"]},{"cells":["bank-bob-y",null,"11ee"]}]}`
	for _, c := range []struct {
		name, data string
		output     outputFormat
		want       string
	}{
		{"a table", table, "", "NAME           LAST USED\nshop-alice-x   4m\nbank-bob-y     <none>\n"},
		{"a wide table", table, "wide", "NAME           LAST USED   FINGERPRINT\nshop-alice-x   4m          00ff\nbank-bob-y     <none>      11ee\n"},
		{"nothing", `{"kind":"Table","rows":[]}`, "", "No kubeconfigs found\n"},
		{"json", `{"items":[]}`, "json", "{\n    \"items\": []\n}\n"},
		{"yaml", `{"items":[]}`, "yaml", "items: []\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := printKubeconfigs(&out, &out, []byte(c.data), c.output); err != nil || out.String() != c.want {
				t.Errorf("printed %q, %v", out.String(), err)
			}
		})
	}
	if err := printKubeconfigs(&bytes.Buffer{}, &bytes.Buffer{}, []byte("garbage"), ""); err == nil {
		t.Error("garbage is a table")
	}
}
