package traffic

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/vmesh-io/vmesh/pkg/connectivity"
)

// GatewayOptions says what an east-west gateway is.
type GatewayOptions struct {
	// Listen is host:port.
	Listen string
	// Istiod is the control plane that tells it of the endpoints in its network.
	Istiod string
	// Network is the one that it is the gateway of, and Wires are what it reaches: the pods of that network.
	Network string
	Wires   Wires
}

// RunGateway passes connections on until ctx ends, as an east-west gateway of Istio does: it reads the server name that a client asks
// for, and nothing else, and connects it to a ready endpoint of that service in its own network. What is
// said inside stays between the client and the endpoint.
func RunGateway(ctx context.Context, options GatewayOptions) error {
	connection, err := grpc.NewClient(options.Istiod, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	listener, err := net.Listen("tcp", options.Listen)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	g := &gateway{GatewayOptions: options, istiod: connection, known: map[connectivity.Service][]connectivity.Endpoint{}}
	for {
		client, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer client.Close()
			if err := g.serve(ctx, client); err != nil {
				log.Printf("%s: %v", client.RemoteAddr(), err)
			}
		}()
	}
}

type gateway struct {
	GatewayOptions
	istiod *grpc.ClientConn

	mu    sync.Mutex
	known map[connectivity.Service][]connectivity.Endpoint
}

func (g *gateway) serve(ctx context.Context, client net.Conn) error {
	name, hello, err := serverName(client)
	if err != nil {
		return err
	}
	service, _, err := connectivity.ParseSNI(name)
	if err != nil {
		return err
	}
	endpoints, err := g.endpoints(ctx, service)
	if err != nil {
		return err
	}
	if len(endpoints) == 0 {
		return fmt.Errorf("no endpoint of %s takes mutual TLS in network %s", service, g.Network)
	}
	server, err := g.Wires.Dial(ctx, endpoints[rand.IntN(len(endpoints))].Address)
	if err != nil {
		return err
	}
	defer server.Close()
	log.Printf("%s to %s at %s", client.RemoteAddr(), service, server.RemoteAddr())
	if _, err := server.Write(hello); err != nil {
		return err
	}
	// Either side that ends, ends both.
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
		go func() {
			_, _ = io.Copy(way[1], way[0])
			done <- struct{}{}
		}()
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
	return nil
}

// endpoints are those in the gateway's own network that take mutual TLS. Without istiod, they are those that it told of last.
func (g *gateway) endpoints(ctx context.Context, service connectivity.Service) ([]connectivity.Endpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	place := connectivity.Place{Network: g.Network, View: []string{g.Network}, IP: "127.0.0.1", Namespace: "istio-system"}
	told, err := connectivity.Endpoints(ctx, g.istiod, place, []connectivity.Service{service})
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil {
		if known := g.known[service]; len(known) > 0 {
			return known, nil
		}
		return nil, err
	}
	var usable []connectivity.Endpoint
	for _, e := range told[service] {
		if e.MutualTLS && e.Healthy {
			usable = append(usable, e)
		}
	}
	g.known[service] = usable
	return usable, nil
}

// serverName is what a client that begins TLS asks for, and all that it has sent so far.
func serverName(client net.Conn) (name string, hello []byte, err error) {
	if err := client.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", nil, err
	}
	var read bytes.Buffer
	stop := errors.New("read enough")
	err = tls.Server(listening{client, io.TeeReader(client, &read)}, &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		name = hello.ServerName
		return nil, stop
	}}).Handshake()
	if !errors.Is(err, stop) {
		return "", nil, fmt.Errorf("reading what server is meant: %w", err)
	}
	return name, read.Bytes(), client.SetReadDeadline(time.Time{})
}

// listening is a connection on which nothing is said.
type listening struct {
	net.Conn
	from io.Reader
}

func (l listening) Read(p []byte) (int, error)  { return l.from.Read(p) }
func (l listening) Write(p []byte) (int, error) { return len(p), nil }
