package vmesh

import (
	"context"
	"fmt"
	"maps"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/quota"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// AttachContents gives it the storages of what virtual clusters hold, and the names that
// the kinds of a quota may have, before the first request.
func (c *Clusters) AttachContents(contents []*resource.Store, counted []string) {
	c.contents, c.counted = contents, counted
}

// Limits are those of a virtual cluster's quota; nil where there is none.
func (c *Clusters) Limits(ctx context.Context, cluster string) (*quota.Limits, error) {
	if cluster == logical.Root {
		return nil, nil
	}
	s, _, err := c.state(ctx, cluster)
	return s.limits, err
}

// Frozen says whether a virtual cluster is frozen, or may be, for all that can be told now.
func (c *Clusters) Frozen(ctx context.Context, cluster string) bool {
	if cluster == logical.Root {
		return false
	}
	s, _, err := c.state(ctx, cluster)
	return err != nil || s.frozen != ""
}

// setReady writes into a virtual cluster's status whether it takes writes.
func setReady(o *object.Object) error {
	vc, err := Decode(o)
	if err != nil || o.DeletionTimestamp != nil {
		return nil // validation names the field; what is being deleted has a status of its own
	}
	ready := metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonServing,
		Message: "The virtual cluster answers requests.", ObservedGeneration: o.Generation,
	}
	if f := vc.Spec.Freeze; f != nil {
		ready.Reason, ready.Message = v1alpha1.ReasonFrozen, "The virtual cluster answers reads and refuses writes: "+f.Reason
	}
	if is := apimeta.FindStatusCondition(vc.Status.Conditions, ready.Type); is != nil && is.Status == ready.Status && is.Reason == ready.Reason && is.Message == ready.Message {
		return nil
	}
	apimeta.SetStatusCondition(&vc.Status.Conditions, ready)
	return SetStatus(o, vc.Status)
}

// validateQuota refuses limits of what is not counted, unless they were there before.
func (c *Clusters) validateQuota(vc *v1alpha1.VirtualCluster, old *object.Object) field.ErrorList {
	q := vc.Spec.Quota
	if q == nil {
		return nil
	}
	var errs field.ErrorList
	path := field.NewPath("spec", "quota")
	if q.Bytes != nil && q.Bytes.Sign() < 0 {
		errs = append(errs, field.Invalid(path.Child("bytes"), q.Bytes.String(), "must be 0 or more"))
	}
	var had map[string]v1alpha1.ObjectCount
	if old != nil {
		if was, err := Decode(old); err == nil && was.Spec.Quota != nil {
			had = was.Spec.Quota.Kinds
		}
	}
	for _, name := range slices.Sorted(maps.Keys(q.Kinds)) {
		if _, has := had[name]; has || slices.Contains(c.counted, name) {
			continue
		}
		detail := "no resource of that name counts in virtual clusters: use a name that kubectl api-resources -o name shows there, like configmaps or virtualservices.networking.istio.io"
		if name == "events" || name == "events.events.k8s.io" || name == "leases.coordination.k8s.io" {
			detail = "events and leases are not counted, and cannot be limited"
		}
		errs = append(errs, field.Invalid(path.Child("kinds").Key(name), name, detail))
	}
	return errs
}

// protected refuses the deletion of a virtual cluster that holds protected objects.
func (c *Clusters) protected(ctx context.Context, name string) error {
	inside := request.WithNamespace(logical.WithCluster(ctx, name), metav1.NamespaceAll)
	held, err := resource.Protected(inside, c.contents)
	if err != nil {
		return err
	}
	if len(held) > 0 {
		return apierrors.NewForbidden(c.store.DefaultQualifiedResource, name, fmt.Errorf("it holds %s", resource.Describe(held)))
	}
	return nil
}

// refuseProtected looks, before any virtual cluster of a collection is deleted, whether
// one of those that would be holds protected objects. Those whose deletion is not
// confirmed are refused anyway as soon as they hold anything.
func (r *ClusterREST) refuseProtected(ctx context.Context, of *internalversion.ListOptions) error {
	options := &internalversion.ListOptions{}
	if of != nil {
		options.LabelSelector, options.FieldSelector = of.LabelSelector, of.FieldSelector
	}
	list, err := r.List(ctx, options)
	if err != nil {
		return err
	}
	for i := range list.(*object.List).Items {
		o := &list.(*object.List).Items[i]
		if o.DeletionTimestamp == nil && o.Annotations[v1alpha1.AnnotationConfirmDeletion] == o.Name {
			if err := r.clusters.protected(ctx, o.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// DeleteCollection implements rest.CollectionDeleter, with the same conditions for each.
// Nothing is deleted when one is protected, or is about to be deleted and holds objects that are.
func (r *ClusterREST) DeleteCollection(ctx context.Context, validate rest.ValidateObjectFunc, options *metav1.DeleteOptions, list *internalversion.ListOptions) (runtime.Object, error) {
	if err := r.refuseProtected(ctx, list); err != nil {
		return nil, err
	}
	return r.REST.DeleteCollection(ctx, r.confirmed(validate), options, list)
}
