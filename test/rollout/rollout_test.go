// Package rollout tests with real istiods of two revisions that each receives what is meant for
// it, when it is meant to.
package rollout

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/test/harness"
	"github.com/vmesh-io/vmesh/test/traffic"
)

// mesh is a vmesh with three istiods: one of revision canary, which is the first stage, and two
// of revision stable, which are the second.
type mesh struct {
	t          *testing.T
	binary     string
	dataDir    string
	vmesh      *harness.Vmesh
	kubeconfig string // of the virtual cluster
	istiods    map[string]*harness.Istiod
	clients    map[string]*traffic.Client
}

var names = map[string]string{"canary": "canary", "stable-a": "stable", "stable-b": "stable"} // to revisions

func start(ctx context.Context, t *testing.T) *mesh {
	t.Helper()
	dir := t.TempDir()
	m := &mesh{t: t, dataDir: filepath.Join(dir, "vmesh"), istiods: map[string]*harness.Istiod{}, clients: map[string]*traffic.Client{}}
	var err error
	m.binary, err = harness.Build(ctx)
	m.must(err)
	m.vmesh, err = harness.StartVmesh(ctx, harness.VmeshOptions{DataDir: m.dataDir, Binary: m.binary})
	m.must(err)
	harness.StopAfter(t, m.vmesh.Stop)
	t.Cleanup(func() {
		if t.Failed() {
			data, _ := os.ReadFile(m.vmesh.LogFile())
			t.Logf("vmesh's last words:\n%s", data[max(0, len(data)-8<<10):])
		}
	})
	m.kubeconfig, err = m.vmesh.Kubeconfig(ctx, "default")
	m.must(err)
	var backends [2]*traffic.Backend
	for i, version := range []string{"v1", "v2"} {
		backends[i], err = traffic.StartBackend(version)
		m.must(err)
		harness.StopAfter(t, func(context.Context) error { return backends[i].Stop() })
	}
	m.must(harness.Apply(ctx, m.kubeconfig, traffic.Service(backends[0], backends[1])))
	m.must(harness.Apply(ctx, m.kubeconfig, traffic.Weights(80, 20)))
	m.root(ctx, "patch", "mesh", "default", "--type=merge", "-p",
		`{"spec": {"rollout": {"stages": [
			{"name": "canary", "controlPlanes": {"matchLabels": {"vmesh.io/revision": "canary"}}},
			{"name": "rest", "controlPlanes": {}}]}}}`)
	for name, revision := range names {
		istiod, err := harness.StartIstiod(ctx, harness.IstiodOptions{
			Dir: filepath.Join(dir, name), Kubeconfig: m.kubeconfig, XDSAddresses: []string{m.vmesh.XDSAddress},
			PodName: name, ExtraEnv: []string{"REVISION=" + revision},
		})
		m.must(err)
		harness.StopAfter(t, istiod.Stop)
		client, err := traffic.Dial(istiod.GRPCAddress, traffic.Target)
		m.must(err)
		harness.StopAfter(t, func(context.Context) error { return client.Close() })
		m.istiods[name], m.clients[name] = istiod, client
		m.eventually(ctx, "calls go through "+name, func() error {
			_, err := client.Call(ctx, nil)
			return err
		})
	}
	return m
}

func (m *mesh) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// root runs kubectl in the root.
func (m *mesh) root(ctx context.Context, args ...string) string {
	m.t.Helper()
	out, err := harness.Kubectl(ctx, m.vmesh.AdminKubeconfig, "", args...)
	m.must(err)
	return out
}

// cli runs vmesh.
func (m *mesh) cli(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, m.binary, append(args, "--data-dir", m.dataDir)...).CombinedOutput()
	return string(out), err
}

func (m *mesh) status(ctx context.Context) (v1alpha1.MeshStatus, error) {
	out, err := harness.Kubectl(ctx, m.vmesh.AdminKubeconfig, "", "get", "mesh", "default", "-o", "json")
	if err != nil {
		return v1alpha1.MeshStatus{}, err
	}
	var mesh v1alpha1.Mesh
	err = json.Unmarshal([]byte(out), &mesh)
	return mesh.Status, err
}

// eventually waits until check has nothing to say, for a minute at most.
func (m *mesh) eventually(ctx context.Context, what string, check func() error) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			m.t.Fatalf("waiting until %s: %v", what, err)
		}
	}
}

// phase waits for a phase of the rollout.
func (m *mesh) phase(ctx context.Context, want v1alpha1.RolloutPhase) (status v1alpha1.MeshStatus) {
	m.t.Helper()
	m.eventually(ctx, "the rollout is "+string(want), func() (err error) {
		if status, err = m.status(ctx); err != nil {
			return err
		}
		if status.Rollout == nil || status.Rollout.Phase != want {
			return fmt.Errorf("it is %+v", status.Rollout)
		}
		return nil
	})
	return status
}

// has says what of a kind an istiod has, by name, with the annotation release.
func (m *mesh) has(ctx context.Context, istiod, kind string) (map[string]string, error) {
	shown, err := m.istiods[istiod].Configz(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, o := range shown {
		if o.GetKind() == kind {
			out[o.GetName()] = o.GetAnnotations()["release"]
		}
	}
	return out, nil
}

func entry(name, revision string) string {
	label := ""
	if revision != "" {
		label = fmt.Sprintf(", labels: {istio.io/rev: %s}", revision)
	}
	return fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: %s, namespace: demo%s}
spec: {address: 127.0.0.9}
`, name, label)
}

func annotated(manifest, release string) string {
	return strings.Replace(manifest, "  name: greeter\n", "  name: greeter\n  annotations: {release: "+release+"}\n", 1)
}

// splits says how far the share of v2 is from what is wanted, if it is too far.
func splits(ctx context.Context, c *traffic.Client, v2 float64) error {
	const calls = 300
	counts, err := traffic.Split(ctx, c, calls, nil)
	if err != nil {
		return err
	}
	tolerance := 4 * math.Sqrt(v2*(1-v2)/calls)
	if share := float64(counts["v2"]) / calls; math.Abs(share-v2) > tolerance {
		return fmt.Errorf("v2 got %.0f%% of the calls, want %.0f%%", share*100, v2*100)
	}
	return nil
}

// What a broken release does to its first stage, it does to nobody else: through an abort, and
// through a vmesh that is killed amidst it.
func TestABrokenReleaseEndsAtItsFirstStage(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	m := start(ctx, t)

	load, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	var wg sync.WaitGroup
	failures := make(chan error, 16)
	calls := map[string]*int{}
	for _, name := range []string{"stable-a", "stable-b"} {
		n := new(int)
		calls[name] = n
		wg.Go(func() {
			for ; load.Err() == nil; *n++ {
				if _, err := m.clients[name].Call(load, nil); err != nil && load.Err() == nil {
					failures <- fmt.Errorf("call %d through %s failed: %w", *n, name, err)
					return
				}
				pause(load, 2*time.Millisecond)
			}
		})
		wg.Go(func() {
			for load.Err() == nil {
				vs, err := m.has(load, name, "VirtualService")
				if release, there := vs["greeter"]; err == nil && (!there || release == "broken") {
					failures <- fmt.Errorf("%s has the virtual service: %t, of release %q", name, there, release)
					return
				}
				pause(load, 5*time.Millisecond)
			}
		})
	}

	// A route to a subset that there is not.
	broken := annotated(strings.ReplaceAll(traffic.Weights(50, 50), "subset: v", "subset: missing-"), "broken")
	m.must(harness.Apply(ctx, m.kubeconfig, broken))
	m.eventually(ctx, "the canary has it", func() error {
		vs, err := m.has(ctx, "canary", "VirtualService")
		if err == nil && vs["greeter"] != "broken" {
			err = fmt.Errorf("it has %v", vs)
		}
		return err
	})
	m.eventually(ctx, "calls through the canary fail", func() error {
		if _, err := m.clients["canary"].Call(ctx, nil); err == nil {
			return fmt.Errorf("they go through")
		}
		return nil
	})
	status := m.phase(ctx, v1alpha1.RolloutPaused)
	if status.Rollout.Stage != "canary" || status.Rollout.Changes != 1 {
		t.Errorf("rollout: %+v", status.Rollout)
	}
	m.eventually(ctx, "the status tells who has what", func() error {
		status, err := m.status(ctx)
		if err != nil {
			return err
		}
		versions := map[string]string{}
		for _, c := range status.ControlPlanes {
			versions[c.Labels[v1alpha1.LabelPod]] = c.Version
		}
		if versions["canary"] == versions["stable-a"] || versions["stable-a"] != versions["stable-b"] || versions["stable-a"] == "" {
			return fmt.Errorf("versions: %v", versions)
		}
		return nil
	})

	m.must(m.vmesh.Kill())
	<-m.vmesh.Exited()
	m.must(m.vmesh.Restart(ctx))
	m.eventually(ctx, "all istiods are back", func() error {
		status, err := m.status(ctx)
		if err != nil {
			return err
		}
		if status.Connected != 3 || status.Rollout == nil || status.Rollout.Stages[1].Current != 2 {
			return fmt.Errorf("connected %d, rollout %+v", status.Connected, status.Rollout)
		}
		return nil
	})

	if out, err := m.cli(ctx, "rollout", "status"); err != nil || !strings.Contains(out, "canary*") {
		t.Errorf("vmesh rollout status: %v\n%s", err, out)
	}
	out, err := m.cli(ctx, "rollout", "abort")
	if err != nil || !strings.Contains(out, "1 resources are pinned") {
		t.Errorf("vmesh rollout abort: %v\n%s", err, out)
	}
	m.eventually(ctx, "calls go through the canary again", func() error { return splits(ctx, m.clients["canary"], 0.2) })
	if status := m.phase(ctx, v1alpha1.RolloutAborted); status.Rollout.Pinned != 1 || status.Rollout.PinnedResources[0].Name != "greeter" {
		t.Errorf("rollout: %+v", status.Rollout)
	}

	// What is written again is released anew.
	m.must(harness.Apply(ctx, m.kubeconfig, annotated(traffic.Weights(20, 80), "mended")))
	m.eventually(ctx, "the canary's calls follow", func() error { return splits(ctx, m.clients["canary"], 0.8) })
	m.phase(ctx, v1alpha1.RolloutPaused)
	if err := splits(ctx, m.clients["stable-a"], 0.2); err != nil {
		t.Errorf("before the promotion: %v", err)
	}
	if out, err := m.cli(ctx, "rollout", "promote"); err != nil || !strings.Contains(out, "all stages receive it") {
		t.Errorf("vmesh rollout promote: %v\n%s", err, out)
	}
	for _, name := range []string{"stable-a", "stable-b"} {
		m.eventually(ctx, "calls through "+name+" follow", func() error { return splits(ctx, m.clients[name], 0.8) })
	}
	if out, err := m.cli(ctx, "rollout", "status", "--wait", "--timeout", "2m"); err != nil {
		t.Errorf("vmesh rollout status --wait: %v\n%s", err, out)
	}
	if out, err := m.cli(ctx, "rollout", "promote"); err == nil || !strings.Contains(out, "no rollout") {
		t.Errorf("promoting nothing: %v\n%s", err, out)
	}
	stopLoad()
	wg.Wait()
	close(failures)
	for err := range failures {
		t.Error(err)
	}
	m.eventually(ctx, "all is told in events", func() error {
		events := m.root(ctx, "get", "events", "--field-selector", "involvedObject.kind=Mesh")
		for _, reason := range []string{"RolloutBegan", "RolloutAborted", "RolloutAdvanced", "RolloutCompleted"} {
			if !strings.Contains(events, reason) {
				return fmt.Errorf("no event %s in\n%s", reason, events)
			}
		}
		return nil
	})
	t.Logf("%d and %d calls through the later stage", *calls["stable-a"], *calls["stable-b"])
}

func TestEachRevisionReceivesWhatIsMeantForIt(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	m := start(ctx, t)
	m.root(ctx, "patch", "mesh", "default", "--type=merge", "-p", `{"spec": {"rollout": null}}`)
	m.must(harness.Apply(ctx, m.kubeconfig, entry("all", "")+"---\n"+entry("canary", "canary")+"---\n"+entry("stable", "stable")))
	has := func(istiod string, want ...string) {
		t.Helper()
		m.eventually(ctx, istiod+" has what is meant for it", func() error {
			got, err := m.has(ctx, istiod, "WorkloadEntry")
			if err != nil {
				return err
			}
			wanted := map[string]string{}
			for _, w := range want {
				wanted[w] = ""
			}
			if fmt.Sprint(got) != fmt.Sprint(wanted) {
				return fmt.Errorf("it has %v, want %v", got, wanted)
			}
			return nil
		})
	}
	has("canary", "all", "canary")
	has("stable-a", "all", "stable")
	has("stable-b", "all", "stable")
	// istiod would leave the others out itself: that they were not sent is in the status.
	m.eventually(ctx, "all have the same version, of what is meant for them", func() error {
		status, err := m.status(ctx)
		if err != nil {
			return err
		}
		for _, c := range status.ControlPlanes {
			if c.Version != status.Version {
				return fmt.Errorf("%s has version %s of %s", c.ID, c.Version, status.Version)
			}
			for _, k := range c.Kinds {
				if strings.HasSuffix(k.TypeURL, "/WorkloadEntry") && k.Resources != 2 {
					return fmt.Errorf("%s was sent %d", c.ID, k.Resources)
				}
			}
		}
		return nil
	})
	// A filter takes effect at once, and its end as well.
	m.root(ctx, "patch", "mesh", "default", "--type=merge", "-p",
		`{"spec": {"filters": [{"name": "no-entries", "controlPlanes": {"matchLabels": {"vmesh.io/pod": "stable-b"}}, "kinds": ["ServiceEntry", "DestinationRule", "VirtualService"]}]}}`)
	has("stable-b")
	has("stable-a", "all", "stable")
	m.root(ctx, "patch", "mesh", "default", "--type=merge", "-p", `{"spec": {"filters": null}}`)
	has("stable-b", "all", "stable")
	for bad, says := range map[string]string{
		`{"spec": {"filters": [{"name": "f", "controlPlanes": {"matchLabels": {"a b": "c"}}, "kinds": ["VirtualService"]}]}}`: "spec.filters[0].controlPlanes.matchLabels",
		`{"spec": {"filters": [{"name": "f", "controlPlanes": {}, "kinds": ["Deployment"]}]}}`:                                "spec.filters[0].kinds[0]",
		`{"spec": {"filters": [{"name": "f", "controlPlanes": {}}]}}`:                                                         "spec.filters[0]: Required value",
		`{"spec": {"rollout": {"stages": [{"name": "a", "controlPlanes": {}, "bake": "-1s"}]}}}`:                              "spec.rollout.stages[0].bake",
	} {
		if _, err := harness.Kubectl(ctx, m.vmesh.AdminKubeconfig, "", "patch", "mesh", "default", "--type=merge", "-p", bad); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want it refused with %s", bad, err, says)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
