package relay

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

func TestAllShardsTogetherAreWhatVmeshHas(t *testing.T) {
	kinds := meshKinds()[:4]
	for _, shards := range []int{1, 3, 16} {
		t.Run(fmt.Sprint(shards), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(uint64(shards), 1))
			m, s := newModel(t, len(kinds)), emptyState(shards, len(kinds))
			for range 300 {
				next, err := s.with(m.step(rnd, kinds), time.Now())
				if err != nil {
					t.Fatal(err)
				}
				s = next
				if got := content(t, s); !reflect.DeepEqual(got, m.texts) {
					t.Fatalf("the shards hold %v, want %v", got, m.texts)
				}
				for kind := range kinds {
					if s.version(kind) != m.lists[kind].Version() {
						t.Fatalf("the shards have version %s, vmesh's list %s", s.version(kind), m.lists[kind].Version())
					}
				}
			}
			for _, other := range []int{1, 5} {
				spread, err := s.spread(other, kinds)
				if err != nil {
					t.Fatal(err)
				}
				if got := content(t, spread); len(spread.shards) != other || !reflect.DeepEqual(got, m.texts) {
					t.Errorf("spread over %d shards it is %v, want %v", len(spread.shards), got, m.texts)
				}
			}
		})
	}
}

func TestOneChangeChangesOneShard(t *testing.T) {
	kinds := meshKinds()
	const shards = 16
	var updates []snapshot.Update
	for i := range 2000 {
		updates = append(updates, set(t, fmt.Sprintf("ns/%d", i), "a"))
	}
	list := snapshot.Empty.With(updates, time.Now())
	before, err := emptyState(shards, len(kinds)).with(change{typeURL: kinds[0].TypeURL, whole: true, updates: updates, version: list.Version()}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for i, lists := range before.shards {
		if n := lists[0].Len(); n < 2000/shards/2 || n > 2000/shards*2 {
			t.Errorf("shard %d has %d of 2000 resources", i, n)
		}
	}
	for i := range 50 {
		u := []snapshot.Update{set(t, fmt.Sprintf("ns/%d", i), "b")}
		list = list.With(u, time.Now())
		after, err := before.with(change{typeURL: kinds[0].TypeURL, updates: u, version: list.Version()}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		changed := 0
		for shard := range shards {
			for kind := range kinds {
				if after.shards[shard][kind] != before.shards[shard][kind] {
					changed++
				}
			}
		}
		if changed != 1 {
			t.Fatalf("one changed resource changed %d lists", changed)
		}
		before = after
	}
}

func TestAResponseThatDoesNotLeadWhereItSaysIsRefusedWhole(t *testing.T) {
	kinds := meshKinds()
	a, b := set(t, "ns/a", "1"), set(t, "ns/b", "1")
	both := snapshot.Empty.With([]snapshot.Update{a, b}, time.Now()).Version()
	s := emptyState(4, len(kinds))
	if _, err := s.with(change{typeURL: kinds[0].TypeURL, updates: []snapshot.Update{a}, version: both}, time.Now()); err == nil {
		t.Error("half of a change was taken for the whole")
	}
	if s.resources() != 0 {
		t.Error("a refused change has left something")
	}
	s, err := s.with(change{typeURL: kinds[0].TypeURL, updates: []snapshot.Update{a, b}, version: both}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	// What a whole list does not name is gone.
	only := snapshot.Empty.With([]snapshot.Update{b}, time.Now()).Version()
	if s, err = s.with(change{typeURL: kinds[0].TypeURL, whole: true, updates: []snapshot.Update{b}, version: only}, time.Now()); err != nil || s.resources() != 1 {
		t.Errorf("a whole list left %d resources, %v", s.resources(), err)
	}
}

func TestTheLargestKindDecides(t *testing.T) {
	kinds := meshKinds()
	s := emptyState(4, len(kinds))
	for kind, n := range []int{7, 30, 0, 12} {
		var updates []snapshot.Update
		for i := range n {
			updates = append(updates, set(t, fmt.Sprintf("ns/%d", i), "a"))
		}
		var err error
		if s, err = s.with(change{kind: kind, typeURL: kinds[kind].TypeURL, updates: updates, version: snapshot.Empty.With(updates, time.Now()).Version()}, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.largest(); got != 30 || s.resources() != 49 {
		t.Errorf("the largest of kinds with 7, 30, none and 12 is said to have %d, and all %d", got, s.resources())
	}
}

func TestTheNumberOfShardsFollowsTheNumberOfResources(t *testing.T) {
	for resources, want := range map[int]int{0: 4, 1000: 4, 2000: 8, 10_000: 64, 50_000: 128, 1_000_000: 128} {
		if got := autoShards(resources); got != want {
			t.Errorf("%d resources are spread over %d shards, want %d", resources, got, want)
		}
	}
}
