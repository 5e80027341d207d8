package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/cobra"
)

func run(args ...string) (stdout string, err error) {
	cmd := newCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err = cmd.ExecuteContext(context.Background())
	return out.String(), err
}

func TestEveryCommandExplainsItselfByExample(t *testing.T) {
	var check func(cmd *cobra.Command)
	check = func(cmd *cobra.Command) {
		if cmd.Short == "" || cmd.Example == "" {
			t.Errorf("%s lacks a short text or an example", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			check(sub)
		}
	}
	check(newCommand())
}

func TestMistakesAreNamedWithARemedy(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	kubeconfig := func(server string) string {
		return "apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts: [{name: x, context: {cluster: x, user: x}}]\n" +
			"clusters: [{name: x, cluster: {server: \"" + server + "\"}}]\nusers: [{name: x}]\n"
	}
	for _, c := range []struct {
		name string
		args []string
		want []string
	}{
		{"an unknown command", []string{"frobnicate"}, []string{`unknown command "frobnicate"`}},
		{"an unknown flag", []string{"server", "--prot", "1"}, []string{"unknown flag: --prot", "See 'vmesh server --help'"}},
		{"an argument too many", []string{"server", "x"}, []string{`"x"`, "See 'vmesh server --help'"}},
		{"no name", []string{"kubeconfig", "create"}, []string{"NAME", "See 'vmesh kubeconfig create --help'"}},
		{"a file that would be lost", []string{"kubeconfig", "create", "a", "-o", file("exists", "x")}, []string{"--output", "exists", "--merge"}},
		{"a merge into no kubeconfig", []string{"kubeconfig", "create", "a", "--merge", "-o", file("nokubeconfig", "[]")}, []string{"--merge", "nokubeconfig"}},
		{"a list of two", []string{"kubeconfig", "list", "a", "b"}, []string{"one NAME", "See 'vmesh kubeconfig list --help'"}},
		{"a list in a format that there is not", []string{"kubeconfig", "list", "-o", "xml"}, []string{"--output", "wide", "json"}},
		{"nothing to revoke", []string{"kubeconfig", "revoke"}, []string{"NAME", "--virtual-cluster", "--user"}},
		{"names and a choice to revoke", []string{"kubeconfig", "revoke", "a", "--user", "b"}, []string{"either"}},
		{"certificates of no server", []string{"certificates", "--data-dir", dir}, []string{"--data-dir", "client-ca.crt"}},
		{"a rotation of nothing", []string{"certificates", "rotate"}, []string{"client-ca", "server-ca"}},
		{"a rotation of something else", []string{"certificates", "rotate", "ca", "--data-dir", dir}, []string{`"ca"`, "client-ca", "server-ca"}},
		{"a rotation in the past", []string{"certificates", "rotate", "client-ca", "--after", "-1h"}, []string{"--after"}},
		{"a kubeconfig command that there is not", []string{"kubeconfig", "delete"}, []string{`unknown command "delete" for "vmesh kubeconfig"`, "See 'vmesh kubeconfig --help'"}},
		{"a storage command that there is not", []string{"storage", "encrypt"}, []string{`unknown command "encrypt" for "vmesh storage"`, "See 'vmesh storage --help'"}},
		{"a time that is too short", []string{"kubeconfig", "create", "a", "--ttl", "1s"}, []string{"--ttl", "10m"}},
		{"nobody", []string{"kubeconfig", "create", "a", "--user", ""}, []string{"--user"}},
		{"no group, which would make an administrator", []string{"kubeconfig", "create", "a", "--group", ""}, []string{"--group", "must not be empty"}},
		{"an empty one among groups", []string{"kubeconfig", "create", "a", "--group", "b,"}, []string{"--group", "must not be empty"}},
		{"a virtual cluster without a name", []string{"kubeconfig", "create", ""}, []string{"NAME", "empty"}},
		{"a virtual cluster twice", []string{"kubeconfig", "create", "a", "b", "a"}, []string{"NAME", `"a"`, "twice"}},
		{"a choice that is none", []string{"kubeconfig", "revoke", "--virtual-cluster", "", "--user", "b"}, []string{"--virtual-cluster", "must not be empty"}},
		{"a data directory without a server", []string{"kubeconfig", "create", "a", "--data-dir", dir}, []string{"--data-dir", "admin.kubeconfig", "--kubeconfig"}},
		{"a kubeconfig that is not there", []string{"kubeconfig", "create", "a", "--kubeconfig", filepath.Join(dir, "nope")}, []string{"--kubeconfig", "no such file"}},
		{"a kubeconfig that is garbled", []string{"kubeconfig", "create", "a", "--kubeconfig", file("garbled", "garbage")}, []string{"is not a kubeconfig", "admin.kubeconfig"}},
		{"a kubeconfig that is empty", []string{"kubeconfig", "create", "a", "--kubeconfig", file("empty", "")}, []string{"is not a kubeconfig"}},
		{"a virtual cluster's kubeconfig", []string{"kubeconfig", "create", "a", "--kubeconfig", file("tenant", kubeconfig("https://127.0.0.1:1/clusters/shop"))},
			[]string{"is for virtual cluster shop", "root's administrator"}},
		{"a server that is not running", []string{"kubeconfig", "create", "a", "--kubeconfig", file("away", kubeconfig("https://127.0.0.1:1"))},
			[]string{"connection refused", "Is the server running"}},
		{"a rewriting whose output there is not", []string{"storage", "rewrite", "-o", "xml"}, []string{"--output", "json", "yaml"}},
		{"a rewriting with an argument", []string{"storage", "rewrite", "secrets"}, []string{`"secrets"`, "See 'vmesh storage rewrite --help'"}},
		{"a rewriting without a server", []string{"storage", "rewrite", "--kubeconfig", file("away2", kubeconfig("https://127.0.0.1:1"))}, []string{"connection refused", "Is the server running"}},
		{"an output that there is not", []string{"version", "-o", "xml"}, []string{"--output", "json", "yaml"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := run(c.args...)
			if err == nil {
				t.Fatal("it was accepted")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q lacks %q", err, want)
				}
			}
			if strings.Count(err.Error(), "\n") > 1 {
				t.Errorf("%q has more than two lines", err)
			}
		})
	}
}

func TestVersionAsData(t *testing.T) {
	out, err := run("version", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := json.Unmarshal([]byte(out), &got); err != nil || got["version"] == "" || got["goVersion"] == "" {
		t.Errorf("printed %q: %v", out, err)
	}
}

func TestTheLogIsQuietUnlessSomethingIsWrong(t *testing.T) {
	for _, c := range []struct {
		name, message string
		shown         bool
	}{
		{"a library's introduction", "I1123 03:59:01.559629   28017 handler.go:309] Adding GroupVersion  v1 to ResourceManager\n", false},
		{"a warning", "W1123 03:59:01.559629   28017 logging.go:55] etcd is away\n", true},
		{"an error", "E1123 03:59:01.559629   28017 purge.go:78] \"Emptying a virtual cluster failed\"\n", true},
		{"watches that end with the server", "E1123 04:01:13.643347   31850 watcher.go:458] failed to sync with latest state: context canceled\n", false},
		{"a warning of the embedded etcd", "I1123 03:59:01.559629   28017 logger.go:62] \"slow fdatasync\" logger=\"etcd\" took=\"2s\"\n", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			n, err := quiet{&out}.Write([]byte(c.message))
			if n != len(c.message) || err != nil {
				t.Errorf("wrote %d bytes, %v", n, err)
			}
			if shown := out.Len() > 0; shown != c.shown {
				t.Errorf("shown: %t", shown)
			}
		})
	}
}

func TestProgressIsToldOnlyOfWhatTakesLong(t *testing.T) {
	for _, c := range []struct {
		name string
		took time.Duration
		told bool
	}{
		{"a quick start", 0, false},
		{"a slow start", 100 * time.Millisecond, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out bytes.Buffer
				ctx, cancel := context.WithTimeout(t.Context(), c.took)
				defer cancel()
				tellProgress(ctx, &out, 10*time.Millisecond, 10*time.Millisecond, func() string { return "etcd does not answer" })
				if told := strings.Contains(out.String(), "etcd does not answer"); told != c.told {
					t.Errorf("told %q", out.String())
				}
			})
		})
	}
}
