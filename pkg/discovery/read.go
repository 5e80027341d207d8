package discovery

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// run reads one member by one access, until it is cancelled. What it reads after that is
// not stored.
type run struct {
	view   *View
	name   string
	config *rest.Config
	cancel context.CancelFunc
}

// sliceSelector is for the slices of services, without those that bring endpoints of
// other clusters.
const sliceSelector = discoveryv1.LabelServiceName + ",!" + multiClusterService

// read lists and watches until ctx ends.
func (r *run) read(ctx context.Context) {
	config := rest.CopyConfig(r.config)
	config.Timeout = 0 // watches last
	config.QPS, config.Burst = -1, 0
	config.RateLimiter = nil
	config.AcceptContentTypes, config.ContentType = runtime.ContentTypeProtobuf+","+runtime.ContentTypeJSON, runtime.ContentTypeProtobuf
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		r.fail(fmt.Errorf("the access to its API: %w", err))
		return
	}
	defer client.CloseIdleConnections()

	typed := func(gv schema.GroupVersion, path string) (*rest.RESTClient, error) {
		config := rest.CopyConfig(config)
		config.GroupVersion, config.APIPath, config.NegotiatedSerializer = &gv, path, scheme.Codecs.WithoutConversion()
		return rest.RESTClientForConfigAndClient(config, client)
	}
	core, err := typed(corev1.SchemeGroupVersion, "/api")
	if err != nil {
		r.fail(err)
		return
	}
	discovery, err := typed(discoveryv1.SchemeGroupVersion, "/apis")
	if err != nil {
		r.fail(err)
		return
	}
	nodes, err := metadata.NewForConfigAndClient(metadata.ConfigFor(config), client)
	if err != nil {
		r.fail(err)
		return
	}
	partial := nodes.Resource(corev1.SchemeGroupVersion.WithResource("nodes"))

	var wg sync.WaitGroup
	for kind, source := range [kinds]struct {
		of runtime.Object
		lw cache.ListWatch
	}{
		kindServices: {&corev1.Service{}, listWatch(core, "services", "", func() runtime.Object { return &corev1.ServiceList{} })},
		kindSlices:   {&discoveryv1.EndpointSlice{}, listWatch(discovery, "endpointslices", sliceSelector, func() runtime.Object { return &discoveryv1.EndpointSliceList{} })},
		kindNodes: {&metav1.PartialObjectMetadata{}, cache.ListWatch{
			ListWithContextFunc:  func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return partial.List(ctx, o) },
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return partial.Watch(ctx, o) },
		}},
	} {
		s := &sink{r, kind}
		lw := s.watched(source.lw)
		reflector := cache.NewReflectorWithOptions(lw, source.of, s, cache.ReflectorOptions{Name: r.name, TypeDescription: kindNames[kind]})
		wg.Go(func() { reflector.RunWithContext(ctx) })
	}
	wg.Wait()
}

// listWatch lists and watches one resource in all namespaces.
func listWatch(client rest.Interface, resource, selector string, list func() runtime.Object) cache.ListWatch {
	return cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector = selector
			all := list()
			return all, client.Get().Resource(resource).VersionedParams(&o, scheme.ParameterCodec).Do(ctx).Into(all)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector, o.Watch = selector, true
			return client.Get().Resource(resource).VersionedParams(&o, scheme.ParameterCodec).Watch(ctx)
		},
	}
}

// fail takes note that nothing can be read at all.
func (r *run) fail(err error) {
	r.do(func(v *View, m *member) {
		for kind := range m.trouble {
			m.trouble[kind] = err.Error()
		}
	})
}

// do changes what the view has of the member, unless the run has been replaced.
func (r *run) do(change func(*View, *member)) {
	v := r.view
	v.mu.Lock()
	defer v.mu.Unlock()
	m := v.members[r.name]
	if m == nil || m.run != r {
		return
	}
	change(v, m)
	v.metrics.observe(m)
}

// sink stores one kind of what a run reads.
type sink struct {
	run  *run
	kind int
}

var _ cache.TransformingStore = (*sink)(nil)

// watched is a source whose errors are taken note of.
func (s *sink) watched(lw cache.ListWatch) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := lw.ListWithContextFunc(ctx, o)
			s.note(ctx, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			w, err := lw.WatchFuncWithContext(ctx, o)
			s.note(ctx, err)
			return w, err
		},
	}
}

// note takes note that the source has answered, or what keeps it from that.
func (s *sink) note(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	trouble := ""
	if err != nil {
		trouble = err.Error()
	}
	s.run.do(func(_ *View, m *member) { m.trouble[s.kind] = trouble })
}

// Add implements cache.ReflectorStore.
func (s *sink) Add(obj any) error {
	item := compact(obj)
	if item == nil {
		return s.Delete(obj)
	}
	s.run.do(func(v *View, m *member) { v.set(m, item) })
	s.run.view.metrics.event(s.kind)
	return nil
}

// Update implements cache.ReflectorStore.
func (s *sink) Update(obj any) error { return s.Add(obj) }

// Delete implements cache.ReflectorStore.
func (s *sink) Delete(obj any) error {
	o, err := meta.Accessor(obj)
	if err != nil {
		return err
	}
	namespace, name := o.GetNamespace(), o.GetName()
	s.run.do(func(v *View, m *member) { v.remove(m, s.kind, namespace, name) })
	s.run.view.metrics.event(s.kind)
	return nil
}

// Replace implements cache.ReflectorStore.
func (s *sink) Replace(items []any, _ string) error {
	compacted := make([]any, 0, len(items))
	for i, obj := range items {
		if item := compact(obj); item != nil {
			compacted = append(compacted, item)
		}
		items[i] = nil // so that a large list is garbage soon
	}
	s.run.do(func(v *View, m *member) { v.replace(m, s.kind, compacted) })
	return nil
}

// Resync implements cache.ReflectorStore.
func (s *sink) Resync() error { return nil }

// Transformer implements cache.TransformingStore, so that what is streamed is held in its small form.
func (s *sink) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		if item := compact(obj); item != nil {
			return item, nil
		}
		return (*readSlice)(nil), nil
	}
}
