package vmesh

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"istio.io/istio/pkg/config/schema/collections"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/settings"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// distributed are the kinds that control planes receive.
var distributed = sync.OnceValue(func() []string {
	var names []string
	for _, s := range collections.Pilot.All() {
		names = append(names, s.Kind())
	}
	slices.Sort(names)
	return names
})

// validateMesh checks who is to receive what, and when: a selector that nobody can read would
// be no filter, and no stage.
func validateMesh(_ context.Context, o, old *object.Object) (warnings []string, errs field.ErrorList) {
	var mesh v1alpha1.Mesh
	if err := o.Into(&mesh); err != nil {
		return nil, field.ErrorList{field.InternalError(field.NewPath("spec"), err)}
	}
	if spec := o.Field("spec"); old == nil || !bytes.Equal(spec, old.Field("spec")) {
		var before *v1alpha1.MeshSpec
		var was v1alpha1.Mesh
		if old != nil && old.Into(&was) == nil { // what cannot be read is no reason to refuse what replaces it
			before = &was.Spec
		}
		warnings, errs = settings.Validate(mesh.Name, &mesh.Spec, before)
	}
	more, wrong := validateMembers(mesh.Spec.Members)
	warnings, errs = append(warnings, more...), append(errs, wrong...)
	selector := func(s *metav1.LabelSelector, path *field.Path) {
		errs = append(errs, metav1validation.ValidateLabelSelector(s, metav1validation.LabelSelectorValidationOptions{}, path)...)
	}
	path := field.NewPath("spec", "filters")
	for i, f := range mesh.Spec.Filters {
		at := path.Index(i)
		selector(&f.ControlPlanes, at.Child("controlPlanes"))
		if f.VirtualClusters != nil {
			selector(f.VirtualClusters, at.Child("virtualClusters"))
		}
		for j, kind := range f.Kinds {
			if !slices.Contains(distributed(), kind) {
				errs = append(errs, field.NotSupported(at.Child("kinds").Index(j), kind, distributed()))
			}
		}
		if f.VirtualClusters == nil && len(f.Kinds) == 0 && len(f.Namespaces) == 0 {
			errs = append(errs, field.Required(at, "set virtualClusters, kinds or namespaces: a filter without them leaves nothing out"))
		}
	}
	if mesh.Spec.Rollout == nil {
		return warnings, errs
	}
	path = field.NewPath("spec", "rollout", "stages")
	for i, s := range mesh.Spec.Rollout.Stages {
		at := path.Index(i)
		selector(&s.ControlPlanes, at.Child("controlPlanes"))
		if s.Bake != nil && s.Bake.Duration < 0 {
			errs = append(errs, field.Invalid(at.Child("bake"), s.Bake.Duration.String(), "must not be negative: leave it out to have the next stage wait for a promotion"))
		}
		if s.Bake != nil && i == len(mesh.Spec.Rollout.Stages)-1 {
			warnings = append(warnings, at.Child("bake").String()+" means nothing: no stage comes after the last")
		}
		everything := len(s.ControlPlanes.MatchLabels) == 0 && len(s.ControlPlanes.MatchExpressions) == 0
		if everything && i < len(mesh.Spec.Rollout.Stages)-1 {
			warnings = append(warnings, at.Child("controlPlanes").String()+" selects every control plane: none is left for the stages after it")
		}
	}
	return warnings, errs
}
