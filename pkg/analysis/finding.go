package analysis

import (
	"fmt"
	"strings"

	"istio.io/api/annotation"
	"istio.io/istio/pkg/config/analysis/diag"
	"istio.io/istio/pkg/config/resource"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// findings makes of the analyzers' messages what istioctl prints: without those that an
// object's own annotation suppresses, sorted, each once.
func findings(messages diag.Messages) []v1alpha1.Finding {
	var kept diag.Messages
	for _, m := range messages {
		if m.Resource == nil || !suppressed(m.Resource, m.Type.Code()) {
			kept = append(kept, m)
		}
	}
	sorted := kept.SortedDedupedCopy()
	out := make([]v1alpha1.Finding, len(sorted))
	for i := range sorted {
		out[i] = newFinding(&sorted[i])
	}
	return out
}

// suppressed tells whether an object asks not to be told of a code.
func suppressed(r *resource.Instance, code string) bool {
	for c := range strings.SplitSeq(r.Metadata.Annotations[annotation.GalleyAnalyzeSuppress.Name], ",") {
		if c == "*" || c == code {
			return true
		}
	}
	return false
}

func newFinding(m *diag.Message) v1alpha1.Finding {
	m.DocRef = "istioctl-analyze"
	url, _ := m.Unstructured(false)["documentationUrl"].(string)
	f := v1alpha1.Finding{
		Code:             m.Type.Code(),
		Level:            m.Type.Level().String(),
		Message:          fmt.Sprintf(m.Type.Template(), m.Parameters...),
		DocumentationURL: url,
	}
	if m.Resource != nil {
		f.Origin = m.Resource.Origin.FriendlyName()
		f.Namespace = m.Resource.Origin.Namespace().String()
	}
	return f
}

// ofWorkloads tells whether a message says that something selects no workload: in a
// virtual cluster that holds no workloads it is said of everything.
func ofWorkloads(m *diag.Message) bool {
	switch m.Type.Code() {
	case "IST0101": // referenced resource not found
		return len(m.Parameters) > 0 && m.Parameters[0] == "selector"
	case "IST0127", // no matching workloads
		"IST0173": // a subset selects no pods
		return true
	}
	return false
}
