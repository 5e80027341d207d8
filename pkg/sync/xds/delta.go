package xds

import (
	"maps"
	"slices"
	"strings"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

// delta gives what changes of the resources that were subscribed to.
type delta struct{}

// deltaState is what an interest knows of its client besides the list.
type deltaState struct {
	// all is set while the client wants all resources; it has those of the interest's list.
	all bool
	// initial are the versions that the client had when it began to want all, until
	// the first response; then the interest's list takes their place.
	initial map[string]string
	// named are the resources that were asked for by name, with the version that the
	// client has, or "" for none.
	named map[string]string
	// asked are the names that must be answered, changed or not.
	asked map[string]struct{}
}

const (
	wildcard = "*"
	// maxNames bounds the names that a stream remembers of one kind.
	maxNames = 1 << 20

	// Field numbers of an envoy.service.discovery.v3.DeltaDiscoveryResponse and of its
	// Resource.
	deltaVersion   protowire.Number = 1
	deltaResources protowire.Number = 2
	deltaTypeURL   protowire.Number = 4
	deltaNonce     protowire.Number = 5
	deltaRemoved   protowire.Number = 6

	deltaResourceVersion protowire.Number = 1
	deltaResourceBody    protowire.Number = 2
	deltaResourceName    protowire.Number = 3
)

func (delta) fill(string) int { return 0 }

func (delta) name() string { return "delta" }

func (delta) receive(g grpc.ServerStream) (*request, error) {
	var r discovery.DeltaDiscoveryRequest
	if err := g.RecvMsg(&r); err != nil {
		return nil, err
	}
	return &request{
		node: r.Node, typeURL: r.TypeUrl, nonce: r.ResponseNonce, refusal: refusal(r.ErrorDetail),
		subscribe: r.ResourceNamesSubscribe, unsubscribe: r.ResourceNamesUnsubscribe, initial: r.InitialResourceVersions,
	}, nil
}

func (delta) subscribe(w *interest, r *request, isNew bool) (answer bool, err error) {
	d := &w.delta
	if isNew {
		d.named, d.asked = map[string]string{}, map[string]struct{}{}
	}
	for _, name := range r.unsubscribe {
		if name != wildcard {
			delete(d.named, name)
			delete(d.asked, name)
			continue
		}
		// What was asked for by name as well goes on from where the list is.
		for name := range d.named {
			d.named[name] = d.versionAt(w.list, name)
		}
		d.all, d.initial = false, nil
	}
	// A first request that names nothing wants all, as does one that names "*".
	if isNew && len(r.subscribe) == 0 || slices.Contains(r.subscribe, wildcard) {
		answer = true
		if !d.all {
			d.all, w.list = true, nil
			d.initial = r.initial
			for name, version := range d.named {
				if version != "" {
					d.initial = setVersion(d.initial, name, version)
				}
			}
		}
	}
	for _, name := range r.subscribe {
		if name == wildcard {
			continue
		}
		if _, known := d.named[name]; !known {
			d.named[name] = ""
			if isNew {
				d.named[name] = r.initial[name]
			}
		}
		// One that the client says it has, in this version, need not be sent again;
		// but asking again for what was asked for before is asking for it.
		if !isNew || r.initial[name] == "" {
			d.asked[name] = struct{}{}
		}
		answer = true
	}
	if len(d.named) > maxNames {
		return false, status.Error(codes.ResourceExhausted, "too many resource names")
	}
	return answer, nil
}

func setVersion(m map[string]string, name, version string) map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	if _, ok := m[name]; !ok {
		m[name] = version
	}
	return m
}

// versionAt is the version that a client that wants all has of a resource.
func (d *deltaState) versionAt(list *snapshot.List, name string) string {
	if list != nil {
		if e, ok := list.Get(name); ok {
			return e.Version()
		}
		return ""
	}
	return d.initial[name]
}

func (delta) respond(w *interest, list *snapshot.List, nonce string, must bool) *message {
	d := &w.delta
	b := newDeltaBuilder()
	if len(d.named) > 0 {
		b.names = map[string]struct{}{}
	}
	switch {
	case d.all && w.list != nil:
		list.Diff(w.list, b.add, b.remove)
	case d.all:
		b.expect(list.Len() - len(d.initial))
		for e := range list.All() {
			if version, had := d.initial[e.Name()]; !had || version != e.Version() {
				b.add(e)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(d.initial)) {
			if _, ok := list.Get(name); !ok {
				b.remove(name)
			}
		}
		d.initial = nil
	}
	for _, name := range slices.Sorted(maps.Keys(d.named)) {
		e, exists := list.Get(name)
		_, asked := d.asked[name]
		had := d.named[name]
		version := ""
		if exists {
			version = e.Version()
		}
		d.named[name] = version
		switch {
		case b.has(name):
		case exists && (asked || version != had && !d.all):
			b.add(e)
		case !exists && (asked || had != "" && !d.all):
			b.remove(name)
		}
	}
	clear(d.asked)
	if b.empty() && !must {
		return nil
	}
	return b.message(w.typeURL, list.Version(), nonce)
}

// deltaBuilder collects what a response says. The resources' bytes stay where they
// are; only what frames them is made.
type deltaBuilder struct {
	buffers mem.BufferSlice // the first is for what comes before the resources
	bytes   int
	removed []string
	names   map[string]struct{} // of all that is said, if anybody is to ask
	heads   []byte              // room for what frames the next resources
}

func newDeltaBuilder() deltaBuilder { return deltaBuilder{buffers: make(mem.BufferSlice, 1, 3)} }

// expect makes room for so many resources.
func (b *deltaBuilder) expect(n int) { b.buffers = slices.Grow(b.buffers, 2*max(n, 0)) }

func (b *deltaBuilder) empty() bool { return len(b.buffers) == 1 && len(b.removed) == 0 }

func (b *deltaBuilder) has(name string) bool {
	_, ok := b.names[name]
	return ok
}

func (b *deltaBuilder) note(name string) {
	if b.names != nil {
		b.names[name] = struct{}{}
	}
}

func (b *deltaBuilder) add(e snapshot.Entry) {
	name, version, resource := e.Name(), e.Version(), e.Resource()
	b.note(name)
	size := textSize(name) + textSize(version) + 1 + protowire.SizeBytes(len(resource))
	// Field numbers are below 16 and lengths are of 32 bits, so four of them take 24 bytes at most.
	head := b.room(24 + len(name) + len(version))
	head = protowire.AppendTag(head, deltaResources, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(size))
	head = appendText(head, deltaResourceVersion, version)
	head = appendText(head, deltaResourceName, name)
	head = protowire.AppendTag(head, deltaResourceBody, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(len(resource)))
	b.buffers = append(b.buffers, mem.SliceBuffer(head), mem.SliceBuffer(resource))
	b.bytes += len(head) + len(resource)
	b.heads = b.heads[len(head):]
}

// room gives memory for so many bytes, of which there is a page at a time when there are many resources.
func (b *deltaBuilder) room(n int) []byte {
	if len(b.heads) < n {
		b.heads = make([]byte, max(n, min(cap(b.buffers)/2*n, 4<<10)))
	}
	return b.heads[:0:n]
}

// remove keeps the name, and so must not keep the list that it comes from.
func (b *deltaBuilder) remove(name string) {
	b.note(name)
	b.removed = append(b.removed, strings.Clone(name))
}

func (b *deltaBuilder) message(typeURL, version, nonce string) *message {
	var head []byte
	head = appendText(head, deltaVersion, version)
	head = appendText(head, deltaTypeURL, typeURL)
	head = appendText(head, deltaNonce, nonce)
	for _, name := range b.removed {
		head = appendText(head, deltaRemoved, name)
	}
	b.buffers[0] = mem.SliceBuffer(head)
	return &message{buffers: b.buffers, bytes: b.bytes + len(head)}
}

func textSize(text string) int { return 1 + protowire.SizeBytes(len(text)) }
