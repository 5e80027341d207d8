// Package namespace empties namespaces that are being deleted.
package namespace

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/quota"
	registry "github.com/vmesh-io/vmesh/pkg/registry/namespace"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// workers is how many namespaces are emptied at once.
const workers = 4

type key struct{ cluster, name string }

// Content deletes what terminating namespaces hold, and then finalizes them. It is a
// logical.Observer of namespaces.
type Content struct {
	namespaces *registry.REST
	finalize   *registry.FinalizeREST
	contents   []*resource.Store
	admission  admission.Interface
	user       user.Info
	queue      workqueue.TypedRateLimitingInterface[key]
}

// New makes the controller; it works while Run does. contents are the stores of all
// namespaced kinds; admit, if it is not nil, has a say in each deletion, as in Kubernetes.
func New(namespaces *registry.REST, finalize *registry.FinalizeREST, contents []*resource.Store, admit admission.Interface) *Content {
	return &Content{
		namespaces: namespaces, finalize: finalize, contents: contents, admission: admit,
		user:  serviceaccount.UserInfo("kube-system", "namespace-controller", ""),
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[key](50*time.Millisecond, time.Minute)),
	}
}

// Replaced implements logical.Observer.
func (c *Content) Replaced(items []*object.Object, revision uint64) {
	for _, o := range items {
		c.Changed(watch.Modified, o, revision)
	}
}

// Changed implements logical.Observer.
func (c *Content) Changed(t watch.EventType, o *object.Object, _ uint64) {
	if t != watch.Deleted && registry.Terminating(o) {
		c.queue.Add(key{o.Cluster(), o.Name})
	}
}

// Progressed implements logical.Observer.
func (c *Content) Progressed(uint64) {}

// Run works until ctx is done, and returns when nothing is under way any more.
func (c *Content) Run(ctx context.Context) {
	stop := context.AfterFunc(ctx, c.queue.ShutDown)
	defer stop()
	done := make(chan struct{})
	for range workers {
		go func() {
			defer func() { done <- struct{}{} }()
			for c.next(ctx) {
			}
		}()
	}
	for range workers {
		<-done
	}
}

func (c *Content) next(ctx context.Context) bool {
	k, shutdown := c.queue.Get()
	if shutdown {
		return false
	}
	defer c.queue.Done(k)
	err := c.empty(ctx, k)
	if err == nil || ctx.Err() != nil {
		c.queue.Forget(k)
		return true
	}
	if !errors.Is(err, errRemaining) {
		klog.FromContext(ctx).Error(err, "Emptying a namespace failed and is tried again", "virtualCluster", k.cluster, "namespace", k.name)
	}
	c.queue.AddRateLimited(k)
	return true
}

// errRemaining says that objects wait for their finalizers.
var errRemaining = errors.New("objects remain")

func (c *Content) empty(ctx context.Context, k key) error {
	root := request.WithNamespace(logical.WithCluster(ctx, k.cluster), metav1.NamespaceNone)
	obj, err := c.namespaces.Get(root, k.name, &metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if !registry.Terminating(obj.(*object.Object)) {
		return nil
	}
	root = quota.Exempt(root) // what is left to write is about a deletion
	inside := request.WithNamespace(logical.WithCluster(ctx, k.cluster), k.name)
	var errs []error
	var remaining []string
	for _, s := range c.contents {
		left, protected, err := c.deleteAll(inside, s, k.name)
		if err != nil {
			errs = append(errs, fmt.Errorf("deleting %s: %w", s.Kind(), err))
		}
		switch {
		case protected > 0:
			remaining = append(remaining, fmt.Sprintf("%s has %d resource instances, %d of them protected by the label %s", s.Kind(), left, protected, v1alpha1.LabelProtected))
		case left > 0:
			remaining = append(remaining, fmt.Sprintf("%s has %d resource instances", s.Kind(), left))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return errors.Join(err, c.report(root, k.name, remaining, err))
	}
	if len(remaining) > 0 {
		return errors.Join(errRemaining, c.report(root, k.name, remaining, nil))
	}
	return c.finish(root, k.name)
}

// deleteAll deletes the objects of a kind in the context's namespace, and counts those
// that are still there. It leaves those that are protected: one may have been marked while
// the deletion of the namespace began.
func (c *Content) deleteAll(ctx context.Context, s *resource.Store, namespace string) (left, protected int, err error) {
	list, err := s.List(ctx, &internalversion.ListOptions{})
	if err != nil || len(list.(*object.List).Items) == 0 {
		return 0, 0, err
	}
	background := metav1.DeletePropagationBackground
	options := &metav1.DeleteOptions{PropagationPolicy: &background}
	validate := rest.ValidateAllObjectFunc
	if c.admission != nil {
		k := s.Kind()
		gvk, gvr := k.GVK(k.StorageVersion()), k.GVR(k.StorageVersion())
		validate = func(ctx context.Context, obj runtime.Object) error {
			a := admission.NewAttributesRecord(nil, nil, gvk, namespace, obj.(*object.Object).Name, gvr, "", admission.Delete, options, false, c.user)
			return rest.AdmissionToValidateObjectDeleteFunc(c.admission, a, nil)(ctx, obj)
		}
	}
	_, failed := s.DeleteCollection(ctx, validate, options, &internalversion.ListOptions{LabelSelector: resource.Unprotected()})
	if list, err = s.List(ctx, &internalversion.ListOptions{}); err != nil {
		return 0, 0, errors.Join(failed, err)
	}
	items := list.(*object.List).Items
	for i := range items {
		if resource.IsProtected(&items[i]) {
			protected++
		}
	}
	return len(items), protected, failed
}

// report writes into the namespace's conditions why it is not gone yet.
func (c *Content) report(ctx context.Context, name string, remaining []string, failure error) error {
	condition := func(t corev1.NamespaceConditionType, bad bool, badReason, reason, badMessage, message string) corev1.NamespaceCondition {
		out := corev1.NamespaceCondition{Type: t, Status: corev1.ConditionFalse, Reason: reason, Message: message, LastTransitionTime: metav1.Now()}
		if bad {
			out.Status, out.Reason, out.Message = corev1.ConditionTrue, badReason, badMessage
		}
		return out
	}
	failed := ""
	if failure != nil {
		failed = failure.Error()
	}
	slices.Sort(remaining)
	wanted := []corev1.NamespaceCondition{
		condition(corev1.NamespaceDeletionContentFailure, failure != nil, "ContentDeletionFailed", "ContentDeleted", failed, "All content successfully deleted, may be waiting on finalization"),
		condition(corev1.NamespaceContentRemaining, len(remaining) > 0, "SomeResourcesRemain", "ContentRemoved",
			"Some resources are remaining: "+strings.Join(remaining, ", "), "All content successfully removed"),
	}
	return c.update(ctx, c.finalize.StatusREST, name, func(ns *corev1.Namespace) bool {
		changed := false
		for _, w := range wanted {
			i := slices.IndexFunc(ns.Status.Conditions, func(has corev1.NamespaceCondition) bool { return has.Type == w.Type })
			switch {
			case i < 0:
				ns.Status.Conditions, changed = append(ns.Status.Conditions, w), true
			case ns.Status.Conditions[i].Status != w.Status || ns.Status.Conditions[i].Message != w.Message:
				ns.Status.Conditions[i], changed = w, true
			}
		}
		return changed
	})
}

// finish takes away the finalizer that stands for the contents; the storage removes the
// namespace with it.
func (c *Content) finish(ctx context.Context, name string) error {
	return c.update(ctx, c.finalize, name, func(ns *corev1.Namespace) bool {
		before := len(ns.Spec.Finalizers)
		ns.Spec.Finalizers = slices.DeleteFunc(ns.Spec.Finalizers, func(f corev1.FinalizerName) bool { return f == corev1.FinalizerKubernetes })
		return len(ns.Spec.Finalizers) != before
	})
}

func (c *Content) update(ctx context.Context, updater rest.Updater, name string, change func(*corev1.Namespace) bool) error {
	_, _, err := updater.Update(ctx, name, rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
		o := old.(*object.Object)
		var ns corev1.Namespace
		if err := o.Into(&ns); err != nil {
			return nil, err
		}
		if !change(&ns) {
			return o.DeepCopy(), nil
		}
		return object.From(&ns, o.GroupVersionKind())
	}), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
