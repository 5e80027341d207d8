package garbage

import (
	"maps"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

func TestWhatWakesWhom(t *testing.T) {
	meta := func(uid types.UID, owners ...types.UID) *object.Object {
		o := &object.Object{}
		o.Name, o.UID = string(uid), uid
		for _, owner := range owners {
			blocks := true
			o.OwnerReferences = append(o.OwnerReferences, metav1.OwnerReference{UID: owner, Name: string(owner), BlockOwnerDeletion: &blocks})
		}
		o.SetCluster("c")
		return o
	}
	deleting := func(o *object.Object, finalizers ...string) *object.Object {
		now := metav1.Now()
		o.DeletionTimestamp, o.Finalizers = &now, finalizers
		return o
	}
	const fg, orph = metav1.FinalizerDeleteDependents, metav1.FinalizerOrphanDependents
	cases := []struct {
		name   string
		before []*object.Object
		kind   watch.EventType
		change *object.Object
		want   []types.UID
		size   int
	}{
		{"an object without owners wakes nothing and is not kept", nil, watch.Added, meta("a"), nil, 0},
		{"nor does one that is being deleted for others", nil, watch.Modified, deleting(meta("a"), keeper), nil, 0},
		{"a new dependent is looked at", nil, watch.Added, meta("a", "owner"), []types.UID{"a"}, 2},
		{"a dependent that changes otherwise is not", []*object.Object{meta("a", "owner")}, watch.Modified, meta("a", "owner"), nil, 2},
		{"a dependent with another owner is", []*object.Object{meta("a", "owner")}, watch.Modified, meta("a", "other"), []types.UID{"a"}, 2},
		{"a dependent that forgets its owners leaves nothing", []*object.Object{meta("a", "owner")}, watch.Modified, meta("a"), nil, 0},
		{"a change of an owner wakes nothing", []*object.Object{meta("a", "owner")}, watch.Modified, meta("owner"), nil, 2},
		{"the end of an owner wakes its dependents", []*object.Object{meta("a", "owner"), meta("b", "owner")}, watch.Deleted, meta("owner"), []types.UID{"a", "b"}, 3},
		{"the end of a dependent leaves nothing", []*object.Object{meta("a", "owner")}, watch.Deleted, meta("a", "owner"), nil, 0},
		{"the end of something else wakes nothing", []*object.Object{meta("a", "owner")}, watch.Deleted, meta("else"), nil, 2},
		{
			"a deletion in the foreground wakes the owner and its dependents", []*object.Object{meta("a", "owner")},
			watch.Modified, deleting(meta("owner"), fg), []types.UID{"a", "owner"}, 2,
		},
		{
			"a deletion that becomes an orphaning one wakes them again", []*object.Object{meta("a", "owner"), deleting(meta("owner"), fg)},
			watch.Modified, deleting(meta("owner"), orph), []types.UID{"a", "owner"}, 2,
		},
		{
			"another change during the deletion wakes nothing", []*object.Object{meta("a", "owner"), deleting(meta("owner"), fg)},
			watch.Modified, deleting(meta("owner"), fg), nil, 2,
		},
		{
			"the end of one of two that block wakes nobody", []*object.Object{meta("a", "owner"), meta("b", "owner"), deleting(meta("owner"), fg)},
			watch.Deleted, meta("a", "owner"), nil, 2,
		},
		{
			"the end of the last that blocks wakes the owner", []*object.Object{meta("a", "owner"), deleting(meta("owner"), fg)},
			watch.Deleted, meta("a", "owner"), []types.UID{"owner"}, 1,
		},
		{
			"the last orphan to forget its owner wakes it", []*object.Object{meta("a", "owner", "other"), deleting(meta("owner"), orph)},
			watch.Modified, meta("a", "other"), []types.UID{"a", "owner"}, 3,
		},
		{
			"two references to one owner count once", []*object.Object{meta("a", "owner", "owner"), deleting(meta("owner"), fg)},
			watch.Deleted, meta("a"), []types.UID{"owner"}, 1,
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			x := &index{}
			s := &source{index: x}
			for _, o := range c.before {
				s.Changed(watch.Added, o, 1)
			}
			got, want := map[types.UID]bool{}, map[types.UID]bool{}
			for _, uid := range c.want {
				want[uid] = true
			}
			x.queue = func(k key) { got[k.uid] = true }
			s.Changed(c.kind, c.change, 2)
			if !maps.Equal(got, want) {
				t.Errorf("woke %v, want %v", got, want)
			}
			if len(x.nodes) != c.size || int(x.size.Load()) != c.size {
				t.Errorf("%d nodes are left, want %d", len(x.nodes), c.size)
			}
			if s.revision.Load() != 2 {
				t.Errorf("the revision is %d", s.revision.Load())
			}
		})
	}
}
