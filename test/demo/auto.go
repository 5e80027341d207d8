package main

import (
	"context"
	"fmt"
	"math"
	"time"
)

const (
	// tolerance is 3.5 standard deviations of a share of 80 % among a window's 200 calls.
	tolerance = 0.1
	// shiftDeadline is a hundred times what a shift takes, for a busy machine.
	shiftDeadline = 30 * time.Second
	// dwell lets whoever looks on see each state.
	dwell = 3 * time.Second
)

// shiftAll applies each of the demo's routes and fails unless the traffic follows each time.
func shiftAll(ctx context.Context, stack *stack, screen *screen, all, byHeader *meter) error {
	for _, shift := range []struct {
		file                string
		allV2, withHeaderV2 float64 // the share of v2 to wait for
	}{
		{"shift-20-80.yaml", 0.8, 0.8},
		{"shift-80-20.yaml", 0.2, 0.2},
		{"by-header.yaml", 0, 1},
		{"shift-20-80.yaml", 0.8, 0.8},
	} {
		if err := pause(ctx, dwell); err != nil {
			return err
		}
		if err := stack.apply(ctx, shift.file); err != nil {
			return err
		}
		screen.note("kubectl apply -f test/demo/%s", shift.file)
		applied := time.Now()
		for !near(all, shift.allV2) || !near(byHeader, shift.withHeaderV2) {
			if time.Since(applied) > shiftDeadline {
				return fmt.Errorf("%s did not shift the traffic within %s: want %.0f %% on v2 (%.0f %% with the header), have %.0f %% (%.0f %%)",
					shift.file, shiftDeadline, 100*shift.allV2, 100*shift.withHeaderV2, 100*all.read().share["v2"], 100*byHeader.read().share["v2"])
			}
			if err := pause(ctx, 10*time.Millisecond); err != nil {
				return err
			}
		}
		screen.note("%.1f s later the last second's calls went the new way", time.Since(applied).Seconds())
	}
	return pause(ctx, dwell)
}

// near says whether the wanted share of a meter's latest calls went to v2. A busy machine makes fewer of them.
func near(m *meter, share float64) bool {
	reading := m.read()
	return reading.rate > callsPerSecond/4 && math.Abs(reading.share["v2"]-share) < tolerance
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
