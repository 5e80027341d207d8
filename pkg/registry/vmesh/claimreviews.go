package vmesh

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// ReviewClaims finds the objects that a change would hold back and let in, each sorted.
type ReviewClaims func(ctx context.Context, clusters []*v1alpha1.VirtualCluster, meshes []*v1alpha1.Mesh) (heldBack, letIn []v1alpha1.ReviewedResource, err error)

// maxReviewed is how many objects of each sort an answer lists.
const maxReviewed = 1000

// ClaimReviewREST answers claimreviews: what a change of claims would do.
type ClaimReviewREST struct {
	clusters *Clusters
	kind     *kind.Kind
	review   ReviewClaims
}

var (
	_ rest.Creater              = (*ClaimReviewREST)(nil)
	_ rest.Scoper               = (*ClaimReviewREST)(nil)
	_ rest.SingularNameProvider = (*ClaimReviewREST)(nil)
)

// ClaimReviewREST makes the storage.
func (c *Clusters) ClaimReviewREST(k *kind.Kind, review ReviewClaims) *ClaimReviewREST {
	return &ClaimReviewREST{clusters: c, kind: k, review: review}
}

// New implements rest.Storage.
func (r *ClaimReviewREST) New() runtime.Object { return object.New(r.kind.GVK(Version)) }

// Destroy implements rest.Storage.
func (r *ClaimReviewREST) Destroy() {}

// NamespaceScoped implements rest.Scoper.
func (r *ClaimReviewREST) NamespaceScoped() bool { return false }

// GetSingularName implements rest.SingularNameProvider.
func (r *ClaimReviewREST) GetSingularName() string { return r.kind.Singular() }

// Create implements rest.Creater.
func (r *ClaimReviewREST) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, _ *metav1.CreateOptions) (runtime.Object, error) {
	if validate != nil {
		if err := validate(ctx, obj.DeepCopyObject()); err != nil {
			return nil, err
		}
	}
	o := obj.(*object.Object)
	if o.Name == "" {
		o.Name = "review" // it is nobody's
	}
	if _, errs := r.kind.Validate(ctx, Version, o, nil); len(errs) > 0 {
		return nil, apierrors.NewInvalid(r.kind.GroupKind(), o.Name, errs)
	}
	var asked v1alpha1.ClaimReview
	if err := o.Into(&asked); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	clusters := make([]*v1alpha1.VirtualCluster, len(asked.Spec.VirtualClusters))
	for i, p := range asked.Spec.VirtualClusters {
		clusters[i] = &v1alpha1.VirtualCluster{ObjectMeta: metav1.ObjectMeta{Name: p.Name}, Spec: v1alpha1.VirtualClusterSpec{
			Mesh: p.Mesh, Namespaces: p.Namespaces, Hosts: p.Hosts, GuardRails: p.GuardRails, Grants: p.Grants, Handovers: p.Handovers,
		}}
	}
	meshes := make([]*v1alpha1.Mesh, len(asked.Spec.Meshes))
	for i, p := range asked.Spec.Meshes {
		meshes[i] = &v1alpha1.Mesh{ObjectMeta: metav1.ObjectMeta{Name: p.Name}, Spec: v1alpha1.MeshSpec{RootNamespace: p.RootNamespace}}
	}
	status := v1alpha1.ClaimReviewStatus{}
	status.Conflicts, status.Warnings = r.clusters.conflicts(clusters)
	heldBack, letIn, err := r.review(ctx, clusters, meshes)
	if err != nil {
		return nil, apierrors.NewServiceUnavailable(fmt.Sprintf("the meshes' configuration cannot be looked at: %v", err))
	}
	status.HeldBackCount, status.LetInCount = int32(len(heldBack)), int32(len(letIn))
	status.HeldBack, status.LetIn = heldBack[:min(len(heldBack), maxReviewed)], letIn[:min(len(letIn), maxReviewed)]
	return o, SetStatus(o, status)
}

// conflicts is what would be refused of virtual clusters that are written together, and
// what they would be warned of.
func (c *Clusters) conflicts(planned []*v1alpha1.VirtualCluster) (conflicts, warnings []string) {
	present := c.Claims()
	all := make([]ownership.Claims, len(planned))
	index := present
	for i, vc := range planned {
		all[i] = ownership.ClaimsOf(vc)
		old, known := present.Claims(vc.Name)
		if all[i].Created = old.Created; !known {
			all[i].Created = time.Now()
		}
		index = index.With(all[i])
	}
	spec := field.NewPath("spec")
	for _, claims := range all {
		errs := append(validateHosts(spec.Child("hosts"), claims.Hosts), validateHandovers(spec.Child("handovers"), claims)...)
		if conflict := overlap(index, spec, claims); conflict != nil {
			errs = append(errs, conflict)
		}
		var had *ownership.Index
		before, known := present.Claims(claims.Cluster)
		if known {
			had = present
		}
		told, wrong := validateGrants(spec.Child("grants"), index, claims, had, before)
		for _, err := range append(errs, wrong...) {
			conflicts = append(conflicts, fmt.Sprintf("virtual cluster %q: %v", claims.Cluster, err))
		}
		for _, warning := range told {
			warnings = append(warnings, fmt.Sprintf("virtual cluster %q: %s", claims.Cluster, warning))
		}
	}
	return conflicts, warnings
}
