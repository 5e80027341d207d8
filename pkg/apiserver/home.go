package apiserver

import (
	"context"
	"net"
	"net/url"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	vmeshkinds "github.com/vmesh-io/vmesh/pkg/apis/vmesh"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/settings"
	"github.com/vmesh-io/vmesh/pkg/events"
	"github.com/vmesh-io/vmesh/pkg/home"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/registry/vmesh"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// keepHomes has the settings of meshes kept in their homes.
func (s *Server) keepHomes(stores map[schema.GroupResource]*resource.Store, own *vmeshkinds.Root) {
	meshes, virtualClusters := stores[own.Meshes.GroupResource()], stores[own.VirtualClusters.GroupResource()]
	configMaps := stores[schema.GroupResource{Resource: "configmaps"}]
	homes := home.New(home.Config{
		Meshes: meshes, VirtualClusters: virtualClusters, ConfigMaps: configMaps,
		EnsureNamespaces: s.clusters.EnsureNamespaces,
		UpdateStatus:     statusWriter{meshes, virtualClusters, s.keeper.events}.UpdateMeshStatus,
		Tell: func(ctx context.Context, mesh, kind, reason, message string) {
			obj, err := meshes.Get(vmesh.RootContext(ctx), mesh, &metav1.GetOptions{ResourceVersion: "0"})
			if err != nil {
				return // deleted meanwhile
			}
			s.keeper.events.Again(ctx, logical.Root, events.Reference(obj.(*object.Object)), kind, reason, message)
		},
		DefaultSource: s.configSource,
		Gateways:      s.members,
	})
	s.loops = append(s.loops,
		s.observeCached(meshes, homes.Meshes()), s.observeCached(virtualClusters, homes.VirtualClusters()),
		s.observe(configMaps, homes.ConfigMaps()), s.observe(stores[own.MemberClusters.GroupResource()], homes.Members()),
		loop{"homes of meshes", func(ctx context.Context) error { homes.Run(ctx); return nil }},
	)
}

// configSource is the address at which this server serves a mesh in plain text, empty if there is
// none that a control plane could be told.
func (s *Server) configSource(mesh string) string {
	if s.xdsPlain == nil {
		return ""
	}
	_, port, err := net.SplitHostPort(s.xdsPlain.Addr().String())
	if err != nil {
		return ""
	}
	host, _, err := net.SplitHostPort(s.options.XDSAddress)
	if err != nil {
		return ""
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		// It listens everywhere: by the name that clients use it is reached.
		external, err := url.Parse(s.options.URL())
		if err != nil {
			return ""
		}
		host = external.Hostname()
	}
	return settings.DefaultSource(mesh, host, port)
}
