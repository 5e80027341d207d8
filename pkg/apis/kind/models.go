package kind

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kube-openapi/pkg/builder3/util"
	"k8s.io/kube-openapi/pkg/schemamutation"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// A kind with models (Hooks.Models) is described as a custom resource whose schema is
// then replaced by the models. So the paths, lists and options come from the same
// place for all kinds.

const modelsPrefixV2 = "#/definitions/"

// stubCRD is the definition without schemas, for the paths alone.
func (k *Kind) stubCRD() *apiextensionsv1.CustomResourceDefinition {
	stub := *k.head
	stub.Spec.Names = k.names
	stub.Spec.Versions = slices.Clone(stub.Spec.Versions)
	for i := range stub.Spec.Versions {
		stub.Spec.Versions[i].Schema = &apiextensionsv1.CustomResourceValidation{
			OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object"},
		}
	}
	return &stub
}

// builtName is what the builder calls the kind's own schema.
func (k *Kind) builtName(version string) string {
	parts := strings.Split(k.Group(), ".")
	slices.Reverse(parts)
	return strings.Join(parts, ".") + "." + version + "." + k.names.Kind
}

func renameRefs(prefix, from, to string) func(*spec.Ref) *spec.Ref {
	return func(ref *spec.Ref) *spec.Ref {
		target := ref.String()
		for _, suffix := range []string{"", "List"} {
			if target == prefix+from+suffix {
				renamed := spec.MustCreateRef(prefix + to + suffix)
				return &renamed
			}
		}
		return ref
	}
}

// renamed gives what is called from, and the list of it, another name.
func renamed[S any](schemas map[string]S, from, to string) {
	for _, suffix := range []string{"", "List"} {
		if s, ok := schemas[from+suffix]; ok {
			delete(schemas, from+suffix)
			schemas[to+suffix] = s
		}
	}
}

func (k *Kind) modelsV3(doc *spec3.OpenAPI, version string) error {
	name, models := k.Hooks.Models()
	built := k.builtName(version)
	if doc.Components == nil || doc.Components.Schemas[built] == nil {
		return fmt.Errorf("describing %s: no schema %q was built", k, built)
	}
	renamed(doc.Components.Schemas, built, name)
	walker := schemamutation.Walker{SchemaCallback: schemamutation.SchemaCallBackNoop, RefCallback: renameRefs(schemaPrefix, built, name)}
	for key, s := range doc.Components.Schemas {
		doc.Components.Schemas[key] = walker.WalkSchema(s)
	}
	own := models[name]
	addExtensions(own, doc.Components.Schemas[name].Extensions)
	delete(doc.Components.Schemas, name)
	for key, model := range models {
		if doc.Components.Schemas[key] == nil {
			doc.Components.Schemas[key] = util.WrapRefs(model)
		}
	}
	if doc.Paths == nil {
		return nil
	}
	for _, p := range doc.Paths.Paths {
		for _, op := range []*spec3.Operation{p.Get, p.Put, p.Post, p.Delete, p.Patch} {
			renameOperation(op, walker)
		}
		if p.Patch != nil && p.Patch.RequestBody != nil {
			content := p.Patch.RequestBody.Content
			if merge := content[string(types.MergePatchType)]; merge != nil {
				content[string(types.StrategicMergePatchType)] = merge
			}
		}
	}
	return nil
}

func renameOperation(op *spec3.Operation, walker schemamutation.Walker) {
	if op == nil {
		return
	}
	rename := func(content map[string]*spec3.MediaType) {
		for _, m := range content {
			if m.Schema != nil {
				m.Schema = walker.WalkSchema(m.Schema)
			}
		}
	}
	if op.RequestBody != nil {
		rename(op.RequestBody.Content)
	}
	if op.Responses == nil {
		return
	}
	for _, r := range op.Responses.StatusCodeResponses {
		rename(r.Content)
	}
}

func (k *Kind) modelsV2(doc *spec.Swagger, version string) (*spec.Swagger, error) {
	name, models := k.Hooks.Models()
	built := k.builtName(version)
	if _, ok := doc.Definitions[built]; !ok {
		return nil, fmt.Errorf("describing %s: no definition %q was built", k, built)
	}
	doc.Definitions = maps.Clone(doc.Definitions)
	renamed(doc.Definitions, built, name)
	walker := schemamutation.Walker{SchemaCallback: schemamutation.SchemaCallBackNoop, RefCallback: renameRefs(modelsPrefixV2, built, name)}
	doc = walker.WalkRoot(doc)

	own := models[name]
	addExtensions(own, doc.Definitions[name].Extensions)
	delete(doc.Definitions, name)
	toV2 := schemamutation.Walker{SchemaCallback: schemamutation.SchemaCallBackNoop, RefCallback: func(ref *spec.Ref) *spec.Ref {
		if target, ok := strings.CutPrefix(ref.String(), schemaPrefix); ok {
			moved := spec.MustCreateRef(modelsPrefixV2 + target)
			return &moved
		}
		return ref
	}}
	for key, model := range models {
		if _, ok := doc.Definitions[key]; ok {
			continue
		}
		model = toV2.WalkSchema(model)
		if len(model.OneOf) > 0 { // the older format has no choice of types
			model.OneOf, model.Type = nil, []string{"string"}
		}
		doc.Definitions[key] = *model
	}
	for _, p := range doc.Paths.Paths {
		if p.Patch != nil {
			p.Patch.Consumes = append(slices.Clone(p.Patch.Consumes), string(types.StrategicMergePatchType))
		}
	}
	return doc, nil
}

func addExtensions(s *spec.Schema, extensions spec.Extensions) {
	for key, value := range extensions {
		s.AddExtension(key, value)
	}
}
