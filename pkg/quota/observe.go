package quota

import (
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// observer is the logical.Observer of a resource.
type observer struct {
	keeper *Keeper
	of     *counted
}

// Observer is to be told of all changes of a resource. It is nil for one that does not
// count.
func (k *Keeper) Observer(gr schema.GroupResource) logical.Observer {
	for _, c := range k.resources {
		if c.resource == gr {
			return &observer{k, c}
		}
	}
	return nil
}

// Replaced implements logical.Observer.
func (o *observer) Replaced(items []*object.Object, revision uint64) {
	defer o.of.revision.Store(revision)
	if o.keeper.open.Load() == 0 {
		return
	}
	// One that begins from now on will list what is later than this.
	held := map[string][]*object.Object{}
	ledgers := map[string]*ledger{}
	o.keeper.ledgers.Range(func(cluster, found any) bool {
		ledgers[cluster.(string)] = found.(*ledger)
		return true
	})
	for _, item := range items {
		if cluster := item.Cluster(); ledgers[cluster] != nil {
			held[cluster] = append(held[cluster], item)
		}
	}
	for cluster, l := range ledgers {
		l.replace(o.of, held[cluster], revision)
	}
}

// replace takes the whole state of a resource as of a revision.
func (l *ledger) replace(c *counted, items []*object.Object, revision uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.replaced[c.index]++
	there := make(map[entryKey]bool, len(items))
	for _, item := range items {
		key := entryKey{c.index, c.nameOf(item)}
		there[key] = true
		if e, ok := c.entryOf(item); ok {
			l.set(key, e)
		}
	}
	for key := range l.entries {
		if key.resource == c.index && !there[key] {
			l.remove(key, revision)
		}
	}
}

// Changed implements logical.Observer. All changes of all virtual clusters come through here.
func (o *observer) Changed(t watch.EventType, obj *object.Object, revision uint64) {
	defer o.of.revision.Store(revision)
	if o.keeper.open.Load() == 0 {
		return
	}
	found, ok := o.keeper.ledgers.Load(obj.Cluster())
	if !ok {
		return
	}
	l := found.(*ledger)
	key := entryKey{o.of.index, o.of.nameOf(obj)}
	if t == watch.Deleted {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.remove(key, revision)
		return
	}
	l.mu.Lock()
	known, has := l.entries[key]
	l.mu.Unlock()
	if has && known.revision >= revision {
		return // nearly always: this server wrote it
	}
	e := entry{size: o.of.size(obj), revision: revision}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.set(key, e)
}

// Progressed implements logical.Observer.
func (o *observer) Progressed(revision uint64) { o.of.revision.Store(revision) }
