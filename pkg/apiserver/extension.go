package apiserver

import (
	"context"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/admission/extension"
	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apiserver/codec"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
)

// newExtension makes the plugin that runs webhooks and policies, and feeds it.
func (s *Server) newExtension(namespaces rest.Getter) (*extension.Plugin, error) {
	egress, err := extension.NewEgress(s.options.TenantWebhookAllow, s.options.TenantWebhookDeny)
	if err != nil {
		return nil, err
	}
	plugin := extension.New(extension.Config{Authorizer: s.authorizer, Namespaces: namespaces, Labels: s.clusters.Labels, Egress: egress})
	observers := plugin.Observers()
	for _, gr := range slices.SortedFunc(maps.Keys(observers), func(a, b schema.GroupResource) int { return strings.Compare(a.String(), b.String()) }) {
		s.loops = append(s.loops, loop{"observing " + gr.String() + " for admission", func(ctx context.Context) error {
			return s.backend.Observe(ctx, gr, observers[gr])
		}})
	}
	s.loops = append(s.loops, loop{"admission", func(ctx context.Context) error { plugin.Run(ctx); return nil }})
	return plugin, nil
}

// extensionEndpoint is what the plugin has to know of an endpoint, and the kinds whose
// objects it stores.
func extensionEndpoint(e *endpoint, kinds []*kind.Kind, stores map[schema.GroupResource]*resource.Store) extension.Endpoint {
	params := map[schema.GroupKind]extension.Param{}
	for _, k := range kinds {
		if store := stores[k.GroupResource()]; store != nil {
			params[k.GroupKind()] = extension.Param{Kind: k, Store: store}
		}
	}
	return extension.Endpoint{Interfaces: objectInterfaces{e.codec, e.server.EquivalentResourceRegistry}, Converter: e.codec, Params: params}
}

// objectInterfaces implements admission.ObjectInterfaces.
type objectInterfaces struct {
	codec       *codec.Codec
	equivalents runtime.EquivalentResourceMapper
}

func (i objectInterfaces) GetObjectCreater() runtime.ObjectCreater     { return i.codec }
func (i objectInterfaces) GetObjectTyper() runtime.ObjectTyper         { return i.codec }
func (i objectInterfaces) GetObjectDefaulter() runtime.ObjectDefaulter { return i.codec }
func (i objectInterfaces) GetObjectConvertor() runtime.ObjectConvertor { return i.codec }
func (i objectInterfaces) GetEquivalentResourceMapper() runtime.EquivalentResourceMapper {
	return i.equivalents
}
