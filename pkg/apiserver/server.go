package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/component-base/tracing"
	"k8s.io/klog/v2"

	vmeshadmission "github.com/vmesh-io/vmesh/pkg/admission"
	"github.com/vmesh-io/vmesh/pkg/admission/extension"
	"github.com/vmesh-io/vmesh/pkg/apis/builtin"
	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	vmeshkinds "github.com/vmesh-io/vmesh/pkg/apis/vmesh"
	"github.com/vmesh-io/vmesh/pkg/apiserver/filters"
	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/authn/oidc"
	"github.com/vmesh-io/vmesh/pkg/authz"
	"github.com/vmesh-io/vmesh/pkg/controller/garbage"
	namespacecontroller "github.com/vmesh-io/vmesh/pkg/controller/namespace"
	"github.com/vmesh-io/vmesh/pkg/controller/virtualcluster"
	"github.com/vmesh-io/vmesh/pkg/discovery"
	"github.com/vmesh-io/vmesh/pkg/fairness"
	"github.com/vmesh-io/vmesh/pkg/host"
	"github.com/vmesh-io/vmesh/pkg/quota"
	"github.com/vmesh-io/vmesh/pkg/registry/definition"
	"github.com/vmesh-io/vmesh/pkg/registry/namespace"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/registry/vmesh"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
	vmeshsync "github.com/vmesh-io/vmesh/pkg/sync"
	"github.com/vmesh-io/vmesh/pkg/sync/release"
)

// Server is vmesh: the root's API and that of the virtual clusters, on one etcd.
type Server struct {
	options    *Options
	backend    *logical.Backend
	root       *endpoint
	tenant     *endpoint
	clusters   *vmesh.Clusters
	kinds      []*kind.Kind
	loops      []loop
	closers    []func()
	warm       *warmth
	life       *lifecycle
	etcd       *etcdProbe
	etcdClient *clientv3.Client
	stages     *release.Store // what the stages of meshes have
	sync       *vmeshsync.Service
	members    *discovery.View                         // the services of all member clusters
	meshes     func(context.Context) ([]string, error) // the names of all that are stored
	prepared   atomic.Bool                             // a first use has what it needs, control planes too
	authorizer *authz.Authorizer
	// host and frontProxy are nil without a host cluster.
	host       *host.Host
	frontProxy *authenticatorfactory.RequestHeaderConfig
	issuers    *oidc.Authenticator // nil: none but vmesh
	extension  *extension.Plugin
	keeper     *keeper
	peers      *logical.Peers // the servers on this etcd

	audit       audit.Backend             // nil for none
	auditPolicy audit.PolicyRuleEvaluator // nil for none
	tracer      tracing.TracerProvider    // nil for none
	encryption  *encryption               // nil for none
	resources   []schema.GroupResource    // all that is stored

	secure             *genericapiserver.SecureServingInfo
	connections        *fairness.Connections
	xdsPlain, xdsOnTLS net.Listener
}

// loop is work that goes on while the server runs.
type loop struct {
	name string
	run  func(ctx context.Context) error
}

// New opens the storage and makes the server. It does not listen yet. Close frees what
// it holds, also when Run was never called.
func New(ctx context.Context, o *Options) (_ *Server, err error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	s := &Server{options: o, warm: newWarmth(), life: newLifecycle()}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	release, err := openDataDir(o.DataDir)
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, release)
	creds, err := ensureCredentials(o)
	if err != nil {
		return nil, err
	}
	// What can be wrong with the options comes before the storage begins to work.
	if err := s.openIssuers(); err != nil {
		return nil, err
	}
	if err := s.listen(creds); err != nil {
		return nil, err
	}
	if err := s.openTraces(); err != nil {
		return nil, err
	}
	if s.encryption, err = newEncryption(o.Encryption); err != nil {
		return nil, err
	}
	var transformer func(schema.GroupResource) value.Transformer
	if s.encryption != nil {
		s.closers = append(s.closers, s.encryption.close)
		transformer = s.encryption.transformer
		if o.Encryption.Reload {
			s.loops = append(s.loops, loop{"encryption configuration", s.encryption.run})
		}
	}
	if err := s.connectHost(creds); err != nil {
		return nil, err
	}
	client, err := s.openEtcd(ctx)
	if err != nil {
		return nil, err
	}
	s.etcd, s.etcdClient = newEtcdProbe(client, o.Etcd.Prefix), client
	compaction := o.Etcd.CompactionInterval
	if compaction == 0 {
		compaction = -1 // never, and not the storage's default
	}
	s.backend, err = logical.NewBackend(logical.BackendConfig{
		Client: client, Prefix: o.Etcd.Prefix, CompactionInterval: compaction, Transformer: transformer, Registerer: newRegisterer(),
		Shared: len(o.Etcd.Servers) > 0, Recorder: s.newRecorder(),
	})
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.backend.Close)
	if err := s.checkKeys(ctx); err != nil {
		return nil, err
	}
	return s, s.assemble(creds)
}

// assemble makes the kinds, their storage and the two endpoints.
func (s *Server) assemble(creds *credentials) error {
	s.clusters = vmesh.NewClusters(s.backend, s.options.clusterURL)
	records := vmesh.NewKubeconfigs()
	own, err := vmeshkinds.Kinds(s.clusters.Hooks(), records.Hooks(), s.clusters.Mesh)
	if err != nil {
		return err
	}
	core, err := builtin.Kinds()
	if err != nil {
		return err
	}
	mesh, err := istio.Kinds()
	if err != nil {
		return err
	}
	virtualClusters, meshes, kubeconfigs := own.VirtualClusters, own.Meshes, own.Kubeconfigs
	definitions, core := takeKind(core, schema.GroupKind{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"})
	s.kinds = slices.Concat(core, mesh, own.Stored())

	stores := map[schema.GroupResource]*resource.Store{}
	quotas := quota.New(s.clusters.Limits)
	var contents []*resource.Store // of virtual clusters
	for _, k := range s.kinds {
		s.resources = append(s.resources, k.GroupResource())
		store, err := resource.NewStore(k, s.backend)
		if err != nil {
			return err
		}
		stores[k.GroupResource()] = store
		if slices.Contains(own.Stored(), k) {
			continue
		}
		contents = append(contents, store)
		if !uncounted[k.GroupResource()] {
			store.Storage.Storage = quotas.Count(k, store.Storage.Storage)
		}
	}
	for _, group := range []string{"", "events.k8s.io"} {
		stores[schema.GroupResource{Group: group, Resource: "events"}].TTLFunc = eventTTL
	}
	s.markDistribution(mesh, stores)
	namespaces := stores[schema.GroupResource{Resource: "namespaces"}]
	namespaceREST, finalizeREST := namespace.NewREST(namespaces)
	clusterStore, meshStore := stores[virtualClusters.GroupResource()], stores[meshes.GroupResource()]
	s.clusters.Attach(clusterStore, meshStore, namespaces)
	s.clusters.AttachContents(contents, quotas.Resources())
	namespaceREST.Contents = slices.DeleteFunc(slices.Clone(contents), func(s *resource.Store) bool { return !s.Kind().Namespaced() })
	s.keepCertificates(creds, records, stores[kubeconfigs.GroupResource()], stores[schema.GroupResource{Resource: "events"}])
	roles, z, err := s.assembleRBAC(stores)
	if err != nil {
		return err
	}
	s.authorizer = z
	if s.host != nil {
		z.AskHost(s.host)
	}
	tokens := s.assembleTokens(stores)
	analysis := s.newAnalysis(slices.Concat(core, mesh), stores)

	serve := func(g *groups, kinds []*kind.Kind) {
		for _, k := range kinds {
			for _, version := range k.Versions() {
				gv := k.GVK(version).GroupVersion()
				switch k.GroupResource() {
				case namespaces.Kind().GroupResource():
					g.add(gv, "namespaces", namespaceREST)
					g.add(gv, "namespaces/status", stores[k.GroupResource()].StatusREST(version))
					g.add(gv, "namespaces/finalize", finalizeREST)
				case virtualClusters.GroupResource():
					g.add(gv, k.Resource(), s.clusters.REST())
					g.add(gv, k.Resource()+"/status", stores[k.GroupResource()].StatusREST(version))
					g.add(gv, k.Resource()+"/proxy", s.clusters.ProxyREST())
					g.add(gv, k.Resource()+"/kubeconfig", s.clusters.KubeconfigREST(own.KubeconfigRequests, records, creds.clients, creds.servers))
					g.add(gv, k.Resource()+"/analysis", s.clusters.AnalysisREST(own.Analyses, analysis.Analyze))
				case meshes.GroupResource():
					g.add(gv, k.Resource(), s.clusters.MeshREST())
					g.add(gv, k.Resource()+"/status", stores[k.GroupResource()].StatusREST(version))
				default:
					if r := roles[k.GroupResource()]; r != nil {
						g.add(gv, k.Resource(), r)
						continue
					}
					g.add(gv, k.Resource(), stores[k.GroupResource()].REST(version))
					if k.GroupResource() == (schema.GroupResource{Resource: "serviceaccounts"}) {
						g.add(gv, "serviceaccounts/token", tokens.request)
					}
					if k.HasStatus(version) {
						g.add(gv, k.Resource()+"/status", stores[k.GroupResource()].StatusREST(version))
					}
				}
			}
		}
	}
	var rootGroups, tenantGroups groups
	serve(&rootGroups, core)
	serve(&rootGroups, own.Stored())
	reviews := own.ClaimReviews
	rootGroups.add(reviews.GVK(vmesh.Version).GroupVersion(), reviews.Resource(), s.clusters.ClaimReviewREST(reviews, s.reviewClaims))
	serve(&tenantGroups, core)
	serve(&tenantGroups, mesh)
	tenantGroups.add(definitions.GVK(definitions.StorageVersion()).GroupVersion(), definitions.Resource(),
		definition.New(definitions, onceObjects(func() ([]*object.Object, error) { return builtin.CRDObjects(mesh) })))

	changes, err := s.serveChanges(&tenantGroups, z)
	if err != nil {
		return err
	}
	services, err := s.serveMeshServices(&tenantGroups)
	if err != nil {
		return err
	}

	direct := authn.New(creds.VerifyOptions, s.clusters, records, tokens, tokens.nobody)
	authenticator := s.authenticator(direct)
	checks := s.readinessChecks()
	if s.extension, err = s.newExtension(namespaceREST); err != nil {
		return err
	}
	fair := newFair(s.options, s.connections)
	view := s.hostView(mesh)
	var announced []*kind.Kind
	if view != nil {
		announced = mesh
	}
	rails := vmeshadmission.NewGuardRails(s.clusters.Owners, s.clusters.IsSystemNamespace, mesh)
	admit := admission.NewChainHandler(s.fitHostView(vmeshadmission.NewNamespaceLifecycle(namespaceREST, s.clusters.IsSystemNamespace), rails.Creating(namespaceREST)),
		rails, s.extension, vmeshadmission.NewAnalysis(analysis.Added), vmeshadmission.NewQuota(quotas.Check))
	if s.tenant, err = newEndpoint(endpointConfig{
		name: "virtual-cluster", kinds: slices.Concat(core, mesh, []*kind.Kind{definitions, changes, services}), storage: tenantGroups,
		options: s.options, secure: s.secure, authenticator: authenticator, authorizer: z, tokens: tokens, admission: admit, clusters: s.clusters, kubeconfigs: records, life: s.life,
		audit: s.audit, auditPolicy: s.auditPolicy, tracer: s.tracer, frontProxy: s.frontProxy, fair: fair,
	}); err != nil {
		return err
	}
	if s.root, err = newEndpoint(endpointConfig{
		name: "root", kinds: slices.Concat(core, own.All()), storage: rootGroups,
		options: s.options, secure: s.secure, authenticator: authenticator, authorizer: z, tokens: tokens, admission: admit, clusters: s.clusters, kubeconfigs: records, life: s.life, process: true,
		audit: s.audit, auditPolicy: s.auditPolicy, tracer: s.tracer, frontProxy: s.frontProxy, fair: fair, described: announced,
		wrap: func(root http.Handler) http.Handler {
			return filters.WithCluster(withReasons(root, checks), withReasons(s.tenant.server.Handler, checks), view)
		},
	}); err != nil {
		return err
	}
	if view != nil {
		if err := announce(s.root, s.tenant, view.Groups); err != nil {
			return err
		}
	}

	s.extension.Serve(extensionEndpoint(s.root, slices.Concat(core, []*kind.Kind{virtualClusters, meshes, own.MemberClusters}), stores),
		extensionEndpoint(s.tenant, slices.Concat(core, mesh), stores))
	s.root.server.Handler.NonGoRestfulMux.HandleFunc(RewritePath, s.serveRewrite)

	purge := virtualcluster.New(clusterStore, s.backend)
	purge.Tell = s.tellOfCluster
	settle := virtualcluster.NewSettle(clusterStore, s.clusters)
	usage := virtualcluster.NewUsage(clusterStore, quotas)
	content := namespacecontroller.New(namespaceREST, finalizeREST, namespaceREST.Contents, admit)
	s.loops = append(s.loops,
		s.observe(clusterStore, s.clusters), s.observe(clusterStore, purge), s.observe(namespaces, content),
		s.observeCached(clusterStore, settle.Clusters()), s.observeCached(meshStore, settle.Meshes()),
		s.observeCached(clusterStore, usage),
		loop{"quota usage", func(ctx context.Context) error { usage.Run(ctx); return nil }},
		loop{"virtual cluster purge", func(ctx context.Context) error { purge.Run(ctx); return nil }},
		loop{"virtual cluster settling", func(ctx context.Context) error { settle.Run(ctx); return nil }},
		loop{"namespace content", func(ctx context.Context) error { content.Run(ctx); return nil }},
		loop{"warm-up", s.warmUp},
		loop{"memory", tuneMemory},
	)
	s.collectGarbage(stores, admit, quotas, map[schema.GroupResource]garbage.Source{
		namespaces.Kind().GroupResource():  {Deleter: namespaceREST},
		virtualClusters.GroupResource():    {Deleter: s.clusters.REST(), Serves: isRoot},
		meshes.GroupResource():             {Serves: isRoot},
		kubeconfigs.GroupResource():        {Serves: isRoot},
		own.MemberClusters.GroupResource(): {Serves: isRoot},
	}, mesh)
	gate := newReceivers(direct, records, s.options.XDSAllowAnonymous || isLoopback(s.options.XDSTLSAddress))
	if err := s.assembleSync(mesh, stores, meshStore, clusterStore, creds, gate); err != nil {
		return err
	}
	s.keepHomes(stores, own)
	s.keepMembers(stores, stores[own.MemberClusters.GroupResource()], meshStore, s.members, s.members)
	if s.encryption != nil {
		// Not with those whose reasons are told to anyone: this one is a stranger's.
		checks = append(slices.Clone(checks), s.encryption.check())
	}
	return errors.Join(s.root.server.AddReadyzChecks(checks...), s.tenant.server.AddReadyzChecks(checks...))
}

func (s *Server) observe(store *resource.Store, o logical.Observer) loop {
	return loop{"observing " + store.Kind().String(), func(ctx context.Context) error {
		return s.backend.Observe(ctx, store.Kind().GroupResource(), o)
	}}
}

// observeCached is observe for those who go on to read the store.
func (s *Server) observeCached(store *resource.Store, o logical.Observer) loop {
	return loop{"observing " + store.Kind().String(), func(ctx context.Context) error {
		return s.backend.ObserveCached(ctx, store.Kind().GroupResource(), o)
	}}
}

func isRoot(cluster string) bool   { return cluster == logical.Root }
func isTenant(cluster string) bool { return cluster != logical.Root }

// uncounted are the resources that no quota counts: they come and go by themselves.
var uncounted = map[schema.GroupResource]bool{
	{Resource: "events"}:                               true,
	{Group: "events.k8s.io", Resource: "events"}:       true,
	{Group: "coordination.k8s.io", Resource: "leases"}: true,
}

// collectGarbage adds the garbage collector of all stores, with whose observers the quotas
// are kept: most changes concern neither. special are those that are
// not deleted from, or not served, as the others; mesh are the kinds that the root lacks.
func (s *Server) collectGarbage(stores map[schema.GroupResource]*resource.Store, admit admission.Interface, quotas *quota.Keeper,
	special map[schema.GroupResource]garbage.Source, mesh []*kind.Kind) {
	for _, k := range mesh {
		special[k.GroupResource()] = garbage.Source{Serves: isTenant}
	}
	var sources []garbage.Source
	for _, k := range s.kinds {
		source := special[k.GroupResource()]
		source.Store = stores[k.GroupResource()]
		sources = append(sources, source)
	}
	collector := garbage.New(sources, admit)
	collector.Paused = s.clusters.Frozen
	for _, source := range sources {
		observers := logical.Observers{collector.Observer(source.Store)}
		if o := quotas.Observer(source.Store.Kind().GroupResource()); o != nil {
			observers = append(observers, o)
		}
		s.loops = append(s.loops, s.observe(source.Store, observers))
	}
	s.loops = append(s.loops, loop{"garbage collection", func(ctx context.Context) error { collector.Run(ctx); return nil }})
}

// takeKind takes one kind out of a list.
func takeKind(kinds []*kind.Kind, gk schema.GroupKind) (*kind.Kind, []*kind.Kind) {
	i := slices.IndexFunc(kinds, func(k *kind.Kind) bool { return k.GroupKind() == gk })
	return kinds[i], slices.Concat(kinds[:i], kinds[i+1:])
}

func onceObjects(load func() ([]*object.Object, error)) func() ([]*object.Object, error) {
	return sync.OnceValues(func() ([]*object.Object, error) {
		objects, err := load()
		slices.SortFunc(objects, func(a, b *object.Object) int { return strings.Compare(a.Name, b.Name) })
		return objects, err
	})
}

func (s *Server) storageReady() error { return cachesReady(s.backend.Ready()) }

// cachesReady names a few of the watch caches that are not ready: when one is not, it is
// most often all of them, and for one reason.
func cachesReady(ready map[schema.GroupResource]error) error {
	var waiting []string
	for gr, err := range ready {
		if err != nil {
			waiting = append(waiting, fmt.Sprintf("%s: %v", gr, err))
		}
	}
	if len(waiting) == 0 {
		return nil
	}
	slices.Sort(waiting)
	count := len(waiting)
	const shown = 3
	rest := ""
	if len(waiting) > shown {
		waiting, rest = waiting[:shown], "; ..."
	}
	return fmt.Errorf("%d of %d watch caches are not in step with etcd: %s%s", count, len(ready), strings.Join(waiting, "; "), rest)
}

// authenticator knows callers by what they show themselves and, if there is a front proxy,
// by what that says of them.
func (s *Server) authenticator(direct authenticator.Request) authenticator.Request {
	if s.frontProxy == nil {
		return direct
	}
	return authn.WithFrontProxy(direct, s.frontProxy)
}

// listen binds the ports, so that one that is taken is an error at start.
func (s *Server) listen(creds *credentials) error {
	address := net.JoinHostPort(s.options.BindAddress.String(), strconv.Itoa(s.options.SecurePort))
	api, err := listenTCP("--bind-address, --secure-port", address)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, func() { _ = api.Close() }) // closed already when it has served
	for flag, to := range map[string]struct {
		listener *net.Listener
		address  string
	}{
		"--xds-address":     {&s.xdsPlain, s.options.XDSAddress},
		"--xds-tls-address": {&s.xdsOnTLS, s.options.XDSTLSAddress},
	} {
		if to.address == "" {
			continue
		}
		l, err := listenTCP(flag, to.address)
		if err != nil {
			return err
		}
		*to.listener = l
		s.closers = append(s.closers, func() { _ = l.Close() })
	}
	serving := genericoptions.NewSecureServingOptions()
	serving.BindAddress, serving.BindPort, serving.Required = s.options.BindAddress, s.options.SecurePort, true
	serving.Listener = api
	serving.HTTP2MaxStreamsPerConnection = 1000
	if err := serving.ApplyTo(&s.secure); err != nil {
		return fmt.Errorf("--bind-address, --secure-port: %w", err)
	}
	s.secure.Cert, s.secure.ClientCA = creds, creds
	s.connections = fairness.NewConnections()
	s.secure.Listener = s.connections.Listen(api)
	return nil
}

func listenTCP(flag, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	var cause *os.SyscallError
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%s: %s is in use by another process: stop that, or choose another port", flag, address)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("%s: this machine has no address %s: choose one of its own, or 0.0.0.0 for all", flag, address)
	case errors.As(err, &cause):
		return nil, fmt.Errorf("%s: listening on %s: %w", flag, address, cause.Err)
	}
	return nil, fmt.Errorf("%s: %w", flag, err)
}

// Run serves until ctx is done; then it lets requests that are under way end, and stops
// everything. started is called once, when the server is ready.
func (s *Server) Run(ctx context.Context, started func()) error {
	work, stopWork := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stopWork(nil)
	serve, stopServing := context.WithCancel(ctx)
	defer stopServing()

	var wg sync.WaitGroup
	failures := make(chan error, len(s.loops)+1)
	for _, l := range s.loops {
		wg.Go(func() {
			if err := l.run(work); err != nil && work.Err() == nil {
				failures <- fmt.Errorf("%s: %w", l.name, err)
				stopServing()
			}
		})
	}
	s.tenant.server.PrepareRun()
	if err := s.root.server.AddPostStartHook("virtual-clusters", func(hook genericapiserver.PostStartHookContext) error {
		s.tenant.server.RunPostStartHooks(hook.Context)
		return nil
	}); err != nil {
		return err
	}
	prepared := s.root.server.PrepareRun()
	wg.Go(func() {
		if err := s.prepareData(serve); err != nil {
			if serve.Err() == nil {
				failures <- err
				stopServing()
			}
			return
		}
		if started != nil {
			started()
		}
	})
	stop := context.AfterFunc(serve, func() { close(s.life.closing) })
	defer stop()
	err := s.drain(serve, prepared.RunWithContext)
	stopWork(errors.New("the server stops"))
	wg.Wait()
	close(failures)
	errs := []error{err}
	for f := range failures {
		errs = append(errs, f)
	}
	return errors.Join(errs...)
}

// drain runs until ctx is done, and then for as long as requests under way may take.
func (s *Server) drain(ctx context.Context, run func(context.Context) error) error {
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(s.options.ShutdownPeriod):
		return fmt.Errorf("requests were still under way %s after the sign to stop, and were cut off (--shutdown-period)", s.options.ShutdownPeriod)
	}
}

// prepareData waits for the storage and makes what a first use needs.
func (s *Server) prepareData(ctx context.Context) error {
	if err := s.backend.WaitReady(ctx); err != nil {
		return err
	}
	for _, ensure := range []func(context.Context) error{s.backend.BeginHistory, s.clusters.EnsureDefaults, s.keeper.ensureAdmin} {
		if err := untilAnswered(ctx, ensure); err != nil {
			return err
		}
	}
	if err := untilAnswered(ctx, func(ctx context.Context) error { return s.sync.WaitBuilt(ctx, s.meshes) }); err != nil {
		return err
	}
	s.prepared.Store(true)
	if err := s.viewServed(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "The host view serves nothing")
	}
	return s.warm.wait(ctx)
}

// NotReady is the first reason why the server is not ready, or nil. It may be called
// while Run runs.
func (s *Server) NotReady() error {
	for _, c := range s.readinessChecks() {
		if err := c.Check(nil); err != nil {
			return err
		}
	}
	return nil
}

// Close frees what New opened.
func (s *Server) Close() {
	for _, c := range slices.Backward(s.closers) {
		c()
	}
	s.closers = nil
}

// warmUp compiles all schemas, so that no request has to wait for it.
func (s *Server) warmUp(ctx context.Context) error {
	err := s.warm.run(ctx, s.kinds)
	if err != nil {
		klog.FromContext(ctx).Error(err, "Compiling schemas failed")
	}
	return err
}
