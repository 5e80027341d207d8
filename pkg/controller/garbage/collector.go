// Package garbage is the garbage collector of the virtual clusters: it deletes objects
// whose owners are gone, and finalizes owners that are deleted in the foreground or
// without their dependents. It does what kube-controller-manager's does for a cluster.
package garbage

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

const (
	// workers is how many objects are worked on at once. They mostly wait for etcd,
	// which writes what comes together in one go.
	workers = 16

	minBackoff = 5 * time.Millisecond
	maxBackoff = time.Minute
)

// Source is one kind whose objects own others, or are owned.
type Source struct {
	Store *resource.Store
	// Deleter deletes the kind's objects. The default is the Store.
	Deleter rest.GracefulDeleter
	// Serves tells which virtual clusters serve the kind; the default is all. Where a
	// kind is not served, an owner of that kind is not known to be absent.
	Serves func(cluster string) bool
}

// Collector is the garbage collector of all virtual clusters. It keeps in memory the
// objects that have owner references and the UIDs of their owners, and nothing of other
// objects.
type Collector struct {
	index     index
	kinds     map[schema.GroupKind]*source
	sources   []*source
	admission admission.Interface
	user      user.Info

	// Paused, if set before Run, tells which virtual clusters nothing is collected in.
	Paused func(cluster string) bool

	unsynced int           // guarded by the index's lock
	synced   chan struct{} // closed when the state of all sources is known

	queue workqueue.TypedRateLimitingInterface[key]
}

// New makes the collector; it works while Run does. admit, which may be nil, judges
// what the collector does as it judges requests.
func New(sources []Source, admit admission.Interface) *Collector {
	c := &Collector{
		kinds:     map[schema.GroupKind]*source{},
		admission: admit,
		user:      serviceaccount.UserInfo("kube-system", "generic-garbage-collector", ""),
		unsynced:  len(sources),
		synced:    make(chan struct{}),
	}
	for _, s := range sources {
		if s.Deleter == nil {
			s.Deleter = s.Store
		}
		if s.Serves == nil {
			s.Serves = func(string) bool { return true }
		}
		added := &source{Source: s, index: &c.index, ready: c.oneSynced}
		c.kinds[s.Store.Kind().GroupKind()] = added
		c.sources = append(c.sources, added)
	}
	if len(sources) == 0 {
		close(c.synced)
	}
	return c
}

// oneSynced is called with the index locked.
func (c *Collector) oneSynced() {
	if c.unsynced--; c.unsynced == 0 {
		close(c.synced)
	}
}

// Observer is to be told of all changes of a source's objects. Nothing is collected
// before each source's observer has been given a first state. It is nil for a store
// that is not a source's.
func (c *Collector) Observer(store *resource.Store) logical.Observer {
	for _, s := range c.sources {
		if s.Store == store {
			return s
		}
	}
	return nil
}

// Run works until ctx is done, and returns when nothing is under way any more. It may
// be called once.
func (c *Collector) Run(ctx context.Context) {
	select {
	case <-c.synced:
	case <-ctx.Done():
		return
	}
	c.queue = newQueue()
	defer c.queue.ShutDown()
	stop := context.AfterFunc(ctx, c.queue.ShutDown)
	defer stop()
	c.index.start(c.queue.Add)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for c.next(ctx) {
			}
		})
	}
	wg.Wait()
}

func newQueue() workqueue.TypedRateLimitingInterface[key] {
	return workqueue.NewTypedRateLimitingQueueWithConfig(
		workqueue.NewTypedItemExponentialFailureRateLimiter[key](minBackoff, maxBackoff),
		workqueue.TypedRateLimitingQueueConfig[key]{
			DelayingQueue: workqueue.NewTypedDelayingQueueWithConfig(workqueue.TypedDelayingQueueConfig[key]{
				Queue: workqueue.NewTypedWithConfig(workqueue.TypedQueueConfig[key]{Queue: newFair()}),
			}),
		})
}

// Reasons to come back to an object that are no failures.
var (
	// errBehind says that an observer has not been told yet what may matter.
	errBehind = errors.New("some watches are behind")
	// errUnreadable says that an owner is there and cannot be read.
	errUnreadable = errors.New("an owner is quarantined")
	// errPaused says that nothing is collected in the virtual cluster for now.
	errPaused = errors.New("the virtual cluster is frozen")
)

func (c *Collector) next(ctx context.Context) bool {
	k, shutdown := c.queue.Get()
	if shutdown {
		return false
	}
	defer c.queue.Done(k)
	it, known := c.index.item(k)
	if !known || ctx.Err() != nil {
		c.queue.Forget(k)
		return true
	}
	err := errPaused
	if c.Paused == nil || !c.Paused(it.cluster) {
		err = c.process(ctx, it)
	}
	if err == nil || ctx.Err() != nil {
		c.queue.Forget(k)
		return true
	}
	logger := klog.FromContext(ctx).WithValues("virtualCluster", it.cluster, "kind", it.source.Store.Kind().String(), "namespace", it.namespace, "name", it.name)
	switch {
	case errors.Is(err, errBehind), errors.Is(err, errPaused), apierrors.IsConflict(err):
	case errors.Is(err, errUnreadable), apierrors.IsForbidden(err), apierrors.IsInvalid(err):
		// Only a user can change this, and the next try is as likely to fail.
		logger.V(2).Info("Garbage collection has to wait", "reason", err.Error())
	default:
		logger.Error(err, "Garbage collection failed and is tried again")
	}
	c.queue.AddRateLimited(k)
	return true
}

// caughtUp tells whether the observers have been told of all that was written up to a
// revision, or returns errBehind and sees to it that they soon are.
func (c *Collector) caughtUp(ctx context.Context, revision uint64) error {
	for _, s := range c.sources {
		if s.revision.Load() >= revision {
			continue
		}
		if err := s.Store.Storage.Storage.RequestWatchProgress(ctx); err != nil {
			return fmt.Errorf("asking for the progress of watches: %w", err)
		}
		return errBehind
	}
	return nil
}
