package xds

import (
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

// stateOfTheWorld gives all resources of a kind whenever one changes. Resource names
// in a request are not looked at: a config source is always asked for all.
type stateOfTheWorld struct{}

// Field numbers of an envoy.service.discovery.v3.DiscoveryResponse; the resources
// are in the buffers of a list.
const (
	responseVersion protowire.Number = 1
	responseTypeURL protowire.Number = 4
	responseNonce   protowire.Number = 5
)

// istiodKeeps is how many responses istiod keeps for good: its client of config sources puts them
// into a channel of this size that nobody reads, until it is full. If they were the first hundred that
// come, it would hold a mesh a hundred times once so much has changed. So they are empty ones.
const istiodKeeps = 100

// fill is of the kind that istiod asks for first. Nothing comes of a MeshConfig that is not there.
func (stateOfTheWorld) fill(typeURL string) int {
	if typeURL == meshConfigURL {
		return istiodKeeps - 1
	}
	return 0
}

func (stateOfTheWorld) name() string { return "sotw" }

func (stateOfTheWorld) receive(g grpc.ServerStream) (*request, error) {
	var r discovery.DiscoveryRequest
	if err := g.RecvMsg(&r); err != nil {
		return nil, err
	}
	return &request{node: r.Node, typeURL: r.TypeUrl, nonce: r.ResponseNonce, refusal: refusal(r.ErrorDetail)}, nil
}

// A first request is answered whatever its nonce: istiod sends one that nobody gave
// it. Later ones are acknowledgements, but for one without a nonce, which starts anew.
func (stateOfTheWorld) subscribe(_ *interest, r *request, isNew bool) (bool, error) {
	return isNew || r.nonce == "", nil
}

func (stateOfTheWorld) respond(w *interest, list *snapshot.List, nonce string, _ bool) *message {
	head := make([]byte, 0, 64+len(w.typeURL))
	head = appendText(head, responseVersion, list.Version())
	head = appendText(head, responseTypeURL, w.typeURL)
	head = appendText(head, responseNonce, nonce)
	return &message{
		buffers: list.AppendBuffers(mem.BufferSlice{mem.SliceBuffer(head)}),
		bytes:   len(head) + list.Bytes(),
	}
}

func appendText(b []byte, field protowire.Number, text string) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendString(b, text)
}
