package snapshot

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// model is all that was observed and what follows from it. It is one goroutine's.
//
// The unit of ownership is a space: one namespace of one virtual cluster. It
// contributes to a mesh as a whole or not at all.
type model struct {
	kinds      []Kind
	settled    bool // every source was read; before, nothing contributes
	index      *ownership.Index
	clusters   map[string]*cluster
	namespaces map[string][]*space // spaces that hold something, by namespace
	meshes     map[string]*mesh
	members    map[string]int // how many virtual clusters name a mesh, existing or not
	affected   map[*space]struct{}
	labels     *clusterLabels // of the virtual clusters
	seen       Seen
	epochs     uint64 // how often a mesh began to have stages
}

type cluster struct {
	name   string
	mesh   string // empty when there is no such virtual cluster
	spaces map[string]*space
}

type space struct {
	cluster   *cluster
	namespace string
	mesh      *mesh // to which it contributes
	kinds     []spaceKind
}

type spaceKind struct {
	kind    int
	objects map[string]*object.Object
}

type mesh struct {
	name        string
	lists       []*List
	pending     []map[string]pending // by kind, by key
	quarantined []map[string]v1alpha1.QuarantinedResource
	members     int
	policy      *Policy
	read        meshSource // what policy was made of
	known       bool       // it was read at least once
	changed     bool       // something besides the lists is to be published
}

// pending is what is to become of one key of a list.
type pending struct {
	removed bool           // what the list has is gone
	object  *object.Object // what takes its place
}

func newModel(kinds []Kind) *model {
	return &model{
		kinds:      kinds,
		index:      ownership.New(),
		clusters:   map[string]*cluster{},
		namespaces: map[string][]*space{},
		meshes:     map[string]*mesh{},
		members:    map[string]int{},
		affected:   map[*space]struct{}{},
		labels:     &clusterLabels{},
		seen:       newSeen(len(kinds)),
	}
}

func key(namespace, name string) string { return namespace + "/" + name }

func (m *model) cluster(name string) *cluster {
	c := m.clusters[name]
	if c == nil {
		c = &cluster{name: name, spaces: map[string]*space{}}
		m.clusters[name] = c
	}
	return c
}

func (m *model) forgetIfUnused(c *cluster) {
	if c.mesh == "" && len(c.spaces) == 0 {
		delete(m.clusters, c.name)
	}
}

// setObject takes in an object that is new or has changed.
func (m *model) setObject(kind int, o *object.Object) {
	c := m.cluster(o.Cluster())
	s := c.spaces[o.Namespace]
	if s == nil {
		s = &space{cluster: c, namespace: o.Namespace}
		c.spaces[o.Namespace] = s
		m.namespaces[o.Namespace] = append(m.namespaces[o.Namespace], s)
		m.affected[s] = struct{}{}
	}
	objects := s.objects(kind)
	if objects == nil {
		objects = map[string]*object.Object{}
		s.kinds = append(s.kinds, spaceKind{kind, objects})
	}
	old := objects[o.Name]
	objects[o.Name] = o
	if s.mesh != nil && (old == nil || !sameToReader(old, o)) {
		s.mesh.set(kind, key(o.Namespace, o.Name), o)
	}
}

// removeObject takes note that an object is gone.
func (m *model) removeObject(kind int, clusterName, namespace, name string) {
	c := m.clusters[clusterName]
	if c == nil {
		return
	}
	s := c.spaces[namespace]
	if s == nil {
		return
	}
	objects := s.objects(kind)
	if _, held := objects[name]; !held {
		return
	}
	delete(objects, name)
	if s.mesh != nil {
		s.mesh.remove(kind, key(namespace, name))
	}
	if len(objects) > 0 {
		return
	}
	s.kinds = slices.DeleteFunc(s.kinds, func(k spaceKind) bool { return k.kind == kind })
	if len(s.kinds) > 0 {
		return
	}
	delete(c.spaces, namespace)
	delete(m.affected, s)
	rest := slices.DeleteFunc(m.namespaces[namespace], func(other *space) bool { return other == s })
	if len(rest) == 0 {
		delete(m.namespaces, namespace)
	} else {
		m.namespaces[namespace] = rest
	}
	m.forgetIfUnused(c)
}

// replaceObjects takes in all objects of a kind: those not among them are gone.
func (m *model) replaceObjects(kind int, items []*object.Object) {
	type id struct{ cluster, namespace, name string }
	present := make(map[id]struct{}, len(items))
	for _, o := range items {
		present[id{o.Cluster(), o.Namespace, o.Name}] = struct{}{}
	}
	var gone []id
	for _, spaces := range m.namespaces {
		for _, s := range spaces {
			for name := range s.objects(kind) {
				id := id{s.cluster.name, s.namespace, name}
				if _, ok := present[id]; !ok {
					gone = append(gone, id)
				}
			}
		}
	}
	for _, id := range gone {
		m.removeObject(kind, id.cluster, id.namespace, id.name)
	}
	for _, o := range items {
		m.setObject(kind, o)
	}
}

func (s *space) objects(kind int) map[string]*object.Object {
	for _, k := range s.kinds {
		if k.kind == kind {
			return k.objects
		}
	}
	return nil
}

// setVirtualCluster takes in what a virtual cluster claims. One that cannot be read
// keeps what it claimed before.
func (m *model) setVirtualCluster(o *object.Object) error {
	if reason, is := o.Annotations[QuarantinedAnnotation]; is {
		return fmt.Errorf("virtual cluster %s cannot be read: %s", o.Name, reason)
	}
	m.label(o.Name, o.Labels, true)
	vc := v1alpha1.VirtualCluster{ObjectMeta: o.ObjectMeta}
	if spec := o.Field("spec"); spec != nil {
		if err := json.Unmarshal(spec, &vc.Spec); err != nil {
			return fmt.Errorf("reading virtual cluster %s: %w", o.Name, err)
		}
	}
	claims := ownership.ClaimsOf(&vc)
	old, had := m.index.Claims(claims.Cluster)
	if had && old.Mesh == claims.Mesh && old.Created.Equal(claims.Created) && slices.Equal(old.Namespaces, claims.Namespaces) {
		return nil
	}
	m.index = m.index.With(claims)
	m.claim(old, claims)
	return nil
}

func (m *model) removeVirtualCluster(name string) {
	m.label(name, nil, false)
	if old, had := m.index.Claims(name); had {
		m.index = m.index.Without(name)
		m.claim(old, ownership.Claims{Cluster: name})
	}
}

// claim notes which spaces may have won or lost their place by a change of claims.
func (m *model) claim(old, claims ownership.Claims) {
	c := m.cluster(claims.Cluster)
	if c.mesh != claims.Mesh {
		m.join(c.mesh, -1)
		m.join(claims.Mesh, 1)
		c.mesh = claims.Mesh
	}
	for _, s := range c.spaces {
		m.affected[s] = struct{}{}
	}
	same := old.Mesh == claims.Mesh && old.Created.Equal(claims.Created)
	for _, p := range old.Namespaces {
		if !same || !slices.Contains(claims.Namespaces, p) {
			m.affect(old.Mesh, p)
		}
	}
	for _, p := range claims.Namespaces {
		if !same || !slices.Contains(old.Namespaces, p) {
			m.affect(claims.Mesh, p)
		}
	}
	m.forgetIfUnused(c)
}

func (m *model) join(name string, by int) {
	if name == "" {
		return
	}
	if m.members[name] += by; m.members[name] == 0 {
		delete(m.members, name)
	}
	if mesh := m.meshes[name]; mesh != nil {
		mesh.members, mesh.changed = m.members[name], true
	}
}

// affect notes the spaces of a mesh that a pattern names.
func (m *model) affect(mesh string, p v1alpha1.NamespacePattern) {
	if !strings.HasSuffix(string(p), "*") {
		m.affectNamespace(mesh, string(p))
		return
	}
	for namespace := range m.namespaces {
		if p.Matches(namespace) {
			m.affectNamespace(mesh, namespace)
		}
	}
}

func (m *model) affectNamespace(mesh, namespace string) {
	for _, s := range m.namespaces[namespace] {
		if s.cluster.mesh == mesh {
			m.affected[s] = struct{}{}
		}
	}
}

func (m *model) replaceVirtualClusters(items []*object.Object) []error {
	var errs []error
	present := make(map[string]struct{}, len(items))
	for _, o := range items {
		present[o.Name] = struct{}{}
	}
	for name, c := range m.clusters {
		if _, ok := present[name]; !ok && c.mesh != "" {
			m.removeVirtualCluster(name)
		}
	}
	for _, o := range items {
		if err := m.setVirtualCluster(o); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// setMesh takes in a mesh that is new or has changed. One that cannot be read keeps what it
// said before.
func (m *model) setMesh(o *object.Object) error {
	m.addMesh(o.Name)
	return m.readPolicy(m.meshes[o.Name], o)
}

// addMesh takes note that there is a mesh.
func (m *model) addMesh(name string) {
	if m.meshes[name] != nil {
		return
	}
	n := len(m.kinds)
	mesh := &mesh{
		name:        name,
		lists:       slices.Repeat([]*List{Empty}, n),
		pending:     make([]map[string]pending, n),
		quarantined: make([]map[string]v1alpha1.QuarantinedResource, n),
		members:     m.members[name],
		changed:     true,
	}
	m.meshes[name] = mesh
	m.affectMesh(name)
}

// removeMesh takes note that a mesh is gone. Its lists are not emptied: they end.
func (m *model) removeMesh(name string) {
	mesh := m.meshes[name]
	if mesh == nil {
		return
	}
	delete(m.meshes, name)
	for _, spaces := range m.namespaces {
		for _, s := range spaces {
			if s.mesh == mesh {
				s.mesh = nil
			}
		}
	}
	m.affectMesh(name) // it may come back before anybody looks
}

func (m *model) affectMesh(name string) {
	for _, c := range m.clusters {
		if c.mesh == name {
			for _, s := range c.spaces {
				m.affected[s] = struct{}{}
			}
		}
	}
}

func (m *model) replaceMeshes(items []*object.Object) []error {
	var errs []error
	present := make(map[string]struct{}, len(items))
	for _, o := range items {
		present[o.Name] = struct{}{}
	}
	for _, name := range slices.Collect(maps.Keys(m.meshes)) {
		if _, ok := present[name]; !ok {
			m.removeMesh(name)
		}
	}
	for _, o := range items {
		if err := m.setMesh(o); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// settle decides anew which of the affected spaces contribute to which mesh.
func (m *model) settle() {
	if !m.settled {
		return
	}
	for s := range m.affected {
		if m.target(s) == s.mesh {
			delete(m.affected, s)
		} else if s.mesh != nil {
			s.each(func(kind int, o *object.Object) { s.mesh.remove(kind, key(o.Namespace, o.Name)) })
		}
	}
	// What moves from one space to another leaves the one before it enters the other.
	for s := range m.affected {
		if s.mesh = m.target(s); s.mesh != nil {
			s.each(func(kind int, o *object.Object) { s.mesh.set(kind, key(o.Namespace, o.Name), o) })
		}
	}
	clear(m.affected)
}

// target is the mesh that a space is to contribute to.
func (m *model) target(s *space) *mesh {
	mesh := m.meshes[s.cluster.mesh]
	if mesh == nil {
		return nil
	}
	if owner, owned := m.index.Owner(mesh.name, s.namespace); !owned || owner != s.cluster.name {
		return nil
	}
	return mesh
}

func (s *space) each(visit func(kind int, o *object.Object)) {
	for _, k := range s.kinds {
		for _, o := range k.objects {
			visit(k.kind, o)
		}
	}
}

func (m *mesh) set(kind int, key string, o *object.Object) {
	if m.pending[kind] == nil {
		m.pending[kind] = map[string]pending{}
	}
	p := m.pending[kind][key]
	p.object = o
	m.pending[kind][key] = p
}

func (m *mesh) remove(kind int, key string) {
	if m.pending[kind] == nil {
		m.pending[kind] = map[string]pending{}
	}
	m.pending[kind][key] = pending{removed: true}
}

// advance renders what is pending into new lists and says whether the mesh has to
// be published anew.
func (m *mesh) advance(kinds []Kind, observed time.Time, count func(kind, rendered int)) bool {
	changed := m.changed
	m.changed = false
	for kind, todo := range m.pending {
		if len(todo) == 0 {
			continue
		}
		m.pending[kind] = nil
		changes, failures, rendered := renderAll(&kinds[kind], todo)
		count(kind, rendered)
		if m.quarantine(kind, todo, failures) {
			changed = true
		}
		if next := m.lists[kind].apply(changes, observed); next != m.lists[kind] {
			m.lists[kind], changed = next, true
		}
	}
	return changed
}

// quarantine notes which objects failed and which of those that did no longer do.
func (m *mesh) quarantine(kind int, todo map[string]pending, failures map[string]v1alpha1.QuarantinedResource) (changed bool) {
	for key := range m.quarantined[kind] {
		if _, failed := failures[key]; failed {
			continue
		}
		if _, touched := todo[key]; touched {
			delete(m.quarantined[kind], key)
			changed = true
		}
	}
	for key, failure := range failures {
		if m.quarantined[kind][key] == failure {
			continue
		}
		if m.quarantined[kind] == nil {
			m.quarantined[kind] = map[string]v1alpha1.QuarantinedResource{}
		}
		m.quarantined[kind][key] = failure
		changed = true
	}
	return changed
}

func (m *mesh) snapshot() *Snapshot {
	s := &Snapshot{Mesh: m.name, Lists: slices.Clone(m.lists), Policy: m.policy, VirtualClusters: m.members}
	s.seal()
	for _, failures := range m.quarantined {
		s.Quarantined = slices.AppendSeq(s.Quarantined, maps.Values(failures))
	}
	slices.SortFunc(s.Quarantined, func(a, b v1alpha1.QuarantinedResource) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return s
}
