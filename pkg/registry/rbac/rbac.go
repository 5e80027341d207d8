// Package rbac is the storage of roles and bindings: nobody gives what he does not
// have, and the default roles, which are not stored, can be read like any other.
package rbac

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/authz/rbac"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
)

// Version is the version that roles and bindings are served in.
const Version = "v1"

// Authority knows what users may do in the context's virtual cluster.
type Authority interface {
	authorizer.UnconditionalAuthorizer
	// Administrator says whether a user may do everything.
	Administrator(ctx context.Context, u user.Info) bool
	// Rules are all that apply to a user in a namespace; with an error, those that could be found.
	Rules(ctx context.Context, u user.Info, namespace string) ([]rbacv1.PolicyRule, error)
	// RoleRules are the rules of the role that a binding refers to.
	RoleRules(ctx context.Context, ref rbacv1.RoleRef, namespace string) ([]rbacv1.PolicyRule, error)
}

// Clusters knows the virtual clusters.
type Clusters interface {
	// Origin is the UID of a virtual cluster and the time of its creation.
	Origin(ctx context.Context, cluster string) (uid string, created metav1.Time)
}

// Config is what the storages have in common.
type Config struct {
	Authority Authority
	Index     *rbac.Index
	Clusters  Clusters
}

// REST serves one of the four kinds.
type REST struct {
	*resource.REST
	Config
	resource schema.GroupResource
	defaults []*object.Object // by name
	check    func(ctx context.Context, r *REST, o, old *object.Object) error
}

var _ rest.StandardStorage = (*REST)(nil)

// NewREST makes the storage of a kind, or returns nil for one of another group.
func NewREST(s *resource.Store, c Config) (*REST, error) {
	r := &REST{REST: s.REST(Version), Config: c, resource: s.Kind().GroupResource()}
	gvk := s.Kind().GVK(Version)
	add := func(typed runtime.Object) error {
		o, err := object.From(typed, gvk)
		if err != nil {
			return fmt.Errorf("making default %s: %w", r.resource, err)
		}
		r.defaults = append(r.defaults, o)
		return nil
	}
	switch r.resource {
	case schema.GroupResource{Group: rbacv1.GroupName, Resource: "roles"}:
		r.check = checkRole
	case schema.GroupResource{Group: rbacv1.GroupName, Resource: "clusterroles"}:
		r.check = checkRole
		for _, o := range rbac.DefaultClusterRoles() {
			if err := add(o); err != nil {
				return nil, err
			}
		}
	case schema.GroupResource{Group: rbacv1.GroupName, Resource: "rolebindings"}:
		r.check = checkBinding
	case schema.GroupResource{Group: rbacv1.GroupName, Resource: "clusterrolebindings"}:
		r.check = checkBinding
		for _, o := range rbac.DefaultClusterRoleBindings() {
			if err := add(o); err != nil {
				return nil, err
			}
		}
	default:
		return nil, nil
	}
	sortByName(r.defaults)
	// Here and not in Delete, whose answer is often a mere success, without the revision.
	s.AfterDelete = func(obj runtime.Object, _ *metav1.DeleteOptions) { r.await(context.Background(), obj, nil) }
	return r, nil
}

// Create implements rest.Creater.
func (r *REST) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, options *metav1.CreateOptions) (runtime.Object, error) {
	o := obj.(*object.Object)
	if r.defaultOf(o.Name) != nil {
		return nil, apierrors.NewAlreadyExists(r.resource, o.Name)
	}
	if err := r.check(ctx, r, o, nil); err != nil {
		return nil, err
	}
	created, err := r.REST.Create(ctx, obj, validate, options)
	r.await(ctx, created, err)
	return r.shown(created), err
}

// Update implements rest.Updater. To write a default object stores it, in this virtual
// cluster, and from then on what is stored counts.
func (r *REST) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, createValidation rest.ValidateObjectFunc,
	updateValidation rest.ValidateObjectUpdateFunc, forceAllowCreate bool, options *metav1.UpdateOptions) (runtime.Object, bool, error) {
	info = rest.WrapUpdatedObjectInfo(info, func(ctx context.Context, obj, old runtime.Object) (runtime.Object, error) {
		o, was := obj.(*object.Object), old.(*object.Object)
		if was.UID == "" {
			was = nil
		}
		return obj, r.check(ctx, r, o, was)
	})
	standIn := r.defaultIn(ctx, name)
	if standIn == nil {
		obj, created, err := r.REST.Update(ctx, name, info, createValidation, updateValidation, forceAllowCreate, options)
		r.await(ctx, obj, err)
		return r.shown(obj), created, err
	}
	// The default has to be there to be read, and is not there to be compared with.
	over := &overriding{UpdatedObjectInfo: info, standIn: standIn, resource: r.resource}
	validate := func(ctx context.Context, obj runtime.Object) error {
		if updateValidation == nil {
			return nil
		}
		return updateValidation(ctx, obj, standIn.DeepCopy())
	}
	obj, _, err := r.REST.Update(ctx, name, over, validate, updateValidation, true, options)
	r.await(ctx, obj, err)
	return r.shown(obj), false, err
}

// overriding is an update of a default object, which is the creation of a stored one.
type overriding struct {
	rest.UpdatedObjectInfo
	standIn  *object.Object
	resource schema.GroupResource
}

// Preconditions implements rest.UpdatedObjectInfo. They are checked here: storage would
// hold them against an object that is not there.
func (u *overriding) Preconditions() *metav1.Preconditions { return nil }

// UpdatedObject implements rest.UpdatedObjectInfo.
func (u *overriding) UpdatedObject(ctx context.Context, old runtime.Object) (runtime.Object, error) {
	was := old.(*object.Object)
	fresh := was.UID == ""
	if fresh {
		was = u.standIn.DeepCopy()
	}
	if p := u.UpdatedObjectInfo.Preconditions(); p != nil {
		if p.UID != nil && *p.UID != was.UID || p.ResourceVersion != nil && *p.ResourceVersion != was.ResourceVersion {
			return nil, u.conflict()
		}
	}
	obj, err := u.UpdatedObjectInfo.UpdatedObject(ctx, was)
	if err != nil || !fresh {
		return obj, err
	}
	o := obj.(*object.Object)
	if o.UID != "" && o.UID != was.UID || o.ResourceVersion != "" && o.ResourceVersion != was.ResourceVersion {
		return nil, u.conflict()
	}
	o.UID, o.ResourceVersion, o.CreationTimestamp = "", "", metav1.Time{}
	return o, nil
}

func (u *overriding) conflict() error {
	return apierrors.NewConflict(u.resource, u.standIn.Name, fmt.Errorf("the object has been modified; please apply your changes to the latest version and try again"))
}

// Delete implements rest.GracefulDeleter. Deleting what overrides a default object
// brings that back; the default itself cannot be deleted.
func (r *REST) Delete(ctx context.Context, name string, validate rest.ValidateObjectFunc, options *metav1.DeleteOptions) (runtime.Object, bool, error) {
	obj, deleted, err := r.REST.Delete(ctx, name, validate, options)
	if apierrors.IsNotFound(err) && r.defaultOf(name) != nil {
		return nil, false, apierrors.NewForbidden(r.resource, name, fmt.Errorf(
			"every virtual cluster has it and it cannot be deleted: to take its rights away, write one of that name without them; to have it back as it was, delete that"))
	}
	return r.shown(obj), deleted, err
}

// awaitAtMost is how long a write waits to be effective; it has succeeded in any case.
const awaitAtMost = time.Second

// await waits until decisions follow what was written, so that who writes a role and
// then its binding, or is told that a right is gone, finds it so. Other replicas follow
// a moment later.
func (r *REST) await(ctx context.Context, written runtime.Object, err error) {
	o, ok := written.(*object.Object)
	if err != nil || !ok || o == nil {
		return
	}
	revision, err := strconv.ParseUint(o.ResourceVersion, 10, 64)
	if err != nil {
		return // a dry run's has none
	}
	ctx, cancel := context.WithTimeout(ctx, awaitAtMost)
	defer cancel()
	r.Index.Await(ctx, r.resource, revision)
}

// shown gives a ClusterRole that aggregates others the rules that it has by that. The
// object must be the caller's own.
func (r *REST) shown(obj runtime.Object) runtime.Object {
	o, ok := obj.(*object.Object)
	if !ok || o == nil || len(o.Field("aggregationRule")) == 0 {
		return obj
	}
	rules, ok := r.Index.Aggregated(o.Cluster(), o.Name)
	if !ok {
		return obj
	}
	shared, err := o.Content()
	if err != nil {
		return obj // storage quarantines it; as it is, it says so
	}
	content := maps.Clone(shared)
	tree, err := treeOf(rules)
	if err != nil {
		return obj
	}
	content["rules"] = tree
	if err := o.SetContent(content); err != nil {
		return obj
	}
	o.DropContent()
	return o
}
