package filters

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/authz"
)

type hostAuthority struct{ err error }

func (h hostAuthority) HostAnswers(context.Context, authorizer.Attributes) error { return h.err }

func TestUsersOfTheHostDependOnIt(t *testing.T) {
	away := fmt.Errorf("%w: connection refused", authz.ErrHostAway)
	const controller = "system:serviceaccount:kube-system:namespace-controller"
	for _, c := range []struct {
		name, user string
		host, view bool
		err        error
		code       int
	}{
		{name: "a user of the host", user: "alice", host: true, code: 200},
		{name: "a user of the host that is away", user: "alice", host: true, err: away, code: 503},
		{name: "a direct user while the host is away", user: "alice", err: away, code: 200},
		{name: "the namespace controller in the host view", user: controller, host: true, view: true, code: 405},
		{name: "the namespace controller in the host view while the host is away", user: controller, host: true, view: true, err: away, code: 405},
		{name: "all controllers under one name", user: "system:kube-controller-manager", host: true, view: true, code: 405},
		{name: "the garbage collector", user: "system:serviceaccount:kube-system:generic-garbage-collector", host: true, view: true, code: 405},
		{name: "the namespace controller elsewhere", user: controller, host: true, code: 200},
		{name: "a namesake of the controller that the host does not vouch for", user: controller, view: true, code: 200},
		{name: "a namesake in another namespace", user: "system:serviceaccount:team:namespace-controller", host: true, view: true, code: 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			handler := WithHost(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), hostAuthority{c.err}, codecs())
			u := &user.DefaultInfo{Name: c.user, Extra: map[string][]string{}}
			if c.host {
				u.Extra[authn.ExtraHost] = []string{"true"}
			}
			ctx := request.WithRequestInfo(request.WithUser(t.Context(), u), &request.RequestInfo{IsResourceRequest: true, Verb: "deletecollection", Resource: "virtualservices"})
			if c.view {
				ctx = authz.WithHostView(ctx)
			}
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, httptest.NewRequest(http.MethodDelete, "/", nil).WithContext(ctx))
			if w.Code != c.code {
				t.Errorf("code %d, want %d: %s", w.Code, c.code, w.Body)
			}
			if c.code == 503 && w.Header().Get("Retry-After") != "1" {
				t.Errorf("headers %v do not say when to try again", w.Header())
			}
		})
	}
}
