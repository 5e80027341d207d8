package istiod

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmesh-io/vmesh/test/harness"
	"github.com/vmesh-io/vmesh/test/traffic"
)

// team is a virtual cluster of the mesh.
type team struct {
	t                      *testing.T
	ctx                    context.Context
	root, name, kubeconfig string
}

// spec writes the virtual cluster's spec.
func (m *team) spec(spec string) {
	m.t.Helper()
	manifest := fmt.Sprintf("apiVersion: vmesh.io/v1alpha1\nkind: VirtualCluster\nmetadata: {name: %s}\nspec: %s\n", m.name, spec)
	if err := harness.Apply(m.ctx, m.root, manifest); err != nil {
		m.t.Fatal(err)
	}
}

func (m *team) apply(manifest string) {
	m.t.Helper()
	if err := harness.Apply(m.ctx, m.kubeconfig, manifest); err != nil {
		m.t.Fatal(err)
	}
}

func (m *mesh) team(ctx context.Context, t *testing.T, name, spec string, namespaces ...string) *team {
	t.Helper()
	out := &team{t: t, ctx: ctx, root: m.vmesh.AdminKubeconfig, name: name}
	out.spec(spec)
	var err error
	if out.kubeconfig, err = m.vmesh.Kubeconfig(ctx, name); err != nil {
		t.Fatal(err)
	}
	for _, namespace := range namespaces {
		out.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: " + namespace + "}\n")
	}
	return out
}

func serviceEntry(namespace, name, host, exportTo, comment string) string {
	return fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: %s, namespace: %s, annotations: {of: %q}}\n"+
		"spec: {hosts: [%s], exportTo: [%s], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}\n", name, namespace, comment, host, exportTo)
}

// entries are the ServiceEntries that istiod has of some namespaces, with what they are annotated with.
func (m *mesh) entries(ctx context.Context, namespaces ...string) ([]string, error) {
	objects, err := m.istiod.Configz(ctx)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, o := range objects {
		if o.GetKind() == "ServiceEntry" && slices.Contains(namespaces, o.GetNamespace()) {
			all = append(all, o.GetNamespace()+"/"+o.GetName()+"="+o.GetAnnotations()["of"])
		}
	}
	slices.Sort(all)
	return all, nil
}

func (m *mesh) waitForEntries(ctx context.Context, t *testing.T, want string, namespaces ...string) {
	t.Helper()
	eventually(ctx, t, "istiod has "+want, func() error {
		got, err := m.entries(ctx, namespaces...)
		if err == nil && strings.Join(got, " ") != want {
			err = fmt.Errorf("it has %v", got)
		}
		return err
	})
}

// TestWhatIsHeldBackLeavesARealIstiodAndNothingElseDoes takes claims and grants away and
// gives them back, and lets two teams speak for one host.
func TestWhatIsHeldBackLeavesARealIstiodAndNothingElseDoes(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	m := startMesh(ctx, t)
	const bankSpec = `{namespaces: [bank], hosts: [bank.example.com, "*.bank.example.com"], guardRails: {exportTo: ["*"]}, grants: [%s]}`
	grant := fmt.Sprintf(bankSpec, `{to: shop, hosts: [open.bank.example.com]}`)
	bank := m.team(ctx, t, "bank", grant, "bank")
	const shopSpec = `{namespaces: [shop%s], hosts: [%s], guardRails: {exportTo: ["*"]}}`
	all := fmt.Sprintf(shopSpec, ", shop-2", "api.shop.com, www.shop.com")
	shop := m.team(ctx, t, "shop", all, "shop", "shop-2")
	shop.apply(serviceEntry("shop", "api", "api.shop.com", ".", "shop") + serviceEntry("shop", "www", "www.shop.com", ".", "shop") +
		serviceEntry("shop", "open", "open.bank.example.com", `"*"`, "shop") + serviceEntry("shop-2", "svc", "svc.shop-2.svc.cluster.local", ".", "shop"))
	bank.apply(serviceEntry("bank", "api", "bank.example.com", ".", "bank"))
	of := []string{"shop", "shop-2", "bank"}
	wait := func(want string) {
		t.Helper()
		m.waitForEntries(ctx, t, want, of...)
	}
	const everything = "bank/api=bank shop-2/svc=shop shop/api=shop shop/open=shop shop/www=shop"
	wait(everything)

	// Whatever is not held back is there all the time.
	watched, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		for watched.Err() == nil {
			got, err := m.entries(watched, of...)
			if watched.Err() != nil {
				return
			}
			if err != nil || !slices.Contains(got, "bank/api=bank") || !slices.Contains(got, "shop/www=shop") {
				t.Errorf("istiod has %v (%v)", got, err)
				return
			}
		}
	})
	for _, step := range []struct {
		name string
		take func()
		left string
		give func()
	}{
		{"a host", func() { shop.spec(fmt.Sprintf(shopSpec, ", shop-2", "www.shop.com")) },
			"bank/api=bank shop-2/svc=shop shop/open=shop shop/www=shop", func() { shop.spec(all) }},
		{"a namespace", func() { shop.spec(fmt.Sprintf(shopSpec, "", "api.shop.com, www.shop.com")) },
			"bank/api=bank shop/api=shop shop/open=shop shop/www=shop", func() { shop.spec(all) }},
		{"a grant", func() { bank.spec(fmt.Sprintf(bankSpec, "")) },
			"bank/api=bank shop-2/svc=shop shop/api=shop shop/www=shop", func() { bank.spec(grant) }},
	} {
		step.take()
		wait(step.left)
		step.give()
		wait(everything)
	}

	// The owner's own comes second: who was there first has the host.
	time.Sleep(1100 * time.Millisecond) // ages are told by the second
	bank.apply(serviceEntry("bank", "open", "open.bank.example.com", `"*"`, "bank"))
	reason := func(args ...string) (string, error) {
		return harness.Kubectl(ctx, m.vmesh.AdminKubeconfig, "", append([]string{"get", "virtualcluster", "bank", "-o"}, args...)...)
	}
	eventually(ctx, t, "the loser is told", func() error {
		out, err := reason(`jsonpath={.status.conditions[?(@.type=="Conforming")].status} {.status.heldBack[*].reason} {.status.heldBack[*].message}`)
		if err == nil && (!strings.HasPrefix(out, "False HostTaken ") || !strings.Contains(out, `ServiceEntry shop/open of virtual cluster "shop"`)) {
			err = fmt.Errorf("its status says %q", out)
		}
		return err
	})
	if out, err := harness.Kubectl(ctx, bank.kubeconfig, "", "wait", "--for=jsonpath={.status.conditions[?(@.type==\"Distributed\")].reason}=HostTaken", "serviceentry/open", "-n", "bank", "--timeout=20s"); err != nil {
		t.Errorf("the object is not told: %v %s", err, out)
	}
	wait(everything)
	stop()
	wg.Wait()
	if out, err := harness.Kubectl(ctx, shop.kubeconfig, "", "delete", "serviceentry", "open", "-n", "shop"); err != nil {
		t.Fatal(err, out)
	}
	wait("bank/api=bank bank/open=bank shop-2/svc=shop shop/api=shop shop/www=shop")
	if out, err := harness.Kubectl(ctx, bank.kubeconfig, "", "wait", "--for=condition=Distributed", "serviceentry/open", "-n", "bank", "--timeout=60s"); err != nil {
		t.Errorf("the object is not told that it is in: %v %s", err, out)
	}
}

// TestAnObjectThatHasLostOneOfItsHostsIsToldWhoHasIt holds what is told against where calls go.
func TestAnObjectThatHasLostOneOfItsHostsIsToldWhoHasIt(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	m := startMesh(ctx, t)
	const open, own = "open.bank.example.com", "bank.example.com"
	bank := m.team(ctx, t, "bank", `{namespaces: [bank], hosts: [bank.example.com, "*.bank.example.com"], guardRails: {exportTo: ["*"]}, grants: [{to: shop, hosts: [open.bank.example.com]}]}`, "bank")
	shop := m.team(ctx, t, "shop", `{namespaces: [shop], hosts: [shop.com], guardRails: {exportTo: ["*"]}}`, "shop")
	server := func(of *team, name, hosts string) string {
		t.Helper()
		backend, err := traffic.StartBackend(name)
		if err != nil {
			t.Fatal(err)
		}
		harness.StopAfter(t, func(context.Context) error { return backend.Stop() })
		return fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: %s, namespace: %s}\n"+
			"spec: {hosts: [%s], exportTo: [\"*\"], location: MESH_INTERNAL, resolution: STATIC, ports: [{number: 80, name: grpc, protocol: GRPC}], endpoints: [{address: 127.0.0.1, ports: {grpc: %d}}]}\n",
			name, of.name, hosts, backend.Port)
	}
	routes := func(of *team, to, hosts string) string {
		return fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: routes, namespace: %s}\n"+
			"spec: {hosts: [%s], exportTo: [\"*\"], http: [{route: [{destination: {host: %s, port: {number: 80}}}]}]}\n", of.name, hosts, to)
	}
	bank.apply(server(bank, "hosts", open+", "+own) + server(bank, "newest", "newest.bank.example.com"))
	shop.apply(server(shop, "stall", "shop.com") + routes(shop, "shop.com", open))
	time.Sleep(1100 * time.Millisecond) // ages are told by the second
	bank.apply(routes(bank, "newest.bank.example.com", open+", "+own))

	clients := map[string]*traffic.Client{}
	for _, host := range []string{open, own} {
		client, err := traffic.DialFrom(m.istiod.GRPCAddress, "bank", host+":80")
		if err != nil {
			t.Fatal(err)
		}
		harness.StopAfter(t, func(context.Context) error { return client.Close() })
		clients[host] = client
	}
	says := func(want string, goTo map[string]string) {
		t.Helper()
		eventually(ctx, t, "it says "+want, func() error {
			out, err := harness.Kubectl(ctx, bank.kubeconfig, "", "get", "virtualservice", "routes", "-n", "bank", "-o",
				`jsonpath={.status.conditions[?(@.type=="Distributed")].status} {.status.conditions[?(@.type=="Distributed")].reason}: {.status.conditions[?(@.type=="Distributed")].message}`)
			if err == nil && !strings.HasPrefix(out, want) {
				err = fmt.Errorf("it says %q", out)
			}
			return err
		})
		for host, server := range goTo {
			eventually(ctx, t, "calls of "+host+" go to "+server, func() error {
				counts, err := traffic.Split(ctx, clients[host], 10, nil)
				if err == nil && counts[server] != 10 {
					err = fmt.Errorf("they go to %v", counts)
				}
				return err
			})
		}
	}
	says(`True DistributedInPart: Acknowledged by 1 of 1 control plane, but spec.hosts: "open.bank.example.com" is taken at gateway mesh: VirtualService shop/routes of virtual cluster "shop" is older`,
		map[string]string{open: "stall", own: "newest"})
	if out, err := harness.Kubectl(ctx, shop.kubeconfig, "", "delete", "virtualservice", "routes", "-n", "shop"); err != nil {
		t.Fatal(err, out)
	}
	says("True Distributed: Acknowledged by 1 of 1 control plane", map[string]string{open: "newest", own: "newest"})
}

// TestANamespaceMovesBetweenTeamsAndIstiodMissesNothing does what the user guide says.
func TestANamespaceMovesBetweenTeamsAndIstiodMissesNothing(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	m := startMesh(ctx, t)
	old := m.team(ctx, t, "old", `{namespaces: [moving, staying]}`, "moving", "staying")
	taker := m.team(ctx, t, "new", `{namespaces: [mine]}`, "mine")
	const count = 50
	objects := func(of string) string {
		var all strings.Builder
		for i := range count {
			all.WriteString(serviceEntry("moving", fmt.Sprintf("e%02d", i), fmt.Sprintf("e%d.moving.svc.cluster.local", i), ".", of))
		}
		return all.String()
	}
	old.apply(objects("old"))
	has := func(of string) error {
		got, err := m.entries(ctx, "moving")
		if err != nil {
			return err
		}
		for _, e := range got {
			if !strings.HasSuffix(e, "="+of) {
				return fmt.Errorf("it has %v", got)
			}
		}
		if len(got) != count {
			return fmt.Errorf("it has %d of %d", len(got), count)
		}
		return nil
	}
	eventually(ctx, t, "istiod has all", func() error { return has("old") })
	watched, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	looks := 0
	wg.Go(func() {
		for ; watched.Err() == nil; looks++ {
			got, err := m.entries(watched, "moving")
			if watched.Err() == nil && (err != nil || len(got) != count) {
				t.Errorf("istiod has %d of %d (%v)", len(got), count, err)
				return
			}
		}
	})

	// What is nobody's to take cannot be taken, and neither can its namespace be made.
	if err := harness.Apply(ctx, taker.kubeconfig, "apiVersion: v1\nkind: Namespace\nmetadata: {name: moving}\n"); err == nil {
		t.Error("the namespace of another was made")
	}
	old.spec(`{namespaces: [moving, staying], handovers: [{to: new, namespaces: [moving]}]}`)
	taker.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: moving}\n")
	taker.apply(objects("new"))
	if err := has("old"); err != nil {
		t.Errorf("before it is claimed: %v", err)
	}
	taker.spec(`{namespaces: [mine, moving]}`)
	eventually(ctx, t, "istiod has the new owner's", func() error { return has("new") })
	old.spec(`{namespaces: [staying]}`)
	if out, err := harness.Kubectl(ctx, old.kubeconfig, "", "delete", "namespace", "moving"); err != nil {
		t.Fatal(err, out)
	}
	time.Sleep(time.Second) // nothing comes of it
	if err := has("new"); err != nil {
		t.Errorf("in the end: %v", err)
	}
	stop()
	wg.Wait()
	t.Logf("looked at istiod %d times", looks)

	// Such looks do see a gap: between two writes the namespace is nobody's who has anything in it.
	taker.spec(`{namespaces: [mine]}`)
	eventually(ctx, t, "istiod has nothing of what nobody owns", func() error {
		got, err := m.entries(ctx, "moving")
		if err == nil && len(got) > 0 {
			err = fmt.Errorf("it has %d", len(got))
		}
		return err
	})
}
