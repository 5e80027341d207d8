package analysis

import (
	"context"
	"maps"
	"sync"
	"time"

	"istio.io/istio/pkg/config"
	"istio.io/istio/pkg/config/resource"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

const (
	// keepFor is how long decoded objects are kept for the next analysis of their virtual
	// cluster: writes come in bursts.
	keepFor = 20 * time.Second
	// keepObjects is how many are kept in all: some 4 KB each.
	keepObjects = 4000
	// slowFor is how long a virtual cluster that took too long is left alone by writes.
	slowFor = time.Minute
)

// cache has what is remembered of virtual clusters between analyses.
type cache struct {
	mu       sync.Mutex
	clusters map[string]*entry
	kept     int // decoded objects, of all
}

// entry is what is remembered of one virtual cluster. Only who holds busy reads or
// changes the decoded objects.
type entry struct {
	busy    chan struct{}
	users   int // those who hold busy or wait for it; guarded by the cache's mutex
	used    time.Time
	slow    time.Time // until when it is left alone by writes; guarded by the cache's mutex
	decoded memory
}

// memory are decoded objects: by kind, and by the object's name and UID.
type memory map[config.GroupVersionKind]map[string]decoded

type decoded struct {
	resourceVersion string
	instance        *resource.Instance
}

func (m memory) size() (n int) {
	for _, objects := range m {
		n += len(objects)
	}
	return n
}

func newCache() *cache { return &cache{clusters: map[string]*entry{}} }

// take gives a virtual cluster's entry to one user at a time. The error is ctx's.
func (c *cache) take(ctx context.Context, cluster string) (*entry, error) {
	c.mu.Lock()
	e := c.clusters[cluster]
	if e == nil {
		e = &entry{busy: make(chan struct{}, 1), decoded: memory{}}
		c.clusters[cluster] = e
	}
	e.users++
	c.mu.Unlock()
	select {
	case e.busy <- struct{}{}:
		return e, nil
	case <-ctx.Done():
		c.mu.Lock()
		e.users--
		c.mu.Unlock()
		return nil, ctx.Err()
	}
}

// give ends a take. seen are kinds as they are now.
func (c *cache) give(e *entry, seen memory) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept -= e.decoded.size()
	if e.decoded == nil {
		e.decoded = memory{}
	}
	maps.Copy(e.decoded, seen)
	if size := e.decoded.size(); c.kept+size > keepObjects {
		e.decoded = nil
	} else {
		c.kept += size
	}
	e.used = time.Now()
	e.users--
	<-e.busy
}

// isSlow tells whether a virtual cluster is left alone by writes.
func (c *cache) isSlow(cluster string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.clusters[cluster]
	return e != nil && time.Now().Before(e.slow)
}

func (c *cache) wasSlow(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.slow = time.Now().Add(slowFor)
}

// sweep forgets what has not been used for a while.
func (c *cache) sweep(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, e := range c.clusters {
		if e.users > 0 || now.Sub(e.used) < keepFor {
			continue
		}
		c.kept -= e.decoded.size()
		e.decoded = nil
		if now.After(e.slow) {
			delete(c.clusters, name)
		}
	}
}

func key(o *object.Object) string { return o.Namespace + "/" + o.Name + "/" + string(o.UID) }
