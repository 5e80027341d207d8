package builtin

import (
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// printed is a row without its age, cells separated by bars.
func printed(t testing.TB, resource, body string) string {
	t.Helper()
	k := find(t, resource)
	table, err := k.ConvertToTable(t.Context(), k.StorageVersion(), read(t, k, body), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(table.Rows) != 1 || len(table.Rows[0].Cells) != len(table.ColumnDefinitions) {
		t.Fatalf("%d rows, %d cells, %d columns", len(table.Rows), len(table.Rows[0].Cells), len(table.ColumnDefinitions))
	}
	var cells []string
	for i, c := range table.Rows[0].Cells {
		if name := table.ColumnDefinitions[i].Name; name != "Age" && name != "Created At" {
			cells = append(cells, fmt.Sprint(c))
		}
	}
	return strings.Join(cells, "|")
}

func TestRowsShowWhatKubectlUsersExpect(t *testing.T) {
	for _, c := range []struct{ name, resource, body, want string }{
		{"a namespace", "namespaces", `{metadata: {name: a}, status: {phase: Active}}`, "a|Active"},
		{"a config map", "configmaps", `{metadata: {name: a}, data: {b: c}, binaryData: {d: MQ==}}`, "a|2"},
		{"a secret", "secrets", `{metadata: {name: a}, data: {b: MQ==}}`, "a|Opaque|1"},
		{"a headless service", "services", `{metadata: {name: a}, spec: {clusterIP: None, selector: {x: z}, ports: [{port: 80}, {port: 53, protocol: UDP}]}}`,
			"a|ClusterIP|None|<none>|80/TCP,53/UDP|x=z"},
		{"a service without an address", "services", `{metadata: {name: a}, spec: {ports: [{port: 80}]}}`, "a|ClusterIP|<none>|<none>|80/TCP|<none>"},
		{"a node port", "services", `{metadata: {name: a}, spec: {type: NodePort, externalIPs: [1.2.3.4], ports: [{port: 80, nodePort: 30000}]}}`,
			"a|NodePort|<none>|1.2.3.4|80:30000/TCP|<none>"},
		{"a load balancer to come", "services", `{metadata: {name: a}, spec: {type: LoadBalancer, ports: [{port: 80}]}}`, "a|LoadBalancer|<none>|<pending>|80/TCP|<none>"},
		{"a load balancer", "services", `{metadata: {name: a}, spec: {type: LoadBalancer, ports: [{port: 80}]}, status: {loadBalancer: {ingress: [{hostname: h}, {ip: 1.1.1.1}]}}}`,
			"a|LoadBalancer|<none>|1.1.1.1,h|80/TCP|<none>"},
		{"an external name", "services", `{metadata: {name: a}, spec: {type: ExternalName, externalName: example.com}}`, "a|ExternalName|<none>|example.com|<none>|<none>"},
		{"endpoints", "endpoints", `{metadata: {name: a}, subsets: [{addresses: [{ip: 1.1.1.1}, {ip: "::1"}], ports: [{port: 80}]}, {addresses: [{ip: 2.2.2.2}, {ip: 3.3.3.3}]}]}`,
			"a|1.1.1.1:80,[::1]:80,2.2.2.2 + 1 more..."},
		{"no endpoints", "endpoints", `{metadata: {name: a}}`, "a|<none>"},
		{"a slice", "endpointslices", `{metadata: {name: a}, addressType: IPv4, ports: [{port: 80}, {name: x}, {}], endpoints: [{addresses: [1.1.1.1]}]}`, "a|IPv4|80,x,|1.1.1.1"},
		{"an empty slice", "endpointslices", `{metadata: {name: a}, addressType: IPv4}`, "a|IPv4|<unset>|<unset>"},
		{"a lease", "leases", `{metadata: {name: a}, spec: {holderIdentity: me}}`, "a|me"},
		{"a lease of nobody", "leases", `{metadata: {name: a}}`, "a|"},
		{"webhooks", "mutatingwebhookconfigurations", `{metadata: {name: a}, webhooks: [{name: b}, {name: c}]}`, "a|2"},
		{"a ready node", "nodes", `{metadata: {name: a, labels: {node-role.kubernetes.io/worker: "", kubernetes.io/role: edge}}, spec: {unschedulable: true},
			status: {conditions: [{type: Ready, status: "True"}], addresses: [{type: InternalIP, address: 1.1.1.1}], nodeInfo: {kubeletVersion: v1, kernelVersion: k, architecture: arm64}}}`,
			"a|Ready,SchedulingDisabled|edge,worker|v1|1.1.1.1|<none>|<unknown>|k (arm64)|<unknown>"},
		{"a node that is not ready", "nodes", `{metadata: {name: a}, status: {conditions: [{type: Ready, status: "False"}]}}`, "a|NotReady|<none>||<none>|<none>|<unknown>|<unknown>|<unknown>"},
		{"a node that says nothing", "nodes", `{metadata: {name: a}}`, "a|Unknown|<none>||<none>|<none>|<unknown>|<unknown>|<unknown>"},
		{"an event", "events", `{metadata: {name: a}, involvedObject: {kind: Pod, name: p, fieldPath: f}, reason: R, type: Normal, message: " m ", source: {component: c, host: h}}`,
			"<unknown>|Normal|R|pod/p|f|c, h|m|<unknown>|1|a"},
		{"an event that recurs", "events", `{metadata: {name: a}, involvedObject: {kind: Node}, reportingComponent: c, count: 2, series: {count: 7}}`, "<unknown>|||node||c||<unknown>|7|a"},
		{"an ingress", "ingresses", `{metadata: {name: a}, spec: {ingressClassName: istio, tls: [{}], rules: [{host: b}, {host: c}]}, status: {loadBalancer: {ingress: [{ip: 1.1.1.1}]}}}`,
			"a|istio|b,c|1.1.1.1|80, 443"},
		{"an ingress for all hosts", "ingresses", `{metadata: {name: a}, spec: {rules: [{}]}}`, "a|<none>|*||80"},
		{"the default class", "ingressclasses", `{metadata: {name: a, annotations: {ingressclass.kubernetes.io/is-default-class: "true"}}, spec: {controller: x.io/z, parameters: {apiGroup: g, kind: K, name: p}}}`,
			"a (default)|x.io/z|K.g/p"},
		{"a deployment", "deployments", `{metadata: {name: a}, spec: {replicas: 3, selector: {matchLabels: {x: z}}, template: {spec: {containers: [{name: c, image: i}, {name: d, image: j}]}}},
			status: {readyReplicas: 1, updatedReplicas: 2}}`, "a|1/3|2|0|c,d|i,j|x=z"},
		{"a role", "roles", `{metadata: {name: a}}`, "a"},
		{"a binding", "rolebindings", `{metadata: {name: a}, roleRef: {kind: Role, name: r}, subjects: [{kind: User, name: u}, {kind: Group, name: g}, {kind: ServiceAccount, name: s, namespace: b}]}`,
			"a|Role/r|u|g|b/s"},
		{"a definition", "customresourcedefinitions", `{metadata: {name: a.b}, spec: {group: b, scope: Namespaced, names: {kind: A, plural: a, shortNames: [x, z]},
			versions: [{name: v1, served: true, storage: true}, {name: v2, served: false, storage: false}]}, status: {conditions: [{type: Established, status: "True"}]}}`,
			"a.b|Namespaced|v1(storage)|b|A|x,z|true"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := printed(t, c.resource, c.body); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestRowsOfPodsSayWhatIsWrong(t *testing.T) {
	for _, c := range []struct{ name, spec, status, want string }{
		{"nothing runs it", `{containers: [{name: c}]}`, `{phase: Pending}`, "0/1|Pending|0"},
		{"it runs", `{containers: [{name: c}]}`, `{phase: Running, podIPs: [{ip: 1.1.1.1}], containerStatuses: [{name: c, ready: true, state: {running: {}}}]}`, "1/1|Running|0"},
		{"an image is missing", `{containers: [{name: c}]}`, `{phase: Pending, containerStatuses: [{name: c, state: {waiting: {reason: ErrImagePull}}}]}`, "0/1|ErrImagePull|0"},
		{"it crashed", `{containers: [{name: c}]}`, `{phase: Failed, containerStatuses: [{name: c, restartCount: 3, state: {terminated: {exitCode: 2}}}]}`, "0/1|ExitCode:2|3"},
		{"it was killed", `{containers: [{name: c}]}`, `{phase: Failed, containerStatuses: [{name: c, state: {terminated: {exitCode: 137, signal: 9}}}]}`, "0/1|Signal:9|0"},
		{"it waits for initialization", `{initContainers: [{name: i}, {name: j}], containers: [{name: c}]}`,
			`{phase: Pending, initContainerStatuses: [{name: i, state: {terminated: {exitCode: 0}}}, {name: j, state: {running: {}}}]}`, "0/1|Init:1/2|0"},
		{"initialization failed", `{initContainers: [{name: i}], containers: [{name: c}]}`,
			`{phase: Pending, initContainerStatuses: [{name: i, state: {terminated: {exitCode: 1, reason: Error}}}]}`, "0/1|Init:Error|0"},
		{"a sidecar counts", `{initContainers: [{name: i, restartPolicy: Always}], containers: [{name: c}]}`,
			`{phase: Running, initContainerStatuses: [{name: i, started: true, ready: true, restartCount: 1, state: {running: {}}}], containerStatuses: [{name: c, ready: true, state: {running: {}}}]}`,
			"2/2|Running|1"},
		{"one is done, one runs", `{containers: [{name: c}, {name: d}]}`,
			`{phase: Running, conditions: [{type: Ready, status: "True"}], containerStatuses: [{name: c, state: {terminated: {exitCode: 0, reason: Completed}}}, {name: d, ready: true, state: {running: {}}}]}`,
			"1/2|Running|0"},
		{"it is gated", `{containers: [{name: c}]}`, `{phase: Pending, conditions: [{type: PodScheduled, status: "False", reason: SchedulingGated}]}`, "0/1|SchedulingGated|0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := strings.Join(strings.Split(printed(t, "pods", `{metadata: {name: a}, spec: `+c.spec+`, status: `+c.status+`}`), "|")[1:4], "|")
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestAnUnreadableObjectDoesNotHideOthers(t *testing.T) {
	k := find(t, "configmaps")
	list := &object.List{ListMeta: metav1.ListMeta{ResourceVersion: "7"}, Items: make([]object.Object, 2)}
	if err := list.Items[0].UnmarshalJSON([]byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"broken"},"data":[1]}`)); err != nil {
		t.Fatal(err)
	}
	list.Items[1] = *read(t, k, `{metadata: {name: sound}, data: {a: b}}`)
	table, err := k.ConvertToTable(t.Context(), "v1", list, &metav1.TableOptions{NoHeaders: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(table.ColumnDefinitions) != 0 || table.ResourceVersion != "7" || len(table.Rows) != 2 {
		t.Fatalf("the table is %+v", table)
	}
	if table.Rows[0].Cells[0] != "broken" || table.Rows[0].Cells[1] != "<unreadable>" || table.Rows[1].Cells[1] != int64(1) {
		t.Errorf("the rows are %v, %v", table.Rows[0].Cells, table.Rows[1].Cells)
	}
}
