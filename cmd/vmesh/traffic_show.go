package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// trafficReport is what is in force for a service. Its JSON is documented.
type trafficReport struct {
	Service   string `json:"service"`
	Namespace string `json:"namespace"`
	Host      string `json:"host"`
	// Known says whether the server has a view of the service.
	Known    bool             `json:"known"`
	Clusters []trafficCluster `json:"clusters"`
	Objects  []trafficSource  `json:"objects"`
	Warnings []string         `json:"warnings"`
}

// trafficCluster is what a cluster has of the service, and gets of its calls.
type trafficCluster struct {
	Name      string `json:"name"`
	Network   string `json:"network,omitempty"`
	Endpoints int32  `json:"endpoints"`
	Ready     int32  `json:"ready"`
	Drained   bool   `json:"drained,omitempty"`
	Away      bool   `json:"away,omitempty"`
	// Calls says in words who calls it; Share is its percentage of calls that routes share out.
	Calls string `json:"calls"`
	Share *int64 `json:"share,omitempty"`
}

// trafficSource is an object that says how the service is called.
type trafficSource struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	Says string `json:"says"`
	// Flags are those of vmesh traffic that it was written by.
	Flags string `json:"flags,omitempty"`
}

// report puts together what is in force.
func (v *serviceView) report(all *trafficObjects) trafficReport {
	r := trafficReport{Service: v.name, Namespace: v.namespace, Host: v.host, Known: v.known, Clusters: []trafficCluster{}, Objects: []trafficSource{}, Warnings: []string{}}
	rules := slices.Clone(all.rules)
	if all.ownRule != nil {
		rules = append(rules, all.ownRule)
	}
	clusterOf := map[string]string{}
	order := ""
	prefer, local := "", false
	for _, rule := range rules {
		var says []string
		for _, subset := range subsetsOf(rule) {
			if subset.cluster != "" && subset.labels == 1 {
				clusterOf[subset.name] = subset.cluster
			}
		}
		if n := len(subsetsOf(rule)); n > 0 {
			says = append(says, count(n, "subset"))
		}
		setting, has, _ := unstructured.NestedMap(rule.Object, localityPath...)
		if has && order == "" {
			order, prefer, local = describeLocality(setting)
			says = append(says, order)
		}
		if _, has, _ := unstructured.NestedMap(rule.Object, outlierPath...); has {
			says = append(says, "leaves out what fails")
		}
		r.Objects = append(r.Objects, source(rule, says))
	}
	services := slices.Clone(all.services)
	if all.ownService != nil {
		services = append(services, all.ownService)
	}
	shares, locals, routed := map[string]int64{}, map[string]bool{}, false
	for i, service := range services {
		if i > 0 {
			r.Objects = append(r.Objects, source(service, []string{"nothing, since " + services[0].GetName() + " comes first"}))
			r.Warnings = append(r.Warnings, fmt.Sprintf("VirtualServices %s and %s are both for the service", services[0].GetName(), service.GetName()))
			continue
		}
		var says string
		says, routed = describeRoutes(service, clusterOf, shares, locals)
		r.Objects = append(r.Objects, source(service, []string{says}))
	}
	for _, service := range all.elsewhere {
		gateways, _, _ := unstructured.NestedStringSlice(service.Object, "spec", "gateways")
		r.Objects = append(r.Objects, source(service, []string{"routes of gateway " + strings.Join(gateways, ", ")}))
	}
	clusters := slices.Clone(v.clusters)
	for _, name := range slices.Sorted(maps.Values(clusterOf)) {
		if !v.known && v.cluster(name) == nil {
			clusters = append(clusters, v1alpha1.MeshServiceCluster{Name: name})
		}
	}
	for _, c := range clusters {
		t := trafficCluster{Name: c.Name, Network: c.Network, Endpoints: c.Endpoints, Ready: c.Ready, Drained: c.Drained, Away: c.AwaySince != nil, Calls: "by its endpoints"}
		share, shared := shares[c.Name]
		switch {
		case c.Drained:
			t.Calls = "none: it is drained"
		case locals[c.Name] && shared && share > 0:
			t.Calls = fmt.Sprintf("its own, and %d %% of others", share)
		case locals[c.Name]:
			t.Calls = "its own"
		case len(locals) > 0 && len(shares) == 0:
			t.Calls = "by its endpoints, not named in routes"
			r.Warnings = append(r.Warnings, fmt.Sprintf("cluster %s is not in the routes: its callers call all clusters; write the rule anew", c.Name))
		case len(shares) > 0 && share == 0:
			t.Calls = "none"
			if !shared && len(locals) == 0 {
				t.Calls = "none: not in the routes"
			}
		case shared:
			t.Calls = fmt.Sprintf("%d %%", share)
		case routed:
			t.Calls = "by routes: see the VirtualService"
		case prefer == c.Name:
			t.Calls = "all, while it answers"
		case prefer != "":
			t.Calls = "when " + prefer + " does not answer"
		case local:
			t.Calls = "its own, others' when theirs do not answer"
		}
		if len(shares) > 0 {
			t.Share = &share
		}
		if c.Ready == 0 && v.known && (share > 0 || locals[c.Name]) {
			r.Warnings = append(r.Warnings, fmt.Sprintf("cluster %s has no ready endpoint: calls to it fail", c.Name))
		}
		r.Clusters = append(r.Clusters, t)
	}
	for name, share := range shares {
		if v.known && v.cluster(name) == nil && share > 0 {
			r.Warnings = append(r.Warnings, fmt.Sprintf("cluster %s does not have the service: %d %% of the calls fail", name, share))
		}
	}
	slices.Sort(r.Warnings)
	if !v.known {
		r.Warnings = append(r.Warnings, "the server does not know which clusters have the service: see kubectl get meshservices")
	}
	return r
}

func source(o *unstructured.Unstructured, says []string) trafficSource {
	if len(says) == 0 {
		says = []string{"nothing about clusters"}
	}
	return trafficSource{Kind: o.GetKind(), Name: o.GetName(), Says: strings.Join(says, ", "), Flags: o.GetAnnotations()[annotationTraffic]}
}

// describeLocality says a localityLbSetting in words, and which cluster it prefers, or whether the caller's own.
func describeLocality(setting object) (words, prefer string, local bool) {
	if enabled, has := setting["enabled"].(bool); has && !enabled {
		return "all endpoints alike", "", false
	}
	var parts []string
	labels, _, _ := unstructured.NestedStringSlice(setting, "failoverPriority")
	for _, l := range labels {
		name, value, _ := strings.Cut(l, "=")
		switch {
		case name != clusterLabel:
			parts = append(parts, "by "+l)
		case value == "":
			local = true
			parts = append(parts, "the caller's cluster first")
		default:
			prefer = value
			parts = append(parts, "cluster "+value+" first")
		}
	}
	between, _, _ := unstructured.NestedSlice(setting, "failover")
	for _, f := range between {
		f, _ := f.(object)
		parts = append(parts, fmt.Sprintf("region %v fails over to %v", f["from"], f["to"]))
	}
	if _, has := setting["distribute"]; has {
		parts = append(parts, "shares by locality")
	}
	if len(parts) == 0 {
		parts = append(parts, "near endpoints first")
	}
	return strings.Join(parts, ", "), prefer, local
}

// describeRoutes says routes in words. It notes what share of the calls each cluster gets, and which clusters keep their
// own, and says whether there are other routes.
func describeRoutes(service *unstructured.Unstructured, clusterOf map[string]string, shares map[string]int64, locals map[string]bool) (says string, others bool) {
	http, _, _ := unstructured.NestedSlice(service.Object, "spec", "http")
	var parts []string
	for _, entry := range http {
		entry, _ := entry.(object)
		from := ""
		matches, matched := entry["match"].([]any)
		if len(matches) == 1 {
			match, _ := matches[0].(object)
			labels, _ := match["sourceLabels"].(object)
			if name, _ := labels[clusterLabel].(string); len(match) == 1 && len(labels) == 1 {
				from = name
			}
		}
		routes, _ := entry["route"].([]any)
		to := map[string]int64{}
		var names []string
		for _, route := range routes {
			route, _ := route.(object)
			subset, _, _ := unstructured.NestedString(route, "destination", "subset")
			weight, has := route["weight"].(int64)
			if !has && len(routes) == 1 {
				weight = 100
			}
			if name := clusterOf[subset]; name != "" {
				to[name] += weight
				names = append(names, fmt.Sprintf("%s %d %%", name, weight))
			}
		}
		switch {
		case matched && from == "" || len(to) != len(routes) && len(to) > 0:
			others = true
		case from != "" && len(to) == 1 && to[from] > 0:
			locals[from] = true
			parts = append(parts, "callers in "+from+" stay there")
		case from != "":
			others = true
		case len(to) > 0:
			for name, weight := range to {
				shares[name] = weight
			}
			parts = append(parts, strings.Join(names, ", "))
		}
	}
	if others {
		parts = append(parts, "routes of its own")
	}
	if len(parts) == 0 {
		return "routes to all clusters alike", false
	}
	return strings.Join(parts, "; "), others
}

// show prints what is in force.
func (o *trafficOptions) show(v *serviceView, all *trafficObjects) error {
	r := v.report(all)
	if o.output.structured() {
		return o.output.print(o.out, r)
	}
	s := &screen{out: o.out, now: time.Now(), wide: true}
	s.line("Service %s/%s (%s)", r.Namespace, r.Service, r.Host)
	var rows [][]string
	for _, c := range r.Clusters {
		state := ""
		if c.Away {
			state = "away"
		}
		ready := fmt.Sprintf("%d/%d", c.Ready, c.Endpoints)
		if !r.Known {
			ready = ""
		}
		rows = append(rows, []string{c.Name, c.Network, ready, state, c.Calls})
	}
	if len(rows) > 0 {
		s.line("")
		s.table([]string{"CLUSTER", "NETWORK", "READY", "STATE", "GETS CALLS"}, rows)
	}
	rows = nil
	for _, source := range r.Objects {
		rows = append(rows, []string{source.Kind + " " + source.Name, source.Says, source.Flags})
	}
	if s.line(""); len(rows) > 0 {
		s.table([]string{"SAID BY", "WHAT", "VMESH TRAFFIC"}, rows)
	} else {
		s.line("No VirtualService or DestinationRule of namespace %s is about it: the mesh's own order of localities applies.", r.Namespace)
	}
	for _, w := range r.Warnings {
		o.warn(w)
	}
	return s.err
}
