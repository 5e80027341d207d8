package xds

import (
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

const (
	// LabelsMetadata is the key of the node's metadata under which a relay gives labels for
	// its control plane, a struct of strings.
	LabelsMetadata = "VMESH_LABELS"
	// maxLabels bounds the labels that a client may give itself.
	maxLabels = 32
	// reservedLabels begin the labels that vmesh gives.
	reservedLabels = "vmesh.io/"
)

// labelsOf are the labels of a control plane, as selectors see them. They are what it says of
// itself. What is no label is left out, as is what begins with vmesh.io/.
func labelsOf(node *core.Node) map[string]string {
	fields := node.GetMetadata().GetFields()
	out := map[string]string{v1alpha1.LabelRevision: v1alpha1.DefaultRevision}
	if revision := shorten(fields["ISTIO_REVISION"].GetStringValue()); revision != "" {
		out[v1alpha1.LabelRevision] = revision
	}
	// The node id of istiod is TYPE~IP~POD.NAMESPACE~DOMAIN. Names of pods can have dots.
	if parts := strings.Split(node.GetId(), "~"); len(parts) == 4 {
		if at := strings.LastIndex(parts[2], "."); at > 0 && at < len(parts[2])-1 {
			out[v1alpha1.LabelPod], out[v1alpha1.LabelControlPlaneNamespace] = shorten(parts[2][:at]), shorten(parts[2][at+1:])
		}
	}
	given := fields[LabelsMetadata].GetStructValue().GetFields()
	if len(given) > maxLabels {
		return out
	}
	for key, value := range given {
		text := value.GetStringValue()
		if !strings.HasPrefix(key, reservedLabels) && len(validation.IsQualifiedName(key)) == 0 && len(validation.IsValidLabelValue(text)) == 0 {
			out[key] = text
		}
	}
	return out
}

// note takes down the version of a snapshot of which the client has acknowledged all that it
// asked for.
func (st *stream) note(current *snapshot.Snapshot) {
	if st.acked == current.Version || len(st.order) == 0 {
		return
	}
	for _, w := range st.order {
		list := snapshot.Empty
		if w.kind != noKind {
			list = current.Lists[w.kind]
		}
		if w.due || w.waiting || w.refused || w.list == nil || w.list.Version() != list.Version() {
			return
		}
	}
	st.acked = current.Version
	st.mu.Lock()
	st.status.Version = current.Version
	st.mu.Unlock()
}
