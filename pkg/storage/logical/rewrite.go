package logical

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage/value"
)

const (
	// rewritePage is how many objects are read at once: each may be as large as etcd takes.
	rewritePage    = 100
	rewriteWorkers = 16
	// rewriteAttempts is how often an object is tried again that others write meanwhile.
	rewriteAttempts = 10
)

// Rewrite says what to rewrite.
type Rewrite struct {
	// Cluster is the virtual cluster whose objects are rewritten, Root among them; empty
	// for all.
	Cluster string
	// Resources are those that are rewritten; none for all.
	Resources []schema.GroupResource
	// From is where to go on, as an earlier part said in its Next; empty for the beginning.
	From string
	// Limit is how many objects to look at, Time how long to take; both are exceeded
	// by what has been begun. Zero is no limit.
	Limit int
	Time  time.Duration
}

// Rewritten is what became of a part of a rewriting.
type Rewritten struct {
	// Rewritten objects were stored in another way than new ones would be, and now are
	// like new ones. Current ones were already.
	Rewritten, Current int
	// Unreadable ones cannot be decrypted, and stay as they are.
	Unreadable []Unreadable
	// Next is where to go on; empty when all is done.
	Next string
}

// Unreadable is an object that cannot be decrypted.
type Unreadable struct {
	Resource        schema.GroupResource
	Cluster, Object string
	Reason          string
}

// rewriteRange are the keys of a resource, or of one virtual cluster in it.
type rewriteRange struct {
	resource   schema.GroupResource
	begin, end string
}

// Rewrite writes stored objects again that are not stored as they would be now: with an
// older encryption key, without encryption, or in another version of the API. Their
// content stays the same to the byte; watches see them MODIFIED, with a new resource
// version. It may run while objects are written, and any number of times.
//
// What lies in etcd is gone through in the order of its keys. An error is one of
// etcd, or of an encryption that does not answer; what was rewritten before stays so.
func (b *Backend) Rewrite(ctx context.Context, r Rewrite) (Rewritten, error) {
	ranges, err := b.rewriteRanges(ctx, r)
	if err != nil {
		return Rewritten{}, err
	}
	begun := time.Now()
	var out Rewritten
	looked := 0
	for _, of := range ranges {
		for from := max(of.begin, r.From); from < of.end; {
			if r.Limit > 0 && looked >= r.Limit || r.Time > 0 && time.Since(begun) > r.Time {
				out.Next = from
				return out, nil
			}
			resp, err := b.client.KV.Get(ctx, from, clientv3.WithRange(of.end), clientv3.WithLimit(rewritePage))
			if err != nil {
				return out, fmt.Errorf("reading %s: %w", of.resource, err)
			}
			if err := b.rewritePage(ctx, of.resource, resp.Kvs, &out); err != nil {
				return out, fmt.Errorf("rewriting %s: %w", of.resource, err)
			}
			looked += len(resp.Kvs)
			if !resp.More {
				break
			}
			from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
		}
	}
	return out, nil
}

// CountRewrite is how many objects a rewriting would look at.
func (b *Backend) CountRewrite(ctx context.Context, r Rewrite) (int64, error) {
	ranges, err := b.rewriteRanges(ctx, r)
	if err != nil {
		return 0, err
	}
	var count int64
	for _, of := range ranges {
		resp, err := b.client.KV.Get(ctx, of.begin, clientv3.WithRange(of.end), clientv3.WithCountOnly())
		if err != nil {
			return 0, fmt.Errorf("counting %s: %w", of.resource, err)
		}
		count += resp.Count
	}
	return count, nil
}

func (b *Backend) rewriteRanges(ctx context.Context, r Rewrite) ([]rewriteRange, error) {
	if r.Cluster != "" {
		if err := ValidName(r.Cluster); err != nil {
			return nil, err
		}
	}
	resources := r.Resources
	if len(resources) == 0 {
		var err error
		if resources, err = b.resources(ctx); err != nil {
			return nil, err
		}
	}
	var ranges []rewriteRange
	for _, gr := range resources {
		prefix := b.config.Prefix + ResourcePrefix(gr) + "/"
		if r.Cluster != "" {
			prefix = b.clusterPrefix(gr, r.Cluster)
		}
		ranges = append(ranges, rewriteRange{resource: gr, begin: prefix, end: clientv3.GetPrefixRangeEnd(prefix)})
	}
	slices.SortFunc(ranges, func(a, b rewriteRange) int { return strings.Compare(a.begin, b.begin) })
	return slices.Compact(ranges), nil
}

// rewritePage rewrites some objects of a resource and adds up what became of them.
func (b *Backend) rewritePage(ctx context.Context, gr schema.GroupResource, kvs []*mvccpb.KeyValue, out *Rewritten) error {
	w := rewriter{backend: b, resource: gr, transformer: b.transformer(gr)}
	if s, err := b.opened(gr); err == nil {
		w.store = s
	} else if errors.Is(err, ErrClosed) {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan *mvccpb.KeyValue)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range min(rewriteWorkers, len(kvs)) {
		wg.Go(func() {
			for kv := range next {
				key := string(kv.Key)
				wrote, err := w.rewrite(ctx, kv)
				mu.Lock()
				switch {
				case errors.Is(err, ErrCorrupt):
					cluster, object, _ := strings.Cut(strings.TrimPrefix(key, string(w.transformer.prefix)), "/")
					out.Unreadable = append(out.Unreadable, Unreadable{Resource: gr, Cluster: cluster, Object: object, Reason: err.Error()})
				case err != nil:
					cancel(fmt.Errorf("%s: %w", key, err))
				case wrote:
					out.Rewritten++
				default:
					out.Current++
				}
				mu.Unlock()
			}
		})
	}
	for _, kv := range kvs {
		select {
		case next <- kv:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
	return context.Cause(ctx)
}

// rewriter rewrites objects of one resource.
type rewriter struct {
	backend     *Backend
	resource    schema.GroupResource
	transformer *transformer
	store       *store // nil if the resource is not open
}

// rewrite writes an object again if it has to be. The error is ErrCorrupt for one that
// cannot be decrypted.
func (w *rewriter) rewrite(ctx context.Context, kv *mvccpb.KeyValue) (wrote bool, err error) {
	key := string(kv.Key)
	for range rewriteAttempts {
		data, err := w.renewed(ctx, kv)
		if err != nil || data == nil {
			return false, err
		}
		resp, err := w.backend.client.KV.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(key), "=", kv.ModRevision)).
			Then(clientv3.OpPut(key, string(data), clientv3.WithIgnoreLease())).
			Else(clientv3.OpGet(key)).Commit()
		if err != nil {
			return false, err
		}
		if resp.Succeeded {
			return true, nil
		}
		now := resp.Responses[0].GetResponseRange().Kvs
		if len(now) == 0 {
			return false, nil // deleted meanwhile
		}
		kv = now[0]
	}
	return false, errors.New("others write it all the time: try again later")
}

// renewed is how an object would be stored now, or nil if it is stored so already.
func (w *rewriter) renewed(ctx context.Context, kv *mvccpb.KeyValue) ([]byte, error) {
	at := value.DefaultContext(kv.Key)
	stored, stale, err := w.transformer.TransformFromStorage(ctx, kv.Value, at)
	if err != nil {
		return nil, err
	}
	kind, _, payload, err := openEnvelope(stored)
	if err != nil {
		return nil, err
	}
	if kind == corrupt {
		return nil, unreadable(payload)
	}
	if w.store != nil {
		if again, ok := w.store.codec.again(stored); ok {
			// A watch cache may have it in quarantine though it can be read: since then the
			// server was given the key. To write it tells the watch cache.
			stale = stale || !bytes.Equal(again, stored) || w.store.feed.isQuarantined(strings.TrimPrefix(string(kv.Key), w.backend.config.Prefix))
			stored = again
		}
	}
	if !stale {
		return nil, nil
	}
	return w.transformer.TransformToStorage(ctx, stored, at)
}

// unreadable is the reason that a transformer gave in the place of an object.
type unreadable []byte

func (u unreadable) Error() string        { return string(u) }
func (u unreadable) Is(target error) bool { return target == ErrCorrupt }

// Locked is an error if stored objects of a resource are encrypted, and none of them can be
// decrypted: then it is not they that are broken.
func (b *Backend) Locked(ctx context.Context, gr schema.GroupResource) error {
	t := b.transformer(gr)
	prefix := string(t.prefix)
	end := clientv3.GetPrefixRangeEnd(prefix)
	var locked error
	for from := prefix; ; {
		resp, err := b.client.KV.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(rewritePage))
		if err != nil {
			return fmt.Errorf("reading %s: %w", gr, err)
		}
		for _, kv := range resp.Kvs {
			if !bytes.HasPrefix(kv.Value, encryptedPrefix) {
				continue
			}
			out, _, err := t.TransformFromStorage(ctx, kv.Value, value.DefaultContext(kv.Key))
			if err != nil {
				return err
			}
			kind, _, reason, err := openEnvelope(out)
			if err != nil {
				return err
			}
			if kind == intact {
				return nil
			}
			locked = fmt.Errorf("%s: %w", kv.Key, unreadable(bytes.Clone(reason)))
		}
		if !resp.More {
			return locked
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}
