// Package traffic is a data plane without Envoy: gRPC backends on loopback, and a client that takes its routes from a
// real istiod by xDS and balances calls by them itself. It shows where a call really went after a config change.
package traffic

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/interop/grpc_testing"
)

// Backend is one version of the greeter service, listening on loopback.
type Backend struct {
	Version string
	Port    int

	server *grpc.Server
	served chan error
}

// StartBackend listens on a free port and answers every call with the version.
func StartBackend(version string) (*Backend, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	backend := &Backend{
		Version: version,
		Port:    listener.Addr().(*net.TCPAddr).Port,
		server:  grpc.NewServer(),
		served:  make(chan error, 1),
	}
	grpc_testing.RegisterTestServiceServer(backend.server, greeter{version: version})
	go func() { backend.served <- backend.server.Serve(listener) }()
	return backend, nil
}

// Stop ends the calls under way and the listener.
func (b *Backend) Stop() error {
	b.server.Stop()
	if err := <-b.served; err != nil {
		return fmt.Errorf("serving backend %s: %w", b.Version, err)
	}
	return nil
}

// greeter stands on gRPC's own interop service: it has a reply that names the server, and needs no generated code here.
type greeter struct {
	grpc_testing.UnimplementedTestServiceServer
	version string
}

func (g greeter) UnaryCall(context.Context, *grpc_testing.SimpleRequest) (*grpc_testing.SimpleResponse, error) {
	return &grpc_testing.SimpleResponse{ServerId: g.version}, nil
}
