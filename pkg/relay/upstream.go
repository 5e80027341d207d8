package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
	"github.com/vmesh-io/vmesh/pkg/sync/xds"
	"github.com/vmesh-io/vmesh/pkg/version"
)

const (
	deltaMethod = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"

	// A vmesh that comes back is tried within so long; the difference keeps the relays of many
	// control planes from coming at once.
	retryLeast, retryMost = 250 * time.Millisecond, 600 * time.Millisecond
	// connectTimeout is how long a connection and its handshake may take. An address that does not
	// answer holds up no other: they are tried at the same time, each a little after the one before.
	connectTimeout = 5 * time.Second
	stagger        = 200 * time.Millisecond
	// answerTimeout is how long all kinds may take to be answered first, before another
	// address is tried, if there is one. One server that is alone may take as long as it likes.
	answerTimeout = 10 * time.Second
	// keepaliveEvery is the least that vmesh allows. A machine that is gone is noticed so much
	// later, and keepaliveTimeout.
	keepaliveEvery, keepaliveTimeout = 10 * time.Second, 5 * time.Second

	streamWindow = 4 << 20
)

// upstream follows a mesh at whichever of some addresses answers.
type upstream struct {
	addresses   []string
	mesh        string
	node        *core.Node
	kinds       []snapshot.Kind
	credentials Credentials
	metrics     *Metrics

	// current is the state that there is, or nil.
	current func() *state
	// apply takes in a change, or says why it is none.
	apply func(ctx context.Context, c change) (generation uint64, err error)
	// answered is called when all kinds have been answered, on a new stream.
	answered func(ctx context.Context)
	// lost is called when a stream that had been answered has ended.
	lost func(ctx context.Context)
	// distributed is which generation of each kind is at istiod; distributedChanged receives when it may be another.
	distributed        func() []uint64
	distributedChanged <-chan struct{}

	// reports are requests that tell vmesh of something, and are not answered. They are sent on the
	// stream that there is, or not at all.
	reports <-chan *discovery.DeltaDiscoveryRequest

	preferred int          // the address to try first
	distrust  map[int]bool // the kinds that must be given whole
}

// run keeps a stream open until ctx ends.
func (u *upstream) run(ctx context.Context) error {
	u.distrust = map[int]bool{}
	log := klog.FromContext(ctx)
	failures := 0
	for ctx.Err() == nil {
		was, begun := false, time.Now()
		conn, at, err := u.connect(ctx)
		if err == nil {
			was, err = u.follow(ctx, conn, u.addresses[at])
			_ = conn.Close()
			// Whoever ended a stream is likely to be on its way down.
			u.preferred = (at + 1) % len(u.addresses)
		}
		if ctx.Err() != nil {
			break
		}
		if was {
			log.Info("The connection to vmesh has ended; what is served stays", "mesh", u.mesh, "reason", err)
			failures = 0
			if time.Since(begun) > retryMost {
				continue // at once: another may be there
			}
		} else if failures++; failures == 1 || failures%100 == 0 {
			log.Error(err, "No vmesh answers; it goes on being tried", "mesh", u.mesh, "addresses", u.addresses)
		}
		// A server that answers with an error, as that there is no such mesh, was reached: the next one
		// is tried without a pause.
		if at >= 0 && !was && failures%len(u.addresses) != 0 {
			continue
		}
		pause := retryLeast + rand.N(retryMost-retryLeast)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
	return nil
}

// connect connects to the address that answers first, and prefers the one it is to try first.
func (u *upstream) connect(ctx context.Context) (*grpc.ClientConn, int, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	type result struct {
		at   int
		conn *grpc.ClientConn
		err  error
	}
	results := make(chan result)
	next, running := 0, 0
	begin := func() {
		at := (u.preferred + next) % len(u.addresses)
		next++
		running++
		go func() {
			conn, err := u.dial(ctx, u.addresses[at])
			results <- result{at, conn, err}
		}()
	}
	begin()
	timer := time.NewTicker(stagger)
	defer timer.Stop()
	var found *result
	var errs []error
	for running > 0 {
		select {
		case r := <-results:
			running--
			switch {
			case r.err != nil:
				errs = append(errs, r.err)
				if next < len(u.addresses) && found == nil {
					begin()
				}
			case found == nil:
				found = &r
				cancel()
			default:
				_ = r.conn.Close() // it came second
			}
		case <-timer.C:
			if next < len(u.addresses) && found == nil {
				begin()
			}
		}
	}
	if found != nil {
		return found.conn, found.at, nil
	}
	return nil, -1, errors.Join(errs...)
}

// dial returns when a connection is made, its handshake included. gRPC is given no more than
// the connection: it would say less of what is wrong, and try again by itself.
func (u *upstream) dial(ctx context.Context, address string) (*grpc.ClientConn, error) {
	secured, err := u.handshake(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", address, err)
	}
	once := make(chan net.Conn, 1)
	once <- secured
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			select {
			case c := <-once:
				return c, nil
			default:
				return nil, errors.New("the connection has ended")
			}
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // it is secured already
		grpc.WithInitialWindowSize(streamWindow), grpc.WithInitialConnWindowSize(streamWindow),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.MaxCallSendMsgSize(math.MaxInt32), grpc.ForceCodecV2(newCodec()), grpc.WaitForReady(true)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveEvery, Timeout: keepaliveTimeout, PermitWithoutStream: true}),
		grpc.WithIdleTimeout(0), grpc.WithDisableServiceConfig(), grpc.WithUserAgent("vmesh-relay/"+version.Version),
	)
	if err != nil {
		return nil, errors.Join(err, secured.Close())
	}
	conn.Connect()
	for {
		switch s := conn.GetState(); s {
		case connectivity.Ready:
			return conn, nil
		case connectivity.TransientFailure, connectivity.Shutdown:
			return nil, errors.Join(fmt.Errorf("%s: it does not speak gRPC", address), conn.Close())
		default:
			if !conn.WaitForStateChange(ctx, s) {
				return nil, errors.Join(fmt.Errorf("%s: it does not answer: %w", address, ctx.Err()), conn.Close())
			}
		}
	}
}

func (u *upstream) handshake(ctx context.Context, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	// Read anew each time: what has been replaced while the relay runs is used.
	config, err := u.credentials.TLS(host)
	if err != nil {
		return nil, err
	}
	config.NextProtos = []string{"h2"}
	dialer := tls.Dialer{NetDialer: &net.Dialer{}, Config: config}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if got := conn.(*tls.Conn).ConnectionState().NegotiatedProtocol; got != "h2" {
		return nil, errors.Join(errors.New("it is no xDS server: it does not speak HTTP/2"), conn.Close())
	}
	return conn, nil
}

// pendingAck is a response that istiod has not got yet.
type pendingAck struct {
	nonce      string
	generation uint64
}

// following is one stream.
type following struct {
	*upstream
	stream grpc.ClientStream
	have   []bool // the kinds that were answered
	whole  []bool // the kinds whose first answer has all there is
	missed int    // how many were not
	acks   []*pendingAck
}

// follow takes in what a server tells until it ends. was says that it had told all.
func (u *upstream) follow(ctx context.Context, conn *grpc.ClientConn, address string) (was bool, err error) {
	show := []string{xds.MeshHeader, u.mesh}
	token, err := u.credentials.Token()
	if err != nil {
		return false, err
	}
	if token != "" {
		show = append(show, "authorization", "Bearer "+token)
	}
	ctx, cancel := context.WithCancelCause(metadata.AppendToOutgoingContext(ctx, show...))
	var receiving sync.WaitGroup
	defer receiving.Wait()
	defer cancel(nil)
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, deltaMethod)
	if err != nil {
		u.metrics.began(address, "failed")
		return false, fmt.Errorf("%s: %w", address, err)
	}
	responses, received := make(chan *response), make(chan error, 1)
	receiving.Go(func() { received <- receive(ctx, stream, responses) })
	n := len(u.kinds)
	f := &following{upstream: u, stream: stream, have: make([]bool, n), whole: make([]bool, n), missed: n, acks: make([]*pendingAck, n)}
	complete := func() bool { return true }
	if len(u.addresses) > 1 {
		late := time.AfterFunc(answerTimeout, func() { cancel(fmt.Errorf("not all is answered within %s", answerTimeout)) })
		defer late.Stop()
		complete = late.Stop
	}
	if err = f.subscribe(); err == nil {
		was, err = f.loop(ctx, responses, received, func() {
			complete()
			u.metrics.began(address, "answered")
			klog.FromContext(ctx).Info("Connected to vmesh", "address", address, "mesh", u.mesh)
		})
	}
	if was {
		u.lost(ctx)
	} else {
		u.metrics.began(address, "failed")
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return was, fmt.Errorf("%s: %w", address, err)
}

// receive gives on what comes until the stream ends, and says why it has.
func receive(ctx context.Context, stream grpc.ClientStream, responses chan<- *response) error {
	for {
		r := &response{}
		if err := stream.RecvMsg(r); err != nil {
			if errors.Is(err, io.EOF) {
				return errors.New("the server has ended the stream")
			}
			return err
		}
		select {
		case responses <- r:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (f *following) loop(ctx context.Context, responses <-chan *response, received <-chan error, complete func()) (was bool, err error) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case r := <-responses:
			if err := f.take(ctx, r); err != nil {
				return was, err
			}
			if f.missed == 0 && !was {
				was = true
				complete()
				f.answered(ctx)
			}
		case err := <-received:
			return was, err
		case report := <-f.reports:
			if !was {
				continue
			}
			if err := f.send(report); err != nil {
				return was, err
			}
		case <-f.distributedChanged:
		case <-tick.C: // some things become true by the passing of time
		}
		if err := f.acknowledge(); err != nil {
			return was, err
		}
	}
}

// send sends a request. That the stream has ended, and why, is for who receives to say.
func (f *following) send(r *discovery.DeltaDiscoveryRequest) error {
	if err := f.stream.SendMsg(r); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// subscribe asks for all kinds, saying what there is of them.
func (f *following) subscribe() error {
	have := f.current()
	for kind := range f.kinds {
		r := &discovery.DeltaDiscoveryRequest{TypeUrl: f.kinds[kind].TypeURL}
		if kind == 0 {
			r.Node = f.node
		}
		if have != nil && !f.distrust[kind] {
			r.InitialResourceVersions = have.versions(kind)
		} else {
			f.whole[kind] = true
		}
		if err := f.send(r); err != nil {
			return err
		}
	}
	return nil
}

// take takes in one response, whole or not at all.
func (f *following) take(ctx context.Context, r *response) error {
	kind := -1
	for i := range f.kinds {
		if f.kinds[i].TypeURL == r.typeURL {
			kind = i
		}
	}
	if kind < 0 {
		return fmt.Errorf("a response is about %q, which was not asked for", r.typeURL)
	}
	c, err := changeOf(r, kind, f.whole[kind])
	var generation uint64
	if err == nil {
		generation, err = f.apply(ctx, c)
	}
	if err != nil {
		f.metrics.responded(f.kinds[kind].Name, "refused")
		// What there is stays. The next stream asks for all of the kind.
		f.distrust[kind] = true
		nack := &discovery.DeltaDiscoveryRequest{TypeUrl: r.typeURL, ResponseNonce: r.nonce, ErrorDetail: &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: err.Error()}}
		return errors.Join(err, f.send(nack))
	}
	f.metrics.responded(f.kinds[kind].Name, "applied")
	f.whole[kind] = false
	delete(f.distrust, kind)
	if !f.have[kind] {
		f.have[kind] = true
		f.missed--
	}
	f.acks[kind] = &pendingAck{r.nonce, generation}
	return nil
}

// acknowledge tells vmesh what has reached istiod.
func (f *following) acknowledge() error {
	if !slices.ContainsFunc(f.acks, func(a *pendingAck) bool { return a != nil }) {
		return nil
	}
	distributed := f.distributed()
	for kind, ack := range f.acks {
		if ack == nil || distributed[kind] < ack.generation {
			continue
		}
		f.acks[kind] = nil
		if err := f.send(&discovery.DeltaDiscoveryRequest{TypeUrl: f.kinds[kind].TypeURL, ResponseNonce: ack.nonce}); err != nil {
			return err
		}
	}
	return nil
}

// newNode is what vmesh is told of the relay.
func newNode(o *Options) *core.Node {
	labels := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for key, value := range o.Labels {
		labels.Fields[key] = structpb.NewStringValue(value)
	}
	fields := map[string]*structpb.Value{
		"GENERATOR":        structpb.NewStringValue("api"),
		"VMESH_LABELS":     structpb.NewStructValue(labels),
		"VMESH_RELAY":      structpb.NewStringValue(version.Version),
		"VMESH_RELAY_NAME": structpb.NewStringValue(o.Name),
	}
	if o.Revision != "" {
		fields["ISTIO_REVISION"] = structpb.NewStringValue(o.Revision)
	}
	return &core.Node{Id: "relay~" + o.Name, Metadata: &structpb.Struct{Fields: fields}}
}
