// Package members tests meshes of several clusters: with real APIs as members, and a real istiod that lives in a virtual cluster.
package members

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/test/harness"
)

// home is the virtual cluster where istiod lives.
const home = "mesh-home"

// setUp is the mesh, with the home of that name.
const setUp = `
apiVersion: vmesh.io/v1alpha1
kind: VirtualCluster
metadata: {name: %[1]s}
---
apiVersion: vmesh.io/v1alpha1
kind: Mesh
metadata: {name: default}
spec:
  home: {virtualCluster: %[1]s}
---
apiVersion: v1
kind: Namespace
metadata: {name: vmesh-system}
`

// shared is what all tests use.
var shared *stack

// stack is a vmesh whose mesh has a home, an istiod that has nothing but that, and an etcd for members.
type stack struct {
	dir    string
	etcd   *harness.EtcdCluster
	vmesh  *harness.Vmesh
	istiod *harness.Istiod
	root   dynamic.Interface
	core   kubernetes.Interface // of the root
	inHome kubernetes.Interface
}

func TestMain(m *testing.M) { harness.Main(func() (int, error) { return run(m) }) }

func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "members")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	shared = &stack{dir: dir}
	defer func() { err = errors.Join(err, shared.stop()) }()
	// Tools may have to be built.
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	if err := shared.start(ctx); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

func (s *stack) start(ctx context.Context) (err error) {
	if s.etcd, err = harness.StartEtcdCluster(ctx, harness.EtcdOptions{Dir: filepath.Join(s.dir, "etcd")}, 1); err != nil {
		return err
	}
	if s.vmesh, err = harness.StartVmesh(ctx, harness.VmeshOptions{
		DataDir: filepath.Join(s.dir, "vmesh"), ExtraArgs: []string{"--member-check-interval", "300ms"},
	}); err != nil {
		return err
	}
	if err := harness.Apply(ctx, s.vmesh.AdminKubeconfig, fmt.Sprintf(setUp, home)); err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", s.vmesh.AdminKubeconfig)
	if err != nil {
		return err
	}
	if s.root, err = dynamic.NewForConfig(config); err != nil {
		return err
	}
	if s.core, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	kubeconfig, err := s.vmesh.Kubeconfig(ctx, home)
	if err != nil {
		return err
	}
	if config, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
		return err
	}
	if s.inHome, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	s.istiod, err = harness.StartIstiod(ctx, harness.IstiodOptions{Dir: filepath.Join(s.dir, "istiod"), Kubeconfig: kubeconfig, XDSAddresses: []string{s.vmesh.XDSAddress}})
	return err
}

func (s *stack) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	if s.istiod != nil {
		errs = append(errs, s.istiod.Stop(ctx))
	}
	if s.vmesh != nil {
		errs = append(errs, s.vmesh.Stop(ctx))
	}
	if s.etcd != nil {
		errs = append(errs, s.etcd.Kill())
	}
	return errors.Join(errs...)
}

// The account in members that vmesh has, and that of istiod.
const (
	memberNamespace = "vmesh-member"
	vmeshAccount    = "vmesh"
	istiodAccount   = "istiod"
)

// startMember starts a cluster with one service and one backend, and the accounts for vmesh and istiod. It is stopped after the test.
func startMember(ctx context.Context, t *testing.T, name string, index int) (*harness.Member, *harness.Backend) {
	t.Helper()
	m, err := harness.StartMember(ctx, harness.MemberOptions{Dir: t.TempDir(), EtcdURL: shared.etcd.URLs()[0], Name: name, Index: index})
	must(t, err)
	harness.StopAfter(t, m.Close)
	must(t, m.AddNamespace(ctx, memberNamespace))
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "vmesh-member"}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"namespaces", "nodes", "pods", "services", "configmaps", "secrets"}, Verbs: []string{"get", "list", "watch"}},
		{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: []string{"list", "watch"}},
		{APIGroups: []string{"authorization.k8s.io"}, Resources: []string{"subjectaccessreviews"}, Verbs: []string{"create"}},
		{APIGroups: []string{"apiextensions.k8s.io"}, Resources: []string{"customresourcedefinitions"}, Verbs: []string{"list", "watch"}},
	}}
	_, err = m.Client.RbacV1().ClusterRoles().Create(ctx, role, metav1.CreateOptions{})
	must(t, err)
	binding := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: role.Name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name}}
	for _, account := range []string{vmeshAccount, istiodAccount} {
		_, err := m.Client.CoreV1().ServiceAccounts(memberNamespace).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}}, metav1.CreateOptions{})
		must(t, err)
		binding.Subjects = append(binding.Subjects, rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: memberNamespace, Name: account})
	}
	_, err = m.Client.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{})
	must(t, err)
	tokens := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "tokens"}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"serviceaccounts/token"}, ResourceNames: []string{vmeshAccount, istiodAccount}, Verbs: []string{"create"}},
	}}
	_, err = m.Client.RbacV1().Roles(memberNamespace).Create(ctx, tokens, metav1.CreateOptions{})
	must(t, err)
	_, err = m.Client.RbacV1().RoleBindings(memberNamespace).Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "tokens"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: tokens.Name}, Subjects: binding.Subjects[:1],
	}, metav1.CreateOptions{})
	must(t, err)
	must(t, m.AddService(ctx, "shop", "greeter-"+name))
	b, err := m.AddBackend(ctx, harness.BackendOptions{Namespace: "shop", Service: "greeter-" + name})
	must(t, err)
	return m, b
}

func token(ctx context.Context, t *testing.T, m *harness.Member, account string) string {
	t.Helper()
	r, err := m.Client.CoreV1().ServiceAccounts(memberNamespace).CreateToken(ctx, account, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To[int64](3600)},
	}, metav1.CreateOptions{})
	must(t, err)
	return r.Status.Token
}

// access is a kubeconfig of a member with a token.
func access(t *testing.T, m *harness.Member, token string, change ...func(*clientcmdapi.Config)) []byte {
	t.Helper()
	admin, err := clientcmd.LoadFromFile(m.Kubeconfig)
	must(t, err)
	c := clientcmdapi.NewConfig()
	c.Clusters["member"] = &clientcmdapi.Cluster{Server: m.URL(), CertificateAuthorityData: admin.Clusters["kubernetes"].CertificateAuthorityData}
	c.AuthInfos["user"] = &clientcmdapi.AuthInfo{Token: token}
	c.Contexts["member"] = &clientcmdapi.Context{Cluster: "member", AuthInfo: "user"}
	c.CurrentContext = "member"
	for _, f := range change {
		f(c)
	}
	data, err := clientcmd.Write(*c)
	must(t, err)
	return data
}

var memberClusters = schema.GroupVersionResource{Group: "vmesh.io", Version: "v1alpha1", Resource: "memberclusters"}

// join makes a member of the mesh, which leaves it after the test.
func join(ctx context.Context, t *testing.T, name string, keys map[string][]byte) {
	t.Helper()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.MembersNamespace, Name: name}, Data: keys}
	_, err := shared.core.CoreV1().Secrets(v1alpha1.MembersNamespace).Create(ctx, secret, metav1.CreateOptions{})
	must(t, err)
	manifest, err := yaml.Marshal(map[string]any{
		"apiVersion": "vmesh.io/v1alpha1", "kind": "MemberCluster", "metadata": map[string]any{"name": name},
		"spec": map[string]any{"access": map[string]any{"secret": name}},
	})
	must(t, err)
	must(t, harness.Apply(ctx, shared.vmesh.AdminKubeconfig, string(manifest)))
	harness.StopAfter(t, func(ctx context.Context) error { return leave(ctx, name) })
}

func leave(ctx context.Context, name string) error {
	_, err := harness.Kubectl(ctx, shared.vmesh.AdminKubeconfig, "", "delete", "--ignore-not-found", "membercluster/"+name)
	_, err2 := harness.Kubectl(ctx, shared.vmesh.AdminKubeconfig, "", "delete", "--ignore-not-found", "secret/"+name, "-n", v1alpha1.MembersNamespace)
	return errors.Join(err, err2)
}

func patch(ctx context.Context, t *testing.T, object, merge string) {
	t.Helper()
	_, err := harness.Kubectl(ctx, shared.vmesh.AdminKubeconfig, "", "patch", object, "--type=merge", "-p", merge)
	must(t, err)
}

func member(ctx context.Context, name string) (*v1alpha1.MemberCluster, error) {
	u, err := shared.root.Resource(memberClusters).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	m := &v1alpha1.MemberCluster{}
	return m, runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, m)
}

// untilCondition waits until a condition of a member is so, and returns it.
func untilCondition(ctx context.Context, t *testing.T, name, kind string, status metav1.ConditionStatus, reason string) (c metav1.Condition) {
	t.Helper()
	eventually(ctx, t, fmt.Sprintf("%s of %s is %s: %s", kind, name, status, reason), func() error {
		m, err := member(ctx, name)
		if err != nil {
			return err
		}
		found := meta.FindStatusCondition(m.Status.Conditions, kind)
		if found == nil || found.Status != status || found.Reason != reason {
			return fmt.Errorf("the conditions are %+v", m.Status.Conditions)
		}
		c = *found
		return nil
	})
	return c
}

// sees says whether istiod has an endpoint of that address.
func sees(ctx context.Context, ip string) (bool, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, shared.istiod.DebugURL+"/debug/endpointShardz", nil)
	if err != nil {
		return false, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return false, fmt.Errorf("%s: %w", response.Status, err)
	}
	return strings.Contains(string(body), `"`+ip+`"`), nil
}

func untilSeen(ctx context.Context, t *testing.T, ip string, want bool) {
	t.Helper()
	eventually(ctx, t, fmt.Sprintf("istiod has the endpoint %s: %t", ip, want), func() error {
		if has, err := sees(ctx, ip); err != nil || has != want {
			return fmt.Errorf("it has it: %t (%w)", has, err)
		}
		return nil
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until check has nothing to say, or the context ends.
func eventually(ctx context.Context, t *testing.T, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := check()
		if err == nil {
			return
		}
		if ctx.Err() == nil {
			last = err // and not that the time is over
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waiting until %s: %v\nvmesh's last words:\n%s\nistiod's:\n%s", what, last, tail(shared.vmesh.LogFile()), tail(shared.istiod.LogFile()))
		}
	}
}

func tail(file string) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-4<<10):])
}
