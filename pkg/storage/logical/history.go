package logical

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/value"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// The history of virtual clusters is records, one for each accepted change, which are
// written by the transaction that writes the object: there is none without the other.
// They lie where the objects of a resource would, so that what goes through all that is
// stored (purging, rewriting, counting) finds them, but no watch cache holds them:
//
//	<prefix>/vmesh.io/changes/<cluster>/<time>.<size>.<random>.<resource>
//
// A record's revision is its key's CreateRevision, which nobody knows before the
// transaction is done. The key alone says how old a record is and how large, so that
// pruning reads no values; and of which resource, whose encryption is the record's too.

// HistoryResource is where the records lie.
var HistoryResource = schema.GroupResource{Group: "vmesh.io", Resource: "changes"}

// Recorder makes the records. It is called for every write of the resources that it
// records, in virtual clusters and not in the root.
type Recorder interface {
	// Records says whether changes of a resource are recorded; the answer is always the same.
	Records(gr schema.GroupResource) bool
	// Content is what a record keeps of an object: canonical, so that what a user would
	// call the same is the same.
	Content(o *object.Object) []byte
	// Record makes a record of at most room bytes. before is nil if there was no object, or none that
	// can be read; after is nil if there is none any more, and o is the object that was
	// written or deleted. Without a change to tell it returns nil. size is what the record counts as, in bytes.
	Record(ctx context.Context, c RecordedChange, room int) (data []byte, size int)
	// Recorded is told of every record that is stored. It must not block.
	Recorded(cluster string, size int)
}

// RecordedChange is a change that a record is made of.
type RecordedChange struct {
	Resource      schema.GroupResource
	Time          time.Time
	Before, After []byte
	// Lost says that there was an object that cannot be read.
	Lost   bool
	Object *object.Object
}

// recordRoom is how many bytes an object and its record may have together: etcd takes
// 1.5 MiB in one request. An object that is too large for a record of its content is not refused.
const recordRoom = 1<<20 + 384<<10

type (
	recordKey   struct{}
	noRecordKey struct{}
)

// WithoutRecord returns a context whose writes are no changes: what a virtual cluster is
// set up with.
func WithoutRecord(ctx context.Context) context.Context {
	return context.WithValue(ctx, noRecordKey{}, true)
}

// recording is one write on its way to etcd. It is filled anew by each attempt.
type recording struct {
	before []byte
	object *object.Object // that is written or deleted
	lost   bool
}

// records begins a write, which is recorded if the context comes back with a recording.
func (s *store) records(ctx context.Context, cluster string) (context.Context, *recording) {
	if !s.recorded || cluster == Root || ctx.Value(noRecordKey{}) != nil {
		return ctx, nil
	}
	r := &recording{}
	return context.WithValue(ctx, recordKey{}, r), r
}

// from notes the object that a write is about to replace or delete, before anybody changes it.
func (r *recording) from(s *store, obj runtime.Object) {
	o, ok := plain(obj)
	r.before, r.lost = nil, false
	if !ok || o.ResourceVersion == "" {
		return // updates are given an empty object where there is none
	}
	if _, r.lost = s.codec.quarantined(o); !r.lost {
		r.before = s.backend.config.Recorder.Content(o)
	}
}

// to notes the object that is written, or deleted.
func (r *recording) to(obj runtime.Object) { r.object, _ = plain(obj) }

func plain(obj runtime.Object) (*object.Object, bool) {
	switch o := obj.(type) {
	case *object.Object:
		return o, true
	case *result:
		return &o.Object, true
	}
	return nil, false
}

// recordingClient is the client of a resource whose changes are recorded.
type recordingClient struct {
	kubernetes.Interface
	backend  *Backend
	resource schema.GroupResource
	// transformer is that of records.
	transformer *transformer
}

// put is the operation that stores a write's record; ok is false for one that is no change.
func (r *recordingClient) put(ctx context.Context, key string, stored int, deleted bool) (op clientv3.Op, cluster string, size int, ok bool, err error) {
	w, _ := ctx.Value(recordKey{}).(*recording)
	if w == nil || w.object == nil {
		return op, "", 0, false, nil
	}
	cluster, of := keyCluster(r.backend.config.Prefix+ResourcePrefix(r.resource), key)
	if !of {
		return op, "", 0, false, fmt.Errorf("recording a change: key %q is of no virtual cluster", key)
	}
	now := time.Now()
	c := RecordedChange{Resource: r.resource, Time: now, Before: w.before, Lost: w.lost, Object: w.object}
	if !deleted {
		c.After = r.backend.config.Recorder.Content(w.object)
	}
	data, size := r.backend.config.Recorder.Record(ctx, c, recordRoom-stored)
	if data == nil {
		return op, "", 0, false, nil
	}
	path := cluster + "/" + recordName(now, size, r.resource)
	at := string(r.transformer.prefix) + path
	if data, err = r.transformer.TransformToStorage(ctx, append(appendEnvelope(nil, intact, path), data...), value.DefaultContext(at)); err != nil {
		return op, "", 0, false, storage.NewInternalError(fmt.Errorf("recording a change: %w", err))
	}
	return clientv3.OpPut(at, string(data)), cluster, size + len(at), true, nil
}

func recordName(t time.Time, size int, gr schema.GroupResource) string {
	return fmt.Sprintf("%016x.%x.%08x.%s", uint64(t.UnixNano()), size, rand.Uint32(), gr)
}

// OptimisticPut implements kubernetes.Interface.
func (r *recordingClient) OptimisticPut(ctx context.Context, key string, data []byte, expected int64, opts kubernetes.PutOptions) (kubernetes.PutResponse, error) {
	record, cluster, size, ok, err := r.put(ctx, key, len(data), false)
	if err != nil || !ok {
		if err != nil {
			return kubernetes.PutResponse{}, err
		}
		return r.Interface.OptimisticPut(ctx, key, data, expected, opts)
	}
	resp, err := r.commit(ctx, key, expected, opts.GetOnFailure, clientv3.OpPut(key, string(data), clientv3.WithLease(opts.LeaseID)), record)
	if err == nil && resp.Succeeded {
		r.backend.config.Recorder.Recorded(cluster, size)
	}
	return resp, err
}

// OptimisticDelete implements kubernetes.Interface.
func (r *recordingClient) OptimisticDelete(ctx context.Context, key string, expected int64, opts kubernetes.DeleteOptions) (kubernetes.DeleteResponse, error) {
	record, cluster, size, ok, err := r.put(ctx, key, 0, true)
	if err != nil || !ok {
		if err != nil {
			return kubernetes.DeleteResponse{}, err
		}
		return r.Interface.OptimisticDelete(ctx, key, expected, opts)
	}
	resp, err := r.commit(ctx, key, expected, opts.GetOnFailure, clientv3.OpDelete(key), record)
	if err == nil && resp.Succeeded {
		r.backend.config.Recorder.Recorded(cluster, size)
	}
	return kubernetes.DeleteResponse(resp), err
}

// commit does what upstream's client does, with one operation more.
func (r *recordingClient) commit(ctx context.Context, key string, expected int64, get bool, ops ...clientv3.Op) (resp kubernetes.PutResponse, err error) {
	txn := r.backend.client.KV.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", expected)).Then(ops...)
	if get {
		txn = txn.Else(clientv3.OpGet(key))
	}
	done, err := txn.Commit()
	if err != nil {
		return resp, err
	}
	resp.Succeeded, resp.Revision = done.Succeeded, done.Header.Revision
	if get && !done.Succeeded {
		if len(done.Responses) == 0 || done.Responses[0].GetResponseRange() == nil {
			return resp, errors.New("etcd has answered a transaction that failed without what is there")
		}
		if kvs := done.Responses[0].GetResponseRange().Kvs; len(kvs) == 1 {
			resp.KV = kvs[0]
		}
	}
	return resp, nil
}

// recordEncryption encrypts a record as the objects of its resource are.
type recordEncryption struct {
	of func(schema.GroupResource) value.Transformer
}

func (e recordEncryption) transformer(at value.Context) (value.Transformer, error) {
	key := string(at.AuthenticatedData())
	last := key[strings.LastIndexByte(key, '/')+1:]
	if last == horizonName {
		return nil, nil
	}
	name, ok := parseRecordName(last)
	if !ok {
		return nil, fmt.Errorf("%w: key %q is not a record's", ErrCorrupt, key)
	}
	return e.of(name.resource), nil
}

// TransformFromStorage implements value.Transformer.
func (e recordEncryption) TransformFromStorage(ctx context.Context, data []byte, at value.Context) ([]byte, bool, error) {
	t, err := e.transformer(at)
	if err != nil {
		return nil, false, err
	}
	if t == nil {
		return data, false, nil
	}
	return t.TransformFromStorage(ctx, data, at)
}

// TransformToStorage implements value.Transformer.
func (e recordEncryption) TransformToStorage(ctx context.Context, data []byte, at value.Context) ([]byte, error) {
	t, err := e.transformer(at)
	if err != nil || t == nil {
		return data, err
	}
	return t.TransformToStorage(ctx, data, at)
}

// recordAt is what a record's key says.
type recordAt struct {
	time     time.Time
	size     int
	resource schema.GroupResource
}

func parseRecordName(name string) (recordAt, bool) {
	parts := strings.SplitN(name, ".", 4)
	if len(parts) != 4 || len(parts[0]) != 16 || parts[3] == "" {
		return recordAt{}, false
	}
	nanos, err := hex.DecodeString(parts[0])
	size, sizeErr := strconv.ParseUint(parts[1], 16, 31)
	if err != nil || sizeErr != nil {
		return recordAt{}, false
	}
	return recordAt{
		time: time.Unix(0, int64(binary.BigEndian.Uint64(nanos))), size: int(size), resource: schema.ParseGroupResource(parts[3]),
	}, true
}
