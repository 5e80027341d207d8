// Package handlers serves the writes that are most of all writes: creations and
// server-side applies whose bodies are ordinary JSON. It reads a body once, where
// upstream's handlers read that of an apply three times, and needs no goroutine of its
// own. What is out of the ordinary, all that is wrong with a body included, it leaves
// to upstream's handlers, untouched.
package handlers

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/handlers"
	"k8s.io/apiserver/pkg/endpoints/handlers/fieldmanager"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/metrics"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/warning"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apiserver/codec"
)

// Config is what the handlers of an endpoint have in common.
type Config struct {
	Codec       *codec.Codec
	Admission   admission.Interface
	Authorizer  authorizer.UnconditionalAuthorizer
	Equivalents runtime.EquivalentResourceMapper
	// MaxBodyBytes is the largest body that is read.
	MaxBodyBytes int64
}

// Handlers serve writes to the resources that were added to them.
type Handlers struct {
	Config
	resources map[schema.GroupVersionResource]*resource
}

// resource is what can be written to.
type resource struct {
	*Config
	kind    *kind.Kind
	gvk     schema.GroupVersionKind
	gvr     schema.GroupVersionResource
	storage rest.Storage
	fields  *managedfields.FieldManager
}

// New makes handlers without resources.
func New(c Config) *Handlers {
	return &Handlers{Config: c, resources: map[schema.GroupVersionResource]*resource{}}
}

// Add adds a version of a resource, before the first request. Storage of something else
// than the codec's kinds is none of the handlers' business.
func (h *Handlers) Add(gvr schema.GroupVersionResource, storage rest.Storage) error {
	gvk := storage.New().GetObjectKind().GroupVersionKind()
	k, ok := h.Codec.Kind(gvk.GroupKind())
	if !ok {
		return nil
	}
	var reset map[fieldpath.APIVersion]fieldpath.Filter
	if s, ok := storage.(rest.ResetFieldsStrategy); ok {
		reset = fieldpath.NewExcludeFilterSetMap(s.GetResetFields())
	}
	hub := schema.GroupVersion{Group: gvk.Group, Version: runtime.APIVersionInternal}
	fields, err := managedfields.NewDefaultFieldManager(h.Codec, h.Codec, h.Codec, h.Codec, gvk, hub, "", reset)
	if err != nil {
		return fmt.Errorf("making the field manager of %s: %w", gvr, err)
	}
	h.resources[gvr] = &resource{Config: &h.Config, kind: k, gvk: gvk, gvr: gvr, storage: storage, fields: fields}
	return nil
}

// Or serves what the handlers take, and leaves the rest to next as it came.
func (h *Handlers) Or(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r, info := h.find(req)
		if r == nil {
			next.ServeHTTP(w, req)
			return
		}
		// One byte more than may be: upstream then refuses the body as too large.
		body, err := readBody(req, h.MaxBodyBytes+1)
		if err == nil && int64(len(body)) <= h.MaxBodyBytes && (info.Namespace != "" || !r.kind.Namespaced()) {
			b := base{resource: r, namespace: info.Namespace, body: body, admission: admission.WithAudit(h.Admission)}
			if !r.kind.Namespaced() {
				b.namespace = ""
			}
			var serve http.HandlerFunc
			switch req.Method {
			case http.MethodPatch:
				serve = b.readApply(req, info.Name)
			case http.MethodPost:
				serve = b.readCreate(req)
			}
			if serve != nil {
				b.record(req.Context(), req.Method)
				serve = b.traced(serve, req, info)
				metrics.InstrumentHandlerFunc(req.Method, info.APIGroup, info.APIVersion, info.Resource, "", metrics.CleanScope(info),
					metrics.APIServerComponent, false, "", serve)(w, req)
				return
			}
		}
		again := *req
		again.Body = replay{io.MultiReader(bytes.NewReader(body), failing{err}, req.Body), req.Body}
		next.ServeHTTP(w, &again)
	})
}

// find is the resource that a request writes to in one of the ways known here, or nil.
func (h *Handlers) find(req *http.Request) (*resource, *request.RequestInfo) {
	info, ok := request.RequestInfoFrom(req.Context())
	if !ok || !info.IsResourceRequest || info.Subresource != "" || req.Body == nil || strings.Contains(req.Header.Get("Accept"), "as=") {
		return nil, nil
	}
	contentType, _, err := mime.ParseMediaType(req.Header.Get("Content-Type"))
	switch {
	case err != nil:
		return nil, nil
	case req.Method == http.MethodPatch && info.Name != "" && contentType == string(types.ApplyYAMLPatchType):
	case req.Method == http.MethodPost && info.Name == "" && contentType == runtime.ContentTypeJSON:
	default:
		return nil, nil
	}
	return h.resources[schema.GroupVersionResource{Group: info.APIGroup, Version: info.APIVersion, Resource: info.Resource}], info
}

// readBody reads up to limit bytes. The length that a client states is no more than a
// hint, and is not believed beyond what most bodies need.
func readBody(req *http.Request, limit int64) ([]byte, error) {
	const most = 16 << 10
	var b bytes.Buffer
	b.Grow(int(min(max(req.ContentLength, 0), most)) + bytes.MinRead)
	_, err := b.ReadFrom(io.LimitReader(req.Body, limit))
	return b.Bytes(), err
}

// base is what creating and applying have in common. It is the admission.ObjectInterfaces
// of its request.
type base struct {
	*resource
	namespace, name string
	body            []byte
	user            user.Info
	dryRun          bool
	admission       admission.Interface
}

// mutate runs mutating admission over an object. Managed fields that come out of it
// broken are put back as they were, and owners that come out twice are once, both with
// a warning, as upstream has it.
func (b *base) mutate(ctx context.Context, obj *object.Object, a admission.Attributes) error {
	admit, ok := b.admission.(admission.MutationInterface)
	if !ok || !admit.Handles(a.GetOperation()) {
		return nil
	}
	before := obj.ManagedFields
	if err := admit.Admit(ctx, a, b); err != nil {
		return err
	}
	if twice := dropRepeatedOwners(obj); len(twice) > 0 {
		warning.AddWarning(ctx, "", fmt.Sprintf(handlers.DuplicateOwnerReferencesAfterMutatingAdmissionWarningFormat, strings.Join(twice, ", ")))
	}
	if sameEntries(before, obj.ManagedFields) {
		return nil
	}
	if err := managedfields.ValidateManagedFields(obj.ManagedFields); err != nil {
		obj.ManagedFields = before
		warning.AddWarning(ctx, "", fmt.Sprintf(fieldmanager.InvalidManagedFieldsAfterMutatingAdmissionWarningFormat, err))
	}
	return nil
}

// dropRepeatedOwners returns the UIDs of those that it drops.
func dropRepeatedOwners(obj *object.Object) []string {
	var kept []metav1.OwnerReference
	var dropped []string
	for _, owner := range obj.OwnerReferences {
		if slices.ContainsFunc(kept, func(k metav1.OwnerReference) bool { return apiequality.Semantic.DeepEqual(k, owner) }) {
			dropped = append(dropped, string(owner.UID))
			continue
		}
		kept = append(kept, owner)
	}
	if len(dropped) > 0 {
		obj.OwnerReferences = kept
	}
	return dropped
}

// sameEntries tells whether nobody has touched the entries since.
func sameEntries(a, b []metav1.ManagedFieldsEntry) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) && slices.EqualFunc(a, b, func(a, b metav1.ManagedFieldsEntry) bool { return a == b })
}

func (b *base) attributes(obj, old runtime.Object, operation admission.Operation, options runtime.Object) admission.Attributes {
	return admission.NewAttributesRecord(obj, old, b.gvk, b.namespace, b.name, b.gvr, "", operation, options, b.dryRun, b.user)
}

// answer writes what became of a request.
func (b *base) answer(w http.ResponseWriter, req *http.Request, code int, obj runtime.Object, err error) {
	if err != nil {
		responsewriters.ErrorNegotiated(err, b.Codec, b.gvk.GroupVersion(), w, req)
		return
	}
	responsewriters.WriteObjectNegotiated(b.Codec, negotiation.DefaultEndpointRestrictions, b.gvk.GroupVersion(), w, req, code, obj, false)
}

// acceptable says whether the client takes any form that there is, before anything is
// written. The error is the answer.
func (b *base) acceptable(req *http.Request) error {
	_, _, err := negotiation.NegotiateOutputMediaType(req, b.Codec, negotiation.DefaultEndpointRestrictions)
	return err
}

func (b *base) GetObjectCreater() runtime.ObjectCreater                       { return b.Codec }
func (b *base) GetObjectTyper() runtime.ObjectTyper                           { return b.Codec }
func (b *base) GetObjectDefaulter() runtime.ObjectDefaulter                   { return b.Codec }
func (b *base) GetObjectConvertor() runtime.ObjectConvertor                   { return b.Codec }
func (b *base) GetEquivalentResourceMapper() runtime.EquivalentResourceMapper { return b.Equivalents }

func createOptions(dryRun []string, fieldManager, fieldValidation string) *metav1.CreateOptions {
	out := &metav1.CreateOptions{DryRun: dryRun, FieldManager: fieldManager, FieldValidation: fieldValidation}
	out.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("CreateOptions"))
	return out
}

// replay reads what was read already, and closes what it was read from.
type replay struct {
	io.Reader
	io.Closer
}

// failing hands on the error that ended the first reading, if any.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return 0, io.EOF
}
