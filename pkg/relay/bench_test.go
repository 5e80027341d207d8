package relay

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

// BenchmarkChange measures what one changed resource among many costs a relay: taking it in, and
// writing it to the cache. held-MiB is what all of them take.
func BenchmarkChange(b *testing.B) {
	for _, size := range []struct{ resources, shards int }{{10_000, 1}, {10_000, 16}, {50_000, 64}} {
		b.Run(fmt.Sprintf("resources=%d/shards=%d", size.resources, size.shards), func(b *testing.B) {
			kinds := meshKinds()
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan struct{})
			defer func() {
				cancel()
				<-ended
			}()
			text := strings.Repeat("x", 900)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			var updates []snapshot.Update
			for i := range size.resources {
				updates = append(updates, set(b, fmt.Sprintf("ns-%d/name-%d", i%50, i), text))
			}
			list := snapshot.Empty.With(updates, time.Now())
			s, err := emptyState(size.shards, len(kinds)).with(change{typeURL: kinds[0].TypeURL, whole: true, updates: updates, version: list.Version()}, time.Now())
			if err != nil {
				b.Fatal(err)
			}
			list, updates = nil, nil
			runtime.GC()
			runtime.ReadMemStats(&after)
			held := float64(after.HeapAlloc-before.HeapAlloc) / (1 << 20)

			c, _, _ := openCache(b.TempDir(), "east", kinds, size.shards, nil)
			go func() {
				defer close(ended)
				c.run(ctx, func() bool { return false })
			}()
			c.put(ctx, s)
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				i++
				u := []snapshot.Update{set(b, "ns-7/name-7", fmt.Sprint(text, i))}
				shard := shardOf(kinds[0].TypeURL, "ns-7/name-7", size.shards)
				lists := s.kindLists(0)
				lists[shard] = lists[shard].With(u, time.Now())
				if s, err = s.with(change{typeURL: kinds[0].TypeURL, updates: u, version: snapshot.VersionOf(lists...)}, time.Now()); err != nil {
					b.Fatal(err)
				}
				c.put(ctx, s)
			}
			b.ReportMetric(held, "held-MiB")
		})
	}
}
