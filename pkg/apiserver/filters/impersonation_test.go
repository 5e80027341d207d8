package filters

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// entrance allows what is in its list, written as group/resource/subresource namespace/name.
type entrance struct {
	allowed []string
	asked   []string
	closed  bool
}

func (e *entrance) Authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	asked := fmt.Sprintf("%s %s/%s/%s %s/%s", a.GetVerb(), a.GetAPIGroup(), a.GetResource(), a.GetSubresource(), a.GetNamespace(), a.GetName())
	e.asked = append(e.asked, asked)
	for _, allowed := range e.allowed {
		if allowed == asked || allowed == "*" {
			return authorizer.DecisionAllow, "", nil
		}
	}
	return authorizer.DecisionNoOpinion, "no rule", nil
}

func (e *entrance) Enter(context.Context, authorizer.Attributes) error {
	if e.closed {
		return errors.New("the root does not let it in")
	}
	return nil
}

type uids map[string]string

func (u uids) UID(_ context.Context, cluster string) (string, bool) {
	uid, ok := u[cluster]
	return uid, ok
}

func TestImpersonation(t *testing.T) {
	bound := map[string][]string{authn.ExtraCluster: {"shop"}, authn.ExtraClusterUID: {"uid-1"}}
	with := func(extra map[string][]string) map[string][]string {
		for k, v := range bound {
			extra[k] = v
		}
		return extra
	}
	const ask = "impersonate "
	for _, c := range []struct {
		name    string
		headers http.Header
		allowed []string
		closed  bool
		code    int
		message string
		become  user.DefaultInfo
	}{
		{name: "nobody else", headers: http.Header{"User-Agent": {"x"}}, code: 200, become: user.DefaultInfo{Name: "admin", Groups: []string{"system:masters"}}},
		{
			name: "a user", headers: http.Header{"Impersonate-User": {"alice"}}, allowed: []string{ask + "/users/ /alice"}, code: 200,
			become: user.DefaultInfo{Name: "alice", Groups: []string{"system:authenticated"}, Extra: bound},
		},
		{name: "a user that may not be", headers: http.Header{"Impersonate-User": {"bob"}}, allowed: []string{ask + "/users/ /alice"}, code: 403, message: `users "bob" is forbidden`},
		{
			name: "groups, each of which is asked for", headers: http.Header{"Impersonate-User": {"alice"}, "Impersonate-Group": {"dev", "ops"}},
			allowed: []string{ask + "/users/ /alice", ask + "/groups/ /dev", ask + "/groups/ /ops"}, code: 200,
			become: user.DefaultInfo{Name: "alice", Groups: []string{"dev", "ops", "system:authenticated"}, Extra: bound},
		},
		{
			name: "one group too many", headers: http.Header{"Impersonate-User": {"alice"}, "Impersonate-Group": {"dev", "ops"}},
			allowed: []string{ask + "/users/ /alice", ask + "/groups/ /dev"}, code: 403, message: `groups "ops" is forbidden`,
		},
		{
			name: "a service account, with its groups", headers: http.Header{"Impersonate-User": {"system:serviceaccount:ci:deployer"}},
			allowed: []string{ask + "/serviceaccounts/ ci/deployer"}, code: 200,
			become: user.DefaultInfo{Name: "system:serviceaccount:ci:deployer", Groups: []string{"system:serviceaccounts", "system:serviceaccounts:ci", "system:authenticated"}, Extra: bound},
		},
		{
			name: "a UID and extra values", headers: http.Header{"Impersonate-User": {"alice"}, "Impersonate-Uid": {"u"}, "Impersonate-Extra-Scopes%2fa": {"x", "y"}},
			allowed: []string{ask + "/users/ /alice", ask + "authentication.k8s.io/uids/ /u", ask + "authentication.k8s.io/userextras/scopes/a /x", ask + "authentication.k8s.io/userextras/scopes/a /y"}, code: 200,
			become: user.DefaultInfo{Name: "alice", UID: "u", Groups: []string{"system:authenticated"}, Extra: with(map[string][]string{"scopes/a": {"x", "y"}})},
		},
		{
			name: "the anonymous user", headers: http.Header{"Impersonate-User": {user.Anonymous}}, allowed: []string{"*"}, code: 200,
			become: user.DefaultInfo{Name: user.Anonymous, Groups: []string{"system:unauthenticated"}, Extra: bound},
		},
		{name: "an administrator", headers: http.Header{"Impersonate-User": {"alice"}, "Impersonate-Group": {"dev", "system:masters"}}, allowed: []string{"*"}, code: 403, message: "system:masters"},
		{name: "somebody of another virtual cluster", headers: http.Header{"Impersonate-User": {"alice"}, "Impersonate-Extra-Vmesh.io%2fvirtual-Cluster": {"other"}}, allowed: []string{"*"}, code: 403, message: authn.ExtraCluster},
		{name: "the same, in capitals", headers: http.Header{"Impersonate-User": {"alice"}, "Impersonate-Extra-%56mesh.io%2fvirtual-Cluster": {"other"}}, allowed: []string{"*"}, code: 403, message: "virtual-cluster"},
		{name: "a group without a user", headers: http.Header{"Impersonate-Group": {"dev"}}, allowed: []string{"*"}, code: 400, message: "--as"},
		{name: "something new", headers: http.Header{"Impersonate-User": {"alice"}, "Impersonate-Soul": {"x"}}, allowed: []string{"*"}, code: 400, message: "Impersonate-Soul"},
		{name: "from where the root lets nobody in", headers: http.Header{"Impersonate-User": {"alice"}}, allowed: []string{"*"}, closed: true, code: 403, message: "does not let it in"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var become user.Info
			z := &entrance{allowed: c.allowed, closed: c.closed}
			handler := WithImpersonation(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
				become, _ = request.UserFrom(req.Context())
				for header := range req.Header {
					if strings.HasPrefix(header, "Impersonate-") {
						t.Errorf("%s is passed on", header)
					}
				}
			}), z, uids{"shop": "uid-1"}, codecs())
			req := httptest.NewRequest(http.MethodGet, "/api", nil)
			req.Header = c.headers.Clone()
			req.Header.Set("Accept", "application/json")
			ctx := request.WithRequestInfo(logical.WithCluster(req.Context(), "shop"), &request.RequestInfo{Verb: "get", Path: "/api"})
			ctx = request.WithUser(ctx, &user.DefaultInfo{Name: "admin", Groups: []string{"system:masters"}})
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, req.WithContext(ctx))
			if w.Code != c.code || !strings.Contains(w.Body.String(), strings.ReplaceAll(c.message, `"`, `\"`)) {
				t.Fatalf("code %d, body %s; asked %q", w.Code, w.Body, z.asked)
			}
			if c.code == http.StatusOK && !reflect.DeepEqual(become, &c.become) {
				t.Errorf("became %+v, want %+v", become, c.become)
			}
			if c.code != http.StatusOK && become != nil {
				t.Errorf("let in as %+v", become)
			}
		})
	}
}

// unready is an authority that does not know yet.
type unready struct{ entrance }

func (unready) Ready() error { return errors.New("still reading") }

func (unready) Administrator(_ context.Context, u user.Info) bool { return u.GetName() == "admin" }

func TestUntilRolesAreKnownClientsAreToldToTryAgain(t *testing.T) {
	handler := WithRoles(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), &unready{}, codecs())
	for _, c := range []struct {
		who, cluster, path string
		code               int
	}{
		{"alice", "shop", "/api", http.StatusServiceUnavailable}, {"admin", "shop", "/api", http.StatusOK},
		{"alice", logical.Root, "/readyz", http.StatusOK}, {"alice", "shop", "/readyz", http.StatusServiceUnavailable},
	} {
		req := httptest.NewRequest(http.MethodGet, c.path, nil)
		ctx := request.WithRequestInfo(logical.WithCluster(req.Context(), c.cluster), &request.RequestInfo{Verb: "get", Path: c.path})
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, req.WithContext(request.WithUser(ctx, &user.DefaultInfo{Name: c.who})))
		if w.Code != c.code || c.code == http.StatusServiceUnavailable && w.Header().Get("Retry-After") != "1" {
			t.Errorf("%v: code %d, headers %v", c, w.Code, w.Header())
		}
	}
}
