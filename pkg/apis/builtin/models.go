package builtin

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"

	generatedopenapi "k8s.io/apiextensions-apiserver/pkg/generated/openapi"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// refPrefix is where models refer to each other, in the manner of OpenAPI v3.
const refPrefix = "#/components/schemas/"

// The extensions of a model that say how its lists and maps are merged.
const (
	extListType      = "x-kubernetes-list-type"
	extListMapKeys   = "x-kubernetes-list-map-keys"
	extMapType       = "x-kubernetes-map-type"
	extPatchStrategy = "x-kubernetes-patch-strategy"
	extPatchMergeKey = "x-kubernetes-patch-merge-key"
)

// modelsOf describes a Go type of Kubernetes' API and all that it is made of, by
// OpenAPI model name, and returns the name of the type's own model. What the type
// itself does not say (its comments do) comes from the table of facts.
func modelsOf(t reflect.Type) (name string, models map[string]*spec.Schema) {
	m := newModelBuilder()
	return m.add(t), m.models
}

type modelBuilder struct {
	facts  map[string]typeFacts
	enums  map[reflect.Type][]any
	models map[string]*spec.Schema
	nulls  map[string]map[string]bool // the fields that the Go type writes as null when they are empty, by model

	generated map[string]common.OpenAPIDefinition
}

func newModelBuilder() *modelBuilder {
	return &modelBuilder{facts: knownFacts(), enums: enums(), models: map[string]*spec.Schema{}, nulls: map[string]map[string]bool{}}
}

// What types say of themselves.
type (
	modelNamer interface{ OpenAPIModelName() string }
	documented interface{ SwaggerDoc() map[string]string }
	schemaType interface {
		OpenAPISchemaType() []string
		OpenAPISchemaFormat() string
	}
	oneOfTyper interface{ OpenAPIV3OneOfTypes() []string }
)

func (m *modelBuilder) add(t reflect.Type) string {
	zero := reflect.New(t).Interface()
	name := zero.(modelNamer).OpenAPIModelName()
	if _, ok := m.models[name]; ok {
		return name
	}
	model := &spec.Schema{}
	m.models[name] = model // before its properties, which may lead back here
	model.Description = m.docOf(t)[""]
	if own, ok := zero.(schemaType); ok {
		model.Format = own.OpenAPISchemaFormat()
		if choice, ok := zero.(oneOfTyper); ok {
			for _, c := range choice.OpenAPIV3OneOfTypes() {
				model.OneOf = append(model.OneOf, spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{c}}})
			}
		} else {
			model.Type = own.OpenAPISchemaType()
		}
		return name
	}
	model.Type = []string{"object"}
	if m.facts[name].atomic {
		model.AddExtension(extMapType, "atomic")
	}
	m.addFields(name, model, t)
	slices.Sort(model.Required)
	return name
}

func (m *modelBuilder) addFields(model string, s *spec.Schema, t reflect.Type) {
	docs := m.docOf(t)
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" || !f.IsExported() {
			continue
		}
		if name == "" && f.Anonymous {
			m.addFields(model, s, f.Type)
			continue
		}
		p := m.property(f.Type)
		p.Description = docs[name]
		facts := m.facts[model].fields[name]
		addMergeFacts(&p, f, facts)
		if facts.value != nil {
			p.Default = facts.value
		}
		s.SetProperty(name, p)
		always := !strings.Contains(options, "omit")
		// A struct is written even if it is to be left out when empty.
		if (always || f.Type.Kind() == reflect.Struct && !strings.Contains(options, "omitzero")) && isNull(f.Type) {
			if m.nulls[model] == nil {
				m.nulls[model] = map[string]bool{}
			}
			m.nulls[model][name] = true
		}
		if always && !facts.optional || facts.required {
			s.Required = append(s.Required, name)
		}
	}
}

// addMergeFacts says how lists are merged. Strategic merge patches have one key where
// server-side apply may have several, which the table then names.
func addMergeFacts(p *spec.Schema, f reflect.StructField, facts fieldFacts) {
	strategy, key := f.Tag.Get("patchStrategy"), f.Tag.Get("patchMergeKey")
	if strategy != "" {
		p.AddExtension(extPatchStrategy, strategy)
	}
	if key != "" {
		p.AddExtension(extPatchMergeKey, key)
	}
	if facts.atomic && !p.Type.Contains("array") {
		p.AddExtension(extMapType, "atomic")
	}
	if !p.Type.Contains("array") {
		return
	}
	keys := facts.keys
	if keys == nil && key != "" {
		keys = []string{key}
	}
	switch {
	case facts.atomic:
		p.AddExtension(extListType, "atomic")
	case len(keys) > 0:
		p.AddExtension(extListType, "map")
		list := make([]any, len(keys))
		for i := range keys {
			list[i] = keys[i]
		}
		p.AddExtension(extListMapKeys, list)
	case facts.set || strings.Contains(strategy, "merge"):
		p.AddExtension(extListType, "set")
	default:
		p.AddExtension(extListType, "atomic")
	}
}

func (m *modelBuilder) property(t reflect.Type) spec.Schema {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if _, ok := reflect.New(t).Interface().(modelNamer); ok {
		return *spec.RefSchema(refPrefix + m.add(t))
	}
	switch t.Kind() {
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return *spec.StrFmtProperty("byte")
		}
		item := m.property(t.Elem())
		return *spec.ArrayProperty(&item)
	case reflect.Map:
		value := m.property(t.Elem())
		return *spec.MapProperty(&value)
	case reflect.String:
		p := spec.StringProperty()
		p.Enum = m.enums[t]
		return *p
	case reflect.Bool:
		return *spec.BooleanProperty()
	case reflect.Int64, reflect.Uint64:
		return *spec.Int64Property()
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Uint8, reflect.Uint16, reflect.Uint32:
		return *spec.Int32Property()
	case reflect.Float32, reflect.Float64:
		return *spec.Float64Property()
	}
	// Types outside Kubernetes' API have no place in it; a test goes through all kinds.
	panic("no model for " + t.String())
}

// isNull tells whether the zero value of a type is null in JSON.
func isNull(t reflect.Type) bool {
	data, err := json.Marshal(reflect.Zero(t).Interface())
	return err == nil && string(data) == "null"
}

// docOf is the documentation of a type's fields by name, and its own by the empty name.
func (m *modelBuilder) docOf(t reflect.Type) map[string]string {
	switch d := reflect.New(t).Interface().(type) {
	case documented:
		return d.SwaggerDoc()
	case modelNamer:
		return m.definitionDoc(d.OpenAPIModelName())
	}
	return nil
}

// definitionDoc documents the types of definitions, which carry no documentation and
// have generated models instead.
func (m *modelBuilder) definitionDoc(name string) map[string]string {
	if m.generated == nil {
		m.generated = generatedopenapi.GetOpenAPIDefinitions(spec.MustCreateRef)
	}
	s := m.generated[name].Schema
	docs := map[string]string{"": s.Description}
	for field := range s.Properties {
		docs[field] = s.Properties[field].Description
	}
	return docs
}
