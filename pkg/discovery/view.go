// Package discovery knows the services of all member clusters: it reads them, holds what
// matters of them in a small form, and tells what each mesh has when all its members are taken together.
package discovery

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unique"

	"k8s.io/apimachinery/pkg/types"

	"github.com/vmesh-io/vmesh/pkg/members"
)

// View is what all members have. It follows those that it is told of, and reads their
// APIs while Run runs. All its methods may be called at any time, by anybody.
type View struct {
	metrics *Metrics
	now     func() time.Time

	mu      sync.RWMutex
	members map[string]*member
	meshes  map[string]*mesh
	first   uint64        // the version of a view that nothing has happened to
	version uint64        // of the last change
	changed chan struct{} // closed by the next change; nil while nobody waits
	reading func(*run)    // begins to read a member; nil unless Run runs
}

var (
	_ members.Follower = (*View)(nil)
	_ members.Reader   = (*View)(nil)
	_ members.Gateways = (*View)(nil)
)

// Versions count changes, from the time of the start, so that those of a later process
// are greater. Their low bits are the process's own: what another one has counted, as one that runs
// at the same time, is not taken for this one's.
const (
	processBits = 15
	nextVersion = 1 << processBits
	processMask = nextVersion - 1
)

// New makes a view of no members. metrics may be nil.
func New(metrics *Metrics) *View {
	var process [2]byte
	_, _ = rand.Read(process[:]) // never fails
	first := uint64(time.Now().UnixMicro()/10)<<processBits | uint64(binary.BigEndian.Uint16(process[:])&processMask)
	return &View{
		metrics: metrics, now: time.Now, members: map[string]*member{}, meshes: map[string]*mesh{}, first: first, version: first,
	}
}

// mesh is what the members of a mesh have.
type mesh struct {
	name     string
	services map[key]*service
	// All services, and the last of those that are gone, in the order in which they changed last.
	oldest, newest *service
	gone           int    // how many are gone
	horizon        uint64 // what was gone before is forgotten
	members        map[string]*member
	overlaps       overlaps
}

// remembered is how many services of a mesh that are gone are remembered.
const remembered = 1024

// key is a namespace and a name, and those of services are interned.
type key struct{ namespace, name unique.Handle[string] }

func makeKey(namespace, name string) key { return key{unique.Make(namespace), unique.Make(name)} }

// service is a service of a mesh.
type service struct {
	key
	version, born uint64
	gone          bool
	older, newer  *service
	in            []*presence // where it is, in the order of the members' names
}

// presence is a service, or slices for one, in one member.
type presence struct {
	member   *member
	key      key
	shape    unique.Handle[shape]
	labels   unique.Handle[string] // as encodeLabels
	external unique.Handle[string] // addresses by which it is reached from outside, separated by spaces
	created  int64                 // in seconds; 0 if it does not say
	slices   []*slice
	total    tally
	known    bool // there is such a service
}

// shape is what services have in common that are set up alike.
type shape struct {
	kind         string
	headless     bool
	distribution bool   // says itself how endpoints are chosen (trafficDistribution)
	ports        string // as encodePorts
}

type tally struct{ endpoints, ready int32 }

func (t tally) plus(o tally) tally  { return tally{t.endpoints + o.endpoints, t.ready + o.ready} }
func (t tally) minus(o tally) tally { return tally{t.endpoints - o.endpoints, t.ready - o.ready} }

// slice is an EndpointSlice: the endpoints' records in a row, as appendEndpoint makes them.
type slice struct {
	of   *presence
	name string
	v6   bool
	data string
}

// member is what one member has.
type member struct {
	members.Member
	mesh     *mesh // nil for one that has never been read
	run      *run  // what reads it now
	services map[key]*presence
	slices   map[string]*slice // by namespace/name
	nodes    map[string]unique.Handle[string]
	places   places
	read     [kinds]bool
	trouble  [kinds]string
	known    int // services
	total    tally
}

// The kinds that are read.
const (
	kindServices = iota
	kindSlices
	kindNodes
	kinds
)

var kindNames = [kinds]string{"services", "endpointslices", "nodes"}

// Changed implements members.Follower.
func (v *View) Changed(m members.Member) {
	v.mu.Lock()
	defer v.mu.Unlock()
	had := v.members[m.Name]
	if had != nil && (had.UID != m.UID || had.Mesh != m.Mesh) {
		v.forget(had)
		had = nil
	}
	if had == nil {
		at := v.mesh(m.Mesh)
		had = &member{
			Member: m, mesh: at, services: map[key]*presence{}, slices: map[string]*slice{}, nodes: map[string]unique.Handle[string]{}, places: newPlaces(),
		}
		v.members[m.Name], at.members[m.Name] = had, had
		v.read(had)
		return
	}
	before := had.Member
	had.Member = m
	if before.Locality != m.Locality {
		had.relocate()
	}
	if before.Locality != m.Locality || before.Network != m.Network || shown(&before) != shown(&m) || before.Drained != m.Drained || !before.AwaySince.Equal(m.AwaySince) {
		for _, p := range had.services {
			v.touch(p)
		}
	}
	if before.Network != m.Network {
		had.mesh.overlaps.generation.Add(1)
	}
	if before.Config != m.Config {
		v.read(had)
	}
}

// shown says whether services of a member belong to the mesh.
func shown(m *members.Member) bool { return m.Discovered }

// Gone implements members.Follower.
func (v *View) Gone(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if m := v.members[name]; m != nil {
		v.forget(m)
	}
}

func (v *View) mesh(name string) *mesh {
	m := v.meshes[name]
	if m == nil {
		m = &mesh{name: name, services: map[key]*service{}, members: map[string]*member{}, horizon: v.version}
		v.meshes[name] = m
	}
	return m
}

// forget drops all that a member has.
func (v *View) forget(m *member) {
	if m.run != nil {
		m.run.cancel()
		m.run = nil
	}
	for _, p := range m.services {
		v.leave(p)
	}
	delete(v.members, m.Name)
	delete(m.mesh.members, m.Name)
	m.mesh.overlaps.generation.Add(1)
	v.metrics.forget(m.Name)
	// The mesh stays, for those who follow it: there are as many as there have been meshes.
}

// read begins to read a member anew, by its present access. What was read stays until the
// new lists are there.
func (v *View) read(m *member) {
	if m.run != nil {
		m.run.cancel()
		m.run = nil
	}
	if v.reading == nil || m.Config == nil {
		return
	}
	m.run = &run{view: v, name: m.Name, config: m.Config}
	v.reading(m.run)
}

// Run reads all members until ctx ends, and then returns when nothing is read any more.
func (v *View) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	v.mu.Lock()
	v.reading = func(r *run) {
		var running context.Context
		running, r.cancel = context.WithCancel(ctx)
		wg.Go(func() { r.read(running) })
	}
	for _, m := range v.members {
		v.read(m)
	}
	v.mu.Unlock()
	<-ctx.Done()
	v.mu.Lock()
	v.reading = nil
	v.mu.Unlock()
	wg.Wait()
	return nil
}

// touch takes note that a service has changed.
func (v *View) touch(p *presence) {
	if p.known {
		m := p.member.mesh
		v.bump(m, m.services[p.key])
	}
}

// bump makes a service the newest of its mesh.
func (v *View) bump(m *mesh, s *service) {
	v.version += nextVersion
	m.unlink(s)
	s.version = v.version
	s.older = m.newest
	if m.newest != nil {
		m.newest.newer = s
	} else {
		m.oldest = s
	}
	m.newest = s
	if v.changed != nil {
		close(v.changed)
		v.changed = nil
	}
}

// unlink takes a service out of the order of changes.
func (m *mesh) unlink(s *service) {
	if s.older != nil {
		s.older.newer = s.newer
	} else if m.oldest == s {
		m.oldest = s.newer
	}
	if s.newer != nil {
		s.newer.older = s.older
	} else if m.newest == s {
		m.newest = s.older
	}
	s.older, s.newer = nil, nil
}

// enter takes note that a member has a service, which it had not.
func (v *View) enter(p *presence) {
	m := p.member.mesh
	s := m.services[p.key]
	if s == nil {
		s = &service{key: p.key}
		m.services[p.key] = s
	}
	at, _ := slices.BinarySearchFunc(s.in, p.member.Name, func(p *presence, name string) int { return strings.Compare(p.member.Name, name) })
	s.in = slices.Insert(s.in, at, p)
	v.bump(m, s)
	if len(s.in) == 1 {
		if s.gone {
			m.gone--
			s.gone = false
		}
		s.born = s.version
	}
	p.known = true
	p.member.known++
	p.member.total = p.member.total.plus(p.total)
}

// leave takes note that a member has a service no more.
func (v *View) leave(p *presence) {
	if !p.known {
		return
	}
	p.known = false
	p.member.known--
	p.member.total = p.member.total.minus(p.total)
	m := p.member.mesh
	s := m.services[p.key]
	s.in = slices.DeleteFunc(s.in, func(other *presence) bool { return other == p })
	v.bump(m, s)
	if len(s.in) > 0 {
		return
	}
	s.in, s.gone = nil, true
	m.gone++
	for at := m.oldest; m.gone > remembered && at != nil; {
		next := at.newer
		if at.gone {
			m.unlink(at)
			delete(m.services, at.key)
			m.horizon, m.gone = at.version, m.gone-1
		}
		at = next
	}
}

// Reading implements members.Reader.
func (v *View) Reading(name string) members.Reading {
	v.mu.RLock()
	m := v.members[name]
	if m == nil {
		v.mu.RUnlock()
		return members.Reading{}
	}
	r := members.Reading{
		Synced: m.synced(), Services: m.known, Endpoints: int(m.total.endpoints), ReadyEndpoints: int(m.total.ready), Nodes: len(m.nodes),
	}
	for kind, trouble := range m.trouble {
		if trouble != "" && r.Trouble == "" {
			r.Trouble = kindNames[kind] + ": " + trouble
		}
	}
	localities := map[string]struct{}{}
	for _, at := range m.nodes {
		if region, zone, _ := splitLocality(m.fill(at.Value(), "")); region != "" || zone != "" {
			localities[joinLocality(region, zone, "")] = struct{}{}
		}
	}
	v.mu.RUnlock()
	r.Localities = slices.Sorted(maps.Keys(localities))
	r.Overlaps = v.overlapsOf(name)
	return r
}

// OnlyIn implements members.Reader.
func (v *View) OnlyIn(name string, most int) (services int, first []string) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	m := v.members[name]
	if m == nil || !shown(&m.Member) {
		return 0, nil
	}
	for key, p := range m.services {
		if !p.known || p.total.ready == 0 || slices.ContainsFunc(m.mesh.services[key].in, func(other *presence) bool {
			at := other.member
			return at != m && other.total.ready > 0 && shown(&at.Member) && !at.Drained && at.AwaySince.IsZero()
		}) {
			continue
		}
		services++
		name := key.namespace.Value() + "/" + key.name.Value()
		if at, _ := slices.BinarySearch(first, name); at < most {
			first = slices.Insert(first, at, name)
			first = first[:min(len(first), most)]
		}
	}
	return services, first
}

func (m *member) synced() bool { return !slices.Contains(m.read[:], false) }

// Addresses implements members.Gateways.
func (v *View) Addresses(member, namespace, name string) (addresses []members.Address, found bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	m := v.members[member]
	if m == nil {
		return nil, false
	}
	p := m.services[makeKey(namespace, name)]
	if p == nil || !p.known {
		return nil, false
	}
	var ports []int32
	for _, port := range decodePorts(p.shape.Value().ports) {
		ports = append(ports, port.Port)
	}
	for _, host := range strings.Fields(value(p.external)) {
		addresses = append(addresses, members.Address{Host: host, Ports: ports})
	}
	return addresses, true
}

// value is that of a handle, empty for none.
func value(h unique.Handle[string]) string {
	if h == (unique.Handle[string]{}) {
		return ""
	}
	return h.Value()
}

// Service is a service of a mesh as it was at one moment.
type Service struct {
	Namespace, Name string
	// Version is that of its last change, and Born that of its first.
	Version, Born uint64
	// Created is when the oldest of its clusters' was made; zero if none says so.
	Created time.Time
	// Labels are those that it has in all clusters.
	Labels map[string]string
	// Clusters are the members that have it, in the order of their names.
	Clusters []Cluster
	// Distribution says whether it says itself, in some cluster, how endpoints are chosen.
	Distribution bool
}

// Cluster is a service in one member.
type Cluster struct {
	Member    string
	Network   string
	Drained   bool
	AwaySince time.Time
	Type      string
	Headless  bool
	Ports     []Port
	// How many endpoints there are, and how many of them are ready.
	Endpoints, Ready int32
	// Localities are where they are, sorted.
	Localities []Locality
}

// Locality is how many endpoints are in a locality, REGION/ZONE/SUBZONE as far as it is known.
type Locality struct {
	Name             string
	Endpoints, Ready int32
}

// Key names a service.
type Key = types.NamespacedName

// Get is a service of a mesh, if any member has it.
func (v *View) Get(mesh, namespace, name string) (Service, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	m := v.meshes[mesh]
	if m == nil {
		return Service{}, false
	}
	return v.make(m.services[makeKey(namespace, name)])
}

// Has says whether a member has a service that belongs to the mesh.
func (v *View) Has(mesh, namespace, name string) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	m := v.meshes[mesh]
	if m == nil {
		return false
	}
	s := m.services[makeKey(namespace, name)]
	return s != nil && slices.ContainsFunc(s.in, func(p *presence) bool { return shown(&p.member.Member) })
}

// List are the services of a mesh in those namespaces that are asked for, sorted, and the version of
// all that is in the list.
func (v *View) List(mesh string, asked func(namespace string) bool) (all []Service, version uint64) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if m := v.meshes[mesh]; m != nil {
		namespaces := map[unique.Handle[string]]bool{}
		for key, s := range m.services {
			is, known := namespaces[key.namespace]
			if !known {
				is = asked(key.namespace.Value())
				namespaces[key.namespace] = is
			}
			if !is {
				continue
			}
			if made, ok := v.make(s); ok {
				all = append(all, made)
			}
		}
	}
	slices.SortFunc(all, func(a, b Service) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return all, v.version
}

// Change is a service that has changed.
type Change struct {
	Key
	// Version is that of its last change, and Born that since which it is there, or was.
	Version, Born uint64
}

// knows says whether a version is one of this view's, and all can be told that came after.
func (v *View) knows(mesh string, version uint64) bool {
	if version&processMask != v.first&processMask || version < v.first || version > v.version {
		return false
	}
	m := v.meshes[mesh]
	return m == nil || version >= m.horizon
}

// Changes are the services of a mesh that have changed since a version, each once and in the order of
// their last changes, the version of all that, and what is closed when more changes. ok is false if it is
// not known any more what has changed.
func (v *View) Changes(mesh string, since uint64) (changes []Change, version uint64, more <-chan struct{}, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.knows(mesh, since) {
		return nil, 0, nil, false
	}
	if m := v.meshes[mesh]; m != nil {
		for s := m.newest; s != nil && s.version > since; s = s.older {
			changes = append(changes, Change{Key{Namespace: s.namespace.Value(), Name: s.name.Value()}, s.version, s.born})
		}
	}
	slices.Reverse(changes)
	if v.changed == nil {
		v.changed = make(chan struct{})
	}
	return changes, v.version, v.changed, true
}

// Touch tells that something else than the members' services has changed of some services of a
// mesh, or of all.
func (v *View) Touch(mesh string, some []Key, all bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	m := v.meshes[mesh]
	if m == nil {
		return
	}
	if all {
		for _, s := range m.services {
			if !s.gone {
				v.bump(m, s)
			}
		}
		return
	}
	for _, k := range some {
		if s := m.services[makeKey(k.Namespace, k.Name)]; s != nil && !s.gone {
			v.bump(m, s)
		}
	}
}

// MemberState is what those who read services should know of a member.
type MemberState struct {
	Name      string
	Drained   bool
	AwaySince time.Time
	// Synced says whether all its services have been read.
	Synced bool
}

// Members are those of a mesh whose services belong to it, sorted.
func (v *View) Members(mesh string) []MemberState {
	v.mu.RLock()
	defer v.mu.RUnlock()
	m := v.meshes[mesh]
	if m == nil {
		return nil
	}
	var all []MemberState
	for _, name := range slices.Sorted(maps.Keys(m.members)) {
		if at := m.members[name]; shown(&at.Member) {
			all = append(all, MemberState{Name: name, Drained: at.Drained, AwaySince: at.AwaySince, Synced: at.synced()})
		}
	}
	return all
}

// make is a service as others read it; not ok if no member has it that belongs to the mesh.
func (v *View) make(s *service) (Service, bool) {
	if s == nil || s.gone {
		return Service{}, false
	}
	out := Service{Namespace: s.namespace.Value(), Name: s.name.Value(), Version: s.version, Born: s.born}
	var created int64
	var encoded []unique.Handle[string]
	for _, p := range s.in {
		if !shown(&p.member.Member) {
			continue
		}
		if p.created != 0 && (created == 0 || p.created < created) {
			created = p.created
		}
		if !slices.Contains(encoded, p.labels) {
			encoded = append(encoded, p.labels)
		}
		set := p.shape.Value()
		out.Distribution = out.Distribution || set.distribution
		c := Cluster{
			Member: p.member.Name, Network: p.member.Network, Drained: p.member.Drained, AwaySince: p.member.AwaySince,
			Type: set.kind, Headless: set.headless, Ports: decodePorts(set.ports), Endpoints: p.total.endpoints, Ready: p.total.ready,
		}
		at := map[string]tally{}
		p.each(func(record endpoint) {
			name := value(p.member.places.of(record.place))
			at[name] = at[name].plus(record.tally())
		})
		for _, name := range slices.Sorted(maps.Keys(at)) {
			c.Localities = append(c.Localities, Locality{name, at[name].endpoints, at[name].ready})
		}
		out.Clusters = append(out.Clusters, c)
	}
	if len(out.Clusters) == 0 {
		return Service{}, false
	}
	if created != 0 {
		out.Created = time.Unix(created, 0).UTC()
	}
	out.Labels = commonLabels(encoded)
	return out, true
}
