// Package kindtest holds a kind against upstream's own treatment of custom
// resources: both read and judge the same, partly broken objects.
package kindtest

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apiextensions-apiserver/pkg/registry/customresource"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
)

// Reference treats objects of one version of a definition as kube-apiserver does.
type Reference struct {
	Structural *structuralschema.Structural

	strategy strategy
	status   strategy
}

// strategy is what of upstream's strategies is of use here.
type strategy interface {
	Validate(ctx context.Context, obj runtime.Object) field.ErrorList
	ValidateUpdate(ctx context.Context, obj, old runtime.Object) field.ErrorList
}

// NewReference makes the reference for a version.
func NewReference(crd *apiextensionsv1.CustomResourceDefinition, version string) (*Reference, error) {
	i := slices.IndexFunc(crd.Spec.Versions, func(v apiextensionsv1.CustomResourceDefinitionVersion) bool { return v.Name == version })
	if i < 0 {
		return nil, fmt.Errorf("%s has no version %q", crd.Name, version)
	}
	v := crd.Spec.Versions[i]
	internal := &apiextensions.CustomResourceValidation{}
	if err := apiextensionsv1.Convert_v1_CustomResourceValidation_To_apiextensions_CustomResourceValidation(v.Schema.DeepCopy(), internal, nil); err != nil {
		return nil, err
	}
	structural, err := structuralschema.NewStructural(internal.OpenAPIV3Schema)
	if err != nil {
		return nil, err
	}
	structural = structural.DeepCopy()
	if err := defaulting.PruneDefaults(structural); err != nil {
		return nil, err
	}
	object, _, err := validation.NewSchemaValidator(internal.OpenAPIV3Schema)
	if err != nil {
		return nil, err
	}
	var statusSpec *apiextensions.CustomResourceSubresourceStatus
	var statusValidator validation.SchemaValidator
	if v.Subresources != nil && v.Subresources.Status != nil {
		statusSpec = &apiextensions.CustomResourceSubresourceStatus{}
		if s, ok := internal.OpenAPIV3Schema.Properties["status"]; ok {
			if statusValidator, _, err = validation.NewSchemaValidator(&s); err != nil {
				return nil, err
			}
		}
	}
	gvk := schema.GroupVersionKind{Group: crd.Spec.Group, Version: version, Kind: crd.Spec.Names.Kind}
	s := customresource.NewStrategy(nil, crd.Spec.Scope == apiextensionsv1.NamespaceScoped, gvk, object, statusValidator, structural, statusSpec, nil, v.SelectableFields)
	return &Reference{Structural: structural, strategy: s, status: customresource.NewStatusStrategy(s)}, nil
}

// Decode reads a body in upstream's steps.
func (r *Reference) Decode(data []byte, strict bool) (tree map[string]any, strictErrs []error, err error) {
	tree = map[string]any{}
	if strict {
		strictErrs, err = kjson.UnmarshalStrict(data, &tree)
	} else {
		err = kjson.UnmarshalCaseSensitivePreserveInts(data, &tree)
	}
	if err != nil {
		return nil, nil, err
	}
	meta, found, unknown, err := objectmeta.GetObjectMetaWithOptions(tree, objectmeta.ObjectMetaOptions{ReturnUnknownFieldPaths: strict})
	if err != nil {
		return nil, nil, err
	}
	apiVersion, kind := tree["apiVersion"], tree["kind"]
	unknown = append(unknown, pruning.PruneWithOptions(tree, r.Structural, true, structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: strict})...)
	defaulting.PruneNonNullableNullsWithoutDefaults(tree, r.Structural)
	coerceErr, paths := objectmeta.CoerceWithOptions(nil, tree, r.Structural, false, objectmeta.CoerceOptions{ReturnUnknownFieldPaths: strict})
	if coerceErr != nil {
		return nil, nil, coerceErr
	}
	unknown = append(unknown, paths...)
	tree["apiVersion"], tree["kind"] = apiVersion, kind
	if found {
		if err := objectmeta.SetObjectMeta(tree, meta); err != nil {
			return nil, nil, err
		}
	}
	defaulting.Default(tree, r.Structural)
	for _, path := range unknown {
		strictErrs = append(strictErrs, fmt.Errorf(`unknown field "%s"`, path))
	}
	return tree, strictErrs, nil
}

// Validate judges a whole object, old nil on create.
func (r *Reference) Validate(ctx context.Context, obj, old map[string]any) field.ErrorList {
	if old == nil {
		return r.strategy.Validate(ctx, &unstructured.Unstructured{Object: obj})
	}
	return r.strategy.ValidateUpdate(ctx, &unstructured.Unstructured{Object: obj}, &unstructured.Unstructured{Object: old})
}

// ValidateStatus judges a write of the status.
func (r *Reference) ValidateStatus(ctx context.Context, obj, old map[string]any) field.ErrorList {
	return r.status.ValidateUpdate(ctx, &unstructured.Unstructured{Object: obj}, &unstructured.Unstructured{Object: old})
}
