package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// stopGrace is how long a process may take to end after SIGTERM. It is istiod's own shutdown time and a margin.
const stopGrace = 15 * time.Second

// pollInterval is short, since benchmarks read start-up times from it.
const pollInterval = 20 * time.Millisecond

// Process is a running command. Its methods may be called from several goroutines.
type Process struct {
	name   string
	log    string
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // what Wait said, valid once exited is closed
}

// StartProcess runs cmd with its output appended to logFile. The process gets a group of its own, so that a Ctrl-C in the
// terminal reaches only us and we choose the order of the shutdown. Should we die without one, the kernel kills it.
func StartProcess(name, logFile string, cmd *exec.Cmd) (*Process, error) {
	if err := os.MkdirAll(filepath.Dir(logFile), 0o755); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}

	p := &Process{name: name, log: logFile, cmd: cmd, exited: make(chan struct{})}
	started := make(chan error)
	go func() {
		// Pdeathsig fires when the thread that forked ends, not the process; this goroutine keeps that thread to itself
		// for as long as the child lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.exited)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	return p, nil
}

// Name is what it was started as.
func (p *Process) Name() string { return p.name }

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// LogFile is the path of the file that holds what the process writes.
func (p *Process) LogFile() string { return p.log }

// Exited is closed once the process has ended and been reaped.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Stop asks the process to end, kills it when it has not within the grace period or before ctx ends, and waits until
// it is gone. Stopping an ended process does nothing.
func (p *Process) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.exited:
		return nil
	case <-ctx.Done():
		return p.Kill()
	}
}

// Kill ends the process as a crash would, and waits until it is gone.
func (p *Process) Kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.exited
	return nil
}

// Signal sends sig; an ended process takes any signal.
func (p *Process) Signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("sending %s to %s: %w", sig, p.name, err)
	}
	return nil
}

// waitReady returns when check succeeds. It fails, with the end of the log, when the process ends or ctx does.
func (p *Process) waitReady(ctx context.Context, check func(context.Context) error) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		checkCtx, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := check(checkCtx)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.exited:
			return fmt.Errorf("%s ended before it was ready: %w\n%s", p.name, p.err, p.logTail())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w (%w)\n%s", p.name, ctx.Err(), err, p.logTail())
		}
	}
}

// logTail is what a reader of a failed test needs first.
func (p *Process) logTail() string {
	const lines = 20
	data, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return p.log + ":\n" + strings.Join(all[max(0, len(all)-lines):], "\n")
}

// RSS is the process's resident memory in bytes, file-backed pages included.
func (p *Process) RSS() (int64, error) { return p.status("VmRSS") }

// AnonRSS is the process's resident memory in bytes without file-backed pages, which the kernel can drop at will.
func (p *Process) AnonRSS() (int64, error) { return p.status("RssAnon") }

func (p *Process) status(field string) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		return 0, fmt.Errorf("reading memory of %s: %w", p.name, err)
	}
	return statusBytes(string(data), field)
}

func statusBytes(status, field string) (int64, error) {
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("no %s in process status", field)
}

// CPU is the processor time the process has used so far, user and system, with a resolution of 10 ms.
func (p *Process) CPU() (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	if err != nil {
		return 0, fmt.Errorf("reading CPU time of %s: %w", p.name, err)
	}
	return statCPU(string(data))
}

func statCPU(stat string) (time.Duration, error) {
	// Linux reports in USER_HZ, which is 100 on every architecture Go runs on.
	const tick = 10 * time.Millisecond
	// The second field is the command in parentheses and may hold anything, so count from its end.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	const utime, stime = 14 - 3, 15 - 3 // proc(5) numbers fields from 1, and ours start at the third
	if len(fields) <= stime {
		return 0, fmt.Errorf("process stat has %d fields", len(fields))
	}
	user, err := strconv.ParseInt(fields[utime], 10, 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseInt(fields[stime], 10, 64)
	if err != nil {
		return 0, err
	}
	return time.Duration(user+system) * tick, nil
}
