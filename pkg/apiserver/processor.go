package apiserver

import (
	"os"
	"runtime"
	"syscall"
	"time"
)

// processorTime is how much the process has used so far.
func processorTime() time.Duration {
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		return 0 // it knows no other error than a bad pointer
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

// spareThread lets one more goroutine run than there are processors, while somebody wants
// more than his share. Go has no priorities, and lets a busy goroutine go on for 10 ms
// while those wait that have a moment's work; the kernel lets the thread run first that
// has slept. Work takes more switches for it, so it is not always so. With GOMAXPROCS set,
// the operator has decided.
func spareThread(on bool) {
	switch {
	case os.Getenv("GOMAXPROCS") != "":
	case on:
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
	default:
		runtime.SetDefaultGOMAXPROCS()
	}
}
