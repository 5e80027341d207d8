package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/vmesh-io/vmesh/test/harness"
	"github.com/vmesh-io/vmesh/test/traffic"
)

// virtualCluster holds the demo's config, and is istiod's home: its Kubernetes API, with its settings.
const virtualCluster = "default"

// stack is all that the demo runs; what has not been started is nil.
type stack struct {
	binary     string // of vmesh; built when empty
	dir        string
	vmesh      *harness.Vmesh
	istiod     *harness.Istiod
	backends   []*traffic.Backend
	client     *traffic.Client
	kubeconfig string
}

// start returns once the first call has gone through.
func (s *stack) start(ctx context.Context) error {
	steps := []struct {
		name string
		do   func(context.Context) (detail string, err error)
	}{
		// The service comes before istiod, so that its first push to the client is the whole config. With less, the client
		// would fail a call or two on its way from the one to the other.
		{"vmesh", s.startVmesh},
		{"service", s.startService},
		{"istiod", s.startIstiod},
		{"traffic", s.startTraffic},
	}
	for _, step := range steps {
		begun := time.Now()
		detail, err := step.do(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		fmt.Printf("%-8s %6.1f s  %s\n", step.name, time.Since(begun).Seconds(), detail)
	}
	return nil
}

func (s *stack) startVmesh(ctx context.Context) (_ string, err error) {
	if s.binary == "" {
		fmt.Println("building vmesh from this checkout, if it has changed")
	}
	s.vmesh, err = harness.StartVmesh(ctx, harness.VmeshOptions{Binary: s.binary, DataDir: filepath.Join(s.dir, "vmesh")})
	if err != nil {
		return "", err
	}
	if err := s.vmesh.Home(ctx, "default", virtualCluster); err != nil {
		return "", err
	}
	kubeconfig, err := s.vmesh.Kubeconfig(ctx, virtualCluster)
	if err != nil {
		return "", err
	}
	// The user has to type this path.
	s.kubeconfig = filepath.Join(s.dir, virtualCluster+".kubeconfig")
	if err := os.Symlink(kubeconfig, s.kubeconfig); err != nil {
		return "", err
	}
	return fmt.Sprintf("API on 127.0.0.1:%d, xDS on %s, %s", s.vmesh.Port, s.vmesh.XDSAddress, memory(s.vmesh.Process)), nil
}

func (s *stack) startService(ctx context.Context) (string, error) {
	for _, version := range []string{"v1", "v2"} {
		backend, err := traffic.StartBackend(version)
		if err != nil {
			return "", err
		}
		s.backends = append(s.backends, backend)
	}
	if err := harness.Apply(ctx, s.kubeconfig, traffic.Service(s.backends[0], s.backends[1])); err != nil {
		return "", err
	}
	if err := s.apply(ctx, "shift-80-20.yaml"); err != nil {
		return "", err
	}
	return "greeter v1 and v2 in namespace demo", nil
}

func (s *stack) startIstiod(ctx context.Context) (_ string, err error) {
	s.istiod, err = harness.StartIstiod(ctx, harness.IstiodOptions{Dir: filepath.Join(s.dir, "istiod"), Kubeconfig: s.kubeconfig, Home: true})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("it has nothing but the kubeconfig of virtual cluster %q, %s", virtualCluster, memory(s.istiod.Process)), nil
}

func (s *stack) startTraffic(ctx context.Context) (_ string, err error) {
	s.client, err = traffic.Dial(s.istiod.GRPCAddress, traffic.Target)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		_, err := s.client.Call(ctx, nil)
		if err == nil {
			return "a gRPC client calls " + traffic.Target + ", routed by istiod", nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return "", fmt.Errorf("no call got through: %w", err)
		}
	}
}

// apply applies one of the demo's files, as a user would.
func (s *stack) apply(ctx context.Context, file string) error {
	root, err := harness.RepoRoot()
	if err != nil {
		return err
	}
	_, err = harness.Kubectl(ctx, s.kubeconfig, "", "apply", "-f", filepath.Join(root, "test", "demo", file))
	return err
}

// stop ends what was started, last first.
func (s *stack) stop(ctx context.Context) error {
	var errs []error
	if s.client != nil {
		errs = append(errs, s.client.Close())
	}
	for _, backend := range s.backends {
		errs = append(errs, backend.Stop())
	}
	if s.istiod != nil {
		errs = append(errs, s.istiod.Stop(ctx))
	}
	if s.vmesh != nil {
		errs = append(errs, s.vmesh.Stop(ctx))
	}
	return errors.Join(errs...)
}

// instructions are what to type in another terminal.
func (s *stack) instructions() string {
	return fmt.Sprintf(`
In another terminal, in this folder:

  export KUBECONFIG=%s
  kubectl apply -f test/demo/shift-20-80.yaml   # most calls go to v2
  kubectl apply -f test/demo/shift-80-20.yaml   # and back
  kubectl apply -f test/demo/by-header.yaml     # v2 only for calls with %s: v2
  kubectl get virtualservices,serviceentries,destinationrules -n demo

Ctrl-C ends everything.
`, s.kubeconfig, traffic.VersionHeader)
}

func memory(process *harness.Process) string {
	rss, err := process.RSS()
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d MiB", rss>>20)
}
