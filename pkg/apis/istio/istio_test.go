package istio_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"istio.io/istio/manifests"
	"istio.io/istio/pkg/config/schema/collections"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/istio/internal/crds"
	"github.com/vmesh-io/vmesh/pkg/apis/kind/kindtest"
)

func TestPackedDefinitionsAreThoseOfTheModule(t *testing.T) {
	source, err := manifests.FS.ReadFile(crds.Source)
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := crds.Pack(source)
	if err != nil {
		t.Fatal(err)
	}
	packed, err := os.ReadFile("crds.zip")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(unpack(t, fresh), unpack(t, packed)); diff != "" {
		t.Errorf("crds.zip differs from what the Istio module has: run go generate ./pkg/apis/istio\n%s", diff)
	}
}

func unpack(t *testing.T, data []byte) map[string]*apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	archive, err := crds.Open(data)
	if err != nil {
		t.Fatal(err)
	}
	heads, err := archive.Heads()
	if err != nil {
		t.Fatal(err)
	}
	whole := map[string]*apiextensionsv1.CustomResourceDefinition{}
	for _, head := range heads {
		if whole[head.Name], err = archive.Load(head); err != nil {
			t.Fatal(err)
		}
	}
	return whole
}

func TestUnpackedDefinitionsAreWhole(t *testing.T) {
	source, err := manifests.FS.ReadFile(crds.Source)
	if err != nil {
		t.Fatal(err)
	}
	packed, err := crds.Pack(source)
	if err != nil {
		t.Fatal(err)
	}
	got := unpack(t, packed)
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(source), 4096)
	seen := 0
	for {
		want := &apiextensionsv1.CustomResourceDefinition{}
		if err := decoder.Decode(want); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if want.Name == "" {
			continue
		}
		seen++
		if diff := cmp.Diff(want, got[want.Name]); diff != "" {
			t.Errorf("%s differs (-source +unpacked):\n%s", want.Name, diff)
		}
	}
	if seen != len(got) || seen < 15 {
		t.Errorf("%d definitions in the source, %d unpacked", seen, len(got))
	}
}

func TestEveryKindOfTheCollectionsIsThere(t *testing.T) {
	kinds, err := istio.Kinds()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(kinds), len(collections.Pilot.All()); got != want {
		t.Fatalf("%d kinds, want %d", got, want)
	}
	got := map[string][]string{}
	for _, k := range kinds {
		got[k.GroupResource().String()] = append([]string{k.StorageVersion()}, k.Versions()...)
		if !k.Namespaced() {
			t.Errorf("%s is not namespaced", k)
		}
		for _, v := range k.Versions() {
			if !k.HasStatus(v) {
				t.Errorf("%s %s has no status", k, v)
			}
		}
	}
	want := map[string][]string{
		"authorizationpolicies.security.istio.io":  {"v1", "v1", "v1beta1"},
		"destinationrules.networking.istio.io":     {"v1", "v1", "v1beta1", "v1alpha3"},
		"envoyfilters.networking.istio.io":         {"v1alpha3", "v1alpha3"},
		"gateways.networking.istio.io":             {"v1", "v1", "v1beta1", "v1alpha3"},
		"peerauthentications.security.istio.io":    {"v1", "v1", "v1beta1"},
		"proxyconfigs.networking.istio.io":         {"v1beta1", "v1beta1"},
		"requestauthentications.security.istio.io": {"v1", "v1", "v1beta1"},
		"serviceentries.networking.istio.io":       {"v1", "v1", "v1beta1", "v1alpha3"},
		"sidecars.networking.istio.io":             {"v1", "v1", "v1beta1", "v1alpha3"},
		"telemetries.telemetry.istio.io":           {"v1alpha1", "v1", "v1alpha1"},
		"trafficextensions.extensions.istio.io":    {"v1alpha1", "v1alpha1"},
		"virtualservices.networking.istio.io":      {"v1", "v1", "v1beta1", "v1alpha3"},
		"wasmplugins.extensions.istio.io":          {"v1alpha1", "v1alpha1"},
		"workloadentries.networking.istio.io":      {"v1", "v1", "v1beta1", "v1alpha3"},
		"workloadgroups.networking.istio.io":       {"v1", "v1", "v1beta1", "v1alpha3"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("storage and served versions differ (-want +got):\n%s", diff)
	}
}

func TestVersionsOfAKindHaveOneSchema(t *testing.T) {
	kinds, err := istio.Kinds()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range kinds {
		crd, err := k.CRD()
		if err != nil {
			t.Fatal(err)
		}
		for i := range crd.Spec.Versions {
			if crd.Spec.Versions[i].Schema != crd.Spec.Versions[0].Schema {
				t.Errorf("%s: the schema of %s differs, so objects must be converted", k, crd.Spec.Versions[i].Name)
			}
		}
	}
}

func TestTypeURLsAreThoseThatIstiodAsksFor(t *testing.T) {
	kinds, err := istio.Kinds()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, k := range kinds {
		r, err := istio.ResourceOf(k)
		if err != nil {
			t.Fatal(err)
		}
		got[r.TypeURL()] = r.MessageName()
	}
	for url, message := range map[string]string{
		"networking.istio.io/v1/VirtualService":         "istio.networking.v1alpha3.VirtualService",
		"networking.istio.io/v1alpha3/EnvoyFilter":      "istio.networking.v1alpha3.EnvoyFilter",
		"networking.istio.io/v1beta1/ProxyConfig":       "istio.networking.v1beta1.ProxyConfig",
		"telemetry.istio.io/v1/Telemetry":               "istio.telemetry.v1alpha1.Telemetry",
		"extensions.istio.io/v1alpha1/TrafficExtension": "istio.extensions.v1alpha1.TrafficExtension",
		"security.istio.io/v1/AuthorizationPolicy":      "istio.security.v1beta1.AuthorizationPolicy",
	} {
		if got[url] != message {
			t.Errorf("%s: message %q, want %q", url, got[url], message)
		}
	}
}

func TestRandomObjectsFareAsUpstream(t *testing.T) {
	rounds := 40
	if testing.Short() {
		rounds = 20
	}
	kinds, err := istio.Kinds()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range kinds {
		crd, err := k.CRD()
		if err != nil {
			t.Fatal(err)
		}
		one := *crd
		one.Spec.Versions = one.Spec.Versions[:1:1] // the others have the same schema
		one.Spec.Versions[0].Storage = true
		kindtest.Compare(t, &one, rounds)
	}
}
