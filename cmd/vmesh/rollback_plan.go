package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// target is one object that has changed since the state to go back to.
type target struct {
	gvr             schema.GroupVersionResource
	kind            string
	namespace, name string
	// then is the object as it was; nil if there was none.
	then map[string]any
	// known is the object as the history last has it.
	known map[string]any
	// remade says that what there is may be another object of that name than the one there was.
	remade bool
	// lost says why the history has not what it was.
	lost string
}

func (t *target) String() string {
	name := strings.ToLower(t.kind) + "/" + t.name
	if t.namespace != "" {
		name = t.namespace + "/" + name
	}
	return name
}

func (t *target) isNamespace() bool { return t.gvr.Group == "" && t.gvr.Resource == "namespaces" }

// targets are the objects that changes, the newest first, are about. What an object was
// before its oldest change is what it was.
func targets(changes []*v1alpha1.Change) ([]*target, error) {
	type key struct{ group, resource, namespace, name string }
	known := map[key]*target{}
	var all []*target
	for _, c := range changes {
		gv, err := schema.ParseGroupVersion(c.Object.APIVersion)
		if err != nil {
			return nil, fmt.Errorf("change %s: %w", c.Name, err)
		}
		k := key{gv.Group, c.Object.Resource, c.Object.Namespace, c.Object.Name}
		t := known[k]
		if t == nil {
			t = &target{gvr: gv.WithResource(c.Object.Resource), kind: c.Object.Kind, namespace: k.namespace, name: k.name}
			if t.known, err = content(c.After); err != nil {
				return nil, fmt.Errorf("change %s: %w", c.Name, err)
			}
			known[k] = t
			all = append(all, t)
		}
		if t.then, err = content(c.Before); err != nil {
			return nil, fmt.Errorf("change %s: %w", c.Name, err)
		}
		t.remade = t.remade || c.Operation == v1alpha1.ChangeCreate
		t.lost = ""
		if c.Omitted != "" && c.Operation != v1alpha1.ChangeCreate {
			t.lost = fmt.Sprintf("change %s has not kept what it was: %s", c.Name, c.Omitted)
		}
		if metadata, _ := t.then["metadata"].(map[string]any); metadata["deletionTimestamp"] != nil {
			t.then = nil // it was on its way out, and nobody can bring it back to that
		}
	}
	return all, nil
}

// action is what is to be done to an object.
type action string

const (
	create action = "create"
	update action = "update"
	remove action = "delete"
	// replace is what an update becomes if an object was made anew since with what cannot be changed.
	replace action = "replace"
	keep    action = "keep" // although it should not be there
	refuse  action = "cannot"
)

// step is what is to be done to one object.
type step struct {
	*target
	action action
	// current is what there is; nil if there is none.
	current *unstructured.Unstructured
	// object is what is written.
	object *unstructured.Unstructured
	note   string // for readers
}

// plan says what to do to an object that is now as current says; nil for nothing.
func (t *target) plan(current *unstructured.Unstructured) *step {
	s := &step{target: t, current: current}
	switch {
	case t.lost != "":
		s.action, s.note = refuse, t.lost
	case t.then == nil && current == nil:
		return nil
	case current != nil && current.GetDeletionTimestamp() != nil:
		s.action, s.note = refuse, "it is being deleted: try again when it is gone"
	case t.then == nil && t.isNamespace():
		s.action, s.note = keep, "it was made since; delete it by hand if you mean to, with the secrets and all else that is in it"
	case t.then == nil:
		s.action = remove
	case current == nil:
		s.action, s.object = create, t.recreated()
		if _, owned, _ := unstructured.NestedSlice(t.then, "metadata", "ownerReferences"); owned {
			s.note = "without the owners that it had"
		}
	default:
		s.object = t.restored(current)
		if apiequality.Semantic.DeepEqual(s.object.Object, current.Object) {
			return nil
		}
		s.action = update
	}
	if current != nil && s.action != refuse && !apiequality.Semantic.DeepEqual(written(current.Object), written(t.known)) {
		s.note = strings.TrimPrefix(s.note+"; it is not as its last change left it: somebody has just written it, or wrote it while no history was kept", "; ")
	}
	return s
}

// kept are the members of metadata that the server keeps.
var kept = []string{"uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields", "selfLink", "generateName"}

// written is what a user wrote of an object.
func written(object map[string]any) map[string]any {
	if object == nil {
		return nil
	}
	out := maps.Clone(object)
	delete(out, "status")
	if metadata, ok := out["metadata"].(map[string]any); ok {
		metadata = maps.Clone(metadata)
		for _, name := range kept {
			delete(metadata, name)
		}
		out["metadata"] = metadata
	}
	return out
}

// recreated is the object anew. Its owners may be others now, or gone, which would have it
// collected; and what held up its deletion must not hold up the next one's.
func (t *target) recreated() *unstructured.Unstructured {
	o := &unstructured.Unstructured{Object: (&unstructured.Unstructured{Object: written(t.then)}).DeepCopy().Object}
	unstructured.RemoveNestedField(o.Object, "metadata", "ownerReferences")
	finalizers := slices.DeleteFunc(o.GetFinalizers(), func(f string) bool { return f == "foregroundDeletion" || f == "orphan" })
	o.SetFinalizers(finalizers)
	if t.isNamespace() {
		delete(o.Object, "spec")
	}
	return o
}

// restored is what there is, with what a user wrote as it was.
func (t *target) restored(current *unstructured.Unstructured) *unstructured.Unstructured {
	o := current.DeepCopy()
	then := (&unstructured.Unstructured{Object: t.then}).DeepCopy().Object
	if !t.isNamespace() { // of which spec has an endpoint of its own
		for name := range o.Object {
			if _, has := then[name]; !has && name != "status" {
				delete(o.Object, name)
			}
		}
		for name, value := range then {
			if name != "metadata" && name != "status" && name != "apiVersion" {
				o.Object[name] = value
			}
		}
	}
	metadata, _ := then["metadata"].(map[string]any)
	now, _ := o.Object["metadata"].(map[string]any)
	for _, name := range []string{"labels", "annotations", "finalizers", "ownerReferences"} {
		if value, has := metadata[name]; has {
			now[name] = value
		} else {
			delete(now, name)
		}
	}
	return o
}

// ranks say in which order kinds are written, the others between them: what is referred to comes first, and
// what may stand in the way of others last.
var ranks = map[string]int{
	"namespaces": 0, "serviceaccounts": 1, "roles": 2, "clusterroles": 2, "rolebindings": 3, "clusterrolebindings": 3, "configmaps": 4, "services": 5,
	"serviceentries": 6, "workloadentries": 6, "workloadgroups": 6, "destinationrules": 7, "gateways": 7,
	"validatingadmissionpolicies": 20, "mutatingadmissionpolicies": 20, "validatingadmissionpolicybindings": 21, "mutatingadmissionpolicybindings": 21,
	"validatingwebhookconfigurations": 22, "mutatingwebhookconfigurations": 22,
}

const usualRank = 10

func (s *step) rank() int {
	if rank, has := ranks[s.gvr.Resource]; has {
		return rank
	}
	return usualRank
}

// sortSteps puts steps in the order in which they are done: all that is created or updated
// before what is deleted, which goes the other way round.
func sortSteps(steps []*step) {
	phase := map[action]int{create: 0, update: 0, remove: 1, keep: 2, refuse: 2}
	slices.SortStableFunc(steps, func(a, b *step) int {
		if d := phase[a.action] - phase[b.action]; d != 0 {
			return d
		}
		d := a.rank() - b.rank()
		if a.action == remove {
			d = -d
		}
		if d != 0 {
			return d
		}
		return strings.Compare(a.String(), b.String())
	})
}
