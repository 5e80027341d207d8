package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// known is reviews.shop in clusters NAME:READY, with a port by which calls are HTTP.
func known(clusters ...string) *serviceView {
	s := &v1alpha1.MeshService{}
	s.Status.Host = "reviews.shop.svc.cluster.local"
	for _, text := range clusters {
		c := v1alpha1.MeshServiceCluster{Ports: []v1alpha1.MeshServicePort{{Name: "http", Port: 80, Protocol: "TCP", AppProtocol: "HTTP"}}}
		name, ready, _ := strings.Cut(text, ":")
		if _, err := fmt.Sscan(ready, &c.Ready); err != nil {
			panic(err)
		}
		c.Name, c.Endpoints = name, c.Ready
		c.Localities = []v1alpha1.MeshServiceLocality{{Locality: "region-of-" + name + "/a/", Endpoints: c.Ready, Ready: c.Ready}}
		s.Status.Clusters = append(s.Status.Clusters, c)
	}
	return newServiceView("shop", "reviews", s, nil)
}

// objects reads YAML documents as the objects of namespace shop.
func objects(t *testing.T, v *serviceView, text string) *trafficObjects {
	t.Helper()
	all, err := sorted(t, v, text)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func sorted(t *testing.T, v *serviceView, text string) (*trafficObjects, error) {
	t.Helper()
	var services, rules []unstructured.Unstructured
	for i, document := range strings.Split(text, "---\n") {
		if strings.TrimSpace(document) == "" {
			continue
		}
		data, err := yaml.YAMLToJSON([]byte(document))
		if err != nil {
			t.Fatal(err)
		}
		o := unstructured.Unstructured{}
		if err := o.UnmarshalJSON(data); err != nil {
			t.Fatal(err)
		}
		o.SetNamespace("shop")
		o.SetResourceVersion(fmt.Sprint(i + 1))
		if o.GetKind() == "VirtualService" {
			services = append(services, o)
		} else {
			rules = append(rules, o)
		}
	}
	return v.sortOut(services, rules)
}

// outcome is what a plan leaves, as YAML without what every object has.
func outcome(t *testing.T, steps []*trafficStep) string {
	t.Helper()
	var b strings.Builder
	for _, s := range steps {
		fmt.Fprintf(&b, "%s %s\n", s.action, s)
		if s.object == nil {
			continue
		}
		data, err := yaml.Marshal(s.object.Object["spec"])
		if err != nil {
			t.Fatal(err)
		}
		b.Write(data)
	}
	return b.String()
}

const subsetsOfTwo = `host: reviews.shop.svc.cluster.local
subsets:
- labels:
    topology.istio.io/cluster: east
  name: east
- labels:
    topology.istio.io/cluster: west
  name: west
trafficPolicy:
  outlierDetection:
    baseEjectionTime: 30s
    consecutive5xxErrors: 5
    interval: 10s
    maxEjectionPercent: 100
`

const users = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: mine}
spec:
  hosts: [reviews]
  http:
  - {name: main, timeout: 3s, route: [{destination: {host: reviews}}]}
`

const usersPolicy = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: mine}
spec: {host: reviews, exportTo: ["."], trafficPolicy: {connectionPool: {tcp: {maxConnections: 9}}}}
`

func TestARuleIsWrittenAsRoutesAndSubsets(t *testing.T) {
	for _, c := range []struct {
		name string
		rule trafficRule
		view *serviceView
		have string
		want string
	}{
		{"shares", trafficRule{split: []clusterShare{{"east", 90}, {"west", 10}}}, known("east:1", "west:1"), "", "create shop/destinationrule/reviews-clusters\n" + subsetsOfTwo +
			`create shop/virtualservice/reviews-clusters
hosts:
- reviews.shop.svc.cluster.local
http:
- route:
  - destination:
      host: reviews.shop.svc.cluster.local
      subset: east
    weight: 90
  - destination:
      host: reviews.shop.svc.cluster.local
      subset: west
    weight: 10
`},
		{"local alone", trafficRule{localOnly: true}, known("east:1", "west:1"), "", "create shop/destinationrule/reviews-clusters\n" + subsetsOfTwo +
			`create shop/virtualservice/reviews-clusters
hosts:
- reviews.shop.svc.cluster.local
http:
- match:
  - sourceLabels:
      topology.istio.io/cluster: east
  route:
  - destination:
      host: reviews.shop.svc.cluster.local
      subset: east
- match:
  - sourceLabels:
      topology.istio.io/cluster: west
  route:
  - destination:
      host: reviews.shop.svc.cluster.local
      subset: west
- route:
  - destination:
      host: reviews.shop.svc.cluster.local
`},
		{"a drain into a user's route", trafficRule{drain: []string{"west"}}, known("east:1", "west:1"), users, "create shop/destinationrule/reviews-clusters\n" + subsetsOfTwo +
			`update shop/virtualservice/mine
hosts:
- reviews
http:
- name: main
  route:
  - destination:
      host: reviews
      subset: east
  timeout: 3s
`},
		{"an order", trafficRule{prefer: "east", failover: []failover{{"region-of-west", "region-of-east"}}}, known("east:1", "west:1"), users, `create shop/destinationrule/reviews-clusters
host: reviews.shop.svc.cluster.local
trafficPolicy:
  loadBalancer:
    localityLbSetting:
      enabled: true
      failover:
      - from: region-of-west
        to: region-of-east
      failoverPriority:
      - topology.istio.io/cluster=east
  outlierDetection:
    baseEjectionTime: 30s
    consecutive5xxErrors: 5
    interval: 10s
    maxEjectionPercent: 100
`},
		{"an order into a user's policy", trafficRule{localFirst: true}, known("east:1", "west:1"), usersPolicy, `update shop/destinationrule/mine
exportTo:
- .
host: reviews
trafficPolicy:
  connectionPool:
    tcp:
      maxConnections: 9
  loadBalancer:
    localityLbSetting:
      enabled: true
      failoverPriority:
      - topology.istio.io/cluster
  outlierDetection:
    baseEjectionTime: 30s
    consecutive5xxErrors: 5
    interval: 10s
    maxEjectionPercent: 100
`},
		{"subsets beside a user's policy, exported alike", trafficRule{split: []clusterShare{{"east", 100}}}, known("east:1"), usersPolicy, `create shop/destinationrule/reviews-clusters
exportTo:
- .
host: reviews.shop.svc.cluster.local
subsets:
- labels:
    topology.istio.io/cluster: east
  name: east
create shop/virtualservice/reviews-clusters
hosts:
- reviews.shop.svc.cluster.local
http:
- route:
  - destination:
      host: reviews.shop.svc.cluster.local
      subset: east
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			steps, err := planTraffic(c.view, &c.rule, objects(t, c.view, c.have))
			if err != nil {
				t.Fatal(err)
			}
			if got := outcome(t, steps); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// after is what is there when steps are done.
func after(t *testing.T, have string, steps []*trafficStep) string {
	t.Helper()
	byName := map[string]string{}
	var order []string
	set := func(o *unstructured.Unstructured) {
		data, err := yaml.Marshal(o.Object)
		if err != nil {
			t.Fatal(err)
		}
		key := o.GetKind() + "/" + o.GetName()
		if _, has := byName[key]; !has {
			order = append(order, key)
		}
		byName[key] = string(data)
	}
	for _, document := range strings.Split(have, "---\n") {
		o := &unstructured.Unstructured{}
		if strings.TrimSpace(document) == "" {
			continue
		}
		if err := yaml.Unmarshal([]byte(document), &o.Object); err != nil {
			t.Fatal(err)
		}
		set(o)
	}
	for _, s := range steps {
		if s.action == remove {
			delete(byName, s.kind+"/"+s.name)
			continue
		}
		o := s.object.DeepCopy()
		if s.current != nil && s.current.GetLabels()[managedByLabel] == "" && s.kind == "DestinationRule" { // as the server notes it
			fields := `{"f:metadata":{"f:annotations":{"f:vmesh.io/traffic":{}}},"f:spec":{"f:trafficPolicy":{"f:loadBalancer":{"f:localityLbSetting":{}},"f:outlierDetection":{}}}}`
			o.Object["metadata"].(object)["managedFields"] = []any{object{"manager": trafficManager, "operation": "Apply", "fieldsV1": json.RawMessage(fields)}}
			if o.GetAnnotations()[annotationTraffic] == "" {
				delete(o.Object["metadata"].(object), "managedFields")
			}
		}
		set(o)
	}
	var documents []string
	for _, key := range order {
		if byName[key] != "" {
			documents = append(documents, byName[key])
		}
	}
	return strings.Join(documents, "---\n")
}

func TestClearingBringsBackWhatTheUserWrote(t *testing.T) {
	v := known("east:2", "west:2", "north:1")
	rules := []trafficRule{
		{localOnly: true}, {split: []clusterShare{{"east", 50}, {"west", 50}}}, {drain: []string{"west"}}, {prefer: "west"}, {localFirst: true, failover: []failover{{"a", "b"}}},
		{localOnly: true, drain: []string{"east"}},
	}
	for name, mine := range map[string]string{"nothing": "", "a route": users, "a policy": usersPolicy, "both": users + "---\n" + usersPolicy} {
		for i := range rules {
			have := mine
			// By any other rule, and the same twice.
			for _, r := range []*trafficRule{&rules[i], &rules[(i+1)%len(rules)], &rules[(i+3)%len(rules)]} {
				steps, err := planTraffic(v, r, objects(t, v, have))
				if err != nil {
					t.Fatalf("%s, %s: %v", name, r, err)
				}
				have = after(t, have, steps)
				again, err := planTraffic(v, r, objects(t, v, have))
				if err != nil || len(again) > 0 {
					t.Fatalf("%s, %s: run again, it would do this: %v\n%s", name, r, err, outcome(t, again))
				}
			}
			steps, err := planTraffic(v, &trafficRule{}, objects(t, v, have))
			if err != nil {
				t.Fatal(err)
			}
			have = after(t, have, steps)
			specs := func(text string) (specs []string) {
				all := objects(t, v, text)
				if all.ownRule != nil || all.ownService != nil {
					t.Errorf("%s: objects of the command are left", name)
				}
				for _, o := range append(all.services, all.rules...) {
					if o.GetAnnotations()[annotationTraffic] != "" {
						t.Errorf("%s: %s is still marked", name, o.GetName())
					}
					data, err := json.Marshal(o.Object["spec"])
					if err != nil {
						t.Fatal(err)
					}
					specs = append(specs, string(data))
				}
				return specs
			}
			if got, want := specs(have), specs(mine); strings.Join(got, "\n") != strings.Join(want, "\n") {
				t.Errorf("%s, %s: it leaves %s, not %s", name, &rules[i], got, want)
			}
		}
	}
}

func TestSubsetsAreThereBeforeRoutesAndGoAfterThem(t *testing.T) {
	v := known("east:1", "west:1")
	order := func(r *trafficRule, have string) (string, string) {
		steps, err := planTraffic(v, r, objects(t, v, have))
		if err != nil {
			t.Fatal(err)
		}
		var kinds []string
		for _, s := range steps {
			kinds = append(kinds, string(s.action)+" "+s.kind)
		}
		return strings.Join(kinds, ", "), after(t, have, steps)
	}
	split := &trafficRule{split: []clusterShare{{"east", 100}}}
	got, have := order(split, "")
	if got != "create DestinationRule, create VirtualService" {
		t.Error(got)
	}
	// A step from one share to the next touches the route alone, and no subset goes that routes on their way may need.
	got, have = order(&trafficRule{split: []clusterShare{{"west", 100}}}, have)
	if got != "update VirtualService" {
		t.Error(got)
	}
	if got, _ = order(&trafficRule{}, have); got != "delete VirtualService, delete DestinationRule" {
		t.Error(got)
	}
	if got, _ = order(&trafficRule{prefer: "east"}, have); got != "delete VirtualService, update DestinationRule" {
		t.Error(got)
	}
}

func TestWhatAUserRoutesByHandIsRefusedWithTheObjectsName(t *testing.T) {
	service := func(spec string) string {
		return "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: mine}\nspec: " + spec + "\n"
	}
	rule := func(spec string) string {
		return "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: mine}\nspec: " + spec + "\n"
	}
	split, prefer := trafficRule{split: []clusterShare{{"east", 100}}}, trafficRule{prefer: "east"}
	for _, c := range []struct {
		name string
		rule trafficRule
		have string
		want string
	}{
		{"several routes", split, service(`{hosts: [reviews], http: [{match: [{uri: {prefix: /a}}], route: [{destination: {host: reviews}}]}, {route: [{destination: {host: reviews}}]}]}`), "several routes"},
		{"a match", split, service(`{hosts: [reviews], http: [{match: [{uri: {prefix: /a}}], route: [{destination: {host: reviews}}]}]}`), "a match"},
		{"a subset", split, service(`{hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v1}}]}]}`), "to a subset"},
		{"weights", split, service(`{hosts: [reviews], http: [{route: [{destination: {host: reviews}, weight: 5}, {destination: {host: other}, weight: 95}]}]}`), "several destinations"},
		{"another service", split, service(`{hosts: [reviews], http: [{route: [{destination: {host: other}}]}]}`), "calls to other"},
		{"other hosts", split, service(`{hosts: [reviews, other], http: [{route: [{destination: {host: reviews}}]}]}`), "other hosts"},
		{"other protocols", split, service(`{hosts: [reviews], tcp: [{route: [{destination: {host: reviews}}]}]}`), "other protocols"},
		{"a redirect", split, service(`{hosts: [reviews], http: [{redirect: {uri: /}}]}`), "a redirect"},
		{"two for one host", split, service(`{hosts: [reviews], http: [{route: [{destination: {host: reviews}}]}]}`) + "---\n" +
			strings.Replace(service(`{hosts: [reviews.shop.svc.cluster.local], http: [{route: [{destination: {host: reviews}}]}]}`), "mine", "other", 1), "mine and other"},
		{"a subset of the same name", split, rule(`{host: reviews, subsets: [{name: east, labels: {version: v1}}]}`), `subset "east"`},
		{"a locality of its own", prefer, rule(`{host: reviews, trafficPolicy: {loadBalancer: {localityLbSetting: {enabled: false}}}}`), "localityLbSetting): take that out"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := known("east:1", "west:1")
			steps, err := planTraffic(v, &c.rule, objects(t, v, c.have))
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "mine") {
				t.Errorf("got %v, %v; want %q", outcome(t, steps), err, c.want)
			}
		})
	}
	v := known("east:1")
	if _, err := sorted(t, v, strings.Replace(service(`{hosts: [other]}`), "mine", "reviews-clusters", 1)); err == nil || !strings.Contains(err.Error(), "not of vmesh traffic") {
		t.Errorf("an object of the same name: %v", err)
	}
	// What is at a gateway alone, and what is for another host, is not in the way.
	all := objects(t, v, service(`{hosts: [reviews], gateways: [public], http: [{redirect: {uri: /}}]}`)+"---\n"+strings.Replace(service(`{hosts: [other]}`), "mine", "other", 1))
	if len(all.elsewhere) != 1 || len(all.services) != 0 {
		t.Errorf("got %+v", all)
	}
}

func TestWhatMaySurpriseIsSaidBefore(t *testing.T) {
	tls := known("east:1")
	tls.clusters[0].Ports = append(tls.clusters[0].Ports, v1alpha1.MeshServicePort{Port: 443, AppProtocol: "HTTPS"})
	routed := known("east:1")
	routed.routes = []v1alpha1.MeshServiceRoute{{VirtualCluster: "bank", Kind: "VirtualService", Namespace: "bank", Name: "theirs"}}
	drained := known("east:1", "west:1")
	drained.clusters[1].Drained = true
	for _, c := range []struct {
		name          string
		view          *serviceView
		rule          trafficRule
		warning, fail string
	}{
		{"a cluster that has it not", known("east:1", "west:1"), trafficRule{split: []clusterShare{{"east", 0}, {"wset", 100}}}, `cluster "wset" does not have the service: those that have it are east, west`, ""},
		{"a cluster without endpoints", known("east:1", "west:0"), trafficRule{split: []clusterShare{{"east", 90}, {"west", 10}}}, "west has no ready endpoint: 10 % of the calls would fail", ""},
		{"the same without a share", known("east:1", "west:0"), trafficRule{split: []clusterShare{{"east", 100}, {"west", 0}}}, "", ""},
		{"a cluster that is drained as a whole", drained, trafficRule{split: []clusterShare{{"west", 100}}}, "west is drained as a whole", ""},
		{"local without endpoints", known("east:1", "west:0"), trafficRule{localOnly: true}, "west has no ready endpoint: calls from there would fail", ""},
		{"local of the rest", known("east:1", "west:0"), trafficRule{localOnly: true, drain: []string{"west"}}, "", ""},
		{"a preferred one without endpoints", known("east:0", "west:1"), trafficRule{prefer: "east"}, "east has no ready endpoint: calls go to the rest", ""},
		{"a drain of the last", known("east:1", "west:0"), trafficRule{drain: []string{"east"}}, "", "no other cluster has a ready endpoint"},
		{"a cluster for a region", known("east:1", "west:1"), trafficRule{failover: []failover{{"east", "west"}}}, "", "east is a cluster, and Istio fails over between regions; it is in region-of-east"},
		{"a region that there is not", known("east:1"), trafficRule{failover: []failover{{"region-of-east", "moon"}}}, `no endpoint is in region "moon"`, ""},
		{"TLS", tls, trafficRule{localOnly: true}, "port 443 is TLS", ""},
		{"routes of others", routed, trafficRule{localOnly: true}, "VirtualService bank/theirs of virtual cluster bank", ""},
		{"an unknown service", newServiceView("shop", "reviews", nil, []string{"east"}), trafficRule{localOnly: true}, "the server does not know the service", ""},
		{"an unknown service without clusters", newServiceView("shop", "reviews", nil, nil), trafficRule{localOnly: true}, "", "name them by --clusters"},
		{"a service that no cluster has", known(), trafficRule{localOnly: true}, "", "no cluster has the service"},
	} {
		t.Run(c.name, func(t *testing.T) {
			warnings, err := c.view.check(&c.rule)
			if c.fail == "" && err != nil || c.fail != "" && (err == nil || !strings.Contains(err.Error(), c.fail)) {
				t.Errorf("got %v, want %q", err, c.fail)
			}
			got := strings.Join(warnings, "\n")
			if !strings.Contains(got, c.warning) || c.warning == "" && got != "" {
				t.Errorf("got %s, want %q", got, c.warning)
			}
		})
	}
}

func TestTheRestOfADrainSharesByItsEndpoints(t *testing.T) {
	for _, c := range []struct {
		view *serviceView
		want string
	}{
		{known("a:1", "b:1", "west:9"), "[{a 50} {b 50}]"},
		{known("a:1", "b:2", "c:0", "west:9"), "[{a 33} {b 67}]"},
		{known("a:1", "b:999"), "[{a 1} {b 99}]"},
		{known("a:1", "b:1", "c:1"), "[{a 34} {b 33} {c 33}]"},
		{newServiceView("shop", "reviews", nil, []string{"a", "b", "west"}), "[{a 50} {b 50}]"},
	} {
		if got := fmt.Sprint(c.view.rest([]string{"west"})); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}

func TestMistakesOfTrafficAreNamed(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"", "takes one SERVICE"},
		{"reviews.shop --local-only", "its namespace by -n"},
		{"reviews --split east", "not CLUSTER=PERCENT"},
		{"reviews --split east=90,west=20", "110 together"},
		{"reviews --split east=101", "not CLUSTER=PERCENT"},
		{"reviews --split east=50,east=50", "given twice"},
		{"reviews --failover a", "not REGION=REGION"},
		{"reviews --failover a=a", "to itself"},
		{"reviews --failover a=b,a=c", "given twice"},
		{"reviews --prefer east,west", "give one cluster"},
		{"reviews --local-only --prefer east", "--local-only and --prefer: give one"},
		{"reviews --split east=100 --failover a=b", "--split and --failover: give one"},
		{"reviews --clear --drain west", "--clear and --drain: give one"},
		{"reviews --drain west=5", "names of clusters"},
		{"reviews --local-only -o json", "--output is for what is in force"},
		{"reviews -o table", "must be json or yaml"},
		{"reviews --local-only --dry-run=maybe", "none of none, client and server"},
		{"reviews --local-only --timeout=-1s", "must not be negative"},
	} {
		if _, err := run(append([]string{"traffic"}, strings.Fields(c.args)...)...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("traffic %s: %v, want %q", c.args, err, c.want)
		}
	}
}

func TestWhatIsInForceIsShown(t *testing.T) {
	v := known("east:2", "west:0", "north:1")
	for _, c := range []struct {
		rule trafficRule
		have string
		want []string
	}{
		{trafficRule{}, "", []string{"east", "2/2", "by its endpoints", "the mesh's own order"}},
		{trafficRule{split: []clusterShare{{"east", 90}, {"west", 10}}}, "", []string{"90 %", "10 %", "none: not in the routes", "--split east=90,west=10", "Warning: cluster west has no ready endpoint"}},
		{trafficRule{localOnly: true}, users, []string{"its own", "callers in north stay there", "VirtualService mine", "Warning: cluster west has no ready endpoint"}},
		{trafficRule{localOnly: true, drain: []string{"west"}}, "", []string{"its own, and 67 % of others", "west      0/0     none"}},
		{trafficRule{prefer: "east"}, usersPolicy, []string{"all, while it answers", "when east does not answer", "DestinationRule mine", "cluster east first"}},
		{trafficRule{localFirst: true}, "", []string{"the caller's cluster first, leaves out what fails"}},
		{trafficRule{}, `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: mine}
spec: {hosts: [reviews], http: [{match: [{uri: {prefix: /a}}], route: [{destination: {host: reviews, subset: v1}}]}, {route: [{destination: {host: reviews}}]}]}
`, []string{"routes of its own", "by routes: see the VirtualService"}},
	} {
		steps, err := planTraffic(v, &c.rule, objects(t, v, c.have))
		if err != nil {
			t.Fatal(err)
		}
		all := objects(t, v, after(t, c.have, steps))
		var out bytes.Buffer
		o := trafficOptions{out: &out, errOut: &out}
		if err := o.show(v, all); err != nil {
			t.Fatal(err)
		}
		for _, want := range c.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: no %q in\n%s", &c.rule, want, out.String())
			}
		}
		for _, format := range []outputFormat{"json", "yaml"} {
			out.Reset()
			o.output = format
			var report trafficReport
			if err := o.show(v, all); err != nil || yaml.UnmarshalStrict(out.Bytes(), &report) != nil || len(report.Clusters) != 3 {
				t.Errorf("%v: %s", err, out.String())
			}
		}
	}
}

// miniature is a server with a namespace of objects, which are live after they have been asked for a number of times.
type miniature struct {
	mu      sync.Mutex
	objects map[string]map[string]any
	asked   map[string]int
	writes  []string
	refuse  string // writes whose path has it
	never   bool   // nothing is ever live
}

func (m *miniature) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/clusters/x")
	answer := func(code int, body map[string]any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(body)
	}
	status := func(code int, reason string) {
		answer(code, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": "because", "code": code})
	}
	switch r.Method {
	case http.MethodGet:
		if strings.HasSuffix(path, "/virtualservices") || strings.HasSuffix(path, "/destinationrules") {
			items := []any{}
			for at, o := range m.objects {
				if strings.HasPrefix(at, path+"/") {
					items = append(items, o)
				}
			}
			answer(200, map[string]any{"kind": "List", "apiVersion": "networking.istio.io/v1", "metadata": map[string]any{}, "items": items})
			return
		}
		o, has := m.objects[path]
		if !has {
			status(404, "NotFound")
			return
		}
		if m.asked[path]++; m.asked[path] > 1 && !m.never {
			o["status"] = map[string]any{"conditions": []any{map[string]any{"type": "Distributed", "status": "True", "reason": "Distributed", "message": "all of them", "observedGeneration": "1"}}}
		}
		answer(200, o)
	default:
		m.writes = append(m.writes, r.Method+" "+path[strings.LastIndex(path[:strings.LastIndex(path, "/")], "/")+1:])
		if m.refuse != "" && strings.Contains(path, m.refuse) {
			status(403, "Forbidden")
			return
		}
		if r.Method == http.MethodDelete {
			delete(m.objects, path)
			answer(200, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Success"})
			return
		}
		o := map[string]any{}
		if err := json.NewDecoder(r.Body).Decode(&o); err != nil {
			status(400, "BadRequest")
			return
		}
		w.Header().Add("Warning", `299 - "something is odd"`)
		o["metadata"].(map[string]any)["generation"] = 1
		if r.URL.Query().Get("dryRun") == "" {
			m.objects[path], m.asked[path] = o, 0
		}
		answer(200, o)
	}
}

func TestWritesComeOneAfterTheOtherOnceLive(t *testing.T) {
	start := func(t *testing.T, m *miniature, rule trafficRule) (*trafficOptions, *bytes.Buffer, *bytes.Buffer) {
		m.objects, m.asked = map[string]map[string]any{}, map[string]int{}
		server := httptest.NewServer(m)
		t.Cleanup(server.Close)
		kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
		if err := os.WriteFile(kubeconfig, []byte("apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts: [{name: x, context: {cluster: x, user: x, namespace: shop}}]\n"+
			"clusters: [{name: x, cluster: {server: \""+server.URL+"/clusters/x\"}}]\nusers: [{name: x}]\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		var out, errOut bytes.Buffer
		return &trafficOptions{access: clusterAccess{kubeconfig: kubeconfig}, rule: rule, clusters: []string{"east", "west"}, yes: true, quiet: true, wait: true, timeout: time.Minute,
			dryRun: "none", out: &out, errOut: &errOut, betweenAtMost: time.Minute}, &out, &errOut
	}
	ctx := context.Background()
	t.Run("all of it", func(t *testing.T) {
		m := &miniature{}
		o, out, errOut := start(t, m, trafficRule{localOnly: true})
		if err := o.run(ctx, "reviews"); err != nil {
			t.Fatalf("%v\n%s", err, errOut)
		}
		if got := strings.Join(m.writes, ", "); got != "PATCH destinationrules/reviews-clusters, PATCH virtualservices/reviews-clusters" {
			t.Error(got)
		}
		if m.asked["/apis/networking.istio.io/v1/namespaces/shop/destinationrules/reviews-clusters"] < 2 {
			t.Error("the routes did not wait for the subsets")
		}
		if !strings.Contains(out.String(), "shop/virtualservice/reviews-clusters is live: all of them") || strings.Count(errOut.String(), "something is odd") != 1 {
			t.Errorf("it says\n%s\n%s", out, errOut)
		}
		o.rule, o.clear, m.writes = trafficRule{}, true, nil
		if err := o.run(ctx, "reviews"); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(m.writes, ", "); got != "DELETE virtualservices/reviews-clusters, DELETE destinationrules/reviews-clusters" {
			t.Error(got)
		}
	})
	t.Run("a part is refused", func(t *testing.T) {
		m := &miniature{refuse: "virtualservices"}
		o, _, errOut := start(t, m, trafficRule{localOnly: true})
		err := o.run(ctx, "reviews")
		if exitCode(err) != 2 || !strings.Contains(errOut.String(), "virtualservice/reviews-clusters was not created") {
			t.Errorf("got %v\n%s", err, errOut)
		}
	})
	t.Run("all is refused", func(t *testing.T) {
		m := &miniature{refuse: "destinationrules"}
		o, _, _ := start(t, m, trafficRule{localOnly: true})
		if err := o.run(ctx, "reviews"); exitCode(err) != 1 || len(m.writes) != 1 {
			t.Errorf("got %v after %v", err, m.writes)
		}
	})
	t.Run("it never becomes live", func(t *testing.T) {
		m := &miniature{never: true}
		o, _, errOut := start(t, m, trafficRule{prefer: "east"})
		o.timeout = 50 * time.Millisecond
		if err := o.run(ctx, "reviews"); err == nil || !strings.Contains(err.Error(), "--timeout: it took longer than 50ms; all is written") {
			t.Errorf("got %v\n%s", err, errOut)
		}
		o, _, errOut = start(t, m, trafficRule{localOnly: true})
		o.wait, o.betweenAtMost = false, 50*time.Millisecond
		if err := o.run(ctx, "reviews"); err != nil || !strings.Contains(errOut.String(), "going on all the same") {
			t.Errorf("got %v\n%s", err, errOut)
		}
	})
	t.Run("without a yes", func(t *testing.T) {
		m := &miniature{}
		o, _, _ := start(t, m, trafficRule{prefer: "east"})
		o.yes, o.in = false, strings.NewReader("y\n")
		if err := o.run(ctx, "reviews"); err == nil || len(m.writes) > 0 {
			t.Errorf("got %v after %v", err, m.writes)
		}
		o.dryRun = "client"
		if err := o.run(ctx, "reviews"); err != nil || len(m.writes) > 0 {
			t.Errorf("a dry run: %v after %v", err, m.writes)
		}
		o.dryRun = "server"
		if err := o.run(ctx, "reviews"); err != nil || len(m.writes) != 1 || len(m.objects) > 0 {
			t.Errorf("a dry run: %v after %v", err, m.writes)
		}
	})
	t.Run("interrupted", func(t *testing.T) {
		m := &miniature{never: true}
		o, _, _ := start(t, m, trafficRule{localOnly: true})
		ctx, cancel := context.WithCancelCause(ctx)
		time.AfterFunc(100*time.Millisecond, func() { cancel(errors.New("stop")) })
		if err := o.run(ctx, "reviews"); err == nil || !strings.Contains(err.Error(), "interrupted") && !strings.Contains(err.Error(), "stop") {
			t.Errorf("got %v", err)
		}
	})
}
