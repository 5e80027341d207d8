// Package harness runs the real programs around vmesh, and vmesh itself, as processes on loopback: for tests, for the
// demo and for benchmarks. A function that starts something returns once it is ready to serve; the caller stops it.
//
// Contexts bound only the waiting: a process outlives the ctx it was started with.
package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Tool returns the path of istiod, istioctl, kube-apiserver, kubectl or etcd. It builds the tool when this machine has
// none yet, which takes minutes and says so on stderr.
func Tool(ctx context.Context, name string) (string, error) {
	root, err := RepoRoot()
	if err != nil {
		return "", err
	}
	out, err := buildCommand(ctx, root, filepath.Join(root, "hack", "tool.sh"), name).Output()
	if err != nil {
		return "", fmt.Errorf("building %s: %w", name, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Build compiles cmd/vmesh into bin/, as make build does, and returns its path. When nothing has changed it costs what
// go build takes to see that.
func Build(ctx context.Context) (string, error) {
	root, err := RepoRoot()
	if err != nil {
		return "", err
	}
	binary := filepath.Join(root, "bin", "vmesh")
	unlock, err := lockFile(filepath.Join(root, ".cache", "vmesh.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if err := buildCommand(ctx, root, "make", "--silent", "build").Run(); err != nil {
		return "", fmt.Errorf("building vmesh: %w", err)
	}
	return binary, nil
}

// RepoRoot is the folder of this module, found from the working directory upwards.
func RepoRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		// The modules under hack/tools have a longer path.
		if strings.Contains(string(data), "module github.com/vmesh-io/vmesh\n") {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod of vmesh in %s or above", start)
		}
	}
}

// buildCommand shows its progress on stderr, and its whole process tree ends with ctx: a build left behind would keep
// the machine busy and its lock taken.
func buildCommand(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	return cmd
}

// lockFile serializes the test binaries that `go test ./...` runs side by side.
func lockFile(path string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	file, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
		file.Close()
		return nil, err
	}
	return func() { file.Close() }, nil
}

// FreePorts returns n loopback TCP ports that nothing listened on a moment ago. The kernel takes none of them for outgoing
// connections, so a process that is restarted gets its own back.
func FreePorts(n int) ([]int, error) {
	ports := make([]int, 0, n)
	for tries := 0; len(ports) < n; tries++ {
		port := firstPort + rand.IntN(endPort-firstPort)
		// All listeners stay open until the end, so that no port is returned twice.
		listener, err := net.Listen("tcp", loopback(port))
		if err != nil {
			if tries > 100*n {
				return nil, fmt.Errorf("finding free ports: %w", err)
			}
			continue
		}
		defer listener.Close()
		ports = append(ports, port)
	}
	return ports, nil
}

// FreePortRange is FreePorts for n ports side by side, of which it returns the first.
func FreePortRange(n int) (int, error) {
	var last error
	for range 100 {
		first := firstPort + rand.IntN(endPort-firstPort-n)
		if last = listenOnAll(first, n); last == nil {
			return first, nil
		}
	}
	return 0, fmt.Errorf("finding %d free ports side by side: %w", n, last)
}

func listenOnAll(first, n int) error {
	for port := first; port < first+n; port++ {
		listener, err := net.Listen("tcp", loopback(port))
		if err != nil {
			return err
		}
		defer listener.Close()
	}
	return nil
}

const firstPort, endPort = 10000, 32768 // Linux takes those of outgoing connections from there on

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// get returns the body of a 200 response; anything else is an error.
func get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	request.Close = true // nothing of ours stays open to a process that a test is about to stop
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", url, err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s: %s", url, response.Status, body)
	}
	return body, nil
}

// apiReady asks an apiserver's /readyz with the credentials of a kubeconfig, which the server itself may still have to
// write.
func apiReady(ctx context.Context, kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return err
	}
	_, err = get(ctx, client, config.Host+"/readyz")
	return err
}
