package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vmesh-io/vmesh/test/e2e/rawapi"
)

// limited makes a virtual cluster with a quota, in JSON.
func limited(t *testing.T, s *server, quota string) *tenant {
	t.Helper()
	name := fmt.Sprintf("t%03d", tenants.Add(1))
	mustDo(t, rawClient(t, s.root), http.MethodPost, clustersPath, virtualCluster(name, `{"quota":`+quota+`}`))
	return s.tenant(t, name)
}

// usage waits until a virtual cluster's status says what is used.
func usage(t *testing.T, s *server, name, want string) {
	t.Helper()
	root := rawClient(t, s.root)
	eventually(t, func() error {
		got := mustDo(t, root, http.MethodGet, clustersPath+"/"+name, "")
		if is := fmt.Sprint(got.Field("status", "usage")); is != want {
			return fmt.Errorf("status.usage of %s is %s, want %s", name, is, want)
		}
		return nil
	})
}

func names(t *testing.T, client *rawapi.Client, path string) []string {
	t.Helper()
	items, _ := mustDo(t, client, http.MethodGet, path, "").Field("items").([]any)
	var out []string
	for _, item := range items {
		out = append(out, item.(map[string]any)["metadata"].(map[string]any)["name"].(string))
	}
	return out
}

// parallel does something n times at once.
func parallel(n int, do func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { do(i) })
	}
	wg.Wait()
}

const configMaps = "/api/v1/namespaces/default/configmaps"

func configMap(name string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q}}`, name)
}

func TestOfParallelCreationsAsManySucceedAsFitIntoTheQuota(t *testing.T) {
	t.Parallel()
	const fit, tries = 10, 50
	tenant := limited(t, shared, `{"objects":100,"kinds":{"configmaps":10}}`)
	var mu sync.Mutex
	codes := map[int]int{}
	parallel(tries, func(i int) {
		request := rawapi.Request{Method: http.MethodPost, Path: configMaps, ContentType: "application/json", Body: []byte(configMap(fmt.Sprintf("c%d", i)))}
		if i%2 == 0 { // an apply creates as well
			request = rawapi.Request{Method: http.MethodPatch, Path: configMaps + fmt.Sprintf("/c%d?fieldManager=me", i), ContentType: "application/apply-patch+yaml", Body: request.Body}
		}
		response, err := tenant.raw.Do(t.Context(), request)
		if err != nil {
			t.Error(err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		codes[response.Status]++
		if response.Status == http.StatusForbidden {
			refused(t, response, 403, fmt.Sprintf(`exceeded quota: virtual cluster %q, requested: configmaps=1, used: configmaps=10, limited: configmaps=10`, tenant.name))
		}
	})
	if want := map[int]int{201: fit, 403: tries - fit}; !maps.Equal(codes, want) {
		t.Errorf("answers: %v, want %v", codes, want)
	}
	if there := names(t, tenant.raw, configMaps); len(there) != fit {
		t.Errorf("there are %d: %v", len(there), there)
	}
	usage(t, shared, tenant.name, "map[kinds:map[configmaps:10] objects:12]") // with two namespaces
	// All go, and there is room for as many.
	mustDo(t, tenant.raw, http.MethodDelete, configMaps, "")
	parallel(fit, func(i int) { mustDo(t, tenant.raw, http.MethodPost, configMaps, configMap(fmt.Sprintf("d%d", i))) })
	refused(t, do(t, tenant.raw, http.MethodPost, configMaps, configMap("one-more")), 403, "exceeded quota")
}

func TestEveryKindCountsHoweverItIsWritten(t *testing.T) {
	t.Parallel()
	tenant := limited(t, shared, `{"objects":2}`) // the namespaces that it always has
	const rbac = "/apis/rbac.authorization.k8s.io/v1"
	for _, c := range []struct{ name, method, path, body string }{
		{"a namespace", http.MethodPost, "/api/v1/namespaces", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"n"}}`},
		{"a ConfigMap", http.MethodPost, configMaps, configMap("c")},
		{"with a generated name", http.MethodPost, configMaps, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"generateName":"c-"}}`},
		{"a VirtualService", http.MethodPost, virtualServices("default"), virtualService("v")},
		{"a VirtualService in another version", http.MethodPost, "/apis/networking.istio.io/v1beta1/namespaces/default/virtualservices",
			`{"apiVersion":"networking.istio.io/v1beta1","kind":"VirtualService","metadata":{"name":"v"},"spec":{"hosts":["a"],"http":[{"route":[{"destination":{"host":"a"}}]}]}}`},
		{"a role", http.MethodPost, rbac + "/namespaces/default/roles", `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"Role","metadata":{"name":"r"}}`},
		{"a binding", http.MethodPost, rbac + "/clusterrolebindings",
			`{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","metadata":{"name":"b"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"view"}}`},
		{"a default role that is overridden", http.MethodPatch, rbac + "/clusterroles/view", `{"metadata":{"labels":{"a":"b"}}}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			refused(t, do(t, tenant.raw, c.method, c.path, c.body), 403, "exceeded quota", "objects=1, used: objects=2, limited: objects=2")
		})
	}
	mustDo(t, rawClient(t, shared.root), http.MethodPatch, clustersPath+"/"+tenant.name, `{"spec":{"quota":null}}`)
	mustDo(t, tenant.raw, http.MethodPost, configMaps, configMap("c"))
}

func TestAQuotaHoldsAfterARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, err := startServer(dir)
	if err != nil {
		t.Fatal(err)
	}
	tenant := limited(t, first, `{"kinds":{"configmaps":2}}`)
	mustDo(t, tenant.raw, http.MethodPost, configMaps, configMap("a"))
	mustDo(t, tenant.raw, http.MethodPost, configMaps, configMap("b"))
	if err := first.stop(); err != nil { // before the usage has been written
		t.Fatal(err)
	}
	second, err := startServer(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := second.stop(); err != nil {
			t.Error(err)
		}
	}()
	again := second.tenant(t, tenant.name)
	refused(t, do(t, again.raw, http.MethodPost, configMaps, configMap("c")), 403, "used: configmaps=2, limited: configmaps=2")
	usage(t, second, tenant.name, "map[kinds:map[configmaps:2]]")
	mustDo(t, again.raw, http.MethodDelete, configMaps+"/a", "")
	mustDo(t, again.raw, http.MethodPost, configMaps, configMap("c"))
}

// Whoever was told that an object is protected finds it there, however many delete it in
// that moment.
func TestAMarkAndADeletionInOneMomentLoseNothing(t *testing.T) {
	t.Parallel()
	tenant := newTenant(t, shared)
	const n = 60
	parallel(n, func(i int) { mustDo(t, tenant.raw, http.MethodPost, configMaps, configMap(fmt.Sprintf("c%d", i))) })
	var mu sync.Mutex
	var marked []string
	var wg sync.WaitGroup
	wg.Go(func() {
		parallel(n, func(i int) {
			name := fmt.Sprintf("c%d", i)
			response := do(t, tenant.raw, http.MethodPatch, configMaps+"/"+name, `{"metadata":{"labels":{"vmesh.io/protected":"true"}}}`)
			switch response.Status {
			case 200:
				mu.Lock()
				defer mu.Unlock()
				marked = append(marked, name)
			case 404:
			default:
				t.Errorf("marking %s: %v", name, response)
			}
		})
	})
	wg.Go(func() {
		parallel(n, func(i int) {
			path := fmt.Sprintf("%s/c%d", configMaps, i)
			if i == n/2 {
				path = configMaps
			}
			if response := do(t, tenant.raw, http.MethodDelete, path, ""); response.Status != 200 && response.Status != 403 && response.Status != 404 {
				t.Errorf("deleting: %v", response)
			}
		})
	})
	wg.Wait()
	there := names(t, tenant.raw, configMaps)
	for _, name := range marked {
		if !slices.Contains(there, name) {
			t.Errorf("%s is gone, though it was marked", name)
		}
	}
	t.Logf("%d marked, %d there", len(marked), len(there))
}

func TestAFreezeIsEffectiveWhenItIsAnswered(t *testing.T) {
	t.Parallel()
	tenant := newTenant(t, shared)
	root := rawClient(t, shared.root)
	mustDo(t, tenant.raw, http.MethodPost, configMaps, configMap("a"))
	mustDo(t, root, http.MethodPatch, clustersPath+"/"+tenant.name, `{"spec":{"freeze":{"reason":"an inquiry"}}}`)
	parallel(20, func(i int) {
		refused(t, do(t, tenant.raw, http.MethodPost, configMaps, configMap(fmt.Sprintf("c%d", i))), 403, "frozen and takes no writes: an inquiry")
	})
	refused(t, do(t, tenant.raw, http.MethodDelete, configMaps+"/a", ""), 403, "an inquiry")
	mustDo(t, tenant.raw, http.MethodPost, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
		`{"apiVersion":"authorization.k8s.io/v1","kind":"SelfSubjectAccessReview","spec":{"resourceAttributes":{"verb":"get","resource":"pods"}}}`)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if response, err := tenant.raw.Do(ctx, rawapi.Request{Method: http.MethodGet, Path: configMaps + "?watch=true&timeoutSeconds=1"}); err == nil && response.Status != 200 {
		t.Errorf("a watch: %v", response)
	}
	mustDo(t, root, http.MethodPatch, clustersPath+"/"+tenant.name, `{"spec":{"freeze":null}}`)
	mustDo(t, tenant.raw, http.MethodDelete, configMaps+"/a", "")
}
