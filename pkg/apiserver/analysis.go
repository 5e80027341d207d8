package apiserver

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/vmesh-io/vmesh/pkg/analysis"
	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// newAnalysis makes the engine that runs Istio's analyzers over what the watch caches hold.
func (s *Server) newAnalysis(kinds []*kind.Kind, stores map[schema.GroupResource]*resource.Store) *analysis.Engine {
	engine := analysis.New(analysis.Config{
		Kinds:       kinds,
		WriteBudget: s.options.AnalysisBudget,
		Register:    register,
		InMembers: func(cluster, namespace, name string) bool {
			claims, _ := s.clusters.Claims().Claims(cluster)
			return s.members.Has(claims.Mesh, namespace, name)
		},
		List: func(ctx context.Context, gr schema.GroupResource, cluster string) ([]object.Object, error) {
			inside := request.WithNamespace(logical.WithCluster(ctx, cluster), metav1.NamespaceAll)
			// From the watch cache, once it has what etcd has: what was applied a moment ago
			// must not be missed.
			list, err := stores[gr].List(inside, &internalversion.ListOptions{})
			if err != nil {
				return nil, err
			}
			objects, ok := list.(*object.List)
			if !ok {
				return nil, fmt.Errorf("listing %s: got a %T", gr, list)
			}
			return objects.Items, nil
		},
	})
	s.loops = append(s.loops, loop{"analysis", func(ctx context.Context) error { engine.Run(ctx); return nil }})
	return engine
}
