package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"istio.io/api/label"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	apiequality "k8s.io/apimachinery/pkg/api/equality"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

const (
	// trafficManager is the field manager of what vmesh traffic writes.
	trafficManager = "vmesh-traffic"
	// annotationTraffic says, on an object of vmesh traffic or with fields of it, by which flags they were written.
	annotationTraffic = "vmesh.io/traffic"
	managedByLabel    = "app.kubernetes.io/managed-by"
	// trafficSuffix makes the name of vmesh traffic's own objects of the service's.
	trafficSuffix = "-clusters"
)

// clusterLabel is on every endpoint and every proxy: istiod puts it there.
var clusterLabel = label.TopologyCluster.Name

var (
	virtualServices  = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "virtualservices"}
	destinationRules = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "destinationrules"}
	meshServices     = v1alpha1.GroupVersion.WithResource("meshservices")
)

// trafficRule is how a service is to be called across clusters. The zero rule is the default.
type trafficRule struct {
	localOnly, localFirst bool
	prefer                string
	split                 []clusterShare
	drain                 []string
	failover              []failover
}

// clusterShare is a cluster's share of the calls in percent.
type clusterShare struct {
	cluster string
	weight  int
}

// failover is where calls go when a region has no endpoint left that answers.
type failover struct{ from, to string }

// routes says whether the rule takes routes, to subsets by cluster.
func (r *trafficRule) routes() bool { return r.localOnly || len(r.split) > 0 || len(r.drain) > 0 }

// ranks says whether the rule is an order of endpoints, which a DestinationRule has.
func (r *trafficRule) ranks() bool { return r.localFirst || r.prefer != "" || len(r.failover) > 0 }

// String is the rule as flags.
func (r *trafficRule) String() string {
	var flags []string
	if r.localOnly {
		flags = append(flags, "--local-only")
	}
	if r.localFirst {
		flags = append(flags, "--local-first")
	}
	if r.prefer != "" {
		flags = append(flags, "--prefer "+r.prefer)
	}
	if len(r.split) > 0 {
		var shares []string
		for _, s := range r.split {
			shares = append(shares, fmt.Sprintf("%s=%d", s.cluster, s.weight))
		}
		flags = append(flags, "--split "+strings.Join(shares, ","))
	}
	if len(r.drain) > 0 {
		flags = append(flags, "--drain "+strings.Join(r.drain, ","))
	}
	if len(r.failover) > 0 {
		var pairs []string
		for _, f := range r.failover {
			pairs = append(pairs, f.from+"="+f.to)
		}
		flags = append(flags, "--failover "+strings.Join(pairs, ","))
	}
	return strings.Join(flags, " ")
}

// named are the clusters that the rule names.
func (r *trafficRule) named() []string {
	var names []string
	for _, s := range r.split {
		names = append(names, s.cluster)
	}
	if r.prefer != "" {
		names = append(names, r.prefer)
	}
	return append(names, r.drain...)
}

// parseSplit reads CLUSTER=PERCENT,..., which must be 100 together.
func parseSplit(values []string) ([]clusterShare, error) {
	var all []clusterShare
	sum := 0
	for _, value := range values {
		name, text, ok := strings.Cut(value, "=")
		weight, err := strconv.Atoi(text)
		switch {
		case !ok || name == "" || err != nil || weight < 0 || weight > 100:
			return nil, fmt.Errorf("--split: %q is not CLUSTER=PERCENT, as in east=90,west=10", value)
		case slices.ContainsFunc(all, func(s clusterShare) bool { return s.cluster == name }):
			return nil, fmt.Errorf("--split: %s is given twice", name)
		}
		all = append(all, clusterShare{name, weight})
		sum += weight
	}
	if len(all) > 0 && sum != 100 {
		return nil, fmt.Errorf("--split: the shares are %d together, and must be 100", sum)
	}
	return all, nil
}

// parseFailover reads FROM=TO,...
func parseFailover(values []string) ([]failover, error) {
	var all []failover
	for _, value := range values {
		from, to, ok := strings.Cut(value, "=")
		switch {
		case !ok || from == "" || to == "":
			return nil, fmt.Errorf("--failover: %q is not REGION=REGION, as in us-east=us-west", value)
		case from == to:
			return nil, fmt.Errorf("--failover: %s cannot fail over to itself", from)
		case slices.ContainsFunc(all, func(f failover) bool { return f.from == from }):
			return nil, fmt.Errorf("--failover: region %s is given twice: Istio has one region to go to from each, and then the rest", from)
		}
		all = append(all, failover{from, to})
	}
	return all, nil
}

// serviceView is a service as the mesh knows it.
type serviceView struct {
	namespace, name, host string
	// known says whether the server has a view of it. If not, clusters are those that the user named.
	known    bool
	clusters []v1alpha1.MeshServiceCluster
	// routes are those of all virtual clusters that may be seen.
	routes []v1alpha1.MeshServiceRoute
}

func newServiceView(namespace, name string, found *v1alpha1.MeshService, given []string) *serviceView {
	v := &serviceView{namespace: namespace, name: name, host: name + "." + namespace + ".svc.cluster.local"}
	if found != nil {
		v.known, v.clusters, v.routes = true, slices.Clone(found.Status.Clusters), found.Status.Routes
		v.host = cmp.Or(found.Status.Host, v.host)
	}
	for _, name := range given {
		if v.cluster(name) == nil {
			v.clusters = append(v.clusters, v1alpha1.MeshServiceCluster{Name: name})
		}
	}
	slices.SortFunc(v.clusters, func(a, b v1alpha1.MeshServiceCluster) int { return strings.Compare(a.Name, b.Name) })
	return v
}

func (v *serviceView) cluster(name string) *v1alpha1.MeshServiceCluster {
	for i := range v.clusters {
		if v.clusters[i].Name == name {
			return &v.clusters[i]
		}
	}
	return nil
}

func (v *serviceView) names() []string {
	var names []string
	for i := range v.clusters {
		names = append(names, v.clusters[i].Name)
	}
	return names
}

// regions are those of a cluster's endpoints, or of all clusters' for an empty name.
func (v *serviceView) regions(cluster string) []string {
	var regions []string
	for _, c := range v.clusters {
		for _, l := range c.Localities {
			if region, _, _ := strings.Cut(l.Locality, "/"); region != "" && (cluster == "" || c.Name == cluster) {
				regions = append(regions, region)
			}
		}
	}
	slices.Sort(regions)
	return slices.Compact(regions)
}

// ports says whether there are ports whose calls are not routed as HTTP, and which are routed by TLS's server name alone.
func (v *serviceView) ports() (tcp bool, tls []string) {
	seen := false
	for _, c := range v.clusters {
		for _, p := range c.Ports {
			seen = true
			switch application := strings.ToUpper(p.AppProtocol); {
			case strings.EqualFold(p.Protocol, "UDP"), strings.HasPrefix(application, "GRPC"):
			case application == "HTTPS" || application == "TLS":
				if text := fmt.Sprint(p.Port); !slices.Contains(tls, text) {
					tls = append(tls, text)
				}
			case strings.HasPrefix(application, "HTTP"):
			default:
				tcp = true
			}
		}
	}
	return tcp || !seen, tls
}

// check says what is wrong with a rule for this service (err), and what may surprise (warnings).
func (v *serviceView) check(r *trafficRule) (warnings []string, err error) {
	known := strings.Join(v.names(), ", ")
	for _, name := range r.named() {
		if v.known && v.cluster(name) == nil {
			warnings = append(warnings, fmt.Sprintf("cluster %q does not have the service: those that have it are %s (kubectl get meshservices -n %s %s -o yaml)", name, cmp.Or(known, "none"), v.namespace, v.name))
		}
	}
	switch {
	case len(v.clusters) == 0 && (r.localOnly || len(r.drain) > 0):
		if v.known {
			return nil, errors.New("no cluster has the service")
		}
		return nil, errors.New("the server does not know which clusters have the service: name them by --clusters east,west")
	case !v.known && (r.routes() || r.ranks()):
		warnings = append(warnings, "the server does not know the service: nobody has checked the names of clusters, and that they have endpoints")
	}
	dead := func(name string) bool {
		c := v.cluster(name)
		return v.known && (c == nil || c.Ready == 0)
	}
	for _, s := range r.split {
		if s.weight > 0 && dead(s.cluster) {
			warnings = append(warnings, fmt.Sprintf("cluster %s has no ready endpoint: %d %% of the calls would fail", s.cluster, s.weight))
		}
		if c := v.cluster(s.cluster); s.weight > 0 && c != nil && c.Drained {
			warnings = append(warnings, fmt.Sprintf("cluster %s is drained as a whole: %d %% of the calls would fail", s.cluster, s.weight))
		}
	}
	if r.localOnly {
		for _, name := range v.names() {
			if dead(name) && !slices.Contains(r.drain, name) {
				warnings = append(warnings, fmt.Sprintf("cluster %s has no ready endpoint: calls from there would fail", name))
			}
		}
	}
	if r.prefer != "" && dead(r.prefer) {
		warnings = append(warnings, fmt.Sprintf("cluster %s has no ready endpoint: calls go to the rest until it has", r.prefer))
	}
	if len(r.drain) > 0 && len(v.rest(r.drain)) == 0 {
		return nil, fmt.Errorf("--drain: no other cluster has a ready endpoint: all calls would fail")
	}
	regions := v.regions("")
	for _, f := range r.failover {
		for _, name := range []string{f.from, f.to} {
			switch {
			case slices.Contains(regions, name):
			case v.cluster(name) != nil:
				remedy := "its endpoints say no region (its nodes have no label topology.kubernetes.io/region): --prefer and --local-first rank by cluster"
				if of := v.regions(name); len(of) > 0 {
					remedy = "it is in " + strings.Join(of, " and ") + ": give that; --prefer and --local-first rank by cluster"
				}
				return nil, fmt.Errorf("--failover: %s is a cluster, and Istio fails over between regions; %s", name, remedy)
			case v.known:
				warnings = append(warnings, fmt.Sprintf("no endpoint is in region %q: those that have some are %s", name, cmp.Or(strings.Join(regions, ", "), "none")))
			}
		}
	}
	if r.routes() {
		if _, tls := v.ports(); len(tls) > 0 {
			warnings = append(warnings, fmt.Sprintf("port %s is TLS, which is routed by server name alone: calls to it go to all clusters as before", strings.Join(tls, ", ")))
		}
	}
	for _, route := range v.routes {
		if route.Namespace != v.namespace && (route.Kind == "VirtualService" && r.routes() || route.Kind == "DestinationRule") {
			warnings = append(warnings, fmt.Sprintf("%s %s/%s%s is about this service, too: for its callers it may come first", route.Kind, route.Namespace, route.Name,
				unless(route.VirtualCluster == "", " of virtual cluster "+route.VirtualCluster)))
		}
	}
	return warnings, nil
}

// rest are the clusters that serve when others are drained, with their shares: as many as they have ready endpoints.
func (v *serviceView) rest(drained []string) []clusterShare {
	var rest []clusterShare
	total := 0
	for _, c := range v.clusters {
		if slices.Contains(drained, c.Name) || c.Drained {
			continue
		}
		ready := int(c.Ready)
		if !v.known {
			ready = 1
		}
		if ready > 0 {
			rest = append(rest, clusterShare{c.Name, ready})
			total += ready
		}
	}
	// Each gets at least one percent, and the greatest what rounding leaves.
	left, greatest := 100, 0
	for i := range rest {
		if rest[i].weight > rest[greatest].weight {
			greatest = i
		}
	}
	for i := range rest {
		rest[i].weight = max(1, rest[i].weight*100/total)
		left -= rest[i].weight
	}
	if len(rest) > 0 {
		rest[greatest].weight += left
	}
	return rest
}

// subsetName is the subset of a cluster. Names of subsets have no dots.
func subsetName(cluster string) string { return strings.ReplaceAll(cluster, ".", "-") }

type object = map[string]any

// trafficObjects are the objects of a namespace that are about a service.
type trafficObjects struct {
	ownService, ownRule *unstructured.Unstructured
	// What users wrote, the oldest first.
	services, rules []*unstructured.Unstructured
	// elsewhere are VirtualServices of the service for gateways alone.
	elsewhere []*unstructured.Unstructured
}

// sortOut finds those of a service.
func (v *serviceView) sortOut(services, rules []unstructured.Unstructured) (*trafficObjects, error) {
	all := &trafficObjects{}
	own := v.name + trafficSuffix
	byAge := func(a, b *unstructured.Unstructured) int {
		at, bt := a.GetCreationTimestamp(), b.GetCreationTimestamp()
		return cmp.Or(at.Compare(bt.Time), strings.Compare(a.GetName(), b.GetName()))
	}
	for i := range services {
		s := &services[i]
		hosts, _, _ := unstructured.NestedStringSlice(s.Object, "spec", "hosts")
		gateways, _, _ := unstructured.NestedStringSlice(s.Object, "spec", "gateways")
		switch {
		case s.GetName() == own && s.GetLabels()[managedByLabel] == trafficManager:
			all.ownService = s
		case s.GetName() == own:
			return nil, fmt.Errorf("VirtualService %s/%s is there already, and not of vmesh traffic: give it another name", v.namespace, own)
		case !slices.ContainsFunc(hosts, v.isHost):
		case len(gateways) > 0 && !slices.Contains(gateways, "mesh"):
			all.elsewhere = append(all.elsewhere, s)
		default:
			all.services = append(all.services, s)
		}
	}
	for i := range rules {
		r := &rules[i]
		host, _, _ := unstructured.NestedString(r.Object, "spec", "host")
		switch {
		case r.GetName() == own && r.GetLabels()[managedByLabel] == trafficManager:
			all.ownRule = r
		case r.GetName() == own:
			return nil, fmt.Errorf("DestinationRule %s/%s is there already, and not of vmesh traffic: give it another name", v.namespace, own)
		case v.isHost(host):
			all.rules = append(all.rules, r)
		}
	}
	slices.SortFunc(all.services, byAge)
	slices.SortFunc(all.rules, byAge)
	return all, nil
}

// isHost says whether a host, as written in the service's namespace, is the service.
func (v *serviceView) isHost(host string) bool {
	return host == v.host || host == v.name && v.host == v.name+"."+v.namespace+".svc.cluster.local"
}

// trafficStep is one write of vmesh traffic.
type trafficStep struct {
	*step
	// applied is what is applied: the fields that are vmesh traffic's.
	applied *unstructured.Unstructured
	// release gives up what was applied, as somebody else's field again.
	release bool
}

// planTraffic says what to write so that the service is called by the rule, in order: subsets
// are there before routes need them, and go after.
func planTraffic(v *serviceView, r *trafficRule, all *trafficObjects) (steps []*trafficStep, err error) {
	service, err := planService(v, r, all)
	if err != nil {
		return nil, err
	}
	rules, err := planRules(v, r, all)
	if err != nil {
		return nil, err
	}
	if r.routes() {
		steps = append(rules, service...)
	} else {
		steps = append(service, rules...)
	}
	return slices.DeleteFunc(steps, func(s *trafficStep) bool {
		return s.action == update && apiequality.Semantic.DeepEqual(written(s.current.Object), written(s.object.Object))
	}), nil
}

func trafficTarget(gvr schema.GroupVersionResource, kind, namespace, name string) *target {
	return &target{gvr: gvr, kind: kind, namespace: namespace, name: name}
}

// write makes the step by which fields are applied to what there is. ours are the paths below
// which nothing is left that is not applied.
func (t *target) write(current *unstructured.Unstructured, applied object, ours [][]string) *trafficStep {
	metadata := applied["metadata"].(object)
	metadata["name"], metadata["namespace"] = t.name, t.namespace
	applied["apiVersion"], applied["kind"] = t.gvr.GroupVersion().String(), t.kind
	s := &trafficStep{step: &step{target: t, action: create, current: current}, applied: &unstructured.Unstructured{Object: applied}}
	if current == nil {
		s.object = s.applied.DeepCopy()
		return s
	}
	s.action = update
	s.object = current.DeepCopy()
	for _, path := range ours {
		removeWithParents(s.object.Object, path)
	}
	overlay(s.object.Object, runtime.DeepCopyJSON(applied))
	metadata["resourceVersion"] = current.GetResourceVersion()
	return s
}

func (t *target) delete(current *unstructured.Unstructured) *trafficStep {
	return &trafficStep{step: &step{target: t, action: remove, current: current}}
}

// removeWithParents removes a field, and what it leaves empty.
func removeWithParents(o object, path []string) {
	if len(path) == 1 {
		delete(o, path[0])
		return
	}
	child, ok := o[path[0]].(object)
	if !ok {
		return
	}
	if removeWithParents(child, path[1:]); len(child) == 0 {
		delete(o, path[0])
	}
}

// overlay puts fields into an object; lists are replaced.
func overlay(o, fields object) {
	for name, value := range fields {
		was, isMap := o[name].(object)
		if is, ok := value.(object); ok && isMap {
			overlay(was, is)
		} else {
			o[name] = value
		}
	}
}

var (
	annotationPath = []string{"metadata", "annotations", annotationTraffic}
	localityPath   = []string{"spec", "trafficPolicy", "loadBalancer", "localityLbSetting"}
	outlierPath    = []string{"spec", "trafficPolicy", "outlierDetection"}
)

// planService plans the VirtualService: one of its own, or the one that the user has.
func planService(v *serviceView, r *trafficRule, all *trafficObjects) ([]*trafficStep, error) {
	var steps []*trafficStep
	t := trafficTarget(virtualServices, "VirtualService", v.namespace, v.name+trafficSuffix)
	if !r.routes() {
		if all.ownService != nil {
			steps = append(steps, t.delete(all.ownService))
		}
		for _, s := range all.services {
			if s.GetAnnotations()[annotationTraffic] == "" {
				continue
			}
			base, err := v.base(s)
			if err != nil {
				return nil, err
			}
			mine := trafficTarget(virtualServices, "VirtualService", v.namespace, s.GetName())
			step := mine.write(s, object{"metadata": object{}, "spec": object{"http": []any{base}}}, [][]string{{"spec", "http"}, {"spec", "tcp"}, annotationPath})
			step.release = true
			steps = append(steps, step)
		}
		return steps, nil
	}
	applied := object{
		"metadata": object{"annotations": object{annotationTraffic: r.String()}},
		"spec":     object{},
	}
	spec := applied["spec"].(object)
	ours := [][]string{{"spec", "http"}, {"spec", "tcp"}, annotationPath}
	current := all.ownService
	base := object{"route": []any{object{"destination": object{"host": v.host}}}}
	switch {
	case len(all.services) > 1:
		return nil, fmt.Errorf("VirtualServices %s and %s are both for %s: istiod takes the older; leave one, and run the command again", all.services[0].GetName(), all.services[1].GetName(), v.host)
	case len(all.services) == 1:
		users := all.services[0]
		var err error
		if base, err = v.base(users); err != nil {
			return nil, err
		}
		if current != nil { // the user's came since; istiod would take one of the two
			steps = append(steps, t.delete(current))
		}
		current, t = users, trafficTarget(virtualServices, "VirtualService", v.namespace, users.GetName())
	default:
		spec["hosts"] = []any{v.host}
		applied["metadata"].(object)["labels"] = object{managedByLabel: trafficManager}
	}
	spec["http"] = v.spread(r, base, httpRoute)
	if tcp, _ := v.ports(); tcp {
		spec["tcp"] = v.spread(r, base, tcpRoute)
	}
	return append([]*trafficStep{t.write(current, applied, ours)}, steps...), nil
}

// httpRoute is an HTTP route like base, for callers in a cluster unless that is empty.
func httpRoute(base object, from string, destinations []any) object {
	route := runtime.DeepCopyJSON(base)
	delete(route, "match")
	if from != "" {
		route["match"] = []any{object{"sourceLabels": object{clusterLabel: from}}}
		if name, _ := route["name"].(string); name != "" {
			route["name"] = name + "-" + from
		}
	}
	route["route"] = destinations
	return route
}

// tcpRoute is one for other protocols, which has only destinations.
func tcpRoute(_ object, from string, destinations []any) object {
	route := object{}
	if from != "" {
		route["match"] = []any{object{"sourceLabels": object{clusterLabel: from}}}
	}
	for i := range destinations {
		plain := maps.Clone(destinations[i].(object))
		delete(plain, "headers")
		destinations[i] = plain
	}
	route["route"] = destinations
	return route
}

// spread makes of a base route to the service those that the rule wants.
func (v *serviceView) spread(r *trafficRule, base object, make func(base object, from string, destinations []any) object) []any {
	template := base["route"].([]any)[0].(object)
	to := func(shares ...clusterShare) []any {
		var destinations []any
		for _, s := range shares {
			d := runtime.DeepCopyJSON(template)
			d["destination"].(object)["subset"] = subsetName(s.cluster)
			if delete(d, "weight"); len(shares) > 1 {
				d["weight"] = int64(s.weight)
			}
			destinations = append(destinations, d)
		}
		return destinations
	}
	var routes []any
	if r.localOnly {
		for _, name := range v.names() {
			if !slices.Contains(r.drain, name) {
				routes = append(routes, make(base, name, to(clusterShare{name, 100})))
			}
		}
	}
	last := []any{runtime.DeepCopyJSON(template)}
	switch {
	case len(r.split) > 0:
		last = to(r.split...)
	case len(r.drain) > 0:
		last = to(v.rest(r.drain)...)
	}
	return append(routes, make(base, "", last))
}

// base is the one route of a user's VirtualService, as it is without a rule. A VirtualService
// that has more to say is refused: nobody but the user knows how that goes together with clusters.
func (v *serviceView) base(s *unstructured.Unstructured) (object, error) {
	refuse := func(why string) (object, error) {
		return nil, fmt.Errorf("VirtualService %s/%s routes %s already, and %s, so that it is not clear where clusters come in: write their subsets into it by hand, "+
			"with the label %s, or take it away", v.namespace, s.GetName(), v.host, why, clusterLabel)
	}
	hosts, _, _ := unstructured.NestedStringSlice(s.Object, "spec", "hosts")
	http, _, _ := unstructured.NestedSlice(s.Object, "spec", "http")
	tcp, _, _ := unstructured.NestedSlice(s.Object, "spec", "tcp")
	tls, _, _ := unstructured.NestedSlice(s.Object, "spec", "tls")
	ours := s.GetAnnotations()[annotationTraffic] != ""
	switch {
	case len(hosts) > 1:
		return refuse("has other hosts as well")
	case len(tls) > 0 || len(tcp) > 0 && !ours:
		return refuse("has routes of other protocols")
	case len(http) == 0:
		return refuse("has no route")
	case len(http) > 1 && !ours:
		return refuse("has several routes")
	}
	for _, entry := range http[:len(http)-1] { // ours: by the caller's cluster
		matches, _ := entry.(object)["match"].([]any)
		if len(matches) != 1 {
			return refuse("was changed since vmesh traffic wrote into it")
		}
		match, _ := matches[0].(object)
		if labels, _ := match["sourceLabels"].(object); len(match) != 1 || len(labels) != 1 || labels[clusterLabel] == nil {
			return refuse("was changed since vmesh traffic wrote into it")
		}
	}
	base := http[len(http)-1].(object)
	routes, _ := base["route"].([]any)
	for _, key := range []string{"match", "redirect", "directResponse", "delegate"} {
		if _, has := base[key]; has {
			return refuse("its route has a " + key)
		}
	}
	if len(routes) == 0 {
		return refuse("has no destination")
	}
	if len(routes) > 1 && !ours {
		return refuse("shares calls out between several destinations")
	}
	for _, route := range routes {
		destination, _ := route.(object)["destination"].(object)
		host, _ := destination["host"].(string)
		if !v.isHost(host) {
			return refuse("sends calls to " + host)
		}
		if _, has := destination["subset"]; has && !ours {
			return refuse("sends calls to a subset")
		}
	}
	first := runtime.DeepCopyJSON(routes[0].(object))
	if ours {
		delete(first["destination"].(object), "subset")
		delete(first, "weight")
	}
	base = runtime.DeepCopyJSON(base)
	base["route"] = []any{first}
	return base, nil
}

// defaultOutlierDetection is by which endpoints are left out that fail: as a Mesh has it by default. Without one, Istio fails
// over only from endpoints that are gone.
func defaultOutlierDetection() object {
	return object{"consecutive5xxErrors": int64(5), "interval": "10s", "baseEjectionTime": "30s", "maxEjectionPercent": int64(100)}
}

// locality is the rule as Istio's localityLbSetting.
func (r *trafficRule) locality() object {
	setting := object{"enabled": true}
	switch {
	case r.localFirst:
		setting["failoverPriority"] = []any{clusterLabel}
	case r.prefer != "":
		setting["failoverPriority"] = []any{clusterLabel + "=" + r.prefer}
	}
	var between []any
	for _, f := range r.failover {
		between = append(between, object{"from": f.from, "to": f.to})
	}
	if len(between) > 0 {
		setting["failover"] = between
	}
	return setting
}

// planRules plans the DestinationRules: one of its own with subsets and policy; and where the user
// has one with a policy, that holds the order of endpoints, since istiod takes one policy only.
func planRules(v *serviceView, r *trafficRule, all *trafficObjects) ([]*trafficStep, error) {
	var steps []*trafficStep
	var holder *unstructured.Unstructured
	var exportTo []any
	for _, users := range all.rules {
		if _, has, _ := unstructured.NestedMap(users.Object, "spec", "workloadSelector"); has {
			continue // for some callers
		}
		if exportTo == nil {
			exportTo, _, _ = unstructured.NestedSlice(users.Object, "spec", "exportTo")
		}
		if policy, _, _ := unstructured.NestedMap(users.Object, "spec", "trafficPolicy"); len(policy) > 0 && holder == nil {
			holder = users
		}
	}
	for _, users := range all.rules {
		if users != holder && users.GetAnnotations()[annotationTraffic] != "" || users == holder && !r.ranks() && users.GetAnnotations()[annotationTraffic] != "" {
			t := trafficTarget(destinationRules, "DestinationRule", v.namespace, users.GetName())
			steps = append(steps, t.write(users, object{"metadata": object{}}, owned(users)))
		}
	}
	applied := object{"metadata": object{"labels": object{managedByLabel: trafficManager}}}
	if r.ranks() { // else the VirtualService says it, so that a step from one share to the next touches no subset
		applied["metadata"].(object)["annotations"] = object{annotationTraffic: r.String()}
	}
	spec := object{"host": v.host}
	applied["spec"] = spec
	if len(exportTo) > 0 {
		spec["exportTo"] = exportTo // istiod merges rules only of the same
	}
	if r.routes() {
		subsets, err := v.subsets(r, all)
		if err != nil {
			return nil, err
		}
		if len(subsets) > 0 {
			spec["subsets"] = subsets
		}
	}
	if holder == nil && (r.routes() || r.ranks()) {
		policy := object{"outlierDetection": defaultOutlierDetection()}
		if r.ranks() {
			policy["loadBalancer"] = object{"localityLbSetting": r.locality()}
		}
		spec["trafficPolicy"] = policy
	}
	if holder != nil && r.ranks() {
		step, err := v.rank(r, holder)
		if err != nil {
			return nil, err
		}
		steps = append(steps, step)
	}
	t := trafficTarget(destinationRules, "DestinationRule", v.namespace, v.name+trafficSuffix)
	switch _, policy := spec["trafficPolicy"]; {
	case spec["subsets"] != nil || policy:
		steps = append(steps, t.write(all.ownRule, applied, [][]string{{"spec", "subsets"}, localityPath, outlierPath, {"spec", "exportTo"}, annotationPath}))
	case all.ownRule != nil:
		steps = append(steps, t.delete(all.ownRule))
	}
	return steps, nil
}

// rank puts the order of endpoints into a user's DestinationRule.
func (v *serviceView) rank(r *trafficRule, users *unstructured.Unstructured) (*trafficStep, error) {
	mine := owned(users)
	has := func(path ...string) bool {
		_, found, _ := unstructured.NestedFieldNoCopy(users.Object, path...)
		return found && !slices.ContainsFunc(mine, func(p []string) bool { return slices.Equal(p, path) })
	}
	for _, field := range []string{"localityLbSetting", "zoneAwareLbSetting"} {
		if has("spec", "trafficPolicy", "loadBalancer", field) {
			return nil, fmt.Errorf("DestinationRule %s/%s has a rule of its own for %s (spec.trafficPolicy.loadBalancer.%s): take that out, and run the command again",
				v.namespace, users.GetName(), v.host, field)
		}
	}
	policy := object{"loadBalancer": object{"localityLbSetting": r.locality()}}
	if !has(outlierPath...) {
		policy["outlierDetection"] = defaultOutlierDetection()
	}
	applied := object{"metadata": object{"annotations": object{annotationTraffic: r.String()}}, "spec": object{"trafficPolicy": policy}}
	return trafficTarget(destinationRules, "DestinationRule", v.namespace, users.GetName()).write(users, applied, mine), nil
}

// owned are the fields of a user's DestinationRule that vmesh traffic has written.
func owned(o *unstructured.Unstructured) [][]string {
	var paths [][]string
	for _, entry := range o.GetManagedFields() {
		var fields object
		if entry.Manager != trafficManager || entry.FieldsV1 == nil || json.Unmarshal(entry.FieldsV1.Raw, &fields) != nil {
			continue
		}
		for _, path := range [][]string{localityPath, outlierPath, annotationPath} {
			in := make([]string, len(path))
			for i := range path {
				in[i] = "f:" + path[i]
			}
			if _, has, _ := unstructured.NestedFieldNoCopy(fields, in...); has {
				paths = append(paths, path)
			}
		}
	}
	return paths
}

// subsets are those of all clusters that are known, named, or were: routes that are on their way may still need them.
func (v *serviceView) subsets(r *trafficRule, all *trafficObjects) ([]any, error) {
	clusters := append(v.names(), r.named()...)
	if all.ownRule != nil {
		for _, subset := range subsetsOf(all.ownRule) {
			clusters = append(clusters, subset.cluster)
		}
	}
	slices.Sort(clusters)
	var subsets []any
	for _, name := range slices.Compact(clusters) {
		there := false
		for _, users := range all.rules {
			for _, subset := range subsetsOf(users) {
				if subset.name != subsetName(name) {
					continue
				}
				if subset.cluster != name || subset.labels != 1 {
					return nil, fmt.Errorf("DestinationRule %s/%s has a subset %q which is not that of cluster %s (label %s=%s alone): give it another name",
						v.namespace, users.GetName(), subset.name, name, clusterLabel, name)
				}
				there = true
			}
		}
		if !there {
			subsets = append(subsets, object{"name": subsetName(name), "labels": object{clusterLabel: name}})
		}
	}
	return subsets, nil
}

// clusterSubset is a subset of a DestinationRule.
type clusterSubset struct {
	name, cluster string // cluster is empty for one by other labels
	labels        int
}

func subsetsOf(rule *unstructured.Unstructured) []clusterSubset {
	list, _, _ := unstructured.NestedSlice(rule.Object, "spec", "subsets")
	var all []clusterSubset
	for _, item := range list {
		subset, _ := item.(object)
		labels, _ := subset["labels"].(object)
		name, _ := subset["name"].(string)
		cluster, _ := labels[clusterLabel].(string)
		all = append(all, clusterSubset{name, cluster, len(labels)})
	}
	return all
}
