package apiserver

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/pflag"
	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/endpoints/discovery"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/client-go/util/cert"

	vmeshadmission "github.com/vmesh-io/vmesh/pkg/admission"
	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apiserver/filters"
	"github.com/vmesh-io/vmesh/pkg/host"
	"github.com/vmesh-io/vmesh/pkg/registry/namespace"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// HostOptions are about a Kubernetes cluster whose kube-apiserver forwards requests here.
type HostOptions struct {
	Kubeconfig string
	View       string
	FrontProxy genericoptions.RequestHeaderAuthenticationOptions
}

func newHostOptions() HostOptions {
	return HostOptions{FrontProxy: genericoptions.RequestHeaderAuthenticationOptions{
		UsernameHeaders: []string{"X-Remote-User"}, GroupHeaders: []string{"X-Remote-Group"}, ExtraHeaderPrefixes: []string{"X-Remote-Extra-"},
	}}
}

func (o *HostOptions) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.Kubeconfig, "host-kubeconfig", o.Kubeconfig, "A kubeconfig of the host cluster that forwards requests here: it decides about its users, and says which front proxy to trust.")
	fs.StringVar(&o.View, "host-view", o.View, "The virtual cluster from which the host cluster is served Istio's API groups; needs --host-kubeconfig.")
	p := &o.FrontProxy
	fs.StringVar(&p.ClientCAFile, "requestheader-client-ca-file", p.ClientCAFile, "The authority of a front proxy's client certificates, in place of what the host cluster says. The proxy may name any user.")
	fs.StringSliceVar(&p.AllowedNames, "requestheader-allowed-names", p.AllowedNames, "The common names of the front proxy's client certificates; needed with --requestheader-client-ca-file.")
	fs.StringSliceVar(&p.UsernameHeaders, "requestheader-username-headers", p.UsernameHeaders, "The headers in which the front proxy names the user; the first that is there counts.")
	fs.StringSliceVar(&p.UIDHeaders, "requestheader-uid-headers", p.UIDHeaders, "The headers in which the front proxy gives the user's UID.")
	fs.StringSliceVar(&p.GroupHeaders, "requestheader-group-headers", p.GroupHeaders, "The headers in which the front proxy names the user's groups.")
	fs.StringSliceVar(&p.ExtraHeaderPrefixes, "requestheader-extra-headers-prefix", p.ExtraHeaderPrefixes, "How the headers begin in which the front proxy says more of the user.")
}

func (o *HostOptions) validate() []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if o.View != "" {
		if err := logical.ValidName(o.View); err != nil {
			bad("--host-view: %w", err)
		} else if o.View == logical.Root {
			bad("--host-view: %q is the root, which has none of Istio's kinds: name a virtual cluster", o.View)
		}
		if o.Kubeconfig == "" {
			bad("--host-view needs --host-kubeconfig: the host decides who may use its API")
		}
	}
	p := &o.FrontProxy
	if p.ClientCAFile != "" && len(p.AllowedNames) == 0 {
		bad("--requestheader-client-ca-file needs --requestheader-allowed-names: any other certificate of that authority could name any user; a usual name is front-proxy-client")
	}
	if p.ClientCAFile == "" && len(p.AllowedNames) > 0 {
		bad("--requestheader-allowed-names is for --requestheader-client-ca-file, which is not given")
	}
	for flag, names := range map[string][]string{
		"--requestheader-username-headers": p.UsernameHeaders, "--requestheader-uid-headers": p.UIDHeaders, "--requestheader-group-headers": p.GroupHeaders,
		"--requestheader-extra-headers-prefix": p.ExtraHeaderPrefixes, "--requestheader-allowed-names": p.AllowedNames,
	} {
		if slices.Contains(names, "") {
			bad("%s: a name must not be empty", flag)
		}
	}
	return errs
}

// connectHost makes the connection to the host cluster, if there is one, and trusts its
// front proxy, or the one that the options name.
func (s *Server) connectHost(creds *credentials) error {
	o := &s.options.Host
	var err error
	if o.Kubeconfig != "" {
		if s.host, err = host.New(o.Kubeconfig); err != nil {
			return fmt.Errorf("--host-kubeconfig: %w", err)
		}
		s.closers = append(s.closers, s.host.Close)
	}
	switch {
	case o.FrontProxy.ClientCAFile != "":
		if s.frontProxy, err = o.FrontProxy.ToAuthenticationRequestHeaderConfig(); err != nil {
			return fmt.Errorf("--requestheader-client-ca-file: %w", err)
		}
		if err := foreign(s.frontProxy.CAContentProvider.CurrentCABundleContent(), creds.clients.Bundle()); err != nil {
			return fmt.Errorf("--requestheader-client-ca-file: %w", err)
		}
	case s.host != nil:
		if s.frontProxy, err = s.host.FrontProxy(); err != nil {
			return err
		}
	default:
		return nil
	}
	// Clients show a certificate only if they are asked for one of its authority.
	s.secure.ClientCA = dynamiccertificates.NewUnionCAContentProvider(s.secure.ClientCA, s.frontProxy.CAContentProvider)
	return nil
}

// foreign is an error if the authorities of a front proxy include one of clients:
// whoever may ask for a certificate of any name could then name any user.
func foreign(proxies, clients []byte) error {
	own, err := cert.ParseCertsPEM(clients)
	if err != nil {
		return err
	}
	trusted, err := cert.ParseCertsPEM(proxies)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(own, func(c *x509.Certificate) bool { return slices.ContainsFunc(trusted, c.Equal) }) {
		return errors.New("this is the authority that signs vmesh's own clients, who could then be anyone: use an authority that signs front proxies alone")
	}
	return nil
}

// hostView is what the root passes on to a virtual cluster for the host, or nil.
func (s *Server) hostView(mesh []*kind.Kind) *filters.HostView {
	if s.options.Host.View == "" {
		return nil
	}
	view := &filters.HostView{Cluster: s.options.Host.View, Groups: sets.New[string]()}
	for _, k := range mesh {
		view.Groups.Insert(k.GroupResource().Group)
	}
	return view
}

// fitHostView puts what the host view needs around the check of namespaces.
func (s *Server) fitHostView(lifecycle *vmeshadmission.NamespaceLifecycle, namespaces rest.Creater) admission.Interface {
	if s.options.Host.View == "" {
		return lifecycle
	}
	return vmeshadmission.NewHostView(lifecycle, namespaces, func(name string) runtime.Object {
		o := object.New(schema.GroupVersionKind{Version: namespace.Version, Kind: "Namespace"})
		o.Name = name
		return o
	}, s.host.HasNamespace)
}

// destroyers are the verbs by which a host cluster's controllers tell that objects are
// theirs to remove: those in a namespace that is deleted, and those whose owner is.
var destroyers = []string{"delete", "deletecollection"}

// announce tells the root's clients about groups whose objects another endpoint serves.
// The verbs that remove objects are left out, though they are served: what is announced
// decides what a host cluster's controllers take for theirs, by whatever name they come,
// and mesh configuration is not to go with a namespace of the host.
func announce(root, from *endpoint, names sets.Set[string]) error {
	for _, name := range sets.List(names) {
		var versions []metav1.GroupVersionForDiscovery
		for i, d := range from.discovered[name] {
			gv := schema.GroupVersion{Group: name, Version: d.Version}
			d.Resources = slices.Clone(d.Resources)
			for i := range d.Resources {
				r := &d.Resources[i]
				r.Verbs = survivors(r.Verbs)
				r.Subresources = slices.Clone(r.Subresources)
				for j := range r.Subresources {
					r.Subresources[j].Verbs = survivors(r.Subresources[j].Verbs)
				}
			}
			manager := root.server.AggregatedDiscoveryGroupManager
			manager.AddGroupVersion(name, d)
			manager.SetGroupVersionPriority(metav1.GroupVersion(gv), 1000, 100-i)
			versions = append(versions, metav1.GroupVersionForDiscovery{GroupVersion: gv.String(), Version: gv.Version})

			list := legacyResources(d.Resources)
			handler := discovery.NewAPIVersionHandler(root.codec, gv, discovery.APIResourceListerFunc(func() []metav1.APIResource { return list }))
			root.server.Handler.NonGoRestfulMux.Handle(genericapiserver.APIGroupPrefix+"/"+gv.String(), handler)
		}
		if len(versions) == 0 {
			return fmt.Errorf("group %s is not served", name)
		}
		group := metav1.APIGroup{Name: name, Versions: versions, PreferredVersion: versions[0]}
		root.server.DiscoveryGroupManager.AddGroup(group)
		root.server.Handler.NonGoRestfulMux.Handle(genericapiserver.APIGroupPrefix+"/"+name, discovery.NewAPIGroupHandler(root.codec, group))
	}
	return nil
}

func survivors(verbs []string) []string {
	return slices.DeleteFunc(slices.Clone(verbs), func(verb string) bool { return slices.Contains(destroyers, verb) })
}

// legacyResources are resources as clients from before aggregated discovery read them.
func legacyResources(resources []apidiscoveryv2.APIResourceDiscovery) []metav1.APIResource {
	var out []metav1.APIResource
	kindOf := func(r *metav1.APIResource, gvk *metav1.GroupVersionKind) {
		if gvk != nil {
			r.Group, r.Version, r.Kind = gvk.Group, gvk.Version, gvk.Kind
		}
	}
	for _, d := range resources {
		r := metav1.APIResource{
			Name: d.Resource, SingularName: d.SingularResource, Namespaced: d.Scope == apidiscoveryv2.ScopeNamespace,
			Verbs: d.Verbs, ShortNames: d.ShortNames, Categories: d.Categories,
		}
		kindOf(&r, d.ResponseKind)
		out = append(out, r)
		for _, sub := range d.Subresources {
			r := metav1.APIResource{Name: d.Resource + "/" + sub.Subresource, Namespaced: r.Namespaced, Verbs: sub.Verbs}
			kindOf(&r, sub.ResponseKind)
			out = append(out, r)
		}
	}
	return out
}

// viewServed is an error when the host view is of a virtual cluster that there is not:
// it is not one, for it may be made later, but somebody should hear of it.
func (s *Server) viewServed(ctx context.Context) error {
	name := s.options.Host.View
	if name == "" {
		return nil
	}
	exists, _, _, err := s.clusters.State(ctx, name)
	if err == nil && !exists {
		err = errors.New("there is no such virtual cluster yet: the host is served nothing until it is made")
	}
	if err != nil {
		return fmt.Errorf("--host-view %s: %w", name, err)
	}
	return nil
}
