package garbage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// process does for one object what there is to do now. What it writes comes back as a
// change, and what is left to do is done then.
func (c *Collector) process(ctx context.Context, it item) error {
	if !it.deleting {
		return c.collect(ctx, it)
	}
	err := c.release(ctx, it)
	if it.foreground || it.orphan {
		err = errors.Join(err, c.finalize(ctx, it))
	}
	return err
}

// collect deletes an object without owners, and takes from one that has an owner the
// references to others that are gone or are going.
func (c *Collector) collect(ctx context.Context, it item) error {
	// Nearly always all owners are there, which the watch caches can tell.
	found, err := c.classify(ctx, it, it.owners, false)
	if err != nil || found.settled() {
		return errors.Join(err, found.again)
	}
	live, err := c.live(ctx, it)
	if err != nil || live == nil || live.DeletionTimestamp != nil || len(live.OwnerReferences) == 0 {
		return err
	}
	if found, err = c.classify(ctx, it, live.OwnerReferences, true); err != nil {
		return err
	}
	switch {
	case found.unknown > 0:
		// That every owner is gone cannot be said.
		_, err = c.dropOwners(ctx, it, live, found.releasing)
		return errors.Join(err, found.again)
	case found.solid > 0 || len(found.releasing) > 0:
		_, err = c.dropOwners(ctx, it, live, slices.Concat(found.absent, found.waiting, found.releasing))
		return err
	}
	policy := metav1.DeletePropagationBackground
	switch {
	case hasFinalizer(live, metav1.FinalizerOrphanDependents):
		policy = metav1.DeletePropagationOrphan
	case hasFinalizer(live, metav1.FinalizerDeleteDependents):
		policy = metav1.DeletePropagationForeground
	}
	if has, waiting := c.index.dependents(it.key); has && len(found.waiting) > 0 {
		policy = metav1.DeletePropagationForeground
		if waiting {
			// A circle of owners that all hold each other would never end.
			if live, err = c.unblockOwners(ctx, it, live); err != nil || live == nil {
				return err
			}
		}
	}
	return c.delete(ctx, it, live, policy)
}

// release takes from an object that is being deleted the references to owners that
// are to go without their dependents: it may itself have to wait for something.
func (c *Collector) release(ctx context.Context, it item) error {
	var releasing []types.UID
	for i := range it.owners {
		if c.index.orphaning(key{it.cluster, it.owners[i].UID}) {
			releasing = append(releasing, it.owners[i].UID)
		}
	}
	if len(releasing) == 0 {
		return nil
	}
	live, err := c.live(ctx, it)
	if err != nil || live == nil {
		return err
	}
	_, err = c.dropOwners(ctx, it, live, releasing)
	return err
}

// finalize takes the collector's finalizer from an owner whose dependents need nothing
// any more. Dependents have been told, and the last one to go wakes the owner.
func (c *Collector) finalize(ctx context.Context, it item) error {
	if !it.free {
		return nil
	}
	live, err := c.live(ctx, it)
	if err != nil || live == nil || live.DeletionTimestamp == nil {
		return err
	}
	// What was made a dependent before the deletion began must count, also if it is of
	// another kind, whose changes come by another watch.
	revision, err := strconv.ParseUint(live.ResourceVersion, 10, 64)
	if err != nil {
		return fmt.Errorf("reading the resource version: %w", err)
	}
	if err := c.caughtUp(ctx, revision); err != nil {
		return err
	}
	now, known := c.index.item(it.key)
	if !known || !now.free {
		return nil
	}
	return c.dropFinalizers(ctx, it, live)
}

// classes are an object's references, by what is to be done about them.
type classes struct {
	solid     int         // owners that are there to stay
	unknown   int         // owners about which nothing can be said
	again     error       // why that may change
	absent    []types.UID // there is no such owner
	waiting   []types.UID // the owner waits for its dependents to be deleted
	releasing []types.UID // the owner waits for its dependents to forget it
}

// settled tells whether there is nothing to be done.
func (c *classes) settled() bool {
	return len(c.absent)+len(c.waiting)+len(c.releasing) == 0
}

// classify looks for the owners of an object: in etcd, or in watch caches that are as
// new as all that the collector has been told.
func (c *Collector) classify(ctx context.Context, it item, owners []metav1.OwnerReference, live bool) (classes, error) {
	var found classes
	for i := range owners {
		ref := &owners[i]
		if c.index.orphaning(key{it.cluster, ref.UID}) {
			found.releasing = append(found.releasing, ref.UID)
			continue
		}
		s, known := c.ownerKind(it, ref)
		if !known {
			found.unknown++
			continue
		}
		owner, err := c.owner(ctx, it, s, ref, live)
		switch {
		case err != nil:
			return classes{}, fmt.Errorf("looking for the owner %s %s: %w", s.Store.Kind(), ref.Name, err)
		case owner == nil:
			found.absent = append(found.absent, ref.UID)
		case quarantined(owner):
			found.unknown, found.again = found.unknown+1, errUnreadable
		case owner.UID != ref.UID:
			found.absent = append(found.absent, ref.UID)
		case owner.DeletionTimestamp != nil && hasFinalizer(owner, metav1.FinalizerDeleteDependents):
			found.waiting = append(found.waiting, ref.UID)
		default:
			found.solid++
		}
	}
	return found, nil
}

// ownerKind is the kind that a reference names. It is not known if no such kind is
// served, if its objects are in namespaces and the dependent is not, or if there can be
// no object of that name.
func (c *Collector) ownerKind(it item, ref *metav1.OwnerReference) (*source, bool) {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return nil, false
	}
	s := c.kinds[schema.GroupKind{Group: gv.Group, Kind: ref.Kind}]
	if s == nil {
		return nil, false
	}
	k := s.Store.Kind()
	return s, k.Serves(gv.Version) && s.Serves(it.cluster) && (!k.Namespaced() || it.namespace != "") &&
		ref.Name != "" && len(path.IsValidPathSegmentName(ref.Name)) == 0
}

// owner reads the object that a reference names, whatever its UID, or nil.
func (c *Collector) owner(ctx context.Context, it item, s *source, ref *metav1.OwnerReference, live bool) (*object.Object, error) {
	options := &metav1.GetOptions{}
	// A lease that ends takes several objects in one revision, of which a watch cache
	// may have seen the first only.
	if !live && s.Store.TTLFunc == nil {
		options.ResourceVersion = strconv.FormatUint(s.revision.Load(), 10)
	}
	obj, err := s.Store.Get(c.in(ctx, it.cluster, it.namespace), ref.Name, options)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return obj.(*object.Object), nil
}
