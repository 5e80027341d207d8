package xds

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
