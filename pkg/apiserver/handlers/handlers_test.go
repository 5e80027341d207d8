package handlers

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apiserver/codec"
)

// storage keeps nothing, and what it was last given to keep.
type storage struct {
	gvk  schema.GroupVersionKind
	live *object.Object
	got  *object.Object
}

func (s *storage) New() runtime.Object { return object.NewPrototype(s.gvk) }
func (s *storage) Destroy()            {}
func (s *storage) ConvertToTable(context.Context, runtime.Object, runtime.Object) (*metav1.Table, error) {
	return nil, errors.New("no table")
}

func (s *storage) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, _ *metav1.CreateOptions) (runtime.Object, error) {
	if err := validate(ctx, obj); err != nil {
		return nil, err
	}
	s.got = obj.(*object.Object)
	return s.got, nil
}

func (s *storage) Update(ctx context.Context, _ string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc, update rest.ValidateObjectUpdateFunc,
	_ bool, _ *metav1.UpdateOptions) (runtime.Object, bool, error) {
	live := s.live
	if live == nil {
		live = object.New(s.gvk)
	}
	obj, err := info.UpdatedObject(ctx, live)
	if err != nil {
		return nil, false, err
	}
	if s.live == nil {
		err = create(ctx, obj)
	} else {
		err = update(ctx, obj, live)
	}
	s.got, _ = obj.(*object.Object)
	return obj, s.live == nil, err
}

// allowing lets one verb through.
type allowing string

func (a allowing) Authorize(_ context.Context, q authorizer.Attributes) (authorizer.Decision, string, error) {
	if q.GetVerb() == string(a) {
		return authorizer.DecisionAllow, "", nil
	}
	return authorizer.DecisionNoOpinion, "", nil
}

const limit = 2000

func newHandlers(t *testing.T, admit admission.Interface, z authorizer.UnconditionalAuthorizer) (*Handlers, *storage) {
	t.Helper()
	kinds, err := istio.Kinds()
	if err != nil {
		t.Fatal(err)
	}
	c, err := codec.New(kinds)
	if err != nil {
		t.Fatal(err)
	}
	h := New(Config{Codec: c, Admission: admit, Authorizer: z, Equivalents: runtime.NewEquivalentResourceRegistry(), MaxBodyBytes: limit})
	s := &storage{gvk: schema.GroupVersionKind{Group: "networking.istio.io", Version: "v1", Kind: "VirtualService"}}
	if err := h.Add(s.gvk.GroupVersion().WithResource("virtualservices"), s); err != nil {
		t.Fatal(err)
	}
	return h, s
}

func newRequest(method, name, query, contentType, accept string, body io.Reader) *http.Request {
	req := httptest.NewRequest(method, "/?"+query, body)
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Accept", accept)
	req.Header.Set("User-Agent", "tester/1.0 (none)")
	return req.WithContext(request.WithRequestInfo(audit.WithAuditContext(req.Context()), &request.RequestInfo{
		IsResourceRequest: true, APIGroup: "networking.istio.io", APIVersion: "v1", Resource: "virtualservices", Namespace: "shop", Name: name,
	}))
}

const (
	head   = `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService",`
	meta   = `"metadata":{"name":"a","labels":{"x":"y"}},`
	spec   = `"spec":{"hosts":["reviews"],"http":[{"route":[{"destination":{"host":"reviews"}}]}]}}`
	whole  = head + meta + spec
	asJSON = "application/json"
	asYAML = "application/apply-patch+yaml"
	owned  = `{"f:metadata":{"f:labels":{"f:x":{}}},"f:spec":{"f:hosts":{},"f:http":{}}}`
	filled = `{"f:metadata":{"f:labels":{".":{},"f:x":{}}},"f:spec":{".":{},"f:hosts":{},"f:http":{}}}`
)

func TestOrdinaryWritesAreServed(t *testing.T) {
	stored := &object.Object{}
	if err := stored.UnmarshalJSON([]byte(head + `"metadata":{"name":"a","namespace":"shop","uid":"1","resourceVersion":"7"},` + spec)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, method, query, contentType, body string
		live                                   *object.Object
		code                                   int
		manager, fields                        string
	}{
		{"create", http.MethodPost, "", asJSON, whole, nil, 201, "tester", filled},
		{"create in the namespace it names", http.MethodPost, "fieldManager=me", "application/json; charset=utf-8",
			head + `"metadata":{"name":"a","namespace":"shop","labels":{"x":"y"}},` + spec, nil, 201, "me", filled},
		{"apply to nothing", http.MethodPatch, "fieldManager=me", asYAML, whole, nil, 201, "me", owned},
		{"apply to an object", http.MethodPatch, "fieldManager=me&force=true", asYAML, whole, stored, 200, "me", owned},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, s := newHandlers(t, nil, allowing("create"))
			s.live = c.live
			name := ""
			if c.method == http.MethodPatch {
				name = "a"
			}
			w := httptest.NewRecorder()
			h.Or(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("was left to the next handler") })).
				ServeHTTP(w, newRequest(c.method, name, c.query, c.contentType, asJSON, strings.NewReader(c.body)))
			if w.Code != c.code {
				t.Fatalf("code %d, want %d: %s", w.Code, c.code, w.Body)
			}
			answer := &object.Object{}
			if err := answer.UnmarshalJSON(w.Body.Bytes()); err != nil {
				t.Fatal(err)
			}
			if answer.Name != "a" || answer.Namespace != "shop" || string(answer.Body()) != strings.TrimSuffix(spec, "}") {
				t.Errorf("answered %s", w.Body)
			}
			fields := map[string]string{}
			for _, entry := range s.got.ManagedFields {
				fields[entry.Manager] = entry.FieldsV1.String()
			}
			if fields[c.manager] != c.fields {
				t.Errorf("managed fields: %v, want %s: %s", fields, c.manager, c.fields)
			}
		})
	}
}

func TestOtherWritesAreLeftAsTheyCame(t *testing.T) {
	const managed = "fieldManager=me"
	for _, c := range []struct{ name, method, query, contentType, accept, body string }{
		{"update", http.MethodPut, "", asJSON, asJSON, whole},
		{"merge patch", http.MethodPatch, "", "application/merge-patch+json", asJSON, `{"spec":{}}`},
		{"create from YAML", http.MethodPost, "", "application/yaml", asJSON, "kind: VirtualService\n"},
		{"apply of YAML", http.MethodPatch, managed, asYAML, asJSON, "kind: VirtualService\n"},
		{"apply without a manager", http.MethodPatch, "", asYAML, asJSON, whole},
		{"apply under another name", http.MethodPatch, managed, asYAML, asJSON, strings.Replace(whole, `"name":"a"`, `"name":"b"`, 1)},
		{"apply to a version", http.MethodPatch, managed, asYAML, asJSON, strings.Replace(whole, `"name":"a"`, `"name":"a","resourceVersion":"1"`, 1)},
		{"apply of managed fields", http.MethodPatch, managed, asYAML, asJSON, strings.Replace(whole, `"name":"a"`, `"name":"a","managedFields":[]`, 1)},
		{"apply with owners", http.MethodPatch, managed, asYAML, asJSON, strings.Replace(whole, `"name":"a"`, `"name":"a","ownerReferences":[]`, 1)},
		{"create with owners", http.MethodPost, "", asJSON, asJSON, strings.Replace(whole, `"name":"a"`, `"name":"a","ownerReferences":[{"kind":"A","name":"a","uid":"u","apiVersion":"v1"}]`, 1)},
		{"create with managed fields", http.MethodPost, "", asJSON, asJSON, strings.Replace(whole, `"name":"a"`, `"name":"a","managedFields":[{}]`, 1)},
		{"create in another namespace", http.MethodPost, "", asJSON, asJSON, strings.Replace(whole, `"name":"a"`, `"name":"a","namespace":"b"`, 1)},
		{"a field unheard of", http.MethodPost, "", asJSON, asJSON, strings.Replace(whole, `"hosts"`, `"unheard":1,"hosts"`, 1)},
		{"a field twice", http.MethodPost, "", asJSON, asJSON, strings.Replace(whole, `"hosts"`, `"hosts":[],"hosts"`, 1)},
		{"a field twice in an apply", http.MethodPatch, managed, asYAML, asJSON, strings.Replace(whole, `"hosts"`, `"hosts":[],"hosts"`, 1)},
		{"another kind", http.MethodPost, "", asJSON, asJSON, strings.Replace(whole, "VirtualService", "Gateway", 1)},
		{"another version", http.MethodPost, "", asJSON, asJSON, strings.Replace(whole, "/v1", "/v1beta1", 1)},
		{"broken", http.MethodPost, "", asJSON, asJSON, `{"apiVersion":`},
		{"broken apply", http.MethodPatch, managed, asYAML, asJSON, `{"apiVersion":`},
		{"empty", http.MethodPost, "", asJSON, asJSON, ""},
		{"too large", http.MethodPost, "", asJSON, asJSON, strings.Replace(whole, `"reviews"]`, `"`+strings.Repeat("x", limit)+`"]`, 1)},
		{"to be answered with a table", http.MethodPost, "", asJSON, "application/json;as=Table;v=v1;g=meta.k8s.io", whole},
		{"options unheard of", http.MethodPost, "fieldValidation=Sometimes", asJSON, asJSON, whole},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, s := newHandlers(t, nil, allowing("create"))
			name, left := "", false
			if c.method != http.MethodPost {
				name = "a"
			}
			h.Or(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
				left = true
				body, err := io.ReadAll(req.Body)
				if err != nil || string(body) != c.body {
					t.Errorf("the body became %q, %v", body, err)
				}
			})).ServeHTTP(httptest.NewRecorder(), newRequest(c.method, name, c.query, c.contentType, c.accept, strings.NewReader(c.body)))
			if !left || s.got != nil {
				t.Errorf("was served and not left")
			}
		})
	}
}

func TestABodyThatBreaksOffIsLeftWithItsError(t *testing.T) {
	h, _ := newHandlers(t, nil, allowing("create"))
	broken := errors.New("the line is dead")
	h.Or(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if string(body) != whole[:10] || !errors.Is(err, broken) {
			t.Errorf("read %q, %v", body, err)
		}
	})).ServeHTTP(httptest.NewRecorder(),
		newRequest(http.MethodPost, "", "", asJSON, asJSON, io.MultiReader(strings.NewReader(whole[:10]), iotest.ErrReader(broken))))
}

func TestAnApplyThatCreatesNeedsToBeAllowedTo(t *testing.T) {
	h, _ := newHandlers(t, nil, allowing("patch"))
	w := httptest.NewRecorder()
	h.Or(http.NotFoundHandler()).ServeHTTP(w, newRequest(http.MethodPatch, "a", "fieldManager=me", asYAML, asJSON, strings.NewReader(whole)))
	if w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), `cannot create resource`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// spoiling is a plugin that writes managed fields, good or bad.
type spoiling struct{ fields string }

func (spoiling) Handles(admission.Operation) bool { return true }

func (s spoiling) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	entry := a.GetObject().(*object.Object).ManagedFields[0]
	entry.FieldsV1 = &metav1.FieldsV1{}
	entry.FieldsV1.SetRawBytes([]byte(s.fields))
	a.GetObject().(*object.Object).ManagedFields = []metav1.ManagedFieldsEntry{entry}
	return nil
}

func TestManagedFieldsThatAdmissionBreaksArePutBack(t *testing.T) {
	for _, c := range []struct{ name, fields, want string }{
		{"good", `{"f:spec":{}}`, `{"f:spec":{}}`},
		{"bad", `{"spec":{}}`, filled},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, s := newHandlers(t, spoiling{c.fields}, allowing("create"))
			w := httptest.NewRecorder()
			h.Or(http.NotFoundHandler()).ServeHTTP(w, newRequest(http.MethodPost, "", "", asJSON, asJSON, strings.NewReader(whole)))
			if w.Code != http.StatusCreated || s.got.ManagedFields[0].FieldsV1.String() != c.want {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
}

// doubling is a plugin that gives an object the same owner twice.
type doubling struct{}

func (doubling) Handles(admission.Operation) bool { return true }

func (doubling) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	owner := metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: "a", UID: "u"}
	a.GetObject().(*object.Object).OwnerReferences = []metav1.OwnerReference{owner, owner}
	return nil
}

func TestOwnersThatAdmissionRepeatsAreOwnersOnce(t *testing.T) {
	h, s := newHandlers(t, doubling{}, allowing("create"))
	h.Or(http.NotFoundHandler()).ServeHTTP(httptest.NewRecorder(), newRequest(http.MethodPost, "", "", asJSON, asJSON, strings.NewReader(whole)))
	if len(s.got.OwnerReferences) != 1 {
		t.Errorf("owners: %v", s.got.OwnerReferences)
	}
}

func TestManagerOf(t *testing.T) {
	for userAgent, want := range map[string]string{
		"":                       "",
		"kubectl/v1.37 (linux)":  "kubectl",
		"my\x00tool\n":           "mytool",
		strings.Repeat("ä", 100): strings.Repeat("ä", 64),
	} {
		if got := managerOf(userAgent); got != want {
			t.Errorf("%q: %q, want %q", userAgent, got, want)
		}
	}
}
