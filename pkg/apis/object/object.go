// Package object holds the one Go type that stands behind every kind vmesh
// serves: typed metadata beside the raw, canonical JSON of everything else.
package object

import (
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Object is an API object of any kind. Its metadata is typed; its other members
// (spec, status, data, ...) are kept as one block of canonical JSON, so that
// holding, listing and copying an object costs one allocation and not hundreds.
//
// The body is immutable: it may be shared by any number of Objects and
// goroutines, and is replaced, never edited. Metadata belongs to its Object, as
// with any API type.
type Object struct {
	metav1.TypeMeta
	metav1.ObjectMeta

	cluster string
	body    []byte         // the members besides apiVersion, kind and metadata: `"spec":{...},"status":{...}`, keys sorted
	content map[string]any // the body as a tree, only while an object is being written; read-only

	prototype bool
}

// List is a list of Objects of one kind.
type List struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []Object
}

var (
	_ runtime.Object = (*Object)(nil)
	_ runtime.Object = (*List)(nil)
	_ metav1.Object  = (*Object)(nil)
)

// New returns an empty object of a kind.
func New(gvk schema.GroupVersionKind) *Object {
	o := &Object{}
	o.SetGroupVersionKind(gvk)
	return o
}

// NewPrototype returns an empty object that says so: it stands for its kind where
// the API machinery wants a sample and not an object.
func NewPrototype(gvk schema.GroupVersionKind) *Object {
	o := New(gvk)
	o.prototype = true
	return o
}

// IsPrototype tells what NewPrototype made and nobody has filled since.
func (o *Object) IsPrototype() bool { return o.prototype }

// Cluster is the name of the virtual cluster that holds the object. It is set by
// the storage layer from the etcd key and is never part of the object's JSON.
func (o *Object) Cluster() string { return o.cluster }

// SetCluster sets the virtual cluster; only the storage layer and admission call it.
func (o *Object) SetCluster(name string) { o.cluster = name }

// Body is the canonical JSON of the members besides apiVersion, kind and
// metadata, without the enclosing braces. It must not be modified.
func (o *Object) Body() []byte { return o.body }

// Field is the raw JSON of one top-level member of the body, or nil when there is
// none. It must not be modified.
func (o *Object) Field(name string) json.RawMessage {
	var found json.RawMessage
	_ = scanMembers(o.body, func(key string, value []byte) error {
		if key == name {
			found = value
		}
		return nil
	})
	return found
}

// BodyWithout is the body without one of its members. It must not be modified.
func (o *Object) BodyWithout(name string) []byte {
	if len(o.Field(name)) == 0 {
		return o.body
	}
	out := make([]byte, 0, len(o.body))
	_ = scanMembers(o.body, func(key string, value []byte) error {
		if key == name {
			return nil
		}
		if len(out) > 0 {
			out = append(out, ',')
		}
		out = append(appendString(out, key), ':')
		out = append(out, value...)
		return nil
	})
	return out
}

// WithBody is a copy of the object that has a body of JSON members, which it owns from then on.
func (o *Object) WithBody(body []byte) *Object {
	out := *o
	out.body, out.content = body, nil
	return &out
}

// HasContent tells whether the body is held as a tree as well, so that Content is free.
func (o *Object) HasContent() bool { return o.content != nil }

// Content is the body as a tree of map[string]any, []any, string, int64, float64,
// bool and nil. It is shared and must not be modified: copy before editing.
func (o *Object) Content() (map[string]any, error) {
	if o.content != nil {
		return o.content, nil
	}
	return parseMembers(o.body)
}

// SetContent replaces the body by a tree, which the object owns from then on.
// The members apiVersion, kind and metadata must not be in it.
func (o *Object) SetContent(content map[string]any) error {
	body, err := appendMembers(nil, content)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", o.Kind, err)
	}
	o.body, o.content = body, content
	return nil
}

// ShareBody makes the object's body that of another.
func (o *Object) ShareBody(from *Object) { o.body, o.content = from.body, from.content }

// DropContent forgets the tree and keeps the canonical bytes, for an object that
// is about to be kept for long.
func (o *Object) DropContent() { o.content = nil }

// Unstructured is the whole object as a tree, as unstructured.Unstructured holds
// it. The body's part is shared and must not be modified.
func (o *Object) Unstructured() (map[string]any, error) {
	content, err := o.Content()
	if err != nil {
		return nil, err
	}
	return o.Whole(content)
}

// Whole is the whole object as a tree that has the given content for its body, which
// becomes part of it.
func (o *Object) Whole(content map[string]any) (map[string]any, error) {
	metadata, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&o.ObjectMeta)
	if err != nil {
		return nil, err
	}
	u := make(map[string]any, len(content)+3)
	for k, v := range content {
		u[k] = v
	}
	u["metadata"] = metadata
	if o.APIVersion != "" {
		u["apiVersion"] = o.APIVersion
	}
	if o.Kind != "" {
		u["kind"] = o.Kind
	}
	return u, nil
}

// FromUnstructured makes an object of a whole tree, taking ownership of it.
func FromUnstructured(u map[string]any) (*Object, error) {
	o := &Object{}
	content := make(map[string]any, len(u))
	for k, v := range u {
		switch k {
		case "apiVersion":
			o.APIVersion, _ = v.(string)
		case "kind":
			o.Kind, _ = v.(string)
		case "metadata":
			m, ok := v.(map[string]any)
			if !ok && v != nil {
				return nil, fmt.Errorf("metadata: must be an object, not %T", v)
			}
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(m, &o.ObjectMeta); err != nil {
				return nil, fmt.Errorf("metadata: %w", err)
			}
		default:
			content[k] = v
		}
	}
	return o, o.SetContent(content)
}

// Into decodes the object into the Go type of its kind, for code that reads or
// checks its fields.
func (o *Object) Into(typed any) error {
	return json.Unmarshal(o.AppendJSON(nil, o.APIVersion, o.Kind), typed)
}

// From makes an object of a value of a kind's Go type.
func From(typed runtime.Object, gvk schema.GroupVersionKind) (*Object, error) {
	data, err := json.Marshal(typed)
	if err != nil {
		return nil, err
	}
	o := &Object{}
	if err := o.UnmarshalJSON(data); err != nil {
		return nil, err
	}
	o.SetGroupVersionKind(gvk)
	return o, nil
}

// DeepCopyInto copies the object; the immutable body is shared.
func (o *Object) DeepCopyInto(out *Object) {
	*out = *o
	o.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
}

// DeepCopy copies the object; the immutable body is shared.
func (o *Object) DeepCopy() *Object {
	out := &Object{}
	o.DeepCopyInto(out)
	return out
}

// DeepCopyObject implements runtime.Object.
func (o *Object) DeepCopyObject() runtime.Object { return o.DeepCopy() }

// DeepCopyObject implements runtime.Object.
func (l *List) DeepCopyObject() runtime.Object {
	out := &List{TypeMeta: l.TypeMeta}
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	if l.Items != nil {
		out.Items = make([]Object, len(l.Items))
		for i := range l.Items {
			l.Items[i].DeepCopyInto(&out.Items[i])
		}
	}
	return out
}
