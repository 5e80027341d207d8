package builtin

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// CRDObjects are the definitions of kinds as a cluster that serves them shows them,
// sorted by name. They are the same in every process of a version.
func CRDObjects(kinds []*kind.Kind) ([]*object.Object, error) {
	objects := make([]*object.Object, 0, len(kinds))
	for _, k := range kinds {
		crd, err := k.CRD()
		if err != nil {
			return nil, err
		}
		served := servedDefinition(crd, k)
		o, err := object.From(served, served.GroupVersionKind())
		if err != nil {
			return nil, fmt.Errorf("encoding the definition of %s: %w", k, err)
		}
		objects = append(objects, o)
	}
	slices.SortFunc(objects, func(a, b *object.Object) int { return strings.Compare(a.Name, b.Name) })
	return objects, nil
}

// servedDefinition is a definition after a cluster has accepted it.
func servedDefinition(crd *apiextensionsv1.CustomResourceDefinition, k *kind.Kind) *apiextensionsv1.CustomResourceDefinition {
	out := *crd // its parts are shared with the original, and not modified
	out.SetGroupVersionKind(apiextensionsv1.SchemeGroupVersion.WithKind("CustomResourceDefinition"))
	out.Name = k.Resource() + "." + k.Group()
	out.UID = types.UID(uuid.NewSHA1(uuid.NameSpaceDNS, []byte(out.Name)).String())
	out.Generation = 1
	out.Spec.Names.Singular, out.Spec.Names.ListKind = k.Singular(), k.ListKind()
	if out.Spec.Conversion == nil {
		out.Spec.Conversion = &apiextensionsv1.CustomResourceConversion{Strategy: apiextensionsv1.NoneConverter}
	}
	condition := func(kind apiextensionsv1.CustomResourceDefinitionConditionType, reason, message string) apiextensionsv1.CustomResourceDefinitionCondition {
		return apiextensionsv1.CustomResourceDefinitionCondition{
			Type: kind, Status: apiextensionsv1.ConditionTrue, Reason: reason, Message: message, ObservedGeneration: out.Generation,
		}
	}
	out.Status = apiextensionsv1.CustomResourceDefinitionStatus{
		Conditions: []apiextensionsv1.CustomResourceDefinitionCondition{
			condition(apiextensionsv1.NamesAccepted, "NoConflicts", "no conflicts found"),
			condition(apiextensionsv1.Established, "InitialNamesAccepted", "the initial names have been accepted"),
		},
		AcceptedNames:      out.Spec.Names,
		StoredVersions:     []string{k.StorageVersion()},
		ObservedGeneration: out.Generation,
	}
	return &out
}
