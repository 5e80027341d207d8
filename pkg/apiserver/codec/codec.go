// Package codec puts the one object type onto the wire and takes it off again: it
// gives the generic API machinery the serializers, typer, creater and convertor
// that it otherwise takes from a scheme of Go types.
package codec

import (
	"encoding/json"
	"fmt"
	"io"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor"
	genericfeatures "k8s.io/apiserver/pkg/features"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// Codec serializes objects of a set of kinds. It is safe for concurrent use.
type Codec struct {
	byGroupKind map[schema.GroupKind]*kind.Kind
	typed       map[schema.GroupResource]bool
	// blank are new objects of the kinds with Go types, whose required members are there
	// from the beginning: nobody becomes their field manager by writing something in them.
	blank  map[schema.GroupKind]*object.Object
	scheme *runtime.Scheme // what is not an object: statuses, tables, options
	base   serializer.CodecFactory
	infos  []runtime.SerializerInfo
}

var _ runtime.NegotiatedSerializer = (*Codec)(nil)

// New makes a codec for the kinds.
func New(kinds []*kind.Kind) (*Codec, error) {
	c := &Codec{
		byGroupKind: map[schema.GroupKind]*kind.Kind{}, typed: map[schema.GroupResource]bool{}, blank: map[schema.GroupKind]*object.Object{},
		scheme: runtime.NewScheme(),
	}
	for _, k := range kinds {
		c.byGroupKind[k.GroupKind()] = k
		c.typed[k.GroupResource()] = clientscheme.Scheme.Recognizes(k.GVK(k.StorageVersion()))
		if k.Hooks.NewTyped != nil {
			blank, err := object.From(k.Hooks.NewTyped(), k.GVK(k.StorageVersion()))
			if err != nil {
				return nil, fmt.Errorf("making a new %s: %w", k.GroupKind(), err)
			}
			c.blank[k.GroupKind()] = blank
		}
		for _, version := range k.Versions() {
			metav1.AddToGroupVersion(c.scheme, schema.GroupVersion{Group: k.Group(), Version: version})
		}
	}
	// What a subresource is asked with need not be a kind: serviceaccounts/token.
	if err := AddTyped(c.scheme, authenticationv1.SchemeGroupVersion, authenticationv1.AddToScheme); err != nil {
		return nil, err
	}
	metav1.AddToGroupVersion(c.scheme, schema.GroupVersion{Version: "v1"})
	c.scheme.AddUnversionedTypes(schema.GroupVersion{Version: "v1"},
		&metav1.Status{}, &metav1.APIVersions{}, &metav1.APIGroupList{}, &metav1.APIGroup{}, &metav1.APIResourceList{})

	var options []serializer.CodecFactoryOptionsMutator
	if utilfeature.DefaultFeatureGate.Enabled(genericfeatures.CBORServingAndStorage) {
		options = append(options, serializer.WithSerializer(cbor.NewSerializerInfo))
	}
	c.base = serializer.NewCodecFactory(c.scheme, options...)
	for _, info := range c.base.SupportedMediaTypes() {
		format, ok := formats[info.MediaType]
		if !ok {
			continue
		}
		info.Serializer = &wire{Serializer: info.Serializer, codec: c, format: format}
		if info.StrictSerializer != nil {
			info.StrictSerializer = &wire{Serializer: info.StrictSerializer, codec: c, format: format, strict: true}
		}
		if info.PrettySerializer != nil {
			info.PrettySerializer = &wire{Serializer: info.PrettySerializer, codec: c, format: format, pretty: true}
		}
		if info.StreamSerializer != nil {
			stream := *info.StreamSerializer
			stream.Serializer = &wire{Serializer: stream.Serializer, codec: c, format: format}
			info.StreamSerializer = &stream
		}
		c.infos = append(c.infos, info)
	}
	return c, nil
}

// AddTyped adds a group version of Go types that are answered and never stored. The API
// machinery decodes into an internal version; these types are their own.
func AddTyped(scheme *runtime.Scheme, gv schema.GroupVersion, add func(*runtime.Scheme) error) error {
	if err := add(scheme); err != nil {
		return fmt.Errorf("adding the types of %s: %w", gv, err)
	}
	internal := schema.GroupVersion{Group: gv.Group, Version: runtime.APIVersionInternal}
	for name := range scheme.KnownTypes(gv) {
		sample, err := scheme.New(gv.WithKind(name))
		if err != nil {
			return fmt.Errorf("adding the types of %s: %w", gv, err)
		}
		if _, isObject := sample.(metav1.ObjectMetaAccessor); isObject {
			scheme.AddKnownTypeWithName(internal.WithKind(name), sample)
		}
	}
	return nil
}

// Kind finds a kind.
func (c *Codec) Kind(gk schema.GroupKind) (*kind.Kind, bool) {
	k, ok := c.byGroupKind[gk]
	return k, ok
}

// Typed says whether a resource's kind has a Go type of Kubernetes' own, and with it a
// protobuf form. What is not a kind of the codec's is not held to its rules: it has one.
func (c *Codec) Typed(gr schema.GroupResource) bool {
	typed, known := c.typed[gr]
	return typed || !known
}

// Deprecations are the warnings for users of deprecated versions.
func (c *Codec) Deprecations() map[schema.GroupVersionResource]string {
	warnings := map[schema.GroupVersionResource]string{}
	for _, k := range c.byGroupKind {
		for _, version := range k.Versions() {
			if text := k.Deprecation(version); text != "" {
				warnings[k.GVR(version)] = text
			}
		}
	}
	return warnings
}

// Scheme knows the types that are not objects: statuses, tables, options.
func (c *Codec) Scheme() *runtime.Scheme { return c.scheme }

// SupportedMediaTypes implements runtime.NegotiatedSerializer.
func (c *Codec) SupportedMediaTypes() []runtime.SerializerInfo { return c.infos }

// EncoderForVersion implements runtime.NegotiatedSerializer.
func (c *Codec) EncoderForVersion(e runtime.Encoder, gv runtime.GroupVersioner) runtime.Encoder {
	w, ok := e.(*wire)
	if !ok {
		return c.base.EncoderForVersion(e, gv)
	}
	enc := &encoder{wire: w, base: c.base.EncoderForVersion(w.Serializer, gv)}
	if exact, ok := gv.(schema.GroupVersion); ok && exact.Version != runtime.APIVersionInternal {
		enc.apiVersion = exact.String()
	}
	enc.identifier = runtime.Identifier(fmt.Sprintf("vmesh:%s:%t:%s", w.format, w.pretty, enc.base.Identifier()))
	return enc
}

// DecoderToVersion implements runtime.NegotiatedSerializer.
func (c *Codec) DecoderToVersion(d runtime.Decoder, gv runtime.GroupVersioner) runtime.Decoder {
	w, ok := d.(*wire)
	if !ok {
		return c.base.DecoderToVersion(d, gv)
	}
	return &decoder{wire: w, base: c.base.DecoderToVersion(w.Serializer, gv)}
}

type format string

const (
	formatJSON     format = "json"
	formatYAML     format = "yaml"
	formatCBOR     format = "cbor"
	formatProtobuf format = "protobuf"
)

var formats = map[string]format{
	runtime.ContentTypeJSON:     formatJSON,
	runtime.ContentTypeYAML:     formatYAML,
	runtime.ContentTypeCBOR:     formatCBOR,
	runtime.ContentTypeProtobuf: formatProtobuf,
}

// wire marks one of the base serializers, so that EncoderForVersion and
// DecoderToVersion know the format that was negotiated.
type wire struct {
	runtime.Serializer
	codec          *Codec
	format         format
	strict, pretty bool
}

type encoder struct {
	*wire
	base       runtime.Encoder
	apiVersion string // what objects are labelled with; empty for their own
	identifier runtime.Identifier
}

func (e *encoder) Identifier() runtime.Identifier { return e.identifier }

// Encode implements runtime.Encoder.
func (e *encoder) Encode(obj runtime.Object, w io.Writer) error {
	if shared, ok := obj.(runtime.CacheableObject); ok {
		return shared.CacheEncode(e.identifier, e.encode, w)
	}
	return e.encode(obj, w)
}

func (e *encoder) encode(obj runtime.Object, w io.Writer) error {
	switch obj := obj.(type) {
	case *object.Object:
		return e.write(w, obj, func(dst []byte) []byte {
			return obj.AppendJSON(dst, e.version(obj.APIVersion), obj.Kind)
		})
	case *object.List:
		if e.format == formatJSON && !e.pretty {
			return e.stream(w, obj)
		}
		return e.write(w, obj, func(dst []byte) []byte { return e.appendList(dst, obj) })
	}
	return e.base.Encode(obj, w)
}

func (e *encoder) version(own string) string {
	if e.apiVersion != "" {
		return e.apiVersion
	}
	return own
}

// write turns an object's JSON into the format at hand. Only JSON is on a hot path.
func (e *encoder) write(w io.Writer, obj runtime.Object, appendJSON func([]byte) []byte) error {
	buffer := getBuffer()
	defer putBuffer(buffer)
	*buffer = appendJSON((*buffer)[:0])
	switch e.format {
	case formatJSON:
		if e.pretty {
			return writeIndented(w, *buffer)
		}
		*buffer = append(*buffer, '\n')
		_, err := w.Write(*buffer)
		return err
	case formatYAML:
		data, err := yaml.JSONToYAML(*buffer)
		if err != nil {
			return fmt.Errorf("encoding as YAML: %w", err)
		}
		_, err = w.Write(data)
		return err
	case formatCBOR:
		content := map[string]any{}
		if err := json.Unmarshal(*buffer, &content); err != nil {
			return fmt.Errorf("encoding as CBOR: %w", err)
		}
		if _, ok := obj.(*object.List); ok {
			list := &unstructured.UnstructuredList{}
			if err := list.UnmarshalJSON(*buffer); err != nil {
				return fmt.Errorf("encoding as CBOR: %w", err)
			}
			return e.Serializer.Encode(list, w)
		}
		return e.Serializer.Encode(&unstructured.Unstructured{Object: content}, w)
	case formatProtobuf:
		return e.writeProtobuf(w, obj)
	}
	return fmt.Errorf("cannot encode objects as %s", e.format)
}

type decoder struct {
	*wire
	base runtime.Decoder
}

// Decode implements runtime.Decoder. Bodies of the codec's kinds are decoded by
// their kind; with into an Object it is filled and returned.
func (d *decoder) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	body, gvk, formErrs, err := d.toJSON(data, defaults)
	if err != nil {
		return nil, gvk, err
	}
	if body == nil {
		return d.base.Decode(data, defaults, into)
	}
	k, ok := d.codec.byGroupKind[gvk.GroupKind()]
	if !ok || !k.Serves(gvk.Version) {
		if _, wantsObject := into.(*object.Object); wantsObject || into == nil {
			return nil, gvk, runtime.NewNotRegisteredGVKErrForTarget("virtual cluster", *gvk, nil)
		}
		return d.base.Decode(data, defaults, into)
	}
	obj, strictErrs, err := k.Decode(gvk.Version, body, d.strict)
	if runtime.IsMissingKind(err) {
		return nil, nil, err
	}
	if err != nil {
		return nil, gvk, err
	}
	if obj.APIVersion == "" {
		// The defaults served to find the kind; that the body does not say it is for the caller to judge.
		gvk = &schema.GroupVersionKind{Kind: gvk.Kind}
	}
	strictErrs = append(formErrs, strictErrs...)
	if target, ok := into.(*object.Object); ok {
		*target = *obj
		obj = target
	}
	if len(strictErrs) > 0 {
		return obj, gvk, runtime.NewStrictDecodingError(strictErrs)
	}
	return obj, gvk, nil
}

// toJSON gives a body's JSON, what kind it is of, and what a strict reader of the
// format would not have; no JSON means that the body is for the base decoder.
func (d *decoder) toJSON(data []byte, defaults *schema.GroupVersionKind) (body []byte, gvk *schema.GroupVersionKind, strictErrs []error, err error) {
	switch d.format {
	case formatJSON:
		body = data
	case formatYAML:
		if body, err = yaml.YAMLToJSON(data); err != nil {
			return nil, nil, nil, err
		}
		if d.strict {
			if _, err := yaml.YAMLToJSONStrict(data); err != nil {
				strictErrs = append(strictErrs, err)
			}
		}
	case formatCBOR:
		tree := &unstructured.Unstructured{}
		_, gvk, err := d.Serializer.Decode(data, defaults, tree)
		if err != nil {
			return nil, gvk, nil, err
		}
		if body, err = tree.MarshalJSON(); err != nil {
			return nil, gvk, nil, err
		}
	case formatProtobuf:
		body, gvk, err = d.protobufToJSON(data, defaults)
		return body, gvk, nil, err
	}
	gvk, err = kindOf(body, defaults)
	return body, gvk, strictErrs, err
}

// kindOf reads apiVersion and kind; what is missing comes from the defaults.
func kindOf(body []byte, defaults *schema.GroupVersionKind) (*schema.GroupVersionKind, error) {
	var meta metav1.TypeMeta
	var ok bool
	if meta.APIVersion, meta.Kind, ok = object.TypeOf(body); ok {
		// The body is read in full, and judged, by its kind.
	} else if err := json.Unmarshal(body, &meta); err != nil {
		return nil, fmt.Errorf("couldn't get version/kind; json parse error: %w", err)
	}
	gv, err := schema.ParseGroupVersion(meta.APIVersion)
	if err != nil {
		return nil, err
	}
	gvk := gv.WithKind(meta.Kind)
	if defaults != nil {
		if gvk.Kind == "" {
			gvk.Kind = defaults.Kind
		}
		if gvk.Version == "" && gvk.Group == "" {
			gvk.Group, gvk.Version = defaults.Group, defaults.Version
		}
	}
	return &gvk, nil
}
