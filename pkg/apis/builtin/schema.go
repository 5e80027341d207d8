package builtin

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// schemaOf is the structural schema of a Go type: its models, each written out in full
// where it is referred to, as definitions have it.
//
// It leaves out what Kubernetes' own kinds are not held to. List types: Kubernetes
// takes lists with repeated keys and merges by the models. What the status requires:
// whoever writes a status may write part of it.
func schemaOf(t reflect.Type) (*apiextensionsv1.JSONSchemaProps, error) {
	m := newModelBuilder()
	name := m.add(t)
	w := writer{modelBuilder: m, done: map[string]*apiextensionsv1.JSONSchemaProps{}}
	root, err := w.write(name, false)
	if err != nil {
		return nil, fmt.Errorf("writing the schema of %s: %w", name, err)
	}
	root.Properties["metadata"] = apiextensionsv1.JSONSchemaProps{Type: "object", Description: root.Properties["metadata"].Description}
	root.Required = slices.DeleteFunc(slices.Clone(root.Required), func(name string) bool { return name == "metadata" || name == "status" })
	return root, nil
}

// quantityPattern is what a quantity looks like: a number with or without a suffix for
// its scale.
const quantityPattern = `^[+-]?(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?(\d+(\.\d*)?|\.\d+))?$`

// base64Pattern is what bytes look like.
const base64Pattern = `^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$`

// writer writes models out. What is written is shared between places, and not modified.
type writer struct {
	*modelBuilder
	done map[string]*apiextensionsv1.JSONSchemaProps
	open []string // the models being written
}

func (w *writer) write(name string, lenient bool) (*apiextensionsv1.JSONSchemaProps, error) {
	// Some types have no schema that fits JSON's types, and say so by a choice of types or
	// by none; the Go types themselves read and judge such values.
	switch model := w.models[name]; {
	case strings.HasSuffix(name, ".intstr.IntOrString"):
		return &apiextensionsv1.JSONSchemaProps{XIntOrString: true, Description: model.Description}, nil
	case strings.HasSuffix(name, ".resource.Quantity"):
		// Numbers that are no integers have become strings by the time that this is asked.
		return &apiextensionsv1.JSONSchemaProps{XIntOrString: true, Pattern: quantityPattern, Description: model.Description}, nil
	case len(model.Type) == 0, len(model.OneOf) > 0:
		return anything(model, ""), nil
	case len(model.Properties) == 0 && model.Type.Contains("object"), slices.Contains(w.open, name):
		return anything(model, "object"), nil
	}
	key := fmt.Sprint(name, lenient)
	if s := w.done[key]; s != nil {
		return s, nil
	}
	w.open = append(w.open, name)
	s, err := w.writeSchema(w.models[name], name, lenient)
	if err != nil {
		return nil, err
	}
	w.open = w.open[:len(w.open)-1]
	w.done[key] = s
	return s, nil
}

func anything(model *spec.Schema, kind string) *apiextensionsv1.JSONSchemaProps {
	keep := true
	return &apiextensionsv1.JSONSchemaProps{Type: kind, Description: model.Description, XPreserveUnknownFields: &keep}
}

// writeSchema writes a model or, with no name, what is part of one.
func (w *writer) writeSchema(s *spec.Schema, model string, lenient bool) (*apiextensionsv1.JSONSchemaProps, error) {
	if ref := s.Ref.String(); ref != "" {
		target, err := w.write(strings.TrimPrefix(ref, refPrefix), lenient)
		if err != nil || s.Description == "" {
			return target, err
		}
		described := *target
		described.Description = s.Description
		return &described, nil
	}
	out := &apiextensionsv1.JSONSchemaProps{Description: s.Description, Format: s.Format}
	if len(s.Type) > 0 {
		out.Type = s.Type[0]
	}
	if out.Format == "byte" {
		// The format would refuse to have no bytes.
		out.Format, out.Pattern = "", base64Pattern
	}
	if s.Items != nil {
		items, err := w.writeSchema(s.Items.Schema, "", lenient)
		if err != nil {
			return nil, err
		}
		out.Items = &apiextensionsv1.JSONSchemaPropsOrArray{Schema: items}
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.Schema != nil {
		values, err := w.writeSchema(s.AdditionalProperties.Schema, "", lenient)
		if err != nil {
			return nil, err
		}
		nullable := *values
		nullable.Nullable = true // a key with nothing is a key: its Go value is the zero value
		out.AdditionalProperties = &apiextensionsv1.JSONSchemaPropsOrBool{Allows: true, Schema: &nullable}
	}
	if !lenient {
		out.Required = s.Required
	}
	for name := range s.Properties {
		p := s.Properties[name]
		member, err := w.writeSchema(&p, "", lenient || len(w.open) == 1 && name == "status")
		if err != nil {
			return nil, err
		}
		if member, err = w.withDefault(member, model, name); err != nil {
			return nil, err
		}
		if out.Properties == nil {
			out.Properties = make(map[string]apiextensionsv1.JSONSchemaProps, len(s.Properties))
		}
		out.Properties[name] = *member
	}
	return out, nil
}

// withDefault adds a field's default, or that it may be null. A null where there is a
// default stands for the default.
func (w *writer) withDefault(member *apiextensionsv1.JSONSchemaProps, model, name string) (*apiextensionsv1.JSONSchemaProps, error) {
	facts := w.facts[model].fields[name]
	value := facts.fill
	if value == nil {
		value = facts.value
	}
	out := *member
	if value == nil {
		out.Nullable = w.nulls[model][name]
		return &out, nil
	}
	raw, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("default of %s: %w", name, err)
	}
	out.Default = &apiextensionsv1.JSON{Raw: raw}
	return &out, nil
}
