package network

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/connectivity"
	"github.com/vmesh-io/vmesh/test/harness"
	"github.com/vmesh-io/vmesh/test/traffic"
)

func TestCallsOfOneServiceAreAnsweredInAllMembersOfANetwork(t *testing.T) {
	ctx := begin(t)
	backends := serve(ctx, t, "one", "greeter", 2, harness.BackendOptions{Version: "v1"}, shared.east, shared.west)
	client := dial(t, traffic.Place{Cluster: "east", Network: coast, Namespace: "one", Reach: traffic.Join(shared.east.Wires, shared.west.Wires)}, "greeter.one.svc.cluster.local:80")
	eventually(ctx, t, func(ctx context.Context) error {
		counts := client.Counts(ctx, 100, nil)
		if counts.Failed > 0 || len(counts.ByName) != len(backends) || counts.ByCluster["east"] == 0 || counts.ByCluster["west"] == 0 {
			return fmt.Errorf("calls went as %+v", counts)
		}
		return nil
	})
	// What is not ready is not called, and what is gone neither.
	must(t, backends[0].SetReady(ctx, false))
	must(t, backends[2].Remove(ctx))
	eventually(ctx, t, func(ctx context.Context) error {
		counts := client.Counts(ctx, 100, nil)
		if counts.Failed > 0 || len(counts.ByName) != 2 || counts.ByName[backends[1].Name] == 0 || counts.ByName[backends[3].Name] == 0 {
			return fmt.Errorf("calls went as %+v", counts)
		}
		return nil
	})
}

func TestAnAddressInAnotherNetworkIsNotReached(t *testing.T) {
	ctx := begin(t)
	serve(ctx, t, "unreached", "greeter", 1, harness.BackendOptions{}, shared.west)
	client := dial(t, traffic.Place{Cluster: "east", Network: coast, Namespace: "unreached", Reach: shared.east.Wires}, "greeter.unreached.svc.cluster.local:80")
	eventually(ctx, t, func(ctx context.Context) error {
		_, err := client.Ask(ctx, nil)
		if err == nil {
			t.Fatal("the call was answered")
		}
		if !isAbout(err, "it is in another network") {
			return fmt.Errorf("the call failed otherwise: %w", err)
		}
		return nil
	})
}

// gateway starts one of a network, on a free port of 127.0.0.1 when listen is empty.
func gateway(ctx context.Context, t *testing.T, listen, network string, wires traffic.Wires) *harness.Gateway {
	t.Helper()
	g, err := harness.StartGateway(ctx, t.TempDir(), traffic.GatewayOptions{Listen: listen, Istiod: shared.istiod.GRPCAddress, Network: network, Wires: wires})
	must(t, err)
	harness.StopAfter(t, func(ctx context.Context) error { return g.Stop(ctx) }) // of the process that it then is
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log of the gateway of %s:\n%s", network, logOf(g.LogFile()))
		}
	})
	return g
}

func address(g *harness.Gateway) string { return fmt.Sprintf("%s:%d", g.Host, g.Port) }

// by are gateways as a Mesh has them.
func by(gateways ...*harness.Gateway) []v1alpha1.MeshNetworkGateway {
	var all []v1alpha1.MeshNetworkGateway
	for _, g := range gateways {
		all = append(all, v1alpha1.MeshNetworkGateway{Address: g.Host, Port: int32(g.Port)})
	}
	return all
}

func coastWires() traffic.Wires { return traffic.Join(shared.east.Wires, shared.west.Wires) }

// securely serves with certificates of a trust.
func securely(t *testing.T, trust *traffic.Trust, namespace string) harness.BackendOptions {
	t.Helper()
	credentials, err := trust.Server(namespace, "default")
	must(t, err)
	return harness.BackendOptions{Credentials: credentials}
}

// caller is a client of a service at a place.
func caller(t *testing.T, trust *traffic.Trust, place traffic.Place, service connectivity.Service) *traffic.Client {
	t.Helper()
	var err error
	place.Credentials, err = trust.Client(place.Namespace, "client", service.SNI())
	must(t, err)
	return dial(t, place, service.String())
}

// told are the addresses of a service that a proxy in a member and network is told.
func told(ctx context.Context, cluster, network string, service connectivity.Service) ([]string, error) {
	connection, err := grpc.NewClient(shared.istiod.GRPCAddress, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	endpoints, err := connectivity.Endpoints(ctx, connection, connectivity.Place{Cluster: cluster, Network: network, IP: "127.0.0.1", Namespace: "demo"}, []connectivity.Service{service})
	if err != nil {
		return nil, err
	}
	var addresses []string
	for _, e := range endpoints[service] {
		addresses = append(addresses, e.Address)
	}
	slices.Sort(addresses)
	return addresses, nil
}

// isTold waits until a proxy is told of exactly these.
func isTold(ctx context.Context, t *testing.T, cluster, network string, service connectivity.Service, want ...string) {
	t.Helper()
	slices.Sort(want)
	eventually(ctx, t, func(ctx context.Context) error {
		got, err := told(ctx, cluster, network, service)
		if err != nil {
			return err
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("a proxy of %s in %s is told %v, not %v", cluster, network, got, want)
		}
		return nil
	})
}

// isAnsweredBy calls until one of each group of members has answered, nobody else, and no call failed. A gateway has one connection of a
// client, which ends in one member.
func isAnsweredBy(ctx context.Context, t *testing.T, client *traffic.Client, groups ...[]*harness.Member) {
	t.Helper()
	eventually(ctx, t, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		counts := client.Counts(ctx, 60, nil)
		answered := 0
		for i, group := range groups {
			ofGroup := 0
			for _, m := range group {
				ofGroup += counts.ByCluster[m.Name]
			}
			if ofGroup == 0 {
				return fmt.Errorf("group %d answered none: %+v", i, counts)
			}
			answered += ofGroup
		}
		if answered != counts.Calls {
			return fmt.Errorf("calls went as %+v", counts)
		}
		return nil
	})
}

func TestNetworksAreConnectedByTheirGatewaysAlone(t *testing.T) {
	ctx := begin(t)
	trust, err := traffic.NewTrust()
	must(t, err)
	greeter := connectivity.Service{Host: "greeter.crossing.svc.cluster.local", Port: 80}
	backends := serve(ctx, t, "crossing", "greeter", 2, securely(t, trust, "crossing"), shared.east, shared.west, shared.apart)
	at := func(i int) string { return fmt.Sprintf("%s:%d", backends[i].IP, shared.east.Port) }
	toCoast, toIsland := gateway(ctx, t, "", coast, coastWires()), gateway(ctx, t, "", island, shared.apart.Wires)
	// The control plane takes what changes while it runs.
	settle(ctx, t, by(toCoast), by(toIsland))

	isTold(ctx, t, "east", coast, greeter, at(0), at(1), at(2), at(3), address(toIsland))
	isTold(ctx, t, "west", coast, greeter, at(0), at(1), at(2), at(3), address(toIsland))
	isTold(ctx, t, "apart", island, greeter, at(4), at(5), address(toCoast))

	fromCoast := caller(t, trust, traffic.Place{Cluster: "east", Network: coast, Namespace: "crossing", Reach: coastWires()}, greeter)
	fromIsland := caller(t, trust, traffic.Place{Cluster: "apart", Network: island, Namespace: "crossing", Reach: shared.apart.Wires}, greeter)
	east, west, apart := []*harness.Member{shared.east}, []*harness.Member{shared.west}, []*harness.Member{shared.apart}
	isAnsweredBy(ctx, t, fromCoast, east, west, apart)
	isAnsweredBy(ctx, t, fromIsland, slices.Concat(east, west), apart)

	// A second gateway of the island, and then that alone.
	other := gateway(ctx, t, "", island, shared.apart.Wires)
	settle(ctx, t, by(toCoast), by(toIsland, other))
	isTold(ctx, t, "east", coast, greeter, at(0), at(1), at(2), at(3), address(toIsland), address(other))
	settle(ctx, t, by(toCoast), by(other))
	isTold(ctx, t, "east", coast, greeter, at(0), at(1), at(2), at(3), address(other))
	must(t, toIsland.Stop(ctx))
	isAnsweredBy(ctx, t, fromCoast, east, west, apart)
}

func TestCallsFollowAGatewayWhoseLoadBalancerHasAnotherAddress(t *testing.T) {
	ctx := begin(t)
	trust, err := traffic.NewTrust()
	must(t, err)
	greeter := connectivity.Service{Host: "greeter.moving.svc.cluster.local", Port: 80}
	serve(ctx, t, "moving", "greeter", 1, securely(t, trust, "moving"), shared.apart)
	var gateways []*harness.Gateway
	for _, host := range []string{"127.200.0.1", "127.200.0.2"} {
		gateways = append(gateways, gateway(ctx, t, fmt.Sprintf("%s:%d", host, shared.apart.Port), island, shared.apart.Wires))
	}
	must(t, shared.apart.AddNamespace(ctx, "istio-system"))
	services := shared.apart.Client.CoreV1().Services("istio-system")
	service, err := services.Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "eastwest"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Name: "tls", Port: int32(shared.apart.Port)}}},
	}, metav1.CreateOptions{})
	must(t, err)
	harness.StopAfter(t, func(ctx context.Context) error { return services.Delete(ctx, service.Name, metav1.DeleteOptions{}) })
	movesTo := func(g *harness.Gateway) {
		t.Helper()
		service.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: g.Host}}
		service, err = services.UpdateStatus(ctx, service, metav1.UpdateOptions{})
		must(t, err)
	}
	movesTo(gateways[0])
	settle(ctx, t, nil, []v1alpha1.MeshNetworkGateway{{
		Service: &v1alpha1.MeshNetworkGatewayService{Member: shared.apart.Name, Namespace: "istio-system", Name: service.Name}, Port: int32(shared.apart.Port),
	}})
	isTold(ctx, t, "east", coast, greeter, address(gateways[0]))
	client := caller(t, trust, traffic.Place{Cluster: "east", Network: coast, Namespace: "moving", Reach: coastWires()}, greeter)
	isAnsweredBy(ctx, t, client, []*harness.Member{shared.apart})
	movesTo(gateways[1])
	isTold(ctx, t, "east", coast, greeter, address(gateways[1]))
	must(t, gateways[0].Stop(ctx))
	isAnsweredBy(ctx, t, client, []*harness.Member{shared.apart})
}

func TestPodsWithoutMutualTLSAreNotToldAcrossNetworks(t *testing.T) {
	ctx := begin(t)
	trust, err := traffic.NewTrust()
	must(t, err)
	plain := connectivity.Service{Host: "plain.bare.svc.cluster.local", Port: 80}
	secure := connectivity.Service{Host: "secure.bare.svc.cluster.local", Port: 80}
	plainBackends := serve(ctx, t, "bare", "plain", 1, harness.BackendOptions{}, shared.east, shared.apart)
	secureBackends := serve(ctx, t, "bare", "secure", 1, securely(t, trust, "bare"), shared.east, shared.apart)
	toCoast, toIsland := gateway(ctx, t, "", coast, coastWires()), gateway(ctx, t, "", island, shared.apart.Wires)
	settle(ctx, t, by(toCoast), by(toIsland))
	at := func(b *harness.Backend) string { return fmt.Sprintf("%s:%d", b.IP, shared.east.Port) }
	isTold(ctx, t, "east", coast, secure, at(secureBackends[0]), address(toIsland))
	isTold(ctx, t, "east", coast, plain, at(plainBackends[0]))
}
