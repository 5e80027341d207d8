package resource

import (
	"slices"
	"testing"

	"github.com/vmesh-io/vmesh/pkg/apis/builtin"
	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

func strategies(t *testing.T) map[string]strategy {
	t.Helper()
	core, err := builtin.Kinds()
	if err != nil {
		t.Fatal(err)
	}
	mesh, err := istio.Kinds()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]strategy{}
	for _, k := range slices.Concat(core, mesh) {
		out[k.Resource()] = newStrategy(k, nil)
	}
	return out
}

func withBody(t *testing.T, s strategy, body string) *object.Object {
	t.Helper()
	o := object.New(s.kind.GVK(s.kind.StorageVersion()))
	gvk := o.GroupVersionKind()
	if err := o.UnmarshalJSON([]byte(`{"apiVersion":"` + gvk.GroupVersion().String() + `","kind":"` + gvk.Kind + `","metadata":{"name":"a"},` + body[1:])); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestWhatACreateKeeps(t *testing.T) {
	all := strategies(t)
	for _, c := range []struct {
		name, resource, body, want string
		generation                 int64
	}{
		{"a status has an endpoint of its own", "virtualservices", `{"spec":{"a":1},"status":{"b":2}}`, `"spec":{"a":1}`, 1},
		{"also that of Kubernetes' own kinds", "pods", `{"spec":{"a":1},"status":{"b":2}}`, `"spec":{"a":1}`, 0},
		{"but a node comes with its status", "nodes", `{"spec":{"a":1},"status":{"b":2}}`, `"spec":{"a":1},"status":{"b":2}`, 0},
		{"and a kind without the endpoint has a member like any other", "leases", `{"status":{"b":2}}`, `"status":{"b":2}`, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := all[c.resource]
			o := withBody(t, s, c.body)
			o.Generation = 7
			s.PrepareForCreate(t.Context(), o)
			if got := string(o.Body()); got != c.want || o.Generation != c.generation {
				t.Errorf("got %s of generation %d", got, o.Generation)
			}
		})
	}
}

func TestAnUpdateKeepsTheStatusAndAStatusUpdateTheRest(t *testing.T) {
	all := strategies(t)
	for _, resource := range []string{"virtualservices", "pods", "nodes"} {
		t.Run(resource, func(t *testing.T) {
			s := all[resource]
			old := withBody(t, s, `{"spec":{"a":1},"status":{"b":2}}`)
			o := withBody(t, s, `{"spec":{"a":3},"status":{"b":4}}`)
			s.PrepareForUpdate(t.Context(), o, old)
			if got := string(o.Body()); got != `"spec":{"a":3},"status":{"b":2}` {
				t.Errorf("an update writes %s", got)
			}
			o = withBody(t, s, `{"spec":{"a":3},"status":{"b":4}}`)
			o.Labels = map[string]string{"x": "y"}
			statusStrategy{s}.PrepareForUpdate(t.Context(), o, old)
			if got := string(o.Body()); got != `"spec":{"a":1},"status":{"b":4}` || o.Labels != nil {
				t.Errorf("an update of the status writes %s, labels %v", got, o.Labels)
			}
		})
	}
}
