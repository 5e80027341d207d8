package filters

import (
	"context"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// Clusters knows the virtual clusters that there are.
type Clusters interface {
	// State says whether a virtual cluster exists, is being deleted, and is frozen, and
	// why: frozen is empty when it is not.
	State(ctx context.Context, cluster string) (exists, deleting bool, frozen string, err error)
}

// WithState refuses requests to a virtual cluster that does not exist, and writes to
// one that is being deleted or is frozen. It comes after authorization, so that only who may enter
// a virtual cluster learns whether there is one.
func WithState(handler http.Handler, clusters Clusters, s runtime.NegotiatedSerializer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if err := check(req, clusters); err != nil {
			responsewriters.ErrorNegotiated(err, s, schema.GroupVersion{}, w, req)
			return
		}
		handler.ServeHTTP(w, req)
	})
}

func check(req *http.Request, clusters Clusters) error {
	ctx := req.Context()
	cluster, err := logical.Cluster(ctx)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	exists, deleting, frozen, err := clusters.State(ctx, cluster)
	if err != nil {
		return err
	}
	resource := schema.GroupResource{Group: v1alpha1.GroupVersion.Group, Resource: "virtualclusters"}
	if !exists {
		return apierrors.NewNotFound(resource, cluster)
	}
	if !deleting && frozen == "" {
		return nil
	}
	info, ok := request.RequestInfoFrom(ctx)
	if !ok || !info.IsResourceRequest {
		return nil
	}
	switch info.Verb {
	case "get", "list", "watch":
		return nil
	}
	if deleting {
		return apierrors.NewForbidden(resource, cluster, fmt.Errorf("this virtual cluster is being deleted and takes no more writes"))
	}
	if inFrozen(info) {
		return nil
	}
	return apierrors.NewForbidden(resource, cluster, fmt.Errorf("this virtual cluster is frozen and takes no writes: %s", frozen))
}

// inFrozen says whether a frozen virtual cluster takes a write. It takes what changes no
// configuration and is needed to look on: questions that are asked by creating them,
// tokens, leases and events. A dry run is a write like any other: it would not succeed.
func inFrozen(info *request.RequestInfo) bool {
	switch info.APIGroup {
	case "authentication.k8s.io", "authorization.k8s.io":
		return true // reviews: nothing there is stored
	case "coordination.k8s.io":
		return info.Resource == "leases"
	case "events.k8s.io":
		return info.Resource == "events"
	case "":
		return info.Resource == "events" || info.Resource == "serviceaccounts" && info.Subresource == "token"
	}
	return false
}
