package chaos

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/vmesh-io/vmesh/test/harness"
)

// fault is one step of a plan: a pause, and then a kill after which the target stays down for a while. The next step begins
// at once, so several targets may be down together.
type fault struct {
	pause  time.Duration
	target string
	down   time.Duration
}

const (
	maxPause = 4 * time.Second
	maxDown  = 5 * time.Second
)

// plan is the endless sequence of faults of a seed. Each target has its turn once in a round, in an order that is another
// in each.
func plan(seed uint64, targets []string) iter.Seq[fault] {
	return func(yield func(fault) bool) {
		random := rand.New(rand.NewPCG(seed, 0))
		for {
			for _, i := range random.Perm(len(targets)) {
				f := fault{pause: upTo(random, maxPause), target: targets[i], down: upTo(random, maxDown)}
				if !yield(f) {
					return
				}
			}
		}
	}
}

func upTo(random *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(random.Int64N(int64(d))).Truncate(10 * time.Millisecond)
}

// target is something that is killed and comes back.
type target struct {
	name string
	// kill ends it as a crash would, and says what it killed.
	kill func(ctx context.Context) (string, error)
	// start brings it back, and returns when it is up. It is tried again when it fails.
	start func(ctx context.Context) error
	// processes are those that must not end unless killed.
	processes func() []*harness.Process

	faults chan fault
}

// inject carries out a plan until ctx ends, and returns when all that was killed is up again. Which target is killed when
// another is down depends on how fast the machine is; the order of the kills does not: a target whose turn comes while it
// is down is waited for.
func inject(ctx context.Context, l *ledger, logf func(string, ...any), steps iter.Seq[fault], targets []*target) {
	var keepers sync.WaitGroup
	byName := map[string]*target{}
	for _, t := range targets {
		byName[t.name] = t
		t.faults = make(chan fault)
		keepers.Go(func() { t.keep(context.WithoutCancel(ctx), l, logf) })
	}
	for f := range steps {
		pause(ctx, f.pause)
		select {
		case byName[f.target].faults <- f:
			l.count("faults")
			l.count("kills of " + f.target)
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
	}
	for _, t := range targets {
		close(t.faults)
	}
	keepers.Wait()
}

// recovery is how long a target may take to come back, others that it needs being down for a part of it.
const recovery = 3 * time.Minute

func (t *target) keep(ctx context.Context, l *ledger, logf func(string, ...any)) {
	for {
		watching, stop := context.WithCancel(ctx)
		died := firstToEnd(watching, t.processes())
		select {
		case f, more := <-t.faults:
			stop()
			if !more {
				return
			}
			killed, err := t.kill(ctx)
			if err != nil {
				l.violated("killing %s: %v", t.name, err)
			}
			logf("killed %s, for %s", killed, f.down)
			time.Sleep(f.down)
		case process := <-died:
			stop()
			l.violated("%s ended by itself: %s", t.name, process.Name())
		}
		began := time.Now()
		for attempt := 1; ; attempt++ {
			starting, cancel := context.WithTimeout(ctx, recovery)
			err := t.start(starting)
			cancel()
			if err == nil {
				logf("%s is up again after %s", t.name, time.Since(began).Truncate(time.Millisecond))
				break
			}
			logf("starting %s, attempt %d: %v", t.name, attempt, err)
			if time.Since(began) > recovery {
				l.violated("%s does not come back: %v", t.name, err)
				return
			}
			time.Sleep(200 * time.Millisecond)
		}
	}
}

// firstToEnd receives the first of the processes that ends before ctx does.
func firstToEnd(ctx context.Context, processes []*harness.Process) <-chan *harness.Process {
	ended := make(chan *harness.Process, len(processes))
	for _, p := range processes {
		go func() {
			select {
			case <-p.Exited():
				ended <- p
			case <-ctx.Done():
			}
		}()
	}
	return ended
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func (f fault) String() string {
	return fmt.Sprintf("after %s kill %s for %s", f.pause, f.target, f.down)
}
