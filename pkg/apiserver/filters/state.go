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
	// State says whether a virtual cluster exists and is being deleted.
	State(ctx context.Context, cluster string) (exists, deleting bool, err error)
}

// WithState refuses requests to a virtual cluster that does not exist, and writes to
// one that is being deleted. It comes after authorization, so that only who may enter
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
	exists, deleting, err := clusters.State(ctx, cluster)
	if err != nil {
		return err
	}
	resource := schema.GroupResource{Group: v1alpha1.GroupVersion.Group, Resource: "virtualclusters"}
	if !exists {
		return apierrors.NewNotFound(resource, cluster)
	}
	if !deleting {
		return nil
	}
	if info, ok := request.RequestInfoFrom(ctx); ok && info.IsResourceRequest {
		switch info.Verb {
		case "get", "list", "watch":
			return nil
		}
		return apierrors.NewForbidden(resource, cluster, fmt.Errorf("this virtual cluster is being deleted and takes no more writes"))
	}
	return nil
}
