package kind

import (
	"math"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"

	"github.com/vmesh-io/vmesh/pkg/apis/kind/jsonscan"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// parser makes trees like those of sigs.k8s.io/json, in a fraction of the time: it
// reads the text once and takes the names of members from the schema. It gives up
// on anything out of the ordinary: faults, names given twice, deep nesting.
type parser struct{ *jsonscan.Cursor }

// parse reads a body, and reports whether it could.
func (f *form) parse(data []byte) (*document, bool) {
	p := parser{jsonscan.New(data)}
	d := &document{content: make(map[string]any, 2)}
	var seen members
	ok := p.Members(func(name []byte) (ok bool) {
		switch string(name) {
		case "apiVersion":
			d.apiVersion, ok = p.Text()
			return ok && seen.first(0)
		case "kind":
			d.kind, ok = p.Text()
			return ok && seen.first(1)
		case "metadata":
			return p.metadata(&d.meta) && seen.first(2)
		}
		return p.member(f.root, d.content, name)
	})
	return d, ok && p.AtEnd()
}

// metadata takes the short way where all members are simple ones.
func (p *parser) metadata(meta *metav1.ObjectMeta) bool {
	if p.Peek() != '{' {
		return false
	}
	start := *p.Cursor
	if p.plainMetadata(meta) {
		return true
	}
	*p.Cursor, *meta = start, metav1.ObjectMeta{}
	raw, ok := p.Raw()
	if !ok {
		return false
	}
	strictErrs, err := kjson.UnmarshalStrict(raw, meta)
	return err == nil && len(strictErrs) == 0
}

func (p *parser) plainMetadata(meta *metav1.ObjectMeta) bool {
	var seen members
	text := func(i int, dst *string) (ok bool) {
		*dst, ok = p.Text()
		return ok && seen.first(i)
	}
	return p.Members(func(name []byte) bool {
		switch string(name) {
		case "name":
			return text(0, &meta.Name)
		case "namespace":
			return text(1, &meta.Namespace)
		case "generateName":
			return text(2, &meta.GenerateName)
		case "resourceVersion":
			return text(3, &meta.ResourceVersion)
		case "labels":
			return p.stringMap(&meta.Labels) && seen.first(4)
		case "annotations":
			return p.stringMap(&meta.Annotations) && seen.first(5)
		case "creationTimestamp":
			return p.Null() && seen.first(6)
		}
		return false
	})
}

// members are those of an object that were seen already, by number.
type members uint8

func (m *members) first(i int) bool {
	bit := members(1) << i
	first := *m&bit == 0
	*m |= bit
	return first
}

func (p *parser) stringMap(dst *map[string]string) bool {
	m := map[string]string{}
	*dst = m
	return p.Members(func(name []byte) bool {
		key := string(name)
		if _, twice := m[key]; twice {
			return false
		}
		value, ok := p.Text()
		m[key] = value
		return ok
	})
}

// member reads a value into a tree.
func (p *parser) member(n *node, tree map[string]any, name []byte) bool {
	var child *node
	key := ""
	if n != nil {
		if child = n.props[string(name)]; child != nil {
			key = child.name
		} else if n.additional != nil {
			child = n.additional.schema
		}
	}
	if key == "" {
		key = string(name)
	}
	if _, twice := tree[key]; twice {
		return false
	}
	v, ok := p.value(child)
	tree[key] = v
	return ok
}

// value reads any value; the node, nil if there is none, serves for names only.
func (p *parser) value(n *node) (v any, ok bool) {
	switch p.Peek() {
	case '{':
		tree := map[string]any{}
		ok = p.Members(func(name []byte) bool { return p.member(n, tree, name) })
		return tree, ok
	case '[':
		var item *node
		if n != nil {
			item = n.items
		}
		list := make([]any, 0, 4)
		ok = p.Items(func() bool {
			v, ok := p.value(item)
			list = append(list, v)
			return ok
		})
		return list, ok
	case '"':
		return p.Text()
	case 't', 'f':
		return p.Boolean()
	case 'n':
		return nil, p.Null()
	}
	return p.number()
}

// number is an int64 where it is written as one that fits, else a float64.
func (p *parser) number() (any, bool) {
	text, integer := p.Number()
	if text == nil {
		return nil, false
	}
	if integer {
		if n, err := strconv.ParseInt(string(text), 10, 64); err == nil {
			return n, true
		}
	}
	f, err := strconv.ParseFloat(string(text), 64)
	return f, err == nil && !math.IsInf(f, 0)
}

// content is an object's body as a tree, like object.Content, made faster where the
// schema is known; f may be nil.
func (f *form) content(o *object.Object) (map[string]any, error) {
	if f != nil && !o.HasContent() {
		data := make([]byte, 0, len(o.Body())+2)
		data = append(append(append(data, '{'), o.Body()...), '}')
		p := parser{jsonscan.New(data)}
		if tree, ok := p.value(f.root); ok && p.AtEnd() {
			return tree.(map[string]any), nil
		}
	}
	return o.Content()
}
