package namespace

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/builtin"
	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	registry "github.com/vmesh-io/vmesh/pkg/registry/namespace"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/storage/embedded"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
	"github.com/vmesh-io/vmesh/test/leak"
)

func TestMain(m *testing.M) {
	leak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("k8s.io/apiserver/pkg/storage/cacher.(*watchCache).waitUntilFreshLocked.func2"),
		goleak.IgnoreTopFunction("k8s.io/apiserver/pkg/storage/cacher.(*watchCache).waitUntilFreshLocked.func1"),
		goleak.IgnoreAnyFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"),
	)
}

// A mark may come in the moment in which the deletion of the namespace begins. Here the
// namespace's storage does not look for protected objects at all.
func TestWhatIsProtectedInATerminatingNamespaceStaysAndSoDoesTheNamespace(t *testing.T) {
	staysWhileItHoldsOne(t, map[string]string{v1alpha1.LabelProtected: "true"}, nil, nil, map[corev1.NamespaceConditionType]string{
		corev1.NamespaceContentRemaining: "has 1 resource instances, 1 of them protected by the label vmesh.io/protected",
	})
}

func TestATerminatingNamespaceSaysWhatRemainsWhereAWebhookRefusesItsDeletion(t *testing.T) {
	var off atomic.Bool
	staysWhileItHoldsOne(t, nil, refusing{&off}, func() { off.Store(true) }, map[corev1.NamespaceConditionType]string{
		corev1.NamespaceDeletionContentFailure: "a webhook says no",
		corev1.NamespaceContentRemaining:       "has 1 resource instances",
	})
}

// refusing is admission that does not let kept be deleted until it is off.
type refusing struct{ off *atomic.Bool }

func (refusing) Handles(operation admission.Operation) bool { return operation == admission.Delete }

func (r refusing) Validate(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetName() == "kept" && !r.off.Load() {
		return errors.New("a webhook says no")
	}
	return nil
}

// staysWhileItHoldsOne deletes a namespace with config maps, of which one with the labels
// is not to go. When the namespace's conditions are as wanted, letGo lets it; without, the
// labels are taken away.
func staysWhileItHoldsOne(t *testing.T, labels map[string]string, admit admission.Interface, letGo func(), wanted map[corev1.NamespaceConditionType]string) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	etcd, err := embedded.Start(ctx, embedded.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := etcd.Close(); err != nil {
			t.Error(err)
		}
	}()
	backend, err := logical.NewBackend(logical.BackendConfig{Client: etcd.Client()})
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
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
	namespaces, configMaps := open("namespaces"), open("configmaps")
	if err := backend.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	namespaceREST, finalizeREST := registry.NewREST(namespaces)
	content := New(namespaceREST, finalizeREST, []*resource.Store{configMaps}, admit)

	outside := request.WithNamespace(logical.WithCluster(ctx, "shop"), metav1.NamespaceNone)
	inside := request.WithNamespace(logical.WithCluster(ctx, "shop"), "team")
	create := func(ctx context.Context, s rest.Creater, kind, namespace, name string, labels map[string]string) {
		t.Helper()
		o := object.New(corev1.SchemeGroupVersion.WithKind(kind))
		o.Name, o.Namespace, o.Labels = name, namespace, labels
		if _, err := s.Create(ctx, o, rest.ValidateAllObjectFunc, &metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	create(outside, namespaceREST, "Namespace", "", "team", nil)
	create(inside, configMaps, "ConfigMap", "team", "kept", labels)
	for i := range 5 {
		create(inside, configMaps, "ConfigMap", "team", fmt.Sprintf("c%d", i), nil)
	}
	if _, _, err := namespaceREST.Delete(outside, "team", rest.ValidateAllObjectFunc, nil); err != nil {
		t.Fatal(err)
	}
	work, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { content.Run(work) })
	wg.Go(func() {
		if err := backend.Observe(work, namespaces.Kind().GroupResource(), content); err != context.Canceled {
			t.Error(err)
		}
	})

	eventually := func(what string, check func() bool) {
		t.Helper()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for !check() {
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatalf("timed out waiting until %s", what)
			}
		}
	}
	condition := func(wanted corev1.NamespaceConditionType) string {
		obj, err := namespaceREST.Get(outside, "team", &metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var ns corev1.Namespace
		if err := obj.(*object.Object).Into(&ns); err != nil {
			t.Fatal(err)
		}
		for _, c := range ns.Status.Conditions {
			if c.Type == wanted && c.Status == corev1.ConditionTrue {
				return c.Message
			}
		}
		return ""
	}
	for of, message := range wanted {
		eventually(fmt.Sprintf("%s of the namespace says: %s", of, message), func() bool { return strings.Contains(condition(of), message) })
	}
	if _, err := configMaps.Get(inside, "kept", &metav1.GetOptions{}); err != nil {
		t.Errorf("the object that is not to go: %v", err)
	}
	if letGo != nil {
		letGo()
	} else {
		_, _, err := configMaps.Update(inside, "kept", rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
			o := old.(*object.Object).DeepCopy()
			o.Labels = nil
			return o, nil
		}), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	eventually("the namespace is gone", func() bool {
		_, err := namespaceREST.Get(outside, "team", &metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
}
