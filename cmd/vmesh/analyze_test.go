package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

func TestAnalysesArePrintedAsIstioctlDoes(t *testing.T) {
	findings := []v1alpha1.Finding{
		{Code: "IST0101", Level: "Error", Message: `Referenced host not found: "reviews"`, Origin: "VirtualService shop/reviews", Namespace: "shop", DocumentationURL: "https://istio.io/a"},
		{Code: "IST0139", Level: "Warning", Message: "no such service", Origin: "MutatingWebhookConfiguration w"},
		{Code: "IST0102", Level: "Info", Message: "not injected", Origin: "Namespace other", Namespace: "other"},
	}
	const first = `Error [IST0101] (VirtualService shop/reviews) Referenced host not found: "reviews"` + "\n"
	const second = "Warning [IST0139] (MutatingWebhookConfiguration w) no such service\n"
	const third = "Info [IST0102] (Namespace other) not injected\n"
	for _, c := range []struct {
		name          string
		options       analyzeOptions
		findings      []v1alpha1.Finding
		out, errWords string
		code          int
	}{
		{"everything", analyzeOptions{output: "log"}, findings, first + second + third, "", 79},
		{"nothing found", analyzeOptions{output: "log"}, nil, "", "No validation issues found when analyzing virtual cluster one.", 0},
		{"one namespace, and what is of none", analyzeOptions{output: "log", namespace: "other"}, findings, second + third, "", 0},
		{"a stricter threshold", analyzeOptions{output: "log", namespace: "other", failureThreshold: "Warning"}, findings, second + third, "", 79},
		{"errors only, failing all the same", analyzeOptions{output: "log", outputThreshold: "Error"}, findings, first, "", 79},
		{"in color", analyzeOptions{output: "log", color: true, namespace: "none"}, findings, "\033[33mWarning\033[0m" + strings.TrimPrefix(second, "Warning"), "", 0},
		{"JSON", analyzeOptions{output: "json", outputThreshold: "Error"}, findings,
			"[\n    {\n        \"code\": \"IST0101\",\n        \"documentationUrl\": \"https://istio.io/a\",\n        \"level\": \"Error\",\n        \"message\": \"Referenced host not found: \\\"reviews\\\"\",\n        \"origin\": \"VirtualService shop/reviews\"\n    }\n]\n", "", 0},
		{"YAML of nothing", analyzeOptions{output: "yaml"}, nil, "[]\n", "No validation issues", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.options.outputThreshold == "" {
				c.options.outputThreshold = "Info"
			}
			if c.options.failureThreshold == "" {
				c.options.failureThreshold = "Error"
			}
			var out, errOut bytes.Buffer
			err := c.options.print(&out, &errOut, "one", v1alpha1.AnalysisStatus{Findings: c.findings})
			if out.String() != c.out {
				t.Errorf("printed %q, want %q", out.String(), c.out)
			}
			if !strings.Contains(errOut.String(), c.errWords) {
				t.Errorf("said %q", errOut.String())
			}
			if code := 0; err != nil || c.code != 0 {
				if err != nil {
					code = exitCode(err)
				}
				if code != c.code {
					t.Errorf("exit code %d, want %d", code, c.code)
				}
			}
		})
	}
}
