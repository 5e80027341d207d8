package filters

import (
	"net/http"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/warning"
)

// WithDeprecations warns whoever uses a deprecated version of a resource, whatever the
// request comes to. warnings are the texts. It comes after authorization, and after the
// warning recorder.
func WithDeprecations(handler http.Handler, warnings map[schema.GroupVersionResource]string) http.Handler {
	if len(warnings) == 0 {
		return handler
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if info, ok := request.RequestInfoFrom(req.Context()); ok && info.IsResourceRequest {
			if text := warnings[schema.GroupVersionResource{Group: info.APIGroup, Version: info.APIVersion, Resource: info.Resource}]; text != "" {
				warning.AddWarning(req.Context(), "", text)
			}
		}
		handler.ServeHTTP(w, req)
	})
}
