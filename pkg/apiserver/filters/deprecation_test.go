package filters

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	genericapifilters "k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/request"
)

func TestUsersOfADeprecatedVersionAreWarned(t *testing.T) {
	deprecated := map[schema.GroupVersionResource]string{
		{Version: "v1", Resource: "endpoints"}:                          "use slices",
		{Group: "example.com", Version: "v1alpha1", Resource: "things"}: "use v1",
	}
	resolver := &request.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")}
	for _, c := range []struct{ name, method, path, want string }{
		{"who lists", http.MethodGet, "/api/v1/endpoints", `299 - "use slices"`},
		{"who writes", http.MethodPost, "/apis/example.com/v1alpha1/namespaces/a/things", `299 - "use v1"`},
		{"who writes a status", http.MethodPut, "/apis/example.com/v1alpha1/namespaces/a/things/b/status", `299 - "use v1"`},
		{"who deletes what is not there", http.MethodDelete, "/api/v1/namespaces/a/endpoints/none", `299 - "use slices"`},
		{"users of the version that replaces it are not", http.MethodGet, "/apis/example.com/v1/namespaces/a/things", ""},
		{"users of a namesake in another group are not", http.MethodGet, "/apis/other.com/v1/endpoints", ""},
		{"readers of discovery are not", http.MethodGet, "/apis/example.com/v1alpha1", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			handler := http.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }))
			handler = genericapifilters.WithRequestInfo(genericapifilters.WithWarningRecorder(WithDeprecations(handler, deprecated)), resolver)
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, httptest.NewRequest(c.method, c.path, nil))
			if got := w.Header().Get("Warning"); got != c.want || w.Code != http.StatusNotFound {
				t.Errorf("got %d with warning %q, want %q", w.Code, got, c.want)
			}
		})
	}
}
