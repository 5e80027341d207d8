package history

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	vmeshkinds "github.com/vmesh-io/vmesh/pkg/apis/vmesh"
	"github.com/vmesh-io/vmesh/pkg/history"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// source is a history in memory, the newest record first.
type source struct {
	records []logical.StoredRecord
	horizon logical.Horizon
	reads   int
	// read, if set, is called after each.
	read func(*source)
}

func (s *source) History(_ context.Context, p logical.HistoryPage) ([]logical.StoredRecord, int64, bool, error) {
	s.reads++
	var found []logical.StoredRecord
	for _, r := range s.records {
		if r.Revision > p.After && (p.Upto == 0 || r.Revision <= p.Upto) {
			found = append(found, r)
		}
	}
	if s.read != nil {
		s.read(s)
	}
	if p.Limit > 0 && int64(len(found)) > p.Limit {
		return found[:p.Limit], 1000, true, nil
	}
	return found, 1000, false, nil
}

func (s *source) HistoryHorizon(context.Context) (logical.Horizon, error) { return s.horizon, nil }

func (s *source) Origin(context.Context, string) (string, metav1.Time) {
	return "uid", metav1.NewTime(at(0))
}

// rules let read everything, but for what is called secret.
type rules struct {
	authorizer.UnconditionalAuthorizer
	err error
}

func (r rules) Authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	if a.GetVerb() != "get" || a.GetAPIGroup() != "networking.istio.io" && a.GetResource() != "namespaces" || a.GetName() == "secret" {
		return authorizer.DecisionNoOpinion, "", r.err
	}
	return authorizer.DecisionAllow, "", r.err
}

func at(second int) time.Time { return time.Date(2026, 1, 31, 12, 0, second, 0, time.UTC) }

func record(revision int64, name, content string) logical.StoredRecord {
	r := history.Record{Head: history.Head{
		Operation: "Create", Verb: "create", User: "alice", APIVersion: "networking.istio.io/v1", Kind: "Gateway", Namespace: "a", Name: name, Micros: at(int(revision)).UnixMicro(),
	}, After: []byte(content)}
	return logical.StoredRecord{Revision: revision, Time: at(int(revision)), Resource: schema.GroupResource{Group: "networking.istio.io", Resource: "gateways"}, Data: r.Encode()}
}

func newREST(t *testing.T, s *source, z authorizer.UnconditionalAuthorizer) *REST {
	t.Helper()
	k, err := vmeshkinds.Changes(Hooks())
	if err != nil {
		t.Fatal(err)
	}
	return New(k, s, s, z)
}

func in(t *testing.T, namespace string) context.Context {
	return request.WithNamespace(request.WithUser(logical.WithCluster(t.Context(), "shop"), &user.DefaultInfo{Name: "bob"}), namespace)
}

func list(t *testing.T, r *REST, namespace, selector, token string, limit int64) (revisions string, next string, err error) {
	t.Helper()
	field, parseErr := fields.ParseSelector(selector)
	if parseErr != nil {
		t.Fatal(parseErr)
	}
	got, err := r.List(in(t, namespace), &internalversion.ListOptions{FieldSelector: field, Continue: token, Limit: limit})
	if err != nil {
		return "", "", err
	}
	l := got.(*object.List)
	var names []string
	for _, o := range l.Items {
		names = append(names, o.Name)
	}
	if l.ResourceVersion != "1000" {
		t.Errorf("the list is of revision %q", l.ResourceVersion)
	}
	return strings.Join(names, " "), l.Continue, nil
}

func several(names ...string) *source {
	s := &source{}
	for i, name := range names {
		s.records = append(s.records, record(int64(i+1), name, `{"a":1}`))
	}
	slices.Reverse(s.records)
	return s
}

func TestWhatIsAskedForIsListed(t *testing.T) {
	s := several("x", "y", "secret", "x", "y")
	s.horizon = logical.Horizon{Revision: 1, Time: at(1)}
	r := newREST(t, s, rules{})
	for _, c := range []struct {
		namespace, selector, want string
		code                      int
	}{
		{"", "", "5 4 2 1", 0},
		{"a", "", "5 4 2 1", 0},
		{"b", "", "", 0},
		{"", "object.name=x", "4 1", 0},
		{"", "object.name!=x", "5 2", 0},
		{"", "object.kind=Gateway,user.name=alice,operation=Create", "5 4 2 1", 0},
		{"", "user.name=bob", "", 0},
		{"", "metadata.name=2", "2", 0},
		{"", "sinceRevision=2", "5 4", 0},
		{"", "sinceRevision=2,object.name=x", "4", 0},
		{"", "sinceRevision=1", "5 4 2", 0},
		{"", "sinceTime=2026-01-31T12:00:04Z", "5", 0},
		{"", "sinceTime=2026-01-31T12:00:01Z", "5 4 2", 0},
		{"", "sinceTime=2026-01-31T12:00:00.5Z", "", http.StatusGone},
		{"", "sinceRevision!=2", "", http.StatusBadRequest},
		{"", "sinceRevision=x", "", http.StatusBadRequest},
		{"", "sinceRevision=-1", "", http.StatusBadRequest},
		{"", "sinceTime=yesterday", "", http.StatusBadRequest},
	} {
		got, _, err := list(t, r, c.namespace, c.selector, "", 0)
		var status apierrors.APIStatus
		code := 0
		if errors.As(err, &status) {
			code = int(status.Status().Code)
		}
		if got != c.want || code != c.code {
			t.Errorf("namespace %q, %q: got %q, %v, want %q, code %d", c.namespace, c.selector, got, err, c.want, c.code)
		}
	}
}

func TestPagesEndWhereTheNextBegins(t *testing.T) {
	s := several("x", "y", "secret", "secret", "secret", "x", "y", "z")
	r := newREST(t, s, rules{})
	var all []string
	token := ""
	for range 10 {
		got, next, err := list(t, r, "", "", token, 2)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, got)
		if token = next; token == "" {
			break
		}
	}
	if got := strings.Join(all, "|"); got != "8 7|6 2|1" {
		t.Errorf("got %q", got)
	}
	for _, bad := range []string{"x", "e30", "eyJydiI6MX0"} {
		if _, _, err := list(t, r, "", "", bad, 2); !apierrors.IsBadRequest(err) {
			t.Errorf("token %q: %v", bad, err)
		}
	}
}

func TestAListOfMuchEndsEarly(t *testing.T) {
	s := &source{}
	big := `{"a":"` + strings.Repeat("x", 1<<20) + `"}`
	for i := 20; i > 0; i-- {
		s.records = append(s.records, record(int64(i), "x", big))
	}
	r := newREST(t, s, rules{})
	pages, seen, token := 0, 0, ""
	for {
		got, next, err := list(t, r, "", "", token, 0)
		if err != nil {
			t.Fatal(err)
		}
		n := len(strings.Fields(got))
		if n > 10 {
			t.Errorf("one answer has %d MiB", n)
		}
		pages, seen = pages+1, seen+n
		if token = next; token == "" {
			break
		}
	}
	if seen != 20 || pages < 3 {
		t.Errorf("%d changes in %d pages", seen, pages)
	}
}

func TestWhatIsPrunedMeanwhileIsAnError(t *testing.T) {
	s := several("x", "y", "z")
	s.read = func(s *source) { s.horizon = logical.Horizon{Revision: 2, Time: at(2)} }
	if _, _, err := list(t, newREST(t, s, rules{}), "", "sinceRevision=1", "", 0); !apierrors.IsResourceExpired(err) {
		t.Errorf("got %v", err)
	}
}

func TestABrokenRecordIsShownAsSuch(t *testing.T) {
	s := several("x")
	s.records[0].Data = []byte{99}
	got, err := newREST(t, s, rules{}).Get(in(t, "default"), "1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if omitted := string(got.(*object.Object).Field("omitted")); !strings.Contains(omitted, "cannot be read") {
		t.Errorf("got %s", got.(*object.Object).Body())
	}
}

func TestOneChangeIsGotInItsNamespaceByWhoMayGetTheObject(t *testing.T) {
	r := newREST(t, several("x", "secret"), rules{})
	for _, c := range []struct {
		namespace, name string
		found           bool
	}{{"a", "1", true}, {"b", "1", false}, {"a", "2", false}, {"a", "3", false}, {"a", "01", false}, {"a", "-1", false}, {"a", "x", false}} {
		o, err := r.Get(in(t, c.namespace), c.name, nil)
		if c.found != (err == nil) || err != nil && !apierrors.IsNotFound(err) {
			t.Errorf("%v: got %v, %v", c, o, err)
		}
	}
	if _, err := newREST(t, several("x"), rules{err: fmt.Errorf("away")}).Get(in(t, "a"), "1", nil); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("while nobody can decide: %v", err)
	}
}
