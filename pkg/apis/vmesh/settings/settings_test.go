package settings

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	networking "istio.io/api/networking/v1alpha3"
	"istio.io/istio/pkg/util/protomarshal"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

func specOf(t *testing.T, text string) *v1alpha1.MeshSpec {
	t.Helper()
	var spec v1alpha1.MeshSpec
	if err := yaml.UnmarshalStrict([]byte(text), &spec); err != nil {
		t.Fatal(err)
	}
	return &spec
}

func TestASpecIsRefusedByTheFieldThatIsWrong(t *testing.T) {
	for _, test := range []struct{ name, spec, want string }{
		{"nothing", "", ""},
		{"a home", "home: {virtualCluster: shop, configSources: ['xds://127.0.0.1:15010', 'xds://vmesh.example:15051'], revisions: ['', canary], meshConfig: {trustDomain: shop.example, defaultConfig: {discoveryAddress: 'istiod.mesh:15012'}}}", ""},
		{"a home that nothing can be called", "home: {virtualCluster: A_b}", "spec.home.virtualCluster: "},
		{"another scheme", "home: {virtualCluster: a, configSources: ['k8s://']}", `spec.home.configSources[0]: Invalid value: "k8s://": must be xds://HOST:PORT`},
		{"no scheme", "home: {virtualCluster: a, configSources: ['127.0.0.1:15010']}", `spec.home.configSources[0]: Invalid value: "127.0.0.1:15010": must be xds://HOST:PORT`},
		{"no port", "home: {virtualCluster: a, configSources: ['xds://a']}", "spec.home.configSources[0]: "},
		{"a path", "home: {virtualCluster: a, configSources: ['xds://a:1/b']}", "istiod sends nothing else"},
		{"a revision that is no label", "home: {virtualCluster: a, revisions: [x.y]}", "spec.home.revisions[0]: "},
		{"what vmesh sets", "home: {virtualCluster: a, meshConfig: {configSources: []}}", "spec.home.meshConfig.configSources: Forbidden: is set by vmesh: set spec.home.configSources"},
		{"what vmesh sets, by its other name", "home: {virtualCluster: a, meshConfig: {root_namespace: x}}", "spec.home.meshConfig.root_namespace: Forbidden: is set by vmesh: set spec.rootNamespace"},
		{"and this", "home: {virtualCluster: a, meshConfig: {localityLbSetting: {}}}", "spec.home.meshConfig.localityLbSetting: Forbidden"},
		{"what Istio does not have", "home: {virtualCluster: a, meshConfig: {trustDomian: x}}", "spec.home.meshConfig.trustDomian: "},
		{"and not within", "home: {virtualCluster: a, meshConfig: {defaultConfig: {concurency: 1}}}", "spec.home.meshConfig.defaultConfig: "},
		{"another type", "home: {virtualCluster: a, meshConfig: {enableTracing: 'x'}}", "spec.home.meshConfig.enableTracing: "},
		{"what Istio refuses", "home: {virtualCluster: a, meshConfig: {connectTimeout: 0s}}", "spec.home.meshConfig.connectTimeout: "},
		{"the same twice", "home: {virtualCluster: a, meshConfig: {trustDomain: x, trust_domain: x}}", "give it once"},
		{"no object", "home: {virtualCluster: a, meshConfig: [1]}", "spec.home.meshConfig: "},
		{"gateways", "networks: [{name: east, gateways: [{address: 10.0.0.1, port: 15443}, {address: gw.example, port: 1}]}]", ""},
		{"a gateway's address", "networks: [{name: east}, {name: west, gateways: [{address: 'a b', port: 15443}]}]", "spec.networks[1].gateways[0].address: "},
		{"an address that is none", "networks: [{name: east, gateways: [{address: 1.2.3.400}]}]", `spec.networks[0].gateways[0].address: Invalid value: "1.2.3.400": 1.2.3.400 is not a valid IP address`},
		{"locality", "locality: {distribute: [{from: eu/*, to: {eu/*: 80, us: 20}}, {from: us/*, to: {us/*: 100}}]}", ""},
		{"shares that are not all", "locality: {distribute: [{from: eu/*, to: {eu/*: 80, us: 19}}]}", "spec.locality.distribute[0]: Invalid value: \"eu/*\": total locality weight 99 != 100"},
		{"a negative share", "locality: {distribute: [{from: eu/*, to: {eu/*: 120, us: -20}}]}", "spec.locality.distribute[0]: "},
		{"two for the same callers", "locality: {distribute: [{from: eu/*, to: {eu/*: 100}}, {from: eu/a, to: {eu/*: 100}}]}", "spec.locality.distribute: "},
		{"a zone as a region", "locality: {failover: [{from: eu/a, to: us}]}", "spec.locality.failover[0]: "},
		{"to itself", "locality: {failover: [{from: eu, to: eu}]}", "spec.locality.failover[0]: "},
		{"a label that is none", "locality: {failoverPriority: [topology.istio.io/cluster, 'a b']}", "spec.locality.failoverPriority[1]: "},
		{"an interval of nothing", "locality: {outlierDetection: {interval: 0s}}", "spec.locality.outlierDetection.interval: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			warnings, errs := Validate("default", specOf(t, test.spec), nil)
			if got := errs.ToAggregate(); test.want == "" && got != nil || test.want != "" && (got == nil || !strings.Contains(got.Error(), test.want)) {
				t.Errorf("got %v, want %q", got, test.want)
			}
			if len(warnings) > 0 {
				t.Errorf("warnings %v", warnings)
			}
		})
	}
}

func TestAnAddressThatServesAnotherMeshIsWarnedOf(t *testing.T) {
	for address, meshes := range map[string]map[string]bool{
		"xds://127.0.0.1:15010":             {"default": false, "shop": true},
		"xds://mesh-shop:15010":             {"default": true, "shop": false},
		"xds://mesh-shop.vmesh.svc:15010":   {"default": true, "shop": false},
		"xds://mesh-default.vmesh.svc:1501": {"default": false, "shop": true},
	} {
		for mesh, want := range meshes {
			warnings, errs := Validate(mesh, &v1alpha1.MeshSpec{Home: &v1alpha1.MeshHome{VirtualCluster: "a", ConfigSources: []string{address}}}, nil)
			if len(errs) > 0 || len(warnings) > 0 != want {
				t.Errorf("mesh %s, %s: warnings %v, errors %v", mesh, address, warnings, errs)
			}
		}
	}
}

func TestAHomeThatMovesIsWarnedOf(t *testing.T) {
	of := func(text string) *v1alpha1.MeshSpec { return specOf(t, text) }
	for _, test := range []struct {
		from, to string
		want     bool
	}{
		{"home: {virtualCluster: a}", "home: {virtualCluster: a, revisions: [x]}", false},
		{"home: {virtualCluster: a}", "home: {virtualCluster: b}", true},
		{"home: {virtualCluster: a}", "", true},
		{"home: {virtualCluster: a}", "{home: {virtualCluster: a}, rootNamespace: istio-system}", false},
		{"home: {virtualCluster: a}", "{home: {virtualCluster: a}, rootNamespace: mesh}", true},
		{"", "home: {virtualCluster: b}", false},
	} {
		if warnings, _ := Validate("default", of(test.to), of(test.from)); len(warnings) > 0 != test.want {
			t.Errorf("from %q to %q: %v", test.from, test.to, warnings)
		}
	}
}

func TestMeshConfigIsThatOfTheSpec(t *testing.T) {
	spec := specOf(t, "{rootNamespace: mesh, home: {virtualCluster: a, meshConfig: {trust_domain: shop.example, accessLogFile: /dev/stdout}}, locality: {failover: [{from: eu, to: us}]}}")
	text, _, err := MeshConfig(spec, []string{"xds://127.0.0.1:15010"})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(parsed.ConfigSources) != 1 || parsed.ConfigSources[0].Address != "xds://127.0.0.1:15010" || parsed.RootNamespace != "mesh" ||
		parsed.TrustDomain != "shop.example" || parsed.AccessLogFile != "/dev/stdout" ||
		!parsed.LocalityLbSetting.Enabled.Value || parsed.LocalityLbSetting.Failover[0].To != "us" {
		t.Errorf("got %s", text)
	}
	if again, _, _ := MeshConfig(spec.DeepCopy(), []string{"xds://127.0.0.1:15010"}); again != text {
		t.Errorf("the same spec gives %s, and then %s", text, again)
	}
}

func TestOnlySettingsOfTheStartAskForOne(t *testing.T) {
	base := func() *v1alpha1.MeshSpec { return &v1alpha1.MeshSpec{Home: &v1alpha1.MeshHome{VirtualCluster: "a"}} }
	with := func(settings string) *v1alpha1.MeshSpec {
		spec := base()
		data, err := yaml.YAMLToJSON([]byte(settings))
		if err != nil {
			t.Fatal(err)
		}
		spec.Home.MeshConfig = &runtime.RawExtension{Raw: data}
		return spec
	}
	sources := []string{"xds://a:1"}
	_, before, err := MeshConfig(base(), sources)
	if err != nil {
		t.Fatal(err)
	}
	other := base()
	other.RootNamespace = "other"
	locality := base()
	locality.Locality = &v1alpha1.MeshLocality{LocalFirst: ptr.To(false)}
	for _, test := range []struct {
		name    string
		spec    *v1alpha1.MeshSpec
		sources []string
		want    string
	}{
		{"the same", base(), sources, ""},
		{"the default, said", with("{trustDomain: cluster.local, ingressControllerMode: STRICT}"), sources, ""},
		{"sources", base(), []string{"xds://a:1", "xds://b:1"}, "configSources"},
		{"root namespace", other, sources, "rootNamespace"},
		{"trust domain", with("{trustDomain: x}"), sources, "trustDomain"},
		{"an ingress controller", with("{ingressControllerMode: 'OFF'}"), sources, "ingressControllerMode"},
		{"another mode of it", with("{ingressControllerMode: DEFAULT}"), sources, ""},
		{"discovery address", with("{defaultConfig: {discoveryAddress: 'a:1'}}"), sources, "defaultConfig.discoveryAddress"},
		{"keys", with("{defaultConfig: {privateKeyProvider: {qat: {pollDelay: 1s}}}}"), sources, "defaultConfig.privateKeyProvider"},
		{"what is followed", with("{accessLogFile: /dev/stdout, enableTracing: false, defaultConfig: {concurrency: 1}, outboundTrafficPolicy: {mode: REGISTRY_ONLY}}"), sources, ""},
		{"locality", locality, sources, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, after, err := MeshConfig(test.spec, test.sources)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(Changed(before, after), " "); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestConfigMapsAreThoseThatIstiodLooksFor(t *testing.T) {
	for want, revisions := range map[string][]string{
		"istio":                       nil,
		"istio istio-canary":          {"canary"},
		"istio istio-a istio-b":       {"b", "", "a"},
		"istio istio-1-30 istio-1-31": {"default", "1-31", "1-30"},
	} {
		if got := strings.Join(ConfigMaps(&v1alpha1.MeshHome{Revisions: revisions}), " "); got != want {
			t.Errorf("%v: got %q, want %q", revisions, got, want)
		}
	}
}

func TestADefaultSourceNamesItsMesh(t *testing.T) {
	for _, test := range []struct{ mesh, host, want string }{
		{"default", "127.0.0.1", "xds://127.0.0.1:15051"},
		{"default", "::1", "xds://[::1]:15051"},
		{"default", "vmesh.example", "xds://vmesh.example:15051"},
		{"shop", "vmesh.example", "xds://mesh-shop.vmesh.example:15051"},
		{"shop", "127.0.0.1", ""},
		{"shop", "::1", ""},
		{"default", "", ""},
	} {
		if got := DefaultSource(test.mesh, test.host, "15051"); got != test.want {
			t.Errorf("%s at %q: got %q, want %q", test.mesh, test.host, got, test.want)
		}
	}
}

func TestFailoverIsWhatIstioNeeds(t *testing.T) {
	for _, test := range []struct {
		name     string
		locality *v1alpha1.MeshLocality
		want     string
	}{
		{"no policy", nil, ""},
		{"local first", &v1alpha1.MeshLocality{}, "5 10s 30s 100"},
		{"spread", &v1alpha1.MeshLocality{LocalFirst: ptr.To(false)}, ""},
		{"spread, with outlier detection", &v1alpha1.MeshLocality{LocalFirst: ptr.To(false), OutlierDetection: &v1alpha1.MeshOutlierDetection{ConsecutiveErrors: ptr.To[int32](2)}}, "2 10s 30s 100"},
		{"all given", &v1alpha1.MeshLocality{OutlierDetection: &v1alpha1.MeshOutlierDetection{ConsecutiveErrors: ptr.To[int32](7), Interval: &metav1.Duration{Duration: 1500 * time.Millisecond},
			BaseEjectionTime: &metav1.Duration{Duration: 3 * time.Minute}, MaxEjectionPercent: ptr.To[int32](0)}}, "7 1.5s 3m0s 0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			spec := Failover(test.locality)
			if spec == nil {
				if test.want != "" {
					t.Fatalf("there is none")
				}
				return
			}
			data, err := json.Marshal(spec)
			if err != nil {
				t.Fatal(err)
			}
			var rule networking.DestinationRule
			if err := protomarshal.ApplyYAMLStrict(string(data), &rule); err != nil {
				t.Fatal(err)
			}
			o := rule.TrafficPolicy.OutlierDetection
			got := strings.Join([]string{o.Consecutive_5XxErrors.String()[len("value:"):], o.Interval.AsDuration().String(), o.BaseEjectionTime.AsDuration().String()}, " ")
			if want := test.want[:strings.LastIndex(test.want, " ")]; got != want || rule.Host != FailoverHost {
				t.Errorf("got %s of %s, want %s", got, rule.Host, want)
			}
		})
	}
}

func TestMeshNetworksAreReadByIstio(t *testing.T) {
	text, err := MeshNetworks(map[string]Network{
		"":     {Members: []string{"x"}},
		"east": {Members: []string{"b", "a"}, Gateways: []Gateway{{Address: "10.0.0.1", Port: 15443, Locality: "eu/a"}, {Address: "gw.example", Port: 1}}},
		"west": {},
	})
	if err != nil {
		t.Fatal(err)
	}
	const want = `networks:
  east:
    endpoints:
    - fromRegistry: a
    - fromRegistry: b
    gateways:
    - address: 10.0.0.1
      locality: eu/a
      port: 15443
    - address: gw.example
      port: 1
  west: {}
`
	if text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
	if text, err := MeshNetworks(nil); err != nil || text != "networks: {}\n" {
		t.Errorf("of none: %q, %v", text, err)
	}
}
