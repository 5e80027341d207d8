package kind_test

import (
	"os"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/pkg/apis/kind/kindtest"
)

// widgets is a definition that uses everything schemas offer.
func widgets(tb testing.TB) *apiextensionsv1.CustomResourceDefinition {
	tb.Helper()
	data, err := os.ReadFile("testdata/widgets.yaml")
	if err != nil {
		tb.Fatal(err)
	}
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.UnmarshalStrict(data, crd); err != nil {
		tb.Fatal(err)
	}
	return crd
}

func TestRandomObjectsFareAsUpstream(t *testing.T) {
	rounds := 500
	if testing.Short() {
		rounds = 200
	}
	kindtest.Compare(t, widgets(t), rounds)
}
