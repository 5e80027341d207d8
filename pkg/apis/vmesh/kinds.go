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

// Root are the kinds that the root serves.
type Root struct {
	// Those that are stored.
	VirtualClusters, Meshes, Kubeconfigs, MemberClusters *kind.Kind
	// Those that are answered and not stored.
	KubeconfigRequests, Analyses, ClaimReviews *kind.Kind
}

// Stored are the kinds that are stored.
func (r *Root) Stored() []*kind.Kind {
	return []*kind.Kind{r.VirtualClusters, r.Meshes, r.Kubeconfigs, r.MemberClusters}
}

// All are all the kinds.
func (r *Root) All() []*kind.Kind {
	return append(r.Stored(), r.KubeconfigRequests, r.Analyses, r.ClaimReviews)
}

// Kinds makes the kinds that the root serves. meshes, if not nil, is for advice on member clusters.
func Kinds(virtualClusterHooks, kubeconfigHooks kind.Hooks, meshes MeshReader) (*Root, error) {
	var root Root
	for _, k := range []struct {
		plural string
		hooks  kind.Hooks
		kind   **kind.Kind
	}{
		{"virtualclusters", virtualClusterHooks, &root.VirtualClusters},
		{"meshes", kind.Hooks{Validate: validateMesh, ValidateName: apivalidation.NameIsDNSLabel}, &root.Meshes},
		{"memberclusters", kind.Hooks{Validate: meshes.validateMember, ValidateName: validateMemberName}, &root.MemberClusters},
		{"kubeconfigs", kubeconfigHooks, &root.Kubeconfigs},
		{"kubeconfigrequests", kind.Hooks{}, &root.KubeconfigRequests},
		{"analyses", kind.Hooks{}, &root.Analyses},
		{"claimreviews", kind.Hooks{}, &root.ClaimReviews},
	} {
		var err error
		if *k.kind, err = newKind(k.plural, k.hooks); err != nil {
			return nil, err
		}
	}
	return &root, nil
}

// MeshServices makes the kind of the services of a mesh, which is served in virtual clusters
// and not stored.
func MeshServices() (*kind.Kind, error) { return newKind("meshservices", kind.Hooks{}) }

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
