package filters

import (
	"context"
	"net/http"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	genericapifilters "k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/authz"
)

// HostAuthority asks the host cluster about its users.
type HostAuthority interface {
	// HostAnswers is an error if the host has to be asked about a request and does not answer.
	HostAnswers(ctx context.Context, a authorizer.Attributes) error
}

// hostControllers are the users as which a host cluster removes what its own objects
// leave behind.
var hostControllers = []string{
	"system:kube-controller-manager", // without --use-service-account-credentials
	"system:serviceaccount:kube-system:namespace-controller",
	"system:serviceaccount:kube-system:generic-garbage-collector",
}

// WithHost refuses requests of the host cluster's users that cannot be decided because
// the host does not answer, so that they are tried again, and keeps the host's controllers
// out of the host view. Its namespaces and objects are not those of the virtual cluster:
// what is left behind there stays. The controllers go on without a resource of which they
// are told that it does not support what they want. It comes after authentication.
func WithHost(handler http.Handler, z HostAuthority, s runtime.NegotiatedSerializer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		ctx := req.Context()
		u, ok := request.UserFrom(ctx)
		if !ok || !authn.FromHost(u) {
			handler.ServeHTTP(w, req)
			return
		}
		a, err := genericapifilters.GetAuthorizerAttributes(ctx)
		if err != nil {
			responsewriters.InternalError(w, req, err)
			return
		}
		if authz.InHostView(ctx) && slices.Contains(hostControllers, u.GetName()) {
			gr := schema.GroupResource{Group: a.GetAPIGroup(), Resource: a.GetResource()}
			responsewriters.ErrorNegotiated(apierrors.NewMethodNotSupported(gr, a.GetVerb()), s, schema.GroupVersion{}, w, req)
			return
		}
		if err := z.HostAnswers(ctx, a); err != nil {
			unavailable := apierrors.NewServiceUnavailable(err.Error())
			unavailable.ErrStatus.Details = &metav1.StatusDetails{RetryAfterSeconds: 1}
			responsewriters.ErrorNegotiated(unavailable, s, schema.GroupVersion{}, w, req)
			return
		}
		handler.ServeHTTP(w, req)
	})
}
