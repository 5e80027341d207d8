// Package kind gives a CustomResourceDefinition's semantics to the one Go type
// behind every kind: what a request body is decoded to, what is valid, how it is
// selected, printed, merged and described. Every row of the API table is a Kind.
package kind

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// Hooks are what a kind needs besides its definition. Each may be nil; each must
// be safe for concurrent use.
type Hooks struct {
	// Load returns the whole definition. With it, the definition given to New may
	// lack its schemas: they are loaded when they are needed and are not kept. What
	// it returns must not be modified by anyone.
	Load func() (*apiextensionsv1.CustomResourceDefinition, error)

	// NewTyped returns a new value of the kind's Go type, for protobuf bodies and
	// strategic merge patches.
	NewTyped func() runtime.Object

	// Default gives an object that was decoded or merged its canonical form, after the
	// defaults of the schema. What it sets belongs to whoever wrote the object.
	Default func(obj *object.Object) error

	// Prepare completes an object that is about to be written; old is nil on create.
	Prepare func(obj, old *object.Object) error

	// Validate checks what the schema cannot say; old is nil on create. It is asked
	// only about objects that fit the schema, and not about writes of the status.
	Validate func(ctx context.Context, obj, old *object.Object) (warnings []string, errs field.ErrorList)

	// ValidateName checks a name, or with prefix set a generateName. Without it a
	// name must be a DNS subdomain.
	ValidateName func(name string, prefix bool) []string

	// Rules keeps the compiled rules, for kinds whose definitions repeat each other's.
	// Without it the kind has a cache of its own.
	Rules *RuleCache

	// Origin is what the kind was made from, for the package that made it.
	Origin any

	// Builtin marks a kind of Kubernetes' own: a body may leave out its apiVersion and kind.
	Builtin bool

	// Models describes a kind that has a Go type: the OpenAPI models that the type is
	// made of, by name, and which of them is its own. They stand in for the definition's
	// schema in OpenAPI and in merges. Each call returns new ones.
	Models func() (name string, models map[string]*spec.Schema)

	// Confidential marks a kind whose content is secret: what is said about an object, in
	// errors that end in logs and audit events, does not quote it.
	Confidential bool

	// Selectors are field selectors besides those of the definition, by label.
	Selectors map[string]func(content map[string]any) string

	// Columns and Row print objects in place of the definition's columns. Row returns
	// one cell for each column.
	Columns []metav1.TableColumnDefinition
	Row     func(o *object.Object) ([]any, error)
}

// Kind is one row of the API table. All methods are safe for concurrent use.
type Kind struct {
	// Hooks are those given to New; they must not be changed.
	Hooks Hooks

	head      *apiextensionsv1.CustomResourceDefinition // may lack schemas
	names     apiextensionsv1.CustomResourceDefinitionNames
	versions  map[string]*versionInfo
	served    []string
	storage   string
	selectors []selector

	forms     lazy[map[string]*form] // by version; versions of equal schemas share one
	converter lazy[*typeConverter]
}

// versionInfo is what differs between the versions of a kind besides the schema.
type versionInfo struct {
	gvk        schema.GroupVersionKind
	served     bool
	hasStatus  bool
	selectable []string // field selectors besides the name and the namespace
	columns    columns
}

// New makes a kind of its definition. Schemas are compiled at first use, or by
// Warm, once, for all virtual clusters; versions whose schemas are equal share one
// compiled form. The definition must not be modified afterwards. It may leave out
// what only a definition in a real cluster needs: conditions, accepted names, a
// group with a dot.
func New(crd *apiextensionsv1.CustomResourceDefinition, hooks Hooks) (*Kind, error) {
	k := &Kind{Hooks: hooks, head: crd, names: crd.Spec.Names, versions: map[string]*versionInfo{}}
	if k.Hooks.Rules == nil {
		k.Hooks.Rules = NewRuleCache()
	}
	if k.names.Kind == "" || k.names.Plural == "" {
		return nil, fmt.Errorf("definition %q has no kind or plural name", crd.Name)
	}
	if k.names.Singular == "" {
		k.names.Singular = strings.ToLower(k.names.Kind)
	}
	if k.names.ListKind == "" {
		k.names.ListKind = k.names.Kind + "List"
	}
	for i := range crd.Spec.Versions {
		v := &crd.Spec.Versions[i]
		if !v.Served && !v.Storage {
			continue
		}
		info, err := k.newVersion(v)
		if err != nil {
			return nil, fmt.Errorf("%s, version %s: %w", crd.Name, v.Name, err)
		}
		k.versions[v.Name] = info
		if v.Served {
			k.served = append(k.served, v.Name)
		}
		if v.Storage {
			k.storage = v.Name
		}
	}
	if k.storage == "" {
		return nil, fmt.Errorf("definition %q has no storage version", crd.Name)
	}
	slices.SortStableFunc(k.served, func(a, b string) int { return version.CompareKubeAwareVersionStrings(b, a) })
	k.forms.make, k.converter.make = k.compile, k.newTypeConverter
	return k, nil
}

func (k *Kind) newVersion(v *apiextensionsv1.CustomResourceDefinitionVersion) (*versionInfo, error) {
	selectable, err := k.addSelectors(v.SelectableFields)
	if err != nil {
		return nil, err
	}
	columns, err := newColumns(v.AdditionalPrinterColumns)
	if err != nil {
		return nil, err
	}
	return &versionInfo{
		gvk:        schema.GroupVersionKind{Group: k.head.Spec.Group, Version: v.Name, Kind: k.names.Kind},
		served:     v.Served,
		hasStatus:  v.Subresources != nil && v.Subresources.Status != nil,
		selectable: selectable,
		columns:    columns,
	}, nil
}

// String names the kind for logs: its resource and group.
func (k *Kind) String() string { return k.GroupResource().String() }

// Group is the API group, empty for the core group.
func (k *Kind) Group() string { return k.head.Spec.Group }

// GroupKind is the kind with its group.
func (k *Kind) GroupKind() schema.GroupKind {
	return schema.GroupKind{Group: k.Group(), Kind: k.names.Kind}
}

// GroupResource is the resource with its group.
func (k *Kind) GroupResource() schema.GroupResource {
	return schema.GroupResource{Group: k.Group(), Resource: k.names.Plural}
}

// SingularResource is the singular resource name with its group.
func (k *Kind) SingularResource() schema.GroupResource {
	return schema.GroupResource{Group: k.Group(), Resource: k.names.Singular}
}

// Resource is the plural name used in URLs.
func (k *Kind) Resource() string { return k.names.Plural }

// Singular is the singular name.
func (k *Kind) Singular() string { return k.names.Singular }

// ListKind is the kind of lists.
func (k *Kind) ListKind() string { return k.names.ListKind }

// ShortNames are the names that kubectl accepts for the resource.
func (k *Kind) ShortNames() []string { return k.names.ShortNames }

// Categories are the groups of resources, such as "all", that hold this one.
func (k *Kind) Categories() []string { return k.names.Categories }

// Namespaced tells whether objects live in namespaces.
func (k *Kind) Namespaced() bool { return k.head.Spec.Scope == apiextensionsv1.NamespaceScoped }

// Versions are the served versions, the preferred one first.
func (k *Kind) Versions() []string { return k.served }

// Serves tells whether a version is served.
func (k *Kind) Serves(version string) bool {
	v := k.versions[version]
	return v != nil && v.served
}

// StorageVersion is the version that objects are stored in.
func (k *Kind) StorageVersion() string { return k.storage }

// GVK is the kind in a version.
func (k *Kind) GVK(version string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: k.Group(), Version: version, Kind: k.names.Kind}
}

// ListGVK is the list kind in a version.
func (k *Kind) ListGVK(version string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: k.Group(), Version: version, Kind: k.names.ListKind}
}

// GVR is the resource in a version.
func (k *Kind) GVR(version string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: k.Group(), Version: version, Resource: k.names.Plural}
}

// HasStatus tells whether a version has the status subresource.
func (k *Kind) HasStatus(version string) bool {
	v := k.versions[version]
	return v != nil && v.hasStatus
}

// Deprecation is the warning that users of a version are to get, or empty.
func (k *Kind) Deprecation(version string) string {
	for i := range k.head.Spec.Versions {
		v := &k.head.Spec.Versions[i]
		if v.Name != version || !v.Deprecated {
			continue
		}
		if v.DeprecationWarning != nil {
			return *v.DeprecationWarning
		}
		msg := fmt.Sprintf("%s/%s %s is deprecated", k.Group(), version, k.names.Kind)
		if newest := k.newestSupported(version); newest != "" {
			msg += fmt.Sprintf("; use %s/%s %s", k.Group(), newest, k.names.Kind)
		}
		return msg
	}
	return ""
}

func (k *Kind) newestSupported(than string) string {
	for _, name := range k.served {
		i := slices.IndexFunc(k.head.Spec.Versions, func(v apiextensionsv1.CustomResourceDefinitionVersion) bool { return v.Name == name })
		if !k.head.Spec.Versions[i].Deprecated && version.CompareKubeAwareVersionStrings(than, name) < 0 {
			return name
		}
	}
	return ""
}

// CRD is the whole definition, schemas included. It must not be modified. It may
// be expensive: see Hooks.Load.
func (k *Kind) CRD() (*apiextensionsv1.CustomResourceDefinition, error) {
	if k.Hooks.Load == nil {
		return k.head, nil
	}
	crd, err := k.Hooks.Load()
	if err != nil {
		return nil, fmt.Errorf("loading the definition of %s: %w", k, err)
	}
	return crd, nil
}

// Warm compiles now what writes need, so that no write has to wait for it.
func (k *Kind) Warm(ctx context.Context) error {
	var errs []error
	for name := range k.versions {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := k.form(name); err != nil {
			errs = append(errs, err)
		}
	}
	if _, err := k.converter.get(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
