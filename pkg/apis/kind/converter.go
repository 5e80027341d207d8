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
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	smdschema "sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
	"sigs.k8s.io/structured-merge-diff/v6/value"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

const schemaPrefix = "#/components/schemas/"

// typeConverter gives structured-merge-diff the schema of a kind.
type typeConverter struct {
	types map[schema.GroupVersionKind]mergeType
}

// mergeType is the merge schema of one version, beside the form it was made of; nil
// where it comes from models instead.
type mergeType struct {
	typed.ParseableType
	form *form
}

var _ managedfields.TypeConverter = (*typeConverter)(nil)

// TypeConverter is what server-side apply knows the kind by. It takes *object.Object,
// *Configuration and *unstructured.Unstructured in every version and returns *object.Object.
func (k *Kind) TypeConverter() (managedfields.TypeConverter, error) {
	c, err := k.converter.get()
	if err != nil {
		return nil, err
	}
	return c, nil
}

// ResetFields are the fields that a write takes from the stored object whatever it
// says itself, so that nobody comes to own them by it: the status on an ordinary
// write of a version with a status subresource; all but the status on a write of that.
func (k *Kind) ResetFields(status bool) map[fieldpath.APIVersion]*fieldpath.Set {
	reset := fieldpath.NewSet(fieldpath.MakePathOrDie("status"))
	if status {
		reset = fieldpath.NewSet(fieldpath.MakePathOrDie("metadata"), fieldpath.MakePathOrDie("spec"))
	}
	fields := map[fieldpath.APIVersion]*fieldpath.Set{}
	for version, v := range k.versions {
		if v.hasStatus {
			fields[fieldpath.APIVersion(k.GVK(version).GroupVersion().String())] = reset
		}
	}
	return fields
}

func (k *Kind) newTypeConverter() (*typeConverter, error) {
	if k.Hooks.Models != nil {
		return k.modelConverter()
	}
	models := map[string]*spec.Schema{}
	names := map[*form]string{}
	c := &typeConverter{types: map[schema.GroupVersionKind]mergeType{}}
	byVersion := map[string]*form{}
	for version, info := range k.versions {
		f, err := k.form(version)
		if err != nil {
			return nil, err
		}
		if names[f] == "" {
			names[f] = info.gvk.Kind + "." + version
			models[names[f]] = f.mergeSchema()
		}
		byVersion[version] = f
	}
	addMetadataModels(models)
	types, err := schemaconv.ToSchemaFromOpenAPI(models, k.head.Spec.PreserveUnknownFields)
	if err != nil {
		return nil, fmt.Errorf("building the merge schema of %s: %w", k, err)
	}
	parser := &typed.Parser{Schema: smdschema.Schema{Types: types.Types}}
	for version, f := range byVersion {
		c.types[k.GVK(version)] = mergeType{parser.Type(names[f]), f}
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
	c := &typeConverter{types: map[schema.GroupVersionKind]mergeType{}}
	for version := range k.versions {
		c.types[k.GVK(version)] = mergeType{ParseableType: t}
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
	t, ok := c.types[gvk]
	if !ok {
		return nil, runtime.NewNotRegisteredErrForKind("kinds", gvk)
	}
	switch o := obj.(type) {
	case *object.Object:
		return t.fromObject(o, opts)
	case *Configuration:
		if o.merge != nil {
			return o.merge, nil
		}
		return t.FromUnstructured(o.Object, opts...)
	case *unstructured.Unstructured:
		return t.FromUnstructured(o.Object, opts...)
	}
	return t.FromStructured(obj, opts...)
}

// fromObject leaves out the check against the merge schema where the form, which
// asks for more and is faster, has nothing to object to.
func (t mergeType) fromObject(o *object.Object, opts []typed.ValidationOptions) (*typed.TypedValue, error) {
	content, err := t.form.content(o)
	if err != nil {
		return nil, err
	}
	// Nobody manages the managed fields; the field manager writes them anew.
	bare := *o
	bare.ManagedFields = nil
	tree, err := bare.Whole(content)
	if err != nil {
		return nil, err
	}
	// These are the lists in metadata that must not repeat themselves.
	listless := len(o.Finalizers) == 0 && len(o.OwnerReferences) == 0
	if t.form != nil && listless && t.form.root.settled(content, false) && t.form.root.check(content) == valid {
		return typed.AsTypedUnvalidated(value.NewValueInterface(tree), t.Schema, t.TypeRef), nil
	}
	return t.FromUnstructured(tree, opts...)
}

func (c *typeConverter) TypedToObject(v *typed.TypedValue) (runtime.Object, error) {
	tree, ok := v.AsValue().Unstructured().(map[string]any)
	if !ok {
		return nil, fmt.Errorf("a merge gave %T where an object is needed", v.AsValue().Unstructured())
	}
	return object.FromUnstructured(tree)
}
