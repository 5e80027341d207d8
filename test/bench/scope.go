package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/vmesh-io/vmesh/test/harness"
)

const (
	scopeNamespaces = 100
	scopeProxies    = 20 // each in a namespace of its own
	scopeChanges    = 10
	// scopeQuiet is how long nothing comes to any proxy when a push is over; istiod gathers changes for 100 ms.
	scopeQuiet = 700 * time.Millisecond
)

// scopeWay is who sees the objects: by what they export themselves, or by Sidecars that narrow what a namespace imports, which
// the team has written or vmesh adds.
type scopeWay struct {
	id       string
	exportTo string
	sidecars bool
	managed  bool
}

var scopes = []scopeWay{
	{"all", "*", false, false},
	{"own", ".", false, false},
	{"sidecar", "*", true, false},
	{"managed", "*", false, true},
}

// scope measures what it costs istiod to push one change, depending on who sees what.
func (b *bench) scope(ctx context.Context) error {
	istiod, err := harness.Tool(ctx, "istiod")
	if err != nil {
		return err
	}
	for _, s := range scopes {
		if err := b.scopeOf(ctx, istiod, s); err != nil {
			return fmt.Errorf("%s: %w", s.id, err)
		}
	}
	for _, id := range []string{"own", "sidecar", "managed"} {
		for _, figure := range []string{"cpu", "bytes"} {
			all, _ := b.results.median("scope.all."+figure, nameVmesh)
			if with, ok := b.results.median("scope."+id+"."+figure, nameVmesh); ok && with > 0 {
				b.putNamed("scope."+id+"."+figure+".ratio", nameVmesh, all/with)
			}
		}
	}
	return nil
}

func (b *bench) scopeOf(ctx context.Context, binary string, way scopeWay) (err error) {
	id, exportTo := way.id, way.exportTo
	t := b.vmesh("scope-" + id)
	defer func() { _ = t.kill() }()
	if _, err := t.start(ctx); err != nil {
		return err
	}
	// What is measured is what a virtual cluster may do when it is allowed to.
	spec := `"guardRails":{"exportTo":["*"]}`
	if way.managed {
		spec += `,"sidecarScope":{"reach":"Namespace"}`
	}
	if _, err := t.client.size(ctx, request{
		method: "PATCH", path: "/apis/vmesh.io/v1alpha1/virtualclusters/default", contentType: "application/merge-patch+json",
		body: []byte(`{"spec":{` + spec + `}}`),
	}); err != nil {
		return err
	}
	services := b.scaled(10000) / 3 / scopeNamespaces
	if err := fillScope(ctx, t, services, exportTo, way.sidecars); err != nil {
		return err
	}
	host, err := harness.StartEtcd(ctx, harness.EtcdOptions{Dir: filepath.Join(b.dir, "scope-"+id+"-host"), Binary: b.etcdBinary})
	if err != nil {
		return err
	}
	defer func() { _ = host.Kill() }()
	api, err := harness.StartKubeAPIServer(ctx, harness.KubeAPIServerOptions{
		Dir: filepath.Join(b.dir, "scope-"+id+"-host"), EtcdURL: host.URL, Binary: b.apiserverBinary,
	})
	if err != nil {
		return err
	}
	defer func() { _ = api.Kill() }()
	istiod, err := harness.StartIstiod(ctx, harness.IstiodOptions{
		Dir: filepath.Join(b.dir, "scope-"+id+"-istiod"), Binary: binary, Kubeconfig: api.Kubeconfig, XDSAddresses: []string{t.xds},
	})
	if err != nil {
		return err
	}
	defer func() { _ = istiod.Kill() }()

	w := &proxies{woken: make(chan struct{}, 1)}
	running, stop := context.WithCancel(ctx)
	defer func() {
		stop()
		w.all.Wait()
	}()
	for i := range scopeProxies {
		if err := w.connect(running, istiod.GRPCAddress, i*scopeNamespaces/scopeProxies); err != nil {
			return err
		}
	}
	if err := w.quiet(ctx); err != nil {
		return err
	}
	var cpu time.Duration // all changes' together: of one it is read too coarsely
	for n := range scopeChanges + 2 {
		w.reset()
		before, err := istiod.CPU()
		if err != nil {
			return err
		}
		begun := time.Now()
		if err := applyScope(ctx, t, scopeVirtualService, 0, n%services, n+1, exportTo); err != nil {
			return err
		}
		if err := w.quiet(ctx); err != nil {
			return err
		}
		after, err := istiod.CPU()
		if err != nil {
			return err
		}
		if n < 2 { // to warm up
			continue
		}
		first, last, bytes := w.pushed()
		if first.IsZero() {
			return errors.New("a change reached no proxy")
		}
		cpu += after - before
		b.put("scope."+id+".bytes", t, float64(bytes)/1024)
		b.put("scope."+id+".last", t, milliseconds(last.Sub(begun)))
	}
	b.put("scope."+id+".cpu", t, milliseconds(cpu)/scopeChanges)
	rss, err := istiod.AnonRSS()
	if err != nil {
		return err
	}
	b.put("scope."+id+".rss", t, float64(rss)/(1<<20))
	return nil
}

func scopeNamespace(i int) string { return fmt.Sprintf("team-%02d", i) }

const (
	scopeServiceEntry    = "serviceentries"
	scopeDestinationRule = "destinationrules"
	scopeVirtualService  = "virtualservices"
)

// fillScope makes services in each namespace, each of a ServiceEntry, a DestinationRule and a VirtualService.
func fillScope(ctx context.Context, t *target, services int, exportTo string, sidecars bool) error {
	_, err := drive(ctx, 8, scopeNamespaces, nil, func(ctx context.Context, i int) error {
		if _, err := t.client.size(ctx, request{
			method: "POST", path: t.base + "/api/v1/namespaces", body: fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":%q}}`, scopeNamespace(i)),
		}); err != nil {
			return err
		}
		if sidecars {
			if _, err := t.client.size(ctx, request{
				method: "POST", path: t.base + "/apis/networking.istio.io/v1/namespaces/" + scopeNamespace(i) + "/sidecars",
				body: []byte(`{"apiVersion":"networking.istio.io/v1","kind":"Sidecar","metadata":{"name":"default"},"spec":{"egress":[{"hosts":["./*"]}]}}`),
			}); err != nil {
				return err
			}
		}
		for s := range services {
			for _, resource := range []string{scopeServiceEntry, scopeDestinationRule, scopeVirtualService} {
				if err := applyScope(ctx, t, resource, i, s, 0, exportTo); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return err
}

// applyScope writes one object of a service.
func applyScope(ctx context.Context, t *target, resource string, namespace, service, revision int, exportTo string) error {
	name := fmt.Sprintf("service-%03d", service)
	host := fmt.Sprintf("%s.%s.example", name, scopeNamespace(namespace))
	var kind, spec string
	switch resource {
	case scopeServiceEntry:
		kind, spec = "ServiceEntry", fmt.Sprintf(`"hosts":[%q],"location":"MESH_INTERNAL","resolution":"STATIC","ports":[{"number":80,"name":"http","protocol":"HTTP"}],`+
			`"endpoints":[{"address":"10.1.%d.%d","labels":{"version":"v1"}},{"address":"10.2.%d.%d","labels":{"version":"v2"}}]`,
			host, namespace, service, namespace, service)
	case scopeDestinationRule:
		kind, spec = "DestinationRule", fmt.Sprintf(`"host":%q,"subsets":[{"name":"v1","labels":{"version":"v1"}},{"name":"v2","labels":{"version":"v2"}}]`, host)
	default:
		canary := revision % 100
		kind, spec = "VirtualService", fmt.Sprintf(`"hosts":[%q],"http":[{"route":[{"destination":{"host":%[1]q,"subset":"v1"},"weight":%d},{"destination":{"host":%[1]q,"subset":"v2"},"weight":%d}]}]`,
			host, 100-canary, canary)
	}
	body := fmt.Appendf(nil, `{"apiVersion":"networking.istio.io/v1","kind":%q,"metadata":{"name":%q,"namespace":%q},"spec":{"exportTo":[%q],%s}}`,
		kind, name, scopeNamespace(namespace), exportTo, spec)
	_, err := t.client.size(ctx, request{
		method: "PATCH", path: t.base + "/apis/networking.istio.io/v1/namespaces/" + scopeNamespace(namespace) + "/" + resource + "/" + name + "?fieldManager=bench",
		contentType: "application/apply-patch+yaml", body: body,
	})
	return err
}

// proxies are sidecars as istiod sees them, which keep nothing of what they get.
type proxies struct {
	all   sync.WaitGroup
	woken chan struct{}
	err   atomic.Pointer[error]

	mu          sync.Mutex
	first, last time.Time
	bytes       int
}

// proxyTypes is what a sidecar asks for: clusters, listeners, and the routes of port 80. (What it asks for by name besides,
// endpoints, does not change with a route.)
var proxyTypes = []struct {
	url   string
	names []string
}{
	{"type.googleapis.com/envoy.config.cluster.v3.Cluster", nil},
	{"type.googleapis.com/envoy.config.listener.v3.Listener", nil},
	{"type.googleapis.com/envoy.config.route.v3.RouteConfiguration", []string{"80"}},
}

func (p *proxies) connect(ctx context.Context, address string, namespace int) error {
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.ForceCodecV2(lightCodec{encoding.GetCodecV2(proto.Name)})))
	if err != nil {
		return err
	}
	stream, err := connection.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, sotwMethod)
	if err != nil {
		return errors.Join(err, connection.Close())
	}
	text := structpb.NewStringValue
	node := &core.Node{
		Id: fmt.Sprintf("sidecar~10.9.0.%d~proxy.%[2]s~%[2]s.svc.cluster.local", namespace+1, scopeNamespace(namespace)),
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			"NAMESPACE": text(scopeNamespace(namespace)), "CLUSTER_ID": text("Kubernetes"), "ISTIO_VERSION": text("1.31.0"),
		}},
	}
	names := map[string][]string{}
	for _, t := range proxyTypes {
		names[t.url] = t.names
		if err := stream.SendMsg(&discovery.DiscoveryRequest{Node: node, TypeUrl: t.url, ResourceNames: t.names}); err != nil {
			return errors.Join(err, connection.Close())
		}
	}
	p.all.Go(func() {
		defer connection.Close()
		for {
			var r response
			err := stream.RecvMsg(&r)
			if err == nil {
				p.took(&r)
				err = stream.SendMsg(&discovery.DiscoveryRequest{TypeUrl: r.typeURL, VersionInfo: r.version, ResponseNonce: r.nonce, ResourceNames: names[r.typeURL]})
			}
			if err != nil {
				if ctx.Err() == nil {
					p.err.Store(&err)
				}
				return
			}
		}
	})
	return nil
}

func (p *proxies) took(r *response) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.first.IsZero() {
		p.first = r.received
	}
	p.last = r.received
	p.bytes += r.bytes
	select {
	case p.woken <- struct{}{}:
	default:
	}
}

func (p *proxies) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.first, p.last, p.bytes = time.Time{}, time.Time{}, 0
}

func (p *proxies) pushed() (first, last time.Time, bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.first, p.last, p.bytes
}

// quiet waits until something has come and then nothing more.
func (p *proxies) quiet(ctx context.Context) error {
	timeout := time.After(30 * time.Second)
	select {
	case <-p.woken:
	case <-timeout:
		return errors.New("istiod pushes nothing")
	}
	for {
		select {
		case <-p.woken:
		case <-time.After(scopeQuiet):
			if err := p.err.Load(); err != nil {
				return fmt.Errorf("a proxy's stream ended: %w", *err)
			}
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
