// Package filters holds the HTTP filters that make one server many virtual clusters.
package filters

import (
	"net/http"
	"net/url"
	"strings"

	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/vmesh-io/vmesh/pkg/authz"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

const (
	clustersPrefix = "/clusters/"
	// proxyPrefix and proxySuffix stand around a virtual cluster's name in the path that a
	// host cluster's kube-apiserver forwards.
	proxyPrefix = "/apis/vmesh.io/v1alpha1/virtualclusters/"
	proxySuffix = "/proxy"
)

// HostView says which API groups of the root are those of a virtual cluster.
type HostView struct {
	Cluster string
	Groups  sets.Set[string]
}

// WithCluster sends /clusters/NAME/..., and the same by the name that it has in the root's
// API, to the tenant handler, with the prefix taken off and NAME in the context; with a
// host view, the objects of its groups as well. All else goes to the root handler. It
// comes before RequestInfo, authentication and everything else: what follows sees a plain
// cluster.
func WithCluster(root, tenant http.Handler, view *HostView) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		cluster, inner, prefixed := Resolve(req.URL)
		if prefixed {
			if cluster == "" {
				http.NotFound(w, req)
				return
			}
			// The request is the caller's and is not changed; RequestURI keeps what was asked.
			resolved := req.WithContext(logical.WithCluster(req.Context(), cluster))
			resolved.URL = inner
			tenant.ServeHTTP(w, resolved)
			return
		}
		switch in, sound := view.has(req.URL); {
		case in && sound:
			tenant.ServeHTTP(w, req.WithContext(authz.WithHostView(logical.WithCluster(req.Context(), view.Cluster))))
		case in:
			http.NotFound(w, req)
		default:
			root.ServeHTTP(w, req.WithContext(logical.WithCluster(req.Context(), logical.Root)))
		}
	})
}

// Resolve takes a URL's virtual cluster off its path. prefixed says that the URL is for
// a virtual cluster; cluster is empty when it then names none that can be, or when its
// path has more than one reading. The given URL is not changed.
func Resolve(u *url.URL) (cluster string, inner *url.URL, prefixed bool) {
	prefix, suffix := clustersPrefix, ""
	rest, ok := strings.CutPrefix(u.Path, prefix)
	if !ok {
		prefix, suffix = proxyPrefix, proxySuffix
		if rest, ok = strings.CutPrefix(u.Path, prefix); !ok {
			return "", nil, u.Path == strings.TrimSuffix(clustersPrefix, "/")
		}
	}
	name, path, _ := strings.Cut(rest, "/")
	if suffix != "" {
		// What else there is of a virtual cluster is the root's.
		subresource, below, _ := strings.Cut(path, "/")
		if "/"+subresource != suffix {
			return "", nil, false
		}
		path = below
	}
	if logical.ValidName(name) != nil || name == logical.Root || !plain(path) {
		return "", nil, true
	}
	stripped := *u
	stripped.Path = "/" + path
	if u.RawPath != "" {
		// The encoded form must spell the prefix plainly, or the two would say different things.
		raw, ok := strings.CutPrefix(u.RawPath, prefix+name+suffix)
		if !ok || raw != "" && raw[0] != '/' {
			return "", nil, true
		}
		stripped.RawPath = "/" + strings.TrimPrefix(raw, "/")
	}
	return name, &stripped, true
}

// plain says that a path has no empty segment, but for a slash at its end, and none that
// means another place: some programs on the way take these out, and others do not.
func plain(path string) bool {
	for path != "" {
		var segment string
		segment, path, _ = strings.Cut(path, "/")
		if segment == "" || segment == "." || segment == ".." {
			return false
		}
	}
	return true
}

// has says whether a URL is for an object, or a list of objects, that the view serves,
// and whether its path has one reading only. What the root says of the groups themselves
// is not in the view.
func (v *HostView) has(u *url.URL) (in, sound bool) {
	const prefix = "/apis/"
	if v == nil || !strings.HasPrefix(u.Path, prefix) {
		return false, false
	}
	group, rest, _ := strings.Cut(u.Path[len(prefix):], "/")
	version, path, _ := strings.Cut(rest, "/")
	if path == "" || !v.Groups.Has(group) {
		return false, false
	}
	spelled := u.RawPath == "" || strings.HasPrefix(u.RawPath, prefix+group+"/"+version+"/")
	return true, spelled && plain(version+"/"+path)
}
