package apiserver

import (
	"context"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	vmeshkinds "github.com/vmesh-io/vmesh/pkg/apis/vmesh"
	"github.com/vmesh-io/vmesh/pkg/authz"
	"github.com/vmesh-io/vmesh/pkg/history"
	registryhistory "github.com/vmesh-io/vmesh/pkg/registry/history"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// HistoryOptions are how much is kept of each virtual cluster's history. With an Age of zero nothing is.
type HistoryOptions struct {
	Age     time.Duration
	Changes int
	Size    resource.QuantityValue
}

func newHistoryOptions() HistoryOptions {
	return HistoryOptions{Age: 30 * 24 * time.Hour, Changes: 5000, Size: resource.QuantityValue{Quantity: resource.MustParse("4Mi")}}
}

func (o *HistoryOptions) addFlags(fs *pflag.FlagSet) {
	fs.DurationVar(&o.Age, "history-age", o.Age, "How long changes of a virtual cluster's objects are kept, to be listed and undone; 0 for no history. All servers on one etcd must agree.")
	fs.IntVar(&o.Changes, "history-changes", o.Changes, "How many changes are kept of a virtual cluster; the oldest go first.")
	fs.Var(&o.Size, "history-size", "How much of etcd the changes of a virtual cluster may take; the oldest go first.")
}

func (o *HistoryOptions) validate(bad func(format string, args ...any)) {
	if o.Age < 0 || o.Age > 0 && o.Age < time.Minute {
		bad("--history-age: %s is not 0, for no history, or at least 1m", o.Age)
	}
	if o.Changes < 1 {
		bad("--history-changes: %d is not 1 or more; for no history set --history-age=0", o.Changes)
	}
	if o.Size.Value() < 64<<10 {
		bad("--history-size: %s is less than 64Ki; for no history set --history-age=0", o.Size.String())
	}
}

func (o *HistoryOptions) bounds() logical.HistoryBounds {
	return logical.HistoryBounds{Age: o.Age, Changes: o.Changes, Bytes: o.Size.Value()}
}

// newRecorder makes what records changes, and has histories pruned. It is nil without history.
func (s *Server) newRecorder() logical.Recorder {
	if s.options.History.Age == 0 {
		return nil
	}
	bounds := s.options.History.bounds()
	r := history.NewRecorder(bounds)
	s.loops = append(s.loops, loop{"history", func(ctx context.Context) error { r.Prune(ctx, s.backend, bounds); return nil }})
	return r
}

// serveChanges adds the changes to what virtual clusters serve.
func (s *Server) serveChanges(g *groups, z *authz.Authorizer) (*kind.Kind, error) {
	changes, err := vmeshkinds.Changes(registryhistory.Hooks())
	if err != nil {
		return nil, err
	}
	g.add(changes.GVK(changes.StorageVersion()).GroupVersion(), changes.Resource(), registryhistory.New(changes, s.backend, s.clusters, z))
	return changes, nil
}
