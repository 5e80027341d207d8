package harness

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// Kubectl runs the real kubectl and returns what it writes to stdout; the error holds what it writes to stderr.
func Kubectl(ctx context.Context, kubeconfig, stdin string, args ...string) (string, error) {
	kubectl, err := Tool(ctx, "kubectl")
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, kubectl, append([]string{"--kubeconfig", kubeconfig}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

// Apply hands manifests, in YAML, to kubectl apply.
func Apply(ctx context.Context, kubeconfig, manifests string) error {
	_, err := Kubectl(ctx, kubeconfig, manifests, "apply", "-f", "-")
	return err
}
