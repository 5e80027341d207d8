// Package home keeps the settings of meshes in their homes: the config maps that istiods
// read in the virtual cluster where they live. It tells in the status of meshes what became of it,
// and what there is to say of networks.
package home

import (
	"context"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/members"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/registry/vmesh"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// lookEvery is how often the services by which networks are reached are looked up, of meshes
// that have such.
const lookEvery = 2 * time.Second

// Config is what a controller works with.
type Config struct {
	Meshes, VirtualClusters, ConfigMaps *resource.Store
	// EnsureNamespaces makes the system namespaces that a virtual cluster lacks.
	EnsureNamespaces func(ctx context.Context, vc *v1alpha1.VirtualCluster) error
	// UpdateStatus changes the status of a mesh; see status.Writer.
	UpdateStatus func(ctx context.Context, mesh string, mutate func(*v1alpha1.MeshStatus) error) error
	// Tell writes an event about a mesh.
	Tell func(ctx context.Context, mesh, kind, reason, message string)
	// DefaultSource is the address at which this server serves a mesh to control planes, empty if
	// there is none that they could be told.
	DefaultSource func(mesh string) string
	// Gateways looks up the services by which networks are reached. It may be nil: then nothing is
	// known of them.
	Gateways members.Gateways
}

// Controller keeps the settings of all meshes. Several servers on one etcd may each have
// one: what they write follows from what is stored.
type Controller struct {
	Config
	now   func() time.Time
	queue workqueue.TypedRateLimitingInterface[string] // of names of meshes

	mu      sync.Mutex
	unread  map[string]struct{} // what was not read yet; nothing is done before all is
	members map[string]member   // by name
	// written are the config maps that vmesh has written, as they were seen last.
	written map[place]*object.Object
	// homes are the config maps that there are to be, by the virtual cluster that is the home and by mesh.
	homes map[string]map[string]map[place]struct{}

	// Those belong to Run.
	corrected map[string]bool                // meshes whose default source was this server's since it started
	asked     map[string][]string            // by mesh, the services by which networks are reached
	looked    map[string]map[string][]string // of those, what was found last
	last      map[string]state               // by mesh
}

// member is what there is to know of a member cluster.
type member struct {
	mesh, network string
	locality      v1alpha1.Locality
}

// place is where a config map is.
type place struct{ cluster, namespace, name string }

// New makes a controller; it works while Run does, once all its observers were called.
func New(config Config) *Controller {
	return &Controller{
		Config: config,
		now:    time.Now,
		queue:  workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](50*time.Millisecond, 30*time.Second)),
		unread: map[string]struct{}{"meshes": {}, "members": {}, "virtual clusters": {}, "config maps": {}},

		members: map[string]member{}, written: map[place]*object.Object{}, homes: map[string]map[string]map[place]struct{}{},
		corrected: map[string]bool{}, asked: map[string][]string{}, looked: map[string]map[string][]string{}, last: map[string]state{},
	}
}

// Meshes observes meshes, behind the watch cache.
func (c *Controller) Meshes() logical.Observer {
	return &observer{c, "meshes", func(t watch.EventType, o *object.Object) { c.queue.Add(o.Name) }, nil}
}

// Members observes member clusters.
func (c *Controller) Members() logical.Observer {
	return &observer{c, "members", c.setMember, func(items []*object.Object) {
		present := names(items)
		for name, m := range c.members {
			if _, is := present[name]; !is {
				delete(c.members, name)
				c.queue.Add(m.mesh)
			}
		}
	}}
}

// VirtualClusters observes virtual clusters, behind the watch cache.
func (c *Controller) VirtualClusters() logical.Observer {
	return &observer{c, "virtual clusters", func(_ watch.EventType, o *object.Object) {
		for mesh := range c.homes[o.Name] {
			c.queue.Add(mesh)
		}
	}, func([]*object.Object) {
		for _, meshes := range c.homes {
			for mesh := range meshes {
				c.queue.Add(mesh)
			}
		}
	}}
}

// ConfigMaps observes config maps. Of most it reads but their labels.
func (c *Controller) ConfigMaps() logical.Observer {
	return &observer{c, "config maps", c.setConfigMap, func(items []*object.Object) {
		present := map[place]struct{}{}
		for _, o := range items {
			present[placeOf(o)] = struct{}{}
		}
		for at, o := range c.written {
			if _, is := present[at]; !is {
				delete(c.written, at)
				c.queue.Add(settingsOf(o))
			}
		}
	}}
}

// observer is a logical.Observer that says when all was read. It calls both under the
// controller's lock; replaced comes before what there is is shown as changed.
type observer struct {
	c        *Controller
	what     string
	changed  func(watch.EventType, *object.Object)
	replaced func([]*object.Object)
}

// Replaced implements logical.Observer.
func (o *observer) Replaced(items []*object.Object, _ uint64) {
	o.c.mu.Lock()
	defer o.c.mu.Unlock()
	if o.replaced != nil {
		o.replaced(items)
	}
	for _, item := range items {
		o.changed(watch.Modified, item)
	}
	if len(o.c.unread) > 0 {
		delete(o.c.unread, o.what)
		if len(o.c.unread) == 0 {
			o.c.everything()
		}
	}
}

// Changed implements logical.Observer.
func (o *observer) Changed(t watch.EventType, item *object.Object, _ uint64) {
	o.c.mu.Lock()
	defer o.c.mu.Unlock()
	o.changed(t, item)
}

// Progressed implements logical.Observer.
func (o *observer) Progressed(uint64) {}

// everything queues all meshes that may have something to do; those that there are were
// queued when they were read, and may have been looked at too early.
func (c *Controller) everything() {
	for _, m := range c.members {
		c.queue.Add(m.mesh)
	}
	for _, o := range c.written {
		c.queue.Add(settingsOf(o))
	}
	c.queue.Add(allMeshes)
}

func (c *Controller) setMember(t watch.EventType, o *object.Object) {
	was, had := c.members[o.Name]
	if t == watch.Deleted {
		delete(c.members, o.Name)
		c.queue.Add(was.mesh)
		return
	}
	var mc v1alpha1.MemberCluster
	if _, lost := logical.Quarantined(o); lost || o.Into(&mc) != nil {
		return // it stays what it was
	}
	is := member{mesh: mc.Spec.Mesh, network: mc.Spec.Network}
	if mc.Spec.Locality != nil {
		is.locality = *mc.Spec.Locality
	}
	if had && was == is {
		return
	}
	c.members[o.Name] = is
	c.queue.Add(is.mesh)
	if had && was.mesh != is.mesh {
		c.queue.Add(was.mesh)
	}
}

func (c *Controller) setConfigMap(t watch.EventType, o *object.Object) {
	if len(o.Annotations) == 0 && len(c.homes) == 0 {
		return
	}
	at := placeOf(o)
	for mesh, wanted := range c.homes[at.cluster] {
		if _, is := wanted[at]; is {
			c.queue.Add(mesh)
		}
	}
	had := c.written[at]
	if mesh, ours := ownerOf(o); ours && t != watch.Deleted {
		c.written[at] = o
		if had == nil || settingsOf(had) != mesh {
			c.queue.Add(mesh)
		}
	} else if had != nil {
		delete(c.written, at)
		c.queue.Add(settingsOf(had))
	}
}

func placeOf(o *object.Object) place { return place{o.Cluster(), o.Namespace, o.Name} }

func settingsOf(o *object.Object) string { return o.Annotations[v1alpha1.AnnotationSettingsOf] }

// ownerOf is the mesh whose settings a config map holds, if vmesh has written it.
func ownerOf(o *object.Object) (mesh string, ours bool) {
	mesh, is := o.Annotations[v1alpha1.AnnotationSettingsOf]
	return mesh, is && o.Labels[v1alpha1.LabelManagedBy] == v1alpha1.ManagedBy
}

func names(items []*object.Object) map[string]struct{} {
	out := make(map[string]struct{}, len(items))
	for _, o := range items {
		out[o.Name] = struct{}{}
	}
	return out
}

// Run works until ctx is done.
func (c *Controller) Run(ctx context.Context) {
	stop := context.AfterFunc(ctx, c.queue.ShutDown)
	defer stop()
	var wait sync.WaitGroup
	defer wait.Wait()
	if c.Gateways != nil {
		// What is looked up is queued by the clock, and not told of: there is little of it.
		wait.Go(func() { c.tick(ctx) })
	}
	for {
		name, shutdown := c.queue.Get()
		if shutdown {
			return
		}
		var err error
		switch name {
		case allMeshes:
			err = c.queueAll(vmesh.RootContext(ctx))
		case lookUp:
			c.look()
		default:
			err = c.settle(vmesh.RootContext(ctx), name)
		}
		if err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).V(1).Info("The settings of a mesh are tried again", "mesh", name, "reason", err.Error())
			c.queue.AddRateLimited(name)
		} else {
			c.queue.Forget(name)
		}
		c.queue.Done(name)
	}
}

// tick queues the meshes whose networks are reached by services.
func (c *Controller) tick(ctx context.Context) {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		c.queue.Add(lookUp)
	}
}

// What is queued besides names of meshes, and can be none.
const (
	allMeshes = "*"
	lookUp    = "?" // the services by which networks are reached
)

// queueAll queues all meshes.
func (c *Controller) queueAll(ctx context.Context) error {
	list, err := c.Config.Meshes.List(ctx, &internalversion.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return err
	}
	for i := range list.(*object.List).Items {
		c.queue.Add(list.(*object.List).Items[i].Name)
	}
	return nil
}

// look queues the meshes of which something else was found than the last time.
func (c *Controller) look() {
	for mesh, services := range c.asked {
		for _, key := range services {
			addresses, found := c.addresses(key)
			if had, did := c.looked[mesh][key]; found && (!did || !slices.Equal(addresses, had)) {
				c.queue.Add(mesh)
			}
		}
	}
}

// tellOf writes the event about a condition that has become another.
func (c *Controller) tellOf(ctx context.Context, mesh, reason, message string, bad bool) {
	kind := corev1.EventTypeNormal
	if bad {
		kind = corev1.EventTypeWarning
	}
	c.Tell(ctx, mesh, kind, reason, message)
}

// meshMembers are the members of a mesh.
func (c *Controller) meshMembers(mesh string) map[string]member {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]member{}
	for name, m := range c.members {
		if m.mesh == mesh {
			out[name] = m
		}
	}
	return out
}

// writtenFor are the config maps that hold settings of a mesh.
func (c *Controller) writtenFor(mesh string) []place {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []place
	for at, o := range c.written {
		if settingsOf(o) == mesh {
			out = append(out, at)
		}
	}
	return out
}

// seen is a config map that vmesh has written, as it was seen last, nil if there is none.
func (c *Controller) seen(at place) *object.Object {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.written[at]
}

// expect notes which config maps a mesh is to have in a virtual cluster, which is empty for none: their
// changes are the mesh's, and so are those of the virtual cluster.
func (c *Controller) expect(mesh, cluster string, wanted map[place]struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for of, meshes := range c.homes {
		if delete(meshes, mesh); len(meshes) == 0 {
			delete(c.homes, of)
		}
	}
	if cluster == "" {
		return
	}
	if c.homes[cluster] == nil {
		c.homes[cluster] = map[string]map[place]struct{}{}
	}
	c.homes[cluster][mesh] = wanted
}

// forget takes note that a config map is gone of which the watch has not said so yet.
func (c *Controller) forget(at place, o *object.Object) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.written[at] == o {
		delete(c.written, at)
	}
}
