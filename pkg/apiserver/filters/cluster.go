// Package filters holds the HTTP filters that make one server many virtual clusters.
package filters

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

const clustersPrefix = "/clusters/"

// WithCluster sends /clusters/NAME/... to the tenant handler, with the prefix taken
// off and NAME in the context, and all else to the root handler. It comes before
// RequestInfo, authentication and everything else: what follows sees a plain cluster.
func WithCluster(root, tenant http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		cluster, inner, prefixed := Resolve(req.URL)
		switch {
		case !prefixed:
			root.ServeHTTP(w, req.WithContext(logical.WithCluster(req.Context(), logical.Root)))
		case cluster == "":
			http.NotFound(w, req)
		default:
			// The request is the caller's and is not changed; RequestURI keeps what was asked.
			resolved := req.WithContext(logical.WithCluster(req.Context(), cluster))
			resolved.URL = inner
			tenant.ServeHTTP(w, resolved)
		}
	})
}

// Resolve takes a URL's virtual cluster off its path. prefixed says that the URL is for
// a virtual cluster; cluster is empty when it then names none that can be. The given
// URL is not changed.
func Resolve(u *url.URL) (cluster string, inner *url.URL, prefixed bool) {
	rest, ok := strings.CutPrefix(u.Path, clustersPrefix)
	if !ok {
		return "", nil, u.Path == strings.TrimSuffix(clustersPrefix, "/")
	}
	name, path, _ := strings.Cut(rest, "/")
	if logical.ValidName(name) != nil || name == logical.Root {
		return "", nil, true
	}
	stripped := *u
	stripped.Path = "/" + path
	if u.RawPath != "" {
		// The encoded form must spell the prefix plainly, or the two would say different things.
		raw, ok := strings.CutPrefix(u.RawPath, clustersPrefix+name)
		if !ok || raw != "" && raw[0] != '/' {
			return "", nil, true
		}
		stripped.RawPath = "/" + strings.TrimPrefix(raw, "/")
	}
	return name, &stripped, true
}
