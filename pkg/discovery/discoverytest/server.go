// Package discoverytest serves as much of a Kubernetes API as those need who read services:
// lists and watches of services, endpoint slices and nodes in protobuf, as fast as they are read.
package discoverytest

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
	"k8s.io/apimachinery/pkg/watch"
	restwatch "k8s.io/client-go/rest/watch"
)

// Server is a cluster's API. It is a handler of plain HTTP/1.1 or HTTP/2.
type Server struct {
	mu        sync.Mutex
	revision  uint64
	first     uint64 // revisions before are forgotten
	resources map[string]*resource
	away      bool
	forbidden map[string]bool
	streams   map[chan struct{}]struct{} // closed to end all watches
	requests  map[string]int
}

type resource struct {
	objects map[string]runtime.Object
	log     []event
	wake    chan struct{}
}

type event struct {
	revision uint64
	watch.Event
}

var (
	scheme = func() *runtime.Scheme {
		s := runtime.NewScheme()
		for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme, metav1.AddMetaToScheme} {
			if err := add(s); err != nil {
				panic(err)
			}
		}
		metav1.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"})
		return s
	}()
	encoder = protobuf.NewSerializer(scheme, scheme)
	framer  = protobuf.NewRawSerializer(scheme, scheme)
)

const (
	services = "services"
	slicesOf = "endpointslices"
	nodes    = "nodes"
)

// New makes a server of an empty cluster.
func New() *Server {
	s := &Server{revision: 1, first: 1, resources: map[string]*resource{}, forbidden: map[string]bool{}, streams: map[chan struct{}]struct{}{}, requests: map[string]int{}}
	for _, name := range []string{services, slicesOf, nodes} {
		s.resources[name] = &resource{objects: map[string]runtime.Object{}, wake: make(chan struct{})}
	}
	return s
}

func resourceOf(obj runtime.Object) string {
	switch obj.(type) {
	case *corev1.Service:
		return services
	case *discoveryv1.EndpointSlice:
		return slicesOf
	case *metav1.PartialObjectMetadata:
		return nodes
	}
	panic(fmt.Sprintf("%T is not served", obj))
}

// Set creates or updates a service, an endpoint slice or a node (as its metadata).
func (s *Server) Set(obj runtime.Object) {
	s.change(obj, func(r *resource, key string, obj runtime.Object) watch.EventType {
		_, had := r.objects[key]
		r.objects[key] = obj
		if had {
			return watch.Modified
		}
		return watch.Added
	})
}

// Delete deletes what Set has set.
func (s *Server) Delete(obj runtime.Object) {
	s.change(obj, func(r *resource, key string, _ runtime.Object) watch.EventType {
		delete(r.objects, key)
		return watch.Deleted
	})
}

// logged is how many changes of a resource are remembered.
const logged = 4096

func (s *Server) change(obj runtime.Object, apply func(*resource, string, runtime.Object) watch.EventType) {
	obj = obj.DeepCopyObject()
	m, err := meta.Accessor(obj)
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	m.SetResourceVersion(strconv.FormatUint(s.revision, 10))
	r := s.resources[resourceOf(obj)]
	t := apply(r, m.GetNamespace()+"/"+m.GetName(), obj)
	if len(r.log) == logged {
		s.first = max(s.first, r.log[0].revision)
		r.log = slices.Delete(r.log, 0, 1)
	}
	r.log = append(r.log, event{s.revision, watch.Event{Type: t, Object: obj}})
	close(r.wake)
	r.wake = make(chan struct{})
}

// Away has all requests fail, and all watches end, or ends that.
func (s *Server) Away(away bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away = away; away {
		s.cut()
	}
}

// Forget has the server know no changes any more, so that watches begin with lists, and ends
// all watches.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	s.first = s.revision
	for _, r := range s.resources {
		r.log = nil
	}
	s.cut()
}

func (s *Server) cut() {
	for stream := range s.streams {
		close(stream)
		delete(s.streams, stream)
	}
}

// Forbid has requests for a resource be refused, or ends that.
func (s *Server) Forbid(resource string, forbidden bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forbidden[resource] = forbidden
	s.cut()
}

// Requests is how many there were for a resource.
func (s *Server) Requests(resource string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests[resource]
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	name := req.URL.Path[strings.LastIndexByte(req.URL.Path, '/')+1:]
	s.mu.Lock()
	r := s.resources[name]
	away, forbidden := s.away, s.forbidden[name]
	s.requests[name]++
	s.mu.Unlock()
	var q metav1.ListOptions
	if err := metav1.Convert_url_Values_To_v1_ListOptions(ptr(req.URL.Query()), &q, nil); err != nil {
		s.fail(w, apierrors.NewBadRequest(err.Error()))
		return
	}
	switch {
	case r == nil:
		s.fail(w, apierrors.NewNotFound(schema.GroupResource{Resource: name}, ""))
	case away:
		s.fail(w, apierrors.NewServiceUnavailable("away"))
	case forbidden:
		s.fail(w, apierrors.NewForbidden(schema.GroupResource{Resource: name}, "", fmt.Errorf("nobody may")))
	case !strings.Contains(req.Header.Get("Accept"), runtime.ContentTypeProtobuf):
		http.Error(w, "only protobuf is served", http.StatusNotAcceptable)
	case q.Watch:
		s.watch(w, req, r, &q)
	default:
		s.list(w, name, r)
	}
}

func ptr[T any](v T) *T { return &v }

func (s *Server) fail(w http.ResponseWriter, err *apierrors.StatusError) {
	w.Header().Set("Content-Type", runtime.ContentTypeProtobuf)
	w.WriteHeader(int(err.ErrStatus.Code))
	status := err.Status()
	status.APIVersion, status.Kind = "v1", "Status"
	_ = encoder.Encode(&status, w)
}

// sorted are all objects of a resource.
func (r *resource) sorted() []runtime.Object {
	keys := make([]string, 0, len(r.objects))
	for key := range r.objects {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	all := make([]runtime.Object, len(keys))
	for i, key := range keys {
		all[i] = r.objects[key]
	}
	return all
}

func (s *Server) list(w http.ResponseWriter, name string, r *resource) {
	s.mu.Lock()
	at := metav1.ListMeta{ResourceVersion: strconv.FormatUint(s.revision, 10)}
	var list runtime.Object
	switch name {
	case services:
		l := &corev1.ServiceList{ListMeta: at}
		for _, o := range r.sorted() {
			l.Items = append(l.Items, *o.(*corev1.Service))
		}
		l.APIVersion, l.Kind, list = "v1", "ServiceList", l
	case slicesOf:
		l := &discoveryv1.EndpointSliceList{ListMeta: at}
		for _, o := range r.sorted() {
			l.Items = append(l.Items, *o.(*discoveryv1.EndpointSlice))
		}
		l.APIVersion, l.Kind, list = "discovery.k8s.io/v1", "EndpointSliceList", l
	case nodes:
		l := &metav1.PartialObjectMetadataList{ListMeta: at}
		for _, o := range r.sorted() {
			l.Items = append(l.Items, *o.(*metav1.PartialObjectMetadata))
		}
		l.APIVersion, l.Kind, list = "meta.k8s.io/v1", "PartialObjectMetadataList", l
	}
	s.mu.Unlock()
	w.Header().Set("Content-Type", runtime.ContentTypeProtobuf)
	_ = encoder.Encode(list, w)
}

// typed is a copy of an object that says what it is.
func typed(obj runtime.Object) runtime.Object {
	obj = obj.DeepCopyObject()
	switch o := obj.(type) {
	case *corev1.Service:
		o.APIVersion, o.Kind = "v1", "Service"
	case *discoveryv1.EndpointSlice:
		o.APIVersion, o.Kind = "discovery.k8s.io/v1", "EndpointSlice"
	case *metav1.PartialObjectMetadata:
		o.APIVersion, o.Kind = "meta.k8s.io/v1", "PartialObjectMetadata"
	}
	return obj
}

func (s *Server) watch(w http.ResponseWriter, req *http.Request, r *resource, q *metav1.ListOptions) {
	since, _ := strconv.ParseUint(cmp.Or(q.ResourceVersion, "0"), 10, 64)
	initial := q.SendInitialEvents != nil && *q.SendInitialEvents
	s.mu.Lock()
	if !initial && since < s.first {
		s.mu.Unlock()
		s.fail(w, apierrors.NewResourceExpired("forgotten"))
		return
	}
	var first []runtime.Object
	if initial {
		first, since = r.sorted(), s.revision
	}
	ended := make(chan struct{})
	s.streams[ended] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.streams, ended)
	}()

	w.Header().Set("Content-Type", runtime.ContentTypeProtobuf+";stream=watch")
	out := restwatch.NewEncoder(streaming.NewEncoder(protobuf.LengthDelimitedFramer.NewFrameWriter(w), framer), encoder)
	flusher := w.(http.Flusher)
	for _, o := range first {
		if out.Encode(&watch.Event{Type: watch.Added, Object: typed(o)}) != nil {
			return
		}
	}
	if initial {
		if out.Encode(&watch.Event{Type: watch.Bookmark, Object: bookmark(r, req, since)}) != nil {
			return
		}
	}
	flusher.Flush()
	for {
		s.mu.Lock()
		at, _ := slices.BinarySearchFunc(r.log, since+1, func(e event, revision uint64) int { return cmp.Compare(e.revision, revision) })
		events, wake := slices.Clone(r.log[at:]), r.wake
		s.mu.Unlock()
		for _, e := range events {
			if out.Encode(&watch.Event{Type: e.Type, Object: typed(e.Object)}) != nil {
				return
			}
			since = e.revision
		}
		flusher.Flush()
		select {
		case <-wake:
		case <-ended:
			return
		case <-req.Context().Done():
			return
		}
	}
}

// bookmark ends the initial events.
func bookmark(_ *resource, req *http.Request, revision uint64) runtime.Object {
	at := metav1.ObjectMeta{
		ResourceVersion: strconv.FormatUint(revision, 10), Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"},
	}
	switch {
	case strings.HasSuffix(req.URL.Path, "/"+services):
		return typed(&corev1.Service{ObjectMeta: at})
	case strings.HasSuffix(req.URL.Path, "/"+slicesOf):
		return typed(&discoveryv1.EndpointSlice{ObjectMeta: at})
	}
	return typed(&metav1.PartialObjectMetadata{ObjectMeta: at})
}
