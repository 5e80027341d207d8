package apiserver

import (
	"net/http"
	"runtime"

	"k8s.io/apimachinery/pkg/runtime/schema"
	utilwaitgroup "k8s.io/apimachinery/pkg/util/waitgroup"
	genericapifilters "k8s.io/apiserver/pkg/endpoints/filters"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericfilters "k8s.io/apiserver/pkg/server/filters"
	"k8s.io/component-base/tracing"

	"github.com/vmesh-io/vmesh/pkg/apiserver/filters"
	"github.com/vmesh-io/vmesh/pkg/apiserver/handlers"
	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/authz"
	"github.com/vmesh-io/vmesh/pkg/fairness"
)

// lifecycle is what the endpoints share of the process's life: requests that are under
// way, and the sign to end.
type lifecycle struct {
	requests *utilwaitgroup.SafeWaitGroup
	watches  *utilwaitgroup.RateLimitedSafeWaitGroup
	closing  chan struct{}
}

func newLifecycle() *lifecycle {
	return &lifecycle{
		requests: new(utilwaitgroup.SafeWaitGroup), watches: &utilwaitgroup.RateLimitedSafeWaitGroup{}, closing: make(chan struct{}),
	}
}

// ShuttingDown implements request.ServerShutdownSignal.
func (l *lifecycle) ShuttingDown() <-chan struct{} { return l.closing }

// clusters knows the virtual clusters.
type clusters interface {
	filters.Clusters
	filters.Rated
	authn.Clusters
}

// fair is what keeps virtual clusters from each other, on both endpoints.
type fair struct {
	shares      *fairness.Scheduler
	rates       *fairness.Rates
	connections *fairness.Connections
	defaults    fairness.Limits
}

func newFair(o *Options, connections *fairness.Connections) *fair {
	register(filters.Refused)
	return &fair{shares: fairness.New(runtime.NumCPU(), processorTime, spareThread), rates: fairness.NewRates(), connections: connections, defaults: o.DefaultRates}
}

// buildChain puts the filters around an endpoint's handlers, the innermost first. It is
// upstream's chain without what has no use here (priority and fairness, which sees one
// flow for all virtual clusters; CORS; latencies of filters), which is a tenth of what a small
// write costs. Audit and tracing are in it when they are configured. Impersonation is its
// own: it ends at the virtual cluster.
func buildChain(handler http.Handler, c *genericapiserver.Config, writes *handlers.Handlers, deprecations map[schema.GroupVersionResource]string,
	z *authz.Authorizer, clusters clusters, kubeconfigs filters.Kubeconfigs, life *lifecycle, tracer tracing.TracerProvider, fair *fair) http.Handler {
	handler = filters.WithDeprecations(writes.Or(handler), deprecations)
	handler = filters.WithState(handler, clusters, c.Serializer)
	handler = filters.WithRates(handler, fair.rates, clusters, fair.defaults, c.Serializer)
	handler = genericapifilters.WithAuthorization(handler, c.Authorization.Authorizer, c.Serializer)
	handler = filters.WithShares(handler, fair.shares, c.LongRunningFunc, c.Serializer)
	handler = filters.WithImpersonation(handler, z, clusters, c.Serializer)
	handler = filters.WithHistory(handler)
	handler = filters.WithRoles(handler, z, c.Serializer)
	if c.Authentication.RequestHeaderConfig != nil {
		handler = filters.WithHost(handler, z, c.Serializer)
	}
	handler = withAudit(handler, c)
	handler = withTracing(handler, tracer)
	handler = filters.WithConnections(handler, fair.connections, clusters, fair.defaults, c.Serializer)
	handler = filters.WithKubeconfigs(handler, kubeconfigs, c.LongRunningFunc)
	failed := withFailedAudit(genericapifilters.Unauthorized(c.Serializer), c)
	handler = genericapifilters.WithAuthentication(handler, c.Authentication.Authenticator, failed, c.Authentication.APIAudiences, c.Authentication.RequestHeaderConfig)
	// Inside the timeout, which makes adding headers safe.
	handler = genericapifilters.WithWarningRecorder(handler)
	handler = genericfilters.WithTimeoutForNonLongRunningRequests(handler, c.LongRunningFunc)
	handler = withDeadline(handler, c)
	handler = genericfilters.WithWaitGroup(handler, c.LongRunningFunc, life.requests)
	handler = genericfilters.WithWatchTerminationDuringShutdown(handler, life, life.watches)
	handler = genericapifilters.WithCacheControl(handler)
	handler = genericfilters.WithHTTPLogging(handler)
	handler = genericapifilters.WithLatencyTrackers(handler)
	handler = genericapifilters.WithRequestInfo(handler, c.RequestInfoResolver)
	handler = genericapifilters.WithRequestReceivedTimestamp(handler)
	handler = genericfilters.WithPanicRecovery(handler, c.RequestInfoResolver)
	if c.AuditBackend != nil {
		handler = filters.WithClusterInAudit(handler)
	}
	return genericapifilters.WithAuditInit(handler)
}
