package kind

import (
	"fmt"
	"slices"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/util/jsonpath"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// selector is a selectable field of a definition.
type selector struct {
	name string
	path *jsonpath.JSONPath
}

// addSelectors adds the selectable fields of a version to those of the kind, and
// returns their names.
func (k *Kind) addSelectors(declared []apiextensionsv1.SelectableField) ([]string, error) {
	var names []string
	for _, d := range declared {
		name := strings.TrimPrefix(d.JSONPath, ".")
		names = append(names, name)
		if slices.ContainsFunc(k.selectors, func(s selector) bool { return s.name == name }) {
			continue
		}
		path := jsonpath.New("selectableField").AllowMissingKeys(true)
		if err := path.Parse("{" + d.JSONPath + "}"); err != nil {
			return nil, fmt.Errorf("selectable field %q: %w", d.JSONPath, err)
		}
		k.selectors = append(k.selectors, selector{name: name, path: path})
	}
	return names, nil
}

// SelectableField tells whether a field selector may name a field.
func (k *Kind) SelectableField(version, label string) bool {
	switch {
	case label == "metadata.name", label == "metadata.namespace" && k.Namespaced():
		return true
	case k.versions[version] == nil:
		return false
	case k.Hooks.Selectors[label] != nil:
		return true
	}
	return slices.Contains(k.versions[version].selectable, label)
}

// Fields are what field selectors see of an object: its name, its namespace if the
// kind has them, and the selectable fields of all versions. An object whose body
// cannot be read has none of the latter.
func (k *Kind) Fields(o *object.Object) fields.Set {
	set := make(fields.Set, 2+len(k.selectors)+len(k.Hooks.Selectors))
	set["metadata.name"] = o.Name
	if k.Namespaced() {
		set["metadata.namespace"] = o.Namespace
	}
	if len(k.selectors) == 0 && len(k.Hooks.Selectors) == 0 {
		return set
	}
	content, err := o.Content()
	if err != nil {
		return set
	}
	for i := range k.selectors {
		set[k.selectors[i].name] = k.selectors[i].value(content)
	}
	for label, value := range k.Hooks.Selectors {
		set[label] = value(content)
	}
	return set
}

func (s *selector) value(content map[string]any) string {
	results, err := s.path.FindResults(content)
	if err != nil || len(results) == 0 || len(results[0]) == 0 {
		return ""
	}
	v := results[0][0].Interface()
	if v == nil {
		return ""
	}
	return fmt.Sprint(v)
}
