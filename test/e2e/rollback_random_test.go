package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmesh-io/vmesh/test/e2e/rawapi"
)

// rollbackKinds are kinds of which objects come and go, with contents of which no two are
// alike. What is fixed cannot be changed once an object is there.
var rollbackKinds = []struct {
	path, kind string
	contents   []string
	fixed      bool
}{
	{"/apis/networking.istio.io/v1/%svirtualservices", "networking.istio.io/v1 VirtualService",
		[]string{`"spec":{"hosts":["reviews"],"http":[{"route":[{"destination":{"host":"reviews"}}]}]}`, `"spec":{"hosts":["ratings"],"http":[{"route":[{"destination":{"host":"ratings"}}]}]}`}, false},
	{"/apis/networking.istio.io/v1/%sdestinationrules", "networking.istio.io/v1 DestinationRule",
		[]string{`"spec":{"host":"reviews"}`, `"spec":{"host":"reviews","subsets":[{"name":"v1","labels":{"version":"v1"}}]}`}, false},
	{"/api/v1/%sconfigmaps", "v1 ConfigMap", []string{`"data":{"a":"1"}`, `"data":{"a":"2","b":"3"}`, `"binaryData":{"a":"AAEC"}`}, false},
	{"/api/v1/%sconfigmaps", "v1 ConfigMap", []string{`"data":{"x":"1"},"immutable":true`, `"data":{"x":"2"},"immutable":true`}, true},
	{"/api/v1/%sservices", "v1 Service", []string{`"spec":{"ports":[{"port":80}]}`, `"spec":{"ports":[{"name":"http","port":80}],"selector":{"app":"x"}}`}, false},
	{"/apis/rbac.authorization.k8s.io/v1/%sroles", "rbac.authorization.k8s.io/v1 Role",
		[]string{`"rules":[{"apiGroups":[""],"resources":["configmaps"],"verbs":["get"]}]`, `"rules":[]`}, false},
	{"/apis/rbac.authorization.k8s.io/v1/%srolebindings", "rbac.authorization.k8s.io/v1 RoleBinding",
		[]string{`"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"view"}`, `"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"edit"}`}, true},
}

// rollbackState is what a rollback has to bring back, by kind, namespace and name.
func rollbackState(t *testing.T, client *rawapi.Client) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, k := range rollbackKinds {
		var list struct {
			Items []map[string]json.RawMessage `json:"items"`
		}
		if err := json.Unmarshal(mustDo(t, client, http.MethodGet, fmt.Sprintf(k.path, ""), "").Body, &list); err != nil {
			t.Fatal(err)
		}
		for _, o := range list.Items {
			var meta struct {
				Namespace, Name     string
				Labels, Annotations map[string]string
				Finalizers          []string
			}
			if err := json.Unmarshal(o["metadata"], &meta); err != nil {
				t.Fatal(err)
			}
			delete(o, "metadata")
			delete(o, "status")
			content, err := json.Marshal(o)
			if err != nil {
				t.Fatal(err)
			}
			all[strings.Join([]string{k.kind, meta.Namespace, meta.Name}, " ")] = fmt.Sprint(meta.Labels, meta.Annotations, meta.Finalizers, string(content))
		}
	}
	return all
}

func TestWhateverHappenedARollbackEndsInWhatWas(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rollBackAtRandom(t, rand.New(rand.NewPCG(seed, 1)))
		})
	}
}

func rollBackAtRandom(t *testing.T, random *rand.Rand) {
	admin := newTenant(t, shared)
	namespaces := []string{"default", "a", "b"}
	there := map[string]bool{"default": true}
	type moment struct {
		revision   string
		state      map[string]string
		namespaces map[string]bool
	}
	var moments []moment
	remember := func() {
		t.Helper()
		moments = append(moments, moment{changes(t, admin.raw, "", "?limit=1")[0].Name, rollbackState(t, admin.raw), maps.Clone(there)})
	}
	write := func() {
		t.Helper()
		namespace := namespaces[random.IntN(len(namespaces))]
		if random.IntN(12) == 0 && namespace != "default" && there[namespace] {
			kubectlAs(t, admin, "delete", "namespace", namespace)
			there[namespace] = false
			return
		}
		if !there[namespace] {
			admin.namespace(t, namespace)
			there[namespace] = true
		}
		k := rollbackKinds[random.IntN(len(rollbackKinds))]
		collection, name := fmt.Sprintf(k.path, "namespaces/"+namespace+"/"), fmt.Sprintf("x%d", random.IntN(3))
		if k.fixed {
			name += "-fixed"
		}
		apiVersion, kind, _ := strings.Cut(k.kind, " ")
		body := fmt.Sprintf(`{"apiVersion":%q,"kind":%q,"metadata":{"name":%q,"labels":{"n":"%d"},"annotations":{"a":"%d"}},%s}`,
			apiVersion, kind, name, random.IntN(2), random.IntN(2), k.contents[random.IntN(len(k.contents))])
		found, err := admin.raw.Do(t.Context(), rawapi.Request{Method: http.MethodGet, Path: collection + "/" + name})
		if err != nil {
			t.Fatal(err)
		}
		switch exists := found.Status == http.StatusOK; {
		case !exists:
			sendAs(t, admin, http.MethodPost, collection, body)
		case k.fixed || random.IntN(3) == 0:
			sendAs(t, admin, http.MethodDelete, collection+"/"+name, "")
			if random.IntN(2) == 0 {
				sendAs(t, admin, http.MethodPost, collection, body)
			}
		case random.IntN(2) == 0:
			sendAs(t, admin, http.MethodPut, collection+"/"+name, strings.Replace(body, `"name":`, fmt.Sprintf(`"resourceVersion":%q,"name":`, found.Text("metadata", "resourceVersion")), 1))
		default:
			sendAs(t, admin, http.MethodPatch, collection+"/"+name, fmt.Sprintf(`{"metadata":{"labels":{"n":null,"m":"%d"}}}`, random.IntN(3)))
		}
	}
	sendAs(t, admin, http.MethodPost, fmt.Sprintf(rollbackKinds[0].path, "namespaces/default/"), virtualService("first"))
	remember()
	for step := range 8 {
		for range 12 {
			write()
			remember()
		}
		to := moments[random.IntN(len(moments))]
		before, want := rollbackState(t, admin.raw), to.state
		args := []string{"rollback", "--all"}
		if namespace := namespaces[random.IntN(len(namespaces))]; random.IntN(2) == 0 && there[namespace] && to.namespaces[namespace] {
			args = []string{"rollback", "-n", namespace}
			of := func(key string) bool { return strings.Fields(key)[2] == namespace }
			want = maps.Clone(before)
			maps.DeleteFunc(want, func(key, _ string) bool { return of(key) })
			for key, content := range to.state {
				if of(key) {
					want[key] = content
				}
			}
		} else {
			for namespace, was := range to.namespaces {
				there[namespace] = there[namespace] || was
			}
		}
		args = append(args, "--to-revision", to.revision, "--yes", "-q")
		out := mustVmesh(t, admin, 0, nil, args...)
		if diff := cmp.Diff(want, rollbackState(t, admin.raw)); diff != "" {
			t.Fatalf("step %d, vmesh %s: not as it was (-want +got):\n%s\nit said\n%s", step, strings.Join(args, " "), diff, out)
		}
		mustVmesh(t, admin, 0, []string{"Nothing to do"}, args...)
		remember()
	}
}
