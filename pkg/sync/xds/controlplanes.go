package xds

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// ControlPlanes are the control planes that are connected for a mesh, sorted by id,
// with what each was sent and acknowledged.
func (s *Server) ControlPlanes(mesh string) []v1alpha1.ControlPlaneStatus {
	s.mu.Lock()
	streams := slices.Clone(s.streams[mesh])
	s.mu.Unlock()
	all := make([]v1alpha1.ControlPlaneStatus, 0, len(streams))
	for _, st := range streams {
		all = append(all, st.controlPlane())
	}
	slices.SortFunc(all, func(a, b v1alpha1.ControlPlaneStatus) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// register makes a stream known once it has said who it is. Streams that say the
// same, such as several config sources of one istiod, get a suffix that they keep.
func (s *Server) register(st *stream, id string) {
	defer s.tellConnected(st.mesh)
	s.mu.Lock()
	defer s.mu.Unlock()
	others := s.streams[st.mesh]
	taken := func(id string) bool {
		return slices.ContainsFunc(others, func(other *stream) bool { return other.status.ID == id })
	}
	unique := id
	for n := 2; taken(unique); n++ {
		unique = fmt.Sprintf("%s#%d", id, n)
	}
	st.mu.Lock()
	st.status.ID = unique
	st.mu.Unlock()
	s.streams[st.mesh] = append(others, st)
}

func (s *Server) unregister(st *stream) {
	defer s.tellConnected(st.mesh)
	s.mu.Lock()
	defer s.mu.Unlock()
	rest := slices.DeleteFunc(s.streams[st.mesh], func(other *stream) bool { return other == st })
	if len(rest) == 0 {
		delete(s.streams, st.mesh)
	} else {
		s.streams[st.mesh] = rest
	}
}

func (st *stream) controlPlane() v1alpha1.ControlPlaneStatus {
	st.mu.Lock()
	defer st.mu.Unlock()
	out := *st.status.DeepCopy()
	out.Stage = st.subscription.Stage()
	for _, k := range st.kinds {
		out.Kinds = append(out.Kinds, *k.DeepCopy())
	}
	slices.SortFunc(out.Kinds, func(a, b v1alpha1.ControlPlaneKindStatus) int { return cmp.Compare(a.TypeURL, b.TypeURL) })
	if time.Since(st.reported) > proxiesKept {
		out.Proxies = nil
	}
	for _, since := range st.behind {
		if t := metav1.NewTime(since.Truncate(time.Second)); out.BehindSince == nil || t.Before(out.BehindSince) {
			out.BehindSince = &t
		}
	}
	return out
}

// sent takes note of a response that is on its way.
func (st *stream) sent(w *interest, m *message) {
	kind := st.server.kindName(w)
	st.server.options.Metrics.pushed(st.protocol.name(), kind, m.bytes)
	if kind == otherKind {
		return // a client can ask for any number of them
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	k := st.kinds[w.typeURL]
	if k == nil {
		k = &v1alpha1.ControlPlaneKindStatus{TypeURL: w.typeURL}
		st.kinds[w.typeURL] = k
	}
	k.Resources = int32(w.list.Len())
	k.SentVersion = w.list.Version()
	k.SentAt = timestamp()
	if _, ok := st.behind[w.typeURL]; !ok {
		st.behind[w.typeURL] = time.Now()
	}
}

// acknowledged takes note of the answer to the last response to an interest.
func (st *stream) acknowledged(w *interest, refusal string) {
	lag := time.Duration(-1)
	if !w.change.IsZero() {
		lag = time.Since(w.change)
	}
	st.server.options.Metrics.answered(st.protocol.name(), st.server.kindName(w), refusal != "", lag)
	st.mu.Lock()
	defer st.mu.Unlock()
	k := st.kinds[w.typeURL]
	if k == nil {
		return
	}
	k.Error = refusal
	if refusal == "" {
		k.AckedVersion, k.AckedAt = k.SentVersion, timestamp()
		delete(st.behind, w.typeURL)
	}
}

func timestamp() *metav1.Time {
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	return &now
}

const (
	meshConfigURL = "core/v1alpha1/MeshConfig"
	otherKind     = "other"
)

// kindName labels metrics, with few values whatever clients ask for.
func (s *Server) kindName(w *interest) string {
	switch {
	case w.kind != noKind:
		return s.source.Kinds()[w.kind].Name
	case w.typeURL == meshConfigURL:
		return "MeshConfig"
	default:
		return otherKind
	}
}

// refusal is the text of a NACK, or empty.
func refusal(detail *rpcstatus.Status) string {
	if detail == nil {
		return ""
	}
	return shorten(cmp.Or(detail.GetMessage(), fmt.Sprintf("refused with code %d", detail.GetCode())))
}

func shorten(text string) string {
	if len(text) > maxText {
		text = text[:maxText] + "..."
	}
	return strings.ToValidUTF8(text, "?")
}

// ignoreEOF makes nothing of the error by which a client ends a stream in order.
func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
