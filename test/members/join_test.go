package members

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/vmesh-io/vmesh/test/harness"
)

// joinable is a vmesh whose mesh has a home, and clusters that may join it.
type joinable struct {
	t       *testing.T
	ctx     context.Context
	dir     string
	binary  string
	vmesh   *harness.Vmesh
	members map[string]*harness.KubeAPIServer
}

func startJoinable(t *testing.T, clusters ...string) *joinable {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute) // tools may have to be built
	t.Cleanup(cancel)
	j := &joinable{t: t, ctx: ctx, dir: t.TempDir(), members: map[string]*harness.KubeAPIServer{}}
	etcd, err := harness.StartEtcd(ctx, harness.EtcdOptions{Dir: filepath.Join(j.dir, "etcd")})
	j.must(err)
	harness.StopAfter(t, etcd.Stop)
	for _, name := range clusters {
		j.members[name], err = harness.StartKubeAPIServer(ctx, harness.KubeAPIServerOptions{
			Dir: filepath.Join(j.dir, name), EtcdURL: etcd.URL, ExtraArgs: []string{"--etcd-prefix", "/" + name},
		})
		j.must(err)
		harness.StopAfter(t, j.members[name].Stop)
	}
	j.binary, err = harness.Build(ctx)
	j.must(err)
	j.vmesh, err = harness.StartVmesh(ctx, harness.VmeshOptions{DataDir: filepath.Join(j.dir, "vmesh")})
	j.must(err)
	harness.StopAfter(t, j.vmesh.Stop)
	j.must(harness.Apply(ctx, j.vmesh.AdminKubeconfig, `
apiVersion: vmesh.io/v1alpha1
kind: VirtualCluster
metadata: {name: home}
spec: {namespaces: [istio-system]}
`))
	j.root("patch", "mesh", "default", "--type=merge", "--patch", `{"spec": {"home": {"virtualCluster": "home"}, "networks": [{"name": "one"}, {"name": "two"}]}}`)
	j.root("wait", "--for=condition=Ready", "--timeout=60s", "virtualcluster/home")
	return j
}

func (j *joinable) must(err error) {
	j.t.Helper()
	if err != nil {
		j.t.Fatal(err)
	}
}

// root runs kubectl in the root.
func (j *joinable) root(args ...string) string {
	j.t.Helper()
	out, err := harness.Kubectl(j.ctx, j.vmesh.AdminKubeconfig, "", args...)
	j.must(err)
	return out
}

// in runs kubectl in a cluster, as its administrator.
func (j *joinable) in(cluster string, args ...string) string {
	j.t.Helper()
	out, err := harness.Kubectl(j.ctx, j.members[cluster].Kubeconfig, "", args...)
	j.must(err)
	return out
}

// run runs vmesh join or leave with access to the root, and returns what it prints and its exit code.
func (j *joinable) run(args ...string) (stdout, stderr string, code int) {
	j.t.Helper()
	cmd := exec.CommandContext(j.ctx, j.binary, append(args, "--root-kubeconfig", j.vmesh.AdminKubeconfig)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.Env = append(os.Environ(), "KUBECONFIG=/nonexistent", "HOME="+j.dir)
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		j.t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// does is run of what must succeed.
func (j *joinable) does(args ...string) (stdout, stderr string) {
	j.t.Helper()
	stdout, stderr, code := j.run(args...)
	if code != 0 {
		j.t.Fatalf("vmesh %s: exit code %d: %s", strings.Join(args, " "), code, stderr)
	}
	return stdout, stderr
}

// fails is run of what must fail with a code and a message that has all the parts.
func (j *joinable) fails(code int, parts []string, args ...string) {
	j.t.Helper()
	_, stderr, got := j.run(args...)
	if got != code {
		j.t.Errorf("vmesh %s: exit code %d and not %d: %s", strings.Join(args, " "), got, code, stderr)
	}
	for _, part := range parts {
		if !strings.Contains(stderr, part) {
			j.t.Errorf("vmesh %s: %q is not in: %s", strings.Join(args, " "), part, stderr)
		}
	}
}

// join lets a cluster join under its own name.
func (j *joinable) join(name string, args ...string) string {
	j.t.Helper()
	_, stderr := j.does(append([]string{"join", name, "--kubeconfig", j.members[name].Kubeconfig}, args...)...)
	return stderr
}

// config is the access under a key of a member's Secret.
func (j *joinable) config(name, key string) *rest.Config {
	j.t.Helper()
	client, err := kubernetes.NewForConfig(j.adminConfig(j.vmesh.AdminKubeconfig))
	j.must(err)
	secret, err := client.CoreV1().Secrets("vmesh-system").Get(j.ctx, name, metav1.GetOptions{})
	j.must(err)
	config, err := clientcmd.RESTConfigFromKubeConfig(secret.Data[key])
	j.must(err)
	config.QPS, config.WarningHandler = -1, rest.NoWarnings{}
	return config
}

func (j *joinable) adminConfig(kubeconfig string) *rest.Config {
	j.t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	j.must(err)
	config.QPS, config.WarningHandler = -1, rest.NoWarnings{}
	return config
}

// served are the resources that a cluster serves, subresources included.
func (j *joinable) served(cluster string) map[schema.GroupVersionResource]metav1.APIResource {
	j.t.Helper()
	client, err := kubernetes.NewForConfig(j.adminConfig(j.members[cluster].Kubeconfig))
	j.must(err)
	_, lists, err := client.Discovery().ServerGroupsAndResources()
	j.must(err)
	served := map[schema.GroupVersionResource]metav1.APIResource{}
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		j.must(err)
		for _, r := range list.APIResources {
			served[gv.WithResource(r.Name)] = r
		}
	}
	return served
}

// everything lists all objects of a cluster, of every resource that it serves, with their UIDs.
func (j *joinable) everything(cluster string) map[string]types.UID {
	j.t.Helper()
	client, err := dynamic.NewForConfig(j.adminConfig(j.members[cluster].Kubeconfig))
	j.must(err)
	all := map[string]types.UID{}
	for gvr, r := range j.served(cluster) {
		if !slices.Contains(r.Verbs, "list") {
			continue
		}
		list, err := client.Resource(gvr).List(j.ctx, metav1.ListOptions{})
		j.must(err)
		for i := range list.Items {
			object := &list.Items[i]
			all[gvr.GroupResource().String()+" "+strings.TrimPrefix(object.GetNamespace()+"/"+object.GetName(), "/")] = object.GetUID()
		}
	}
	return all
}

// documented is what a join makes in a cluster, by the operator's guide.
var documented = []string{
	"clusterrolebindings.rbac.authorization.k8s.io vmesh-member",
	"clusterrolebindings.rbac.authorization.k8s.io vmesh-member-istiod",
	"clusterroles.rbac.authorization.k8s.io vmesh-member",
	"clusterroles.rbac.authorization.k8s.io vmesh-member-istiod",
	"namespaces vmesh-member",
	"rolebindings.rbac.authorization.k8s.io vmesh-member/vmesh-member-tokens",
	"roles.rbac.authorization.k8s.io vmesh-member/vmesh-member-tokens",
	"serviceaccounts vmesh-member/istiod",
	"serviceaccounts vmesh-member/vmesh",
}

// ownObjects are what an API server makes by itself, after it is ready too.
var ownObjects = []string{
	"namespaces default", "namespaces kube-system", "namespaces kube-public", "namespaces kube-node-lease", "services default/kubernetes",
	"configmaps kube-system/extension-apiserver-authentication", "configmaps kube-system/kube-apiserver-legacy-service-account-token-tracking",
	"servicecidrs.networking.k8s.io kubernetes", "ipaddresses.networking.k8s.io 10.0.0.1", "leases.coordination.k8s.io kube-system/apiserver-",
}

// settled returns what everything lists once there is what the API server makes by itself, and more.
func (j *joinable) settled(cluster string, more ...string) map[string]types.UID {
	j.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for poll := time.NewTicker(250 * time.Millisecond); ; <-poll.C {
		all := j.everything(cluster)
		lacks := slices.DeleteFunc(append(more, ownObjects...), func(want string) bool {
			for name := range all {
				if name == want || strings.HasSuffix(want, "-") && strings.HasPrefix(name, want) {
					return true
				}
			}
			return false
		})
		if len(lacks) == 0 {
			return all
		}
		if time.Now().After(deadline) {
			j.t.Fatalf("%s has not %q", cluster, lacks)
		}
	}
}

func differs(before, after map[string]types.UID) (added, gone []string) {
	for name, uid := range after {
		if before[name] != uid {
			added = append(added, name)
		}
	}
	for name, uid := range before {
		if after[name] != uid {
			gone = append(gone, name)
		}
	}
	slices.Sort(added)
	slices.Sort(gone)
	return added, gone
}

func TestAJoinMakesWhatIsDocumentedAndALeaveLeavesNothing(t *testing.T) {
	j := startJoinable(t, "east")
	kubeconfig := j.members["east"].Kubeconfig
	// Without its controller a namespace does not go away; no other controllers run, which would make objects of their own.
	controllers, err := j.members["east"].StartControllers(j.ctx, "namespace-controller")
	j.must(err)
	harness.StopAfter(t, controllers.Stop)
	before := j.settled("east", "serviceaccounts kube-system/namespace-controller")
	stdout, _ := j.does("join", "east", "--kubeconfig", kubeconfig, "--network", "one", "--region", "r", "--wait=false", "-o", "json")
	var made struct {
		Spec struct {
			Network  string
			Locality struct{ Region, Zone string }
			Access   struct{ Secret string }
		}
	}
	j.must(json.Unmarshal([]byte(stdout), &made))
	if made.Spec.Network != "one" || made.Spec.Locality.Region != "r" || made.Spec.Access.Secret != "east" {
		t.Errorf("the member is %s", stdout)
	}
	if added, gone := differs(before, j.everything("east")); !slices.Equal(added, documented) || len(gone) > 0 {
		t.Errorf("the join made %q, and of what was there it took %q", added, gone)
	}

	// Again: nothing is new but the tokens, and what was changed is mended.
	token := j.config("east", "kubeconfig").BearerToken
	joined := j.everything("east")
	j.in("east", "patch", "clusterrole", "vmesh-member", "--type=json", "--patch", `[{"op": "replace", "path": "/rules", "value": []}]`)
	j.in("east", "patch", "clusterrolebinding", "vmesh-member-istiod", "--type=json", "--patch", `[{"op": "add", "path": "/subjects/-", "value": {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "eve"}}]`)
	j.in("east", "label", "serviceaccount", "vmesh", "-n", "vmesh-member", "owner=alice")
	told := j.join("east", "--zone", "z", "--wait=false")
	for _, part := range []string{
		"clusterroles.rbac.authorization.k8s.io/vmesh-member mended", "clusterrolebindings.rbac.authorization.k8s.io/vmesh-member-istiod mended",
		"serviceaccounts/vmesh unchanged", "namespaces/vmesh-member unchanged", "secret vmesh-system/east updated", "membercluster east updated",
	} {
		if !strings.Contains(told, part) {
			t.Errorf("%q is not in: %s", part, told)
		}
	}
	if strings.Count(told, "mended") != 2 {
		t.Errorf("more was mended than was changed: %s", told)
	}
	if added, gone := differs(joined, j.everything("east")); len(added)+len(gone) > 0 {
		t.Errorf("the second join made %q and took %q", added, gone)
	}
	if j.config("east", "kubeconfig").BearerToken == token {
		t.Error("the second join did not renew the token")
	}
	if got := j.root("get", "membercluster", "east", "-o", "jsonpath={.spec.network}/{.spec.locality.region}/{.spec.locality.zone}"); got != "one/r/z" {
		t.Errorf("after a join that only says the zone, the member is %s", got)
	}
	if got := j.in("east", "get", "clusterrolebinding", "vmesh-member-istiod", "-o", "jsonpath={.subjects[*].name}"); got != "istiod" {
		t.Errorf("the mended binding is for %s", got)
	}

	j.fails(1, []string{"nothing was done", "--yes"}, "leave", "east", "--kubeconfig", kubeconfig)
	_, told = j.does("leave", "east", "--kubeconfig", kubeconfig, "--yes", "--drain-time", "1s")
	for _, part := range []string{"last member of mesh default", "is drained", "membercluster east deleted", "secret vmesh-system/east deleted", "namespaces/vmesh-member deleted"} {
		if !strings.Contains(told, part) {
			t.Errorf("%q is not in: %s", part, told)
		}
	}
	if added, gone := differs(before, j.everything("east")); len(added)+len(gone) > 0 {
		t.Errorf("the leave left %q, and of what was there it took %q", added, gone)
	}
	if left := j.root("get", "memberclusters", "-o", "name") + j.root("get", "secrets", "-n", "vmesh-system", "-o", "name"); left != "" {
		t.Errorf("the leave left in the root: %s", left)
	}
	j.fails(1, []string{"there is no member", "memberclusters"}, "leave", "east", "--kubeconfig", kubeconfig, "--yes")

	// What others put into the namespace stays, and it with them; then the command goes on.
	j.join("east", "--wait=false")
	j.in("east", "create", "configmap", "of-others", "-n", "vmesh-member")
	j.fails(2, []string{"configmaps/of-others", "namespaces/vmesh-member"}, "leave", "east", "--kubeconfig", kubeconfig, "--yes", "--drain-time", "0")
	j.in("east", "delete", "configmap", "of-others", "-n", "vmesh-member")
	j.does("leave", "east", "--kubeconfig", kubeconfig, "--yes")
	if added, gone := differs(before, j.everything("east")); len(added)+len(gone) > 0 {
		t.Errorf("the second leave left %q, and of what was there it took %q", added, gone)
	}
}

// mayDo are the rights of a credential by the rules of its cluster, each as "verb resource", with the name if it is of one,
// and with the namespace if it is not of all.
func (j *joinable) mayDo(config *rest.Config) map[string]bool {
	j.t.Helper()
	client, err := kubernetes.NewForConfig(config)
	j.must(err)
	in := func(namespace string) map[string]bool {
		review, err := client.AuthorizationV1().SelfSubjectRulesReviews().Create(j.ctx,
			&authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: namespace}}, metav1.CreateOptions{})
		j.must(err)
		if review.Status.Incomplete {
			j.t.Fatalf("the rules are not all: %s", review.Status.EvaluationError)
		}
		all := map[string]bool{}
		for _, rule := range review.Status.NonResourceRules {
			all[strings.Join(rule.Verbs, ",")+" "+strings.Join(rule.NonResourceURLs, ",")] = true
		}
		for _, rule := range review.Status.ResourceRules {
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					for _, verb := range rule.Verbs {
						right := verb + " " + strings.TrimSuffix(resource+"."+group, ".")
						for _, name := range rule.ResourceNames {
							all[right+" "+name] = true
						}
						if len(rule.ResourceNames) == 0 {
							all[right] = true
						}
					}
				}
			}
		}
		return all
	}
	all := in("default")
	for _, namespace := range []string{"vmesh-member", "kube-system", "istio-system"} {
		for right := range in(namespace) {
			if !all[right] {
				all[right+" in "+namespace] = true
			}
		}
	}
	return all
}

func TestTokensOfAJoinMayDoNothingMore(t *testing.T) {
	j := startJoinable(t, "east")
	j.must(harness.InstallIstioCRDs(j.ctx, j.members["east"].Kubeconfig))
	// What any service account may, these may too.
	j.in("east", "create", "serviceaccount", "anybody", "-n", "default")
	anybody := rest.AnonymousClientConfig(j.adminConfig(j.members["east"].Kubeconfig))
	anybody.BearerToken = strings.TrimSpace(j.in("east", "create", "token", "anybody", "-n", "default"))
	common := j.mayDo(anybody)

	vmesh := []string{
		"create serviceaccounts/token istiod in vmesh-member", "create serviceaccounts/token vmesh in vmesh-member", "get namespaces", "list endpointslices.discovery.k8s.io",
		"list namespaces", "list nodes", "list services", "watch endpointslices.discovery.k8s.io", "watch namespaces", "watch nodes", "watch services",
	}
	istiod := []string{
		"create tokenreviews.authentication.k8s.io", "get namespaces", "list configmaps istio", "list customresourcedefinitions.apiextensions.k8s.io", "list endpointslices.discovery.k8s.io",
		"list gateways.gateway.networking.k8s.io", "list namespaces", "list nodes", "list pods", "list services", "list workloadentries.networking.istio.io", "watch configmaps istio",
		"watch customresourcedefinitions.apiextensions.k8s.io", "watch endpointslices.discovery.k8s.io", "watch gateways.gateway.networking.k8s.io", "watch namespaces", "watch nodes",
		"watch pods", "watch services", "watch workloadentries.networking.istio.io",
	}
	withSecrets := append([]string{"create subjectaccessreviews.authorization.k8s.io", "list secrets", "watch secrets"}, istiod...)
	slices.Sort(withSecrets)
	for _, c := range []struct {
		name   string
		args   []string
		istiod []string
	}{
		{"by default", nil, withSecrets},
		{"without Secrets", []string{"--no-secrets"}, istiod},
	} {
		t.Run(c.name, func(t *testing.T) {
			j.join("east", append(c.args, "--wait=false")...)
			for key, want := range map[string][]string{"kubeconfig": vmesh, "istiod-kubeconfig": c.istiod} {
				config := j.config("east", key)
				var got []string
				for right := range j.mayDo(config) {
					if !common[right] {
						got = append(got, right)
					}
				}
				slices.Sort(got)
				if !slices.Equal(got, want) {
					t.Errorf("%s may %q and not %q", key, got, want)
				}
				j.writesNothing(t, key, config)
			}
		})
	}
}

// writesNothing sends every write to every resource of a member, which must be forbidden but for questions that are asked by one.
func (j *joinable) writesNothing(t *testing.T, key string, config *rest.Config) {
	t.Helper()
	client, err := rest.HTTPClientFor(config)
	j.must(err)
	questions := []string{
		"selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews", // anybody's
		"tokenreviews", "subjectaccessreviews", // istiod's
	}
	sent := 0
	for gvr, r := range j.served("east") {
		if slices.Contains(questions, gvr.Resource) {
			continue
		}
		base := config.Host + "/apis/" + gvr.Group
		if gvr.Group == "" {
			base = config.Host + "/api"
		}
		resource, subresource, _ := strings.Cut(gvr.Resource, "/")
		base += "/" + gvr.Version
		if r.Namespaced {
			base += "/namespaces/default"
		}
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
			for _, at := range []string{"/" + resource, "/" + resource + "/istiod"} {
				if subresource != "" {
					at = "/" + resource + "/istiod/" + subresource
				}
				request, err := http.NewRequestWithContext(j.ctx, method, base+at, strings.NewReader("{}"))
				j.must(err)
				request.Header.Set("Content-Type", "application/json")
				response, err := client.Do(request)
				j.must(err)
				response.Body.Close()
				sent++
				if response.StatusCode != http.StatusForbidden && response.StatusCode != http.StatusMethodNotAllowed {
					t.Errorf("%s: %s %s is answered with %s", key, method, base+at, response.Status)
				}
			}
		}
	}
	if sent < 100 {
		t.Errorf("no more than %d writes were tried", sent)
	}
}

func TestAMistakeOfAJoinIsNamedWithARemedyAndChangesNothing(t *testing.T) {
	j := startJoinable(t, "east", "west")
	east, west := j.members["east"].Kubeconfig, j.members["west"].Kubeconfig
	j.join("east", "--network", "one", "--wait=false")
	j.root("create", "-f", j.file("bare.yaml", "apiVersion: vmesh.io/v1alpha1\nkind: Mesh\nmetadata: {name: bare}\n"+
		"---\napiVersion: vmesh.io/v1alpha1\nkind: Mesh\nmetadata: {name: furnished}\nspec: {home: {virtualCluster: home}}\n"))
	nobody := filepath.Join(j.dir, "nobody.kubeconfig")
	j.must(j.members["west"].WriteKubeconfig(nobody, "nobody"))
	change := func(name string, change func(*rest.Config)) string {
		config := j.adminConfig(west)
		change(config)
		made := clientcmdapi.NewConfig()
		made.Clusters["x"] = &clientcmdapi.Cluster{Server: config.Host, InsecureSkipTLSVerify: config.Insecure, CertificateAuthorityData: config.CAData}
		made.AuthInfos["x"] = &clientcmdapi.AuthInfo{Token: config.BearerToken}
		made.Contexts["x"] = &clientcmdapi.Context{Cluster: "x", AuthInfo: "x"}
		made.CurrentContext = "x"
		file := filepath.Join(j.dir, name)
		j.must(clientcmd.WriteToFile(*made, file))
		return file
	}
	home, err := j.vmesh.Kubeconfig(j.ctx, "home")
	j.must(err)
	before, rootBefore := j.settled("west"), j.root("get", "memberclusters,secrets,namespaces", "-A", "-o", "name")
	for _, c := range []struct {
		name  string
		args  []string
		parts []string
	}{
		{"a name that is none", []string{"West", "--kubeconfig", west}, []string{"NAME", `"West"`, "lowercase"}},
		{"a mesh that there is not", []string{"west", "--kubeconfig", west, "--mesh", "nix"}, []string{"--mesh", `"nix"`, "default"}},
		{"a mesh without a home", []string{"west", "--kubeconfig", west, "--mesh", "bare"}, []string{"--mesh", "bare", "spec.home"}},
		{"a network that there is not", []string{"west", "--kubeconfig", west, "--network", "three"}, []string{"--network", `"three"`, "one, two"}},
		{"a kubeconfig that there is not", []string{"west", "--kubeconfig", "/nonexistent"}, []string{"--kubeconfig", "/nonexistent"}},
		{"none", []string{"west"}, []string{"--kubeconfig", "there is none"}},
		{"a context that there is not", []string{"west", "--kubeconfig", west, "--context", "nix"}, []string{"--kubeconfig", `"nix"`}},
		{"that of the root", []string{"west", "--kubeconfig", j.vmesh.AdminKubeconfig}, []string{"--kubeconfig", "vmesh itself", "--root-kubeconfig"}},
		{"that of a virtual cluster", []string{"west", "--kubeconfig", home}, []string{"--kubeconfig", "virtual cluster"}},
		{"a token that is none", []string{"west", "--kubeconfig", change("token", func(c *rest.Config) { c.BearerToken = "x" })}, []string{"--kubeconfig", "does not know its user"}},
		{"nobody who answers", []string{"west", "--kubeconfig", change("away", func(c *rest.Config) { c.Host = "https://127.0.0.1:1" })}, []string{"--kubeconfig", "does not answer", "127.0.0.1:1"}},
		{"one that trusts anybody", []string{"west", "--kubeconfig", change("insecure", func(c *rest.Config) { c.Insecure, c.CAData = true, nil })}, []string{"--kubeconfig", "insecure-skip-tls-verify"}},
		{"a user without rights", []string{"west", "--kubeconfig", nobody}, []string{
			"--kubeconfig", "create namespaces\n", "create clusterroles.rbac.authorization.k8s.io\n", "create clusterrolebindings.rbac.authorization.k8s.io\n",
			"create serviceaccounts in namespace vmesh-member\n", "create serviceaccounts/token istiod in namespace vmesh-member\n", "--print",
		}},
		{"a cluster that has a name already", []string{"west", "--kubeconfig", east}, []string{"NAME", `member "east"`, "vmesh leave east"}},
		{"a name that another cluster has", []string{"east", "--kubeconfig", west}, []string{"NAME", "another cluster", "vmesh leave east"}},
		{"another mesh than it is in", []string{"east", "--kubeconfig", east, "--mesh", "furnished"}, []string{"--mesh", "belongs to mesh default", "vmesh leave east"}},
		{"a time that is too short", []string{"west", "--kubeconfig", west, "--token-ttl", "1m"}, []string{"--token-ttl", "10m"}},
		{"an address that is none", []string{"west", "--kubeconfig", west, "--server", "west:6443"}, []string{"--server", "https://"}},
		{"an output that is none", []string{"west", "--kubeconfig", west, "-o", "wide"}, []string{"--output", "yaml"}},
		{"no name", []string{"--kubeconfig", west}, []string{"NAME", "See 'vmesh join --help'"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := *j
			j.t = t
			j.fails(1, c.parts, append([]string{"join", "--wait=false"}, c.args...)...)
		})
	}
	j.fails(1, []string{"is not member east", "Nothing was changed"}, "leave", "east", "--kubeconfig", west, "--yes")
	j.fails(1, []string{"--kubeconfig", "--force", "--keep-member-objects"}, "leave", "east", "--yes")
	if added, gone := differs(before, j.everything("west")); len(added)+len(gone) > 0 {
		t.Errorf("mistakes made %q and took %q in the cluster", added, gone)
	}
	if after := j.root("get", "memberclusters,secrets,namespaces", "-A", "-o", "name"); after != rootBefore {
		t.Errorf("mistakes made of the root's %s this: %s", rootBefore, after)
	}

	// Something of others that has the name of what a join makes is left alone.
	j.in("west", "create", "clusterrole", "vmesh-member", "--verb=get", "--resource=pods")
	j.fails(1, []string{"clusterroles.rbac.authorization.k8s.io/vmesh-member", "not made by vmesh join"}, "join", "west", "--kubeconfig", west, "--wait=false")
	j.in("west", "delete", "clusterrole", "vmesh-member")

	// Another mesh, said once.
	j.root("create", "-f", j.file("other.yaml", "apiVersion: vmesh.io/v1alpha1\nkind: VirtualCluster\nmetadata: {name: other}\nspec: {mesh: furnished}\n"))
	j.join("west", "--mesh", "furnished", "--server", "https://localhost:1", "--wait=false")
	if told := j.join("west", "--wait=false"); !strings.Contains(told, "--server is https://localhost:1, as before") || j.config("west", "istiod-kubeconfig").Host != "https://localhost:1" {
		t.Errorf("the second join did not remember the first: %s", told)
	}
	if told := j.join("west", "--server", "", "--wait=false"); strings.Contains(told, "as before") || j.config("west", "kubeconfig").Host != j.members["west"].URL() {
		t.Errorf("the third join did not forget the address: %s", told)
	}
	j.fails(2, []string{"has joined and is not ready", "after 1s"}, "join", "west", "--kubeconfig", west, "--server", "https://localhost:1", "--token-ttl", "800h", "--timeout", "1s")
	j.does("leave", "west", "--keep-member-objects", "--yes", "--drain-time", "0")
	j.in("west", "delete", "clusterroles,clusterrolebindings", "-l", "vmesh.io/member=west")

	// A cluster that is gone leaves with --force, and one whose administrator wants to, with what is in it.
	j.join("west", "--wait=false")
	_, told := j.does("leave", "west", "--kubeconfig", "/nonexistent", "--force", "--yes", "--drain-time", "0")
	if !strings.Contains(told, "stays") {
		t.Errorf("the leave does not tell that something stays: %s", told)
	}
	j.fails(1, []string{`member "west"`, "vmesh leave west"}, "join", "west-2", "--kubeconfig", west, "--wait=false")
	j.does("leave", "east", "--keep-member-objects", "--yes", "--drain-time", "0")
	if left := j.root("get", "memberclusters", "-o", "name"); left != "" {
		t.Errorf("members are left: %s", left)
	}
	if !strings.Contains(j.in("east", "get", "namespaces", "-o", "name"), "vmesh-member") {
		t.Error("--keep-member-objects took the namespace")
	}
}

func TestACautiousAdministratorAppliesWhatAJoinPrints(t *testing.T) {
	j := startJoinable(t, "east")
	admin := j.members["east"].Kubeconfig
	minter := filepath.Join(j.dir, "minter.kubeconfig")
	j.must(j.members["east"].WriteKubeconfig(minter, "minter"))
	before := j.settled("east")
	printed, _ := j.does("join", "east", "--print")
	if added, gone := differs(before, j.everything("east")); len(added)+len(gone) > 0 {
		t.Errorf("--print made %q and took %q", added, gone)
	}
	j.must(harness.Apply(j.ctx, admin, printed))
	j.fails(1, []string{"create serviceaccounts/token vmesh"}, "join", "east", "--kubeconfig", minter, "--wait=false")
	j.in("east", "create", "role", "minter", "-n", "vmesh-member", "--verb=create", "--resource=serviceaccounts/token", "--resource-name=vmesh", "--resource-name=istiod")
	j.in("east", "create", "rolebinding", "minter", "-n", "vmesh-member", "--role=minter", "--user=minter")
	_, told := j.does("join", "east", "--kubeconfig", minter)
	if !strings.Contains(told, "taken as it was printed") {
		t.Errorf("the join does not tell what it did not look at: %s", told)
	}
	uid := j.in("east", "get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}")
	if got := j.root("get", "membercluster", "east", "-o", `jsonpath={.metadata.annotations.vmesh\.io/cluster-uid}`); got != uid {
		t.Errorf("the member is known as %q and is %q", got, uid)
	}
	// The administrator's own join finds all as it is to be.
	told = j.join("east")
	if strings.Contains(told, "mended") || strings.Contains(told, "created") {
		t.Errorf("what was printed is not what a join makes: %s", told)
	}
	// What is not as it was printed is found out before the root is told.
	j.in("east", "delete", "clusterrolebinding", "vmesh-member-istiod")
	j.fails(1, []string{"vmesh-member/istiod", "--print", "list pods"}, "join", "east", "--kubeconfig", minter, "--wait=false")
}

func TestAnIstiodSyncsWithWhatAJoinGivesIt(t *testing.T) {
	j := startJoinable(t, "east")
	// Kinds of Istio's in the member make istiod read more.
	j.must(harness.InstallIstioCRDs(j.ctx, j.members["east"].Kubeconfig))
	j.join("east")
	home, err := j.vmesh.Kubeconfig(j.ctx, "home")
	j.must(err)
	dir := filepath.Join(j.dir, "istiod")
	istiod, err := harness.StartIstiod(j.ctx, harness.IstiodOptions{Dir: dir, Kubeconfig: home, XDSAddresses: []string{j.vmesh.XDSAddress}})
	j.must(err)
	harness.StopAfter(t, istiod.Stop)
	// synced waits until istiod has read the member with its present access as often as that was given.
	synced := func(times int) {
		t.Helper()
		deadline := time.Now().Add(2 * time.Minute)
		poll := time.NewTicker(200 * time.Millisecond)
		defer poll.Stop()
		for ; ; <-poll.C {
			state := j.clusters(istiod)
			log, err := os.ReadFile(filepath.Join(dir, "istiod.log"))
			j.must(err)
			if state["east"] == "synced" && strings.Count(string(log), "kube controller for east synced") >= times {
				for line := range strings.Lines(string(log)) {
					if low := strings.ToLower(line); strings.Contains(low, "forbidden") || strings.Contains(low, "unauthorized") || strings.Contains(low, "failed to sync") {
						t.Errorf("istiod complains: %s", line)
					}
				}
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("istiod's clusters are %v: %s", state, log)
			}
		}
	}
	synced(1)
	j.join("east")
	synced(2)
	j.does("leave", "east", "--keep-member-objects", "--yes", "--drain-time", "1s")
	deadline := time.Now().Add(time.Minute)
	for poll := time.NewTicker(200 * time.Millisecond); ; <-poll.C {
		state := j.clusters(istiod)
		if _, there := state["east"]; !there {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after the leave istiod's clusters are %v", state)
		}
	}
}

// clusters are those that istiod knows, and how they are.
func (j *joinable) clusters(istiod *harness.Istiod) map[string]string {
	j.t.Helper()
	request, err := http.NewRequestWithContext(j.ctx, http.MethodGet, istiod.DebugURL+"/debug/clusterz", nil)
	j.must(err)
	response, err := http.DefaultClient.Do(request)
	j.must(err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	j.must(err)
	var list []struct{ ID, SyncStatus string }
	j.must(json.Unmarshal(body, &list))
	state := map[string]string{}
	for _, c := range list {
		state[c.ID] = c.SyncStatus
	}
	return state
}

func (j *joinable) file(name, content string) string {
	j.t.Helper()
	file := filepath.Join(j.dir, name)
	j.must(os.WriteFile(file, []byte(content), 0o600))
	return file
}
