package logical

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"k8s.io/apiserver/pkg/storage/value"
)

// Between etcd and the codec an object's bytes travel in an envelope that says where
// in etcd they belong: a decoder sees no key, and an object must know its virtual
// cluster. On the way in the envelope is made of the key; on the way out of the
// object, and it must fit the key, so that no mistake above can write into another
// virtual cluster. What is stored has no envelope.
//
//	byte kind | uvarint length | path | payload

type envelopeKind byte

const (
	intact envelopeKind = iota + 1
	// corrupt marks bytes that cannot be decoded; the payload is the reason. It is
	// never stored.
	corrupt
)

// ErrCorrupt is to be wrapped by the errors of a Transformer that mean that one
// stored value is broken for good. Such an object is quarantined; any other error
// fails the request, and is retried by the watch cache.
var ErrCorrupt = errors.New("the stored value is corrupt")

func appendEnvelope(dst []byte, kind envelopeKind, path string) []byte {
	dst = append(dst, byte(kind))
	dst = binary.AppendUvarint(dst, uint64(len(path)))
	return append(dst, path...)
}

func openEnvelope(data []byte) (kind envelopeKind, path, payload []byte, err error) {
	if len(data) == 0 {
		return 0, nil, nil, errors.New("not an envelope: empty")
	}
	kind = envelopeKind(data[0])
	if kind != intact && kind != corrupt {
		return 0, nil, nil, fmt.Errorf("not an envelope: it starts with byte %#x", data[0])
	}
	length, n := binary.Uvarint(data[1:])
	if n <= 0 || length > uint64(len(data)-1-n) {
		return 0, nil, nil, errors.New("not an envelope: its path is longer than it is")
	}
	rest := data[1+n:]
	return kind, rest[:length], rest[length:], nil
}

// transformer puts on and takes off envelopes, outside of an encryption.
type transformer struct {
	prefix []byte // of the resource in etcd, with a slash at its end
	inner  value.Transformer
}

var _ value.Transformer = (*transformer)(nil)

func (t *transformer) path(dataCtx value.Context) ([]byte, error) {
	path, ok := bytes.CutPrefix(dataCtx.AuthenticatedData(), t.prefix)
	if !ok {
		return nil, fmt.Errorf("key %q is not below %s", dataCtx.AuthenticatedData(), t.prefix)
	}
	return path, nil
}

// TransformFromStorage implements value.Transformer.
func (t *transformer) TransformFromStorage(ctx context.Context, data []byte, dataCtx value.Context) ([]byte, bool, error) {
	path, err := t.path(dataCtx)
	if err != nil {
		return nil, false, err
	}
	kind, stale := intact, false
	encrypted := bytes.HasPrefix(data, encryptedPrefix)
	if encrypted || t.inner != nil {
		if t.inner != nil {
			data, stale, err = t.inner.TransformFromStorage(ctx, data, dataCtx)
		} else {
			err = errNoKey
		}
		if err == nil && encrypted {
			data, err = unbind(data, dataCtx.AuthenticatedData())
		}
		if errors.Is(err, ErrCorrupt) {
			kind, data, err = corrupt, []byte(err.Error()), nil
		}
		if err != nil {
			return nil, false, err
		}
	}
	out := make([]byte, 0, 1+binary.MaxVarintLen16+len(path)+len(data))
	out = append(out, byte(kind))
	out = binary.AppendUvarint(out, uint64(len(path)))
	out = append(out, path...)
	return append(out, data...), stale, nil
}

// TransformToStorage implements value.Transformer. It refuses what would land
// under a key that is not the object's.
func (t *transformer) TransformToStorage(ctx context.Context, data []byte, dataCtx value.Context) ([]byte, error) {
	want, err := t.path(dataCtx)
	if err != nil {
		return nil, err
	}
	kind, path, payload, err := openEnvelope(data)
	switch {
	case err != nil:
		return nil, err
	case kind != intact:
		return nil, fmt.Errorf("%s is quarantined: replace or delete the object", path)
	case !bytes.Equal(path, want):
		return nil, fmt.Errorf("an object of %q was about to be written to %q", path, want)
	case t.inner == nil:
		return payload, nil
	}
	return t.encrypt(ctx, payload, dataCtx)
}

// encryptedPrefix is how the stored bytes of all of upstream's encryptions begin.
var encryptedPrefix = []byte("k8s:enc:")

var errNoKey = fmt.Errorf("%w: it is encrypted, and the server has no encryption configuration", ErrCorrupt)

// boundMark begins what is inside an encrypted value. The key of the value follows, a
// zero byte, and the object. Not all of upstream's encryptions bind a value to its key
// (secretbox does not), and one that was copied to another virtual cluster's key must
// not be taken for that virtual cluster's.
var boundMark = []byte("vmesh:")

// encrypt makes the stored bytes. A resource that is not encrypted gets them as they are.
func (t *transformer) encrypt(ctx context.Context, payload []byte, dataCtx value.Context) ([]byte, error) {
	key := dataCtx.AuthenticatedData()
	bound := make([]byte, 0, len(boundMark)+len(key)+1+len(payload))
	bound = append(append(bound, boundMark...), key...)
	bound = append(append(bound, 0), payload...)
	out, err := t.inner.TransformToStorage(ctx, bound, dataCtx)
	if err != nil || bytes.HasPrefix(out, encryptedPrefix) {
		return out, err
	}
	return t.inner.TransformToStorage(ctx, payload, dataCtx)
}

// unbind takes out what encrypt put in, and holds it against the key.
func unbind(bound, key []byte) ([]byte, error) {
	rest, ok := bytes.CutPrefix(bound, boundMark)
	of, payload, found := bytes.Cut(rest, []byte{0})
	switch {
	case !ok || !found:
		return nil, fmt.Errorf("%w: it was encrypted by another program", ErrCorrupt)
	case !bytes.Equal(of, key):
		return nil, fmt.Errorf("%w: it was encrypted for another key of etcd, and copied to this one", ErrCorrupt)
	}
	return payload, nil
}

// lossyPath makes a virtual cluster and a name of a path that is not in the layout,
// so that what lies there can be shown.
func lossyPath(path string) (cluster, name string) {
	cluster, name, _ = strings.Cut(path, "/")
	return cluster, name
}
