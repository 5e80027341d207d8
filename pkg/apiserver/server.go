package apiserver

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/apiserver/pkg/server/healthz"
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
	options  *Options
	backend  *logical.Backend
	root     *endpoint
	tenant   *endpoint
	clusters *vmesh.Clusters
	kinds    []*kind.Kind
	loops    []loop
	closers  []func()
	warm     *warmth
	life     *lifecycle
	sync     *vmeshsync.Service
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
	creds, err := ensureCredentials(o)
	if err != nil {
		return nil, err
	}
	client, err := s.openEtcd(ctx)
	if err != nil {
		return nil, err
	}
	s.backend, err = logical.NewBackend(logical.BackendConfig{
		Client: client, Prefix: o.Etcd.Prefix, CompactionInterval: o.Etcd.CompactionInterval, Registerer: newRegisterer(),
	})
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.backend.Close)
	return s, s.assemble(creds)
}

// assemble makes the kinds, their storage and the two endpoints.
func (s *Server) assemble(creds *credentials) error {
	s.clusters = vmesh.NewClusters(s.backend, func(cluster string) string { return s.options.URL() + "/clusters/" + cluster })
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
	admit := admission.NewChainHandler(vmeshadmission.NewNamespaceLifecycle(namespaceREST, s.clusters.IsSystemNamespace),
		vmeshadmission.NewAnalysis(analysis.Added))
	secure, err := s.listen(creds)
	if err != nil {
		return err
	}
	if s.tenant, err = newEndpoint(endpointConfig{
		name: "virtual-cluster", kinds: slices.Concat(core, mesh, []*kind.Kind{definitions}), storage: tenantGroups,
		options: s.options, secure: secure, authenticator: authenticator, admission: admit, clusters: s.clusters, life: s.life,
	}); err != nil {
		return err
	}
	if s.root, err = newEndpoint(endpointConfig{
		name: "root", kinds: slices.Concat(core, []*kind.Kind{virtualClusters, meshes, kubeconfigs, analyses}), storage: rootGroups,
		options: s.options, secure: secure, authenticator: authenticator, admission: admit, clusters: s.clusters, life: s.life, process: true,
		wrap: func(root http.Handler) http.Handler { return filters.WithCluster(root, s.tenant.server.Handler) },
	}); err != nil {
		return err
	}

	purge := virtualcluster.New(clusterStore, s.backend)
	var contents []*resource.Store
	for _, k := range s.kinds {
		if k.Namespaced() {
			contents = append(contents, stores[k.GroupResource()])
		}
	}
	content := namespacecontroller.New(namespaceREST, finalizeREST, contents)
	s.loops = append(s.loops,
		s.observe(clusterStore, s.clusters), s.observe(clusterStore, purge), s.observe(namespaces, content),
		loop{"virtual cluster purge", func(ctx context.Context) error { purge.Run(ctx); return nil }},
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
	checks := []healthz.HealthChecker{
		healthz.NamedCheck("storage", func(*http.Request) error { return s.storageReady() }),
		healthz.NamedCheck("kinds", func(*http.Request) error { return s.warm.err() }),
		healthz.NamedCheck("snapshot", func(*http.Request) error { return s.sync.Ready() }),
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

func (s *Server) storageReady() error {
	var waiting []string
	for gr, err := range s.backend.Ready() {
		if err != nil {
			waiting = append(waiting, fmt.Sprintf("%s: %v", gr, err))
		}
	}
	if len(waiting) == 0 {
		return nil
	}
	slices.Sort(waiting)
	return fmt.Errorf("watch caches are not in step with etcd: %s", strings.Join(waiting, "; "))
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

// listen binds the port, so that a port that is taken is an error at start.
func (s *Server) listen(creds *credentials) (*genericapiserver.SecureServingInfo, error) {
	serving := genericoptions.NewSecureServingOptions()
	serving.BindAddress, serving.BindPort, serving.Required = s.options.BindAddress, s.options.SecurePort, true
	serving.ServerCert.CertKey = genericoptions.CertKey{CertFile: creds.certFile, KeyFile: creds.keyFile}
	serving.HTTP2MaxStreamsPerConnection = 1000
	var info *genericapiserver.SecureServingInfo
	if err := serving.ApplyTo(&info); err != nil {
		return nil, fmt.Errorf("--bind-address, --secure-port: %w", err)
	}
	clientCA, err := dynamiccertificates.NewDynamicCAContentFromFile("client-ca", creds.clientCAFile)
	if err != nil {
		return nil, err
	}
	info.ClientCA = clientCA
	s.closers = append(s.closers, func() { _ = info.Listener.Close() }) // closed already when it has served
	return info, nil
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
	err := prepared.RunWithContext(serve)
	stopWork(errors.New("the server stops"))
	wg.Wait()
	close(failures)
	errs := []error{err}
	for f := range failures {
		errs = append(errs, f)
	}
	return errors.Join(errs...)
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
