package harness

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// RelayOptions says how to run a relay.
type RelayOptions struct {
	// Dir holds the cache, the log and the mesh configuration that the relay writes. Required.
	Dir string
	// Binary is the vmesh to run; built from this checkout when empty.
	Binary string
	// Upstream are the addresses of vmesh's xDS over TLS. Required.
	Upstream []string
	// Kubeconfig is the relay's identity. Required.
	Kubeconfig string
	// MaxShards is how many ports are kept free for shards; 4 when zero.
	MaxShards int
	// ExtraArgs go to `vmesh relay` last, so they win.
	ExtraArgs []string
}

// Relay is a running relay. Its addresses outlive a restart.
type Relay struct {
	*Process
	// HealthURL is the base of /readyz and /metrics.
	HealthURL string
	// MeshConfig is the file that it writes for istiod, CacheDir where its cache is.
	MeshConfig, CacheDir string

	options      RelayOptions
	base, health string
}

// StartRelay starts a relay on free ports, and waits until it answers, which it does before it is ready.
func StartRelay(ctx context.Context, options RelayOptions) (*Relay, error) {
	if options.Binary == "" {
		binary, err := Build(ctx)
		if err != nil {
			return nil, err
		}
		options.Binary = binary
	}
	if options.MaxShards == 0 {
		options.MaxShards = 4
	}
	base, err := FreePortRange(options.MaxShards + 1)
	if err != nil {
		return nil, err
	}
	r := &Relay{
		options: options, health: loopback(base), base: loopback(base + 1), HealthURL: "http://" + loopback(base),
		MeshConfig: filepath.Join(options.Dir, "mesh.yaml"), CacheDir: filepath.Join(options.Dir, "cache"),
	}
	return r, r.Start(ctx)
}

// Start starts a relay that has ended.
func (r *Relay) Start(ctx context.Context) error {
	if err := os.MkdirAll(r.options.Dir, 0o755); err != nil {
		return err
	}
	cmd := exec.Command(r.options.Binary, append([]string{
		"relay", "--upstream", strings.Join(r.options.Upstream, ","), "--kubeconfig", r.options.Kubeconfig, "--cache-dir", r.CacheDir,
		"--listen-base", r.base, "--health-address", r.health, "--write-mesh-config", r.MeshConfig, "-v", "1",
	}, r.options.ExtraArgs...)...)
	process, err := StartProcess("relay", filepath.Join(r.options.Dir, "relay.log"), cmd)
	if err != nil {
		return err
	}
	r.Process = process
	if err := r.waitReady(ctx, func(ctx context.Context) error {
		_, err := get(ctx, http.DefaultClient, r.HealthURL+"/livez")
		return err
	}); err != nil {
		return errors.Join(err, r.Kill())
	}
	return nil
}

// Ready says why the relay is not ready, or nil.
func (r *Relay) Ready(ctx context.Context) error {
	_, err := get(ctx, http.DefaultClient, r.HealthURL+"/readyz")
	return err
}

// WaitReady waits until it is.
func (r *Relay) WaitReady(ctx context.Context) error { return r.waitReady(ctx, r.Ready) }

// Metric is the value of one of its metrics without labels.
func (r *Relay) Metric(ctx context.Context, name string) (value float64, err error) {
	body, err := get(ctx, http.DefaultClient, r.HealthURL+"/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(body)) {
		if text, ok := strings.CutPrefix(line, name+" "); ok {
			_, err := fmt.Sscan(text, &value)
			return value, err
		}
	}
	return 0, fmt.Errorf("there is no metric %s", name)
}

// Sources are the addresses that the relay tells istiod of.
func (r *Relay) Sources() ([]string, error) {
	data, err := os.ReadFile(r.MeshConfig)
	if err != nil {
		return nil, err
	}
	var config struct {
		ConfigSources []struct{ Address string }
	}
	if err := yaml.Unmarshal(data, &config); err != nil {
		return nil, err
	}
	var all []string
	for _, s := range config.ConfigSources {
		all = append(all, strings.TrimPrefix(s.Address, "xds://"))
	}
	return all, nil
}
