package logical

import (
	"errors"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// QuarantineAnnotation is on the placeholder of an object that is stored but cannot
// be read; its value is the reason. It is never stored.
const QuarantineAnnotation = "vmesh.io/quarantined"

// Quarantined tells whether an object read from storage stands for one that cannot
// be decoded, and why. It has a name, a namespace and a virtual cluster, and nothing
// else: readers must not take it for an object that is empty, nor for none. It can
// be deleted, and overwritten by a whole object.
func Quarantined(o *object.Object) (reason string, is bool) {
	if len(o.Annotations) == 0 || len(o.Body()) > 0 {
		return "", false
	}
	reason, is = o.Annotations[QuarantineAnnotation]
	return reason, is
}

var errReserved = fmt.Errorf("metadata.annotations: %s is reserved", QuarantineAnnotation)

// unmark takes the annotation off an object that is about to be written. What has a
// body is a repaired object; what has none would replace by nothing what is still
// there to be rescued.
func unmark(obj runtime.Object) error {
	o, ok := obj.(*object.Object)
	if !ok || len(o.Annotations) == 0 {
		return nil
	}
	if _, is := o.Annotations[QuarantineAnnotation]; !is {
		return nil
	}
	if len(o.Body()) == 0 {
		return errors.Join(errReserved, errors.New("the stored object cannot be read: replace it by a whole one, or delete it"))
	}
	annotations := make(map[string]string, len(o.Annotations))
	for k, v := range o.Annotations {
		if k != QuarantineAnnotation {
			annotations[k] = v
		}
	}
	o.Annotations = annotations
	return nil
}

// identify gives an object that replaces a quarantined one the identity that was lost.
func identify(obj runtime.Object) {
	o, ok := obj.(*object.Object)
	if !ok {
		return
	}
	if o.UID == "" {
		o.UID = uuid.NewUUID()
	}
	if o.CreationTimestamp.IsZero() {
		o.CreationTimestamp = metav1.NewTime(time.Now().Truncate(time.Second))
	}
}
