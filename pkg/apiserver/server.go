package apiserver

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/client-go/util/cert"
	"k8s.io/klog/v2"

	vmeshadmission "github.com/vmesh-io/vmesh/pkg/admission"
	"github.com/vmesh-io/vmesh/pkg/apis/builtin"
	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	vmeshkinds "github.com/vmesh-io/vmesh/pkg/apis/vmesh"
	"github.com/vmesh-io/vmesh/pkg/apiserver/filters"
	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/authz"
	"github.com/vmesh-io/vmesh/pkg/controller/garbage"
	namespacecontroller "github.com/vmesh-io/vmesh/pkg/controller/namespace"
	"github.com/vmesh-io/vmesh/pkg/controller/virtualcluster"
	"github.com/vmesh-io/vmesh/pkg/registry/definition"
	"github.com/vmesh-io/vmesh/pkg/registry/namespace"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/registry/vmesh"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
	vmeshsync "github.com/vmesh-io/vmesh/pkg/sync"
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
	sync       *vmeshsync.Service
	authorizer *authz.Authorizer

	secure             *genericapiserver.SecureServingInfo
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
	if err := s.listen(creds); err != nil {
		return nil, err
	}
	client, err := s.openEtcd(ctx)
	if err != nil {
		return nil, err
	}
	s.etcd = newEtcdProbe(client, o.Etcd.Prefix)
	compaction := o.Etcd.CompactionInterval
	if compaction == 0 {
		compaction = -1 // never, and not the storage's default
	}
	s.backend, err = logical.NewBackend(logical.BackendConfig{
		Client: client, Prefix: o.Etcd.Prefix, CompactionInterval: compaction, Registerer: newRegisterer(),
	})
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.backend.Close)
	return s, s.assemble(creds)
}

// assemble makes the kinds, their storage and the two endpoints.
func (s *Server) assemble(creds *credentials) error {
	s.clusters = vmesh.NewClusters(s.backend, func(cluster string) string {
		if cluster == logical.Root {
			return s.options.URL()
		}
		return s.options.URL() + "/clusters/" + cluster
	})
	virtualClusters, meshes, kubeconfigs, analyses, err := vmeshkinds.Kinds(s.clusters.Hooks())
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
	definitions, core := takeKind(core, schema.GroupKind{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"})
	s.kinds = slices.Concat(core, mesh, []*kind.Kind{virtualClusters, meshes})

	stores := map[schema.GroupResource]*resource.Store{}
	for _, k := range s.kinds {
		if stores[k.GroupResource()], err = resource.NewStore(k, s.backend); err != nil {
			return err
		}
	}
	for _, group := range []string{"", "events.k8s.io"} {
		stores[schema.GroupResource{Group: group, Resource: "events"}].TTLFunc = eventTTL
	}
	namespaces := stores[schema.GroupResource{Resource: "namespaces"}]
	namespaceREST, finalizeREST := namespace.NewREST(namespaces)
	clusterStore, meshStore := stores[virtualClusters.GroupResource()], stores[meshes.GroupResource()]
	s.clusters.Attach(clusterStore, meshStore, namespaces)
	roles, z, err := s.assembleRBAC(stores)
	if err != nil {
		return err
	}
	s.authorizer = z
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
					g.add(gv, k.Resource()+"/kubeconfig", s.clusters.KubeconfigREST(kubeconfigs, creds.clients, creds.servers))
					g.add(gv, k.Resource()+"/analysis", s.clusters.AnalysisREST(analyses, analysis.Analyze))
				case meshes.GroupResource():
					g.add(gv, k.Resource(), s.clusters.MeshREST())
					g.add(gv, k.Resource()+"/status", stores[k.GroupResource()].StatusREST(version))
				default:
					if r := roles[k.GroupResource()]; r != nil {
						g.add(gv, k.Resource(), r)
						continue
					}
					g.add(gv, k.Resource(), stores[k.GroupResource()].REST(version))
					if k.HasStatus(version) {
						g.add(gv, k.Resource()+"/status", stores[k.GroupResource()].StatusREST(version))
					}
				}
			}
		}
	}
	var rootGroups, tenantGroups groups
	serve(&rootGroups, core)
	serve(&rootGroups, []*kind.Kind{virtualClusters, meshes})
	serve(&tenantGroups, core)
	serve(&tenantGroups, mesh)
	tenantGroups.add(definitions.GVK(definitions.StorageVersion()).GroupVersion(), definitions.Resource(),
		definition.New(definitions, onceObjects(func() ([]*object.Object, error) { return builtin.CRDObjects(mesh) })))

	authenticator, err := s.authenticator(creds)
	if err != nil {
		return err
	}
	fair := newFair(s.options)
	checks := s.readinessChecks()
	admit := admission.NewChainHandler(vmeshadmission.NewNamespaceLifecycle(namespaceREST, s.clusters.IsSystemNamespace),
		vmeshadmission.NewAnalysis(analysis.Added))
	if s.tenant, err = newEndpoint(endpointConfig{
		name: "virtual-cluster", kinds: slices.Concat(core, mesh, []*kind.Kind{definitions}), storage: tenantGroups,
		options: s.options, secure: s.secure, authenticator: authenticator, authorizer: z, admission: admit, clusters: s.clusters, life: s.life, fair: fair,
	}); err != nil {
		return err
	}
	if s.root, err = newEndpoint(endpointConfig{
		name: "root", kinds: slices.Concat(core, []*kind.Kind{virtualClusters, meshes, kubeconfigs, analyses}), storage: rootGroups,
		options: s.options, secure: s.secure, authenticator: authenticator, authorizer: z, admission: admit, clusters: s.clusters, life: s.life, fair: fair, process: true,
		wrap: func(root http.Handler) http.Handler {
			return filters.WithCluster(withReasons(root, checks), withReasons(s.tenant.server.Handler, checks))
		},
	}); err != nil {
		return err
	}

	purge := virtualcluster.New(clusterStore, s.backend)
	settle := virtualcluster.NewSettle(clusterStore, s.clusters)
	var contents []*resource.Store
	for _, k := range s.kinds {
		if k.Namespaced() {
			contents = append(contents, stores[k.GroupResource()])
		}
	}
	content := namespacecontroller.New(namespaceREST, finalizeREST, contents)
	s.loops = append(s.loops,
		s.observe(clusterStore, s.clusters), s.observe(clusterStore, purge), s.observe(namespaces, content),
		s.observe(clusterStore, settle.Clusters()), s.observe(meshStore, settle.Meshes()),
		loop{"virtual cluster purge", func(ctx context.Context) error { purge.Run(ctx); return nil }},
		loop{"virtual cluster settling", func(ctx context.Context) error { settle.Run(ctx); return nil }},
		loop{"namespace content", func(ctx context.Context) error { content.Run(ctx); return nil }},
		loop{"warm-up", s.warmUp},
		loop{"memory", tuneMemory},
	)
	s.collectGarbage(stores, admit, map[schema.GroupResource]garbage.Source{
		namespaces.Kind().GroupResource(): {Deleter: namespaceREST},
		virtualClusters.GroupResource():   {Deleter: s.clusters.REST(), Serves: isRoot},
		meshes.GroupResource():            {Serves: isRoot},
	}, mesh)
	if err := s.assembleSync(mesh, meshStore, creds); err != nil {
		return err
	}
	return errors.Join(s.root.server.AddReadyzChecks(checks...), s.tenant.server.AddReadyzChecks(checks...))
}

func (s *Server) observe(store *resource.Store, o logical.Observer) loop {
	return loop{"observing " + store.Kind().String(), func(ctx context.Context) error {
		return s.backend.Observe(ctx, store.Kind().GroupResource(), o)
	}}
}

func isRoot(cluster string) bool   { return cluster == logical.Root }
func isTenant(cluster string) bool { return cluster != logical.Root }

// collectGarbage adds the garbage collector of all stores. special are those that are
// not deleted from, or not served, as the others; mesh are the kinds that the root lacks.
func (s *Server) collectGarbage(stores map[schema.GroupResource]*resource.Store, admit admission.Interface,
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
	for _, source := range sources {
		s.loops = append(s.loops, s.observe(source.Store, collector.Observer(source.Store)))
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

// authenticator checks client certificates against the authority's file, which is read
// again when it changes.
func (s *Server) authenticator(creds *credentials) (authenticator.Request, error) {
	pool, err := cert.NewPoolFromBytes(creds.clients.PEM)
	if err != nil {
		return nil, err
	}
	return authn.New(func() (x509.VerifyOptions, bool) {
		return x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, true
	}, s.clusters), nil
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
	serving.ServerCert.CertKey = genericoptions.CertKey{CertFile: creds.certFile, KeyFile: creds.keyFile}
	serving.HTTP2MaxStreamsPerConnection = 1000
	if err := serving.ApplyTo(&s.secure); err != nil {
		return fmt.Errorf("--bind-address, --secure-port: %w", err)
	}
	clientCA, err := dynamiccertificates.NewDynamicCAContentFromFile("client-ca", creds.clientCAFile)
	if err != nil {
		return err
	}
	s.secure.ClientCA = clientCA
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
	if err := s.clusters.EnsureDefaults(ctx); err != nil {
		return err
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
