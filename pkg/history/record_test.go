package history

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

const plain = `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"reviews","namespace":"shop"},` +
	`"spec":{"hosts":["reviews"],"http":[{"route":[{"destination":{"host":"reviews.shop.svc.cluster.local","subset":"v1"},"weight":100}]}]}}`

func head() Head {
	return Head{
		Operation: "Update", Verb: "patch", User: "alice@example.com", Groups: []string{"team-shop", "system:authenticated"}, UserAgent: "kubectl/v1.36.0 (linux/amd64) kubernetes/4cb5f07",
		FieldManager: "kubectl-edit", APIVersion: "networking.istio.io/v1", Kind: "VirtualService", Namespace: "shop", Name: "reviews",
		UID: "ad2eb919-844f-42a7-9c18-06bcc4d62e2d", Generation: 7, Micros: 1_769_860_000_123_456,
	}
}

func TestARecordComesBackAsItWas(t *testing.T) {
	for name, r := range map[string]Record{
		"an update":         {Head: head(), Before: []byte(plain), After: []byte(strings.Replace(plain, "v1", "v2", 1))},
		"a creation":        {Head: head(), After: []byte(plain)},
		"a deletion":        {Head: head(), Before: []byte(plain)},
		"without content":   {Head: Head{Operation: "Update", Omitted: "too large"}},
		"larger than 8 KiB": {Head: head(), Before: []byte(`"` + strings.Repeat("abc ", 1<<16) + `"`), After: []byte(`"` + strings.Repeat("abd ", 1<<16) + `"`)},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Decode(r.Encode())
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Before) == 0 {
				got.Before = nil
			}
			if len(got.After) == 0 {
				got.After = nil
			}
			if d := cmp.Diff(&r, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestAnOrdinaryRecordIsSmallerThanItsObject(t *testing.T) {
	create, update := Record{Head: head(), After: []byte(plain)}, Record{Head: head(), Before: []byte(plain), After: []byte(strings.Replace(plain, "v1", "v2", 1))}
	for name, size := range map[string]int{"create": len(create.Encode()), "update": len(update.Encode())} {
		t.Logf("%s: %d bytes, of an object of %d", name, size, len(plain))
		if size > len(plain) {
			t.Errorf("%s takes %d bytes, more than the object's %d", name, size, len(plain))
		}
	}
}

func TestABrokenRecordIsAnError(t *testing.T) {
	good := (&Record{Head: head(), Before: []byte(plain), After: []byte(plain)}).Encode()
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"empty":           {nil, "empty"},
		"a newer form":    {[]byte{9, 1, 2}, "form 9"},
		"cut off":         {good[:len(good)/2], "EOF"},
		"a length beyond": {[]byte{formPlain, 0xff, 0xff, 0x03, '{'}, "cut off"},
		"no head":         {[]byte{formPlain, 1, '[', 0}, "head"},
		"no JSON":         {[]byte{formPlain, 2, '{', '}', 1, 'x'}, "not JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Decode(c.data); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add((&Record{Head: head(), Before: []byte(plain), After: []byte(plain)}).Encode())
	f.Add((&Record{Head: Head{Operation: "Delete"}}).Encode())
	f.Add([]byte{formPlain, 2, '{', '}', 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Decode(data)
		if err != nil {
			return
		}
		_ = r.What()
		again, err := Decode(r.Encode())
		if err != nil {
			t.Fatalf("what was decoded does not decode again: %v", err)
		}
		if !bytes.Equal(again.Before, r.Before) || !bytes.Equal(again.After, r.After) || again.Name != r.Name {
			t.Errorf("%v became %v", r, again)
		}
	})
}

func TestASummarySaysWhatDiffers(t *testing.T) {
	for _, c := range []struct{ name, before, after, want string }{
		{"a scalar", `{"spec":{"a":1}}`, `{"spec":{"a":2}}`, "spec.a"},
		{"lists of one length by element", `{"spec":{"a":[{"b":1},{"b":2}]}}`, `{"spec":{"a":[{"b":1},{"b":3}]}}`, "spec.a[1].b"},
		{"lists of different lengths as a whole", `{"spec":{"a":[1]}}`, `{"spec":{"a":[1,2]}}`, "spec.a"},
		{"what comes", `{"spec":{}}`, `{"spec":{"a":{"b":1}}}`, "spec.a"},
		{"the first label by its name", `{"metadata":{}}`, `{"metadata":{"labels":{"a":"b"}}}`, "metadata.labels.a"},
		{"a label with dots", `{"metadata":{"labels":{"x.io/y":"1"}}}`, `{"metadata":{"labels":{"x.io/y":"2"}}}`, "metadata.labels[x.io/y]"},
		{"many", `{"a":1,"b":1,"c":1,"d":1,"e":1}`, `{"a":2,"b":2,"c":2,"d":2,"e":2}`, "a, b, c and 2 more"},
		{"not what kubectl remembers", `{"metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"x"}},"spec":1}`,
			`{"metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"y"}},"spec":2}`, "spec"},
		{"unless it is all", `{"metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"x"}}}`,
			`{"metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"y"}}}`, "metadata.annotations[kubectl.kubernetes.io/last-applied-configuration]"},
		{"a deletion that waits", `{"metadata":{"name":"a"}}`, `{"metadata":{"name":"a","deletionTimestamp":"2026-01-01T00:00:00Z"}}`, "marked for deletion"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := Record{Head: Head{Operation: "Update"}, Before: []byte(c.before), After: []byte(c.after)}
			if got := r.What(); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func virtualService(t testing.TB, body string) *object.Object {
	t.Helper()
	o := &object.Object{}
	if err := o.UnmarshalJSON([]byte(`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a","namespace":"n","uid":"u","resourceVersion":"5","generation":2,` +
		`"creationTimestamp":"2026-01-01T00:00:00Z","labels":{"l":"1"},"managedFields":[{"manager":"m","operation":"Update"}]},` + body + `}`)); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestContentIsWhatAUserWrote(t *testing.T) {
	want := `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a","namespace":"n","labels":{"l":"1"}},"spec":{"hosts":["x"]}}`
	for _, body := range []string{`"spec":{"hosts":["x"]}`, `"spec":{"hosts":["x"]},"status":{"ok":true}`, `"status":{"ok":false},"spec":{"hosts":["x"]}`} {
		o := virtualService(t, body)
		if got := string(Content(o)); got != want {
			t.Errorf("%s: got %s", body, got)
		}
		if o.UID == "" || o.ResourceVersion == "" || len(o.ManagedFields) == 0 {
			t.Error("the object itself was changed")
		}
	}
}

func TestWhoIsALeaderIsNoChange(t *testing.T) {
	contents := map[string]bool{}
	for _, leader := range []string{"a", "b"} {
		o := virtualService(t, `"spec":{}`)
		o.Annotations = map[string]string{leaderAnnotation: leader, "theirs": "x"}
		contents[string(Content(o))] = true
		if o.Annotations[leaderAnnotation] != leader {
			t.Error("the object itself was changed")
		}
	}
	if len(contents) != 1 {
		t.Errorf("got %v", contents)
	}
}

// change records a change of an object by a request.
func change(t *testing.T, before, after *object.Object, room int, adjust func(*http.Request) *http.Request) (*Record, int) {
	t.Helper()
	req := httptest.NewRequest(http.MethodPatch, "/apis/networking.istio.io/v1/namespaces/n/virtualservices/a?fieldManager=editor", nil)
	req.Header.Set("User-Agent", "kubectl/v1 (x)")
	ctx := request.WithUser(t.Context(), &user.DefaultInfo{Name: "alice", Groups: []string{"g"}})
	ctx = request.WithRequestInfo(ctx, &request.RequestInfo{IsResourceRequest: true, Verb: "patch"})
	req = req.WithContext(ctx)
	if adjust != nil {
		req = adjust(req)
	}
	ctx = WithRequest(req.Context(), req)
	c := logical.RecordedChange{Resource: schema.GroupResource{Resource: "virtualservices"}, Time: time.Now()}
	if before != nil {
		c.Before, c.Object = Content(before), before
	}
	if after != nil {
		c.After, c.Object = Content(after), after
	}
	data, size := NewRecorder(logical.HistoryBounds{}).Record(ctx, c, room)
	if data == nil {
		return nil, 0
	}
	r, err := Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	return r, size
}

func TestARecordSaysWhoAndHow(t *testing.T) {
	a, b := virtualService(t, `"spec":{"hosts":["x"]}`), virtualService(t, `"spec":{"hosts":["y"]}`)
	r, _ := change(t, a, b, 1<<20, nil)
	if r.User != "alice" || r.Groups[0] != "g" || r.Verb != "patch" || r.FieldManager != "editor" || r.UserAgent != "kubectl/v1 (x)" || r.Operation != "Update" || r.Impersonator != "" || r.Kind != "VirtualService" {
		t.Errorf("got %+v", r.Head)
	}
	if r, _ = change(t, a, b, 1<<20, func(req *http.Request) *http.Request {
		req.Header.Set("Content-Type", "application/apply-patch+yaml")
		return req
	}); r.Verb != "apply" {
		t.Errorf("a server-side apply is a %q", r.Verb)
	}
	if r, _ = change(t, nil, b, 1<<20, nil); r.Operation != "Create" || len(r.Before) > 0 {
		t.Errorf("got %+v", r.Head)
	}
	if r, _ = change(t, a, nil, 1<<20, nil); r.Operation != "Delete" || len(r.After) > 0 {
		t.Errorf("got %+v", r.Head)
	}
}

func TestWhoActedAsTheUserIsToldToo(t *testing.T) {
	req := httptest.NewRequest(http.MethodDelete, "/", nil)
	ctx := request.WithUser(req.Context(), &user.DefaultInfo{Name: "root"})
	ctx = WithRequest(ctx, req.WithContext(ctx))
	ctx = request.WithUser(ctx, &user.DefaultInfo{Name: "alice"})
	var r Record
	r.who(ctx)
	if r.User != "alice" || r.Impersonator != "root" {
		t.Errorf("got user %q by %q", r.User, r.Impersonator)
	}
}

func TestWhatTheServerDoesByItselfIsItsOwn(t *testing.T) {
	r := Record{Head: Head{Operation: "Delete"}}
	r.who(t.Context())
	if r.User != Self || r.Verb != "delete" {
		t.Errorf("got %+v", r.Head)
	}
}

func TestAStatusIsNoChange(t *testing.T) {
	a, b := virtualService(t, `"spec":{"hosts":["x"]}`), virtualService(t, `"spec":{"hosts":["x"]},"status":{"ok":true}`)
	b.ManagedFields, b.ResourceVersion = nil, "6"
	if r, _ := change(t, a, b, 1<<20, nil); r != nil {
		t.Errorf("it was recorded: %+v", r)
	}
}

func TestWhatDoesNotFitIsRecordedWithoutItsContent(t *testing.T) {
	r, _ := change(t, nil, virtualService(t, `"spec":{"hosts":["x"]}`), 100, nil)
	if r == nil || r.Omitted == "" || len(r.After) > 0 || r.User != "alice" {
		t.Errorf("got %+v", r)
	}
}

func TestWhatInflatesMuchCountsMore(t *testing.T) {
	_, size := change(t, nil, virtualService(t, `"spec":{"a":"`+strings.Repeat("a", 1<<20)+`"}`), 1<<20, nil)
	if size < 1<<17 {
		t.Errorf("a mebibyte counts as %d bytes", size)
	}
}

func BenchmarkRecord(b *testing.B) {
	r := NewRecorder(logical.HistoryBounds{})
	rnd := rand.New(rand.NewPCG(1, 1))
	before := virtualService(b, fmt.Sprintf(`"spec":{"hosts":["h%d"],"http":[{"route":[{"destination":{"host":"reviews.shop.svc.cluster.local","subset":"v1"},"weight":100}]}]}`, rnd.Int()))
	after := virtualService(b, fmt.Sprintf(`"spec":{"hosts":["h%d"],"http":[{"route":[{"destination":{"host":"reviews.shop.svc.cluster.local","subset":"v2"},"weight":100}]}]}`, rnd.Int()))
	ctx := request.WithUser(b.Context(), &user.DefaultInfo{Name: "alice", Groups: []string{"system:authenticated"}})
	for name, was := range map[string]*object.Object{"create": nil, "update": before} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c := logical.RecordedChange{Object: after, Time: time.Now(), After: Content(after)}
				if was != nil {
					c.Before = Content(was)
				}
				data, _ := r.Record(ctx, c, 1<<20)
				b.ReportMetric(float64(len(data)), "bytes")
			}
		})
	}
}
