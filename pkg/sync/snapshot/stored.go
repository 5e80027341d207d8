package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// storedFormat begins an entry that is stored outside of a list.
const storedFormat = 1

// Encode is the resource in a form that List.Restore takes, also in another process.
func (e Entry) Encode() []byte {
	r := e.rendered()
	b := make([]byte, 0, 32+len(r.sum)+len(r.cluster)+len(r.data))
	b = append(b, storedFormat)
	b = append(b, r.sum[:]...)
	b = binary.AppendUvarint(b, uint64(r.body))
	b = binary.AppendUvarint(b, uint64(r.name))
	b = binary.AppendUvarint(b, uint64(len(r.key)))
	b = binary.AppendUvarint(b, uint64(len(r.cluster)))
	b = append(b, r.cluster...)
	return append(b, r.data...)
}

var errStored = errors.New("the stored entry is damaged, or of another version of vmesh")

// decode reads what Encode has made, and checks that nothing of it lies outside.
func decode(key string, b []byte) (*rendered, error) {
	r := &rendered{key: key}
	if len(b) < 1+len(r.sum) || b[0] != storedFormat {
		return nil, errStored
	}
	copy(r.sum[:], b[1:])
	b = b[1+len(r.sum):]
	var numbers [4]uint64
	for i := range numbers {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > 1<<31 {
			return nil, errStored
		}
		numbers[i], b = v, b[n:]
	}
	body, name, nameLength, cluster := numbers[0], numbers[1], numbers[2], numbers[3]
	if cluster > uint64(len(b)) {
		return nil, errStored
	}
	r.cluster, b = string(b[:cluster]), b[cluster:]
	if body > uint64(len(b)) || name+nameLength > uint64(len(b)) || string(b[name:name+nameLength]) != key {
		return nil, errStored
	}
	r.body, r.name, r.nameLength, r.end, r.data = uint32(body), uint32(name), uint16(nameLength), uint32(len(b)), b
	return r, nil
}

// Restore is the list with some of its resources in another, encoded form, and without those
// that have none. observed is the new list's Changed.
func (l *List) Restore(to map[string][]byte, observed time.Time) (*List, error) {
	changes := make([]change, 0, len(to))
	for name, stored := range to {
		c := change{key: name}
		if len(stored) > 0 {
			var err error
			if c.entry, err = decode(name, stored); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
		changes = append(changes, c)
	}
	return l.apply(changes, observed), nil
}
