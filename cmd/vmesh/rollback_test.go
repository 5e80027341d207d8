package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

func service(metadata, spec string) string {
	if metadata != "" {
		metadata = "," + metadata
	}
	return `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"x","namespace":"n"` + metadata + `},"spec":` + spec + `}`
}

func tree(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	if text == "" {
		return nil
	}
	o := &unstructured.Unstructured{}
	if err := utiljson.Unmarshal([]byte(text), &o.Object); err != nil {
		t.Fatal(err)
	}
	return o
}

// changed is a change of one object.
func changed(revision int, before, after string) *v1alpha1.Change {
	c := &v1alpha1.Change{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(revision)}, Operation: v1alpha1.ChangeUpdate,
		Object: v1alpha1.ChangedObject{APIVersion: "networking.istio.io/v1", Kind: "VirtualService", Resource: "virtualservices", Namespace: "n", Name: "x"},
	}
	if before == "" {
		c.Operation = v1alpha1.ChangeCreate
	} else {
		c.Before = &runtime.RawExtension{Raw: []byte(before)}
	}
	if after == "" {
		c.Operation = v1alpha1.ChangeDelete
	} else {
		c.After = &runtime.RawExtension{Raw: []byte(after)}
	}
	return c
}

func TestAPlanUndoesTheOldestChangeFirst(t *testing.T) {
	one, two, three := service("", `{"port":1}`), service("", `{"port":2}`), service("", `{"port":3}`)
	live := func(text string) string { // with what the server keeps
		return strings.Replace(text, `"metadata":{`, `"metadata":{"uid":"u","resourceVersion":"9","generation":3,"creationTimestamp":"2026-01-01T00:00:00Z","managedFields":[{"manager":"m"}],`, 1)
	}
	for _, c := range []struct {
		name    string
		changes []*v1alpha1.Change // the newest first
		current string
		action  action
		want    string // of the spec that is written
		note    string
	}{
		{"changed twice", []*v1alpha1.Change{changed(5, two, three), changed(4, one, two)}, live(three), update, `{"port":1}`, ""},
		{"changed and brought back already", []*v1alpha1.Change{changed(5, two, one), changed(4, one, two)}, live(one), "", "", ""},
		{"deleted", []*v1alpha1.Change{changed(5, two, ""), changed(4, one, two)}, "", create, `{"port":1}`, ""},
		{"deleted and made anew", []*v1alpha1.Change{changed(6, "", three), changed(5, two, "")}, live(three), update, `{"port":2}`, ""},
		{"made", []*v1alpha1.Change{changed(5, one, two), changed(4, "", one)}, live(two), remove, "", ""},
		{"made and gone again", []*v1alpha1.Change{changed(5, one, ""), changed(4, "", one)}, "", "", "", ""},
		{"written without a record", []*v1alpha1.Change{changed(5, one, two)}, live(three), update, `{"port":1}`, "not as its last change left it"},
		{"being deleted", []*v1alpha1.Change{changed(5, one, two)}, live(service(`"deletionTimestamp":"2026-01-01T00:00:00Z"`, `{"port":2}`)), refuse, "", "being deleted"},
		{"was on its way out", []*v1alpha1.Change{changed(5, service(`"deletionTimestamp":"2026-01-01T00:00:00Z"`, `{"port":2}`), "")}, "", "", "", ""},
		{"had owners", []*v1alpha1.Change{changed(5, service(`"ownerReferences":[{"name":"o","uid":"1"}]`, `{"port":2}`), "")}, "", create, `{"port":2}`, "without the owners"},
		{"content was not kept", []*v1alpha1.Change{func() *v1alpha1.Change { c := changed(5, one, two); c.Before, c.Omitted = nil, "too large"; return c }()}, live(two), refuse, "", "too large"},
		{"content was not kept later", []*v1alpha1.Change{func() *v1alpha1.Change { c := changed(5, one, two); c.After, c.Omitted = nil, "too large"; return c }(), changed(4, one, two)},
			live(two), update, `{"port":1}`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			all, err := targets(c.changes)
			if err != nil || len(all) != 1 {
				t.Fatalf("got %v, %v", all, err)
			}
			s := all[0].plan(tree(t, c.current))
			if s == nil {
				s = &step{}
			}
			if s.action != c.action || !strings.Contains(s.note, c.note) || c.note == "" && s.note != "" && c.name != "content was not kept later" {
				t.Fatalf("it is to %s (%s)", s.action, s.note)
			}
			if c.want == "" {
				return
			}
			spec, err := json.Marshal(s.object.Object["spec"])
			if err != nil || string(spec) != c.want {
				t.Errorf("it writes %s", spec)
			}
			if c.current != "" && (s.object.GetResourceVersion() != "9" || s.object.GetUID() != "u") {
				t.Error("it would overwrite what somebody writes meanwhile")
			}
			if c.current == "" && (s.object.GetResourceVersion() != "" || s.object.GetUID() != "" || len(s.object.GetOwnerReferences()) > 0) {
				t.Errorf("it is made with %v", s.object.Object["metadata"])
			}
		})
	}
}

func TestARestoredObjectKeepsItsStatus(t *testing.T) {
	all, err := targets([]*v1alpha1.Change{changed(5, service(`"labels":{"a":"1"}`, `{"port":1}`), service("", `{"port":2,"more":true}`))})
	if err != nil {
		t.Fatal(err)
	}
	current := tree(t, strings.TrimSuffix(service(`"annotations":{"b":"2"},"resourceVersion":"9"`, `{"port":2,"more":true}`), "}")+`,"status":{"ok":true}}`)
	got, err := json.Marshal(all[0].plan(current).object.Object)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"labels":{"a":"1"},"name":"x","namespace":"n","resourceVersion":"9"},"spec":{"port":1},"status":{"ok":true}}`
	if string(got) != want {
		t.Errorf("it writes %s", got)
	}
}

func TestANamespaceThatWasMadeSinceStays(t *testing.T) {
	c := changed(5, "", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"x"}}`)
	c.Object = v1alpha1.ChangedObject{APIVersion: "v1", Kind: "Namespace", Resource: "namespaces", Name: "x"}
	all, err := targets([]*v1alpha1.Change{c})
	if err != nil {
		t.Fatal(err)
	}
	s := all[0].plan(tree(t, `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"x"}}`))
	if s == nil || s.action != keep {
		t.Errorf("got %+v", s)
	}
}

func TestWhatIsReferredToIsWrittenFirstAndDeletedLast(t *testing.T) {
	at := func(a action, resource, name string) *step {
		return &step{target: &target{gvr: v1alpha1.GroupVersion.WithResource(resource), kind: resource, name: name}, action: a}
	}
	steps := []*step{
		at(remove, "services", "s"), at(remove, "virtualservices", "v"), at(create, "virtualservices", "b"), at(update, "virtualservices", "a"), at(create, "namespaces", "n"),
		at(create, "validatingwebhookconfigurations", "w"), at(create, "services", "s"), at(refuse, "namespaces", "r"),
	}
	sortSteps(steps)
	var got []string
	for _, s := range steps {
		got = append(got, string(s.action)+" "+s.String())
	}
	want := "create namespaces/n, create services/s, update virtualservices/a, create virtualservices/b, create validatingwebhookconfigurations/w, " +
		"delete virtualservices/v, delete services/s, cannot namespaces/r"
	if strings.Join(got, ", ") != want {
		t.Errorf("got %s", strings.Join(got, ", "))
	}
}

// What cannot be changed is replaced wholly or not at all, whatever happens on the way.
func TestNothingIsLostWhereAnObjectIsReplaced(t *testing.T) {
	then, now := service("", `{"port":1}`), service(`"uid":"u","resourceVersion":"9"`, `{"port":2}`)
	for _, c := range []struct {
		name, current     string
		interrupt, refuse bool
		left              string // the spec of what is there at last
		says              []string
	}{
		{"it is replaced", now, false, false, `{"port":1}`, []string{"n/virtualservice/x replaced"}},
		{"somebody interrupts", now, true, false, `{"port":1}`, []string{"n/virtualservice/x replaced"}},
		{"it is refused after all", now, false, true, `{"port":2}`, []string{"error: n/virtualservice/x was not replaced", "port is fixed", "no room"}},
		{"its deletion would be held up", service(`"uid":"u","resourceVersion":"9","finalizers":["a/b"]`, `{"port":2}`), false, false, `{"port":2}`,
			[]string{"error: n/virtualservice/x was not updated", "port is fixed", "it has finalizers (a/b)"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stored := tree(t, c.current)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				answer := func(code int, reason metav1.StatusReason, message string) {
					w.Header().Set("Content-Type", "application/json")
					w.WriteHeader(code)
					status := metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message}
					if err := json.NewEncoder(w).Encode(status); err != nil {
						t.Error(err)
					}
				}
				got := &unstructured.Unstructured{}
				if r.Method != http.MethodDelete {
					if err := json.NewDecoder(r.Body).Decode(&got.Object); err != nil {
						t.Error(err)
					}
				}
				spec, err := json.Marshal(got.Object["spec"])
				if err != nil {
					t.Error(err)
				}
				switch dry := r.URL.Query().Has("dryRun"); {
				case r.Method == http.MethodPut:
					answer(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "port is fixed")
					return
				case r.Method == http.MethodDelete:
					stored = nil
					if c.interrupt {
						cancel()
					}
				case !dry && stored != nil:
					answer(http.StatusConflict, metav1.StatusReasonAlreadyExists, "it is there")
					return
				case !dry && c.refuse && string(spec) == `{"port":1}`:
					answer(http.StatusForbidden, metav1.StatusReasonForbidden, "no room")
					return
				case !dry:
					stored = got
				}
				w.Header().Set("Content-Type", "application/json")
				if err := json.NewEncoder(w).Encode(tree(t, then)); err != nil {
					t.Error(err)
				}
			}))
			defer server.Close()
			api, err := dynamic.NewForConfig(&rest.Config{Host: server.URL})
			if err != nil {
				t.Fatal(err)
			}
			all, err := targets([]*v1alpha1.Change{changed(3, "", now), changed(2, then, "")})
			if err != nil || len(all) != 1 {
				t.Fatal(all, err)
			}
			var out bytes.Buffer
			o := rollbackOptions{out: &out, errOut: &out}
			o.apply(ctx, &clusterClient{Interface: api}, []*step{all[0].plan(tree(t, c.current))}, 1)
			server.Close()
			left := "nothing"
			if stored != nil {
				data, err := json.Marshal(stored.Object["spec"])
				if err != nil {
					t.Fatal(err)
				}
				left = string(data)
			}
			if left != c.left {
				t.Errorf("%s is left, want %s", left, c.left)
			}
			for _, want := range c.says {
				if strings.Count(out.String(), want) != 1 {
					t.Errorf("it does not say %q once:\n%s", want, out.String())
				}
			}
		})
	}
}

func TestMistakesOfARollbackAreNamed(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"", "how far to go back"},
		{"--to-revision 5 --to-time 1h", "one of --to-revision and --to-time"},
		{"--to-revision 5", "say what to undo"},
		{"vs/x --all --to-revision 5", "either vs/x or --all"},
		{"-n a --all --to-revision 5", "either --namespace or --all"},
		{"vs/x --to-revision five", "not a revision"},
		{"vs/x --to-time yesterday", "neither a time"},
		{"vs/x --to-time=-1h", "must not be negative"},
		{"vs/x --to-revision 5 --dry-run=maybe", "none of none, client and server"},
		{"vs/x vs/y --to-revision 5", "at most one KIND/NAME"},
	} {
		if _, err := run(append([]string{"rollback"}, strings.Fields(c.args)...)...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("rollback %s: %v, want %q", c.args, err, c.want)
		}
	}
}

func TestADiffIsColouredForEyesAlone(t *testing.T) {
	before, after := tree(t, service("", `{"port":1}`)).Object, tree(t, service("", `{"port":2}`)).Object
	for color, want := range map[bool]string{false: "-  port: 1\n+  port: 2\n", true: "\033[31m-  port: 1\033[0m\n\033[32m+  port: 2\033[0m\n"} {
		var out bytes.Buffer
		if err := writeDiff(&out, "n/virtualservice/x", before, after, color); err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("got %q, %v", out.String(), err)
		}
	}
	// What kubectl remembers is shown only if it is all that differs.
	noted := tree(t, service(`"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"x"}`, `{"port":2}`)).Object
	var out bytes.Buffer
	if err := writeDiff(&out, "x", before, noted, false); err != nil || strings.Contains(out.String(), "last-applied") {
		t.Errorf("got %q, %v", out.String(), err)
	}
	out.Reset()
	if err := writeDiff(&out, "x", after, noted, false); err != nil || !strings.Contains(out.String(), "last-applied") {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

func TestAChangeIsShownWithItsDiff(t *testing.T) {
	c := changed(5, service("", `{"port":1}`), service("", `{"port":2}`))
	c.User.Name, c.Impersonator, c.Verb, c.Time = "alice", "root", "patch", metav1.NewMicroTime(time.Unix(0, 0))
	var out bytes.Buffer
	if err := showChange(&out, c, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"change 5\n", "alice (impersonated by root)", "1970-01-01T00:00:00Z", "n/virtualservice/x (networking.istio.io/v1)", "-  port: 1\n+  port: 2\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	c.Omitted = "too large"
	out.Reset()
	if err := showChange(&out, c, false); err != nil || !strings.Contains(out.String(), "There is no diff: too large.") {
		t.Errorf("got %s, %v", out.String(), err)
	}
}
