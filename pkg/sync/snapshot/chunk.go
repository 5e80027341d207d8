package snapshot

import (
	"cmp"
	"slices"
	"strings"
	"time"
	"unsafe"

	"google.golang.org/grpc/mem"
)

// name is the name of an entry, in the chunk's own memory, which never changes.
func (c *chunk) name(i int) string {
	e := &c.entries[i]
	return unsafe.String(&c.data[e.name], int(e.nameLength))
}

func (c *chunk) lastName() string { return c.name(len(c.entries) - 1) }

func (c *chunk) find(name string) (at int, found bool) {
	lo, hi := 0, len(c.entries)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		switch order := strings.Compare(c.name(mid), name); {
		case order == 0:
			return mid, true
		case order < 0:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return lo, false
}

// change is what becomes of one name: a new entry, or none.
type change struct {
	key   string
	entry *rendered // nil when the resource is gone
}

// apply makes the list after changes, of which there must be one at most for each
// name. Only chunks in which something changes are made anew. It returns the list
// itself when nothing does.
func (l *List) apply(changes []change, observed time.Time) *List {
	slices.SortFunc(changes, func(a, b change) int { return cmp.Compare(a.key, b.key) })
	b := listBuilder{list: List{sum: l.sum, changed: observed, chunks: make([]*chunk, 0, len(l.chunks)+1)}}
	done := 0
	for len(changes) > 0 {
		at := l.chunkFor(done, changes[0].key)
		b.keep(l.chunks[done:at])
		if at == len(l.chunks) {
			b.merge(&chunk{}, changes)
			done, changes = at, nil
			break
		}
		c, mine := l.chunks[at], len(changes)
		if at < len(l.chunks)-1 {
			last := c.lastName()
			mine, _ = slices.BinarySearchFunc(changes, last, func(c change, last string) int {
				if c.key <= last {
					return -1
				}
				return 1
			})
		}
		b.merge(c, changes[:mine])
		done, changes = at+1, changes[mine:]
	}
	b.keep(l.chunks[done:])
	if !b.touched {
		return l
	}
	return b.finish()
}

// chunkFor is the index, at least from, of the chunk that a name belongs in: the
// first that does not end before it, or the last of all.
func (l *List) chunkFor(from int, name string) int {
	i, _ := slices.BinarySearchFunc(l.chunks[from:], name, func(c *chunk, name string) int {
		return strings.Compare(c.lastName(), name)
	})
	if i += from; i == len(l.chunks) && i > from {
		i--
	}
	return i
}

// listBuilder makes a list out of the chunks of another, from left to right.
type listBuilder struct {
	list    List
	pieces  []piece // what the next chunk begins with
	touched bool
}

// piece is an entry on its way from one chunk, or from nowhere, to another.
type piece struct {
	entry
	data []byte
}

// keep takes over neighbouring chunks as they are.
func (b *listBuilder) keep(chunks []*chunk) {
	if len(chunks) == 0 {
		return
	}
	if len(b.pieces) > 0 && small(b.pieces) {
		b.pieces = chunks[0].appendPieces(b.pieces)
		chunks = chunks[1:]
	}
	b.flush()
	b.list.chunks = append(b.list.chunks, chunks...)
}

// merge takes over a chunk with changes, all of which belong in it.
func (b *listBuilder) merge(c *chunk, changes []change) {
	changed := false
	start := len(b.pieces)
	at := 0
	for _, ch := range changes {
		to, found := c.find(ch.key)
		b.pieces = c.appendRange(b.pieces, at, to)
		at = to
		if found {
			old := c.entries[at]
			if ch.entry != nil && ch.entry.sum == old.sum && ch.entry.cluster == old.cluster {
				continue // it stays, with what follows it
			}
			at++
			b.list.sum = b.list.sum.minus(old.sum)
			changed = true
		}
		if ch.entry != nil {
			b.pieces = append(b.pieces, piece{ch.entry.entry, ch.entry.data})
			b.list.sum = b.list.sum.plus(ch.entry.sum)
			changed = true
		}
	}
	if !changed && len(c.entries) > 0 {
		b.pieces = b.pieces[:start]
		b.keep([]*chunk{c})
		return
	}
	b.touched = b.touched || changed
	b.pieces = c.appendRange(b.pieces, at, len(c.entries))
	if !small(b.pieces) {
		b.flush()
	}
}

func (b *listBuilder) flush() {
	if len(b.pieces) > 0 {
		b.list.chunks = pack(b.list.chunks, b.pieces)
		b.pieces = b.pieces[:0]
	}
}

func (b *listBuilder) finish() *List {
	if n := len(b.list.chunks); n > 0 && len(b.pieces) > 0 && small(b.pieces) {
		b.pieces = append(b.list.chunks[n-1].appendPieces(nil), b.pieces...)
		b.list.chunks = b.list.chunks[:n-1]
	}
	b.flush()
	for _, c := range b.list.chunks {
		b.list.entries += len(c.entries)
		b.list.bytes += len(c.data)
	}
	b.list.version = b.list.sum.String()
	l := b.list
	return &l
}

func (c *chunk) appendPieces(dst []piece) []piece { return c.appendRange(dst, 0, len(c.entries)) }

func (c *chunk) appendRange(dst []piece, from, to int) []piece {
	for i := from; i < to; i++ {
		e := c.entries[i]
		dst = append(dst, piece{e, c.data[e.start:e.end]})
	}
	return dst
}

// small says whether a chunk of the pieces should rather be part of its neighbour.
func small(pieces []piece) bool {
	return len(pieces) < chunkEntries/4 && size(pieces) < chunkBytes/4
}

func size(pieces []piece) (n int) {
	for _, p := range pieces {
		n += len(p.data)
	}
	return n
}

// pack appends chunks of the pieces, as few as fit. It halves what is too much, so
// that each has room for more.
func pack(dst []*chunk, pieces []piece) []*chunk {
	bytes := size(pieces)
	if len(pieces) > 1 && (len(pieces) > chunkEntries || bytes > chunkBytes) {
		half, n := 0, 0
		for half+len(pieces[n].data) <= bytes/2 && n < len(pieces)-1 {
			half += len(pieces[n].data)
			n++
		}
		n = max(n, 1)
		return pack(pack(dst, pieces[:n]), pieces[n:])
	}
	c := &chunk{data: make([]byte, 0, bytes), entries: make([]entry, 0, len(pieces))}
	for _, p := range pieces {
		e, start := p.entry, uint32(len(c.data))
		e.start, e.end = start, start+uint32(len(p.data))
		e.body, e.name = start+p.body-p.start, start+p.name-p.start
		c.data = append(c.data, p.data...)
		c.entries = append(c.entries, e)
	}
	c.buffer = mem.SliceBuffer(c.data)
	return append(dst, c)
}
