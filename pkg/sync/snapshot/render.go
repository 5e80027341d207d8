package snapshot

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/policy"
)

// renderBatch is how many objects are worth a goroutine of their own.
const renderBatch = 32

// results are what became of what was pending.
type results struct {
	changes  []change
	failures map[string]v1alpha1.QuarantinedResource
	held     map[*object.Object]policy.Violation // the objects that may not be in the mesh
	free     []*object.Object                    // those that may
	good     map[string]*object.Object           // of failures, what the list keeps
	said     map[string]said                     // what is said for shared hosts; of failures, by what the list keeps
	kept     map[string]struct{}                 // of failures, those that are as they were
	rendered int
}

// said is what an object says for shared hosts.
type said struct {
	object *object.Object
	shared *policy.Shared
}

// outcome is what became of one object.
type outcome struct {
	entry     *rendered
	shared    *policy.Shared
	violation *policy.Violation
	err       error
	// When there is an error: what the list has of it may no longer be in the mesh.
	formerViolation *policy.Violation
}

// renderAll makes changes of what is pending in one kind, using all processors when
// there is much of it. An object that fails stays as it is in the list, unless what
// the list has is gone, or may not be there any more. One that may not be there leaves it.
func renderAll(kind *Kind, todo map[string]pending, of func(cluster string) rights) results {
	type task struct {
		change
		pending
		rights rights
		outcome
	}
	tasks := make([]task, 0, len(todo))
	for key, p := range todo {
		t := task{change: change{key: key}, pending: p}
		if p.object != nil && kind.Admit != nil {
			t.rights = of(p.object.Cluster())
		}
		tasks = append(tasks, t)
	}
	var wg sync.WaitGroup
	workers := min(runtime.GOMAXPROCS(0), (len(todo)+renderBatch-1)/renderBatch)
	for w := range workers {
		part := func() {
			var message []byte
			for i := w; i < len(tasks); i += workers {
				t := &tasks[i]
				if t.object == nil {
					continue
				}
				t.outcome, message = renderOne(kind, t.object, t.rights, t.change.key, message[:0])
				if t.err != nil && t.previous != nil {
					before := former(kind, t.previous, t.rights)
					t.formerViolation, t.shared = before.violation, before.shared
				}
			}
		}
		if w == workers-1 {
			part()
		} else {
			wg.Go(part)
		}
	}
	wg.Wait()

	r := results{changes: make([]change, 0, len(tasks))}
	hold := func(o *object.Object, v policy.Violation) {
		if r.held == nil {
			r.held = map[*object.Object]policy.Violation{}
		}
		r.held[o] = v
	}
	for _, t := range tasks {
		o, gone := t.object, change{key: t.change.key}
		if by := o; t.shared != nil {
			if t.err != nil {
				by = t.previous
			}
			if r.said == nil {
				r.said = map[string]said{}
			}
			r.said[t.change.key] = said{by, t.shared}
		}
		switch {
		case o == nil:
			r.changes = append(r.changes, gone)
		case t.violation != nil:
			r.changes = append(r.changes, gone)
			hold(o, *t.violation)
		case t.err == nil:
			r.rendered++
			r.changes = append(r.changes, change{key: t.change.key, entry: t.outcome.entry})
			r.free = append(r.free, o)
		default:
			if r.failures == nil {
				r.failures = map[string]v1alpha1.QuarantinedResource{}
			}
			r.failures[t.change.key] = v1alpha1.QuarantinedResource{
				VirtualCluster: o.Cluster(), Kind: kind.Name, Namespace: o.Namespace, Name: o.Name, Message: shorten(t.err.Error()),
			}
			switch {
			case t.formerViolation != nil:
				r.changes = append(r.changes, gone)
				hold(o, *t.formerViolation)
				continue
			case t.removed:
				r.changes = append(r.changes, gone)
			case t.previous != nil:
				if r.good == nil {
					r.good = map[string]*object.Object{}
				}
				r.good[t.change.key] = t.previous
			default:
				if r.kept == nil {
					r.kept = map[string]struct{}{}
				}
				r.kept[t.change.key] = struct{}{}
			}
			r.free = append(r.free, o)
		}
	}
	return r
}

// former is what becomes of the form in which an object is in the list.
func former(kind *Kind, o *object.Object, r rights) outcome {
	out, _ := renderOne(kind, o, r, key(o.Namespace, o.Name), nil)
	return out
}

// shorten bounds a text that goes into the status of a mesh.
func shorten(text string) string {
	const enough = 512
	if len(text) > enough {
		text = text[:enough] + "..."
	}
	return strings.ToValidUTF8(text, "?")
}

// renderOne uses the memory of scratch and returns what became of it.
func renderOne(kind *Kind, o *object.Object, r rights, key string, scratch []byte) (out outcome, message []byte) {
	if reason, is := o.Annotations[QuarantinedAnnotation]; is {
		return outcome{err: errors.New(reason)}, scratch
	}
	defer func() {
		if r := recover(); r != nil {
			out, message = outcome{err: fmt.Errorf("rendering the object: %v", r)}, scratch
		}
	}()
	var shared *policy.Shared
	if kind.Admit != nil {
		shown, violations, err := kind.Admit(o, r.view, r.exports)
		switch {
		case err != nil:
			return outcome{err: err}, scratch
		case len(violations) > 0:
			return outcome{violation: &violations[0]}, scratch
		}
		o = shown
		if kind.Share != nil {
			shared = kind.Share(o, r.view)
		}
	}
	message, err := kind.AppendMessage(scratch, o)
	if err != nil {
		return outcome{err: err}, scratch
	}
	entry := render(o, key, typePrefix+kind.MessageName, message)
	return outcome{entry: &entry, shared: shared}, message
}
