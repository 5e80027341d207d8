// Package definition shows the CustomResourceDefinitions of the kinds that a virtual
// cluster serves. They are part of the server and cannot be written.
package definition

import (
	"context"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// resourceVersion is that of every definition: they change with the server alone.
const resourceVersion = "1"

// REST lists, gets and watches the definitions, the same in every virtual cluster.
type REST struct {
	kind    *kind.Kind
	version string
	created metav1.Time
	load    func() ([]*object.Object, error)
}

var (
	_ rest.Getter               = (*REST)(nil)
	_ rest.Lister               = (*REST)(nil)
	_ rest.Watcher              = (*REST)(nil)
	_ rest.Scoper               = (*REST)(nil)
	_ rest.ShortNamesProvider   = (*REST)(nil)
	_ rest.CategoriesProvider   = (*REST)(nil)
	_ rest.SingularNameProvider = (*REST)(nil)
)

// New makes the storage of CustomResourceDefinitions. load gives them, sorted by name;
// it is called at each request, and what it returns is not modified.
func New(k *kind.Kind, load func() ([]*object.Object, error)) *REST {
	return &REST{kind: k, version: k.StorageVersion(), created: metav1.Now().Rfc3339Copy(), load: load}
}

func (r *REST) New() runtime.Object     { return object.New(r.kind.GVK(r.version)) }
func (r *REST) NewList() runtime.Object { return r.newList() }
func (r *REST) Destroy()                {}
func (r *REST) NamespaceScoped() bool   { return false }
func (r *REST) GetSingularName() string { return r.kind.Singular() }
func (r *REST) ShortNames() []string    { return r.kind.ShortNames() }
func (r *REST) Categories() []string    { return r.kind.Categories() }

func (r *REST) newList() *object.List {
	gvk := r.kind.ListGVK(r.version)
	return &object.List{
		TypeMeta: metav1.TypeMeta{APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind},
		ListMeta: metav1.ListMeta{ResourceVersion: resourceVersion},
	}
}

func (r *REST) ConvertToTable(ctx context.Context, obj, options runtime.Object) (*metav1.Table, error) {
	return r.kind.ConvertToTable(ctx, r.version, obj, options)
}

func (r *REST) selected(options *internalversion.ListOptions) ([]*object.Object, error) {
	all, err := r.load()
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	label, field := labels.Everything(), fields.Everything()
	if options != nil && options.LabelSelector != nil {
		label = options.LabelSelector
	}
	if options != nil && options.FieldSelector != nil {
		field = options.FieldSelector
	}
	var out []*object.Object
	for _, o := range all {
		if label.Matches(labels.Set(o.Labels)) && field.Matches(fields.Set{"metadata.name": o.Name}) {
			out = append(out, o)
		}
	}
	return out, nil
}

// Get implements rest.Getter.
func (r *REST) Get(_ context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	all, err := r.load()
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	i, ok := slices.BinarySearchFunc(all, name, func(o *object.Object, name string) int { return strings.Compare(o.Name, name) })
	if !ok {
		return nil, apierrors.NewNotFound(r.kind.GroupResource(), name)
	}
	return r.shown(all[i]), nil
}

// shown is a definition as it is answered: it exists since the server does.
func (r *REST) shown(o *object.Object) *object.Object {
	out := *o
	out.CreationTimestamp = r.created
	out.ResourceVersion = resourceVersion
	return &out
}

// List implements rest.Lister.
func (r *REST) List(_ context.Context, options *internalversion.ListOptions) (runtime.Object, error) {
	found, err := r.selected(options)
	if err != nil {
		return nil, err
	}
	list := r.newList()
	list.Items = make([]object.Object, 0, len(found))
	for _, o := range found {
		list.Items = append(list.Items, *r.shown(o))
	}
	return list, nil
}

// Watch implements rest.Watcher. After the definitions that there are, should they be
// asked for, nothing follows until the client goes.
func (r *REST) Watch(ctx context.Context, options *internalversion.ListOptions) (watch.Interface, error) {
	initial := options.SendInitialEvents != nil && *options.SendInitialEvents
	var found []*object.Object
	if initial || options.ResourceVersion == "" || options.ResourceVersion == "0" {
		var err error
		if found, err = r.selected(options); err != nil {
			return nil, err
		}
	}
	events := make(chan watch.Event, len(found)+1)
	for _, o := range found {
		events <- watch.Event{Type: watch.Added, Object: r.shown(o)}
	}
	if initial && options.AllowWatchBookmarks {
		end := object.New(r.kind.GVK(r.version))
		end.ResourceVersion = resourceVersion
		end.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
		events <- watch.Event{Type: watch.Bookmark, Object: end}
	}
	return watch.NewProxyWatcher(events), nil
}
