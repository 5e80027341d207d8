package kind

import (
	"fmt"
	"strings"
	"sync"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
)

// form is a compiled schema. Upstream's structures in it say what is right and
// produce every error; the nodes only find out, cheaply, that there is nothing to do.
type form struct {
	structural *structuralschema.Structural
	root       *node
	rules      *rules // nil without rules
	transition bool   // some rule may look at the old object
	wholeRoot  bool   // something at the root looks at apiVersion, kind or metadata

	exact lazy[*exactValidators]
}

// lazy is a value that is made when it is first asked for, and again if that failed.
type lazy[T any] struct {
	make func() (T, error)

	mu    sync.Mutex
	made  bool
	value T
}

func (l *lazy[T]) get() (T, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.made {
		return l.value, nil
	}
	v, err := l.make()
	if err == nil {
		l.value, l.made = v, true
	}
	return v, err
}

// exactValidators are upstream's schema validators, built when the first invalid
// object turns up: they are large, and slow.
type exactValidators struct {
	object validation.SchemaValidator
	status validation.SchemaValidator // nil without a status schema
}

// form returns the compiled schema of a version.
func (k *Kind) form(version string) (*form, error) {
	forms, err := k.forms.get()
	if err != nil {
		return nil, fmt.Errorf("compiling the schema of %s: %w", k, err)
	}
	f := forms[version]
	if f == nil {
		return nil, fmt.Errorf("%s has no version %q", k, version)
	}
	return f, nil
}

func (k *Kind) compile() (map[string]*form, error) {
	crd, err := k.CRD()
	if err != nil {
		return nil, err
	}
	forms := map[string]*form{}
	for i := range crd.Spec.Versions {
		v := &crd.Spec.Versions[i]
		if !v.Served && !v.Storage {
			continue
		}
		for j := range crd.Spec.Versions[:i] {
			earlier := &crd.Spec.Versions[j]
			if f := forms[earlier.Name]; f != nil && sameSchema(v.Schema, earlier.Schema) {
				forms[v.Name] = f
				break
			}
		}
		if forms[v.Name] != nil {
			continue
		}
		f, err := compileSchema(v.Schema, k.Hooks.Rules)
		if err != nil {
			return nil, fmt.Errorf("version %s: %w", v.Name, err)
		}
		name := v.Name // v itself would keep the whole definition alive
		f.exact.make = func() (*exactValidators, error) { return k.newExactValidators(name) }
		forms[v.Name] = f
	}
	return forms, nil
}

func sameSchema(a, b *apiextensionsv1.CustomResourceValidation) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.OpenAPIV3Schema == b.OpenAPIV3Schema || apiequality.Semantic.DeepEqual(a.OpenAPIV3Schema, b.OpenAPIV3Schema)
}

// internalSchema is a copy of a schema as upstream's libraries take it.
func internalSchema(v *apiextensionsv1.CustomResourceValidation) (*apiextensions.JSONSchemaProps, error) {
	if v == nil {
		return nil, nil
	}
	internal := &apiextensions.CustomResourceValidation{}
	if err := apiextensionsv1.Convert_v1_CustomResourceValidation_To_apiextensions_CustomResourceValidation(v.DeepCopy(), internal, nil); err != nil {
		return nil, err
	}
	return internal.OpenAPIV3Schema, nil
}

func compileSchema(v *apiextensionsv1.CustomResourceValidation, cache *RuleCache) (*form, error) {
	internal, err := internalSchema(v)
	if err != nil {
		return nil, err
	}
	structural, err := structuralschema.NewStructural(internal)
	if err != nil {
		return nil, err
	}
	structural = structural.DeepCopy() // what NewStructural returns shares its defaults with its argument
	if err := defaulting.PruneDefaults(structural); err != nil {
		return nil, fmt.Errorf("pruning defaults: %w", err)
	}
	dropTexts(structural)
	_, openapi, err := validation.NewSchemaValidator(internal)
	if err != nil {
		return nil, err
	}
	f := &form{structural: structural}
	f.root = newNode(structural, openapi)
	f.transition = mentionsOldSelf(structural) || hasRulesInside(structural)
	f.wholeRoot = looksAtMetadata(structural)
	if f.rules, err = newRules(structural, cache); err != nil {
		return nil, err
	}
	return f, nil
}

func (k *Kind) newExactValidators(version string) (*exactValidators, error) {
	crd, err := k.CRD()
	if err != nil {
		return nil, err
	}
	for i := range crd.Spec.Versions {
		if crd.Spec.Versions[i].Name != version {
			continue
		}
		internal, err := internalSchema(crd.Spec.Versions[i].Schema)
		if err != nil {
			return nil, err
		}
		dropDescriptions(internal)
		e := &exactValidators{}
		if e.object, _, err = validation.NewSchemaValidator(internal); err != nil {
			return nil, err
		}
		if internal == nil {
			return e, nil
		}
		if status, ok := internal.Properties["status"]; ok {
			if e.status, _, err = validation.NewSchemaValidator(&status); err != nil {
				return nil, err
			}
		}
		return e, nil
	}
	return nil, fmt.Errorf("%s has no version %q", k, version)
}

// dropTexts frees what only people read: it is most of a schema.
func dropTexts(s *structuralschema.Structural) {
	if s == nil {
		return
	}
	s.Description, s.Title, s.ExternalDocs, s.Example = "", "", nil, structuralschema.JSON{}
	dropTexts(s.Items)
	if s.AdditionalProperties != nil {
		dropTexts(s.AdditionalProperties.Structural)
	}
	for name, p := range s.Properties {
		dropTexts(&p)
		s.Properties[name] = p
	}
}

func dropDescriptions(s *apiextensions.JSONSchemaProps) {
	if s == nil {
		return
	}
	s.Description = ""
	if s.Items != nil {
		dropDescriptions(s.Items.Schema)
	}
	if s.AdditionalProperties != nil {
		dropDescriptions(s.AdditionalProperties.Schema)
	}
	for name, p := range s.Properties {
		dropDescriptions(&p)
		s.Properties[name] = p
	}
}

// mentionsOldSelf is true for every schema whose rules refer to the old object,
// and may be true for others.
func mentionsOldSelf(s *structuralschema.Structural) bool {
	if s == nil {
		return false
	}
	for _, rule := range s.XValidations {
		if strings.Contains(rule.Rule, cel.OldScopedVarName) || strings.Contains(rule.MessageExpression, cel.OldScopedVarName) {
			return true
		}
	}
	if s.AdditionalProperties != nil && mentionsOldSelf(s.AdditionalProperties.Structural) {
		return true
	}
	for _, p := range s.Properties {
		if mentionsOldSelf(&p) {
			return true
		}
	}
	return mentionsOldSelf(s.Items)
}

// looksAtMetadata tells whether a check must see the object with its apiVersion,
// kind and metadata, which an Object keeps apart from its content.
func looksAtMetadata(s *structuralschema.Structural) bool {
	if s == nil {
		return false
	}
	if len(s.XValidations) > 0 || !isPlain(s, "object") {
		return true
	}
	for name, kind := range map[string]string{"apiVersion": "string", "kind": "string", "metadata": "object"} {
		if p, ok := s.Properties[name]; ok && (!isPlain(&p, kind) || len(p.Properties) > 0 || p.AdditionalProperties != nil || len(p.XValidations) > 0) {
			return true
		}
	}
	return false
}

// isPlain tells whether a schema asks for no more than a type, of its own value.
func isPlain(s *structuralschema.Structural, kind string) bool {
	if s.Type != kind && s.Type != "" {
		return false
	}
	v := s.ValueValidation
	return v == nil || len(v.AllOf) == 0 && len(v.AnyOf) == 0 && len(v.OneOf) == 0 && v.Not == nil && len(v.Enum) == 0 &&
		v.MinProperties == nil && v.MaxProperties == nil && v.MinLength == nil && v.MaxLength == nil && v.Pattern == "" && v.Format == ""
}
