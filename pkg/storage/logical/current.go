package logical

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Current is the revision that etcd has now, which observers of all resources are soon told
// that they have progressed to.
func (b *Backend) Current(ctx context.Context, gr schema.GroupResource) (uint64, error) {
	s, err := b.opened(gr)
	if err != nil {
		return 0, err
	}
	revision, err := s.etcd.GetCurrentResourceVersion(ctx)
	if err != nil {
		return 0, err
	}
	// Asked for unconditionally: each resource's own watch cache may be further than the others'.
	return revision, s.etcd.RequestWatchProgress(ctx)
}
