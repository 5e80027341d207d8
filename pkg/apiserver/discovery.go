package apiserver

import (
	"context"
	"encoding/json"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	vmeshkinds "github.com/vmesh-io/vmesh/pkg/apis/vmesh"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/discovery"
	"github.com/vmesh-io/vmesh/pkg/registry/meshservice"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// serveMeshServices adds the services of meshes to what virtual clusters serve, and has the
// members' read.
func (s *Server) serveMeshServices(g *groups) (*kind.Kind, error) {
	k, err := vmeshkinds.MeshServices()
	if err != nil {
		return nil, err
	}
	s.members = discovery.New(discovery.NewMetrics(register))
	s.loops = append(s.loops, loop{"member clusters' services", s.members.Run})
	routes := meshservice.NewRoutes(func() meshservice.Configuration { return s.sync.Snapshots() }, s.members)
	g.add(k.GVK(k.StorageVersion()).GroupVersion(), k.Resource(), meshservice.New(k, s.members, s.meshScope, routes))
	return k, nil
}

// meshScope implements meshservice.Scopes.
func (s *Server) meshScope(ctx context.Context) (meshservice.Scope, error) {
	cluster, err := logical.Cluster(ctx)
	if err != nil {
		return meshservice.Scope{}, err
	}
	index := s.clusters.Claims()
	claims, _ := index.Claims(cluster)
	scope := meshservice.Scope{Cluster: cluster, Mesh: claims.Mesh, Of: index}
	if claims.Mesh != "" {
		scope.Home = homeOf(s.sync.Snapshots().MeshObject(claims.Mesh)) == cluster
	}
	return scope, nil
}

// homeOf is the virtual cluster where a mesh's control planes live, empty for none.
func homeOf(mesh *object.Object) string {
	if mesh == nil {
		return ""
	}
	var spec struct {
		Home *v1alpha1.MeshHome `json:"home"`
	}
	if json.Unmarshal(mesh.Field("spec"), &spec) != nil || spec.Home == nil {
		return "" // what cannot be read opens nothing
	}
	return spec.Home.VirtualCluster
}
