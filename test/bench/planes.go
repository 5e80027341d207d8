package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

// planesMain is the other process: many control planes that follow by delta. Once all are connected it prints a line; then
// one for each change, when the last of them had it, in nanoseconds since the epoch.
func planesMain(address, clients, count string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	n, err := strconv.Atoi(clients)
	if err != nil {
		return err
	}
	objects, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	var all []*xdsClient
	for i := range n {
		c, err := connectXDS(ctx, deltaMethod, address, i, objects)
		if err != nil {
			return fmt.Errorf("control plane %d: %w", i, err)
		}
		defer c.close()
		all = append(all, c)
	}
	fmt.Println("ready")
	for {
		var last time.Time
		for _, c := range all {
			select {
			case r := <-c.responses:
				if r.received.After(last) {
					last = r.received
				}
			case err := <-c.done:
				return err
			case <-ctx.Done():
				return nil
			}
		}
		fmt.Println(last.UnixNano())
	}
}

// planes is that process as its parent sees it.
type planes struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
}

func startPlanes(ctx context.Context, address string, clients, count int) (*planes, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &planes{cmd: exec.CommandContext(ctx, self, "planes", address, strconv.Itoa(clients), strconv.Itoa(count))}
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	p.lines = bufio.NewScanner(out)
	if !p.lines.Scan() {
		return nil, fmt.Errorf("the control planes have ended: %w", p.cmd.Wait())
	}
	return p, nil
}

// next is when the last control plane had the next change.
func (p *planes) next() (time.Time, error) {
	if !p.lines.Scan() {
		return time.Time{}, fmt.Errorf("the control planes have ended: %w", p.cmd.Wait())
	}
	nanos, err := strconv.ParseInt(p.lines.Text(), 10, 64)
	return time.Unix(0, nanos), err
}

func (p *planes) stop() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // says that it was killed
}

const deltaPlanes = 100

// manyPlanes measures what a change costs that many control planes follow by delta, and what they cost in memory.
func (b *bench) manyPlanes(ctx context.Context, t *target, count int) error {
	change, err := changes(ctx, t)
	if err != nil {
		return err
	}
	b.log("waiting for memory to settle")
	before, after := map[*target]use{}, map[*target]use{}
	if err := b.anonAfter(ctx, []*target{t}, before); err != nil {
		return err
	}
	all, err := startPlanes(ctx, t.xds, deltaPlanes, count)
	if err != nil {
		return err
	}
	defer all.stop()
	var latencies []float64
	cpu, err := t.during(func() error {
		for range pushTimes {
			time.Sleep(pushPause)
			if err := change(); err != nil {
				return err
			}
			written := time.Now()
			last, err := all.next()
			if err != nil {
				return err
			}
			latencies = append(latencies, milliseconds(last.Sub(written)))
		}
		return nil
	})
	if err != nil {
		return err
	}
	b.put("planes.p50", t, quantile(latencies, 0.5))
	b.put("planes.p99", t, quantile(latencies, 0.99))
	b.put("planes.cpu", t, cpu.total()/pushTimes)
	b.log("waiting for memory to settle")
	if err := settle(ctx, []*target{t}); err != nil {
		return err
	}
	anon, err := t.anon()
	if err != nil {
		return err
	}
	b.put("planes.anon", t, anon.since(before[t]).total()*1024/deltaPlanes)
	if err := b.anonAfter(ctx, []*target{t}, after); err != nil {
		return err
	}
	b.put("planes.anon.gc", t, after[t].since(before[t]).total()*1024/deltaPlanes)
	return nil
}
