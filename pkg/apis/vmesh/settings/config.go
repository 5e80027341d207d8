// Package settings makes of a Mesh what istiod reads of it besides its configuration: the
// MeshConfig and MeshNetworks of the config map in its home, and the outlier detection that a
// locality policy needs.
package settings

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	meshconfig "istio.io/api/mesh/v1alpha1"
	"istio.io/istio/pkg/config/mesh"
	"istio.io/istio/pkg/util/protomarshal"
	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// The settings of MeshConfig that vmesh sets itself.
const (
	configSources     = "configSources"
	rootNamespace     = "rootNamespace"
	localityLbSetting = "localityLbSetting"
)

// owned says where those are given that cannot be given in spec.home.meshConfig.
var owned = map[string]string{
	configSources:     "set spec.home.configSources",
	rootNamespace:     "set spec.rootNamespace",
	localityLbSetting: "set spec.locality",
}

// RootNamespace is a mesh's.
func RootNamespace(spec *v1alpha1.MeshSpec) string {
	if spec.RootNamespace == "" {
		return "istio-system"
	}
	return spec.RootNamespace
}

// ConfigMaps are the names of the config maps that istiods look for in the root namespace of
// a home, sorted: that of those without a revision in any case.
func ConfigMaps(home *v1alpha1.MeshHome) []string {
	const plain = "istio"
	names := map[string]struct{}{plain: {}}
	for _, revision := range home.Revisions {
		if revision != "" && revision != "default" { // as istiod does
			names[plain+"-"+revision] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// MeshConfig is the YAML of a mesh's MeshConfig, and a fingerprint of each setting in it that
// istiod reads only when it starts. sources are the addresses of its configuration.
// It depends on nothing else, so that all servers make the same of the same.
func MeshConfig(spec *v1alpha1.MeshSpec, sources []string) (text string, atStart map[string]string, err error) {
	config := map[string]any{}
	if spec.Home != nil && spec.Home.MeshConfig != nil {
		given, err := given(spec.Home.MeshConfig.Raw)
		if err != nil {
			return "", nil, err
		}
		for name, value := range given {
			config[name] = value
		}
	}
	list := make([]any, len(sources))
	for i, address := range sources {
		// istiod has no identity to show: TLS is what a relay is for.
		list[i] = map[string]any{"address": address, "tlsSettings": map[string]any{"mode": "DISABLE"}}
	}
	config[configSources], config[rootNamespace] = list, RootNamespace(spec)
	if spec.Locality != nil {
		config[localityLbSetting] = localityLB(spec.Locality)
	}
	data, err := yaml.Marshal(config)
	if err != nil {
		return "", nil, err
	}
	parsed, err := parse(data)
	if err != nil {
		return "", nil, err
	}
	return string(data), readAtStart(parsed), nil
}

// parse reads a MeshConfig as istiod does, but for what is unknown to it: istiod passes over
// that in silence.
func parse(data []byte) (*meshconfig.MeshConfig, error) {
	if err := protomarshal.ApplyYAMLStrict(string(data), &meshconfig.MeshConfig{}); err != nil {
		return nil, err
	}
	return mesh.ApplyMeshConfigDefaults(string(data))
}

// given are the settings of a MeshConfig that was given as JSON, by their names as JSON
// has them.
func given(raw []byte) (map[string]json.RawMessage, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(raw, &members); err != nil {
		return nil, err
	}
	out := make(map[string]json.RawMessage, len(members))
	for name, value := range members {
		known, err := settingName(name)
		if err != nil {
			return nil, err
		}
		if _, twice := out[known]; twice {
			return nil, fmt.Errorf("%s is given twice", known)
		}
		out[known] = value
	}
	return out, nil
}

// settingName is what a setting is called in JSON: protobuf takes two names for each.
func settingName(name string) (string, error) {
	fields := (&meshconfig.MeshConfig{}).ProtoReflect().Descriptor().Fields()
	f := fields.ByJSONName(name)
	if f == nil {
		f = fields.ByName(protoreflect.Name(name))
	}
	if f == nil {
		return "", fmt.Errorf("Istio has no such setting")
	}
	return f.JSONName(), nil
}

// readAtStart are the settings that istiod uses while it starts and never again, with a
// fingerprint of each. All others it follows as the config map changes: with each, it makes its
// whole state anew. The list is from its source (pilot/pkg/bootstrap), where the mesh
// configuration is used outside a handler:
//
//   - configSources: the connections are made once (initConfigSources);
//   - rootNamespace: istiod follows it, but it reads the config map in the namespace of its pod, which is to be the same:
//     when the root namespace changes, vmesh's config map moves, and istiod has to be started there;
//   - trustDomain: the CA and the verification of proxies' certificates are made with it (maybeCreateCA, initSecureDiscoveryService),
//     and endpoints keep the identity that they were read with;
//   - ingressControllerMode: whether there is a controller for Ingress (initConfigController). Its other modes are followed;
//   - defaultConfig.discoveryAddress: the names in istiod's own certificate (initIstiodCerts);
//   - defaultConfig.privateKeyProvider: how gateways are given their keys (InitGenerators).
func readAtStart(c *meshconfig.MeshConfig) map[string]string {
	var addresses []string
	for _, s := range c.GetConfigSources() {
		addresses = append(addresses, s.GetAddress())
	}
	key, err := proto.MarshalOptions{Deterministic: true}.Marshal(c.GetDefaultConfig().GetPrivateKeyProvider())
	if err != nil {
		key = nil // it has just been unmarshalled
	}
	out := map[string]string{
		configSources:                      strings.Join(addresses, " "),
		rootNamespace:                      c.GetRootNamespace(),
		"trustDomain":                      c.GetTrustDomain(),
		"ingressControllerMode":            fmt.Sprint(c.GetIngressControllerMode() == meshconfig.MeshConfig_OFF),
		"defaultConfig.discoveryAddress":   c.GetDefaultConfig().GetDiscoveryAddress(),
		"defaultConfig.privateKeyProvider": string(key),
	}
	for name, value := range out {
		sum := sha256.Sum256([]byte(value))
		out[name] = hex.EncodeToString(sum[:6])
	}
	return out
}

// meshHost begins the name of a host under which a mesh is served: see xds.MeshHeader for
// those who can name it otherwise.
const meshHost = "mesh-"

// DefaultSource is the address under which a mesh is served on a host and port, empty if
// there is none: all meshes but the default one are told apart by the name of the host, and an IP
// address has none.
func DefaultSource(meshName, host, port string) string {
	if meshName != v1alpha1.DefaultName {
		if _, err := netip.ParseAddr(host); err == nil || host == "" {
			return ""
		}
		host = meshHost + meshName + "." + host
	}
	if host == "" {
		return ""
	}
	return "xds://" + net.JoinHostPort(host, port)
}

// checkSource says what is wrong with an address of configuration.
func checkSource(address string) error {
	const form = "must be xds://HOST:PORT"
	u, err := url.Parse(address)
	if err != nil {
		return errors.New(form)
	}
	host, port, err := net.SplitHostPort(u.Host)
	switch {
	case u.Scheme != "xds" || err != nil || host == "" || port == "":
		return errors.New(form)
	case u.Path != "" || u.RawQuery != "" || u.User != nil || u.Fragment != "":
		return errors.New(form + " and no more: istiod sends nothing else")
	}
	return nil
}

// namesMesh says whether vmesh itself would serve a mesh at an address.
func namesMesh(address, meshName string) bool {
	u, err := url.Parse(address)
	if err != nil {
		return false
	}
	label, _, _ := strings.Cut(strings.ToLower(u.Hostname()), ".")
	named, is := strings.CutPrefix(label, meshHost)
	if !is || named == "" {
		named = v1alpha1.DefaultName
	}
	return named == meshName
}

// Changed are the settings, sorted, that are others than they were.
func Changed(before, after map[string]string) []string {
	var out []string
	for name, is := range after {
		if was, had := before[name]; had && was != is {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
