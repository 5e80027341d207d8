package handlers

import (
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	metainternalversionscheme "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/util/dryrun"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// create is the creation of an object.
type create struct {
	base
	storage rest.Creater
	object  *object.Object
	options *metav1.CreateOptions
}

// readCreate is the handler of a creation, or nil when it is not taken.
func (b base) readCreate(req *http.Request) http.HandlerFunc {
	c := &create{base: b, options: &metav1.CreateOptions{}}
	if err := metainternalversionscheme.ParameterCodec.DecodeParameters(req.URL.Query(), metav1.SchemeGroupVersion, c.options); err != nil {
		return nil
	}
	if len(metav1validation.ValidateCreateOptions(c.options)) > 0 {
		return nil
	}
	c.options.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("CreateOptions"))
	var ok bool
	if c.storage, ok = b.resource.storage.(rest.Creater); !ok {
		return nil
	}
	// Read strictly, whatever is asked for: a body that has nothing to object to is
	// read in the same way by all.
	obj, faults, err := b.kind.Decode(b.gvk.Version, b.body, true)
	if err != nil || len(faults) > 0 || obj.GroupVersionKind() != b.gvk || obj.ManagedFields != nil || obj.OwnerReferences != nil {
		return nil
	}
	// A namespace's own name stands for the namespace of its creation.
	if obj.Namespace != "" && obj.Namespace != b.namespace || b.gvr.Group == "" && b.gvr.Resource == "namespaces" {
		return nil
	}
	c.object, c.name = obj, obj.Name
	return c.serve
}

func (c *create) serve(w http.ResponseWriter, req *http.Request) {
	ctx := request.WithNamespace(req.Context(), c.namespace)
	if err := c.acceptable(req); err != nil {
		c.answer(w, req, 0, nil, err)
		return
	}
	audit.LogRequestObject(ctx, c.object, c.gvk.GroupVersion(), c.gvr, "", c.Codec)
	c.user, _ = request.UserFrom(ctx)
	c.dryRun = dryrun.IsDryRun(c.options.DryRun)
	obj, err := c.managed(req)
	if err != nil {
		c.answer(w, req, 0, nil, err)
		return
	}
	attributes := c.attributes(obj, nil, admission.Create, c.options)
	if err := c.mutate(ctx, obj, attributes); err != nil {
		c.answer(w, req, 0, nil, err)
		return
	}
	result, err := c.storage.Create(ctx, obj, rest.AdmissionToValidateObjectFunc(c.admission, attributes, c), c.options)
	c.answer(w, req, http.StatusCreated, result, err)
}

// managed is the object with its fields' manager recorded.
func (c *create) managed(req *http.Request) (*object.Object, error) {
	rest.WipeObjectMetaSystemFields(c.object)
	if err := rest.EnsureObjectNamespaceMatchesRequestNamespace(rest.ExpectedNamespaceForResource(c.namespace, c.gvr), c.object); err != nil {
		return nil, err
	}
	manager := c.options.FieldManager
	if manager == "" {
		manager = managerOf(req.UserAgent())
	}
	if c.kind.RecordCreation(c.object, manager, time.Now()) {
		return c.object, nil
	}
	empty, err := c.Codec.New(c.gvk)
	if err != nil {
		return nil, err
	}
	return c.fields.UpdateNoErrors(empty, c.object, manager).(*object.Object), nil
}

// managerOf is the field manager that a user agent stands for: its first product, as
// far as that can be printed and is not too long.
func managerOf(userAgent string) string {
	product, _, _ := strings.Cut(userAgent, "/")
	var b strings.Builder
	for _, r := range product {
		if !unicode.IsPrint(r) {
			continue
		}
		if b.Len()+utf8.RuneLen(r) > metav1validation.FieldManagerMaxLength {
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}
