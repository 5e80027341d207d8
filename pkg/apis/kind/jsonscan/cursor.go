// Package jsonscan walks JSON text without making a tree of it, for decoders that
// know what they are looking for. It takes a little less than JSON allows and never
// more: who gets a refusal decodes again with a decoder that explains.
package jsonscan

import (
	"encoding/json"
	"unicode/utf8"
)

// maxDepth is how deep the text may be nested. Deeper text is refused, so that a
// hostile body cannot use up the stack.
const maxDepth = 500

// Cursor is a position in JSON text. Its methods read one thing each, with the
// white space after it, and report false when something else is there; after that
// the position is of no use.
type Cursor struct {
	data  []byte
	pos   int
	depth int
}

// New returns a cursor at the first value of data, which must not change until the
// cursor is done with.
func New(data []byte) *Cursor {
	c := &Cursor{data: data}
	c.space()
	return c
}

// AtEnd tells whether everything has been read.
func (c *Cursor) AtEnd() bool { return c.pos == len(c.data) }

// Peek is the next byte, 0 at the end.
func (c *Cursor) Peek() byte {
	if c.pos < len(c.data) {
		return c.data[c.pos]
	}
	return 0
}

// Members reads an object and calls visit in front of each value, which visit must
// read. The name is valid only during the call.
func (c *Cursor) Members(visit func(name []byte) bool) bool {
	if !c.open('{') {
		return false
	}
	if c.close('}') {
		return true
	}
	for {
		name, plain, ok := c.quoted()
		if !ok {
			return false
		}
		if plain {
			name = name[1 : len(name)-1]
		} else {
			s, ok := unquote(name)
			if !ok {
				return false
			}
			name = []byte(s)
		}
		if !c.accept(':') || !visit(name) {
			return false
		}
		if c.close('}') {
			return true
		}
		if !c.accept(',') {
			return false
		}
	}
}

// Items reads a list and calls visit in front of each value, which visit must read.
func (c *Cursor) Items(visit func() bool) bool {
	if !c.open('[') {
		return false
	}
	if c.close(']') {
		return true
	}
	for {
		if !visit() {
			return false
		}
		if c.close(']') {
			return true
		}
		if !c.accept(',') {
			return false
		}
	}
}

// Text reads a string.
func (c *Cursor) Text() (string, bool) {
	text, plain, ok := c.quoted()
	if !ok {
		return "", false
	}
	if plain {
		return string(text[1 : len(text)-1]), true
	}
	return unquote(text)
}

// Boolean reads true or false.
func (c *Cursor) Boolean() (value, ok bool) {
	if c.literal("true") {
		return true, true
	}
	return false, c.literal("false")
}

// Null reads null.
func (c *Cursor) Null() bool { return c.literal("null") }

// Number reads a number as it stands, and tells whether it is written as an
// integer. It returns nil when there is none.
func (c *Cursor) Number() (text []byte, integer bool) {
	start := c.pos
	i := start
	digits := func() bool {
		first := i
		for i < len(c.data) && c.data[i] >= '0' && c.data[i] <= '9' {
			i++
		}
		return i > first
	}
	at := func(choices ...byte) bool {
		for _, b := range choices {
			if i < len(c.data) && c.data[i] == b {
				i++
				return true
			}
		}
		return false
	}
	at('-')
	if !at('0') && !digits() {
		return nil, false
	}
	integer = true
	if at('.') {
		integer = false
		if !digits() {
			return nil, false
		}
	}
	if at('e', 'E') {
		integer = false
		at('+', '-')
		if !digits() {
			return nil, false
		}
	}
	c.pos = i
	c.space()
	return c.data[start:i], integer
}

// Raw reads any value as it stands.
func (c *Cursor) Raw() ([]byte, bool) {
	start := c.pos
	if !c.Skip() {
		return nil, false
	}
	return c.data[start:c.pos], true
}

// Skip reads any value.
func (c *Cursor) Skip() bool {
	switch c.Peek() {
	case '{':
		return c.Members(func([]byte) bool { return c.Skip() })
	case '[':
		return c.Items(c.Skip)
	case '"':
		_, _, ok := c.quoted()
		return ok
	case 't', 'f':
		_, ok := c.Boolean()
		return ok
	case 'n':
		return c.Null()
	}
	text, _ := c.Number()
	return text != nil
}

func (c *Cursor) space() {
	for c.pos < len(c.data) && (c.data[c.pos] == ' ' || c.data[c.pos] == '\n' || c.data[c.pos] == '\t' || c.data[c.pos] == '\r') {
		c.pos++
	}
}

func (c *Cursor) open(bracket byte) bool {
	c.depth++
	return c.depth <= maxDepth && c.accept(bracket)
}

func (c *Cursor) close(bracket byte) bool {
	if !c.accept(bracket) {
		return false
	}
	c.depth--
	return true
}

func (c *Cursor) accept(b byte) bool {
	if c.Peek() != b {
		return false
	}
	c.pos++
	c.space()
	return true
}

func (c *Cursor) literal(word string) bool {
	if len(c.data)-c.pos < len(word) || string(c.data[c.pos:c.pos+len(word)]) != word {
		return false
	}
	c.pos += len(word)
	c.space()
	return true
}

// quoted reads a string as it stands, quotes included; plain means that it has
// neither escapes nor anything beyond ASCII.
func (c *Cursor) quoted() (text []byte, plain, ok bool) {
	if c.Peek() != '"' {
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

func unquote(text []byte) (string, bool) {
	var s string
	err := json.Unmarshal(text, &s)
	return s, err == nil
}
