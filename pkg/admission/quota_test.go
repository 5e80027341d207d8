package admission

import (
	"context"
	"errors"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

func TestTheQuotaIsAskedOfDryRunsAlone(t *testing.T) {
	full := errors.New("full")
	configMaps := schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	for _, c := range []struct {
		name     string
		old, new *object.Object
		dry      bool
		asked    bool
	}{
		{"a dry creation", nil, &object.Object{}, true, true},
		{"a dry update", &object.Object{}, &object.Object{}, true, true},
		{"a creation", nil, &object.Object{}, false, false},
		{"something else than an object", nil, nil, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := NewQuota(func(_ context.Context, gr schema.GroupResource, o, old *object.Object) error {
				if gr != configMaps.GroupResource() || o != c.new || old != c.old {
					t.Errorf("asked of %s: %v in the place of %v", gr, o, old)
				}
				return full
			})
			var a admission.Attributes
			switch {
			case c.new == nil:
				a = admission.NewAttributesRecord(nil, nil, schema.GroupVersionKind{}, "", "a", configMaps, "", admission.Create, nil, c.dry, nil)
			case c.old == nil:
				a = admission.NewAttributesRecord(c.new, nil, schema.GroupVersionKind{}, "", "a", configMaps, "", admission.Create, nil, c.dry, nil)
			default:
				a = admission.NewAttributesRecord(c.new, c.old, schema.GroupVersionKind{}, "", "a", configMaps, "", admission.Update, nil, c.dry, nil)
			}
			if err := q.Validate(t.Context(), a, nil); (err != nil) != c.asked {
				t.Errorf("got %v", err)
			}
		})
	}
	if NewQuota(nil).Handles(admission.Delete) {
		t.Error("deletions are asked")
	}
}
