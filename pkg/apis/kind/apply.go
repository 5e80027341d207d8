package kind

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
	"sigs.k8s.io/structured-merge-diff/v6/value"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// Configuration is what a server-side apply brings: an object's fields as one manager
// wants them. It is a runtime.Object that the field manager takes, and must not be
// modified: what a merge makes of it shares its values.
type Configuration struct {
	unstructured.Unstructured

	kind      *Kind
	meta      metav1.ObjectMeta // name, namespace, labels and annotations
	content   map[string]any    // everything besides apiVersion, kind and metadata
	merge     *typed.TypedValue // nil where the merge schema must check it first
	mergeType mergeType
}

// ParseConfiguration reads the body of a server-side apply in a version. It is for the
// ordinary body: JSON without faults or repeated keys, of the kind and version, whose
// metadata is a name, a namespace, labels and annotations. All others it leaves to the
// general way, with false.
func (k *Kind) ParseConfiguration(version string, body []byte) (*Configuration, bool) {
	f, err := k.form(version)
	if err != nil {
		return nil, false
	}
	d, ok := f.parse(body)
	gvk := k.GVK(version)
	if !ok || d.kind != gvk.Kind || d.apiVersion != gvk.GroupVersion().String() {
		return nil, false
	}
	m := &d.meta
	if m.GenerateName != "" || m.ResourceVersion != "" || m.UID != "" || m.Generation != 0 || !m.CreationTimestamp.IsZero() || m.DeletionTimestamp != nil ||
		m.DeletionGracePeriodSeconds != nil || m.OwnerReferences != nil || m.Finalizers != nil || m.ManagedFields != nil {
		return nil, false
	}
	converter, err := k.converter.get()
	if err != nil {
		return nil, false
	}
	t := converter.types[gvk]
	c := &Configuration{kind: k, meta: *m, content: d.content, mergeType: t}
	c.Object = c.tree(d.apiVersion, d.kind)
	if t.form != nil && f.root.settled(d.content, false) && f.root.check(d.content) == valid {
		c.merge = typed.AsTypedUnvalidated(value.NewValueInterface(c.Object), t.Schema, t.TypeRef)
	}
	return c, true
}

// tree is the whole configuration, with no more metadata than it was given.
func (c *Configuration) tree(apiVersion, kind string) map[string]any {
	metadata := map[string]any{}
	if c.meta.Name != "" {
		metadata["name"] = c.meta.Name
	}
	if c.meta.Namespace != "" {
		metadata["namespace"] = c.meta.Namespace
	}
	for name, texts := range map[string]map[string]string{"labels": c.meta.Labels, "annotations": c.meta.Annotations} {
		if texts == nil {
			continue
		}
		m := make(map[string]any, len(texts))
		for k, v := range texts {
			m[k] = v
		}
		metadata[name] = m
	}
	tree := make(map[string]any, len(c.content)+3)
	for k, v := range c.content {
		tree[k] = v
	}
	tree["apiVersion"], tree["kind"], tree["metadata"] = apiVersion, kind, metadata
	return tree
}

// First is the object that the configuration makes where there was none, managed by
// manager alone as of now: what the field manager would come to by merging it with
// nothing. It says false where that needs the field manager.
func (c *Configuration) First(manager string, now time.Time) (*object.Object, bool, error) {
	if _, status := c.content["status"]; status || c.merge == nil || c.kind.Hooks.NewTyped != nil {
		return nil, false, nil
	}
	o := object.New(c.GroupVersionKind())
	w := fieldWriter{mergeType: c.mergeType, applied: true}
	if !w.object(&c.meta, c.content, false) {
		return nil, false, nil
	}
	c.meta.DeepCopyInto(&o.ObjectMeta)
	o.ManagedFields = w.entries(metav1.ManagedFieldsEntry{
		Manager: manager, Operation: metav1.ManagedFieldsOperationApply, APIVersion: o.APIVersion, Time: &metav1.Time{Time: now.UTC()},
	})
	if err := o.SetContent(c.content); err != nil {
		return nil, false, err
	}
	return o, true, c.kind.Complete(o.GroupVersionKind().Version, o)
}
