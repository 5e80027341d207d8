package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestACheckOfNetworksSaysWhatIsWrongWithItsFlags(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "--istiod: give the control plane's plaintext address"},
		{[]string{"--istiod", "localhost"}, "--istiod: address localhost: missing port in address: give host:port"},
		{[]string{"--istiod", "localhost:1", "-o", "text"}, `"-o, --output" flag: it must be table, json or yaml`},
		{[]string{"--istiod", "localhost:1", "--dial"}, "--dial: say by --from in which member this runs"},
		{[]string{"--istiod", "localhost:1", "--timeout", "0s"}, "--timeout: must be positive"},
		{[]string{"--istiod", "localhost:1", "--member", "=coast"}, `--member: "=coast" has no name: give NAME=NETWORK`},
		{[]string{"--istiod", "localhost:1", "--member", "a=x", "--member", "a=y"}, `--member: "a" is given twice`},
		{[]string{"--istiod", "localhost:1", "--member", "a=x", "--from", "b"}, `--from: "b" is no member of the mesh`},
		{[]string{"--istiod", "127.0.0.1:1", "--member", "a=x"}, "asking the control plane at 127.0.0.1:1, which is to be its plaintext port"},
		{[]string{"--istiod", "localhost:1", "--data-dir", none}, "--data-dir: there is no"},
		{[]string{"--istiod", "localhost:1", "--kubeconfig", empty}, "is not a kubeconfig"},
		{[]string{"a", "b"}, "MESH"},
	} {
		cmd := newCommand()
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SetArgs(append([]string{"check", "network"}, c.args...))
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, not %q", c.args, err, c.want)
		}
	}
}
