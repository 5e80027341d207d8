package relay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vmesh-io/vmesh/test/harness"
)

// client is a stream of VirtualServices as a relay begins it.
type client struct {
	stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	err    error // why there is no stream
}

func (c *client) receive() error {
	if c.err != nil {
		return c.err
	}
	_, err := c.stream.Recv()
	return err
}

// dial begins one; certificate may be nil and token empty.
func (s *stack) dial(certificate *tls.Certificate, token, mesh string, version uint16) *client {
	s.t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", s.vmesh.AdminKubeconfig)
	s.must(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(config.CAData)
	c := &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", MaxVersion: version}
	if certificate != nil {
		c.Certificates = []tls.Certificate{*certificate}
	}
	conn, err := grpc.NewClient("passthrough:///"+s.tls, grpc.WithTransportCredentials(credentials.NewTLS(c)))
	s.must(err)
	s.onCleanup(conn.Close)
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	s.t.Cleanup(cancel)
	ctx = metadata.AppendToOutgoingContext(ctx, "vmesh-mesh", mesh)
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err == nil {
		_ = stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: "networking.istio.io/v1/VirtualService", Node: &core.Node{Id: "probe"}}) // Recv says why
	}
	return &client{stream, err}
}

// refused waits for the stream's end, and compares its reason.
func (s *stack) refused(c *client, code codes.Code, text string) {
	s.t.Helper()
	for {
		err := c.receive()
		if err == nil {
			continue
		}
		if status.Code(err) != code || !strings.Contains(err.Error(), text) {
			s.t.Errorf("the stream ended with %v, want %s: %s", err, code, text)
		}
		return
	}
}

func (s *stack) served(c *client) {
	s.t.Helper()
	if err := c.receive(); err != nil {
		s.t.Errorf("the stream ended with %v", err)
	}
}

func (s *stack) certificate(kubeconfig string) *tls.Certificate {
	s.t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	s.must(err)
	pair, err := tls.X509KeyPair(config.CertData, config.KeyData)
	s.must(err)
	return &pair
}

func TestAMeshIsServedToItsReceivers(t *testing.T) {
	s := newStack(t)
	east := s.certificate(s.identity("relay-east"))
	west := s.certificate(s.identity("relay-west"))
	const all = tls.VersionTLS13

	s.eventually("who receives the mesh is known", func() error { return s.dial(east, "", "default", all).receive() })
	s.served(s.dial(s.certificate(s.vmesh.AdminKubeconfig), "", "default", all)) // the root's administrator
	s.refused(s.dial(west, "", "default", all), codes.PermissionDenied, "spec.receivers")
	s.refused(s.dial(east, "", "no-such-mesh", all), codes.PermissionDenied, `mesh "no-such-mesh"`)
	s.refused(s.dial(s.certificate(kubernetes.AdminKubeconfig), "", "default", all), codes.Unauthenticated, "")
	s.refused(s.dial(s.certificate(s.team), "", "default", all), codes.Unauthenticated, "belongs to virtual cluster")
	s.refused(s.dial(nil, "nonsense", "default", all), codes.Unauthenticated, "")
	s.refused(s.dial(east, "", "default", tls.VersionTLS12), codes.Unavailable, "handshake")

	// A service account of the root, by its token.
	_, err := harness.Kubectl(s.ctx, s.vmesh.AdminKubeconfig, "", "create", "serviceaccount", "relay")
	s.must(err)
	token, err := harness.Kubectl(s.ctx, s.vmesh.AdminKubeconfig, "", "create", "token", "relay")
	s.must(err)
	s.refused(s.dial(nil, strings.TrimSpace(token), "default", all), codes.PermissionDenied, "system:serviceaccount:default:relay")
	s.receivers(`[{"kind":"Group","name":"relays"},{"kind":"User","name":"system:serviceaccount:default:relay"}]`)
	s.eventually("the token is good", func() error {
		return s.dial(nil, strings.TrimSpace(token), "default", all).receive()
	})

	// Who is named by a group is served; who is named no longer is not, at once.
	stays, goes := s.dial(west, "", "default", all), s.dial(nil, strings.TrimSpace(token), "default", all)
	s.served(stays)
	s.served(goes)
	s.receivers(`[{"kind":"Group","name":"relays"}]`)
	s.refused(goes, codes.PermissionDenied, "spec.receivers")

	// So does who has been revoked.
	out, err := harness.Kubectl(s.ctx, s.vmesh.AdminKubeconfig, "", "get", "kubeconfigs", "-o", "name")
	s.must(err)
	revoked := false
	for name := range strings.FieldsSeq(out) {
		if strings.Contains(name, "relay-west") {
			_, err := harness.Kubectl(s.ctx, s.vmesh.AdminKubeconfig, "", "delete", name)
			s.must(err)
			revoked = true
		}
	}
	if !revoked {
		t.Fatalf("there is no record of relay-west in %s", out)
	}
	s.refused(stays, codes.Unauthenticated, "revoked")
	s.refused(s.dial(west, "", "default", all), codes.Unauthenticated, "revoked")
}
