package logical

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
)

func TestALockIsHeldByOneAtATime(t *testing.T) {
	for _, c := range []struct {
		name   string
		shared bool
	}{
		{"in one process", false},
		{"in several", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			first := newTestBackend(t, BackendConfig{Shared: c.shared})
			backends := []*Backend{first}
			if c.shared {
				backends = append(backends, newTestBackend(t, BackendConfig{Client: first.client.Client, Shared: true}))
			}
			const rounds = 20
			var wg sync.WaitGroup
			inside := map[string]bool{} // what the lock guards
			for i := range 4 {
				b := backends[i%len(backends)]
				wg.Go(func() {
					for range rounds {
						unlock, err := b.Lock(testContext(t), "mesh")
						if err != nil {
							t.Error(err)
							return
						}
						if inside["mesh"] {
							t.Error("two are inside")
						}
						inside["mesh"] = true
						delete(inside, "mesh")
						unlock()
					}
				})
			}
			wg.Wait()

			held, err := first.Lock(testContext(t), "mesh")
			if err != nil {
				t.Fatal(err)
			}
			other, err := backends[len(backends)-1].Lock(testContext(t), "another")
			if err != nil {
				t.Fatal(fmt.Errorf("another name is free: %w", err))
			}
			other()
			impatient, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := backends[len(backends)-1].Lock(impatient, "mesh"); !errors.Is(err, context.Canceled) {
				t.Errorf("one who does not wait got %v", err)
			}
			held()
			again, err := backends[len(backends)-1].Lock(testContext(t), "mesh")
			if err != nil {
				t.Fatal(err)
			}
			again()
		})
	}
}

func TestALockOutlivesTheTroubleOfAnother(t *testing.T) {
	first := newTestBackend(t, BackendConfig{Shared: true})
	second := newTestBackend(t, BackendConfig{Client: first.client.Client, Shared: true})
	unlock, err := first.Lock(testContext(t), "held")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	first.locks.forget() // as after a lock that could not be taken
	impatient, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if taken, err := second.Lock(impatient, "held"); err == nil {
		taken()
		t.Error("another process has it as well")
	}
	next, err := first.Lock(testContext(t), "next")
	if err != nil {
		t.Fatal(err)
	}
	next()
}
