package xds

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

const (
	// maxInterests and maxTypeURL bound what a client can make a stream remember.
	maxInterests = 64
	maxTypeURL   = 512
	// maxText bounds what is kept of a text that a client gives: it goes into the status
	// of the mesh.
	maxText = 256

	noKind = -1
)

// protocol is what the two forms of the service differ in.
type protocol interface {
	name() string
	// receive waits for a request.
	receive(grpc.ServerStream) (*request, error)
	// subscribe takes in what a request asks for, of an interest that is new or not, and
	// says whether it has to be answered even if nothing has changed.
	subscribe(w *interest, r *request, isNew bool) (answer bool, err error)
	// respond makes the response that brings the client to a list, or none when it has
	// nothing to say; must says that it is owed one.
	respond(w *interest, list *snapshot.List, nonce string, must bool) *message
	// fill is how many responses, besides the first, an interest gets before others do.
	fill(typeURL string) int
	// wantsAll says whether an interest is in all resources of its kind.
	wantsAll(w *interest) bool
}

// request is what the two kinds of request have in common, and what they have not.
type request struct {
	node    *core.Node
	typeURL string
	nonce   string
	refusal string // why the client refused the response of this nonce

	subscribe, unsubscribe []string          // delta
	initial                map[string]string // delta: the versions that the client has
}

// interest is one type URL that a stream asked for. It belongs to the stream's loop.
type interest struct {
	typeURL string
	kind    int // noKind when there can be no such resources

	list    *snapshot.List // what the client was brought to last
	due     bool           // the client is owed a response
	fill    int            // how many more responses without content go out before anything else
	nonce   string         // of the last response
	waiting bool           // for the last response to be acknowledged
	refused bool           // the last response
	sentAt  time.Time
	change  time.Time // when the change was observed that the last response tells of; zero if none

	delta deltaState
}

// stream is one open stream. Its loop runs in the goroutine that gRPC gave it; one
// other receives and one sends, since either can block.
type stream struct {
	server   *Server
	protocol protocol
	grpc     grpc.ServerStream
	mesh     string
	began    time.Time
	log      klog.Logger

	subscription *snapshot.Subscription
	selected     bool   // the subscription knows for whom it is
	revision     string // as it was told
	acked        string // the version of the snapshot that was acknowledged whole
	interests    map[string]*interest
	order        []*interest
	turn         int // the interest whose turn to be looked at it is
	nonces       uint64

	mu     sync.Mutex // guards what follows, which others read
	status v1alpha1.ControlPlaneStatus
	kinds  map[string]*v1alpha1.ControlPlaneKindStatus
	behind map[string]time.Time // since when there is something unacknowledged, by type URL
	// reported is when the last report about proxies came.
	reported time.Time
	receipts map[int]receipt // by kind
}

func (s *Server) serveStream(g grpc.ServerStream, p protocol) error {
	st := &stream{
		server:    s,
		protocol:  p,
		grpc:      g,
		mesh:      cmp.Or(s.options.Mesh, meshOf(g.Context())),
		began:     time.Now(),
		interests: map[string]*interest{},
		kinds:     map[string]*v1alpha1.ControlPlaneKindStatus{},
		behind:    map[string]time.Time{},
		receipts:  map[int]receipt{},
	}
	st.status.ConnectedSince = metav1.NewTime(st.began.Truncate(time.Second))
	st.status.Connected = true
	if from, ok := peer.FromContext(g.Context()); ok {
		st.status.Address = from.Addr.String()
	}
	s.running.Add(1)
	defer s.running.Done()
	ctx, user, leave, err := s.enter(g, st.mesh)
	if err != nil {
		klog.FromContext(g.Context()).V(1).Info("Refused an xDS stream", "mesh", st.mesh, "peer", st.status.Address, "reason", err)
		return err
	}
	defer leave()
	if err := s.waitFresh(ctx, p); err != nil {
		return err
	}
	st.status.User = shorten(user)
	st.subscription = s.source.Subscribe(st.mesh)
	defer st.subscription.Close()
	defer s.changed(st.mesh)
	defer s.unregister(st)

	st.log = klog.FromContext(g.Context()).WithValues("mesh", st.mesh, "peer", st.status.Address, "protocol", p.name())
	st.log.V(2).Info("xDS stream began")
	err = st.serve(ctx)
	st.log.V(2).Info("xDS stream ended", "node", st.status.ID, "reason", err)
	return err
}

// serve runs the stream to its end, or that of a context made of its own.
func (st *stream) serve(ctx context.Context) error {
	requests := make(chan *request)
	received := make(chan error, 1)
	outgoing := make(chan *message)
	sent := make(chan error, 1)
	defer close(outgoing)
	// Both end when this function has returned and gRPC has closed the stream; Serve
	// waits for them.
	st.server.running.Go(func() { received <- st.receive(ctx, requests) })
	st.server.running.Go(func() {
		for m := range outgoing {
			sent <- st.grpc.SendMsg(m)
		}
	})

	options := &st.server.options
	timer := time.NewTimer(options.MeshTimeout)
	defer timer.Stop()
	var sending *interest
	var sendingSince time.Time
	var had bool // a snapshot
	for {
		now := time.Now()
		wake := time.Duration(-1)
		current, err := st.subscription.Snapshot()
		switch {
		case err == nil:
			if !had {
				// Only now: a client can name any number of meshes that do not exist.
				had = true
				options.Metrics.streamBegan(st.mesh, st.protocol.name())
				defer options.Metrics.streamEnded(st.mesh, st.protocol.name())
			}
			if sending != nil {
				wake = options.SendTimeout - now.Sub(sendingSince)
				if wake <= 0 {
					options.Metrics.slowReceiver(st.mesh)
					return status.Errorf(codes.DeadlineExceeded, "a response was not taken within %s", options.SendTimeout)
				}
				break
			}
			w, m, wait := st.next(current, now)
			wake = wait
			st.note(current)
			if m != nil {
				sending, sendingSince = w, now
				outgoing <- m
				wake = options.SendTimeout
			}
		case errors.Is(err, snapshot.ErrNoMesh):
			// Ending the stream tells the control plane nothing but that it should ask
			// again: it keeps what it has.
			if wake = options.MeshTimeout - now.Sub(st.began); had || wake <= 0 {
				return status.Errorf(codes.NotFound, "there is no mesh %q", st.mesh)
			}
		}
		if wake >= 0 {
			timer.Reset(wake)
		}

		select {
		case r := <-requests:
			if err := st.request(r); err != nil {
				return err
			}
		case err := <-sent:
			if err != nil {
				return err
			}
			sending = nil
		case <-st.subscription.Changed():
		case <-timer.C:
		case err := <-received:
			return err
		case <-ctx.Done():
			return whyEnded(ctx)
		case <-st.server.closing:
			return status.Error(codes.Unavailable, "the server is shutting down")
		}
	}
}

func (st *stream) receive(ctx context.Context, requests chan<- *request) error {
	for {
		r, err := st.protocol.receive(st.grpc)
		if err != nil {
			return ignoreEOF(err)
		}
		select {
		case requests <- r:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// request takes in one request.
func (st *stream) request(r *request) error {
	if r.typeURL == proxiesURL {
		return st.takeProxies(r)
	}
	if r.node != nil || len(st.order) == 0 {
		st.identify(r.node)
	}
	w := st.interests[r.typeURL]
	isNew := w == nil
	if isNew {
		if len(st.order) == maxInterests || len(r.typeURL) > maxTypeURL {
			return status.Error(codes.ResourceExhausted, "too many or too long type URLs")
		}
		if r.typeURL == "" {
			return status.Error(codes.InvalidArgument, "an aggregated request needs a type URL")
		}
		w = &interest{typeURL: r.typeURL, kind: st.server.kindOf(r.typeURL), fill: st.protocol.fill(r.typeURL)}
		st.interests[r.typeURL] = w
		st.order = append(st.order, w)
	} else if w.waiting && r.nonce == w.nonce {
		w.waiting, w.refused = false, r.refusal != ""
		st.acknowledged(w, r.refusal)
		st.answered(w, r.refusal)
		st.server.changed(st.mesh)
	}
	answer, err := st.protocol.subscribe(w, r, isNew)
	if err != nil {
		return err
	}
	st.asks(w)
	w.due = w.due || answer
	return nil
}

// kindOf is the kind of a type URL. Every other type URL, too, is answered, for an
// istiod that is not yields ready until all it asks for is: there are no such
// resources here. MeshConfig is one of them: vmesh holds none, and a part of one
// would be taken for the whole.
func (s *Server) kindOf(typeURL string) int {
	if gk, ok := parseTypeURL(typeURL); ok {
		if kind, ok := s.kinds[gk]; ok {
			return kind
		}
	}
	return noKind
}

// next finds an interest with something to send, and makes it. Otherwise it says when to
// look again, or a negative duration for not before something happens.
func (st *stream) next(current *snapshot.Snapshot, now time.Time) (*interest, *message, time.Duration) {
	again := time.Duration(-1)
	for i := range st.order {
		at := (st.turn + i) % len(st.order)
		w := st.order[at]
		list := snapshot.Empty
		if w.kind != noKind {
			list = current.Lists[w.kind]
		}
		changed := w.list == nil || list != w.list && list.Version() != w.list.Version()
		if !w.due && !changed {
			w.list = list // the same content; the older list's memory can go
			continue
		}
		if !w.due && w.waiting {
			if wait := st.server.options.AckTimeout - now.Sub(w.sentAt); wait > 0 {
				if again < 0 || wait < again {
					again = wait
				}
				continue
			}
		}
		st.nonces++
		nonce := strconv.FormatUint(st.nonces, 36)
		m := st.protocol.respond(w, list, nonce, w.due)
		isChange := w.list != nil && changed
		w.due, w.list = false, list
		if m == nil {
			continue
		}
		w.nonce, w.waiting, w.sentAt, w.change = nonce, true, now, time.Time{}
		if isChange {
			w.change = list.Changed()
		}
		st.sent(w, m)
		st.awaits(w)
		st.turn = at + 1
		if w.fill > 0 {
			w.fill--
			w.due, st.turn = true, at
		}
		return w, m, again
	}
	return nil, nil, again
}

// identify takes note of who the client says it is.
func (st *stream) identify(node *core.Node) {
	st.mu.Lock()
	id := st.status.ID
	if node != nil || st.status.Labels == nil {
		st.status.Revision = shorten(node.GetMetadata().GetFields()["ISTIO_REVISION"].GetStringValue())
		if labels := labelsOf(node); !st.selected || st.revision != st.status.Revision || !maps.Equal(st.status.Labels, labels) {
			st.status.Labels, st.selected, st.revision = labels, true, st.status.Revision
			st.subscription.Select(snapshot.ControlPlane{Revision: st.status.Revision, Labels: labels})
		}
	}
	st.mu.Unlock()
	if id == "" {
		if id = shorten(node.GetId()); id == "" {
			id = fmt.Sprintf("unknown~%s", st.status.Address)
		}
		st.server.register(st, id)
		st.server.changed(st.mesh)
	}
}
