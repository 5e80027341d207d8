// Package events tells users what happens, as Kubernetes does: as Events beside the
// objects concerned.
package events

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// Recorder writes events. It is safe for concurrent use.
type Recorder struct {
	store     *resource.Store
	component string
	host      string
}

// NewRecorder makes a recorder. store is that of the core group's events; component and
// host say who reports them.
func NewRecorder(store *resource.Store, component, host string) *Recorder {
	return &Recorder{store: store, component: component, host: host}
}

// Reference is what an event is about: an object, or something that is none.
func Reference(o *object.Object) corev1.ObjectReference {
	return corev1.ObjectReference{
		APIVersion: o.APIVersion, Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion,
	}
}

// Event tells of something in a virtual cluster, or in logical.Root: kind is
// corev1.EventTypeNormal or EventTypeWarning, reason a word in CamelCase. What is told
// again on the same day, with the same words and of the same object, while the event is
// kept, is told once, whichever of several servers is first. What is of no namespace goes to default. An
// event that cannot be written is logged: it is no reason to fail.
func (r *Recorder) Event(ctx context.Context, cluster string, about corev1.ObjectReference, kind, reason, message string) {
	if err := r.write(ctx, cluster, about, kind, reason, message, time.Now()); err != nil && ctx.Err() == nil {
		klog.FromContext(ctx).Error(err, "Writing an event failed", "virtualCluster", cluster, "kind", about.Kind, "name", about.Name, "reason", reason)
	}
}

// Again is Event for what can happen again: then the event counts it, and has the time of the
// last. What several servers tell within a few seconds counts once.
func (r *Recorder) Again(ctx context.Context, cluster string, about corev1.ObjectReference, kind, reason, message string) {
	if err := r.again(ctx, cluster, about, kind, reason, message, time.Now()); err != nil && ctx.Err() == nil {
		klog.FromContext(ctx).Error(err, "Writing an event failed", "virtualCluster", cluster, "kind", about.Kind, "name", about.Name, "reason", reason)
	}
}

// sameTelling is how far apart several servers tell of the same.
const sameTelling = 5 * time.Second

func (r *Recorder) again(ctx context.Context, cluster string, about corev1.ObjectReference, kind, reason, message string, now time.Time) error {
	o, err := r.event(about, kind, reason, message, now)
	if err != nil {
		return err
	}
	ctx = request.WithNamespace(logical.WithCluster(ctx, cluster), o.Namespace)
	if _, err = r.store.Create(ctx, o, rest.ValidateAllObjectFunc, &metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		return err
	}
	_, _, err = r.store.REST("v1").Update(ctx, o.Name, rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
		o := old.(*object.Object).DeepCopy()
		var event corev1.Event
		if err := o.Into(&event); err != nil {
			return nil, err
		}
		if now.Sub(event.LastTimestamp.Time) < sameTelling {
			return o, nil
		}
		content, err := o.Content()
		if err != nil {
			return nil, err
		}
		content = maps.Clone(content)
		content["count"], content["lastTimestamp"] = int64(event.Count)+1, now.UTC().Format(time.RFC3339)
		return o, o.SetContent(content)
	}), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	return err
}

func (r *Recorder) write(ctx context.Context, cluster string, about corev1.ObjectReference, kind, reason, message string, now time.Time) error {
	o, err := r.event(about, kind, reason, message, now)
	if err != nil {
		return err
	}
	ctx = request.WithNamespace(logical.WithCluster(ctx, cluster), o.Namespace)
	if _, err = r.store.Create(ctx, o, rest.ValidateAllObjectFunc, &metav1.CreateOptions{}); apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func (r *Recorder) event(about corev1.ObjectReference, kind, reason, message string, now time.Time) (*object.Object, error) {
	namespace := about.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	sum := sha256.Sum256([]byte(about.Kind + "\n" + string(about.UID) + "\n" + reason + "\n" + message + "\n" + now.UTC().Format(time.DateOnly)))
	seen := metav1.NewTime(now.UTC())
	event := corev1.Event{
		InvolvedObject: about, Type: kind, Reason: reason, Message: message, Count: 1, FirstTimestamp: seen, LastTimestamp: seen,
		Source: corev1.EventSource{Component: r.component, Host: r.host}, ReportingController: r.component, ReportingInstance: r.host,
	}
	data, err := json.Marshal(&event)
	if err != nil {
		return nil, err
	}
	o := object.New(schema.GroupVersionKind{Version: "v1", Kind: "Event"})
	if err := o.UnmarshalJSON(data); err != nil {
		return nil, fmt.Errorf("making the event: %w", err)
	}
	o.APIVersion, o.Kind = "v1", "Event"
	o.Namespace, o.Name = namespace, about.Name+"."+hex.EncodeToString(sum[:8])
	return o, nil
}
