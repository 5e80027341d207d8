package vmesh

import (
	"context"
	"fmt"
	"slices"
	"sync"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/authz/rbac"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

var clusterRoles = schema.GroupResource{Group: rbacv1.GroupName, Resource: "clusterroles"}

// defaultRoles are the ClusterRoles that every virtual cluster has.
var defaultRoles = sync.OnceValue(func() map[string]bool {
	names := map[string]bool{}
	for _, role := range rbac.DefaultClusterRoles() {
		names[role.Name] = true
	}
	return names
})

// accessWarnings tells of roles that a virtual cluster does not have.
func (c *Clusters) accessWarnings(ctx context.Context, vc *v1alpha1.VirtualCluster) []string {
	var warnings []string
	for i, access := range vc.Spec.Access {
		if defaultRoles()[access.Role] {
			continue
		}
		at := slices.IndexFunc(c.contents, func(s *resource.Store) bool { return s.Kind().GroupResource() == clusterRoles })
		if at < 0 {
			return nil
		}
		inside := request.WithNamespace(logical.WithCluster(ctx, vc.Name), metav1.NamespaceNone)
		if _, err := c.contents[at].Get(inside, access.Role, &metav1.GetOptions{ResourceVersion: "0"}); apierrors.IsNotFound(err) {
			warnings = append(warnings, fmt.Sprintf("spec.access[%d].role: the virtual cluster has no ClusterRole %q: until it has, this gives no rights", i, access.Role))
		}
	}
	return warnings
}
