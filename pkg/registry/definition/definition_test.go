package definition

import (
	"context"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/builtin"
	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

func newREST(t *testing.T, names ...string) *REST {
	t.Helper()
	kinds, err := builtin.Kinds()
	if err != nil {
		t.Fatal(err)
	}
	k := kinds[slices.IndexFunc(kinds, func(k *kind.Kind) bool { return k.Resource() == "customresourcedefinitions" })]
	var all []*object.Object
	for _, name := range names {
		o := object.New(k.GVK(k.StorageVersion()))
		o.Name, o.Labels = name, map[string]string{"first": name[:1]}
		all = append(all, o)
	}
	return New(k, func() ([]*object.Object, error) { return all, nil })
}

func TestDefinitionsAreReadAndNotWritten(t *testing.T) {
	r := newREST(t, "a.x", "b.x", "c.x")
	obj, err := r.Get(t.Context(), "b.x", nil)
	if err != nil {
		t.Fatal(err)
	}
	if o := obj.(*object.Object); o.Name != "b.x" || o.ResourceVersion == "" || o.CreationTimestamp.IsZero() {
		t.Errorf("got %+v", o.ObjectMeta)
	}
	if _, err := r.Get(t.Context(), "bb.x", nil); !apierrors.IsNotFound(err) {
		t.Errorf("what is not there: %v", err)
	}
	for _, c := range []struct {
		name    string
		options internalversion.ListOptions
		want    string
	}{
		{"all", internalversion.ListOptions{}, "a.x b.x c.x"},
		{"one by its label", internalversion.ListOptions{LabelSelector: labels.SelectorFromSet(labels.Set{"first": "c"})}, "c.x"},
		{"one by its name", internalversion.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", "a.x")}, "a.x"},
		{"none", internalversion.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", "z.x")}, ""},
	} {
		list, err := r.List(t.Context(), &c.options)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, o := range list.(*object.List).Items {
			names = append(names, o.Name)
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("%s: got %s", c.name, got)
		}
	}
	var storage rest.Storage = r
	if _, ok := storage.(rest.Updater); ok {
		t.Error("they can be updated")
	}
	if _, ok := storage.(rest.Creater); ok {
		t.Error("they can be created")
	}
	if _, ok := storage.(rest.GracefulDeleter); ok {
		t.Error("they can be deleted")
	}
}

func TestAWatchShowsWhatThereIsAndThenIsQuiet(t *testing.T) {
	r := newREST(t, "a.x", "b.x")
	yes := true
	for _, c := range []struct {
		name    string
		options internalversion.ListOptions
		want    string
	}{
		{"from the beginning", internalversion.ListOptions{}, "ADDED ADDED"},
		{"from a list", internalversion.ListOptions{ResourceVersion: resourceVersion}, ""},
		{"as a streaming list", internalversion.ListOptions{SendInitialEvents: &yes, AllowWatchBookmarks: true}, "ADDED ADDED BOOKMARK"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			w, err := r.Watch(ctx, &c.options)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Stop()
			var got []string
			for range strings.Fields(c.want) {
				e := <-w.ResultChan()
				got = append(got, string(e.Type))
				if o := e.Object.(*object.Object); e.Type == watch.Bookmark && o.Annotations[metav1.InitialEventsAnnotationKey] != "true" {
					t.Errorf("the bookmark has annotations %v", o.Annotations)
				}
			}
			select {
			case e := <-w.ResultChan():
				t.Errorf("then comes %v", e)
			default:
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
}
