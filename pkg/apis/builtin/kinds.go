// Package builtin is the table of Kubernetes' own kinds: those that kubectl, Helm,
// client-go and istiod expect of any cluster. Their definitions come from their Go
// types, so that they need no code of their own to be stored, merged and described.
//
// Events of the groups "" and events.k8s.io are two kinds here, each with its own
// storage, where a cluster serves the same events by both. To show one as the other
// takes a conversion on every read and watch, for a group that only node components
// and their controllers write; kubectl, and client-go's recorder for lack of it, use
// the core group.
package builtin

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"reflect"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// Kinds are all kinds of the table, CustomResourceDefinition last. Schemas are made of
// the Go types when they are first needed. Registries take care of what goes beyond a
// row: the namespaces' finalize endpoint, the definitions' being read-only.
func Kinds() ([]*kind.Kind, error) {
	var kinds []*kind.Kind
	for _, r := range rows() {
		k, err := kind.New(r.definition(nil), r.hooks())
		if err != nil {
			return nil, fmt.Errorf("making %s: %w", r.plural, err)
		}
		kinds = append(kinds, k)
	}
	return kinds, nil
}

// row is one kind of the table.
type row struct {
	group, version, kind, plural string
	shortNames, categories       []string
	clusterScoped                bool
	status                       bool   // has the status subresource
	generations                  bool   // counts the changes of what is not its status
	deprecation                  string // what users of it are warned of
	selectable                   []string
	selectors                    map[string]func(content map[string]any) string
	columns                      []metav1.TableColumnDefinition

	typed typedRow
}

// typedRow is what a row does with values of its Go type.
type typedRow struct {
	goType       reflect.Type
	fill         func(obj *object.Object) error
	prepare      func(obj, old *object.Object) error
	validate     func(ctx context.Context, obj, old *object.Object) ([]string, field.ErrorList)
	print        func(o *object.Object) ([]any, error)
	validateName func(name string, prefix bool) []string
}

// pointerTo is a pointer to a Go type of the API.
type pointerTo[T any] interface {
	*T
	runtime.Object
}

// actions are what a row does to an object besides storing it. Each may be nil; old is
// nil on create.
type actions[P any] struct {
	// fill fills in what depends on the rest of the object.
	fill func(obj P)
	// complete fills in what depends on the object's past, or on its being written.
	complete func(obj, old P)
	// validate checks what the schema cannot say.
	validate func(obj, old P) field.ErrorList
	// warn is what who makes such an object should know.
	warn func(obj P) []string
	// cells are what kubectl shows, one for each column.
	cells func(obj P) []any
	// name checks a name, or with prefix set a generateName.
	name func(name string, prefix bool) []string
}

// decode reads an object into its Go type; no object gives nil.
func decode[T any, P pointerTo[T]](o *object.Object) (P, error) {
	if o == nil {
		return nil, nil
	}
	typed := P(new(T))
	return typed, o.Into(typed)
}

// encode gives an object the form that its Go type has as JSON.
func encode(typed runtime.Object, obj *object.Object) error {
	canonical, err := object.From(typed, obj.GroupVersionKind())
	if err != nil {
		return err
	}
	obj.Labels = canonical.Labels // of metadata, only labels are ever filled in
	obj.ShareBody(canonical)
	return nil
}

// typedAs binds actions to their Go type.
func typedAs[T any, P pointerTo[T]](a actions[P]) typedRow {
	r := typedRow{goType: reflect.TypeFor[T](), validateName: a.name}
	// Every body goes through the Go type, as in Kubernetes: that gives quantities, times
	// and empty members their one form.
	r.fill = func(obj *object.Object) error {
		typed, err := decode[T, P](obj)
		if err != nil {
			return nil //nolint:nilerr // validation reports it, with the name of the field where the schema knows it
		}
		if a.fill != nil {
			a.fill(typed)
		}
		return encode(typed, obj)
	}
	if a.complete != nil {
		r.prepare = func(obj, old *object.Object) error {
			typed, err := decode[T, P](obj)
			if err != nil {
				return nil //nolint:nilerr // as above
			}
			before, err := decode[T, P](old)
			if err != nil {
				before = nil // what is stored cannot be read: it has no past to go by
			}
			a.complete(typed, before)
			return encode(typed, obj)
		}
	}
	r.validate = func(_ context.Context, obj, old *object.Object) ([]string, field.ErrorList) {
		typed, err := decode[T, P](obj)
		if err != nil {
			return nil, field.ErrorList{field.Invalid(field.NewPath(""), obj.Kind, err.Error())}
		}
		var warnings []string
		if a.warn != nil && old == nil {
			warnings = a.warn(typed)
		}
		if a.validate == nil {
			return warnings, nil
		}
		before, err := decode[T, P](old)
		if err != nil {
			before = nil
		}
		return warnings, a.validate(typed, before)
	}
	if a.cells != nil {
		r.print = func(o *object.Object) ([]any, error) {
			typed, err := decode[T, P](o)
			if err != nil {
				return nil, err
			}
			return a.cells(typed), nil
		}
	}
	return r
}

func (r *row) hooks() kind.Hooks {
	return kind.Hooks{
		Builtin: true,
		Load: func() (*apiextensionsv1.CustomResourceDefinition, error) {
			s, err := schemaOf(r.typed.goType)
			if err != nil {
				return nil, err
			}
			return r.definition(s), nil
		},
		NewTyped:     func() runtime.Object { return reflect.New(r.typed.goType).Interface().(runtime.Object) },
		Default:      r.typed.fill,
		Prepare:      r.prepare(),
		Validate:     r.typed.validate,
		ValidateName: r.typed.validateName,
		Models:       func() (string, map[string]*spec.Schema) { return modelsOf(r.typed.goType) },
		Selectors:    r.selectors,
		Columns:      r.columns,
		Row:          r.typed.print,
	}
}

// prepare is the row's own preparation, and the count of generations where Kubernetes
// keeps one. The registry takes the status away from what has its own endpoint for it;
// then the empty status takes its place.
func (r *row) prepare() func(obj, old *object.Object) error {
	own := r.typed.prepare
	if own == nil && r.status {
		own = func(obj, _ *object.Object) error { return r.typed.fill(obj) }
	}
	if !r.generations {
		return own
	}
	return func(obj, old *object.Object) error {
		if own != nil {
			if err := own(obj, old); err != nil {
				return err
			}
		}
		switch {
		case old == nil:
			obj.Generation = 1
		case !sameBesidesStatus(obj, old):
			obj.Generation = old.Generation + 1
		}
		return nil
	}
}

func sameBesidesStatus(a, b *object.Object) bool {
	members := func(o *object.Object) map[string]any {
		content, err := o.Content()
		if err != nil {
			return nil
		}
		rest := maps.Clone(content)
		delete(rest, "status")
		return rest
	}
	return bytes.Equal(a.Body(), b.Body()) || apiequality.Semantic.DeepEqual(members(a), members(b))
}

// definition is the row as a definition, with the schema if it is given.
func (r *row) definition(s *apiextensionsv1.JSONSchemaProps) *apiextensionsv1.CustomResourceDefinition {
	version := apiextensionsv1.CustomResourceDefinitionVersion{Name: r.version, Served: true, Storage: true}
	for _, f := range r.selectable {
		version.SelectableFields = append(version.SelectableFields, apiextensionsv1.SelectableField{JSONPath: "." + f})
	}
	if r.deprecation != "" {
		version.Deprecated, version.DeprecationWarning = true, &r.deprecation
	}
	if r.status {
		version.Subresources = &apiextensionsv1.CustomResourceSubresources{Status: &apiextensionsv1.CustomResourceSubresourceStatus{}}
	}
	if s != nil {
		version.Schema = &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: s}
	}
	scope := apiextensionsv1.NamespaceScoped
	if r.clusterScoped {
		scope = apiextensionsv1.ClusterScoped
	}
	return &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: r.plural + "." + r.group},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: r.group, Scope: scope,
			Names: apiextensionsv1.CustomResourceDefinitionNames{
				Plural: r.plural, Kind: r.kind, ShortNames: r.shortNames, Categories: r.categories,
			},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{version},
		},
	}
}
