package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/vmesh-io/vmesh/test/harness"
	"github.com/vmesh-io/vmesh/test/traffic"
)

// stack is everything that runs: an etcd of three members, two servers on it, istiods which have nothing but them for their
// configuration, and a client of each istiod, which calls two backends. The API that istiod needs for itself is a
// kube-apiserver, and is never killed; nor are clients and backends.
type stack struct {
	dir     string
	binary  string // vmesh
	ledger  *ledger
	logf    func(format string, args ...any)
	etcd    *harness.EtcdCluster
	vmesh   []*harness.Vmesh
	xdsTLS  []string // of each
	relays  []*harness.Relay
	servers []*server
	istiods []*istiod
	targets []*target

	hostEtcd *harness.Etcd
	host     *harness.KubeAPIServer
	backends []*traffic.Backend
}

// istiod is a control plane with those who look at it.
type istiod struct {
	*harness.Istiod
	view   *view
	shadow *shadow
	client *traffic.Client
}

// topology says where the istiod of a number has its configuration from. It returns the addresses of the sources, and may
// start processes, which it adds to the stack's targets.
type topology func(ctx context.Context, s *stack, number int) (sources []string, err error)

var topologies = map[string]topology{"direct": direct, "relay": relayed}

// direct has each istiod ask one server. istiod knows one address of each source, so it is alone while that one is down.
func direct(_ context.Context, s *stack, number int) ([]string, error) {
	return []string{s.vmesh[number%len(s.vmesh)].XDSAddress}, nil
}

// relayed has each istiod ask a relay of its own, which knows all servers.
func relayed(ctx context.Context, s *stack, number int) ([]string, error) {
	name := fmt.Sprintf("relay-%d", number)
	dir := filepath.Join(s.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	admin := s.vmesh[0].AdminKubeconfig
	if _, err := harness.Kubectl(ctx, admin, "", "patch", "mesh", "default", "--type=merge", "-p", `{"spec":{"receivers":[{"kind":"Group","name":"relays"}]}}`); err != nil {
		return nil, err
	}
	identity, err := exec.CommandContext(ctx, s.binary, "kubeconfig", "create", "root", "--user", name, "--group", "relays", "--data-dir", filepath.Dir(admin)).Output()
	if err != nil {
		return nil, fmt.Errorf("creating an identity for %s: %w", name, err)
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(kubeconfig, identity, 0o600); err != nil {
		return nil, err
	}
	relay, err := harness.StartRelay(ctx, harness.RelayOptions{
		Dir: dir, Binary: s.binary, Upstream: s.xdsTLS, Kubeconfig: kubeconfig, MaxShards: shards,
		ExtraArgs: []string{"--name", name, "--shards", strconv.Itoa(shards)},
	})
	if err != nil {
		return nil, err
	}
	if err := relay.WaitReady(ctx); err != nil {
		return nil, err
	}
	s.relays = append(s.relays, relay)
	s.targets = append(s.targets, &target{
		name:      name,
		kill:      func(context.Context) (string, error) { return name, relay.Kill() },
		start:     relay.Start,
		processes: func() []*harness.Process { return []*harness.Process{relay.Process} },
	})
	return relay.Sources()
}

const (
	servers = 2
	// shards is over how many sources a relay spreads the mesh.
	shards = 4
)

func (s *stack) start(ctx context.Context, topology topology, istiods int) error {
	if err := s.startServers(ctx); err != nil {
		return err
	}
	for _, version := range []string{"v1", "v2"} {
		backend, err := traffic.StartBackend(version)
		if err != nil {
			return err
		}
		s.backends = append(s.backends, backend)
	}
	var err error
	if s.hostEtcd, err = harness.StartEtcd(ctx, harness.EtcdOptions{Dir: filepath.Join(s.dir, "host")}); err != nil {
		return err
	}
	s.host, err = harness.StartKubeAPIServer(ctx, harness.KubeAPIServerOptions{Dir: filepath.Join(s.dir, "host"), EtcdURL: s.hostEtcd.URL})
	if err != nil {
		return err
	}
	if err := s.writeFirst(ctx); err != nil {
		return err
	}
	for i := range istiods {
		if err := s.startIstiod(ctx, topology, i); err != nil {
			return err
		}
	}
	return nil
}

func (s *stack) startServers(ctx context.Context) (err error) {
	if s.etcd, err = harness.StartEtcdCluster(ctx, harness.EtcdOptions{Dir: filepath.Join(s.dir, "etcd")}, 3); err != nil {
		return err
	}
	var killed *harness.EtcdMember
	s.targets = append(s.targets, &target{
		name: "etcd's leader",
		kill: func(ctx context.Context) (string, error) {
			leader, err := s.etcd.Leader(ctx)
			if err != nil {
				return "", err
			}
			killed = leader
			return killed.Name() + ", etcd's leader", killed.Kill()
		},
		start: func(ctx context.Context) error { return killed.Restart(ctx) },
		processes: func() (all []*harness.Process) {
			for _, m := range s.etcd.Members {
				all = append(all, m.Process)
			}
			return all
		},
	})
	if s.binary == "" {
		if s.binary, err = harness.Build(ctx); err != nil {
			return err
		}
	}
	ports, err := harness.FreePorts(servers)
	if err != nil {
		return err
	}
	for i := range servers {
		name := fmt.Sprintf("vmesh-%d", i)
		dir := filepath.Join(s.dir, name)
		if i > 0 {
			if err := os.CopyFS(filepath.Join(dir, "pki"), os.DirFS(filepath.Join(s.dir, "vmesh-0", "pki"))); err != nil {
				return err
			}
			if err := os.Chmod(dir, 0o700); err != nil {
				return err
			}
		}
		s.xdsTLS = append(s.xdsTLS, fmt.Sprintf("127.0.0.1:%d", ports[i]))
		options := harness.VmeshOptions{Binary: s.binary, DataDir: dir, ExtraArgs: []string{"--xds-tls-address", s.xdsTLS[i]}}
		for _, url := range s.etcd.URLs() {
			options.ExtraArgs = append(options.ExtraArgs, "--etcd-servers", url)
		}
		vmesh, err := harness.StartVmesh(ctx, options)
		if err != nil {
			return err
		}
		s.vmesh = append(s.vmesh, vmesh)
		kubeconfig, err := vmesh.Kubeconfig(ctx, "default")
		if err != nil {
			return err
		}
		server, err := newServer(name, kubeconfig)
		if err != nil {
			return err
		}
		s.servers = append(s.servers, server)
		if i == 0 {
			if err := harness.Apply(ctx, kubeconfig, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+namespace+"}\n"); err != nil {
				return err
			}
		}
		s.targets = append(s.targets, &target{
			name:      name,
			kill:      func(context.Context) (string, error) { return name, vmesh.Kill() },
			start:     vmesh.Restart,
			processes: func() []*harness.Process { return []*harness.Process{vmesh.Process} },
		})
	}
	return nil
}

func (s *stack) startIstiod(ctx context.Context, topology topology, number int) error {
	sources, err := topology(ctx, s, number)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("istiod-%d", number)
	i := &istiod{view: newView(s.ledger, name), shadow: newShadow(newView(s.ledger, "shadow of "+name), sources)}
	i.Istiod, err = harness.StartIstiod(ctx, harness.IstiodOptions{
		Dir: filepath.Join(s.dir, name), Kubeconfig: s.host.Kubeconfig, XDSAddresses: sources, PodName: name,
	})
	if err != nil {
		return err
	}
	s.istiods = append(s.istiods, i)
	i.view.ready()
	if i.client, err = traffic.Dial(i.GRPCAddress, traffic.Target); err != nil {
		return err
	}
	s.targets = append(s.targets, &target{
		name: name,
		kill: func(context.Context) (string, error) {
			i.view.die()
			return name, i.Kill()
		},
		start: func(ctx context.Context) error {
			if err := i.Restart(ctx); err != nil {
				return err
			}
			i.view.ready()
			return nil
		},
		processes: func() []*harness.Process { return []*harness.Process{i.Process} },
	})
	return nil
}

// streams says to how many shards of its relay an istiod has streams, if it has a relay: until it is to all, it is told nothing.
func (s *stack) streams(ctx context.Context, number int) string {
	if number >= len(s.relays) {
		return ""
	}
	connected, err := s.relays[number].Metric(ctx, "vmesh_relay_shards_connected")
	if err != nil {
		return fmt.Sprintf(" (its relay: %v)", err)
	}
	return fmt.Sprintf(" (with streams to %.0f of %d shards of its relay)", connected, shards)
}

// writer makes a writer that writes until ctx ends.
func (s *stack) writer(ctx context.Context, random *rand.Rand) *writer {
	return &writer{ledger: s.ledger, servers: s.servers, random: random, spec: s.spec, logf: s.logf, stop: ctx}
}

// permanent are how many entries there are besides those of the calls that are never deleted.
const permanent = 20

// writeFirst writes what is there for good.
func (s *stack) writeFirst(ctx context.Context) error {
	w := s.writer(ctx, rand.New(rand.NewPCG(0, 0)))
	for _, kind := range observed {
		if _, err := w.create(kind, greeter); err != nil {
			return fmt.Errorf("writing %s %s: %w", kind, greeter, err)
		}
		s.ledger.keep(keyOf(kind, namespace, greeter))
	}
	for i := range permanent {
		name := fmt.Sprintf("permanent-%d", i)
		if _, err := w.create("ServiceEntry", name); err != nil {
			return fmt.Errorf("writing ServiceEntry %s: %w", name, err)
		}
		s.ledger.keep(keyOf("ServiceEntry", namespace, name))
	}
	return nil
}

// greeter is the name of the entries by which calls go.
const greeter = "greeter"

// stop ends everything, without waiting for anybody to do it in order.
func (s *stack) stop() error {
	var errs []error
	for _, i := range s.istiods {
		if i.client != nil {
			errs = append(errs, i.client.Close())
		}
		errs = append(errs, i.Kill())
	}
	for _, r := range s.relays {
		errs = append(errs, r.Kill())
	}
	for _, b := range s.backends {
		errs = append(errs, b.Stop())
	}
	for _, v := range s.vmesh {
		errs = append(errs, v.Kill())
	}
	if s.host != nil && s.host.Process != nil {
		errs = append(errs, s.host.Kill())
	}
	if s.hostEtcd != nil {
		errs = append(errs, s.hostEtcd.Kill())
	}
	if s.etcd != nil {
		errs = append(errs, s.etcd.Kill())
	}
	return errors.Join(errs...)
}

type object = map[string]any

// spec is what an entry says at a value. No weight is ever 0, and the endpoints that calls go to stay.
func (s *stack) spec(kind, name string, value int) map[string]any {
	host := name + ".demo.example"
	switch {
	case kind == "DestinationRule":
		return object{"host": host, "subsets": []any{
			object{"name": "v1", "labels": object{"version": "v1"}}, object{"name": "v2", "labels": object{"version": "v2"}},
		}}
	case kind == "VirtualService":
		v1 := v1Weight(value)
		destination := func(subset string, weight int64) any {
			return object{"destination": object{"host": host, "subset": subset}, "weight": weight}
		}
		return object{"hosts": []any{host}, "http": []any{object{"route": []any{destination("v1", v1), destination("v2", 100-v1)}}}}
	}
	var endpoints []any
	if name == greeter {
		for _, b := range s.backends {
			endpoints = append(endpoints, object{"address": "127.0.0.1", "ports": object{"grpc": int64(b.Port)}, "labels": object{"version": b.Version}})
		}
	} else {
		endpoints = append(endpoints, object{"address": fmt.Sprintf("10.0.%d.%d", value/256%256, value%256)})
	}
	return object{
		"hosts": []any{host}, "location": "MESH_INTERNAL", "resolution": "STATIC", "endpoints": endpoints,
		"ports": []any{object{"number": int64(80), "name": "grpc", "protocol": "GRPC"}},
	}
}

// v1Weight is the share of calls, in percent, that v1 has at a value of the greeter's VirtualService.
func v1Weight(value int) int64 { return int64(10 + value*37%81) }
