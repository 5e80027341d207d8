package logical

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

const (
	// lockSeconds is how long a lock outlives a process that ended without letting it go.
	lockSeconds = 10
	// unlockTimeout is how long etcd may take to be told that a lock is let go.
	unlockTimeout = 5 * time.Second
)

// locks are held by one goroutine at a time, of all processes that write to this etcd.
type locks struct {
	client *clientv3.Client
	prefix string

	mu      sync.Mutex
	session *concurrency.Session
	local   map[string]chan struct{} // full while a goroutine of this process has it
}

// Shared says that other processes may write to the same etcd.
func (b *Backend) Shared() bool { return b.config.Shared }

// Lock waits until nobody else holds the lock of a name, here or, when the etcd is
// shared, in another process, and holds it until unlock is called. A process that is
// paused for longer than ten seconds may lose it unawares.
func (b *Backend) Lock(ctx context.Context, name string) (unlock func(), err error) {
	l := &b.locks
	l.mu.Lock()
	mine := l.local[name]
	if mine == nil {
		mine = make(chan struct{}, 1)
		l.local[name] = mine
	}
	l.mu.Unlock()
	select {
	case mine <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if !b.config.Shared {
		return func() { <-mine }, nil
	}
	held, err := l.acquire(ctx, name)
	if err != nil {
		<-mine
		return nil, answerable(ctx, fmt.Errorf("waiting for the lock of %s: %w", name, err))
	}
	return func() {
		// Should etcd be away, the lock ends with its session.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockTimeout)
		defer cancel()
		if err := held.Unlock(ctx); err != nil {
			l.forget()
		}
		<-mine
	}, nil
}

func (l *locks) acquire(ctx context.Context, name string) (*concurrency.Mutex, error) {
	session, err := l.live(ctx)
	if err != nil {
		return nil, err
	}
	held := concurrency.NewMutex(session, l.prefix+name)
	if err := held.Lock(ctx); err != nil {
		if errors.Is(err, concurrency.ErrSessionExpired) || ctx.Err() == nil {
			l.forget()
		}
		return nil, err
	}
	return held, nil
}

// live is the session of all locks of this process, made anew when it has ended.
func (l *locks) live(ctx context.Context) (*concurrency.Session, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.session != nil {
		select {
		case <-l.session.Done():
		default:
			return l.session, nil
		}
	}
	lease, err := l.client.Grant(ctx, lockSeconds)
	if err != nil {
		return nil, err
	}
	l.session, err = concurrency.NewSession(l.client, concurrency.WithTTL(lockSeconds), concurrency.WithLease(lease.ID))
	return l.session, err
}

// forget has the next lock begin a session of its own. This one ends when its lease runs
// out, and not before: other locks may rest on it.
func (l *locks) forget() {
	if session := l.take(); session != nil {
		session.Orphan()
	}
}

// close ends the session, and with it what it holds.
func (l *locks) close() {
	if session := l.take(); session != nil {
		_ = session.Close() // when etcd is away, the lease runs out
	}
}

func (l *locks) take() *concurrency.Session {
	l.mu.Lock()
	defer l.mu.Unlock()
	session := l.session
	l.session = nil
	return session
}
