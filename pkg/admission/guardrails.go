package admission

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/policy"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// OwnersOf is what a virtual cluster sees of its mesh; ok is false for one that claims
// nothing of it.
type OwnersOf func(ctx context.Context, cluster string) (owners policy.Owners, ok bool)

// GuardRails refuses what a virtual cluster may not do in the mesh that it shares:
// namespaces that it does not own, and objects that would act on others. What a sandbox
// does is nobody's concern, and so is what an object was before an update.
type GuardRails struct {
	*admission.Handler
	owners OwnersOf
	system func(ctx context.Context, namespace string) bool
	kinds  map[schema.GroupKind]struct{}
}

var _ admission.ValidationInterface = (*GuardRails)(nil)

// NewGuardRails asks owners about objects of some kinds, which are Istio's, and about new
// namespaces but those of the system.
func NewGuardRails(owners OwnersOf, system func(ctx context.Context, namespace string) bool, kinds []*kind.Kind) *GuardRails {
	g := &GuardRails{admission.NewHandler(admission.Create, admission.Update), owners, system, map[schema.GroupKind]struct{}{}}
	for _, k := range kinds {
		g.kinds[k.GroupKind()] = struct{}{}
	}
	return g
}

// Validate implements admission.ValidationInterface.
func (g *GuardRails) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetSubresource() != "" {
		return nil
	}
	gk := a.GetKind().GroupKind()
	if gk == namespaceKind {
		if a.GetOperation() != admission.Create {
			return nil
		}
		return g.namespace(ctx, a.GetName())
	}
	if _, is := g.kinds[gk]; !is {
		return nil
	}
	o, ok := a.GetObject().(*object.Object)
	if !ok {
		return nil
	}
	if old, ok := a.GetOldObject().(*object.Object); ok && actsAlike(o, old) {
		return nil // it may be finalized, relabelled and annotated, whatever it was let do
	}
	owners, ok := g.of(ctx)
	if !ok {
		return nil
	}
	violations := policy.Check(gk.Kind, o, owners)
	if len(violations) == 0 {
		return nil
	}
	errs := make(field.ErrorList, len(violations))
	for i, v := range violations {
		errs[i] = &field.Error{Type: field.ErrorTypeForbidden, Field: v.Field, Detail: v.Message}
	}
	// Invalid, although nothing is wrong with the object as such: of that kubectl shows all
	// fields one by one, and of Forbidden one line, which is read as one's role.
	return apierrors.NewInvalid(gk, a.GetName(), errs)
}

func (g *GuardRails) of(ctx context.Context) (policy.Owners, bool) {
	cluster, err := logical.Cluster(ctx)
	if err != nil || cluster == logical.Root {
		return nil, false
	}
	return g.owners(ctx, cluster)
}

// namespace refuses a namespace that the virtual cluster does not own although it owns
// some, unless it is handed over to it: what is in it would never reach the mesh.
func (g *GuardRails) namespace(ctx context.Context, name string) error {
	owners, ok := g.of(ctx)
	if !ok || g.system(ctx, name) {
		return nil
	}
	owner, _ := owners.NamespaceOwner(name)
	if owner == owners.Cluster() || owners.TakesOver(name) {
		return nil
	}
	whose := "nobody owns it"
	if owner != "" {
		whose = fmt.Sprintf("virtual cluster %q owns it", owner)
	}
	var claims []string
	for _, p := range owners.Namespaces() {
		if claims = append(claims, string(p)); len(claims) == maxClaims {
			claims = append(claims, "...")
			break
		}
	}
	return apierrors.NewForbidden(schema.GroupResource{Resource: "namespaces"}, name, fmt.Errorf(
		"it is not one of virtual cluster %q, which owns %s in its mesh, and %s: choose another name, or have it claimed in spec.namespaces",
		owners.Cluster(), strings.Join(claims, ", "), whose))
}

// maxClaims is how many claims an answer tells.
const maxClaims = 20

// actsAlike says whether two states of an object do the same in a mesh.
func actsAlike(o, old *object.Object) bool {
	return bytes.Equal(o.Field("spec"), old.Field("spec")) &&
		maps.Equal(policy.Internals(o.Annotations), policy.Internals(old.Annotations)) && maps.Equal(policy.Internals(o.Labels), policy.Internals(old.Labels))
}

// Creating goes around a storage of namespaces that is written to without admission.
func (g *GuardRails) Creating(namespaces rest.Creater) rest.Creater {
	return &guarded{namespaces, g}
}

type guarded struct {
	rest.Creater
	rails *GuardRails
}

func (c *guarded) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, options *metav1.CreateOptions) (runtime.Object, error) {
	if o, ok := obj.(*object.Object); ok {
		if err := c.rails.namespace(ctx, o.Name); err != nil {
			return nil, err
		}
	}
	return c.Creater.Create(ctx, obj, validate, options)
}
