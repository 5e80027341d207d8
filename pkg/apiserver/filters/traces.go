package filters

import (
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// ClusterKey is the annotation of audit events, and the attribute of spans, that says
// which virtual cluster a request was for: its name, or root.
const ClusterKey = "vmesh.io/virtual-cluster"

// AsAsked puts a filter around a handler, and shows the filter alone the path that was
// asked for, with the virtual cluster in it.
func AsAsked(handler http.Handler, filter func(http.Handler) http.Handler) http.Handler {
	filtered := filter(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if _, inner, prefixed := Resolve(req.URL); prefixed && inner != nil {
			resolved := *req
			resolved.URL = inner
			req = &resolved
		}
		handler.ServeHTTP(w, req)
	}))
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if cluster, err := logical.Cluster(req.Context()); err == nil && cluster != logical.Root {
			asked, u := *req, *req.URL
			u.Path = clustersPrefix + cluster + u.Path
			if u.RawPath != "" {
				u.RawPath = clustersPrefix + cluster + u.RawPath
			}
			asked.URL = &u
			req = &asked
		}
		filtered.ServeHTTP(w, req)
	})
}

// WithClusterInAudit notes the virtual cluster in the request's audit event. It comes
// right after the event was made, so that no event lacks it.
func WithClusterInAudit(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		ctx := req.Context()
		if cluster, err := logical.Cluster(ctx); err == nil {
			audit.AddAuditAnnotation(ctx, ClusterKey, cluster)
		}
		handler.ServeHTTP(w, req)
	})
}

// WithClusterInTrace notes the virtual cluster in the request's span.
func WithClusterInTrace(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		ctx := req.Context()
		if cluster, err := logical.Cluster(ctx); err == nil {
			trace.SpanFromContext(ctx).SetAttributes(attribute.String(ClusterKey, cluster))
		}
		handler.ServeHTTP(w, req)
	})
}

// WithTrustedParent drops what callers say of the trace that their request is a part of,
// but for the root's: upstream believes administrators, and those of a virtual cluster
// could have all their requests traced, and as parts of others' traces.
func WithTrustedParent(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		u, ok := request.UserFrom(req.Context())
		if !ok || authn.Cluster(u) != logical.Root {
			own := *req
			own.Header = req.Header.Clone()
			for _, header := range []string{"Traceparent", "Tracestate", "Baggage"} {
				own.Header.Del(header)
			}
			req = &own
		}
		handler.ServeHTTP(w, req)
	})
}
