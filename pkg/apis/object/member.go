package object

import "maps"

// SetMember gives the object a top-level member besides apiVersion, kind and metadata, in
// place of the one it has, and leaves the bytes of all others as they are. The value is a
// tree as Content has them, which the object owns from then on.
func (o *Object) SetMember(name string, value any) error {
	written, err := appendValue(append(appendString(nil, name), ':'), value)
	if err != nil {
		return err
	}
	// The members are sorted: it begins where the first stands that does not come before it.
	from, to := len(o.body), len(o.body)
	last := true
	err = scanMembersAt(o.body, func(at int, key string, value []byte) error {
		if key < name || !last {
			return nil
		}
		last = false
		from, to = at, at
		if key == name {
			// A key of canonical JSON is followed by its colon and its value.
			to = at + len(appendString(nil, key)) + 1 + len(value)
			last = to == len(o.body)
		}
		return nil
	})
	if err != nil {
		return err
	}
	body := make([]byte, 0, len(o.body)+len(written)+1)
	body = append(body, o.body[:from]...)
	if last && from == to && from > 0 {
		body = append(body, ',')
	}
	body = append(body, written...)
	if !last && from == to {
		body = append(body, ',')
	}
	o.body = append(body, o.body[to:]...)
	if o.content != nil {
		o.content = maps.Clone(o.content)
		o.content[name] = value
	}
	return nil
}
