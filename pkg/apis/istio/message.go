package istio

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"istio.io/istio/pkg/config"
	"istio.io/istio/pkg/config/schema/resource"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// Resource is a kind as istiod knows it. It is safe for concurrent use.
type Resource struct {
	Schema resource.Schema // the Istio module's own

	plan *plan
}

func newResource(s resource.Schema, known plans) (*Resource, error) {
	message, err := newMessage(s)
	if err != nil {
		return nil, err
	}
	return &Resource{Schema: s, plan: known.plan(message.ProtoReflect().Descriptor())}, nil
}

// ResourceOf is what istiod knows of a kind, which must be one of those that Kinds returns.
func ResourceOf(k *kind.Kind) (*Resource, error) {
	r, ok := k.Hooks.Origin.(*Resource)
	if !ok {
		return nil, fmt.Errorf("%s is not one of Istio's kinds", k)
	}
	return r, nil
}

// TypeURL is what istiod asks for the kind by over xDS, such as
// "networking.istio.io/v1/VirtualService".
func (r *Resource) TypeURL() string { return r.Schema.GroupVersionKind().String() }

// MessageName is the full name of the kind's message, such as
// "istio.networking.v1alpha3.VirtualService".
func (r *Resource) MessageName() string { return r.Schema.Proto() }

// Message decodes an object's spec into the protobuf message that istiod works
// with, as istiod decodes it: unknown fields are ignored.
func (r *Resource) Message(o *object.Object) (proto.Message, error) {
	message, err := newMessage(r.Schema)
	if err != nil {
		return nil, err
	}
	spec := o.Field("spec")
	if spec == nil || r.plan.decode(spec, message.ProtoReflect()) {
		return message, nil
	}
	if message, err = newMessage(r.Schema); err != nil {
		return nil, err
	}
	if err := config.ApplyJSON(message, string(spec)); err != nil {
		return nil, fmt.Errorf("decoding the spec: %w", err)
	}
	return message, nil
}

// AppendMessage appends the wire form of an object's spec to dst, the same bytes
// for equal specs of a namespace. Short names of services are written out.
func (r *Resource) AppendMessage(dst []byte, o *object.Object) ([]byte, error) {
	message, err := r.Message(o)
	if err != nil {
		return nil, err
	}
	completeHosts(message, o.Namespace)
	return proto.MarshalOptions{Deterministic: true}.MarshalAppend(dst, message)
}

func newMessage(s resource.Schema) (proto.Message, error) {
	instance, err := s.NewInstance()
	if err != nil {
		return nil, err
	}
	message, ok := instance.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("the spec of %s is no protobuf message but %T", s.Kind(), instance)
	}
	return message, nil
}
