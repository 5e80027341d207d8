// Package quota keeps virtual clusters from holding more than they may. It counts what
// is stored of those that have a quota, and nothing of the others.
package quota

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// Limits are the most that a virtual cluster may hold; what is nil or missing is not
// limited. They are not modified.
type Limits struct {
	Objects, Bytes *int64
	Kinds          map[string]int64 // by resource.group
}

// LimitsOf are those that a VirtualCluster's spec sets; nil when it sets none.
func LimitsOf(q *v1alpha1.VirtualClusterQuota) *Limits {
	if q == nil || q.Objects == nil && q.Bytes == nil && len(q.Kinds) == 0 {
		return nil
	}
	l := &Limits{Objects: q.Objects, Kinds: make(map[string]int64, len(q.Kinds))}
	if q.Bytes != nil {
		bytes := q.Bytes.Value()
		l.Bytes = &bytes
	}
	for name, n := range q.Kinds {
		l.Kinds[name] = int64(n)
	}
	return l
}

// fillTimeout bounds the counting of what a virtual cluster holds, which comes before
// the first write that is held against a quota.
const fillTimeout = 15 * time.Second

// Keeper counts for all virtual clusters. It is safe for concurrent use once all
// resources have been added by Count.
type Keeper struct {
	limits func(ctx context.Context, cluster string) (*Limits, error)
	// changed is told of a virtual cluster whose usage is another than Usage gave last.
	changed func(cluster string)

	resources []*counted
	ledgers   sync.Map     // virtual cluster to *ledger
	open      atomic.Int64 // how many ledgers there are
}

// New makes a keeper that counts nothing yet. limits are a virtual cluster's, or nil; every
// write asks for them.
func New(limits func(ctx context.Context, cluster string) (*Limits, error)) *Keeper {
	return &Keeper{limits: limits, changed: func(string) {}}
}

// OnChange sets who is told that a virtual cluster's usage has changed: once, until Usage
// is asked for. It is to be called before anything is written.
func (k *Keeper) OnChange(changed func(cluster string)) { k.changed = changed }

// counted is a resource that counts.
type counted struct {
	index    int
	name     string // resource.group
	resource schema.GroupResource
	prefix   string
	// apiVersion and kind are those that are stored.
	apiVersion, kind string
	namespaced       bool
	storage          storage.Interface
	// revision is up to where its changes have been told, and are in the ledgers.
	revision atomic.Uint64
}

// size is how many bytes an object takes, as it is stored before encryption. What
// storage has quarantined takes none.
func (c *counted) size(o *object.Object) int64 {
	if _, is := logical.Quarantined(o); is {
		return 0
	}
	stored := *o
	stored.ResourceVersion = ""
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	*buffer = stored.AppendJSON((*buffer)[:0], c.apiVersion, c.kind)
	return int64(len(*buffer))
}

// none is the size of what is not there.
const none = -1

// sizeIfAny is the size of an object that may be an empty one, as updates are given
// where there is none.
func (c *counted) sizeIfAny(o *object.Object) int64 {
	if o.ResourceVersion == "" {
		return none
	}
	return c.size(o)
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 4096); return &b }}

// name is an object's in the ledger: what follows the virtual cluster in its key.
func (c *counted) nameOf(o *object.Object) string {
	if c.namespaced {
		return o.Namespace + "/" + o.Name
	}
	return o.Name
}

// Resources are the names of all that count, as a quota's kinds have them.
func (k *Keeper) Resources() []string {
	names := make([]string, len(k.resources))
	for i, c := range k.resources {
		names[i] = c.name
	}
	slices.Sort(names)
	return names
}

// Usage is how much a virtual cluster holds of what the limits, which are its quota's,
// are about. Without limits it is nil, and nothing is kept of the virtual cluster any more.
func (k *Keeper) Usage(ctx context.Context, cluster string, limits *Limits) (*v1alpha1.VirtualClusterUsage, error) {
	if limits == nil {
		if _, had := k.ledgers.LoadAndDelete(cluster); had {
			k.open.Add(-1)
		}
		return nil, nil
	}
	l, err := k.ledger(ctx, cluster)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told = false
	usage := &v1alpha1.VirtualClusterUsage{}
	if limits.Objects != nil {
		objects := l.stored.objects
		usage.Objects = &objects
	}
	if limits.Bytes != nil {
		bytes := l.stored.bytes
		usage.Bytes = &bytes
	}
	for _, c := range k.resources {
		if _, limited := limits.Kinds[c.name]; limited {
			if usage.Kinds == nil {
				usage.Kinds = map[string]v1alpha1.ObjectCount{}
			}
			usage.Kinds[c.name] = v1alpha1.ObjectCount(l.stored.kinds[c.index])
		}
	}
	return usage, nil
}

// Check tells whether an object could be written now, without writing it.
func (k *Keeper) Check(ctx context.Context, gr schema.GroupResource, o, old *object.Object) error {
	cluster, err := logical.Cluster(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(k.resources, func(c *counted) bool { return c.resource == gr })
	if i < 0 || exempt(ctx) {
		return nil
	}
	limits, err := k.limits(ctx, cluster)
	if err != nil || limits == nil {
		return err
	}
	l, err := k.ledger(ctx, cluster)
	if err != nil {
		return err
	}
	w := l.write(k.resources[i], k.resources[i].nameOf(o), limits)
	defer w.end()
	if old == nil {
		return w.admit(o, none)
	}
	return w.admit(o, k.resources[i].sizeIfAny(old))
}

// ledger is that of a virtual cluster, with everything in it.
func (k *Keeper) ledger(ctx context.Context, cluster string) (*ledger, error) {
	found, ok := k.ledgers.Load(cluster)
	if !ok {
		var had bool
		if found, had = k.ledgers.LoadOrStore(cluster, newLedger(k, cluster)); !had {
			k.open.Add(1)
		}
	}
	l := found.(*ledger)
	if err := l.wait(ctx); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, apierrors.NewServiceUnavailable(fmt.Sprintf("counting what virtual cluster %q holds, for its quota: %v", cluster, err))
	}
	return l, nil
}

// exceeded is the error of a write that a quota refuses; it reads like that of a
// ResourceQuota.
func exceeded(gr schema.GroupResource, name, cluster string, over []excess) error {
	list := func(value func(e excess) int64) string {
		parts := make([]string, len(over))
		for i, e := range over {
			parts[i] = fmt.Sprintf("%s=%d", e.what, value(e))
		}
		return strings.Join(parts, ",")
	}
	return apierrors.NewForbidden(gr, name, fmt.Errorf("exceeded quota: virtual cluster %q, requested: %s, used: %s, limited: %s", cluster,
		list(func(e excess) int64 { return e.requested }), list(func(e excess) int64 { return e.used }), list(func(e excess) int64 { return e.limit })))
}

// excess is one limit that a write would exceed.
type excess struct {
	what                   string
	requested, used, limit int64
}

type contextKey struct{}

// Exempt returns a context whose writes are counted and never refused: those of the
// server's own, and deletions, which may have to write before they remove.
func Exempt(ctx context.Context) context.Context { return context.WithValue(ctx, contextKey{}, true) }

func exempt(ctx context.Context) bool {
	is, _ := ctx.Value(contextKey{}).(bool)
	return is
}
