package kind

import (
	"slices"
	"time"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	smdschema "sigs.k8s.io/structured-merge-diff/v6/schema"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// RecordCreation makes manager the manager of all fields of an object that is about to
// be created, as of now, and reports whether it did: what the field manager comes to,
// without comparing with nothing. It leaves to the field manager what is rare.
func (k *Kind) RecordCreation(o *object.Object, manager string, now time.Time) bool {
	gvk := o.GroupVersionKind()
	converter, err := k.converter.get()
	if err != nil || k.Hooks.NewTyped != nil || o.ManagedFields != nil || len(o.Finalizers) > 0 || len(o.OwnerReferences) > 0 {
		return false
	}
	content, err := o.Content()
	if err != nil {
		return false
	}
	w := fieldWriter{mergeType: converter.types[gvk]}
	if !w.object(&o.ObjectMeta, content, k.HasStatus(gvk.Version)) {
		return false
	}
	if manager == "" {
		manager = "unknown"
	}
	o.ManagedFields = w.entries(metav1.ManagedFieldsEntry{
		Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: o.APIVersion, Time: &metav1.Time{Time: now.UTC()},
	})
	return true
}

// fieldWriter writes the set of an object's fields in the form FieldsV1. The two ways of
// writing differ in what counts as a field: for an apply the leaves, and what is in a
// map by a name of the user's; otherwise everything.
type fieldWriter struct {
	mergeType
	applied bool
	fields  []byte
}

// entries are the managed fields: none without a field.
func (w *fieldWriter) entries(e metav1.ManagedFieldsEntry) []metav1.ManagedFieldsEntry {
	if string(w.fields) == "{}" {
		return nil
	}
	e.FieldsType, e.FieldsV1 = "FieldsV1", &metav1.FieldsV1{}
	e.FieldsV1.SetRawBytes(w.fields)
	return []metav1.ManagedFieldsEntry{e}
}

// object writes the fields of a whole object but those that nobody manages: what
// identifies it, what the server fills in, and with skipStatus the status.
func (w *fieldWriter) object(meta *metav1.ObjectMeta, content map[string]any, skipStatus bool) bool {
	if w.Schema == nil {
		return false
	}
	atom, ok := w.Schema.Resolve(w.TypeRef)
	if !ok || atom.Map == nil {
		return false
	}
	var space [8]string
	keys := append(sortedKeys(space[:0], content), "metadata")
	slices.Sort(keys)
	w.fields = append(make([]byte, 0, 512), '{')
	for _, key := range keys {
		switch {
		case key == "metadata":
			ok = w.metadata(meta)
		case key == "status" && skipStatus:
		default:
			ok = w.member(atom.Map, key, content[key])
		}
		if !ok {
			return false
		}
	}
	w.fields = append(w.fields, '}')
	return true
}

func (w *fieldWriter) metadata(meta *metav1.ObjectMeta) bool {
	length := len(w.fields)
	w.key("metadata")
	w.fields = append(w.fields, '{')
	empty := len(w.fields)
	texts := func(name string, m map[string]string) bool {
		if len(m) == 0 && (m == nil || !w.applied) {
			return true
		}
		w.key(name)
		w.fields = append(w.fields, '{')
		if !w.applied {
			w.self()
		}
		var space [16]string
		for _, k := range sortedKeys(space[:0], m) {
			if !plain(k) {
				return false
			}
			w.key(k)
			w.fields = append(w.fields, "{}"...)
		}
		w.fields = append(w.fields, '}')
		return true
	}
	if !texts("annotations", meta.Annotations) {
		return false
	}
	if meta.GenerateName != "" {
		w.key("generateName")
		w.fields = append(w.fields, "{}"...)
	}
	if !texts("labels", meta.Labels) {
		return false
	}
	if len(w.fields) == empty {
		w.fields = w.fields[:length]
		return true
	}
	w.fields = append(w.fields, '}')
	return true
}

func (w *fieldWriter) member(of *smdschema.Map, name string, v any) bool {
	if !plain(name) {
		return false
	}
	field, declared := of.FindField(name)
	t := of.ElementType
	if declared {
		t = field.Type
	}
	w.key(name)
	return w.value(t, v, !w.applied || !declared)
}

// value writes what is managed of a value, the value itself included with self.
func (w *fieldWriter) value(t smdschema.TypeRef, v any, self bool) bool {
	switch v := v.(type) {
	case nil:
		return false
	case map[string]any:
		atom, ok := w.Schema.Resolve(t)
		if !ok || atom.Map == nil {
			return false
		}
		if len(v) == 0 || atom.Map.ElementRelationship == smdschema.Atomic {
			break
		}
		w.fields = append(w.fields, '{')
		if self {
			w.self()
		}
		var space [16]string
		for _, name := range sortedKeys(space[:0], v) {
			if !w.member(atom.Map, name, v[name]) {
				return false
			}
		}
		w.fields = append(w.fields, '}')
		return true
	case []any:
		atom, ok := w.Schema.Resolve(t)
		if !ok || atom.List == nil || atom.List.ElementRelationship != smdschema.Atomic && (len(v) > 0 || w.applied) {
			return false
		}
	}
	w.fields = append(w.fields, "{}"...)
	return true
}

func (w *fieldWriter) key(name string) {
	if last := w.fields[len(w.fields)-1]; last != '{' {
		w.fields = append(w.fields, ',')
	}
	w.fields = append(w.fields, `"f:`...)
	w.fields = append(w.fields, name...)
	w.fields = append(w.fields, `":`...)
}

func (w *fieldWriter) self() { w.fields = append(w.fields, `".":{}`...) }

// plain tells of a name whether it stands in JSON as it is.
func plain(name string) bool {
	for i := 0; i < len(name); i++ {
		if c := name[i]; c < 0x20 || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

func sortedKeys[V any](dst []string, m map[string]V) []string {
	for k := range m {
		dst = append(dst, k)
	}
	slices.Sort(dst)
	return dst
}
