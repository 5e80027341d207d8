package admission

import (
	"context"
	"fmt"
	"strings"
	"unicode"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/warning"

	"github.com/vmesh-io/vmesh/pkg/analysis"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// maxWarnings is how many findings an answer tells: more than a screen shows.
const maxWarnings = 10

// Analysis tells with a write's answer what Istio's analyzers find in the virtual cluster
// because of it, as warnings. It refuses nothing.
type Analysis struct {
	*admission.Handler
	added func(context.Context, analysis.Write) []v1alpha1.Finding
}

var _ admission.ValidationInterface = (*Analysis)(nil)

// NewAnalysis asks added for the findings.
func NewAnalysis(added func(context.Context, analysis.Write) []v1alpha1.Finding) *Analysis {
	return &Analysis{admission.NewHandler(admission.Create, admission.Update, admission.Delete), added}
}

// Validate implements admission.ValidationInterface. It never returns an error.
func (p *Analysis) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	cluster, err := logical.Cluster(ctx)
	if err != nil || cluster == logical.Root || a.GetSubresource() != "" {
		return nil
	}
	if _, asked := request.RequestInfoFrom(ctx); !asked {
		return nil // a controller of the process's own: nobody reads its warnings
	}
	w := analysis.Write{Cluster: cluster, Kind: a.GetKind().GroupKind(), ByHand: byHand(a.GetOperationOptions())}
	w.Old, _ = a.GetOldObject().(*object.Object)
	w.New, _ = a.GetObject().(*object.Object)
	if w.Old == nil && w.New == nil {
		return nil
	}
	findings := p.added(ctx, w)
	for i, f := range findings {
		if i == maxWarnings {
			warning.AddWarning(ctx, "", fmt.Sprintf("and %d more findings: run istioctl analyze", len(findings)-i))
			break
		}
		warning.AddWarning(ctx, "", oneLine(f.String()))
	}
	return nil
}

// byHand tells whether a write comes from kubectl, which shows warnings to the person at
// it. A deletion names no field manager, and may be anyone's.
func byHand(options any) bool {
	manager := ""
	switch o := options.(type) {
	case *metav1.CreateOptions:
		manager = o.FieldManager
	case *metav1.UpdateOptions:
		manager = o.FieldManager
	case *metav1.PatchOptions:
		manager = o.FieldManager
	}
	return strings.HasPrefix(manager, "kubectl")
}

// oneLine takes out what a header cannot hold.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "?"), unicode.IsControl), " ")
}
