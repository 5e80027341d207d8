package handlers

import (
	"context"
	"net/http"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversionscheme "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/util/dryrun"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// apply is a server-side apply.
type apply struct {
	base
	storage       rest.Updater
	configuration *kind.Configuration
	options       metav1.PatchOptions
}

// readApply is the handler of an apply, or nil when it is not taken.
func (b base) readApply(req *http.Request, name string) http.HandlerFunc {
	a := &apply{base: b}
	a.name = name
	if err := metainternalversionscheme.ParameterCodec.DecodeParameters(req.URL.Query(), metav1.SchemeGroupVersion, &a.options); err != nil {
		return nil
	}
	if len(metav1validation.ValidatePatchOptions(&a.options, types.ApplyYAMLPatchType)) > 0 {
		return nil
	}
	// Field validation of an apply is about repeated keys, and a configuration has none;
	// unknown fields are refused in any case.
	var ok bool
	if a.storage, ok = b.resource.storage.(rest.Updater); !ok {
		return nil
	}
	if a.configuration, ok = b.kind.ParseConfiguration(b.gvk.Version, b.body); !ok {
		return nil
	}
	if namespace := a.configuration.GetNamespace(); a.configuration.GetName() != name || namespace != "" && namespace != b.namespace {
		return nil
	}
	return a.serve
}

func (a *apply) serve(w http.ResponseWriter, req *http.Request) {
	ctx := request.WithNamespace(req.Context(), a.namespace)
	if err := a.acceptable(req); err != nil {
		a.answer(w, req, 0, nil, err)
		return
	}
	audit.LogRequestPatch(ctx, a.body)
	a.user, _ = request.UserFrom(ctx)
	a.dryRun = dryrun.IsDryRun(a.options.DryRun)

	create := createOptions(a.options.DryRun, a.options.FieldManager, a.options.FieldValidation)
	update := &metav1.UpdateOptions{DryRun: a.options.DryRun, FieldManager: a.options.FieldManager, FieldValidation: a.options.FieldValidation}
	update.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("UpdateOptions"))
	mutate := func(ctx context.Context, obj, old runtime.Object) (runtime.Object, error) {
		operation, options := admission.Update, runtime.Object(update)
		if old.(*object.Object).UID == "" {
			operation, options, old = admission.Create, create, nil
		}
		return obj, a.mutate(ctx, obj.(*object.Object), a.attributes(obj, old, operation, options))
	}
	result, created, err := a.storage.Update(ctx, a.name, rest.DefaultUpdatedObjectInfo(nil, a.merge, mutate),
		a.mayCreate(req, rest.AdmissionToValidateObjectFunc(a.admission, a.attributes(nil, nil, admission.Create, create), a)),
		rest.AdmissionToValidateObjectUpdateFunc(a.admission, a.attributes(nil, nil, admission.Update, update), a), true, update)
	code := http.StatusOK
	if created {
		code = http.StatusCreated
	}
	a.answer(w, req, code, result, err)
}

// merge merges the configuration into what is stored. It may be called several times.
func (a *apply) merge(_ context.Context, _, current runtime.Object) (runtime.Object, error) {
	live := current.(*object.Object)
	var merged *object.Object
	if live.UID == "" {
		first, ok, err := a.configuration.First(a.options.FieldManager, time.Now())
		if err != nil {
			return nil, err
		}
		if merged = first; !ok {
			empty, err := a.Codec.New(a.gvk)
			if err != nil {
				return nil, err
			}
			live = empty.(*object.Object)
		}
	}
	if merged == nil {
		result, err := a.fields.Apply(live, a.configuration, a.options.FieldManager, a.options.Force != nil && *a.options.Force)
		if err != nil {
			return nil, err
		}
		merged = result.(*object.Object)
	}
	return merged, rest.EnsureObjectNamespaceMatchesRequestNamespace(rest.ExpectedNamespaceForResource(a.namespace, a.gvr), merged)
}

// mayCreate asks, where the apply comes to create, whether the user may.
func (a *apply) mayCreate(req *http.Request, validate rest.ValidateObjectFunc) rest.ValidateObjectFunc {
	decide := sync.OnceValue(func() error {
		question := authorizer.AttributesRecord{
			User: a.user, ResourceRequest: true, Path: req.URL.Path, Verb: "create",
			APIGroup: a.gvr.Group, APIVersion: a.gvr.Version, Resource: a.gvr.Resource, Namespace: a.namespace, Name: a.name,
		}
		decision, reason, err := a.Authorizer.Authorize(req.Context(), question)
		switch {
		case decision == authorizer.DecisionAllow:
			return nil
		case err != nil:
			return apierrors.NewInternalError(err)
		}
		return responsewriters.ForbiddenStatusError(question, reason)
	})
	return func(ctx context.Context, obj runtime.Object) error {
		if err := decide(); err != nil {
			return err
		}
		return validate(ctx, obj)
	}
}
