package snapshot

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// renderBatch is how many objects are worth a goroutine of their own.
const renderBatch = 32

// renderAll makes changes of what is pending in one kind, using all processors when
// there is much of it. An object that fails stays as it is in the list, unless what
// the list has is gone.
func renderAll(kind *Kind, todo map[string]pending) (changes []change, failures map[string]v1alpha1.QuarantinedResource, count int) {
	changes = make([]change, 0, len(todo))
	objects := make([]*object.Object, 0, len(todo))
	for key, p := range todo {
		changes = append(changes, change{key: key})
		objects = append(objects, p.object)
	}
	errs := make([]error, len(todo))
	var wg sync.WaitGroup
	workers := min(runtime.GOMAXPROCS(0), (len(todo)+renderBatch-1)/renderBatch)
	for w := range workers {
		part := func() {
			var message []byte
			for i := w; i < len(objects); i += workers {
				if objects[i] != nil {
					changes[i].entry, message, errs[i] = renderOne(kind, objects[i], changes[i].key, message[:0])
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

	done := changes[:0]
	for i, c := range changes {
		switch {
		case objects[i] == nil:
			done = append(done, c)
		case errs[i] == nil:
			count++
			done = append(done, c)
		default:
			o := objects[i]
			if failures == nil {
				failures = map[string]v1alpha1.QuarantinedResource{}
			}
			failures[c.key] = v1alpha1.QuarantinedResource{
				VirtualCluster: o.Cluster(), Kind: kind.Name, Namespace: o.Namespace, Name: o.Name, Message: shorten(errs[i].Error()),
			}
			if todo[c.key].removed {
				done = append(done, c)
			}
		}
	}
	return done, failures, count
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
func renderOne(kind *Kind, o *object.Object, key string, scratch []byte) (entry *rendered, message []byte, err error) {
	if reason, is := o.Annotations[QuarantinedAnnotation]; is {
		return nil, scratch, errors.New(reason)
	}
	defer func() {
		if r := recover(); r != nil {
			entry, err = nil, fmt.Errorf("rendering the object: %v", r)
		}
	}()
	if message, err = kind.AppendMessage(scratch, o); err != nil {
		return nil, scratch, err
	}
	r := render(o, key, typePrefix+kind.MessageName, message)
	return &r, message, nil
}
