// Package vmesh makes the kinds of vmesh's own API from the definitions that are
// generated from its Go types.
package vmesh

import (
	"embed"
	"fmt"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
)

//go:embed v1alpha1/crds/*.yaml
var definitions embed.FS

// Kinds makes the kinds that the root serves and stores, and those that are answered and
// not stored: KubeconfigRequest, Analysis and ClaimReview.
func Kinds(virtualClusterHooks, kubeconfigHooks kind.Hooks) (virtualClusters, meshes, kubeconfigs, kubeconfigRequests, analyses, claimReviews *kind.Kind, err error) {
	for _, k := range []struct {
		plural string
		hooks  kind.Hooks
		kind   **kind.Kind
	}{
		{"virtualclusters", virtualClusterHooks, &virtualClusters},
		{"meshes", kind.Hooks{Validate: validateMesh, ValidateName: apivalidation.NameIsDNSLabel}, &meshes},
		{"kubeconfigs", kubeconfigHooks, &kubeconfigs},
		{"kubeconfigrequests", kind.Hooks{}, &kubeconfigRequests},
		{"analyses", kind.Hooks{}, &analyses},
		{"claimreviews", kind.Hooks{}, &claimReviews},
	} {
		if *k.kind, err = newKind(k.plural, k.hooks); err != nil {
			return nil, nil, nil, nil, nil, nil, err
		}
	}
	return virtualClusters, meshes, kubeconfigs, kubeconfigRequests, analyses, claimReviews, nil
}

// Changes makes the kind of the changes of virtual clusters, which is served in them.
func Changes(hooks kind.Hooks) (*kind.Kind, error) { return newKind("changes", hooks) }

func newKind(plural string, hooks kind.Hooks) (*kind.Kind, error) {
	data, err := definitions.ReadFile("v1alpha1/crds/vmesh.io_" + plural + ".yaml")
	if err != nil {
		return nil, fmt.Errorf("reading the definition of %s: %w", plural, err)
	}
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.Unmarshal(data, &crd); err != nil {
		return nil, fmt.Errorf("decoding the definition of %s: %w", plural, err)
	}
	k, err := kind.New(&crd, hooks)
	if err != nil {
		return nil, fmt.Errorf("making %s: %w", plural, err)
	}
	return k, nil
}
