package main

import (
	"context"
	"sync"
	"time"

	"github.com/vmesh-io/vmesh/test/traffic"
)

const (
	callsPerSecond = 200
	// window is what the shares are taken from: short enough to see a shift at once, long enough for 200 calls.
	window = time.Second
	// callTimeout is far above the milliseconds that a call takes, so only a call that went nowhere fails by it.
	callTimeout = 2 * time.Second
)

// meter makes calls of one sort at a steady rate and remembers where the latest went.
type meter struct {
	name    string
	headers map[string]string

	mu     sync.Mutex
	recent []answer // the last window's, oldest first
	failed int
}

type answer struct {
	at      time.Time
	version string
}

// reading is what a meter shows at one moment.
type reading struct {
	// share is the part of the window's answers that each version gave, from 0 to 1.
	share map[string]float64
	// rate is answered calls a second.
	rate float64
	// failed counts since the start.
	failed int
}

// run calls until ctx ends.
func (m *meter) run(ctx context.Context, client *traffic.Client) {
	tick := time.NewTicker(time.Second / callsPerSecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		callCtx, cancel := context.WithTimeout(ctx, callTimeout)
		version, err := client.Call(callCtx, m.headers)
		cancel()
		if ctx.Err() == nil { // else it failed because we are ending
			m.record(version, err)
		}
	}
}

func (m *meter) record(version string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.failed++
		return
	}
	m.recent = append(m.recent, answer{at: time.Now(), version: version})
	m.forget()
}

// forget drops what is older than the window.
func (m *meter) forget() {
	old := 0
	for old < len(m.recent) && time.Since(m.recent[old].at) > window {
		old++
	}
	m.recent = m.recent[old:]
}

func (m *meter) read() reading {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget()
	share := map[string]float64{}
	for _, answer := range m.recent {
		share[answer.version] += 1 / float64(len(m.recent))
	}
	return reading{share: share, rate: float64(len(m.recent)) / window.Seconds(), failed: m.failed}
}
