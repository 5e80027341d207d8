package chaos

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmesh-io/vmesh/test/traffic"
)

var (
	duration     = flag.Duration("duration", 50*time.Second, "how long processes are killed, in each topology")
	seed         = flag.Uint64("seed", 0, "the seed of the plan; another each time by default")
	topologyFlag = flag.String("topology", strings.Join(slices.Sorted(maps.Keys(topologies)), ","), "where istiods have their configuration from, one after the other")
	vmeshBinary  = flag.String("vmesh", "", "the vmesh to run; built from this checkout by default")
	istiodsFlag  = flag.Int("istiods", 2, "how many istiods there are")
)

const (
	writers = 3
	// convergence is how long everybody may take, once all is up and nobody writes, to have what the API has. istiod asks
	// again later and later while it cannot connect: up to a minute, a vmesh or relay that was killed again in between
	// included. Beside a relay it does so for each shard, and is told nothing before the last.
	convergence = 2 * time.Minute
	// callTimeout is how long a call may take: much longer than it does, so that a busy machine makes none fail.
	callTimeout = 20 * time.Second
)

// Every process between the one who writes and the one who calls is killed, in random order, while both go on. No
// acknowledged change is lost, no istiod ever loses an entry that nobody deleted, and no call fails: clients keep the
// configuration that they have, backends are never killed and no weight is ever 0, so there is no fault that explains one.
func TestNothingIsLostWhateverIsKilled(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	for _, name := range strings.Split(*topologyFlag, ",") {
		topology, known := topologies[name]
		if !known {
			t.Fatalf("-topology: there is no %q", name)
		}
		t.Run(name, func(t *testing.T) {
			t.Logf("-seed %d -duration %s -topology %s", *seed, *duration, name)
			testChaos(t, topology)
		})
	}
}

func testChaos(t *testing.T, topology topology) {
	ctx, cancel := context.WithTimeout(t.Context(), *duration+40*time.Minute) // tools may have to be built
	defer cancel()

	dir, err := os.MkdirTemp("", "chaos-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the logs are in %s; replay with -seed %d", dir, *seed)
		} else if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	var log sync.Mutex
	diary, err := os.Create(filepath.Join(dir, "chaos.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer diary.Close()
	logf := func(format string, args ...any) {
		log.Lock()
		defer log.Unlock()
		line := fmt.Sprintf(time.Now().Format("15:04:05.000 ")+format, args...)
		fmt.Fprintln(diary, line)
		t.Log(line)
	}
	l := newLedger(func(violation string) { logf("VIOLATION: %s", violation) })
	s := &stack{dir: dir, binary: *vmeshBinary, ledger: l, logf: logf}
	defer func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	}()
	if err := s.start(ctx, topology, *istiodsFlag); err != nil {
		t.Fatal(err)
	}
	for _, i := range s.istiods {
		eventually(ctx, t, time.Minute, "calls go through", func(ctx context.Context) error {
			_, err := i.client.Call(ctx, nil)
			return err
		})
	}

	// Everything begins, and goes on until the faults are over.
	writing, stopWriting := context.WithCancel(ctx)
	watching, stopWatching := context.WithCancel(ctx)
	var writes, watches sync.WaitGroup
	defer func() {
		stopWriting()
		stopWatching()
		writes.Wait()
		watches.Wait()
	}()
	for _, i := range s.istiods {
		watches.Go(func() { watchIstiod(watching, i.Istiod, i.view) })
		watches.Go(func() { i.shadow.run(watching) })
		watches.Go(func() { callAll(watching, l, i) })
	}
	items := s.permanentItems()
	for n := range writers {
		w := s.writer(writing, rand.New(rand.NewPCG(*seed, uint64(n+1))))
		var given []*item
		for at := n; at < len(items); at += writers {
			given = append(given, items[at])
		}
		writes.Go(func() {
			for _, i := range given {
				if err := w.read(i); err != nil {
					return
				}
			}
			w.churn(fmt.Sprintf("writer-%d", n), given, 60*time.Millisecond)
		})
	}
	faults, stopFaults := context.WithTimeout(ctx, *duration)
	defer stopFaults()
	names := make([]string, len(s.targets))
	for i, t := range s.targets {
		names[i] = t.name
	}
	inject(faults, l, logf, plan(*seed, names), s.targets)
	logf("all is up again")
	stopWriting()
	writes.Wait()

	// Nothing changes any more: all have the same, and it is what was acknowledged.
	var api state
	for _, server := range s.servers {
		eventually(ctx, t, time.Minute, server.name+" answers", func(ctx context.Context) (err error) {
			api, err = server.list(ctx)
			return err
		})
		l.settled(server.name, api)
		logf("%s has what was acknowledged, or has been reported", server.name)
	}
	for n, i := range s.istiods {
		eventually(ctx, t, convergence, i.view.name+" has what the API has", func(ctx context.Context) error {
			api, err := s.servers[0].list(ctx) // what was stopped may have been done since
			if err != nil {
				return err
			}
			has, err := configz(ctx, i.Istiod)
			if err != nil {
				return err
			}
			if d := append(differences(api, has), differences(api, i.shadow.sum())...); len(d) > 0 {
				return fmt.Errorf("it has not%s: %s", s.streams(ctx, n), strings.Join(d, "; "))
			}
			return nil
		})
		eventually(ctx, t, convergence, "the calls by "+i.view.name+" go as was written last", func(ctx context.Context) error {
			return splits(ctx, i.client, api[keyOf("VirtualService", namespace, greeter)])
		})
		logf("%s, its shadow and its client have it, too", i.view.name)
	}
	stopWatching()
	watches.Wait()

	for _, what := range slices.Sorted(maps.Keys(l.counts)) {
		logf("%6d %s", l.counts[what], what)
	}
	// A run in which nothing happened has shown nothing.
	must := []string{"faults", "acknowledged writes", "acknowledged deletions", "reads"}
	for _, i := range s.istiods {
		must = append(must, "calls by "+i.view.name, "looks at "+i.view.name, "looks at "+i.shadow.view.name)
	}
	for _, what := range must {
		if l.counted(what) == 0 {
			t.Errorf("there were no %s", what)
		}
	}
	for _, violation := range l.violations {
		t.Error(violation)
	}
}

// callAll calls all the time, until ctx ends.
func callAll(ctx context.Context, l *ledger, i *istiod) {
	for ctx.Err() == nil {
		calling, cancel := context.WithTimeout(ctx, callTimeout)
		_, err := i.client.Call(calling, nil)
		cancel()
		l.count("calls by " + i.view.name)
		if err != nil && ctx.Err() == nil {
			l.violated("a call by %s failed: %v", i.view.name, err)
		}
		pause(ctx, 5*time.Millisecond)
	}
}

// splits says how far the calls are from going as a VirtualService of a value says, if they are too far.
func splits(ctx context.Context, c *traffic.Client, value int) error {
	const calls = 400
	counts, err := traffic.Split(ctx, c, calls, nil)
	if err != nil {
		return err
	}
	want := float64(v1Weight(value)) / 100
	// Four standard deviations of so many independent calls.
	tolerance := 4 * math.Sqrt(want*(1-want)/calls)
	if share := float64(counts["v1"]) / calls; math.Abs(share-want) > tolerance {
		return fmt.Errorf("v1 got %.0f%% of the calls, want %.0f%% ± %.0f%%", share*100, want*100, tolerance*100)
	}
	return nil
}

// eventually waits until check has nothing to say.
func eventually(ctx context.Context, t *testing.T, patience time.Duration, what string, check func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last error
	told := time.Now()
	for {
		err := check(ctx)
		if err != nil && time.Since(told) > slow {
			told = time.Now()
			t.Logf("%s not yet so: %s: %v", told.Format("15:04:05.000"), what, err)
		}
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			if last == nil {
				last = err
			}
			t.Fatalf("waiting for %s until %s: %v", patience, what, last)
		}
		last = err // and not that the time is over
		pause(ctx, 50*time.Millisecond)
	}
}

// permanentItems are what is there for good.
func (s *stack) permanentItems() (items []*item) {
	for _, kind := range observed {
		items = append(items, &item{kind: kind, name: greeter})
	}
	for i := range permanent {
		items = append(items, &item{kind: "ServiceEntry", name: fmt.Sprintf("permanent-%d", i)})
	}
	return items
}
