package members

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/members"
	"github.com/vmesh-io/vmesh/test/harness"
)

// Two servers on one etcd look after a member: one renews its token, and either goes on when the other is killed.
func TestOfSeveralServersOneLooksAfterAMember(t *testing.T) {
	ctx := withTimeout(t)
	m, _ := startMember(ctx, t, "shared", 14)
	dir := t.TempDir()
	var servers []*harness.Vmesh
	for i := range 2 {
		v, err := harness.StartVmesh(ctx, harness.VmeshOptions{DataDir: filepath.Join(dir, fmt.Sprint("vmesh-", i)), ExtraArgs: []string{
			"--member-check-interval", "300ms", "--etcd-servers", shared.etcd.URLs()[0], "--etcd-prefix", "/replicas",
		}})
		must(t, err)
		harness.StopAfter(t, func(ctx context.Context) error { return v.Stop(ctx) })
		servers = append(servers, v)
	}
	client := func(kubeconfig string) kubernetes.Interface {
		config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		must(t, err)
		c, err := kubernetes.NewForConfig(config)
		must(t, err)
		return c
	}
	must(t, harness.Apply(ctx, servers[0].AdminKubeconfig, fmt.Sprintf(setUp, home)))
	var homes []kubernetes.Interface
	for _, v := range servers {
		kubeconfig, err := v.Kubeconfig(ctx, home)
		must(t, err)
		homes = append(homes, client(kubeconfig))
	}
	must(t, harness.Apply(ctx, servers[1].AdminKubeconfig, fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: shared, namespace: vmesh-system}
stringData:
  kubeconfig: %q
---
apiVersion: vmesh.io/v1alpha1
kind: MemberCluster
metadata: {name: shared}
spec: {access: {secret: shared}}
`, access(t, m, oldToken(ctx, t, m, vmeshAccount)))))

	get := func(i int) error {
		_, err := homes[i].CoreV1().Secrets("istio-system").Get(ctx, members.RemoteSecretName("shared"), metav1.GetOptions{})
		return err
	}
	eventually(ctx, t, "control planes have access", func() error { return get(1) })
	eventually(ctx, t, "the token is renewed", func() error {
		secret, err := client(servers[0].AdminKubeconfig).CoreV1().Secrets(v1alpha1.MembersNamespace).Get(ctx, "shared", metav1.GetOptions{})
		if err != nil {
			return err
		}
		out, err := harness.Kubectl(ctx, servers[0].AdminKubeconfig, "", "get", "membercluster/shared", "-o", "jsonpath={.status.credentials[0].renewedAt}")
		if err != nil || out == "" {
			return fmt.Errorf("it is not renewed: %s (%w), of %d keys", out, err, len(secret.Data))
		}
		return nil
	})
	for i, v := range servers {
		must(t, v.Kill())
		<-v.Exited()
		must(t, homes[1-i].CoreV1().Secrets("istio-system").Delete(ctx, members.RemoteSecretName("shared"), metav1.DeleteOptions{}))
		eventually(ctx, t, "the one that is left restores the access", func() error { return get(1 - i) })
		must(t, v.Restart(ctx))
	}
	out, err := harness.Kubectl(ctx, servers[0].AdminKubeconfig, "", "get", "events", "-o", `jsonpath={range .items[?(@.reason=="Renewed")]}{.count}{end}`)
	must(t, err)
	if strings.TrimSpace(out) != "1" {
		t.Errorf("renewals are told of as %q", out)
	}
}
