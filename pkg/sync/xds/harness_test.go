package xds

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	mcp "istio.io/api/mcp/v1alpha1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/component-base/metrics"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
	"github.com/vmesh-io/vmesh/test/leak"
)

const (
	patience = time.Minute

	virtualServices = "networking.istio.io/v1/VirtualService"
	gateways        = "networking.istio.io/v1/Gateway"
	meshConfig      = meshConfigURL
)

// textKinds are kinds whose specs are JSON strings and whose messages are StringValues.
func textKinds() []snapshot.Kind {
	kind := func(name, resource, url string) snapshot.Kind {
		return snapshot.Kind{
			Resource: schema.GroupResource{Group: "networking.istio.io", Resource: resource}, Name: name, TypeURL: url,
			MessageName: "google.protobuf.StringValue",
			AppendMessage: func(dst []byte, o *object.Object) ([]byte, error) {
				text := strings.Trim(string(o.Field("spec")), `"`)
				return proto.MarshalOptions{}.MarshalAppend(dst, wrapperspb.String(text))
			},
		}
	}
	return []snapshot.Kind{
		kind("VirtualService", "virtualservices", virtualServices),
		kind("Gateway", "gateways", gateways),
	}
}

// world is a server on loopback, with a builder that is fed by hand.
type world struct {
	t         testing.TB
	builder   *snapshot.Builder
	server    *Server
	registry  metrics.KubeRegistry
	address   string
	observers map[string]snapshot.Observer
	revision  uint64
	stop      func() // ends the server and waits for its end
}

func newWorld(t testing.TB, kinds []snapshot.Kind, options Options) *world {
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { leak.VerifyNone(t, leaks) })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	registry := metrics.NewKubeRegistry()
	options.Metrics = NewMetrics(registry.MustRegister)
	b := snapshot.NewBuilder(kinds, snapshot.NewMetrics(registry.MustRegister))
	w := &world{
		t: t, builder: b, server: New(b, options), registry: registry,
		address: listener.Addr().String(), observers: map[string]snapshot.Observer{}, revision: 1,
	}
	for _, s := range b.Sources() {
		w.observers[s.Resource.Resource] = s.Observer
	}
	ctx, cancel := context.WithCancel(context.Background())
	built, served := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(built)
		b.Run(ctx)
	}()
	go func() { served <- w.server.Serve(ctx, listener, nil, nil) }()
	stopped := false
	w.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		<-built
		select {
		case err := <-served:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(patience):
			t.Errorf("Serve does not end")
		}
	}
	t.Cleanup(w.stop)
	return w
}

// start reads all sources: a mesh "default" and a virtual cluster "c" that owns all
// of it, and what is given of each resource.
func (w *world) start(items map[string][]*object.Object) *world {
	all := map[string][]*object.Object{
		"meshes":          {meshObject("default")},
		"virtualclusters": {clusterObject("c", "default")},
	}
	maps.Copy(all, items)
	for resource, o := range w.observers {
		o.Replaced(all[resource], 1)
	}
	<-w.builder.Synced()
	return w
}

func (w *world) change(resource string, t watch.EventType, o *object.Object) {
	w.revision++
	w.observers[resource].Changed(t, o, w.revision)
}

func (w *world) set(name, text string) {
	w.change("virtualservices", watch.Modified, textObject("c", name, text))
}

func (w *world) delete(name string) {
	w.change("virtualservices", watch.Deleted, textObject("c", name, ""))
}

func meshObject(name string) *object.Object {
	o := &object.Object{}
	o.Name = name
	return o
}

func clusterObject(name, mesh string) *object.Object {
	o := &object.Object{}
	o.Name = name
	if err := o.SetContent(map[string]any{"spec": map[string]any{"mesh": mesh, "namespaces": []any{"*"}}}); err != nil {
		panic(err)
	}
	return o
}

// textObject is an object of name namespace/name.
func textObject(cluster, name, text string) *object.Object {
	o := &object.Object{}
	o.Namespace, o.Name, _ = strings.Cut(name, "/")
	o.SetCluster(cluster)
	if err := o.SetContent(map[string]any{"spec": text}); err != nil {
		panic(err)
	}
	o.DropContent()
	return o
}

func textObjects(pairs ...string) []*object.Object {
	var out []*object.Object
	for _, p := range pairs {
		name, text, _ := strings.Cut(p, "=")
		out = append(out, textObject("c", name, text))
	}
	return out
}

// eventually waits for a condition with a deadline.
func eventually(t testing.TB, what string, met func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !met(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (w *world) dial(options ...grpc.DialOption) discovery.AggregatedDiscoveryServiceClient {
	w.t.Helper()
	options = append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1 << 30)),
	}, options...)
	conn, err := grpc.NewClient("passthrough:///"+w.address, options...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	return discovery.NewAggregatedDiscoveryServiceClient(conn)
}

func node(id string) *core.Node {
	return &core.Node{Id: id, Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
		"ISTIO_REVISION": structpb.NewStringValue("canary"),
	}}}
}

// sotw is a state-of-the-world client.
type sotwClient struct {
	t      testing.TB
	stream discovery.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	cancel context.CancelFunc
}

func (w *world) sotw(options ...grpc.DialOption) *sotwClient {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	w.t.Cleanup(cancel)
	stream, err := w.dial(options...).StreamAggregatedResources(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	return &sotwClient{w.t, stream, cancel}
}

func (c *sotwClient) send(r *discovery.DiscoveryRequest) {
	c.t.Helper()
	if err := c.stream.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

// ask sends first requests, with a nonce that nobody gave, as istiod does.
func (c *sotwClient) ask(urls ...string) {
	c.t.Helper()
	for i, url := range urls {
		r := &discovery.DiscoveryRequest{TypeUrl: url, ResponseNonce: time.Now().String()}
		if i == 0 {
			r.Node = node("istiod")
		}
		c.send(r)
	}
}

func (c *sotwClient) receive() *discovery.DiscoveryResponse {
	c.t.Helper()
	r, err := c.stream.Recv()
	if err != nil {
		c.t.Fatalf("receiving: %v", err)
	}
	return r
}

func (c *sotwClient) ack(r *discovery.DiscoveryResponse) {
	c.t.Helper()
	c.send(&discovery.DiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce, VersionInfo: r.VersionInfo, Node: node("istiod")})
}

// expect receives a response, compares it with what is wanted and acknowledges it.
func (c *sotwClient) expect(url, want string) *discovery.DiscoveryResponse {
	c.t.Helper()
	r := c.receive()
	if got := read(c.t, r.Resources); r.TypeUrl != url || got != want {
		c.t.Fatalf("received %s %q, want %s %q", r.TypeUrl, got, url, want)
	}
	c.ack(r)
	return r
}

// read lists resources as namespace/name=text.
func read(t testing.TB, resources []*anypb.Any) string {
	t.Helper()
	var all []string
	for _, r := range resources {
		name, text, _ := decode(t, r)
		all = append(all, name+"="+text)
	}
	return strings.Join(all, " ")
}

func decode(t testing.TB, r *anypb.Any) (name, text, version string) {
	t.Helper()
	var resource mcp.Resource
	if err := r.UnmarshalTo(&resource); err != nil {
		t.Fatal(err)
	}
	var body wrapperspb.StringValue
	if err := resource.Body.UnmarshalTo(&body); err != nil {
		t.Fatal(err)
	}
	return resource.Metadata.Name, body.Value, resource.Metadata.Version
}

// deltaClient keeps what it is told, as a client of delta does.
type deltaClient struct {
	t      testing.TB
	stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	have   map[string]string // name to text
}

func (w *world) delta() *deltaClient {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	w.t.Cleanup(cancel)
	stream, err := w.dial().DeltaAggregatedResources(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	return &deltaClient{w.t, stream, map[string]string{}}
}

func (c *deltaClient) send(r *discovery.DeltaDiscoveryRequest) {
	c.t.Helper()
	if r.TypeUrl == "" {
		r.TypeUrl = virtualServices
	}
	if err := c.stream.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

func (c *deltaClient) receive() *discovery.DeltaDiscoveryResponse {
	c.t.Helper()
	r, err := c.stream.Recv()
	if err != nil {
		c.t.Fatalf("receiving: %v", err)
	}
	for _, res := range r.Resources {
		name, text, version := decode(c.t, res.Resource)
		if name != res.Name || version != res.Version {
			c.t.Fatalf("a resource says it is %s %s around %s %s", res.Name, res.Version, name, version)
		}
		c.have[name] = text
	}
	for _, name := range r.RemovedResources {
		delete(c.have, name)
	}
	return r
}

func (c *deltaClient) ack(r *discovery.DeltaDiscoveryResponse) {
	c.t.Helper()
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce})
}

// expect receives a response and acknowledges it: "name=text" for what it gives and
// "-name" for what it removes.
func (c *deltaClient) expect(want string) *discovery.DeltaDiscoveryResponse {
	c.t.Helper()
	r := c.receive()
	var all []string
	for _, res := range r.Resources {
		name, text, _ := decode(c.t, res.Resource)
		all = append(all, name+"="+text)
	}
	for _, name := range r.RemovedResources {
		all = append(all, "-"+name)
	}
	slices.Sort(all)
	if got := strings.Join(all, " "); got != want {
		c.t.Fatalf("received %q, want %q", got, want)
	}
	c.ack(r)
	return r
}

// counter is the value of a metric, added up over the labels that are not given.
func (w *world) counter(name string, labels map[string]string) float64 {
	w.t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	total := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			match := 0
			for _, l := range m.GetLabel() {
				if labels[l.GetName()] == l.GetValue() {
					match++
				}
			}
			if match == len(labels) {
				total += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return total
}

func manyObjects(n int) []*object.Object {
	out := make([]*object.Object, n)
	for i := range out {
		out[i] = textObject("c", fmt.Sprintf("ns-%d/vs-%d", i%50, i), strings.Repeat("x", 700))
	}
	return out
}
