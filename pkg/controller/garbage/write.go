package garbage

import (
	"context"
	"errors"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/quota"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// in is a context for one namespace of one virtual cluster. No quota stands in the way of
// what has to be deleted.
func (c *Collector) in(ctx context.Context, cluster, namespace string) context.Context {
	ctx = quota.Exempt(ctx)
	return request.WithUser(request.WithNamespace(logical.WithCluster(ctx, cluster), namespace), c.user)
}

func quarantined(o *object.Object) bool {
	_, is := logical.Quarantined(o)
	return is
}

// live reads an object from etcd. It is nil when it is gone, has been replaced by
// another of that name, or cannot be read: then it is let alone.
func (c *Collector) live(ctx context.Context, it item) (*object.Object, error) {
	obj, err := it.source.Store.Get(c.in(ctx, it.cluster, it.namespace), it.name, &metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	o := obj.(*object.Object)
	if o.UID != it.uid || quarantined(o) {
		return nil, nil
	}
	return o, nil
}

// delete deletes an object if it still has the owners that were looked for.
func (c *Collector) delete(ctx context.Context, it item, live *object.Object, policy metav1.DeletionPropagation) error {
	options := &metav1.DeleteOptions{PropagationPolicy: &policy, Preconditions: &metav1.Preconditions{UID: &it.uid}}
	admit := rest.ValidateAllObjectFunc
	if c.admission != nil {
		admit = rest.AdmissionToValidateObjectDeleteFunc(c.admission, c.attributes(it, admission.Delete, options), nil)
	}
	validate := func(ctx context.Context, obj runtime.Object) error {
		o := obj.(*object.Object)
		if quarantined(o) || o.UID != it.uid || !sameOwners(o.OwnerReferences, live.OwnerReferences) {
			return c.conflict(it, errors.New("the owners have changed"))
		}
		return admit(ctx, obj)
	}
	_, _, err := it.source.Deleter.Delete(c.in(ctx, it.cluster, it.namespace), it.name, validate, options)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("deleting: %w", err)
	}
	return nil
}

// dropOwners takes the references to some owners from an object.
func (c *Collector) dropOwners(ctx context.Context, it item, live *object.Object, uids []types.UID) (*object.Object, error) {
	if len(uids) == 0 {
		return live, nil
	}
	return c.update(ctx, it, live, func(o *object.Object) {
		o.OwnerReferences = slices.DeleteFunc(o.OwnerReferences, func(r metav1.OwnerReference) bool { return slices.Contains(uids, r.UID) })
	})
}

// unblockOwners makes an object a dependent that holds none of its owners.
func (c *Collector) unblockOwners(ctx context.Context, it item, live *object.Object) (*object.Object, error) {
	if !slices.ContainsFunc(live.OwnerReferences, func(r metav1.OwnerReference) bool { return blocks(&r) }) {
		return live, nil
	}
	return c.update(ctx, it, live, func(o *object.Object) {
		for i := range o.OwnerReferences {
			if blocks(&o.OwnerReferences[i]) {
				o.OwnerReferences[i].BlockOwnerDeletion = new(bool)
			}
		}
	})
}

// dropFinalizers takes the finalizers from an object that stand for the collector.
func (c *Collector) dropFinalizers(ctx context.Context, it item, live *object.Object) error {
	_, err := c.update(ctx, it, live, func(o *object.Object) {
		o.Finalizers = slices.DeleteFunc(o.Finalizers, func(f string) bool {
			return f == metav1.FinalizerDeleteDependents || f == metav1.FinalizerOrphanDependents
		})
	})
	return err
}

// update changes an object's metadata if it still is as it was read. It returns the
// object as written, or nil when it is gone.
func (c *Collector) update(ctx context.Context, it item, live *object.Object, change func(*object.Object)) (*object.Object, error) {
	options := &metav1.UpdateOptions{}
	admit := rest.ValidateAllObjectUpdateFunc
	if c.admission != nil {
		admit = rest.AdmissionToValidateObjectUpdateFunc(c.admission, c.attributes(it, admission.Update, options), nil)
	}
	info := rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
		o := old.(*object.Object)
		if o.UID != it.uid || o.ResourceVersion != live.ResourceVersion || quarantined(o) {
			return nil, c.conflict(it, errors.New("the object has changed"))
		}
		o = o.DeepCopy()
		change(o)
		return o, nil
	})
	obj, _, err := it.source.Store.Update(c.in(ctx, it.cluster, it.namespace), it.name, info, rest.ValidateAllObjectFunc, admit, false, options)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("updating: %w", err)
	}
	return obj.(*object.Object), nil
}

func (c *Collector) conflict(it item, why error) error {
	return apierrors.NewConflict(it.source.Store.Kind().GroupResource(), it.name, why)
}

func (c *Collector) attributes(it item, operation admission.Operation, options runtime.Object) admission.Attributes {
	k := it.source.Store.Kind()
	version := k.StorageVersion()
	return admission.NewAttributesRecord(nil, nil, k.GVK(version), it.namespace, it.name, k.GVR(version), "", operation, options, false, c.user)
}
