package apiserver

import (
	"fmt"
	"net"
	"net/http"
	goruntime "runtime"
	"slices"
	"strings"
	"time"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/sets"
	apimachineryversion "k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericfilters "k8s.io/apiserver/pkg/server/filters"
	"k8s.io/apiserver/pkg/util/compatibility"
	restclient "k8s.io/client-go/rest"
	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/component-base/tracing"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apiserver/codec"
	"github.com/vmesh-io/vmesh/pkg/apiserver/filters"
	"github.com/vmesh-io/vmesh/pkg/apiserver/handlers"
	"github.com/vmesh-io/vmesh/pkg/authz"
	"github.com/vmesh-io/vmesh/pkg/openapi"
	"github.com/vmesh-io/vmesh/pkg/registry/review"
	"github.com/vmesh-io/vmesh/pkg/version"
)

const (
	// requestTimeout bounds every request but watches.
	requestTimeout = time.Minute
	// watchGrace is how long watches may take to end when the server stops.
	watchGrace = 5 * time.Second
)

// minRequestTimeout is the least time after which a watch is ended; the most is double.
const minRequestTimeout = 30 * time.Minute

// endpoint is an API: the root's, or that of every virtual cluster.
type endpoint struct {
	server *genericapiserver.GenericAPIServer
	codec  *codec.Codec
	// discovered are the versions of each group of objects, the preferred one first.
	discovered map[string][]apidiscoveryv2.APIVersionDiscovery
}

// endpointConfig is what an endpoint is made of.
type endpointConfig struct {
	name          string
	kinds         []*kind.Kind // all that its bodies can be
	described     []*kind.Kind // what OpenAPI tells besides
	storage       groups       // what is served
	options       *Options
	secure        *genericapiserver.SecureServingInfo
	authenticator authenticator.Request
	admission     admission.Interface
	authorizer    *authz.Authorizer
	frontProxy    *authenticatorfactory.RequestHeaderConfig
	tokens        *tokens
	clusters      clusters
	kubeconfigs   filters.Kubeconfigs
	life          *lifecycle
	audit         audit.Backend             // nil for none
	auditPolicy   audit.PolicyRuleEvaluator // nil for none
	tracer        tracing.TracerProvider    // nil for none
	fair          *fair
	// wrap, if set, goes around the whole chain of filters.
	wrap func(http.Handler) http.Handler
	// process says that the process's own paths (metrics, profiles) are served here.
	process bool
}

// newEndpoint makes an API server for what is given; nothing listens yet.
func newEndpoint(c endpointConfig) (*endpoint, error) {
	objects, err := codec.New(c.kinds)
	if err != nil {
		return nil, err
	}
	e := &endpoint{codec: objects, discovered: map[string][]apidiscoveryv2.APIVersionDiscovery{}}
	z := c.authorizer

	metaScheme := runtime.NewScheme()
	metav1.AddToGroupVersion(metaScheme, schema.GroupVersion{Version: "v1"})
	metaScheme.AddUnversionedTypes(schema.GroupVersion{Version: "v1"},
		&metav1.Status{}, &metav1.APIVersions{}, &metav1.APIGroupList{}, &metav1.APIGroup{}, &metav1.APIResourceList{})

	config := genericapiserver.NewConfig(serializer.NewCodecFactory(metaScheme))
	config.EffectiveVersion = effectiveVersion{compatibility.DefaultBuildEffectiveVersion()}
	config.SecureServing = c.secure
	config.ExternalAddress = net.JoinHostPort(c.options.BindAddress.String(), fmt.Sprint(c.options.SecurePort))
	config.LoopbackClientConfig = &restclient.Config{} // nothing in the process calls itself
	config.Authentication.Authenticator, config.Authentication.RequestHeaderConfig = c.authenticator, c.frontProxy
	config.Authorization.Authorizer = z
	config.AdmissionControl = c.admission
	config.LongRunningFunc = genericfilters.BasicLongRunningRequestCheck(sets.NewString("watch"), sets.NewString())
	config.MaxRequestBodyBytes = c.options.MaxBodyBytes
	config.MinRequestTimeout = int(minRequestTimeout.Seconds())
	config.SkipOpenAPIInstallation = true
	config.EnableMetrics, config.EnableProfiling = c.process, c.process
	config.NonLongRunningRequestWaitGroup, config.WatchRequestWaitGroup = c.life.requests, c.life.watches
	config.ShutdownWatchTerminationGracePeriod = watchGrace
	config.RequestTimeout = requestTimeout
	config.AuditBackend, config.AuditPolicyRuleEvaluator = c.audit, c.auditPolicy
	config.EquivalentResourceRegistry = runtime.NewEquivalentResourceRegistry()
	writes := handlers.New(handlers.Config{
		Codec: e.codec, Admission: c.admission, Authorizer: z, Equivalents: config.EquivalentResourceRegistry, MaxBodyBytes: config.MaxRequestBodyBytes,
	})
	config.BuildHandlerChainFunc = func(handler http.Handler, generic *genericapiserver.Config) http.Handler {
		handler = filters.WithMediaTypes(handler, e.codec.Typed, generic.Serializer)
		handler = buildChain(handler, generic, writes, e.codec.Deprecations(), z, c.clusters, c.kubeconfigs, c.life, c.tracer, c.fair)
		if c.wrap != nil {
			handler = c.wrap(handler)
		}
		return handler
	}
	server, err := config.Complete(nil).New(c.name, genericapiserver.NewEmptyDelegate())
	if err != nil {
		return nil, fmt.Errorf("making the %s endpoint: %w", c.name, err)
	}
	e.server = server

	l := limits{admission: c.admission, minRequestTimeout: minRequestTimeout, maxRequestBodyBytes: c.options.MaxBodyBytes}
	for _, g := range c.storage.all() {
		if e.discovered[g.name], err = install(server, g, objectMachinery(e.codec), l); err != nil {
			return nil, err
		}
		for version, resources := range g.storage {
			for path, storage := range resources {
				if strings.Contains(path, "/") {
					continue
				}
				if err := writes.Add(schema.GroupVersionResource{Group: g.name, Version: version, Resource: path}, storage); err != nil {
					return nil, err
				}
			}
		}
	}
	reviews, scheme, err := reviewGroups(z, c.tokens)
	if err != nil {
		return nil, err
	}
	for _, g := range reviews.all() {
		if _, err := install(server, g, schemeMachinery(scheme), l); err != nil {
			return nil, err
		}
	}
	openapi.Install(server.Handler.NonGoRestfulMux, slices.Concat(c.kinds, c.described))
	for path, handler := range c.tokens.accounts.Handlers() {
		server.Handler.NonGoRestfulMux.Handle(path, handler)
	}
	return e, nil
}

// limits are what every group is served with.
type limits struct {
	admission           admission.Interface
	minRequestTimeout   time.Duration
	maxRequestBodyBytes int64
}

// reviewGroups are the questions about who may do what.
func reviewGroups(z *authz.Authorizer, t *tokens) (groups, *runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	if err := codec.AddTyped(scheme, authenticationv1.SchemeGroupVersion, authenticationv1.AddToScheme); err != nil {
		return groups{}, nil, err
	}
	if err := codec.AddTyped(scheme, authorizationv1.SchemeGroupVersion, authorizationv1.AddToScheme); err != nil {
		return groups{}, nil, err
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	var g groups
	g.add(authenticationv1.SchemeGroupVersion, "tokenreviews", review.TokenReview(t, t.accounts.Issuer))
	g.add(authenticationv1.SchemeGroupVersion, "selfsubjectreviews", review.SelfSubjectReview())
	g.add(authorizationv1.SchemeGroupVersion, "selfsubjectaccessreviews", review.SelfSubjectAccessReview(z))
	g.add(authorizationv1.SchemeGroupVersion, "selfsubjectrulesreviews", review.SelfSubjectRulesReview(z))
	g.add(authorizationv1.SchemeGroupVersion, "subjectaccessreviews", review.SubjectAccessReview(z))
	g.add(authorizationv1.SchemeGroupVersion, "localsubjectaccessreviews", review.LocalSubjectAccessReview(z))
	return g, scheme, nil
}

// effectiveVersion is Kubernetes' version as far as the API goes, with vmesh's own in it.
type effectiveVersion struct {
	basecompatibility.EffectiveVersion
}

func (effectiveVersion) Info() *apimachineryversion.Info {
	return &apimachineryversion.Info{
		Major: "1", Minor: "37", GitVersion: "v1.37.2+vmesh." + version.Version, GitCommit: version.Commit, GitTreeState: "clean",
		BuildDate: version.Date, GoVersion: goruntime.Version(), Compiler: goruntime.Compiler, Platform: goruntime.GOOS + "/" + goruntime.GOARCH,
	}
}
