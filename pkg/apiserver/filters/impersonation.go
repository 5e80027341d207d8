package filters

import (
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
)

// WithoutImpersonation refuses requests that ask to act as somebody else. To ignore the
// wish would do what the caller did not mean, with the caller's own rights.
func WithoutImpersonation(handler http.Handler, s runtime.NegotiatedSerializer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		for header := range req.Header {
			if strings.HasPrefix(header, "Impersonate-") {
				err := apierrors.NewForbidden(schema.GroupResource{}, "", nil)
				err.ErrStatus.Message = "impersonation is not supported: send the request without --as and --as-group"
				responsewriters.ErrorNegotiated(err, s, schema.GroupVersion{}, w, req)
				return
			}
		}
		handler.ServeHTTP(w, req)
	})
}
