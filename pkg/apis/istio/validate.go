package istio

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/hashicorp/go-multierror"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"istio.io/istio/pkg/config"
	"istio.io/istio/pkg/config/schema/resource"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// validate asks Istio about an object, as the webhook of istiod does.
func (r *Resource) validate(_ context.Context, obj, _ *object.Object) ([]string, field.ErrorList) {
	spec, err := r.Message(obj)
	if err != nil {
		return nil, field.ErrorList{invalid(err)}
	}
	warning, err := r.Schema.ValidateConfig(config.Config{Meta: meta(r.Schema, obj), Spec: spec})
	var warnings []string
	for _, w := range split(warning) {
		warnings = append(warnings, w.Error())
	}
	var errs field.ErrorList
	for _, e := range split(err) {
		errs = append(errs, invalid(e))
	}
	return warnings, errs
}

func meta(s resource.Schema, o *object.Object) config.Meta {
	return config.Meta{
		GroupVersionKind:  s.GroupVersionKind(),
		Name:              o.Name,
		Namespace:         o.Namespace,
		Labels:            o.Labels,
		Annotations:       o.Annotations,
		ResourceVersion:   o.ResourceVersion,
		CreationTimestamp: o.CreationTimestamp.Time,
	}
}

// invalid makes a field error of what Istio says, which names no field but in words.
func invalid(err error) *field.Error {
	return field.Invalid(field.NewPath("spec"), field.OmitValueType{}, strings.TrimSpace(err.Error()))
}

// split takes Istio's collected errors apart, without repetitions.
func split(err error) []error {
	if err == nil {
		return nil
	}
	var many *multierror.Error
	if !errors.As(err, &many) {
		return []error{err}
	}
	var errs []error
	for _, e := range many.Errors {
		if !slices.ContainsFunc(errs, func(seen error) bool { return seen.Error() == e.Error() }) {
			errs = append(errs, e)
		}
	}
	return errs
}
