package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// VmeshOptions says how to run a vmesh server.
type VmeshOptions struct {
	// DataDir holds all that the server keeps. Required.
	DataDir string
	// Binary is the vmesh to run; built from this checkout when empty.
	Binary string
	// LogFile takes the server's output; DataDir with ".log" added when empty.
	LogFile string
	// ExtraArgs go to `vmesh server` last, so they win.
	ExtraArgs []string
}

// Vmesh is a running vmesh server.
type Vmesh struct {
	*Process
	// Port serves the Kubernetes API, XDSAddress (host:port) istiods. Both outlive a restart.
	Port       int
	XDSAddress string
	// AdminKubeconfig is the platform team's way in, to the root.
	AdminKubeconfig string

	options VmeshOptions
}

// StartVmesh starts a server on free ports and waits until it reports itself ready.
func StartVmesh(ctx context.Context, options VmeshOptions) (*Vmesh, error) {
	if options.Binary == "" {
		binary, err := Build(ctx)
		if err != nil {
			return nil, err
		}
		options.Binary = binary
	}
	dir, err := filepath.Abs(options.DataDir)
	if err != nil {
		return nil, err
	}
	options.DataDir = dir
	if options.LogFile == "" {
		options.LogFile = dir + ".log"
	}
	ports, err := FreePorts(2)
	if err != nil {
		return nil, err
	}
	vmesh := &Vmesh{
		Port:            ports[0],
		XDSAddress:      loopback(ports[1]),
		AdminKubeconfig: filepath.Join(dir, "admin.kubeconfig"),
		options:         options,
	}
	if err := vmesh.start(ctx); err != nil {
		return nil, err
	}
	return vmesh, nil
}

// Restart stops the server, unless it has ended already, and starts it again with the same ports and data.
func (v *Vmesh) Restart(ctx context.Context) error {
	if err := v.Stop(ctx); err != nil {
		return err
	}
	return v.start(ctx)
}

func (v *Vmesh) start(ctx context.Context) error {
	cmd := exec.Command(v.options.Binary, append([]string{
		"server",
		"--data-dir", v.options.DataDir,
		"--bind-address", "127.0.0.1",
		"--secure-port", strconv.Itoa(v.Port),
		"--xds-address", v.XDSAddress,
	}, v.options.ExtraArgs...)...)
	process, err := StartProcess("vmesh", v.options.LogFile, cmd)
	if err != nil {
		return err
	}
	v.Process = process
	err = v.waitReady(ctx, func(ctx context.Context) error { return apiReady(ctx, v.AdminKubeconfig) })
	if err != nil {
		return errors.Join(err, v.Kill())
	}
	return nil
}

// Kubeconfig writes an administrator's kubeconfig for a virtual cluster, creating the cluster's credentials, and returns
// the file's path.
func (v *Vmesh) Kubeconfig(ctx context.Context, cluster string) (string, error) {
	cmd := exec.CommandContext(ctx, v.options.Binary, "kubeconfig", "create", cluster, "--data-dir", v.options.DataDir)
	cmd.Stderr = os.Stderr
	kubeconfig, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("creating a kubeconfig for virtual cluster %s: %w", cluster, err)
	}
	path := filepath.Join(v.options.DataDir, "kubeconfigs", cluster)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", err
	}
	return path, os.WriteFile(path, kubeconfig, 0o600)
}

// Home makes a virtual cluster the home of its mesh's control planes, and returns when it has the mesh's settings.
func (v *Vmesh) Home(ctx context.Context, mesh, cluster string) error {
	patch := fmt.Sprintf(`{"spec":{"home":{"virtualCluster":%q}}}`, cluster)
	for _, args := range [][]string{
		{"patch", "mesh", mesh, "--type=merge", "--patch", patch},
		{"wait", "mesh", mesh, "--for=condition=HomeReady", "--timeout=60s"},
	} {
		if out, err := Kubectl(ctx, v.AdminKubeconfig, "", args...); err != nil {
			return fmt.Errorf("giving mesh %s a home: %w: %s", mesh, err, out)
		}
	}
	return nil
}
