package apiserver

import (
	"context"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/vmesh-io/vmesh/pkg/authz"
	"github.com/vmesh-io/vmesh/pkg/authz/rbac"
	registryrbac "github.com/vmesh-io/vmesh/pkg/registry/rbac"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
)

// assembleRBAC makes what decides, feeds it, and makes the storage of what it decides by.
func (s *Server) assembleRBAC(stores map[schema.GroupResource]*resource.Store) (map[schema.GroupResource]*registryrbac.REST, *authz.Authorizer, error) {
	index := rbac.NewIndex()
	z := authz.New(index)
	observers := index.Observers()
	for _, gr := range slices.SortedFunc(maps.Keys(observers), func(a, b schema.GroupResource) int { return strings.Compare(a.String(), b.String()) }) {
		s.loops = append(s.loops, loop{"observing " + gr.String() + " for authorization", func(ctx context.Context) error {
			return s.backend.Observe(ctx, gr, observers[gr])
		}})
	}
	rests := map[schema.GroupResource]*registryrbac.REST{}
	for gr, store := range stores {
		r, err := registryrbac.NewREST(store, registryrbac.Config{Authority: z, Index: index, Clusters: s.clusters})
		if err != nil {
			return nil, nil, err
		}
		if r != nil {
			rests[gr] = r
		}
	}
	return rests, z, nil
}
