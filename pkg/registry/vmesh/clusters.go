// Package vmesh is the storage of virtual clusters and meshes.
package vmesh

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/util/dryrun"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/quota"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// Version is the version that vmesh's own kinds are served in.
const Version = "v1alpha1"

// Clusters knows the virtual clusters: what a new one may claim, how it is set up, and
// when it may be deleted. It is safe for concurrent use.
type Clusters struct {
	store      *resource.Store
	meshes     *resource.Store
	namespaces *resource.Store
	contents   []*resource.Store // of virtual clusters
	counted    []string          // the resources that a quota can limit
	backend    *logical.Backend
	url        func(cluster string) string

	known   sync.Map // name to state, of the virtual clusters that the watch has shown
	knowing sync.Mutex
	roots   sync.Map // mesh to meshRoot

	mu     sync.Mutex
	claims *ownership.Index
	// pending are writes that are under way, whose claims are not in the index yet.
	pending map[string]*write
	// seen is the revision up to which the index has all claims, and waiting is closed
	// when it grows; nil while nobody waits.
	seen    uint64
	waiting chan struct{}
}

// state is what every request asks of a virtual cluster.
type state struct {
	uid      string
	created  metav1.Time
	deleting bool
	frozen   string // why; empty when it is not
	limits   *quota.Limits
	revision uint64
	rates    *v1alpha1.VirtualClusterRates // nil for the server's defaults
}

// NewClusters makes the keeper of virtual clusters. url gives the address of a virtual
// cluster's API, or the root's.
func NewClusters(backend *logical.Backend, url func(cluster string) string) *Clusters {
	return &Clusters{backend: backend, url: url, claims: ownership.New(), pending: map[string]*write{}}
}

// Hooks are what the kind VirtualCluster asks of it.
func (c *Clusters) Hooks() kind.Hooks {
	return kind.Hooks{Prepare: c.prepare, Validate: c.validate, ValidateName: validateName}
}

func validateName(name string, prefix bool) []string {
	if name == logical.Root {
		return []string{"this is the name of the endpoint that manages virtual clusters"}
	}
	return apivalidation.NameIsDNSLabel(name, prefix)
}

// Attach gives it the storages, before the first request.
func (c *Clusters) Attach(clusters, meshes, namespaces *resource.Store) {
	c.store, c.meshes, c.namespaces = clusters, meshes, namespaces
	clusters.BeginCreate = c.beginCreate
	clusters.AfterCreate = func(obj runtime.Object, options *metav1.CreateOptions) {
		if !dryrun.IsDryRun(options.DryRun) {
			// The watch may still be at an earlier one of the same name.
			c.know(obj.(*object.Object))
		}
	}
	clusters.AfterUpdate = func(obj runtime.Object, options *metav1.UpdateOptions) {
		if !dryrun.IsDryRun(options.DryRun) {
			// Whoever has frozen it, or limited it, is answered when it is so.
			c.know(obj.(*object.Object))
		}
	}
}

// Replaced implements logical.Observer.
func (c *Clusters) Replaced(items []*object.Object, revision uint64) {
	all := make([]ownership.Claims, 0, len(items))
	gone := map[any]bool{}
	c.known.Range(func(name, _ any) bool { gone[name] = true; return true })
	for _, o := range items {
		c.know(o)
		delete(gone, o.Name)
		if vc, err := Decode(o); err == nil {
			all = append(all, ownership.ClaimsOf(vc))
		}
	}
	for name := range gone {
		c.forget(name.(string), revision)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.claims = ownership.New(all...)
	c.saw(revision)
}

// know remembers a virtual cluster, unless it knows later already.
func (c *Clusters) know(o *object.Object) {
	c.knowing.Lock()
	defer c.knowing.Unlock()
	if s := stateOf(o); !c.knowsLater(o.Name, s.revision) {
		c.known.Store(o.Name, s)
	}
}

// forget is for a virtual cluster that was deleted at a revision.
func (c *Clusters) forget(name string, revision uint64) {
	c.knowing.Lock()
	defer c.knowing.Unlock()
	if !c.knowsLater(name, revision) {
		c.known.Delete(name)
	}
}

func (c *Clusters) knowsLater(name string, revision uint64) bool {
	s, ok := c.known.Load(name)
	return ok && s.(state).revision > revision
}

func stateOf(o *object.Object) state {
	s := state{uid: string(o.UID), created: o.CreationTimestamp, deleting: o.DeletionTimestamp != nil}
	if revision, err := strconv.ParseUint(o.ResourceVersion, 10, 64); err == nil { // what comes from storage has one
		s.revision = revision
	}
	if _, is := logical.Quarantined(o); is {
		s.frozen = "its VirtualCluster cannot be read, and may say so" // and what quota there was
	}
	// Most have none of them, and need not be decoded for every request that looks in etcd.
	spec := o.Field("spec")
	if slices.ContainsFunc([]string{`"freeze"`, `"quota"`, `"rates"`}, func(limit string) bool { return bytes.Contains(spec, []byte(limit)) }) {
		var set v1alpha1.VirtualClusterSpec
		if json.Unmarshal(spec, &set) == nil { // what storage took has been validated
			s.limits, s.rates = quota.LimitsOf(set.Quota), set.Rates
			if set.Freeze != nil {
				s.frozen = cmp.Or(set.Freeze.Reason, "no reason is given")
			}
		}
	}
	return s
}

// Changed implements logical.Observer.
func (c *Clusters) Changed(t watch.EventType, o *object.Object, revision uint64) {
	if t == watch.Deleted {
		c.forget(o.Name, revision)
	} else {
		c.know(o)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if t == watch.Deleted {
		c.claims = c.claims.Without(o.Name)
	} else if vc, err := Decode(o); err == nil {
		c.claims = c.claims.With(ownership.ClaimsOf(vc))
	}
	c.saw(revision)
}

// Progressed implements logical.Observer.
func (c *Clusters) Progressed(revision uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.saw(revision)
}

// Decode reads a VirtualCluster.
func Decode(o *object.Object) (*v1alpha1.VirtualCluster, error) {
	vc := &v1alpha1.VirtualCluster{}
	if err := o.Into(vc); err != nil {
		return nil, fmt.Errorf("decoding virtual cluster %s: %w", o.Name, err)
	}
	return vc, nil
}

// RootContext is a context for reads and writes in the root.
func RootContext(ctx context.Context) context.Context {
	return request.WithNamespace(logical.WithCluster(ctx, logical.Root), metav1.NamespaceNone)
}

// get reads a virtual cluster, as etcd has it.
func (c *Clusters) get(ctx context.Context, name string) (*object.Object, error) {
	obj, err := c.store.Get(RootContext(ctx), name, &metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return obj.(*object.Object), nil
}

// state looks a virtual cluster up: among those that the watch has shown, or in etcd,
// so that one is known from the moment its creation is answered.
func (c *Clusters) state(ctx context.Context, name string) (state, bool, error) {
	if known, ok := c.known.Load(name); ok {
		return known.(state), true, nil
	}
	obj, err := c.store.Get(RootContext(ctx), name, &metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return state{}, false, nil
	}
	if err != nil {
		return state{}, false, err
	}
	return stateOf(obj.(*object.Object)), true, nil
}

// State implements filters.Clusters.
func (c *Clusters) State(ctx context.Context, name string) (exists, deleting bool, frozen string, err error) {
	if name == logical.Root {
		return true, false, "", nil
	}
	s, exists, err := c.state(ctx, name)
	return exists, s.deleting, s.frozen, err
}

// Rates are the limits of a virtual cluster that are its own, or nil.
func (c *Clusters) Rates(ctx context.Context, name string) *v1alpha1.VirtualClusterRates {
	if name == logical.Root {
		return nil
	}
	s, _, err := c.state(ctx, name)
	if err != nil { // whoever comes next says so
		return nil
	}
	return s.rates
}

// UID implements authn.Clusters.
func (c *Clusters) UID(ctx context.Context, name string) (string, bool) {
	s, exists, err := c.state(ctx, name)
	return s.uid, exists && err == nil
}

// rootCreated stands for the root's creation, which nothing records.
var rootCreated = metav1.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)

// Origin is the UID of a virtual cluster and the time of its creation. Of one that there
// is not, both are empty.
func (c *Clusters) Origin(ctx context.Context, name string) (uid string, created metav1.Time) {
	if name == logical.Root {
		return "", rootCreated
	}
	s, _, err := c.state(ctx, name)
	if err != nil {
		return "", metav1.Time{}
	}
	return s.uid, s.created
}

// prepare gives a virtual cluster what vmesh writes of it.
func (c *Clusters) prepare(o, old *object.Object) error {
	if o.DeletionTimestamp == nil && !slices.Contains(o.Finalizers, v1alpha1.FinalizerPurge) {
		o.Finalizers = append(slices.Clone(o.Finalizers), v1alpha1.FinalizerPurge)
	}
	if old == nil {
		status := v1alpha1.VirtualClusterStatus{URL: c.url(o.Name)}
		apimeta.SetStatusCondition(&status.Conditions, v1alpha1.Conforming())
		if err := SetStatus(o, status); err != nil {
			return err
		}
	}
	return setReady(o)
}

// SetStatus replaces an object's status.
func SetStatus(o *object.Object, status any) error { return setMember(o, "status", status) }

func setMember(o *object.Object, name string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	var tree map[string]any
	if err := json.Unmarshal(data, &tree); err != nil {
		return err
	}
	shared, err := o.Content()
	if err != nil {
		return err
	}
	content := maps.Clone(shared)
	if content == nil {
		content = map[string]any{}
	}
	content[name] = integers(tree)
	return o.SetContent(content)
}

// integers makes the whole numbers of a tree int64, as everywhere else.
func integers(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = integers(v[k])
		}
	case []any:
		for i := range v {
			v[i] = integers(v[i])
		}
	case float64:
		if whole := int64(v); float64(whole) == v {
			return whole
		}
	}
	return v
}

// URL is the address of a virtual cluster's API.
func (c *Clusters) URL(cluster string) string { return c.url(cluster) }
