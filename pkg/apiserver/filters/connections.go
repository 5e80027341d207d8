package filters

import (
	"net/http"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/fairness"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// WithConnections bounds how many connections the identities of a virtual cluster have
// open, wherever these go. One that is too many is told so, and closed. Users of the root,
// and so whatever comes through a front proxy, are not counted.
func WithConnections(handler http.Handler, connections *fairness.Connections, clusters Rated, defaults fairness.Limits, s runtime.NegotiatedSerializer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		ctx := req.Context()
		if u, ok := request.UserFrom(ctx); ok {
			if cluster := authn.Cluster(u); cluster != "" && cluster != logical.Root {
				if err := connections.Claim(ctx, cluster, limitsOf(clusters.Rates(ctx, cluster), defaults).Connections); err != nil {
					w.Header().Set("Connection", "close") // HTTP/2 makes a GOAWAY of it
					refuse(w, req, s, err)
					return
				}
			}
		}
		handler.ServeHTTP(w, req)
	})
}
