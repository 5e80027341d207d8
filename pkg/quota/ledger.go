package quota

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"

	"k8s.io/apiserver/pkg/storage"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// ledger knows the size of every object that a virtual cluster stores, by what this
// server wrote and by what the watches of etcd tell; whichever is of the later revision
// counts. Writes that are under way are charged as if they were done.
type ledger struct {
	keeper  *Keeper
	cluster string

	mu      sync.Mutex
	entries map[entryKey]entry
	pending map[entryKey][]*write
	stored  usage // of the entries
	charged usage // of the entries and of what is pending

	told bool // that the usage has changed

	// filled says that what was stored before the ledger began is in it. While it is
	// being filled, filling is closed at the end, and entries of what is gone stay: the
	// lists that fill it may be older than the deletions.
	filled   bool
	filling  chan struct{}
	replaced []int // by resource, how often its watch has begun anew
}

type entryKey struct {
	resource int
	name     string // [namespace/]name
}

// entry is what is known of one object.
type entry struct {
	size     int64
	revision uint64
	// gone is set for an object that this server has deleted, until the watch tells so.
	gone bool
}

// usage counts objects and bytes.
type usage struct {
	objects, bytes int64
	kinds          []int64
}

func (u *usage) add(resource int, objects, bytes int64) {
	u.objects += objects
	u.bytes += bytes
	u.kinds[resource] += objects
}

func newLedger(k *Keeper, cluster string) *ledger {
	return &ledger{
		keeper: k, cluster: cluster, entries: map[entryKey]entry{}, pending: map[entryKey][]*write{},
		stored: usage{kinds: make([]int64, len(k.resources))}, charged: usage{kinds: make([]int64, len(k.resources))},
		replaced: make([]int, len(k.resources)),
	}
}

// of is what a key is counted as: what is stored, and the most of that and of what is
// about to be.
func (l *ledger) of(key entryKey) (stored, charged usage1) {
	if e, ok := l.entries[key]; ok && !e.gone {
		stored = usage1{1, e.size}
	}
	charged = stored
	for _, w := range l.pending[key] {
		charged = usage1{1, max(charged.bytes, w.size)}
	}
	return stored, charged
}

// usage1 is that of one key.
type usage1 struct{ objects, bytes int64 }

// change changes what is known of a key, with the lock held, and the sums with it.
func (l *ledger) change(key entryKey, how func()) {
	storedBefore, chargedBefore := l.of(key)
	how()
	stored, charged := l.of(key)
	l.stored.add(key.resource, stored.objects-storedBefore.objects, stored.bytes-storedBefore.bytes)
	l.charged.add(key.resource, charged.objects-chargedBefore.objects, charged.bytes-chargedBefore.bytes)
	if stored != storedBefore && !l.told && l.filled {
		l.told = true
		l.keeper.changed(l.cluster)
	}
}

// set enters the size of an object as of a revision, unless something later is known.
func (l *ledger) set(key entryKey, e entry) {
	if known, ok := l.entries[key]; ok && known.revision >= e.revision {
		return
	}
	l.change(key, func() { l.entries[key] = e })
}

// remove enters that there is no such object as of a revision, which has been told by a
// watch: nothing earlier will be told any more.
func (l *ledger) remove(key entryKey, revision uint64) {
	if known, ok := l.entries[key]; ok && known.revision > revision {
		return
	}
	l.change(key, func() {
		if l.filled {
			delete(l.entries, key)
		} else {
			l.entries[key] = entry{revision: revision, gone: true}
		}
	})
}

// wait returns when the ledger is filled, which the first caller does.
func (l *ledger) wait(ctx context.Context) error {
	for {
		l.mu.Lock()
		if l.filled {
			l.mu.Unlock()
			return nil
		}
		done := l.filling
		if done == nil {
			done = make(chan struct{})
			l.filling = done
			l.mu.Unlock()
			err := l.fill(ctx)
			l.mu.Lock()
			l.filling = nil
			l.mu.Unlock()
			close(done)
			return err
		}
		l.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// fill enters all that is stored. What is written meanwhile comes by the watches and by
// the writers, which the ledger has heard since before the lists began.
func (l *ledger) fill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(logical.WithCluster(context.WithoutCancel(ctx), l.cluster), fillTimeout)
	defer cancel()
	for _, c := range l.keeper.resources {
		for {
			complete, err := l.list(ctx, c)
			if err != nil {
				return fmt.Errorf("listing %s: %w", c.name, err)
			}
			if complete {
				break
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.filled = true
	for key, e := range l.entries {
		if e.gone && e.revision <= l.keeper.resources[key.resource].revision.Load() {
			delete(l.entries, key)
		}
	}
	return nil
}

// list enters what is stored of a resource. It is not complete if the resource's watch
// began anew meanwhile: what that did not tell of may be in the list.
func (l *ledger) list(ctx context.Context, c *counted) (complete bool, err error) {
	l.mu.Lock()
	began := l.replaced[c.index]
	l.mu.Unlock()
	list := &object.List{}
	options := storage.ListOptions{Predicate: storage.Everything, Recursive: true}
	if err := c.storage.GetList(ctx, c.prefix+"/"+l.cluster, options, list); err != nil {
		return false, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.replaced[c.index] != began {
		return false, nil
	}
	for i := range list.Items {
		if e, ok := c.entryOf(&list.Items[i]); ok {
			l.set(entryKey{c.index, c.nameOf(&list.Items[i])}, e)
		}
	}
	return true, nil
}

func (c *counted) entryOf(o *object.Object) (entry, bool) {
	revision, err := strconv.ParseUint(o.ResourceVersion, 10, 64)
	return entry{size: c.size(o), revision: revision}, err == nil // what comes from storage has a revision
}

// write is one write that is under way.
type write struct {
	ledger *ledger
	of     *counted
	key    entryKey
	limits *Limits
	size   int64 // that is charged
	begun  bool
}

func (l *ledger) write(c *counted, name string, limits *Limits) *write {
	return &write{ledger: l, of: c, key: entryKey{c.index, name}, limits: limits}
}

// admit charges what is about to be stored in the place of what is of the size old, or of
// none, or returns the error that says what would exceed the quota. It is called again when
// another try is made to store the same write. What does not grow is never refused.
func (w *write) admit(o *object.Object, old int64) error {
	l := w.ledger
	size := w.of.size(o)
	l.mu.Lock()
	defer l.mu.Unlock()
	if w.begun {
		l.change(w.key, w.discharge)
	}
	_, before := l.of(w.key)
	l.change(w.key, func() { w.charge(size) })
	_, after := l.of(w.key)
	grown := usage1{after.objects - before.objects, after.bytes - before.bytes}
	if old != none {
		grown.objects = 0 // also where another server made it and the watch has not told yet
	}
	over := w.excess(grown)
	if len(over) == 0 || size <= old {
		return nil
	}
	l.change(w.key, w.discharge)
	return exceeded(w.of.resource, o.Name, l.cluster, over)
}

// excess are the limits that what has been charged is over because of the growth.
func (w *write) excess(grown usage1) []excess {
	c, l, limits := w.of, w.ledger, w.limits
	var over []excess
	check := func(what string, growth, charged int64, limit *int64) {
		if limit != nil && growth > 0 && charged > *limit {
			over = append(over, excess{what, growth, charged - growth, *limit})
		}
	}
	if limit, ok := limits.Kinds[c.name]; ok {
		check(c.name, grown.objects, l.charged.kinds[c.index], &limit)
	}
	check("objects", grown.objects, l.charged.objects, limits.Objects)
	check("bytes", grown.bytes, l.charged.bytes, limits.Bytes)
	return over
}

// take charges a write without asking.
func (w *write) take(o *object.Object) {
	size := w.of.size(o)
	w.ledger.mu.Lock()
	defer w.ledger.mu.Unlock()
	w.ledger.change(w.key, func() { w.charge(size) })
}

func (w *write) charge(size int64) {
	w.size = size
	if !w.begun {
		w.begun = true
		w.ledger.pending[w.key] = append(w.ledger.pending[w.key], w)
	}
}

func (w *write) discharge() {
	w.begun = false
	others := slices.DeleteFunc(w.ledger.pending[w.key], func(other *write) bool { return other == w })
	if len(others) == 0 {
		delete(w.ledger.pending, w.key)
	} else {
		w.ledger.pending[w.key] = others
	}
}

// end ends a write that stored nothing.
func (w *write) end() {
	w.ledger.mu.Lock()
	defer w.ledger.mu.Unlock()
	if w.begun {
		w.ledger.change(w.key, w.discharge)
	}
}

// done ends a write that stored an object, or deleted one.
func (w *write) done(o *object.Object, deleted bool) {
	e, ok := w.of.entryOf(o)
	if deleted {
		e.size, e.gone = 0, true
	}
	l := w.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	// What a watch has told already is in the ledger, and perhaps what came after.
	if ok && e.revision > w.of.revision.Load() {
		l.set(w.key, e)
	}
	if w.begun {
		l.change(w.key, w.discharge)
	}
}
