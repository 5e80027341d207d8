package logical

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage/value"
)

// horizonName is the key, in the place of a record's, that says up to where a virtual
// cluster's records were pruned. It comes before them all.
const horizonName = "!"

// Horizon is where a history begins: of what was written after the revision nothing
// is missing.
type Horizon struct {
	Revision int64     `json:"revision"`
	Time     time.Time `json:"time"`
}

// StoredRecord is a record as etcd has it.
type StoredRecord struct {
	Revision int64
	Time     time.Time
	Resource schema.GroupResource
	// Data is what the Recorder made; Err says why it cannot be read, if so.
	Data []byte
	Err  error
}

// HistoryPage says which records to read: those of the revisions above After and up to Upto, where 0 is
// any, the newest Limit of them.
type HistoryPage struct {
	After, Upto int64
	Limit       int64
}

// History reads records of the context's virtual cluster, the newest first. revision is
// that of etcd; more says that there are further, older ones.
func (b *Backend) History(ctx context.Context, p HistoryPage) (records []StoredRecord, revision int64, more bool, err error) {
	defer func() { err = answerable(ctx, err) }()
	cluster, err := Cluster(ctx)
	if err != nil {
		return nil, 0, false, err
	}
	born, err := b.born(ctx, cluster)
	if err != nil {
		return nil, 0, false, err
	}
	prefix := b.clusterPrefix(HistoryResource, cluster)
	resp, err := b.client.KV.Get(ctx, prefix+"0", clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(p.Limit),
		clientv3.WithMinCreateRev(max(p.After+1, born)), clientv3.WithMaxCreateRev(p.Upto), clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortDescend))
	if err != nil {
		return nil, 0, false, fmt.Errorf("reading the history of virtual cluster %s: %w", cluster, err)
	}
	t := b.transformer(HistoryResource)
	for _, kv := range resp.Kvs {
		r, err := readRecord(ctx, t, kv, prefix)
		if err != nil {
			return nil, 0, false, fmt.Errorf("reading the history of virtual cluster %s: %w", cluster, err)
		}
		records = append(records, r)
	}
	return records, resp.Header.Revision, resp.More, nil
}

func readRecord(ctx context.Context, t *transformer, kv *mvccpb.KeyValue, prefix string) (StoredRecord, error) {
	r := StoredRecord{Revision: kv.CreateRevision}
	name, ok := parseRecordName(strings.TrimPrefix(string(kv.Key), prefix))
	if !ok {
		r.Err = fmt.Errorf("key %q is not a record's", kv.Key)
		return r, nil
	}
	r.Time, r.Resource = name.time, name.resource
	data, _, err := t.TransformFromStorage(ctx, kv.Value, value.DefaultContext(kv.Key))
	if err != nil {
		return r, err
	}
	kind, _, payload, err := openEnvelope(data)
	switch {
	case err != nil:
		return r, err
	case kind == corrupt:
		r.Err = unreadable(payload)
	default:
		r.Data = payload
	}
	return r, nil
}

// born is the revision in which a virtual cluster was made: what is older is of
// another of its name.
func (b *Backend) born(ctx context.Context, cluster string) (int64, error) {
	key := b.clusterPrefix(schema.GroupResource{Group: "vmesh.io", Resource: "virtualclusters"}, Root) + cluster
	resp, err := b.client.KV.Get(ctx, key, clientv3.WithKeysOnly())
	if err != nil {
		return 0, fmt.Errorf("reading when virtual cluster %s was made: %w", cluster, err)
	}
	if len(resp.Kvs) == 0 {
		return 0, nil
	}
	return resp.Kvs[0].CreateRevision, nil
}

// HistoryHorizon is where the history of the context's virtual cluster begins: where it was
// pruned last, where recording began, or where the virtual cluster did: then its time is zero.
func (b *Backend) HistoryHorizon(ctx context.Context) (_ Horizon, err error) {
	defer func() { err = answerable(ctx, err) }()
	cluster, err := Cluster(ctx)
	if err != nil {
		return Horizon{}, err
	}
	h, _, err := b.horizon(ctx, cluster)
	if err != nil {
		return Horizon{}, err
	}
	born, err := b.born(ctx, cluster)
	if err != nil {
		return Horizon{}, err
	}
	since, err := b.client.KV.Get(ctx, b.recordingKey())
	if err != nil {
		return Horizon{}, fmt.Errorf("reading since when history is recorded: %w", err)
	}
	if len(since.Kvs) == 0 {
		// Another server records nothing: from now on something may be missing.
		return Horizon{Revision: since.Header.Revision}, nil
	}
	if begun := since.Kvs[0]; begun.CreateRevision > h.Revision {
		h.Revision = begun.CreateRevision
		if h.Time, err = time.Parse(time.RFC3339, string(begun.Value)); err != nil {
			return Horizon{}, fmt.Errorf("key %q: %w", begun.Key, err)
		}
	}
	if born > h.Revision {
		h = Horizon{Revision: born}
	}
	return h, nil
}

func (b *Backend) horizon(ctx context.Context, cluster string) (h Horizon, modified int64, err error) {
	key := b.clusterPrefix(HistoryResource, cluster) + horizonName
	resp, err := b.client.KV.Get(ctx, key)
	if err != nil || len(resp.Kvs) == 0 {
		return h, 0, err
	}
	if err := json.Unmarshal(resp.Kvs[0].Value, &h); err != nil {
		return h, 0, fmt.Errorf("key %q: %w", key, err)
	}
	return h, resp.Kvs[0].ModRevision, nil
}

func (b *Backend) recordingKey() string { return b.config.Prefix + "-history" }

// BeginHistory notes in etcd that changes are recorded from now on, if they were not
// already, or that they no longer are. It comes before the server is ready.
func (b *Backend) BeginHistory(ctx context.Context) (err error) {
	key := b.recordingKey()
	if b.config.Recorder == nil {
		_, err = b.client.KV.Delete(ctx, key)
	} else {
		_, err = b.client.KV.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
			Then(clientv3.OpPut(key, time.Now().UTC().Format(time.RFC3339))).Commit()
	}
	if err != nil {
		return fmt.Errorf("noting since when history is recorded: %w", err)
	}
	return nil
}

// HistoryBounds are how much is kept of a virtual cluster's history.
type HistoryBounds struct {
	Age     time.Duration
	Changes int
	Bytes   int64 // of keys and of what records count as
}

// prunePage is how many records are removed at once: so long others wait for etcd.
const prunePage = 1000

// PruneHistory removes the oldest records of a virtual cluster that are beyond the bounds,
// and says how many. It reads keys alone, and removes many in one revision: no watch looks
// at records.
func (b *Backend) PruneHistory(ctx context.Context, cluster string, bounds HistoryBounds) (removed int, err error) {
	for {
		n, more, err := b.pruneHistory(ctx, cluster, bounds)
		removed += n
		if err != nil {
			return removed, fmt.Errorf("pruning the history of virtual cluster %s: %w", cluster, err)
		}
		if !more {
			return removed, nil
		}
	}
}

func (b *Backend) pruneHistory(ctx context.Context, cluster string, bounds HistoryBounds) (removed int, more bool, err error) {
	prefix := b.clusterPrefix(HistoryResource, cluster)
	end := clientv3.GetPrefixRangeEnd(prefix)
	// The newest pages decide what fits; what is older than the last key that does goes.
	var count int
	var bytes int64
	oldest := time.Now().Add(-bounds.Age)
	for to := end; ; {
		resp, err := b.client.KV.Get(ctx, prefix+"0", clientv3.WithRange(to), clientv3.WithKeysOnly(), clientv3.WithLimit(prunePage),
			clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend))
		if err != nil {
			return 0, false, err
		}
		for i, kv := range resp.Kvs {
			name, ok := parseRecordName(strings.TrimPrefix(string(kv.Key), prefix))
			count++
			bytes += int64(name.size + len(kv.Key))
			if ok && count <= bounds.Changes && bytes <= bounds.Bytes && name.time.After(oldest) {
				continue
			}
			return b.dropHistory(ctx, cluster, prefix, resp.Kvs[i:], resp.More)
		}
		if !resp.More {
			return 0, false, nil
		}
		to = string(resp.Kvs[len(resp.Kvs)-1].Key)
	}
}

// dropHistory removes records, the newest first in kvs, and notes that they are gone. With
// more, there are older ones; they go first, so that what is left has no gaps.
func (b *Backend) dropHistory(ctx context.Context, cluster, prefix string, kvs []*mvccpb.KeyValue, more bool) (int, bool, error) {
	if more {
		// Oldest first, a page at a time.
		resp, err := b.client.KV.Get(ctx, prefix+"0", clientv3.WithRange(string(kvs[0].Key)+"\x00"), clientv3.WithKeysOnly(), clientv3.WithLimit(prunePage))
		if err != nil {
			return 0, false, err
		}
		kvs = resp.Kvs
		more = resp.More
	}
	h, modified, err := b.horizon(ctx, cluster)
	if err != nil {
		return 0, false, err
	}
	first, last := string(kvs[0].Key), string(kvs[len(kvs)-1].Key)
	for _, kv := range kvs {
		first, last = min(first, string(kv.Key)), max(last, string(kv.Key))
		if kv.CreateRevision > h.Revision {
			h.Revision = kv.CreateRevision
		}
		if name, ok := parseRecordName(strings.TrimPrefix(string(kv.Key), prefix)); ok && name.time.After(h.Time) {
			h.Time = name.time
		}
	}
	data, err := json.Marshal(h)
	if err != nil {
		return 0, false, err
	}
	key := prefix + horizonName
	// A record that somebody else removed, as the purge of a virtual cluster does, ends it: nothing is left behind then.
	done, err := b.client.KV.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", modified), clientv3.Compare(clientv3.CreateRevision(last), ">", 0)).
		Then(clientv3.OpDelete(first, clientv3.WithRange(last+"\x00")), clientv3.OpPut(key, string(data))).Commit()
	if err != nil || !done.Succeeded {
		return 0, false, err
	}
	return int(done.Responses[0].GetResponseDeleteRange().Deleted), more, nil
}

// NextHistory is the first virtual cluster, by name, after another that has records; empty
// when there is none. stale says that its oldest record is older than age.
func (b *Backend) NextHistory(ctx context.Context, after string, age time.Duration) (cluster string, stale bool, err error) {
	prefix := b.config.Prefix + ResourcePrefix(HistoryResource) + "/"
	from := prefix
	if after != "" {
		from = clientv3.GetPrefixRangeEnd(prefix + after + "/")
	}
	// Two keys: the first may be the horizon.
	resp, err := b.client.KV.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithKeysOnly(), clientv3.WithLimit(2))
	if err != nil {
		return "", false, fmt.Errorf("looking for histories: %w", err)
	}
	for _, kv := range resp.Kvs {
		of, name, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), prefix), "/")
		if cluster == "" {
			cluster = of
		}
		if at, ok := parseRecordName(name); ok && of == cluster {
			return cluster, time.Since(at.time) > age, nil
		}
	}
	return cluster, false, nil
}
