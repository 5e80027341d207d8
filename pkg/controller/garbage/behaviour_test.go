package garbage

import (
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apistorage "k8s.io/apiserver/pkg/storage"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

func everything() apistorage.ListOptions {
	return apistorage.ListOptions{Predicate: apistorage.Everything, Recursive: true}
}

const (
	background = metav1.DeletePropagationBackground
	foreground = metav1.DeletePropagationForeground
	orphan     = metav1.DeletePropagationOrphan

	// keeper holds an object that is being deleted.
	keeper = "example.com/keeper"
)

func TestBehaviour(t *testing.T) {
	deleted := func(id string, policy metav1.DeletionPropagation) func(w *world) {
		return func(w *world) { w.delete(id, policy) }
	}
	kept := func(id string) func(w *world) { return func(w *world) { w.loseFinalizer(id, keeper) } }
	cases := []struct {
		name   string
		things []thing
		act    func(w *world)
		want   map[string]string
		then   func(w *world)
		last   map[string]string // after then
	}{
		{
			name: "an object whose owner is there stays",
			things: []thing{
				{id: "configmaps/x/owner"},
				{id: "secrets/x/owned", owners: []owner{{of: "configmaps/x/owner"}}},
			},
			want: map[string]string{"configmaps/x/owner": "", "secrets/x/owned": "owner"},
		},
		{
			name: "what a deleted object owned is deleted, and what that owned",
			things: []thing{
				{id: "configmaps/x/owner"}, {id: "configmaps/x/other"},
				{id: "secrets/x/owned", owners: []owner{{of: "configmaps/x/owner"}}},
				{id: "configmaps/x/owned-too", owners: []owner{{of: "configmaps/x/owner"}}},
				{id: "configmaps/x/below", owners: []owner{{of: "secrets/x/owned"}}},
			},
			act:  deleted("configmaps/x/owner", background),
			want: map[string]string{"configmaps/x/other": ""},
		},
		{
			name: "kinds of Istio own and are owned",
			things: []thing{
				{id: "serviceentries/x/owner"},
				{id: "configmaps/x/owned", owners: []owner{{of: "serviceentries/x/owner"}}},
				{id: "serviceentries/x/below", owners: []owner{{of: "configmaps/x/owned"}}},
			},
			act:  deleted("serviceentries/x/owner", background),
			want: map[string]string{},
		},
		{
			name: "a reference in another version of the owner's kind counts",
			things: []thing{
				{id: "serviceentries/x/owner"},
				{id: "configmaps/x/owned", owners: []owner{{of: "serviceentries/x/owner", apiVersion: "networking.istio.io/v1alpha3"}}},
			},
			want: map[string]string{"serviceentries/x/owner": "", "configmaps/x/owned": "owner"},
			then: deleted("serviceentries/x/owner", background),
			last: map[string]string{},
		},
		{
			name: "with several owners the last counts, and references to others are dropped",
			things: []thing{
				{id: "configmaps/x/one"}, {id: "configmaps/x/two"},
				{id: "secrets/x/owned", owners: []owner{{of: "configmaps/x/one"}, {of: "configmaps/x/two"}}},
			},
			act:  deleted("configmaps/x/one", background),
			want: map[string]string{"configmaps/x/two": "", "secrets/x/owned": "two"},
			then: deleted("configmaps/x/two", background),
			last: map[string]string{},
		},
		{
			name:   "an owner that never was is absent",
			things: []thing{{id: "configmaps/x/owned", owners: []owner{{of: "configmaps/x/never"}}}},
			want:   map[string]string{},
		},
		{
			name: "an owner of that name but another UID is absent",
			things: []thing{
				{id: "configmaps/x/owner"},
				{id: "configmaps/x/owned", owners: []owner{{of: "configmaps/x/owner", uid: "another"}}},
			},
			want: map[string]string{"configmaps/x/owner": ""},
		},
		{
			name: "an owner in another namespace is absent",
			things: []thing{
				{id: "configmaps/x/owner"},
				{id: "configmaps/y/owned", owners: []owner{{of: "configmaps/x/owner"}}},
			},
			want: map[string]string{"configmaps/x/owner": ""},
		},
		{
			name: "a cluster-scoped owner owns in all namespaces",
			things: []thing{
				{id: "nodes//owner"},
				{id: "configmaps/x/owned", owners: []owner{{of: "nodes//owner"}}},
				{id: "configmaps/y/owned", owners: []owner{{of: "nodes//owner"}}},
				{id: "nodes//owned", owners: []owner{{of: "nodes//owner"}}},
			},
			want: map[string]string{"nodes//owner": "", "configmaps/x/owned": "owner", "configmaps/y/owned": "owner", "nodes//owned": "owner"},
			then: deleted("nodes//owner", background),
			last: map[string]string{},
		},
		{
			name: "a cluster-scoped object cannot be owned by a namespaced one and is let alone",
			things: []thing{
				{id: "configmaps/x/owner"},
				{id: "nodes//owned", owners: []owner{{of: "configmaps/x/owner"}}},
			},
			act:  deleted("configmaps/x/owner", background),
			want: map[string]string{"nodes//owned": "owner"},
		},
		{
			name: "an owner of a kind or version that is not served is not known to be absent",
			things: []thing{
				{id: "configmaps/x/kind", owners: []owner{{of: "deployments/x/d"}}},
				{id: "configmaps/x/version", owners: []owner{{of: "configmaps/x/never", apiVersion: "v9"}}},
				{id: "configmaps/x/mixed", owners: []owner{{of: "configmaps/x/never"}, {of: "deployments/x/d"}}},
			},
			want: map[string]string{"configmaps/x/kind": "d", "configmaps/x/version": "never", "configmaps/x/mixed": "never,d"},
		},
		{
			name:   "an owner whose name no object can bear is let alone",
			things: []thing{{id: "configmaps/x/owned", owners: []owner{{of: "configmaps/x/%"}}}},
			want:   map[string]string{"configmaps/x/owned": "%"},
		},
		{
			name: "absent owners of an owned object are dropped from it",
			things: []thing{
				{id: "configmaps/x/owner"},
				{id: "configmaps/x/owned", owners: []owner{{of: "configmaps/x/never"}, {of: "configmaps/x/owner", block: true}}},
			},
			want: map[string]string{"configmaps/x/owner": "", "configmaps/x/owned": "owner!"},
		},
		{
			name: "an object that owns itself stays and can be deleted",
			things: []thing{
				{id: "configmaps/x/self"},
			},
			act: func(w *world) {
				w.update("configmaps/x/self", func(o *object.Object) {
					o.OwnerReferences = w.references([]owner{{of: "configmaps/x/self", block: true}})
				})
			},
			want: map[string]string{"configmaps/x/self": "self!"},
			then: deleted("configmaps/x/self", foreground),
			last: map[string]string{},
		},
		{
			name: "an object that is given an absent owner later is deleted",
			things: []thing{
				{id: "configmaps/x/owner"}, {id: "configmaps/x/object"},
			},
			act: func(w *world) {
				w.update("configmaps/x/object", func(o *object.Object) {
					o.OwnerReferences = w.references([]owner{{of: "configmaps/x/never"}})
				})
			},
			want: map[string]string{"configmaps/x/owner": ""},
		},
		{
			name: "an object that lost its owner in time stays",
			things: []thing{
				{id: "configmaps/x/owner"},
				{id: "configmaps/x/owned", owners: []owner{{of: "configmaps/x/owner"}}},
			},
			act: func(w *world) {
				w.update("configmaps/x/owned", func(o *object.Object) { o.OwnerReferences = nil })
				w.delete("configmaps/x/owner", background)
			},
			want: map[string]string{"configmaps/x/owned": ""},
		},
		{
			name: "an owner that another finalizer holds is there",
			things: []thing{
				{id: "configmaps/x/owner", finalizers: []string{keeper}},
				{id: "configmaps/x/owned", owners: []owner{{of: "configmaps/x/owner"}}},
			},
			act:  deleted("configmaps/x/owner", background),
			want: map[string]string{"configmaps/x/owner": "deleting:" + keeper, "configmaps/x/owned": "owner"},
			then: kept("configmaps/x/owner"),
			last: map[string]string{},
		},
		{
			name: "in the foreground dependents go first, and those that block hold the owner",
			things: []thing{
				{id: "configmaps/x/owner"},
				{id: "secrets/x/held", owners: []owner{{of: "configmaps/x/owner", block: true}}, finalizers: []string{keeper}},
				{id: "secrets/x/owned", owners: []owner{{of: "configmaps/x/owner", block: true}}},
				{id: "secrets/x/lax", owners: []owner{{of: "configmaps/x/owner"}}},
			},
			act:  deleted("configmaps/x/owner", foreground),
			want: map[string]string{"configmaps/x/owner": "deleting:foregroundDeletion", "secrets/x/held": "owner!,deleting:" + keeper},
			then: kept("secrets/x/held"),
			last: map[string]string{},
		},
		{
			name: "in the foreground a dependent that does not block does not hold the owner",
			things: []thing{
				{id: "configmaps/x/owner"},
				{id: "secrets/x/held", owners: []owner{{of: "configmaps/x/owner"}}, finalizers: []string{keeper}},
			},
			act:  deleted("configmaps/x/owner", foreground),
			want: map[string]string{"secrets/x/held": "owner,deleting:" + keeper},
		},
		{
			name: "in the foreground a dependent that ceases to block lets the owner go",
			things: []thing{
				{id: "configmaps/x/owner"},
				{id: "secrets/x/held", owners: []owner{{of: "configmaps/x/owner", block: true}}, finalizers: []string{keeper}},
			},
			act:  deleted("configmaps/x/owner", foreground),
			want: map[string]string{"configmaps/x/owner": "deleting:foregroundDeletion", "secrets/x/held": "owner!,deleting:" + keeper},
			then: func(w *world) {
				w.update("secrets/x/held", func(o *object.Object) { o.OwnerReferences[0].BlockOwnerDeletion = nil })
			},
			last: map[string]string{"secrets/x/held": "owner,deleting:" + keeper},
		},
		{
			name: "in the foreground a dependent with another owner forgets the one that goes",
			things: []thing{
				{id: "configmaps/x/owner"}, {id: "configmaps/x/other"},
				{id: "secrets/x/owned", owners: []owner{{of: "configmaps/x/owner", block: true}, {of: "configmaps/x/other", block: true}}},
			},
			act:  deleted("configmaps/x/owner", foreground),
			want: map[string]string{"configmaps/x/other": "", "secrets/x/owned": "other!"},
		},
		{
			name:   "in the foreground an object without dependents goes at once",
			things: []thing{{id: "configmaps/x/owner"}},
			act:    deleted("configmaps/x/owner", foreground),
			want:   map[string]string{},
		},
		{
			name: "in the foreground the whole tree waits for its leaves",
			things: []thing{
				{id: "configmaps/x/root"},
				{id: "configmaps/x/branch", owners: []owner{{of: "configmaps/x/root", block: true}}},
				{id: "configmaps/x/leaf", owners: []owner{{of: "configmaps/x/branch", block: true}}, finalizers: []string{keeper}},
			},
			act: deleted("configmaps/x/root", foreground),
			want: map[string]string{
				"configmaps/x/root": "deleting:foregroundDeletion", "configmaps/x/branch": "root!,deleting:foregroundDeletion",
				"configmaps/x/leaf": "branch!,deleting:" + keeper,
			},
			then: kept("configmaps/x/leaf"),
			last: map[string]string{},
		},
		{
			name: "in the foreground a circle of owners ends",
			things: []thing{
				{id: "configmaps/x/a"},
				{id: "configmaps/x/b", owners: []owner{{of: "configmaps/x/a", block: true}}},
				{id: "configmaps/x/c", owners: []owner{{of: "configmaps/x/b", block: true}}},
			},
			act: func(w *world) {
				w.update("configmaps/x/a", func(o *object.Object) {
					o.OwnerReferences = w.references([]owner{{of: "configmaps/x/c", block: true}})
				})
				w.delete("configmaps/x/a", foreground)
			},
			want: map[string]string{},
		},
		{
			name: "a circle of owners stays until one is deleted",
			things: []thing{
				{id: "configmaps/x/a"},
				{id: "configmaps/x/b", owners: []owner{{of: "configmaps/x/a"}}},
			},
			act: func(w *world) {
				w.update("configmaps/x/a", func(o *object.Object) {
					o.OwnerReferences = w.references([]owner{{of: "configmaps/x/b"}})
				})
			},
			want: map[string]string{"configmaps/x/a": "b", "configmaps/x/b": "a"},
			then: deleted("configmaps/x/b", background),
			last: map[string]string{},
		},
		{
			name: "orphans stay and forget their owner",
			things: []thing{
				{id: "configmaps/x/owner"}, {id: "configmaps/x/other"},
				{id: "secrets/x/owned", owners: []owner{{of: "configmaps/x/owner", block: true}}},
				{id: "secrets/x/both", owners: []owner{{of: "configmaps/x/owner"}, {of: "configmaps/x/other"}}},
				{id: "configmaps/x/below", owners: []owner{{of: "secrets/x/owned"}}},
			},
			act: deleted("configmaps/x/owner", orphan),
			want: map[string]string{
				"configmaps/x/other": "", "secrets/x/owned": "", "secrets/x/both": "other", "configmaps/x/below": "owned",
			},
		},
		{
			name: "an orphan that is being deleted forgets its owner as well",
			things: []thing{
				{id: "configmaps/x/owner"},
				{id: "secrets/x/held", owners: []owner{{of: "configmaps/x/owner", block: true}}, finalizers: []string{keeper}},
			},
			act: func(w *world) {
				w.delete("secrets/x/held", background)
				w.delete("configmaps/x/owner", orphan)
			},
			want: map[string]string{"secrets/x/held": "deleting:" + keeper},
		},
		{
			name: "an orphan forgets its owner whatever other owners cannot be told of",
			things: []thing{
				{id: "nodes//owner"},
				{id: "secrets/x/owned", owners: []owner{{of: "nodes//owner"}, {of: "deployments/x/d"}}},
			},
			act:  deleted("nodes//owner", orphan),
			want: map[string]string{"secrets/x/owned": "d"},
		},
		{
			name: "the finalizer that a dependent bears beforehand decides about its own dependents",
			things: []thing{
				{id: "configmaps/x/owner"},
				{id: "configmaps/x/owned", owners: []owner{{of: "configmaps/x/owner"}}, finalizers: []string{"orphan"}},
				{id: "configmaps/x/below", owners: []owner{{of: "configmaps/x/owned"}}},
			},
			act:  deleted("configmaps/x/owner", background),
			want: map[string]string{"configmaps/x/below": ""},
		},
		{
			name: "orphans are let go by an owner that something else still holds",
			things: []thing{
				{id: "configmaps/x/owner", finalizers: []string{keeper}},
				{id: "secrets/x/owned", owners: []owner{{of: "configmaps/x/owner", block: true}}},
			},
			act:  deleted("configmaps/x/owner", orphan),
			want: map[string]string{"configmaps/x/owner": "deleting:" + keeper, "secrets/x/owned": ""},
			then: kept("configmaps/x/owner"),
			last: map[string]string{"secrets/x/owned": ""},
		},
	}
	s := newStorage(t)
	for _, late := range []bool{false, true} {
		for i, c := range cases {
			name := c.name
			if late {
				name += ", also when the collector starts afterwards"
			}
			t.Run(name, func(t *testing.T) {
				w := s.world(t, fmt.Sprintf("behaviour-%d-%t", i, late))
				var r *running
				if !late {
					r = s.start(t, nil, nil)
				}
				w.make(c.things...)
				if c.act != nil {
					c.act(w)
				}
				if late {
					r = s.start(t, nil, nil)
				}
				w.eventuallyAre(c.want)
				want := c.want
				if c.then != nil {
					c.then(w)
					want = c.last
					w.eventuallyAre(want)
				}
				w.settle(r)
				w.are(want)
				w.indexed(r, want)
			})
		}
	}
}
