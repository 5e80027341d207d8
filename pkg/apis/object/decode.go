package object

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
	"unsafe"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Decode reads what AppendJSON wrote. Values are kept as they are: the body is expected
// to be canonical already. The object keeps one copy of data, and its body and strings
// are parts of that, so that an object in a watch cache costs little more than its JSON.
func (o *Object) Decode(data []byte) error {
	*o = Object{cluster: o.cluster}
	data = bytes.TrimSpace(data)
	if len(data) < 2 || data[0] != '{' || data[len(data)-1] != '}' {
		return errors.New("not a JSON object")
	}
	buffer := slices.Clip(slices.Clone(data))
	members := buffer[1 : len(buffer)-1]
	first, scattered := -1, false // where the body begins, and whether something else comes after
	err := scanMembersAt(members, func(at int, key string, value []byte) error {
		switch key {
		case "apiVersion":
			scattered = scattered || first >= 0
			return decodeText(value, &o.APIVersion)
		case "kind":
			scattered = scattered || first >= 0
			return decodeText(value, &o.Kind)
		case "metadata":
			scattered = scattered || first >= 0
			if err := decodeMetadata(value, &o.ObjectMeta); err != nil {
				return fmt.Errorf("metadata: %w", err)
			}
			return nil
		}
		if first < 0 {
			first = at
		}
		return nil
	})
	if err != nil || first < 0 {
		return err
	}
	if !scattered {
		o.body = bytes.TrimRight(members[first:], " \t\r\n")
		return nil
	}
	o.body, err = gatherBody(members)
	return err
}

// gatherBody copies the body's members together, where metadata stands among them.
func gatherBody(members []byte) ([]byte, error) {
	var body []byte
	err := scanMembers(members, func(key string, value []byte) error {
		switch key {
		case "apiVersion", "kind", "metadata":
			return nil
		}
		if len(body) > 0 {
			body = append(body, ',')
		}
		body = append(appendString(body, key), ':')
		body = append(body, value...)
		return nil
	})
	return slices.Clip(body), err
}

// decodeMetadata reads ObjectMeta without reflection. What it does not know by heart,
// it leaves to encoding/json.
func decodeMetadata(data []byte, m *metav1.ObjectMeta) error {
	if len(data) < 2 || data[0] != '{' {
		return json.Unmarshal(data, m)
	}
	return scanMembers(data[1:len(data)-1], func(key string, value []byte) error {
		switch key {
		case "name":
			return decodeText(value, &m.Name)
		case "generateName":
			return decodeText(value, &m.GenerateName)
		case "namespace":
			return decodeText(value, &m.Namespace)
		case "uid":
			var uid string
			err := decodeText(value, &uid)
			m.UID = types.UID(uid)
			return err
		case "resourceVersion":
			return decodeText(value, &m.ResourceVersion)
		case "generation":
			n, err := strconv.ParseInt(text(value), 10, 64)
			m.Generation = n
			return err
		case "creationTimestamp":
			return decodeTime(value, &m.CreationTimestamp)
		case "deletionTimestamp":
			m.DeletionTimestamp = &metav1.Time{}
			return decodeTime(value, m.DeletionTimestamp)
		case "labels":
			return decodeStringMap(value, &m.Labels)
		case "annotations":
			return decodeStringMap(value, &m.Annotations)
		case "managedFields":
			return decodeManagedFields(value, &m.ManagedFields)
		}
		// json.Unmarshal reads the whole object again for one member: these are rare.
		rare := append([]byte{'{'}, appendString(nil, key)...)
		rare = append(append(rare, ':'), value...)
		return json.Unmarshal(append(rare, '}'), m)
	})
}

func decodeManagedFields(data []byte, out *[]metav1.ManagedFieldsEntry) error {
	if len(data) < 2 || data[0] != '[' {
		return json.Unmarshal(data, out)
	}
	var entries []metav1.ManagedFieldsEntry
	err := scanItems(data[1:len(data)-1], func(item []byte) error {
		if len(item) < 2 || item[0] != '{' {
			return errors.New("an entry must be an object")
		}
		var e metav1.ManagedFieldsEntry
		err := scanMembers(item[1:len(item)-1], func(key string, value []byte) error {
			switch key {
			case "manager":
				return decodeText(value, &e.Manager)
			case "operation":
				var operation string
				err := decodeText(value, &operation)
				e.Operation = metav1.ManagedFieldsOperationType(operation)
				return err
			case "apiVersion":
				return decodeText(value, &e.APIVersion)
			case "time":
				e.Time = &metav1.Time{}
				return decodeTime(value, e.Time)
			case "fieldsType":
				return decodeText(value, &e.FieldsType)
			case "fieldsV1":
				e.FieldsV1 = &metav1.FieldsV1{}
				e.FieldsV1.SetRawBytes(value)
				return nil
			case "subresource":
				return decodeText(value, &e.Subresource)
			}
			return nil
		})
		entries = append(entries, e)
		return err
	})
	*out = slices.Clip(entries)
	if err != nil {
		return fmt.Errorf("managedFields: %w", err)
	}
	return nil
}

func decodeStringMap(data []byte, out *map[string]string) error {
	if len(data) < 2 || data[0] != '{' {
		return json.Unmarshal(data, out)
	}
	m := make(map[string]string, bytes.Count(data, []byte(`":`)))
	*out = m
	return scanMembers(data[1:len(data)-1], func(key string, value []byte) error {
		var v string
		err := decodeText(value, &v)
		m[key] = v
		return err
	})
}

func decodeTime(data []byte, out *metav1.Time) error {
	if len(data) < 2 || data[0] != '"' {
		return json.Unmarshal(data, out)
	}
	t, err := time.Parse(time.RFC3339, text(data[1:len(data)-1]))
	out.Time = t.Local()
	return err
}

// decodeText reads a string. Without escapes it is the buffer's own bytes, which nobody
// changes. What is no UTF-8 is left to encoding/json, too, which puts U+FFFD in its place.
func decodeText(data []byte, out *string) error {
	if len(data) < 2 || data[0] != '"' || bytes.IndexByte(data, '\\') >= 0 || !utf8.Valid(data) {
		return json.Unmarshal(data, out)
	}
	*out = text(data[1 : len(data)-1])
	return nil
}

func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
