package resource

import (
	"maps"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// member reads one top-level member of an object's body. A body that cannot be read
// has none: storage quarantines such objects, and what is written over them is
// validated as a whole.
func member(o *object.Object, name string) (any, bool) {
	if len(o.Field(name)) == 0 {
		return nil, false
	}
	content, err := o.Content()
	if err != nil {
		return nil, false
	}
	value, ok := content[name]
	return value, ok
}

// setMember gives an object a top-level member, or takes it away. The tree it works
// on was decoded from JSON, so it can be encoded again; should the body be broken,
// validation, which reads all of it, says so.
func setMember(o *object.Object, name string, value any, present bool) {
	if !present && len(o.Field(name)) == 0 {
		return
	}
	shared, err := o.Content()
	if err != nil {
		return
	}
	content := maps.Clone(shared)
	if present {
		content[name] = value
	} else {
		delete(content, name)
	}
	if err := o.SetContent(content); err != nil {
		panic("encoding a decoded tree: " + err.Error())
	}
}
