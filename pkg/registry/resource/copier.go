package resource

import (
	"fmt"
	"io"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// copier is the codec of dry runs, which stop before the storage and only copy what
// would be stored.
type copier struct{}

var _ runtime.Codec = copier{}

func (copier) Identifier() runtime.Identifier { return "copier" }

func (copier) Encode(obj runtime.Object, w io.Writer) error {
	o, ok := obj.(*object.Object)
	if !ok {
		return fmt.Errorf("expected an object, got %T", obj)
	}
	_, err := w.Write(o.AppendJSON(nil, o.APIVersion, o.Kind))
	return err
}

func (copier) Decode(data []byte, _ *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	o, ok := into.(*object.Object)
	if !ok {
		return nil, nil, fmt.Errorf("expected an object, got %T", into)
	}
	if err := o.Decode(data); err != nil {
		return nil, nil, err
	}
	gvk := o.GroupVersionKind()
	return o, &gvk, nil
}
