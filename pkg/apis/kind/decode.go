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
	tree := map[string]any{}
	if strict {
		strictErrs, err = kjson.UnmarshalStrict(data, &tree)
	} else {
		err = kjson.UnmarshalCaseSensitivePreserveInts(data, &tree)
	}
	if err != nil {
		return nil, nil, err
	}
	obj, unknown, err := k.finish(f, version, tree, strict, data)
	if err != nil {
		return nil, nil, err
	}
	for _, path := range unknown {
		strictErrs = append(strictErrs, errors.New(`unknown field "`+path+`"`)) // not escaped, as upstream has it
	}
	return obj, strictErrs, nil
}

// FromTree makes an object of a whole tree, as a patch leaves it behind, in the
// way of Decode. It takes the tree over.
func (k *Kind) FromTree(version string, tree map[string]any) (*object.Object, error) {
	f, err := k.form(version)
	if err != nil {
		return nil, err
	}
	obj, _, err := k.finish(f, version, tree, false, nil)
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
	if err != nil || f.root.settled(content, false) {
		return err
	}
	content = runtime.DeepCopyJSON(content)
	if _, err := f.settle(content, false); err != nil {
		return err
	}
	return obj.SetContent(content)
}

// finish completes a decoded tree, which it takes over. The body is for the words
// of an error only.
func (k *Kind) finish(f *form, version string, tree map[string]any, strict bool, body []byte) (*object.Object, []string, error) {
	obj := &object.Object{}
	if err := k.setType(obj, version, tree, body); err != nil {
		return nil, nil, err
	}
	unknown, err := setMetadata(obj, tree, strict)
	if err != nil {
		return nil, nil, err
	}
	delete(tree, "apiVersion")
	delete(tree, "kind")
	delete(tree, "metadata")
	if !f.root.settled(tree, false) {
		more, err := f.settle(tree, strict)
		if err != nil {
			return nil, nil, err
		}
		unknown = append(unknown, more...)
	}
	return obj, unknown, obj.SetContent(tree)
}

func (k *Kind) setType(obj *object.Object, version string, tree map[string]any, body []byte) error {
	for _, member := range []struct {
		name string
		dst  *string
	}{{"apiVersion", &obj.APIVersion}, {"kind", &obj.Kind}} {
		v, ok := tree[member.name]
		if !ok || v == nil {
			continue
		}
		text, ok := v.(string)
		if !ok {
			return fmt.Errorf("couldn't get version/kind; json parse error: %s must be a string, not %T", member.name, v)
		}
		*member.dst = text
	}
	if k.Hooks.Builtin {
		if obj.Kind == "" {
			obj.Kind = k.names.Kind
		}
		if obj.APIVersion == "" {
			obj.APIVersion = k.GVK(version).GroupVersion().String()
		}
	}
	if obj.Kind == "" {
		return runtime.NewMissingKindErr(string(body))
	}
	return nil
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

// setMetadata decodes metadata, taking a short way for what most bodies hold.
func setMetadata(obj *object.Object, tree map[string]any, strict bool) ([]string, error) {
	members, ok := tree["metadata"].(map[string]any)
	if ok && setPlainMetadata(&obj.ObjectMeta, members) {
		return nil, nil
	}
	meta, found, unknown, err := objectmeta.GetObjectMetaWithOptions(tree, objectmeta.ObjectMetaOptions{ReturnUnknownFieldPaths: strict})
	if err != nil {
		return nil, err
	}
	if found {
		obj.ObjectMeta = *meta
	} else {
		obj.ObjectMeta = metav1.ObjectMeta{}
	}
	return unknown, nil
}

// setPlainMetadata sets what a client usually sends, and reports whether that was
// all there is.
func setPlainMetadata(meta *metav1.ObjectMeta, members map[string]any) bool {
	for name, v := range members {
		ok := true
		switch name {
		case "name":
			meta.Name, ok = v.(string)
		case "namespace":
			meta.Namespace, ok = v.(string)
		case "generateName":
			meta.GenerateName, ok = v.(string)
		case "resourceVersion":
			meta.ResourceVersion, ok = v.(string)
		case "labels":
			meta.Labels, ok = stringMap(v)
		case "annotations":
			meta.Annotations, ok = stringMap(v)
		case "creationTimestamp":
			ok = v == nil
		default:
			ok = false
		}
		if !ok {
			return false
		}
	}
	return true
}

func stringMap(v any) (map[string]string, bool) {
	members, ok := v.(map[string]any)
	if !ok {
		return nil, false
	}
	m := make(map[string]string, len(members))
	for key, member := range members {
		if m[key], ok = member.(string); !ok {
			return nil, false
		}
	}
	return m, true
}
