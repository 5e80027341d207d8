package logical

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"
)

// clusterField is the name of the watch cache's index: an event wakes the watchers
// of its virtual cluster, and not those of every namespace of that name.
const clusterField = "vmesh.io/cluster"

// clusterSelector is a field selector that also asks for a virtual cluster, as far as
// the index goes. The objects themselves need no such field: their key is checked.
type clusterSelector struct {
	fields.Selector
	cluster string
}

func ofCluster(s fields.Selector, cluster string) fields.Selector {
	if s == nil {
		s = fields.Everything()
	}
	return clusterSelector{Selector: s, cluster: cluster}
}

func (s clusterSelector) RequiresExactMatch(field string) (string, bool) {
	if field == clusterField {
		return s.cluster, true
	}
	return s.Selector.RequiresExactMatch(field)
}

func (s clusterSelector) DeepCopySelector() fields.Selector {
	return clusterSelector{Selector: s.Selector.DeepCopySelector(), cluster: s.cluster}
}

// watch serves a watch that begins with the state as a list and a watch from there:
// the watch cache itself would walk through the objects of all virtual clusters.
func (s *store) watch(ctx context.Context, key string, opts storage.ListOptions) (watch.Interface, error) {
	if _, err := storage.PrepareKey(s.resourcePrefix+"/", key, opts.Recursive); err != nil {
		return nil, err
	}
	requested, err := s.Versioner().ParseResourceVersion(opts.ResourceVersion)
	if err != nil {
		return nil, err
	}
	asked := opts.SendInitialEvents != nil && *opts.SendInitialEvents
	legacy := opts.SendInitialEvents == nil && requested == 0
	if !asked && !legacy {
		changes, err := s.cache.Watch(ctx, key, opts)
		if err != nil {
			return nil, err
		}
		return newBufferedWatch(ctx, nil, changes), nil
	}
	list := s.codec.newList()
	listOpts := storage.ListOptions{ResourceVersion: opts.ResourceVersion, Predicate: opts.Predicate, Recursive: opts.Recursive}
	listOpts.Predicate.AllowWatchBookmarks, listOpts.Predicate.IndexFields = false, nil
	listOpts.Predicate.Limit, listOpts.Predicate.Continue = 0, ""
	if legacy {
		listOpts.ResourceVersion = "0"
	} else if opts.ResourceVersion != "" {
		listOpts.ResourceVersionMatch = metav1.ResourceVersionMatchNotOlderThan
	}
	if err := s.GetList(ctx, key, listOpts, list); apierrors.IsTooManyRequests(err) {
		return nil, err
	} else if err != nil {
		return failedWatch(err), nil
	}
	items, err := meta.ExtractList(list)
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", s.resource, err)
	}
	listMeta, err := meta.ListAccessor(list)
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", s.resource, err)
	}
	initial := make([]watch.Event, 0, len(items)+1)
	for _, item := range items {
		initial = append(initial, watch.Event{Type: watch.Added, Object: item})
	}
	if asked && opts.Predicate.AllowWatchBookmarks {
		bookmark := s.codec.newObject()
		m, err := meta.Accessor(bookmark)
		if err != nil {
			return nil, err
		}
		m.SetResourceVersion(listMeta.GetResourceVersion())
		if err := storage.AnnotateInitialEventsEndBookmark(bookmark); err != nil {
			return nil, err
		}
		initial = append(initial, watch.Event{Type: watch.Bookmark, Object: bookmark})
	}
	opts.SendInitialEvents, opts.ResourceVersion, opts.ResourceVersionMatch = nil, listMeta.GetResourceVersion(), ""
	changes, err := s.cache.Watch(ctx, key, opts)
	if err != nil {
		return nil, err
	}
	return newBufferedWatch(ctx, initial, changes), nil
}

// failedWatch tells a client why its watch does not begin, as upstream does for what
// goes wrong after the request was found to be in order.
func failedWatch(err error) watch.Interface {
	var status apierrors.APIStatus
	if !errors.As(answerable(context.Background(), err), &status) {
		status = apierrors.NewInternalError(err)
	}
	event := status.Status()
	result := make(chan watch.Event, 1)
	result <- watch.Event{Type: watch.Error, Object: &event}
	close(result)
	return watch.NewProxyWatcher(result)
}

type begunKey struct{}

// WithWatchBegun is a context for a watch; begun is called when all that there was to tell
// at its beginning has been handed on, and is no longer held.
func WithWatchBegun(ctx context.Context, begun func()) context.Context {
	return context.WithValue(ctx, begunKey{}, begun)
}

// beginning is how long the watch cache may take to tell what has happened since the
// revision that a watch resumes from.
const beginning = 100 * time.Millisecond

// maxPending is how many changes a watch may be behind: as many as upstream allows a
// watch that no index narrows.
const maxPending = 1000

// bufferedWatch is a watch with initial events, and with room for bursts. The watch
// cache gives a watch that uses its index, which is here every one, room for ten
// events; when that is full it delays all others for a while and then ends the watch.
// So it is ended here, before others of any virtual cluster have to wait for it.
type bufferedWatch struct {
	changes watch.Interface
	pending []watch.Event
	result  chan watch.Event

	stopOnce sync.Once
	stopped  chan struct{}
}

func newBufferedWatch(ctx context.Context, initial []watch.Event, changes watch.Interface) *bufferedWatch {
	w := &bufferedWatch{changes: changes, pending: initial, result: make(chan watch.Event, 10), stopped: make(chan struct{})}
	go w.run(ctx)
	return w
}

func (w *bufferedWatch) ResultChan() <-chan watch.Event { return w.result }

func (w *bufferedWatch) Stop() {
	w.stopOnce.Do(func() {
		close(w.stopped)
		w.changes.Stop()
	})
}

// run ends with ctx, by Stop, or when the changes have ended and all of them are told.
func (w *bufferedWatch) run(ctx context.Context) {
	defer close(w.result)
	defer w.Stop()
	changes := w.changes.ResultChan()
	room := len(w.pending) + maxPending
	begun, _ := ctx.Value(begunKey{}).(func())
	var early <-chan time.Time // nil once the beginning is over
	if begun != nil {
		timer := time.NewTimer(beginning)
		defer timer.Stop()
		early = timer.C
	}
	for changes != nil || len(w.pending) > 0 {
		var next watch.Event
		var out chan<- watch.Event
		if len(w.pending) > 0 {
			next, out = w.pending[0], w.result
		} else if begun != nil && early == nil {
			begun()
			begun = nil
		}
		select {
		case e, ok := <-changes:
			switch {
			case !ok:
				changes = nil
			case len(w.pending) >= room:
				return
			default:
				w.pending = append(w.pending, e)
			}
		case out <- next:
			w.pending[0] = watch.Event{} // it may be large
			if w.pending = w.pending[1:]; len(w.pending) == 0 {
				w.pending, room = nil, maxPending
			}
		case <-early:
			early = nil
		case <-w.stopped:
			return
		case <-ctx.Done():
			return
		}
	}
}
