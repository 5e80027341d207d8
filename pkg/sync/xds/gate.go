package xds

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// Gate decides who receives a mesh over TLS. It must be safe for concurrent use.
type Gate interface {
	// Enter says who begins a stream, by its TLS connection and its metadata, and gives a context
	// that ends, with a gRPC status as its cause, when that may no longer receive the mesh. The user is
	// empty for one who shows no identity. leave must be called. The error is a gRPC status.
	Enter(ctx context.Context, mesh string) (_ context.Context, user string, leave func(), err error)
}

// enter asks the gate, if the stream comes over TLS.
func (s *Server) enter(g grpc.ServerStream, mesh string) (ctx context.Context, user string, leave func(), err error) {
	ctx = g.Context()
	from, ok := peer.FromContext(ctx)
	if !ok || s.options.Gate == nil {
		return ctx, "", func() {}, nil
	}
	if _, isTLS := from.AuthInfo.(credentials.TLSInfo); !isTLS {
		return ctx, "", func() {}, nil
	}
	return s.options.Gate.Enter(ctx, mesh)
}

// whyEnded is the status by which a stream ends whose context has.
func whyEnded(ctx context.Context) error {
	var own interface{ GRPCStatus() *status.Status }
	if cause := context.Cause(ctx); errors.As(cause, &own) {
		return cause
	}
	return status.FromContextError(ctx.Err()).Err()
}
