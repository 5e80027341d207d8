// Package harness runs the real programs around vmesh, and vmesh itself, as processes on loopback: for tests, for the
// demo and for benchmarks. A function that starts something returns once it is ready to serve; the caller stops it.
//
// Contexts bound only the waiting: a process outlives the ctx it was started with.
package harness

import (
	"context"
	"errors"
	"flag"
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
	"sync"
	"syscall"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Main is a TestMain's work, for tests that share processes: run starts them, runs the tests and stops them. It ends
// the process, with an error on stderr if there was one.
func Main(run func() (code int, err error)) {
	beGateway()
	flag.Parse()
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// StopAfter has something stopped when a test ends, within a minute.
func StopAfter(t interface {
	Cleanup(func())
	Error(...any)
}, stop func(context.Context) error) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := stop(ctx); err != nil {
			t.Error(err)
		}
	})
}

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

// built is the binary, once this process has made it: what go build takes to see that nothing has changed is seconds on a
// busy machine.
var built struct {
	sync.Mutex
	binary string
}

// Build compiles cmd/vmesh into bin/, as make build does, and returns its path.
func Build(ctx context.Context) (string, error) {
	built.Lock()
	defer built.Unlock()
	if built.binary != "" {
		return built.binary, nil
	}
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
	built.binary = binary
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

// FreePorts returns n loopback TCP ports that nothing listens on. The kernel takes none of them for outgoing connections, so
// a process that is restarted gets its own back; nor are they given to another test's process before this one ends.
func FreePorts(n int) ([]int, error) {
	first, err := FreePortRange(n)
	if err != nil {
		return nil, err
	}
	ports := make([]int, n)
	for i := range ports {
		ports[i] = first + i
	}
	return ports, nil
}

// FreePortRange is FreePorts for n ports side by side, of which it returns the first.
func FreePortRange(n int) (int, error) {
	return ports.take(n)
}

const firstPort, endPort = 10000, 32768 // Linux takes those of outgoing connections from there on

// portBlock is this process's share of the ports. Others run tests at the same time, and a port is not listened on until the
// program that it is for has started.
type portBlock struct {
	mu          sync.Mutex
	lock        *os.File // held until the process ends
	first, next int
}

const blockSize = 1024

var ports portBlock

func (b *portBlock) take(n int) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.claim(); err != nil {
		return 0, fmt.Errorf("finding free ports: %w", err)
	}
	var last error
	for range blockSize {
		if b.next+n > b.first+blockSize {
			b.next = b.first
		}
		first := b.next
		if last = listenOnAll(first, n); last == nil {
			b.next += n
			return first, nil
		}
		b.next++
	}
	return 0, fmt.Errorf("finding %d free ports side by side: %w", n, last)
}

// claim makes a block this process's own.
func (b *portBlock) claim() error {
	if b.lock != nil {
		return nil
	}
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("vmesh-test-ports-%d", os.Getuid()))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, i := range rand.Perm((endPort - firstPort) / blockSize) {
		first := firstPort + i*blockSize
		file, err := os.OpenFile(filepath.Join(dir, strconv.Itoa(first)), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		if syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			b.lock, b.first, b.next = file, first, first
			return nil
		}
		file.Close()
	}
	return fmt.Errorf("other tests have all blocks of ports, as %s shows", dir)
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
