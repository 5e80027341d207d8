package namespace

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/builtin"
	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/storage/embedded"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// server is the storage of namespaces as a virtual cluster's client meets it.
type server struct {
	t         *testing.T
	ctx       context.Context
	rest      *REST
	finalizer *FinalizeREST
}

func newServer(t *testing.T) *server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	etcd, err := embedded.Start(ctx, embedded.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := etcd.Close(); err != nil {
			t.Error(err)
		}
	})
	backend, err := logical.NewBackend(logical.BackendConfig{Client: etcd.Client()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(backend.Close)
	kinds, err := builtin.Kinds()
	if err != nil {
		t.Fatal(err)
	}
	open := func(plural string) *resource.Store {
		store, err := resource.NewStore(kinds[slices.IndexFunc(kinds, func(k *kind.Kind) bool { return k.Resource() == plural })], backend)
		if err != nil {
			t.Fatal(err)
		}
		return store
	}
	store, contents := open("namespaces"), []*resource.Store{open("configmaps"), open("secrets")}
	if err := backend.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, ctx: request.WithNamespace(logical.WithCluster(ctx, "shop"), metav1.NamespaceNone)}
	s.rest, s.finalizer = NewREST(store)
	s.rest.Contents = contents
	return s
}

func (s *server) create(name string, finalizers ...string) {
	s.t.Helper()
	o := object.New(corev1.SchemeGroupVersion.WithKind("Namespace"))
	o.Name, o.Finalizers = name, finalizers
	if _, err := s.rest.Create(s.ctx, o, rest.ValidateAllObjectFunc, &metav1.CreateOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) update(updater rest.Updater, name string, change func(*corev1.Namespace)) {
	s.t.Helper()
	_, _, err := updater.Update(s.ctx, name, rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
		ns := read(s.t, old)
		change(ns)
		return object.From(ns, old.GetObjectKind().GroupVersionKind())
	}), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) delete(name string, options *metav1.DeleteOptions) (*corev1.Namespace, bool, error) {
	obj, gone, err := s.rest.Delete(s.ctx, name, rest.ValidateAllObjectFunc, options)
	if err != nil {
		return nil, gone, err
	}
	return read(s.t, obj), gone, nil
}

// get gives nil for what is not there.
func (s *server) get(name string) *corev1.Namespace {
	s.t.Helper()
	obj, err := s.rest.Get(s.ctx, name, &metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return read(s.t, obj)
}

func read(t *testing.T, obj runtime.Object) *corev1.Namespace {
	t.Helper()
	ns := &corev1.Namespace{}
	if err := obj.(*object.Object).Into(ns); err != nil {
		t.Fatal(err)
	}
	return ns
}

func unspec(ns *corev1.Namespace) { ns.Spec.Finalizers = nil }

func TestANamespaceIsThereUntilItIsFinalized(t *testing.T) {
	s := newServer(t)
	for _, c := range []struct {
		name       string
		finalizers []string
		do         func(name string)
		stays      bool
	}{
		{"deleted", nil, func(string) {}, true},
		{"deleted-twice", nil, func(name string) { _, _, _ = s.delete(name, nil) }, true},
		{"updated-without-its-finalizers", nil, func(name string) { s.update(s.rest, name, unspec) }, true},
		{"finalized", nil, func(name string) { s.update(s.finalizer, name, unspec) }, false},
		{"finalized-with-another-finalizer", []string{"example.com/a"}, func(name string) { s.update(s.finalizer, name, unspec) }, true},
		{"without-the-other-finalizer", []string{"example.com/a"}, func(name string) {
			s.update(s.rest, name, func(ns *corev1.Namespace) { ns.Finalizers = nil })
		}, true},
		{"without-either", []string{"example.com/a"}, func(name string) {
			s.update(s.finalizer, name, unspec)
			s.update(s.rest, name, func(ns *corev1.Namespace) { ns.Finalizers = nil })
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.create(c.name, c.finalizers...)
			marked, gone, err := s.delete(c.name, nil)
			if err != nil || gone || marked.Status.Phase != corev1.NamespaceTerminating || marked.DeletionTimestamp == nil {
				t.Fatalf("the deletion gave %v, %t, %v", marked, gone, err)
			}
			c.do(c.name)
			if ns := s.get(c.name); (ns != nil) != c.stays {
				t.Errorf("the namespace is %v", ns)
			}
		})
	}
}

func TestTheFinalizersOfTheSpecAreWrittenAtTheirOwnEndpoint(t *testing.T) {
	s := newServer(t)
	s.create("a")
	s.update(s.rest, "a", func(ns *corev1.Namespace) { unspec(ns); ns.Labels["x"] = "y" })
	if ns := s.get("a"); !slices.Equal(ns.Spec.Finalizers, []corev1.FinalizerName{corev1.FinalizerKubernetes}) || ns.Labels["x"] != "y" {
		t.Errorf("an update left %v, %v", ns.Spec, ns.Labels)
	}
	s.update(s.finalizer, "a", func(ns *corev1.Namespace) {
		ns.Spec.Finalizers = []corev1.FinalizerName{"example.com/b"}
		ns.Labels["x"], ns.Status.Phase = "z", corev1.NamespaceTerminating
	})
	if ns := s.get("a"); !slices.Equal(ns.Spec.Finalizers, []corev1.FinalizerName{"example.com/b"}) || ns.Labels["x"] != "y" || ns.Status.Phase != corev1.NamespaceActive {
		t.Errorf("the endpoint left %v, %v, %v", ns.Spec, ns.Labels, ns.Status)
	}
}

func TestADeletionMayBeConditionalOrDry(t *testing.T) {
	s := newServer(t)
	s.create("a")
	other, stale := types.UID("other"), "1"
	for name, p := range map[string]metav1.Preconditions{"another UID": {UID: &other}, "an old resourceVersion": {ResourceVersion: &stale}} {
		if _, _, err := s.delete("a", &metav1.DeleteOptions{Preconditions: &p}); !apierrors.IsConflict(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, _, err := s.delete("a", &metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
		t.Error(err)
	}
	if ns := s.get("a"); ns.DeletionTimestamp != nil || ns.Status.Phase != corev1.NamespaceActive {
		t.Errorf("it is marked all the same: %v", ns)
	}
	if _, _, err := s.delete("b", nil); !apierrors.IsNotFound(err) {
		t.Errorf("what is not there: %v", err)
	}
}

func TestANamespaceThatIsProtectedOrHoldsWhatIsStays(t *testing.T) {
	s := newServer(t)
	inside := func(cluster, namespace string) context.Context {
		return request.WithNamespace(logical.WithCluster(s.ctx, cluster), namespace)
	}
	configMap := func(cluster, namespace, name, protected string) {
		t.Helper()
		o := object.New(corev1.SchemeGroupVersion.WithKind("ConfigMap"))
		o.Name, o.Namespace, o.Labels = name, namespace, map[string]string{v1alpha1.LabelProtected: protected}
		if _, err := s.rest.Contents[0].Create(inside(cluster, namespace), o, rest.ValidateAllObjectFunc, &metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	label := func(name, protected string) {
		s.update(s.rest, name, func(ns *corev1.Namespace) { ns.Labels[v1alpha1.LabelProtected] = protected })
	}
	for _, name := range []string{"a", "b", "c"} {
		s.create(name)
	}
	configMap("shop", "b", "kept", "true")
	configMap("shop", "c", "other", "false")
	configMap("other", "c", "kept", "true")
	label("a", "true")
	for _, c := range []struct {
		name string
		want string // in the error
	}{
		{"a", "kubectl label namespaces a vmesh.io/protected-"}, {"b", "it holds an object that is protected from deletion (configmaps b/kept)"}, {"c", ""},
	} {
		for _, dry := range []bool{true, false} {
			options := &metav1.DeleteOptions{}
			if dry {
				options.DryRun = []string{metav1.DryRunAll}
			}
			_, _, err := s.delete(c.name, options)
			if c.want == "" && err != nil || c.want != "" && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%s: got %v, want %q", c.name, err, c.want)
			}
		}
		if ns := s.get(c.name); (ns.DeletionTimestamp == nil) != (c.want != "") {
			t.Errorf("%s: deleted at %v", c.name, ns.DeletionTimestamp)
		}
	}
	label("a", "false")
	if _, _, err := s.delete("a", nil); err != nil {
		t.Errorf("unmarked: %v", err)
	}
}
