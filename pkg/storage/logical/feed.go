package logical

import (
	"context"
	"fmt"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/klog/v2"
)

// feed stands between etcd and a resource's watch cache, and shows what the cache is
// given to the process's own readers as well: the same objects, by the same watch of
// etcd, before the cache has gone through its own queues.
type feed struct {
	storage.Interface // etcd
	codec             *codec
	resourcePrefix    string
	resource          string
	metrics           *metrics

	mu          sync.Mutex
	revision    uint64               // seen last; 0 before the first list
	pages       []runtime.Object     // of a list that is not complete
	quarantined map[string]uint64    // by key, the revision that was reported
	subscribers map[*subscriber]bool // each is told everything, in order
}

func newFeed(s storage.Interface, c *codec, resourcePrefix, resource string, m *metrics) *feed {
	return &feed{
		Interface:      s,
		codec:          c,
		resourcePrefix: resourcePrefix,
		resource:       resource,
		metrics:        m,
		quarantined:    map[string]uint64{},
		subscribers:    map[*subscriber]bool{},
	}
}

// EnableResourceSizeEstimation keeps no sizes: they would cost a map entry per
// object, and only serve to guess the cost of lists that bypass the watch cache.
func (f *feed) EnableResourceSizeEstimation(storage.KeysFunc) error { return nil }

// IsWatchListSemanticsUnSupported makes the watch cache start by lists. What a watch
// gives at its beginning, client-go's reflector would collect by namespace and name
// alone, and so keep one of all the virtual clusters' objects that are named alike.
func (f *feed) IsWatchListSemanticsUnSupported() bool { return true }

// GetList is how the watch cache starts, page by page.
func (f *feed) GetList(ctx context.Context, key string, opts storage.ListOptions, list runtime.Object) error {
	if err := f.Interface.GetList(ctx, key, opts, list); err != nil {
		return err
	}
	if opts.ResourceVersionMatch == metav1.ResourceVersionMatchExact {
		return nil // a consistency check of client-go
	}
	items, err := meta.ExtractList(list)
	if err != nil {
		return err
	}
	m, err := meta.ListAccessor(list)
	if err != nil {
		return err
	}
	revision, err := f.Versioner().ParseResourceVersion(m.GetResourceVersion())
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if opts.Predicate.Continue == "" {
		f.pages = nil
	}
	f.pages = append(f.pages, items...)
	if m.GetContinue() == "" {
		f.replaced(f.pages, revision)
		f.pages = nil
	}
	return nil
}

// Watch is how the watch cache follows etcd.
func (f *feed) Watch(ctx context.Context, key string, opts storage.ListOptions) (watch.Interface, error) {
	source, err := f.Interface.Watch(ctx, key, opts)
	if err != nil {
		return nil, err
	}
	t := &tee{
		feed:    f,
		source:  source,
		result:  make(chan watch.Event, 100),
		stopped: make(chan struct{}),
	}
	go t.run()
	return t, nil
}

// replaced is called with mu held.
func (f *feed) replaced(items []runtime.Object, revision uint64) {
	known := f.quarantined
	f.quarantined = map[string]uint64{}
	for _, obj := range items {
		f.check(watch.Added, obj, known)
	}
	f.metrics.quarantined.WithLabelValues(f.resource).Set(float64(len(f.quarantined)))
	f.revision = revision
	for s := range f.subscribers {
		s.push(notice{kind: noticeReplaced, items: items, revision: revision}, f.revision)
	}
}

func (f *feed) changed(t watch.EventType, obj runtime.Object) {
	revision, err := f.Versioner().ObjectResourceVersion(obj)
	if err != nil { // etcd3 has just written it
		klog.ErrorS(err, "Reading the revision of an event", "resource", f.resource)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.check(t, obj, f.quarantined)
	f.revision = max(f.revision, revision)
	for s := range f.subscribers {
		s.push(notice{kind: noticeChanged, event: t, object: obj, revision: revision}, f.revision)
	}
}

func (f *feed) progressed(revision uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revision = max(f.revision, revision)
	for s := range f.subscribers {
		s.push(notice{kind: noticeProgressed, revision: revision}, f.revision)
	}
}

// check keeps account of quarantined objects, and reports each revision once.
func (f *feed) check(t watch.EventType, obj runtime.Object, known map[string]uint64) {
	reason, is := f.codec.quarantined(obj)
	if !is && len(known) == 0 {
		return
	}
	key, err := f.codec.key(f.resourcePrefix, obj)
	if err != nil {
		klog.ErrorS(err, "Making the key of an object", "resource", f.resource)
		return
	}
	if !is || t == watch.Deleted {
		delete(f.quarantined, key)
	} else {
		revision, _ := f.Versioner().ObjectResourceVersion(obj)
		if known[key] != revision {
			klog.ErrorS(nil, "A stored object cannot be read and is quarantined", "resource", f.resource, "key", key, "revision", revision, "reason", reason)
		}
		f.quarantined[key] = revision
	}
	f.metrics.quarantined.WithLabelValues(f.resource).Set(float64(len(f.quarantined)))
}

// isQuarantined tells whether the watch cache has a placeholder under a key.
func (f *feed) isQuarantined(key string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, is := f.quarantined[key]
	return is
}

// lastRevision is the revision that the feed has seen, at least.
func (f *feed) lastRevision() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.revision
}

func (f *feed) subscribe(s *subscriber) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subscribers[s] = true
	s.start(f.revision)
}

func (f *feed) unsubscribe(s *subscriber) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.subscribers, s)
}

// tee passes a watch of etcd on to the watch cache, and to the feed first.
type tee struct {
	feed   *feed
	source watch.Interface
	result chan watch.Event

	stopOnce sync.Once
	stopped  chan struct{}
}

func (t *tee) ResultChan() <-chan watch.Event { return t.result }

func (t *tee) Stop() {
	t.stopOnce.Do(func() {
		close(t.stopped)
		t.source.Stop()
	})
}

// run ends when the source's channel is closed, which Stop brings about.
func (t *tee) run() {
	defer close(t.result)
	for event := range t.source.ResultChan() {
		if isNil(event.Object) {
			// etcd3 makes no object of the deletion of an empty value, and the watch
			// cache would keep what it has for ever: it has to list anew.
			expired := apierrors.NewResourceExpired("an empty value was deleted").Status()
			event = watch.Event{Type: watch.Error, Object: &expired}
		}
		if err := t.observe(event); err != nil {
			klog.ErrorS(err, "Observing the watch of etcd", "resource", t.feed.resource)
		}
		select {
		case t.result <- event:
		case <-t.stopped:
		}
	}
}

func isNil(obj runtime.Object) bool {
	if timed, ok := obj.(storage.WatchEventWithRecordTime); ok {
		obj = timed.Unwrap()
	}
	return obj == nil
}

func (t *tee) observe(event watch.Event) error {
	obj := event.Object
	if timed, ok := obj.(storage.WatchEventWithRecordTime); ok {
		obj = timed.Unwrap()
	}
	switch event.Type {
	case watch.Added, watch.Modified, watch.Deleted:
		t.feed.changed(event.Type, obj)
	case watch.Bookmark:
		revision, err := t.feed.Versioner().ObjectResourceVersion(obj)
		if err != nil {
			return fmt.Errorf("reading a bookmark: %w", err)
		}
		t.feed.progressed(revision)
	case watch.Error: // the watch cache lists anew, and then the feed is told
	}
	return nil
}
