package snapshot

import "context"

// Flush returns when all that observers were told before it is in the published snapshots, or
// when ctx ends, with its error.
func (b *Builder) Flush(ctx context.Context) error {
	done := make(chan struct{})
	select {
	case b.events <- event{flushed: done}:
	case <-b.stopped:
		return context.Canceled
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-b.stopped:
		return context.Canceled
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tellFlushed ends the waiting of those whose events have been published.
func tellFlushed(waiting []chan struct{}) []chan struct{} {
	for _, done := range waiting {
		close(done)
	}
	return waiting[:0]
}
