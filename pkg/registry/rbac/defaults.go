package rbac

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// defaultRevision is the resource version of default objects: older than any that is stored.
const defaultRevision = "1"

func sortByName(all []*object.Object) {
	slices.SortFunc(all, func(a, b *object.Object) int { return strings.Compare(a.Name, b.Name) })
}

// defaultOf is the default object of a name as every virtual cluster has it, or nil.
func (r *REST) defaultOf(name string) *object.Object {
	i, ok := slices.BinarySearchFunc(r.defaults, name, func(o *object.Object, name string) int { return strings.Compare(o.Name, name) })
	if !ok {
		return nil
	}
	return r.defaults[i]
}

// defaultIn is the default object of a name as the context's virtual cluster shows it, or
// nil. Its UID and its creation are the virtual cluster's: the same whenever it is
// read, and another's in a later virtual cluster of the name.
func (r *REST) defaultIn(ctx context.Context, name string) *object.Object {
	template := r.defaultOf(name)
	cluster, err := logical.Cluster(ctx)
	if template == nil || err != nil {
		return nil
	}
	o := template.DeepCopy()
	uid, created := r.Clusters.Origin(ctx, cluster)
	sum := sha256.Sum256([]byte(strings.Join([]string{cluster, uid, r.resource.Resource, name}, "/")))
	sum[6], sum[8] = sum[6]&0x0f|0x80, sum[8]&0x3f|0x80 // a UUID of the kind that anyone may define
	o.UID = types.UID(fmt.Sprintf("%x-%x-%x-%x-%x", sum[0:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16]))
	o.CreationTimestamp, o.ResourceVersion = created, defaultRevision
	o.SetCluster(cluster)
	return r.shown(o).(*object.Object)
}

func treeOf(rules []rbacv1.PolicyRule) ([]any, error) {
	data, err := json.Marshal(rules)
	if err != nil {
		return nil, err
	}
	tree := []any{}
	return tree, json.Unmarshal(data, &tree)
}

// Get implements rest.Getter.
func (r *REST) Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error) {
	obj, err := r.REST.Get(ctx, name, options)
	if apierrors.IsNotFound(err) {
		if o := r.defaultIn(ctx, name); o != nil {
			return o, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return r.shown(obj), nil
}

// overridden says whether a default object is stored, as the watch cache has it.
func (r *REST) overridden(ctx context.Context, name string) bool {
	_, err := r.REST.Get(ctx, name, &metav1.GetOptions{ResourceVersion: "0"})
	return err == nil
}

func (r *REST) predicate(options *internalversion.ListOptions) storage.SelectionPredicate {
	label, field := labels.Everything(), fields.Everything()
	if options != nil && options.LabelSelector != nil {
		label = options.LabelSelector
	}
	if options != nil && options.FieldSelector != nil {
		field = options.FieldSelector
	}
	return r.PredicateFunc(label, field)
}

// matching are the default objects that a predicate selects.
func (r *REST) matching(p storage.SelectionPredicate) []*object.Object {
	var out []*object.Object
	for _, o := range r.defaults {
		if ok, err := p.Matches(o); ok && err == nil {
			out = append(out, o)
		}
	}
	return out
}

// pageToken begins the continue token of a list that has shown some of the default objects.
const pageToken = "defaults:"

// List implements rest.Lister: the default objects come first, then, page by page if
// that is asked for, what is stored.
func (r *REST) List(ctx context.Context, options *internalversion.ListOptions) (runtime.Object, error) {
	if len(r.defaults) == 0 {
		return r.REST.List(ctx, options)
	}
	if options == nil {
		options = &internalversion.ListOptions{}
	}
	page, paged := strings.CutPrefix(options.Continue, pageToken)
	if options.Continue != "" && !paged {
		obj, err := r.REST.List(ctx, options)
		return r.shownAll(obj), err
	}
	stored := options.DeepCopy()
	stored.Continue = ""
	all := r.matching(r.predicate(options))
	from := 0
	if paged {
		var err error
		if from, err = strconv.Atoi(page); err != nil || from < 0 || from > len(all) {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("continue: %q is not a token of this list", options.Continue))
		}
	}
	to := len(all)
	more := false
	if limit := int(options.Limit); limit > 0 {
		if more = to-from >= limit; more {
			to = from + limit
			stored.Limit = 1 // for the revision
		} else {
			stored.Limit = int64(limit - (to - from))
		}
	}
	obj, err := r.REST.List(ctx, stored)
	if err != nil {
		return nil, err
	}
	list := obj.(*object.List)
	items := make([]object.Object, 0, to-from+len(list.Items))
	for _, o := range all[from:to] {
		if !r.overridden(ctx, o.Name) {
			items = append(items, *r.defaultIn(ctx, o.Name))
		}
	}
	if more {
		list.Items, list.Continue, list.RemainingItemCount = nil, pageToken+strconv.Itoa(to), nil
	}
	list.Items = append(items, list.Items...)
	if options.Limit == 0 {
		slices.SortStableFunc(list.Items, func(a, b object.Object) int { return strings.Compare(a.Name, b.Name) })
	}
	return r.shownAll(list), nil
}

func (r *REST) shownAll(obj runtime.Object) runtime.Object {
	if list, ok := obj.(*object.List); ok && list != nil {
		for i := range list.Items {
			r.shown(&list.Items[i])
		}
	}
	return obj
}

// Watch implements rest.Watcher. A watch that begins with the state begins with the
// default objects. Storing one is a change of it to the watcher, and so is deleting what
// is stored; a change of what an aggregating role aggregates is none. A watcher that
// selects by labels is not told when what is stored over a default lacks them.
func (r *REST) Watch(ctx context.Context, options *internalversion.ListOptions) (watch.Interface, error) {
	source, err := r.REST.Watch(ctx, options)
	if err != nil || len(r.defaults) == 0 {
		return source, err
	}
	if options == nil {
		options = &internalversion.ListOptions{}
	}
	w := &shownWatch{
		REST: r, ctx: ctx, source: source, result: make(chan watch.Event), stopped: make(chan struct{}), known: map[string]bool{},
	}
	p := r.predicate(options)
	initial := options.ResourceVersion == "" || options.ResourceVersion == "0"
	if options.SendInitialEvents != nil {
		initial = *options.SendInitialEvents
	}
	w.matching = map[string]bool{}
	for _, o := range r.matching(p) {
		w.matching[o.Name] = true
		switch {
		case !initial:
			w.known[o.Name] = true
		case !r.overridden(ctx, o.Name): // after the watch has begun, which tells what changes since
			w.known[o.Name] = true
			w.initial = append(w.initial, watch.Event{Type: watch.Added, Object: r.defaultIn(ctx, o.Name)})
		}
	}
	go w.run()
	return w, nil
}

// shownWatch is a watch of what is stored that shows the default objects as well.
type shownWatch struct {
	*REST
	ctx      context.Context
	source   watch.Interface
	initial  []watch.Event
	matching map[string]bool // default objects that the watcher selects
	known    map[string]bool // those that it has been told of
	result   chan watch.Event

	stopOnce sync.Once
	stopped  chan struct{}
}

// ResultChan implements watch.Interface.
func (w *shownWatch) ResultChan() <-chan watch.Event { return w.result }

// Stop implements watch.Interface.
func (w *shownWatch) Stop() {
	w.stopOnce.Do(func() {
		close(w.stopped)
		w.source.Stop()
	})
}

// run ends by Stop, with the context, or when the source ends.
func (w *shownWatch) run() {
	defer close(w.result)
	defer w.Stop()
	for _, e := range w.initial {
		if !w.send(e) {
			return
		}
	}
	for e := range w.source.ResultChan() {
		if !w.send(w.shownEvent(e)) {
			return
		}
	}
}

func (w *shownWatch) send(e watch.Event) bool {
	select {
	case w.result <- e:
		return true
	case <-w.stopped:
	case <-w.ctx.Done():
	}
	return false
}

func (w *shownWatch) shownEvent(e watch.Event) watch.Event {
	if e.Type == watch.Bookmark || e.Type == watch.Error {
		return e
	}
	var o *object.Object
	if shared, ok := e.Object.(runtime.CacheableObject); ok {
		o, _ = shared.GetObject().(*object.Object) // a copy
	} else if shared, ok := e.Object.(*object.Object); ok {
		o = shared.DeepCopy()
	}
	if o == nil {
		return e
	}
	e.Object = o
	w.await(w.ctx, o, nil) // what it aggregates is read from the index
	if e.Type == watch.Deleted && w.matching[o.Name] {
		revision := o.ResourceVersion
		o = w.defaultIn(w.ctx, o.Name)
		o.ResourceVersion = revision
		e.Type, e.Object = watch.Added, o
	}
	if w.matching[o.Name] {
		if e.Type == watch.Added && w.known[o.Name] {
			e.Type = watch.Modified
		}
		w.known[o.Name] = true
	}
	w.shown(o)
	return e
}
