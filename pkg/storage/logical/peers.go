package logical

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/klog/v2"
)

const (
	// peerSeconds is how long a server that ended without saying so counts as alive.
	peerSeconds = 10
	// peersEvery is how often each looks who is there.
	peersEvery = 5 * time.Second
	// peerTimeout bounds one question to etcd.
	peerTimeout = 5 * time.Second
)

// Peers knows which servers on one etcd are alive. Each has a key there that lasts as long
// as its lease, which takes no writes to keep. Its methods may be called from several
// goroutines.
type Peers struct {
	client *clientv3.Client
	prefix string
	name   string
	shared bool

	registered chan struct{} // closed when the others know of this one
	once       sync.Once
	changes    atomic.Uint64

	mu    sync.Mutex
	known map[string]struct{}
}

// Peers makes one that knows nobody yet. This server's name is its host's, with something
// that no other process has.
func (b *Backend) Peers() *Peers {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "unknown"
	}
	return &Peers{
		client: b.config.Client, prefix: b.config.Prefix + "-servers/", name: host + "-" + utilrand.String(5), shared: b.config.Shared,
		registered: make(chan struct{}), known: map[string]struct{}{},
	}
}

// Name is this server's.
func (p *Peers) Name() string { return p.name }

// Shared says that there may be others at all.
func (p *Peers) Shared() bool { return p.shared }

// Registered is closed once the others can know that this server is alive.
func (p *Peers) Registered() <-chan struct{} { return p.registered }

// Changes counts how often a server has gone, or this one had to make itself known anew: then
// what others say of the one that it was about may be out of date.
func (p *Peers) Changes() uint64 { return p.changes.Load() }

// Alive says whether a server is. One that is not known as such is looked up in etcd. One
// that has ended may count as alive for fifteen seconds.
func (p *Peers) Alive(ctx context.Context, name string) (bool, error) {
	switch {
	case name == p.name:
		return true, nil
	case name == "" || !p.shared:
		return false, nil
	}
	p.mu.Lock()
	_, ok := p.known[name]
	p.mu.Unlock()
	if ok {
		return true, nil
	}
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	response, err := p.client.Get(ctx, p.prefix+name, clientv3.WithCountOnly())
	if err != nil {
		return false, fmt.Errorf("looking for the server %s: %w", name, err)
	}
	return response.Count > 0, nil
}

// First says whether this server is the first of those that are alive, by their names: the one that does what one of
// them has to do. While servers come and go, none or two may think so of themselves for fifteen seconds.
func (p *Peers) First() bool {
	if !p.shared {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, registered := p.known[p.name]; !registered {
		return false
	}
	for name := range p.known {
		if name < p.name {
			return false
		}
	}
	return true
}

// Run makes this server known and looks who else is there, until ctx ends.
func (p *Peers) Run(ctx context.Context) error {
	if !p.shared {
		p.once.Do(func() { close(p.registered) })
		<-ctx.Done()
		return nil
	}
	ticker := time.NewTicker(peersEvery)
	defer ticker.Stop()
	var session *concurrency.Session
	defer func() {
		if session != nil {
			_ = session.Close() // when etcd is away, the lease runs out
		}
	}()
	for {
		if err := p.look(ctx, &session); err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).V(1).Info("Looking for the other servers failed and is tried again", "reason", err)
		}
		var ended <-chan struct{}
		if session != nil {
			ended = session.Done()
		}
		select {
		case <-ticker.C:
		case <-ended:
			session = nil
		case <-ctx.Done():
			return nil
		}
	}
}

// look makes this server known if it is not, and asks who is.
func (p *Peers) look(ctx context.Context, session **concurrency.Session) error {
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	if *session == nil {
		lease, err := p.client.Grant(ctx, peerSeconds)
		if err != nil {
			return err
		}
		if _, err := p.client.Put(ctx, p.prefix+p.name, "", clientv3.WithLease(lease.ID)); err != nil {
			return err
		}
		if *session, err = concurrency.NewSession(p.client, concurrency.WithTTL(peerSeconds), concurrency.WithLease(lease.ID)); err != nil {
			*session = nil
			return err
		}
		p.changes.Add(1)
		p.once.Do(func() { close(p.registered) })
	}
	response, err := p.client.Get(ctx, p.prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return err
	}
	present := make(map[string]struct{}, len(response.Kvs))
	for _, kv := range response.Kvs {
		present[strings.TrimPrefix(string(kv.Key), p.prefix)] = struct{}{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for name := range p.known {
		if _, ok := present[name]; !ok {
			p.changes.Add(1)
		}
	}
	p.known = present
	return nil
}
