package meshservice

import (
	"context"
	"fmt"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/discovery"
)

// bookmarkEvery is how often a watcher that wants to know is told how far it is.
const bookmarkEvery = time.Minute

// watcher tells one client how the services change that it sees. What changes several times before
// the client has read it is told once.
type watcher struct {
	r      *REST
	scope  Scope
	filter filter
	told   map[discovery.Key]uint64 // what the client has, in which version
	since  uint64
	out    chan watch.Event
	cancel context.CancelFunc
}

// ResultChan implements watch.Interface.
func (w *watcher) ResultChan() <-chan watch.Event { return w.out }

// Stop implements watch.Interface.
func (w *watcher) Stop() { w.cancel() }

// expired is for clients that have to list anew.
func expired(why string) error {
	return apierrors.NewResourceExpired(fmt.Sprintf("%s: list anew, and watch from there", why))
}

// Watch implements rest.Watcher.
func (r *REST) Watch(ctx context.Context, options *internalversion.ListOptions) (watch.Interface, error) {
	scope, err := r.scopes(ctx)
	if err != nil {
		return nil, err
	}
	if options == nil {
		options = &internalversion.ListOptions{}
	}
	w := &watcher{r: r, scope: scope, filter: newFilter(ctx, options), told: map[discovery.Key]uint64{}, out: make(chan watch.Event)}
	initial := options.ResourceVersion == "" || options.ResourceVersion == "0"
	if !initial {
		if w.since, err = strconv.ParseUint(options.ResourceVersion, 10, 64); err != nil {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("resourceVersion: %q is not one that a list has answered", options.ResourceVersion))
		}
	}
	if asked := options.SendInitialEvents; asked != nil {
		if *asked || initial {
			w.since = 0
		}
		initial = *asked
	}
	r.routes.now(scope.Mesh)
	services, version := r.view.List(scope.Mesh, w.filter.in(&scope))
	switch {
	case initial:
		w.since = 0
	case w.since == 0:
		w.since = version
	}
	if w.since != 0 {
		if err := w.resume(services); err != nil {
			return nil, err
		}
	}
	ctx, w.cancel = context.WithCancel(ctx)
	go w.run(ctx, services, version, options)
	return w, nil
}

// resume takes note of what the client has that lists at w.since.
func (w *watcher) resume(services []discovery.Service) error {
	changes, _, _, ok := w.r.view.Changes(w.scope.Mesh, w.since)
	if !ok {
		return expired(fmt.Sprintf("resource version %d is not known any more, or is another server's", w.since))
	}
	in := w.filter.in(&w.scope)
	for _, c := range changes { // labels may have been others
		if c.Born <= w.since && in(c.Namespace) {
			w.told[c.Key] = 0
		}
	}
	for _, s := range services {
		if s.Version <= w.since && w.filter.selects(s) {
			w.told[discovery.Key{Namespace: s.Namespace, Name: s.Name}] = s.Version
		}
	}
	return nil
}

// run tells changes until ctx ends or the client has to begin anew.
func (w *watcher) run(ctx context.Context, services []discovery.Service, version uint64, options *internalversion.ListOptions) {
	defer close(w.out)
	defer w.cancel()
	if w.since == 0 {
		at := w.r.routes.now(w.scope.Mesh)
		for _, s := range services {
			if w.filter.selects(s) && !w.tell(ctx, watch.Added, s, at) {
				return
			}
		}
		w.since = version
		if options.SendInitialEvents != nil && !w.bookmark(ctx, options.AllowWatchBookmarks, true) {
			return
		}
	}
	tick := time.NewTicker(w.r.tick)
	defer tick.Stop()
	for bookmarked := time.Now(); ; {
		at := w.r.routes.now(w.scope.Mesh)
		changes, version, more, ok := w.r.view.Changes(w.scope.Mesh, w.since)
		if !ok {
			w.fail(ctx, expired("too much has changed since the last event that was read"))
			return
		}
		for _, c := range changes {
			if !w.consider(ctx, c, at) {
				return
			}
		}
		w.since = version
		select {
		case <-ctx.Done():
			return
		case <-more:
			continue
		case now := <-tick.C:
			if now.Sub(bookmarked) >= bookmarkEvery {
				bookmarked = now
				if !w.bookmark(ctx, options.AllowWatchBookmarks, false) {
					return
				}
			}
		}
		if !w.rescope(ctx) {
			return
		}
	}
}

// consider tells the client what has become of a service.
func (w *watcher) consider(ctx context.Context, c discovery.Change, at *routing) bool {
	was, had := w.told[c.Key]
	if w.filter.in(&w.scope)(c.Namespace) {
		s, found := w.r.view.Get(w.scope.Mesh, c.Namespace, c.Name)
		if found && w.filter.selects(s) {
			switch {
			case !had:
				return w.tell(ctx, watch.Added, s, at)
			case was != s.Version:
				return w.tell(ctx, watch.Modified, s, at)
			}
			return true
		}
	}
	if !had {
		return true
	}
	delete(w.told, c.Key)
	o, err := w.r.gone(&w.scope, c)
	if err != nil {
		w.fail(ctx, err)
		return false
	}
	return w.send(ctx, watch.Event{Type: watch.Deleted, Object: o})
}

func (w *watcher) tell(ctx context.Context, t watch.EventType, s discovery.Service, at *routing) bool {
	o, err := w.r.object(&w.scope, at, s)
	if err != nil {
		w.fail(ctx, err)
		return false
	}
	w.told[discovery.Key{Namespace: s.Namespace, Name: s.Name}] = s.Version
	return w.send(ctx, watch.Event{Type: t, Object: o})
}

// rescope has the client see what its virtual cluster may see now.
func (w *watcher) rescope(ctx context.Context) bool {
	scope, err := w.r.scopes(ctx)
	if err != nil {
		w.fail(ctx, err)
		return false
	}
	if scope == w.scope {
		return true
	}
	if scope.Mesh != w.scope.Mesh {
		w.fail(ctx, expired("the virtual cluster belongs to another mesh now"))
		return false
	}
	before := w.scope
	w.scope = scope
	at := w.r.routes.now(scope.Mesh)
	services, version := w.r.view.List(scope.Mesh, w.filter.in(&scope))
	for _, s := range services {
		// Others' routes may be seen, or not be seen any more, by the home alone.
		_, had := w.told[discovery.Key{Namespace: s.Namespace, Name: s.Name}]
		if (!had || before.Home != scope.Home) && w.filter.selects(s) {
			t := watch.Added
			if had {
				t = watch.Modified
			}
			if !w.tell(ctx, t, s, at) {
				return false
			}
		}
	}
	for key := range w.told {
		if !scope.Sees(key.Namespace) && !w.consider(ctx, discovery.Change{Key: key, Version: version}, at) {
			return false
		}
	}
	return true
}

// bookmark tells the client how far it is; last says that it has had all initial events.
func (w *watcher) bookmark(ctx context.Context, allowed, last bool) bool {
	if !allowed {
		return true
	}
	o := object.New(w.r.kind.GVK(w.r.version))
	o.ResourceVersion = encodeVersion(w.since)
	if last {
		o.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	}
	return w.send(ctx, watch.Event{Type: watch.Bookmark, Object: o})
}

// fail ends the watch with the reason.
func (w *watcher) fail(ctx context.Context, err error) {
	status, ok := err.(apierrors.APIStatus)
	if !ok {
		status = apierrors.NewInternalError(err)
	}
	s := status.Status()
	w.send(ctx, watch.Event{Type: watch.Error, Object: &s})
}

func (w *watcher) send(ctx context.Context, e watch.Event) bool {
	select {
	case w.out <- e:
		return true
	case <-ctx.Done():
		return false
	}
}
