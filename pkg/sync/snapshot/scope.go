package snapshot

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

const (
	// ScopeName is the name of the Sidecars that tell scopes. No object can have it, so that
	// none is ever in their place or taken for them.
	ScopeName = "vmesh:scope"
	// MaxScoped is how many namespaces a virtual cluster with a scope may have that all see
	// each other: each of as many Sidecars names all of them.
	MaxScoped = 1000

	// scopeKind is the kind by which scopes are told, and the fields of its message that
	// say whom it is for: of istio.networking.v1alpha3.Sidecar and WorkloadSelector.
	scopeKind        = "Sidecar"
	workloadSelector = 1
	selectorLabels   = 1
)

// Scopes are what the sidecars of virtual clusters see. It never changes. A nil one is empty.
type Scopes struct{ of map[string]*Scope }

// NewScopes makes them of what they are by virtual cluster, which must not be modified after.
func NewScopes(of map[string]*Scope) *Scopes { return &Scopes{of} }

// Of is the scope of a virtual cluster, nil if it has none. It never changes.
func (s *Scopes) Of(cluster string) *Scope {
	if s == nil {
		return nil
	}
	return s.of[cluster]
}

// All are the scopes by virtual cluster. They must not be modified.
func (s *Scopes) All() map[string]*Scope {
	if s == nil {
		return nil
	}
	return s.of
}

// Scope is what the sidecars of a virtual cluster see.
type Scope struct {
	// Namespaces is how many have the Sidecar that tells it.
	Namespaces int
	// Hosts are what that one imports, sorted.
	Hosts []string
	// Replaced are the namespaces in which one of the virtual cluster's own stands for it,
	// sorted.
	Replaced []string
	// Message is why the Sidecars do not stand, or not as they should; empty if they do.
	Message string
}

// scoped is a virtual cluster that has a scope.
type scoped struct {
	cluster    string
	created    time.Time
	mesh       *mesh
	hosts      []string
	spec       []byte   // the message of all its Sidecars
	namespaces []string // that are to have them, sorted
	trouble    string
	replaced   map[string]struct{} // of namespaces
	told       *Scope              // nil when it is to be told anew
}

// scopes are those of a mesh.
type scopes struct {
	kind     int
	at       map[string]*scoped  // by namespace
	clusters map[string]*scoped  // by virtual cluster
	moved    map[string]struct{} // namespaces in which there may be something else now
	stale    bool                // what is told
	now      *Scopes             // as it was told last
}

// noteScope takes note that the scope of a virtual cluster, if it has one, may be another.
func (m *model) noteScope(cluster string) {
	if m.scopeKind < 0 {
		return
	}
	if claims, _ := m.index.Claims(cluster); claims.Scope != nil || m.scoped[cluster] != nil {
		m.rescope[cluster] = struct{}{}
	}
}

// settleScopes works out anew what the scopes are that may be others.
func (m *model) settleScopes() {
	for cluster := range m.rescope {
		old, now := m.scoped[cluster], m.scopeOf(cluster)
		if old != nil && now != nil && old.same(now) {
			old.place(now.namespaces)
			continue
		}
		if old != nil {
			old.place(nil)
			delete(old.mesh.scopes.clusters, cluster)
			delete(m.scoped, cluster)
		}
		if now == nil {
			continue
		}
		to := now.namespaces
		if now.namespaces = nil; now.trouble == "" {
			var err error
			if now.spec, err = m.kinds[m.scopeKind].AppendMessage(nil, sidecarOf(now.hosts)); err != nil {
				to, now.trouble = nil, "there are no Sidecars of vmesh, because they cannot be sent: "+shorten(err.Error())
			}
		}
		m.scoped[cluster] = now
		if now.mesh.scopes.clusters == nil {
			now.mesh.scopes.clusters, now.mesh.scopes.at, now.mesh.scopes.moved = map[string]*scoped{}, map[string]*scoped{}, map[string]struct{}{}
		}
		now.mesh.scopes.clusters[cluster] = now
		now.place(to)
	}
	clear(m.rescope)
}

// scopeOf is the scope of a virtual cluster but for its message, nil if it has none or its mesh
// is not there.
func (m *model) scopeOf(cluster string) *scoped {
	claims, _ := m.index.Claims(cluster)
	mesh := m.meshes[claims.Mesh]
	if claims.Scope == nil || mesh == nil {
		return nil
	}
	var existing []string
	if c := m.clusters[cluster]; c != nil {
		existing = c.namespaces
	}
	r := rightsOf(m.index, cluster, mesh.root, existing)
	own := r.exports.Own()
	s := &scoped{cluster: cluster, created: claims.Created, mesh: mesh, replaced: map[string]struct{}{}}
	// In the root namespace it would be the whole mesh's.
	s.namespaces = slices.DeleteFunc(slices.Clone(own), func(namespace string) bool { return namespace == mesh.root })
	if claims.Scope.Reach == v1alpha1.ReachNamespace {
		s.hosts = append(s.hosts, "./*")
	} else {
		if len(own) > MaxScoped {
			s.namespaces = nil
			s.trouble = fmt.Sprintf("there are no Sidecars of vmesh, because %d namespaces are too many to see each other: set spec.sidecarScope.reach to Namespace, or divide them into virtual clusters of at most %d", len(own), MaxScoped)
			return s
		}
		for _, namespace := range own {
			s.hosts = append(s.hosts, namespace+"/*")
		}
	}
	s.hosts = append(s.hosts, mesh.root+"/*")
	for _, host := range claims.Scope.Hosts {
		s.hosts = append(s.hosts, string(host))
	}
	for _, g := range r.view.Grants() {
		for _, host := range g.Hosts {
			namespace, service := v1alpha1.ServiceNamespace(string(host))
			if !service {
				namespace = "*"
			}
			s.hosts = append(s.hosts, namespace+"/"+string(host))
		}
	}
	slices.Sort(s.hosts)
	s.hosts = slices.Compact(s.hosts)
	return s
}

// sidecarOf is a Sidecar, without metadata, of which only the spec is read.
func sidecarOf(hosts []string) *object.Object {
	list := make([]any, len(hosts))
	for i, host := range hosts {
		list[i] = host
	}
	o := &object.Object{}
	if err := o.SetContent(map[string]any{"spec": map[string]any{"egress": []any{map[string]any{"hosts": list}}}}); err != nil {
		panic(err) // there is nothing in it that could not be JSON
	}
	return o
}

// same says whether two scopes differ at most by the namespaces that have them.
func (s *scoped) same(as *scoped) bool {
	return s.mesh == as.mesh && s.trouble == as.trouble && s.created.Equal(as.created) && slices.Equal(s.hosts, as.hosts)
}

// place says in which namespaces the scope is to be.
func (s *scoped) place(to []string) {
	in := &s.mesh.scopes
	for _, namespace := range s.namespaces {
		if _, stays := slices.BinarySearch(to, namespace); stays {
			continue
		}
		delete(s.replaced, namespace)
		if in.at[namespace] == s { // and not another virtual cluster's already
			delete(in.at, namespace)
			in.moved[namespace] = struct{}{}
		}
	}
	for _, namespace := range to {
		if in.at[namespace] != s {
			in.at[namespace] = s
			in.moved[namespace] = struct{}{}
		}
	}
	s.namespaces, s.told, in.stale = to, nil, true
}

// note takes note of what is about to change in the list of a kind: in its namespaces, what
// stands for a scope may have come or gone.
func (s *scopes) note(kind int, todo map[string]pending) {
	if kind != s.kind || len(s.at) == 0 {
		return
	}
	for key := range todo {
		namespace, _, _ := strings.Cut(key, "/")
		if s.at[namespace] != nil {
			s.moved[namespace] = struct{}{}
		}
	}
}

// placeScopes brings the list of Sidecars to what the scopes are, once it has all objects.
func (m *mesh) placeScopes(kinds []Kind, observed time.Time, count func(kind, rendered int)) {
	s := &m.scopes
	if len(s.moved) > 0 {
		list, rendered := m.lists[s.kind], 0
		changes := make([]change, 0, len(s.moved))
		for namespace := range s.moved {
			c := change{key: key(namespace, ScopeName)}
			if at := s.at[namespace]; at != nil && !s.replacedBy(at, namespace, ruled(list, namespace)) {
				r := render(at.object(namespace), c.key, typePrefix+kinds[s.kind].MessageName, at.spec)
				c.entry = &r
				rendered++
			}
			changes = append(changes, c)
		}
		clear(s.moved)
		count(s.kind, rendered)
		if next := list.apply(changes, observed); next != list {
			m.lists[s.kind], m.changed = next, true
		}
	}
	m.changed = m.changed || s.stale
}

// replacedBy takes note whether a Sidecar of the virtual cluster's own stands in a namespace.
func (s *scopes) replacedBy(at *scoped, namespace string, own bool) bool {
	if _, did := at.replaced[namespace]; did != own {
		if own {
			at.replaced[namespace] = struct{}{}
		} else {
			delete(at.replaced, namespace)
		}
		at.told, s.stale = nil, true
	}
	return own
}

// ruled says whether a namespace has a Sidecar for all its workloads, besides that of its
// scope. What counts is what control planes have: of an object that cannot be read its last
// good form, of one that is held back nothing.
func ruled(list *List, namespace string) bool {
	for e := range list.below(namespace) {
		if e.Name() == key(namespace, ScopeName) {
			continue
		}
		message := field(field(field(e.Resource(), anyValue), resourceBody), anyValue)
		if field(field(message, workloadSelector), selectorLabels) == nil {
			return true
		}
	}
	return false
}

// object is the Sidecar in a namespace, without its spec.
func (s *scoped) object(namespace string) *object.Object {
	o := &object.Object{}
	o.Namespace, o.Name = namespace, ScopeName
	o.CreationTimestamp = metav1.NewTime(s.created)
	o.Labels = map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}
	o.SetCluster(s.cluster)
	return o
}

// publish is what the scopes are now, the same as before if nothing has changed.
func (s *scopes) publish() *Scopes {
	if !s.stale {
		return s.now
	}
	s.stale, s.now = false, nil
	if len(s.clusters) > 0 {
		s.now = NewScopes(make(map[string]*Scope, len(s.clusters)))
	}
	for cluster, at := range s.clusters {
		if at.told == nil {
			at.told = &Scope{
				Namespaces: len(at.namespaces) - len(at.replaced), Hosts: at.hosts, Replaced: slices.Sorted(maps.Keys(at.replaced)), Message: at.trouble,
			}
		}
		s.now.of[cluster] = at.told
	}
	return s.now
}
