package discovery

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Port is a port of a service.
type Port struct {
	Name     string
	Port     int32
	Protocol string
	// AppProtocol is what the service says itself, which may be nothing.
	AppProtocol string
}

const (
	fieldEnd = "\x00" // is in no name
	portEnd  = "\x01"
)

func encodePorts(ports []corev1.ServicePort) string {
	var b strings.Builder
	for _, p := range ports {
		app := ""
		if p.AppProtocol != nil {
			app = *p.AppProtocol
		}
		b.WriteString(p.Name + fieldEnd + strconv.Itoa(int(p.Port)) + fieldEnd + string(p.Protocol) + fieldEnd + app + portEnd)
	}
	return b.String()
}

func decodePorts(s string) []Port {
	var all []Port
	for one := range strings.SplitSeq(strings.TrimSuffix(s, portEnd), portEnd) {
		fields := strings.Split(one, fieldEnd)
		if len(fields) != 4 {
			continue // of no ports at all
		}
		number, _ := strconv.ParseInt(fields[1], 10, 32)
		all = append(all, Port{fields[0], int32(number), fields[2], fields[3]})
	}
	return all
}

func encodeLabels(of map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(of)) {
		b.WriteString(k + fieldEnd + of[k] + portEnd)
	}
	return b.String()
}

// commonLabels are those that are the same in all.
func commonLabels(encoded []unique.Handle[string]) map[string]string {
	var common map[string]string
	for i, one := range encoded {
		labels := map[string]string{}
		for pair := range strings.SplitSeq(value(one), portEnd) {
			if k, v, ok := strings.Cut(pair, fieldEnd); ok && (i == 0 || common[k] == v) {
				if _, has := common[k]; i == 0 || has {
					labels[k] = v
				}
			}
		}
		common = labels
	}
	return common
}

// joinLocality is REGION/ZONE/SUBZONE, as far as it is known.
func joinLocality(region, zone, subZone string) string {
	return strings.TrimRight(region+"/"+zone+"/"+subZone, "/")
}

func splitLocality(s string) (region, zone, subZone string) {
	region, s, _ = strings.Cut(s, "/")
	zone, subZone, _ = strings.Cut(s, "/")
	return region, zone, subZone
}

// fill is a node's locality, or if it has none an endpoint's zone, completed by what is said
// of the member.
func (m *member) fill(node, zone string) string {
	region, nodeZone, subZone := splitLocality(node)
	if region == "" {
		region = m.Locality.Region
	}
	if nodeZone != "" {
		zone = nodeZone
	}
	if node == "" && zone == "" {
		zone, subZone = m.Locality.Zone, m.Locality.SubZone
	} else if zone == "" {
		zone = m.Locality.Zone
	}
	return joinLocality(region, zone, subZone)
}

// place is where endpoints are: a node, a zone, or both.
type place struct{ node, zone string }

// places are the places of a member's endpoints, so that each endpoint needs but a number.
type places struct {
	number map[place]uint32
	all    []placeState
	free   []uint32
}

type placeState struct {
	place
	locality  unique.Handle[string]
	endpoints int
}

func newPlaces() places { return places{number: map[place]uint32{}} }

func (p *places) of(number uint32) unique.Handle[string] { return p.all[number].locality }

// take counts an endpoint in a place.
func (m *member) take(at place) uint32 {
	p := &m.places
	number, known := p.number[at]
	if !known {
		at = place{strings.Clone(at.node), strings.Clone(at.zone)}
		state := placeState{place: at, locality: m.localityOf(at)}
		if last := len(p.free) - 1; last >= 0 {
			number, p.free = p.free[last], p.free[:last]
			p.all[number] = state
		} else {
			number = uint32(len(p.all))
			p.all = append(p.all, state)
		}
		p.number[at] = number
	}
	p.all[number].endpoints++
	return number
}

// release takes back what take has counted.
func (m *member) release(number uint32) {
	p := &m.places
	state := &p.all[number]
	if state.endpoints--; state.endpoints == 0 {
		delete(p.number, state.place)
		*state = placeState{}
		p.free = append(p.free, number)
	}
}

func (m *member) localityOf(at place) unique.Handle[string] {
	node := ""
	if at.node != "" {
		node = value(m.nodes[at.node])
	}
	return unique.Make(m.fill(node, at.zone))
}

// relocate works out anew where all places are, and says which are elsewhere than they were.
func (m *member) relocate() map[uint32]bool {
	var moved map[uint32]bool
	for i := range m.places.all {
		state := &m.places.all[i]
		if state.endpoints == 0 {
			continue
		}
		if now := m.localityOf(state.place); now != state.locality {
			if moved == nil {
				moved = map[uint32]bool{}
			}
			state.locality, moved[uint32(i)] = now, true
		}
	}
	return moved
}

// endpoint is one record of a slice.
type endpoint struct {
	address    string // of 4 or 16 bytes
	place      uint32
	ready, pod bool
}

func (e endpoint) tally() tally {
	if e.ready {
		return tally{1, 1}
	}
	return tally{1, 0}
}

const (
	readyBit = 1 << 31
	podBit   = 1 << 30
)

func appendEndpoint(b []byte, address []byte, place uint32, ready, pod bool) []byte {
	if ready {
		place |= readyBit
	}
	if pod {
		place |= podBit
	}
	return binary.BigEndian.AppendUint32(append(b, address...), place)
}

// each visits the records of a slice.
func (s *slice) each(visit func(endpoint)) {
	size := 4
	if s.v6 {
		size = 16
	}
	for data := s.data; len(data) > 0; data = data[size+4:] {
		bits := uint32(data[size])<<24 | uint32(data[size+1])<<16 | uint32(data[size+2])<<8 | uint32(data[size+3])
		visit(endpoint{data[:size], bits &^ (readyBit | podBit), bits&readyBit != 0, bits&podBit != 0})
	}
}

// each visits the endpoints of a service, each once: one may be in two slices for a while, and where there are
// addresses of both families the same endpoints are in slices of each.
func (p *presence) each(visit func(endpoint)) {
	if len(p.slices) == 1 {
		p.slices[0].each(visit)
		return
	}
	v4 := slices.ContainsFunc(p.slices, func(s *slice) bool { return !s.v6 && len(s.data) > 0 })
	var seen map[string]struct{}
	for _, s := range p.slices {
		if s.v6 && v4 || len(s.data) == 0 {
			continue
		}
		if seen == nil {
			seen = map[string]struct{}{}
		}
		s.each(func(e endpoint) {
			if _, twice := seen[e.address]; !twice {
				seen[e.address] = struct{}{}
				visit(e)
			}
		})
	}
}

// recount counts the endpoints of a service anew.
func (p *presence) recount() {
	var total tally
	p.each(func(e endpoint) { total = total.plus(e.tally()) })
	if p.known {
		p.member.total = p.member.total.plus(total).minus(p.total)
	}
	p.total = total
}

// What is read of objects, before it is stored.
type (
	readService struct {
		namespace, name  string
		shape            shape
		labels, external string
		created          int64
	}
	readSlice struct {
		namespace, name, service string
		v6                       bool
		endpoints                []readEndpoint
	}
	readEndpoint struct {
		address    netip.Addr
		at         place
		ready, pod bool
	}
	readNode struct{ name, locality string }
)

// compact is what matters of an object, nil if it does not concern anybody.
func compact(obj any) any {
	switch o := obj.(type) {
	case *corev1.Service:
		return compactService(o)
	case *discoveryv1.EndpointSlice:
		if s := compactSlice(o); s != nil {
			return s
		}
		return nil
	case *metav1.PartialObjectMetadata:
		return &readNode{o.Name, joinLocality(
			first(o.Labels, corev1.LabelTopologyRegion, corev1.LabelFailureDomainBetaRegion),
			first(o.Labels, corev1.LabelTopologyZone, corev1.LabelFailureDomainBetaZone),
			o.Labels[subZoneLabel])}
	}
	return obj // it is compact already
}

// subZoneLabel is Istio's label of nodes for what is below the zone.
const subZoneLabel = "topology.istio.io/subzone"

func first(labels map[string]string, keys ...string) string {
	for _, k := range keys {
		if v := labels[k]; v != "" {
			return v
		}
	}
	return ""
}

func compactService(o *corev1.Service) *readService {
	var external []string
	for _, in := range o.Status.LoadBalancer.Ingress {
		if in.IP != "" {
			external = append(external, in.IP)
		} else if in.Hostname != "" {
			external = append(external, in.Hostname)
		}
	}
	if o.Spec.Type != corev1.ServiceTypeLoadBalancer || len(external) == 0 {
		external = o.Spec.ExternalIPs
	}
	s := &readService{
		namespace: o.Namespace, name: o.Name, labels: encodeLabels(o.Labels), external: strings.Join(external, " "),
		shape: shape{
			kind: string(o.Spec.Type), headless: o.Spec.ClusterIP == corev1.ClusterIPNone, ports: encodePorts(o.Spec.Ports),
			distribution: o.Spec.TrafficDistribution != nil || o.Annotations[distributionAnnotation] != "",
		},
	}
	if !o.CreationTimestamp.IsZero() {
		s.created = o.CreationTimestamp.Unix()
	}
	return s
}

// distributionAnnotation is Istio's for what the field trafficDistribution says.
const distributionAnnotation = "networking.istio.io/traffic-distribution"

// multiClusterService labels slices that bring endpoints of other clusters.
const multiClusterService = "multicluster.kubernetes.io/service-name"

// compactSlice is nil for a slice of which Istio makes no endpoints.
func compactSlice(o *discoveryv1.EndpointSlice) *readSlice {
	service := o.Labels[discoveryv1.LabelServiceName]
	if _, imported := o.Labels[multiClusterService]; service == "" || imported || o.AddressType == discoveryv1.AddressTypeFQDN {
		return nil
	}
	s := &readSlice{namespace: o.Namespace, name: o.Name, service: service, v6: o.AddressType == discoveryv1.AddressTypeIPv6}
	if len(o.Ports) == 0 {
		return s
	}
	for i := range o.Endpoints {
		e := &o.Endpoints[i]
		read := readEndpoint{ready: e.Conditions.Ready == nil || *e.Conditions.Ready, pod: e.TargetRef != nil && e.TargetRef.Kind == "Pod"}
		if e.NodeName != nil {
			read.at.node = *e.NodeName
		}
		if e.Zone != nil {
			read.at.zone = *e.Zone
		}
		for _, a := range e.Addresses {
			address, err := netip.ParseAddr(a)
			if err != nil || address.Is6() != s.v6 {
				continue // a real API accepts none such
			}
			read.address = address
			s.endpoints = append(s.endpoints, read)
		}
	}
	return s
}

// setService stores a service.
func (v *View) setService(m *member, s *readService) {
	p := m.presence(s.namespace, s.name)
	made, labels, external := unique.Make(s.shape), unique.Make(s.labels), unique.Handle[string]{}
	if s.external != "" {
		external = unique.Make(s.external)
	}
	same := p.known && p.shape == made && p.labels == labels && p.external == external && p.created == s.created
	p.shape, p.labels, p.external, p.created = made, labels, external, s.created
	switch {
	case !p.known:
		v.enter(p)
	case !same:
		v.touch(p)
	}
}

// presence is that of a service in the member, made if need be.
func (m *member) presence(namespace, name string) *presence {
	k := makeKey(namespace, name)
	p := m.services[k]
	if p == nil {
		p = &presence{member: m, key: k}
		m.services[k] = p
	}
	return p
}

// forgetIfUnused drops what neither a service nor a slice stands behind.
func (m *member) forgetIfUnused(p *presence) {
	if !p.known && len(p.slices) == 0 {
		delete(m.services, p.key)
	}
}

func (v *View) removeService(m *member, namespace, name string) {
	if p := m.services[makeKey(namespace, name)]; p != nil {
		v.leave(p)
		m.forgetIfUnused(p)
	}
}

// setSlice stores a slice.
func (v *View) setSlice(m *member, r *readSlice) {
	name := r.namespace + "/" + r.name
	s := m.slices[name]
	if s != nil && s.of.key != makeKey(r.namespace, r.service) {
		v.removeSlice(m, name)
		s = nil
	}
	size := 8
	if r.v6 {
		size = 20
	}
	data := make([]byte, 0, size*len(r.endpoints))
	for _, e := range r.endpoints {
		data = appendEndpoint(data, e.address.AsSlice(), m.take(e.at), e.ready, e.pod)
	}
	if s == nil {
		p := m.presence(r.namespace, r.service)
		s = &slice{of: p, name: name, v6: r.v6}
		m.slices[name] = s
		p.slices = append(p.slices, s)
	}
	old := *s
	s.v6 = r.v6
	same := s.data == string(data) && old.v6 == r.v6
	if !same {
		s.data = string(data)
	}
	old.each(func(e endpoint) { m.release(e.place) })
	if !same {
		v.recount(s.of)
	}
}

func (v *View) removeSlice(m *member, name string) {
	s := m.slices[name]
	if s == nil {
		return
	}
	delete(m.slices, name)
	s.of.slices = slices.DeleteFunc(s.of.slices, func(other *slice) bool { return other == s })
	v.recount(s.of)
	s.each(func(e endpoint) { m.release(e.place) })
	m.forgetIfUnused(s.of)
}

// recount takes note that a service's endpoints have changed.
func (v *View) recount(p *presence) {
	p.recount()
	v.touch(p)
	p.member.mesh.overlaps.generation.Add(1)
}

// setNodes stores nodes; with all, others are gone.
func (v *View) setNodes(m *member, nodes []*readNode, all bool) {
	changed := false
	var present map[string]bool
	if all {
		present = make(map[string]bool, len(nodes))
	}
	for _, n := range nodes {
		if all {
			present[n.name] = true
		}
		locality := unique.Make(n.locality)
		if was, known := m.nodes[n.name]; !known || was != locality {
			m.nodes[n.name], changed = locality, true
		}
	}
	if all {
		for name := range m.nodes {
			if !present[name] {
				delete(m.nodes, name)
				changed = true
			}
		}
	}
	if changed {
		v.relocate(m)
	}
}

func (v *View) removeNode(m *member, name string) {
	if _, known := m.nodes[name]; known {
		delete(m.nodes, name)
		v.relocate(m)
	}
}

// relocate takes note that endpoints are elsewhere than they were.
func (v *View) relocate(m *member) {
	moved := m.relocate()
	if len(moved) == 0 {
		return
	}
	for _, p := range m.services {
		elsewhere := false
		p.each(func(e endpoint) { elsewhere = elsewhere || moved[e.place] })
		if elsewhere {
			v.touch(p)
		}
	}
}

// replace stores all that there is of a kind.
func (v *View) replace(m *member, kind int, items []any) {
	switch kind {
	case kindServices:
		present := make(map[key]bool, len(items))
		for _, item := range items {
			s := item.(*readService)
			present[makeKey(s.namespace, s.name)] = true
			v.setService(m, s)
		}
		for k, p := range m.services {
			if p.known && !present[k] {
				v.leave(p)
				m.forgetIfUnused(p)
			}
		}
	case kindSlices:
		present := make(map[string]bool, len(items))
		for _, item := range items {
			if s := item.(*readSlice); s != nil {
				present[s.namespace+"/"+s.name] = true
				v.setSlice(m, s)
			}
		}
		for name := range m.slices {
			if !present[name] {
				v.removeSlice(m, name)
			}
		}
	case kindNodes:
		nodes := make([]*readNode, len(items))
		for i, item := range items {
			nodes[i] = item.(*readNode)
		}
		v.setNodes(m, nodes, true)
	}
	m.read[kind] = true
}

// set stores one object.
func (v *View) set(m *member, item any) {
	switch o := item.(type) {
	case *readService:
		v.setService(m, o)
	case *readSlice:
		v.setSlice(m, o)
	case *readNode:
		v.setNodes(m, []*readNode{o}, false)
	}
}

// remove takes note that an object is gone.
func (v *View) remove(m *member, kind int, namespace, name string) {
	switch kind {
	case kindServices:
		v.removeService(m, namespace, name)
	case kindSlices:
		v.removeSlice(m, namespace+"/"+name)
	case kindNodes:
		v.removeNode(m, name)
	}
}
