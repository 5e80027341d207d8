package builtin

import (
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Deployments are there for tools that ask every cluster for them, such as istioctl
// analyze, which waits until it gets their list. Nothing runs them.

// fillDeployment fills in what follows from a deployment's strategy and its pods.
func fillDeployment(o *appsv1.Deployment) {
	fillPodSpec(&o.Spec.Template.Spec)
	s := &o.Spec.Strategy
	if s.Type == "" {
		s.Type = appsv1.RollingUpdateDeploymentStrategyType
	}
	if s.Type != appsv1.RollingUpdateDeploymentStrategyType {
		return
	}
	if s.RollingUpdate == nil {
		s.RollingUpdate = &appsv1.RollingUpdateDeployment{}
	}
	quarter := intstr.FromString("25%")
	if s.RollingUpdate.MaxUnavailable == nil {
		s.RollingUpdate.MaxUnavailable = &quarter
	}
	if s.RollingUpdate.MaxSurge == nil {
		s.RollingUpdate.MaxSurge = &quarter
	}
}

func validateDeployment(o, old *appsv1.Deployment) field.ErrorList {
	spec := field.NewPath("spec")
	errs := apivalidation.ValidateNonnegativeField(int64(orZero(o.Spec.Replicas)), spec.Child("replicas"))
	if o.Spec.Selector == nil {
		errs = append(errs, field.Required(spec.Child("selector"), ""))
	} else {
		errs = append(errs, validateDeploymentSelector(o)...)
	}
	errs = append(errs, validatePodSpec(&o.Spec.Template.Spec, spec.Child("template", "spec"))...)
	if restart := o.Spec.Template.Spec.RestartPolicy; restart != "" && restart != corev1.RestartPolicyAlways {
		errs = append(errs, field.NotSupported(spec.Child("template", "spec", "restartPolicy"), restart, []corev1.RestartPolicy{corev1.RestartPolicyAlways}))
	}
	strategy := spec.Child("strategy")
	errs = append(errs, oneOf(strategy.Child("type"), o.Spec.Strategy.Type, appsv1.RecreateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType)...)
	if o.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType && o.Spec.Strategy.RollingUpdate != nil {
		errs = append(errs, field.Forbidden(strategy.Child("rollingUpdate"), "may not be specified when strategy `type` is 'Recreate'"))
	}
	if old != nil && !apiequality.Semantic.DeepEqual(o.Spec.Selector, old.Spec.Selector) {
		errs = append(errs, field.Invalid(spec.Child("selector"), o.Spec.Selector, apivalidation.FieldImmutableErrorMsg))
	}
	return errs
}

func validateDeploymentSelector(o *appsv1.Deployment) field.ErrorList {
	at := field.NewPath("spec", "selector")
	errs := metav1validation.ValidateLabelSelector(o.Spec.Selector, metav1validation.LabelSelectorValidationOptions{}, at)
	if len(o.Spec.Selector.MatchLabels)+len(o.Spec.Selector.MatchExpressions) == 0 {
		return append(errs, field.Invalid(at, o.Spec.Selector, "empty selector is invalid for deployment"))
	}
	selector, err := metav1.LabelSelectorAsSelector(o.Spec.Selector)
	if err != nil {
		return append(errs, field.Invalid(at, o.Spec.Selector, "invalid label selector"))
	}
	if template := o.Spec.Template.Labels; !selector.Matches(labels.Set(template)) {
		errs = append(errs, field.Invalid(field.NewPath("spec", "template", "metadata", "labels"), template, "`selector` does not match template `labels`"))
	}
	return errs
}

func deploymentCells(o *appsv1.Deployment) []any {
	var names, images []string
	for _, c := range o.Spec.Template.Spec.Containers {
		names, images = append(names, c.Name), append(images, c.Image)
	}
	selector := "<invalid>"
	if s, err := metav1.LabelSelectorAsSelector(o.Spec.Selector); err == nil {
		selector = s.String()
	}
	return []any{
		o.Name, fmt.Sprintf("%d/%d", o.Status.ReadyReplicas, orZero(o.Spec.Replicas)), int64(o.Status.UpdatedReplicas), int64(o.Status.AvailableReplicas),
		age(o.CreationTimestamp), strings.Join(names, ","), strings.Join(images, ","), selector,
	}
}

func orZero(n *int32) int32 {
	if n == nil {
		return 0
	}
	return *n
}
