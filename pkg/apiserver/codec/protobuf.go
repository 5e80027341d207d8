package codec

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// Kinds with a Go type of Kubernetes' own can be spoken of in protobuf, which typed
// clients prefer for them. Nothing is held that way: the body goes through its Go
// type and JSON, so that protobuf and JSON writes mean the same.

// protobufToJSON gives the JSON of a protobuf body, or none for what is not an object
// of the codec's kinds.
func (d *decoder) protobufToJSON(data []byte, defaults *schema.GroupVersionKind) ([]byte, *schema.GroupVersionKind, error) {
	typed, gvk, err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Decode(data, defaults, nil)
	if err != nil {
		if runtime.IsNotRegisteredError(err) {
			return nil, gvk, nil
		}
		return nil, gvk, err
	}
	if _, ok := d.codec.byGroupKind[gvk.GroupKind()]; !ok {
		return nil, gvk, nil
	}
	typed.GetObjectKind().SetGroupVersionKind(*gvk)
	body, err := json.Marshal(typed)
	if err != nil {
		return nil, gvk, fmt.Errorf("decoding protobuf: %w", err)
	}
	return body, gvk, nil
}

var errNoProtobuf = errors.New("this kind has no protobuf form: ask for application/json")

// writeProtobuf encodes an object or list through the Go type of its kind.
func (e *encoder) writeProtobuf(w io.Writer, obj runtime.Object) error {
	switch obj := obj.(type) {
	case *object.Object:
		typed, err := scheme.Scheme.New(e.gvk(obj.GroupVersionKind()))
		if err != nil {
			return errNoProtobuf
		}
		if err := obj.Into(typed); err != nil {
			return fmt.Errorf("encoding as protobuf: %w", err)
		}
		return e.encodeTyped(typed, e.gvk(obj.GroupVersionKind()), w)
	case *object.List:
		gvk := e.gvk(obj.GroupVersionKind())
		typed, err := scheme.Scheme.New(gvk)
		if err != nil {
			return errNoProtobuf
		}
		// A list's Items are of the kind's Go type, decoded one by one to hold no second copy.
		items := reflect.ValueOf(typed).Elem().FieldByName("Items")
		items.Set(reflect.MakeSlice(items.Type(), len(obj.Items), len(obj.Items)))
		for i := range obj.Items {
			if err := obj.Items[i].Into(items.Index(i).Addr().Interface()); err != nil {
				return fmt.Errorf("encoding %s as protobuf: %w", obj.Items[i].Name, err)
			}
		}
		list := reflect.ValueOf(typed).Elem().FieldByName("ListMeta")
		list.Set(reflect.ValueOf(obj.ListMeta))
		return e.encodeTyped(typed, gvk, w)
	}
	return errNoProtobuf
}

func (e *encoder) gvk(own schema.GroupVersionKind) schema.GroupVersionKind {
	if gv, err := schema.ParseGroupVersion(e.version(own.GroupVersion().String())); err == nil {
		return gv.WithKind(own.Kind)
	}
	return own
}

func (e *encoder) encodeTyped(typed runtime.Object, gvk schema.GroupVersionKind, w io.Writer) error {
	typed.GetObjectKind().SetGroupVersionKind(gvk)
	return e.Serializer.Encode(typed, w)
}
