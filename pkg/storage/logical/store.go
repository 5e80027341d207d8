package logical

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/v3/kubernetes"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
	"k8s.io/apiserver/pkg/storage/cacher/delegator"
	"k8s.io/apiserver/pkg/storage/etcd3"
	"k8s.io/utils/clock"
)

// storeConfig is a Resource with its Go type.
type storeConfig struct {
	GroupResource schema.GroupResource
	Namespaced    bool
	GetAttrs      storage.AttrFunc
	Format        format
	Clock         clock.WithTicker // of the watch cache; nil is the real one
}

// store is the storage of one resource for all virtual clusters. It holds every key
// against the context's virtual cluster, and fails when they differ.
type store struct {
	backend        *Backend
	resource       string
	resourcePrefix string
	codec          *codec
	recorded       bool // its changes are

	etcd   storage.Interface
	feed   *feed
	cacher *cacher.Cacher
	cache  *cacher.CacheDelegator
}

var _ storage.Interface = (*store)(nil)

func newStore(b *Backend, c storeConfig) (*store, error) {
	s := &store{
		backend:        b,
		resource:       c.GroupResource.String(),
		resourcePrefix: ResourcePrefix(c.GroupResource),
		codec:          &codec{format: c.Format, namespaced: c.Namespaced},
	}
	switch {
	case c.GetAttrs != nil:
	case c.Namespaced:
		c.GetAttrs = storage.DefaultNamespaceScopedAttr
	default:
		c.GetAttrs = storage.DefaultClusterScopedAttr
	}
	asked := b.client.Kubernetes
	if b.config.Recorder != nil && b.config.Recorder.Records(c.GroupResource) {
		s.recorded = true
		asked = &recordingClient{Interface: b.client, backend: b, resource: c.GroupResource, transformer: b.transformer(HistoryResource)}
	}
	client := &kubernetes.Client{Client: b.client.Client, Kubernetes: candidClient{asked}}
	versioner := storage.APIObjectVersioner{}
	etcd, err := etcd3.New(client, b.compactor, s.codec, s.codec.newObject, s.codec.newList, b.config.Prefix,
		s.resourcePrefix, c.GroupResource, b.transformer(c.GroupResource), etcd3.NewDefaultLeaseManagerConfig(),
		resultDecoder{etcd3.NewDefaultDecoder(s.codec, versioner), versioner, s.codec}, versioner)
	if err != nil {
		return nil, err
	}
	s.etcd = etcd
	s.feed = newFeed(etcd, s.codec, s.resourcePrefix, s.resource, b.metrics)
	s.cacher, err = cacher.NewCacherFromConfig(cacher.Config{
		Storage:             s.feed,
		Versioner:           versioner,
		GroupResource:       c.GroupResource,
		EventsHistoryWindow: b.config.EventsHistoryWindow,
		ResourcePrefix:      s.resourcePrefix,
		KeyFunc:             func(obj runtime.Object) (string, error) { return s.codec.key(s.resourcePrefix, obj) },
		GetAttrsFunc:        c.GetAttrs,
		IndexerFuncs:        storage.IndexerFuncs{clusterField: s.codec.cluster},
		NewFunc:             s.codec.newObject,
		NewListFunc:         s.codec.newList,
		Codec:               s.codec,
		Clock:               c.Clock,
	})
	if err != nil {
		return nil, err
	}
	s.cache = cacher.NewCacheDelegator(s.cacher, etcd)
	return s, nil
}

func (s *store) close() {
	s.cache.Stop()
	s.cacher.Stop()
}

// check tells whether the context may read what is under a key, and returns the
// virtual cluster it is of: "" for a key above all of them.
func (s *store) check(ctx context.Context, key string) (string, error) {
	if !allClusters(ctx) {
		return s.checkOne(ctx, key)
	}
	if key == s.resourcePrefix || key == s.resourcePrefix+"/" {
		return "", nil
	}
	cluster, ok := keyCluster(s.resourcePrefix, key)
	if !ok {
		return "", s.refuse(key, errors.New("it is of no virtual cluster"))
	}
	return cluster, nil
}

// checkOne is check for a context that has to name a virtual cluster, as every write does.
func (s *store) checkOne(ctx context.Context, key string) (string, error) {
	cluster, err := Cluster(ctx)
	if err != nil {
		return "", s.refuse(key, err)
	}
	if of, _ := keyCluster(s.resourcePrefix, key); of != cluster {
		return "", s.refuse(key, fmt.Errorf("the request is for virtual cluster %q", cluster))
	}
	return cluster, nil
}

func (s *store) refuse(key string, why error) error {
	if _, err := storage.PrepareKey(s.resourcePrefix+"/", key, false); err != nil {
		return err
	}
	return storage.NewInternalError(fmt.Errorf("refusing key %q: %w", key, why))
}

// Versioner implements storage.Interface.
func (s *store) Versioner() storage.Versioner { return s.cache.Versioner() }

// Create implements storage.Interface.
func (s *store) Create(ctx context.Context, key string, obj, out runtime.Object, ttl uint64) error {
	cluster, err := s.checkOne(ctx, key)
	if err != nil {
		return err
	}
	if err := unmark(obj); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	s.codec.stamp(obj, cluster)
	ctx, r := s.records(ctx, cluster)
	if r != nil {
		r.to(obj)
	}
	return answerable(ctx, refusedBySize(s.create(ctx, key, obj, out, ttl)))
}

// refusedBySize says in the API's words that etcd takes no value of that size.
func refusedBySize(err error) error {
	if errors.Is(err, rpctypes.ErrRequestTooLarge) {
		return apierrors.NewRequestEntityTooLargeError("the object is larger than etcd takes: 1.5 MiB unless etcd was started with another --max-request-bytes")
	}
	return err
}

// Delete implements storage.Interface.
func (s *store) Delete(ctx context.Context, key string, out runtime.Object, preconditions *storage.Preconditions,
	validate storage.ValidateObjectFunc, cached runtime.Object, opts storage.DeleteOptions,
) error {
	cluster, err := s.checkOne(ctx, key)
	if err != nil {
		return err
	}
	ctx, r := s.records(ctx, cluster)
	if r != nil {
		asked := validate
		validate = func(ctx context.Context, obj runtime.Object) error {
			r.from(s, obj)
			r.to(obj)
			return asked(ctx, obj)
		}
	}
	return answerable(ctx, s.cache.Delete(ctx, key, out, preconditions, validate, cached, opts))
}

// GuaranteedUpdate implements storage.Interface.
func (s *store) GuaranteedUpdate(ctx context.Context, key string, out runtime.Object, ignoreNotFound bool,
	preconditions *storage.Preconditions, tryUpdate storage.UpdateFunc, _ runtime.Object,
) error {
	cluster, err := s.checkOne(ctx, key)
	if err != nil {
		return err
	}
	ctx, r := s.records(ctx, cluster)
	update := func(input runtime.Object, meta storage.ResponseMeta) (runtime.Object, *uint64, error) {
		if r != nil {
			r.from(s, input)
		}
		_, lost := s.codec.quarantined(input)
		obj, ttl, err := tryUpdate(input, meta)
		if err != nil {
			return nil, nil, err
		}
		if err := unmark(obj); err != nil {
			return nil, nil, apierrors.NewBadRequest(err.Error())
		}
		if lost {
			identify(obj)
		}
		s.codec.stamp(obj, cluster)
		if r != nil {
			r.to(obj)
		}
		return obj, ttl, nil
	}
	return answerable(ctx, refusedBySize(s.update(ctx, key, out, ignoreNotFound, preconditions, update)))
}

// Get implements storage.Interface.
func (s *store) Get(ctx context.Context, key string, opts storage.GetOptions, out runtime.Object) error {
	if _, err := s.check(ctx, key); err != nil {
		return err
	}
	return answerable(ctx, s.cache.Get(ctx, key, opts, out))
}

// GetList implements storage.Interface.
func (s *store) GetList(ctx context.Context, key string, opts storage.ListOptions, list runtime.Object) error {
	if _, err := s.check(ctx, key); err != nil {
		return err
	}
	consistent := opts.ResourceVersion == "" && opts.ResourceVersionMatch == "" && opts.Predicate.Continue == ""
	if !consistent || !delegator.ConsistentReadSupported() {
		return answerable(ctx, s.cache.GetList(ctx, key, opts, list))
	}
	return answerable(ctx, s.getConsistentList(ctx, key, opts, list))
}

// getConsistentList lists from the watch cache what etcd holds now. A cache learns
// that it is up to date by progress notifications, which upstream asks for every
// 100 ms: when other resources are being written, that is how long a list takes.
// Here etcd is asked at once.
func (s *store) getConsistentList(ctx context.Context, key string, opts storage.ListOptions, list runtime.Object) error {
	current, err := s.etcd.GetCurrentResourceVersion(ctx)
	if err != nil {
		return err
	}
	s.hasten(ctx, current)
	fresh := opts
	fresh.ResourceVersion = strconv.FormatUint(current, 10)
	fresh.ResourceVersionMatch = metav1.ResourceVersionMatchNotOlderThan
	err = s.cache.GetList(ctx, key, fresh, list)
	if storage.IsTooLargeResourceVersion(err) {
		return s.etcd.GetList(ctx, key, opts, list)
	}
	return err
}

// hasten makes etcd tell all watch caches that they have seen a revision, unless
// this one has, or etcd has been asked. Should the answer get lost, the watch cache
// asks again.
func (s *store) hasten(ctx context.Context, revision uint64) {
	if s.feed.lastRevision() >= revision {
		return
	}
	for {
		asked := s.backend.asked.Load()
		if asked >= revision {
			return
		}
		if s.backend.asked.CompareAndSwap(asked, revision) {
			break
		}
	}
	if err := s.etcd.RequestWatchProgress(ctx); err != nil && !errors.Is(err, context.Canceled) {
		s.backend.asked.CompareAndSwap(revision, 0)
	}
}

// Watch implements storage.Interface.
func (s *store) Watch(ctx context.Context, key string, opts storage.ListOptions) (watch.Interface, error) {
	cluster, err := s.check(ctx, key)
	if err != nil {
		return nil, err
	}
	if cluster != "" {
		opts.Predicate.Field = ofCluster(opts.Predicate.Field, cluster)
		opts.Predicate.IndexFields = append(opts.Predicate.IndexFields[:len(opts.Predicate.IndexFields):len(opts.Predicate.IndexFields)], clusterField)
	}
	w, err := s.watch(ctx, key, opts)
	return w, answerable(ctx, err)
}

// Stats implements storage.Interface; it counts all virtual clusters.
func (s *store) Stats(ctx context.Context) (storage.Stats, error) { return s.cache.Stats(ctx) }

// ReadinessCheck implements storage.Interface.
func (s *store) ReadinessCheck() error { return s.cache.ReadinessCheck() }

// RequestWatchProgress implements storage.Interface.
func (s *store) RequestWatchProgress(ctx context.Context) error {
	return s.cache.RequestWatchProgress(ctx)
}

// GetCurrentResourceVersion implements storage.Interface.
func (s *store) GetCurrentResourceVersion(ctx context.Context) (uint64, error) {
	return s.cache.GetCurrentResourceVersion(ctx)
}

// EnableResourceSizeEstimation implements storage.Interface.
func (s *store) EnableResourceSizeEstimation(keys storage.KeysFunc) error {
	return s.feed.EnableResourceSizeEstimation(keys)
}

// CompactRevision implements storage.Interface.
func (s *store) CompactRevision() int64 { return s.cache.CompactRevision() }
