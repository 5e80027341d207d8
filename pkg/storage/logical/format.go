package logical

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unique"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// format is what the store has to know about its Go type. There is one in the
// product; upstream's test suites bring their own.
type format interface {
	newObject() runtime.Object
	newList() runtime.Object
	// encode appends the object's stored bytes.
	encode(dst []byte, obj runtime.Object) ([]byte, error)
	// decode sets obj, a newObject or what a caller wants filled, to stored bytes.
	decode(data []byte, obj runtime.Object) error
	cluster(obj runtime.Object) string
	stamp(obj runtime.Object, cluster string)
	// quarantine makes obj the placeholder for bytes that cannot be decoded.
	quarantine(obj runtime.Object, cluster, namespace, name, reason string)
	quarantined(obj runtime.Object) (reason string, is bool)
}

// objects is the format of every kind that vmesh serves.
type objects struct {
	gvk, listGVK schema.GroupVersionKind
	apiVersion   string
}

func newObjects(gvk, listGVK schema.GroupVersionKind) *objects {
	return &objects{gvk: gvk, listGVK: listGVK, apiVersion: gvk.GroupVersion().String()}
}

func (f *objects) newObject() runtime.Object { return object.New(f.gvk) }

func (f *objects) newList() runtime.Object {
	l := &object.List{}
	l.SetGroupVersionKind(f.listGVK)
	return l
}

func (f *objects) encode(dst []byte, obj runtime.Object) ([]byte, error) {
	o, ok := obj.(*object.Object)
	if !ok {
		return nil, fmt.Errorf("storing %s: got a %T", f.gvk.Kind, obj)
	}
	if o.ResourceVersion == "" {
		return o.AppendJSON(dst, f.apiVersion, f.gvk.Kind), nil
	}
	stored := *o
	stored.ResourceVersion = ""
	return stored.AppendJSON(dst, f.apiVersion, f.gvk.Kind), nil
}

func (f *objects) decode(data []byte, obj runtime.Object) error {
	o, ok := obj.(*object.Object)
	if !ok {
		return fmt.Errorf("reading %s: want a %T", f.gvk.Kind, obj)
	}
	if !json.Valid(data) {
		return errors.New("not JSON")
	}
	if err := o.Decode(data); err != nil {
		return err
	}
	gvk := o.GroupVersionKind()
	if gvk.Kind != f.gvk.Kind || gvk.Group != f.gvk.Group {
		return fmt.Errorf("it is a %s, not a %s", gvk.GroupKind(), f.gvk.GroupKind())
	}
	o.APIVersion, o.Kind = f.apiVersion, f.gvk.Kind // shared strings; the decoded ones would be one each
	delete(o.Annotations, QuarantineAnnotation)
	return nil
}

func (f *objects) cluster(obj runtime.Object) string {
	if o, ok := obj.(*object.Object); ok {
		return o.Cluster()
	}
	return ""
}

func (f *objects) stamp(obj runtime.Object, cluster string) {
	if o, ok := obj.(*object.Object); ok {
		o.SetCluster(cluster)
	}
}

func (f *objects) quarantine(obj runtime.Object, cluster, namespace, name, reason string) {
	if o, ok := obj.(*object.Object); ok {
		*o = *object.New(f.gvk)
		o.Namespace, o.Name = namespace, name
		o.Annotations = map[string]string{QuarantineAnnotation: reason}
		o.SetCluster(cluster)
	}
}

func (f *objects) quarantined(obj runtime.Object) (string, bool) {
	o, ok := obj.(*object.Object)
	if !ok {
		return "", false
	}
	return Quarantined(o)
}

// codec is the storage codec of a resource: a format in envelopes. Decoding what
// comes from etcd never fails.
type codec struct {
	format
	namespaced bool
}

var _ runtime.Codec = (*codec)(nil)

// Encode implements runtime.Encoder.
func (c *codec) Encode(obj runtime.Object, w io.Writer) error {
	m, err := meta.Accessor(obj)
	if err != nil {
		return err
	}
	namespace := ""
	if c.namespaced {
		namespace = m.GetNamespace()
	}
	path := joinPath(c.cluster(obj), namespace, m.GetName())
	data := make([]byte, 0, 2048)
	if reason, is := c.quarantined(obj); is {
		data = append(appendEnvelope(data, corrupt, path), reason...)
	} else if data, err = c.encode(appendEnvelope(data, intact, path), obj); err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

// Identifier implements runtime.Encoder.
func (c *codec) Identifier() runtime.Identifier { return "vmesh-storage" }

// Decode implements runtime.Decoder. Only an envelope that is none, which is a
// mistake of the program, is an error.
func (c *codec) Decode(data []byte, _ *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	kind, path, payload, err := openEnvelope(data)
	if err != nil {
		return nil, nil, err
	}
	if into == nil {
		into = c.newObject()
	}
	gvk := into.GetObjectKind().GroupVersionKind()
	cluster, namespace, name, err := parsePath(string(path), c.namespaced)
	switch {
	case err != nil:
		cluster, name = lossyPath(string(path))
	case kind == corrupt:
		err = errors.New(string(payload))
	default:
		err = c.decodeAt(payload, into, namespace, name)
	}
	if err != nil {
		c.quarantine(into, cluster, namespace, name, err.Error())
	} else {
		c.stamp(into, unique.Make(cluster).Value()) // one string for all objects of a cluster
	}
	return into, &gvk, nil
}

// again decodes and encodes an object. It is not ok for one that cannot be decoded.
func (c *codec) again(data []byte) (encoded []byte, ok bool) {
	obj, _, err := c.Decode(data, nil, nil)
	if err != nil {
		return nil, false
	}
	if _, is := c.quarantined(obj); is {
		return nil, false
	}
	var out bytes.Buffer
	if err := c.Encode(obj, &out); err != nil {
		return nil, false
	}
	return out.Bytes(), true
}

// decodeAt decodes an object and holds it against its key: one whose name is another
// would stand in the watch cache under a key that etcd does not have.
func (c *codec) decodeAt(payload []byte, into runtime.Object, namespace, name string) error {
	if err := c.decode(payload, into); err != nil {
		return err
	}
	m, err := meta.Accessor(into)
	if err != nil {
		return err
	}
	if m.GetName() != name || c.namespaced && m.GetNamespace() != namespace {
		return fmt.Errorf("the object is %s, its key is of %s", join(m.GetNamespace(), m.GetName()), join(namespace, name))
	}
	return nil
}

func join(namespace, name string) string {
	if namespace == "" {
		return name
	}
	return namespace + "/" + name
}

// key is the key of an object in the watch cache.
func (c *codec) key(resourcePrefix string, obj runtime.Object) (string, error) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return "", err
	}
	namespace := ""
	if c.namespaced {
		namespace = m.GetNamespace()
	}
	return resourcePrefix + "/" + joinPath(c.cluster(obj), namespace, m.GetName()), nil
}
