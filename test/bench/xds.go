package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync/atomic"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	sotwMethod         = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
	deltaMethod        = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
	virtualServiceType = "networking.istio.io/v1/VirtualService"
	// istiodWindow is the flow control window of istiod's connection to its config source.
	istiodWindow = 1 << 20
)

// xdsTypes is what istiod asks for, in its order.
var xdsTypes = []string{
	"core/v1alpha1/MeshConfig",
	"extensions.istio.io/v1alpha1/TrafficExtension",
	"extensions.istio.io/v1alpha1/WasmPlugin",
	"networking.istio.io/v1/DestinationRule",
	"networking.istio.io/v1alpha3/EnvoyFilter",
	"networking.istio.io/v1/Gateway",
	"networking.istio.io/v1beta1/ProxyConfig",
	"networking.istio.io/v1/ServiceEntry",
	"networking.istio.io/v1/Sidecar",
	virtualServiceType,
	"networking.istio.io/v1/WorkloadEntry",
	"networking.istio.io/v1/WorkloadGroup",
	"security.istio.io/v1/AuthorizationPolicy",
	"security.istio.io/v1/PeerAuthentication",
	"security.istio.io/v1/RequestAuthentication",
	"telemetry.istio.io/v1/Telemetry",
}

// response is a DiscoveryResponse, or a DeltaDiscoveryResponse, as it is when nobody decodes its resources.
type response struct {
	version, typeURL, nonce string
	resources               int
	bytes                   int
	received                time.Time
}

// lightCodec reads a response without decoding, or even copying, its resources.
type lightCodec struct{ encoding.CodecV2 }

func (c lightCodec) Unmarshal(data mem.BufferSlice, v any) error {
	r, ok := v.(*response)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	*r = response{received: time.Now(), bytes: data.Len()}
	reader := data.Reader()
	defer reader.Close()
	for reader.Remaining() > 0 {
		tag, err := readVarint(reader)
		if err != nil {
			return err
		}
		number, kind := protowire.DecodeTag(tag)
		if kind != protowire.BytesType {
			return fmt.Errorf("field %d of a response is of wire type %d", number, kind)
		}
		length, err := readVarint(reader)
		if err != nil {
			return err
		}
		var text *string
		switch number {
		case 1:
			text = &r.version
		case 4:
			text = &r.typeURL
		case 5:
			text = &r.nonce
		case 2:
			r.resources++
		}
		if text == nil {
			if _, err := reader.Discard(int(length)); err != nil {
				return err
			}
			continue
		}
		field := make([]byte, length)
		if _, err := io.ReadFull(reader, field); err != nil {
			return err
		}
		*text = string(field)
	}
	return nil
}

func readVarint(r io.ByteReader) (value uint64, err error) {
	for shift := 0; shift < 64; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			return 0, err
		}
		value |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return value, nil
		}
	}
	return 0, errors.New("a varint is too long")
}

// xdsClient is a control plane that keeps nothing. It acknowledges all it gets.
type xdsClient struct {
	connection *grpc.ClientConn
	cancel     context.CancelFunc
	done       chan error
	responses  chan response // of VirtualServices
}

// connectXDS opens a stream as istiod does, and returns when every type has been answered; count is how many
// VirtualServices there are. The method is one of the above.
func connectXDS(ctx context.Context, method, address string, index, count int) (*xdsClient, error) {
	connection, err := grpc.NewClient(address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithInitialWindowSize(istiodWindow), grpc.WithInitialConnWindowSize(istiodWindow),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.ForceCodecV2(lightCodec{encoding.GetCodecV2(proto.Name)})))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &xdsClient{connection: connection, cancel: cancel, done: make(chan error, 1), responses: make(chan response, 16)}
	stream, err := connection.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	node := &core.Node{
		Id: fmt.Sprintf("sidecar~127.0.0.1~bench-%d.istio-system~istio-system.svc.cluster.local", index),
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			"GENERATOR":     structpb.NewStringValue("api"),
			"ISTIO_VERSION": structpb.NewStringValue("65536.65536.65536"),
		}},
	}
	for _, t := range xdsTypes {
		var first any = &discovery.DiscoveryRequest{Node: node, TypeUrl: t, ResponseNonce: "first"}
		if method == deltaMethod {
			first = &discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: t}
		}
		if err := stream.SendMsg(first); err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	var answered atomic.Int32
	go func() { c.done <- c.receive(stream, method, node, &answered) }()
	timeout := time.NewTimer(30 * time.Second)
	defer timeout.Stop()
	for {
		select {
		case r := <-c.responses:
			if r.resources >= count {
				return c, nil
			}
		case err := <-c.done:
			c.done <- err
			return nil, errors.Join(err, c.close())
		case <-timeout.C:
			return nil, errors.Join(fmt.Errorf("%d of %d types are answered, VirtualServices not in full", answered.Load(), len(xdsTypes)), c.close())
		}
	}
}

func (c *xdsClient) receive(stream grpc.ClientStream, method string, node *core.Node, answered *atomic.Int32) error {
	for {
		var r response
		if err := stream.RecvMsg(&r); err != nil {
			return err
		}
		answered.Add(1)
		if r.typeURL == virtualServiceType {
			c.responses <- r
		}
		var ack any = &discovery.DiscoveryRequest{Node: node, TypeUrl: r.typeURL, VersionInfo: r.version, ResponseNonce: r.nonce}
		if method == deltaMethod {
			ack = &discovery.DeltaDiscoveryRequest{TypeUrl: r.typeURL, ResponseNonce: r.nonce}
		}
		if err := stream.SendMsg(ack); err != nil {
			return err
		}
	}
}

// next is the next response with VirtualServices.
func (c *xdsClient) next() (response, error) {
	timeout := time.NewTimer(10 * time.Second)
	defer timeout.Stop()
	select {
	case r := <-c.responses:
		return r, nil
	case err := <-c.done:
		c.done <- err
		return response{}, fmt.Errorf("the xDS stream has ended: %w", err)
	case <-timeout.C:
		return response{}, errors.New("no response after a change")
	}
}

func (c *xdsClient) close() error {
	c.cancel()
	return c.connection.Close()
}
