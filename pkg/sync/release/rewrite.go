package release

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage/value"

	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// Prefix is what all keys begin with.
func (s *Store) Prefix() string { return s.prefix }

// CountRewrite is how many entries a rewriting would look at.
func (s *Store) CountRewrite(ctx context.Context, resources []schema.GroupResource) (int64, error) {
	var count int64
	err := s.entries(ctx, "", resources, []clientv3.OpOption{clientv3.WithKeysOnly()}, func(*mvccpb.KeyValue, int) (bool, error) {
		count++
		return true, nil
	})
	return count, err
}

// Rewrite writes the entries of all stages of all meshes again that are not encrypted as new
// ones would be, or only those of some resources. It does as logical.Backend.Rewrite: what is
// in them stays the same, it may run while others release, and any number of times. From is
// its Next, or empty.
func (s *Store) Rewrite(ctx context.Context, r logical.Rewrite) (logical.Rewritten, error) {
	var out logical.Rewritten
	if s.transform == nil {
		return out, nil
	}
	begun, looked := time.Now(), 0
	err := s.entries(ctx, r.From, r.Resources, nil, func(kv *mvccpb.KeyValue, kind int) (bool, error) {
		if r.Limit > 0 && looked >= r.Limit || r.Time > 0 && time.Since(begun) > r.Time {
			out.Next = string(kv.Key)
			return false, nil
		}
		looked++
		wrote, err := s.rewrite(ctx, kv, kind)
		switch {
		case errors.Is(err, logical.ErrCorrupt):
			uid, rest, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), s.prefix+"data/"), "/")
			out.Unreadable = append(out.Unreadable, logical.Unreadable{
				Resource: s.kinds[kind].Resource, Cluster: logical.Root, Object: rest, Reason: fmt.Sprintf("in the releases of the mesh with UID %s: %v", uid, err),
			})
			return true, nil
		case err != nil:
			return false, fmt.Errorf("rewriting %s: %w", kv.Key, err)
		case wrote:
			out.Rewritten++
		default:
			out.Current++
		}
		return true, nil
	})
	return out, err
}

// entries visits what is stored of the kinds of some resources, or of all, until visit says no more.
func (s *Store) entries(ctx context.Context, from string, resources []schema.GroupResource, options []clientv3.OpOption, visit func(kv *mvccpb.KeyValue, kind int) (bool, error)) error {
	prefix := s.prefix + "data/"
	options = append(options, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(rewritePage))
	for from = max(from, prefix); ; {
		page, err := s.client.Get(ctx, from, options...)
		if err != nil {
			return fmt.Errorf("reading the releases: %w", err)
		}
		for _, kv := range page.Kvs {
			kind, known := s.kindOf(strings.TrimPrefix(string(kv.Key), prefix))
			if !known || len(resources) > 0 && !slices.Contains(resources, s.kinds[kind].Resource) {
				continue // of a version of vmesh that has more kinds: its key is not known here
			}
			if more, err := visit(kv, kind); err != nil || !more {
				return err
			}
		}
		if !page.More {
			return nil
		}
		from = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
	}
}

// kindOf is the kind of an entry by its key, UID/base/KIND/... or UID/log/GEN/KIND/....
func (s *Store) kindOf(key string) (kind int, known bool) {
	parts := strings.SplitN(key, "/", 5)
	at := 2
	if len(parts) > 1 && parts[1] == "log" {
		at = 3
	}
	if len(parts) <= at {
		return 0, false
	}
	kind, known = s.byName[parts[at]]
	return kind, known
}

const (
	// rewritePage is how many entries are read at once.
	rewritePage = 100
	// rewriteAttempts is how often one is tried again that others write meanwhile.
	rewriteAttempts = 10
)

// rewrite writes an entry again if it has to be. It is one transaction that holds only if the
// entry is as it was read: whoever moves or deletes it does not mind.
func (s *Store) rewrite(ctx context.Context, kv *mvccpb.KeyValue, kind int) (wrote bool, err error) {
	t := s.transform(s.kinds[kind].Resource)
	if t == nil {
		return false, nil
	}
	key := string(kv.Key)
	for range rewriteAttempts {
		if len(kv.Value) == 0 {
			return false, nil // an absence
		}
		at := value.DefaultContext(kv.Key)
		data, stale, err := t.TransformFromStorage(ctx, kv.Value, at)
		if err != nil || !stale {
			return false, err
		}
		stored, err := t.TransformToStorage(ctx, data, at)
		if err != nil {
			return false, err
		}
		resp, err := s.client.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(key), "=", kv.ModRevision)).
			Then(clientv3.OpPut(key, string(stored))).
			Else(clientv3.OpGet(key)).Commit()
		if err != nil || resp.Succeeded {
			return err == nil, err
		}
		now := resp.Responses[0].GetResponseRange().Kvs
		if len(now) == 0 {
			return false, nil // moved or deleted meanwhile
		}
		kv = now[0]
	}
	return false, errors.New("others write it all the time: try again later")
}
