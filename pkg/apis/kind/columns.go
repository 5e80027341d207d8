package kind

import (
	"bytes"
	"fmt"
	"reflect"
	"regexp"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/meta/table"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/jsonpath"

	"github.com/vmesh-io/vmesh/pkg/apis/kind/jsonscan"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// columns are the printer columns of a definition's version. Cells are what
// kube-apiserver prints for a custom resource, mostly found without decoding more
// of an object than the cell.
type columns struct {
	definitions []metav1.TableColumnDefinition
	additional  []column
}

type column struct {
	kind  string             // the column's type, as definitions have it
	path  *jsonpath.JSONPath // knows every path, but needs the whole tree
	names []string           // the path where it consists of names only, nil otherwise
}

var plainPath = regexp.MustCompile(`^(\.[A-Za-z0-9_-]+)+$`)

func newColumns(declared []apiextensionsv1.CustomResourceColumnDefinition) (columns, error) {
	texts := metav1.ObjectMeta{}.SwaggerDoc()
	if len(declared) == 0 {
		declared = []apiextensionsv1.CustomResourceColumnDefinition{
			{Name: "Age", Type: "date", Description: texts["creationTimestamp"], JSONPath: ".metadata.creationTimestamp"},
		}
	}
	c := columns{definitions: []metav1.TableColumnDefinition{{Name: "Name", Type: "string", Format: "name", Description: texts["name"]}}}
	for _, d := range declared {
		path := jsonpath.New(d.Name).AllowMissingKeys(true)
		if err := path.Parse("{" + d.JSONPath + "}"); err != nil {
			return columns{}, fmt.Errorf("printer column %q: %w", d.Name, err)
		}
		description := d.Description
		if description == "" {
			description = "Custom resource definition column (in JSONPath format): " + d.JSONPath
		}
		c.definitions = append(c.definitions, metav1.TableColumnDefinition{
			Name: d.Name, Type: d.Type, Format: d.Format, Description: description, Priority: d.Priority,
		})
		col := column{kind: d.Type, path: path}
		if plainPath.MatchString(d.JSONPath) {
			col.names = strings.Split(d.JSONPath[1:], ".")
		}
		c.additional = append(c.additional, col)
	}
	return c, nil
}

func (c *columns) row(o *object.Object) ([]any, error) {
	cells := make([]any, 1, 1+len(c.additional))
	cells[0] = o.Name
	var tree map[string]any // the whole object, for paths that need it
	for i := range c.additional {
		col := &c.additional[i]
		v, found, ok := col.find(o)
		if !ok {
			if tree == nil {
				var err error
				if tree, err = o.Unstructured(); err != nil {
					return nil, err
				}
			}
			v, found = col.findInTree(tree)
		}
		if !found {
			cells = append(cells, nil)
			continue
		}
		cells = append(cells, col.cell(v))
	}
	return cells, nil
}

// find looks a value up in the raw body. With ok false the tree must tell.
func (c *column) find(o *object.Object) (v any, found, ok bool) {
	switch {
	case len(c.names) == 0:
		return nil, false, false
	case c.names[0] == "metadata":
		if len(c.names) != 2 || c.names[1] != "creationTimestamp" || o.CreationTimestamp.IsZero() {
			return nil, false, false
		}
		text, err := o.CreationTimestamp.MarshalQueryParameter()
		return text, true, err == nil
	case c.names[0] == "apiVersion" || c.names[0] == "kind":
		return nil, false, false
	}
	raw := []byte(o.Field(c.names[0]))
	for _, name := range c.names[1:] {
		if raw == nil {
			return nil, false, true
		}
		if raw, ok = memberOf(raw, name); !ok {
			return nil, false, false
		}
	}
	if raw == nil {
		return nil, false, true
	}
	p := parser{jsonscan.New(raw)}
	v, ok = p.value(nil)
	return v, true, ok && p.AtEnd()
}

// memberOf is a member of an object in JSON, nil if there is none; ok is false for
// anything but an object.
func memberOf(raw []byte, name string) (found []byte, ok bool) {
	c := jsonscan.New(raw)
	ok = c.Members(func(member []byte) bool {
		if string(member) != name {
			return c.Skip()
		}
		var ok bool
		found, ok = c.Raw()
		return ok
	})
	return found, ok
}

func (c *column) findInTree(tree map[string]any) (v any, found bool) {
	results, err := c.path.FindResults(tree)
	if err != nil || len(results) == 0 || len(results[0]) == 0 {
		return nil, false
	}
	return results[0][0].Interface(), true
}

// cell prints a value as the column's type wants it, nil where it does not fit.
func (c *column) cell(v any) any {
	switch c.kind {
	case "string":
		if s, ok := v.(string); ok {
			return s
		}
		var text bytes.Buffer
		if err := c.path.PrintResults(&text, []reflect.Value{reflect.ValueOf(v)}); err != nil {
			return nil
		}
		return text.String()
	case "integer":
		switch v := v.(type) {
		case int64:
			return v
		case float64:
			return int64(v)
		}
	case "number":
		switch v := v.(type) {
		case int64:
			return float64(v)
		case float64:
			return v
		}
	case "boolean":
		if b, ok := v.(bool); ok {
			return b
		}
	case "date":
		s, ok := v.(string)
		if !ok {
			return nil
		}
		var t metav1.Time
		if err := t.UnmarshalQueryParameter(s); err != nil {
			return "<invalid>"
		}
		return table.ConvertToHumanReadableDateType(t)
	}
	return nil
}
