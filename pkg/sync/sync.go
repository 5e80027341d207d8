// Package sync brings what virtual clusters hold to the control planes of their
// meshes: it observes storage, keeps the snapshots, serves them by xDS and tells in
// each mesh's status what it does.
package sync

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/component-base/metrics"

	"golang.org/x/sync/errgroup"

	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/policy"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
	"github.com/vmesh-io/vmesh/pkg/sync/status"
	"github.com/vmesh-io/vmesh/pkg/sync/xds"
)

// Config is what a Service needs.
type Config struct {
	// Kinds are Istio's kinds, in the order in which they are answered.
	Kinds []*kind.Kind
	// Observe tells an observer the state and all changes of a resource in all virtual
	// clusters, until ctx ends. It is called once for each resource.
	Observe func(ctx context.Context, gr schema.GroupResource, o snapshot.Observer) error
	// Writer writes the meshes' status; without one it is not written.
	Writer status.Writer
	// Plain and TLS are where control planes are answered; either may be nil, as may
	// TLSConfig without TLS. They are closed at the end.
	Plain, TLS net.Listener
	TLSConfig  *tls.Config
	// XDS are options of the server. Its metrics are set when there is a Register.
	XDS xds.Options
	// Register registers metrics, as legacyregistry.MustRegister does; without it there
	// are none.
	Register func(...metrics.Registerable)
}

// Service is the whole way from storage to the control planes.
type Service struct {
	config   Config
	builder  *snapshot.Builder
	server   *xds.Server
	reporter *status.Reporter
}

// New makes a service. Nothing happens before Run is called.
func New(config Config) (*Service, error) {
	kinds, err := snapshotKinds(config.Kinds)
	if err != nil {
		return nil, err
	}
	s := &Service{config: config}
	var snapshotMetrics *snapshot.Metrics
	if config.Register != nil {
		snapshotMetrics = snapshot.NewMetrics(config.Register)
		s.config.XDS.Metrics = xds.NewMetrics(config.Register)
	}
	s.builder = snapshot.NewBuilder(kinds, snapshotMetrics)
	s.server = xds.New(s.builder, s.config.XDS)
	if config.Writer != nil {
		s.reporter = status.NewReporter(config.Writer, s.builder, s.server)
	}
	return s, nil
}

func snapshotKinds(kinds []*kind.Kind) ([]snapshot.Kind, error) {
	out := make([]snapshot.Kind, len(kinds))
	for i, k := range kinds {
		r, err := istio.ResourceOf(k)
		if err != nil {
			return nil, err
		}
		out[i] = snapshot.Kind{
			Resource:      k.GroupResource(),
			Name:          k.GroupKind().Kind,
			TypeURL:       r.TypeURL(),
			MessageName:   r.MessageName(),
			AppendMessage: r.AppendMessage,
			Admit:         admit(k.GroupKind().Kind),
		}
	}
	return out, nil
}

// admit asks the policy about objects of a kind.
func admit(kind string) func(*object.Object, *ownership.View, *policy.Exports) (*object.Object, []policy.Violation, error) {
	return func(o *object.Object, owners *ownership.View, exports *policy.Exports) (*object.Object, []policy.Violation, error) {
		if violations := policy.Check(kind, o, owners); len(violations) > 0 {
			return nil, violations, nil
		}
		if to, changed := exports.ExportTo(kind, o); changed {
			shown, err := policy.WithExportTo(o, to)
			return shown, nil, err
		}
		return o, nil, nil
	}
}

// Snapshots are the meshes' snapshots.
func (s *Service) Snapshots() *snapshot.Builder { return s.builder }

// Server is the xDS server.
func (s *Service) Server() *xds.Server { return s.server }

// Ready says why control planes are not being answered yet, or nil.
func (s *Service) Ready() error {
	select {
	case <-s.builder.Synced():
		return nil
	default:
		return snapshot.ErrNotSynced
	}
}

// Run does the work until ctx ends, and then returns nil once all of it has ended.
// It returns an error when a part of it fails before. It must be called once.
func (s *Service) Run(ctx context.Context) error {
	group, running := errgroup.WithContext(ctx)
	for _, source := range s.builder.Sources() {
		group.Go(func() error {
			if err := s.config.Observe(running, source.Resource, source.Observer); running.Err() == nil {
				return fmt.Errorf("observing %s: ended early: %w", source.Resource, err)
			}
			return nil
		})
	}
	group.Go(func() error {
		s.builder.Run(running)
		return nil
	})
	group.Go(func() error { return s.server.Serve(running, s.config.Plain, s.config.TLS, s.config.TLSConfig) })
	if s.reporter != nil {
		group.Go(func() error {
			s.reporter.Run(running)
			return nil
		})
	}
	return group.Wait()
}
