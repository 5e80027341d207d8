package release

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage/value"

	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

// What a mesh with stages serves is in etcd besides the objects, since the objects are only
// what is newest. Under the prefix lie
//
//	state/UID                            where the releases of a mesh stand
//	data/UID/base/KIND/NAMESPACE/NAME    the entries of the good generation
//	data/UID/log/GEN/KIND/NAMESPACE/NAME what later generations changed; empty for an absence
//
// A generation is the base with the logs up to its own, but for those that were aborted. Every
// write has the condition that the state is as it was read: so any number of servers may
// decide, and one of them does. A log beyond the state's last generation was never committed.

// Store keeps where releases stand.
type Store struct {
	client    *clientv3.Client
	prefix    string
	transform func(schema.GroupResource) value.Transformer
	kinds     []snapshot.Kind
	byName    map[string]int
}

// NewStore makes a store below a prefix of etcd. transform gives the encryption of a
// resource's objects, which holds for what is kept here as well; it may be nil.
func NewStore(client *clientv3.Client, prefix string, kinds []snapshot.Kind, transform func(schema.GroupResource) value.Transformer) *Store {
	s := &Store{client: client, prefix: strings.TrimSuffix(prefix, "/") + "/", transform: transform, kinds: kinds, byName: map[string]int{}}
	for i, k := range kinds {
		s.byName[k.Name] = i
	}
	return s
}

const (
	// maxOps is how many keys one transaction writes; etcd takes 128.
	maxOps = 100
	// maxBytes is how much it writes, but for one value that has more; etcd takes 1.5 MiB.
	maxBytes = 512 << 10
	pageSize = 500
)

// errConflict says that another server has written the state meanwhile.
var errConflict = errors.New("another server has decided meanwhile")

func (s *Store) stateKey(uid string) string { return s.prefix + "state/" + uid }
func (s *Store) dataKey(uid string) string  { return s.prefix + "data/" + uid + "/" }
func (s *Store) baseKey(uid string) string  { return s.dataKey(uid) + "base/" }
func (s *Store) logKey(uid string, gen int64) string {
	return fmt.Sprintf("%slog/%016x/", s.dataKey(uid), gen)
}

// entryKey is the last part of a key.
func (s *Store) entryKey(k entryKey) string { return s.kinds[k.kind].Name + "/" + k.name }

// entryKey names a resource in a snapshot.
type entryKey struct {
	kind int
	name string
}

func (s *Store) parseEntryKey(text string) (entryKey, error) {
	kind, name, ok := strings.Cut(text, "/")
	index, known := s.byName[kind]
	if !ok || !known {
		return entryKey{}, fmt.Errorf("%s: this version of vmesh knows no kind %s", text, kind)
	}
	return entryKey{index, name}, nil
}

func (s *Store) encrypt(ctx context.Context, kind int, key string, data []byte) ([]byte, error) {
	if s.transform == nil || len(data) == 0 {
		return data, nil
	}
	t := s.transform(s.kinds[kind].Resource)
	if t == nil {
		return data, nil
	}
	return t.TransformToStorage(ctx, data, value.DefaultContext(key))
}

func (s *Store) decrypt(ctx context.Context, kind int, key string, data []byte) ([]byte, error) {
	if s.transform == nil || len(data) == 0 {
		return data, nil
	}
	t := s.transform(s.kinds[kind].Resource)
	if t == nil {
		return data, nil
	}
	out, _, err := t.TransformFromStorage(ctx, data, value.DefaultContext(key))
	return out, err
}

// write is one key's new value; with none it is deleted. A key of a log with a present but
// empty value is an absence.
type write struct {
	key     string
	kind    int
	value   []byte
	present bool
}

func (s *Store) op(ctx context.Context, w write) (clientv3.Op, error) {
	if !w.present {
		return clientv3.OpDelete(w.key), nil
	}
	stored, err := s.encrypt(ctx, w.kind, w.key, w.value)
	if err != nil {
		return clientv3.Op{}, fmt.Errorf("encrypting %s: %w", w.key, err)
	}
	return clientv3.OpPut(w.key, string(stored)), nil
}

// getState reads the state; nil when there is none.
func (s *Store) getState(ctx context.Context, uid string) (st *state, revision, at int64, err error) {
	r, err := s.client.Get(ctx, s.stateKey(uid))
	if err != nil {
		return nil, 0, 0, err
	}
	if len(r.Kvs) == 0 {
		return nil, 0, r.Header.Revision, nil
	}
	st = &state{}
	if err := json.Unmarshal(r.Kvs[0].Value, st); err != nil {
		return nil, 0, 0, fmt.Errorf("reading where the releases stand: %w", err)
	}
	return st, r.Kvs[0].ModRevision, r.Header.Revision, nil
}

// commit writes a state and what belongs to it, if the state is that of the revision, and
// returns the new one's. What does not fit into one transaction is written first.
func (s *Store) commit(ctx context.Context, uid string, revision int64, before, next *state, writes []write) (int64, error) {
	var rest []clientv3.Op
	size := 0
	flush := func() error {
		if len(rest) == 0 {
			return nil
		}
		_, err := s.guarded(ctx, uid, revision, rest...)
		rest, size = rest[:0], 0
		return err
	}
	total := 0
	for _, w := range writes {
		total += len(w.value) + len(w.key)
	}
	if before == nil || before.Initializing || before.Dirty || len(writes) >= maxOps || total > maxBytes {
		// Claimed first, so that nobody else writes at the same time, and nothing is left of one
		// who did not finish.
		claim := state{Initializing: true}
		if before != nil {
			claim = *before
		}
		claim.Dirty = true
		op, err := s.putState(uid, &claim)
		if err != nil {
			return 0, err
		}
		left := clientv3.OpDelete(s.logKey(uid, claim.Last+1), clientv3.WithRange(clientv3.GetPrefixRangeEnd(s.dataKey(uid)+"log/")))
		if before == nil || before.Initializing {
			left = clientv3.OpDelete(s.dataKey(uid), clientv3.WithPrefix())
		}
		if revision, err = s.guarded(ctx, uid, revision, op, left); err != nil {
			return 0, err
		}
		for _, w := range writes {
			op, err := s.op(ctx, w)
			if err != nil {
				return 0, err
			}
			if len(rest) == maxOps || size+len(w.value) > maxBytes {
				if err := flush(); err != nil {
					return 0, err
				}
			}
			rest, size = append(rest, op), size+len(w.value)
		}
		if err := flush(); err != nil {
			return 0, err
		}
	} else {
		for _, w := range writes {
			op, err := s.op(ctx, w)
			if err != nil {
				return 0, err
			}
			rest = append(rest, op)
		}
	}
	op, err := s.putState(uid, next)
	if err != nil {
		return 0, err
	}
	return s.guarded(ctx, uid, revision, append(rest, op)...)
}

func (s *Store) putState(uid string, st *state) (clientv3.Op, error) {
	data, err := json.Marshal(st)
	return clientv3.OpPut(s.stateKey(uid), string(data)), err
}

// guarded writes if the state is that of a revision; 0 means that there is to be none.
func (s *Store) guarded(ctx context.Context, uid string, revision int64, ops ...clientv3.Op) (int64, error) {
	r, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(s.stateKey(uid)), "=", revision)).Then(ops...).Commit()
	switch {
	case err != nil:
		return 0, err
	case !r.Succeeded:
		return 0, errConflict
	}
	return r.Header.Revision, nil
}

// each reads all keys with a prefix as of a revision.
func (s *Store) each(ctx context.Context, prefix string, at int64, visit func(key string, value []byte) error) error {
	from, end := prefix, clientv3.GetPrefixRangeEnd(prefix)
	for {
		options := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(pageSize)}
		if at != 0 {
			options = append(options, clientv3.WithRev(at))
		}
		r, err := s.client.Get(ctx, from, options...)
		if err != nil {
			return err
		}
		for _, kv := range r.Kvs {
			if err := visit(strings.TrimPrefix(string(kv.Key), prefix), kv.Value); err != nil {
				return err
			}
		}
		if !r.More {
			return nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}

// logged is one value of the log.
type logged struct {
	gen   int64
	key   entryKey
	path  string // in etcd
	value []byte
}

// log reads the logs as of a revision, or the newest, in the order of generations.
func (s *Store) log(ctx context.Context, uid string, at int64) ([]logged, error) {
	var all []logged
	prefix := s.dataKey(uid) + "log/"
	err := s.each(ctx, prefix, at, func(text string, stored []byte) error {
		number, rest, _ := strings.Cut(text, "/")
		var gen int64
		if _, err := fmt.Sscanf(number, "%x", &gen); err != nil {
			return fmt.Errorf("%s: %w", text, err)
		}
		key, err := s.parseEntryKey(rest)
		if err != nil {
			return err
		}
		data, err := s.decrypt(ctx, key.kind, prefix+text, stored)
		if err != nil {
			return fmt.Errorf("decrypting %s: %w", text, err)
		}
		all = append(all, logged{gen, key, prefix + text, data})
		return nil
	})
	return all, err
}

// base reads the entries of the base as of a revision, by kind.
func (s *Store) base(ctx context.Context, uid string, at int64) ([]map[string][]byte, error) {
	all := make([]map[string][]byte, len(s.kinds))
	prefix := s.baseKey(uid)
	err := s.each(ctx, prefix, at, func(text string, stored []byte) error {
		key, err := s.parseEntryKey(text)
		if err != nil {
			return err
		}
		data, err := s.decrypt(ctx, key.kind, prefix+text, stored)
		if err != nil {
			return fmt.Errorf("decrypting %s: %w", text, err)
		}
		if all[key.kind] == nil {
			all[key.kind] = map[string][]byte{}
		}
		all[key.kind][key.name] = data
		return nil
	})
	return all, err
}

// fold takes the logs that all stages have into the base, and deletes those that no generation
// in use needs. It may be broken off at any point, and done by several at once: a key moves in
// one transaction, if it is still there.
func (s *Store) fold(ctx context.Context, uid string, st *state) error {
	all, err := s.log(ctx, uid, 0)
	if err != nil {
		return err
	}
	used, oldest := st.generations(), st.oldest()
	byKey := map[entryKey][]logged{}
	for _, l := range all {
		if l.gen <= st.Last && !st.aborted(l.gen) {
			byKey[l.key] = append(byKey[l.key], l)
		}
	}
	var needless []clientv3.Op
	for _, logs := range byKey {
		for i, l := range logs[:len(logs)-1] {
			if !slices.ContainsFunc(used, func(g int64) bool { return l.gen <= g && g < logs[i+1].gen }) {
				needless = append(needless, clientv3.OpDelete(l.path))
			}
		}
	}
	// These first: in the base there must be nothing that an older log would undo.
	for part := range slices.Chunk(needless, maxOps) {
		if _, err := s.client.Txn(ctx).Then(part...).Commit(); err != nil {
			return err
		}
	}
	var batch []move
	size := 0
	for key, logs := range byKey {
		at := -1
		for i, l := range logs {
			if l.gen <= oldest {
				at = i
			}
		}
		if at < 0 {
			continue
		}
		l := logs[at]
		put, err := s.op(ctx, write{key: s.baseKey(uid) + s.entryKey(key), kind: key.kind, value: l.value, present: len(l.value) > 0})
		if err != nil {
			return err
		}
		if len(batch) == maxOps/2 || size+len(l.value) > maxBytes {
			if err := s.move(ctx, batch); err != nil {
				return err
			}
			batch, size = nil, 0
		}
		batch, size = append(batch, move{l.path, put}), size+len(l.value)
	}
	return s.move(ctx, batch)
}

// move is a value that goes from the log to the base.
type move struct {
	from string
	put  clientv3.Op
}

// move moves values that are still there. Should another server move some of them, each goes
// by itself.
func (s *Store) move(ctx context.Context, batch []move) error {
	if len(batch) == 0 {
		return nil
	}
	var there []clientv3.Cmp
	var ops []clientv3.Op
	for _, m := range batch {
		there = append(there, clientv3.Compare(clientv3.CreateRevision(m.from), ">", 0))
		ops = append(ops, m.put, clientv3.OpDelete(m.from))
	}
	r, err := s.client.Txn(ctx).If(there...).Then(ops...).Commit()
	if err != nil || r.Succeeded || len(batch) == 1 {
		return err
	}
	for i := range batch {
		if err := s.move(ctx, batch[i:i+1]); err != nil {
			return err
		}
	}
	return nil
}

// forget deletes all that is known of a mesh.
func (s *Store) forget(ctx context.Context, uid string) error {
	// In this order: what has no state is nothing.
	if _, err := s.client.Delete(ctx, s.stateKey(uid)); err != nil {
		return err
	}
	_, err := s.client.Delete(ctx, s.dataKey(uid), clientv3.WithPrefix())
	return err
}

// meshes are the UIDs of the meshes that something is known of.
func (s *Store) meshes(ctx context.Context) ([]string, error) {
	r, err := s.client.Get(ctx, s.prefix+"state/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, err
	}
	var uids []string
	for _, kv := range r.Kvs {
		uids = append(uids, path.Base(string(kv.Key)))
	}
	return uids, nil
}

// watch calls changed with the revision of each new state of a mesh, until ctx ends.
func (s *Store) watch(ctx context.Context, uid string, changed func()) {
	for r := range s.client.Watch(clientv3.WithRequireLeader(ctx), s.stateKey(uid)) {
		if len(r.Events) > 0 || r.Err() != nil {
			changed()
		}
	}
}

func compacted(err error) bool { return errors.Is(err, rpctypes.ErrCompacted) }
