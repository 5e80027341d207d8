package filters

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/warning"

	"github.com/vmesh-io/vmesh/pkg/authn"
)

// follower is a Kubeconfigs that revokes what it is asked to follow.
type follower struct {
	used    []string
	kubectl bool
	open    int
}

var errTaken = errors.New("taken")

func (f *follower) Used(name string, _ time.Time, kubectl bool) string {
	f.used, f.kubectl = append(f.used, name), kubectl
	return "it ends"
}

func (f *follower) While(ctx context.Context, _ string) (context.Context, func()) {
	f.open++
	ctx, cancel := context.WithCancelCause(ctx)
	cancel(errTaken)
	return ctx, func() { f.open-- }
}

type warnings []string

func (w *warnings) AddWarning(_, text string) { *w = append(*w, text) }

func TestKubeconfigsAreFollowed(t *testing.T) {
	holder := &user.DefaultInfo{Name: "alice", Extra: map[string][]string{authn.ExtraKubeconfig: {"shop-alice-x"}}}
	for _, c := range []struct {
		name, verb, agent    string
		user                 user.Info
		used, kubectl, ended bool
	}{
		{"a request by kubectl", "get", "kubectl/v1.37.0 (linux/amd64)", holder, true, true, false},
		{"a request by a program", "create", "istiod", holder, true, false, false},
		{"a watch", "watch", "istiod", holder, true, false, true},
		{"somebody with other credentials", "watch", "istiod", &user.DefaultInfo{Name: "bob"}, false, false, false},
		{"nobody", "watch", "", nil, false, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, told := &follower{}, warnings{}
			served := false
			handler := WithKubeconfigs(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
				served = true
				if ended := errors.Is(context.Cause(req.Context()), errTaken); ended != c.ended {
					t.Errorf("it ends with the kubeconfig: %t", ended)
				}
			}), f, func(_ *http.Request, info *request.RequestInfo) bool { return info.Verb == "watch" })
			ctx := warning.WithWarningRecorder(request.WithRequestInfo(t.Context(), &request.RequestInfo{IsResourceRequest: true, Verb: c.verb}), &told)
			if c.user != nil {
				ctx = request.WithUser(ctx, c.user)
			}
			req := httptest.NewRequest(http.MethodGet, "/", nil).WithContext(ctx)
			req.Header.Set("User-Agent", c.agent)
			handler.ServeHTTP(httptest.NewRecorder(), req)
			if !served || (len(f.used) == 1) != c.used || (len(told) == 1) != c.used || f.kubectl != c.kubectl || f.open != 0 {
				t.Errorf("served %t, used %v, told %v, kubectl %t, open %d", served, f.used, told, f.kubectl, f.open)
			}
		})
	}
}
