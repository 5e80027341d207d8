package filters

import (
	"net/http"

	"github.com/vmesh-io/vmesh/pkg/history"
)

// WithHistory keeps what the record of a change says of its request. It comes after
// authentication and before impersonation.
func WithHistory(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch req.Method {
		case http.MethodGet, http.MethodHead, http.MethodOptions:
		default:
			req = req.WithContext(history.WithRequest(req.Context(), req))
		}
		handler.ServeHTTP(w, req)
	})
}
