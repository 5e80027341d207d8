package relay

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"
)

// written is a cache file of some groups, with what it holds at the end of each.
func written(t testing.TB, groups int) (file []byte, ends []int, contents [][]map[string]string) {
	t.Helper()
	return writtenAfter(t, 40, groups)
}

// writtenAfter is written, with so many changes before the first group.
func writtenAfter(t testing.TB, changes, groups int) (file []byte, ends []int, contents [][]map[string]string) {
	t.Helper()
	kinds := meshKinds()
	rnd := rand.New(rand.NewPCG(7, 7))
	m, s := newModel(t, len(kinds)), emptyState(3, len(kinds))
	for range changes {
		s, _ = s.with(m.step(rnd, kinds), time.Now())
	}
	var out bytes.Buffer
	w, err := writeCache(&out, "east", kinds, s, time.Unix(1000, 0))
	if err != nil {
		t.Fatal(err)
	}
	ends, contents = append(ends, out.Len()), append(contents, content(t, s))
	for i := range groups {
		w.synced = int64(out.Len())
		next, err := s.with(m.step(rnd, kinds), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := w.group(kinds, s, next, time.Unix(int64(1001+i), 0)); err != nil {
			t.Fatal(err)
		}
		s = next
		ends, contents = append(ends, out.Len()), append(contents, content(t, s))
	}
	return out.Bytes(), ends, contents
}

func TestACacheIsReadAsItWasWritten(t *testing.T) {
	file, ends, contents := written(t, 20)
	for _, shards := range []int{1, 3, 8} {
		c, err := readCache(file, "east", meshKinds(), shards)
		if err != nil {
			t.Fatal(err)
		}
		if got := content(t, c.state); !reflect.DeepEqual(got, contents[20]) || c.size != int64(ends[20]) || !c.at.Equal(time.Unix(1020, 0)) {
			t.Errorf("over %d shards it reads %v as of %s", shards, got, c.at)
		}
	}
}

// However much of a file was written, it holds what the last commit in it says, or is refused.
func TestACacheThatEndsEarlyIsCutBackToWhatIsWhole(t *testing.T) {
	file, ends, contents := written(t, 6)
	for size := range len(file) {
		c, err := readCache(file[:size], "east", meshKinds(), 2)
		if size < ends[0] {
			if err == nil {
				t.Fatalf("%d bytes, less than the first whole state, were taken for one", size)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		group := 0
		for group+1 < len(ends) && ends[group+1] <= size {
			group++
		}
		if c.size != int64(ends[group]) || !reflect.DeepEqual(content(t, c.state), contents[group]) {
			t.Fatalf("%d bytes were read as %d, want the state at %d", size, c.size, ends[group])
		}
	}
}

func TestACacheIsRefused(t *testing.T) {
	file, ends, _ := written(t, 6)
	with := func(change func(b []byte) []byte) []byte { return change(bytes.Clone(file)) }
	for _, tt := range []struct {
		name string
		file []byte
		want error
	}{
		{"that is empty", nil, errCacheCut},
		{"that is something else", []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: foreign}\n"), errNotCache},
		{"of a format to come", with(func(b []byte) []byte {
			var out bytes.Buffer
			w := newCacheWriter(&out)
			_ = errors.Join(w.write([]byte(cacheMagic)), w.record(recordHeader, appendString([]byte{cacheFormat + 1}, "east")))
			return out.Bytes()
		}), errCacheFormat},
		{"with a bit turned in the first state", with(func(b []byte) []byte { b[ends[0]/2] ^= 4; return b }), errCacheDamaged},
		{"with a bit turned in what was on the disk", with(func(b []byte) []byte { b[ends[1]+20] ^= 1; return b }), errCacheDamaged},
		{"that lacks a piece in the middle", with(func(b []byte) []byte { return append(b[:ends[1]], b[ends[2]:]...) }), errCacheDamaged},
		{"whose pieces are in another order", with(func(b []byte) []byte {
			return bytes.Join([][]byte{file[:ends[1]], file[ends[2]:ends[3]], file[ends[1]:ends[2]], file[ends[3]:]}, nil)
		}), errCacheDamaged},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := readCache(tt.file, "east", meshKinds(), 2); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
	if _, err := readCache(file, "west", meshKinds(), 2); !errors.Is(err, errForeignCache) || !strings.Contains(err.Error(), `"east"`) {
		t.Errorf("another mesh's: got %v", err)
	}
	if _, err := readCache(file, "east", meshKinds()[1:], 2); !errors.Is(err, errUnknownKind) {
		t.Errorf("of a kind that is not known: got %v", err)
	}
	_, err := readCache(func() []byte {
		var out bytes.Buffer
		kinds := meshKinds()[1:]
		_, err := writeCache(&out, "east", kinds, emptyState(1, len(kinds)), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}(), "east", meshKinds(), 2)
	if !errors.Is(err, errUnknownKind) {
		t.Errorf("without a kind: got %v", err)
	}
}

// A machine that dies may have written the last second in any order: what is not known to
// have been on the disk may be unreadable.
func TestWhatWasNotOnTheDiskYetMayBeUnreadable(t *testing.T) {
	kinds := meshKinds()
	m, s := newModel(t, len(kinds)), emptyState(1, len(kinds))
	rnd := rand.New(rand.NewPCG(1, 2))
	var out bytes.Buffer
	w, err := writeCache(&out, "east", kinds, s, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	w.synced = int64(out.Len())
	ends := []int{out.Len()}
	for range 3 {
		next, err := s.with(m.step(rnd, kinds), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := w.group(kinds, s, next, time.Now()); err != nil {
			t.Fatal(err)
		}
		s = next
		ends = append(ends, out.Len())
	}
	file := out.Bytes()
	clear(file[ends[1] : ends[1]+10])
	c, err := readCache(file, "east", kinds, 1)
	if err != nil || c.size != int64(ends[1]) {
		t.Errorf("got %v, %v", c, err)
	}
}

func FuzzReadCache(f *testing.F) {
	file, ends, _ := writtenAfter(f, 0, 2) // small: it is made smaller again and again
	f.Add(file)
	f.Add(file[:ends[1]-3])
	f.Add([]byte(cacheMagic))
	kinds := meshKinds()
	f.Fuzz(func(t *testing.T, file []byte) {
		c, err := readCache(file, "east", kinds, 2)
		if err != nil {
			return
		}
		// What is accepted is whole, and is read the same without what was cut off.
		again, err := readCache(file[:c.size], "east", kinds, 2)
		if err != nil || again.size != c.size {
			t.Fatalf("%d of %d bytes are good, and then are not: %v", c.size, len(file), err)
		}
		for kind := range kinds {
			if again.state.version(kind) != c.state.version(kind) {
				t.Fatalf("%s is read in two ways", kinds[kind].Name)
			}
		}
	})
}

// sealed is a file with its checksums and digests made right, so that what is in the records is looked at.
func sealed(file []byte) []byte {
	out := bytes.Clone(file)
	for at := len(cacheMagic); at+frameSize < len(out); {
		size := int64(binary.LittleEndian.Uint32(out[at:]))
		if size == 0 || size > int64(len(out)-at-frameSize) {
			break
		}
		record := out[at+frameSize : int64(at+frameSize)+size]
		if content, ok := bytes.CutPrefix(record[1:], []byte(commitMark)); ok && record[0] == recordCommit && len(content) >= sha256.Size {
			digest := sha256.Sum256(out[:at])
			copy(content, digest[:])
		}
		binary.LittleEndian.PutUint32(out[at+4:], crc32.Checksum(record, castagnoli))
		at += frameSize + int(size)
	}
	return out
}

// FuzzReadSealedCache gives what no checksum holds back: as a relay of another version, or somebody who can write the
// file, would have written it.
func FuzzReadSealedCache(f *testing.F) {
	for _, changes := range []int{0, 3} {
		file, ends, _ := writtenAfter(f, changes, 2)
		if !bytes.Equal(sealed(file), file) {
			f.Fatal("a file that is right is sealed otherwise")
		}
		f.Add(file)
		f.Add(append(bytes.Clone(file[:ends[0]]), file[ends[1]:]...))
	}
	kinds := meshKinds()
	f.Fuzz(func(t *testing.T, file []byte) {
		c, err := readCache(sealed(file), "east", kinds, 3)
		if err != nil {
			return
		}
		// What is accepted is a state: it can be written, read, and spread, and stays the same.
		var out bytes.Buffer
		if _, err := writeCache(&out, "east", kinds, c.state, c.at); err != nil {
			t.Fatal(err)
		}
		again, err := readCache(out.Bytes(), "east", kinds, 1)
		if err != nil {
			t.Fatalf("what was read cannot be read when it is written: %v", err)
		}
		for kind := range kinds {
			if again.state.version(kind) != c.state.version(kind) {
				t.Fatalf("%s has version %s, and %s when it is written and read", kinds[kind].Name, c.state.version(kind), again.state.version(kind))
			}
			names := map[string]bool{}
			for _, l := range c.state.kindLists(kind) {
				for e := range l.All() {
					if names[e.Name()] {
						t.Fatalf("%s is in two shards", e.Name())
					}
					names[e.Name()] = true
				}
			}
		}
	})
}

func FuzzDecodeResponse(f *testing.F) {
	version, body := marshalled(f, "ns/a", "text")
	f.Add([]byte(version), body)
	f.Fuzz(func(t *testing.T, version, body []byte) {
		var r response
		if err := r.decode(body); err != nil {
			return
		}
		_, _ = changeOf(&r, 0, true)
		_, _ = changeOf(&response{typeURL: "x", resources: []resource{{"ns/a", string(version), body}}}, 0, false)
	})
}

func TestATurnedBitIsNeverServed(t *testing.T) {
	file, _, contents := written(t, 4)
	for i := range file {
		damaged := bytes.Clone(file)
		damaged[i] ^= 1 << (i % 8)
		c, err := readCache(damaged, "east", meshKinds(), 1)
		if err != nil {
			continue
		}
		got, known := content(t, c.state), false
		for _, want := range contents {
			known = known || reflect.DeepEqual(got, want)
		}
		if !known {
			t.Fatalf("with byte %d changed it is read as what never was", i)
		}
	}
}
