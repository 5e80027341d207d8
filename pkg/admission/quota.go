package admission

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// CheckQuota tells whether an object could be written in the place of old, or of nothing.
type CheckQuota func(ctx context.Context, gr schema.GroupResource, o, old *object.Object) error

// Quota makes dry runs answer what a quota would. Of real writes the storage decides, by
// what is stored in the end.
type Quota struct {
	*admission.Handler
	check CheckQuota
}

var _ admission.ValidationInterface = (*Quota)(nil)

// NewQuota asks check.
func NewQuota(check CheckQuota) *Quota {
	return &Quota{admission.NewHandler(admission.Create, admission.Update), check}
}

// Validate implements admission.ValidationInterface.
func (q *Quota) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	o, ok := a.GetObject().(*object.Object)
	if !a.IsDryRun() || !ok {
		return nil
	}
	old, _ := a.GetOldObject().(*object.Object)
	return q.check(ctx, a.GetResource().GroupResource(), o, old)
}
