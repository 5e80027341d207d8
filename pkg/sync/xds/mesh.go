package xds

import (
	"context"
	"net"
	"strings"

	"google.golang.org/grpc/metadata"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

const (
	// MeshHeader is the metadata by which a client that can send any names its mesh.
	MeshHeader = "vmesh-mesh"
	// meshPrefix begins the host name under which a mesh is reached.
	meshPrefix = "mesh-"
)

// meshOf says which mesh a stream is about.
//
// An unmodified istiod can say so only by the host name of its config source, which
// it sends as the :authority: xds://mesh-NAME:15010, or any name that begins with
// that label, such as xds://mesh-NAME.vmesh-system.svc:15010. With TLS it sends
// tlsSettings.sni instead, when that is set. (Path, query and user of the address do
// not leave istiod, and its node says nothing but its pod, namespace and revision.)
// Every other host name, and every IP address, is about the mesh called default. A relay
// says it by MeshHeader, which comes before all that.
func meshOf(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	if named := md.Get(MeshHeader); len(named) > 0 && named[0] != "" {
		return named[0]
	}
	for _, authority := range md.Get(":authority") {
		host := authority
		if h, _, err := net.SplitHostPort(authority); err == nil {
			host = h
		}
		label, _, _ := strings.Cut(strings.ToLower(host), ".")
		if name, ok := strings.CutPrefix(label, meshPrefix); ok && name != "" {
			return name
		}
	}
	return v1alpha1.DefaultName
}
