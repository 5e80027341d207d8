package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/discovery/discoverytest"
	"github.com/vmesh-io/vmesh/pkg/members"
)

func TestVirtualClustersServeTheServicesOfTheirMesh(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	o := NewOptions()
	o.DataDir, o.XDSAddress, o.SecurePort = t.TempDir(), "", freePort(t)
	server, err := New(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- server.Run(ctx, func() { close(ready) }) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the server ended with %v", err)
		}
		server.Close()
	}()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("the server ended before it was ready: %v", err)
	}
	root, err := clientcmd.BuildConfigFromFlags("", o.AdminKubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	createCluster(t, root, "team", `{"namespaces":["shop"]}`)
	createCluster(t, root, "other", `{"namespaces":["bank"]}`)

	api := discoverytest.New()
	east := httptest.NewServer(api)
	defer east.Close()
	for _, namespace := range []string{"shop", "bank"} {
		api.Set(&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "reviews", CreationTimestamp: metav1.Unix(1000, 0)},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, Ports: []corev1.ServicePort{{Name: "http", Port: 8080, Protocol: corev1.ProtocolTCP}}},
		})
	}
	node, name, port := "n1", "http", int32(9080)
	api.Set(&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: node, Labels: map[string]string{corev1.LabelTopologyRegion: "eu", corev1.LabelTopologyZone: "eu-a"}}})
	api.Set(&discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: "reviews-1", Labels: map[string]string{discoveryv1.LabelServiceName: "reviews"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, NodeName: &node}},
	})
	member := members.Member{Name: "east", Mesh: "default", Network: "n1", Discovered: true, Config: &rest.Config{Host: east.URL}}
	server.members.Changed(member)
	defer server.members.Gone("east")
	eventually := func(what string, is func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not within a minute: %s", what)
			}
		}
	}
	eventually("the member is read", func() bool { return server.members.Reading("east").Synced })

	const all = "/apis/vmesh.io/v1alpha1/meshservices"
	get := func(cluster, path, accept string) (string, error) {
		data, err := in(t, root, cluster).RESTClient().Get().AbsPath(path).SetHeader("Accept", accept).DoRaw(ctx)
		return string(data), err
	}
	names := func(cluster string) string {
		data, err := get(cluster, all, "application/json")
		if err != nil {
			t.Fatal(err)
		}
		var list v1alpha1.MeshServiceList
		if err := json.Unmarshal([]byte(data), &list); err != nil {
			t.Fatal(err)
		}
		var out []string
		for i := range list.Items {
			out = append(out, list.Items[i].Namespace+"/"+list.Items[i].Name)
		}
		return strings.Join(out, " ")
	}
	for cluster, want := range map[string]string{"team": "shop/reviews", "other": "bank/reviews", "default": ""} {
		if got := names(cluster); got != want {
			t.Errorf("%s sees %q, want %q", cluster, got, want)
		}
	}

	// What the mesh's configuration says of it comes and goes by watches too.
	const path = "/apis/vmesh.io/v1alpha1/namespaces/shop/meshservices/reviews"
	stream, err := in(t, root, "team").RESTClient().Get().AbsPath(all).Param("watch", "1").Stream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	events := json.NewDecoder(stream)
	next := func() (s v1alpha1.MeshService) {
		var e struct {
			Type   string
			Object v1alpha1.MeshService
		}
		if err := events.Decode(&e); err != nil {
			t.Fatal(err)
		}
		return e.Object
	}
	if s := next(); s.Name != "reviews" || len(s.Status.Routes) > 0 || s.Status.Traffic == nil || len(s.Status.Traffic.Warnings) != 1 {
		t.Errorf("first: %+v", s)
	}
	team := in(t, root, "team")
	if _, err := team.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, rule := range []string{
		`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"split"},"spec":{"hosts":["reviews"],"http":[{"route":[{"destination":{"host":"reviews"}}]}]}}`,
		`{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"near"},"spec":{"host":"reviews","trafficPolicy":{"outlierDetection":{"consecutive5xxErrors":3},
			"loadBalancer":{"localityLbSetting":{"failover":[{"from":"eu","to":"us"}]}}}}}`,
	} {
		var kind metav1.TypeMeta
		if err := json.Unmarshal([]byte(rule), &kind); err != nil {
			t.Fatal(err)
		}
		if err := team.RESTClient().Post().AbsPath("/apis/networking.istio.io/v1/namespaces/shop/"+strings.ToLower(kind.Kind)+"s").
			SetHeader("Content-Type", "application/json").Body([]byte(rule)).Do(ctx).Error(); err != nil {
			t.Fatal(err)
		}
	}
	var s v1alpha1.MeshService
	for s = next(); len(s.Status.Routes) < 2; s = next() {
	}
	if got, want := s.Status.Summary.Routes, "vs/split,dr/near"; got != want {
		t.Errorf("routes %s, want %s", got, want)
	}
	if tr := s.Status.Traffic; tr.Locality != "Failover" || tr.From != "DestinationRule shop/near" || tr.OutlierDetection != tr.From || len(tr.Warnings) > 0 {
		t.Errorf("traffic %+v", tr)
	}

	// kubectl's table, its explanation, and what it says of members.
	table, err := get("team", path, "application/json;as=Table;g=meta.k8s.io;v=v1")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"east"`, `"1/1"`, `"http:8080"`, `"Failover"`, `"vs/split,dr/near"`, `"eu/eu-a"`} {
		if !strings.Contains(table, want) {
			t.Errorf("the table lacks %s: %s", want, table)
		}
	}
	if schema, err := get("team", "/openapi/v3/apis/vmesh.io/v1alpha1", "application/json"); err != nil || !strings.Contains(schema, "Where they are.") {
		t.Errorf("nothing explains meshservices: %v", err)
	}
	member.AwaySince, member.Drained = time.Unix(1000, 0), true
	server.members.Changed(member)
	warned := ""
	config := rest.CopyConfig(root)
	config.Host += "/clusters/team"
	config.WarningHandler = warningFunc(func(text string) { warned += text })
	if s = next(); !s.Status.Clusters[0].Drained || s.Status.Clusters[0].AwaySince == nil || s.Status.Summary.Ready != "0/1" {
		t.Errorf("drained and away: %+v", s.Status)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.RESTClient().Get().AbsPath(path).Do(ctx).Error(); err != nil || !strings.Contains(warned, "member cluster east has not answered since 1970-01-01T00:16:40Z") {
		t.Errorf("%v, warned %q", err, warned)
	}

	// Nobody writes them, and the home sees all.
	if err := team.RESTClient().Delete().AbsPath(path).Do(ctx).Error(); err == nil {
		t.Error("a service of the mesh was deleted")
	}
	if err := in(t, root, "").RESTClient().Patch(types.MergePatchType).AbsPath("/apis/vmesh.io/v1alpha1/meshes/default").
		Body([]byte(`{"spec":{"home":{"virtualCluster":"default"},"locality":{"failover":[{"from":"eu","to":"us"}]}}}`)).Do(ctx).Error(); err != nil {
		t.Fatal(err)
	}
	eventually("the mesh's locality policy is told", func() bool {
		data, err := get("other", strings.Replace(path, "shop", "bank", 1), "application/json")
		var s v1alpha1.MeshService
		return err == nil && json.Unmarshal([]byte(data), &s) == nil && s.Status.Traffic.Locality == "Failover" && s.Status.Traffic.From == "Mesh default" &&
			s.Status.Traffic.OutlierDetection == "Mesh default" && len(s.Status.Traffic.Warnings) == 0 && len(s.Status.Routes) == 0
	})
	eventually("the home sees all", func() bool { return names("default") == "bank/reviews shop/reviews" })
	if _, err := get("", all, "application/json"); err == nil {
		t.Error("the root, which belongs to no mesh, serves services of one")
	}

	// Who may view a namespace may see its services.
	for _, body := range []string{
		`{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"RoleBinding","metadata":{"name":"viewers"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"view"},"subjects":[{"kind":"User","name":"ann","apiGroup":"rbac.authorization.k8s.io"}]}`,
	} {
		if err := team.RESTClient().Post().AbsPath("/apis/rbac.authorization.k8s.io/v1/namespaces/shop/rolebindings").SetHeader("Content-Type", "application/json").
			Body([]byte(body)).Do(ctx).Error(); err != nil {
			t.Fatal(err)
		}
	}
	as := rest.CopyConfig(root)
	as.Impersonate.UserName = "ann"
	ann := in(t, as, "team").RESTClient()
	if err := ann.Get().AbsPath(path).Do(ctx).Error(); err != nil {
		t.Errorf("a viewer: %v", err)
	}
	if err := ann.Get().AbsPath(strings.Replace(path, "shop", "default", 1)).Do(ctx).Error(); err == nil || !strings.Contains(fmt.Sprint(err), "forbidden") {
		t.Errorf("a viewer, elsewhere: %v", err)
	}
}

type warningFunc func(text string)

// HandleWarningHeader implements rest.WarningHandler.
func (f warningFunc) HandleWarningHeader(_ int, _ string, text string) { f(text) }
