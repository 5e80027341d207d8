package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmesh-io/vmesh/test/e2e/rawapi"
)

func TestWhateverTrafficRulesThereWereClearingEndsInWhatWas(t *testing.T) {
	t.Parallel()
	admin := newTenant(t, shared)
	const (
		service = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: mine}
spec: {hosts: [reviews], http: [{name: main, timeout: 3s, route: [{destination: {host: reviews, port: {number: 80}}, headers: {request: {set: {a: b}}}}]}]}
`
		policy = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: mine}
spec: {host: reviews, trafficPolicy: {connectionPool: {tcp: {maxConnections: 9}}, loadBalancer: {simple: LEAST_REQUEST}}}
`
		outliers = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: mine}
spec: {host: reviews.n3.svc.cluster.local, exportTo: ["."], trafficPolicy: {outlierDetection: {interval: 3s}}, subsets: [{name: v1, labels: {version: v1}}]}
`
	)
	rules := []string{"--local-only", "--local-first", "--local-first --failover a=b", "--prefer east", "--prefer west --failover a=b,b=a", "--split east=90,west=10", "--split east=50,west=30,north=20",
		"--drain west", "--drain west,north", "--local-only --drain east", "--clear"}
	random := rand.New(rand.NewPCG(2, 1))
	for i, objects := range []string{"", service, policy, outliers, service + "---\n" + policy, service + "---\n" + strings.ReplaceAll(outliers, "n3", "n5")} {
		namespace := fmt.Sprintf("n%d", i)
		t.Run(namespace, func(t *testing.T) {
			admin.namespace(t, namespace)
			apply := func() {
				t.Helper()
				if objects == "" {
					return
				}
				if said := kubectlWith(t, admin, objects, "apply", "--server-side", "--field-manager", "gitops", "-n", namespace, "-f", "-"); !strings.Contains(said, "serverside-applied") || strings.Contains(said, "onflict") {
					t.Errorf("applying: %s", said)
				}
			}
			apply()
			was := trafficObjectsOf(t, admin.raw, namespace)
			for range 2 {
				for range 2 {
					args := append([]string{"traffic", "reviews", "-n", namespace, "--clusters", "east,west,north", "--yes"}, strings.Fields(rules[random.IntN(len(rules))])...)
					said := mustVmesh(t, admin, 0, nil, args...)
					if again := mustVmesh(t, admin, 0, []string{"Nothing to do"}, args...); t.Failed() {
						t.Fatalf("%v\n%s\n%s", args, said, again)
					}
				}
				said := mustVmesh(t, admin, 0, nil, "traffic", "reviews", "-n", namespace, "--clear", "--yes")
				if diff := cmp.Diff(was, trafficObjectsOf(t, admin.raw, namespace)); diff != "" {
					t.Fatalf("it is not as it was (-want +got):\n%s\n%s", diff, said)
				}
				apply() // of whose fields none is another's
			}
		})
	}
}

// trafficObjectsOf are the objects that say how services of a namespace are called, by kind and name, with their annotations.
func trafficObjectsOf(t *testing.T, client *rawapi.Client, namespace string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, resource := range []string{"virtualservices", "destinationrules"} {
		items, _ := mustDo(t, client, http.MethodGet, "/apis/networking.istio.io/v1/namespaces/"+namespace+"/"+resource, "").Field("items").([]any)
		for _, item := range items {
			o := item.(map[string]any)
			metadata := o["metadata"].(map[string]any)
			spec, err := json.Marshal(o["spec"])
			if err != nil {
				t.Fatal(err)
			}
			all[resource+"/"+fmt.Sprint(metadata["name"])] = fmt.Sprint(metadata["annotations"], metadata["labels"], string(spec))
		}
	}
	return all
}
