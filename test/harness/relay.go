package harness

import (
	"context"
	"errors"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// RelayOptions says how to run a relay.
type RelayOptions struct {
	// Dir takes the log and the cache. Required.
	Dir string
	// Binary is the vmesh that it is a command of. Required.
	Binary string
	// Name is what it calls itself.
	Name string
	// Upstream are the servers' addresses of xDS over TLS, Kubeconfig the identity to show there. Required.
	Upstream   []string
	Kubeconfig string
	// Shards is over how many sources it spreads the mesh; at least 1.
	Shards int
	// ExtraArgs go to `vmesh relay` last, so they win.
	ExtraArgs []string
}

// Relay is a running relay.
type Relay struct {
	*Process
	// Sources are what an istiod asks. They outlive a restart.
	Sources []string

	options RelayOptions
	health  string
}

// StartRelay starts a relay and waits until it reports itself ready.
func StartRelay(ctx context.Context, options RelayOptions) (*Relay, error) {
	first, err := freePortRange(options.Shards + 1)
	if err != nil {
		return nil, err
	}
	relay := &Relay{options: options, health: loopback(first + options.Shards)}
	for i := range options.Shards {
		relay.Sources = append(relay.Sources, loopback(first+i))
	}
	return relay, relay.start(ctx)
}

// Restart stops the relay, unless it has ended already, and starts it again with its cache and its ports.
func (r *Relay) Restart(ctx context.Context) error {
	if err := r.Stop(ctx); err != nil {
		return err
	}
	return r.start(ctx)
}

func (r *Relay) start(ctx context.Context) (err error) {
	options := r.options
	r.Process, err = StartProcess(options.Name, filepath.Join(options.Dir, "relay.log"), exec.Command(options.Binary, append([]string{
		"relay",
		"--upstream", strings.Join(options.Upstream, ","),
		"--kubeconfig", options.Kubeconfig,
		"--name", options.Name,
		"--listen-base", r.Sources[0],
		"--shards", strconv.Itoa(options.Shards),
		"--cache-dir", filepath.Join(options.Dir, "cache"),
		"--health-address", r.health,
	}, options.ExtraArgs...)...))
	if err != nil {
		return err
	}
	err = r.waitReady(ctx, func(ctx context.Context) error {
		_, err := get(ctx, http.DefaultClient, "http://"+r.health+"/readyz")
		return err
	})
	if err != nil {
		return errors.Join(err, r.Kill())
	}
	return nil
}
