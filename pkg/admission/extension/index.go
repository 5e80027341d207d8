package extension

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	mutatingpolicy "k8s.io/apiserver/pkg/admission/plugin/policy/mutating"
	validatingpolicy "k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	mutatingwebhook "k8s.io/apiserver/pkg/admission/plugin/webhook/mutating"
	validatingwebhook "k8s.io/apiserver/pkg/admission/plugin/webhook/validating"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// The kinds of which rules are made.
const (
	mutatingWebhooks = iota
	validatingWebhooks
	mutatingPolicies
	mutatingBindings
	validatingPolicies
	validatingBindings
	kinds
)

var resources = [kinds]string{
	mutatingWebhooks: "mutatingwebhookconfigurations", validatingWebhooks: "validatingwebhookconfigurations",
	mutatingPolicies: "mutatingadmissionpolicies", mutatingBindings: "mutatingadmissionpolicybindings",
	validatingPolicies: "validatingadmissionpolicies", validatingBindings: "validatingadmissionpolicybindings",
}

// Observers are what has to be told the state of each resource before anything is admitted.
func (p *Plugin) Observers() map[schema.GroupResource]logical.Observer {
	all := map[schema.GroupResource]logical.Observer{}
	for kind, resource := range resources {
		all[schema.GroupResource{Group: ownGroup, Resource: resource}] = &observer{Plugin: p, kind: kind}
	}
	return all
}

// holdings are the objects of a virtual cluster, and what is made of them. The objects
// are the watch caches'; the rest is made when a write first asks for it.
type holdings struct {
	rules atomic.Pointer[rules] // nil when it has to be made anew
	used  atomic.Int64          // when, in seconds

	mu      sync.Mutex
	objects [kinds]map[string]*object.Object
	last    *rules // for what of it is still good
	counted bool   // something has been made
}

func (h *holdings) empty() bool {
	return !slices.ContainsFunc(h.objects[:], func(of map[string]*object.Object) bool { return of != nil })
}

// rules are what a virtual cluster's objects amount to.
type rules struct {
	// broken is why the rules are not to be trusted: something cannot be read.
	broken             error
	mutating           *mutatingwebhook.Plugin
	validating         *validatingwebhook.Plugin
	mutatingPolicies   []mutatingpolicy.PolicyHook
	validatingPolicies []validatingpolicy.PolicyHook
	// rails are the root's rules for virtual clusters, by kind and name.
	rails []*rail

	// made is what took some work, by what it was made of.
	made map[string]any
}

// rules are those of a virtual cluster, or nil.
func (p *Plugin) rules(cluster string) *rules {
	found, ok := p.clusters.Load(cluster)
	if !ok {
		return nil
	}
	h := found.(*holdings)
	h.use(time.Now())
	if r := h.rules.Load(); r != nil {
		return r
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.rules.Load(); r != nil {
		return r
	}
	if h.empty() {
		return nil // removed meanwhile
	}
	r := p.compile(cluster, &h.objects, h.last)
	h.last = r
	h.rules.Store(r)
	p.keep(cluster, h)
	return r
}

// observer feeds the plugin from one resource.
type observer struct {
	*Plugin
	kind int
	fed  bool
}

// Replaced implements logical.Observer.
func (o *observer) Replaced(items []*object.Object, revision uint64) {
	byCluster := map[string]map[string]*object.Object{}
	for _, it := range items {
		if byCluster[it.Cluster()] == nil {
			byCluster[it.Cluster()] = map[string]*object.Object{}
		}
		byCluster[it.Cluster()][it.Name] = it
	}
	o.clusters.Range(func(cluster, _ any) bool {
		if byCluster[cluster.(string)] == nil {
			byCluster[cluster.(string)] = map[string]*object.Object{}
		}
		return true
	})
	for cluster, objects := range byCluster {
		o.change(cluster, func(map[string]*object.Object) map[string]*object.Object { return objects })
	}
	if !o.fed {
		o.fed = true
		o.Plugin.fed.Add(1)
	}
}

// Changed implements logical.Observer.
func (o *observer) Changed(t watch.EventType, obj *object.Object, _ uint64) {
	o.change(obj.Cluster(), func(objects map[string]*object.Object) map[string]*object.Object {
		if t == watch.Deleted {
			delete(objects, obj.Name)
			return objects
		}
		if objects == nil {
			objects = map[string]*object.Object{}
		}
		objects[obj.Name] = obj
		return objects
	})
}

// Progressed implements logical.Observer.
func (o *observer) Progressed(uint64) {}

func (o *observer) change(cluster string, to func(map[string]*object.Object) map[string]*object.Object) {
	o.changing.Lock()
	defer o.changing.Unlock()
	found, known := o.clusters.Load(cluster)
	if !known {
		found = &holdings{}
	}
	h := found.(*holdings)
	h.mu.Lock()
	defer h.mu.Unlock()
	objects := to(h.objects[o.kind])
	if len(objects) == 0 {
		objects = nil
	}
	h.objects[o.kind] = objects
	h.rules.Store(nil)
	switch {
	case h.empty():
		o.drop(h)
		o.clusters.Delete(cluster)
	case !known:
		o.clusters.Store(cluster, h)
	}
}

// sorted are objects by name.
func sorted(objects map[string]*object.Object) []*object.Object {
	return slices.SortedFunc(maps.Values(objects), func(a, b *object.Object) int { return cmp.Compare(a.Name, b.Name) })
}

// compile makes rules of objects. What has not changed since the last time is taken over.
func (p *Plugin) compile(cluster string, objects *[kinds]map[string]*object.Object, last *rules) *rules {
	m := &maker{Plugin: p, cluster: cluster, rules: &rules{made: map[string]any{}}}
	if last != nil {
		m.last = last.made
	}
	m.webhooks(mutatingWebhooks, sorted(objects[mutatingWebhooks]))
	m.webhooks(validatingWebhooks, sorted(objects[validatingWebhooks]))
	m.mutatingPolicies(objects)
	m.validatingPolicies(objects)
	m.rules.broken = errors.Join(m.errs...)
	return m.rules
}

// maker makes rules.
type maker struct {
	*Plugin
	*rules
	cluster string
	last    map[string]any
	errs    []error
}

func (m *maker) broke(err error) { m.errs = append(m.errs, err) }

// read decodes an object into its Go type.
func read[T any](kind int, o *object.Object) (*T, error) {
	typed := new(T)
	err := o.Into(typed)
	if reason, is := logical.Quarantined(o); is {
		err = errors.New(reason)
	}
	if err != nil {
		return nil, fmt.Errorf("%s.%s %q cannot be read: delete it or write it anew: %w", resources[kind], ownGroup, o.Name, err)
	}
	return typed, nil
}

func readAll[T any](kind int, objects []*object.Object) ([]*T, error) {
	var all []*T
	for _, o := range objects {
		typed, err := read[T](kind, o)
		if err != nil {
			return nil, err
		}
		all = append(all, typed)
	}
	return all, nil
}

// once makes a thing, or takes over the one that was made of the same objects before.
func once[T any](m *maker, kind int, of []*object.Object, make func() (T, error)) (T, bool) {
	var key strings.Builder
	fmt.Fprint(&key, kind)
	for _, o := range of {
		fmt.Fprintf(&key, "/%s/%s", o.UID, o.ResourceVersion)
	}
	if before, ok := m.last[key.String()].(T); ok {
		m.rules.made[key.String()] = before
		return before, true
	}
	thing, err := make()
	if err != nil {
		m.broke(err)
		return thing, false
	}
	m.rules.made[key.String()] = thing
	return thing, true
}

// webhooks makes one plugin of all the virtual cluster's configurations, and a guard rail
// of each webhook that is one.
func (m *maker) webhooks(kind int, objects []*object.Object) {
	var own []*object.Object
	for _, o := range objects {
		where, err := m.where(o)
		if err != nil {
			m.broke(err)
			continue
		}
		if where == nil {
			own = append(own, o)
			continue
		}
		rails, _ := once(m, kind, []*object.Object{o}, func() ([]*rail, error) { return m.webhookRails(kind, o) })
		for _, r := range rails {
			placed := *r
			placed.where = where
			m.rails = append(m.rails, &placed)
		}
	}
	if len(own) == 0 {
		return
	}
	switch kind {
	case mutatingWebhooks:
		m.mutating, _ = once(m, kind, own, func() (*mutatingwebhook.Plugin, error) {
			configurations, err := readAll[admissionregistrationv1.MutatingWebhookConfiguration](kind, own)
			if err != nil {
				return nil, err
			}
			return m.newMutating(m.cluster, m.cluster, configurations)
		})
	case validatingWebhooks:
		m.validating, _ = once(m, kind, own, func() (*validatingwebhook.Plugin, error) {
			configurations, err := readAll[admissionregistrationv1.ValidatingWebhookConfiguration](kind, own)
			if err != nil {
				return nil, err
			}
			return m.newValidating(m.cluster, m.cluster, configurations)
		})
	}
}
