package e2e

import (
	"bytes"
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vmesh-io/vmesh/test/harness"
)

var updateTranscripts = flag.Bool("update", false, "write what kubectl prints into the transcripts in testdata/kubectl")

// The transcripts are what a user types and sees. Each runs with the real kubectl in a
// virtual cluster of its own, against which KUBECONFIG is set; ROOT is the kubeconfig of
// the root's administrator.
func TestKubectl(t *testing.T) {
	transcripts, err := filepath.Glob("testdata/kubectl/*.txt")
	if err != nil || len(transcripts) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	kubectl, err := harness.Tool(t.Context(), "kubectl")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Abs("testdata/kubectl")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range transcripts {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			tenant := newTenant(t, shared)
			home := t.TempDir()
			env := append(os.Environ(),
				"HOME="+home, "KUBECONFIG="+tenant.kubeconfig, "ROOT="+shared.options.AdminKubeconfig(), "CLUSTER="+tenant.name,
				"PATH="+filepath.Dir(kubectl)+":"+os.Getenv("PATH"), "EDITOR=false", "TZ=UTC")
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			shell := func(command string) string {
				cmd := exec.CommandContext(ctx, "bash", "-c", command)
				cmd.Dir, cmd.Env = files, env
				var out bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &out
				cmd.WaitDelay = 10 * time.Second
				if err := cmd.Run(); err != nil {
					out.WriteString("[" + err.Error() + "]\n")
				}
				return out.String()
			}
			var recorded strings.Builder
			for _, step := range parseTranscript(string(data)) {
				recorded.WriteString(step.comment)
				if step.command == "" {
					continue
				}
				got := timeless(shell(step.command), tenant.name)
				recorded.WriteString("$ " + step.command + "\n" + got)
				if diff := cmp.Diff(step.output, got); diff != "" && !*updateTranscripts {
					t.Errorf("$ %s (-want +got):\n%s", step.command, diff)
				}
			}
			if *updateTranscripts {
				if err := os.WriteFile(file, []byte(recorded.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// step is a command with the lines before it, and what it prints.
type step struct{ comment, command, output string }

// parseTranscript reads a transcript: a command is a line that begins with $ and those
// after it for as long as they end with a backslash; all up to the next command, comment
// or empty line is its output.
func parseTranscript(text string) []step {
	var steps []step
	current := step{}
	inOutput := false
	lines := strings.SplitAfter(text, "\n")
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		switch command, isCommand := strings.CutPrefix(line, "$ "); {
		case isCommand:
			if inOutput {
				steps = append(steps, current)
				current = step{}
			}
			for strings.HasSuffix(command, "\\\n") && i+1 < len(lines) {
				i++
				command += lines[i]
			}
			current.command, inOutput = strings.TrimSuffix(command, "\n"), true
		case inOutput && line != "\n" && !strings.HasPrefix(line, "# "):
			current.output += line
		case line != "":
			if inOutput {
				steps = append(steps, current)
				current = step{}
			}
			current.comment, inOutput = current.comment+line, false
		}
	}
	return append(steps, current)
}

var volatile = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`), "<time>"},
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "<uid>"},
	{regexp.MustCompile(`X509SHA256=[0-9a-f]{64}`), "<fingerprint>"},
	{regexp.MustCompile(`(resourceVersion: )"\d+"`), `$1"<revision>"`},
	{regexp.MustCompile(`(Resource Version: +)\d+`), "$1<revision>"},
	{regexp.MustCompile(`https://127\.0\.0\.1:\d+`), "https://<server>"},
	{regexp.MustCompile(`(?m)(\s)(\d+[smh])+( ago)?$`), "$1<age>"},
	{regexp.MustCompile(`(\s)(\d+[smh])+  +`), "$1<age>   "}, // whose length pads the column
	{regexp.MustCompile(`(\sAGE)  +`), "$1   "},
	{regexp.MustCompile(`/tmp/\S+/`), "<tmp>/"},
	{regexp.MustCompile(` deleted from \S+ namespace`), " deleted"}, // since kubectl 1.33
	{regexp.MustCompile(`(?m)^[EW]\d{4} .*\n`), ""},                 // kubectl's log
	{regexp.MustCompile(`-[bcdfghjklmnpqrstvwxz2456789]{5}\b`), "-<random>"},
	{regexp.MustCompile(`(?m)[ \t]+$`), ""},
	{regexp.MustCompile(`\n\n+`), "\n"}, // an empty line ends an output
}

// timeless takes out of an output what no two runs share, and how kubectl's columns are
// padded for it.
func timeless(output, tenant string) string {
	for _, v := range volatile {
		output = v.pattern.ReplaceAllString(output, v.with)
	}
	output = regexp.MustCompile(`\b`+tenant+`\b`).ReplaceAllString(output, "<cluster>")
	return strings.TrimPrefix(output, "\n")
}
