package object

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
)

// MarshalJSON encodes the object with its own apiVersion and kind.
func (o *Object) MarshalJSON() ([]byte, error) {
	return o.AppendJSON(make([]byte, 0, len(o.body)+512), o.APIVersion, o.Kind), nil
}

// AppendJSON appends the object's JSON to dst. The apiVersion and kind given stand
// in for the object's own, so that one shared object serves every version.
func (o *Object) AppendJSON(dst []byte, apiVersion, kind string) []byte {
	dst = append(dst, '{')
	if apiVersion != "" {
		dst = append(dst, `"apiVersion":`...)
		dst = appendString(dst, apiVersion)
		dst = append(dst, ',')
	}
	if kind != "" {
		dst = append(dst, `"kind":`...)
		dst = appendString(dst, kind)
		dst = append(dst, ',')
	}
	dst = append(dst, `"metadata":`...)
	dst = appendMetadata(dst, &o.ObjectMeta)
	if len(o.body) > 0 {
		dst = append(dst, ',')
		dst = append(dst, o.body...)
	}
	return append(dst, '}')
}

// UnmarshalJSON decodes an object leniently, as from storage: its values are kept
// as they are, without schema. Numbers and key order of the body are made canonical.
func (o *Object) UnmarshalJSON(data []byte) error {
	if err := o.Decode(data); err != nil {
		return err
	}
	content, err := parseMembers(o.body)
	if err != nil {
		return err
	}
	o.body, err = appendMembers(nil, content)
	return err
}

// MarshalJSON encodes the list; each item bears its own apiVersion and kind.
func (l *List) MarshalJSON() ([]byte, error) { return l.AppendJSON(nil, l.APIVersion, "", l.Kind), nil }

// AppendJSON appends the list's JSON to dst. With itemKind set, items are given it
// and apiVersion; otherwise they keep their own.
func (l *List) AppendJSON(dst []byte, apiVersion, itemKind, listKind string) []byte {
	dst = l.AppendHead(dst, apiVersion, listKind)
	for i := range l.Items {
		if i > 0 {
			dst = append(dst, ',')
		}
		item := &l.Items[i]
		if itemKind == "" {
			dst = item.AppendJSON(dst, item.APIVersion, item.Kind)
		} else {
			dst = item.AppendJSON(dst, apiVersion, itemKind)
		}
	}
	return append(dst, ']', '}')
}

// AppendHead appends the list's JSON up to the bracket that opens its items.
func (l *List) AppendHead(dst []byte, apiVersion, listKind string) []byte {
	dst = append(dst, `{"apiVersion":`...)
	dst = appendString(dst, apiVersion)
	dst = append(dst, `,"kind":`...)
	dst = appendString(dst, listKind)
	dst = append(dst, `,"metadata":`...)
	dst = appendListMeta(dst, &l.ListMeta)
	return append(dst, `,"items":[`...)
}

func appendListMeta(dst []byte, m *metav1.ListMeta) []byte {
	dst = append(dst, `{"resourceVersion":`...)
	dst = appendString(dst, m.ResourceVersion)
	if m.Continue != "" {
		dst = append(dst, `,"continue":`...)
		dst = appendString(dst, m.Continue)
	}
	if m.RemainingItemCount != nil {
		dst = append(dst, `,"remainingItemCount":`...)
		dst = strconv.AppendInt(dst, *m.RemainingItemCount, 10)
	}
	return append(dst, '}')
}

// appendMetadata writes ObjectMeta as encoding/json would, without reflection:
// metadata is half of what a list of small objects costs.
func appendMetadata(dst []byte, m *metav1.ObjectMeta) []byte {
	dst = append(dst, '{')
	start := len(dst)
	key := func(name string) {
		if len(dst) > start {
			dst = append(dst, ',')
		}
		dst = append(dst, '"')
		dst = append(dst, name...)
		dst = append(dst, '"', ':')
	}
	text := func(name, value string) {
		if value != "" {
			key(name)
			dst = appendString(dst, value)
		}
	}
	text("name", m.Name)
	text("generateName", m.GenerateName)
	text("namespace", m.Namespace)
	text("uid", string(m.UID))
	text("resourceVersion", m.ResourceVersion)
	if m.Generation != 0 {
		key("generation")
		dst = strconv.AppendInt(dst, m.Generation, 10)
	}
	if !m.CreationTimestamp.IsZero() {
		key("creationTimestamp")
		dst = appendTime(dst, m.CreationTimestamp)
	}
	if m.DeletionTimestamp != nil {
		key("deletionTimestamp")
		dst = appendTime(dst, *m.DeletionTimestamp)
	}
	if m.DeletionGracePeriodSeconds != nil {
		key("deletionGracePeriodSeconds")
		dst = strconv.AppendInt(dst, *m.DeletionGracePeriodSeconds, 10)
	}
	if len(m.Labels) > 0 {
		key("labels")
		dst = appendStringMap(dst, m.Labels)
	}
	if len(m.Annotations) > 0 {
		key("annotations")
		dst = appendStringMap(dst, m.Annotations)
	}
	if len(m.OwnerReferences) > 0 {
		key("ownerReferences")
		dst = appendMarshalled(dst, m.OwnerReferences)
	}
	if len(m.Finalizers) > 0 {
		key("finalizers")
		dst = append(dst, '[')
		for i, f := range m.Finalizers {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendString(dst, f)
		}
		dst = append(dst, ']')
	}
	if len(m.ManagedFields) > 0 {
		key("managedFields")
		dst = append(dst, '[')
		for i := range m.ManagedFields {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendManagedFields(dst, &m.ManagedFields[i])
		}
		dst = append(dst, ']')
	}
	return append(dst, '}')
}

func appendManagedFields(dst []byte, e *metav1.ManagedFieldsEntry) []byte {
	dst = append(dst, '{')
	start := len(dst)
	text := func(name, value string) {
		if value == "" {
			return
		}
		if len(dst) > start {
			dst = append(dst, ',')
		}
		dst = append(dst, '"')
		dst = append(dst, name...)
		dst = append(dst, '"', ':')
		dst = appendString(dst, value)
	}
	text("manager", e.Manager)
	text("operation", string(e.Operation))
	text("apiVersion", e.APIVersion)
	if e.Time != nil {
		if len(dst) > start {
			dst = append(dst, ',')
		}
		dst = append(dst, `"time":`...)
		dst = appendTime(dst, *e.Time)
	}
	text("fieldsType", e.FieldsType)
	if e.FieldsV1 != nil {
		if len(dst) > start {
			dst = append(dst, ',')
		}
		dst = append(dst, `"fieldsV1":`...)
		if raw := e.FieldsV1.GetRawBytes(); len(raw) > 0 {
			dst = append(dst, raw...) // JSON as it was given, which was checked when it was read
		} else {
			dst = append(dst, "null"...)
		}
	}
	text("subresource", e.Subresource)
	return append(dst, '}')
}

func appendTime(dst []byte, t metav1.Time) []byte {
	if t.IsZero() {
		return append(dst, "null"...)
	}
	dst = append(dst, '"')
	dst = t.UTC().AppendFormat(dst, time.RFC3339)
	return append(dst, '"')
}

func appendStringMap(dst []byte, m map[string]string) []byte {
	keys := make([]string, 0, 16)
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	dst = append(dst, '{')
	for i, k := range keys {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, k)
		dst = append(dst, ':')
		dst = appendString(dst, m[k])
	}
	return append(dst, '}')
}

// appendMarshalled is for the rare members; their types cannot fail to encode.
func appendMarshalled(dst []byte, v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encoding %T: %v", v, err))
	}
	return append(dst, data...)
}

// appendString appends a JSON string. Text that needs no escape, which is nearly
// all, is copied; the rest goes through encoding/json.
func appendString(dst []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			return appendMarshalled(dst, s)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

// appendValue appends canonical JSON: keys sorted, no white space.
func appendValue(dst []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return append(dst, "null"...), nil
	case bool:
		return strconv.AppendBool(dst, v), nil
	case string:
		return appendString(dst, v), nil
	case int64:
		return strconv.AppendInt(dst, v, 10), nil
	case int:
		return strconv.AppendInt(dst, int64(v), 10), nil
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("%v is not a JSON number", v)
		}
		return appendMarshalled(dst, v), nil
	case map[string]any:
		dst = append(dst, '{')
		dst, err := appendMembers(dst, v)
		return append(dst, '}'), err
	case []any:
		dst = append(dst, '[')
		var err error
		for i, item := range v {
			if i > 0 {
				dst = append(dst, ',')
			}
			if dst, err = appendValue(dst, item); err != nil {
				return nil, err
			}
		}
		return append(dst, ']'), nil
	default:
		return nil, fmt.Errorf("%T is not a JSON value", v)
	}
}

func appendMembers(dst []byte, m map[string]any) ([]byte, error) {
	var space [16]string
	keys := space[:0]
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var err error
	for i, k := range keys {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, k)
		dst = append(dst, ':')
		if dst, err = appendValue(dst, m[k]); err != nil {
			return nil, fmt.Errorf("%s: %w", k, err)
		}
	}
	return dst, nil
}

func parseMembers(body []byte) (map[string]any, error) {
	data := make([]byte, 0, len(body)+2)
	data = append(data, '{')
	data = append(data, body...)
	data = append(data, '}')
	content := map[string]any{}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &content); err != nil {
		return nil, err
	}
	return content, nil
}
