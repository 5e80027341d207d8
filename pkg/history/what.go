package history

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// shownPaths is how many paths a summary names.
const shownPaths = 3

// What says in short what a change did.
func (r *Record) What() string {
	switch {
	case r.Operation == string(v1alpha1.ChangeCreate):
		return "created"
	case r.Operation == string(v1alpha1.ChangeDelete):
		return "deleted"
	case r.Omitted != "":
		return "unknown: " + r.Omitted
	}
	paths, err := Paths(r.Before, r.After)
	if err != nil {
		return "unknown: " + err.Error()
	}
	if slices.Contains(paths, "metadata.deletionTimestamp") {
		return "marked for deletion"
	}
	if more := len(paths) - shownPaths; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(paths[:shownPaths], ", "), more)
	}
	return strings.Join(paths, ", ")
}

// Paths are those that differ between two objects in JSON, in order. What kubectl apply
// remembers of the object is not among them, unless it is all.
func Paths(before, after []byte) ([]string, error) {
	var a, b any
	if err := json.Unmarshal(before, &a); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(after, &b); err != nil {
		return nil, err
	}
	var paths []string
	differ("", a, b, func(path string) { paths = append(paths, path) })
	if len(paths) > 1 {
		applied := "metadata.annotations[" + corev1.LastAppliedConfigAnnotation + "]"
		paths = slices.DeleteFunc(paths, func(p string) bool { return p == applied })
	}
	return paths, nil
}

// differ tells the paths where two trees do, as deep as both go. Lists of different lengths
// differ as a whole.
func differ(path string, a, b any, tell func(path string)) {
	if strings.HasPrefix(path, "metadata.") { // there, one label that comes first is as good as one more
		a, b = orEmpty(a, b), orEmpty(b, a)
	}
	switch a := a.(type) {
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok {
			break
		}
		keys := make([]string, 0, len(a))
		for k := range a {
			keys = append(keys, k)
		}
		for k := range b {
			if _, both := a[k]; !both {
				keys = append(keys, k)
			}
		}
		slices.Sort(keys)
		for _, k := range keys {
			va, inA := a[k]
			vb, inB := b[k]
			if inA && inB || path == "metadata" {
				differ(below(path, k), va, vb, tell)
			} else {
				tell(below(path, k))
			}
		}
		return
	case []any:
		b, ok := b.([]any)
		if !ok || len(a) != len(b) {
			break
		}
		for i := range a {
			differ(fmt.Sprintf("%s[%d]", path, i), a[i], b[i], tell)
		}
		return
	}
	if !reflect.DeepEqual(a, b) {
		tell(path)
	}
}

// orEmpty is a tree, or an empty map if there is none where another has a map.
func orEmpty(tree, other any) any {
	if _, is := other.(map[string]any); is && tree == nil {
		return map[string]any{}
	}
	return tree
}

func below(path, key string) string {
	switch {
	case strings.ContainsAny(key, "./[]"):
		return path + "[" + key + "]"
	case path == "":
		return key
	}
	return path + "." + key
}
