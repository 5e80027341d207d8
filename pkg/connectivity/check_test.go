package connectivity

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
)

// pod is one endpoint that the fake control plane knows.
type pod struct {
	service, cluster, network, ip string
	plain, notReady               bool
}

// fake is a control plane with the rules of Istio for networks.
type fake struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	pods     []pod
	gateways map[string]string // address by network
	hidden   string            // the network that proxies of others are not told of
	local    string            // the service that is for its own cluster alone
}

func (f *fake) StreamAggregatedResources(stream discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	request, err := stream.Recv()
	if err != nil {
		return err
	}
	say := func(of ...proto.Message) error {
		response := &discovery.DiscoveryResponse{TypeUrl: request.GetTypeUrl()}
		for _, m := range of {
			resource, err := anypb.New(m)
			if err != nil {
				return err
			}
			response.Resources = append(response.Resources, resource)
		}
		return stream.Send(response)
	}
	if request.GetTypeUrl() == clusterType {
		clusters := []proto.Message{&cluster.Cluster{Name: "BlackHoleCluster"}, &cluster.Cluster{Name: "outbound|443||dns.example"}}
		seen := map[string]bool{}
		for _, p := range f.pods {
			for _, name := range []string{Service{p.service, 80}.Cluster(), fmt.Sprintf("outbound|80|v1|%s", p.service)} {
				if !seen[name] {
					clusters = append(clusters, &cluster.Cluster{Name: name, ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS}})
				}
				seen[name] = true
			}
		}
		return say(clusters...)
	}
	data := func(key string) string { return request.GetNode().GetMetadata().GetFields()[key].GetStringValue() }
	network, view := data("NETWORK"), data("REQUESTED_NETWORK_VIEW")
	var all []proto.Message
	for _, name := range request.GetResourceNames() {
		assignment := &endpoint.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpoint.LocalityLbEndpoints{{}}}
		told := map[string]bool{}
		for _, p := range f.pods {
			foreign := p.network != "" && network != p.network
			switch {
			case Service{p.service, 80}.Cluster() != name,
				view != "" && p.network != "" && view != p.network,
				foreign && f.hidden == p.network && view == "",
				f.local == p.service && data("CLUSTER_ID") != p.cluster:
				continue
			}
			address, workload, secure := p.ip, p.service+";ns;"+p.service+";;"+p.cluster, !p.plain
			if gateway := f.gateways[p.network]; foreign && gateway != "" {
				if p.plain {
					continue
				}
				if address, workload = gateway, ";;;;"; told[address] {
					continue
				}
				told[address] = true
			}
			e := &endpoint.LbEndpoint{
				HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: &core.Address{Address: &core.Address_SocketAddress{
					SocketAddress: &core.SocketAddress{Address: address, PortSpecifier: &core.SocketAddress_PortValue{PortValue: 8080}},
				}}}},
				Metadata: &core.Metadata{FilterMetadata: map[string]*structpb.Struct{"istio": {Fields: map[string]*structpb.Value{"workload": structpb.NewStringValue(workload)}}}},
			}
			if p.notReady {
				e.HealthStatus = core.HealthStatus_UNHEALTHY
			}
			if secure {
				e.Metadata.FilterMetadata["envoy.transport_socket_match"] = &structpb.Struct{Fields: map[string]*structpb.Value{"tlsMode": structpb.NewStringValue("istio")}}
			}
			assignment.Endpoints[0].LbEndpoints = append(assignment.Endpoints[0].LbEndpoints, e)
		}
		all = append(all, assignment)
	}
	return say(all...)
}

func (f *fake) serve(t *testing.T) *grpc.ClientConn {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(server, f)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	connection, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		connection.Close()
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return connection
}

func TestACheckSaysWhatIsNotConnected(t *testing.T) {
	members := []Member{{Name: "east", Network: "coast"}, {Name: "west", Network: "coast"}, {Name: "apart", Network: "island"}}
	whole := []pod{
		{service: "a.ns.svc", cluster: "east", network: "coast", ip: "10.1.0.1"},
		{service: "a.ns.svc", cluster: "west", network: "coast", ip: "10.2.0.1"},
		{service: "a.ns.svc", cluster: "apart", network: "island", ip: "10.1.0.1"}, // the same address as in east
	}
	gateways := map[string]string{"coast": "192.0.2.10", "island": "192.0.2.20"}
	with := func(more ...pod) []pod { return append(slices.Clone(whole), more...) }
	for name, c := range map[string]struct {
		fake     fake
		members  []Member
		problems []string // FROM TO REASON SERVICES
		warnings []string // parts
		routes   []string // FROM TO HOW REACHED/SERVICES
	}{
		"a whole mesh": {
			fake: fake{pods: whole, gateways: gateways}, members: members,
			routes: []string{"coast coast Direct 1/1", "coast island Gateways 1/1", "island coast Gateways 1/1", "island island Direct 1/1"},
		},
		"no gateway of one network": {
			fake: fake{pods: whole, gateways: map[string]string{"coast": "192.0.2.10"}}, members: members,
			problems: []string{"east island NoGateway a.ns.svc:80", "west island NoGateway a.ns.svc:80"},
			routes:   []string{"coast coast Direct 1/1", "coast island Broken 0/1", "island coast Gateways 1/1", "island island Direct 1/1"},
		},
		"a service without mutual TLS": {
			fake:     fake{pods: with(pod{service: "b.ns.svc", cluster: "apart", network: "island", ip: "10.1.0.9", plain: true}), gateways: gateways},
			members:  members,
			problems: []string{"east island NoMutualTLS b.ns.svc:80", "west island NoMutualTLS b.ns.svc:80"},
			routes:   []string{"coast coast Direct 1/1", "coast island Gateways 1/2", "island coast Gateways 1/1", "island island Direct 2/2"},
		},
		"some endpoints without mutual TLS": {
			fake:     fake{pods: with(pod{service: "a.ns.svc", cluster: "apart", network: "island", ip: "10.1.0.9", plain: true}), gateways: gateways},
			members:  members,
			warnings: []string{"network island: of 1 services, some endpoints take no mutual TLS"},
			routes:   []string{"coast coast Direct 1/1", "coast island Gateways 1/1", "island coast Gateways 1/1", "island island Direct 1/1"},
		},
		"endpoints that are not ready do not count": {
			fake: fake{pods: with(pod{service: "b.ns.svc", cluster: "apart", network: "island", ip: "10.1.0.9", plain: true, notReady: true}), gateways: gateways}, members: members,
			routes: []string{"coast coast Direct 1/1", "coast island Gateways 1/1", "island coast Gateways 1/1", "island island Direct 1/1"},
		},
		"a network that others are not told of": {
			fake: fake{pods: whole, gateways: gateways, hidden: "island"}, members: members,
			problems: []string{"east island NotTold a.ns.svc:80", "west island NotTold a.ns.svc:80"},
			routes:   []string{"coast coast Direct 1/1", "coast island Broken 0/1", "island coast Gateways 1/1", "island island Direct 1/1"},
		},
		"a service for its own cluster alone": {
			fake: fake{pods: with(pod{service: "l.ns.svc", cluster: "apart", network: "island", ip: "10.1.0.9"}), gateways: gateways, local: "l.ns.svc"}, members: members,
			routes: []string{"coast coast Direct 1/1", "coast island Gateways 2/2", "island coast Gateways 1/1", "island island Direct 2/2"},
		},
		"services of a cluster's own are not looked at": {
			fake: fake{pods: with(pod{service: "kube-dns.kube-system.svc.cluster.local", cluster: "apart", network: "island", ip: "10.1.0.9", plain: true}), gateways: gateways}, members: members,
			routes: []string{"coast coast Direct 1/1", "coast island Gateways 1/1", "island coast Gateways 1/1", "island island Direct 1/1"},
		},
		"a member that is not read, and one that is not to be": {
			fake:     fake{pods: whole, gateways: gateways},
			members:  append(slices.Clone(members), Member{Name: "lost", Network: "island"}, Member{Name: "drained", Network: "island", Out: "drained: repairs"}),
			problems: []string{" island NotRead "}, warnings: []string{"member drained is left out: drained: repairs"},
			routes: []string{"coast coast Direct 1/1", "coast island Gateways 1/1", "island coast Gateways 1/1", "island island Direct 1/1"},
		},
		"a member without a network": {
			fake:     fake{pods: append(slices.Clone(whole[:1]), pod{service: "a.ns.svc", cluster: "bare", ip: "10.3.0.1"}), gateways: gateways},
			members:  []Member{{Name: "east", Network: "coast"}, {Name: "bare"}},
			problems: []string{"east  NoNetwork a.ns.svc:80"}, warnings: []string{"member bare has no network, others have"},
			routes: []string{"  Direct 1/1", " coast Gateways 1/1", "coast  Broken 0/1", "coast coast Direct 1/1"},
		},
		"one network": {
			fake: fake{pods: whole[:2]}, members: members[:2], routes: []string{"coast coast Direct 1/1"},
		},
		"nothing there": {
			fake: fake{}, members: members[2:], problems: []string{" island NotRead "}, routes: []string{"island island NoEndpoints 0/0"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			r, err := Check(ctx, Options{ControlPlane: c.fake.serve(t), Members: c.members, Namespace: "istio-system"})
			if err != nil {
				t.Fatal(err)
			}
			var problems, routes []string
			for _, p := range r.Problems {
				problems = append(problems, fmt.Sprintf("%s %s %s %s", p.From, p.To, p.Reason, strings.Join(p.Services, ",")))
			}
			for _, route := range r.Routes {
				routes = append(routes, fmt.Sprintf("%s %s %s %d/%d", route.From, route.To, route.How, route.Reached, route.Services))
			}
			if !slices.Equal(problems, c.problems) {
				t.Errorf("problems are %q, not %q", problems, c.problems)
			}
			if !slices.Equal(routes, c.routes) {
				t.Errorf("routes are %q, not %q", routes, c.routes)
			}
			if len(r.Warnings) != len(c.warnings) {
				t.Errorf("warnings are %q, not %q", r.Warnings, c.warnings)
			}
			for i, w := range c.warnings {
				if i < len(r.Warnings) && !strings.Contains(r.Warnings[i], w) {
					t.Errorf("warning %d is %q, not %q", i, r.Warnings[i], w)
				}
			}
		})
	}
}

func TestAControlPlaneThatIsNotThereIsAnError(t *testing.T) {
	connection, err := grpc.NewClient("127.0.0.1:1", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	if _, err := Check(t.Context(), Options{ControlPlane: connection, Members: []Member{{Name: "east"}}, Namespace: "istio-system"}); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("the error is %v", err)
	}
}

func TestAnAttemptWithoutAServerOfThatNameSaysSo(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
	if _, err := try(t.Context(), dial, listener.Addr().String(), "outbound_.80_._.a.ns.svc"); err == nil || !strings.Contains(err.Error(), "it connects, but to no server of outbound_.80_._.a.ns.svc") {
		t.Errorf("the error is %v", err)
	}
	if _, err := try(t.Context(), dial, listener.Addr().String(), ""); err != nil {
		t.Errorf("without a name, the error is %v", err)
	}
}

func FuzzParseSNI(f *testing.F) {
	for _, name := range []string{"outbound_.80_._.reviews.shop.svc.cluster.local", "outbound_.80_.v1_.reviews.shop.svc.cluster.local", "outbound_.x_._.a", "outbound_.80_._.", "reviews", ""} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		s, subset, err := ParseSNI(name)
		if err != nil {
			return
		}
		if again, sub, err := ParseSNI(s.SNI()); err != nil || again != s || sub != "" {
			t.Errorf("%q is %v of subset %q, whose name is %q: %v, %v", name, s, subset, s.SNI(), again, err)
		}
	})
}
