// Command demo runs vmesh with a real istiod and real traffic on this machine, and draws where the traffic goes while
// you change the config with kubectl. istiod has no Kubernetes but the virtual cluster "default".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/vmesh-io/vmesh/test/traffic"
)

func main() {
	duration := flag.Duration("for", 0, "end after this time; 0 is until Ctrl-C")
	auto := flag.Bool("auto", false, "shift the traffic without help, fail if it does not follow, then end")
	binary := flag.String("vmesh", "", "the vmesh to run; built from this checkout when empty")
	flag.Parse()

	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	context.AfterFunc(ctx, cancel) // from here on a second Ctrl-C ends us at once
	if err := run(ctx, *binary, *duration, *auto); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// run returns nil when Ctrl-C or --for ended it. With auto that is an error too: the shifts were not through.
func run(ctx context.Context, binary string, duration time.Duration, auto bool) (err error) {
	dir, err := os.MkdirTemp("", "vmesh-demo-")
	if err != nil {
		return err
	}
	stack := &stack{binary: binary, dir: dir}
	defer func() {
		fmt.Println("stopping everything")
		err = errors.Join(err, stack.stop(context.WithoutCancel(ctx)))
		if err != nil {
			fmt.Fprintln(os.Stderr, "the logs are in", dir)
			return
		}
		err = os.RemoveAll(dir)
	}()

	if err = stack.start(ctx); err == nil {
		if duration > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, duration)
			defer cancel()
		}
		err = watch(ctx, stack, auto)
	}
	if ctx.Err() != nil && !auto {
		return nil
	}
	return err
}

// watch draws until ctx ends or, with auto, until the last shift is through.
func watch(ctx context.Context, stack *stack, auto bool) error {
	route, err := newRoute(stack.kubeconfig)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wait sync.WaitGroup
	defer wait.Wait()
	defer cancel()

	all := &meter{name: "all calls"}
	byHeader := &meter{
		name:    "with " + traffic.VersionHeader + ": v2",
		headers: map[string]string{traffic.VersionHeader: "v2"},
	}
	meters := []*meter{all, byHeader}
	for _, meter := range meters {
		wait.Go(func() { meter.run(ctx, stack.client) })
	}

	screen := newScreen(os.Stdout)
	var shifted chan error // without auto it stays nil, and a nil channel never speaks
	if auto {
		shifted = make(chan error, 1)
		wait.Go(func() { shifted <- shiftAll(ctx, stack, screen, all, byHeader) })
	} else {
		screen.note("%s", stack.instructions())
	}

	tick := time.NewTicker(screen.interval())
	defer tick.Stop()
	for {
		screen.show(meters, route.changed(ctx))
		select {
		case <-tick.C:
		case err := <-shifted:
			return err
		case <-stack.vmesh.Exited():
			return errors.New("vmesh has ended")
		case <-stack.istiod.Exited():
			return errors.New("istiod has ended")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
