package filters

import (
	"context"

	"k8s.io/component-base/metrics"

	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// Refused counts requests that were turned away for now. A virtual cluster has a series
// only once one of its requests was.
var Refused = metrics.NewCounterVec(&metrics.CounterOpts{
	Namespace: "vmesh", Subsystem: "fairness", Name: "refused_requests_total", StabilityLevel: metrics.ALPHA,
	Help: "Requests that were answered with 429, by the virtual cluster that they were for and the limit that was reached.",
}, []string{"virtual_cluster", "limit"})

func countRefusal(ctx context.Context, limit string) {
	if cluster, err := logical.Cluster(ctx); err == nil {
		Refused.WithLabelValues(cluster, limit).Inc()
	}
}
