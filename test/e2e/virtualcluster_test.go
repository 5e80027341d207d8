package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/vmesh-io/vmesh/test/e2e/rawapi"
)

const clustersPath = "/apis/vmesh.io/v1alpha1/virtualclusters"

func virtualCluster(name, spec string) string {
	return fmt.Sprintf(`{"apiVersion":"vmesh.io/v1alpha1","kind":"VirtualCluster","metadata":{"name":%q},"spec":%s}`, name, spec)
}

// removed takes virtual clusters away when the test is over, if they are there.
func removed(t *testing.T, names ...string) {
	t.Helper()
	t.Cleanup(func() {
		client, err := rawapi.NewForConfig(shared.root)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		for _, name := range names {
			path := clustersPath + "/" + name
			do(t, client, http.MethodPatch, path, fmt.Sprintf(`{"metadata":{"annotations":{"vmesh.io/confirm-deletion":%q},"finalizers":null}}`, name))
			do(t, client, http.MethodDelete, path, "")
			eventually(t, func() error {
				if response := do(t, client, http.MethodGet, path, ""); response.Status != 404 {
					return fmt.Errorf("got %v", response)
				}
				return nil
			})
		}
	})
}

func ready(t *testing.T, tree map[string]any) string {
	t.Helper()
	status, _ := tree["status"].(map[string]any)
	conditions, _ := status["conditions"].([]any)
	for _, c := range conditions {
		if condition, ok := c.(map[string]any); ok && condition["type"] == "Ready" {
			return fmt.Sprintf("%v/%v", condition["status"], condition["reason"])
		}
	}
	return "none"
}

func TestVirtualClusterIsReadyWhenItsCreationIsAnswered(t *testing.T) {
	root := rawClient(t, shared.root)
	removed(t, "at-once")
	created := mustDo(t, root, http.MethodPost, clustersPath, virtualCluster("at-once", `{}`))
	if got := ready(t, created.JSON()); got != "True/Serving" {
		t.Errorf("Ready is %s", got)
	}
	if got, want := created.Text("status", "url"), shared.options.URL()+"/clusters/at-once"; got != want {
		t.Errorf("status.url is %q, want %q", got, want)
	}
	if got := created.Text("spec", "mesh"); got != "default" {
		t.Errorf("spec.mesh is %q", got)
	}
	tenant := shared.tenant(t, "at-once")
	mustDo(t, tenant.raw, http.MethodPost, virtualServices("default"), virtualService("first"))
	mustDo(t, tenant.raw, http.MethodGet, "/api/v1/namespaces/istio-system", "")
}

func TestDefaultsOfAFirstStart(t *testing.T) {
	root := rawClient(t, shared.root)
	cluster := mustDo(t, root, http.MethodGet, clustersPath+"/default", "")
	if got := fmt.Sprint(cluster.Field("spec", "namespaces")); got != "[*]" {
		t.Errorf("the default virtual cluster owns %s, want every namespace that no other owns", got)
	}
	mesh := mustDo(t, root, http.MethodGet, "/apis/vmesh.io/v1alpha1/meshes/default", "")
	if got := mesh.Text("spec", "rootNamespace"); got != "istio-system" {
		t.Errorf("the default mesh's root namespace is %q", got)
	}
	refused(t, do(t, root, http.MethodDelete, "/apis/vmesh.io/v1alpha1/meshes/default", ""), http.StatusForbidden, "virtual clusters belong to it", "default")
}

func TestVirtualClustersThatCannotBe(t *testing.T) {
	root := rawClient(t, shared.root)
	removed(t, "owner", "elsewhere", "taker")
	mustDo(t, root, http.MethodPost, clustersPath, virtualCluster("owner", `{"namespaces":["own-*","single"]}`))
	for _, c := range []struct {
		name, cluster, spec string
		status              int
		parts               []string
	}{
		{"a name with a dot", "a.b", `{}`, 422, []string{"metadata.name", "a.b"}},
		{"a name in capitals", "Upper", `{}`, 422, []string{"metadata.name"}},
		{"a name that is too long", strings.Repeat("a", 64), `{}`, 422, []string{"metadata.name", "63"}},
		{"the root's name", "root", `{}`, 422, []string{"metadata.name", "endpoint that manages virtual clusters"}},
		{"a pattern with a star within", "bad", `{"namespaces":["a*b"]}`, 422, []string{"spec.namespaces[0]"}},
		{"a pattern in capitals", "bad", `{"namespaces":["ok","Bad"]}`, 422, []string{"spec.namespaces[1]"}},
		{"a pattern given twice", "bad", `{"namespaces":["a","a"]}`, 422, []string{"spec.namespaces[1]", "Duplicate"}},
		{"an empty pattern", "bad", `{"namespaces":[""]}`, 422, []string{"spec.namespaces[0]"}},
		{"namespaces that are no list", "bad", `{"namespaces":"a"}`, 422, []string{"spec.namespaces", "array"}},
		{"a namespace within another's pattern", "bad", `{"namespaces":["own-a"]}`, 422, []string{`"own-a"`, `"own-*"`, `"owner"`}},
		{"a pattern within another's pattern", "bad", `{"namespaces":["free","own-a-*"]}`, 422, []string{`"own-a-*"`, `"own-*"`, `"owner"`}},
		{"a pattern around another's pattern", "bad", `{"namespaces":["ow*"]}`, 422, []string{`"ow*"`, `"owner"`}},
		{"a pattern around another's namespace", "bad", `{"namespaces":["sing*"]}`, 422, []string{`"single"`, `"owner"`}},
		{"all that is left, which default has", "bad", `{"namespaces":["*"]}`, 422, []string{`"*"`, `"default"`}},
		{"a name that is taken", "owner", `{}`, 409, []string{"already exists"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			refused(t, do(t, root, http.MethodPost, clustersPath, virtualCluster(c.cluster, c.spec)), c.status, c.parts...)
			if c.status == 422 && c.cluster == "bad" {
				refused(t, do(t, root, http.MethodGet, clustersPath+"/bad", ""), 404)
				refused(t, do(t, root, http.MethodPost, clustersPath+"?dryRun=All", virtualCluster(c.cluster, c.spec)), c.status, c.parts...)
			}
		})
	}
	t.Run("in another mesh the same claims are free, and a mesh that is not there is warned of", func(t *testing.T) {
		created := mustDo(t, root, http.MethodPost, clustersPath, virtualCluster("elsewhere", `{"mesh":"other","namespaces":["own-*"]}`))
		if warning := created.Header.Get("Warning"); !strings.Contains(warning, `there is no mesh`) {
			t.Errorf("the warning is %q", warning)
		}
	})
	t.Run("access by a role that is not there yet is accepted with a warning", func(t *testing.T) {
		access := func(role string) string {
			return fmt.Sprintf(`{"access":[{"role":%q,"subjects":[{"kind":"Group","name":"guests"}]}]}`, role)
		}
		created := mustDo(t, root, http.MethodPost, clustersPath, virtualCluster("open", access("auditor")))
		removed(t, "open")
		if warning := created.Header.Get("Warning"); !strings.Contains(warning, `no ClusterRole \"auditor\"`) {
			t.Errorf("the warning is %q", warning)
		}
		mustDo(t, shared.tenant(t, "open").raw, http.MethodPost, rbacAPI+"/clusterroles", `{"metadata":{"name":"auditor"}}`)
		for _, role := range []string{"auditor", "view"} {
			patched := mustDo(t, root, http.MethodPatch, clustersPath+"/open", `{"spec":`+access(role)+`}`)
			if warning := patched.Header.Get("Warning"); warning != "" {
				t.Errorf("%s: the warning is %q", role, warning)
			}
		}
	})
	t.Run("claims are checked when they change, and free when they are given up", func(t *testing.T) {
		mustDo(t, root, http.MethodPost, clustersPath, virtualCluster("taker", `{}`))
		refused(t, do(t, root, http.MethodPatch, clustersPath+"/taker", `{"spec":{"namespaces":["own-x"]}}`), 422, `"owner"`)
		mustDo(t, root, http.MethodPatch, clustersPath+"/owner", `{"spec":{"namespaces":["single"]}}`)
		mustDo(t, root, http.MethodPatch, clustersPath+"/taker", `{"spec":{"namespaces":["own-x"]}}`)
		refused(t, do(t, root, http.MethodPatch, clustersPath+"/owner", `{"spec":{"namespaces":["own-*"]}}`), 422, `"taker"`)
	})
}

func TestOfManyWhoClaimTheSameAtOnceOneWins(t *testing.T) {
	root := rawClient(t, shared.root)
	const rivals = 16
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for i := range rivals {
		removed(t, fmt.Sprintf("rival-%d", i))
		wg.Go(func() {
			pattern := []string{"race-*", "race-a", "ra*", "race-a-*"}[i%4]
			response := do(t, root, http.MethodPost, clustersPath, virtualCluster(fmt.Sprintf("rival-%d", i), fmt.Sprintf(`{"namespaces":[%q]}`, pattern)))
			mu.Lock()
			defer mu.Unlock()
			if response.Status == http.StatusCreated {
				won++
			} else if response.Status != http.StatusUnprocessableEntity {
				t.Errorf("got %v", response)
			}
		})
	}
	wg.Wait()
	if won == 0 {
		t.Error("nobody won")
	}
	// Of the four patterns only race-a and race-a-* do not overlap.
	if won > 2 {
		t.Errorf("%d won", won)
	}
}

func TestOfManyWhoCreateTheSameAtOnceOneWins(t *testing.T) {
	root := rawClient(t, shared.root)
	removed(t, "wanted")
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for range 16 {
		wg.Go(func() {
			response := do(t, root, http.MethodPost, clustersPath, virtualCluster("wanted", `{}`))
			mu.Lock()
			defer mu.Unlock()
			switch response.Status {
			case http.StatusCreated:
				won++
			case http.StatusConflict:
			default:
				t.Errorf("got %v", response)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d won", won)
	}
	// What the winner was set up with is not cleared away by those who came too late.
	for _, namespace := range []string{"default", "istio-system"} {
		mustDo(t, shared.tenant(t, "wanted").raw, http.MethodGet, "/api/v1/namespaces/"+namespace, "")
	}
}

func TestDeletingAVirtualCluster(t *testing.T) {
	root := rawClient(t, shared.root)
	const name, path = "doomed", clustersPath + "/doomed"
	mustDo(t, root, http.MethodPost, clustersPath, virtualCluster(name, `{"namespaces":["doomed-*"]}`))
	first := shared.tenant(t, name)

	t.Run("is refused while it holds objects, says how many and how to confirm", func(t *testing.T) {
		first.namespace(t, "doomed-a")
		for i := range 300 {
			mustDo(t, first.raw, http.MethodPost, "/api/v1/namespaces/doomed-a/configmaps", fmt.Sprintf(`{"metadata":{"name":"cm-%d","finalizers":["example.com/hold"]}}`, i))
		}
		mustDo(t, first.raw, http.MethodPost, virtualServices("doomed-a"), virtualService("reviews"))
		refused(t, do(t, root, http.MethodDelete, path, ""), http.StatusForbidden, "302 objects", "kubectl annotate virtualcluster doomed vmesh.io/confirm-deletion=doomed")
		refused(t, do(t, root, http.MethodDelete, path+"?dryRun=All", ""), http.StatusForbidden, "302 objects")
		mustDo(t, root, http.MethodPatch, path, `{"metadata":{"annotations":{"vmesh.io/confirm-deletion":"another"}}}`)
		refused(t, do(t, root, http.MethodDelete, path, ""), http.StatusForbidden)
	})

	events := watchRaw(t, shared.root, clustersPath+"?fieldSelector=metadata.name%3Ddoomed")
	tenantEvents := watchRaw(t, first.config, "/api/v1/configmaps")
	t.Run("empties it when it is confirmed, and shows the progress", func(t *testing.T) {
		mustDo(t, root, http.MethodPatch, path, `{"metadata":{"annotations":{"vmesh.io/confirm-deletion":"doomed"}}}`)
		mustDo(t, root, http.MethodDelete, path, "")
		var progress bool
		for e := next(t, events); e.Type != "DELETED"; e = next(t, events) {
			progress = progress || e.Object.Metadata.DeletionTimestamp != nil
		}
		if !progress {
			t.Error("the deletion was never seen under way")
		}
		// The end of the tenant's access may cut its watch short.
		for open, deadline := true, time.After(time.Minute); open; {
			var e event
			select {
			case e, open = <-tenantEvents:
				if open && e.Type != "DELETED" {
					t.Fatalf("a watch of the contents saw %+v", e)
				}
			case <-deadline:
				t.Fatal("a watch outlived the virtual cluster")
			}
		}
		refused(t, do(t, root, http.MethodGet, path, ""), 404)
	})
	t.Run("ends the access to it", func(t *testing.T) {
		eventually(t, func() error {
			if response := do(t, first.raw, http.MethodGet, "/api/v1/namespaces", ""); response.Status != http.StatusUnauthorized {
				return fmt.Errorf("got %v", response)
			}
			return nil
		})
	})
	t.Run("leaves nothing to the next of that name, not even access", func(t *testing.T) {
		mustDo(t, root, http.MethodPost, clustersPath, virtualCluster(name, `{"namespaces":["doomed-*"]}`))
		second := shared.tenant(t, name)
		for path, want := range map[string]int{"/api/v1/namespaces": 2, "/api/v1/configmaps": 0, "/apis/networking.istio.io/v1/virtualservices": 0} {
			if got := count(mustDo(t, second.raw, http.MethodGet, path, "")); got != want {
				t.Errorf("%s has %d objects, want %d", path, got, want)
			}
		}
		refused(t, do(t, first.raw, http.MethodGet, "/api/v1/namespaces", ""), http.StatusUnauthorized)
		refused(t, do(t, first.raw, http.MethodPost, "/api/v1/namespaces/default/configmaps", `{"metadata":{"name":"a"}}`), http.StatusUnauthorized)
	})
	t.Run("asks nothing when nobody has put anything in", func(t *testing.T) {
		mustDo(t, root, http.MethodDelete, path, "")
		eventually(t, func() error {
			if response := do(t, root, http.MethodGet, path, ""); response.Status != 404 {
				return fmt.Errorf("got %v", response)
			}
			return nil
		})
	})
}

func TestAVirtualClusterThatIsBeingDeletedTakesNoWrites(t *testing.T) {
	root := rawClient(t, shared.root)
	const name, path = "going", clustersPath + "/going"
	// A finalizer of ours holds it in that state.
	mustDo(t, root, http.MethodPost, clustersPath, `{"apiVersion":"vmesh.io/v1alpha1","kind":"VirtualCluster","metadata":{"name":"going","finalizers":["example.com/hold"]}}`)
	tenant := shared.tenant(t, name)
	mustDo(t, root, http.MethodDelete, path, "")
	eventually(t, func() error {
		response := do(t, tenant.raw, http.MethodPost, "/api/v1/namespaces/default/configmaps", `{"metadata":{"generateName":"a"}}`)
		if response.Status != http.StatusForbidden || !strings.Contains(response.Text("message"), "is being deleted") {
			return fmt.Errorf("got %v", response)
		}
		return nil
	})
	// What waits for the other finalizer is empty all the same.
	eventually(t, func() error {
		if n := count(mustDo(t, tenant.raw, http.MethodGet, "/api/v1/namespaces", "")); n != 0 {
			return fmt.Errorf("%d namespaces are left", n)
		}
		return nil
	})
	refused(t, do(t, root, http.MethodPost, path+"/kubeconfig", `{"apiVersion":"vmesh.io/v1alpha1","kind":"KubeconfigRequest","spec":{"request":""}}`), http.StatusForbidden, "is being deleted")
	mustDo(t, root, http.MethodPatch, path, `{"metadata":{"finalizers":null}}`)
	eventually(t, func() error {
		if response := do(t, root, http.MethodGet, path, ""); response.Status != 404 {
			return fmt.Errorf("got %v", response)
		}
		return nil
	})
}

func TestCreatingAVirtualClusterIsQuick(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector slows it down")
	}
	root := rawClient(t, shared.root)
	var best time.Duration
	for i := range 20 {
		removed(t, fmt.Sprintf("quick-%d", i))
		begun := time.Now()
		mustDo(t, root, http.MethodPost, clustersPath, virtualCluster(fmt.Sprintf("quick-%d", i), `{}`))
		config := rest.CopyConfig(shared.root)
		config.Host += fmt.Sprintf("/clusters/quick-%d", i)
		mustDo(t, rawClient(t, config), http.MethodPost, virtualServices("default"), virtualService("first"))
		if took := time.Since(begun); best == 0 || took < best {
			best = took
		}
	}
	// Generous: a machine of tests is busy with other things, too.
	if best > 500*time.Millisecond {
		t.Errorf("the quickest of 20 was ready for use after %v", best)
	}
}

func TestAVirtualClusterMadeAnewIsAtOnceTheNewOne(t *testing.T) {
	root := rawClient(t, shared.root)
	const name, path = "phoenix", clustersPath + "/phoenix"
	var before *tenant
	for i := range 30 {
		mustDo(t, root, http.MethodPost, clustersPath, virtualCluster(name, `{}`))
		now := shared.tenant(t, name)
		if before != nil {
			refused(t, do(t, before.raw, http.MethodGet, "/api/v1/namespaces", ""), http.StatusUnauthorized)
		}
		before = now
		if got := count(mustDo(t, now.raw, http.MethodGet, "/api/v1/namespaces", "")); got != 2 {
			t.Fatalf("at time %d it has %d namespaces, want 2", i, got)
		}
		mustDo(t, now.raw, http.MethodPost, virtualServices("default"), virtualService("a"))
		mustDo(t, root, http.MethodPatch, path, `{"metadata":{"annotations":{"vmesh.io/confirm-deletion":"phoenix"}}}`)
		mustDo(t, root, http.MethodDelete, path, "")
		eventually(t, func() error {
			if response := do(t, root, http.MethodGet, path, ""); response.Status != 404 {
				return fmt.Errorf("got %v", response)
			}
			return nil
		})
	}
}

func TestADryRunOfAVirtualClusterMakesNone(t *testing.T) {
	root := rawClient(t, shared.root)
	removed(t, "real")
	mustDo(t, root, http.MethodPost, clustersPath+"?dryRun=All", virtualCluster("imagined", `{"namespaces":["imagined"]}`))
	refused(t, do(t, root, http.MethodGet, clustersPath+"/imagined", ""), 404)
	config := rest.CopyConfig(shared.root)
	config.Host += "/clusters/imagined"
	refused(t, do(t, rawClient(t, config), http.MethodGet, "/api/v1/namespaces", ""), 404)
	mustDo(t, root, http.MethodPost, clustersPath, virtualCluster("real", `{"namespaces":["imagined"]}`)) // nothing is claimed
}

func TestTheFinalizerOfAVirtualClusterStays(t *testing.T) {
	root := rawClient(t, shared.root)
	removed(t, "kept")
	mustDo(t, root, http.MethodPost, clustersPath, `{"apiVersion":"vmesh.io/v1alpha1","kind":"VirtualCluster","metadata":{"name":"kept","finalizers":["example.com/mine"]}}`)
	for _, patch := range []string{`{}`, `{"metadata":{"finalizers":null}}`, `{"metadata":{"finalizers":["example.com/other"]}}`} {
		patched := mustDo(t, root, http.MethodPatch, clustersPath+"/kept", patch)
		if got := fmt.Sprint(patched.Field("metadata", "finalizers")); !strings.Contains(got, "vmesh.io/purge") {
			t.Errorf("after %s the finalizers are %s", patch, got)
		}
	}
}
