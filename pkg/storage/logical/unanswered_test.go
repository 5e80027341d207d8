package logical

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// sickEtcd fails at what it is told to.
type sickEtcd struct {
	clientv3.KV
	reads, writes atomic.Pointer[error]
	late          atomic.Bool // writes fail after they were done
	asked         atomic.Int64
}

func (s *sickEtcd) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if err := s.reads.Load(); err != nil {
		return nil, *err
	}
	return s.KV.Get(ctx, key, opts...)
}

func (s *sickEtcd) Txn(ctx context.Context) clientv3.Txn { return &sickTxn{s.KV.Txn(ctx), s} }

type sickTxn struct {
	clientv3.Txn
	etcd *sickEtcd
}

func (t *sickTxn) If(c ...clientv3.Cmp) clientv3.Txn  { t.Txn = t.Txn.If(c...); return t }
func (t *sickTxn) Then(o ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Then(o...); return t }
func (t *sickTxn) Else(o ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Else(o...); return t }

func (t *sickTxn) Commit() (*clientv3.TxnResponse, error) {
	t.etcd.asked.Add(1)
	err := t.etcd.writes.Load()
	if err == nil {
		return t.Txn.Commit()
	}
	if t.etcd.late.Load() {
		if _, err := t.Txn.Commit(); err != nil {
			return nil, err
		}
	}
	return nil, *err
}

// recordConfigMaps records something of config maps.
type recordConfigMaps struct{}

func (recordConfigMaps) Records(gr schema.GroupResource) bool { return gr == configMaps.GroupResource }
func (recordConfigMaps) Content(o *object.Object) []byte      { return []byte(o.Name) }
func (recordConfigMaps) Recorded(string, int)                 {}
func (recordConfigMaps) Record(context.Context, RecordedChange, int) ([]byte, int) {
	return []byte("changed"), 7
}

// Whoever reads, or writes what surely was not done, is told to try again. Whoever
// writes what may have been done is told so, and not to try again by himself.
func TestAnEtcdThatDoesNotAnswerIsToldInTheAPIsWords(t *testing.T) {
	client := startEtcd(t, t.TempDir()).Client()
	etcd := &sickEtcd{KV: client.KV}
	client.KV = etcd
	b := newTestBackend(t, BackendConfig{Client: client, Recorder: recordConfigMaps{}})
	for _, r := range []Resource{configMaps, namespaces} {
		t.Run(r.GroupResource.Resource, func(t *testing.T) {
			namespace := ""
			if r.Namespaced {
				namespace = "ns"
			}
			c := cluster{t, openResource(t, b, r), r, "a"}
			c.create(namespace, "there", "1")
			get := func(name string) error {
				return c.s.Get(c.ctx(), c.key(namespace, name), storage.GetOptions{}, &object.Object{})
			}
			list := func(string) error {
				return c.s.GetList(c.ctx(), c.root()+"/", storage.ListOptions{Recursive: true, Predicate: storage.Everything}, &object.List{})
			}
			create := func(name string) error {
				return c.s.Create(c.ctx(), c.key(namespace, name), c.new(namespace, name, "1"), &object.Object{}, 0)
			}
			update := func(name string) error {
				_, err := c.tryUpdate(namespace, name, "2")
				return err
			}
			remove := func(name string) error {
				return c.s.Delete(c.ctx(), c.key(namespace, name), &object.Object{}, nil, storage.ValidateAllObjectFunc, nil, storage.DeleteOptions{})
			}
			const again, look = http.StatusServiceUnavailable, http.StatusGatewayTimeout
			for _, x := range []struct {
				name          string
				reads, writes error
				do            func(name string) error
				on            string
				code          int
				says          string
			}{
				{"a get, without a leader", rpctypes.ErrNoLeader, nil, get, "there", again, "no leader"},
				{"a get, as the leader is lost", rpctypes.ErrLeaderChanged, nil, get, "there", again, "leader changed"},
				{"a get, too slow", rpctypes.ErrTimeout, nil, get, "there", again, "timed out"},
				{"a get, with too much to do", rpctypes.ErrTooManyRequests, nil, get, "there", http.StatusTooManyRequests, "nothing was changed"},
				{"a history", rpctypes.ErrLeaderChanged, nil, func(string) error { _, _, _, err := b.History(c.ctx(), HistoryPage{Limit: 1}); return err }, "", again, "leader changed"},
				{"a history's beginning", rpctypes.ErrLeaderChanged, nil, func(string) error { _, err := b.HistoryHorizon(c.ctx()); return err }, "", again, "leader changed"},
				{"a count", rpctypes.ErrLeaderChanged, nil, func(string) error { _, err := b.Count(c.ctx(), c.name); return err }, "", again, "leader changed"},
				{"a list, as the connection is lost", status.Error(codes.Unavailable, "error reading from server: EOF"), nil, list, "", again, "EOF"},
				{"an update that cannot see what is there", rpctypes.ErrLeaderChanged, nil, update, "absent", again, "nothing was changed"},
				{"a deletion that cannot see what is there", rpctypes.ErrTimeoutDueToLeaderFail, nil, remove, "absent", again, "nothing was changed"},
				{"a creation without an answer", nil, rpctypes.ErrTimeoutDueToLeaderFail, create, "new", look, "previous leader failure"},
				{"an update without an answer", nil, rpctypes.ErrTimeout, update, "there", look, "see how things are"},
				{"a deletion without an answer", nil, status.Error(codes.Unavailable, "error reading from server: EOF"), remove, "there", look, "EOF"},
				{"a creation that takes too long", nil, context.DeadlineExceeded, create, "new", look, "deadline"},
				{"a creation that is refused at once", nil, rpctypes.ErrTooManyRequests, create, "new", http.StatusTooManyRequests, "nothing was changed"},
			} {
				t.Run(x.name, func(t *testing.T) {
					if x.reads != nil {
						etcd.reads.Store(&x.reads)
						defer etcd.reads.Store(nil)
					}
					if x.writes != nil {
						etcd.writes.Store(&x.writes)
						defer etcd.writes.Store(nil)
					}
					before := etcd.asked.Load()
					err := x.do(x.on)
					var said apierrors.APIStatus
					if !errors.As(err, &said) {
						t.Fatalf("got %v", err)
					}
					if s := said.Status(); int(s.Code) != x.code || !strings.Contains(s.Message, x.says) {
						t.Errorf("got %d %q", s.Code, s.Message)
					}
					if seconds, retry := apierrors.SuggestsClientDelay(err); retry != (x.code != look) || retry && seconds != 1 {
						t.Errorf("clients are told to try again: %t, in %d s", retry, seconds)
					}
					if n := etcd.asked.Load() - before; x.writes != nil && n != 1 {
						t.Errorf("etcd was asked to write %d times", n)
					}
				})
			}

			timeout := rpctypes.ErrTimeout
			etcd.writes.Store(&timeout)
			etcd.late.Store(true)
			err := create("done")
			etcd.writes.Store(nil)
			etcd.late.Store(false)
			if !apierrors.IsTimeout(err) || get("done") != nil {
				t.Errorf("a creation that was done without an answer: %v, and then %v", err, get("done"))
			}
			if err := get("absent"); !storage.IsNotFound(err) {
				t.Errorf("what is not there: %v", err)
			}
			gone, cancel := context.WithCancel(c.ctx())
			cancel()
			if err := c.s.Get(gone, c.key(namespace, "there"), storage.GetOptions{}, &object.Object{}); !errors.Is(err, context.Canceled) {
				t.Errorf("for who has gone: %v", err)
			}
		})
	}
}
