package logical

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// startPeer runs one until it is stopped, with its key removed or, as when a process is
// killed, not.
func startPeer(t *testing.T, b *Backend) (p *Peers, stop func()) {
	t.Helper()
	p = b.Peers()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	select {
	case <-p.Registered():
	case <-testContext(t).Done():
		t.Fatal("it is not registered")
	}
	return p, stop
}

func TestServersKnowWhoIsAlive(t *testing.T) {
	first := newTestBackend(t, BackendConfig{Shared: true})
	second := newTestBackend(t, BackendConfig{Client: first.client.Client, Shared: true})
	alive := func(p *Peers, name string) bool {
		t.Helper()
		is, err := p.Alive(testContext(t), name)
		if err != nil {
			t.Fatal(err)
		}
		return is
	}
	one, _ := startPeer(t, first)
	other, stop := startPeer(t, second)
	if one.Name() == other.Name() || !strings.Contains(one.Name(), "-") {
		t.Errorf("the names are %q and %q", one.Name(), other.Name())
	}
	// One that has come since the last look is known all the same.
	if !alive(one, other.Name()) || !alive(other, one.Name()) || !alive(one, one.Name()) {
		t.Error("one that is alive is not known")
	}
	if alive(one, "nobody") || alive(one, "") {
		t.Error("nobody is alive")
	}
	for deadline := time.Now().Add(testTimeout); ; time.Sleep(10 * time.Millisecond) {
		one.mu.Lock()
		_, seen := one.known[other.Name()]
		one.mu.Unlock()
		if seen {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the other is never seen")
		}
	}
	least := one
	if other.Name() < one.Name() {
		least = other
	}
	for deadline := time.Now().Add(testTimeout); one.First() != (least == one) || other.First() != (least == other); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not the one with the least name is first, or not it alone")
		}
	}
	changes := one.Changes()
	stop()
	for deadline := time.Now().Add(testTimeout); one.Changes() == changes; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("that the other has gone is never noticed")
		}
	}
	if !one.First() {
		t.Error("the only one is not the first")
	}
	if alive(one, other.Name()) {
		t.Error("one that has gone is alive")
	}
}

func TestAServerWhoseLeaseEndedMakesItselfKnownAnew(t *testing.T) {
	b := newTestBackend(t, BackendConfig{Shared: true})
	p, _ := startPeer(t, b)
	changes := p.Changes()
	ctx := testContext(t)
	key, err := b.client.Client.Get(ctx, p.prefix, clientv3.WithPrefix())
	if err != nil || len(key.Kvs) != 1 {
		t.Fatalf("there are the keys %v, %v", key, err)
	}
	if _, err := b.client.Client.Revoke(ctx, clientv3.LeaseID(key.Kvs[0].Lease)); err != nil {
		t.Fatal(err)
	}
	for p.Changes() == changes {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("it does not notice")
		}
	}
	if key, err = b.client.Client.Get(ctx, p.prefix+p.name); err != nil || len(key.Kvs) != 1 {
		t.Errorf("there are the keys %v, %v", key, err)
	}
}

func TestAServerThatIsAloneAsksNobody(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	p, _ := startPeer(t, b)
	if is, err := p.Alive(t.Context(), "other"); is || err != nil {
		t.Errorf("another is alive: %v, %v", is, err)
	}
	if key, err := b.client.Client.Get(testContext(t), p.prefix, clientv3.WithPrefix()); err != nil || len(key.Kvs) != 0 {
		t.Errorf("there are the keys %v, %v", key, err)
	}
}
