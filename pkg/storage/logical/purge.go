package logical

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const (
	purgePage    = 500
	purgeWorkers = 16
	storedFor    = time.Minute
)

// Count counts the objects of a virtual cluster by resource, those of resources that
// are not open included, unless another process has begun to store them within the
// last minute; resources without objects are left out. It costs one lookup in etcd's
// index for each resource.
func (b *Backend) Count(ctx context.Context, cluster string) (map[schema.GroupResource]int64, error) {
	resources, err := b.knownResources(ctx)
	if err != nil {
		return nil, answerable(ctx, err)
	}
	counts, err := b.count(ctx, cluster, resources)
	return counts, answerable(ctx, err)
}

func (b *Backend) count(ctx context.Context, cluster string, resources []schema.GroupResource) (map[schema.GroupResource]int64, error) {
	if err := ValidName(cluster); err != nil {
		return nil, err
	}
	counts := map[schema.GroupResource]int64{}
	for _, gr := range resources {
		resp, err := b.client.KV.Get(ctx, b.clusterPrefix(gr, cluster), clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return nil, fmt.Errorf("counting %s of virtual cluster %s: %w", gr, cluster, err)
		}
		if resp.Count > 0 {
			counts[gr] = resp.Count
		}
	}
	return counts, nil
}

// Purge removes all objects of a virtual cluster, those of resources that are not
// open included, whatever their finalizers. Watchers see each of them DELETED. The
// caller sees to it that nothing is written meanwhile. progress, which may be nil,
// is told how many of how many are gone, from time to time and at the end. The history goes
// with them, and does not count.
//
// Every object is removed in a revision of its own: a watch that is resumed from a
// revision that removed several would miss those it had not been told of.
func (b *Backend) Purge(ctx context.Context, cluster string, progress func(removed, total int)) error {
	resources, err := b.resources(ctx)
	if err != nil {
		return err
	}
	counts, err := b.count(ctx, cluster, resources)
	if err != nil {
		return err
	}
	if counts[HistoryResource] > 0 { // which nobody watches
		if _, err := b.client.KV.Delete(ctx, b.clusterPrefix(HistoryResource, cluster), clientv3.WithPrefix()); err != nil {
			return fmt.Errorf("purging the history of virtual cluster %s: %w", cluster, err)
		}
		delete(counts, HistoryResource)
	}
	removed, total := 0, 0
	for _, n := range counts {
		total += int(n)
	}
	for gr := range counts {
		prefix := b.clusterPrefix(gr, cluster)
		for {
			resp, err := b.client.KV.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(purgePage))
			if err != nil {
				return fmt.Errorf("purging %s of virtual cluster %s: %w", gr, cluster, err)
			}
			keys := make([]string, len(resp.Kvs))
			for i, kv := range resp.Kvs {
				keys[i] = string(kv.Key)
			}
			if err := b.remove(ctx, keys); err != nil {
				return fmt.Errorf("purging %s of virtual cluster %s: %w", gr, cluster, err)
			}
			removed += len(keys)
			if progress != nil {
				progress(removed, max(removed, total))
			}
			if !resp.More {
				break
			}
		}
	}
	return nil
}

func (b *Backend) remove(ctx context.Context, keys []string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan string)
	var wg sync.WaitGroup
	for range min(purgeWorkers, len(keys)) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for key := range next {
				if _, err := b.client.KV.Delete(ctx, key); err != nil {
					cancel(err)
				}
			}
		}()
	}
	for _, key := range keys {
		select {
		case next <- key:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
	return context.Cause(ctx)
}

func (b *Backend) clusterPrefix(gr schema.GroupResource, cluster string) string {
	return b.config.Prefix + ResourcePrefix(gr) + "/" + cluster + "/"
}

// knownResources are those that are open, and those that etcd had a while ago.
func (b *Backend) knownResources(ctx context.Context) ([]schema.GroupResource, error) {
	b.mu.Lock()
	stored, at := b.stored, b.storedAt
	b.mu.Unlock()
	if time.Since(at) > storedFor {
		var err error
		if stored, err = b.resources(ctx); err != nil {
			return nil, err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if time.Since(at) > storedFor {
		b.stored, b.storedAt = stored, time.Now()
	}
	known := slices.Clone(stored)
	for gr := range b.stores {
		if !slices.Contains(stored, gr) {
			known = append(known, gr)
		}
	}
	return known, nil
}

// resources finds all resources that have objects, by going from one's first key to
// the next one's.
func (b *Backend) resources(ctx context.Context) ([]schema.GroupResource, error) {
	prefix := b.config.Prefix + "/"
	end := clientv3.GetPrefixRangeEnd(prefix)
	var found []schema.GroupResource
	for from := prefix; ; {
		resp, err := b.client.KV.Get(ctx, from, clientv3.WithRange(end), clientv3.WithKeysOnly(), clientv3.WithLimit(1))
		if err != nil {
			return nil, fmt.Errorf("finding the stored resources: %w", err)
		}
		if len(resp.Kvs) == 0 {
			return found, nil
		}
		key := string(resp.Kvs[0].Key)
		group, rest, _ := strings.Cut(strings.TrimPrefix(key, prefix), "/")
		resource, _, below := strings.Cut(rest, "/")
		if !below {
			from = key + "\x00" // not in the layout
			continue
		}
		from = clientv3.GetPrefixRangeEnd(prefix + group + "/" + resource + "/")
		if group == "core" {
			group = ""
		}
		found = append(found, schema.GroupResource{Group: group, Resource: resource})
	}
}
