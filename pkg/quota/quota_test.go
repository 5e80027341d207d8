package quota

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"

	"github.com/vmesh-io/vmesh/pkg/apis/builtin"
	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// etcd is what all servers share: objects by key, and the log of their changes.
type etcd struct {
	mu       sync.Mutex
	revision uint64
	objects  map[string]*object.Object
	log      []change
	// created, if set, is called with the lock held, after each creation.
	created func()
}

type change struct {
	prefix   string
	event    watch.EventType
	object   *object.Object
	revision uint64
}

func (e *etcd) put(prefix, key string, o *object.Object) *object.Object {
	e.revision++
	stored := o.DeepCopy()
	stored.ResourceVersion = strconv.FormatUint(e.revision, 10)
	event := watch.Modified
	if e.objects[key] == nil {
		event = watch.Added
	}
	e.objects[key] = stored
	e.log = append(e.log, change{prefix, event, stored, e.revision})
	if event == watch.Added && e.created != nil {
		e.created()
	}
	return stored
}

func (e *etcd) remove(prefix, key string) *object.Object {
	old := e.objects[key].DeepCopy()
	e.revision++
	delete(e.objects, key)
	old.ResourceVersion = strconv.FormatUint(e.revision, 10)
	e.log = append(e.log, change{prefix, watch.Deleted, old, e.revision})
	return old
}

// under are the objects whose keys begin so.
func (e *etcd) under(prefix string) []*object.Object {
	var out []*object.Object
	for key, o := range e.objects {
		if strings.HasPrefix(key, prefix) {
			out = append(out, o)
		}
	}
	return out
}

// store is a resource in an etcd.
type store struct {
	storage.Interface
	*etcd
	prefix string
	pause  func() // between steps that others may come between
	listed func() // while a list is on its way
	fail   error  // what creations end with
}

func (s *store) Create(_ context.Context, key string, obj, out runtime.Object, _ uint64) error {
	s.pause()
	defer s.pause()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	if s.objects[key] != nil {
		return storage.NewKeyExistsError(key, 0)
	}
	*out.(*object.Object) = *s.put(s.prefix, key, obj.(*object.Object)).DeepCopy()
	return nil
}

func (s *store) GuaranteedUpdate(_ context.Context, key string, out runtime.Object, ignoreNotFound bool, _ *storage.Preconditions,
	tryUpdate storage.UpdateFunc, _ runtime.Object) error {
	for {
		s.pause()
		s.mu.Lock()
		before := s.objects[key]
		s.mu.Unlock()
		in := &object.Object{}
		if before != nil {
			in = before.DeepCopy()
		} else if !ignoreNotFound {
			return storage.NewKeyNotFoundError(key, 0)
		}
		obj, _, err := tryUpdate(in, storage.ResponseMeta{})
		if err != nil {
			return err
		}
		s.pause()
		s.mu.Lock()
		if s.objects[key] != before {
			s.mu.Unlock()
			continue
		}
		*out.(*object.Object) = *s.put(s.prefix, key, obj.(*object.Object)).DeepCopy()
		s.mu.Unlock()
		s.pause()
		return nil
	}
}

func (s *store) Delete(_ context.Context, key string, out runtime.Object, _ *storage.Preconditions, _ storage.ValidateObjectFunc, _ runtime.Object, _ storage.DeleteOptions) error {
	s.pause()
	defer s.pause()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objects[key] == nil {
		return storage.NewKeyNotFoundError(key, 0)
	}
	*out.(*object.Object) = *s.remove(s.prefix, key)
	return nil
}

func (s *store) GetList(_ context.Context, key string, _ storage.ListOptions, list runtime.Object) error {
	s.mu.Lock()
	items := s.under(key + "/")
	s.mu.Unlock()
	s.listed() // what is answered may be old when it arrives
	for _, o := range items {
		list.(*object.List).Items = append(list.(*object.List).Items, *o)
	}
	return nil
}

// server counts for the virtual cluster "shop", which has limits.
type server struct {
	t      *testing.T
	etcd   *etcd
	limits atomic.Pointer[Limits]
	keeper *Keeper
	kinds  map[string]*kind.Kind
	stores map[string]storage.Interface
	inner  map[string]*store
	told   int // of the log
}

func newServer(t *testing.T) *server {
	t.Helper()
	all, err := builtin.Kinds()
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, etcd: &etcd{objects: map[string]*object.Object{}}, kinds: map[string]*kind.Kind{}, stores: map[string]storage.Interface{}, inner: map[string]*store{}}
	s.keeper = New(func(_ context.Context, cluster string) (*Limits, error) {
		switch cluster {
		case "shop":
			return s.limits.Load(), nil
		case "unknown":
			return nil, errors.New("etcd is away")
		}
		return nil, nil
	})
	for _, k := range all {
		if name := k.GroupResource().String(); name == "configmaps" || name == "namespaces" {
			s.kinds[name] = k
			s.inner[name] = &store{etcd: s.etcd, prefix: logical.ResourcePrefix(k.GroupResource()), pause: func() {}, listed: func() {}}
			s.stores[name] = s.keeper.Count(k, s.inner[name])
		}
	}
	return s
}

func number(n int64) *int64 { return &n }

// observe tells up to n changes that have not been told; all when n is negative.
func (s *server) observe(n int) {
	s.etcd.mu.Lock()
	fresh := s.etcd.log[s.told:]
	s.etcd.mu.Unlock()
	for _, c := range fresh {
		if n == 0 {
			return
		}
		n--
		s.told++
		for _, k := range s.kinds {
			o := s.keeper.Observer(k.GroupResource())
			if logical.ResourcePrefix(k.GroupResource()) == c.prefix {
				o.Changed(c.event, c.object, c.revision)
			} else {
				o.Progressed(c.revision)
			}
		}
	}
}

// relist tells the whole state instead of the changes that have not been told, as watches
// do that have lost them.
func (s *server) relist() {
	s.etcd.mu.Lock()
	states := map[string][]*object.Object{}
	for name, inner := range s.inner {
		states[name] = s.etcd.under(inner.prefix + "/")
	}
	revision := s.etcd.revision
	s.told = len(s.etcd.log)
	s.etcd.mu.Unlock()
	for name, items := range states {
		s.keeper.Observer(s.kinds[name].GroupResource()).Replaced(items, revision)
	}
}

func (s *server) configMap(name string, size int) *object.Object {
	o := object.New(schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"})
	o.Namespace, o.Name = "default", name
	o.SetCluster("shop")
	if err := o.SetContent(map[string]any{"data": map[string]any{"a": strings.Repeat("x", size)}}); err != nil {
		s.t.Fatal(err)
	}
	return o
}

func key(name string) string { return "/core/configmaps/shop/default/" + name }

func shop() context.Context { return logical.WithCluster(context.Background(), "shop") }

func (s *server) create(ctx context.Context, name string, size int) error {
	return s.stores["configmaps"].Create(ctx, key(name), s.configMap(name, size), &object.Object{}, 0)
}

func (s *server) update(ctx context.Context, name string, size int) error {
	return s.stores["configmaps"].GuaranteedUpdate(ctx, key(name), &object.Object{}, true, nil,
		func(in runtime.Object, _ storage.ResponseMeta) (runtime.Object, *uint64, error) {
			return s.configMap(name, size), nil, nil
		}, nil)
}

func (s *server) delete(name string) error {
	return s.stores["configmaps"].Delete(shop(), key(name), &object.Object{}, nil, nil, nil, storage.DeleteOptions{})
}

func (s *server) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// foreign is a write by another server; with a negative size it deletes.
func (s *server) foreign(name string, size int) {
	s.etcd.mu.Lock()
	defer s.etcd.mu.Unlock()
	if size < 0 {
		s.etcd.remove(s.inner["configmaps"].prefix, key(name))
		return
	}
	s.etcd.put(s.inner["configmaps"].prefix, key(name), s.configMap(name, size))
}

// known is what the ledger has, by resource and name, when all has been told.
func (s *server) known() map[string]int64 {
	out := map[string]int64{}
	found, ok := s.keeper.ledgers.Load("shop")
	if !ok {
		return out
	}
	l := found.(*ledger)
	l.mu.Lock()
	defer l.mu.Unlock()
	sum := usage{kinds: make([]int64, len(s.keeper.resources))}
	for key, e := range l.entries {
		name := s.keeper.resources[key.resource].name + " " + key.name
		if e.gone {
			s.t.Errorf("%s is remembered as deleted, though its watch has told so", name)
			continue
		}
		out[name] = e.size
		sum.add(key.resource, 1, e.size)
	}
	for which, u := range map[string]usage{"stored": l.stored, "charged": l.charged} {
		if u.objects != sum.objects || u.bytes != sum.bytes || !slices.Equal(u.kinds, sum.kinds) {
			s.t.Errorf("%s is %+v, the entries are %+v", which, u, sum)
		}
	}
	if len(l.pending) > 0 {
		s.t.Errorf("pending: %v", l.pending)
	}
	return out
}

// stored is what there is.
func (s *server) stored() map[string]int64 {
	s.etcd.mu.Lock()
	defer s.etcd.mu.Unlock()
	out := map[string]int64{}
	for _, c := range s.keeper.resources {
		for _, o := range s.etcd.under(c.prefix + "/shop/") {
			out[c.name+" "+c.nameOf(o)] = c.size(o)
		}
	}
	return out
}

func TestWritesAreHeldAgainstAQuota(t *testing.T) {
	s := newServer(t)
	if err := s.create(shop(), "before", 100); err != nil { // without a quota
		t.Fatal(err)
	}
	one := s.stored()["configmaps default/before"]
	set := func(l Limits) func() { return func() { s.limits.Store(&l) } }
	for _, c := range []struct {
		name   string
		do     func() error
		limits func()
		want   string // the end of the error
	}{
		{name: "one fits", limits: set(Limits{Objects: number(2)}), do: func() error { return s.create(shop(), "a", 1) }},
		{name: "another does not", do: func() error { return s.create(shop(), "b", 1) }, want: "requested: objects=1, used: objects=2, limited: objects=2"},
		{name: "nor by an update that creates", do: func() error { return s.update(shop(), "b", 1) }, want: "requested: objects=1, used: objects=2, limited: objects=2"},
		{name: "what is there can grow", do: func() error { return s.update(shop(), "a", 50) }},
		{name: "what exists says so", do: func() error {
			if err := s.create(shop(), "a", 1); !storage.IsExist(err) {
				return fmt.Errorf("got %v", err)
			}
			return nil
		}},
		{name: "a deletion makes room at once", do: func() error { return errors.Join(s.delete("a"), s.create(shop(), "b", 1)) }},
		{name: "a kind has a limit of its own", limits: set(Limits{Kinds: map[string]int64{"configmaps": 2, "namespaces": 0}}),
			do: func() error { return s.create(shop(), "c", 1) }, want: "requested: configmaps=1, used: configmaps=2, limited: configmaps=2"},
		{name: "another kind's is not asked", limits: set(Limits{Kinds: map[string]int64{"namespaces": 0}}), do: func() error { return s.create(shop(), "c", 1) }},
		{name: "the server's own are never refused", limits: set(Limits{Objects: number(0)}), do: func() error { return s.create(Exempt(shop()), "d", 1) }},
		{name: "below what there is nothing is made", do: func() error { return s.create(shop(), "e", 1) }, want: "requested: objects=1, used: objects=4, limited: objects=0"},
		{name: "but deleted", do: func() error { return errors.Join(s.delete("b"), s.delete("c"), s.delete("d")) }},
		{name: "bytes are those that are stored", limits: set(Limits{Bytes: number(one)}), do: func() error { return s.update(shop(), "before", 100) }},
		{name: "not one more", do: func() error { return s.update(shop(), "before", 101) },
			want: fmt.Sprintf("requested: bytes=1, used: bytes=%d, limited: bytes=%d", one, one)},
		{name: "over the limit it may shrink", limits: set(Limits{Bytes: number(10)}), do: func() error { return s.update(shop(), "before", 90) }},
		{name: "and stay", do: func() error { return s.update(shop(), "before", 90) }},
		{name: "and grow by the server's own hand", do: func() error { return s.update(Exempt(shop()), "before", 95) }},
		{name: "and not otherwise", do: func() error { return s.update(shop(), "before", 96) },
			want: fmt.Sprintf("requested: bytes=1, used: bytes=%d, limited: bytes=10", one-5)},
		{name: "all that is exceeded is named", limits: set(Limits{Objects: number(1), Bytes: number(10), Kinds: map[string]int64{"configmaps": 1}}),
			do: func() error { return s.create(shop(), "f", 100-len("before")+1+len("f")+3) }, want: "limited: configmaps=1,objects=1,bytes=10"},
		{name: "what failed takes nothing", limits: set(Limits{Objects: number(2)}), do: func() error {
			s.inner["configmaps"].fail = errors.New("etcd is away")
			err := s.create(shop(), "g", 1)
			s.inner["configmaps"].fail = nil
			if err == nil || err.Error() != "etcd is away" {
				return fmt.Errorf("got %v", err)
			}
			return s.create(shop(), "h", 1)
		}},
		{name: "another virtual cluster has none", do: func() error {
			o := s.configMap("a", 1)
			o.SetCluster("other")
			return s.stores["configmaps"].Create(logical.WithCluster(context.Background(), "other"), "/core/configmaps/other/default/a", o, &object.Object{}, 0)
		}},
		{name: "of one that cannot be looked up nothing is written", do: func() error {
			o := s.configMap("a", 1)
			err := s.stores["configmaps"].Create(logical.WithCluster(context.Background(), "unknown"), "/core/configmaps/unknown/default/a", o, &object.Object{}, 0)
			if err == nil || err.Error() != "etcd is away" || len(s.etcd.under("/core/configmaps/unknown/")) > 0 {
				return fmt.Errorf("got %v", err)
			}
			return nil
		}},
		{name: "and without one all goes", limits: func() { s.limits.Store(nil) }, do: func() error { return s.create(shop(), "i", 1) }},
	} {
		if c.limits != nil {
			c.limits()
		}
		err := c.do()
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `is forbidden: exceeded quota: virtual cluster "shop", requested: `) || !strings.HasSuffix(err.Error(), c.want)):
			t.Errorf("%s: got %v, want %s", c.name, err, c.want)
		}
		s.observe(-1)
		if known, stored := s.known(), s.stored(); len(known) > 0 && !maps.Equal(known, stored) {
			t.Errorf("%s: the ledger has %v, stored is %v", c.name, known, stored)
		}
	}
}

func TestACheckTakesNothing(t *testing.T) {
	s := newServer(t)
	s.limits.Store(&Limits{Objects: number(1)})
	gr := schema.GroupResource{Resource: "configmaps"}
	for range 3 {
		if err := s.keeper.Check(shop(), gr, s.configMap("a", 1), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.create(shop(), "a", 1); err != nil {
		t.Fatal(err)
	}
	if err := s.keeper.Check(shop(), gr, s.configMap("b", 1), nil); !apierrors.IsForbidden(err) {
		t.Errorf("one too many: %v", err)
	}
	s.known()
}

func TestUsageTellsWhatIsLimitedAndAnnouncesChangesOnce(t *testing.T) {
	s := newServer(t)
	var announced []string
	s.keeper.OnChange(func(cluster string) { announced = append(announced, cluster) })
	bytes := resource.MustParse("1Ki")
	limits := LimitsOf(&v1alpha1.VirtualClusterQuota{Objects: number(5), Bytes: &bytes, Kinds: map[string]v1alpha1.ObjectCount{"configmaps": 3, "namespaces": 1}})
	if *limits.Bytes != 1024 {
		t.Errorf("1Ki is %d", *limits.Bytes)
	}
	s.limits.Store(limits)
	usage := func(l *Limits) *v1alpha1.VirtualClusterUsage {
		u, err := s.keeper.Usage(shop(), "shop", l)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	if u := usage(limits); *u.Objects != 0 || *u.Bytes != 0 || len(u.Kinds) != 2 || u.Kinds["configmaps"] != 0 {
		t.Errorf("at first: %+v", u)
	}
	for _, name := range []string{"a", "b"} {
		if err := s.create(shop(), name, 1); err != nil {
			t.Fatal(err)
		}
	}
	s.observe(-1)
	if len(announced) != 1 {
		t.Errorf("announced %v", announced)
	}
	if u := usage(limits); *u.Objects != 2 || *u.Bytes != 2*s.stored()["configmaps default/a"] || u.Kinds["configmaps"] != 2 {
		t.Errorf("then: %+v", u)
	}
	if err := s.delete("a"); err != nil {
		t.Fatal(err)
	}
	if len(announced) != 2 {
		t.Errorf("announced %v", announced)
	}
	if u := usage(&Limits{Objects: number(1)}); *u.Objects != 1 || u.Bytes != nil || u.Kinds != nil {
		t.Errorf("with another limit: %+v", u)
	}
	if u := usage(nil); u != nil || s.keeper.open.Load() != 0 {
		t.Errorf("without limits: %+v, and %d ledgers", u, s.keeper.open.Load())
	}
	if LimitsOf(&v1alpha1.VirtualClusterQuota{}) != nil || LimitsOf(nil) != nil {
		t.Error("an empty quota limits")
	}
}

func TestWhatHappensWhileTheLedgerIsFilledCounts(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(s *server)
	}{
		{"nothing", func(*server) {}},
		{"this server deletes", func(s *server) { s.must(s.delete("a")) }},
		{"this server deletes, and the watch tells", func(s *server) { s.must(s.delete("a")); s.observe(-1) }},
		{"another server deletes, and the watch tells", func(s *server) { s.foreign("a", -1); s.observe(-1) }},
		{"another server deletes, and the watch begins anew", func(s *server) { s.foreign("a", -1); s.relist() }},
		{"another server creates, and the watch tells", func(s *server) { s.foreign("b", 70); s.observe(-1) }},
		{"another server creates, and the watch begins anew", func(s *server) { s.foreign("b", 70); s.relist() }},
		{"another server updates, and the watch tells", func(s *server) { s.foreign("a", 70); s.observe(-1) }},
		{"another server deletes and creates, and the watch tells the half", func(s *server) { s.foreign("a", -1); s.foreign("a", 70); s.observe(1) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(t)
			s.foreign("a", 10)
			s.observe(-1)
			s.limits.Store(&Limits{Objects: number(9)})
			s.inner["configmaps"].listed = sync.OnceFunc(func() { c.do(s) })
			if _, err := s.keeper.Usage(shop(), "shop", s.limits.Load()); err != nil {
				t.Fatal(err)
			}
			s.observe(-1)
			if known, stored := s.known(), s.stored(); !maps.Equal(known, stored) {
				t.Errorf("the ledger has %v, stored is %v", known, stored)
			}
		})
	}
}

// jitter makes goroutines come between one another's steps.
func jitter() func() {
	return func() {
		if rand.IntN(3) == 0 {
			for range rand.IntN(20) {
				goruntime.Gosched()
			}
		}
	}
}

func TestParallelWritesNeverExceedALimit(t *testing.T) {
	const limit, writers = 10, 50
	s := newServer(t)
	s.inner["configmaps"].pause = jitter()
	s.limits.Store(&Limits{Kinds: map[string]int64{"configmaps": limit}})
	most := 0
	s.etcd.created = func() { most = max(most, len(s.etcd.objects)) }

	stop, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case <-stop:
				return
			default:
				s.observe(rand.IntN(3))
				goruntime.Gosched()
			}
		}
	}()
	var created, refused atomic.Int64
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			err := s.create(shop(), fmt.Sprintf("c%d", i), i)
			switch {
			case err == nil:
				created.Add(1)
			case apierrors.IsForbidden(err):
				refused.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if created.Load() != limit || refused.Load() != writers-limit || most != limit {
		t.Errorf("%d created, %d refused, %d at once; the limit is %d", created.Load(), refused.Load(), most, limit)
	}
	// And while objects come, go, and come again under the same names.
	for range writers {
		wg.Go(func() {
			for range 30 {
				name := fmt.Sprintf("c%d", rand.IntN(2*limit))
				var err error
				switch rand.IntN(4) {
				case 0:
					err = s.create(shop(), name, rand.IntN(100))
				case 1:
					err = s.update(shop(), name, rand.IntN(100))
				default:
					err = s.delete(name)
				}
				if err != nil && !apierrors.IsForbidden(err) && !storage.IsExist(err) && !storage.IsNotFound(err) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	<-watched
	s.observe(-1)
	if most > limit {
		t.Errorf("%d at once; the limit is %d", most, limit)
	}
	if known, stored := s.known(), s.stored(); !maps.Equal(known, stored) {
		t.Errorf("the ledger has %v, stored is %v", known, stored)
	}
}

func TestTheLedgerComesToAgreeWithWhatIsStored(t *testing.T) {
	for seed := range uint64(400) {
		s := newServer(t)
		random := rand.New(rand.NewPCG(seed, 1))
		s.limits.Store(&Limits{Objects: number(2), Bytes: number(800)})
		depth := 0
		// While one write, or the list that begins the ledger, is under way, other things
		// happen. The list holds up all writes of this server but deletions.
		const all, unheld = 9, 5
		var step func(kinds int)
		pause := func(kinds int) func() {
			return func() {
				if depth++; depth < 3 && random.IntN(2) == 0 {
					for range random.IntN(6) {
						step(kinds)
					}
				}
				depth--
			}
		}
		filling := false
		step = func(kinds int) {
			if filling {
				kinds = unheld
			}
			name := fmt.Sprintf("c%d", random.IntN(3))
			switch all - 1 - random.IntN(kinds) {
			case 0, 1, 2:
				_ = s.create(shop(), name, random.IntN(500)) // the quota may refuse it
			case 3:
				if random.IntN(5) == 0 {
					if _, err := s.keeper.Usage(shop(), "shop", nil); err != nil {
						t.Fatal(err)
					}
				}
				_ = s.update(shop(), name, random.IntN(500))
			case 4:
				_ = s.delete(name)
			case 5: // another server's
				if s.etcd.objects[key(name)] != nil && random.IntN(2) == 0 {
					s.foreign(name, -1)
				} else {
					s.foreign(name, random.IntN(500))
				}
			case 6, 7:
				s.observe(random.IntN(4))
			case 8:
				s.relist()
			}
		}
		for _, inner := range s.inner {
			inner.pause = pause(all)
			inner.listed = func() {
				filling = true
				pause(unheld)()
				filling = false
			}
		}
		for range 60 {
			step(all)
		}
		for _, inner := range s.inner {
			inner.pause, inner.listed = func() {}, func() {}
		}
		s.observe(-1)
		if _, err := s.keeper.Usage(shop(), "shop", s.limits.Load()); err != nil {
			t.Fatal(err)
		}
		if known, stored := s.known(), s.stored(); !maps.Equal(known, stored) {
			t.Fatalf("seed %d: the ledger has %v, stored is %v", seed, known, stored)
		}
	}
}
