// Package meshservice serves the services of a mesh in its virtual clusters: what the member
// clusters have, merged, with what the mesh's configuration says of them. Nothing of it is stored.
package meshservice

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/warning"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/discovery"
)

// Scope is what a virtual cluster sees of its mesh. Two are equal if they are the same.
type Scope struct {
	// Cluster is the virtual cluster, and Mesh its mesh.
	Cluster, Mesh string
	// Home says that the mesh's control planes live in it: it sees everything.
	Home bool
	// Of is that which says who owns a namespace. It never changes.
	Of Owners
}

// Owners say who owns a namespace of a mesh.
type Owners interface {
	Owner(mesh, namespace string) (cluster string, ok bool)
}

// Sees says whether the services of a namespace are shown.
func (s *Scope) Sees(namespace string) bool {
	if s.Home {
		return true
	}
	owner, owned := s.Of.Owner(s.Mesh, namespace)
	return owned && owner == s.Cluster
}

// Scopes tells what the virtual cluster of a request sees.
type Scopes func(ctx context.Context) (Scope, error)

// REST gets, lists and watches the services of a mesh.
type REST struct {
	kind    *kind.Kind
	version string
	view    *discovery.View
	scopes  Scopes
	routes  *Routes
	tick    time.Duration
}

var (
	_ rest.Getter               = (*REST)(nil)
	_ rest.Lister               = (*REST)(nil)
	_ rest.Watcher              = (*REST)(nil)
	_ rest.Scoper               = (*REST)(nil)
	_ rest.SingularNameProvider = (*REST)(nil)
	_ rest.ShortNamesProvider   = (*REST)(nil)
	_ rest.CategoriesProvider   = (*REST)(nil)
)

// New makes the storage.
func New(k *kind.Kind, view *discovery.View, scopes Scopes, routes *Routes) *REST {
	return &REST{kind: k, version: k.StorageVersion(), view: view, scopes: scopes, routes: routes, tick: time.Second}
}

// New implements rest.Storage.
func (r *REST) New() runtime.Object { return object.New(r.kind.GVK(r.version)) }

// NewList implements rest.Lister.
func (r *REST) NewList() runtime.Object { return r.newList() }

// Destroy implements rest.Storage.
func (r *REST) Destroy() {}

// NamespaceScoped implements rest.Scoper.
func (r *REST) NamespaceScoped() bool { return true }

// GetSingularName implements rest.SingularNameProvider.
func (r *REST) GetSingularName() string { return r.kind.Singular() }

// ShortNames implements rest.ShortNamesProvider.
func (r *REST) ShortNames() []string { return r.kind.ShortNames() }

// Categories implements rest.CategoriesProvider.
func (r *REST) Categories() []string { return r.kind.Categories() }

func (r *REST) newList() *object.List {
	gvk := r.kind.ListGVK(r.version)
	return &object.List{TypeMeta: metav1.TypeMeta{APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind}}
}

// ConvertToTable implements rest.TableConvertor.
func (r *REST) ConvertToTable(ctx context.Context, obj, options runtime.Object) (*metav1.Table, error) {
	return r.kind.ConvertToTable(ctx, r.version, obj, options)
}

// Get implements rest.Getter.
func (r *REST) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	scope, err := r.scopes(ctx)
	if err != nil {
		return nil, err
	}
	r.warn(ctx, scope.Mesh)
	key := discovery.Key{Namespace: request.NamespaceValue(ctx), Name: name}
	at := r.routes.now(scope.Mesh)
	if scope.Sees(key.Namespace) {
		if s, found := r.view.Get(scope.Mesh, key.Namespace, key.Name); found {
			return r.object(&scope, at, s)
		}
	}
	return nil, apierrors.NewNotFound(r.kind.GroupResource(), name)
}

// List implements rest.Lister.
func (r *REST) List(ctx context.Context, options *internalversion.ListOptions) (runtime.Object, error) {
	scope, err := r.scopes(ctx)
	if err != nil {
		return nil, err
	}
	r.warn(ctx, scope.Mesh)
	f := newFilter(ctx, options)
	at := r.routes.now(scope.Mesh)
	services, version := r.view.List(scope.Mesh, f.in(&scope))
	list := r.newList()
	list.ResourceVersion = encodeVersion(version)
	for _, s := range services {
		if !f.selects(s) {
			continue
		}
		o, err := r.object(&scope, at, s)
		if err != nil {
			return nil, err
		}
		list.Items = append(list.Items, *o)
	}
	return list, nil
}

func encodeVersion(v uint64) string { return strconv.FormatUint(v, 10) }

// filter is what a request selects.
type filter struct {
	namespace string
	label     labels.Selector
	field     fields.Selector
}

func newFilter(ctx context.Context, options *internalversion.ListOptions) filter {
	f := filter{namespace: request.NamespaceValue(ctx), label: labels.Everything(), field: fields.Everything()}
	if options != nil && options.LabelSelector != nil {
		f.label = options.LabelSelector
	}
	if options != nil && options.FieldSelector != nil {
		f.field = options.FieldSelector
	}
	return f
}

// in says which namespaces are asked for and shown.
func (f *filter) in(s *Scope) func(namespace string) bool {
	return func(namespace string) bool {
		return (f.namespace == "" || f.namespace == namespace) && s.Sees(namespace)
	}
}

func (f *filter) selects(s discovery.Service) bool {
	return f.label.Matches(labels.Set(s.Labels)) && f.field.Matches(fields.Set{"metadata.name": s.Name, "metadata.namespace": s.Namespace})
}

// maxWarnings is how many members a reader is warned of by name.
const maxWarnings = 3

// warn tells a reader of members of which what is shown may not be what there is.
func (r *REST) warn(ctx context.Context, mesh string) {
	var all []string
	for _, m := range r.view.Members(mesh) {
		switch {
		case !m.AwaySince.IsZero():
			all = append(all, fmt.Sprintf("member cluster %s has not answered since %s: what is shown of it is as old", m.Name, m.AwaySince.UTC().Format(time.RFC3339)))
		case !m.Synced:
			all = append(all, fmt.Sprintf("the services of member cluster %s have not all been read yet", m.Name))
		case m.Drained:
			all = append(all, fmt.Sprintf("member cluster %s is drained: its endpoints are not called while others serve", m.Name))
		}
	}
	if more := len(all) - maxWarnings; more > 1 {
		all = append(all[:maxWarnings], fmt.Sprintf("%d more member clusters are away, drained or not read yet", more))
	}
	for _, text := range all {
		warning.AddWarning(ctx, "", text)
	}
}

// object is a service as a virtual cluster sees it.
func (r *REST) object(scope *Scope, at *routing, s discovery.Service) (*object.Object, error) {
	m := &v1alpha1.MeshService{ObjectMeta: metadata(scope, s.Namespace, s.Name, s.Version), Status: Status(s)}
	m.CreationTimestamp, m.Labels = metav1.NewTime(s.Created), s.Labels
	m.Status.Routes = at.routes(scope, s.Namespace, m.Status.Host)
	m.Status.Summary.Routes = summarizeRoutes(s.Namespace, m.Status.Routes)
	m.Status.Traffic = at.traffic(scope.Mesh, s, m.Status.Host)
	return object.From(m, r.kind.GVK(r.version))
}

// gone is a service that is there no more, of which only its name is known.
func (r *REST) gone(scope *Scope, c discovery.Change) (*object.Object, error) {
	m := &v1alpha1.MeshService{ObjectMeta: metadata(scope, c.Namespace, c.Name, c.Version)}
	m.Status = Status(discovery.Service{Namespace: c.Namespace, Name: c.Name})
	return object.From(m, r.kind.GVK(r.version))
}

// space is that of the UIDs of services.
var space = uuid.MustParse("5d1c6a52-5f0e-4c9e-9d5c-0f1f7a3f6b1e")

func metadata(scope *Scope, namespace, name string, version uint64) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: namespace, Name: name, ResourceVersion: encodeVersion(version),
		UID: types.UID(uuid.NewSHA1(space, []byte(scope.Mesh+"/"+namespace+"/"+name)).String()),
	}
}

// Host is that by which the mesh calls a service.
func Host(namespace, name string) string { return name + "." + namespace + hostSuffix }

const hostSuffix = ".svc.cluster.local"

// Status is what the members have of a service.
func Status(s discovery.Service) v1alpha1.MeshServiceStatus {
	st := v1alpha1.MeshServiceStatus{Host: Host(s.Namespace, s.Name), Clusters: []v1alpha1.MeshServiceCluster{}}
	var names, networks, localities, ports []string
	for _, c := range s.Clusters {
		out := v1alpha1.MeshServiceCluster{
			Name: c.Member, Network: c.Network, Drained: c.Drained, Type: c.Type, Headless: c.Headless, Endpoints: c.Endpoints, Ready: c.Ready,
		}
		if !c.AwaySince.IsZero() {
			t := metav1.NewTime(c.AwaySince)
			out.AwaySince = &t
		}
		for _, p := range c.Ports {
			port := v1alpha1.MeshServicePort{Name: p.Name, Port: p.Port, Protocol: p.Protocol, AppProtocol: appProtocol(p)}
			out.Ports = append(out.Ports, port)
			ports = addOnce(ports, summarizePort(port))
		}
		for _, l := range c.Localities {
			out.Localities = append(out.Localities, v1alpha1.MeshServiceLocality{Locality: l.Name, Endpoints: l.Endpoints, Ready: l.Ready})
			localities = addOnce(localities, l.Name)
		}
		st.Clusters = append(st.Clusters, out)
		st.Endpoints += c.Endpoints
		name := c.Member
		switch {
		case c.Drained:
			name += "(drained)"
		case !c.AwaySince.IsZero():
			name += "(away)"
		}
		if !c.Drained {
			st.Ready += c.Ready
		}
		names, networks = append(names, name), addOnce(networks, c.Network)
	}
	slices.Sort(localities)
	slices.Sort(networks)
	st.Differences = differences(st.Clusters)
	st.Summary = v1alpha1.MeshServiceSummary{
		Clusters: some(names), Networks: some(networks), Localities: some(localities), Ports: some(ports),
		Ready: fmt.Sprintf("%d/%d", st.Ready, st.Endpoints),
	}
	return st
}

// addOnce adds a text that is not empty.
func addOnce(all []string, s string) []string {
	if s == "" || slices.Contains(all, s) {
		return all
	}
	return append(all, s)
}
