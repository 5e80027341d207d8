package logical

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/etcd3"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// etcd3 gives a writer its result by decoding the bytes it has just encoded. That is
// an eighth of what a write costs, to learn one number: the revision. The store
// passes a result in the place of the caller's object, which takes what was written
// instead.

// result stands in for the object that a write fills. It is an object itself:
// GuaranteedUpdate makes others of its type for what is stored now.
type result struct {
	object.Object
	// written points to what was encoded last; nil for the others.
	written **object.Object
}

// DeepCopyObject implements runtime.Object; nothing copies a result.
func (r *result) DeepCopyObject() runtime.Object { return r.Object.DeepCopy() }

// resultDecoder decodes into results, and all else as upstream does.
type resultDecoder struct {
	etcd3.Decoder
	versioner storage.Versioner
	codec     *codec
}

func (d resultDecoder) Decode(data []byte, into runtime.Object, revision int64) error {
	r, ok := into.(*result)
	if !ok {
		return d.Decoder.Decode(data, into, revision)
	}
	if r.written == nil || *r.written == nil {
		return d.Decoder.Decode(data, &r.Object, revision)
	}
	(*r.written).DeepCopyInto(&r.Object)
	settle(&r.Object)
	r.SetGroupVersionKind(d.codec.newObject().GetObjectKind().GroupVersionKind())
	return d.versioner.UpdateObject(&r.Object, uint64(revision))
}

// settle makes an object what it would be after encoding and decoding.
func settle(o *object.Object) {
	o.DropContent()
	settleTime(&o.CreationTimestamp)
	settleTime(o.DeletionTimestamp)
	for i := range o.ManagedFields {
		settleTime(o.ManagedFields[i].Time)
	}
	if len(o.Labels) == 0 {
		o.Labels = nil
	}
	if len(o.Annotations) == 0 {
		o.Annotations = nil
	}
	if len(o.OwnerReferences) == 0 {
		o.OwnerReferences = nil
	}
	if len(o.Finalizers) == 0 {
		o.Finalizers = nil
	}
	if len(o.ManagedFields) == 0 {
		o.ManagedFields = nil
	}
}

func settleTime(t *metav1.Time) {
	if t != nil && !t.IsZero() {
		t.Time = t.Truncate(time.Second).Local()
	}
}

// create is storage.Interface.Create with a result.
func (s *store) create(ctx context.Context, key string, obj, out runtime.Object, ttl uint64) error {
	written, ok := obj.(*object.Object)
	filled, wanted := out.(*object.Object)
	if !ok || !wanted {
		return s.cache.Create(ctx, key, obj, out, ttl)
	}
	r := &result{written: &written}
	if err := s.cache.Create(ctx, key, obj, r, ttl); err != nil {
		return err
	}
	*filled = r.Object
	return nil
}

// update is storage.Interface.GuaranteedUpdate with a result.
func (s *store) update(ctx context.Context, key string, out runtime.Object, ignoreNotFound bool,
	preconditions *storage.Preconditions, tryUpdate storage.UpdateFunc,
) error {
	filled, ok := out.(*object.Object)
	if !ok {
		return s.cache.GuaranteedUpdate(ctx, key, out, ignoreNotFound, preconditions, tryUpdate, nil)
	}
	var written *object.Object
	r := &result{written: &written}
	err := s.cache.GuaranteedUpdate(ctx, key, r, ignoreNotFound, preconditions, func(in runtime.Object, meta storage.ResponseMeta) (runtime.Object, *uint64, error) {
		if current, ok := in.(*result); ok {
			in = &current.Object
		}
		obj, ttl, err := tryUpdate(in, meta)
		written, _ = obj.(*object.Object)
		return obj, ttl, err
	}, nil)
	if err != nil {
		return err
	}
	*filled = r.Object
	return nil
}
