package logical

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// model is what the storage ought to hold, in plain maps, with its whole history.
type model struct {
	now     map[string]string // "cluster:namespace/name" to value
	history []change          // in the order of revisions
}

type change struct {
	revision uint64
	event    string // as recorder and watcher give them
	cluster  string
}

// TestRandomOperationsAgreeWithAModel does the same random operations on the storage and
// on the model, and compares every answer; watchers and observers that come and go must
// have been told exactly the history from where they began.
func TestRandomOperationsAgreeWithAModel(t *testing.T) {
	rounds, steps := 4, 600
	if testing.Short() {
		rounds, steps = 1, 200
	}
	first := seed(t)
	for round := range rounds {
		t.Run(strconv.Itoa(round), func(t *testing.T) {
			newModelRun(t, first+int64(round)).run(steps)
		})
	}
}

type modelRun struct {
	t        testing.TB
	rnd      *rand.Rand
	b        *Backend
	clusters []cluster
	m        model
	watchers []*modelWatcher
	observer *modelObserver
	values   int
}

func newModelRun(t testing.TB, seed int64) *modelRun {
	r := &modelRun{t: t, rnd: rand.New(rand.NewSource(seed)), b: newTestBackend(t, BackendConfig{})}
	r.m.now = map[string]string{}
	r.clusters = neighbours(t, r.b, configMaps)
	r.observer = &modelObserver{state: map[string]string{}}
	run(t, r.b, configMaps.GroupResource, r.observer)
	return r
}

func (r *modelRun) run(steps int) {
	for step := range steps {
		if r.t.Failed() {
			r.t.Fatalf("after %d steps", step)
		}
		c := r.clusters[r.rnd.Intn(len(r.clusters))]
		namespace := []string{"a", "ab", "default"}[r.rnd.Intn(3)]
		name := []string{"a", "b", "ab", "x"}[r.rnd.Intn(4)]
		switch n := r.rnd.Intn(100); {
		case n < 30:
			r.create(c, namespace, name)
		case n < 55:
			r.update(c, namespace, name)
		case n < 70:
			r.delete(c, namespace, name)
		case n < 78:
			r.get(c, namespace, name)
		case n < 86:
			r.list(c, []string{"", namespace}[r.rnd.Intn(2)])
		case n < 91:
			r.page(c)
		case n < 95:
			r.startWatch(c)
		case n < 98:
			r.stopWatch()
		case n < 99:
			r.compact()
		default:
			r.purge(c)
		}
	}
	for len(r.watchers) > 0 {
		r.stopWatch()
	}
	r.observer.await(r.t, r.m.now)
	for _, c := range r.clusters {
		r.list(c, "")
	}
	consistent(r.t, r.clusters[0].s)
}

func id(c cluster, namespace, name string) string { return c.name + ":" + namespace + "/" + name }

func (r *modelRun) value() string {
	r.values++
	return "v" + strconv.Itoa(r.values)
}

func (r *modelRun) changed(t watch.EventType, o *object.Object, c cluster, namespace, name, value string) {
	r.t.Helper()
	revision, err := strconv.ParseUint(o.ResourceVersion, 10, 64)
	if err != nil {
		r.t.Fatal(err)
	}
	if n := len(r.m.history); n > 0 && revision <= r.m.history[n-1].revision {
		r.t.Fatalf("revision %d comes after %d", revision, r.m.history[n-1].revision)
	}
	key := id(c, namespace, name)
	r.m.history = append(r.m.history, change{revision, fmt.Sprintf("%s %s %s/%s %s", t, c.name, namespace, name, value), c.name})
	if t == watch.Deleted {
		delete(r.m.now, key)
	} else {
		r.m.now[key] = value
	}
}

func (r *modelRun) create(c cluster, namespace, name string) {
	_, exists := r.m.now[id(c, namespace, name)]
	value, out := r.value(), &object.Object{}
	err := c.s.Create(c.ctx(), c.key(namespace, name), c.new(namespace, name, value), out, 0)
	switch {
	case exists && !storage.IsExist(err):
		r.t.Fatalf("creating %s again: %v", id(c, namespace, name), err)
	case !exists && err != nil:
		r.t.Fatalf("creating %s: %v", id(c, namespace, name), err)
	case !exists:
		r.changed(watch.Added, out, c, namespace, name, value)
	}
}

func (r *modelRun) update(c cluster, namespace, name string) {
	old, exists := r.m.now[id(c, namespace, name)]
	value := r.value()
	if r.rnd.Intn(5) == 0 {
		value = old // changes nothing
	}
	var given string
	out := &object.Object{}
	err := c.s.GuaranteedUpdate(c.ctx(), c.key(namespace, name), out, false, nil, func(in runtime.Object, _ storage.ResponseMeta) (runtime.Object, *uint64, error) {
		o := in.(*object.Object).DeepCopy()
		given = text(o)
		return o, nil, o.SetContent(map[string]any{"data": map[string]any{"value": value}})
	}, nil)
	switch {
	case !exists && !storage.IsNotFound(err):
		r.t.Fatalf("updating %s, which is not there: %v", id(c, namespace, name), err)
	case exists && err != nil:
		r.t.Fatalf("updating %s: %v", id(c, namespace, name), err)
	case exists && (given != old || text(out) != value || out.Cluster() != c.name):
		r.t.Fatalf("updating %s: was given %q for %q, became %q for %q", id(c, namespace, name), given, old, text(out), value)
	case exists && value != old:
		r.changed(watch.Modified, out, c, namespace, name, value)
	}
}

func (r *modelRun) delete(c cluster, namespace, name string) {
	old, exists := r.m.now[id(c, namespace, name)]
	out := &object.Object{}
	err := c.s.Delete(c.ctx(), c.key(namespace, name), out, nil, storage.ValidateAllObjectFunc, nil, storage.DeleteOptions{})
	switch {
	case !exists && !storage.IsNotFound(err):
		r.t.Fatalf("deleting %s, which is not there: %v", id(c, namespace, name), err)
	case exists && err != nil:
		r.t.Fatalf("deleting %s: %v", id(c, namespace, name), err)
	case exists && text(out) != old:
		r.t.Fatalf("deleting %s returns %q for %q", id(c, namespace, name), text(out), old)
	case exists:
		r.changed(watch.Deleted, out, c, namespace, name, old)
	}
}

func (r *modelRun) get(c cluster, namespace, name string) {
	want, exists := r.m.now[id(c, namespace, name)]
	o, err := c.get(namespace, name)
	if exists != (err == nil) || err != nil && !storage.IsNotFound(err) || exists && (text(o) != want || o.Cluster() != c.name) {
		r.t.Fatalf("getting %s: %q, %v; want %q", id(c, namespace, name), text(o), err, want)
	}
}

// want is what a list of a cluster, or of one of its namespaces, has in it.
func (r *modelRun) want(c cluster, namespace string) []string {
	out := []string{}
	for key, value := range r.m.now {
		if strings.HasPrefix(key, c.name+":"+namespace) && (namespace == "" || strings.HasPrefix(key, c.name+":"+namespace+"/")) {
			out = append(out, key+"="+value)
		}
	}
	slices.SortFunc(out, func(a, b string) int {
		a, _, _ = strings.Cut(a, "=")
		b, _, _ = strings.Cut(b, "=")
		return strings.Compare(a, b)
	})
	return out
}

func (r *modelRun) list(c cluster, namespace string) {
	if got, want := names(c.list(namespace, storage.ListOptions{})), r.want(c, namespace); !slices.Equal(got, want) {
		r.t.Fatalf("listing %s %q:\n%q\nwant\n%q", c.name, namespace, got, want)
	}
}

// page lists page by page while others change; the pages are of one moment.
func (r *modelRun) page(c cluster) {
	want, got, token := r.want(c, ""), []string{}, ""
	for {
		l := c.list("", storage.ListOptions{Predicate: storage.SelectionPredicate{Limit: 1 + r.rnd.Int63n(4), Continue: token}})
		got = append(got, names(l)...)
		if token = l.Continue; token == "" {
			break
		}
		other := r.clusters[r.rnd.Intn(len(r.clusters))]
		r.create(other, "default", "x")
		r.delete(other, "default", "x")
	}
	if !slices.Equal(got, want) {
		r.t.Fatalf("paging through %s:\n%q\nwant\n%q", c.name, got, want)
	}
}

func (r *modelRun) compact() {
	if n := len(r.m.history); n > 0 {
		if _, err := r.b.config.Client.Compact(testContext(r.t), int64(r.m.history[n-1].revision)); err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
			r.t.Fatal(err)
		}
	}
}

func (r *modelRun) purge(c cluster) {
	before := r.want(c, "")
	o := &object.Object{}
	w, err := c.s.Watch(c.ctx(), c.root(), storage.ListOptions{ResourceVersion: c.list("", storage.ListOptions{}).ResourceVersion, Recursive: true, Predicate: storage.Everything})
	if err != nil {
		r.t.Fatal(err)
	}
	defer w.Stop()
	if err := r.b.Purge(testContext(r.t), c.name, nil); err != nil {
		r.t.Fatal(err)
	}
	events := &watcher{t: r.t, w: w}
	for range before {
		var event string
		event, o = events.next()
		kind, rest, _ := strings.Cut(event, " ")
		key := id(c, o.Namespace, o.Name)
		if old, exists := r.m.now[key]; kind != "DELETED" || !exists || text(o) != old {
			r.t.Fatalf("purging %s: got %s %s", c.name, kind, rest)
		}
		r.changed(watch.Deleted, o, c, o.Namespace, o.Name, text(o))
	}
}

// modelWatcher is a watch and the place in the history where it began.
type modelWatcher struct {
	*watcher
	c     cluster
	from  int // index in the history
	state []string
}

func (r *modelRun) startWatch(c cluster) {
	w := &modelWatcher{c: c, from: len(r.m.history)}
	opts := storageEverything()
	opts.Predicate.AllowWatchBookmarks = true
	yes := true
	switch r.rnd.Intn(3) {
	case 0: // as kubectl does
		opts.ResourceVersion = c.list("", storage.ListOptions{}).ResourceVersion
	case 1: // as a streaming list
		opts.SendInitialEvents, opts.ResourceVersionMatch = &yes, metav1.ResourceVersionMatchNotOlderThan
		for _, s := range r.want(c, "") {
			w.state = append(w.state, "ADDED "+strings.NewReplacer(":", " ", "=", " ").Replace(s))
		}
		w.state = append(w.state, "SYNCED")
	case 2: // from earlier, as after a lost connection
		if len(r.m.history) == 0 {
			return
		}
		w.from = max(0, len(r.m.history)-1-r.rnd.Intn(20))
		opts.ResourceVersion = strconv.FormatUint(r.m.history[w.from].revision, 10)
		w.from++
	}
	raw, err := c.s.Watch(c.ctx(), c.root(), opts)
	if err != nil {
		r.t.Fatal(err)
	}
	w.watcher = &watcher{t: r.t, w: raw}
	r.watchers = append(r.watchers, w)
	if len(r.watchers) > 8 {
		r.stopWatch()
	}
}

// stopWatch reads what a watch was told, which must be the history of its cluster.
func (r *modelRun) stopWatch() {
	if len(r.watchers) == 0 {
		return
	}
	i := r.rnd.Intn(len(r.watchers))
	w := r.watchers[i]
	r.watchers = slices.Delete(r.watchers, i, i+1)
	defer w.w.Stop()
	want := w.state
	for _, c := range r.m.history[w.from:] {
		if c.cluster == w.c.name {
			want = append(want, c.event)
		}
	}
	for i, event := range want {
		got, _ := w.next()
		for got == "BOOKMARK" {
			got, _ = w.next()
		}
		if got != event {
			r.t.Fatalf("a watch of %s got %q as number %d, want %q", w.c.name, got, i, event)
		}
	}
}

// modelObserver keeps the state of all clusters by what it is told.
type modelObserver struct {
	mu    sync.Mutex
	state map[string]string
}

func (o *modelObserver) Replaced(items []*object.Object, _ uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.state)
	for _, item := range items {
		o.state[item.Cluster()+":"+join(item.Namespace, item.Name)] = text(item)
	}
}

func (o *modelObserver) Changed(t watch.EventType, item *object.Object, _ uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	key := item.Cluster() + ":" + join(item.Namespace, item.Name)
	if t == watch.Deleted {
		delete(o.state, key)
	} else {
		o.state[key] = text(item)
	}
}

func (o *modelObserver) Progressed(uint64) {}

func (o *modelObserver) await(t testing.TB, want map[string]string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	for {
		o.mu.Lock()
		got := fmt.Sprint(o.state)
		o.mu.Unlock()
		if got == fmt.Sprint(want) {
			return
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("the observer knows\n%s\nand not\n%v", got, want)
		}
	}
}
