// Package relay is what runs beside an istiod and stands between it and vmesh. Upstream it
// speaks delta xDS over TLS, with an identity, and follows whichever vmesh answers;
// downstream it is istiod's config source, in plain text on loopback. What it has it keeps on
// disk, so that istiod starts and runs while no vmesh is there.
//
// It never decodes a resource: what vmesh has marshalled goes to the disk and to istiod as it came.
package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/sync/errgroup"
	"k8s.io/component-base/metrics"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/dirlock"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

// Relay is a relay. Its methods are safe for concurrent use.
type Relay struct {
	options *Options
	poller  *Poller // may be nil
	kinds   []snapshot.Kind
	metrics *Metrics
	lock    *dirlock.Lock
	cache   *cache
	ready   chan struct{} // closed when the sources are there

	// sourcesChanged has a value when istiod has connected, gone or answered.
	sourcesChanged chan struct{}
	// reports are to be sent to vmesh.
	reports chan *discovery.DeltaDiscoveryRequest

	mu      sync.Mutex
	state   *state
	whole   bool // state has all kinds, and may be served
	sources *sources
	inStep  bool      // a vmesh is connected and has told all
	at      time.Time // when that was so last
	acked   string    // the version of all that istiod has acknowledged last
	ackedAt time.Time
}

// New opens the cache. Register registers metrics, as legacyregistry.MustRegister does; without it
// there are none. A cache that is refused is no error: it is logged, and done without.
func New(ctx context.Context, o *Options, register func(...metrics.Registerable)) (_ *Relay, err error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	r := &Relay{options: o, kinds: meshKinds(), ready: make(chan struct{}), sourcesChanged: make(chan struct{}, 1), reports: make(chan *discovery.DeltaDiscoveryRequest)}
	if register != nil {
		r.metrics = NewMetrics(register)
	}
	if o.IstiodDebug != "" {
		if r.poller, err = NewPoller(o.IstiodDebug); err != nil {
			return nil, fmt.Errorf("--istiod-debug-url: %w", err)
		}
	}
	if r.lock, err = dirlock.Acquire(o.CacheDir); err != nil {
		return nil, fmt.Errorf("--cache-dir %s: %w", o.CacheDir, err)
	}
	if err := r.open(ctx); err != nil {
		return nil, errors.Join(err, r.lock.Release())
	}
	return r, nil
}

func (r *Relay) open(ctx context.Context) error {
	log := klog.FromContext(ctx)
	shards, err := shardsToServe(r.options)
	if err != nil {
		return err
	}
	var held *cached
	r.cache, held, err = openCache(r.options.CacheDir, r.options.Mesh, r.kinds, max(shards, 1), r.metrics)
	switch {
	case errors.Is(err, errNoCache):
		log.Info("There is no cache: istiod is answered once vmesh has told all", "dir", r.options.CacheDir)
	case err != nil:
		log.Error(err, "Starting without the cache: istiod is answered once vmesh has told all")
	}
	if held == nil {
		r.state = emptyState(max(shards, 1), len(r.kinds))
	} else {
		r.state, r.whole, r.at = held.state, true, held.at
		log.Info("Read the cache", "dir", r.options.CacheDir, "resources", r.state.resources(), "asOf", r.at.UTC().Format(time.RFC3339))
	}
	if shards == 0 && r.whole {
		shards = autoShards(r.state.largest())
	}
	if shards > 0 {
		return r.openSources(ctx, shards)
	}
	return nil
}

// openSources binds the ports of so many shards, and says where they are.
func (r *Relay) openSources(ctx context.Context, shards int) error {
	state, err := r.state.spread(shards, r.kinds)
	if err != nil {
		return err
	}
	s, err := listenSources(r, shards)
	if err != nil {
		return err
	}
	if err := errors.Join(keepShards(r.options, shards, state.resources()), writeMeshConfig(r.options, shards)); err != nil {
		s.close()
		return err
	}
	r.state, r.sources = state, s
	if r.whole {
		r.cache.reshard(state)
	}
	klog.FromContext(ctx).Info("Serving istiod", "from", r.options.address(0), "shards", shards)
	close(r.ready)
	return nil
}

// Run works until ctx ends, and returns an error when a part of it fails before. It must be called once.
func (r *Relay) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, r.cache.close(), r.lock.Release()) }()
	health, err := r.listenHealth()
	if err != nil {
		r.closeSources()
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return r.serveHealth(ctx, health) })
	group.Go(func() error {
		r.cache.run(ctx, r.isInStep)
		return nil
	})
	group.Go(func() error {
		select {
		case <-r.ready:
		case <-ctx.Done():
			return nil
		}
		r.mu.Lock()
		sources := r.sources
		r.mu.Unlock()
		return sources.serve(ctx)
	})
	broken := make(chan error, 1)
	up := &upstream{
		addresses: r.options.Upstream, mesh: r.options.Mesh, node: newNode(r.options), kinds: r.kinds, credentials: &r.options.Identity, metrics: r.metrics,
		current: r.current, apply: r.apply, lost: r.lost, distributed: r.distributed, distributedChanged: r.sourcesChanged, reports: r.reports,
		answered: func(ctx context.Context) {
			if err := r.answered(ctx); err != nil {
				select {
				case broken <- err:
				default:
				}
			}
		},
	}
	group.Go(func() error { return up.run(ctx) })
	if r.poller != nil {
		group.Go(func() error {
			r.poller.Run(ctx, r.acknowledged, func(version string, p Proxies) { r.report(ctx, ProxiesRequest(version, p)) })
			return nil
		})
	}
	group.Go(func() error {
		select {
		case err := <-broken:
			return err
		case <-ctx.Done():
			return nil
		}
	})
	return group.Wait()
}

func (r *Relay) closeSources() {
	if r.sources != nil {
		r.sources.close()
	}
}

// current is the state that what comes next is a change of, or nil.
func (r *Relay) current() *state {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.whole {
		return nil
	}
	return r.state
}

// apply takes in a change as a whole, or not at all. Before there is a whole state, it is
// collected; after that it is written, and then served.
func (r *Relay) apply(ctx context.Context, c change) (generation uint64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next, err := r.state.with(c, time.Now())
	if err != nil {
		return 0, err
	}
	r.state = next
	if r.whole {
		r.cache.put(ctx, next)
		r.publish()
	}
	return next.generation, nil
}

// publish must be called with the lock held, with a whole state.
func (r *Relay) publish() {
	for kind := range r.kinds {
		n := 0
		lists := r.state.kindLists(kind)
		for _, l := range lists {
			n += l.Len()
		}
		r.metrics.serves(r.kinds[kind].Name, n, snapshot.VersionOf(lists...))
	}
	if r.sources != nil {
		r.sources.publish(r.state)
	}
}

// answered takes note that vmesh has told all.
func (r *Relay) answered(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inStep = true
	r.metrics.isConnected(true)
	if r.whole {
		return nil
	}
	if r.sources == nil {
		if err := r.openSources(ctx, autoShards(r.state.largest())); err != nil {
			return err
		}
	}
	r.whole = true
	r.cache.put(ctx, r.state)
	r.publish()
	return nil
}

func (r *Relay) lost(context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inStep, r.at = false, time.Now()
	r.metrics.isConnected(false)
}

func (r *Relay) isInStep() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.inStep
}

// staleness is how long ago what is served was known to be vmesh's; false when nothing is served.
func (r *Relay) staleness() (time.Duration, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !r.whole:
		return 0, false
	case r.inStep:
		return 0, true
	}
	return max(0, time.Since(r.at)), true
}

// distributed is which generation of each kind istiod has.
func (r *Relay) distributed() []uint64 {
	r.mu.Lock()
	state, sources, whole := r.state, r.sources, r.whole
	r.mu.Unlock()
	reached := make([]uint64, len(r.kinds))
	if sources == nil || !whole {
		return reached
	}
	all := true
	for kind, has := range sources.have(state) {
		if all = all && has; has {
			reached[kind] = state.generation
		}
	}
	if version := state.all(); all {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.acked != version {
			r.acked, r.ackedAt = version, time.Now()
		}
	}
	return reached
}

// acknowledged is the version of the last state that istiod has acknowledged whole, and since when;
// empty before there is one.
func (r *Relay) acknowledged() (version string, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.acked, r.ackedAt
}

// report tells vmesh of something that it does not answer, or drops it when ctx ends first.
func (r *Relay) report(ctx context.Context, request *discovery.DeltaDiscoveryRequest) {
	select {
	case r.reports <- request:
	case <-ctx.Done():
	}
}

// sourceChanged is called by the sources' servers, with no lock held.
func (r *Relay) sourceChanged() {
	r.mu.Lock()
	sources := r.sources
	r.mu.Unlock()
	if sources == nil {
		return
	}
	if sources.attend() {
		r.mu.Lock()
		if r.whole {
			r.publish()
		}
		r.mu.Unlock()
	}
	select {
	case r.sourcesChanged <- struct{}{}:
	default:
	}
}

func listen(flag, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: choose another port, or stop who has it", flag, err)
	}
	return l, nil
}
