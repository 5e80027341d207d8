package harness

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func startShell(t *testing.T, script string) *Process {
	t.Helper()
	process, err := StartProcess("shell", filepath.Join(t.TempDir(), "log"), exec.Command("sh", "-c", script))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := process.Kill(); err != nil {
			t.Error(err)
		}
	})
	return process
}

func TestStop(t *testing.T) {
	for name, script := range map[string]string{
		"a process that ends on SIGTERM":         "exec sleep 60",
		"a process that ignores it":              "trap '' TERM; echo ready; while :; do sleep 0.01; done",
		"a process that has ended on its own":    "exit 3",
		"a process that does not know of SIGINT": "trap '' INT; exec sleep 60",
	} {
		t.Run(name, func(t *testing.T) {
			process := startShell(t, script)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if err := process.Stop(ctx); err != nil {
				t.Fatal(err)
			}
			select {
			case <-process.Exited():
			default:
				t.Error("Stop returned before the process was gone")
			}
		})
	}
}

func TestWaitReadyShowsTheLogOfAProcessThatEnds(t *testing.T) {
	process := startShell(t, "echo no such flag: --colour; exit 1")
	err := process.waitReady(t.Context(), func(context.Context) error { return errors.New("refused") })
	if err == nil || !strings.Contains(err.Error(), "no such flag: --colour") {
		t.Errorf("error does not say why: %v", err)
	}
}

func TestWaitReadyNamesTheLastFailedCheck(t *testing.T) {
	process := startShell(t, "exec sleep 60")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	refused := errors.New("refused")
	err := process.waitReady(ctx, func(context.Context) error { return refused })
	if !errors.Is(err, refused) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestAnIdleProcessHasMemoryAndTime(t *testing.T) {
	process := startShell(t, "exec sleep 60")
	for name, measure := range map[string]func() (int64, error){"RSS": process.RSS, "AnonRSS": process.AnonRSS} {
		if bytes, err := measure(); err != nil || bytes <= 0 {
			t.Errorf("%s: %d, %v", name, bytes, err)
		}
	}
	if _, err := process.CPU(); err != nil {
		t.Error(err)
	}
}

func TestStatusBytes(t *testing.T) {
	const status = "Name:\tsleep\nVmRSS:\t    1928 kB\nRssAnon:\t      96 kB\n"
	if got, err := statusBytes(status, "RssAnon"); err != nil || got != 96<<10 {
		t.Errorf("got %d, %v", got, err)
	}
	if _, err := statusBytes(status, "RssFile"); err == nil {
		t.Error("an absent field passes")
	}
}

func TestStatCPU(t *testing.T) {
	// 16 fields, of which the command holds spaces and a parenthesis; user time is 1200 ticks, system time 34.
	stat := "42 (my (odd) name) S 1 42 42 0 -1 4194560 100 0 0 0 1200 34 0 0"
	got, err := statCPU(stat)
	if err != nil {
		t.Fatal(err)
	}
	if want := 12340 * time.Millisecond; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if _, err := statCPU("42 (short) S 1"); err == nil {
		t.Error("a line cut short passes")
	}
}

func TestAPortIsGivenOnce(t *testing.T) {
	seen := map[int]bool{}
	another := portBlock{} // as of another process
	defer func() { _ = another.lock.Close() }()
	for range 20 {
		for _, take := range []func(int) (int, error){FreePortRange, another.take} {
			first, err := take(20)
			if err != nil {
				t.Fatal(err)
			}
			for port := first; port < first+20; port++ {
				if seen[port] {
					t.Errorf("port %d twice", port)
				}
				seen[port] = true
			}
		}
	}
}
