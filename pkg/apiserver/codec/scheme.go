package codec

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// What follows stands where the API machinery expects a scheme. Objects say by
// themselves what they are; everything else is left to the scheme of options,
// statuses and tables.
var (
	_ runtime.ObjectTyper         = (*Codec)(nil)
	_ runtime.ObjectCreater       = (*Codec)(nil)
	_ runtime.ObjectConvertor     = (*Codec)(nil)
	_ runtime.ObjectDefaulter     = (*Codec)(nil)
	_ managedfields.TypeConverter = (*Codec)(nil)
)

// ObjectKinds implements runtime.ObjectTyper.
func (c *Codec) ObjectKinds(obj runtime.Object) ([]schema.GroupVersionKind, bool, error) {
	switch obj := obj.(type) {
	case *object.Object:
		return []schema.GroupVersionKind{obj.GroupVersionKind()}, false, nil
	case *object.List:
		return []schema.GroupVersionKind{obj.GroupVersionKind()}, false, nil
	case *unstructured.Unstructured:
		return []schema.GroupVersionKind{obj.GroupVersionKind()}, false, nil
	}
	return c.scheme.ObjectKinds(obj)
}

// Recognizes implements runtime.ObjectTyper.
func (c *Codec) Recognizes(gvk schema.GroupVersionKind) bool {
	if k, ok := c.byGroupKind[gvk.GroupKind()]; ok {
		return k.Serves(gvk.Version)
	}
	return c.scheme.Recognizes(gvk)
}

// New implements runtime.ObjectCreater.
func (c *Codec) New(gvk schema.GroupVersionKind) (runtime.Object, error) {
	if _, ok := c.byGroupKind[gvk.GroupKind()]; ok {
		o := object.New(gvk)
		if blank, ok := c.blank[gvk.GroupKind()]; ok {
			o.ShareBody(blank)
		}
		return o, nil
	}
	for _, k := range c.byGroupKind {
		if k.ListKind() == gvk.Kind && k.Group() == gvk.Group {
			return &object.List{TypeMeta: typeMeta(gvk)}, nil
		}
	}
	return c.scheme.New(gvk)
}

func typeMeta(gvk schema.GroupVersionKind) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind}
}

// Convert implements runtime.ObjectConvertor.
func (c *Codec) Convert(in, out, context any) error {
	from, ok := in.(*object.Object)
	to, ok2 := out.(*object.Object)
	if !ok || !ok2 {
		return c.scheme.Convert(in, out, context)
	}
	gvk := to.GroupVersionKind()
	*to = *from
	if gvk.Version != "" {
		to.SetGroupVersionKind(gvk)
	}
	return nil
}

// ConvertToVersion implements runtime.ObjectConvertor. All versions of a kind have
// one form and differ in their apiVersion alone, so the copy is shallow. A prototype
// becomes the Go type that strategic merge patches are read by.
func (c *Codec) ConvertToVersion(in runtime.Object, gv runtime.GroupVersioner) (runtime.Object, error) {
	exact, isVersion := gv.(schema.GroupVersion)
	switch in := in.(type) {
	case *object.Object:
		if in.IsPrototype() {
			if k, ok := c.byGroupKind[in.GroupVersionKind().GroupKind()]; ok && k.Hooks.NewTyped != nil {
				return k.Hooks.NewTyped(), nil
			}
		}
		if !isVersion || exact.Version == runtime.APIVersionInternal || exact.String() == in.APIVersion {
			return in, nil
		}
		out := *in
		out.APIVersion = exact.String()
		return &out, nil
	case *object.List:
		if !isVersion || exact.Version == runtime.APIVersionInternal {
			return in, nil
		}
		out := *in
		out.APIVersion = exact.String()
		return &out, nil
	case *unstructured.Unstructured:
		// A row of a table, which was made in the version that was asked for.
		return in, nil
	}
	return c.scheme.ConvertToVersion(in, gv)
}

// ConvertFieldLabel implements runtime.ObjectConvertor: it says which field
// selectors there are.
func (c *Codec) ConvertFieldLabel(gvk schema.GroupVersionKind, label, value string) (string, string, error) {
	switch label {
	case "metadata.name", "metadata.namespace":
		return label, value, nil
	}
	if k, ok := c.byGroupKind[gvk.GroupKind()]; ok && k.SelectableField(gvk.Version, label) {
		return label, value, nil
	}
	return "", "", fmt.Errorf("field label not supported: %s", label)
}

// Default implements runtime.ObjectDefaulter. Bodies are defaulted as they are
// decoded; what reaches this is the result of a server-side apply.
func (c *Codec) Default(obj runtime.Object) {
	o, ok := obj.(*object.Object)
	if !ok {
		c.scheme.Default(obj)
		return
	}
	gvk := o.GroupVersionKind()
	if k, ok := c.byGroupKind[gvk.GroupKind()]; ok {
		if err := k.Complete(gvk.Version, o); err != nil {
			// There is no way to refuse here; validation, which follows, reads the same body.
			utilruntime.HandleError(fmt.Errorf("defaulting %s %s: %w", gvk.Kind, o.Name, err))
		}
	}
}

// ObjectToTyped implements managedfields.TypeConverter.
func (c *Codec) ObjectToTyped(obj runtime.Object, options ...typed.ValidationOptions) (*typed.TypedValue, error) {
	converter, err := c.typeConverter(obj.GetObjectKind().GroupVersionKind())
	if err != nil {
		return nil, err
	}
	return converter.ObjectToTyped(obj, options...)
}

// TypedToObject implements managedfields.TypeConverter.
func (c *Codec) TypedToObject(value *typed.TypedValue) (runtime.Object, error) {
	tree, ok := value.AsValue().Unstructured().(map[string]any)
	if !ok {
		return nil, fmt.Errorf("merged object is a %T", value.AsValue().Unstructured())
	}
	gvk := (&unstructured.Unstructured{Object: tree}).GroupVersionKind()
	converter, err := c.typeConverter(gvk)
	if err != nil {
		return nil, err
	}
	return converter.TypedToObject(value)
}

func (c *Codec) typeConverter(gvk schema.GroupVersionKind) (managedfields.TypeConverter, error) {
	k, ok := c.byGroupKind[gvk.GroupKind()]
	switch {
	case ok:
		return k.TypeConverter()
	case c.scheme.Recognizes(gvk):
		return managedfields.NewDeducedTypeConverter(), nil // answered, and never stored
	}
	return nil, fmt.Errorf("no kind %s", gvk)
}

// VersionsForGroupKind implements endpoints.ConvertabilityChecker.
func (c *Codec) VersionsForGroupKind(gk schema.GroupKind) []schema.GroupVersion {
	k, ok := c.byGroupKind[gk]
	if !ok {
		return nil
	}
	var versions []schema.GroupVersion
	for _, v := range k.Versions() {
		versions = append(versions, schema.GroupVersion{Group: gk.Group, Version: v})
	}
	return versions
}
