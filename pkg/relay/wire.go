package relay

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// response is a DeltaDiscoveryResponse whose resources are left as they came.
type response struct {
	version, typeURL, nonce string
	resources               []resource
	removed                 []string
}

// resource is one resource of a response. body is a marshalled google.protobuf.Any, in the
// response's memory.
type resource struct {
	name, version string
	body          []byte
}

// codec decodes responses; everything else is protobuf.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(proto.Name)} }

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	r, ok := v.(*response)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	return r.decode(data.Materialize())
}

// Field numbers of an envoy.service.discovery.v3.DeltaDiscoveryResponse and of its Resource.
const (
	responseVersion   protowire.Number = 1
	responseResources protowire.Number = 2
	responseTypeURL   protowire.Number = 4
	responseNonce     protowire.Number = 5
	responseRemoved   protowire.Number = 6

	resourceVersion protowire.Number = 1
	resourceBody    protowire.Number = 2
	resourceName    protowire.Number = 3
)

// decode reads a message, whose memory the response then shares.
func (r *response) decode(message []byte) error {
	*r = response{}
	return eachField(message, func(number protowire.Number, value []byte) error {
		switch number {
		case responseVersion:
			r.version = string(value)
		case responseTypeURL:
			r.typeURL = string(value)
		case responseNonce:
			r.nonce = string(value)
		case responseRemoved:
			r.removed = append(r.removed, string(value))
		case responseResources:
			var res resource
			if err := eachField(value, func(number protowire.Number, value []byte) error {
				switch number {
				case resourceVersion:
					res.version = string(value)
				case resourceName:
					res.name = string(value)
				case resourceBody:
					res.body = value
				}
				return nil
			}); err != nil {
				return err
			}
			if res.body == nil {
				return fmt.Errorf("resource %q has no content", res.name)
			}
			r.resources = append(r.resources, res)
		}
		return nil
	})
}

// eachField gives the fields of a message that are strings, bytes or messages.
func eachField(b []byte, visit func(protowire.Number, []byte) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
				return protowire.ParseError(n)
			}
			b = b[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := visit(number, value); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
