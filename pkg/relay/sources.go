package relay

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
	"github.com/vmesh-io/vmesh/pkg/sync/xds"
)

// sources are istiod's config sources: one server on one port for each shard. istiod merges
// them, so that it would delete what is on those that it has not been told of: nothing is
// answered until each has been asked once.
type sources struct {
	relay     *Relay
	listeners []net.Listener
	builders  []*snapshot.Builder
	servers   []*xds.Server

	mu        sync.Mutex
	attended  bool
	published []*snapshot.Snapshot
}

func listenSources(r *Relay, shards int) (*sources, error) {
	s := &sources{relay: r, published: make([]*snapshot.Snapshot, shards)}
	for i := range shards {
		l, err := listen("--listen-base, --shards", r.options.address(i))
		if err != nil {
			s.close()
			return nil, err
		}
		s.listeners = append(s.listeners, l)
		builder := snapshot.NewBuilder(r.kinds, nil)
		s.builders = append(s.builders, builder)
		s.servers = append(s.servers, xds.New(builder, xds.Options{Mesh: r.options.Mesh, Changed: func(string) { r.sourceChanged() }}))
	}
	r.metrics.sharded(shards, 0)
	return s, nil
}

func (s *sources) close() {
	for _, l := range s.listeners {
		_ = l.Close() // nothing was accepted
	}
}

func (s *sources) serve(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for i, server := range s.servers {
		group.Go(func() error { return server.Serve(ctx, s.listeners[i], nil, nil) })
	}
	group.Go(func() error {
		s.watch(ctx)
		return nil
	})
	return group.Wait()
}

// attend counts the shards that istiod is connected to, and says whether that makes them all, for
// the first time.
func (s *sources) attend() bool {
	connected := 0
	for _, server := range s.servers {
		if server.Connected(s.relay.options.Mesh) > 0 {
			connected++
		}
	}
	s.relay.metrics.sharded(len(s.servers), connected)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.attended || connected < len(s.servers) {
		return false
	}
	s.attended = true
	return true
}

// missing are the addresses that istiod has no stream to, if it has one to any.
func (s *sources) missing() []string {
	var missing []string
	for i, server := range s.servers {
		if server.Connected(s.relay.options.Mesh) == 0 {
			missing = append(missing, s.listeners[i].Addr().String())
		}
	}
	if len(missing) == len(s.servers) {
		return nil
	}
	return missing
}

// publish has a state served. Only shards in which something is new are touched. It must not be
// called concurrently.
func (s *sources) publish(next *state) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.attended {
		return
	}
	for i, lists := range next.shards {
		if old := s.published[i]; old != nil && slices.Equal(old.Lists, lists) {
			continue
		}
		s.published[i] = &snapshot.Snapshot{Mesh: s.relay.options.Mesh, Lists: lists}
		s.builders[i].Put(s.published[i])
	}
}

// have says of each kind whether istiod has acknowledged all of it that a state holds, on every
// shard; and if several istiods are connected, every one.
func (s *sources) have(state *state) []bool {
	all := slices.Repeat([]bool{true}, len(s.relay.kinds))
	for i, server := range s.servers {
		for kind, has := range server.Have(s.relay.options.Mesh, state.shards[i]) {
			all[kind] = all[kind] && has
		}
	}
	return all
}

// watch tells when istiod is connected to some shards only, until ctx ends: it was started with
// another mesh configuration than the relay's, and gets nothing.
func (s *sources) watch(ctx context.Context) {
	const patience = 10 * time.Second
	tick := time.NewTicker(patience)
	defer tick.Stop()
	before := false
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		missing := s.missing()
		if len(missing) > 0 && before {
			klog.FromContext(ctx).Error(nil, "istiod is connected to some of the shards only: restart it with the configSources that vmesh relay mesh-config prints",
				"shards", len(s.servers), "missing", missing[:min(len(missing), 5)])
		}
		before = len(missing) > 0
	}
}
