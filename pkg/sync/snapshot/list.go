package snapshot

import (
	"encoding/binary"
	"iter"
	"math/bits"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/mem"
)

// A chunk is rebuilt as a whole when one of its entries changes, and is sent as a
// whole: its size is a compromise between the two.
const (
	chunkEntries = 16
	chunkBytes   = 16 << 10
)

// List is one kind's part of a snapshot: its resources sorted by name, with a
// version that follows from their content alone. A List never changes; lists of
// neighbouring snapshots share all chunks in which nothing changed.
type List struct {
	chunks  []*chunk
	entries int
	bytes   int
	sum     sum
	version string
	changed time.Time
}

// chunk is a run of neighbouring entries. data is what a DiscoveryResponse holds of
// them, byte for byte; it is the only place where they are.
type chunk struct {
	data    []byte
	buffer  mem.Buffer // data again, boxed once for all responses
	entries []entry
}

// Entry is one resource of a List.
type Entry struct {
	chunk *chunk
	at    int
}

// Empty is a list without resources.
var Empty = &List{version: sum{}.String()}

// Len is the number of resources.
func (l *List) Len() int { return l.entries }

// Bytes is the size of all resources in a response.
func (l *List) Bytes() int { return l.bytes }

// Version is equal for lists of equal content, whatever their history.
func (l *List) Version() string { return l.version }

// Changed is when the first of the changes that led from the list before to this
// one was observed.
func (l *List) Changed() time.Time { return l.changed }

// AppendBuffers appends the `resources` of a DiscoveryResponse. The buffers are
// shared by everybody and are never freed.
func (l *List) AppendBuffers(dst mem.BufferSlice) mem.BufferSlice {
	dst = slices.Grow(dst, len(l.chunks))
	for _, c := range l.chunks {
		dst = append(dst, c.buffer)
	}
	return dst
}

// Get finds a resource by its name, namespace/name.
func (l *List) Get(name string) (Entry, bool) {
	i, found := slices.BinarySearchFunc(l.chunks, name, func(c *chunk, name string) int {
		return strings.Compare(c.name(len(c.entries)-1), name)
	})
	if i == len(l.chunks) {
		return Entry{}, false
	}
	c := l.chunks[i]
	if found {
		return Entry{c, len(c.entries) - 1}, true
	}
	at, found := c.find(name)
	return Entry{c, at}, found
}

// All are the resources in the order of their names.
func (l *List) All() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for _, c := range l.chunks {
			for i := range c.entries {
				if !yield(Entry{c, i}) {
					return
				}
			}
		}
	}
}

// below are the resources of a namespace, in the order of their names.
func (l *List) below(namespace string) iter.Seq[Entry] {
	prefix := namespace + "/"
	return func(yield func(Entry) bool) {
		if len(l.chunks) == 0 {
			return
		}
		from := l.chunkFor(0, prefix)
		for i, c := range l.chunks[from:] {
			at := 0
			if i == 0 {
				at, _ = c.find(prefix)
			}
			for ; at < len(c.entries); at++ {
				if e := (Entry{c, at}); !strings.HasPrefix(e.Name(), prefix) || !yield(e) {
					return
				}
			}
		}
	}
}

// Name is the resource's name, namespace/name. It is valid for as long as it is
// kept, and keeps the list's memory alive: clone it to keep it.
func (e Entry) Name() string { return e.chunk.name(e.at) }

// Version is the hash of all that a control plane reads of the resource.
func (e Entry) Version() string { return e.chunk.entries[e.at].sum.String() }

// Same says whether a control plane reads the same of both: their versions are equal.
func (e Entry) Same(other Entry) bool {
	return e.chunk.entries[e.at].sum == other.chunk.entries[other.at].sum
}

// Resource is the marshalled google.protobuf.Any of the resource. It is shared and
// must not be modified.
func (e Entry) Resource() []byte {
	x := e.chunk.entries[e.at]
	return e.chunk.data[x.body:x.end:x.end]
}

// Diff calls changed for each resource of l that old lacks or has in another
// version, and removed for each that only old has, in the order of their names.
// What the lists share is skipped unread. A nil old list is empty.
func (l *List) Diff(old *List, changed func(Entry), removed func(name string)) {
	l.diff(old, func(a, b *entry) bool { return a.sum == b.sum }, changed, removed)
}

func (l *List) diff(old *List, same func(a, b *entry) bool, changed func(Entry), removed func(name string)) {
	if old == nil {
		old = Empty
	}
	a, b := cursor{chunks: old.chunks}, cursor{chunks: l.chunks}
	for {
		switch {
		case a.done() && b.done():
			return
		case a.at == 0 && b.at == 0 && !a.done() && !b.done() && a.chunks[0] == b.chunks[0]:
			a.chunks, b.chunks = a.chunks[1:], b.chunks[1:]
			continue
		}
		order := 0
		switch {
		case a.done():
			order = 1
		case b.done():
			order = -1
		default:
			order = strings.Compare(a.entry().Name(), b.entry().Name())
		}
		if order < 0 {
			removed(a.entry().Name())
			a.next()
			continue
		}
		if e := b.entry(); order > 0 || !same(&a.chunks[0].entries[a.at], &e.chunk.entries[e.at]) {
			changed(e)
		}
		if order == 0 {
			a.next()
		}
		b.next()
	}
}

type cursor struct {
	chunks []*chunk
	at     int
}

func (c *cursor) done() bool   { return len(c.chunks) == 0 }
func (c *cursor) entry() Entry { return Entry{c.chunks[0], c.at} }
func (c *cursor) next() {
	if c.at++; c.at == len(c.chunks[0].entries) {
		c.chunks, c.at = c.chunks[1:], 0
	}
}

// plus adds two numbers of 128 bits. A sum of hashes depends on the entries and not
// on their order, and follows a change without reading what did not change.
func (s sum) plus(t sum) sum {
	lo, carry := bits.Add64(binary.LittleEndian.Uint64(s[:8]), binary.LittleEndian.Uint64(t[:8]), 0)
	hi, _ := bits.Add64(binary.LittleEndian.Uint64(s[8:]), binary.LittleEndian.Uint64(t[8:]), carry)
	binary.LittleEndian.PutUint64(s[:8], lo)
	binary.LittleEndian.PutUint64(s[8:], hi)
	return s
}

func (s sum) minus(t sum) sum {
	lo, borrow := bits.Sub64(binary.LittleEndian.Uint64(s[:8]), binary.LittleEndian.Uint64(t[:8]), 0)
	hi, _ := bits.Sub64(binary.LittleEndian.Uint64(s[8:]), binary.LittleEndian.Uint64(t[8:]), borrow)
	binary.LittleEndian.PutUint64(s[:8], lo)
	binary.LittleEndian.PutUint64(s[8:], hi)
	return s
}
