// Package rbac decides by Roles, ClusterRoles and their bindings, with the meaning that
// they have in Kubernetes. It keeps the objects of all virtual clusters in a compiled
// form, which it is told by the storage; what every virtual cluster has in common, the
// default roles, it has once and nobody stores it.
package rbac

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// ErrNotReady is the reason for which nothing can be decided yet.
var ErrNotReady = errors.New("roles and bindings are still being read from the storage: try again in a moment")

// Index holds what decides in each virtual cluster. Decisions take no lock and none of
// them is remembered. Its observers are its only writers.
type Index struct {
	defaults *defaults
	sets     ruleSets
	clusters sync.Map // name to *policy; a virtual cluster without any of the objects has none

	observers map[schema.GroupResource]*observer

	mu  sync.Mutex   // held while a policy is made from an earlier one
	fed atomic.Int32 // bits of the sources that have given their state
}

// source is one of the resources that feed the index.
type source int32

const (
	roles source = 1 << iota
	clusterRoles
	roleBindings
	clusterRoleBindings
	access
)

// allSources is the bits of all of them.
const allSources = roles | clusterRoles | roleBindings | clusterRoleBindings | access

// NewIndex makes an index that is not ready: see Observers.
func NewIndex() *Index {
	x := &Index{}
	x.defaults = newDefaults(&x.sets)
	group := func(resource string) schema.GroupResource {
		return schema.GroupResource{Group: rbacv1.GroupName, Resource: resource}
	}
	x.observers = map[schema.GroupResource]*observer{
		group("roles"):               {Index: x, source: roles},
		group("clusterroles"):        {Index: x, source: clusterRoles},
		group("rolebindings"):        {Index: x, source: roleBindings},
		group("clusterrolebindings"): {Index: x, source: clusterRoleBindings},
		{Group: v1alpha1.GroupVersion.Group, Resource: "virtualclusters"}: {Index: x, source: access},
	}
	return x
}

// Observers are what has to be told the state of each resource before anything is decided.
func (x *Index) Observers() map[schema.GroupResource]logical.Observer {
	all := map[schema.GroupResource]logical.Observer{}
	for gr, o := range x.observers {
		all[gr] = o
	}
	return all
}

// Ready is ErrNotReady until all observers have been told the state.
func (x *Index) Ready() error {
	if x.fed.Load() != int32(allSources) {
		return ErrNotReady
	}
	return nil
}

// nothing is the policy of a virtual cluster without objects.
var nothing = &policy{}

func (x *Index) policy(cluster string) *policy {
	if p, ok := x.clusters.Load(cluster); ok {
		return p.(*policy)
	}
	return nothing
}

// Await waits until the index knows a resource as of a revision, or ctx is done.
func (x *Index) Await(ctx context.Context, gr schema.GroupResource, revision uint64) {
	known, ok := x.observers[gr]
	if !ok {
		return
	}
	select {
	case <-known.at(revision):
	case <-ctx.Done():
	}
}

// observer feeds the index from one resource.
type observer struct {
	*Index
	source source

	heard    sync.Mutex
	revision uint64
	waiting  []waiter
}

// waiter waits for a revision.
type waiter struct {
	revision uint64
	reached  chan struct{}
}

// at returns a channel that is closed once a revision is known.
func (o *observer) at(revision uint64) <-chan struct{} {
	o.heard.Lock()
	defer o.heard.Unlock()
	reached := make(chan struct{})
	if o.revision >= revision {
		close(reached)
	} else {
		o.waiting = append(o.waiting, waiter{revision, reached})
	}
	return reached
}

// knows wakes those who wait for a revision.
func (o *observer) knows(revision uint64) {
	o.heard.Lock()
	defer o.heard.Unlock()
	o.revision = max(o.revision, revision)
	o.waiting = slices.DeleteFunc(o.waiting, func(w waiter) bool {
		if w.revision > o.revision {
			return false
		}
		close(w.reached)
		return true
	})
}

// Replaced implements logical.Observer.
func (o *observer) Replaced(items []*object.Object, revision uint64) {
	defer o.knows(revision)
	byCluster := map[string][]*object.Object{}
	for _, item := range items {
		cluster := o.clusterOf(item)
		byCluster[cluster] = append(byCluster[cluster], item)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.clusters.Range(func(cluster, _ any) bool {
		if byCluster[cluster.(string)] == nil {
			byCluster[cluster.(string)] = []*object.Object{}
		}
		return true
	})
	for cluster, items := range byCluster {
		p := o.without(o.policy(cluster), nil)
		for _, item := range items {
			o.add(p, item)
		}
		o.sort(p)
		o.set(cluster, p)
	}
	o.fed.Or(int32(o.source))
}

// Changed implements logical.Observer.
func (o *observer) Changed(t watch.EventType, item *object.Object, revision uint64) {
	defer o.knows(revision)
	o.mu.Lock()
	defer o.mu.Unlock()
	cluster := o.clusterOf(item)
	p := o.without(o.policy(cluster), item)
	if t != watch.Deleted {
		o.add(p, item)
		o.sort(p)
	}
	o.set(cluster, p)
}

// Progressed implements logical.Observer.
func (o *observer) Progressed(revision uint64) { o.knows(revision) }

// clusterOf is the virtual cluster that an object decides in.
func (o *observer) clusterOf(item *object.Object) string {
	if o.source == access {
		return item.Name
	}
	return item.Cluster()
}

// without copies a policy, but for one object of the observer's resource, or for all of
// them. What is copied has room for one more.
func (o *observer) without(from *policy, item *object.Object) *policy {
	p := &policy{roles: from.roles, bindings: from.bindings, grants: from.grants, aggregated: from.aggregated}
	// gone says of an object with the resource's scope whether it is left out.
	gone := func(namespace, name name, clusterScoped bool) bool {
		if clusterScoped != (namespace.Value() == "") {
			return false
		}
		return item == nil || name.Value() == item.Name && namespace.Value() == item.Namespace
	}
	switch o.source {
	case roles, clusterRoles:
		p.roles = make([]role, 0, len(from.roles)+1)
		for _, r := range from.roles {
			if !gone(r.namespace, r.name, o.source == clusterRoles) {
				p.roles = append(p.roles, r)
			}
		}
	case roleBindings, clusterRoleBindings:
		p.bindings = make([]binding, 0, len(from.bindings)+1)
		for _, b := range from.bindings {
			if !gone(b.namespace, b.name, o.source == clusterRoleBindings) {
				p.bindings = append(p.bindings, b)
			}
		}
	case access:
		p.grants = nil
	}
	return p
}

// set replaces the policy of a virtual cluster. It is called with mu held.
func (o *observer) set(cluster string, p *policy) {
	if p.empty() {
		o.clusters.Delete(cluster)
		return
	}
	if o.source == clusterRoles {
		p.aggregate(o.defaults)
	}
	o.clusters.Store(cluster, p)
}

func (o *observer) sort(p *policy) {
	switch o.source {
	case roles, clusterRoles:
		slices.SortFunc(p.roles, compareRoles)
		p.roles = exact(p.roles)
	case roleBindings, clusterRoleBindings:
		slices.SortFunc(p.bindings, compareBindings)
		p.bindings = exact(p.bindings)
	}
}

// exact gives back the room that a slice does not use: there are many, and they stay.
func exact[T any](s []T) []T {
	if cap(s) == len(s) {
		return s
	}
	return append(make([]T, 0, len(s)), s...)
}

// add compiles an object into a policy. One that cannot be read allows nothing, and is
// reported; the others of its virtual cluster are not affected.
func (o *observer) add(p *policy, item *object.Object) {
	if err := o.compile(p, item); err != nil {
		klog.ErrorS(err, "An object cannot be read and allows nothing", "virtualCluster", o.clusterOf(item),
			"kind", item.Kind, "namespace", item.Namespace, "name", item.Name)
	}
}

func (o *observer) compile(p *policy, item *object.Object) error {
	reason, quarantined := logical.Quarantined(item)
	switch o.source {
	case roles, clusterRoles:
		r := role{namespace: nameOf(item.Namespace), name: nameOf(item.Name)}
		err := error(nil)
		if quarantined {
			err = errors.New(reason)
		} else {
			err = o.compileRole(&r, item)
		}
		// It is kept all the same: a name that stands for nothing else, for a default role least of all.
		p.roles = append(p.roles, r)
		return err
	case roleBindings, clusterRoleBindings:
		b := binding{namespace: nameOf(item.Namespace), name: nameOf(item.Name)}
		err := error(nil)
		if quarantined {
			err = errors.New(reason)
		} else {
			err = b.compile(item)
		}
		p.bindings = append(p.bindings, b) // without subjects if it cannot be read
		return err
	default:
		if quarantined {
			return errors.New(reason)
		}
		return p.compileAccess(item)
	}
}

func (x *Index) compileRole(r *role, item *object.Object) error {
	var aggregation *rbacv1.AggregationRule
	if data := item.Field("aggregationRule"); len(data) > 0 {
		if err := json.Unmarshal(data, &aggregation); err != nil {
			return fmt.Errorf("aggregationRule: %w", err)
		}
	}
	rules, err := x.sets.of(item.Field("rules"))
	if err != nil {
		return err
	}
	if aggregation != nil {
		for i := range aggregation.ClusterRoleSelectors {
			selector, err := metav1.LabelSelectorAsSelector(&aggregation.ClusterRoleSelectors[i])
			if err != nil {
				return fmt.Errorf("aggregationRule.clusterRoleSelectors[%d]: %w", i, err)
			}
			r.selectors = append(r.selectors, selector)
		}
	}
	r.rules[0] = rules
	if item.Namespace == "" {
		r.labels = labelsOf(item.Labels)
	}
	return nil
}

func (b *binding) compile(item *object.Object) error {
	var ref rbacv1.RoleRef
	if err := json.Unmarshal(item.Field("roleRef"), &ref); err != nil {
		return fmt.Errorf("roleRef: %w", err)
	}
	var subjects []rbacv1.Subject
	if data := item.Field("subjects"); len(data) > 0 {
		if err := json.Unmarshal(data, &subjects); err != nil {
			return fmt.Errorf("subjects: %w", err)
		}
	}
	b.role, b.roleKind = nameOf(ref.Name), roleKindOf(ref.Kind)
	b.subjects = subjectsOf(subjects, item.Namespace)
	return nil
}

func (p *policy) compileAccess(item *object.Object) error {
	var spec struct {
		Access []v1alpha1.VirtualClusterAccess `json:"access"`
	}
	if data := item.Field("spec"); len(data) > 0 {
		if err := json.Unmarshal(data, &spec); err != nil {
			return fmt.Errorf("spec.access: %w", err)
		}
	}
	for _, a := range spec.Access {
		g := grant{role: nameOf(a.Role)}
		for _, s := range a.Subjects {
			g.subjects = append(g.subjects, subjectsOf([]rbacv1.Subject{{Kind: string(s.Kind), Name: s.Name}}, "")...)
		}
		p.grants = append(p.grants, g)
	}
	return nil
}
