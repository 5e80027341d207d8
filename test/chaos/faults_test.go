package chaos

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmesh-io/vmesh/test/harness"
)

func take(seed uint64, n int) (faults []fault) {
	for f := range plan(seed, []string{"a", "b", "c"}) {
		if faults = append(faults, f); len(faults) == n {
			break
		}
	}
	return faults
}

func TestASeedIsAPlan(t *testing.T) {
	if a, b := take(7, 30), take(7, 30); !slices.Equal(a, b) {
		t.Errorf("one seed gives %v and %v", a, b)
	}
	if a, b := take(7, 30), take(8, 30); slices.Equal(a, b) {
		t.Errorf("two seeds give %v", a)
	}
	kills := map[string]int{}
	for _, f := range take(7, 30) {
		kills[f.target]++
	}
	if fmt.Sprint(kills) != "map[a:10 b:10 c:10]" {
		t.Errorf("the targets' turns are %v", kills)
	}
}

// sleeper is a target that does nothing.
func sleeper(t *testing.T, name string) *target {
	var process *harness.Process
	start := func(context.Context) (err error) {
		process, err = harness.StartProcess(name, filepath.Join(t.TempDir(), "log"), exec.Command("sleep", "60"))
		return err
	}
	if err := start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = process.Kill() })
	return &target{
		name: name, start: start,
		kill:      func(context.Context) (string, error) { return name, process.Kill() },
		processes: func() []*harness.Process { return []*harness.Process{process} },
	}
}

func TestFaultsFollowThePlan(t *testing.T) {
	l := newLedger(func(string) {})
	var killed []string
	log := make(chan string, 100)
	steps := slices.Values([]fault{{target: "a", down: 200 * time.Millisecond}, {target: "b"}, {target: "a"}, {target: "b"}})
	inject(t.Context(), l, func(format string, args ...any) { log <- fmt.Sprintf(format, args...) }, steps, []*target{sleeper(t, "a"), sleeper(t, "b")})
	close(log)
	for line := range log {
		if name, ok := strings.CutPrefix(line, "killed "); ok {
			killed = append(killed, name[:1])
		}
	}
	expect(t, l, "")
	if slices.Sort(killed); fmt.Sprint(killed) != "[a a b b]" {
		t.Errorf("killed %v", killed)
	}
}

func TestAProcessThatEndsByItselfIsFound(t *testing.T) {
	l := newLedger(func(string) {})
	crashing := sleeper(t, "a")
	if _, err := crashing.kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	restarted := make(chan struct{})
	steps := func(func(fault) bool) { <-restarted }
	start := crashing.start
	crashing.start = func(ctx context.Context) error { defer close(restarted); return start(ctx) }
	inject(t.Context(), l, t.Logf, steps, []*target{crashing})
	expect(t, l, "a ended by itself")
}
