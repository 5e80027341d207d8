package snapshot

import (
	"crypto/sha256"
	"encoding/base64"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

const (
	typePrefix = "type.googleapis.com/"
	// resourceType is the type of the message in every entry.
	resourceType = typePrefix + "istio.mcp.v1alpha1.Resource"

	// lastApplied is kubectl's record of what it applied last. Nothing in Istio reads
	// it, it would double every entry, and it changes when nothing else does.
	lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

	versionLength = 16

	// Field numbers of google.protobuf.Any, istio.mcp.v1alpha1.Resource and
	// istio.mcp.v1alpha1.Metadata, google.protobuf.Timestamp and of map entries, and
	// of the resources in an envoy.service.discovery.v3.DiscoveryResponse.
	anyTypeURL, anyValue                                 = 1, 2
	resourceMetadata, resourceBody                       = 1, 2
	metadataName, metadataCreateTime                     = 1, 2
	metadataVersion                                      = 3
	metadataLabels, metadataAnnotations                  = 4, 5
	timestampSeconds, timestampNanos                     = 1, 2
	mapKey, mapValue                                     = 1, 2
	responseResources                   protowire.Number = 2
)

// sum is the hash of all that a control plane reads of an entry, or of all entries
// of a list.
type sum [16]byte

// String is the version that control planes see.
func (s sum) String() string {
	var text [versionLength]byte
	s.put(text[:])
	return string(text[:])
}

func (s sum) put(dst []byte) { base64.RawURLEncoding.Encode(dst, s[:versionLength*6/8]) }

// entry says where in its chunk one resource lies and what it is.
type entry struct {
	start, end uint32 // of `resources: <Any>`, tag and length included
	body       uint32 // where the Any begins, behind tag and length
	name       uint32
	nameLength uint16
	sum        sum
	cluster    string // the virtual cluster that it comes from, which no control plane sees
}

// rendered is a new entry that is on its way into a chunk, with offsets into data.
type rendered struct {
	entry
	key  string
	data []byte
}

// sameToReader says whether a control plane would read the same of two states of
// an object. It is cheap, so that writes of status and managed fields cost nothing.
func sameToReader(a, b *object.Object) bool {
	return a == b || a.CreationTimestamp.Equal(&b.CreationTimestamp) &&
		maps.Equal(a.Labels, b.Labels) &&
		sameAnnotations(a.Annotations, b.Annotations) &&
		string(a.Field("spec")) == string(b.Field("spec"))
}

func sameAnnotations(a, b map[string]string) bool {
	count := func(m map[string]string) int {
		if _, ok := m[lastApplied]; ok {
			return len(m) - 1
		}
		return len(m)
	}
	if count(a) != count(b) {
		return false
	}
	for k, v := range a {
		if k == lastApplied {
			continue
		}
		if other, ok := b[k]; !ok || other != v {
			return false
		}
	}
	return true
}

// render marshals an object. message is its spec on the wire, of the type that
// typeURL names.
//
// The version hashes everything else of the entry: the name, the labels, the
// annotations but lastApplied, the creation time (by which Istio decides between
// conflicting objects) and the message.
func render(o *object.Object, key, typeURL string, message []byte) rendered {
	metadata := make([]byte, 0, 512)
	metadata = protowire.AppendTag(metadata, metadataName, protowire.BytesType)
	metadata = protowire.AppendString(metadata, key)
	afterName := len(metadata)
	metadata = appendTime(metadata, o.CreationTimestamp.Time)
	metadata = appendMap(metadata, metadataLabels, o.Labels)
	metadata = appendMap(metadata, metadataAnnotations, o.Annotations)

	hash := sha256.New()
	hash.Write(protowire.AppendVarint(nil, uint64(len(metadata))))
	hash.Write(metadata)
	hash.Write(message)
	r := rendered{key: key}
	r.cluster = o.Cluster()
	var digest [sha256.Size]byte
	copy(r.sum[:], hash.Sum(digest[:0]))

	const versionSize = 2 + versionLength // tag, length, text
	metadataSize := len(metadata) + versionSize
	bodySize := fieldSize(len(typeURL)) + fieldSize(len(message))
	resourceSize := fieldSize(metadataSize) + fieldSize(bodySize)
	anySize := fieldSize(len(resourceType)) + fieldSize(resourceSize)

	b := make([]byte, 0, fieldSize(anySize))
	b = appendHeader(b, responseResources, anySize)
	r.body = uint32(len(b))
	b = appendHeader(b, anyTypeURL, len(resourceType))
	b = append(b, resourceType...)
	b = appendHeader(b, anyValue, resourceSize)
	b = appendHeader(b, resourceMetadata, metadataSize)
	r.name = uint32(len(b) + afterName - len(key))
	r.nameLength = uint16(len(key))
	b = append(b, metadata[:afterName]...)
	b = appendHeader(b, metadataVersion, versionLength)
	b = b[:len(b)+versionLength]
	r.sum.put(b[len(b)-versionLength:])
	b = append(b, metadata[afterName:]...)
	b = appendHeader(b, resourceBody, bodySize)
	b = appendHeader(b, anyTypeURL, len(typeURL))
	b = append(b, typeURL...)
	b = appendHeader(b, anyValue, len(message))
	b = append(b, message...)
	r.end = uint32(len(b))
	r.data = b
	return r
}

func fieldSize(n int) int { return 1 + protowire.SizeBytes(n) } // all field numbers here are below 16

func appendHeader(b []byte, field protowire.Number, size int) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendVarint(b, uint64(size))
}

func appendTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return b
	}
	var stamp [24]byte
	s := stamp[:0]
	if seconds := t.Unix(); seconds != 0 {
		s = protowire.AppendTag(s, timestampSeconds, protowire.VarintType)
		s = protowire.AppendVarint(s, uint64(seconds))
	}
	if nanos := t.Nanosecond(); nanos != 0 {
		s = protowire.AppendTag(s, timestampNanos, protowire.VarintType)
		s = protowire.AppendVarint(s, uint64(nanos))
	}
	b = appendHeader(b, metadataCreateTime, len(s))
	return append(b, s...)
}

func appendMap(b []byte, field protowire.Number, m map[string]string) []byte {
	if len(m) == 0 {
		return b
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if k == lastApplied {
			continue
		}
		v := m[k]
		b = appendHeader(b, field, fieldSize(len(k))+fieldSize(len(v)))
		b = appendHeader(b, mapKey, len(k))
		b = append(b, k...)
		b = appendHeader(b, mapValue, len(v))
		b = append(b, v...)
	}
	return b
}
