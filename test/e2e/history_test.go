package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/apiserver"
	"github.com/vmesh-io/vmesh/test/e2e/rawapi"
)

// vmeshAs runs the program in a virtual cluster, and returns all that it says, and its exit code.
func vmeshAs(t *testing.T, who *tenant, args ...string) (string, int) {
	t.Helper()
	binary, err := builtVmesh()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), binary, append(args, "--kubeconfig", who.kubeconfig)...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// mustVmesh is vmeshAs for what must end with an exit code and say all the words.
func mustVmesh(t *testing.T, who *tenant, code int, words []string, args ...string) string {
	t.Helper()
	out, got := vmeshAs(t, who, args...)
	if got != code {
		t.Errorf("vmesh %s: exit code %d, want %d:\n%s", strings.Join(args, " "), got, code, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			t.Errorf("vmesh %s: it does not say %q:\n%s", strings.Join(args, " "), w, out)
		}
	}
	return out
}

// changes lists the changes of all namespaces, or of one, that somebody may see: the newest first.
func changes(t *testing.T, client *rawapi.Client, namespace, query string) []v1alpha1.Change {
	t.Helper()
	path := "/apis/vmesh.io/v1alpha1/changes"
	if namespace != "" {
		path = "/apis/vmesh.io/v1alpha1/namespaces/" + namespace + "/changes"
	}
	var list v1alpha1.ChangeList
	if err := json.Unmarshal(mustDo(t, client, http.MethodGet, path+query, "").Body, &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// told are changes in short: verb, kind, name and what, the oldest first.
func told(all []v1alpha1.Change) string {
	var lines []string
	for _, c := range slices.Backward(all) {
		lines = append(lines, strings.Join([]string{c.User.Name, c.Verb, c.Object.Kind, c.Object.Name, c.What}, " "))
	}
	return strings.Join(lines, "\n")
}

func TestEveryChangeIsListedWithWhoWhenAndWhat(t *testing.T) {
	t.Parallel()
	admin := newTenant(t, shared)
	if found := changes(t, admin.raw, "", ""); len(found) > 0 {
		t.Errorf("a new virtual cluster has changes: %s", told(found))
	}
	admin.namespace(t, "a")
	kubectlWith(t, admin, virtualService("x"), "apply", "-n", "a", "-f", "-")
	kubectlWith(t, admin, strings.Replace(virtualService("x"), `["reviews"]`, `["ratings"]`, 1), "apply", "--server-side", "--force-conflicts", "-n", "a", "-f", "-")
	mustDo(t, admin.raw, http.MethodPatch, virtualServices("a")+"/x/status", `{"status":{"observedGeneration":1}}`)
	mustDo(t, admin.raw, http.MethodPatch, virtualServices("a")+"/x", `{"metadata":{"labels":{"team":"shop"}}}`)
	mustDo(t, admin.raw, http.MethodPatch, virtualServices("a")+"/x", `{"metadata":{"labels":{"team":"shop"}}}`) // nothing new
	refused(t, do(t, admin.raw, http.MethodPatch, virtualServices("a")+"/x", `{"spec":{"hosts":"no list"}}`), 422)
	mustDo(t, admin.raw, http.MethodPost, virtualServices("a")+"?dryRun=All", virtualService("dry"))
	kubectlAs(t, admin, "create", "secret", "generic", "s", "-n", "a", "--from-literal=a=b")
	kubectlAs(t, admin, "delete", "virtualservice", "x", "-n", "a")
	kubectlAs(t, admin, "create", "clusterrole", "r", "--verb=get", "--resource=pods")
	const want = `admin create Namespace a created
admin create VirtualService x created
admin apply VirtualService x metadata.annotations.kubectl.kubernetes.io/last-applied-configuration, spec.hosts[0]
admin patch VirtualService x metadata.labels.team
admin delete VirtualService x deleted
admin create ClusterRole r created`
	all := changes(t, admin.raw, "", "")
	// Whether a server-side apply drops what a client-side one remembers is kubectl's business.
	got := strings.NewReplacer("metadata.annotations, ", "", "metadata.annotations[kubectl.kubernetes.io/last-applied-configuration], ", "").Replace(told(all))
	if w := strings.Replace(want, "metadata.annotations.kubectl.kubernetes.io/last-applied-configuration, ", "", 1); got != w {
		t.Errorf("got\n%s\nwant\n%s", got, w)
	}
	for _, c := range all {
		if time.Since(c.Time.Time).Abs() > time.Minute || c.UserAgent == "" || c.Name != c.ResourceVersion {
			t.Errorf("got %+v", c)
		}
		if (c.Before == nil) != (c.Operation == v1alpha1.ChangeCreate) || (c.After == nil) != (c.Operation == v1alpha1.ChangeDelete) {
			t.Errorf("change %s, a %s, has before %v and after %v", c.Name, c.Operation, c.Before, c.After)
		}
	}
	out := kubectlAs(t, admin, "get", "changes", "-n", "a")
	for _, word := range []string{"REVISION", "WHAT", "virtualservice/x", "namespace/a", "spec.hosts[0]"} {
		if !strings.Contains(out, word) {
			t.Errorf("kubectl get changes has no %q:\n%s", word, out)
		}
	}
	if got := told(changes(t, admin.raw, "a", "?fieldSelector="+"object.kind%3DVirtualService,operation%3DDelete")); got != "admin delete VirtualService x deleted" {
		t.Errorf("selected is %q", got)
	}
	// By pages, each change once.
	seen, token := map[string]bool{}, ""
	for {
		response := mustDo(t, admin.raw, http.MethodGet, "/apis/vmesh.io/v1alpha1/changes?limit=2&continue="+token, "")
		var list v1alpha1.ChangeList
		if err := json.Unmarshal(response.Body, &list); err != nil {
			t.Fatal(err)
		}
		for _, c := range list.Items {
			if seen[c.Name] {
				t.Errorf("change %s is there twice", c.Name)
			}
			seen[c.Name] = true
		}
		if token = list.Continue; token == "" {
			break
		}
	}
	if len(seen) != len(all) {
		t.Errorf("%d changes by pages, of %d", len(seen), len(all))
	}
	revision := changes(t, admin.raw, "a", "?fieldSelector=object.kind%3DVirtualService,operation%3DUpdate")[1].Name
	mustVmesh(t, admin, 0, []string{"User:    admin", "-  - reviews", "+  - ratings"}, "history", "show", revision)
	mustVmesh(t, admin, 0, []string{"clusterrole/r", "NAMESPACE"}, "history", "-A")
	mustVmesh(t, admin, 0, []string{"+  - ratings", "deleted file"}[:1], "history", "vs/x", "-n", "a", "--diff")
	refused(t, do(t, admin.raw, http.MethodDelete, "/apis/vmesh.io/v1alpha1/namespaces/a/changes/"+revision, ""), http.StatusMethodNotAllowed)
	refused(t, do(t, admin.raw, http.MethodGet, "/apis/vmesh.io/v1alpha1/changes?fieldSelector=sinceRevision%3D1", ""), http.StatusGone, "does not reach back")
}

func TestAHistoryShowsNobodyWhatHeMayNotRead(t *testing.T) {
	t.Parallel()
	one, two := newTenant(t, shared), newTenant(t, shared)
	for _, n := range []*tenant{one, two} {
		n.namespace(t, "a")
		n.namespace(t, "b")
		mustDo(t, n.raw, http.MethodPost, virtualServices("a"), virtualService("in-"+n.name))
		mustDo(t, n.raw, http.MethodPost, virtualServices("b"), virtualService("hidden-"+n.name))
	}
	if got := told(changes(t, one.raw, "", "")); strings.Contains(got, two.name) || !strings.Contains(got, "in-"+one.name) {
		t.Errorf("%s sees\n%s", one.name, got)
	}
	other := changes(t, two.raw, "a", "")[0]
	refused(t, do(t, one.raw, http.MethodGet, "/apis/vmesh.io/v1alpha1/namespaces/a/changes/"+other.Name, ""), http.StatusNotFound)

	bindIn(t, one, "a", "viewers", "ClusterRole", "view", "User", "viewer")
	viewer := shared.as(t, one.name, "viewer", "viewers")
	says(t, viewer, "in-"+one.name, "get", "changes", "-n", "a")
	if got := told(changes(t, viewer.raw, "a", "")); strings.Contains(got, "RoleBinding") || !strings.Contains(got, "Namespace a") {
		t.Errorf("a viewer of the namespace sees\n%s", got) // the binding that makes it one is not for viewers
	}
	if got := told(changes(t, one.raw, "a", "")); !strings.Contains(got, "RoleBinding viewers created") {
		t.Errorf("an administrator sees\n%s", got)
	}
	refused(t, do(t, viewer.raw, http.MethodGet, "/apis/vmesh.io/v1alpha1/changes", ""), http.StatusForbidden)
	refused(t, do(t, viewer.raw, http.MethodGet, "/apis/vmesh.io/v1alpha1/namespaces/b/changes", ""), http.StatusForbidden)
	binding := changes(t, one.raw, "a", "?fieldSelector=object.kind%3DRoleBinding")[0]
	refused(t, do(t, viewer.raw, http.MethodGet, "/apis/vmesh.io/v1alpha1/namespaces/a/changes/"+binding.Name, ""), http.StatusNotFound)

	// Who acted as somebody else is told.
	kubectlAs(t, one, "label", "virtualservice", "in-"+one.name, "-n", "a", "x=y", "--as", "somebody", "--as-group", "nobody")
	bindIn(t, one, "a", "editors", "ClusterRole", "edit", "User", "somebody")
	eventually(t, func() error {
		if out := kubectlAs(t, one, "label", "virtualservice", "in-"+one.name, "-n", "a", "x=y", "--as", "somebody"); !strings.Contains(out, "labeled") {
			return errors.New(out)
		}
		return nil
	})
	if c := changes(t, one.raw, "a", "")[0]; c.User.Name != "somebody" || c.Impersonator != "admin" || c.FieldManager != "kubectl-label" {
		t.Errorf("got %+v", c)
	}
}

func TestAnObjectIsBroughtBack(t *testing.T) {
	t.Parallel()
	admin := newTenant(t, shared)
	mustDo(t, admin.raw, http.MethodPost, virtualServices("default"), virtualService("x"))
	created := changes(t, admin.raw, "", "")[0].Name
	mustDo(t, admin.raw, http.MethodPatch, virtualServices("default")+"/x", `{"spec":{"hosts":["ratings"]}}`)
	updated := changes(t, admin.raw, "", "")[0].Name
	mustDo(t, admin.raw, http.MethodPost, virtualServices("default"), virtualService("bystander"))

	const object = "virtualservice/x"
	mustVmesh(t, admin, 0, []string{"update default/virtualservice/x", "-  - ratings", "+  - reviews", "server dry run"}, "rollback", object, "--to-revision", created, "--dry-run", "server")
	mustVmesh(t, admin, 1, []string{"give --yes", "nothing was done"}, "rollback", object, "--to-revision", created)
	mustVmesh(t, admin, 0, []string{"default/virtualservice/x updated"}, "rollback", object, "--to-revision", created, "--yes")
	mustVmesh(t, admin, 0, []string{"Nothing to do"}, "rollback", object, "--to-revision", created, "--yes")
	if c := changes(t, admin.raw, "", "")[0]; c.User.Name != "admin" || c.FieldManager != "vmesh-rollback" || c.What != "spec.hosts[0]" {
		t.Errorf("the rollback is told as %+v", c)
	}
	// Forward again, which is a rollback like any other.
	mustVmesh(t, admin, 0, []string{"+  - ratings"}, "rollback", object, "--to-revision", updated, "--yes")
	before := mustDo(t, admin.raw, http.MethodGet, virtualServices("default")+"/x", "").Field("metadata", "uid")
	mustDo(t, admin.raw, http.MethodDelete, virtualServices("default")+"/x", "")
	mustVmesh(t, admin, 0, []string{"default/virtualservice/x created"}, "rollback", object, "--to-revision", updated, "--yes")
	back := mustDo(t, admin.raw, http.MethodGet, virtualServices("default")+"/x", "")
	if fmt.Sprint(back.Field("spec", "hosts")) != "[ratings]" || back.Field("metadata", "uid") == before {
		t.Errorf("back is %s", back.Body)
	}
	// Before it was made.
	revision, err := strconv.Atoi(created)
	if err != nil {
		t.Fatal(err)
	}
	mustVmesh(t, admin, 0, []string{"default/virtualservice/x deleted"}, "rollback", object, "--to-revision", fmt.Sprint(revision-1), "--yes")
	mustDo(t, admin.raw, http.MethodGet, virtualServices("default")+"/bystander", "")
	mustVmesh(t, admin, 1, []string{"does not reach back so far", "nothing was done"}, "rollback", object, "--to-revision", "1", "--yes")
	mustVmesh(t, admin, 1, []string{"nothing was done"}, "rollback", object, "--to-time", "24h", "--yes")
	mustVmesh(t, admin, 1, []string{`no kind "virtualsrvice"`}, "rollback", "virtualsrvice/x", "--to-revision", created)
}

func TestWhatRefusesAWriteRefusesARollback(t *testing.T) {
	t.Parallel()
	admin := newTenant(t, shared)
	mustDo(t, admin.raw, http.MethodPost, virtualServices("default"), virtualService("x"))
	start := changes(t, admin.raw, "", "")[0].Name
	mustDo(t, admin.raw, http.MethodPatch, virtualServices("default")+"/x", `{"spec":{"hosts":["ratings"]}}`)
	mustDo(t, admin.raw, http.MethodPost, virtualServices("default"), strings.Replace(virtualService("held"), `"name":"held"`, `"name":"held","labels":{"vmesh.io/protected":"true"}`, 1))
	bindIn(t, admin, "default", "viewers", "ClusterRole", "view", "User", "viewer")
	viewer := shared.as(t, admin.name, "viewer", "viewers")
	says(t, viewer, "virtualservice/x", "get", "changes")
	mustVmesh(t, viewer, 2, []string{"forbidden", "2 of 2 objects are not as they were"}, "rollback", "-n", "default", "--to-revision", start, "--yes")
	if got := mustDo(t, admin.raw, http.MethodGet, virtualServices("default")+"/x", "").Field("spec", "hosts"); fmt.Sprint(got) != "[ratings]" {
		t.Errorf("it is %v", got)
	}
	// What can be undone is, and what is protected is told.
	mustVmesh(t, admin, 2, []string{"default/virtualservice/x updated", "virtualservice/held was not deleted", "protected"}, "rollback", "-n", "default", "--to-revision", start, "--yes")
	mustDo(t, admin.raw, http.MethodPatch, virtualServices("default")+"/held", `{"metadata":{"labels":{"vmesh.io/protected":null}}}`)
	mustVmesh(t, admin, 0, []string{"virtualservice/held deleted"}, "rollback", "-n", "default", "--to-revision", start, "--yes")
}

// An object that was made anew with what cannot be changed is replaced, by whoever may make it.
func TestWhatCannotBeChangedIsReplaced(t *testing.T) {
	t.Parallel()
	admin := newTenant(t, shared)
	const configMaps = "/api/v1/namespaces/default/configmaps"
	fixed := func(x string) string {
		return fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"fixed"},"data":{"x":%q},"immutable":true}`, x)
	}
	is := func(want string) {
		t.Helper()
		if got := mustDo(t, admin.raw, http.MethodGet, configMaps+"/fixed", "").Text("data", "x"); got != want {
			t.Errorf("x is %q, want %q", got, want)
		}
	}
	mustDo(t, admin.raw, http.MethodPost, configMaps, fixed("then"))
	then := changes(t, admin.raw, "", "?limit=1")[0].Name
	mustDo(t, admin.raw, http.MethodDelete, configMaps+"/fixed", "")
	mustDo(t, admin.raw, http.MethodPost, configMaps, fixed("now"))

	kubectlAs(t, admin, "create", "role", "changer", "--verb=get,list,update,delete", "--resource=configmaps", "-n", "default")
	kubectlAs(t, admin, "create", "role", "reader", "--verb=get,list", "--resource=changes.vmesh.io", "-n", "default")
	bindIn(t, admin, "default", "changer", "Role", "changer", "User", "changer")
	bindIn(t, admin, "default", "reader", "Role", "reader", "User", "changer")
	changer := shared.as(t, admin.name, "changer", "changers")
	says(t, changer, "configmap/fixed", "get", "changes")
	args := []string{"rollback", "-n", "default", "--to-revision", then, "--yes"}
	mustVmesh(t, changer, 2, []string{"immutable", "nor can it be deleted and made anew", `cannot create resource "configmaps"`}, "rollback", "configmap/fixed", "-n", "default", "--to-revision", then, "--yes")
	is("now")
	mustVmesh(t, admin, 0, []string{"default/configmap/fixed replaced (server dry run)"}, append(args, "--dry-run", "server")...)
	is("now")
	mustVmesh(t, admin, 0, []string{"update default/configmap/fixed", "default/configmap/fixed replaced"}, args...)
	is("then")
	mustVmesh(t, admin, 0, []string{"Nothing to do"}, args...)
}

func TestANamespaceAndAWholeVirtualClusterAreBroughtBack(t *testing.T) {
	t.Parallel()
	const objects = 1000
	admin := newTenant(t, shared)
	admin.namespace(t, "a")
	admin.namespace(t, "b")
	each := func(f func(i int)) {
		var wg sync.WaitGroup
		next := make(chan int)
		for range 8 {
			wg.Go(func() {
				for i := range next {
					f(i)
				}
			})
		}
		for i := range objects {
			next <- i
		}
		close(next)
		wg.Wait()
	}
	state := func(namespace string) string {
		t.Helper()
		list := mustDo(t, admin.raw, http.MethodGet, virtualServices(namespace), "")
		var lines []string
		items, _ := list.Field("items").([]any)
		for _, item := range items {
			o := item.(map[string]any)
			lines = append(lines, fmt.Sprint(o["metadata"].(map[string]any)["name"], o["spec"]))
		}
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
	name := func(i int) string { return fmt.Sprintf("x%04d", i) }
	namespace := func(i int) string { return []string{"a", "b"}[i%2] }
	each(func(i int) {
		if i%4 < 3 {
			sendAs(t, admin, http.MethodPost, virtualServices(namespace(i)), virtualService(name(i)))
		}
	})
	a, b := state("a"), state("b")
	then := changes(t, admin.raw, "", "?limit=1")[0].Name
	// Some are changed, some deleted, some made, and a namespace goes with all that is in it.
	each(func(i int) {
		switch i % 4 {
		case 0:
			sendAs(t, admin, http.MethodPatch, virtualServices(namespace(i))+"/"+name(i), `{"spec":{"hosts":["other"]}}`)
		case 2:
			sendAs(t, admin, http.MethodDelete, virtualServices(namespace(i))+"/"+name(i), "")
		case 3:
			sendAs(t, admin, http.MethodPost, virtualServices(namespace(i)), virtualService(name(i)))
		}
	})
	now := state("b")
	mustVmesh(t, admin, 0, nil, "rollback", "-n", "a", "--to-revision", then, "--yes", "-q")
	if got := state("a"); got != a {
		t.Error("namespace a is not as it was")
	}
	if state("b") != now {
		t.Error("namespace b has changed as well")
	}
	kubectlAs(t, admin, "delete", "namespace", "a")
	begun := time.Now()
	mustVmesh(t, admin, 0, []string{"namespace/a created"}, "rollback", "--all", "--to-revision", then, "--yes", "-q")
	t.Logf("brought back in %s", time.Since(begun))
	if state("a") != a || state("b") != b {
		t.Error("the virtual cluster is not as it was")
	}
	mustVmesh(t, admin, 0, []string{"Nothing to do"}, "rollback", "--all", "--to-revision", then, "--yes")
}

func sendAs(t *testing.T, who *tenant, method, path, body string) {
	t.Helper()
	contentType := "application/json"
	if method == http.MethodPatch {
		contentType = "application/merge-patch+json"
	}
	if r, err := who.raw.Do(t.Context(), rawapi.Request{Method: method, Path: path, ContentType: contentType, Body: []byte(body)}); err != nil || r.Status >= 300 {
		t.Errorf("%s %s: %v, %v", method, path, r, err)
	}
}

func TestTwoServersOnOneEtcdHaveOneHistory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	etcd := ownEtcd(t, dir)
	var servers []*server
	for i := range 2 {
		s, err := startServer(filepath.Join(dir, fmt.Sprint("server-", i)), func(o *apiserver.Options) {
			o.Etcd.Servers = []string{etcd.URL}
			o.History.Changes, o.History.Size = 40, resource.QuantityValue{Quantity: resource.MustParse("1Mi")}
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.stop(); err != nil {
				t.Error(err)
			}
		})
		servers = append(servers, s)
	}
	createCluster(t, servers[0], "shop")
	first, second := servers[0].tenant(t, "shop"), servers[1].tenant(t, "shop")
	mustDo(t, first.raw, http.MethodPost, virtualServices("default"), virtualService("x"))
	start := changes(t, second.raw, "", "")[0].Name
	for i := range 10 {
		who := []*tenant{first, second}[i%2]
		mustDo(t, who.raw, http.MethodPatch, virtualServices("default")+"/x", fmt.Sprintf(`{"spec":{"hosts":["h%d"]}}`, i))
	}
	if a, b := told(changes(t, first.raw, "", "")), told(changes(t, second.raw, "", "")); a != b || strings.Count(a, "\n") != 10 {
		t.Errorf("one has\n%s\nthe other\n%s", a, b)
	}
	mustVmesh(t, second, 0, []string{"updated"}, "rollback", "virtualservice/x", "--to-revision", start, "--yes")
	// Both write on, and what is beyond the bound goes.
	for i := range 200 {
		who := []*tenant{first, second}[i%2]
		mustDo(t, who.raw, http.MethodPatch, virtualServices("default")+"/x", fmt.Sprintf(`{"spec":{"hosts":["h%d"]}}`, i))
	}
	eventually(t, func() error {
		if n := len(changes(t, first.raw, "", "")); n > 50 {
			return fmt.Errorf("%d changes are kept, of 40", n)
		}
		return nil
	})
	mustVmesh(t, first, 1, []string{"does not reach back so far", "nothing was done"}, "rollback", "virtualservice/x", "--to-revision", start, "--yes")
	// A deleted virtual cluster leaves nothing to one of its name.
	mustDo(t, rawClient(t, servers[0].root), http.MethodPatch, clustersPath+"/shop", `{"metadata":{"annotations":{"`+v1alpha1.AnnotationConfirmDeletion+`":"shop"}}}`)
	mustDo(t, rawClient(t, servers[0].root), http.MethodDelete, clustersPath+"/shop", "")
	eventually(t, func() error {
		if r := do(t, rawClient(t, servers[1].root), http.MethodGet, clustersPath+"/shop", ""); r.Status != http.StatusNotFound {
			return fmt.Errorf("it is still there: %v", r)
		}
		return nil
	})
	createCluster(t, servers[1], "shop")
	if found := changes(t, servers[1].tenant(t, "shop").raw, "", ""); len(found) > 0 {
		t.Errorf("it sees its forerunner's history: %s", told(found))
	}
}

func TestAHistoryIsEncryptedAsItsObjectsAre(t *testing.T) {
	t.Parallel()
	const canary = "canary-in-a-history"
	dir := t.TempDir()
	dataDir := filepath.Join(dir, "data")
	s, err := startServer(dataDir, func(o *apiserver.Options) {
		o.Encryption.ConfigFile = writeFile(t, filepath.Join(dir, "encryption.yaml"), encryptionConfig("virtualservices.networking.istio.io", "first"))
	})
	if err != nil {
		t.Fatal(err)
	}
	createCluster(t, s, "shop")
	shop := s.tenant(t, "shop")
	mustDo(t, shop.raw, http.MethodPost, virtualServices("default"), strings.ReplaceAll(virtualService("x"), "reviews", canary))
	mustDo(t, shop.raw, http.MethodPatch, virtualServices("default")+"/x", `{"spec":{"hosts":["plain"]}}`)
	mustDo(t, shop.raw, http.MethodDelete, virtualServices("default")+"/x", "")
	if c := changes(t, shop.raw, "", "?fieldSelector=operation%3DUpdate")[0]; !bytes.Contains(c.Before.Raw, []byte(canary)) {
		t.Errorf("the history has lost what it was: %s", c.Before.Raw)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if holds(t, dataDir, canary) {
		t.Error("it is in etcd's files in plain")
	}
}

// lastChanges are the newest changes of each object of a namespace, by name.
func lastChanges(t *testing.T, ctx context.Context, kubeconfig, namespace string) map[string]v1alpha1.Change {
	t.Helper()
	client, err := rawapi.New(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	list, err := client.Do(ctx, rawapi.Request{Method: http.MethodGet, Path: "/apis/vmesh.io/v1alpha1/namespaces/" + namespace + "/changes"})
	if err != nil || list.Status != http.StatusOK {
		t.Fatalf("listing: %v, %v", list, err)
	}
	var all v1alpha1.ChangeList
	if err := json.Unmarshal(list.Body, &all); err != nil {
		t.Fatal(err)
	}
	if all.Continue != "" {
		t.Fatal("there are more changes than one list shows")
	}
	last := map[string]v1alpha1.Change{}
	for _, c := range slices.Backward(all.Items) {
		last[c.Object.Name] = c
	}
	return last
}
