package istio

import (
	"strings"

	"google.golang.org/protobuf/proto"

	networking "istio.io/api/networking/v1alpha3"
	"istio.io/istio/pkg/config/constants"
	netutil "istio.io/istio/pkg/util/net"
)

// completeHosts writes out the short names of services where Istio completes them: istiod does so with the
// domain of an object, which is that of the cluster it read it from. What comes over xDS has none, and a
// short name would be no service's.
func completeHosts(message proto.Message, namespace string) {
	complete := func(host *string) {
		if *host != "" && *host != "*" && !strings.Contains(*host, ".") && !netutil.IsValidIPAddress(*host) {
			*host += "." + namespace + ".svc." + constants.DefaultClusterLocalDomain
		}
	}
	to := func(d *networking.Destination) {
		if d != nil {
			complete(&d.Host)
		}
	}
	switch spec := message.(type) {
	case *networking.DestinationRule:
		complete(&spec.Host)
	case *networking.VirtualService:
		for i := range spec.Hosts {
			complete(&spec.Hosts[i])
		}
		for _, route := range spec.Http {
			for _, r := range route.GetRoute() {
				to(r.GetDestination())
			}
			to(route.GetMirror())
			for _, m := range route.GetMirrors() {
				to(m.GetDestination())
			}
		}
		for _, route := range spec.Tcp {
			for _, r := range route.GetRoute() {
				to(r.GetDestination())
			}
		}
		for _, route := range spec.Tls {
			for _, r := range route.GetRoute() {
				to(r.GetDestination())
			}
		}
	}
}
