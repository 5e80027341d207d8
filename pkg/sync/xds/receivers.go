package xds

import (
	"slices"
	"time"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

// Follower is told when what Receivers gives for a mesh may have changed. Its methods
// must not block.
type Follower interface {
	// Connected says that a control plane has come or gone.
	Connected(mesh string)
	// Acknowledged says that a control plane has acknowledged or refused a response.
	Acknowledged(mesh string)
}

// Receiver is a control plane that is connected, and how far it is with one kind.
type Receiver struct {
	// ID and Revision are what it is called, as in its status.
	ID, Revision string
	// Began is when its stream did.
	Began time.Time
	// Asked says whether it has asked for all resources of the kind.
	Asked bool
	// Wants says whether it is to have a resource of the newest snapshot, now or when a
	// release has come to it.
	Wants func(snapshot.Entry) bool
	// Stage is where it stands in releases; empty when there are none.
	Stage string
	// Due are the resources that it is to have by now.
	Due *snapshot.List
	// Acked are the resources that it has said to have; nil for none yet.
	Acked *snapshot.List
	// Unanswered is since when a response waits for its answer; zero when none does.
	Unanswered time.Time
	// Refusal is why it refused the last response; empty when it did not.
	Refusal string
	// Proxies are those connected to it, where that is reported.
	Proxies *v1alpha1.ProxyStatus
}

// receipt is how far a stream is with one kind; it is guarded by the stream's lock.
type receipt struct {
	asked      bool
	acked      *snapshot.List
	unanswered time.Time
	refusal    string
}

// Receivers are the control planes of a mesh that are connected, with how far they are
// with a kind: its index among the source's kinds.
func (s *Server) Receivers(mesh string, kind int) []Receiver {
	s.mu.Lock()
	streams := slices.Clone(s.streams[mesh])
	s.mu.Unlock()
	receivers := make([]Receiver, 0, len(streams))
	for _, st := range streams {
		// Read before what it acknowledged: an acknowledgement may then be newer, never older.
		due := st.due(kind)
		st.mu.Lock()
		r := st.receipts[kind]
		receivers = append(receivers, Receiver{
			ID: st.status.ID, Revision: st.status.Revision, Began: st.began, Proxies: st.status.Proxies,
			Asked: r.asked, Due: due, Stage: st.subscription.Stage(), Acked: r.acked, Unanswered: r.unanswered, Refusal: r.refusal,
			Wants: func(e snapshot.Entry) bool { return st.subscription.Means(kind, e) },
		})
		st.mu.Unlock()
	}
	return receivers
}

// knowsKinds is how long after its connection a control plane that has not asked for a kind does
// not know it.
const knowsKinds = 5 * time.Second

// Have says of each kind whether every control plane of a mesh has acknowledged the list of it, and
// waits for no other; lists are in the order of the source's kinds. It is false when there is none.
func (s *Server) Have(mesh string, lists []*snapshot.List) []bool {
	s.mu.Lock()
	streams := slices.Clone(s.streams[mesh])
	s.mu.Unlock()
	have := slices.Repeat([]bool{len(streams) > 0}, len(lists))
	for _, st := range streams {
		st.mu.Lock()
		answered := false
		for _, r := range st.receipts {
			answered = answered || r.acked != nil
		}
		unknown := answered && time.Since(st.began) > knowsKinds
		for kind, list := range lists {
			if r, asked := st.receipts[kind]; asked {
				have[kind] = have[kind] && r.unanswered.IsZero() && r.refusal == "" && r.acked != nil && (r.acked == list || r.acked.Version() == list.Version())
			} else {
				have[kind] = have[kind] && unknown
			}
		}
		st.mu.Unlock()
	}
	return have
}

// due is what the stream is to be brought to by now: its share of the snapshot that has been
// released to it.
func (st *stream) due(kind int) *snapshot.List {
	current, err := st.subscription.Snapshot()
	if err != nil {
		return snapshot.Empty
	}
	return current.Lists[kind]
}

// asks takes note of what a request asks for.
func (st *stream) asks(w *interest) {
	if w.kind == noKind {
		return
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	r := st.receipts[w.kind]
	if r.asked = st.protocol.wantsAll(w); !r.asked || w.list == nil {
		r.acked = nil // it begins anew
	}
	st.receipts[w.kind] = r
}

// awaits takes note that a response waits for its answer.
func (st *stream) awaits(w *interest) {
	if w.kind == noKind {
		return
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	r := st.receipts[w.kind]
	if r.unanswered.IsZero() {
		r.unanswered = time.Now()
	}
	st.receipts[w.kind] = r
}

// answered takes note of an answer, before anybody is told of it.
func (st *stream) answered(w *interest, refusal string) {
	if w.kind == noKind {
		return
	}
	st.mu.Lock()
	r := st.receipts[w.kind]
	r.unanswered, r.refusal = time.Time{}, refusal
	if refusal == "" && st.protocol.wantsAll(w) {
		r.acked = w.list
	}
	st.receipts[w.kind] = r
	st.mu.Unlock()
	if f := st.server.options.Follower; f != nil {
		f.Acknowledged(st.mesh)
	}
}

func (s *Server) tellConnected(mesh string) {
	if s.options.Follower != nil {
		s.options.Follower.Connected(mesh)
	}
}

// A config source is always asked for all.
func (stateOfTheWorld) wantsAll(*interest) bool { return true }

func (delta) wantsAll(w *interest) bool { return w.delta.all }
