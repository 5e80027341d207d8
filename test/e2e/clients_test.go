package e2e

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	networkingapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	applynetworking "istio.io/client-go/pkg/applyconfiguration/networking/v1"
	istio "istio.io/client-go/pkg/clientset/versioned"
	istioinformers "istio.io/client-go/pkg/informers/externalversions"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/watch"
	applycore "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/retry"

	"github.com/vmesh-io/vmesh/pkg/apiserver"
	"github.com/vmesh-io/vmesh/test/e2e/rawapi"
)

var virtualServiceGVR = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "virtualservices"}

// istioVirtualService is a minimal VirtualService of Istio's Go type.
func istioVirtualService(name string) *networkingv1.VirtualService {
	return &networkingv1.VirtualService{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: networkingapi.VirtualService{
			Hosts: []string{name},
			Http: []*networkingapi.HTTPRoute{{Route: []*networkingapi.HTTPRouteDestination{
				{Destination: &networkingapi.Destination{Host: name, Subset: "v1"}, Weight: 80},
				{Destination: &networkingapi.Destination{Host: name, Subset: "v2"}, Weight: 20},
			}}},
		},
	}
}

func TestIstiosClientset(t *testing.T) {
	tenant := newTenant(t, shared)
	clients, err := istio.NewForConfig(tenant.config)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	api := clients.NetworkingV1().VirtualServices("default")

	created, err := api.Create(ctx, istioVirtualService("reviews"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if created.Generation != 1 || len(created.Spec.Http) != 1 || created.Spec.Http[0].Route[0].Weight != 80 {
		t.Errorf("created %v", created)
	}
	created.Spec.Http[0].Route[0].Weight, created.Spec.Http[0].Route[1].Weight = 20, 80
	updated, err := api.Update(ctx, created, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if updated.Generation != 2 {
		t.Errorf("the generation is %d after a change", updated.Generation)
	}
	if _, err := api.Update(ctx, created, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("an update of an old version: %v", err)
	}
	updated.Status.ObservedGeneration = 2
	withStatus, err := api.UpdateStatus(ctx, updated, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if withStatus.Generation != 2 || withStatus.Status.ObservedGeneration != 2 {
		t.Errorf("after a write of the status: %v", withStatus)
	}
	older, err := clients.NetworkingV1alpha3().VirtualServices("default").Get(ctx, "reviews", metav1.GetOptions{})
	if err != nil || older.UID != created.UID || older.Spec.Http[0].Route[0].Weight != 20 {
		t.Errorf("v1alpha3 has %v, %v", older, err)
	}
	applied, err := api.Apply(ctx, applynetworking.VirtualService("reviews", "default").WithLabels(map[string]string{"team": "a"}),
		metav1.ApplyOptions{FieldManager: "controller"})
	if err != nil || applied.Labels["team"] != "a" || len(applied.Spec.Hosts) != 1 {
		t.Errorf("applied: %v, %v", applied, err)
	}
	_, err = api.Apply(ctx, applynetworking.VirtualService("reviews", "default").WithLabels(map[string]string{"team": "b"}),
		metav1.ApplyOptions{FieldManager: "another"})
	if !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `conflict with "controller"`) {
		t.Errorf("an apply of what another owns: %v", err)
	}
	if err := api.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "team=a"}); err != nil {
		t.Fatal(err)
	}
	if _, err := api.Get(ctx, "reviews", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("after the deletion: %v", err)
	}
}

// seen collects what an informer tells.
type seen struct{ added, updated, deleted chan string }

func watchInformer(t *testing.T, informer cache.SharedIndexInformer) seen {
	t.Helper()
	s := seen{make(chan string, 1000), make(chan string, 1000), make(chan string, 1000)}
	name := func(obj any) string {
		if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			return gone.Key
		}
		key, err := cache.MetaNamespaceKeyFunc(obj)
		if err != nil {
			return err.Error()
		}
		return key
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { s.added <- name(obj) },
		UpdateFunc: func(_, obj any) { s.updated <- name(obj) },
		DeleteFunc: func(obj any) { s.deleted <- name(obj) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func expect(t *testing.T, from <-chan string, want string) {
	t.Helper()
	select {
	case got := <-from:
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	case <-time.After(time.Minute):
		t.Fatalf("%s did not come", want)
	}
}

// runInformer starts an informer, which ends with the test.
func runInformer(t *testing.T, informer cache.SharedIndexInformer) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		informer.RunWithContext(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	timeout, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	if !cache.WaitForCacheSync(timeout.Done(), informer.HasSynced) {
		t.Fatal("the informer has not synced")
	}
}

func TestInformersOfEveryClientFollow(t *testing.T) {
	for name, make := range map[string]func(t *testing.T, config *rest.Config) cache.SharedIndexInformer{
		"Istio's clientset": func(t *testing.T, config *rest.Config) cache.SharedIndexInformer {
			clients, err := istio.NewForConfig(config)
			if err != nil {
				t.Fatal(err)
			}
			return istioinformers.NewSharedInformerFactory(clients, 0).Networking().V1().VirtualServices().Informer()
		},
		"Istio's clientset in an older version": func(t *testing.T, config *rest.Config) cache.SharedIndexInformer {
			clients, err := istio.NewForConfig(config)
			if err != nil {
				t.Fatal(err)
			}
			return istioinformers.NewSharedInformerFactory(clients, 0).Networking().V1beta1().VirtualServices().Informer()
		},
		"the dynamic client": func(t *testing.T, config *rest.Config) cache.SharedIndexInformer {
			client, err := dynamic.NewForConfig(config)
			if err != nil {
				t.Fatal(err)
			}
			return dynamicinformer.NewDynamicSharedInformerFactory(client, 0).ForResource(virtualServiceGVR).Informer()
		},
		"the metadata client, which prefers protobuf": func(t *testing.T, config *rest.Config) cache.SharedIndexInformer {
			client, err := metadata.NewForConfig(config)
			if err != nil {
				t.Fatal(err)
			}
			return metadatainformer.NewSharedInformerFactory(client, 0).ForResource(virtualServiceGVR).Informer()
		},
	} {
		t.Run(name, func(t *testing.T) {
			tenant, other := newTenant(t, shared), newTenant(t, shared)
			for _, n := range []string{"a", "b"} {
				mustDo(t, tenant.raw, http.MethodPost, virtualServices("default"), virtualService(n))
			}
			mustDo(t, other.raw, http.MethodPost, virtualServices("default"), virtualService("alien"))
			informer := make(t, tenant.config)
			s := watchInformer(t, informer)
			runInformer(t, informer)
			first := []string{<-s.added, <-s.added}
			slices.Sort(first)
			if !slices.Equal(first, []string{"default/a", "default/b"}) {
				t.Errorf("at first there are %v", first)
			}
			mustDo(t, tenant.raw, http.MethodPost, virtualServices("default"), virtualService("c"))
			expect(t, s.added, "default/c")
			mustDo(t, other.raw, http.MethodDelete, virtualServices("default")+"/alien", "")
			mustDo(t, tenant.raw, http.MethodPatch, virtualServices("default")+"/a", `{"spec":{"hosts":["changed"]}}`)
			expect(t, s.updated, "default/a")
			mustDo(t, tenant.raw, http.MethodDelete, virtualServices("default")+"/b", "")
			expect(t, s.deleted, "default/b")
			if n := len(informer.GetStore().List()); n != 2 {
				t.Errorf("the informer has %d objects, want 2", n)
			}
		})
	}
}

func TestKubernetesClientset(t *testing.T) {
	for _, contentType := range []string{runtime.ContentTypeJSON, runtime.ContentTypeProtobuf} {
		t.Run(contentType, func(t *testing.T) {
			tenant := newTenant(t, shared)
			config := rest.CopyConfig(tenant.config)
			config.ContentType = contentType
			config.AcceptContentTypes = contentType + ",application/json"
			clients, err := kubernetes.NewForConfig(config)
			if err != nil {
				t.Fatal(err)
			}
			ctx := t.Context()
			if _, err := clients.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			factory := informers.NewSharedInformerFactoryWithOptions(clients, 0, informers.WithNamespace("shop"))
			informer := factory.Core().V1().ConfigMaps().Informer()
			s := watchInformer(t, informer)
			runInformer(t, informer)

			maps := clients.CoreV1().ConfigMaps("shop")
			created, err := maps.Create(ctx, &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"x": "y"}}, Data: map[string]string{"k": "v"}, BinaryData: map[string][]byte{"b": {0, 1, 2}},
			}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			expect(t, s.added, "shop/a")
			created.Data["k"] = "w"
			if _, err := maps.Update(ctx, created, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			expect(t, s.updated, "shop/a")
			cached, exists, err := informer.GetStore().GetByKey("shop/a")
			if err != nil || !exists || cached.(*corev1.ConfigMap).Data["k"] != "w" || !slices.Equal(cached.(*corev1.ConfigMap).BinaryData["b"], []byte{0, 1, 2}) {
				t.Errorf("the informer has %v, %v, %v", cached, exists, err)
			}
			if _, err := maps.Apply(ctx, applycore.ConfigMap("a", "shop").WithData(map[string]string{"k": "x"}), metav1.ApplyOptions{FieldManager: "m"}); !apierrors.IsConflict(err) {
				t.Errorf("an apply of what another owns: %v", err)
			}
			if _, err := maps.Apply(ctx, applycore.ConfigMap("a", "shop").WithData(map[string]string{"k": "x"}), metav1.ApplyOptions{FieldManager: "m", Force: true}); err != nil {
				t.Error(err)
			}
			expect(t, s.updated, "shop/a")
			list, err := maps.List(ctx, metav1.ListOptions{LabelSelector: "x=y"})
			if err != nil || len(list.Items) != 1 || list.Items[0].Data["k"] != "x" {
				t.Errorf("listed %v, %v", list, err)
			}
			err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
				_, err := maps.Patch(ctx, "a", types.StrategicMergePatchType, []byte(`{"data":{"k":null,"l":"z"}}`), metav1.PatchOptions{})
				return err
			})
			if err != nil {
				t.Error(err)
			}
			expect(t, s.updated, "shop/a")
			if err := maps.Delete(ctx, "a", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &created.UID}}); err != nil {
				t.Error(err)
			}
			expect(t, s.deleted, "shop/a")

			service, err := clients.CoreV1().Services("shop").Create(ctx, &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
			}, metav1.CreateOptions{})
			if err != nil || service.Spec.Ports[0].TargetPort.IntValue() != 80 || service.Spec.Type != corev1.ServiceTypeClusterIP {
				t.Errorf("a service: %v, %v", service, err)
			}
			pod, err := clients.CoreV1().Pods("shop").Create(ctx, &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
			}, metav1.CreateOptions{})
			if err != nil || pod.Status.Phase != corev1.PodPending {
				t.Errorf("a pod: %v, %v", pod, err)
			}
			pods, err := clients.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: fields.OneTermNotEqualSelector("status.phase", string(corev1.PodFailed)).String()})
			if err != nil || len(pods.Items) != 1 {
				t.Errorf("pods: %v, %v", pods, err)
			}
		})
	}
}

func TestWatchListStreamsWhatThereIsAndThenWhatHappens(t *testing.T) {
	tenant, other := newTenant(t, shared), newTenant(t, shared)
	for i := range 100 {
		mustDo(t, tenant.raw, http.MethodPost, "/api/v1/namespaces/default/configmaps", fmt.Sprintf(`{"metadata":{"name":"cm-%03d"}}`, i))
		if i%10 == 0 {
			mustDo(t, other.raw, http.MethodPost, "/api/v1/namespaces/default/configmaps", fmt.Sprintf(`{"metadata":{"name":"cm-%03d"}}`, i))
		}
	}
	events := watchFrom(t, tenant.config, "/api/v1/configmaps?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true")
	names := map[string]bool{}
	for range 100 {
		e := next(t, events)
		if e.Type != "ADDED" || names[e.Object.Metadata.Name] {
			t.Fatalf("got %+v", e)
		}
		names[e.Object.Metadata.Name] = true
	}
	end := next(t, events)
	if end.Type != "BOOKMARK" || end.Object.Metadata.Annotations[metav1.InitialEventsAnnotationKey] != "true" || end.Object.Metadata.ResourceVersion == "" {
		t.Fatalf("got %+v, want the bookmark that ends the initial events", end)
	}
	mustDo(t, other.raw, http.MethodDelete, "/api/v1/namespaces/default/configmaps/cm-000", "")
	mustDo(t, tenant.raw, http.MethodDelete, "/api/v1/namespaces/default/configmaps/cm-001", "")
	if e := next(t, events); e.Type != "DELETED" || e.Object.Metadata.Name != "cm-001" {
		t.Errorf("got %+v", e)
	}
	// From the bookmark on, a plain watch tells the same.
	resumed := watchFrom(t, tenant.config, "/api/v1/configmaps?watch=true&resourceVersion="+end.Object.Metadata.ResourceVersion)
	if e := next(t, resumed); e.Type != "DELETED" || e.Object.Metadata.Name != "cm-001" {
		t.Errorf("got %+v", e)
	}
}

func TestAWatchResumesWhereItEnded(t *testing.T) {
	tenant, other := newTenant(t, shared), newTenant(t, shared)
	var revisions []string
	for i := range 20 {
		mustDo(t, other.raw, http.MethodPost, "/api/v1/namespaces/default/secrets", fmt.Sprintf(`{"metadata":{"name":"s-%d"}}`, i))
		created := mustDo(t, tenant.raw, http.MethodPost, "/api/v1/namespaces/default/secrets", fmt.Sprintf(`{"metadata":{"name":"s-%d"}}`, i))
		revisions = append(revisions, created.Text("metadata", "resourceVersion"))
	}
	for _, from := range []int{0, 7, 18} {
		events := watchFrom(t, tenant.config, "/api/v1/secrets?watch=true&resourceVersion="+revisions[from])
		for i := from + 1; i < 20; i++ {
			if e := next(t, events); e.Type != "ADDED" || e.Object.Metadata.Name != fmt.Sprintf("s-%d", i) || e.Object.Metadata.ResourceVersion != revisions[i] {
				t.Fatalf("after %d: got %+v, want s-%d", from, e, i)
			}
		}
	}
}

func TestAWatchGetsBookmarks(t *testing.T) {
	tenant, other := newTenant(t, shared), newTenant(t, shared)
	list := mustDo(t, tenant.raw, http.MethodGet, "/api/v1/secrets", "")
	events := watchFrom(t, tenant.config, "/api/v1/secrets?watch=true&allowWatchBookmarks=true&timeoutSeconds=4&resourceVersion="+list.Text("metadata", "resourceVersion"))
	// Others' writes move the revision on; a client that hears nothing could not resume for long.
	created := mustDo(t, other.raw, http.MethodPost, "/api/v1/namespaces/default/secrets", `{"metadata":{"name":"a"}}`)
	e := next(t, events)
	if e.Type != "BOOKMARK" || e.Object.Metadata.ResourceVersion < created.Text("metadata", "resourceVersion") || e.Object.Metadata.Name != "" {
		t.Errorf("got %+v, want a bookmark not older than %s", e, created.Text("metadata", "resourceVersion"))
	}
	resumed := watchFrom(t, tenant.config, "/api/v1/secrets?watch=true&resourceVersion="+e.Object.Metadata.ResourceVersion)
	mustDo(t, tenant.raw, http.MethodPost, "/api/v1/namespaces/default/secrets", `{"metadata":{"name":"b"}}`)
	if e := next(t, resumed); e.Type != "ADDED" || e.Object.Metadata.Name != "b" {
		t.Errorf("got %+v", e)
	}
}

func TestAfterARestartEverythingIsThereAndOldWatchesAreToldToStartAnew(t *testing.T) {
	dir := t.TempDir()
	first, err := startServer(dir)
	if err != nil {
		t.Fatal(err)
	}
	tenant := newTenant(t, first)
	var revisions []string
	for i := range 3 {
		created := mustDo(t, tenant.raw, http.MethodPost, virtualServices("default"), virtualService(fmt.Sprintf("vs-%d", i)))
		revisions = append(revisions, created.Text("metadata", "resourceVersion"))
	}
	before := mustDo(t, tenant.raw, http.MethodGet, virtualServices("default"), "")
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}

	port := first.options.SecurePort
	second, err := startServer(dir, func(o *apiserver.Options) { o.SecurePort = port })
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := second.stop(); err != nil {
			t.Error(err)
		}
	}()
	tenant.raw.Close()
	after := mustDo(t, tenant.raw, http.MethodGet, virtualServices("default"), "") // the same identity is still good
	if fmt.Sprint(before.Field("items")) != fmt.Sprint(after.Field("items")) {
		t.Errorf("before the restart: %v\nafter it: %v", before, after)
	}
	e := next(t, watchFrom(t, tenant.config, virtualServices("default")+"?watch=true&resourceVersion="+revisions[0]))
	if e.Type != "ERROR" || e.Object.Code != http.StatusGone || e.Object.Reason != "Expired" {
		t.Errorf("a watch from before the restart got %+v, want 410 Expired", e)
	}
	mustDo(t, tenant.raw, http.MethodPost, virtualServices("default"), virtualService("later"))
}

func TestAStopEndsWatchesAndIsQuick(t *testing.T) {
	server, err := startServer(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	tenant := newTenant(t, server)
	var watches []<-chan event
	for _, path := range []string{"/api/v1/configmaps", "/api/v1/secrets", "/apis/networking.istio.io/v1/virtualservices", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"} {
		watches = append(watches, watchRaw(t, tenant.config, path))
	}
	begun := time.Now()
	if err := server.stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
	for _, events := range watches {
		for e := range events {
			if e.Type == "ADDED" || e.Type == "DELETED" {
				t.Errorf("at its end a watch told %+v", e)
			}
		}
	}
}

func TestLongListsAreCompressed(t *testing.T) {
	tenant := newTenant(t, shared)
	for i := range 200 {
		mustDo(t, tenant.raw, http.MethodPost, "/api/v1/namespaces/default/configmaps",
			fmt.Sprintf(`{"metadata":{"name":"cm-%d"},"data":{"text":%q}}`, i, strings.Repeat("text ", 200)))
	}
	config := rest.CopyConfig(tenant.config)
	config.DisableCompression = true
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, config.Host+"/api/v1/namespaces/default/configmaps", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept-Encoding", "gzip")
	response, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if got := response.Header.Get("Content-Encoding"); got != "gzip" {
		t.Fatalf("Content-Encoding is %q", got)
	}
	unpacked, err := gzip.NewReader(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var list corev1.ConfigMapList
	if err := json.NewDecoder(unpacked).Decode(&list); err != nil || len(list.Items) != 200 {
		t.Errorf("%d objects, %v", len(list.Items), err)
	}
}

func TestOneWatchSeesTheOrderOfAllWrites(t *testing.T) {
	tenant := newTenant(t, shared)
	client, err := dynamic.NewForConfig(tenant.config)
	if err != nil {
		t.Fatal(err)
	}
	w, err := client.Resource(virtualServiceGVR).Watch(t.Context(), metav1.ListOptions{ResourceVersion: "0", LabelSelector: labels.Set{"in": "view"}.String()})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	mustDo(t, tenant.raw, http.MethodPost, virtualServices("default"), virtualService("a"))
	for _, c := range []struct {
		labels string
		want   watch.EventType
	}{{`"view"`, watch.Added}, {`"view","x":"y"`, watch.Modified}, {`null`, watch.Deleted}, {`"view"`, watch.Added}} {
		mustDo(t, tenant.raw, http.MethodPatch, virtualServices("default")+"/a", `{"metadata":{"labels":{"in":`+c.labels+`}}}`)
		select {
		case e := <-w.ResultChan():
			if e.Type != c.want {
				t.Errorf("after labels %s: got %s, want %s", c.labels, e.Type, c.want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("after labels %s: no event", c.labels)
		}
	}
}

func TestCBOR(t *testing.T) {
	tenant := newTenant(t, shared)
	var object map[string]any
	if err := json.Unmarshal([]byte(virtualService("a")), &object); err != nil {
		t.Fatal(err)
	}
	serializer := cbor.NewSerializer(unstructuredCreater{}, unstructuredTyper{})
	body, err := runtime.Encode(serializer, &unstructured.Unstructured{Object: object})
	if err != nil {
		t.Fatal(err)
	}
	response, err := tenant.raw.Do(t.Context(), rawapi.Request{Method: http.MethodPost, Path: virtualServices("default"), ContentType: "application/cbor", Accept: "application/cbor", Body: body})
	if err != nil {
		t.Fatal(err)
	}
	if response.Status != http.StatusCreated || response.Header.Get("Content-Type") != "application/cbor" {
		t.Fatalf("got %d %s", response.Status, response.Header.Get("Content-Type"))
	}
	var answer unstructured.Unstructured
	if err := runtime.DecodeInto(serializer, response.Body, &answer); err != nil {
		t.Fatal(err)
	}
	if answer.GetName() != "a" || fmt.Sprint(answer.Object["spec"]) != fmt.Sprint(object["spec"]) {
		t.Errorf("got %v", answer.Object)
	}
	list, err := tenant.raw.Do(t.Context(), rawapi.Request{Method: http.MethodGet, Path: virtualServices("default"), Accept: "application/cbor"})
	if err != nil {
		t.Fatal(err)
	}
	var answers unstructured.UnstructuredList
	if err := runtime.DecodeInto(serializer, list.Body, &answers); err != nil || len(answers.Items) != 1 {
		t.Errorf("listed %v, %v", answers, err)
	}
}

type unstructuredCreater struct{}

func (unstructuredCreater) New(gvk schema.GroupVersionKind) (runtime.Object, error) {
	o := &unstructured.Unstructured{}
	o.SetGroupVersionKind(gvk)
	return o, nil
}

type unstructuredTyper struct{}

func (unstructuredTyper) ObjectKinds(o runtime.Object) ([]schema.GroupVersionKind, bool, error) {
	return []schema.GroupVersionKind{o.GetObjectKind().GroupVersionKind()}, false, nil
}
func (unstructuredTyper) Recognizes(schema.GroupVersionKind) bool { return true }

// What Helm's client does: a release is a secret that is found by its labels, and what a
// chart makes is changed by patches against what was released before.
func TestHelmsWayOfWriting(t *testing.T) {
	tenant := newTenant(t, shared)
	clients, err := kubernetes.NewForConfig(tenant.config)
	if err != nil {
		t.Fatal(err)
	}
	dynamicClient, err := dynamic.NewForConfig(tenant.config)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	secrets := clients.CoreV1().Secrets("default")
	release := func(version int, status string) *corev1.Secret {
		return &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("sh.helm.release.v1.shop.v%d", version), Labels: map[string]string{
				"owner": "helm", "name": "shop", "status": status, "version": fmt.Sprint(version)}},
			Type: "helm.sh/release.v1", Data: map[string][]byte{"release": []byte(strings.Repeat("x", 500<<10))},
		}
	}
	if _, err := secrets.Create(ctx, release(1, "deployed"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := secrets.Create(ctx, release(1, "deployed"), metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("the same release again: %v", err)
	}
	if _, err := secrets.Update(ctx, release(1, "superseded"), metav1.UpdateOptions{}); err != nil {
		t.Errorf("an update without a version, as Helm does it: %v", err)
	}
	if _, err := secrets.Create(ctx, release(2, "deployed"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	found, err := secrets.List(ctx, metav1.ListOptions{LabelSelector: "name=shop,owner=helm,status=deployed"})
	if err != nil || len(found.Items) != 1 || found.Items[0].Name != "sh.helm.release.v1.shop.v2" {
		t.Errorf("the deployed release is %v, %v", len(found.Items), err)
	}

	// A kind with a Go type takes three-way strategic patches, a custom one JSON merge patches.
	maps := clients.CoreV1().ConfigMaps("default")
	live, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "shop"}, Data: map[string]string{"a": "1", "b": "1"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	original := []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"shop"},"data":{"a":"1","b":"1"}}`)
	modified := []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"shop"},"data":{"a":"2"}}`)
	current, err := json.Marshal(live)
	if err != nil {
		t.Fatal(err)
	}
	meta, err := strategicpatch.NewPatchMetaFromStruct(corev1.ConfigMap{})
	if err != nil {
		t.Fatal(err)
	}
	patch, err := strategicpatch.CreateThreeWayMergePatch(original, modified, current, meta, true)
	if err != nil {
		t.Fatal(err)
	}
	patched, err := maps.Patch(ctx, "shop", types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	if err != nil || len(patched.Data) != 1 || patched.Data["a"] != "2" {
		t.Errorf("patched %v, %v", patched, err)
	}
	routes := dynamicClient.Resource(virtualServiceGVR).Namespace("default")
	mustDo(t, tenant.raw, http.MethodPost, virtualServices("default"), virtualService("shop"))
	changed, err := routes.Patch(ctx, "shop", types.MergePatchType, []byte(`{"spec":{"hosts":["other"],"exportTo":["."]}}`), metav1.PatchOptions{})
	if err != nil || changed.GetGeneration() != 2 {
		t.Errorf("patched %v, %v", changed, err)
	}
	background := metav1.DeletePropagationBackground
	if err := routes.Delete(ctx, "shop", metav1.DeleteOptions{PropagationPolicy: &background}); err != nil {
		t.Error(err)
	}
}
