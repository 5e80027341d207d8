package relay

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/test/harness"
)

// outage is how long vmesh is away; RELAY_OUTAGE has it longer.
func outage(t *testing.T) time.Duration {
	text := os.Getenv("RELAY_OUTAGE")
	if text == "" {
		return 12 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func kubeconfigCreate(ctx context.Context, v *harness.Vmesh, user, file string) error {
	binary, err := harness.Build(ctx)
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, binary, "kubeconfig", "create", "root", "--user", user, "--group", "relays",
		"--data-dir", filepath.Dir(v.AdminKubeconfig), "-o", file).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// What istiod alone cannot: start while vmesh is away, and hear of the first change at once when it is back.
func TestIstiodStartsAndRunsWhileVmeshIsAway(t *testing.T) {
	s := newStack(t)
	s.apply(s.team, demo+entry("kept", "1")+"---\n"+entry("changed", "1"))
	s.startRelay(s.tls)
	s.startIstiod()
	s.expect("kept", "1")

	s.eventually("vmesh knows what istiod has", func() error { return s.distributed("relay~relay-east") })

	s.must(s.vmesh.Kill())
	gone := time.Now()
	s.must(s.istiod.Kill())
	s.must(s.relay.Kill())
	s.must(s.relay.Start(s.ctx))
	s.must(s.relay.WaitReady(s.ctx))
	s.must(s.istiod.Restart(s.ctx)) // it would exit without its sources
	s.expect("kept", "1")
	s.expect("changed", "1")
	if connected, err := s.relay.Metric(s.ctx, "vmesh_relay_connected"); err != nil || connected != 0 {
		t.Errorf("vmesh_relay_connected is %v, %v", connected, err)
	}
	if stale, err := s.relay.Metric(s.ctx, "vmesh_relay_staleness_seconds"); err != nil || stale <= 0 {
		t.Errorf("vmesh_relay_staleness_seconds is %v, %v", stale, err)
	}
	stop := s.neverLoses()
	time.Sleep(time.Until(gone.Add(outage(t))))

	s.must(s.vmesh.Restart(s.ctx)) // returns when it is ready
	back := time.Now()
	s.set("changed", "2")
	written := time.Now()
	took := s.expect("changed", "2").Sub(back)
	t.Logf("after an outage of %s: the first change was written %s after vmesh's return, and at istiod %s after it", outage(t), written.Sub(back).Round(time.Millisecond), took.Round(time.Millisecond))
	if took > 15*time.Second { // kubectl has its part, and so has a busy machine
		t.Errorf("the first change was at istiod %s after vmesh's return", took)
	}
	stop()
}

// distributed says what of the relay's status in the mesh shows that istiod does not have all.
func (s *stack) distributed(id string) error {
	out, err := harness.Kubectl(s.ctx, s.vmesh.AdminKubeconfig, "", "get", "mesh", "default", "-o", "json")
	if err != nil {
		return err
	}
	var mesh v1alpha1.Mesh
	if err := json.Unmarshal([]byte(out), &mesh); err != nil {
		return err
	}
	for _, c := range mesh.Status.ControlPlanes {
		if c.ID != id {
			continue
		}
		if c.User != "relay-east" || !c.Connected {
			return fmt.Errorf("the status shows user %q, connected %v", c.User, c.Connected)
		}
		for _, k := range c.Kinds {
			if k.AckedVersion != k.SentVersion {
				return fmt.Errorf("%s: sent %s, acknowledged %s", k.TypeURL, k.SentVersion, k.AckedVersion)
			}
		}
		return nil
	}
	return fmt.Errorf("the status shows no %s, but %v", id, mesh.Status.ControlPlanes)
}

func TestACorruptCacheIsNeverServed(t *testing.T) {
	s := newStack(t)
	s.apply(s.team, demo+entry("kept", "1"))
	s.startRelay(s.tls)
	s.startIstiod()
	s.expect("kept", "1")
	stop := s.neverLoses()
	s.must(s.vmesh.Kill())
	s.must(s.relay.Kill())
	file := filepath.Join(s.relay.CacheDir, "snapshot")
	data, err := os.ReadFile(file)
	s.must(err)
	data[len(data)/3] ^= 0x10
	s.must(os.WriteFile(file, data, 0o600))
	s.must(s.relay.Start(s.ctx))
	if err := s.relay.Ready(s.ctx); err == nil || !strings.Contains(err.Error(), "nothing to serve") {
		t.Errorf("with a corrupt cache it is ready: %v", err)
	}
	log, err := os.ReadFile(s.relay.LogFile())
	s.must(err)
	if !strings.Contains(string(log), "it is damaged") {
		t.Errorf("the log does not say so:\n%s", log)
	}
	// istiod keeps what it has, and hears of changes when vmesh is back.
	s.must(s.vmesh.Restart(s.ctx))
	s.must(s.relay.WaitReady(s.ctx))
	s.apply(s.team, entry("kept", "2"))
	s.expect("kept", "2")
	stop()
}

// Two servers on one etcd are replaced one after the other, as in a rollout, while changes go on.
func TestARolloutOfTwoVmeshesIsNotSeenByIstiod(t *testing.T) {
	s := newStack(t)
	etcd, err := harness.StartEtcd(s.ctx, harness.EtcdOptions{Dir: filepath.Join(s.dir, "etcd")})
	s.must(err)
	s.onCleanup(etcd.Kill)
	s.must(s.vmesh.Kill()) // it is of an etcd of its own
	var servers []*harness.Vmesh
	var addresses []string
	data := filepath.Join(s.dir, "shared")
	for i := range 2 {
		address := s.freeAddress()
		dir := filepath.Join(s.dir, fmt.Sprint("server-", i))
		if i > 0 {
			// Replicas share their authorities.
			s.must(os.CopyFS(filepath.Join(dir, "pki"), os.DirFS(filepath.Join(data, "pki"))))
		} else {
			dir = data
		}
		v, err := harness.StartVmesh(s.ctx, harness.VmeshOptions{DataDir: dir, ExtraArgs: []string{"--xds-tls-address", address, "--etcd-servers", etcd.URL}})
		s.must(err)
		s.onCleanup(func() error { return v.Kill() })
		servers, addresses = append(servers, v), append(addresses, address)
	}
	s.vmesh = servers[0]
	s.team, err = servers[0].Kubeconfig(s.ctx, "default")
	s.must(err)
	teams := []string{s.team}
	other, err := servers[1].Kubeconfig(s.ctx, "default")
	s.must(err)
	teams = append(teams, other)
	s.receivers(`[{"kind":"User","name":"relay-east"}]`)
	s.apply(s.team, demo+entry("kept", "1"))
	s.startRelay(addresses...)
	s.startIstiod()
	s.expect("kept", "1")
	stop := s.neverLoses()
	for round := range 2 {
		for i, v := range servers {
			stopped := make(chan error, 1)
			go func() { stopped <- v.Stop(s.ctx) }()
			// Written through the one that stays, while the other goes.
			name, value := fmt.Sprintf("new-%d-%d", round, i), fmt.Sprintf("%d-%d", round, i)
			s.apply(teams[1-i], entry(name, "1")+"---\n"+entry("kept", value))
			written := time.Now()
			if took := s.expect("kept", value).Sub(written); took > 15*time.Second {
				t.Errorf("a change was at istiod after %s", took)
			}
			s.must(<-stopped)
			s.must(v.Restart(s.ctx))
		}
	}
	if got, err := s.relay.Metric(s.ctx, "vmesh_relay_connected"); err != nil || got != 1 {
		t.Errorf("vmesh_relay_connected is %v, %v", got, err)
	}
	stop()
	// The relay went from one server to the other, and istiod stayed where it was.
	relayLog, err := os.ReadFile(s.relay.LogFile())
	s.must(err)
	for _, address := range addresses {
		if !strings.Contains(string(relayLog), `"Connected to vmesh" address="`+address) {
			t.Errorf("the relay was never connected to %s", address)
		}
	}
	if parted, err := s.parted(); err != nil || parted > 0 {
		t.Errorf("istiod lost its source %d times, %v", parted, err)
	}
	// It is seen when it does.
	s.must(s.relay.Kill())
	s.eventually("istiod tells of a source that is gone", func() error {
		if parted, err := s.parted(); err != nil || parted == 0 {
			return fmt.Errorf("it tells of %d, %v", parted, err)
		}
		return nil
	})
}

// parted is how often istiod's log tells of the end of a stream from a config source.
func (s *stack) parted() (int, error) {
	log, err := os.ReadFile(s.istiod.LogFile())
	return strings.Count(string(log), "connection closed with err"), err
}
