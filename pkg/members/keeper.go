package members

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/component-base/metrics"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// Storage is what a Keeper reads and writes. Its methods are called from several goroutines.
type Storage interface {
	// Mesh reads a mesh. It is nil if there is none of that name.
	Mesh(ctx context.Context, name string) (*v1alpha1.Mesh, error)
	// MemberExists asks etcd whether there is a member cluster of that name.
	MemberExists(ctx context.Context, name string) (bool, error)
	// Secret reads a Secret of a virtual cluster or of the root, nil if there is none: as the watch cache has it, or with fresh set, as
	// etcd has it.
	Secret(ctx context.Context, cluster, namespace, name string, fresh bool) (*corev1.Secret, error)
	// WriteSecret creates a Secret that has no resource version, and replaces one that has, if nobody has changed it meanwhile.
	WriteSecret(ctx context.Context, cluster string, secret *corev1.Secret) error
	// DeleteSecret deletes a Secret if nobody has changed it since it was read. One that is gone is no error.
	DeleteSecret(ctx context.Context, cluster string, secret *corev1.Secret) error
	// HasNamespace says whether there is a virtual cluster that is not being deleted, with that namespace.
	HasNamespace(ctx context.Context, cluster, namespace string) (bool, error)
	// UpdateStatus changes the status of a member cluster. change may be called several times. One that is gone, or is
	// another than of that UID, is no error.
	UpdateStatus(ctx context.Context, name string, uid types.UID, change func(*v1alpha1.MemberClusterStatus)) error
	// Event tells of a member cluster. kind is corev1.EventTypeNormal or EventTypeWarning.
	Event(ctx context.Context, name string, uid types.UID, kind, reason, message string)
	// Lock waits until no other server has the lock of that name.
	Lock(ctx context.Context, name string) (unlock func(), err error)
}

// Config is what a Keeper is made of.
type Config struct {
	Storage Storage
	// Responsible says whether it is this server's part to write statuses and Secrets, and to renew; all servers look. nil: always.
	Responsible func() bool
	// Reader knows the services of members; nil for none.
	Reader Reader
	// Every is how often a member is looked at; 15 s if zero. While one is away, it is looked at sooner at first, and then
	// up to four times as rarely.
	Every time.Duration
	// Timeout is how long one look may take; 10 s if zero.
	Timeout time.Duration
	// Register takes the metrics; nil for none.
	Register func(...metrics.Registerable)
}

// Keeper keeps the connections to member clusters.
type Keeper struct {
	config    Config
	followers []Follower
	metrics   *keeperMetrics
	wake      chan struct{} // members have come or gone

	telling sync.Mutex // one call of a follower at a time

	mu      sync.Mutex
	listed  bool // all members are known
	members map[string]*v1alpha1.MemberCluster
	workers map[string]*worker
	// placed are the Secrets for control planes that there are, of all virtual clusters, and the member that each names.
	placed map[placement]string
}

// placement is where a Secret for control planes is.
type placement struct{ cluster, namespace, name string }

// NewKeeper makes a keeper; it works while Run does.
func NewKeeper(c Config) *Keeper {
	if c.Every == 0 {
		c.Every = 15 * time.Second
	}
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	if c.Responsible == nil {
		c.Responsible = func() bool { return true }
	}
	return &Keeper{
		config: c, metrics: newMetrics(c.Register), wake: make(chan struct{}, 1),
		members: map[string]*v1alpha1.MemberCluster{}, workers: map[string]*worker{}, placed: map[placement]string{},
	}
}

// AddFollower has a follower told of members. It must be called before Run.
func (k *Keeper) AddFollower(f Follower) { k.followers = append(k.followers, f) }

// Members observes member clusters.
func (k *Keeper) Members() logical.Observer { return memberChanges{k} }

// Meshes observes meshes.
func (k *Keeper) Meshes() logical.Observer {
	return &meshChanges{keeper: k, generations: map[string]int64{}}
}

// Secrets observes the Secrets of all virtual clusters and the root.
func (k *Keeper) Secrets() logical.Observer { return secretChanges{k} }

// Run works until ctx is done.
func (k *Keeper) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	const sweepEvery = time.Minute
	sweep := time.NewTimer(sweepEvery)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		case <-sweep.C:
		}
		for _, w := range k.change() {
			if w.stop != nil {
				w.stop()
				<-w.done
				k.gone(w)
				continue
			}
			var own context.Context
			own, w.stop = context.WithCancel(ctx)
			wg.Go(func() { w.run(own) })
		}
		next := sweepEvery
		if k.config.Responsible() {
			if err := k.sweep(ctx); err != nil && ctx.Err() == nil {
				klog.FromContext(ctx).Info("Taking back access to clusters that are members no more failed, and is tried again", "reason", err.Error())
				next = k.config.Every
			}
		}
		sweep.Reset(next)
	}
}

// change returns the workers to end, which are forgotten, and then those to begin.
func (k *Keeper) change() []*worker {
	k.mu.Lock()
	defer k.mu.Unlock()
	var changed []*worker
	for name, w := range k.workers {
		if m := k.members[name]; m == nil || m.UID != w.uid {
			delete(k.workers, name)
			changed = append(changed, w)
		}
	}
	for name, m := range k.members {
		if k.workers[name] == nil {
			w := newWorker(k, m)
			k.workers[name] = w
			changed = append(changed, w)
		}
	}
	return changed
}

func (k *Keeper) gone(w *worker) {
	k.metrics.forget(w.name)
	k.telling.Lock()
	defer k.telling.Unlock()
	for _, f := range k.followers {
		f.Gone(w.name)
	}
}

func (k *Keeper) tell(m Member) {
	k.telling.Lock()
	defer k.telling.Unlock()
	for _, f := range k.followers {
		f.Changed(m)
	}
}

// member is what is known of a member now; nil if it is gone.
func (k *Keeper) member(name string) *v1alpha1.MemberCluster {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.members[name]
}

// poke has members looked at now.
func (k *Keeper) poke(which func(*v1alpha1.MemberCluster) bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, m := range k.members {
		if w := k.workers[name]; w != nil && which(m) {
			select {
			case w.kick <- struct{}{}:
			default:
			}
		}
	}
}

func (k *Keeper) awaken() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// memberChanges is a logical.Observer of member clusters.
type memberChanges struct{ keeper *Keeper }

// Replaced implements logical.Observer.
func (c memberChanges) Replaced(items []*object.Object, _ uint64) {
	k := c.keeper
	now := map[string]bool{}
	for _, o := range items {
		now[o.Name] = true
		c.know(o)
	}
	k.mu.Lock()
	for name := range k.members {
		if !now[name] {
			delete(k.members, name)
		}
	}
	k.listed = true
	k.mu.Unlock()
	k.awaken()
}

// Changed implements logical.Observer.
func (c memberChanges) Changed(t watch.EventType, o *object.Object, _ uint64) {
	k := c.keeper
	if t == watch.Deleted {
		k.mu.Lock()
		delete(k.members, o.Name)
		k.mu.Unlock()
		k.awaken()
		return
	}
	c.know(o)
}

// Progressed implements logical.Observer.
func (c memberChanges) Progressed(uint64) {}

// know keeps a member cluster as it is now. One that cannot be read stays as it was.
func (c memberChanges) know(o *object.Object) {
	if _, lost := logical.Quarantined(o); lost {
		return
	}
	m := &v1alpha1.MemberCluster{}
	if o.Into(m) != nil {
		return
	}
	k := c.keeper
	k.mu.Lock()
	was := k.members[o.Name]
	k.members[o.Name] = m
	k.mu.Unlock()
	switch {
	case was == nil || was.UID != m.UID:
		k.awaken()
	case was.Generation != m.Generation: // and not the status alone
		k.poke(func(other *v1alpha1.MemberCluster) bool { return other == m })
	}
}

// meshChanges is a logical.Observer of meshes.
type meshChanges struct {
	keeper      *Keeper
	generations map[string]int64 // most changes are of a mesh's status
}

// Replaced implements logical.Observer.
func (c *meshChanges) Replaced(items []*object.Object, revision uint64) {
	clear(c.generations)
	for _, o := range items {
		c.Changed(watch.Modified, o, revision)
	}
}

// Changed implements logical.Observer.
func (c *meshChanges) Changed(t watch.EventType, o *object.Object, _ uint64) {
	known, ok := c.generations[o.Name]
	if t == watch.Deleted {
		delete(c.generations, o.Name)
	} else if c.generations[o.Name] = o.Generation; ok && known == o.Generation {
		return
	}
	c.keeper.poke(func(m *v1alpha1.MemberCluster) bool { return m.Spec.Mesh == o.Name })
}

// Progressed implements logical.Observer.
func (c *meshChanges) Progressed(uint64) {}

// secretChanges is a logical.Observer of Secrets.
type secretChanges struct{ keeper *Keeper }

// Replaced implements logical.Observer.
func (c secretChanges) Replaced(items []*object.Object, _ uint64) {
	c.keeper.mu.Lock()
	clear(c.keeper.placed)
	for _, o := range items {
		c.place(watch.Modified, o)
	}
	c.keeper.mu.Unlock()
	c.keeper.poke(func(*v1alpha1.MemberCluster) bool { return true })
	c.keeper.awaken()
}

// Changed implements logical.Observer. All changes of all virtual clusters come through here.
func (c secretChanges) Changed(t watch.EventType, o *object.Object, _ uint64) {
	if o.Cluster() == logical.Root {
		if o.Namespace == v1alpha1.MembersNamespace {
			c.keeper.poke(func(m *v1alpha1.MemberCluster) bool { return m.Spec.Access.Secret == o.Name })
		}
		return
	}
	c.keeper.mu.Lock()
	member := c.place(t, o)
	left := t != watch.Deleted && c.keeper.members[member] == nil
	c.keeper.mu.Unlock()
	switch {
	case member != "" && left:
		c.keeper.awaken() // written before it left, and seen only now
	case member != "":
		c.keeper.poke(func(m *v1alpha1.MemberCluster) bool { return m.Name == member })
	}
}

// Progressed implements logical.Observer.
func (c secretChanges) Progressed(uint64) {}

// place keeps in mind where a Secret for control planes is, and returns the member that a Secret
// has to do with, if any.
func (c secretChanges) place(t watch.EventType, o *object.Object) (member string) {
	at := placement{o.Cluster(), o.Namespace, o.Name}
	member, ok := cutRemoteName(o.Name)
	if !ok || at.cluster == logical.Root {
		return ""
	}
	if t != watch.Deleted && isOurs(o.Labels, o.Annotations, member) {
		c.keeper.placed[at] = member
	} else {
		delete(c.keeper.placed, at)
	}
	return member
}

// placedOf are the places that have a Secret for control planes of a member.
func (k *Keeper) placedOf(member string) []placement {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []placement
	for at, name := range k.placed {
		if name == member {
			all = append(all, at)
		}
	}
	return all
}

// sweep takes the access to clusters that are members no more back. Whether they are, it asks etcd.
func (k *Keeper) sweep(ctx context.Context) error {
	k.mu.Lock()
	stale := map[string][]placement{}
	if k.listed {
		for at, name := range k.placed {
			if k.members[name] == nil {
				stale[name] = append(stale[name], at)
			}
		}
	}
	k.mu.Unlock()
	for name, places := range stale {
		exists, err := k.config.Storage.MemberExists(ctx, name)
		if err != nil {
			return err
		}
		if exists {
			continue // it cannot be read, or has only just come
		}
		for _, at := range places {
			if err := k.takeBack(ctx, at, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// jitter is around d, so that not all members are looked at in the same moment.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.9 + 0.2*rand.Float64()))
}
