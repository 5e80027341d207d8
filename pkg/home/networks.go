package home

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/settings"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// networks is what is known of a mesh's networks.
type networks struct {
	spec    []v1alpha1.MeshNetwork
	members map[string]member
	// looked are the services by which networks are reached, as found now; those that were not found
	// are not in it. fresh are those of them that were found otherwise the last time.
	looked map[string][]string
	fresh  map[string]bool
}

// serviceKey names a service of a member.
func serviceKey(s *v1alpha1.MeshNetworkGatewayService) string {
	namespace := s.Namespace
	if namespace == "" {
		namespace = "istio-system"
	}
	return s.Member + "/" + namespace + "/" + s.Name
}

// addresses looks up a service by its key.
func (c *Controller) addresses(key string) (hosts []string, found bool) {
	if c.Gateways == nil {
		return nil, false
	}
	member, rest, _ := strings.Cut(key, "/")
	namespace, name, _ := strings.Cut(rest, "/")
	addresses, found := c.Gateways.Addresses(member, namespace, name)
	for _, a := range addresses {
		if settings.CheckGateway(a.Host, 1) == nil {
			hosts = append(hosts, a.Host)
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts), found
}

// networks looks up what is known of a mesh's networks now.
func (c *Controller) networks(mesh *v1alpha1.Mesh, members map[string]member) *networks {
	n := &networks{spec: mesh.Spec.Networks, members: members, looked: map[string][]string{}, fresh: map[string]bool{}}
	before := c.looked[mesh.Name]
	var asked []string
	for _, network := range n.spec {
		for _, g := range network.Gateways {
			if g.Service == nil {
				continue
			}
			key := serviceKey(g.Service)
			asked = append(asked, key)
			hosts, found := c.addresses(key)
			had, did := before[key]
			switch {
			case found:
				n.looked[key], n.fresh[key] = hosts, !did || !slices.Equal(had, hosts)
			case did:
				n.looked[key] = had
			}
		}
	}
	if delete(c.asked, mesh.Name); asked != nil {
		c.asked[mesh.Name] = asked
	}
	return n
}

// recorded are the addresses of services to remember. What is found otherwise than before counts;
// otherwise what is remembered does, for another server may know better, and then
// what was found. So servers that see a member differently do not correct each other for ever.
func (n *networks) recorded(was state) map[string][]string {
	var out map[string][]string
	for _, network := range n.spec {
		for _, g := range network.Gateways {
			if g.Service == nil {
				continue
			}
			key := serviceKey(g.Service)
			hosts, known := was.Gateways[key]
			if found, is := n.looked[key]; is && (n.fresh[key] || !known) {
				hosts, known = found, true
			}
			if known {
				if out == nil {
					out = map[string][]string{}
				}
				out[key] = append([]string{}, hosts...)
			}
		}
	}
	return out
}

// told is what control planes are told of the networks, and the networks with services that
// nothing is known of.
func (n *networks) told(was state) (out map[string]settings.Network, unknown map[string][]string) {
	out, unknown = map[string]settings.Network{}, map[string][]string{}
	hosts := n.recorded(was)
	for _, network := range n.spec {
		told := settings.Network{}
		for _, g := range network.Gateways {
			if g.Service == nil {
				told.Gateways = append(told.Gateways, settings.Gateway{Address: g.Address, Port: settings.GatewayPort(&g), Locality: settings.GatewayLocality(&g)})
				continue
			}
			key := serviceKey(g.Service)
			locality := settings.GatewayLocality(&g)
			if locality == "" {
				locality = settings.LocalityName(n.members[g.Service.Member].locality)
			}
			of, known := hosts[key]
			if !known {
				unknown[network.Name] = append(unknown[network.Name], key)
			}
			for _, host := range of {
				told.Gateways = append(told.Gateways, settings.Gateway{Address: host, Port: settings.GatewayPort(&g), Locality: locality})
			}
		}
		out[network.Name] = told
	}
	for _, name := range slices.Sorted(maps.Keys(n.members)) {
		in := n.members[name].network
		told := out[in]
		told.Members = append(told.Members, name)
		out[in] = told
	}
	return out, unknown
}

// tellNetworks is what there is to say of a mesh's networks; nothing of one that has neither
// members nor networks.
func tellNetworks(spec *v1alpha1.MeshSpec, all map[string]settings.Network, unknown map[string][]string) ([]v1alpha1.MeshNetworkStatus, []metav1.Condition) {
	var out []v1alpha1.MeshNetworkStatus
	var missing, waiting []string
	populated, somebody := 0, false
	for _, name := range slices.Sorted(maps.Keys(all)) {
		n := all[name]
		if len(n.Members) > 0 {
			populated++
		}
		if len(n.Members) == 0 && len(n.Gateways) == 0 {
			continue
		}
		status := v1alpha1.MeshNetworkStatus{Name: name, Members: n.Members}
		for _, g := range n.Gateways {
			status.Gateways = append(status.Gateways, net.JoinHostPort(g.Address, strconv.Itoa(int(g.Port))))
		}
		out = append(out, status)
		if len(n.Members) == 0 {
			continue
		}
		somebody = true
		switch {
		case len(n.Gateways) > 0:
		case len(unknown[name]) > 0:
			waiting = append(waiting, fmt.Sprintf("network %s (%s)", name, strings.Join(unknown[name], ", ")))
		case name == "":
			missing = append(missing, fmt.Sprintf("%s: they are in no network, give them one in their spec.network", memberNames(n.Members)))
		default:
			missing = append(missing, fmt.Sprintf("network %s of %s: give it one in spec.networks", name, memberNames(n.Members)))
		}
	}
	if !somebody && len(spec.Networks) == 0 {
		return out, nil
	}
	c := metav1.Condition{Type: v1alpha1.ConditionNetworksConnected, Status: metav1.ConditionTrue, Reason: ReasonConnected, Message: "All networks with members have gateways"}
	switch {
	case populated < 2:
		c.Reason, c.Message = ReasonNotNeeded, "All members are in one network"
		if populated == 0 {
			c.Message = "No network has members"
		}
	case len(missing) > 0:
		c.Status, c.Reason = metav1.ConditionFalse, ReasonMissingGateway
		c.Message = "No gateway leads from other networks to " + strings.Join(missing, "; nor to ")
	case len(waiting) > 0:
		c.Status, c.Reason = metav1.ConditionUnknown, ReasonLookingUp
		c.Message = "The services that are the gateways are not known yet: " + strings.Join(waiting, ", ")
	}
	return out, []metav1.Condition{c}
}

func memberNames(names []string) string {
	const shown = 3
	if len(names) == 1 {
		return "member " + names[0]
	}
	if len(names) > shown {
		return fmt.Sprintf("members %s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
	}
	return "members " + strings.Join(names, ", ")
}
