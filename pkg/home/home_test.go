package home

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/pkg/apis/builtin"
	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	vmeshkinds "github.com/vmesh-io/vmesh/pkg/apis/vmesh"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/members"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/registry/vmesh"
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

// world is an etcd with what homes are made of.
type world struct {
	t       *testing.T
	ctx     context.Context
	backend *logical.Backend
	stores  map[string]*resource.Store
	mu      sync.Mutex
	told    []string
	clock   time.Time
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
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
	w := &world{t: t, ctx: ctx, stores: map[string]*resource.Store{}, clock: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	if w.backend, err = logical.NewBackend(logical.BackendConfig{Client: etcd.Client()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.backend.Close)
	core, err := builtin.Kinds()
	if err != nil {
		t.Fatal(err)
	}
	own, err := vmeshkinds.Kinds(kind.Hooks{}, kind.Hooks{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	core = slices.DeleteFunc(core, func(k *kind.Kind) bool { return k.Resource() != "configmaps" })
	for _, k := range append(core, own.Meshes, own.VirtualClusters, own.MemberClusters) {
		if w.stores[k.Resource()], err = resource.NewStore(k, w.backend); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.backend.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return w
}

// server is a controller as a server would have it that serves on an address. It does nothing by itself.
func (w *world) server(address string, gateways members.Gateways) *Controller {
	c := New(Config{
		Meshes: w.stores["meshes"], VirtualClusters: w.stores["virtualclusters"], ConfigMaps: w.stores["configmaps"],
		EnsureNamespaces: func(context.Context, *v1alpha1.VirtualCluster) error { return nil },
		UpdateStatus:     w.updateStatus,
		Tell: func(_ context.Context, _, kind, reason, _ string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.told = append(w.told, kind+" "+reason)
		},
		DefaultSource: func(string) string { return address },
		Gateways:      gateways,
	})
	c.now = func() time.Time { return w.clock }
	w.t.Cleanup(c.queue.ShutDown)
	return c
}

// see has a server see all there is, as etcd has it, and do what there is to do for mesh m.
func (w *world) see(c *Controller) error {
	w.t.Helper()
	for resource, o := range map[string]logical.Observer{"meshes": c.Meshes(), "memberclusters": c.Members(), "virtualclusters": c.VirtualClusters(), "configmaps": c.ConfigMaps()} {
		ctx := vmesh.RootContext(w.ctx)
		var items []*object.Object
		clusters := []string{logical.Root}
		if resource == "configmaps" {
			clusters = []string{"a", "b"}
		}
		for _, cluster := range clusters {
			list, err := w.stores[resource].List(request.WithNamespace(logical.WithCluster(ctx, cluster), ""), &internalversion.ListOptions{})
			if err != nil {
				w.t.Fatal(err)
			}
			for i := range list.(*object.List).Items {
				items = append(items, &list.(*object.List).Items[i])
			}
		}
		o.Replaced(items, 1)
	}
	return c.settle(vmesh.RootContext(w.ctx), "m")
}

// settled is see, which must go well.
func (w *world) settled(c *Controller) {
	w.t.Helper()
	if err := w.see(c); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) updateStatus(ctx context.Context, name string, mutate func(*v1alpha1.MeshStatus) error) error {
	_, _, err := w.stores["meshes"].StatusREST(vmesh.Version).Update(vmesh.RootContext(ctx), name,
		rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
			o := old.(*object.Object).DeepCopy()
			var mesh v1alpha1.Mesh
			if err := o.Into(&mesh); err != nil {
				return nil, err
			}
			if err := mutate(&mesh.Status); err != nil {
				return nil, err
			}
			return o, vmesh.SetStatus(o, mesh.Status)
		}), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	return err
}

// apply makes an object be as a text says, and waits until reads from the cache have it.
func (w *world) apply(resource, cluster, text string) {
	w.t.Helper()
	store := w.stores[resource]
	data, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		w.t.Fatal(err)
	}
	o := object.New(store.Kind().GVK(store.Kind().StorageVersion()))
	if err := o.UnmarshalJSON(data); err != nil {
		w.t.Fatal(err)
	}
	o.SetGroupVersionKind(store.Kind().GVK(store.Kind().StorageVersion()))
	ctx := request.WithNamespace(logical.WithCluster(w.ctx, cluster), o.Namespace)
	_, err = store.Create(ctx, o.DeepCopy(), rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, _, err = store.REST(store.Kind().StorageVersion()).Update(ctx, o.Name, rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
			next := old.(*object.Object).DeepCopy()
			next.Labels, next.Annotations = o.Labels, o.Annotations
			next.ShareBody(o)
			return next, nil
		}), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.cached(ctx, resource, o.Name)
}

func (w *world) delete(resource, cluster, namespace, name string) {
	w.t.Helper()
	ctx := request.WithNamespace(logical.WithCluster(w.ctx, cluster), namespace)
	if _, _, err := w.stores[resource].Delete(ctx, name, rest.ValidateAllObjectFunc, &metav1.DeleteOptions{}); err != nil {
		w.t.Fatal(err)
	}
	w.cached(ctx, resource, name)
}

// cached waits until the watch cache has of an object what etcd has.
func (w *world) cached(ctx context.Context, resource, name string) {
	w.t.Helper()
	version := func(from string) string {
		obj, err := w.stores[resource].Get(ctx, name, &metav1.GetOptions{ResourceVersion: from})
		if apierrors.IsNotFound(err) {
			return "none"
		}
		if err != nil {
			w.t.Fatal(err)
		}
		return obj.(*object.Object).ResourceVersion
	}
	for version("0") != version("") {
		if ctx.Err() != nil {
			w.t.Fatal("the watch cache does not catch up")
		}
		time.Sleep(time.Millisecond)
	}
}

func (w *world) mesh(spec string) {
	w.t.Helper()
	w.apply("meshes", logical.Root, "metadata: {name: m}\nspec: "+spec)
}

func (w *world) cluster(name, mesh string) {
	w.t.Helper()
	w.apply("virtualclusters", logical.Root, fmt.Sprintf("metadata: {name: %s}\nspec: {mesh: %s}", name, mesh))
}

func (w *world) member(name, network string) {
	w.t.Helper()
	w.apply("memberclusters", logical.Root, fmt.Sprintf("metadata: {name: %s}\nspec: {mesh: m, network: %q, access: {secret: s}}", name, network))
}

// configMap is one of a virtual cluster, nil if there is none.
func (w *world) configMap(cluster, namespace, name string) *object.Object {
	w.t.Helper()
	obj, err := w.stores["configmaps"].Get(request.WithNamespace(logical.WithCluster(w.ctx, cluster), namespace), name, &metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return obj.(*object.Object)
}

// key is one of a config map's, empty if there is none.
func (w *world) key(cluster, namespace, name, key string) string {
	w.t.Helper()
	o := w.configMap(cluster, namespace, name)
	if o == nil {
		return ""
	}
	content, err := o.Content()
	if err != nil {
		w.t.Fatal(err)
	}
	data, _ := content["data"].(map[string]any)
	value, _ := data[key].(string)
	return value
}

func (w *world) status() *v1alpha1.MeshStatus {
	w.t.Helper()
	ctx := vmesh.RootContext(w.ctx)
	w.cached(ctx, "meshes", "m")
	obj, err := w.stores["meshes"].Get(ctx, "m", &metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	var mesh v1alpha1.Mesh
	if err := obj.(*object.Object).Into(&mesh); err != nil {
		w.t.Fatal(err)
	}
	return &mesh.Status
}

// is checks one condition.
func (w *world) is(kind string, status metav1.ConditionStatus, reason, text string) {
	w.t.Helper()
	c := meta.FindStatusCondition(w.status().Conditions, kind)
	if c == nil || c.Status != status || c.Reason != reason || !strings.Contains(c.Message, text) {
		w.t.Errorf("%s is %+v, want %s, %s, with %q", kind, c, status, reason, text)
	}
}

const home = "istio-system"

func TestSettingsAreWhereIstiodLooksForThem(t *testing.T) {
	w := newWorld(t)
	c := w.server("xds://127.0.0.1:1", nil)
	w.cluster("a", "m")
	w.cluster("b", "m")
	w.mesh("{}")
	w.settled(c)
	if s := w.status(); s.Home != nil || len(s.Conditions) > 0 || len(w.told) > 0 {
		t.Errorf("without a home there is %+v, %v", s, w.told)
	}

	w.mesh("{home: {virtualCluster: a, revisions: [canary], meshConfig: {trustDomain: x}}}")
	w.settled(c)
	for _, name := range []string{"istio", "istio-canary"} {
		if got := w.key("a", home, name, "mesh"); !strings.Contains(got, "xds://127.0.0.1:1\n") || !strings.Contains(got, "trustDomain: x") {
			t.Errorf("%s has %q", name, got)
		}
		if got := w.key("a", home, name, "meshNetworks"); got != "networks: {}\n" {
			t.Errorf("%s has networks %q", name, got)
		}
	}
	w.is(v1alpha1.ConditionHomeReady, metav1.ConditionTrue, ReasonWritten, "")
	w.is(v1alpha1.ConditionSettingsCurrent, metav1.ConditionTrue, ReasonCurrent, "")

	// What is as it is to be is not written again, neither by this server nor by another.
	before, status := w.configMap("a", home, "istio").ResourceVersion, w.status()
	w.clock = w.clock.Add(time.Hour)
	w.settled(c)
	w.settled(w.server("xds://127.0.0.1:1", nil))
	if got := w.configMap("a", home, "istio").ResourceVersion; got != before || !w.status().Home.WrittenAt.Equal(status.Home.WrittenAt) {
		t.Errorf("it was written again")
	}

	// What is changed or deleted comes back; what others add to its metadata stays.
	w.apply("configmaps", "a", "metadata: {name: istio, namespace: istio-system, labels: {app.kubernetes.io/managed-by: vmesh, theirs: x}, annotations: {vmesh.io/settings-of: m}}\ndata: {mesh: 'trustDomain: evil', more: x}")
	w.settled(c)
	if o := w.configMap("a", home, "istio"); w.key("a", home, "istio", "mesh") != w.key("a", home, "istio-canary", "mesh") || w.key("a", home, "istio", "more") != "" || o.Labels["theirs"] != "x" {
		t.Errorf("it has %s, %v", o.Body(), o.Labels)
	}
	w.delete("configmaps", "a", home, "istio-canary")
	w.settled(c)
	if w.configMap("a", home, "istio-canary") == nil {
		t.Error("it did not come back")
	}

	// A revision that goes takes its config map along; a home that moves takes all.
	w.mesh("{home: {virtualCluster: a, meshConfig: {trustDomain: x}}}")
	w.settled(c)
	w.settled(c) // with what was seen since
	if w.configMap("a", home, "istio-canary") != nil || w.configMap("a", home, "istio") == nil {
		t.Error("the revision's is still there, or the other is not")
	}
	w.mesh("{home: {virtualCluster: b, meshConfig: {trustDomain: x}}}")
	w.settled(c)
	w.settled(c)
	if w.configMap("a", home, "istio") != nil || w.configMap("b", home, "istio") == nil {
		t.Error("it is where it was, or not where it is to be")
	}
	w.mesh("{rootNamespace: mesh, home: {virtualCluster: b}}")
	w.settled(c)
	w.settled(c)
	if w.configMap("b", home, "istio") != nil || w.configMap("b", "mesh", "istio") == nil || w.status().Home.Namespace != "mesh" {
		t.Error("it did not move with the root namespace")
	}
	w.apply("configmaps", "b", "metadata: {name: other, namespace: mesh, labels: {app.kubernetes.io/managed-by: vmesh}}")
	w.mesh("{}")
	w.settled(c)
	if w.configMap("b", "mesh", "istio") != nil || w.configMap("b", "mesh", "other") == nil {
		t.Error("it is still there, or what is not the settings is not")
	}
	if s := w.status(); s.Home != nil || len(s.Conditions) > 0 {
		t.Errorf("without a home there is %+v", s)
	}
	w.mesh("{home: {virtualCluster: b}}")
	w.settled(c)
	w.delete("meshes", logical.Root, "", "m")
	w.settled(w.server("xds://127.0.0.1:1", nil)) // one that has just started
	if w.configMap("b", home, "istio") != nil {
		t.Error("it is still there after its mesh")
	}
}

func TestWhatKeepsAHomeFromBeingOneIsTold(t *testing.T) {
	w := newWorld(t)
	c := w.server("xds://127.0.0.1:1", nil)
	w.cluster("b", "other")
	w.mesh("{home: {virtualCluster: a}}")
	w.settled(c)
	w.is(v1alpha1.ConditionHomeReady, metav1.ConditionFalse, ReasonVirtualClusterNotFound, "There is no virtual cluster a")
	w.mesh("{home: {virtualCluster: b}}")
	w.settled(c)
	w.is(v1alpha1.ConditionHomeReady, metav1.ConditionFalse, ReasonOtherMesh, "belongs to mesh other")
	if w.configMap("b", home, "istio") != nil {
		t.Error("it wrote into another mesh's virtual cluster")
	}

	const theirs = "metadata: {name: istio, namespace: istio-system}\ndata: {mesh: 'trustDomain: theirs'}"
	w.cluster("a", "m")
	w.apply("configmaps", "a", theirs)
	w.mesh("{home: {virtualCluster: a, revisions: [x]}}")
	w.settled(c)
	w.is(v1alpha1.ConditionHomeReady, metav1.ConditionFalse, ReasonConflict, "was not written by vmesh")
	if w.key("a", home, "istio", "mesh") != "trustDomain: theirs" || w.configMap("a", home, "istio-x") == nil {
		t.Error("it wrote over what is somebody's, or not what is its own")
	}
	w.mesh("{}")
	w.settled(c)
	if w.configMap("a", home, "istio") == nil {
		t.Error("it deleted what is somebody's")
	}
	w.mesh("{home: {virtualCluster: a}}")
	w.delete("configmaps", "a", home, "istio")
	w.settled(c)
	w.is(v1alpha1.ConditionHomeReady, metav1.ConditionTrue, ReasonWritten, "")

	silent := w.server("", nil)
	w.delete("configmaps", "a", home, "istio")
	w.settled(silent)
	w.is(v1alpha1.ConditionHomeReady, metav1.ConditionFalse, ReasonNoConfigSource, "spec.home.configSources")
	w.mesh("{home: {virtualCluster: a, configSources: ['xds://relay:1']}}")
	w.settled(silent)
	w.is(v1alpha1.ConditionHomeReady, metav1.ConditionTrue, ReasonWritten, "")
	for _, want := range []string{"Warning VirtualClusterNotFound", "Warning OtherMesh", "Warning Conflict", "Normal Written", "Warning NoConfigSource", "Normal SettingsWritten"} {
		if !slices.Contains(w.told, want) {
			t.Errorf("%s was not told: %v", want, w.told)
		}
	}
}

// A home that cannot be one yet does not take the settings from where they are.
func TestSettingsStayUntilTheNewHomeHasThem(t *testing.T) {
	w := newWorld(t)
	c := w.server("xds://127.0.0.1:1", nil)
	w.cluster("a", "m")
	w.mesh("{home: {virtualCluster: a}}")
	w.settled(c)
	w.mesh("{home: {virtualCluster: b}}")
	w.settled(c)
	w.settled(c)
	if w.configMap("a", home, "istio") == nil {
		t.Fatal("they are gone")
	}
	w.cluster("b", "m")
	w.settled(c)
	w.settled(c)
	if w.configMap("a", home, "istio") != nil || w.configMap("b", home, "istio") == nil {
		t.Error("they did not move")
	}
}

func TestServersWithDifferentAddressesDoNotCorrectEachOther(t *testing.T) {
	w := newWorld(t)
	one, other := w.server("xds://127.0.0.1:1", nil), w.server("xds://127.0.0.1:2", nil)
	w.cluster("a", "m")
	w.mesh("{home: {virtualCluster: a}}")
	w.settled(one)
	w.settled(other) // has started later
	source := func() string {
		_, rest, _ := strings.Cut(w.key("a", home, "istio", "mesh"), "address: ")
		source, _, _ := strings.Cut(rest, "\n")
		return source
	}
	if source() != "xds://127.0.0.1:2" {
		t.Fatalf("a server that starts does not say where it is: %s", source())
	}
	before := w.configMap("a", home, "istio").ResourceVersion
	for range 3 {
		w.settled(one)
		w.settled(other)
	}
	if got := w.configMap("a", home, "istio").ResourceVersion; got != before {
		t.Errorf("they go on writing: %s", source())
	}
	w.mesh("{home: {virtualCluster: a, configSources: ['xds://relay:1']}}")
	w.settled(one)
	if source() != "xds://relay:1" {
		t.Errorf("what is said does not count: %s", source())
	}
}

func TestSettingsOfTheStartAreToldUntilAllHaveStarted(t *testing.T) {
	w := newWorld(t)
	c := w.server("xds://127.0.0.1:1", nil)
	planes := func(since ...time.Duration) {
		if err := w.updateStatus(w.ctx, "m", func(s *v1alpha1.MeshStatus) error {
			s.ControlPlanes = nil
			for i, d := range since {
				s.ControlPlanes = append(s.ControlPlanes, v1alpha1.ControlPlaneStatus{ID: fmt.Sprintf("sidecar~1.1.1.1~p%d.ns~x", i), Server: "s", Connected: true, ConnectedSince: metav1.NewTime(w.clock.Add(d))})
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		w.cached(vmesh.RootContext(w.ctx), "meshes", "m")
	}
	w.cluster("a", "m")
	w.mesh("{home: {virtualCluster: a}}")
	planes(-time.Hour, -time.Minute)
	w.settled(c)
	w.is(v1alpha1.ConditionSettingsCurrent, metav1.ConditionTrue, ReasonCurrent, "")
	w.mesh("{home: {virtualCluster: a, meshConfig: {accessLogFile: /dev/stdout}}}")
	w.settled(c)
	w.is(v1alpha1.ConditionSettingsCurrent, metav1.ConditionTrue, ReasonCurrent, "")

	w.mesh("{home: {virtualCluster: a, meshConfig: {trustDomain: x}}}")
	w.settled(c)
	w.is(v1alpha1.ConditionSettingsCurrent, metav1.ConditionFalse, ReasonRestartNeeded, "trustDomain changed, which istiod reads only when it starts: restart p0.ns, p1.ns")
	w.mesh("{home: {virtualCluster: a, configSources: ['xds://a:1'], meshConfig: {trustDomain: x}}}")
	w.settled(c)
	w.is(v1alpha1.ConditionSettingsCurrent, metav1.ConditionFalse, ReasonRestartNeeded, "configSources, trustDomain changed")
	planes(-time.Hour, time.Minute)
	w.settled(c)
	w.is(v1alpha1.ConditionSettingsCurrent, metav1.ConditionFalse, ReasonRestartNeeded, "restart p0.ns")
	// It is remembered where the settings are, and comes back with them.
	w.delete("configmaps", "a", home, "istio")
	w.settled(w.server("xds://127.0.0.1:1", nil))
	w.is(v1alpha1.ConditionSettingsCurrent, metav1.ConditionFalse, ReasonRestartNeeded, "restart p0.ns")
	planes(time.Second, time.Minute)
	w.settled(c)
	w.is(v1alpha1.ConditionSettingsCurrent, metav1.ConditionTrue, ReasonCurrent, "")

	// What all have has no part in the next change.
	w.clock = w.clock.Add(time.Hour)
	w.mesh("{home: {virtualCluster: a, configSources: ['xds://b:1'], meshConfig: {trustDomain: x}}}")
	w.settled(c)
	w.is(v1alpha1.ConditionSettingsCurrent, metav1.ConditionFalse, ReasonRestartNeeded, "configSources changed")
	if got := w.status().Home.RestartFor; !slices.Equal(got, []string{"configSources"}) {
		t.Errorf("restart for %v", got)
	}
}

// lookups are what a server finds of services.
type lookups map[string][]members.Address

func (l lookups) Addresses(member, namespace, name string) ([]members.Address, bool) {
	found, is := l[member+"/"+namespace+"/"+name]
	return found, is
}

func at(hosts ...string) []members.Address {
	var out []members.Address
	for _, h := range hosts {
		out = append(out, members.Address{Host: h})
	}
	return out
}

func TestNetworksAreThoseOfMembers(t *testing.T) {
	w := newWorld(t)
	found := lookups{}
	c := w.server("xds://127.0.0.1:1", found)
	w.cluster("a", "m")
	w.mesh("{home: {virtualCluster: a}, networks: [{name: east, gateways: [{address: 10.0.0.1}]}, {name: west, gateways: [{service: {member: w1, name: gw}, port: 1}]}]}")
	w.settled(c)
	w.is(v1alpha1.ConditionNetworksConnected, metav1.ConditionTrue, ReasonNotNeeded, "")
	w.member("e1", "east")
	w.member("w1", "west")
	w.settled(c)
	w.is(v1alpha1.ConditionNetworksConnected, metav1.ConditionUnknown, ReasonLookingUp, "network west (w1/istio-system/gw)")

	tell := func() string {
		text := strings.Join(strings.Fields(w.key("a", home, "istio", "meshNetworks")), " ")
		_, west, _ := strings.Cut(text, "west: ")
		return west
	}
	found["w1/istio-system/gw"] = at("10.2.0.2", "10.2.0.1", "not an address")
	w.settled(c)
	const both = "endpoints: - fromRegistry: w1 gateways: - address: 10.2.0.1 port: 1 - address: 10.2.0.2 port: 1"
	if got := tell(); got != both {
		t.Errorf("west is %q", got)
	}
	w.is(v1alpha1.ConditionNetworksConnected, metav1.ConditionTrue, ReasonConnected, "")
	if got := fmt.Sprint(w.status().Networks); got != "[{east [e1] [10.0.0.1:15443]} {west [w1] [10.2.0.1:1 10.2.0.2:1]}]" {
		t.Errorf("the status has %s", got)
	}

	// What is not found any more is what it was; a server that has just started knows it too.
	delete(found, "w1/istio-system/gw")
	w.settled(c)
	w.settled(w.server("xds://127.0.0.1:1", nil))
	if got := tell(); got != both {
		t.Errorf("west is %q", got)
	}
	// Servers that see it differently do not go on correcting each other.
	stale := lookups{"w1/istio-system/gw": at("10.2.0.9")}
	other := w.server("xds://127.0.0.1:1", stale)
	w.settled(other)
	found["w1/istio-system/gw"] = at("10.2.0.3")
	for range 3 {
		w.settled(c)
		w.settled(other)
	}
	if got := tell(); got != "endpoints: - fromRegistry: w1 gateways: - address: 10.2.0.3 port: 1" {
		t.Errorf("west is %q", got)
	}
	// One without addresses has none.
	found["w1/istio-system/gw"] = nil
	w.settled(c)
	w.is(v1alpha1.ConditionNetworksConnected, metav1.ConditionFalse, ReasonMissingGateway, "network west of member w1")

	// A member in no network is told apart too.
	w.member("w1", "")
	w.settled(c)
	w.is(v1alpha1.ConditionNetworksConnected, metav1.ConditionFalse, ReasonMissingGateway, "member w1: they are in no network")
	w.delete("memberclusters", logical.Root, "", "e1")
	w.settled(c)
	w.is(v1alpha1.ConditionNetworksConnected, metav1.ConditionTrue, ReasonNotNeeded, "")
	w.delete("memberclusters", logical.Root, "", "w1")
	w.mesh("{home: {virtualCluster: a}}")
	w.settled(c)
	if s := w.status(); meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionNetworksConnected) != nil || s.Networks != nil {
		t.Errorf("without members and networks there is %+v", s)
	}
}

// later finds a gateway once it is there.
type later struct{ now atomic.Bool }

func (l *later) Addresses(string, string, string) ([]members.Address, bool) {
	return at("10.1.0.1"), l.now.Load()
}

func TestAHomeIsKeptAsItIsToBe(t *testing.T) {
	w := newWorld(t)
	found := &later{}
	c := w.server("xds://127.0.0.1:1", found)
	c.now = time.Now
	ctx, cancel := context.WithCancel(w.ctx)
	var wait sync.WaitGroup
	for resource, o := range map[string]logical.Observer{"meshes": c.Meshes(), "virtualclusters": c.VirtualClusters()} {
		wait.Go(func() { _ = w.backend.ObserveCached(ctx, w.stores[resource].Kind().GroupResource(), o) })
	}
	for resource, o := range map[string]logical.Observer{"memberclusters": c.Members(), "configmaps": c.ConfigMaps()} {
		wait.Go(func() { _ = w.backend.Observe(ctx, w.stores[resource].Kind().GroupResource(), o) })
	}
	wait.Go(func() { c.Run(ctx) })
	defer wait.Wait()
	defer cancel()
	until := func(what string, is func() bool) {
		t.Helper()
		for !is() {
			if ctx.Err() != nil {
				t.Fatalf("waiting until %s", what)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	there := func() bool { return strings.Contains(w.key("a", home, "istio", "mesh"), "xds://127.0.0.1:1") }
	w.mesh("{home: {virtualCluster: a}}")
	until("the virtual cluster is missed", func() bool {
		c := meta.FindStatusCondition(w.status().Conditions, v1alpha1.ConditionHomeReady)
		return c != nil && c.Reason == ReasonVirtualClusterNotFound
	})
	w.cluster("a", "m")
	until("the settings are there", there)
	for range 3 {
		w.delete("configmaps", "a", home, "istio")
		until("they are back", there)
	}
	w.member("e1", "east")
	until("the member is told", func() bool { return strings.Contains(w.key("a", home, "istio", "meshNetworks"), "fromRegistry: e1") })
	w.mesh("{home: {virtualCluster: a}, networks: [{name: east, gateways: [{service: {member: e1, name: gw}}]}]}")
	until("it is waited for", func() bool {
		return strings.Contains(w.key("a", home, "istio", "meshNetworks"), "east") && c.queue.Len() == 0
	})
	found.now.Store(true)
	until("the gateway is told", func() bool { return strings.Contains(w.key("a", home, "istio", "meshNetworks"), "address: 10.1.0.1") })
	w.mesh("{}")
	until("they are gone", func() bool { return w.configMap("a", home, "istio") == nil })
}
