package istiod

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/test/harness"
	"github.com/vmesh-io/vmesh/test/traffic"
)

// startHome starts a mesh whose istiod has nothing but the kubeconfig of its home.
func startHome(ctx context.Context, t *testing.T) *mesh {
	t.Helper()
	m := &mesh{}
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	m.vmesh, err = harness.StartVmesh(ctx, harness.VmeshOptions{DataDir: filepath.Join(dir, "vmesh")})
	must(err)
	harness.StopAfter(t, m.vmesh.Stop)
	m.kubeconfig, err = m.vmesh.Kubeconfig(ctx, "default")
	must(err)
	must(m.vmesh.Home(ctx, "default", "default"))

	var backends [2]*traffic.Backend
	for i, version := range []string{"v1", "v2"} {
		backends[i], err = traffic.StartBackend(version)
		must(err)
		harness.StopAfter(t, func(context.Context) error { return backends[i].Stop() })
	}
	must(harness.Apply(ctx, m.kubeconfig, traffic.Service(backends[0], backends[1])))
	must(harness.Apply(ctx, m.kubeconfig, traffic.Weights(80, 20)))
	m.istiod, err = harness.StartIstiod(ctx, harness.IstiodOptions{Dir: filepath.Join(dir, "istiod"), Kubeconfig: m.kubeconfig, Home: true})
	must(err)
	harness.StopAfter(t, func(ctx context.Context) error { return m.istiod.Stop(ctx) }) // the one of the last restart
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("istiod's last words:\n%s", tail(m.istiod.LogFile()))
			t.Logf("vmesh's last words:\n%s", tail(m.vmesh.LogFile()))
		}
	})
	m.client, err = traffic.Dial(m.istiod.GRPCAddress, traffic.Target)
	must(err)
	harness.StopAfter(t, func(context.Context) error { return m.client.Close() })
	return m
}

// patch changes the Mesh.
func (m *mesh) patch(ctx context.Context, t *testing.T, patch string) {
	t.Helper()
	if out, err := harness.Kubectl(ctx, m.vmesh.AdminKubeconfig, "", "patch", "mesh", "default", "--type=merge", "--patch", patch); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// status is the Mesh's.
func (m *mesh) status(ctx context.Context) (*v1alpha1.MeshStatus, error) {
	out, err := harness.Kubectl(ctx, m.vmesh.AdminKubeconfig, "", "get", "mesh", "default", "-o", "json")
	if err != nil {
		return nil, err
	}
	var mesh v1alpha1.Mesh
	err = json.Unmarshal([]byte(out), &mesh)
	return &mesh.Status, err
}

// condition waits until the Mesh has a condition with a text in its message, and returns the
// status that has it.
func (m *mesh) condition(ctx context.Context, t *testing.T, kind string, status metav1.ConditionStatus, reason, text string) *v1alpha1.MeshStatus {
	t.Helper()
	var last *v1alpha1.MeshStatus
	eventually(ctx, t, fmt.Sprintf("%s is %s, %s", kind, status, reason), func() error {
		s, err := m.status(ctx)
		if err != nil {
			return err
		}
		last = s
		if c := meta.FindStatusCondition(s.Conditions, kind); c == nil || c.Status != status || c.Reason != reason || !strings.Contains(c.Message, text) {
			return fmt.Errorf("it is %+v", c)
		}
		return nil
	})
	return last
}

// shows waits until a debug page of istiod has all texts.
func (m *mesh) shows(ctx context.Context, t *testing.T, page string, texts ...string) {
	t.Helper()
	eventually(ctx, t, "istiod shows "+strings.Join(texts, ", "), func() error {
		body, err := m.istiod.Debug(ctx, page)
		if err != nil {
			return err
		}
		for _, text := range texts {
			if !strings.Contains(strings.Join(strings.Fields(string(body)), ""), text) {
				return fmt.Errorf("%s has no %s: %s", page, text, body)
			}
		}
		return nil
	})
}

func TestIstiodLivesInItsHome(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	m := startHome(ctx, t)
	wait := func() context.Context {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
		t.Cleanup(cancel)
		return ctx
	}
	eventually(wait(), t, "calls go as written", func() error { return splits(ctx, m.client, 0.2, nil) })

	eventually(wait(), t, "the home has what istiod keeps", func() error {
		out, err := harness.Kubectl(ctx, m.kubeconfig, "", "get", "secrets,configmaps,leases", "-n", "istio-system", "-o", "name")
		if err != nil {
			return err
		}
		for _, name := range []string{"secret/istio-ca-secret", "configmap/istio-ca-root-cert", "configmap/istio-namespace-controller-election", "configmap/istio\n"} {
			if !strings.Contains(out, name) {
				return fmt.Errorf("there is no %s among %s", name, out)
			}
		}
		return nil
	})

	// What istiod follows reaches it as it runs.
	member := func(name, network string) string {
		return fmt.Sprintf("apiVersion: vmesh.io/v1alpha1\nkind: MemberCluster\nmetadata: {name: %s}\nspec: {network: %s, access: {secret: none}}\n", name, network)
	}
	if err := harness.Apply(ctx, m.vmesh.AdminKubeconfig, member("east-1", "east")+"---\n"+member("west-1", "west")); err != nil {
		t.Fatal(err)
	}
	m.patch(ctx, t, `{"spec":{"networks":[{"name":"east","gateways":[{"address":"10.1.0.1"}]},{"name":"west"}]}}`)
	m.condition(wait(), t, v1alpha1.ConditionNetworksConnected, metav1.ConditionFalse, "MissingGateway", "network west of member west-1")
	m.shows(wait(), t, "networkz", "10.1.0.1")
	m.patch(ctx, t, `{"spec":{"networks":[{"name":"east","gateways":[{"address":"10.1.0.1"}]},{"name":"west","gateways":[{"address":"10.2.0.1","port":15444}]}]}}`)
	m.shows(wait(), t, "networkz", "10.1.0.1", "10.2.0.1", "15444")
	status := m.condition(wait(), t, v1alpha1.ConditionNetworksConnected, metav1.ConditionTrue, "Connected", "")
	if got := fmt.Sprint(status.Networks); got != "[{east [east-1] [10.1.0.1:15443]} {west [west-1] [10.2.0.1:15444]}]" {
		t.Errorf("status.networks is %s", got)
	}
	m.patch(ctx, t, `{"spec":{"locality":{"failover":[{"from":"eu","to":"us"}]}}}`)
	m.shows(wait(), t, "mesh", `"localityLbSetting":{"failover":[{"from":"eu","to":"us"}]`)
	m.shows(wait(), t, "configz", `"host":"*.svc.cluster.local"`, `"consecutive5xxErrors":5`)
	m.condition(wait(), t, v1alpha1.ConditionSettingsCurrent, metav1.ConditionTrue, "Current", "")

	// What it reads only when it starts is told, until it does.
	m.patch(ctx, t, fmt.Sprintf(`{"spec":{"home":{"configSources":["xds://%[1]s","xds://%[1]s"]}}}`, m.vmesh.XDSAddress))
	status = m.condition(wait(), t, v1alpha1.ConditionSettingsCurrent, metav1.ConditionFalse, "RestartNeeded", "configSources changed, which istiod reads only when it starts: restart istiod-0.istio-system")
	for !time.Now().After(status.Home.SettingsChangedAt.Add(2 * time.Second)) {
		time.Sleep(50 * time.Millisecond) // of the same second it would not be known what came first
	}
	if err := m.istiod.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	status = m.condition(wait(), t, v1alpha1.ConditionSettingsCurrent, metav1.ConditionTrue, "Current", "")
	eventually(wait(), t, "calls go through again", func() error {
		_, err := m.client.Call(ctx, nil)
		return err
	})
	eventually(wait(), t, "both sources are in use", func() error {
		status, err := m.status(ctx)
		if err == nil && status.Connected != 2 {
			err = fmt.Errorf("%d streams", status.Connected)
		}
		return err
	})

	// What somebody removes or changes comes back, and istiod does not hear of it for long.
	written := status.Home.WrittenAt
	for _, harm := range [][]string{{"delete", "configmap", "istio"}, {"patch", "configmap", "istio", "--type=merge", "--patch", `{"data":{"mesh":"trustDomain: evil"}}`}} {
		if out, err := harness.Kubectl(ctx, m.kubeconfig, "", append([]string{"-n", "istio-system"}, harm...)...); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		eventually(wait(), t, "it is back", func() error {
			out, err := harness.Kubectl(ctx, m.kubeconfig, "", "get", "configmap", "istio", "-n", "istio-system", "-o", "jsonpath={.data.mesh}")
			if err == nil && (!strings.Contains(out, m.vmesh.XDSAddress) || strings.Contains(out, "evil")) {
				err = fmt.Errorf("it has %s", out)
			}
			return err
		})
	}
	if status, err := m.status(ctx); err != nil || status.Home == nil || written == nil {
		t.Errorf("the home is told as %+v, %v", status, err)
	}
	m.condition(wait(), t, v1alpha1.ConditionSettingsCurrent, metav1.ConditionTrue, "Current", "")
}
