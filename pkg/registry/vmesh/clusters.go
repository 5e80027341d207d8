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
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/endpoints/request"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
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

// Claims is the index of who owns what.
func (c *Clusters) Claims() *ownership.Index {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.claims
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

// saw is called under c.mu when the index has all claims up to a revision.
func (c *Clusters) saw(revision uint64) {
	c.seen = max(c.seen, revision)
	if c.waiting != nil {
		close(c.waiting)
		c.waiting = nil
	}
}

// catchUp waits until the index has all claims that etcd holds.
func (c *Clusters) catchUp(ctx context.Context) error {
	// A consistent list also makes etcd tell at once how far its changes go.
	list, err := c.store.List(RootContext(ctx), &internalversion.ListOptions{Limit: 1})
	if err != nil {
		return err
	}
	current, err := strconv.ParseUint(list.(*object.List).ResourceVersion, 10, 64)
	if err != nil {
		return err
	}
	for {
		c.mu.Lock()
		done := c.seen >= current
		if !done && c.waiting == nil {
			c.waiting = make(chan struct{})
		}
		more := c.waiting
		c.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
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
		if err := SetStatus(o, v1alpha1.VirtualClusterStatus{URL: c.url(o.Name)}); err != nil {
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

// validate refuses claims that another virtual cluster of the mesh holds.
func (c *Clusters) validate(ctx context.Context, o, old *object.Object) ([]string, field.ErrorList) {
	vc, err := Decode(o)
	if err != nil {
		return nil, field.ErrorList{field.InternalError(nil, err)}
	}
	if errs := c.validateQuota(vc, old); len(errs) > 0 {
		return nil, errs
	}
	claims := ownership.ClaimsOf(vc)
	path := field.NewPath("spec", "namespaces")
	if err := c.claimAlone(ctx, claims); err != nil {
		return nil, field.ErrorList{field.InternalError(path, err)}
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	owner, owners, pattern, found := c.claims.Conflict(claims.Mesh, claims.Cluster, claims.Namespaces)
	if !found {
		for name, p := range c.pending {
			if name == claims.Cluster || p.claims.Mesh != claims.Mesh {
				continue
			}
			if owner, owners, pattern, found = ownership.New(p.claims).Conflict(claims.Mesh, claims.Cluster, claims.Namespaces); found {
				break
			}
		}
	}
	if found {
		return nil, field.ErrorList{field.Forbidden(path, fmt.Sprintf(
			"%q overlaps with %q, which virtual cluster %q owns in mesh %q: choose other namespaces, or take them from it first",
			pattern, owners, owner, claims.Mesh))}
	}
	if w, writing := c.pending[claims.Cluster]; writing {
		w.claims = claims
	}
	warnings := c.accessWarnings(ctx, vc)
	if _, err := c.meshes.Get(RootContext(ctx), claims.Mesh, &metav1.GetOptions{ResourceVersion: "0"}); apierrors.IsNotFound(err) {
		warnings = append(warnings, fmt.Sprintf("spec.mesh: there is no mesh %q yet: until it is created, nothing of this virtual cluster reaches a control plane", claims.Mesh))
	}
	return warnings, nil
}

// claimAlone makes sure, for a write that claims something new, that nobody else claims
// anything of the mesh until the write is done, whichever server they ask.
func (c *Clusters) claimAlone(ctx context.Context, claims ownership.Claims) error {
	if !c.backend.Shared() {
		return nil // the pending writes are all that there are
	}
	c.mu.Lock()
	w := c.pending[claims.Cluster]
	now, _ := c.claims.Claims(claims.Cluster)
	c.mu.Unlock()
	if w == nil || w.unlock != nil || len(claims.Namespaces) == 0 || now.Mesh == claims.Mesh && slices.Equal(now.Namespaces, claims.Namespaces) {
		return nil
	}
	unlock, err := c.backend.Lock(ctx, "meshes/"+claims.Mesh)
	if err != nil {
		return err
	}
	w.unlock = unlock // writes of one virtual cluster go one after the other
	return c.catchUp(ctx)
}

// write is a write of one virtual cluster that is under way.
type write struct {
	claims ownership.Claims // known once it is validated
	unlock func()           // set while others have to wait
	done   chan struct{}
}

// writeKey is for the write that a request has begun, in its context.
type writeKey struct{}

// begin announces a write, so that two that claim the same cannot both pass validation.
// Writes of one virtual cluster go one after the other.
func (c *Clusters) begin(ctx context.Context, name string) (*write, error) {
	w := &write{claims: ownership.Claims{Cluster: name}, done: make(chan struct{})}
	for {
		c.mu.Lock()
		other, writing := c.pending[name]
		if !writing {
			c.pending[name] = w
		}
		c.mu.Unlock()
		if !writing {
			break
		}
		select {
		case <-other.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return w, nil
}

// end is when a write has succeeded or failed. revision, if known, is what was written.
func (c *Clusters) end(w *write, success bool, revision uint64) {
	c.mu.Lock()
	if success && w.claims.Mesh != "" && (revision == 0 || revision > c.seen) {
		// The watch brings the same; until then nobody else may have it.
		c.claims = c.claims.With(w.claims)
	}
	delete(c.pending, w.claims.Cluster)
	c.mu.Unlock()
	close(w.done)
	if w.unlock != nil {
		w.unlock()
	}
}

// beginCreate sets the virtual cluster up before it can be seen, so that it is ready
// when it is.
func (c *Clusters) beginCreate(ctx context.Context, obj runtime.Object, options *metav1.CreateOptions) (genericregistry.FinishFunc, error) {
	o := obj.(*object.Object)
	if dryrun.IsDryRun(options.DryRun) || logical.ValidName(o.Name) != nil || o.Name == logical.Root {
		// Nothing is written, or validation is about to refuse it.
		return func(context.Context, bool) {}, nil
	}
	vc, err := Decode(o)
	if err != nil {
		return func(context.Context, bool) {}, nil // validation names the field
	}
	// An update that creates, as an apply does, has begun already, and ends by itself.
	end := func(bool) {}
	if _, begun := ctx.Value(writeKey{}).(*write); !begun {
		w, err := c.begin(ctx, o.Name)
		if err != nil {
			return nil, err
		}
		end = func(success bool) { c.end(w, success, 0) }
	}
	fresh := false // nothing was there when we began, so what is there now is ours
	finishCreate := func(ctx context.Context, success bool) {
		if fresh && !success {
			ctx := context.WithoutCancel(ctx)
			// Another replica may have made it after all: then it is not ours to clear.
			exists, err := c.stored(ctx, o.Name)
			if err == nil && !exists {
				err = c.clear(ctx, o.Name)
			}
			if err != nil {
				utilruntime.HandleErrorWithContext(ctx, err, "Removing what a virtual cluster was set up with", "virtualCluster", o.Name)
			}
		}
		end(success)
	}
	setUp := func() error {
		exists, err := c.stored(ctx, o.Name)
		if err != nil || exists {
			return err // etcd will say that it exists
		}
		fresh = true
		if err := c.clear(ctx, o.Name); err != nil {
			return err
		}
		for _, namespace := range c.systemNamespaces(ctx, vc) {
			if err := c.createNamespace(ctx, o.Name, namespace); err != nil {
				return err
			}
		}
		return nil
	}
	if err := setUp(); err != nil {
		finishCreate(ctx, false)
		return nil, err
	}
	return finishCreate, nil
}

// stored says whether a virtual cluster is in etcd.
func (c *Clusters) stored(ctx context.Context, name string) (bool, error) {
	_, err := c.get(ctx, name)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// clear removes what an earlier virtual cluster of the name may have left behind, by a
// write that was under way when it was deleted.
func (c *Clusters) clear(ctx context.Context, name string) error {
	counts, err := c.backend.Count(ctx, name)
	if err != nil {
		return err
	}
	for _, n := range counts {
		if n > 0 {
			return c.backend.Purge(ctx, name, nil)
		}
	}
	return nil
}

// IsSystemNamespace says whether the context's virtual cluster always has a namespace.
func (c *Clusters) IsSystemNamespace(ctx context.Context, namespace string) bool {
	if namespace == metav1.NamespaceDefault {
		return true
	}
	cluster, err := logical.Cluster(ctx)
	if err != nil || cluster == logical.Root {
		return false
	}
	claims, ok := c.Claims().Claims(cluster)
	return ok && namespace == c.rootNamespace(ctx, claims.Mesh)
}

// systemNamespaces exist in every virtual cluster, as clients expect.
func (c *Clusters) systemNamespaces(ctx context.Context, vc *v1alpha1.VirtualCluster) []string {
	return []string{metav1.NamespaceDefault, c.rootNamespace(ctx, ownership.ClaimsOf(vc).Mesh)}
}

// EnsureNamespaces makes those of the system namespaces that a virtual cluster lacks:
// its mesh may have got another root namespace since it was set up.
func (c *Clusters) EnsureNamespaces(ctx context.Context, vc *v1alpha1.VirtualCluster) error {
	for _, name := range c.systemNamespaces(ctx, vc) {
		inside := request.WithNamespace(logical.WithCluster(ctx, vc.Name), metav1.NamespaceNone)
		_, err := c.namespaces.Get(inside, name, &metav1.GetOptions{ResourceVersion: "0"})
		if apierrors.IsNotFound(err) {
			err = c.createNamespace(ctx, vc.Name, name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// URL is the address of a virtual cluster's API.
func (c *Clusters) URL(cluster string) string { return c.url(cluster) }

func (c *Clusters) rootNamespace(ctx context.Context, mesh string) string {
	const fallback = "istio-system"
	obj, err := c.meshes.Get(RootContext(ctx), mesh, &metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		return fallback
	}
	var m v1alpha1.Mesh
	if err := obj.(*object.Object).Into(&m); err != nil || m.Spec.RootNamespace == "" {
		return fallback
	}
	return m.Spec.RootNamespace
}

func (c *Clusters) createNamespace(ctx context.Context, cluster, name string) error {
	namespace := object.New(schema.GroupVersionKind{Version: "v1", Kind: "Namespace"})
	namespace.Name = name
	ctx = request.WithNamespace(logical.WithCluster(ctx, cluster), metav1.NamespaceNone)
	_, err := c.namespaces.Create(quota.Exempt(ctx), namespace, rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("creating namespace %s: %w", name, err)
	}
	return nil
}

// EnsureDefaults makes the namespace that clients expect of the root, and, in an empty
// store, the mesh and the virtual cluster that a first use needs.
func (c *Clusters) EnsureDefaults(ctx context.Context) error {
	ctx = RootContext(ctx)
	if err := c.createNamespace(ctx, logical.Root, metav1.NamespaceDefault); err != nil {
		return err
	}
	for _, s := range []*resource.Store{c.meshes, c.store} {
		list, err := s.List(ctx, &internalversion.ListOptions{Limit: 1})
		if err != nil {
			return fmt.Errorf("looking for what there is: %w", err)
		}
		if len(list.(*object.List).Items) > 0 {
			return nil
		}
	}
	for _, d := range []struct {
		store *resource.Store
		spec  map[string]any
	}{
		{c.meshes, map[string]any{"rootNamespace": "istio-system"}},
		{c.store, map[string]any{"mesh": v1alpha1.DefaultName, "namespaces": []any{string(v1alpha1.AnyNamespace)}}},
	} {
		o := object.New(d.store.Kind().GVK(Version))
		o.Name = v1alpha1.DefaultName
		if err := o.SetContent(map[string]any{"spec": d.spec}); err != nil {
			return err
		}
		if _, err := d.store.Create(ctx, o, rest.ValidateAllObjectFunc, &metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("creating %s %s: %w", d.store.Kind().Singular(), o.Name, err)
		}
	}
	return nil
}

// ClusterREST serves virtual clusters.
type ClusterREST struct {
	*resource.REST
	clusters *Clusters
}

// REST makes the storage of virtual clusters.
func (c *Clusters) REST() *ClusterREST { return &ClusterREST{c.store.REST(Version), c} }

// Update implements rest.Updater. Storage's own hook for it ends before anything is
// written, when what is claimed is not safe yet.
func (r *ClusterREST) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, createValidation rest.ValidateObjectFunc,
	updateValidation rest.ValidateObjectUpdateFunc, forceAllowCreate bool, options *metav1.UpdateOptions) (obj runtime.Object, created bool, err error) {
	if !dryrun.IsDryRun(options.DryRun) {
		w, busy := r.clusters.begin(ctx, name)
		if busy != nil {
			return nil, false, busy
		}
		defer func() {
			if err != nil {
				r.clusters.end(w, false, 0)
				return
			}
			r.clusters.end(w, true, stateOf(obj.(*object.Object)).revision)
		}()
		ctx = context.WithValue(ctx, writeKey{}, w)
	}
	return r.REST.Update(ctx, name, info, createValidation, updateValidation, forceAllowCreate, options)
}

// Delete implements rest.GracefulDeleter. A virtual cluster that holds objects is
// deleted only when its annotation vmesh.io/confirm-deletion bears its name, and never
// while one of them is protected. Of a mark that is set in the same moment nothing is
// promised: who is to rely on it marks the virtual cluster too.
func (r *ClusterREST) Delete(ctx context.Context, name string, validate rest.ValidateObjectFunc, options *metav1.DeleteOptions) (runtime.Object, bool, error) {
	return r.REST.Delete(ctx, name, r.confirmed(validate), options)
}

func (r *ClusterREST) confirmed(validate rest.ValidateObjectFunc) rest.ValidateObjectFunc {
	return func(ctx context.Context, obj runtime.Object) error {
		if validate != nil {
			if err := validate(ctx, obj); err != nil {
				return err
			}
		}
		o := obj.(*object.Object)
		if o.DeletionTimestamp != nil {
			return nil
		}
		if err := r.clusters.protected(ctx, o.Name); err != nil {
			return err
		}
		if o.Annotations[v1alpha1.AnnotationConfirmDeletion] == o.Name {
			return nil
		}
		held, err := r.clusters.held(ctx, o)
		if err != nil {
			return err
		}
		if held == 0 {
			return nil
		}
		return apierrors.NewForbidden(r.DefaultQualifiedResource, o.Name, fmt.Errorf(
			"it holds %d objects, which would be removed with it; to confirm, first set the annotation: kubectl annotate virtualcluster %s %s=%s",
			held, o.Name, v1alpha1.AnnotationConfirmDeletion, o.Name))
	}
}

// held counts the objects that users put into a virtual cluster.
func (c *Clusters) held(ctx context.Context, o *object.Object) (int64, error) {
	vc, err := Decode(o)
	if err != nil {
		return 0, err
	}
	counts, err := c.backend.Count(ctx, o.Name)
	if err != nil {
		return 0, fmt.Errorf("counting what %s holds: %w", o.Name, err)
	}
	var held int64
	for _, n := range counts {
		held += n
	}
	for _, name := range c.systemNamespaces(ctx, vc) {
		inside := request.WithNamespace(logical.WithCluster(ctx, o.Name), metav1.NamespaceNone)
		if _, err := c.namespaces.Get(inside, name, &metav1.GetOptions{ResourceVersion: "0"}); err == nil {
			held--
		}
	}
	return max(held, 0), nil
}
