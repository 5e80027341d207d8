package kind_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/kind/kindtest"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

func widget(tb testing.TB, hooks kind.Hooks) *kind.Kind {
	tb.Helper()
	k, err := kind.New(widgets(tb), hooks)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// decode makes an object of the members besides apiVersion and kind.
func decode(tb testing.TB, k *kind.Kind, members string) *object.Object {
	tb.Helper()
	body := `{"apiVersion":"test.vmesh.io/v1","kind":"Widget","metadata":{"name":"one","namespace":"shop"}`
	if members != "" {
		body += "," + members
	}
	o, strict, err := k.Decode("v1", []byte(body+"}"), true)
	if err != nil || len(strict) > 0 {
		tb.Fatal(err, strict)
	}
	return o
}

func TestAKindIsWhatItsDefinitionSays(t *testing.T) {
	k := widget(t, kind.Hooks{})
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"group resource", k.GroupResource().String(), "widgets.test.vmesh.io"},
		{"group kind", k.GroupKind().String(), "Widget.test.vmesh.io"},
		{"singular, left out", k.Singular(), "widget"},
		{"list kind, left out", k.ListKind(), "WidgetList"},
		{"short names", strings.Join(k.ShortNames(), " "), "wd"},
		{"categories", strings.Join(k.Categories(), " "), "all"},
		{"namespaced", k.Namespaced(), true},
		{"versions, preferred first", strings.Join(k.Versions(), " "), "v1 v1beta1"},
		{"storage version", k.StorageVersion(), "v1"},
		{"a version that is not served", k.Serves("v1alpha1"), false},
		{"status in v1", k.HasStatus("v1"), true},
		{"status in v1beta1", k.HasStatus("v1beta1"), false},
		{"deprecation of v1", k.Deprecation("v1"), ""},
		{"deprecation of v1beta1", k.Deprecation("v1beta1"), "test.vmesh.io/v1beta1 Widget is deprecated; use test.vmesh.io/v1 Widget"},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %v, want %v", c.what, c.got, c.want)
		}
	}
}

func TestBrokenDefinitionsAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(*apiextensionsv1.CustomResourceDefinition){
		"no kind":           func(c *apiextensionsv1.CustomResourceDefinition) { c.Spec.Names.Kind = "" },
		"no stored version": func(c *apiextensionsv1.CustomResourceDefinition) { c.Spec.Versions[2].Storage = false },
		"a bad column": func(c *apiextensionsv1.CustomResourceDefinition) {
			c.Spec.Versions[2].AdditionalPrinterColumns[0].JSONPath = ".a["
		},
		"a bad selectable field": func(c *apiextensionsv1.CustomResourceDefinition) {
			c.Spec.Versions[2].SelectableFields[0].JSONPath = ".a["
		},
	} {
		t.Run(name, func(t *testing.T) {
			crd := widgets(t)
			spoil(crd)
			if _, err := kind.New(crd, kind.Hooks{}); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestDecode(t *testing.T) {
	k := widget(t, kind.Hooks{})
	builtin := widget(t, kind.Hooks{Builtin: true})
	for _, c := range []struct {
		name, body string
		builtin    bool
		want       string // the object as JSON
		strict     []string
		err        string
	}{
		{
			name: "defaults are filled in",
			body: `{"apiVersion":"test.vmesh.io/v1","kind":"Widget","metadata":{"name":"one","creationTimestamp":null},"spec":{"colour":"red"}}`,
			want: `{"apiVersion":"test.vmesh.io/v1","kind":"Widget","metadata":{"name":"one"},"spec":{"colour":"red","count":3,"filled":{"deep":7},"port":"http"}}`,
		},
		{
			name: "unknown fields are pruned and reported",
			body: `{"apiVersion":"test.vmesh.io/v1","kind":"Widget","metadata":{"name":"one","nom":"un"},"what":1,"spec":{"colour":"red","color":"red","filled":{"x":1}}}`,
			want: `{"apiVersion":"test.vmesh.io/v1","kind":"Widget","metadata":{"name":"one"},"spec":{"colour":"red","count":3,"filled":{"deep":7},"port":"http"}}`,
			strict: []string{
				`unknown field "metadata.nom"`, `unknown field "spec.color"`, `unknown field "spec.filled.x"`, `unknown field "what"`,
			},
		},
		{
			name:   "of a field given twice the last counts",
			body:   `{"apiVersion":"test.vmesh.io/v1","kind":"Widget","metadata":{"name":"one"},"spec":{"colour":"red","count":1,"colour":"blue","filled":{},"port":1}}`,
			want:   `{"apiVersion":"test.vmesh.io/v1","kind":"Widget","metadata":{"name":"one"},"spec":{"colour":"blue","count":1,"filled":{"deep":7},"port":1}}`,
			strict: []string{`duplicate field "spec.colour"`},
		},
		{
			name: "nulls are dropped, or replaced by defaults, unless allowed",
			body: `{"apiVersion":"test.vmesh.io/v1","kind":"Widget","metadata":{"name":"one"},"spec":{"colour":null,"count":null,"note":null,"filled":{"other":null},"port":1}}`,
			want: `{"apiVersion":"test.vmesh.io/v1","kind":"Widget","metadata":{"name":"one"},"spec":{"count":3,"filled":{"deep":7},"note":null,"port":1}}`,
		},
		{
			name: "numbers keep their kind",
			body: `{"apiVersion":"test.vmesh.io/v1","kind":"Widget","metadata":{"name":"one"},"spec":{"colour":"red","count":1,"max":9007199254740993,"ratio":1.50,"filled":{},"port":1}}`,
			want: `{"apiVersion":"test.vmesh.io/v1","kind":"Widget","metadata":{"name":"one"},"spec":{"colour":"red","count":1,"filled":{"deep":7},"max":9007199254740993,"port":1,"ratio":1.5}}`,
		},
		{
			name: "metadata is typed",
			body: `{"apiVersion":"test.vmesh.io/v1","kind":"Widget","metadata":{"name":"one","labels":{"a":1}}}`,
			err:  "cannot unmarshal number into Go struct field ObjectMeta.labels of type string",
		},
		{
			name: "a body without kind",
			body: `{"apiVersion":"test.vmesh.io/v1","metadata":{"name":"one"}}`,
			err:  "Object 'Kind' is missing",
		},
		{
			name: "a body without kind, of a kind of Kubernetes' own", builtin: true,
			body: `{"metadata":{"name":"one"},"spec":{"colour":"red","count":1,"filled":{},"port":1}}`,
			want: `{"apiVersion":"test.vmesh.io/v1","kind":"Widget","metadata":{"name":"one"},"spec":{"colour":"red","count":1,"filled":{"deep":7},"port":1}}`,
		},
		{
			name: "a body whose kind is no string",
			body: `{"apiVersion":"test.vmesh.io/v1","kind":1}`,
			err:  "couldn't get version/kind",
		},
		{
			name:   "metadata given twice is reported, whatever it says",
			body:   `{"apiVersion":"test.vmesh.io/v1","kind":"Widget","metadata":{"name":"","name":"one","creationTimestamp":null,"creationTimestamp":null}}`,
			want:   `{"apiVersion":"test.vmesh.io/v1","kind":"Widget","metadata":{"name":"one"}}`,
			strict: []string{`duplicate field "metadata.name"`, `duplicate field "metadata.creationTimestamp"`},
		},
		{
			name: "metadata in full",
			body: `{"apiVersion":"test.vmesh.io/v1","kind":"Widget","metadata":{"name":"one","uid":"u","generation":2,"creationTimestamp":"2026-01-02T03:04:05Z","finalizers":["a.b/c"],` +
				`"managedFields":[{"manager":"m","operation":"Update","apiVersion":"v1","time":"2026-01-02T03:04:05Z","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{}}}]}}`,
			want: `{"apiVersion":"test.vmesh.io/v1","kind":"Widget","metadata":{"name":"one","uid":"u","generation":2,"creationTimestamp":"2026-01-02T03:04:05Z","finalizers":["a.b/c"],` +
				`"managedFields":[{"manager":"m","operation":"Update","apiVersion":"v1","time":"2026-01-02T03:04:05Z","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{}}}]}}`,
		},
		{name: "a body nested too deep", body: `{"kind":"Widget","spec":` + strings.Repeat(`[`, 20000) + strings.Repeat(`]`, 20000) + `}`, err: "exceeded max depth"},
		{name: "no JSON", body: `{"apiVersion":`, err: "unexpected end of JSON input"},
		{name: "no object", body: `[]`, err: "cannot unmarshal array"},
		{name: "two objects", body: `{} {}`, err: "invalid character '{' after top-level value"},
	} {
		t.Run(c.name, func(t *testing.T) {
			use := k
			if c.builtin {
				use = builtin
			}
			o, strict, err := use.Decode("v1", []byte(c.body), true)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("got %v, want %s", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, string(o.AppendJSON(nil, o.APIVersion, o.Kind))); diff != "" {
				t.Errorf("object differs (-want +got):\n%s", diff)
			}
			var got []string
			for _, err := range strict {
				got = append(got, err.Error())
			}
			if diff := cmp.Diff(c.strict, got); diff != "" {
				t.Errorf("strict errors differ (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCompleteLeavesASharedBodyAlone(t *testing.T) {
	k := widget(t, kind.Hooks{})
	o := &object.Object{}
	if err := o.UnmarshalJSON([]byte(`{"apiVersion":"test.vmesh.io/v1","kind":"Widget","metadata":{"name":"one"},"spec":{"colour":"red","unknown":1,"filled":{}}}`)); err != nil {
		t.Fatal(err)
	}
	shared := o.DeepCopy()
	before := string(shared.Body())
	if err := k.Complete("v1", o); err != nil {
		t.Fatal(err)
	}
	if want := `"spec":{"colour":"red","count":3,"filled":{"deep":7},"port":"http"}`; string(o.Body()) != want {
		t.Errorf("completed to %s, want %s", o.Body(), want)
	}
	if string(shared.Body()) != before {
		t.Errorf("another holder of the body sees %s", shared.Body())
	}
}

func TestATreeIsTakenAsABodyIs(t *testing.T) {
	k := widget(t, kind.Hooks{})
	o, err := k.FromTree("v1", map[string]any{
		"apiVersion": "test.vmesh.io/v1", "kind": "Widget", "metadata": map[string]any{"name": "one"},
		"spec": map[string]any{"colour": "red", "unknown": int64(1), "filled": map[string]any{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := `"spec":{"colour":"red","count":3,"filled":{"deep":7},"port":"http"}`; string(o.Body()) != want || o.Name != "one" {
		t.Errorf("got %s %s, want %s", o.Name, o.Body(), want)
	}
}

func TestValidate(t *testing.T) {
	k := widget(t, kind.Hooks{})
	const good = `"spec":{"colour":"red"}`
	for _, c := range []struct {
		name     string
		obj, old string
		edit     func(obj, old *object.Object)
		want     []string
	}{
		{name: "a good object", obj: good},
		{name: "a missing member", obj: `"spec":{}`, want: []string{"spec.colour: Required value", "some validation rules were not checked"}},
		{name: "a bad name", obj: good, edit: func(o, _ *object.Object) { o.Name = "One" }, want: []string{"metadata.name: Invalid value"}},
		{name: "a bad label", obj: good, edit: func(o, _ *object.Object) { o.Labels = map[string]string{"a b": "c"} }, want: []string{"metadata.labels: Invalid value"}},
		{name: "a missing namespace", obj: good, edit: func(o, _ *object.Object) { o.Namespace = "" }, want: []string{"metadata.namespace: Required value"}},
		{name: "another kind", obj: good, edit: func(o, _ *object.Object) { o.Kind = "Gadget" }, want: []string{"kind: Invalid value"}},
		{name: "another version", obj: good, edit: func(o, _ *object.Object) { o.APIVersion = "test.vmesh.io/v9" }, want: []string{"apiVersion: Invalid value"}},
		{name: "a rule about the name", obj: good, edit: func(o, _ *object.Object) { o.Name = "forbidden" }, want: []string{"this name is taken"}},
		{name: "a rule with a path of its own", obj: `"spec":{"colour":"red","min":3,"max":2}`, want: []string{"spec.min: Invalid value: min must not exceed max"}},
		{name: "a repeated item", obj: `"spec":{"colour":"red","parts":[{"name":"a"},{"name":"a"}]}`, want: []string{`spec.parts[1]: Duplicate value: {"name":"a"}`}},
		{name: "a change that a rule forbids", obj: `"spec":{"colour":"red","fixed":"b"}`, old: `"spec":{"colour":"red","fixed":"a"}`, want: []string{"spec: Invalid value: fixed cannot change"}},
		{
			name: "a change inside a list by key", obj: `"spec":{"colour":"red","parts":[{"name":"b"},{"name":"a","value":"2"}]}`,
			old: `"spec":{"colour":"red","parts":[{"name":"a","value":"1"}]}`, want: []string{"spec.parts[1]: Invalid value: value of a cannot change"},
		},
		{
			name: "what was wrong before may stay", obj: `"spec":{"colour":"red","name":"TOO BAD","count":2}`,
			old: `"spec":{"colour":"red","name":"TOO BAD"}`,
		},
		{
			name: "what was wrong before may not become worse", obj: `"spec":{"colour":"red","name":"TOO BAD"}`,
			old: `"spec":{"colour":"red","name":"BAD"}`, want: []string{"spec.name: Invalid value"},
		},
		{name: "a resource version left out", obj: good, old: good, edit: func(o, _ *object.Object) { o.ResourceVersion = "" }, want: []string{"metadata.resourceVersion: Invalid value"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			obj := decode(t, k, c.obj)
			var old *object.Object
			if c.old != "" {
				old = decode(t, k, c.old)
				obj.ResourceVersion, old.ResourceVersion = "1", "1"
			}
			if c.edit != nil {
				c.edit(obj, old)
			}
			_, errs := k.Validate(t.Context(), "v1", obj, old)
			if len(c.want) == 0 && len(errs) > 0 {
				t.Fatalf("refused: %v", errs)
			}
			for _, want := range c.want {
				if !slices.ContainsFunc(errs, func(err *field.Error) bool { return strings.Contains(err.Error(), want) }) {
					t.Errorf("got %v, want %s", errs, want)
				}
			}
		})
	}
}

func TestStatusWritesAreCheckedAgainstTheStatusAlone(t *testing.T) {
	k := widget(t, kind.Hooks{Validate: func(context.Context, *object.Object, *object.Object) ([]string, field.ErrorList) {
		t.Error("the hook was asked about a status")
		return nil, nil
	}})
	old := decode(t, k, `"spec":{"colour":"mauve"}`)
	obj := decode(t, k, `"spec":{"colour":"mauve"},"status":{"phase":"New","code":99}`)
	old.ResourceVersion, obj.ResourceVersion = "1", "1"
	errs := k.ValidateStatus(t.Context(), "v1", obj, old)
	if len(errs) != 1 || errs[0].Field != "status.code" {
		t.Errorf("got %v, want one error at status.code", errs)
	}
}

func TestHooks(t *testing.T) {
	var asked int
	k := widget(t, kind.Hooks{
		Validate: func(_ context.Context, obj, old *object.Object) ([]string, field.ErrorList) {
			asked++
			return []string{"mind the gap"}, field.ErrorList{field.Forbidden(field.NewPath("spec"), "not today")}
		},
		ValidateName: func(name string, prefix bool) []string {
			if name == "Odd Name" && !prefix {
				return nil
			}
			return []string{"no"}
		},
	})
	o := decode(t, k, `"spec":{"colour":"red"}`)
	o.Name = "Odd Name"
	warnings, errs := k.Validate(t.Context(), "v1", o, nil)
	if asked != 1 || len(errs) != 1 || errs[0].Detail != "not today" || !slices.Contains(warnings, "mind the gap") {
		t.Errorf("asked %d times, got %v and %v", asked, warnings, errs)
	}
	o.Name = "one"
	if _, errs := k.Validate(t.Context(), "v1", o, nil); asked != 1 || len(errs) != 1 || errs[0].Field != "metadata.name" {
		t.Errorf("the hook was asked about an object that is invalid already, or the name passed: %v", errs)
	}
}

func TestFinalizersWithoutADomainAreWarnedOf(t *testing.T) {
	k := widget(t, kind.Hooks{})
	old := decode(t, k, `"spec":{"colour":"red"}`)
	old.Finalizers = []string{"known"}
	obj := old.DeepCopy()
	obj.Finalizers = []string{"known", "foregroundDeletion", "a.b/c", "plain", "with.domain"}
	obj.ResourceVersion, old.ResourceVersion = "1", "1"
	warnings, errs := k.Validate(t.Context(), "v1", obj, old)
	want := []string{
		`metadata.finalizers: "plain": prefer a domain-qualified finalizer name to avoid accidental conflicts with other finalizer writers`,
		`metadata.finalizers: "with.domain": prefer a domain-qualified finalizer name including a path (/) to avoid accidental conflicts with other finalizer writers`,
	}
	if diff := cmp.Diff(want, warnings); diff != "" || len(errs) > 0 {
		t.Errorf("errors %v, warnings differ (-want +got):\n%s", errs, diff)
	}
}

func TestFieldSelectors(t *testing.T) {
	k := widget(t, kind.Hooks{})
	o := decode(t, k, `"spec":{"colour":"red","count":5}`)
	want := fields.Set{"metadata.name": "one", "metadata.namespace": "shop", "spec.colour": "red", "spec.count": "5"}
	if diff := cmp.Diff(want, k.Fields(o)); diff != "" {
		t.Errorf("fields differ (-want +got):\n%s", diff)
	}
	if got := k.Fields(decode(t, k, ""))["spec.colour"]; got != "" {
		t.Errorf("a missing field selects by %q", got)
	}
	for label, want := range map[string]bool{"metadata.name": true, "metadata.namespace": true, "spec.colour": true, "spec.min": false, "status.ready": false} {
		if got := k.SelectableField("v1", label); got != want {
			t.Errorf("%s selectable: %v, want %v", label, got, want)
		}
	}
	if k.SelectableField("v1beta1", "spec.colour") {
		t.Error("a version may be selected by what only another declares")
	}
}

func TestTables(t *testing.T) {
	k := widget(t, kind.Hooks{})
	o := decode(t, k, `"spec":{"colour":"red","count":5},"status":{"phase":"x","ready":true}`)
	o.CreationTimestamp = metav1.NewTime(time.Now().Add(-90 * time.Minute))
	other := decode(t, k, `"spec":{"colour":["not","a","string"]}`)
	other.Name = "two"
	list := &object.List{Items: []object.Object{*o, *other}}
	list.ResourceVersion, list.Continue = "7", "more"
	remaining := int64(4)
	list.RemainingItemCount = &remaining

	table, err := k.ConvertToTable(t.Context(), "v1", list, nil)
	if err != nil {
		t.Fatal(err)
	}
	var columns []string
	for _, c := range table.ColumnDefinitions {
		columns = append(columns, c.Name)
	}
	if diff := cmp.Diff([]string{"Name", "Colour", "Count", "Ready", "Age"}, columns); diff != "" {
		t.Errorf("columns differ (-want +got):\n%s", diff)
	}
	if table.ResourceVersion != "7" || table.Continue != "more" || *table.RemainingItemCount != 4 {
		t.Errorf("list metadata: %+v", table.ListMeta)
	}
	want := [][]any{{"one", "red", int64(5), true, "90m"}, {"two", `["not","a","string"]`, int64(3), nil, nil}}
	for i, row := range table.Rows {
		if diff := cmp.Diff(want[i], row.Cells); diff != "" {
			t.Errorf("row %d differs (-want +got):\n%s", i, diff)
		}
		if row.Object.Object == nil {
			t.Errorf("row %d has no object", i)
		}
	}

	one, err := k.ConvertToTable(t.Context(), "v1beta1", o, &metav1.TableOptions{NoHeaders: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(one.ColumnDefinitions) != 0 || len(one.Rows) != 1 || len(one.Rows[0].Cells) != 2 {
		t.Errorf("a version without columns of its own, without headers: %+v", one)
	}
}

func TestOpenAPI(t *testing.T) {
	k := widget(t, kind.Hooks{})
	v3, err := k.OpenAPIV3("v1")
	if err != nil {
		t.Fatal(err)
	}
	if v3.Paths.Paths["/apis/test.vmesh.io/v1/namespaces/{namespace}/widgets/{name}/status"] == nil {
		t.Error("no path for the status")
	}
	if s := v3.Components.Schemas["io.vmesh.test.v1.Widget"]; s == nil || s.Description != "A widget." {
		t.Errorf("schema: %+v", s)
	}
	v2, err := k.OpenAPIV2("v1")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := v2.Definitions["io.vmesh.test.v1.Widget"]; !ok {
		t.Error("no definition")
	}
}

func TestOpenAPIOfTheCoreGroupIsWhereClientsLook(t *testing.T) {
	crd := widgets(t)
	crd.Spec.Group = ""
	k, err := kind.New(crd, kind.Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	v3, err := k.OpenAPIV3("v1")
	if err != nil {
		t.Fatal(err)
	}
	v2, err := k.OpenAPIV2("v1")
	if err != nil {
		t.Fatal(err)
	}
	if v3.Paths.Paths["/api/v1/namespaces/{namespace}/widgets"] == nil || len(v2.Paths.Paths["/api/v1/namespaces/{namespace}/widgets"].Get.Parameters) == 0 {
		t.Error("no path below /api/v1")
	}
	list := v3.Components.Schemas["io.k8s.api.core.v1.WidgetList"]
	if list == nil || v3.Components.Schemas["io.k8s.api.core.v1.Widget"] == nil {
		t.Fatal("no schema of the core group")
	}
	items := list.Properties["items"]
	ref := items.Items.Schema.Ref.String()
	if ref == "" && len(items.Items.Schema.AllOf) > 0 {
		ref = items.Items.Schema.AllOf[0].Ref.String()
	}
	if ref != "#/components/schemas/io.k8s.api.core.v1.Widget" {
		t.Errorf("lists refer to %q", ref)
	}
	for path := range v3.Paths.Paths {
		if !strings.HasPrefix(path, "/api/v1/") {
			t.Errorf("path %s", path)
		}
	}
}

func TestSchemasAreLoadedWhenNeededAndNotKept(t *testing.T) {
	whole := widgets(t)
	head := whole.DeepCopy()
	for i := range head.Spec.Versions {
		head.Spec.Versions[i].Schema = nil
	}
	loads := 0
	k, err := kind.New(head, kind.Hooks{Load: func() (*apiextensionsv1.CustomResourceDefinition, error) {
		loads++
		return whole.DeepCopy(), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if loads != 0 {
		t.Error("loaded before anything was asked for")
	}
	if err := k.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	o := decode(t, k, `"spec":{"colour":"red"}`)
	if _, errs := k.Validate(t.Context(), "v1", o, nil); len(errs) > 0 {
		t.Fatal(errs)
	}
	if loads != 1 {
		t.Errorf("loaded %d times for writing", loads)
	}
	crd, err := k.CRD()
	if err != nil || crd.Spec.Versions[2].Schema == nil {
		t.Errorf("no schema in the whole definition: %v", err)
	}
}

func TestALoadThatFailsIsTriedAgain(t *testing.T) {
	whole := widgets(t)
	broken := true
	k, err := kind.New(whole, kind.Hooks{Load: func() (*apiextensionsv1.CustomResourceDefinition, error) {
		if broken {
			return nil, errors.New("out of order")
		}
		return whole, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	body := []byte(`{"apiVersion":"test.vmesh.io/v1","kind":"Widget","metadata":{"name":"one"}}`)
	if _, _, err := k.Decode("v1", body, false); err == nil || !strings.Contains(err.Error(), "out of order") {
		t.Errorf("got %v", err)
	}
	broken = false
	if _, _, err := k.Decode("v1", body, false); err != nil {
		t.Error(err)
	}
}

func TestOldVersionsAreReadByTheirOwnSchema(t *testing.T) {
	k := widget(t, kind.Hooks{})
	o, strict, err := k.Decode("v1beta1", []byte(`{"apiVersion":"test.vmesh.io/v1beta1","kind":"Widget","metadata":{"name":"a-name-that-is-much-too-long","namespace":"shop"},"spec":{"size":1,"colour":"red"}}`), true)
	if err != nil || len(strict) != 1 {
		t.Fatal(err, strict)
	}
	if got := string(o.Body()); got != `"spec":{"size":1}` {
		t.Errorf("got %s", got)
	}
	_, errs := k.Validate(t.Context(), "v1beta1", o, nil)
	if len(errs) != 1 || errs[0].Field != "metadata.name" {
		t.Errorf("got %v: this schema limits the name", errs)
	}
}

func FuzzDecode(f *testing.F) {
	crd := widgets(f)
	k := widget(f, kind.Hooks{})
	reference, err := kindtest.NewReference(crd, "v1")
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"apiVersion":"test.vmesh.io/v1","kind":"Widget","metadata":{"name":"one","namespace":"shop"},"spec":{"colour":"red","count":1.0,"tags":["a","ä\u00e4"]}}`))
	f.Add([]byte(`{"apiVersion":"test.vmesh.io/v1","kind":"Widget","metadata":{"name":"one","finalizers":["x"]},"spec":{"template":{"kind":"x","metadata":{"labels":{"a":"b"}}},"partly":{"x":null}}}`))
	f.Add([]byte(`{"kind":"Widget","metadata":null,"spec":{"a":1,"a":2},"spec":[1e400,-0,1e2,12345678901234567890]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, strict := range []bool{true, false} {
			o, got, err := k.Decode("v1", data, strict)
			want, wantStrict, wantErr := reference.Decode(data, strict)
			if err != nil {
				// Upstream finds out about a missing or odd kind elsewhere.
				if wantErr == nil && !runtime.IsMissingKind(err) && !strings.Contains(err.Error(), "couldn't get version/kind") {
					t.Fatalf("got %v, upstream takes it", err)
				}
				continue
			}
			if wantErr != nil {
				t.Fatalf("taken, upstream: %v", wantErr)
			}
			if len(got) != len(wantStrict) {
				t.Fatalf("got %v, upstream %v", got, wantStrict)
			}
			u, err := o.Unstructured()
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"apiVersion", "kind", "metadata"} {
				delete(u, name)
				delete(want, name)
			}
			if diff := cmp.Diff(want, u); diff != "" {
				t.Fatalf("objects differ (-upstream +kind):\n%s", diff)
			}
			again := &object.Object{}
			if err := again.UnmarshalJSON(o.AppendJSON(nil, o.APIVersion, o.Kind)); err != nil {
				t.Fatalf("what was decoded cannot be read back: %v", err)
			}
			if string(again.Body()) != string(o.Body()) {
				t.Fatalf("the body is not canonical: %s, read back %s", o.Body(), again.Body())
			}
			_, _ = k.Validate(t.Context(), "v1", o, nil)
		}
	})
}
