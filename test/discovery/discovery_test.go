// Package discovery tests what vmesh tells of the services of a mesh with real members and a real istiod: it is what
// istiod has.
package discovery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/test/harness"
)

func TestMain(m *testing.M) {
	harness.Main(func() (int, error) { return m.Run(), nil })
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually tries until check finds nothing wrong, for two minutes at most.
func eventually(ctx context.Context, t *testing.T, check func(context.Context) error) {
	t.Helper()
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(2 * time.Minute); ; <-poll.C {
		err := check(ctx)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// counted is how many endpoints there are of a service in a member's locality, and how many are ready.
type counted map[string][2]int32

func (c counted) String() string {
	var all []string
	for _, key := range slices.Sorted(maps.Keys(c)) {
		all = append(all, fmt.Sprintf("%s: %d of %d", key, c[key][1], c[key][0]))
	}
	return strings.Join(all, "\n")
}

// istiodCounts are those of a namespace's services as istiod has them.
func istiodCounts(ctx context.Context, istiod *harness.Istiod, namespace string) (counted, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, istiod.DebugURL+"/debug/endpointz", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var shards map[string]map[string]struct {
		Shards map[string][]struct {
			Addresses       []string
			ServicePortName string
			Locality        struct{ Label string }
			HealthStatus    int32
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&shards); err != nil {
		return nil, err
	}
	out := counted{}
	for host, namespaces := range shards {
		for shard, endpoints := range namespaces[namespace].Shards {
			_, cluster, _ := strings.Cut(shard, "/")
			seen := map[string]bool{}
			for _, e := range endpoints {
				if seen[e.Addresses[0]] {
					continue // of another port
				}
				seen[e.Addresses[0]] = true
				key := fmt.Sprintf("%s in %s at %s", host, cluster, strings.TrimRight(e.Locality.Label, "/"))
				n := out[key]
				n[0]++
				if e.HealthStatus == healthy {
					n[1]++
				}
				out[key] = n
			}
		}
	}
	return out, nil
}

// healthy is model.Healthy of istiod.
const healthy = 1

// ours are the same as vmesh tells them.
func ours(ctx context.Context, kubeconfig, namespace string) (counted, error) {
	data, err := harness.Kubectl(ctx, kubeconfig, "", "get", "meshservices", "-n", namespace, "-o", "json")
	if err != nil {
		return nil, err
	}
	var list v1alpha1.MeshServiceList
	if err := json.Unmarshal([]byte(data), &list); err != nil {
		return nil, err
	}
	out := counted{}
	for i := range list.Items {
		st := &list.Items[i].Status
		for _, c := range st.Clusters {
			for _, l := range c.Localities {
				out[fmt.Sprintf("%s in %s at %s", st.Host, c.Name, l.Locality)] = [2]int32{l.Endpoints, l.Ready}
			}
		}
	}
	return out, nil
}

func TestWhatIsToldOfServicesIsWhatIstiodHas(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	dir := t.TempDir()
	etcd, err := harness.StartEtcd(ctx, harness.EtcdOptions{Dir: filepath.Join(dir, "etcd")})
	must(t, err)
	harness.StopAfter(t, etcd.Stop)
	vmesh, err := harness.StartVmesh(ctx, harness.VmeshOptions{DataDir: filepath.Join(dir, "vmesh")})
	must(t, err)
	harness.StopAfter(t, vmesh.Stop)
	binary, err := harness.Build(ctx)
	must(t, err)
	must(t, harness.Apply(ctx, vmesh.AdminKubeconfig, `apiVersion: vmesh.io/v1alpha1
kind: VirtualCluster
metadata: {name: home}
---
apiVersion: vmesh.io/v1alpha1
kind: VirtualCluster
metadata: {name: team}
spec: {namespaces: [shop]}
`))
	_, err = harness.Kubectl(ctx, vmesh.AdminKubeconfig, "", "wait", "--for=condition=Ready", "--timeout=60s", "virtualcluster/home", "virtualcluster/team")
	must(t, err)
	_, err = harness.Kubectl(ctx, vmesh.AdminKubeconfig, "", "patch", "mesh", "default", "--type=merge", "-p", `{"spec":{"home":{"virtualCluster":"home"}}}`)
	must(t, err)
	home, err := vmesh.Kubeconfig(ctx, "home")
	must(t, err)
	team, err := vmesh.Kubeconfig(ctx, "team")
	must(t, err)

	// Two members, of which one serves more than the other.
	all := map[string]*harness.Member{}
	for i, name := range []string{"east", "west"} {
		member, err := harness.StartMember(ctx, harness.MemberOptions{Dir: filepath.Join(dir, name), EtcdURL: etcd.URL, Name: name, Index: i + 1})
		must(t, err)
		harness.StopAfter(t, member.Close)
		all[name] = member
		must(t, member.AddNode(ctx, "n1", name+"-1", name+"-1a"))
		must(t, member.AddNode(ctx, "n2", name+"-1", name+"-1b"))
		must(t, member.AddNode(ctx, "bare", "", ""))
		out, err := exec.CommandContext(ctx, binary, "join", name, "--kubeconfig", member.Kubeconfig, "--root-kubeconfig", vmesh.AdminKubeconfig, "--wait=false").CombinedOutput()
		if err != nil {
			t.Fatalf("joining %s: %v\n%s", name, err, out)
		}
	}
	var backends []*harness.Backend
	add := func(member *harness.Member, service, node string, ready bool) {
		t.Helper()
		b, err := member.AddBackend(ctx, harness.BackendOptions{Namespace: "shop", Service: service, Node: node, NotReady: !ready})
		must(t, err)
		backends = append(backends, b)
	}
	for name, member := range all {
		must(t, member.AddService(ctx, "shop", "reviews"))
		must(t, member.AddService(ctx, "shop", "ports", corev1.ServicePort{Name: "http", Port: 80}, corev1.ServicePort{Name: "grpc", Port: 90}))
		must(t, member.AddService(ctx, "bank", "others"))
		add(member, "reviews", "n1", true)
		add(member, "reviews", "n2", true)
		add(member, "reviews", "n2", false)
		add(member, "ports", "n1", name == "east")
	}
	must(t, all["west"].AddService(ctx, "shop", "single"))
	add(all["west"], "single", "bare", true)

	istiod, err := harness.StartIstiod(ctx, harness.IstiodOptions{
		Dir: filepath.Join(dir, "istiod"), Kubeconfig: home, Debounce: 10 * time.Millisecond,
		ExtraArgs: []string{"--meshConfig", filepath.Join(dir, "none"), "--networksConfig", filepath.Join(dir, "none")},
	})
	must(t, err)
	harness.StopAfter(t, istiod.Stop)
	defer func() {
		if !t.Failed() {
			return
		}
		if data, err := os.ReadFile(istiod.LogFile()); err == nil {
			t.Logf("istiod's log:\n%s", data[max(0, len(data)-4000):])
		}
		members, err := harness.Kubectl(ctx, vmesh.AdminKubeconfig, "", "get", "memberclusters", "-o", "yaml")
		t.Logf("members (%v):\n%s", err, members)
	}()
	agree := func(at string, least int, again ...func(context.Context) error) {
		t.Helper()
		eventually(ctx, t, func(ctx context.Context) error {
			for _, do := range again {
				if err := do(ctx); err != nil {
					return err
				}
			}
			theirs, err1 := istiodCounts(ctx, istiod, "shop")
			told, err2 := ours(ctx, team, "shop")
			if err := errors.Join(err1, err2); err != nil {
				return err
			}
			if len(told) < least || told.String() != theirs.String() {
				return fmt.Errorf("%s: istiod has\n%v\nvmesh tells\n%v", at, theirs, told)
			}
			return nil
		})
	}
	agree("at first", 7)

	// What changes in members, changes in both.
	must(t, backends[0].SetReady(ctx, false))
	must(t, backends[1].Remove(ctx))
	add(all["east"], "reviews", "bare", true)
	_, err = all["west"].Client.CoreV1().Nodes().Patch(ctx, "n1", types.MergePatchType,
		[]byte(`{"metadata":{"labels":{"topology.istio.io/subzone":"rack"}}}`), metav1.PatchOptions{})
	must(t, err)
	add(all["west"], "reviews", "n1", true)
	add(all["west"], "ports", "n1", true)
	// Istiod takes note of a node's labels when it reads of endpoints on it, and not when they change.
	touched := 0
	agree("after changes", 7, func(ctx context.Context) error {
		slices := all["west"].Client.DiscoveryV1().EndpointSlices("shop")
		list, err := slices.List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		touched++
		for i := range list.Items {
			patch := fmt.Sprintf(`{"metadata":{"annotations":{"touched":"%d"}}}`, touched)
			if _, err := slices.Patch(ctx, list.Items[i].Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
				return err
			}
		}
		return nil
	})

	// kubectl shows it in short, to the team what is its own and to the home all.
	table, err := harness.Kubectl(ctx, team, "", "get", "msvc", "-A")
	must(t, err)
	for _, want := range []string{"reviews", "east,west", "grpc:80", "single"} {
		if !strings.Contains(table, want) {
			t.Errorf("the table lacks %s:\n%s", want, table)
		}
	}
	if strings.Contains(table, "others") {
		t.Errorf("the team sees another's service:\n%s", table)
	}
	table, err = harness.Kubectl(ctx, home, "", "get", "meshservices", "-A")
	must(t, err)
	if !strings.Contains(table, "others") || !strings.Contains(table, "reviews") {
		t.Errorf("the home does not see all:\n%s", table)
	}
	explained, err := harness.Kubectl(ctx, team, "", "explain", "meshservice.status.clusters")
	must(t, err)
	if !strings.Contains(explained, "awaySince") {
		t.Errorf("kubectl explains:\n%s", explained)
	}

	// Who writes routes to what members have is not told that it is missing.
	must(t, harness.Apply(ctx, team, "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"))
	const routes = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %[1]s, namespace: shop}
spec: {hosts: [%[1]s], http: [{route: [{destination: {host: %[1]s}, weight: 50}, {destination: {host: others.bank.svc.cluster.local}, weight: 50}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: %[1]s, namespace: shop}
spec: {host: %[1]s, subsets: [{name: v1, labels: {version: v1}}]}
`
	_, err = harness.Kubectl(ctx, team, fmt.Sprintf(routes, "single"), "apply", "--warnings-as-errors", "-f", "-")
	must(t, err)
	must(t, harness.Apply(ctx, team, fmt.Sprintf(routes, "nowhere")))
	found, err := harness.Kubectl(ctx, vmesh.AdminKubeconfig, "", "get", "--raw", "/apis/vmesh.io/v1alpha1/virtualclusters/team/analysis")
	must(t, err)
	if !strings.Contains(found, "IST0101") || !strings.Contains(found, "IST0174") || !strings.Contains(found, "nowhere") || strings.Contains(found, "single") || strings.Contains(found, "others") {
		t.Errorf("the analysis finds\n%s", found)
	}

	// Who drains a member is told of what only that one serves.
	eventually(ctx, t, func(ctx context.Context) error {
		only, err := harness.Kubectl(ctx, vmesh.AdminKubeconfig, "", "get", "membercluster", "west", "-o", "jsonpath={.status.onlyHere.names}")
		if err == nil && !strings.Contains(only, `"shop/single"`) {
			err = fmt.Errorf("only west serves %s", only)
		}
		return err
	})
	_, err = harness.Kubectl(ctx, vmesh.AdminKubeconfig, "", "patch", "membercluster", "west", "--type=merge", "--dry-run=server", "--warnings-as-errors", "-p", `{"spec":{"drain":{"reason":"new racks"}}}`)
	if err == nil || !strings.Contains(err.Error(), "Warning: spec.drain: ") || !strings.Contains(err.Error(), "shop/single") || strings.Contains(err.Error(), "shop/reviews") {
		t.Errorf("who drains west is told: %v", err)
	}

	// A member whose API is away keeps what was read of it, with the time.
	must(t, all["west"].Stop(ctx))
	before, err := ours(ctx, team, "shop")
	must(t, err)
	eventually(ctx, t, func(ctx context.Context) error {
		data, err := harness.Kubectl(ctx, team, "", "get", "meshservice", "single", "-n", "shop", "-o", "jsonpath={.status.clusters[0].awaySince}")
		if err == nil && strings.TrimSpace(data) == "" {
			err = errors.New("it is not told that west is away")
		}
		return err
	})
	now, err := ours(ctx, team, "shop")
	must(t, err)
	if now.String() != before.String() {
		t.Errorf("while west is away:\n%v\nwas\n%v", now, before)
	}
	// One that has left has nothing.
	_, err = harness.Kubectl(ctx, vmesh.AdminKubeconfig, "", "delete", "membercluster", "west", "--wait=false")
	must(t, err)
	eventually(ctx, t, func(ctx context.Context) error {
		told, err := ours(ctx, team, "shop")
		if err == nil && strings.Contains(told.String(), "west") {
			err = fmt.Errorf("of the member that has left:\n%v", told)
		}
		return err
	})
}
