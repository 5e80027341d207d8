package vmesh

import (
	"context"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"
)

// ProxyREST makes virtualclusters/proxy known to discovery, and so to those who write
// roles. Its requests are served by the virtual cluster's own endpoint: the filter that
// finds the virtual cluster takes them before they come here.
type ProxyREST struct{ clusters *Clusters }

var _ rest.Connecter = (*ProxyREST)(nil)

// ProxyREST makes the storage.
func (c *Clusters) ProxyREST() *ProxyREST { return &ProxyREST{c} }

// New implements rest.Storage.
func (r *ProxyREST) New() runtime.Object { return r.clusters.store.NewFunc() }

// Destroy implements rest.Storage.
func (r *ProxyREST) Destroy() {}

// NewConnectOptions implements rest.Connecter.
func (r *ProxyREST) NewConnectOptions() (runtime.Object, bool, string) { return nil, false, "" }

// ConnectMethods implements rest.Connecter.
func (r *ProxyREST) ConnectMethods() []string {
	return []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}
}

// Connect implements rest.Connecter.
func (r *ProxyREST) Connect(_ context.Context, name string, _ runtime.Object, _ rest.Responder) (http.Handler, error) {
	return nil, apierrors.NewNotFound(r.clusters.store.DefaultQualifiedResource, name)
}
