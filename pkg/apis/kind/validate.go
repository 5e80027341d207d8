package kind

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/model"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/cel/common"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// Validate checks an object about to be written, old nil on create: its metadata,
// its schema with list types and rules, as a custom resource is checked, errors
// that an update did not cause forgiven; then, if all that holds, the kind's own hook.
// Both objects must be in the given version's apiVersion.
func (k *Kind) Validate(ctx context.Context, version string, obj, old *object.Object) (warnings []string, errs field.ErrorList) {
	warnings = finalizerWarnings(obj, old)
	errs = k.validate(ctx, version, obj, old, false)
	if len(errs) == 0 && k.Hooks.Validate != nil {
		more, hookErrs := k.Hooks.Validate(ctx, obj, old)
		warnings, errs = append(warnings, more...), hookErrs
	}
	if k.Hooks.Confidential {
		withoutValues(errs)
	}
	return warnings, errs
}

// withoutValues takes what is quoted of an object out of errors, but for its metadata and
// its type, which are for everyone to know.
func withoutValues(errs field.ErrorList) {
	for _, err := range errs {
		if !strings.HasPrefix(err.Field, "metadata") && err.Field != "type" {
			err.BadValue = field.OmitValueType{}
		}
	}
}

// ValidateStatus checks a write of the status subresource: of the schema only the
// part for the status, but all the rules.
func (k *Kind) ValidateStatus(ctx context.Context, version string, obj, old *object.Object) field.ErrorList {
	return k.validate(ctx, version, obj, old, true)
}

func (k *Kind) validate(ctx context.Context, version string, obj, old *object.Object, status bool) field.ErrorList {
	f, err := k.form(version)
	if err != nil {
		return field.ErrorList{field.InternalError(nil, err)}
	}
	if errs := k.validateType(version, obj); len(errs) > 0 {
		return errs
	}
	errs := k.validateMetadata(obj, old)
	sound, err := f.sound(ctx, obj, old, status)
	if err == nil && sound {
		return errs
	}
	if err == nil {
		var more field.ErrorList
		more, err = f.judge(ctx, obj, old, status, errs)
		errs = more
	}
	if err != nil {
		return append(errs, field.InternalError(nil, err))
	}
	return errs
}

func (k *Kind) validateType(version string, obj *object.Object) field.ErrorList {
	var errs field.ErrorList
	want := k.GVK(version)
	if obj.Kind != want.Kind {
		errs = append(errs, field.Invalid(field.NewPath("kind"), obj.Kind, fmt.Sprintf("must be %v", want.Kind)))
	}
	if gv := want.GroupVersion().String(); obj.APIVersion != gv {
		errs = append(errs, field.Invalid(field.NewPath("apiVersion"), obj.APIVersion, fmt.Sprintf("must be %v", gv)))
	}
	return errs
}

func (k *Kind) validateMetadata(obj, old *object.Object) field.ErrorList {
	path := field.NewPath("metadata")
	if old != nil {
		return apivalidation.ValidateObjectMetaUpdate(&obj.ObjectMeta, &old.ObjectMeta, path)
	}
	checkName := k.Hooks.ValidateName
	if checkName == nil {
		checkName = apivalidation.NameIsDNSSubdomain
	}
	return apivalidation.ValidateObjectMeta(&obj.ObjectMeta, k.Namespaced(), checkName, path)
}

// sound tells whether the object has nothing wrong with its schema or rules. False
// means no more than that upstream must judge.
func (f *form) sound(ctx context.Context, obj, old *object.Object, status bool) (bool, error) {
	content, err := obj.Content()
	if err != nil {
		return false, err
	}
	if f.wholeRoot {
		if content, err = obj.Unstructured(); err != nil {
			return false, err
		}
	}
	if f.root.check(content) != valid {
		return false, nil
	}
	if f.rules == nil {
		return true, nil
	}
	var before map[string]any
	if old != nil && f.transition {
		if before, err = f.tree(old); err != nil {
			return false, err
		}
	}
	return f.rules.hold(ctx, content, anyTree(before)), nil
}

// tree is as much of an object as the rules look at.
func (f *form) tree(o *object.Object) (map[string]any, error) {
	if f.wholeRoot {
		return o.Unstructured()
	}
	return o.Content()
}

// anyTree avoids a nil map in a non-nil interface.
func anyTree(tree map[string]any) any {
	if tree == nil {
		return nil
	}
	return tree
}

// judge runs upstream's validation in upstream's order and appends its errors.
func (f *form) judge(ctx context.Context, obj, old *object.Object, status bool, errs field.ErrorList) (field.ErrorList, error) {
	exact, err := f.exact.get()
	if err != nil {
		return errs, err
	}
	after, err := obj.Unstructured()
	if err != nil {
		return errs, err
	}
	var before map[string]any
	var correlated *common.CorrelatedObject
	if old != nil {
		if before, err = old.Unstructured(); err != nil {
			return errs, err
		}
		correlated = common.NewCorrelatedObject(after, before, &model.Structural{Structural: f.structural})
		errs = append(errs, exact.validateUpdate(after, before, correlated, status)...)
	} else {
		errs = append(errs, validation.ValidateCustomResource(nil, after, exact.object)...)
	}
	if !status {
		errs = append(errs, objectmeta.Validate(ctx, nil, after, f.structural, false)...)
	}
	if lists := listtype.ValidateListSetsAndMaps(nil, f.structural, after); len(lists) > 0 {
		if before == nil || len(listtype.ValidateListSetsAndMaps(nil, f.structural, before)) == 0 {
			errs = append(errs, lists...)
		}
	}
	if f.rules == nil {
		return errs, nil
	}
	if slices.ContainsFunc(errs, blocksRules) {
		return append(errs, field.Invalid(nil, nil, "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation")), nil
	}
	return append(errs, f.rules.validate(ctx, after, anyTree(before), correlated)...), nil
}

func (e *exactValidators) validateUpdate(after, before map[string]any, correlated *common.CorrelatedObject, status bool) field.ErrorList {
	if !status {
		return validation.ValidateCustomResourceUpdate(nil, after, before, e.object, validation.WithRatcheting(correlated))
	}
	s, ok := after["status"]
	if !ok || e.status == nil {
		return nil
	}
	return validation.ValidateCustomResourceUpdate(field.NewPath("status"), s, before["status"], e.status, validation.WithRatcheting(correlated.Key("status")))
}

// blocksRules tells whether an error means that rules could trip over the object.
func blocksRules(err *field.Error) bool {
	switch err.Type {
	case field.ErrorTypeNotSupported, field.ErrorTypeRequired, field.ErrorTypeTooLong, field.ErrorTypeTooMany, field.ErrorTypeTypeInvalid:
		return true
	}
	return false
}

// finalizerWarnings warns of new finalizers that bear no domain, as kube-apiserver does.
func finalizerWarnings(obj, old *object.Object) []string {
	var warnings []string
	path := field.NewPath("metadata", "finalizers")
	for _, name := range obj.Finalizers {
		if old != nil && slices.Contains(old.Finalizers, name) {
			continue
		}
		for _, msg := range utilvalidation.IsQualifiedName(name) {
			warnings = append(warnings, fmt.Sprintf("%s: %q: %s", path, name, msg))
		}
		if strings.Contains(name, "/") || name == metav1.FinalizerOrphanDependents || name == metav1.FinalizerDeleteDependents || name == "kubernetes" {
			continue
		}
		with := ""
		if strings.Contains(name, ".") {
			with = "including a path (/) "
		}
		warnings = append(warnings, fmt.Sprintf("%s: %q: prefer a domain-qualified finalizer name %sto avoid accidental conflicts with other finalizer writers", path, name, with))
	}
	return warnings
}
