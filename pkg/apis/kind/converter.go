package kind

import (
	"fmt"

	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	generatedopenapi "k8s.io/apiextensions-apiserver/pkg/generated/openapi"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/kube-openapi/pkg/schemaconv"
	"k8s.io/kube-openapi/pkg/validation/spec"
	smdschema "sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

const schemaPrefix = "#/components/schemas/"

// typeConverter gives structured-merge-diff the schema of a kind.
type typeConverter struct {
	types map[schema.GroupVersionKind]*typed.ParseableType
}

var _ managedfields.TypeConverter = (*typeConverter)(nil)

// TypeConverter is what server-side apply knows the kind by. It takes *object.Object
// and *unstructured.Unstructured in every version and returns *object.Object.
func (k *Kind) TypeConverter() (managedfields.TypeConverter, error) { return k.converter() }

func (k *Kind) newTypeConverter() (*typeConverter, error) {
	if k.Hooks.Models != nil {
		return k.modelConverter()
	}
	models := map[string]*spec.Schema{}
	names := map[*form]string{}
	c := &typeConverter{types: map[schema.GroupVersionKind]*typed.ParseableType{}}
	byVersion := map[string]string{}
	for version, info := range k.versions {
		f, err := k.form(version)
		if err != nil {
			return nil, err
		}
		name, ok := names[f]
		if !ok {
			name = info.gvk.Kind + "." + version
			names[f] = name
			models[name] = f.mergeSchema()
		}
		byVersion[version] = name
	}
	addMetadataModels(models)
	types, err := schemaconv.ToSchemaFromOpenAPI(models, k.head.Spec.PreserveUnknownFields)
	if err != nil {
		return nil, fmt.Errorf("building the merge schema of %s: %w", k, err)
	}
	parser := &typed.Parser{Schema: smdschema.Schema{Types: types.Types}}
	for version, name := range byVersion {
		t := parser.Type(name)
		c.types[k.GVK(version)] = &t
	}
	return c, nil
}

// modelConverter is the converter of a kind that has models of its own.
func (k *Kind) modelConverter() (*typeConverter, error) {
	name, models := k.Hooks.Models()
	types, err := schemaconv.ToSchemaFromOpenAPI(models, false)
	if err != nil {
		return nil, fmt.Errorf("building the merge schema of %s: %w", k, err)
	}
	parser := &typed.Parser{Schema: smdschema.Schema{Types: types.Types}}
	t := parser.Type(name)
	c := &typeConverter{types: map[schema.GroupVersionKind]*typed.ParseableType{}}
	for version := range k.versions {
		c.types[k.GVK(version)] = &t
	}
	return c, nil
}

// mergeSchema is the schema of whole objects, metadata included.
func (f *form) mergeSchema() *spec.Schema {
	root := &spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{"object"}}}
	if f.structural != nil {
		root = f.structural.ToKubeOpenAPI()
	}
	addObjectProperties(root)
	addEmbeddedProperties(f.structural, root)
	return root
}

func addObjectProperties(s *spec.Schema) {
	s.SetProperty("apiVersion", *spec.StringProperty())
	s.SetProperty("kind", *spec.StringProperty())
	s.SetProperty("metadata", *spec.RefSchema(schemaPrefix + metav1.ObjectMeta{}.OpenAPIModelName()))
}

func addEmbeddedProperties(s *structuralschema.Structural, out *spec.Schema) {
	if s == nil || out == nil {
		return
	}
	if s.Items != nil && out.Items != nil {
		addEmbeddedProperties(s.Items, out.Items.Schema)
	}
	if s.AdditionalProperties != nil && out.AdditionalProperties != nil {
		addEmbeddedProperties(s.AdditionalProperties.Structural, out.AdditionalProperties.Schema)
	}
	for name, p := range s.Properties {
		child, ok := out.Properties[name]
		if !ok {
			continue
		}
		addEmbeddedProperties(&p, &child)
		out.Properties[name] = child
	}
	if s.XEmbeddedResource {
		addObjectProperties(out)
	}
}

// addMetadataModels adds ObjectMeta and what it refers to.
func addMetadataModels(models map[string]*spec.Schema) {
	definitions := generatedopenapi.GetOpenAPIDefinitions(func(name string) spec.Ref { return spec.MustCreateRef(schemaPrefix + name) })
	pending := []string{metav1.ObjectMeta{}.OpenAPIModelName()}
	for len(pending) > 0 {
		name := pending[len(pending)-1]
		pending = pending[:len(pending)-1]
		if models[name] != nil {
			continue
		}
		definition := definitions[name]
		model := definition.Schema
		models[name] = &model
		pending = append(pending, definition.Dependencies...)
	}
}

func (c *typeConverter) ObjectToTyped(obj runtime.Object, opts ...typed.ValidationOptions) (*typed.TypedValue, error) {
	gvk := obj.GetObjectKind().GroupVersionKind()
	t := c.types[gvk]
	if t == nil {
		return nil, runtime.NewNotRegisteredErrForKind("kinds", gvk)
	}
	switch o := obj.(type) {
	case *object.Object:
		u, err := o.Unstructured()
		if err != nil {
			return nil, err
		}
		return t.FromUnstructured(u, opts...)
	case *unstructured.Unstructured:
		return t.FromUnstructured(o.Object, opts...)
	}
	return t.FromStructured(obj, opts...)
}

func (c *typeConverter) TypedToObject(value *typed.TypedValue) (runtime.Object, error) {
	tree, ok := value.AsValue().Unstructured().(map[string]any)
	if !ok {
		return nil, fmt.Errorf("a merge gave %T where an object is needed", value.AsValue().Unstructured())
	}
	return object.FromUnstructured(tree)
}
