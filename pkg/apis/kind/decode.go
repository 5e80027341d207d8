package kind

import (
	"errors"
	"fmt"

	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "sigs.k8s.io/json"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// Decode reads a body of this kind, as JSON, in a version. Unknown fields are
// pruned, nulls dropped, defaults filled in, metadata coerced, as for a custom
// resource. With strict set, duplicate and unknown fields are reported besides, in
// the order and words of kube-apiserver; they do not keep the object from being
// returned. The object has the apiVersion and kind of the body, which the caller
// compares with what it expects, and keeps its content tree until DropContent.
func (k *Kind) Decode(version string, data []byte, strict bool) (obj *object.Object, strictErrs []error, err error) {
	f, err := k.form(version)
	if err != nil {
		return nil, nil, err
	}
	if parsed, ok := f.parse(data); ok {
		obj, unknown, err := k.finish(f, version, parsed, strict, data)
		return obj, unknownFields(unknown), err
	}
	tree := map[string]any{}
	if strict {
		strictErrs, err = kjson.UnmarshalStrict(data, &tree)
	} else {
		err = kjson.UnmarshalCaseSensitivePreserveInts(data, &tree)
	}
	if err != nil {
		return nil, nil, err
	}
	parsed, unknown, err := takeApart(tree, strict)
	if err != nil {
		return nil, nil, err
	}
	obj, more, err := k.finish(f, version, parsed, strict, data)
	if err != nil {
		return nil, nil, err
	}
	strictErrs = append(strictErrs, unknownFields(unknown)...)
	return obj, append(strictErrs, unknownFields(more)...), nil
}

func unknownFields(paths []string) []error {
	var errs []error
	for _, path := range paths {
		errs = append(errs, errors.New(`unknown field "`+path+`"`)) // not escaped, as upstream has it
	}
	return errs
}

// FromTree makes an object of a whole tree, as a patch leaves it behind, in the
// way of Decode. It takes the tree over.
func (k *Kind) FromTree(version string, tree map[string]any) (*object.Object, error) {
	f, err := k.form(version)
	if err != nil {
		return nil, err
	}
	parsed, _, err := takeApart(tree, false)
	if err != nil {
		return nil, err
	}
	obj, _, err := k.finish(f, version, parsed, false, nil)
	return obj, err
}

// Complete does to an object made by a merge what Decode does to a body: it prunes,
// drops nulls and fills in defaults. The object must not be shared yet.
func (k *Kind) Complete(version string, obj *object.Object) error {
	f, err := k.form(version)
	if err != nil {
		return err
	}
	content, err := obj.Content()
	if err != nil {
		return err
	}
	if !f.root.settled(content, false) {
		content = runtime.DeepCopyJSON(content)
		if _, err := f.settle(content, false); err != nil {
			return err
		}
		if err := obj.SetContent(content); err != nil {
			return err
		}
	}
	return k.setDefaults(obj)
}

func (k *Kind) setDefaults(obj *object.Object) error {
	if k.Hooks.Default == nil {
		return nil
	}
	return k.Hooks.Default(obj)
}

// document is a body in its parts.
type document struct {
	apiVersion, kind string
	meta             metav1.ObjectMeta
	content          map[string]any // everything else
}

// takeApart takes a tree over and apart, and returns the unknown fields of metadata
// if asked to.
func takeApart(tree map[string]any, strict bool) (*document, []string, error) {
	d := &document{content: tree}
	for _, member := range []struct {
		name string
		dst  *string
	}{{"apiVersion", &d.apiVersion}, {"kind", &d.kind}} {
		v, ok := tree[member.name]
		if !ok || v == nil {
			continue
		}
		if *member.dst, ok = v.(string); !ok {
			return nil, nil, fmt.Errorf("couldn't get version/kind; json parse error: %s must be a string, not %T", member.name, v)
		}
	}
	meta, found, unknown, err := objectmeta.GetObjectMetaWithOptions(tree, objectmeta.ObjectMetaOptions{ReturnUnknownFieldPaths: strict})
	if err != nil {
		return nil, nil, err
	}
	if found {
		d.meta = *meta
	}
	delete(tree, "apiVersion")
	delete(tree, "kind")
	delete(tree, "metadata")
	return d, unknown, nil
}

// finish makes the object of a document, which it takes over, and returns the
// unknown fields if asked to. The body is for the words of an error only.
func (k *Kind) finish(f *form, version string, d *document, strict bool, body []byte) (obj *object.Object, unknown []string, err error) {
	obj = &object.Object{ObjectMeta: d.meta}
	obj.APIVersion, obj.Kind = d.apiVersion, d.kind
	if k.Hooks.Builtin {
		if obj.Kind == "" {
			obj.Kind = k.names.Kind
		}
		if obj.APIVersion == "" {
			obj.APIVersion = k.GVK(version).GroupVersion().String()
		}
	}
	if obj.Kind == "" {
		return nil, nil, runtime.NewMissingKindErr(string(body))
	}
	if !f.root.settled(d.content, false) {
		if unknown, err = f.settle(d.content, strict); err != nil {
			return nil, nil, err
		}
	}
	if err := obj.SetContent(d.content); err != nil {
		return nil, nil, err
	}
	return obj, unknown, k.setDefaults(obj)
}

// settle prunes, drops nulls, fills in defaults and coerces embedded objects, and
// returns the paths of unknown fields if asked to.
func (f *form) settle(content map[string]any, strict bool) ([]string, error) {
	unknown := pruning.PruneWithOptions(content, f.structural, true, structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: strict})
	defaulting.PruneNonNullableNullsWithoutDefaults(content, f.structural)
	fieldErr, embedded := objectmeta.CoerceWithOptions(nil, content, f.structural, false, objectmeta.CoerceOptions{ReturnUnknownFieldPaths: strict})
	if fieldErr != nil {
		return nil, fieldErr
	}
	defaulting.Default(content, f.structural)
	for _, name := range []string{"apiVersion", "kind", "metadata"} {
		delete(content, name) // defaults of these would not survive upstream either
	}
	return append(unknown, embedded...), nil
}
