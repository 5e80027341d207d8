package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/resource"
	"google.golang.org/grpc"
	genericapifilters "k8s.io/apiserver/pkg/endpoints/filters"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/tracing"
	tracingapi "k8s.io/component-base/tracing/api/v1"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/apiserver/filters"
	"github.com/vmesh-io/vmesh/pkg/version"
)

// traceFlush is how long the last spans may take to get to their collector when the
// server stops.
const traceFlush = 2 * time.Second

// openTraces makes what both endpoints leave traces with: the audit log, and the tracer.
func (s *Server) openTraces() error {
	// One backend and one policy for both: they are taken out of a configuration that is
	// used for nothing else.
	var config genericapiserver.Config
	if err := s.options.Audit.ApplyTo(&config); err != nil {
		return fmt.Errorf("--audit-policy-file, --audit-log-path, --audit-webhook-config-file: %w", err)
	}
	s.audit, s.auditPolicy = config.AuditBackend, config.AuditPolicyRuleEvaluator
	tracer, err := newTracer(s.options.TracingConfigFile)
	if err != nil {
		return fmt.Errorf("--tracing-config-file: %w", err)
	}
	if tracer != nil {
		s.tracer = tracer
		s.closers = append(s.closers, func() {
			ctx, cancel := context.WithTimeout(context.Background(), traceFlush)
			defer cancel()
			if err := tracer.Shutdown(ctx); err != nil {
				klog.ErrorS(err, "Sending the last spans failed")
			}
		})
	}
	return nil
}

// newTracer makes the tracer that a TracingConfiguration asks for, or nil for no file.
func newTracer(file string) (tracing.TracerProvider, error) {
	if file == "" {
		return nil, nil
	}
	config, err := genericoptions.ReadTracingConfiguration(file)
	if err != nil {
		return nil, err
	}
	if errs := tracingapi.ValidateTracingConfiguration(config, utilfeature.DefaultFeatureGate, nil); len(errs) > 0 {
		return nil, fmt.Errorf("%s: %w", file, errs.ToAggregate())
	}
	return tracing.NewProvider(context.Background(), config, nil, []resource.Option{
		resource.WithAttributes(attribute.String("service.name", "vmesh"), attribute.String("service.version", version.Version)),
		resource.WithHost(),
	})
}

// traceEtcd makes calls of etcd spans of the requests that they are for.
func traceEtcd(tracer tracing.TracerProvider) []grpc.DialOption {
	if tracer == nil {
		return nil
	}
	return []grpc.DialOption{grpc.WithStatsHandler(otelgrpc.NewClientHandler(otelgrpc.WithPropagators(tracing.Propagators()), otelgrpc.WithTracerProvider(tracer)))}
}

// withAudit puts the audit log around a handler of requests whose callers are known.
func withAudit(handler http.Handler, c *genericapiserver.Config) http.Handler {
	if c.AuditBackend == nil {
		return handler
	}
	return filters.AsAsked(handler, func(handler http.Handler) http.Handler {
		return genericapifilters.WithAudit(handler, c.AuditBackend, c.AuditPolicyRuleEvaluator, c.LongRunningFunc)
	})
}

// withFailedAudit puts the audit log around the answer to callers that nobody knows.
func withFailedAudit(handler http.Handler, c *genericapiserver.Config) http.Handler {
	if c.AuditBackend == nil {
		return handler
	}
	return filters.AsAsked(handler, func(handler http.Handler) http.Handler {
		return genericapifilters.WithFailedAuthenticationAudit(handler, c.AuditBackend, c.AuditPolicyRuleEvaluator)
	})
}

// withDeadline ends requests that take too long.
func withDeadline(handler http.Handler, c *genericapiserver.Config) http.Handler {
	wrap := func(handler http.Handler) http.Handler {
		return genericapifilters.WithRequestDeadline(handler, c.AuditBackend, c.AuditPolicyRuleEvaluator, c.LongRunningFunc, c.Serializer, c.RequestTimeout)
	}
	if c.AuditBackend == nil {
		return wrap(handler)
	}
	return filters.AsAsked(handler, wrap)
}

// withTracing makes a request a span, or part of the caller's.
func withTracing(handler http.Handler, tracer tracing.TracerProvider) http.Handler {
	if tracer == nil {
		return handler
	}
	return filters.WithTrustedParent(filters.AsAsked(filters.WithClusterInTrace(handler), func(handler http.Handler) http.Handler {
		return genericapifilters.WithTracing(handler, tracer)
	}))
}
