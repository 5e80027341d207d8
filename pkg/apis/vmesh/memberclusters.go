package vmesh

import (
	"context"
	"fmt"
	"slices"
	"strings"

	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// MeshReader reads a mesh; it is nil if there is none of that name.
type MeshReader func(ctx context.Context, name string) (*v1alpha1.Mesh, error)

// homeID is what control planes call the cluster that they live in, unless told otherwise: a member of
// that name would be ignored.
const homeID = "kubernetes"

func validateMemberName(name string, prefix bool) []string {
	if strings.EqualFold(name, homeID) && !prefix {
		return []string{fmt.Sprintf("control planes call the cluster that they live in Kubernetes: give the member another name than %s", name)}
	}
	return apivalidation.NameIsDNSLabel(name, prefix)
}

// validateMember checks what the schema cannot say, and warns of what is not there (yet).
func (r MeshReader) validateMember(ctx context.Context, o, old *object.Object) (warnings []string, errs field.ErrorList) {
	var member v1alpha1.MemberCluster
	if err := o.Into(&member); err != nil {
		return nil, field.ErrorList{field.InternalError(field.NewPath("spec"), err)}
	}
	spec := field.NewPath("spec")
	for _, msg := range validation.IsDNS1123Subdomain(member.Spec.Access.Secret) {
		errs = append(errs, field.Invalid(spec.Child("access", "secret"), member.Spec.Access.Secret, msg))
	}
	if d := member.Spec.Drain; d != nil && strings.TrimSpace(d.Reason) == "" {
		errs = append(errs, field.Required(spec.Child("drain", "reason"), "say why, for those who look"))
	}
	if len(errs) > 0 {
		return nil, errs
	}
	warnings = warnOfDrain(&member, old)
	if r == nil {
		return warnings, nil
	}
	mesh, err := r(ctx, member.Spec.Mesh)
	switch {
	case err != nil:
		return warnings, nil // advice alone depends on it
	case mesh == nil:
		return append(warnings, fmt.Sprintf("spec.mesh: there is no mesh %s: control planes have no access to the member until there is", member.Spec.Mesh)), nil
	case mesh.Spec.Home == nil:
		warnings = append(warnings, fmt.Sprintf("spec.mesh: mesh %s has no home (spec.home.virtualCluster): vmesh has nowhere to give control planes access to the member", mesh.Name))
	}
	known := slices.ContainsFunc(mesh.Spec.Networks, func(n v1alpha1.MeshNetwork) bool { return n.Name == member.Spec.Network })
	if member.Spec.Network != "" && !known {
		warnings = append(warnings, fmt.Sprintf("spec.network: mesh %s has no network %s (spec.networks): nothing in other networks can reach the member", mesh.Name, member.Spec.Network))
	}
	return warnings, nil
}

// warnOfDrain tells what the mesh loses by a drain that begins.
func warnOfDrain(m *v1alpha1.MemberCluster, old *object.Object) []string {
	if m.Spec.Drain == nil || m.Spec.Discovery == v1alpha1.DiscoveryDisabled || old == nil {
		return nil
	}
	var before v1alpha1.MemberCluster
	if err := old.Into(&before); err != nil || before.Spec.Drain != nil {
		return nil // advice alone depends on it
	}
	only := before.Status.OnlyHere
	if only == nil || only.Services == 0 {
		return nil
	}
	return []string{"spec.drain: calls to what no other member serves that is reachable and not drained will fail, in the member, too: " + only.String()}
}

// validateMembers checks what holds for all members of a mesh.
func validateMembers(m *v1alpha1.MeshMembers) (warnings []string, errs field.ErrorList) {
	if m == nil || m.RemoveAfter == nil {
		return nil, nil
	}
	path := field.NewPath("spec", "members", "removeAfter")
	switch {
	case m.RemoveAfter.Duration < 0:
		errs = append(errs, field.Invalid(path, m.RemoveAfter.Duration.String(), "must not be negative: use 10m, or the like"))
	case m.WhenAway != v1alpha1.RemoveWhenAway:
		warnings = append(warnings, path.String()+" means nothing unless spec.members.whenAway is Remove")
	}
	return warnings, errs
}
