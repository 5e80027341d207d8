// Package traffic is a data plane without Envoy: gRPC backends on loopback, and a client that takes its routes from a
// real istiod by xDS and balances calls by them itself. It shows where a call really went after a config change.
package traffic

import (
	"cmp"
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop/grpc_testing"
)

// BackendOptions says what a backend is.
type BackendOptions struct {
	// Address is host:port to listen on; a free port of 127.0.0.1 when empty.
	Address string
	// Version, Name and Cluster are what it says of itself in every answer.
	Version, Name, Cluster string
	// Credentials are its own; it serves plaintext without.
	Credentials credentials.TransportCredentials
}

// Backend is one version of the greeter service, listening on loopback.
type Backend struct {
	Version string
	Port    int

	server *grpc.Server
	served chan error
}

// StartBackend listens on a free port and answers every call with the version.
func StartBackend(version string) (*Backend, error) {
	return StartBackendWith(BackendOptions{Version: version})
}

// StartBackendWith starts a backend that is listening when it returns.
func StartBackendWith(options BackendOptions) (*Backend, error) {
	listener, err := net.Listen("tcp", cmp.Or(options.Address, "127.0.0.1:0"))
	if err != nil {
		return nil, err
	}
	if options.Credentials == nil {
		options.Credentials = insecure.NewCredentials()
	}
	backend := &Backend{
		Version: options.Version,
		Port:    listener.Addr().(*net.TCPAddr).Port,
		server:  grpc.NewServer(grpc.Creds(options.Credentials)),
		served:  make(chan error, 1),
	}
	grpc_testing.RegisterTestServiceServer(backend.server, greeter{answer: Answer{Version: options.Version, Name: options.Name, Cluster: options.Cluster}})
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

// Answer is who answered a call.
type Answer struct{ Version, Name, Cluster string }

// greeter stands on gRPC's own interop service: it has a reply that names the server, and needs no generated code here.
type greeter struct {
	grpc_testing.UnimplementedTestServiceServer
	answer Answer
}

func (g greeter) UnaryCall(context.Context, *grpc_testing.SimpleRequest) (*grpc_testing.SimpleResponse, error) {
	return &grpc_testing.SimpleResponse{ServerId: g.answer.Version, Hostname: g.answer.Name, Username: g.answer.Cluster}, nil
}
