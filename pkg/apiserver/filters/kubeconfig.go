package filters

import (
	"context"
	"net/http"
	"strings"
	"time"

	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/warning"

	"github.com/vmesh-io/vmesh/pkg/authn"
)

// Kubeconfigs follow what is done with the certificates that they record.
type Kubeconfigs interface {
	// Used notes a use, and gives what the user is to be warned of.
	Used(kubeconfig string, now time.Time, kubectl bool) (warning string)
	// While gives a context that ends when a kubeconfig is revoked or expires. done must be called.
	While(ctx context.Context, kubeconfig string) (_ context.Context, done func())
}

// WithKubeconfigs notes when kubeconfigs are used, warns those who hold one that expires
// soon, and ends watches when theirs is revoked or expires. It comes after authentication and
// before impersonation: it is about the caller's own credentials.
func WithKubeconfigs(handler http.Handler, kubeconfigs Kubeconfigs, longRunning request.LongRunningRequestCheck) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		ctx := req.Context()
		u, ok := request.UserFrom(ctx)
		if !ok {
			handler.ServeHTTP(w, req)
			return
		}
		name := authn.Kubeconfig(u)
		if name == "" {
			handler.ServeHTTP(w, req)
			return
		}
		if text := kubeconfigs.Used(name, time.Now(), strings.HasPrefix(req.UserAgent(), "kubectl/")); text != "" {
			warning.AddWarning(ctx, "", text)
		}
		if info, ok := request.RequestInfoFrom(ctx); ok && longRunning(req, info) {
			ctx, done := kubeconfigs.While(ctx, name)
			defer done()
			req = req.WithContext(ctx)
		}
		handler.ServeHTTP(w, req)
	})
}
