// Package fairness keeps those who use a lot of a server from those who use little of
// it: it deals out places and processor time, and holds virtual clusters to their rates.
package fairness

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"
)

const (
	// accountUnits is how much one account may have under way at a time, and allUnits all
	// together. A small request is one unit; see Work.
	accountUnits, allUnits = 64, 512
	// bodyUnit is how much of a body is one unit.
	bodyUnit = 32 << 10
	// maxQueue is how many requests of an account may wait for a place, and maxWait how long.
	maxQueue = 1000
	maxWait  = 30 * time.Second

	// reserved is the share of the processors that is kept for accounts within their share,
	// while more than one is active. What is over goes to the others.
	reserved = 0.6
	// allowance is for how long an account that has been quiet may use a processor before
	// it counts as one that uses a lot, in seconds.
	allowance = 0.1
	// epoch is how long an account counts as active after a request, at least.
	epoch = time.Second
	// smallDebt is what a request runs up before it is paid: paying takes a lock.
	smallDebt = 200 * time.Microsecond
	// slack is how far behind its time the queue may be and still catch up.
	slack = 3 * time.Millisecond

	// The costs of work are estimates; what the process really uses corrects them, every
	// calibration, if it uses more than calibrationUse of a processor.
	calibration          = 250 * time.Millisecond
	calibrationUse       = 0.2
	minFactor, maxFactor = 0.2, 3
	calibrationSmoothing = 0.3
	idleAccount          = 5 * time.Second // after which an account is forgotten
	maxDebt              = 1.0             // in seconds, of an account's allowance
	costOfWrite          = 30 * time.Microsecond
	costOfByte           = 6 * time.Nanosecond
	costOfBodyByte       = 100 * time.Nanosecond
	// costStep is how much is paid at once: whoever waits for less does not wait for all of
	// a large cost of another.
	costStep = 5 * time.Millisecond
	// calm is after which time without anybody in the queue there is no contention.
	calm = 10 * time.Second
)

// Refusal is why a request is turned away for now.
type Refusal struct {
	// Reason is short and one of few: it is a label of metrics.
	Reason string
	// Message names the limit and the remedy.
	Message string
	// RetryAfter is when to try again, in whole seconds.
	RetryAfter int
}

// Error implements error.
func (r *Refusal) Error() string { return r.Message }

// Scheduler deals out places and processor time to accounts. One account is active: it
// has all there is. Several: those that use less than an equal share of the reserved part
// never wait, and the others share what is over, in turn. It is safe for concurrent use.
type Scheduler struct {
	processors float64
	cpu        func() time.Duration
	contended  func(bool)

	mu       sync.Mutex
	accounts map[string]*account
	units    int
	ring     []*account // that wait for places, the next first

	epochBegan             time.Time
	active, previousActive int // accounts

	lane      []*account // that wait for processor time
	laneNext  time.Time  // when the next may go
	laneClock float64    // the tag that was served last
	laneTimer *time.Timer
	laneUsed  time.Time // when somebody last waited there; zero when contended knows that nobody does

	factor       float64 // of estimated costs
	accounted    float64 // estimated, in seconds, since
	calibratedAt time.Time
	calibratedAs time.Duration
}

type account struct {
	name       string
	units      int
	places     []*waiter
	payments   []*waiter
	tag        float64
	credit     float64 // in seconds of processor time
	creditedAt time.Time
	epoch      time.Time // in which it was last active
	seen       time.Time
	turns      int
}

// waiter waits for a place, or for processor time.
type waiter struct {
	amount  float64
	granted chan struct{}
}

// New makes a scheduler for a process that has some processors; cpu is the processor
// time that it has used so far, and contended, called with locks held, is told when
// accounts begin to want more than their share, and when they have stopped.
func New(processors int, cpu func() time.Duration, contended func(bool)) *Scheduler {
	now := time.Now()
	return &Scheduler{
		processors: float64(processors), cpu: cpu, contended: contended, accounts: map[string]*account{}, factor: 1,
		epochBegan: now, laneNext: now, calibratedAt: now, calibratedAs: cpu(),
	}
}

// Work is what a request is expected to take.
type Work struct {
	// Places is how many units of concurrency it takes, besides those of its body.
	Places int
	// Body is the length of its body, below zero when unknown.
	Body int64
	// Cost is the processor time that it needs besides what its body and its answer need.
	Cost time.Duration
}

func (w Work) units() int {
	body := w.Body
	if body < 0 {
		body = 16 * bodyUnit
	}
	return int(min(int64(w.Places)+body/bodyUnit, accountUnits))
}

// Turn is a request that was let in.
type Turn struct {
	scheduler *Scheduler
	account   *account
	units     int
	debt      time.Duration
}

// Begin waits until it is an account's turn. It fails with a Refusal, or when ctx is
// done. End must be called after.
func (s *Scheduler) Begin(ctx context.Context, name string, w Work) (*Turn, error) {
	t := &Turn{scheduler: s, units: w.units()}
	s.mu.Lock()
	now := time.Now()
	a := s.account(name, now)
	t.account = a
	a.turns++
	if len(a.places) > 0 || !s.fits(a, t.units) {
		if len(a.places) >= maxQueue {
			s.leave(a)
			s.mu.Unlock()
			return nil, &Refusal{Reason: "queue", RetryAfter: 1, Message: fmt.Sprintf(
				"%d requests of the same virtual cluster or user are waiting already: send fewer at a time", maxQueue)}
		}
		wait := &waiter{amount: float64(t.units), granted: make(chan struct{})}
		if len(a.places) == 0 {
			s.ring = append(s.ring, a)
		}
		a.places = append(a.places, wait)
		s.mu.Unlock()
		if err := s.awaitPlace(ctx, a, wait); err != nil {
			return nil, err
		}
	} else {
		a.units += t.units
		s.units += t.units
		s.mu.Unlock()
	}
	cost := w.Cost
	if w.Body > 0 {
		cost += time.Duration(w.Body) * costOfBodyByte
	}
	for ; cost > 0; cost -= costStep {
		if err := t.pay(ctx, min(cost, costStep)); err != nil {
			t.End()
			return nil, err
		}
	}
	return t, nil
}

// Release gives the place back before the end, for what goes on at little cost. It may be
// called more than once, and from another goroutine.
func (t *Turn) Release() {
	t.scheduler.mu.Lock()
	defer t.scheduler.mu.Unlock()
	t.release()
}

func (t *Turn) release() {
	if t.units == 0 {
		return
	}
	t.account.units -= t.units
	t.scheduler.units -= t.units
	t.units = 0
	t.scheduler.dispatchPlaces()
}

// End ends the turn; it gives the place back.
func (t *Turn) End() {
	s := t.scheduler
	s.mu.Lock()
	defer s.mu.Unlock()
	s.charge(t.account, s.correct(t.debt))
	s.leave(t.account)
	t.release()
}

// Wrote accounts for a part of the answer of so many bytes, and waits when the account
// has to. An error is that of ctx.
func (t *Turn) Wrote(ctx context.Context, bytes int) error {
	t.debt += costOfWrite + time.Duration(bytes)*costOfByte
	if t.debt < smallDebt {
		return nil
	}
	debt := t.debt
	t.debt = 0
	return t.pay(ctx, debt)
}

func (s *Scheduler) fits(a *account, units int) bool {
	return a.units+units <= accountUnits && s.units+units <= allUnits
}

// dispatchPlaces lets in who waits for a place, one of each account in turn. Called with
// mu held.
func (s *Scheduler) dispatchPlaces() {
	for idle := 0; idle < len(s.ring); {
		a := s.ring[0]
		s.ring = s.ring[1:]
		first := a.places[0]
		if units := int(first.amount); s.fits(a, units) {
			a.units += units
			s.units += units
			a.places = a.places[1:]
			close(first.granted)
			idle = 0
		} else {
			idle++
		}
		if len(a.places) > 0 {
			s.ring = append(s.ring, a)
		}
	}
}

func (s *Scheduler) awaitPlace(ctx context.Context, a *account, w *waiter) error {
	timeout := time.NewTimer(maxWait)
	defer timeout.Stop()
	var err error
	select {
	case <-w.granted:
		return nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-timeout.C:
		err = &Refusal{Reason: "wait", RetryAfter: 5, Message: fmt.Sprintf(
			"this request has waited %s behind others of the same virtual cluster or user: send fewer at a time", maxWait)}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-w.granted: // just now: it is given back
		a.units -= int(w.amount)
		s.units -= int(w.amount)
	default:
		a.places = without(a.places, w)
		if len(a.places) == 0 {
			s.ring = without(s.ring, a)
		}
	}
	s.leave(a)
	s.dispatchPlaces() // those behind it may be smaller
	return err
}

// roll begins a new epoch when it is time. Who waits is active. Called with mu held.
func (s *Scheduler) roll(now time.Time) {
	since := now.Sub(s.epochBegan)
	if since < epoch {
		return
	}
	s.previousActive, s.active = s.active, 0
	if since >= 2*epoch {
		s.previousActive = 0
	}
	s.epochBegan = now
	if !s.laneUsed.IsZero() && now.Sub(s.laneUsed) > calm {
		s.laneUsed = time.Time{}
		s.contended(false)
	}
	for name, a := range s.accounts {
		switch {
		case len(a.payments) > 0 || len(a.places) > 0:
			s.touch(a, now)
		case a.turns == 0 && now.Sub(a.seen) > idleAccount:
			delete(s.accounts, name)
		}
	}
}

// account finds or makes an account and marks it active. Called with mu held.
func (s *Scheduler) account(name string, now time.Time) *account {
	s.roll(now)
	a := s.accounts[name]
	if a == nil {
		a = &account{name: name, credit: allowance * s.processors, creditedAt: now}
		s.accounts[name] = a
	}
	s.touch(a, now)
	return a
}

func (s *Scheduler) touch(a *account, now time.Time) {
	a.seen = now
	if a.epoch != s.epochBegan {
		a.epoch = s.epochBegan
		s.active++
	}
}

func (s *Scheduler) leave(a *account) { a.turns-- }

// sharing is how many accounts there are to share with.
func (s *Scheduler) sharing() int { return max(s.active, s.previousActive, 1) }

// correct makes seconds of a cost, by what the process was seen to need.
func (s *Scheduler) correct(cost time.Duration) float64 {
	s.accounted += cost.Seconds()
	return cost.Seconds() * s.factor
}

// charge takes from an account's allowance. Called with mu held.
func (s *Scheduler) charge(a *account, seconds float64) { a.credit = max(a.credit-seconds, -maxDebt) }

// pay waits until the account may use so much of a processor.
func (t *Turn) pay(ctx context.Context, cost time.Duration) error {
	s, a := t.scheduler, t.account
	s.mu.Lock()
	now := time.Now()
	s.calibrate(now)
	seconds := s.correct(cost)
	n := s.sharing()
	full := allowance * s.processors
	a.credit = min(full, a.credit+now.Sub(a.creditedAt).Seconds()*s.processors*reserved/float64(n))
	a.creditedAt = now
	if n < 2 {
		a.credit = full
		s.mu.Unlock()
		return nil
	}
	if len(a.payments) == 0 && a.credit > 0 {
		s.charge(a, seconds)
		s.mu.Unlock()
		return nil
	}
	wait := &waiter{amount: seconds, granted: make(chan struct{})}
	if len(a.payments) == 0 {
		a.tag = max(a.tag, s.laneClock)
		s.lane = append(s.lane, a)
	}
	a.payments = append(a.payments, wait)
	if s.laneUsed.IsZero() {
		s.contended(true)
	}
	s.laneUsed = now
	s.dispatchLane(now)
	s.mu.Unlock()

	select {
	case <-wait.granted:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-wait.granted:
		return nil
	default:
		a.payments = without(a.payments, wait)
		if len(a.payments) == 0 {
			s.lane = without(s.lane, a)
		}
		return context.Cause(ctx)
	}
}

// dispatchLane lets go who waits for processor time, as far as there is any. Called with
// mu held.
func (s *Scheduler) dispatchLane(now time.Time) {
	s.roll(now)
	if s.laneNext.Before(now.Add(-slack)) {
		s.laneNext = now.Add(-slack)
	}
	rate := s.processors * (1 - reserved)
	if s.sharing() < 2 {
		rate = math.Inf(1)
	}
	for len(s.lane) > 0 && !s.laneNext.After(now) {
		at := 0
		for i, a := range s.lane {
			if a.tag < s.lane[at].tag {
				at = i
			}
		}
		a := s.lane[at]
		first := a.payments[0]
		a.payments = a.payments[1:]
		close(first.granted)
		s.laneClock = a.tag
		a.tag += first.amount
		s.laneNext = s.laneNext.Add(time.Duration(first.amount / rate * float64(time.Second)))
		if len(a.payments) == 0 {
			s.lane[at] = s.lane[len(s.lane)-1]
			s.lane = s.lane[:len(s.lane)-1]
		}
	}
	if len(s.lane) == 0 {
		return
	}
	if s.laneTimer == nil {
		s.laneTimer = time.AfterFunc(s.laneNext.Sub(now), func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.dispatchLane(time.Now())
		})
	} else {
		s.laneTimer.Reset(s.laneNext.Sub(now))
	}
}

// calibrate compares estimates with what was used. Called with mu held.
func (s *Scheduler) calibrate(now time.Time) {
	since := now.Sub(s.calibratedAt)
	if since < calibration {
		return
	}
	used := s.cpu()
	if spent := (used - s.calibratedAs).Seconds(); since < 4*calibration && spent > calibrationUse*since.Seconds() && s.accounted > 0 {
		s.factor += calibrationSmoothing * (min(max(spent/s.accounted, minFactor), maxFactor) - s.factor)
	}
	s.calibratedAt, s.calibratedAs, s.accounted = now, used, 0
}

func without[T comparable](list []T, item T) []T {
	kept := list[:0:0]
	for _, x := range list {
		if x != item {
			kept = append(kept, x)
		}
	}
	return kept
}
