package quota

import (
	"context"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/storage"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// Count makes a kind count, and returns the storage that holds its writes against the
// quotas. It is for all kinds before the first request.
func (k *Keeper) Count(kd *kind.Kind, inner storage.Interface) storage.Interface {
	gvk := kd.GVK(kd.StorageVersion())
	c := &counted{
		index: len(k.resources), resource: kd.GroupResource(), name: kd.GroupResource().String(), prefix: logical.ResourcePrefix(kd.GroupResource()),
		apiVersion: gvk.GroupVersion().String(), kind: gvk.Kind, namespaced: kd.Namespaced(), storage: inner,
	}
	k.resources = append(k.resources, c)
	return &counting{inner, k, c}
}

// counting is the storage of a resource that counts.
type counting struct {
	storage.Interface
	keeper *Keeper
	of     *counted
}

// begin begins a write of a virtual cluster that has a quota; of another it is nil.
func (s *counting) begin(ctx context.Context, key string) (*write, error) {
	cluster, err := logical.Cluster(ctx)
	if err != nil {
		return nil, nil // without a virtual cluster the storage below refuses
	}
	limits, err := s.keeper.limits(ctx, cluster)
	if err != nil || limits == nil {
		return nil, err
	}
	name, ok := strings.CutPrefix(key, s.of.prefix+"/"+cluster+"/")
	if !ok {
		return nil, nil // as above
	}
	l, err := s.keeper.ledger(ctx, cluster)
	if err != nil {
		return nil, err
	}
	return l.write(s.of, name, limits), nil
}

// Create implements storage.Interface.
func (s *counting) Create(ctx context.Context, key string, obj, out runtime.Object, ttl uint64) error {
	w, err := s.begin(ctx, key)
	if err != nil {
		return err
	}
	if w == nil {
		return s.Interface.Create(ctx, key, obj, out, ttl)
	}
	if err := w.ask(ctx, obj, none); err != nil {
		return err
	}
	err = s.Interface.Create(ctx, key, obj, out, ttl)
	w.conclude(out, false, err)
	return err
}

// GuaranteedUpdate implements storage.Interface.
func (s *counting) GuaranteedUpdate(ctx context.Context, key string, out runtime.Object, ignoreNotFound bool,
	preconditions *storage.Preconditions, tryUpdate storage.UpdateFunc, cached runtime.Object,
) error {
	w, err := s.begin(ctx, key)
	if err != nil {
		return err
	}
	if w == nil {
		return s.Interface.GuaranteedUpdate(ctx, key, out, ignoreNotFound, preconditions, tryUpdate, cached)
	}
	err = s.Interface.GuaranteedUpdate(ctx, key, out, ignoreNotFound, preconditions,
		func(in runtime.Object, meta storage.ResponseMeta) (runtime.Object, *uint64, error) {
			size := w.of.sizeIfAny(in.(*object.Object)) // before the update, which may change it
			obj, ttl, err := tryUpdate(in, meta)
			if err != nil {
				return nil, nil, err
			}
			return obj, ttl, w.ask(ctx, obj, size)
		}, cached)
	w.conclude(out, false, err)
	return err
}

// Delete implements storage.Interface.
func (s *counting) Delete(ctx context.Context, key string, out runtime.Object, preconditions *storage.Preconditions,
	validate storage.ValidateObjectFunc, cached runtime.Object, opts storage.DeleteOptions,
) error {
	err := s.Interface.Delete(ctx, key, out, preconditions, validate, cached, opts)
	if err != nil {
		return err
	}
	if cluster, clusterErr := logical.Cluster(ctx); clusterErr == nil {
		if found, has := s.keeper.ledgers.Load(cluster); has {
			found.(*ledger).write(s.of, strings.TrimPrefix(key, s.of.prefix+"/"+cluster+"/"), nil).conclude(out, true, nil)
		}
	}
	return nil
}

// ask admits an object, or charges it without asking when the context is exempt.
func (w *write) ask(ctx context.Context, obj runtime.Object, old int64) error {
	o := obj.(*object.Object)
	if exempt(ctx) {
		w.take(o)
		return nil
	}
	return w.admit(o, old)
}

// conclude ends a write, with what it stored or deleted.
func (w *write) conclude(out runtime.Object, deleted bool, err error) {
	if o, ok := out.(*object.Object); ok && err == nil {
		w.done(o, deleted)
		return
	}
	w.end()
}
