package logical

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/etcd3"
	etcdfeature "k8s.io/apiserver/pkg/storage/feature"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"
)

// ErrClosed is returned by a Backend that was closed.
var ErrClosed = errors.New("the storage is closed")

// BackendConfig says which etcd holds the objects, and how.
type BackendConfig struct {
	// Client is used for everything, and stays the caller's.
	Client *clientv3.Client
	// Prefix comes first in every key. The default is /registry.
	Prefix string
	// CompactionInterval is how long etcd keeps history, at least: watches and
	// continue tokens of that age still work. The default is five minutes; below zero,
	// nothing is compacted.
	CompactionInterval time.Duration
	// EventsHistoryWindow is how long a watch cache keeps changes for watches that
	// resume. The default, which is the least, is 75 seconds.
	EventsHistoryWindow time.Duration
	// Transformer, if set, returns the encryption of a resource's stored bytes, or
	// nil. See ErrCorrupt.
	Transformer func(schema.GroupResource) value.Transformer
	// Shared says that other processes write to the same etcd. Locks then hold for all.
	Shared bool
	// Recorder, if set, makes the history of virtual clusters.
	Recorder Recorder
	// Registerer, if set, receives the metrics.
	Registerer prometheus.Registerer
}

// Resource is one row of the API table, as storage sees it.
type Resource struct {
	GroupResource schema.GroupResource
	// GVK and ListGVK are set on what is read; GVK is written to etcd. Objects stored
	// in any other version of the kind are read as well.
	GVK     schema.GroupVersionKind
	ListGVK schema.GroupVersionKind
	// Namespaced objects have their namespace in the key.
	Namespaced bool
	// GetAttrs returns the labels and fields that selectors see; the default is
	// upstream's: labels, metadata.name, and metadata.namespace.
	GetAttrs storage.AttrFunc
}

// Backend holds one watch cache per resource, which all virtual clusters share. Its
// methods may be called from several goroutines.
type Backend struct {
	config    BackendConfig
	client    *kubernetes.Client
	compactor interface {
		etcd3.Compactor
		Stop()
	}
	metrics *metrics
	done    chan struct{}
	// asked is the newest revision that etcd was asked for progress to. All watch
	// caches share one stream, so that one answer serves them all.
	asked atomic.Uint64
	locks locks

	mu     sync.Mutex
	closed bool
	stores map[schema.GroupResource]*store
	// stored are the resources that etcd had at a time.
	stored   []schema.GroupResource
	storedAt time.Time
}

// NewBackend starts what all resources share.
func NewBackend(c BackendConfig) (*Backend, error) {
	if c.Client == nil {
		return nil, errors.New("opening the storage: no etcd client given")
	}
	if c.Prefix == "" {
		c.Prefix = "/registry"
	}
	if c.CompactionInterval == 0 {
		c.CompactionInterval = storagebackend.DefaultCompactInterval
	}
	c.CompactionInterval = max(c.CompactionInterval, 0)
	if c.EventsHistoryWindow == 0 {
		c.EventsHistoryWindow = storagebackend.DefaultEventsHistoryWindow
	}
	m, err := newMetrics(c.Registerer)
	if err != nil {
		return nil, err
	}
	client := &kubernetes.Client{Client: c.Client}
	client.Kubernetes = client
	detectFeatures(c.Client)
	return &Backend{
		config:    c,
		client:    client,
		compactor: etcd3.NewCompactor(c.Client, c.CompactionInterval, clock.RealClock{}, nil),
		metrics:   m,
		done:      make(chan struct{}),
		locks:     locks{client: c.Client, prefix: c.Prefix + "-locks/", local: map[string]chan struct{}{}},
		stores:    map[schema.GroupResource]*store{},
	}, nil
}

// detectFeatures makes upstream's check of etcd's version work for a client without
// endpoints: without its result no consistent list is served from a watch cache.
func detectFeatures(c *clientv3.Client) {
	if len(c.Endpoints()) == 0 {
		etcdfeature.DefaultFeatureSupportChecker.CheckClient(c.Ctx(), inProcess{c}, storage.RequestWatchProgress)
	}
}

// inProcess is a client without a connection, with a name for its only endpoint.
type inProcess struct{ *clientv3.Client }

func (inProcess) Endpoints() []string { return []string{"in-process"} }

// Open starts the watch cache of a resource and returns its storage, which wants a
// virtual cluster in every context. Opening a resource again returns the same.
func (b *Backend) Open(r Resource) (storage.Interface, error) {
	s, err := b.open(storeConfig{
		GroupResource: r.GroupResource,
		Namespaced:    r.Namespaced,
		GetAttrs:      r.GetAttrs,
		Format:        newObjects(r.GVK, r.ListGVK),
	})
	if err != nil {
		return nil, fmt.Errorf("opening the storage of %s: %w", r.GroupResource, err)
	}
	return s, nil
}

func (b *Backend) open(c storeConfig) (*store, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, ErrClosed
	}
	if s, ok := b.stores[c.GroupResource]; ok {
		return s, nil
	}
	s, err := newStore(b, c)
	if err != nil {
		return nil, err
	}
	b.stores[c.GroupResource] = s
	return s, nil
}

func (b *Backend) transformer(gr schema.GroupResource) *transformer {
	t := &transformer{prefix: []byte(b.config.Prefix + ResourcePrefix(gr) + "/")}
	switch {
	case b.config.Transformer == nil:
	case gr == HistoryResource:
		t.inner = recordEncryption{b.config.Transformer}
	default:
		t.inner = b.config.Transformer(gr)
	}
	return t
}

func (b *Backend) opened(gr schema.GroupResource) (*store, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, ErrClosed
	}
	s, ok := b.stores[gr]
	if !ok {
		return nil, fmt.Errorf("the storage of %s has not been opened", gr)
	}
	return s, nil
}

// RESTOptions are for genericregistry.Store.CompleteWithOptions, with KeyRootFunc and
// KeyFunc set in the store. The store's Destroy leaves the watch cache to the backend.
func (b *Backend) RESTOptions(r Resource) generic.RESTOptions {
	prefix := ResourcePrefix(r.GroupResource)
	format := newObjects(r.GVK, r.ListGVK)
	return generic.RESTOptions{
		StorageConfig: (&storagebackend.Config{
			Prefix:              b.config.Prefix,
			Codec:               &codec{format: format, namespaced: r.Namespaced},
			EncodeVersioner:     r.GVK.GroupVersion(),
			CompactionInterval:  b.config.CompactionInterval,
			EventsHistoryWindow: b.config.EventsHistoryWindow,
		}).ForResource(r.GroupResource),
		// The key function that upstream offers knows no virtual cluster.
		Decorator: func(_ *storagebackend.ConfigForResource, _ string, _ func(runtime.Object) (string, error),
			_, _ func() runtime.Object, attrs storage.AttrFunc, _ storage.IndexerFuncs, indexers *cache.Indexers,
		) (storage.Interface, factory.DestroyFunc, error) {
			if indexers != nil && len(*indexers) > 0 {
				return nil, nil, errors.New("an index would return the objects of all virtual clusters")
			}
			if r.GetAttrs == nil {
				r.GetAttrs = attrs
			}
			s, err := b.Open(r)
			return s, func() {}, err
		},
		EnableGarbageCollection: true,
		DeleteCollectionWorkers: 1,
		ResourcePrefix:          prefix,
	}
}

// Ready tells of every open resource whether its watch cache is in step with etcd:
// the error is nil when it is.
func (b *Backend) Ready() map[schema.GroupResource]error {
	b.mu.Lock()
	defer b.mu.Unlock()
	ready := make(map[schema.GroupResource]error, len(b.stores))
	for gr, s := range b.stores {
		ready[gr] = s.ReadinessCheck()
	}
	return ready
}

// WaitReady waits until every open resource is ready.
func (b *Backend) WaitReady(ctx context.Context) error {
	b.mu.Lock()
	stores := make([]*store, 0, len(b.stores))
	for _, s := range b.stores {
		stores = append(stores, s)
	}
	b.mu.Unlock()
	for _, s := range stores {
		if err := s.cacher.Wait(ctx); err != nil {
			return fmt.Errorf("waiting for the watch cache of %s: %w", s.resource, err)
		}
	}
	return nil
}

// Close stops all watch caches and waits for them. Watches end, and observers with
// ErrClosed. It may be called more than once.
func (b *Backend) Close() {
	b.mu.Lock()
	stores := b.stores
	closed := b.closed
	b.closed, b.stores = true, nil
	b.mu.Unlock()
	if closed {
		return
	}
	close(b.done)
	var wg sync.WaitGroup
	for _, s := range stores {
		wg.Add(1)
		go func() {
			defer wg.Done()
			s.close()
		}()
	}
	wg.Wait()
	b.locks.close()
	b.compactor.Stop()
}
