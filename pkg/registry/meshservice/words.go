package meshservice

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	istiokube "istio.io/istio/pkg/config/kube"
	"istio.io/istio/pkg/config/protocol"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/discovery"
)

// mostSome is how many things a summary names.
const mostSome = 4

// some are the first of several, and how many more there are.
func some(all []string) string {
	if more := len(all) - mostSome; more > 1 {
		return strings.Join(all[:mostSome], ",") + fmt.Sprintf(",+%d", more)
	}
	return strings.Join(all, ",")
}

// appProtocol is the application's, as Istio tells it; empty if Istio looks at what is sent.
func appProtocol(p discovery.Port) string {
	var app *string
	if p.AppProtocol != "" {
		app = &p.AppProtocol
	}
	switch found := istiokube.ConvertProtocol(p.Port, p.Name, corev1.Protocol(p.Protocol), app); {
	case found == protocol.Unsupported, strings.EqualFold(string(found), p.Protocol) && found != protocol.TCP:
		return ""
	default:
		return strings.ToLower(string(found))
	}
}

func summarizePort(p v1alpha1.MeshServicePort) string {
	name := p.AppProtocol
	if name == "" {
		name = strings.ToLower(p.Protocol)
	}
	return name + ":" + strconv.Itoa(int(p.Port))
}

// shortKinds are how kubectl calls kinds for short.
var shortKinds = map[string]string{virtualServices: "vs", destinationRules: "dr"}

func summarizeRoutes(namespace string, routes []v1alpha1.MeshServiceRoute) string {
	var all []string
	for _, r := range routes {
		name := r.Name
		if r.Namespace != namespace {
			name = r.Namespace + "/" + name
		}
		all = append(all, shortKinds[r.Kind]+"/"+name)
	}
	return some(all)
}

// differences says in what clusters differ that should be the same for their callers.
func differences(clusters []v1alpha1.MeshServiceCluster) []string {
	if len(clusters) < 2 {
		return nil
	}
	var all []string
	all = append(all, differ(clusters, "", func(c *v1alpha1.MeshServiceCluster) string {
		if c.Headless {
			return c.Type + " without an address (headless)"
		}
		return c.Type
	})...)
	var ports []int32
	for i := range clusters {
		for _, p := range clusters[i].Ports {
			if !slices.Contains(ports, p.Port) {
				ports = append(ports, p.Port)
			}
		}
	}
	slices.Sort(ports)
	for _, number := range ports {
		all = append(all, differ(clusters, fmt.Sprintf("port %d: ", number), func(c *v1alpha1.MeshServiceCluster) string {
			var found []string
			for _, p := range c.Ports {
				if p.Port == number {
					name := p.Name
					if name == "" {
						name = "without a name"
					}
					protocol := p.AppProtocol
					if protocol == "" {
						protocol = strings.ToLower(p.Protocol)
					}
					found = append(found, fmt.Sprintf("%s (%s)", name, protocol))
				}
			}
			if len(found) == 0 {
				return "absent"
			}
			slices.Sort(found)
			return strings.Join(found, " and ")
		})...)
	}
	return all
}

// differ says who has what, if not all have the same.
func differ(clusters []v1alpha1.MeshServiceCluster, what string, of func(*v1alpha1.MeshServiceCluster) string) []string {
	var values []string
	who := map[string][]string{}
	for i := range clusters {
		v := of(&clusters[i])
		if who[v] == nil {
			values = append(values, v)
		}
		who[v] = append(who[v], clusters[i].Name)
	}
	if len(values) < 2 {
		return nil
	}
	var said []string
	for _, v := range values {
		said = append(said, v+" in "+some(who[v]))
	}
	return []string{what + strings.Join(said, "; ")}
}
