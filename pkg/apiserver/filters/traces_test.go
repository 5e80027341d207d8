package filters

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/vmesh-io/vmesh/pkg/authn"
)

func TestAFilterOfTracesAloneSeesThePathThatWasAsked(t *testing.T) {
	for _, asked := range []string{
		"/api/v1/namespaces?limit=1", "/clusters/shop/api/v1/namespaces?limit=1", "/clusters/shop/", "/clusters/shop/api/v1/a%2Fb", "/clusters/shop/clusters/bank/api",
	} {
		t.Run(asked, func(t *testing.T) {
			var before, seen, after string
			note := func(to *string, next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
					*to = req.URL.RequestURI()
					if next != nil {
						next.ServeHTTP(w, req)
					}
				})
			}
			chain := note(&before, AsAsked(note(&after, nil), func(h http.Handler) http.Handler { return note(&seen, h) }))
			WithCluster(chain, chain, nil).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, asked, nil))
			if seen != asked || after != before || after == "" {
				t.Errorf("it sees %q; before it is %q, after it %q", seen, before, after)
			}
		})
	}
}

func TestOnlyTheRootsIdentitiesAreBelievedWhatTraceTheyAreIn(t *testing.T) {
	for _, c := range []struct {
		name, of string
		believed bool
	}{{"of the root", "root", true}, {"of a virtual cluster", "shop", false}, {"nobody's", "", false}} {
		t.Run(c.name, func(t *testing.T) {
			req := httptest.NewRequest(http.MethodGet, "/api", nil)
			for _, header := range []string{"traceparent", "tracestate", "baggage"} {
				req.Header.Set(header, "x")
			}
			if c.of != "" {
				req = req.WithContext(request.WithUser(req.Context(), &user.DefaultInfo{Name: "x", Groups: []string{user.SystemPrivilegedGroup}, Extra: map[string][]string{authn.ExtraCluster: {c.of}}}))
			}
			left := -1
			WithTrustedParent(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) { left = len(req.Header) })).ServeHTTP(httptest.NewRecorder(), req)
			if left != map[bool]int{true: 3, false: 0}[c.believed] || len(req.Header) != 3 {
				t.Errorf("%d headers are left, %d of the caller's", left, len(req.Header))
			}
		})
	}
}
