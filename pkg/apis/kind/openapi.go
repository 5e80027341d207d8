package kind

import (
	"encoding/json"
	"fmt"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/controller/openapi/builder"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

const (
	// A builder meant for custom resources puts the core group, whose name is
	// empty, where nobody looks for it.
	builtCorePath  = "/apis//"
	servedCorePath = "/api/"
	builtCoreName  = "/.v1."
	servedCoreName = "/io.k8s.api.core.v1."
)

// OpenAPIV3 describes a version in the way of kube-apiserver, from the whole
// definition. It is expensive; the caller keeps the result.
func (k *Kind) OpenAPIV3(version string) (*spec3.OpenAPI, error) {
	crd, err := k.namedCRD()
	if err != nil {
		return nil, err
	}
	doc, err := builder.BuildOpenAPIV3(crd, version, builder.Options{IncludeSelectableFields: true})
	if err != nil {
		return nil, fmt.Errorf("describing %s: %w", k, err)
	}
	if k.Hooks.Models != nil {
		if err := k.modelsV3(doc, version); err != nil {
			return nil, err
		}
	}
	if k.Group() != "" {
		return doc, nil
	}
	core := &spec3.OpenAPI{}
	if err := moveToCore(doc, core); err != nil {
		return nil, err
	}
	for name, s := range core.Components.Schemas {
		if served, ok := coreName(name); ok {
			delete(core.Components.Schemas, name)
			core.Components.Schemas[served] = s
		}
	}
	paths := map[string]*spec3.Path{}
	for path, p := range core.Paths.Paths {
		paths[corePath(path)] = p
	}
	core.Paths.Paths = paths
	return core, nil
}

// OpenAPIV2 is the same for clients that know only the older format.
func (k *Kind) OpenAPIV2(version string) (*spec.Swagger, error) {
	crd, err := k.namedCRD()
	if err != nil {
		return nil, err
	}
	doc, err := builder.BuildOpenAPIV2(crd, version, builder.Options{V2: true, IncludeSelectableFields: true})
	if err != nil {
		return nil, fmt.Errorf("describing %s: %w", k, err)
	}
	if k.Hooks.Models != nil {
		if doc, err = k.modelsV2(doc, version); err != nil {
			return nil, err
		}
	}
	if k.Group() != "" {
		return doc, nil
	}
	core := &spec.Swagger{}
	if err := moveToCore(doc, core); err != nil {
		return nil, err
	}
	for name, s := range core.Definitions {
		if served, ok := coreName(name); ok {
			delete(core.Definitions, name)
			core.Definitions[served] = s
		}
	}
	paths := map[string]spec.PathItem{}
	for path, p := range core.Paths.Paths {
		paths[corePath(path)] = p
	}
	core.Paths.Paths = paths
	return core, nil
}

// namedCRD is the definition with the names that New filled in.
func (k *Kind) namedCRD() (*apiextensionsv1.CustomResourceDefinition, error) {
	if k.Hooks.Models != nil {
		return k.stubCRD(), nil
	}
	crd, err := k.CRD()
	if err != nil {
		return nil, err
	}
	named := *crd
	named.Spec.Names = k.names
	return &named, nil
}

// moveToCore copies a document, its references following the rename of its schemas.
func moveToCore(from, to any) error {
	data, err := json.Marshal(from)
	if err != nil {
		return err
	}
	for _, prefix := range []string{`"#/components/schemas`, `"#/definitions`} {
		data = []byte(strings.ReplaceAll(string(data), prefix+builtCoreName, prefix+servedCoreName))
	}
	return json.Unmarshal(data, to)
}

func coreName(name string) (string, bool) {
	rest, ok := strings.CutPrefix("/"+name, builtCoreName)
	return servedCoreName[1:] + rest, ok
}

func corePath(path string) string {
	if rest, ok := strings.CutPrefix(path, builtCorePath); ok {
		return servedCorePath + rest
	}
	return path
}
