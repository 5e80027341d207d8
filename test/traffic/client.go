package traffic

import (
	"context"
	"encoding/json"
	"fmt"

	"google.golang.org/grpc"
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

// Dial is DialFrom namespace demo.
func Dial(istiodGRPC, target string) (*Client, error) { return DialFrom(istiodGRPC, "demo", target) }

// DialFrom prepares a client in a namespace for target, the host:port of a service in the mesh, that takes its config from
// the istiod at istiodGRPC. It connects with the first call. Each client has an xDS stream of its own.
func DialFrom(istiodGRPC, namespace, target string) (*Client, error) {
	type object = map[string]any
	bootstrap, err := json.Marshal(object{
		"xds_servers": []object{{
			"server_uri":      istiodGRPC,
			"channel_creds":   []object{{"type": "insecure"}},
			"server_features": []string{"xds_v3"},
		}},
		"node": object{
			"id":       "sidecar~127.0.0.1~client." + namespace + "~" + namespace + ".svc.cluster.local",
			"metadata": object{"GENERATOR": "grpc", "NAMESPACE": namespace},
		},
	})
	if err != nil {
		return nil, err
	}
	// The other way in is an environment variable, which all clients of a process would share.
	resolver, err := xds.NewXDSResolverWithConfigForTesting(bootstrap)
	if err != nil {
		return nil, fmt.Errorf("configuring the xDS client: %w", err)
	}
	connection, err := grpc.NewClient("xds:///"+target,
		grpc.WithResolvers(resolver), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("dialling %s: %w", target, err)
	}
	return &Client{connection: connection, service: grpc_testing.NewTestServiceClient(connection)}, nil
}

// Call makes one call with the given headers and returns the version that answered it.
func (c *Client) Call(ctx context.Context, headers map[string]string) (version string, err error) {
	ctx = metadata.NewOutgoingContext(ctx, metadata.New(headers))
	response, err := c.service.UnaryCall(ctx, &grpc_testing.SimpleRequest{FillServerId: true})
	if err != nil {
		return "", err
	}
	return response.GetServerId(), nil
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
