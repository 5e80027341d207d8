package snapshot

// Put publishes a snapshot that was not built here, to who has subscribed to its mesh. It is
// for builders that do not run, and safe for concurrent use.
func (b *Builder) Put(s *Snapshot) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.feed(s.Mesh)
	b.metrics.published(b.kinds, s, nil)
	f.set(state{snapshot: s})
}
