package snapshot

import (
	"encoding/base64"
	"fmt"
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Update is what becomes of one resource of a list that somebody else has built.
type Update struct{ change }

// Name is the resource's name, namespace/name.
func (u Update) Name() string { return u.key }

// Received is an update that sets a resource to what a server has marshalled: a
// google.protobuf.Any, as Entry.Resource has it. Its content is not decoded, but the
// name and the version in it must be those that are given. The bytes are copied.
func Received(name, version string, resource []byte) (Update, error) {
	bad := func(format string, args ...any) (Update, error) {
		return Update{}, fmt.Errorf("resource %q: %s", name, fmt.Sprintf(format, args...))
	}
	if len(name) == 0 || len(name) > math.MaxUint16 {
		return bad("its name has %d bytes, from 1 to %d are possible", len(name), math.MaxUint16)
	}
	if len(resource) > math.MaxInt32 {
		return bad("it has %d bytes, which is too much", len(resource))
	}
	r := rendered{key: strings.Clone(name)}
	if err := r.sum.parse(version); err != nil {
		return bad("%v", err)
	}
	typeURL, value, err := anyOf(resource)
	if err != nil {
		return bad("%v", err)
	}
	if string(typeURL) != resourceType {
		return bad("it is a %q and no %s", typeURL, resourceType)
	}
	metadata, err := fieldOf(value, resourceMetadata)
	if err != nil {
		return bad("%v", err)
	}
	inside, err := fieldOf(metadata, metadataName)
	if err != nil {
		return bad("%v", err)
	}
	if string(inside) != name {
		return bad("inside it is named %q", inside)
	}
	if inside, err := fieldOf(metadata, metadataVersion); err != nil || string(inside) != version {
		return bad("inside it has version %q, and not %q (%v)", inside, version, err)
	}
	b := make([]byte, 0, fieldSize(len(resource)))
	b = appendHeader(b, responseResources, len(resource))
	r.body = uint32(len(b))
	// The name is a part of the resource, which lies in the memory that it ends with.
	r.name = r.body + uint32(cap(resource)-cap(inside))
	r.nameLength = uint16(len(name))
	b = append(b, resource...)
	r.end, r.data = uint32(len(b)), b
	return Update{change{key: r.key, entry: &r}}, nil
}

// Removed is an update that removes a resource.
func Removed(name string) Update { return Update{change{key: strings.Clone(name)}} }

// With is the list after some updates, of which the last to a name counts. observed is when
// they came. It is the list itself when they change nothing.
func (l *List) With(updates []Update, observed time.Time) *List {
	changes := make([]change, 0, len(updates))
	at := make(map[string]int, len(updates))
	for _, u := range updates {
		if i, again := at[u.key]; again {
			changes[i] = u.change
			continue
		}
		at[u.key] = len(changes)
		changes = append(changes, u.change)
	}
	return l.apply(changes, observed)
}

// VersionOf is the version that one list would have that holds what all of some lists do,
// of which no two hold the same name.
func VersionOf(lists ...*List) string {
	var total sum
	for _, l := range lists {
		total = total.plus(l.sum)
	}
	return total.String()
}

// parse reads what String has written. The rest of the sum, which nobody outside has seen, is zero:
// it takes no part in the versions of lists.
func (s *sum) parse(version string) error {
	if len(version) != versionLength {
		return fmt.Errorf("its version %q has not %d characters", version, versionLength)
	}
	var digits [versionLength * 6 / 8]byte
	if _, err := base64.RawURLEncoding.Strict().Decode(digits[:], []byte(version)); err != nil {
		return fmt.Errorf("its version %q is not base64: %v", version, err)
	}
	*s = sum{}
	copy(s[:], digits[:])
	return nil
}

// anyOf takes a google.protobuf.Any apart.
func anyOf(b []byte) (typeURL, value []byte, err error) {
	if typeURL, err = fieldOf(b, anyTypeURL); err != nil {
		return nil, nil, err
	}
	value, err = fieldOf(b, anyValue)
	return typeURL, value, err
}

// fieldOf is the one field of a number in a message, which must be a string or message,
// in the message's own memory.
func fieldOf(b []byte, number protowire.Number) (value []byte, err error) {
	found := false
	for len(b) > 0 {
		num, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		b = b[n:]
		if num != number || kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, kind, b); n < 0 {
				return nil, protowire.ParseError(n)
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		if found {
			return nil, fmt.Errorf("field %d occurs twice", number)
		}
		value, found, b = v, true, b[n:]
	}
	if !found {
		return nil, fmt.Errorf("field %d is missing", number)
	}
	return value, nil
}
