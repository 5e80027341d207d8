// Package xds serves the snapshots of the meshes to control planes, by the
// aggregated discovery service: state of the world, as istiod asks for it, and
// delta.
//
// A stream has no queue. It knows which list of each kind it sent last, and when it
// can send it sends what is then the newest; so a slow receiver costs no more than a
// fast one, and many changes become one response. Each kind waits for the receiver's
// acknowledgement before it is sent again.
package xds

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"strings"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

// Source gives the snapshots; a snapshot.Builder does.
type Source interface {
	Kinds() []snapshot.Kind
	Subscribe(mesh string) *snapshot.Subscription
}

// Options are how a Server deals with its peers. Zero values mean the defaults.
type Options struct {
	// SendTimeout is how long a response may take to leave for the receiver before
	// its stream is ended; 5 minutes by default.
	SendTimeout time.Duration
	// AckTimeout is how long a changed kind waits for the receiver to acknowledge the
	// response before; 15 seconds by default.
	AckTimeout time.Duration
	// MeshTimeout is how long a stream may wait for its mesh to come into being; 5
	// seconds by default.
	MeshTimeout time.Duration
	// DrainTimeout is how long Serve waits at its end for connections to close; 5
	// seconds by default.
	DrainTimeout time.Duration
	// Gate, if set, decides who receives what over TLS. Who comes in plain text receives all.
	Gate Gate
	// Fresh, if set, is waited for when a stream begins: it returns when snapshots are as new as the
	// storage is. When it fails, a delta stream, whose client can have more than this server, is ended.
	Fresh func(ctx context.Context) error
	// Mesh, if set, is the mesh that all streams are about, whatever they say.
	Mesh string
	// Changed, if set, is called when a control plane of a mesh has come, gone or answered. It must
	// not block: streams wait for it.
	Changed func(mesh string)
	// Metrics may be nil.
	Metrics *Metrics
	// Follower may be nil.
	Follower Follower
}

// Server is an aggregated discovery service. All methods are safe for concurrent
// use.
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer

	source  Source
	options Options
	kinds   map[groupKind]int
	closing chan struct{}  // closed when streams have to end
	running sync.WaitGroup // goroutines of streams

	mu      sync.Mutex
	streams map[string][]*stream // by mesh, the oldest first
}

// groupKind is a type URL without its version: Istio's messages are the same in all
// versions of a kind.
type groupKind struct{ group, kind string }

// New makes a server for a source's snapshots.
func New(source Source, options Options) *Server {
	def := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	def(&options.SendTimeout, 5*time.Minute)
	def(&options.AckTimeout, 15*time.Second)
	def(&options.MeshTimeout, 5*time.Second)
	def(&options.DrainTimeout, 5*time.Second)
	s := &Server{
		source:  source,
		options: options,
		kinds:   map[groupKind]int{},
		closing: make(chan struct{}),
		streams: map[string][]*stream{},
	}
	for i, k := range source.Kinds() {
		if gk, ok := parseTypeURL(k.TypeURL); ok {
			s.kinds[gk] = i
		}
	}
	return s
}

func parseTypeURL(url string) (groupKind, bool) {
	parts := strings.Split(url, "/")
	if len(parts) != 3 {
		return groupKind{}, false
	}
	return groupKind{parts[0], parts[2]}, true
}

const (
	// writeBuffer is what is written to a connection at once. A response is hundreds
	// of frames of 16 KiB.
	writeBuffer = 1024 << 10
	// maxRequest bounds a request: a delta client names all it has when it comes back.
	maxRequest = 32 << 20
)

// Serve answers on the listeners, either of which may be nil, until ctx ends. Then
// it ends all streams, by which no control plane loses anything, and returns when
// they have ended. It returns an error when a listener fails before. It can be
// called once.
func (s *Server) Serve(ctx context.Context, plain, tlsListener net.Listener, tlsConfig *tls.Config) error {
	type listening struct {
		listener net.Listener
		server   *grpc.Server
	}
	var all []listening
	if plain != nil {
		all = append(all, listening{plain, s.newGRPCServer()})
	}
	if tlsListener != nil {
		if tlsConfig == nil {
			return errors.New("a TLS listener without a TLS configuration")
		}
		all = append(all, listening{tlsListener, s.newGRPCServer(grpc.Creds(credentials.NewTLS(tlsConfig)))})
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var serving sync.WaitGroup
	for _, l := range all {
		serving.Go(func() {
			if err := l.server.Serve(l.listener); err != nil {
				cancel(fmt.Errorf("serving xDS on %s: %w", l.listener.Addr(), err))
			}
		})
	}
	<-ctx.Done()
	close(s.closing)
	deadline := time.AfterFunc(s.options.DrainTimeout, func() {
		for _, l := range all {
			l.server.Stop()
		}
	})
	for _, l := range all {
		l.server.GracefulStop()
	}
	deadline.Stop()
	serving.Wait()
	s.running.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

func (s *Server) newGRPCServer(options ...grpc.ServerOption) *grpc.Server {
	server := grpc.NewServer(append(options,
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.WriteBufferSize(writeBuffer),
		grpc.SharedWriteBuffer(true),
		// istiod pings every 30 s whether or not there is a stream, and would be sent
		// away by the default policy.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
	)...)
	discovery.RegisterAggregatedDiscoveryServiceServer(server, s)
	return server
}

// StreamAggregatedResources serves the state of the world.
func (s *Server) StreamAggregatedResources(g discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return s.serveStream(g, stateOfTheWorld{})
}

// DeltaAggregatedResources serves what changes.
func (s *Server) DeltaAggregatedResources(g discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.serveStream(g, delta{})
}
