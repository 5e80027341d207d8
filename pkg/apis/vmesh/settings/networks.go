package settings

import (
	"cmp"
	"maps"
	"slices"

	meshconfig "istio.io/api/mesh/v1alpha1"
	"istio.io/istio/pkg/config/mesh"
	"istio.io/istio/pkg/config/validation/agent"
	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// Gateway is the address of a network's gateway as control planes are told.
type Gateway struct {
	Address  string
	Port     int32
	Locality string // REGION/ZONE/SUBZONE; empty if it is not known
}

// Network is what control planes are told of a network.
type Network struct {
	// Members are the names of its member clusters.
	Members  []string
	Gateways []Gateway
}

// MeshNetworks is the YAML of Istio's MeshNetworks. The network without a name is left out: endpoints
// that are in none are what Istio takes for reachable from everywhere.
func MeshNetworks(networks map[string]Network) (string, error) {
	all := map[string]any{}
	for _, name := range slices.Sorted(maps.Keys(networks)) {
		if name == "" {
			continue
		}
		network := map[string]any{}
		var endpoints, gateways []any
		for _, member := range slices.Sorted(slices.Values(networks[name].Members)) {
			endpoints = append(endpoints, map[string]any{"fromRegistry": member})
		}
		for _, g := range networks[name].Gateways {
			gateway := map[string]any{"address": g.Address, "port": g.Port}
			if g.Locality != "" {
				gateway["locality"] = g.Locality
			}
			gateways = append(gateways, gateway)
		}
		if endpoints != nil {
			network["endpoints"] = endpoints
		}
		if gateways != nil {
			network["gateways"] = gateways
		}
		all[name] = network
	}
	data, err := yaml.Marshal(map[string]any{"networks": all})
	if err != nil {
		return "", err
	}
	if _, err := mesh.ParseMeshNetworks(string(data)); err != nil {
		return "", err
	}
	return string(data), nil
}

// CheckGateway says what Istio finds wrong with a gateway's address.
func CheckGateway(address string, port int32) error {
	return agent.ValidateMeshNetworks(&meshconfig.MeshNetworks{Networks: map[string]*meshconfig.Network{"it": {
		Gateways: []*meshconfig.Network_IstioNetworkGateway{{Gw: &meshconfig.Network_IstioNetworkGateway_Address{Address: address}, Port: uint32(port)}},
	}}})
}

// GatewayLocality is where a gateway is said to be.
func GatewayLocality(g *v1alpha1.MeshNetworkGateway) string {
	if g.Locality == nil {
		return ""
	}
	return LocalityName(*g.Locality)
}

// GatewayPort is the port for calls of other networks.
func GatewayPort(g *v1alpha1.MeshNetworkGateway) int32 { return cmp.Or(g.Port, 15443) }
