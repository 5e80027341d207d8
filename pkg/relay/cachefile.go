package relay

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"time"

	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

// The cache is a log. It begins with a header; after that come groups of records that set and
// remove resources, each group ended by a commit. Nothing counts that no commit follows. The
// first group has all there is of every kind.
//
// A record is its length (of type and content) and its CRC, four bytes each, a byte that is its
// type, and its content. A commit holds the SHA-256 of all of the file before it, how much of the
// file was known to be on the disk, and the versions of the kinds that its group touches, which
// follow from the versions of their resources.
const (
	cacheFormat = 1
	cacheMagic  = "vmesh relay cache\n"

	recordHeader byte = 'H' // format, mesh
	recordSet    byte = 'S' // type URL, then name, version and body of each resource
	recordRemove byte = 'R' // type URL, then names
	recordCommit byte = 'C' // mark, digest, time, size on disk, then type URL and version of each kind

	// commitMark lets a commit be found behind a part of the file that cannot be read.
	commitMark = "\xf1vmesh-commit\xf2"

	frameSize = 8
	// recordFull is when a record of resources is ended and another begun.
	recordFull = 256 << 10
	maxRecord  = 1 << 30
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Why a cache is refused. It is never repaired by guessing: a relay without one waits for vmesh.
var (
	errNoCache      = errors.New("there is no cache")
	errNotCache     = errors.New("it is not a relay's cache")
	errCacheFormat  = errors.New("it was written by another version of the relay, in a format that is not known here")
	errForeignCache = errors.New("it is of another mesh")
	errCacheCut     = errors.New("it ends before it is whole")
	errCacheDamaged = errors.New("it is damaged")
)

// cacheWriter writes records.
type cacheWriter struct {
	out    io.Writer
	digest hash.Hash
	size   int64
	synced int64 // how much of it is on the disk
}

func newCacheWriter(out io.Writer) *cacheWriter { return &cacheWriter{out: out, digest: sha256.New()} }

func (w *cacheWriter) write(b []byte) error {
	w.digest.Write(b)
	n, err := w.out.Write(b)
	w.size += int64(n)
	return err
}

func (w *cacheWriter) record(kind byte, content []byte) error {
	b := make([]byte, frameSize+1, frameSize+1+len(content))
	binary.LittleEndian.PutUint32(b, uint32(1+len(content)))
	b[frameSize] = kind
	b = append(b, content...)
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b[frameSize:], castagnoli))
	return w.write(b)
}

func (w *cacheWriter) header(mesh string) error {
	if err := w.write([]byte(cacheMagic)); err != nil {
		return err
	}
	return w.record(recordHeader, appendString(binary.AppendUvarint(nil, cacheFormat), mesh))
}

// group writes what leads from one state to another, and commits it as of a time at which it
// was known to be vmesh's. Without a state before it writes all there is.
func (w *cacheWriter) group(kinds []snapshot.Kind, before, after *state, at time.Time) error {
	var touched []int
	for kind := range kinds {
		changed, err := w.kind(kinds[kind].TypeURL, kind, before, after)
		if err != nil {
			return err
		}
		if changed || before == nil {
			touched = append(touched, kind)
		}
	}
	content := append([]byte(commitMark), w.digest.Sum(nil)...)
	content = binary.AppendVarint(content, at.UnixNano())
	content = binary.AppendUvarint(content, uint64(w.synced))
	for _, kind := range touched {
		content = appendString(content, kinds[kind].TypeURL)
		content = appendString(content, after.version(kind))
	}
	return w.record(recordCommit, content)
}

func (w *cacheWriter) kind(typeURL string, kind int, before, after *state) (changed bool, err error) {
	set := appendString(nil, typeURL)
	remove := bytes.Clone(set)
	empty := len(set)
	flush := func(record byte, content *[]byte, limit int) {
		if err == nil && len(*content) > limit {
			err = w.record(record, *content)
			*content = (*content)[:empty]
		}
	}
	for i := range after.shards {
		old := snapshot.Empty
		if before != nil {
			if old = before.shards[i][kind]; old == after.shards[i][kind] {
				continue
			}
		}
		after.shards[i][kind].Diff(old, func(e snapshot.Entry) {
			changed = true
			set = appendString(set, e.Name())
			set = appendString(set, e.Version())
			set = appendString(set, string(e.Resource()))
			flush(recordSet, &set, recordFull)
		}, func(name string) {
			changed = true
			remove = appendString(remove, name)
			flush(recordRemove, &remove, recordFull)
		})
	}
	flush(recordSet, &set, empty)
	flush(recordRemove, &remove, empty)
	return changed, err
}

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// cached is what a cache file holds.
type cached struct {
	state *state
	// at is when the state was last known to be vmesh's.
	at time.Time
	// size is how much of the file that is: behind it lies what was being written at the end.
	size int64
	// digest is the hash of that much.
	digest hash.Hash
}

// readCache reads a cache file of a mesh whole, and spreads what it holds over shards.
func readCache(file []byte, mesh string, kinds []snapshot.Kind, shards int) (*cached, error) {
	rest, ok := bytes.CutPrefix(file, []byte(cacheMagic))
	if !ok {
		if len(file) < len(cacheMagic) && bytes.HasPrefix([]byte(cacheMagic), file) {
			return nil, errCacheCut
		}
		return nil, errNotCache
	}
	r := cacheReader{file: file, rest: rest}
	kind, content, err := r.record()
	switch {
	case err != nil:
		return nil, err
	case kind != recordHeader:
		return nil, fmt.Errorf("%w: it has no header", errCacheDamaged)
	}
	in := reader{content}
	format := in.uvarint()
	if in.bad() || format != cacheFormat {
		return nil, errCacheFormat
	}
	if of := in.string(); in.bad() || of != mesh {
		return nil, fmt.Errorf("%w, %q, and not of %q", errForeignCache, of, mesh)
	}

	index := map[string]int{}
	for i, k := range kinds {
		index[k.TypeURL] = i
	}
	c := &cached{state: emptyState(shards, len(kinds))}
	digest := sha256.New()
	whole := false
	group := newCacheGroup(index)
	for {
		start := r.offset()
		kind, content, err := r.record()
		if err == nil && kind == recordCommit {
			digest.Write(file[c.size:start])
			if err = group.commit(c, content, digest.Sum(nil), whole); err == nil {
				digest.Write(file[start:r.offset()])
				c.size, c.digest, whole = int64(r.offset()), digest, true
				group = newCacheGroup(index)
				continue
			}
		} else if err == nil {
			if err = group.add(kind, content); err == nil {
				continue
			}
		}
		switch {
		case errors.Is(err, errUnknownKind), !whole:
			return nil, err
		case wasWritten(file[start:], int64(start)):
			return nil, fmt.Errorf("at byte %d: %w", start, errors.Join(errCacheDamaged, err))
		}
		// What was being written when the relay, or the machine, stopped.
		return c, nil
	}
}

// wasWritten says whether a tail that cannot be read, from its first record on, was on the disk
// once: a later commit says so. Then it is no end that was never written.
func wasWritten(tail []byte, start int64) bool {
	for at := 0; ; at++ {
		i := bytes.Index(tail[at:], []byte(commitMark))
		if i < 0 {
			return false
		}
		if at += i; at < frameSize+1 {
			continue
		}
		r := cacheReader{rest: tail[at-frameSize-1:]}
		if kind, content, err := r.record(); err == nil && kind == recordCommit && len(content) > len(commitMark)+sha256.Size {
			in := reader{content[len(commitMark)+sha256.Size:]}
			_ = in.varint()
			if synced := in.uvarint(); !in.bad() && synced > uint64(start) {
				return true
			}
		}
	}
}

var errUnknownKind = errors.New("it holds other kinds of resources than this version of the relay knows")

// cacheReader takes a file apart.
type cacheReader struct{ file, rest []byte }

func (r *cacheReader) offset() int { return len(r.file) - len(r.rest) }

func (r *cacheReader) record() (kind byte, content []byte, err error) {
	if len(r.rest) == 0 {
		return 0, nil, errCacheCut
	}
	if len(r.rest) < frameSize {
		return 0, nil, errCacheCut
	}
	size := int64(binary.LittleEndian.Uint32(r.rest))
	if size == 0 || size > maxRecord {
		return 0, nil, errCacheDamaged
	}
	if int64(len(r.rest)-frameSize) < size {
		return 0, nil, errCacheCut
	}
	record := r.rest[frameSize : frameSize+size]
	if crc32.Checksum(record, castagnoli) != binary.LittleEndian.Uint32(r.rest[4:]) {
		return 0, nil, errCacheDamaged
	}
	r.rest = r.rest[frameSize+size:]
	return record[0], record[1:], nil
}

// cacheGroup is what was read since the last commit.
type cacheGroup struct {
	index   map[string]int
	updates map[int][]snapshot.Update
}

func newCacheGroup(index map[string]int) *cacheGroup {
	return &cacheGroup{index, map[int][]snapshot.Update{}}
}

func (g *cacheGroup) add(record byte, content []byte) error {
	in := reader{content}
	typeURL := in.string()
	if in.bad() {
		return errCacheDamaged
	}
	kind, known := g.index[typeURL]
	if !known {
		return fmt.Errorf("%w: %q", errUnknownKind, typeURL)
	}
	for len(in.rest) > 0 {
		u := snapshot.Update{}
		var err error
		switch name := in.string(); record {
		case recordSet:
			version, body := in.string(), in.bytes()
			if in.bad() {
				return errCacheDamaged
			}
			u, err = snapshot.Received(name, version, body)
		case recordRemove:
			u = snapshot.Removed(name)
		default:
			err = errCacheDamaged
		}
		if err != nil || in.bad() {
			return errors.Join(errCacheDamaged, err)
		}
		g.updates[kind] = append(g.updates[kind], u)
	}
	return nil
}

func (g *cacheGroup) commit(c *cached, content, digest []byte, whole bool) error {
	content, ok := bytes.CutPrefix(content, []byte(commitMark))
	if !ok || len(content) < sha256.Size || !bytes.Equal(content[:sha256.Size], digest) {
		return fmt.Errorf("%w: what comes before a commit is not what it was written for", errCacheDamaged)
	}
	in := reader{content[sha256.Size:]}
	at := time.Unix(0, in.varint())
	_ = in.uvarint() // how much was on the disk
	if in.bad() {
		return errCacheDamaged
	}
	next, touched := c.state, 0
	for len(in.rest) > 0 {
		typeURL, version := in.string(), in.string()
		if in.bad() {
			return errCacheDamaged
		}
		kind, known := g.index[typeURL]
		if !known {
			return fmt.Errorf("%w: %q", errUnknownKind, typeURL)
		}
		var err error
		if next, err = next.with(change{kind: kind, typeURL: typeURL, updates: g.updates[kind], version: version}, at); err != nil {
			return errors.Join(errCacheDamaged, err)
		}
		delete(g.updates, kind)
		touched++
	}
	if in.bad() || len(g.updates) > 0 {
		return errCacheDamaged
	}
	if !whole && touched != len(g.index) {
		return fmt.Errorf("%w: it has %d of %d", errUnknownKind, touched, len(g.index))
	}
	c.state, c.at = next, at
	return nil
}

// reader takes a record's content apart.
type reader struct{ rest []byte }

// bad says whether something could not be read: the rest is nil then.
func (r *reader) bad() bool { return r.rest == nil }

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.rest)
	r.skip(n)
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.rest)
	r.skip(n)
	return v
}

func (r *reader) skip(n int) {
	if n <= 0 {
		r.rest = nil
		return
	}
	r.rest = r.rest[n:]
}

func (r *reader) bytes() []byte {
	size := r.uvarint()
	if r.bad() || size > uint64(len(r.rest)) {
		r.rest = nil
		return nil
	}
	b := r.rest[:size]
	r.rest = r.rest[size:]
	return b
}

func (r *reader) string() string { return string(r.bytes()) }

// writeCache writes a whole file.
func writeCache(out io.Writer, mesh string, kinds []snapshot.Kind, s *state, at time.Time) (*cacheWriter, error) {
	buffered := bufio.NewWriterSize(out, 1<<20)
	w := newCacheWriter(buffered)
	if err := w.header(mesh); err != nil {
		return nil, err
	}
	if err := errors.Join(w.group(kinds, nil, s, at), buffered.Flush()); err != nil {
		return nil, err
	}
	w.out = out
	return w, nil
}
