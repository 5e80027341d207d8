package meshservice

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	mcp "istio.io/api/mcp/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/discovery"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

// The kinds that say how services are called.
const (
	virtualServices  = "VirtualService"
	destinationRules = "DestinationRule"
)

// Configuration is what control planes receive; it is the snapshots' builder.
type Configuration interface {
	Kinds() []snapshot.Kind
	// Snapshot is a mesh's, nil for none.
	Snapshot(mesh string) *snapshot.Snapshot
	// MeshObject is a mesh as it was observed last, nil for none.
	MeshObject(name string) *object.Object
}

// Routes know what the configuration of meshes says of their services. It is read when
// somebody asks, and of it only what has changed since.
type Routes struct {
	configuration func() Configuration
	view          *discovery.View

	mu     sync.Mutex
	meshes map[string]*routing
}

// NewRoutes makes them. The view is told of the services of which something has changed.
func NewRoutes(configuration func() Configuration, view *discovery.View) *Routes {
	return &Routes{configuration: configuration, view: view, meshes: map[string]*routing{}}
}

// routing is what a mesh's configuration says of services. It never changes.
type routing struct {
	lists [2]*snapshot.List // of virtual services and destination rules
	mesh  *object.Object
	spec  v1alpha1.MeshSpec
	known bool

	rules [2]map[string]*rule // by namespace/name
	exact map[string][]*rule  // by host
	wild  []*rule
}

// rule is an object that names hosts.
type rule struct {
	cluster, kind, namespace, name string
	created                        time.Time
	hosts                          []string // written out, wildcards with their star
	exportTo                       []string
	// Of destination rules: what they say of localities and failing endpoints.
	selected  bool // for some workloads only
	balancing *networking.LoadBalancerSettings
	outlier   bool
	policy    bool // says something of traffic at all
	perPort   bool // says something of single ports
}

// now is what a mesh's configuration says by now.
func (r *Routes) now(mesh string) *routing {
	c := r.configuration()
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.meshes[mesh]
	s, o := c.Snapshot(mesh), c.MeshObject(mesh)
	if s == nil && o == nil {
		delete(r.meshes, mesh)
		return &routing{}
	}
	next := &routing{mesh: o, known: true}
	if s != nil {
		for i, k := range c.Kinds() {
			switch k.Name {
			case virtualServices:
				next.lists[0] = s.Lists[i]
			case destinationRules:
				next.lists[1] = s.Lists[i]
			}
		}
	}
	if old != nil && old.lists == next.lists && old.mesh == next.mesh {
		return old
	}
	touched := next.build(old)
	r.meshes[mesh] = next
	if old != nil {
		touched.tell(r.view, mesh)
	}
	return next
}

// touched are the hosts of which something has changed.
type touched struct {
	hosts map[string]struct{}
	all   bool
}

func (t *touched) add(hosts []string) {
	for _, h := range hosts {
		if strings.HasPrefix(h, "*") {
			t.all = true
		}
		t.hosts[h] = struct{}{}
	}
}

func (t *touched) tell(view *discovery.View, mesh string) {
	var keys []discovery.Key
	for host := range t.hosts {
		if name, namespace, ok := strings.Cut(strings.TrimSuffix(host, hostSuffix), "."); ok && strings.HasSuffix(host, hostSuffix) {
			keys = append(keys, discovery.Key{Namespace: namespace, Name: name})
		}
	}
	view.Touch(mesh, keys, t.all)
}

// build reads what is different from an older routing, which may be nil.
func (r *routing) build(old *routing) touched {
	t := touched{hosts: map[string]struct{}{}}
	if old == nil {
		old = &routing{}
	}
	if r.mesh != nil && old.mesh != nil && string(r.mesh.Field("spec")) == string(old.mesh.Field("spec")) {
		r.spec = old.spec
	} else {
		if r.mesh != nil {
			// What cannot be read says nothing: the mesh's status tells why.
			_ = json.Unmarshal(r.mesh.Field("spec"), &r.spec)
		}
		t.all = true
	}
	for i := range r.lists {
		if r.lists[i] == old.lists[i] {
			r.rules[i] = old.rules[i]
			continue
		}
		kept := make(map[string]*rule, len(old.rules[i]))
		for name, rule := range old.rules[i] {
			kept[name] = rule
		}
		drop := func(name string) {
			if was := kept[name]; was != nil {
				t.add(was.hosts)
				delete(kept, name)
			}
		}
		list := r.lists[i]
		if list == nil {
			list = snapshot.Empty
		}
		list.Diff(old.lists[i], func(e snapshot.Entry) {
			name := strings.Clone(e.Name())
			drop(name)
			if made := newRule(i, name, e); made != nil {
				kept[name] = made
				t.add(made.hosts)
			}
		}, drop)
		r.rules[i] = kept
	}
	r.exact = map[string][]*rule{}
	for _, rules := range r.rules {
		for _, rule := range rules {
			for _, h := range rule.hosts {
				if strings.HasPrefix(h, "*") {
					r.wild = append(r.wild, rule)
				} else {
					r.exact[h] = append(r.exact[h], rule)
				}
			}
		}
	}
	return t
}

// newRule reads an entry; nil if it cannot be read, as by control planes.
func newRule(list int, key string, e snapshot.Entry) *rule {
	var wrapped anypb.Any
	var resource mcp.Resource
	if proto.Unmarshal(e.Resource(), &wrapped) != nil || proto.Unmarshal(wrapped.GetValue(), &resource) != nil {
		return nil
	}
	r := &rule{cluster: e.Cluster(), created: resource.GetMetadata().GetCreateTime().AsTime()}
	r.namespace, r.name, _ = strings.Cut(key, "/")
	body := resource.GetBody().GetValue()
	var hosts []string
	if list == 0 {
		var vs networking.VirtualService
		if proto.Unmarshal(body, &vs) != nil {
			return nil
		}
		r.kind, hosts, r.exportTo = virtualServices, vs.GetHosts(), vs.GetExportTo()
	} else {
		var dr networking.DestinationRule
		if proto.Unmarshal(body, &dr) != nil {
			return nil
		}
		r.kind, hosts, r.exportTo = destinationRules, []string{dr.GetHost()}, dr.GetExportTo()
		p := dr.GetTrafficPolicy()
		r.selected, r.policy, r.balancing, r.outlier = dr.GetWorkloadSelector() != nil, p != nil, p.GetLoadBalancer(), p.GetOutlierDetection() != nil
		for _, port := range p.GetPortLevelSettings() {
			r.perPort = r.perPort || port.GetLoadBalancer() != nil || port.GetOutlierDetection() != nil
		}
	}
	for _, h := range hosts {
		// As Istio does: only a name without any dot is completed.
		if h != "" && !strings.Contains(h, ".") && !strings.HasPrefix(h, "*") {
			h = Host(r.namespace, h)
		}
		r.hosts = append(r.hosts, strings.ToLower(h))
	}
	return r
}

// match is the most specific of a rule's hosts that a host matches.
func (r *rule) match(host string) (pattern string, matches bool) {
	for _, h := range r.hosts {
		if h == host || strings.HasPrefix(h, "*") && strings.HasSuffix(host, h[1:]) {
			if !matches || moreSpecific(h, pattern) {
				pattern, matches = h, true
			}
		}
	}
	return pattern, matches
}

func moreSpecific(a, b string) bool {
	if wildA, wildB := strings.HasPrefix(a, "*"), strings.HasPrefix(b, "*"); wildA != wildB {
		return wildB
	}
	return len(a) > len(b)
}

// exportedTo says whether a namespace sees the rule.
func (r *rule) exportedTo(namespace string) bool {
	if len(r.exportTo) == 0 {
		return true
	}
	return slices.ContainsFunc(r.exportTo, func(to string) bool {
		return to == "*" || to == namespace || to == "." && r.namespace == namespace
	})
}

// of are the rules that name a host, with wildcards too.
func (r *routing) of(host string) []*rule {
	all := slices.Clone(r.exact[host])
	for _, rule := range r.wild {
		if _, matches := rule.match(host); matches && !slices.Contains(all, rule) {
			all = append(all, rule)
		}
	}
	return all
}

// routes are the objects that name a service and that a virtual cluster may know of.
func (r *routing) routes(scope *Scope, namespace, host string) []v1alpha1.MeshServiceRoute {
	var all []v1alpha1.MeshServiceRoute
	for _, rule := range r.of(host) {
		if strings.HasPrefix(rule.name, managedPrefix) {
			continue // no object
		}
		if scope.Home || rule.cluster == scope.Cluster || rule.exportedTo(namespace) {
			all = append(all, v1alpha1.MeshServiceRoute{VirtualCluster: rule.cluster, Kind: rule.kind, Namespace: rule.namespace, Name: rule.name})
		}
	}
	slices.SortFunc(all, func(a, b v1alpha1.MeshServiceRoute) int {
		return cmp.Or(-strings.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return all
}

// managedPrefix begins the names of what vmesh itself adds to a mesh's configuration, as
// snapshot.FailoverName.
const managedPrefix = "vmesh:"

// defaultRoot is the root namespace of meshes that name none.
const defaultRoot = "istio-system"

// destinationRule is the one that Istio chooses for callers in a service's own namespace: of that namespace, or
// else of the root namespace, the one with the most specific host, and of several the oldest that says
// something of traffic.
func (r *routing) destinationRule(namespace, host string) *rule {
	root := cmp.Or(r.spec.RootNamespace, defaultRoot)
	of := r.of(host)
	for _, in := range []string{namespace, root} {
		var best *rule
		var by string
		for _, rule := range of {
			if rule.kind != destinationRules || rule.namespace != in || rule.selected || in != namespace && !rule.exportedTo(namespace) {
				continue
			}
			pattern, _ := rule.match(host)
			switch {
			case best == nil, moreSpecific(pattern, by):
			case moreSpecific(by, pattern), best.policy && !rule.policy:
				continue
			case rule.policy == best.policy && cmp.Or(best.created.Compare(rule.created), strings.Compare(best.name, rule.name)) <= 0:
				continue
			}
			best, by = rule, pattern
		}
		if best != nil {
			return best
		}
	}
	return nil
}

// The rules by which endpoints are chosen.
const (
	localFirst = "LocalFirst"
	failover   = "Failover"
	distribute = "Distribute"
	everywhere = "Everywhere"
)

// traffic is the rule that is in force for callers in the service's own namespace.
func (r *routing) traffic(mesh string, s discovery.Service, host string) *v1alpha1.MeshServiceTraffic {
	if !r.known {
		return nil
	}
	ofMesh := "Mesh " + mesh
	dr := r.destinationRule(s.Namespace, host)
	from := ""
	if dr != nil {
		from = fmt.Sprintf("%s %s/%s", destinationRules, dr.namespace, dr.name)
		if strings.HasPrefix(dr.name, managedPrefix) {
			from = ofMesh
		}
	}
	t := &v1alpha1.MeshServiceTraffic{From: ofMesh}
	forced := false // there is failover whatever is said of failing endpoints
	switch balancing := dr.getBalancing(); {
	case balancing.GetZoneAwareLbSetting() != nil:
		t.Locality, t.From, forced = localFirst, from, true
		if e := balancing.GetZoneAwareLbSetting().GetEnabled(); e != nil && !e.GetValue() {
			t.Locality = everywhere
		}
	case balancing.GetLocalityLbSetting() != nil:
		l := balancing.GetLocalityLbSetting()
		t.From = from
		t.Locality = locality(l.GetEnabled() == nil || l.GetEnabled().GetValue(), len(l.GetDistribute()) > 0, len(l.GetFailover())+len(l.GetFailoverPriority()) > 0)
	case s.Distribution:
		t.Locality, t.From, forced = localFirst, "Service "+s.Namespace+"/"+s.Name, true
	default:
		l := r.spec.Locality
		if l == nil {
			l = &v1alpha1.MeshLocality{}
		}
		t.Locality = locality(l.LocalFirst == nil || *l.LocalFirst, len(l.Distribute) > 0, len(l.Failover)+len(l.FailoverPriority) > 0)
	}
	switch {
	case dr != nil && dr.outlier:
		t.OutlierDetection = from
	case t.Locality == everywhere || t.Locality == distribute || forced:
	case dr != nil:
		t.Warnings = append(t.Warnings, fmt.Sprintf("%s, which is the one for this service, has no outlierDetection: without it Istio prefers no locality and fails over to none", from))
	default:
		t.Warnings = append(t.Warnings, "no DestinationRule is for this service, and the mesh says nothing of outlierDetection (spec.locality): without it Istio prefers no locality and fails over to none")
	}
	if dr != nil && dr.perPort {
		t.Warnings = append(t.Warnings, fmt.Sprintf("%s says something else for single ports", from))
	}
	if t.Locality == localFirst || t.Locality == failover {
		for _, c := range s.Clusters {
			if slices.ContainsFunc(c.Localities, func(l discovery.Locality) bool { return l.Name == "" }) {
				t.Warnings = append(t.Warnings, fmt.Sprintf("endpoints in %s are in no known locality: their nodes have no label topology.kubernetes.io/region", c.Member))
			}
		}
	}
	return t
}

func (r *rule) getBalancing() *networking.LoadBalancerSettings {
	if r == nil {
		return nil
	}
	return r.balancing
}

func locality(enabled, shares, fails bool) string {
	switch {
	case !enabled:
		return everywhere
	case shares:
		return distribute
	case fails:
		return failover
	}
	return localFirst
}
