package fairness

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmesh-io/vmesh/test/leak"
)

func TestMain(m *testing.M) { leak.VerifyTestMain(m) }

// simulation is a process whose processor time follows the clock: as if it were always busy.
func simulation() *Scheduler {
	began := time.Now()
	return New(1, func() time.Duration { return time.Since(began) / 2 }, func(bool) {})
}

func TestAFloodingAccountLeavesAQuietOneItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := simulation()
		ctx, cancel := context.WithCancel(t.Context())
		var flooded atomic.Int64
		var wg sync.WaitGroup
		for range 500 {
			wg.Go(func() {
				for ctx.Err() == nil {
					turn, err := s.Begin(ctx, "noisy", Work{Places: 1, Cost: time.Millisecond})
					if err != nil {
						continue
					}
					time.Sleep(time.Millisecond)
					turn.End()
					flooded.Add(1)
				}
			})
		}
		worst := time.Duration(0)
		for range 200 {
			time.Sleep(50 * time.Millisecond)
			asked := time.Now()
			turn, err := s.Begin(ctx, "quiet", Work{Places: 1, Cost: time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			worst = max(worst, time.Since(asked))
			turn.End()
		}
		if worst > 0 {
			t.Errorf("the quiet one waited %s, want not at all", worst)
		}
		if n := flooded.Load(); n < 1000 {
			t.Errorf("the noisy one had %d turns in 10 s, want what the quiet one leaves", n)
		}
		cancel()
		wg.Wait()
		if len(s.ring) > 0 || len(s.lane) > 0 || s.units != 0 {
			t.Errorf("left over: %d accounts that wait for places, %d for time, %d units", len(s.ring), len(s.lane), s.units)
		}
	})
}

func TestAnAccountThatIsAloneWaitsForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := simulation()
		asked := time.Now()
		for range 1000 {
			turn, err := s.Begin(t.Context(), "only", Work{Places: 1, Cost: 10 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			if err := turn.Wrote(t.Context(), 10<<20); err != nil {
				t.Fatal(err)
			}
			turn.End()
		}
		if waited := time.Since(asked); waited > 0 {
			t.Errorf("waited %s", waited)
		}
	})
}

func TestThoseWhoWantMuchShareEqually(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := simulation()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		turns := map[string]*atomic.Int64{"many": {}, "few": {}}
		for name, workers := range map[string]int{"many": 300, "few": 3} {
			for range workers {
				wg.Go(func() {
					for ctx.Err() == nil {
						turn, err := s.Begin(ctx, name, Work{Places: 1, Cost: 2 * time.Millisecond})
						if err == nil {
							turns[name].Add(1)
							turn.End()
						}
					}
				})
			}
		}
		time.Sleep(2 * time.Second) // who comes first is alone
		many, few := -turns["many"].Load(), -turns["few"].Load()
		time.Sleep(20 * time.Second)
		many, few = many+turns["many"].Load(), few+turns["few"].Load()
		cancel()
		wg.Wait()
		if few < many*8/10 || few > many*12/10 {
			t.Errorf("300 workers had %d turns and 3 had %d, want as many", many, few)
		}
	})
}

func TestPlacesAreBoundedAndGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := simulation()
		begin := func(ctx context.Context, body int64) (*Turn, error) {
			return s.Begin(ctx, "noisy", Work{Places: 1, Body: body})
		}
		huge, err := begin(t.Context(), 3<<20)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := begin(ctx, 3<<20); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a second huge request: %v, want that it waits", err)
		}
		var refusal *Refusal
		if _, err := begin(t.Context(), 3<<20); !errors.As(err, &refusal) || refusal.RetryAfter == 0 {
			t.Errorf("one that waits too long: %v, want a refusal that says when to come back", err)
		}
		other, err := s.Begin(t.Context(), "quiet", Work{Places: 1, Body: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		other.End()
		huge.Release()
		huge.Release() // again: nothing is given back twice
		second, err := begin(t.Context(), 3<<20)
		if err != nil {
			t.Fatal(err)
		}
		huge.End()
		if s.units != second.units {
			t.Errorf("%d units are taken, want %d", s.units, second.units)
		}
		second.End()
		if s.units != 0 || len(s.ring) != 0 {
			t.Errorf("%d units and %d accounts are left", s.units, len(s.ring))
		}
	})
}

func TestTheQueueOfAnAccountIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := simulation()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range accountUnits + maxQueue {
			wg.Go(func() {
				if turn, err := s.Begin(ctx, "noisy", Work{Places: 1}); err == nil {
					<-ctx.Done()
					turn.End()
				}
			})
		}
		synctest.Wait()
		var refusal *Refusal
		if _, err := s.Begin(ctx, "noisy", Work{Places: 1}); !errors.As(err, &refusal) || refusal.Reason != "queue" {
			t.Errorf("got %v, want a refusal", err)
		}
		cancel()
		wg.Wait()
		if s.units != 0 || len(s.ring) != 0 {
			t.Errorf("%d units and %d accounts are left", s.units, len(s.ring))
		}
	})
}

func TestIdleAccountsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := simulation()
		for i := range 100 {
			turn, err := s.Begin(t.Context(), fmt.Sprint(i), Work{Places: 1})
			if err != nil {
				t.Fatal(err)
			}
			turn.End()
		}
		time.Sleep(idleAccount + 2*epoch)
		turn, err := s.Begin(t.Context(), "later", Work{Places: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer turn.End()
		if n := len(s.accounts); n != 1 {
			t.Errorf("%d accounts are kept, want 1", n)
		}
	})
}

func TestRates(t *testing.T) {
	const read = -1
	for _, c := range []struct {
		name    string
		limits  Limits
		body    int64
		admits  int           // at once
		then    time.Duration // how long the next waits
		message string        // of the first that is refused
	}{
		{"without limits all come in", Limits{}, 0, 100_000, 0, ""},
		{"a minute's requests come in at once", Limits{RequestsPerSecond: 10}, read, 600, 100 * time.Millisecond, "10 requests per second (rates.requestsPerSecond)"},
		{"a minute's writes come in at once", Limits{WritesPerSecond: 10}, 100, 600, 100 * time.Millisecond, "10 writes per second (rates.writesPerSecond)"},
		{"reads are no writes", Limits{WritesPerSecond: 1}, read, 1000, 0, ""},
		{"large writes count as many", Limits{WritesPerSecond: 10}, 9 * writeUnit, 60, time.Second, "10 writes per second"},
		{"a write larger than a minute's worth comes in alone", Limits{WritesPerSecond: 1}, 100 * writeUnit, 1, -1, "1 writes per second"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := NewRates()
				asked := time.Now()
				for i := range c.admits {
					if err := r.Admit(t.Context(), "shop", c.limits, c.body); err != nil {
						t.Fatalf("request %d: %v", i, err)
					}
				}
				if c.then >= 0 {
					if waited := time.Since(asked); waited > 0 {
						t.Fatalf("%d requests waited %s", c.admits, waited)
					}
					if err := r.Admit(t.Context(), "shop", c.limits, c.body); err != nil || time.Since(asked) != c.then {
						t.Errorf("the next: %v after %s, want after %s", err, time.Since(asked), c.then)
					}
				}
				if err := r.Admit(t.Context(), "other", c.limits, c.body); err != nil {
					t.Errorf("another virtual cluster: %v", err)
				}
				if c.message == "" {
					return
				}
				var refusal *Refusal
				for range 100 {
					go func() { _ = r.Admit(t.Context(), "shop", c.limits, c.body) }()
				}
				synctest.Wait()
				if err := r.Admit(t.Context(), "shop", c.limits, c.body); !errors.As(err, &refusal) || !strings.Contains(err.Error(), c.message) || refusal.RetryAfter < 1 {
					t.Errorf("got %v, want a refusal with %q", err, c.message)
				}
				time.Sleep(3 * burst * time.Second)
				if err := r.Admit(t.Context(), "shop", c.limits, c.body); err != nil {
					t.Errorf("after a rest: %v", err)
				}
			})
		})
	}
}

func TestWatchesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRates()
		limits := Limits{Watches: 1}
		release, err := r.Watch("shop", limits)
		if err != nil {
			t.Fatal(err)
		}
		var refusal *Refusal
		if _, err := r.Watch("shop", limits); !errors.As(err, &refusal) || refusal.Reason != "watches" {
			t.Errorf("got %v, want a refusal", err)
		}
		time.Sleep(2 * sweepEvery)
		if other, err := r.Watch("other", limits); err != nil {
			t.Error(err)
		} else {
			other()
		}
		if _, err := r.Watch("shop", limits); err == nil {
			t.Error("an open watch was forgotten")
		}
		release()
		if release, err = r.Watch("shop", limits); err != nil {
			t.Fatal(err)
		}
		release()
		time.Sleep(2 * sweepEvery)
		if _, err := r.Watch("last", Limits{Watches: 1}); err != nil {
			t.Fatal(err)
		}
		if len(r.used) != 1 {
			t.Errorf("%d virtual clusters are remembered, want 1", len(r.used))
		}
	})
}

func TestWorkThatNobodyPaysForDoesNotMakeQuietAccountsNoisy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		// All of the processor is used, most of it by what is not asked for by anyone.
		s := New(1, func() time.Duration { return time.Since(began) }, func(bool) {})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for ctx.Err() == nil {
					if turn, err := s.Begin(ctx, "noisy", Work{Places: 1, Body: 3 << 20}); err == nil {
						time.Sleep(time.Millisecond)
						turn.End()
					}
				}
			})
		}
		var mu sync.Mutex
		worst := time.Duration(0)
		for i := range 9 {
			wg.Go(func() {
				for range 15 * 30 {
					time.Sleep(time.Second / 15)
					asked := time.Now()
					turn, err := s.Begin(t.Context(), fmt.Sprint("quiet-", i), Work{Places: 1, Cost: 700 * time.Microsecond})
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					worst = max(worst, time.Since(asked))
					mu.Unlock()
					turn.End()
				}
			})
		}
		time.Sleep(31 * time.Second)
		cancel()
		wg.Wait()
		if worst > 0 {
			t.Errorf("a quiet one waited %s, want not at all", worst)
		}
	})
}

func TestASmallCostDoesNotWaitForAllOfALargeOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := simulation()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for ctx.Err() == nil {
					if turn, err := s.Begin(ctx, "large", Work{Places: 1, Cost: 500 * time.Millisecond}); err == nil {
						time.Sleep(time.Millisecond)
						turn.End()
					}
				}
			})
		}
		worst := time.Duration(0)
		for range 5000 { // more than its share
			asked := time.Now()
			turn, err := s.Begin(ctx, "small", Work{Places: 1, Cost: time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			worst = max(worst, time.Since(asked))
			time.Sleep(time.Millisecond)
			turn.End()
		}
		if worst > 100*time.Millisecond {
			t.Errorf("a request of a millisecond waited %s", worst)
		}
		cancel()
		wg.Wait()
	})
}

func TestContentionIsToldWhenItBeginsAndWhenItHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var told []bool
		s := New(1, func() time.Duration { return time.Since(began) / 2 }, func(on bool) { told = append(told, on) })
		ask := func(name string, cost time.Duration) {
			turn, err := s.Begin(t.Context(), name, Work{Places: 1, Cost: cost})
			if err != nil {
				t.Fatal(err)
			}
			turn.End()
		}
		for range 3 {
			ask("alone", time.Second)
		}
		if len(told) > 0 {
			t.Fatalf("one that is alone contends with nobody, but: %v", told)
		}
		for range 5 {
			ask("other", time.Millisecond)
			ask("alone", 300*time.Millisecond)
		}
		if fmt.Sprint(told) != "[true]" {
			t.Fatalf("one that wants more than its share: %v", told)
		}
		for range 20 {
			time.Sleep(time.Second)
			ask("other", time.Millisecond)
		}
		if fmt.Sprint(told) != "[true false]" {
			t.Fatalf("after a calm: %v", told)
		}
	})
}
