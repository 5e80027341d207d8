package apiserver

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// memoryLook is how often the heap is looked at.
	memoryLook = time.Second
	// spareGarbage is how much garbage may lie about under load: on a small heap the
	// collector would otherwise run dozens of times a second.
	spareGarbage = 72 << 20
	// leastGC and mostGC bound the growth of the heap between two collections, in percent.
	leastGC, mostGC = 75, 300
	// quietAllocation is how little a process allocates in a second that has nothing to do.
	quietAllocation = 4 << 20
	// startPatience and patience are for how many quiet looks memory is kept: what start-up
	// needed is not needed again, but work that has paused for a few seconds often goes on,
	// and would have to fault everything in again.
	startPatience, patience = 2, 20
	// worthReturning is how much must be unused for it to be given back to the system.
	worthReturning = 8 << 20
)

// tuneMemory trades memory for speed while there is work, and gives the memory back
// when there is none. With GOGC set, the operator has decided, and only the giving back
// is done.
func tuneMemory(ctx context.Context) error {
	setGC := debug.SetGCPercent
	if os.Getenv("GOGC") != "" {
		setGC = func(int) int { return 0 }
	}
	samples := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/gc/heap/allocs:bytes"},
		{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}, {Name: "/memory/classes/heap/objects:bytes"},
	}
	initial := setGC(mostGC)
	defer setGC(initial)
	ticker := time.NewTicker(memoryLook)
	defer ticker.Stop()
	var allocated uint64
	keep := startPatience
	waiting := keep // quiet looks until memory is given back; below zero it has been
	for {
		metrics.Read(samples)
		live, total := samples[0].Value.Uint64(), samples[1].Value.Uint64()
		unused := samples[2].Value.Uint64() + samples[3].Value.Uint64() + (samples[4].Value.Uint64() - min(live, samples[4].Value.Uint64()))
		quiet := total-allocated < quietAllocation
		allocated = total
		switch {
		case !quiet:
			waiting = keep
			setGC(int(min(max(spareGarbage*100/max(live, 1), leastGC), mostGC)))
		case waiting > 0:
			waiting--
		case waiting == 0 && unused > worthReturning:
			setGC(leastGC)
			debug.FreeOSMemory()
			returnProgramPages()
			keep, waiting = patience, -1
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}
