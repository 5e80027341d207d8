package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/vmesh-io/vmesh/pkg/apiserver"
	"github.com/vmesh-io/vmesh/test/harness"
)

// rewriteStorage runs vmesh storage rewrite.
func rewriteStorage(t *testing.T, binary, dataDir string, args ...string) (apiserver.Rewrite, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, append([]string{"storage", "rewrite", "--data-dir", dataDir, "-o", "json"}, args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, errOut.String())
	}
	var done apiserver.Rewrite
	if out.Len() > 0 {
		if jsonErr := json.Unmarshal(out.Bytes(), &done); jsonErr != nil {
			t.Fatal(jsonErr)
		}
	}
	return done, err
}

// holds tells whether any file of etcd has some bytes.
func holds(t *testing.T, dataDir, text string) bool {
	t.Helper()
	found := false
	err := filepath.WalkDir(filepath.Join(dataDir, "etcd"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		found = found || bytes.Contains(data, []byte(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestKeysAreRotatedWhileTheServerRuns(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	dir := t.TempDir()
	dataDir, file := filepath.Join(dir, "data"), filepath.Join(dir, "encryption.yaml")
	const encrypted = "secrets, configmaps, virtualservices.networking.istio.io"
	use := func(keys ...string) {
		t.Helper()
		// Never half a file.
		if err := os.Rename(writeFile(t, file+".new", encryptionConfig(encrypted, keys...)), file); err != nil {
			t.Fatal(err)
		}
	}
	use("first")
	binary, err := harness.Build(ctx)
	if err != nil {
		t.Fatal(err)
	}
	vmesh, err := harness.StartVmesh(ctx, harness.VmeshOptions{Binary: binary, DataDir: dataDir, ExtraArgs: []string{
		"--encryption-provider-config", file, "--encryption-provider-config-automatic-reload",
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := vmesh.Stop(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	}()
	kubeconfig, err := vmesh.Kubeconfig(ctx, "default")
	if err != nil {
		t.Fatal(err)
	}
	kubectl := func(args ...string) string {
		t.Helper()
		out, err := harness.Kubectl(ctx, kubeconfig, "", args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	const text = "the-text-of-a-secret"
	for i := range 3 {
		kubectl("create", "secret", "generic", fmt.Sprintf("s%d", i), "--from-literal=text="+text)
	}
	if err := harness.Apply(ctx, kubeconfig, virtualService("before")); err != nil {
		t.Fatal(err)
	}
	readable := func() {
		t.Helper()
		for i := range 3 {
			if got := kubectl("get", "secret", fmt.Sprintf("s%d", i), "-o", "go-template={{.data.text | base64decode}}"); got != text {
				t.Fatalf("s%d holds %q", i, got)
			}
		}
	}
	rewrite := func(rewritten, unreadable int, args ...string) {
		t.Helper()
		done, err := rewriteStorage(t, binary, dataDir, args...)
		if (err != nil) != (unreadable > 0) || done.Rewritten != rewritten || len(done.Unreadable) != unreadable {
			t.Fatalf("rewritten is %+v, %v", done, err)
		}
		addsUp := func() error {
			if done.Total == nil {
				return errors.New("it does not say how many there are")
			}
			if sum := done.Rewritten + done.Current + len(done.Unreadable); int(*done.Total) != sum {
				return fmt.Errorf("there are %d, and %d were looked at: %+v", *done.Total, sum, done)
			}
			return nil
		}
		// What is counted first may be more, or less, when it is looked at: the server writes, too.
		for deadline := time.Now().Add(time.Minute); addsUp() != nil; {
			if time.Now().After(deadline) {
				t.Fatal(addsUp())
			}
			if done, err = rewriteStorage(t, binary, dataDir, args...); (err != nil) != (unreadable > 0) || done.Rewritten != 0 || len(done.Unreadable) != unreadable {
				t.Fatalf("rewritten once more is %+v, %v", done, err)
			}
		}
	}
	rewrite(0, 0)

	// A control plane that is connected is sent nothing by a rewriting.
	pushes := follow(t, ctx, vmesh.XDSAddress, "networking.istio.io/v1/VirtualService")
	if r := <-pushes; len(r.Resources) != 1 {
		t.Fatalf("it is sent %v", r)
	}

	use("first", "second") // all servers can read with it, before one writes with it
	rewrite(0, 0)
	use("second", "first")
	rewrite(3, 0, "--resource", "secrets", "--virtual-cluster", "default")
	rewrite(2, 0) // a VirtualService, and the record of its creation
	readable()
	if err := harness.Apply(ctx, kubeconfig, virtualService("later")); err != nil {
		t.Fatal(err)
	}
	if r := <-pushes; len(r.Resources) != 2 {
		t.Errorf("before it was sent what was written later, it was sent %v", r)
	}
	use("second")
	readable()
	rewrite(0, 0)
	if err := vmesh.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	readable()
	if holds(t, dataDir, text) || !holds(t, dataDir, "k8s:enc:secretbox:v1:second:") {
		t.Error("the secrets are not encrypted on the disk")
	}

	// A key that is lost takes along what was encrypted with it, and nothing else.
	use("third")
	if err := vmesh.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if got := kubectl("get", "secret", "s0", "-o", `go-template={{index .metadata.annotations "vmesh.io/quarantined"}} {{.data}}`); !strings.Contains(got, "cannot be decrypted") {
		t.Errorf("without its key it is shown as %q", got)
	}
	kubectl("create", "secret", "generic", "new", "--from-literal=text="+text)
	rewrite(0, 7)
	if got := kubectl("get", "namespaces", "-o", "name"); !strings.Contains(got, "namespace/default") {
		t.Errorf("it lists %q", got)
	}
	// It comes back with the key, without a restart.
	use("third", "second")
	rewrite(7, 0)
	readable()
	if got := kubectl("get", "secrets", "-o", `go-template={{range .items}}{{.metadata.name}}={{.data.text | base64decode}} {{end}}`); strings.Count(got, "="+text) != 4 {
		t.Errorf("it lists %q", got)
	}
	if err := os.WriteFile(file, []byte("kind: EncryptionConfiguration"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := rewriteStorage(t, binary, dataDir); err == nil || !strings.Contains(err.Error(), "encryption") {
		t.Errorf("with a broken file: %v", err)
	}
	readable()
}

// follow subscribes to a kind as istiod does, and acknowledges what it is sent.
func follow(t *testing.T, ctx context.Context, address, url string) <-chan *discovery.DiscoveryResponse {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	node := &core.Node{Id: "test"}
	if err := stream.Send(&discovery.DiscoveryRequest{TypeUrl: url, Node: node}); err != nil {
		t.Fatal(err)
	}
	received := make(chan *discovery.DiscoveryResponse, 100)
	go func() {
		defer close(received)
		for {
			r, err := stream.Recv()
			if err != nil {
				return // the connection is closed
			}
			received <- r
			_ = stream.Send(&discovery.DiscoveryRequest{TypeUrl: url, Node: node, ResponseNonce: r.Nonce, VersionInfo: r.VersionInfo})
		}
	}()
	return received
}
