package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
)

// describeMachine says what is being measured on, and how busy others keep it: a load of its own, or of a neighbour, shows
// in rates and latencies long before it shows in CPU per operation.
func describeMachine() string {
	model := "unknown processor"
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(data)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	load := "unknown"
	if data, err := os.ReadFile("/proc/loadavg"); err == nil {
		load, _, _ = strings.Cut(string(data), " ")
	}
	return fmt.Sprintf("%d CPUs (%s), %s/%s, %s; load average before the run: %s.",
		runtime.NumCPU(), model, runtime.GOOS, runtime.GOARCH, runtime.Version(), load)
}
