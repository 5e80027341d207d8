package filters

import (
	"context"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	genericapifilters "k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/vmesh-io/vmesh/pkg/authz"
)

// Authority decides what callers may do.
type Authority interface {
	// Ready is why nothing can be decided yet, except for administrators, or nil.
	Ready() error
	// Administrator says whether a user may do everything.
	Administrator(ctx context.Context, u user.Info) bool
}

// WithRoles says of a server that does not know all roles yet that it is not ready, so
// that clients try again; administrators are let in. It comes before whatever asks z.
func WithRoles(handler http.Handler, z Authority, s runtime.NegotiatedSerializer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if err := z.Ready(); err != nil && !decidable(req.Context(), z) {
			unavailable := apierrors.NewServiceUnavailable(err.Error())
			unavailable.ErrStatus.Details = &metav1.StatusDetails{RetryAfterSeconds: 1}
			responsewriters.ErrorNegotiated(unavailable, s, schema.GroupVersion{}, w, req)
			return
		}
		handler.ServeHTTP(w, req)
	})
}

func decidable(ctx context.Context, z Authority) bool {
	u, _ := request.UserFrom(ctx)
	if z.Administrator(ctx, u) {
		return true
	}
	a, err := genericapifilters.GetAuthorizerAttributes(ctx)
	return err == nil && authz.Open(ctx, a)
}
