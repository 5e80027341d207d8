// Package sync brings what virtual clusters hold to the control planes of their
// meshes: it observes storage, keeps the snapshots, serves them by xDS and tells in
// each mesh's status what it does.
package sync

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/component-base/metrics"

	"golang.org/x/sync/errgroup"

	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/policy"
	"github.com/vmesh-io/vmesh/pkg/sync/distribution"
	"github.com/vmesh-io/vmesh/pkg/sync/release"
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
	// Current, if set, is the storage's present revision, up to which observers are soon told to have
	// progressed. It is for a storage that other servers write to.
	Current func(ctx context.Context) (uint64, error)
	// Writer writes the meshes' status; without one it is not written.
	Writer status.Writer
	// Servers are the vmesh servers on this etcd; by default there is but this one.
	Servers status.Servers
	// Tell writes an event about a mesh. It may be nil.
	Tell func(ctx context.Context, mesh, kind, reason, message string)
	// Conditions writes what objects say about their distribution; without one nothing is
	// tracked.
	Conditions distribution.Writer
	// Distribution are options of the tracking. Its metrics are set when there is a Register.
	Distribution distribution.Options
	// Plain and TLS are where control planes are answered; either may be nil, as may
	// TLSConfig without TLS. They are closed at the end.
	Plain, TLS net.Listener
	TLSConfig  *tls.Config
	// XDS are options of the server. Its metrics are set when there is a Register.
	XDS xds.Options
	// Releases are how changes are released in stages; without it all stages of a mesh that has
	// them keep what they have. Builder is set by New, and ControlPlanes is asked about those of
	// other servers; it may be nil.
	Releases *release.Config
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
	releaser *release.Releaser
	tracker  *distribution.Tracker // may be nil
	observed []*observed

	readiness readiness
	now       func() time.Time
}

// New makes a service. Nothing happens before Run is called.
func New(config Config) (*Service, error) {
	kinds, err := Kinds(config.Kinds)
	if err != nil {
		return nil, err
	}
	s := &Service{config: config, now: time.Now}
	var snapshotMetrics *snapshot.Metrics
	if config.Register != nil {
		snapshotMetrics = snapshot.NewMetrics(config.Register)
		s.config.XDS.Metrics = xds.NewMetrics(config.Register)
	}
	s.builder = snapshot.NewBuilder(kinds, snapshotMetrics)
	if config.Conditions != nil {
		if config.Register != nil {
			s.config.Distribution.Metrics = distribution.NewMetrics(config.Register)
		}
		s.tracker = distribution.New(kinds, s.builder, receivers{s}, s.config.Distribution)
		s.builder.Follow(s.tracker)
		s.config.XDS.Follower = s.tracker
	}
	if config.Current != nil {
		s.config.XDS.Fresh = s.fresh
	}
	s.server = xds.New(s.builder, s.config.XDS)
	if config.Writer != nil {
		s.reporter = status.NewReporter(config.Writer, s.builder, s.server)
		s.reporter.Tell = config.Tell
		if config.Servers != nil {
			s.reporter.Servers = config.Servers
		}
		if config.Register != nil {
			s.reporter.Metrics = status.NewMetrics(config.Register)
		}
	}
	if config.Releases != nil {
		releases := *config.Releases
		releases.Builder, releases.ControlPlanes = s.builder, s.allControlPlanes(releases.ControlPlanes)
		s.releaser = release.New(releases)
		if s.reporter != nil {
			s.reporter.Rollouts = s.releaser.Status
		}
	}
	return s, nil
}

// receivers are the server's, which is made after the one that asks for them.
type receivers struct{ *Service }

func (r receivers) Receivers(mesh string, kind int) []xds.Receiver {
	return r.server.Receivers(mesh, kind)
}

// Outlook is what an object that is being written says about its distribution.
func (s *Service) Outlook(cluster, namespace string) istio.Condition {
	return s.tracker.Outlook(cluster, namespace)
}

// Kinds are the kinds of snapshots that are made of kinds of the API.
func Kinds(kinds []*kind.Kind) ([]snapshot.Kind, error) {
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
			Share: func(o *object.Object, owners *ownership.View) *policy.Shared {
				return policy.Share(k.GroupKind().Kind, o, owners)
			},
		}
	}
	return out, nil
}

// allControlPlanes adds to this server's control planes those that others tell of.
func (s *Service) allControlPlanes(others func(context.Context, string) ([]v1alpha1.ControlPlaneStatus, error)) func(context.Context, string) ([]v1alpha1.ControlPlaneStatus, error) {
	return func(ctx context.Context, mesh string) ([]v1alpha1.ControlPlaneStatus, error) {
		all := s.server.ControlPlanes(mesh)
		if others == nil {
			return all, nil
		}
		told, err := others(ctx, mesh)
		if err != nil {
			return nil, err
		}
		here := map[string]bool{}
		for _, c := range all {
			here[c.ID] = true
		}
		for _, c := range told {
			if !here[c.ID] {
				all = append(all, c)
			}
		}
		return all, nil
	}
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

// Run does the work until ctx ends, and then returns nil once all of it has ended.
// It returns an error when a part of it fails before. It must be called once.
func (s *Service) Run(ctx context.Context) error {
	group, running := errgroup.WithContext(ctx)
	sources := s.builder.Sources()
	if s.config.Current != nil {
		for i := range sources {
			o := &observed{Observer: sources[i].Observer}
			sources[i].Observer = o
			s.observed = append(s.observed, o)
		}
	}
	for _, source := range sources {
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
	if s.releaser != nil {
		group.Go(func() error {
			s.releaser.Run(running)
			return nil
		})
	}
	if s.reporter != nil {
		group.Go(func() error {
			s.reporter.Run(running)
			return nil
		})
	}
	if s.tracker != nil {
		group.Go(func() error {
			s.tracker.Run(running, s.config.Conditions)
			return nil
		})
	}
	return group.Wait()
}
