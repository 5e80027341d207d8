package logical

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// Observer is told the state of a resource in all virtual clusters, and then every
// change of it. Its methods are called one after another by the goroutine that
// called Observe. The objects are shared with the watch cache and must not be
// modified. They may be Quarantined.
type Observer interface {
	// Replaced gives the whole state as of a revision: at first, and whenever changes
	// may have been missed. What is not in it does not exist. The slice is shared too.
	Replaced(items []*object.Object, revision uint64)
	// Changed gives one change: watch.Added, Modified or Deleted, the last with the
	// object as it was, and the revision of its deletion. Revisions never decrease.
	Changed(t watch.EventType, obj *object.Object, revision uint64)
	// Progressed tells that all changes up to a revision have been given.
	Progressed(revision uint64)
}

// Observers are told all that one Observer is, one after the other.
type Observers []Observer

// Replaced implements Observer.
func (os Observers) Replaced(items []*object.Object, revision uint64) {
	for _, o := range os {
		o.Replaced(items, revision)
	}
}

// Changed implements Observer.
func (os Observers) Changed(t watch.EventType, obj *object.Object, revision uint64) {
	for _, o := range os {
		o.Changed(t, obj, revision)
	}
}

// Progressed implements Observer.
func (os Observers) Progressed(revision uint64) {
	for _, o := range os {
		o.Progressed(revision)
	}
}

// Observe tells the observer the state of a resource and all its changes, until ctx
// is done; it returns ctx's error then, and another only when the resource has not
// been opened or the backend is closed. It may be called before the watch cache has
// synced. An observer that is too slow loses single changes and is given the whole
// state instead; it never delays the watch cache or another observer.
func (b *Backend) Observe(ctx context.Context, gr schema.GroupResource, o Observer) error {
	s, err := b.opened(gr)
	if err != nil {
		return err
	}
	sub := &subscriber{wake: make(chan struct{}, 1)}
	s.feed.subscribe(sub)
	defer s.feed.unsubscribe(sub)

	var seen uint64 // what Replaced gave last; its changes need not be told again
	for {
		if since, lost := sub.lost(); lost {
			items, revision, err := s.current(ctx, since)
			if err == nil && sub.found(since) {
				o.Replaced(items, revision)
				seen = revision
			} else if err != nil {
				// The watch cache is not ready or behind. The feed tells when it has listed.
				if err := b.sleep(ctx, sub.wake, relistInterval); err != nil {
					return err
				}
			}
			continue
		}
		for _, n := range sub.take() {
			switch n.kind {
			case noticeReplaced:
				o.Replaced(asObjects(n.items), n.revision)
				seen = n.revision
			case noticeChanged:
				// Several keys may change in one revision, and a list from the watch
				// cache may fall between them: telling one twice does no harm.
				if n.revision >= seen {
					o.Changed(n.event, n.object.(*object.Object), n.revision)
				}
			case noticeProgressed:
				if n.revision > seen {
					o.Progressed(n.revision)
				}
			}
		}
		if err := b.sleep(ctx, sub.wake, 0); err != nil {
			return err
		}
	}
}

// ObserveCached is Observe for those who then read the watch cache: of what they are told,
// it has all. Observe itself is often a moment ahead of it.
func (b *Backend) ObserveCached(ctx context.Context, gr schema.GroupResource, o Observer) error {
	s, err := b.opened(gr)
	if err != nil {
		return err
	}
	return b.Observe(ctx, gr, &behindCache{Observer: o, wait: func(revision uint64) { s.awaitCache(ctx, revision) }})
}

type behindCache struct {
	Observer
	wait func(revision uint64)
}

func (c *behindCache) Replaced(items []*object.Object, revision uint64) {
	c.wait(revision)
	c.Observer.Replaced(items, revision)
}

func (c *behindCache) Changed(t watch.EventType, obj *object.Object, revision uint64) {
	c.wait(revision)
	c.Observer.Changed(t, obj, revision)
}

// awaitCache returns when the watch cache has a revision, or ctx is done.
func (s *store) awaitCache(ctx context.Context, revision uint64) {
	options := storage.GetOptions{IgnoreNotFound: true, ResourceVersion: strconv.FormatUint(revision, 10)}
	for ctx.Err() == nil {
		// No key is like this one; it is the waiting that is wanted.
		if err := s.cacher.Get(ctx, s.resourcePrefix+"/", options, s.codec.newObject()); err == nil {
			return
		}
		if err := s.backend.sleep(ctx, nil, relistInterval); err != nil {
			return
		}
	}
}

// sleep waits to be woken, for some time if there is a limit.
func (b *Backend) sleep(ctx context.Context, wake <-chan struct{}, limit time.Duration) error {
	var timeout <-chan time.Time
	if limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-wake:
		return nil
	case <-timeout:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-b.done:
		return ErrClosed
	}
}

const (
	relistInterval = 50 * time.Millisecond
	// maxNotices is how far an observer may fall behind before it has to list anew.
	maxNotices = 1 << 16
)

// current is the state of all virtual clusters, not older than a revision.
func (s *store) current(ctx context.Context, notBefore uint64) ([]*object.Object, uint64, error) {
	list := s.codec.newList()
	err := s.cache.GetList(ctx, s.resourcePrefix, storage.ListOptions{
		ResourceVersion:      strconv.FormatUint(notBefore, 10),
		ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
		Predicate:            storage.Everything,
		Recursive:            true,
	}, list)
	if err != nil {
		return nil, 0, err
	}
	objects, ok := list.(*object.List)
	if !ok {
		return nil, 0, fmt.Errorf("listing %s: got a %T", s.resource, list)
	}
	items := make([]*object.Object, len(objects.Items))
	for i := range objects.Items {
		items[i] = &objects.Items[i]
	}
	revision, err := s.Versioner().ParseResourceVersion(objects.ResourceVersion)
	return items, revision, err
}

func asObjects(items []runtime.Object) []*object.Object {
	out := make([]*object.Object, len(items))
	for i, item := range items {
		out[i] = item.(*object.Object)
	}
	return out
}

type noticeKind int

const (
	noticeReplaced noticeKind = iota
	noticeChanged
	noticeProgressed
)

type notice struct {
	kind     noticeKind
	event    watch.EventType
	object   runtime.Object
	items    []runtime.Object
	revision uint64
}

// subscriber queues what the feed tells for one observer.
type subscriber struct {
	wake chan struct{} // holds one token when there may be something new

	mu      sync.Mutex
	notices []notice
	missing bool   // changes up to since were lost: only a list tells them
	since   uint64 // of the last change lost
}

// push queues a notice; revision is what the feed has seen.
func (s *subscriber) push(n notice, revision uint64) {
	s.mu.Lock()
	switch {
	case n.kind == noticeReplaced:
		s.notices, s.missing = append(s.notices[:0], n), false
	case len(s.notices) >= maxNotices:
		s.notices, s.missing, s.since = nil, true, revision
	case n.kind == noticeProgressed && len(s.notices) > 0 && s.notices[len(s.notices)-1].kind == noticeProgressed:
		s.notices[len(s.notices)-1] = n
	default:
		s.notices = append(s.notices, n)
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// start makes a subscriber of a feed that is past its first list ask for the state.
func (s *subscriber) start(revision uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.missing, s.since = revision > 0, revision
}

func (s *subscriber) lost() (since uint64, lost bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.since, s.missing
}

// found tells whether a list not older than since makes up for what was lost.
func (s *subscriber) found(since uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.missing || s.since != since {
		return false
	}
	s.missing = false
	return true
}

// take returns what is queued, or nothing while a list is missing.
func (s *subscriber) take() []notice {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.missing {
		return nil
	}
	taken := s.notices
	s.notices = nil
	return taken
}
