package traffic

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/xds"
)

// Client is a proxyless gRPC client: to istiod it is one more proxy.
type Client struct {
	connection *grpc.ClientConn
	service    grpc_testing.TestServiceClient
}

// Place is where a client is, as far as a control plane and the wires tell.
type Place struct {
	// Cluster and Network are the ids that istiod knows; it takes none for its own, and the network that all share.
	Cluster, Network string
	// Namespace is "demo" when empty.
	Namespace string
	// Region, Zone and SubZone count when IP is that of no pod which istiod knows: those are where their node is.
	Region, Zone, SubZone string
	// Labels are those of the client's pod.
	Labels map[string]string
	// IP is the client's own; 127.0.0.1 when empty.
	IP string
	// Reach is what the client reaches. Without it, it dials what it is told.
	Reach Wires
	// Credentials are those of its connections; it speaks plaintext without.
	Credentials credentials.TransportCredentials
}

// Dial is DialFrom namespace demo.
func Dial(istiodGRPC, target string) (*Client, error) { return DialFrom(istiodGRPC, "demo", target) }

// DialFrom is DialPlaced in a namespace and nowhere else in particular.
func DialFrom(istiodGRPC, namespace, target string) (*Client, error) {
	return DialPlaced(istiodGRPC, Place{Namespace: namespace}, target)
}

// Node is what the place's client says of itself by xDS, as JSON of Envoy's Node.
func (p Place) Node() ([]byte, error) {
	type object = map[string]any
	namespace := cmp.Or(p.Namespace, "demo")
	data := object{"GENERATOR": "grpc", "NAMESPACE": namespace}
	for key, value := range map[string]string{"CLUSTER_ID": p.Cluster, "NETWORK": p.Network} {
		if value != "" {
			data[key] = value
		}
	}
	if len(p.Labels) > 0 {
		data["LABELS"] = p.Labels
	}
	return json.Marshal(object{
		"id":       "sidecar~" + cmp.Or(p.IP, "127.0.0.1") + "~client." + namespace + "~" + namespace + ".svc.cluster.local",
		"metadata": data,
		"locality": object{"region": p.Region, "zone": p.Zone, "sub_zone": p.SubZone},
	})
}

// DialPlaced prepares a client at a place for target, the host:port of a service in the mesh, that takes its config from
// the istiod at istiodGRPC. It connects with the first call. Each client has an xDS stream of its own.
func DialPlaced(istiodGRPC string, place Place, target string) (*Client, error) {
	node, err := place.Node()
	if err != nil {
		return nil, err
	}
	type object = map[string]any
	bootstrap, err := json.Marshal(object{
		"xds_servers": []object{{
			"server_uri":      istiodGRPC,
			"channel_creds":   []object{{"type": "insecure"}},
			"server_features": []string{"xds_v3"},
		}},
		"node": json.RawMessage(node),
	})
	if err != nil {
		return nil, err
	}
	// The other way in is an environment variable, which all clients of a process would share.
	resolver, err := xds.NewXDSResolverWithConfigForTesting(bootstrap)
	if err != nil {
		return nil, fmt.Errorf("configuring the xDS client: %w", err)
	}
	creds := place.Credentials
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	options := []grpc.DialOption{grpc.WithResolvers(resolver), grpc.WithTransportCredentials(creds)}
	if place.Reach != nil {
		options = append(options, grpc.WithContextDialer(place.Reach.Dial))
	}
	connection, err := grpc.NewClient("xds:///"+target, options...)
	if err != nil {
		return nil, fmt.Errorf("dialling %s: %w", target, err)
	}
	return &Client{connection: connection, service: grpc_testing.NewTestServiceClient(connection)}, nil
}

// Call makes one call with the given headers and returns the version that answered it.
func (c *Client) Call(ctx context.Context, headers map[string]string) (version string, err error) {
	answer, err := c.Ask(ctx, headers)
	return answer.Version, err
}

// Ask makes one call with the given headers and returns who answered it.
func (c *Client) Ask(ctx context.Context, headers map[string]string) (Answer, error) {
	ctx = metadata.NewOutgoingContext(ctx, metadata.New(headers))
	response, err := c.service.UnaryCall(ctx, &grpc_testing.SimpleRequest{FillServerId: true})
	if err != nil {
		return Answer{}, err
	}
	return Answer{Version: response.GetServerId(), Name: response.GetHostname(), Cluster: response.GetUsername()}, nil
}

// Close ends the client and its stream to istiod.
func (c *Client) Close() error { return c.connection.Close() }

// Split makes n calls and counts them by the version that answered. It ends at the first call that fails.
func Split(ctx context.Context, client *Client, n int, headers map[string]string) (map[string]int, error) {
	counts := map[string]int{}
	for i := range n {
		version, err := client.Call(ctx, headers)
		if err != nil {
			return counts, fmt.Errorf("call %d of %d: %w", i+1, n, err)
		}
		counts[version]++
	}
	return counts, nil
}

// Counts is what became of some calls.
type Counts struct {
	Calls, Failed int
	// By who answered.
	ByVersion, ByName, ByCluster map[string]int
	// Errors are what was said of those that failed, with how often.
	Errors map[string]int
}

// Counts makes n calls, one after the other, and counts them. Calls that fail are counted, too, and do not end it.
func (c *Client) Counts(ctx context.Context, n int, headers map[string]string) Counts {
	counts := Counts{ByVersion: map[string]int{}, ByName: map[string]int{}, ByCluster: map[string]int{}, Errors: map[string]int{}}
	for range n {
		counts.Calls++
		answer, err := c.Ask(ctx, headers)
		if err != nil {
			counts.Failed++
			counts.Errors[err.Error()]++
			continue
		}
		counts.ByVersion[answer.Version]++
		counts.ByName[answer.Name]++
		counts.ByCluster[answer.Cluster]++
	}
	return counts
}
