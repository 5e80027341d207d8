package filters

import (
	"net/http"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/features"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
)

// WithMediaTypes keeps from kinds without a Go type of Kubernetes' own what only such a
// type can do, protobuf and strategic merge patches, as a server of custom resources
// does. Clients that would take JSON as well then get that. typed says which kinds have
// a Go type. It comes after RequestInfo.
func WithMediaTypes(handler http.Handler, typed func(schema.GroupResource) bool, s runtime.NegotiatedSerializer) http.Handler {
	objects := []string{runtime.ContentTypeJSON, runtime.ContentTypeYAML}
	// A strategic merge patch needs a Go type to be read by.
	patches := []string{string(types.JSONPatchType), string(types.MergePatchType), string(types.ApplyYAMLPatchType)}
	if utilfeature.DefaultFeatureGate.Enabled(features.CBORServingAndStorage) {
		objects, patches = append(objects, runtime.ContentTypeCBOR), append(patches, string(types.ApplyCBORPatchType))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		info, ok := request.RequestInfoFrom(req.Context())
		if !ok || !info.IsResourceRequest {
			handler.ServeHTTP(w, req)
			return
		}
		accept, body := req.Header.Get("Accept"), req.Header.Get("Content-Type")
		protobuf := strings.Contains(accept, runtime.ContentTypeProtobuf)
		writes := info.Verb == "patch" || info.Verb == "create" || info.Verb == "update"
		if !protobuf && !writes || typed(schema.GroupResource{Group: info.APIGroup, Resource: info.Resource}) {
			handler.ServeHTTP(w, req)
			return
		}
		refuse := func(err error) { responsewriters.ErrorNegotiated(err, s, schema.GroupVersion{}, w, req) }
		body, _, _ = strings.Cut(body, ";")
		switch {
		case info.Verb == "patch" && !slices.Contains(patches, body):
			refuse(negotiation.NewUnsupportedMediaTypeError(patches))
			return
		case writes && body == runtime.ContentTypeProtobuf:
			refuse(negotiation.NewUnsupportedMediaTypeError(objects))
			return
		}
		if protobuf {
			if accept = withoutProtobuf(accept); accept == "" {
				refuse(negotiation.NewNotAcceptableError(objects))
				return
			}
			req = req.Clone(req.Context())
			req.Header.Set("Accept", accept)
		}
		handler.ServeHTTP(w, req)
	})
}

// withoutProtobuf takes protobuf out of what is accepted, where objects themselves and
// not their metadata or a table are meant.
func withoutProtobuf(accept string) string {
	var kept []string
	for clause := range strings.SplitSeq(accept, ",") {
		mediaType, parameters, _ := strings.Cut(clause, ";")
		if strings.TrimSpace(mediaType) == runtime.ContentTypeProtobuf && !strings.Contains(parameters, "as=") {
			continue
		}
		kept = append(kept, clause)
	}
	return strings.Join(kept, ",")
}
