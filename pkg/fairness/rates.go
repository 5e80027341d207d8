package fairness

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"
)

const (
	// burst is how many seconds' worth of a rate may be used at once.
	burst = 60
	// patience is how long a request waits for its rate rather than be refused.
	patience = time.Second
	// writeUnit is how much of a body counts as one write: history in etcd and in the watch
	// caches is made of bytes.
	writeUnit = 8 << 10
	// sweepEvery is how often those that are no longer at work are forgotten.
	sweepEvery = 10 * time.Second
)

// Limits bound what may be asked of one virtual cluster; zero is no limit.
type Limits struct {
	RequestsPerSecond, WritesPerSecond, Watches, Connections int32
}

// Rates holds virtual clusters to their limits. It keeps nothing of those that have been
// quiet for a minute. It is safe for concurrent use.
type Rates struct {
	mu    sync.Mutex
	used  map[string]*usage
	swept time.Time
}

type usage struct {
	requests, writes bucket
	watches          int32
}

// bucket is filled at a rate and holds a minute of it.
type bucket struct {
	tokens float64
	at     time.Time
	rate   float64
}

// NewRates makes the keeper of rates.
func NewRates() *Rates { return &Rates{used: map[string]*usage{}, swept: time.Now()} }

// Admit counts a request to a virtual cluster, and waits up to a second for its turn.
// body is below zero for what is not a write, and the length of its body otherwise. It
// fails with a Refusal, or when ctx is done.
func (r *Rates) Admit(ctx context.Context, cluster string, l Limits, body int64) error {
	writes := 0.0
	if body >= 0 {
		writes = 1 + math.Floor(float64(body)/writeUnit)
	}
	if l.RequestsPerSecond == 0 && (l.WritesPerSecond == 0 || writes == 0) {
		return nil
	}
	r.mu.Lock()
	now := time.Now()
	u := r.usage(cluster, now)
	wait := time.Duration(0)
	var refusal *Refusal
	for _, limit := range []struct {
		*bucket
		rate   int32
		tokens float64
		field  string
		what   string
	}{
		{&u.requests, l.RequestsPerSecond, 1, "requestsPerSecond", "requests"},
		{&u.writes, l.WritesPerSecond, writes, "writesPerSecond", "writes"},
	} {
		if limit.rate == 0 || limit.tokens == 0 {
			continue
		}
		limit.fill(float64(limit.rate), now)
		missing := time.Duration((limit.tokens - limit.bucket.tokens) / limit.bucket.rate * float64(time.Second))
		if missing > patience && limit.bucket.tokens < burst*limit.bucket.rate {
			refusal = &Refusal{Reason: limit.field, RetryAfter: int(math.Ceil(missing.Seconds())), Message: fmt.Sprintf(
				"virtual cluster %q is at its limit of %d %s per second (rates.%s): send fewer, or ask the platform team for more",
				cluster, limit.rate, limit.what, limit.field)}
			break
		}
		limit.bucket.tokens -= limit.tokens
		wait = max(wait, missing)
	}
	r.mu.Unlock()
	if refusal != nil {
		return refusal
	}
	if wait <= 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Watch counts an open watch; release must be called when it ends. It fails with a
// Refusal when there are too many.
func (r *Rates) Watch(cluster string, l Limits) (release func(), err error) {
	if l.Watches == 0 {
		return func() {}, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	u := r.usage(cluster, time.Now())
	if u.watches >= l.Watches {
		return nil, &Refusal{Reason: "watches", RetryAfter: 5, Message: fmt.Sprintf(
			"virtual cluster %q has %d watches open, which is its limit (rates.watches): end some, or ask the platform team for more", cluster, u.watches)}
	}
	u.watches++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		u.watches--
	}, nil
}

// usage is called with mu held.
func (r *Rates) usage(cluster string, now time.Time) *usage {
	if now.Sub(r.swept) > sweepEvery {
		r.swept = now
		for name, u := range r.used {
			if u.watches == 0 && u.requests.full(now) && u.writes.full(now) {
				delete(r.used, name)
			}
		}
	}
	u := r.used[cluster]
	if u == nil {
		u = &usage{}
		r.used[cluster] = u
	}
	return u
}

// fill brings a bucket up to now. One that is new, or has got another rate, begins full.
func (b *bucket) fill(rate float64, now time.Time) {
	if b.rate != rate {
		b.rate, b.tokens = rate, burst*rate
	} else {
		b.tokens = min(burst*rate, b.tokens+now.Sub(b.at).Seconds()*rate)
	}
	b.at = now
}

func (b *bucket) full(now time.Time) bool {
	return b.tokens+now.Sub(b.at).Seconds()*b.rate >= burst*b.rate
}
