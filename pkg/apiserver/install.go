package apiserver

import (
	"fmt"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/managedfields"
	genericapi "k8s.io/apiserver/pkg/endpoints"
	"k8s.io/apiserver/pkg/endpoints/discovery"
	discoveryendpoint "k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"

	"github.com/vmesh-io/vmesh/pkg/apiserver/codec"
)

// group is an API group of one endpoint: its versions, the preferred one first, and
// the storage of each.
type group struct {
	name     string
	versions []string
	storage  map[string]map[string]rest.Storage // by version, then by resource[/subresource]
}

// groups collects storage by group and version.
type groups struct {
	byName map[string]*group
	order  []string
}

func (g *groups) add(gv schema.GroupVersion, path string, s rest.Storage) {
	if g.byName == nil {
		g.byName = map[string]*group{}
	}
	of, ok := g.byName[gv.Group]
	if !ok {
		of = &group{name: gv.Group, storage: map[string]map[string]rest.Storage{}}
		g.byName[gv.Group] = of
		g.order = append(g.order, gv.Group)
	}
	if of.storage[gv.Version] == nil {
		of.storage[gv.Version] = map[string]rest.Storage{}
		of.versions = append(of.versions, gv.Version)
	}
	of.storage[gv.Version][path] = s
}

// all are the groups in the order in which they were first added.
func (g *groups) all() []*group {
	var out []*group
	for _, name := range g.order {
		out = append(out, g.byName[name])
	}
	return out
}

// machinery is what the endpoint handlers need to know about a group's types.
type machinery struct {
	serializer    runtime.NegotiatedSerializer
	typer         runtime.ObjectTyper
	creater       runtime.ObjectCreater
	convertor     runtime.ObjectConvertor
	checker       genericapi.ConvertabilityChecker
	defaulter     runtime.ObjectDefaulter
	typeConverter managedfields.TypeConverter
}

func objectMachinery(c *codec.Codec) machinery {
	return machinery{serializer: c, typer: c, creater: c, convertor: c, checker: c, defaulter: c, typeConverter: c}
}

func schemeMachinery(s *runtime.Scheme) machinery {
	return machinery{
		serializer: serializer.NewCodecFactory(s), typer: s, creater: s, convertor: s, checker: s, defaulter: s,
		typeConverter: managedfields.NewDeducedTypeConverter(),
	}
}

// install serves a group. It stands beside GenericAPIServer.InstallAPIGroups, which
// wants a scheme of Go types and OpenAPI models of them at start. It returns what discovery
// tells of the versions.
func install(s *genericapiserver.GenericAPIServer, g *group, m machinery, limits limits) ([]apidiscoveryv2.APIVersionDiscovery, error) {
	root := genericapiserver.APIGroupPrefix
	discoveries := s.AggregatedDiscoveryGroupManager
	if g.name == "" {
		root, discoveries = genericapiserver.DefaultLegacyAPIPrefix, s.AggregatedLegacyDiscoveryGroupManager
	}
	var discovered []apidiscoveryv2.APIVersionDiscovery
	served := map[string][]string{}
	for _, version := range g.versions {
		for path := range g.storage[version] {
			served[path] = append(served[path], schema.GroupVersion{Group: g.name, Version: version}.String())
		}
	}
	for i, version := range g.versions {
		gv := schema.GroupVersion{Group: g.name, Version: version}
		api := &genericapi.APIGroupVersion{
			Root: root, GroupVersion: gv, Storage: g.storage[version], AllServedVersionsByResource: served,
			OptionsExternalVersion: &schema.GroupVersion{Version: "v1"},
			ParameterCodec:         metav1.ParameterCodec,
			Serializer:             m.serializer, Typer: m.typer, Creater: m.creater, Convertor: m.convertor,
			UnsafeConvertor: m.convertor, ConvertabilityChecker: m.checker, Defaulter: m.defaulter, TypeConverter: m.typeConverter,
			Namer:                      runtime.Namer(meta.NewAccessor()),
			EquivalentResourceRegistry: s.EquivalentResourceRegistry,
			Authorizer:                 s.Authorizer,
			Admit:                      limits.admission,
			MinRequestTimeout:          limits.minRequestTimeout,
			MaxRequestBodyBytes:        limits.maxRequestBodyBytes,
		}
		resources, _, err := api.InstallREST(s.Handler.GoRestfulContainer)
		if err != nil {
			return nil, fmt.Errorf("serving %s: %w", gv, err)
		}
		d := apidiscoveryv2.APIVersionDiscovery{Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent, Version: version, Resources: resources}
		discovered = append(discovered, d)
		discoveries.AddGroupVersion(g.name, d)
		if g.name != "" {
			// Versions are listed as given; groups as they come.
			discoveries.SetGroupVersionPriority(metav1.GroupVersion{Group: g.name, Version: version}, 1000, 100-i)
		}
	}
	if g.name == "" {
		handler := discovery.NewLegacyRootAPIHandler(discovery.DefaultAddresses{DefaultAddress: s.ExternalAddress}, m.serializer, root)
		wrapped := discoveryendpoint.WrapAggregatedDiscoveryToHandler(handler, discoveries, discoveries)
		s.Handler.GoRestfulContainer.Add(wrapped.GenerateWebService("/api", metav1.APIVersions{}))
		return discovered, nil
	}
	var versions []metav1.GroupVersionForDiscovery
	for _, v := range g.versions {
		versions = append(versions, metav1.GroupVersionForDiscovery{GroupVersion: g.name + "/" + v, Version: v})
	}
	apiGroup := metav1.APIGroup{Name: g.name, Versions: versions, PreferredVersion: versions[0]}
	s.DiscoveryGroupManager.AddGroup(apiGroup)
	s.Handler.GoRestfulContainer.Add(discovery.NewAPIGroupHandler(m.serializer, apiGroup).WebService())
	return discovered, nil
}
