package xds

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// message is a response that is encoded already: a few bytes of its own and buffers
// that it shares with the responses of other streams. None of them is ever freed.
type message struct {
	buffers mem.BufferSlice
	bytes   int
}

// codec passes messages on as they are; everything else is protobuf.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(proto.Name)} }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(*message); ok {
		return m.buffers, nil
	}
	return c.CodecV2.Marshal(v)
}
