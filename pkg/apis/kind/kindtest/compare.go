package kindtest

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/google/go-cmp/cmp"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// Compare holds the kind of a definition against the reference, with a number of
// random objects and updates of them for each version. The kind's own hooks are
// left out.
func Compare(t *testing.T, crd *apiextensionsv1.CustomResourceDefinition, rounds int) {
	t.Helper()
	k, err := kind.New(crd, kind.Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	for _, version := range k.Versions() {
		t.Run(k.GroupKind().Kind+"/"+version, func(t *testing.T) {
			r, err := NewReference(crd, version)
			if err != nil {
				t.Fatal(err)
			}
			c := &comparison{kind: k, version: version, reference: r, fields: FieldManager(t, k, version), verdicts: map[bool]int{}}
			for seed := range rounds {
				c.round(t, uint64(seed))
				if t.Failed() {
					t.Fatalf("in round %d", seed)
				}
			}
			t.Logf("%d valid, %d invalid, %d recorded as created, %d as applied", c.verdicts[true], c.verdicts[false], c.recorded, c.applied)
			if c.recorded == 0 {
				t.Error("the kind has never recorded a creation by itself")
			}
		})
	}
}

type comparison struct {
	kind      *kind.Kind
	version   string
	reference *Reference
	fields    *managedfields.FieldManager
	verdicts  map[bool]int
	recorded  int // creations whose managed fields the kind recorded by itself
	applied   int // first applies that the kind made by itself
}

func (c *comparison) round(t *testing.T, seed uint64) {
	g := &Generator{Rand: rand.New(rand.NewPCG(seed, 1)), Faults: [...]float64{0, 0.01, 0.05, 0.2}[seed%4]}
	body := c.body(t, g.Object(c.reference.Structural))
	obj, tree := c.Decode(t, body)
	if t.Failed() || obj == nil {
		return
	}
	c.managed(t, body)
	c.validate(t, obj, nil, tree, nil)

	// The same object, a part of it made anew, is an update.
	next := runtime.DeepCopyJSON(tree)
	fresh := g.Object(c.reference.Structural)
	for _, name := range []string{"spec", "status"} {
		replace(g, next, fresh, name, 0)
	}
	updated, nextTree := c.Decode(t, c.body(t, next))
	if t.Failed() || updated == nil {
		return
	}
	for _, o := range []*object.Object{obj, updated} {
		o.ResourceVersion = "1"
	}
	for _, u := range []map[string]any{tree, nextTree} {
		u["metadata"].(map[string]any)["resourceVersion"] = "1"
	}
	c.validate(t, updated, obj, nextTree, tree)
}

// replace puts a member of fresh in place of the tree's at some depth.
func replace(g *Generator, tree, fresh map[string]any, name string, depth int) {
	from, ok1 := fresh[name].(map[string]any)
	to, ok2 := tree[name].(map[string]any)
	if !ok1 || !ok2 || len(from) == 0 || depth > 2 || g.chance(0.3) {
		if v, ok := fresh[name]; ok {
			tree[name] = v
		}
		return
	}
	names := make([]string, 0, len(from))
	for n := range from {
		names = append(names, n)
	}
	slices.Sort(names)
	replace(g, to, from, names[g.Rand.IntN(len(names))], depth+1)
}

func (c *comparison) body(t *testing.T, content map[string]any) []byte {
	t.Helper()
	tree := map[string]any{}
	for name, v := range content {
		tree[name] = v
	}
	gvk := c.kind.GVK(c.version)
	tree["apiVersion"], tree["kind"] = gvk.GroupVersion().String(), gvk.Kind
	meta := map[string]any{"name": "one", "labels": map[string]any{"app": "shop"}}
	if c.kind.Namespaced() {
		meta["namespace"] = "shop"
	}
	tree["metadata"] = meta
	data, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Decode reads a body both ways and fails the test where they differ.
func (c *comparison) Decode(t *testing.T, data []byte) (*object.Object, map[string]any) {
	t.Helper()
	var obj *object.Object
	var tree map[string]any
	for _, strict := range []bool{true, false} {
		o, got, err := c.kind.Decode(c.version, data, strict)
		want, wantStrict, wantErr := c.reference.Decode(data, strict)
		if (err != nil) != (wantErr != nil) {
			t.Errorf("%s\ndecoding (strict %v): %v, upstream: %v", data, strict, err, wantErr)
			return nil, nil
		}
		if err != nil {
			return nil, nil
		}
		if diff := cmp.Diff(texts(wantStrict), texts(got)); diff != "" {
			t.Errorf("%s\nstrict errors differ (-upstream +kind):\n%s", data, diff)
		}
		u, err := o.Unstructured()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, u); diff != "" {
			t.Errorf("%s\ndecoded objects differ (-upstream +kind):\n%s", data, diff)
		}
		obj, tree = o, want
	}
	return obj, tree
}

func (c *comparison) validate(t *testing.T, obj, old *object.Object, tree, oldTree map[string]any) {
	t.Helper()
	_, errs := c.kind.Validate(t.Context(), c.version, obj, old)
	want := c.reference.Validate(t.Context(), tree, oldTree)
	c.verdicts[len(want) == 0]++
	if diff := cmp.Diff(messages(want), messages(errs)); diff != "" {
		t.Errorf("%s\nerrors differ, update %v (-upstream +kind):\n%s", obj.Body(), old != nil, diff)
	}
	if old == nil || !c.kind.HasStatus(c.version) {
		return
	}
	errs = c.kind.ValidateStatus(t.Context(), c.version, obj, old)
	want = c.reference.ValidateStatus(t.Context(), tree, oldTree)
	if diff := cmp.Diff(messages(want), messages(errs)); diff != "" {
		t.Errorf("%s\nerrors of the status differ (-upstream +kind):\n%s", obj.Body(), diff)
	}
}

func texts(errs []error) []string {
	var out []string
	for _, err := range errs {
		out = append(out, err.Error())
	}
	return out
}

// messages are the errors in an order of their own: upstream's is that of a map.
func messages(errs field.ErrorList) []string {
	var out []string
	for _, err := range errs {
		out = append(out, fmt.Sprintf("%s %s", err.Type, err))
	}
	slices.Sort(out)
	return out
}
