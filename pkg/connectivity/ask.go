// Package connectivity finds out whether the networks of a mesh are connected: it asks a control plane, as proxies in
// each of them would, what they are told of services.
package connectivity

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	clusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	endpointType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"

	maxResponse = 256 << 20
)

// Place is where a proxy is, as it says so itself.
type Place struct {
	// Cluster and Network are their ids.
	Cluster, Network string
	// IP is the proxy's.
	IP string
	// Namespace is that of its pod.
	Namespace string
	// View is the networks of which it wants to be told; all when empty.
	View []string
}

// node is that of a gateway, to which no Sidecar applies that would hide services.
func (p Place) node() (*core.Node, error) {
	data := map[string]any{"NAMESPACE": p.Namespace}
	for key, value := range map[string]string{"CLUSTER_ID": p.Cluster, "NETWORK": p.Network, "REQUESTED_NETWORK_VIEW": strings.Join(p.View, ",")} {
		if value != "" {
			data[key] = value
		}
	}
	metadata, err := structpb.NewStruct(data)
	if err != nil {
		return nil, err
	}
	return &core.Node{Id: fmt.Sprintf("router~%s~vmesh-check.%s~%s.svc.cluster.local", p.IP, p.Namespace, p.Namespace), Metadata: metadata}, nil
}

// Endpoint is one of a service, as a proxy is told.
type Endpoint struct {
	// Address is host:port.
	Address string
	// Cluster, Namespace and Workload are those of its pod, as far as the control plane says so. Of a gateway it does not.
	Cluster, Namespace, Workload string
	// MutualTLS says whether it is called by mutual TLS, and Healthy whether it is ready.
	MutualTLS, Healthy bool
}

// Service is what a proxy calls: a port of a host.
type Service struct {
	Host string
	Port int
}

func (s Service) String() string { return net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) }

func compare(a, b Service) int { return cmp.Or(strings.Compare(a.Host, b.Host), a.Port-b.Port) }

// Cluster is what a proxy calls it.
func (s Service) Cluster() string { return fmt.Sprintf("outbound|%d||%s", s.Port, s.Host) }

// SNI is the server name by which a gateway of another network knows where a connection is to go.
func (s Service) SNI() string { return fmt.Sprintf("outbound_.%d_._.%s", s.Port, s.Host) }

// ParseSNI is the service that an SNI, of any subset, is of.
func ParseSNI(name string) (s Service, subset string, err error) {
	parts := strings.SplitN(name, ".", 4)
	if len(parts) == 4 && parts[0] == "outbound_" && strings.HasSuffix(parts[1], "_") && strings.HasSuffix(parts[2], "_") {
		if port, err := strconv.Atoi(strings.TrimSuffix(parts[1], "_")); err == nil && parts[3] != "" {
			return Service{Host: parts[3], Port: port}, strings.TrimSuffix(parts[2], "_"), nil
		}
	}
	return Service{}, "", fmt.Errorf("server name %q is none of a service, as outbound_.80_._.reviews.shop.svc.cluster.local", name)
}

// parseCluster is the service of a proxy's cluster; false for subsets and what is no service.
func parseCluster(name string) (Service, bool) {
	parts := strings.Split(name, "|")
	if len(parts) != 4 || parts[0] != "outbound" || parts[2] != "" {
		return Service{}, false
	}
	port, err := strconv.Atoi(parts[1])
	return Service{Host: parts[3], Port: port}, err == nil
}

// Services asks what services a proxy at a place is told of whose endpoints the control plane tells, too, sorted.
func Services(ctx context.Context, controlPlane grpc.ClientConnInterface, place Place) ([]Service, error) {
	response, err := ask(ctx, controlPlane, place, clusterType, nil)
	if err != nil {
		return nil, err
	}
	var services []Service
	for _, resource := range response.GetResources() {
		var c cluster.Cluster
		if err := resource.UnmarshalTo(&c); err != nil {
			return nil, fmt.Errorf("reading a cluster: %w", err)
		}
		if s, is := parseCluster(c.GetName()); is && c.GetType() == cluster.Cluster_EDS {
			services = append(services, s)
		}
	}
	slices.SortFunc(services, compare)
	return services, nil
}

// Endpoints asks what endpoints of services a proxy at a place is told of.
func Endpoints(ctx context.Context, controlPlane grpc.ClientConnInterface, place Place, services []Service) (map[Service][]Endpoint, error) {
	if len(services) == 0 {
		return nil, nil
	}
	names := make([]string, len(services))
	for i, s := range services {
		names[i] = s.Cluster()
	}
	response, err := ask(ctx, controlPlane, place, endpointType, names)
	if err != nil {
		return nil, err
	}
	all := map[Service][]Endpoint{}
	for _, resource := range response.GetResources() {
		var assignment endpoint.ClusterLoadAssignment
		if err := resource.UnmarshalTo(&assignment); err != nil {
			return nil, fmt.Errorf("reading endpoints: %w", err)
		}
		s, is := parseCluster(assignment.GetClusterName())
		if !is {
			continue
		}
		for _, locality := range assignment.GetEndpoints() {
			for _, e := range locality.GetLbEndpoints() {
				if address := e.GetEndpoint().GetAddress().GetSocketAddress(); address != nil {
					all[s] = append(all[s], told(address, e))
				}
			}
		}
	}
	return all, nil
}

func told(address *core.SocketAddress, e *endpoint.LbEndpoint) Endpoint {
	metadata := e.GetMetadata().GetFilterMetadata()
	is := Endpoint{
		Address:   net.JoinHostPort(address.GetAddress(), strconv.Itoa(int(address.GetPortValue()))),
		MutualTLS: metadata["envoy.transport_socket_match"].GetFields()["tlsMode"].GetStringValue() == "istio",
		Healthy:   e.GetHealthStatus() == core.HealthStatus_HEALTHY || e.GetHealthStatus() == core.HealthStatus_UNKNOWN,
	}
	// workload;namespace;service;revision;cluster
	if parts := strings.Split(metadata["istio"].GetFields()["workload"].GetStringValue(), ";"); len(parts) == 5 {
		is.Workload, is.Namespace, is.Cluster = parts[0], parts[1], parts[4]
	}
	return is
}

// ask sends one request on a stream of its own, as the node of a stream never changes, and waits for its answer.
func ask(ctx context.Context, controlPlane grpc.ClientConnInterface, place Place, typeURL string, names []string) (*discovery.DiscoveryResponse, error) {
	node, err := place.node()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // of the stream
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(controlPlane).StreamAggregatedResources(ctx, grpc.MaxCallRecvMsgSize(maxResponse))
	if err != nil {
		return nil, err
	}
	// What Send has to say of a stream that has ended, Recv says better.
	_ = stream.Send(&discovery.DiscoveryRequest{Node: node, TypeUrl: typeURL, ResourceNames: names})
	for {
		response, err := stream.Recv()
		if err != nil {
			return nil, errors.Join(err, context.Cause(ctx))
		}
		if response.GetTypeUrl() == typeURL {
			return response, nil
		}
	}
}
