package handlers

import (
	"context"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	requestmetrics "k8s.io/apiserver/pkg/endpoints/handlers/metrics"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/component-base/tracing"
)

// slow is from when on upstream logs the steps of a request that is traced.
const slow = 500 * time.Millisecond

// record counts the size of the body, as upstream does of the bodies that it reads.
func (b *base) record(ctx context.Context, method string) {
	verb := requestmetrics.Create
	if method == http.MethodPatch {
		verb = requestmetrics.Patch
	}
	requestmetrics.RecordRequestBodySize(ctx, b.gvr.GroupResource(), verb, len(b.body))
}

// traced makes the handling of a request a span, by upstream's names, if the request is
// traced at all.
func (b *base) traced(serve http.HandlerFunc, req *http.Request, info *request.RequestInfo) http.HandlerFunc {
	if !trace.SpanFromContext(req.Context()).IsRecording() {
		return serve
	}
	name := "Create"
	if req.Method == http.MethodPatch {
		name = "Patch"
	}
	return func(w http.ResponseWriter, req *http.Request) {
		ctx, span := tracing.Start(req.Context(), name,
			attribute.String("api-group", info.APIGroup), attribute.String("api-version", info.APIVersion), attribute.String("resource", info.Resource),
			attribute.String("namespace", info.Namespace), attribute.String("name", info.Name), attribute.String("verb", info.Verb), attribute.String("url", req.URL.Path))
		defer span.End(slow)
		serve(w, req.WithContext(ctx))
	}
}
