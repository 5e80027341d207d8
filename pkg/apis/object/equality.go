package object

import (
	"bytes"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
)

// The generic registry compares what it is about to write with what there is, by
// reflection, and panics on a type with unexported fields that its table of equalities
// does not have. The table is copied at the first update of the process, so nothing
// later than this could still add to it.
func init() {
	utilruntime.Must(equality.Semantic.AddFunc(equal))
}

// equal says whether two objects say the same, whenever their fields were last written.
func equal(a, b Object) bool {
	if a.TypeMeta != b.TypeMeta || !bytes.Equal(a.body, b.body) {
		return false
	}
	a.ManagedFields, b.ManagedFields = timeless(a.ManagedFields), timeless(b.ManagedFields)
	return equality.Semantic.DeepEqual(a.ObjectMeta, b.ObjectMeta)
}

func timeless(entries []metav1.ManagedFieldsEntry) []metav1.ManagedFieldsEntry {
	out := make([]metav1.ManagedFieldsEntry, len(entries))
	copy(out, entries)
	for i := range out {
		out[i].Time = nil
	}
	return out
}
