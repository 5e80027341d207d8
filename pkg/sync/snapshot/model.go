package snapshot

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/policy"
)

// model is all that was observed and what follows from it. It is one goroutine's.
//
// The unit of ownership is a space: one namespace of one virtual cluster. It
// contributes to a mesh or it does not; what it contributes is asked of each object, and
// again when it may have become another for the whole virtual cluster.
type model struct {
	kinds      []Kind
	settled    bool // every source was read; before, nothing contributes
	index      *ownership.Index
	clusters   map[string]*cluster
	namespaces map[string][]*space // spaces that hold something, by namespace
	meshes     map[string]*mesh
	members    map[string]int // how many virtual clusters name a mesh, existing or not
	affected   map[*space]struct{}
	// dirty are virtual clusters that may not do any more what they could, or may now.
	dirty    map[*cluster]struct{}
	retell   bool           // who owns what has changed
	labels   *clusterLabels // of the virtual clusters
	seen     Seen
	epochs   uint64 // how often a mesh began to have stages
	followed bool   // whether touched is wanted
	touched  []touched
	placed   bool // the follower was told of all there was

	scopeKind int                 // the kind by which scopes are told, -1 for none
	scoped    map[string]*scoped  // by virtual cluster; of those that have a scope
	rescope   map[string]struct{} // virtual clusters whose scope may be another
}

type cluster struct {
	name       string
	mesh       string   // empty when there is no such virtual cluster
	namespaces []string // its Namespaces, sorted
	spaces     map[string]*space
}

type space struct {
	cluster   *cluster
	namespace string
	mesh      *mesh  // to which it contributes
	denied    *mesh  // to which it does not, and all it holds is told to be held back
	owner     string // who owns the namespace there
	kinds     []spaceKind
}

type spaceKind struct {
	kind    int
	objects map[string]*object.Object
}

type mesh struct {
	name        string
	root        string // its root namespace
	lists       []*List
	pending     []map[string]pending // by kind, by key
	quarantined []map[string]v1alpha1.QuarantinedResource
	good        []map[string]*object.Object // of what is quarantined, what the list has
	contests    []contest                   // by kind
	held        held
	inPart      held      // what is in without some of its hosts; for no virtual cluster, as a place is one's
	turned      []touched // of what held or inPart tells something new since the follower was told
	members     int
	policy      *Policy
	read        meshSource // what policy was made of
	known       bool       // it was read at least once
	changed     bool       // something besides the lists is to be published
	scopes      scopes
	failover    failover
}

// pending is what is to become of one key of a list.
type pending struct {
	removed  bool           // what the list has is gone
	object   *object.Object // what takes its place
	previous *object.Object // what the list has was made of, unless it is gone; nil if that is the same
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
		dirty:      map[*cluster]struct{}{},
		labels:     &clusterLabels{},
		seen:       newSeen(len(kinds)),
		scopeKind:  slices.IndexFunc(kinds, func(k Kind) bool { return k.Name == scopeKind }),
		scoped:     map[string]*scoped{},
		rescope:    map[string]struct{}{},
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
	if c.mesh == "" && len(c.spaces) == 0 && len(c.namespaces) == 0 {
		delete(m.clusters, c.name)
		delete(m.dirty, c)
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
	m.touch(kind, o, false)
	switch {
	case s.mesh != nil && (old == nil || !sameToReader(old, o)):
		s.mesh.set(kind, key(o.Namespace, o.Name), o, old)
	case s.denied != nil && old == nil:
		m.deny(s, kind, o)
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
	last, held := objects[name]
	if !held {
		return
	}
	delete(objects, name)
	m.touch(kind, last, true)
	if s.mesh != nil {
		s.mesh.remove(kind, key(namespace, name))
		s.mesh.release(clusterName, m.kinds[kind].Name, namespace, name)
	}
	if s.denied != nil {
		s.denied.release(clusterName, m.kinds[kind].Name, namespace, name)
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
	if had && old.Same(claims) {
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

// claim notes which spaces may have won or lost their place by a change of claims, and
// which virtual clusters may do something else.
func (m *model) claim(old, claims ownership.Claims) {
	c := m.cluster(claims.Cluster)
	m.dirty[c], m.retell = struct{}{}, true
	m.noteScope(claims.Cluster)
	for name := range m.index.Concerned(old, claims) {
		m.noteScope(name)
		if other := m.clusters[name]; other != nil {
			m.dirty[other] = struct{}{}
		}
	}
	if c.mesh != claims.Mesh {
		m.join(c.mesh, -1)
		m.join(claims.Mesh, 1)
		c.mesh = claims.Mesh
	}
	for _, s := range c.spaces {
		m.affected[s] = struct{}{}
	}
	for _, p := range old.Namespaces {
		if !old.SameClaim(p, claims) {
			m.affect(old.Mesh, p)
		}
	}
	for _, p := range claims.Namespaces {
		if !claims.SameClaim(p, old) {
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
	m.addMesh(o)
	mesh := m.meshes[o.Name]
	return errors.Join(m.readPolicy(mesh, o), m.readLocality(mesh, o))
}

// addMesh takes note that there is a mesh, and which its root namespace is.
func (m *model) addMesh(o *object.Object) {
	root, readable := rootNamespace(o)
	if mesh := m.meshes[o.Name]; mesh != nil {
		if !readable || mesh.root == root {
			return
		}
		mesh.root = root
		for _, c := range m.clusters {
			if c.mesh == o.Name {
				m.dirty[c] = struct{}{}
				m.noteScope(c.name)
			}
		}
		return
	}
	name := o.Name
	n := len(m.kinds)
	mesh := &mesh{
		name:        name,
		root:        root,
		lists:       slices.Repeat([]*List{Empty}, n),
		pending:     make([]map[string]pending, n),
		quarantined: make([]map[string]v1alpha1.QuarantinedResource, n),
		good:        make([]map[string]*object.Object, n),
		contests:    make([]contest, n),
		members:     m.members[name],
		changed:     true,
		scopes:      scopes{kind: m.scopeKind},
		failover:    failover{kind: slices.IndexFunc(m.kinds, func(k Kind) bool { return k.Name == failoverKind })},
	}
	m.meshes[name] = mesh
	m.affectMesh(name)
}

// defaultRoot is the root namespace of meshes that name none.
const defaultRoot = "istio-system"

// rootNamespace is a mesh's, and whether that can be told.
func rootNamespace(o *object.Object) (root string, readable bool) {
	var spec v1alpha1.MeshSpec
	if data := o.Field("spec"); data != nil {
		readable = json.Unmarshal(data, &spec) == nil
	}
	if _, is := o.Annotations[QuarantinedAnnotation]; is {
		readable = false
	}
	return cmp.Or(spec.RootNamespace, defaultRoot), readable
}

// setNamespace takes note that a virtual cluster has a namespace, or has it no more.
func (m *model) setNamespace(clusterName, name string, exists bool) {
	c := m.clusters[clusterName]
	if c == nil {
		if !exists {
			return
		}
		c = m.cluster(clusterName)
	}
	at, has := slices.BinarySearch(c.namespaces, name)
	if has == exists {
		return
	}
	m.noteScope(clusterName)
	// What has been handed out is not changed.
	old := c.namespaces
	if exists {
		c.namespaces = slices.Insert(slices.Clip(slices.Clone(old)), at, name)
	} else {
		c.namespaces = slices.Delete(slices.Clone(old), at, at+1)
	}
	if _, is := m.dirty[c]; !is && len(c.spaces) > 0 &&
		!rightsOf(m.index, clusterName, "", old).exports.Equal(rightsOf(m.index, clusterName, "", c.namespaces).exports) {
		m.dirty[c] = struct{}{}
	}
	m.forgetIfUnused(c)
}

func (m *model) replaceNamespaces(items []*object.Object) {
	present := map[string]map[string]struct{}{}
	for _, o := range items {
		of := present[o.Cluster()]
		if of == nil {
			of = map[string]struct{}{}
			present[o.Cluster()] = of
		}
		of[o.Name] = struct{}{}
	}
	for _, c := range slices.Collect(maps.Values(m.clusters)) {
		for _, name := range c.namespaces {
			if _, ok := present[c.name][name]; !ok {
				m.setNamespace(c.name, name, false)
			}
		}
	}
	for _, o := range items {
		m.setNamespace(o.Cluster(), o.Name, true)
	}
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
				m.touchSpace(s)
			}
			if s.denied == mesh {
				s.denied = nil
			}
		}
	}
	m.affectMesh(name) // it may come back before anybody looks
}

func (m *model) affectMesh(name string) {
	for _, c := range m.clusters {
		if c.mesh == name {
			m.noteScope(c.name)
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

// settle decides anew which of the affected spaces contribute to which mesh, and has what
// dirty virtual clusters hold asked about again.
func (m *model) settle() {
	if !m.settled {
		return
	}
	for s := range m.affected {
		to, denied, owner := m.target(s)
		if to == s.mesh && denied == s.denied && owner == s.owner {
			delete(m.affected, s)
			continue
		}
		for _, left := range []*mesh{s.mesh, s.denied} {
			if left == nil {
				continue
			}
			s.each(func(kind int, o *object.Object) {
				if left == s.mesh {
					left.remove(kind, key(o.Namespace, o.Name))
				}
				left.release(s.cluster.name, m.kinds[kind].Name, o.Namespace, o.Name)
			})
		}
	}
	// What moves from one space to another leaves the one before it enters the other.
	for s := range m.affected {
		m.touchSpace(s)
		s.mesh, s.denied, s.owner = m.target(s)
		s.each(func(kind int, o *object.Object) {
			switch {
			case s.mesh != nil:
				s.mesh.set(kind, key(o.Namespace, o.Name), o, nil)
			case s.denied != nil:
				m.deny(s, kind, o)
			}
		})
	}
	clear(m.affected)
	for c := range m.dirty {
		for _, s := range c.spaces {
			if s.mesh != nil {
				s.each(func(kind int, o *object.Object) { s.mesh.set(kind, key(o.Namespace, o.Name), o, nil) })
			}
		}
	}
	clear(m.dirty)
	m.settleScopes()
	// Why something is held back names the owner, who may be another now.
	if m.retell {
		m.retell = false
		for _, mesh := range m.meshes {
			m.askHeld(mesh)
		}
	}
}

// askHeld has those objects asked about again that are held back in spaces that contribute.
func (m *model) askHeld(mesh *mesh) {
	if mesh.held.tree == nil {
		return
	}
	mesh.held.tree.Ascend(func(h Held) bool {
		c := m.clusters[h.VirtualCluster]
		if c == nil {
			return true
		}
		s := c.spaces[h.Namespace]
		if s == nil || s.mesh != mesh {
			return true
		}
		kind := slices.IndexFunc(m.kinds, func(k Kind) bool { return k.Name == h.Kind })
		if o := s.objects(kind)[h.Name]; o != nil {
			mesh.set(kind, key(h.Namespace, h.Name), o, nil)
		}
		return true
	})
}

// target is the mesh that a space is to contribute to, or else the one that it is kept
// from; neither, if its virtual cluster claims no namespaces.
func (m *model) target(s *space) (to, denied *mesh, owner string) {
	mesh := m.meshes[s.cluster.mesh]
	if mesh == nil {
		return nil, nil, ""
	}
	owner, owned := m.index.Owner(mesh.name, s.namespace)
	if owned && owner == s.cluster.name {
		return mesh, nil, owner
	}
	if claims, _ := m.index.Claims(s.cluster.name); len(claims.Namespaces) > 0 {
		return nil, mesh, owner
	}
	return nil, nil, ""
}

// deny tells that an object of a space that does not contribute is held back.
func (m *model) deny(s *space, kind int, o *object.Object) {
	s.denied.hold(o, m.kinds[kind].Name, ReasonNotOwner, notOwner(s.denied.name, s.namespace, s.owner))
}

func (s *space) each(visit func(kind int, o *object.Object)) {
	for _, k := range s.kinds {
		for _, o := range k.objects {
			visit(k.kind, o)
		}
	}
}

// set has an object asked about and rendered. old is what it was before, if it is another.
func (m *mesh) set(kind int, key string, o, old *object.Object) {
	if m.pending[kind] == nil {
		m.pending[kind] = map[string]pending{}
	}
	p := m.pending[kind][key]
	if p.object == nil && !p.removed && old != nil {
		if _, failed := m.quarantined[kind][key]; !failed {
			p.previous = old
		}
	}
	p.object = o
	m.pending[kind][key] = p
}

func (m *mesh) remove(kind int, key string) {
	if m.pending[kind] == nil {
		m.pending[kind] = map[string]pending{}
	}
	m.pending[kind][key] = pending{removed: true}
}

func (m *mesh) hold(o *object.Object, kind, reason, message string) (changed bool) {
	h := heldKey(o.Cluster(), kind, o.Namespace, o.Name)
	h.Reason, h.Message = reason, shorten(message)
	changed = m.held.add(h)
	m.changed = m.changed || changed
	return changed
}

func (m *mesh) release(cluster, kind, namespace, name string) (changed bool) {
	changed = m.held.remove(cluster, kind, namespace, name)
	m.changed = m.changed || changed
	return changed
}

// rights are what a virtual cluster may do, as long as nothing changes.
type rights struct {
	view    *ownership.View
	exports *policy.Exports
}

func rightsOf(x *ownership.Index, cluster, root string, namespaces []string) rights {
	view := x.View(cluster, root)
	return rights{view: view, exports: policy.NewExports(view, namespaces)}
}

// rightsIn remembers the rights of a mesh's virtual clusters.
func (m *model) rightsIn(mesh *mesh) func(cluster string) rights {
	known := map[string]rights{}
	return func(cluster string) rights {
		r, ok := known[cluster]
		if !ok {
			var existing []string
			if c := m.clusters[cluster]; c != nil {
				existing = c.namespaces
			}
			r = rightsOf(m.index, cluster, mesh.root, existing)
			known[cluster] = r
		}
		return r
	}
}

// advance renders what is pending into new lists and says whether the mesh has to
// be published anew.
func (m *mesh) advance(kinds []Kind, observed time.Time, rights func(cluster string) rights, count func(kind, rendered int)) bool {
	for kind, todo := range m.pending {
		if len(todo) == 0 {
			continue
		}
		m.pending[kind] = nil
		m.scopes.note(kind, todo)
		m.failover.note(kind, todo)
		for key, p := range todo {
			if p.removed || p.object == nil {
				delete(m.good[kind], key)
			} else if good := m.good[kind][key]; good != nil {
				p.previous = good
				todo[key] = p
			}
		}
		results := renderAll(&kinds[kind], todo, rights)
		m.contend(kind, &kinds[kind], todo, &results, rights)
		count(kind, results.rendered)
		for o, v := range results.held {
			if m.hold(o, kinds[kind].Name, v.Reason, v.Field+": "+v.Message) {
				m.turned = append(m.turned, touched{kind: kind, object: o})
			}
		}
		for _, o := range results.free {
			if !m.contests[kind].out(key(o.Namespace, o.Name)) && m.release(o.Cluster(), kinds[kind].Name, o.Namespace, o.Name) {
				m.turned = append(m.turned, touched{kind: kind, object: o})
			}
		}
		for key := range todo {
			if good := results.good[key]; good == nil {
				delete(m.good[kind], key)
			} else {
				if m.good[kind] == nil {
					m.good[kind] = map[string]*object.Object{}
				}
				m.good[kind][key] = good
			}
		}
		if m.quarantine(kind, todo, results.failures) {
			m.changed = true
		}
		if next := m.lists[kind].apply(results.changes, observed); next != m.lists[kind] {
			m.lists[kind], m.changed = next, true
		}
	}
	m.placeScopes(kinds, observed, count)
	m.placeFailover(kinds, observed, count)
	changed := m.changed
	m.changed = false
	return changed
}

// contend decides who of those that speak for the same hosts is in the mesh, and adds what
// follows for others than those who were rendered.
func (m *mesh) contend(kind int, of *Kind, todo map[string]pending, r *results, rights func(cluster string) rights) {
	c := &m.contests[kind]
	again := map[string]pending{}
	for key := range todo {
		if _, kept := r.kept[key]; kept {
			continue
		}
		if said := r.said[key]; c.out(key) && said.object != todo[key].object && said.object != nil {
			again[key] = pending{object: said.object} // the list has not even its last good form
		}
		c.set(key, r.said[key].object, r.said[key].shared)
	}
	gone := map[string]struct{}{}
	told := map[string]struct{}{}
	c.decide(func(s *speaker, wasOut bool) {
		v, some := s.taken()
		if m.tellInPart(kind, of.Name, s.key, s.object, v, some && !s.out); some {
			told[s.key] = struct{}{}
		}
		switch {
		case s.out:
			if r.held == nil {
				r.held = map[*object.Object]policy.Violation{}
			}
			r.held[s.object] = v
			gone[s.key] = struct{}{}
		case wasOut:
			again[s.key] = pending{object: s.object}
		}
	})
	if m.inPart.tree != nil {
		for key, p := range todo {
			_, is := told[key]
			if _, kept := r.kept[key]; !is && !kept {
				m.tellInPart(kind, of.Name, key, p.object, policy.Violation{}, false)
			}
		}
	}
	if len(gone) > 0 {
		for i := range r.changes {
			at := &r.changes[i]
			if _, is := gone[at.key]; is {
				at.entry = nil
				delete(gone, at.key)
			}
		}
		for key := range gone {
			r.changes = append(r.changes, change{key: key})
		}
	}
	maps.DeleteFunc(again, func(key string, _ pending) bool { return c.out(key) })
	if len(again) == 0 {
		return
	}
	late := renderAll(of, again, rights)
	r.rendered += late.rendered
	r.changes = append(r.changes, late.changes...)
	r.free = append(r.free, late.free...)
	for key, failure := range late.failures {
		if r.failures == nil {
			r.failures = map[string]v1alpha1.QuarantinedResource{}
		}
		r.failures[key] = failure
	}
}

// tellInPart notes whether an object is in the mesh without some of its hosts.
func (m *mesh) tellInPart(kind int, kindName, key string, o *object.Object, v policy.Violation, is bool) {
	namespace, name, _ := strings.Cut(key, "/")
	changed := false
	if is {
		h := heldKey("", kindName, namespace, name)
		h.Reason, h.Message = v.Reason, shorten(v.Field+": "+v.Message)
		changed = m.inPart.add(h)
	} else {
		changed = m.inPart.remove("", kindName, namespace, name)
	}
	if changed {
		m.changed = true
		if o != nil {
			m.turned = append(m.turned, touched{kind: kind, object: o})
		}
	}
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
	s := &Snapshot{Mesh: m.name, Lists: slices.Clone(m.lists), Policy: m.policy, VirtualClusters: m.members, HeldBack: m.held.publish(), InPart: m.inPart.publish(), Scopes: m.scopes.publish()}
	s.seal()
	for _, failures := range m.quarantined {
		s.Quarantined = slices.AppendSeq(s.Quarantined, maps.Values(failures))
	}
	slices.SortFunc(s.Quarantined, func(a, b v1alpha1.QuarantinedResource) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return s
}
