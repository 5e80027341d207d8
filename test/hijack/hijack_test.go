// Package hijack tests with real istiods of two revisions that a team cannot take the calls of
// another: not by what it writes, and not by what was let in before.
package hijack

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/test/harness"
	"github.com/vmesh-io/vmesh/test/traffic"
)

// What a client of bank's calls.
const (
	service = "payments.bank.svc.cluster.local" // a service of its namespace
	claimed = "payments.example.com"            // a host that it claims
	moved   = "pay.partner.example"             // a host that mallory claims first
)

// istiods are three, of two revisions.
var istiods = map[string]string{"canary": "canary", "stable-a": "stable", "stable-b": "stable"}

// mesh is one of two teams, bank and mallory, and of a platform.
type mesh struct {
	t       *testing.T
	ctx     context.Context
	etcd    *clientv3.Client
	vmesh   *harness.Vmesh
	mallory string // kubeconfigs
	bank    string
	port    int // of bank's server
	istiods map[string]*harness.Istiod
	clients map[string]map[string]*traffic.Client // of bank, by istiod and what they call
}

func (m *mesh) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// atEnd stops something at the end of the test.
func (m *mesh) atEnd(stop func(context.Context) error) {
	m.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := stop(ctx); err != nil {
			m.t.Error(err)
		}
	})
}

// root runs kubectl in the root.
func (m *mesh) root(stdin string, args ...string) string {
	m.t.Helper()
	out, err := harness.Kubectl(m.ctx, m.vmesh.AdminKubeconfig, stdin, args...)
	m.must(err)
	return out
}

// spec changes the spec of a virtual cluster.
func (m *mesh) spec(cluster, spec string) {
	m.t.Helper()
	m.root("", "patch", "virtualcluster", cluster, "--type=merge", "-p", `{"spec":`+spec+`}`)
}

// eventually waits until check has nothing to say, for a minute at most.
func (m *mesh) eventually(what string, check func() error) {
	m.t.Helper()
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); pause(m.ctx, 20*time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	m.t.Fatalf("waiting until %s: %v", what, err)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// The guard rails of mallory before they are tightened, and what bank lets it do: everything that
// the attempts need.
const (
	opened       = `{"hosts":["mallory.example.com","pay.partner.example"],"guardRails":{"exportTo":["*"],"kinds":["EnvoyFilter"],"gatewaySelectors":[{"matchLabels":{"istio":"mallory"}}]}}`
	openedByBank = `{"grants":[{"to":"mallory","hosts":["payments.bank.svc.cluster.local","payments.example.com"],"gateways":["bank/public"]}]}`
	tightened    = `{"hosts":["mallory.example.com"],"guardRails":null}`
	closedByBank = `{"grants":null,"hosts":["payments.example.com","pay.partner.example"]}`
)

func start(ctx context.Context, t *testing.T) *mesh {
	t.Helper()
	dir := t.TempDir()
	m := &mesh{t: t, ctx: ctx, istiods: map[string]*harness.Istiod{}, clients: map[string]map[string]*traffic.Client{}}
	etcd, err := harness.StartEtcd(ctx, harness.EtcdOptions{Dir: filepath.Join(dir, "etcd")})
	m.must(err)
	m.atEnd(func(context.Context) error { return etcd.Kill() })
	m.etcd, err = clientv3.New(clientv3.Config{Endpoints: []string{etcd.URL}, Logger: zap.NewNop()})
	m.must(err)
	m.atEnd(func(context.Context) error { return m.etcd.Close() })
	m.vmesh, err = harness.StartVmesh(ctx, harness.VmeshOptions{DataDir: filepath.Join(dir, "vmesh"), ExtraArgs: []string{"--etcd-servers", etcd.URL}})
	m.must(err)
	m.atEnd(m.vmesh.Stop)
	t.Cleanup(func() {
		if t.Failed() {
			data, err := os.ReadFile(m.vmesh.LogFile())
			t.Logf("vmesh's last words (%v):\n%s", err, data[max(0, len(data)-8<<10):])
		}
	})
	// The virtual cluster that is there from the start owns everything; it becomes the platform's.
	m.spec("default", `{"namespaces":["istio-system"],"hosts":null,"guardRails":null}`)
	const team = "apiVersion: vmesh.io/v1alpha1\nkind: VirtualCluster\nmetadata: {name: %s}\nspec: {mesh: default, namespaces: [%[1]s]%s}\n---\n"
	m.root(fmt.Sprintf(team, "bank", ", hosts: [payments.example.com], guardRails: {gatewaySelectors: [{matchLabels: {istio: ingressgateway}}]}")+fmt.Sprintf(team, "mallory", ""), "apply", "-f", "-")
	platform, err := m.vmesh.Kubeconfig(ctx, "default")
	m.must(err)
	m.bank, err = m.vmesh.Kubeconfig(ctx, "bank")
	m.must(err)
	m.mallory, err = m.vmesh.Kubeconfig(ctx, "mallory")
	m.must(err)

	ports := map[string]int{}
	for _, name := range []string{"bank", "mallory"} {
		backend, err := traffic.StartBackend(name)
		m.must(err)
		m.atEnd(func(context.Context) error { return backend.Stop() })
		ports[name] = backend.Port
	}
	m.port = ports["bank"]
	m.spec("mallory", opened)
	m.must(harness.Apply(ctx, m.bank, namespace("bank")+entry("payments", "bank", service, ports["bank"])+entry("claimed", "bank", claimed, ports["bank"])+gateway))
	m.must(harness.Apply(ctx, m.mallory, namespace("mallory")+entry("proxy", "mallory", "mallory.example.com", ports["mallory"])))

	for name, revision := range istiods {
		istiod, err := harness.StartIstiod(ctx, harness.IstiodOptions{
			Dir: filepath.Join(dir, name), Kubeconfig: platform, XDSAddresses: []string{m.vmesh.XDSAddress},
			PodName: name, Debounce: 5 * time.Millisecond, ExtraEnv: []string{"REVISION=" + revision},
		})
		m.must(err)
		m.atEnd(istiod.Stop)
		m.istiods[name], m.clients[name] = istiod, map[string]*traffic.Client{}
		for _, host := range []string{service, claimed, moved} {
			client, err := traffic.DialFrom(istiod.GRPCAddress, "bank", host+":80")
			m.must(err)
			m.atEnd(func(context.Context) error { return client.Close() })
			m.clients[name][host] = client
		}
	}
	return m
}

func namespace(name string) string {
	return "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + name + "}\n---\n"
}

func entry(name, namespace, host string, port int) string {
	return fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %s, namespace: %s}
spec:
  hosts: [%s]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: grpc, protocol: GRPC}]
  endpoints: [{address: 127.0.0.1, ports: {grpc: %d}}]
---
`, name, namespace, host, port)
}

const gateway = `apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: public, namespace: bank}
spec: {selector: {istio: ingressgateway}, servers: [{hosts: [payments.example.com], port: {number: 80, name: http, protocol: HTTP}}]}
`

// attempt is one way of taking bank's calls.
type attempt struct {
	of, name      string
	version, kind string
	spec          string
	says          []string // of the refusal
	takes         string   // whose calls it takes when it is let in; empty: it is seen at istiod
	never         bool     // no guard rails let it in
}

const (
	toMallory = `http: [{route: [{destination: {host: mallory.example.com, port: {number: 80}}}]}]`
	grpcPort  = `ports: [{number: 80, name: grpc, protocol: GRPC}], location: MESH_INTERNAL, resolution: STATIC, endpoints: [{address: 127.0.0.9}]`
	ofBank    = `virtual cluster "bank"`
)

var attempts = []attempt{
	{of: "ISTIO-SECURITY-2026-002", name: "a-service", kind: "VirtualService", spec: `{hosts: [` + service + `], ` + toMallory + `}`, says: []string{"spec.hosts[0]", ofBank}, takes: service},
	{of: "ISTIO-SECURITY-2026-002", name: "mesh-gateway", kind: "VirtualService", spec: `{hosts: [` + service + `], gateways: [mesh], exportTo: ["*"], ` + toMallory + `}`,
		says: []string{"spec.hosts[0]", "spec.exportTo[0]", ofBank}, takes: service},
	{of: "ISTIO-SECURITY-2026-002", name: "a-host", kind: "VirtualService", spec: `{hosts: [` + claimed + `], ` + toMallory + `}`, says: []string{"spec.hosts[0]", ofBank}, takes: claimed},
	{of: "ISTIO-SECURITY-2026-002", name: "all-services", kind: "VirtualService", spec: `{hosts: ["*.svc.cluster.local"], exportTo: ["*"], ` + toMallory + `}`,
		says: []string{"spec.hosts[0]", "others"}, never: true},
	{of: "ISTIO-SECURITY-2026-002", name: "in-capitals", kind: "VirtualService", spec: `{hosts: [Payments.BANK.svc.cluster.local], ` + toMallory + `}`, says: []string{"spec.hosts[0]", ofBank}, never: true},
	{of: "istio/istio #10039", name: "to-a-namespace", kind: "VirtualService", spec: `{hosts: [mallory.example.com, ` + service + `], exportTo: [bank], ` + toMallory + `}`,
		says: []string{"spec.hosts[1]", "spec.exportTo[0]", ofBank}, takes: service},
	{of: "istio/istio #10039", name: "noise", kind: "VirtualService", spec: `{hosts: [mallory.example.com], exportTo: ["*"], ` + toMallory + `}`, says: []string{"spec.exportTo[0]", "spec.guardRails.exportTo"}},
	{of: "istio/istio #10039", name: "a-gateway", kind: "VirtualService", spec: `{hosts: [mallory.example.com], gateways: [bank/public], ` + toMallory + `}`, says: []string{"spec.gateways[0]", ofBank, "bank/public"}},
	{of: "istio/istio #13008", name: "entry-of-a-host", kind: "ServiceEntry", spec: `{hosts: [` + claimed + `], ` + grpcPort + `}`, says: []string{"spec.hosts[0]", ofBank}},
	{of: "istio/istio #13008", name: "entry-of-a-service", kind: "ServiceEntry", spec: `{hosts: [` + service + `], ` + grpcPort + `}`, says: []string{"spec.hosts[0]", ofBank}},
	{of: "istio/istio #13008", name: "rule-of-a-service", kind: "DestinationRule", spec: `{host: ` + service + `, trafficPolicy: {tls: {mode: DISABLE}}}`, says: []string{"spec.host", ofBank}},
	{of: "istio/istio #15216", name: "filter-of-all", version: "v1alpha3", kind: "EnvoyFilter",
		spec: `{configPatches: [{applyTo: HTTP_FILTER, match: {context: ANY}, patch: {operation: INSERT_BEFORE, value: {name: x}}}]}`, says: []string{"EnvoyFilter is off"}},
	{of: "istio/istio #23111", name: "filter-of-outgoing", version: "v1alpha3", kind: "EnvoyFilter",
		spec: `{configPatches: [{applyTo: HTTP_FILTER, match: {context: SIDECAR_OUTBOUND}, patch: {operation: INSERT_BEFORE, value: {name: x}}}]}`, says: []string{"EnvoyFilter is off"}},
}

func (a attempt) manifest() string {
	version := "v1"
	if a.version != "" {
		version = a.version
	}
	return fmt.Sprintf("apiVersion: networking.istio.io/%s\nkind: %s\nmetadata: {name: attempt-%s, namespace: mallory}\nspec: %s\n---\n", version, a.kind, a.name, a.spec)
}

// has are the attempts that an istiod has.
func (m *mesh) has(ctx context.Context, istiod string) ([]string, error) {
	shown, err := m.istiods[istiod].Configz(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	entries := 0
	for _, o := range shown {
		if name, is := strings.CutPrefix(o.GetName(), "attempt-"); is {
			out = append(out, name)
		}
		if o.GetKind() == "ServiceEntry" {
			entries++
		}
	}
	if entries == 0 {
		return nil, fmt.Errorf("%s has no service entries at all", istiod)
	}
	slices.Sort(out)
	return out, nil
}

func (m *mesh) everywhere(what string, want ...string) {
	m.t.Helper()
	slices.Sort(want)
	for name := range m.istiods {
		m.eventually(fmt.Sprintf("%s at %s", what, name), func() error {
			got, err := m.has(m.ctx, name)
			if err == nil && !slices.Equal(got, want) {
				err = fmt.Errorf("it has %v, want %v", got, want)
			}
			return err
		})
	}
}

// goTo waits until the calls of a host go to one server, through all istiods.
func (m *mesh) goTo(what, host, server string) {
	m.t.Helper()
	for name := range m.istiods {
		m.eventually(fmt.Sprintf("%s: calls of %s through %s go to %s", what, host, name, server), func() error {
			ctx, cancel := context.WithTimeout(m.ctx, 5*time.Second)
			defer cancel()
			counts, err := traffic.Split(ctx, m.clients[name][host], 10, nil)
			if err == nil && counts[server] != 10 {
				err = fmt.Errorf("they go to %v", counts)
			}
			return err
		})
	}
}

// guard calls what is bank's all the time, and looks at all istiods, until stop is called: every
// call arrives at bank, and no istiod ever has an attempt.
func (m *mesh) guard() (stop func()) {
	ctx, cancel := context.WithCancel(m.ctx)
	var wg sync.WaitGroup
	var calls, looks atomic.Int64
	for name := range m.istiods {
		for host, client := range m.clients[name] {
			wg.Go(func() {
				for ctx.Err() == nil {
					calling, done := context.WithTimeout(ctx, 20*time.Second)
					server, err := client.Call(calling, nil)
					done()
					if ctx.Err() == nil && (err != nil || server != "bank") {
						m.t.Errorf("a call of %s through %s arrived at %q: %v", host, name, server, err)
						return
					}
					calls.Add(1)
					pause(ctx, 5*time.Millisecond)
				}
			})
		}
		wg.Go(func() {
			for ctx.Err() == nil {
				// While istiod starts anew there is nothing to see.
				if got, err := m.has(ctx, name); err == nil {
					if looks.Add(1); len(got) > 0 {
						m.t.Errorf("%s has %v", name, got)
						return
					}
				}
				pause(ctx, 20*time.Millisecond)
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
		m.t.Logf("%d calls arrived at bank, %d looks at istiods", calls.Load(), looks.Load())
		if calls.Load() < 1000 || looks.Load() < 30 {
			m.t.Error("these are too few to say something")
		}
	}
}

func TestATeamCannotTakeTheCallsOfAnotherAtAnyIstiod(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	m := start(ctx, t)

	// The control experiment: with its guard rails opened, mallory takes the calls.
	m.spec("bank", openedByBank)
	m.goTo("at first", service, "bank")
	m.goTo("at first", claimed, "bank")
	var all []string
	var manifests string
	for _, a := range attempts {
		if a.never {
			continue
		}
		all, manifests = append(all, a.name), manifests+a.manifest()
		if a.takes == "" {
			continue
		}
		m.must(harness.Apply(ctx, m.mallory, a.manifest()))
		m.goTo(a.name+", let in", a.takes, "mallory")
		_, err := harness.Kubectl(ctx, m.mallory, a.manifest(), "delete", "-f", "-")
		m.must(err)
		m.goTo(a.name+", removed", a.takes, "bank")
	}
	m.must(harness.Apply(ctx, m.mallory, manifests))
	m.must(harness.Apply(ctx, m.mallory, attempt{name: "moved", kind: "VirtualService", spec: `{hosts: [` + moved + `], ` + toMallory + `}`}.manifest()+
		attempt{name: "moved-entry", kind: "ServiceEntry", spec: `{hosts: [` + moved + `], ` + grpcPort + `}`}.manifest()))
	all = append(all, "moved", "moved-entry")
	m.everywhere("all attempts are let in", all...)
	m.goTo("with all attempts let in", service, "mallory")
	m.goTo("with all attempts let in", claimed, "mallory")
	m.goTo("while it is mallory's", moved, "mallory")
	stored := m.stored("attempt-a-service", "attempt-filter-of-all")

	// What was let in is held back when it may not be there any more, at all istiods, though two of
	// them are in a stage of releases that nobody promotes.
	m.root("", "patch", "mesh", "default", "--type=merge", "-p", `{"spec":{"rollout":{"stages":[
		{"name":"canary","controlPlanes":{"matchLabels":{"vmesh.io/revision":"canary"}}},{"name":"rest","controlPlanes":{}}]}}}`)
	m.eventually("there are stages", func() error {
		status, err := m.status()
		if err == nil && (status.Rollout == nil || status.Rollout.Phase != v1alpha1.RolloutComplete || status.Connected != 3) {
			err = fmt.Errorf("the rollout is %+v, %d are connected", status.Rollout, status.Connected)
		}
		return err
	})
	m.spec("mallory", tightened)
	m.spec("bank", closedByBank)
	m.everywhere("nothing is left")
	m.goTo("held back", service, "bank")
	m.goTo("held back", claimed, "bank")
	m.held(all)
	m.root("", "patch", "mesh", "default", "--type=merge", "-p", `{"spec":{"rollout":null}}`)
	m.must(harness.Apply(ctx, m.bank, entry("moved", "bank", moved, m.port)))
	m.goTo("with its new owner", moved, "bank")

	// From here on every call arrives, whatever mallory tries.
	stop := m.guard()
	defer func() { stop() }()
	m.must(m.vmesh.Kill())
	m.must(m.vmesh.Restart(ctx))
	m.must(m.istiods["stable-b"].Restart(ctx)) // it has everything from vmesh anew
	m.held(all)
	_, err := harness.Kubectl(ctx, m.mallory, "", "delete", "virtualservices,serviceentries,destinationrules,envoyfilters", "--all", "-n", "mallory")
	m.must(err)
	m.held(nil)
	for _, a := range attempts {
		for _, how := range [][]string{{"apply", "-f", "-"}, {"apply", "--server-side", "-f", "-"}, {"create", "-f", "-"}} {
			out, err := harness.Kubectl(ctx, m.mallory, a.manifest(), how...)
			if err == nil {
				t.Errorf("%s, %s by kubectl %s: %s", a.of, a.name, strings.Join(how, " "), out)
				continue
			}
			for _, part := range a.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%s, %s by kubectl %s: %v: it does not say %s", a.of, a.name, strings.Join(how, " "), err, part)
				}
			}
		}
	}
	// What is written past admission altogether.
	for key, value := range stored {
		_, err := m.etcd.Put(ctx, key, value)
		m.must(err)
	}
	m.held([]string{"a-service", "filter-of-all"})
	m.must(m.istiods["canary"].Restart(ctx))
	m.goTo("at the end", service, "bank")
	stop()
	stop = func() {}
}

func (m *mesh) status() (v1alpha1.MeshStatus, error) {
	out, err := harness.Kubectl(m.ctx, m.vmesh.AdminKubeconfig, "", "get", "mesh", "default", "-o", "json")
	if err != nil {
		return v1alpha1.MeshStatus{}, err
	}
	var o v1alpha1.Mesh
	err = json.Unmarshal([]byte(out), &o)
	return o.Status, err
}

// held waits until mallory's virtual cluster says that just these attempts are held back.
func (m *mesh) held(want []string) {
	m.t.Helper()
	want = slices.Sorted(slices.Values(want))
	m.eventually("what is held back is told", func() error {
		out, err := harness.Kubectl(m.ctx, m.vmesh.AdminKubeconfig, "", "get", "virtualcluster", "mallory", "-o", "json")
		if err != nil {
			return err
		}
		var vc v1alpha1.VirtualCluster
		if err := json.Unmarshal([]byte(out), &vc); err != nil {
			return err
		}
		var got []string
		for _, h := range vc.Status.HeldBack {
			name, _ := strings.CutPrefix(h.Name, "attempt-")
			got = append(got, name)
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			return fmt.Errorf("%v are, want %v", got, want)
		}
		return nil
	})
}

// stored is what etcd holds of objects, by their keys.
func (m *mesh) stored(names ...string) map[string]string {
	m.t.Helper()
	all, err := m.etcd.Get(m.ctx, "/", clientv3.WithPrefix())
	m.must(err)
	found := map[string]string{}
	for _, kv := range all.Kvs {
		if key := string(kv.Key); strings.HasPrefix(key, "/registry/networking.istio.io/") && slices.Contains(names, key[strings.LastIndexByte(key, '/')+1:]) {
			found[key] = string(kv.Value)
		}
	}
	if len(found) != len(names) {
		m.t.Fatalf("etcd has %d of %v", len(found), names)
	}
	return found
}
