package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// rootWith is a root whose mesh has a status, which answers a promotion or an abort with the next.
func rootWith(t *testing.T, statuses ...*v1alpha1.MeshRolloutStatus) (kubeconfig string, patches *[]string) {
	t.Helper()
	patches = &[]string{}
	at := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/meshes/default") {
			http.Error(w, "", http.StatusNotFound)
			return
		}
		if r.Method == http.MethodPatch {
			data, _ := io.ReadAll(r.Body)
			*patches = append(*patches, string(data))
			at = min(at+1, len(statuses)-1)
		}
		mesh := v1alpha1.Mesh{Status: v1alpha1.MeshStatus{Rollout: statuses[at]}}
		if statuses[at] != nil {
			mesh.Spec.Rollout = &v1alpha1.MeshRollout{}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(mesh)
	}))
	t.Cleanup(server.Close)
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: r\nclusters: [{name: r, cluster: {server: %q}}]\ncontexts: [{name: r, context: {cluster: r}}]\n", server.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeconfig, patches
}

func TestRolloutsAreShownPromotedAndAborted(t *testing.T) {
	paused := func(id string) *v1alpha1.MeshRolloutStatus {
		return &v1alpha1.MeshRolloutStatus{
			ID: id, Phase: v1alpha1.RolloutPaused, Stage: "canary", Message: "Stage canary has it: stage rest waits for a promotion", Changes: 2,
			Stages: []v1alpha1.MeshStageStatus{{Name: "canary", Version: "v2", ControlPlanes: 1, Current: 1}, {Name: "rest", Version: "v1", ControlPlanes: 2, Current: 2}},
		}
	}
	complete := &v1alpha1.MeshRolloutStatus{Phase: v1alpha1.RolloutComplete}
	aborted := &v1alpha1.MeshRolloutStatus{Phase: v1alpha1.RolloutAborted, Pinned: 1, PinnedResources: []v1alpha1.PinnedResource{{Kind: "VirtualService", Namespace: "n", Name: "vs", Held: "Previous"}}}
	for _, c := range []struct {
		name     string
		args     string
		statuses []*v1alpha1.MeshRolloutStatus
		out, err string
		patch    string
		code     int
	}{
		{"status", "status", []*v1alpha1.MeshRolloutStatus{paused("3.7.0")}, "canary*   v2        1                1", "", "", 0},
		{"status of an abort", "status", []*v1alpha1.MeshRolloutStatus{aborted}, "VirtualService   n           vs     Previous", "", "", 0},
		{"status as JSON", "status -o json", []*v1alpha1.MeshRolloutStatus{paused("3.7.0")}, `"id": "3.7.0"`, "", "", 0},
		{"waiting for what is complete", "status --wait", []*v1alpha1.MeshRolloutStatus{complete}, "Mesh default: Complete", "", "", 0},
		{"waiting for what was aborted", "status --wait", []*v1alpha1.MeshRolloutStatus{aborted}, "Mesh default: Aborted", "was aborted", "", 3},
		{"waiting for too long", "status --wait --timeout 10ms", []*v1alpha1.MeshRolloutStatus{paused("3.7.0")}, "", "--timeout: it took longer than 10ms", "", 0},
		{"no stages", "status", []*v1alpha1.MeshRolloutStatus{nil}, "", "mesh default has no stages", "", 0},
		{"no mesh", "status west", []*v1alpha1.MeshRolloutStatus{complete}, "", `there is no mesh "west"`, "", 0},
		{"an unknown format", "status -o xml", []*v1alpha1.MeshRolloutStatus{complete}, "", "--output", "", 0},
		{"promote to the end", "promote", []*v1alpha1.MeshRolloutStatus{paused("3.7.0"), complete}, "all stages receive it", "", `"vmesh.io/promote":"3.7.0"`, 0},
		{"promote one of many", "promote", []*v1alpha1.MeshRolloutStatus{paused("3.7.0"), paused("3.7.1")}, "stage canary receives it", "", `"vmesh.io/promote":"3.7.0"`, 0},
		{"promote what another change joined", "promote", []*v1alpha1.MeshRolloutStatus{paused("3.7.0"), paused("3.8.0")}, "", "another change has joined", `"vmesh.io/promote":"3.7.0"`, 0},
		{"promote nothing", "promote", []*v1alpha1.MeshRolloutStatus{complete}, "", "no rollout of mesh default is under way", "", 0},
		{"abort", "abort", []*v1alpha1.MeshRolloutStatus{paused("3.7.0"), aborted}, "1 resources are pinned", "", `"vmesh.io/abort":"3.7.0"`, 0},
		{"abort what has ended meanwhile", "abort", []*v1alpha1.MeshRolloutStatus{paused("3.7.0"), complete}, "", "was complete before", `"vmesh.io/abort":"3.7.0"`, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			kubeconfig, patches := rootWith(t, c.statuses...)
			cmd := newCommand()
			var out bytes.Buffer
			cmd.SetOut(&out)
			cmd.SetErr(io.Discard)
			cmd.SetArgs(append(append([]string{"rollout"}, strings.Fields(c.args)...), "--kubeconfig", kubeconfig))
			err := cmd.ExecuteContext(t.Context())
			switch {
			case c.err == "" && err != nil:
				t.Fatal(err)
			case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
				t.Fatalf("error %v, want %q", err, c.err)
			}
			if !strings.Contains(out.String(), c.out) {
				t.Errorf("printed\n%s\nwant %s", &out, c.out)
			}
			if got := strings.Join(*patches, "\n"); !strings.Contains(got, c.patch) || c.patch == "" && got != "" {
				t.Errorf("patched %s, want %s", got, c.patch)
			}
			if coded, ok := err.(interface{ ExitCode() int }); c.code != 0 && (!ok || coded.ExitCode() != c.code) {
				t.Errorf("error %v has not exit code %d", err, c.code)
			}
		})
	}
}
