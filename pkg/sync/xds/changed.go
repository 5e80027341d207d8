package xds

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// changed tells who wants to know that ControlPlanes may say something else than before. It is
// called without locks.
func (s *Server) changed(mesh string) {
	if s.options.Changed != nil {
		s.options.Changed(mesh)
	}
}

// Connected is how many streams there are for a mesh.
func (s *Server) Connected(mesh string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams[mesh])
}

// waitFresh waits until the snapshots are as new as the storage. An istiod has nothing but this server,
// and is answered from what is there; a relay has what it has, and may find a better server.
func (s *Server) waitFresh(ctx context.Context, p protocol) error {
	if s.options.Fresh == nil {
		return nil
	}
	err := s.options.Fresh(ctx)
	if _, isDelta := p.(delta); err == nil || !isDelta {
		if err != nil {
			klog.FromContext(ctx).Error(err, "Answering a control plane from what may be a moment old")
		}
		return nil
	}
	return status.Errorf(codes.Unavailable, "this server cannot tell whether it has all that is stored: %v", err)
}
