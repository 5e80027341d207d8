package filters

import (
	"context"
	"net/http"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/fairness"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// Rated knows the limits that virtual clusters have of their own.
type Rated interface {
	Rates(ctx context.Context, cluster string) *v1alpha1.VirtualClusterRates
}

// WithRates holds virtual clusters to their rates; defaults are for what they leave open.
// The root has none. It comes after authorization: what was refused does not count.
func WithRates(handler http.Handler, rates *fairness.Rates, clusters Rated, defaults fairness.Limits, s runtime.NegotiatedSerializer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		ctx := req.Context()
		cluster, err := logical.Cluster(ctx)
		info, ok := request.RequestInfoFrom(ctx)
		if err != nil || !ok || cluster == logical.Root {
			handler.ServeHTTP(w, req)
			return
		}
		limits := limitsOf(clusters.Rates(ctx, cluster), defaults)
		body := int64(-1)
		if info.IsResourceRequest && writes(info) {
			body = max(req.ContentLength, 0)
		}
		if err := rates.Admit(ctx, cluster, limits, body); err != nil {
			refuse(w, req, s, err)
			return
		}
		if info.IsResourceRequest && info.Verb == "watch" {
			release, err := rates.Watch(cluster, limits)
			if err != nil {
				refuse(w, req, s, err)
				return
			}
			defer release()
		}
		handler.ServeHTTP(w, req)
	})
}

// writes says whether a request is for something to be stored. Reviews are questions.
func writes(info *request.RequestInfo) bool {
	switch info.Verb {
	case "get", "list", "watch":
		return false
	}
	return info.APIGroup != "authorization.k8s.io" && info.APIGroup != "authentication.k8s.io"
}

func limitsOf(own *v1alpha1.VirtualClusterRates, defaults fairness.Limits) fairness.Limits {
	if own == nil {
		return defaults
	}
	l := defaults
	for _, limit := range []struct {
		own  *int32
		into *int32
	}{{own.RequestsPerSecond, &l.RequestsPerSecond}, {own.WritesPerSecond, &l.WritesPerSecond}, {own.Watches, &l.Watches}, {own.Connections, &l.Connections}} {
		if limit.own != nil {
			*limit.into = *limit.own
		}
	}
	return l
}
