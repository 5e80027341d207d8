package istio

import (
	"encoding/json"
	"strconv"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// plan decodes JSON into one message type, several times faster than the decoder
// of the Istio module, which parses every level of the JSON anew. It takes only
// what has one plain meaning: on anything else (an error, a null in a list, a
// number in quotes, a type without a rule here) it gives up, and the module's
// decoder has the word.
type plan struct {
	fields map[string]*planField // by both names that JSON may use
	known  wellKnown
}

type planField struct {
	desc    protoreflect.FieldDescriptor
	shape   shape
	scalar  protoreflect.Kind
	enum    map[string]protoreflect.EnumNumber
	message *plan // of the value, for messages
}

type shape uint8

const (
	single shape = iota
	list
	stringMap
	otherMap // by something else than strings: not planned
)

// wellKnown are the types with a JSON form of their own.
type wellKnown uint8

const (
	ordinary wellKnown = iota
	wrapper
	duration
	structure
	structValue
	listValue
	unplanned
)

var wellKnownTypes = map[protoreflect.FullName]wellKnown{
	"google.protobuf.Any":         unplanned,
	"google.protobuf.Timestamp":   unplanned,
	"google.protobuf.BoolValue":   wrapper,
	"google.protobuf.BytesValue":  wrapper,
	"google.protobuf.DoubleValue": wrapper,
	"google.protobuf.Duration":    duration,
	"google.protobuf.FloatValue":  wrapper,
	"google.protobuf.Int32Value":  wrapper,
	"google.protobuf.Int64Value":  wrapper,
	"google.protobuf.ListValue":   listValue,
	"google.protobuf.StringValue": wrapper,
	"google.protobuf.Struct":      structure,
	"google.protobuf.UInt32Value": wrapper,
	"google.protobuf.UInt64Value": wrapper,
	"google.protobuf.Value":       structValue,
}

// plans are the plans of all message types, each made once.
type plans map[protoreflect.FullName]*plan

// plan returns the plan of a message type, after making it and those of all types
// that it refers to.
func (done plans) plan(desc protoreflect.MessageDescriptor) *plan {
	if p := done[desc.FullName()]; p != nil {
		return p
	}
	p := &plan{known: wellKnownTypes[desc.FullName()], fields: map[string]*planField{}}
	done[desc.FullName()] = p
	fields := desc.Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		f := &planField{desc: fd, scalar: fd.Kind()}
		value := fd
		switch {
		case fd.IsMap():
			f.shape, value = stringMap, fd.MapValue()
			f.scalar = value.Kind()
			if fd.MapKey().Kind() != protoreflect.StringKind {
				f.shape = otherMap
			}
		case fd.IsList():
			f.shape = list
		}
		if value.Enum() != nil {
			f.enum = map[string]protoreflect.EnumNumber{}
			values := value.Enum().Values()
			for j := range values.Len() {
				f.enum[string(values.Get(j).Name())] = values.Get(j).Number()
			}
		}
		if value.Message() != nil {
			f.message = done.plan(value.Message())
		}
		p.fields[string(fd.Name())] = f
		p.fields[fd.JSONName()] = f
	}
	return p
}

// decode fills an empty message and reports whether it could.
func (p *plan) decode(data []byte, m protoreflect.Message) bool {
	c := &cursor{data: data}
	c.space()
	return p.message(c, m) && c.atEnd()
}

func (p *plan) message(c *cursor, m protoreflect.Message) bool {
	switch p.known {
	case wrapper:
		f := p.fields["value"]
		v, ok := f.value(c, protoreflect.Value{})
		if ok {
			m.Set(f.desc, v)
		}
		return ok
	case duration:
		return p.duration(c, m)
	case structure:
		return p.anyMembers(c, m)
	case structValue:
		return p.anyValue(c, m)
	case listValue:
		return p.anyItems(c, m)
	case unplanned:
		return false
	}
	return c.members(func(name []byte) bool {
		f := p.fields[string(name)]
		if f == nil {
			return c.skip()
		}
		return f.decode(c, m)
	})
}

func (f *planField) decode(c *cursor, m protoreflect.Message) bool {
	if oneof := f.desc.ContainingOneof(); m.Has(f.desc) || oneof != nil && m.WhichOneof(oneof) != nil {
		return false
	}
	switch f.shape {
	case otherMap:
		return false
	case list:
		values := m.Mutable(f.desc).List()
		return c.items(func() bool {
			var empty protoreflect.Value
			if f.message != nil {
				empty = values.NewElement()
			}
			v, ok := f.value(c, empty)
			if ok {
				values.Append(v)
			}
			return ok
		})
	case stringMap:
		values := m.Mutable(f.desc).Map()
		return c.members(func(name []byte) bool {
			key := protoreflect.ValueOfString(string(name)).MapKey()
			if values.Has(key) {
				return false
			}
			var empty protoreflect.Value
			if f.message != nil {
				empty = values.NewValue()
			}
			v, ok := f.value(c, empty)
			if ok {
				values.Set(key, v)
			}
			return ok
		})
	}
	var empty protoreflect.Value
	if f.message != nil {
		empty = m.NewField(f.desc)
	}
	v, ok := f.value(c, empty)
	if ok {
		m.Set(f.desc, v)
	}
	return ok
}

// value decodes one value; messages are decoded into the one given.
func (f *planField) value(c *cursor, into protoreflect.Value) (protoreflect.Value, bool) {
	switch f.scalar {
	case protoreflect.MessageKind:
		return into, f.message.message(c, into.Message())
	case protoreflect.StringKind:
		s, ok := c.text()
		return protoreflect.ValueOfString(s), ok
	case protoreflect.EnumKind:
		s, ok := c.text()
		n, known := f.enum[s]
		return protoreflect.ValueOfEnum(n), ok && known
	case protoreflect.BoolKind:
		b, ok := c.boolean()
		return protoreflect.ValueOfBool(b), ok
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		n, err := strconv.ParseInt(string(c.number()), 10, 32)
		return protoreflect.ValueOfInt32(int32(n)), err == nil
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		n, err := strconv.ParseInt(string(c.number()), 10, 64)
		return protoreflect.ValueOfInt64(n), err == nil
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		n, err := strconv.ParseUint(string(c.number()), 10, 32)
		return protoreflect.ValueOfUint32(uint32(n)), err == nil
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		n, err := strconv.ParseUint(string(c.number()), 10, 64)
		return protoreflect.ValueOfUint64(n), err == nil
	case protoreflect.FloatKind:
		n, err := strconv.ParseFloat(string(c.number()), 32)
		return protoreflect.ValueOfFloat32(float32(n)), err == nil
	case protoreflect.DoubleKind:
		n, err := strconv.ParseFloat(string(c.number()), 64)
		return protoreflect.ValueOfFloat64(n), err == nil
	}
	return protoreflect.Value{}, false
}

func (p *plan) duration(c *cursor, m protoreflect.Message) bool {
	s, ok := c.text()
	if !ok {
		return false
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return false
	}
	m.Set(p.fields["seconds"].desc, protoreflect.ValueOfInt64(d.Nanoseconds()/1e9))
	m.Set(p.fields["nanos"].desc, protoreflect.ValueOfInt32(int32(d.Nanoseconds()%1e9)))
	return true
}

// anyMembers decodes a google.protobuf.Struct.
func (p *plan) anyMembers(c *cursor, m protoreflect.Message) bool {
	f := p.fields["fields"]
	values := m.Mutable(f.desc).Map()
	return c.members(func(name []byte) bool {
		key := protoreflect.ValueOfString(string(name)).MapKey()
		if values.Has(key) {
			return false
		}
		v := values.NewValue()
		if !f.message.anyValue(c, v.Message()) {
			return false
		}
		values.Set(key, v)
		return true
	})
}

// anyItems decodes a google.protobuf.ListValue.
func (p *plan) anyItems(c *cursor, m protoreflect.Message) bool {
	f := p.fields["values"]
	values := m.Mutable(f.desc).List()
	return c.items(func() bool {
		v := values.NewElement()
		if !f.message.anyValue(c, v.Message()) {
			return false
		}
		values.Append(v)
		return true
	})
}

// anyValue decodes a google.protobuf.Value.
func (p *plan) anyValue(c *cursor, m protoreflect.Message) bool {
	switch c.peek() {
	case '{':
		f := p.fields["structValue"]
		return f.message.anyMembers(c, m.Mutable(f.desc).Message())
	case '[':
		f := p.fields["listValue"]
		return f.message.anyItems(c, m.Mutable(f.desc).Message())
	case '"':
		s, ok := c.text()
		m.Set(p.fields["stringValue"].desc, protoreflect.ValueOfString(s))
		return ok
	case 't', 'f':
		b, ok := c.boolean()
		m.Set(p.fields["boolValue"].desc, protoreflect.ValueOfBool(b))
		return ok
	case 'n':
		m.Set(p.fields["nullValue"].desc, protoreflect.ValueOfEnum(0))
		return c.literal("null")
	}
	n, err := strconv.ParseFloat(string(c.number()), 64)
	m.Set(p.fields["numberValue"].desc, protoreflect.ValueOfFloat64(n))
	return err == nil
}

// cursor walks JSON. Its methods read one thing each, with the white space after
// it, and report false for anything else; after that the position is of no use.
type cursor struct {
	data []byte
	pos  int
}

func (c *cursor) space() {
	for c.pos < len(c.data) && (c.data[c.pos] == ' ' || c.data[c.pos] == '\n' || c.data[c.pos] == '\t' || c.data[c.pos] == '\r') {
		c.pos++
	}
}

func (c *cursor) atEnd() bool { return c.pos == len(c.data) }

func (c *cursor) peek() byte {
	if c.pos < len(c.data) {
		return c.data[c.pos]
	}
	return 0
}

func (c *cursor) accept(b byte) bool {
	if c.peek() != b {
		return false
	}
	c.pos++
	c.space()
	return true
}

// members reads an object, calling visit in front of each value.
func (c *cursor) members(visit func(name []byte) bool) bool {
	if !c.accept('{') {
		return false
	}
	if c.accept('}') {
		return true
	}
	for {
		name, plain, ok := c.quoted()
		if !ok {
			return false
		}
		if !plain {
			s, ok := unquote(name)
			if !ok {
				return false
			}
			name = []byte(s)
		} else {
			name = name[1 : len(name)-1]
		}
		if !c.accept(':') || !visit(name) {
			return false
		}
		if c.accept('}') {
			return true
		}
		if !c.accept(',') {
			return false
		}
	}
}

// items reads a list, calling visit in front of each value.
func (c *cursor) items(visit func() bool) bool {
	if !c.accept('[') {
		return false
	}
	if c.accept(']') {
		return true
	}
	for {
		if !visit() {
			return false
		}
		if c.accept(']') {
			return true
		}
		if !c.accept(',') {
			return false
		}
	}
}

// quoted reads a string as it stands, quotes included; plain means that it has
// neither escapes nor anything beyond ASCII.
func (c *cursor) quoted() (text []byte, plain, ok bool) {
	if c.peek() != '"' {
		return nil, false, false
	}
	start := c.pos
	plain = true
	for i := start + 1; i < len(c.data); i++ {
		switch b := c.data[i]; {
		case b == '"':
			c.pos = i + 1
			c.space()
			return c.data[start : i+1], plain, true
		case b == '\\':
			plain = false
			i++
		case b < 0x20:
			return nil, false, false
		case b >= utf8.RuneSelf:
			plain = false
		}
	}
	return nil, false, false
}

func (c *cursor) text() (string, bool) {
	text, plain, ok := c.quoted()
	if !ok {
		return "", false
	}
	if plain {
		return string(text[1 : len(text)-1]), true
	}
	return unquote(text)
}

func unquote(text []byte) (string, bool) {
	var s string
	err := json.Unmarshal(text, &s)
	return s, err == nil
}

func (c *cursor) literal(word string) bool {
	if len(c.data)-c.pos < len(word) || string(c.data[c.pos:c.pos+len(word)]) != word {
		return false
	}
	c.pos += len(word)
	c.space()
	return true
}

func (c *cursor) boolean() (value, ok bool) {
	if c.literal("true") {
		return true, true
	}
	return false, c.literal("false")
}

// number reads the characters of a number, if there are any.
func (c *cursor) number() []byte {
	start := c.pos
	for c.pos < len(c.data) {
		switch b := c.data[c.pos]; {
		case b >= '0' && b <= '9', b == '-', b == '+', b == '.', b == 'e', b == 'E':
			c.pos++
			continue
		}
		break
	}
	text := c.data[start:c.pos]
	c.space()
	return text
}

// skip reads any value.
func (c *cursor) skip() bool {
	switch c.peek() {
	case '{':
		return c.members(func([]byte) bool { return c.skip() })
	case '[':
		return c.items(c.skip)
	case '"':
		_, _, ok := c.quoted()
		return ok
	case 't', 'f':
		_, ok := c.boolean()
		return ok
	case 'n':
		return c.literal("null")
	}
	return len(c.number()) > 0
}
