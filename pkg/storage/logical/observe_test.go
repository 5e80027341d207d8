package logical

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// recorder is an Observer that turns what it is told into texts.
type recorder struct {
	t        testing.TB
	told     chan string
	progress chan uint64
	block    func() // called in Changed
}

func (r *recorder) Replaced(items []*object.Object, _ uint64) {
	texts := []string{"REPLACED"}
	for _, o := range items {
		texts = append(texts, o.Cluster()+":"+join(o.Namespace, o.Name)+"="+text(o))
	}
	r.told <- strings.Join(texts, " ")
}

func (r *recorder) Changed(t watch.EventType, o *object.Object, _ uint64) {
	r.told <- fmt.Sprintf("%s %s:%s=%s", t, o.Cluster(), join(o.Namespace, o.Name), text(o))
	if r.block != nil {
		r.block()
	}
}

func (r *recorder) Progressed(revision uint64) {
	select {
	case r.progress <- revision:
	default:
	}
}

func (r *recorder) next() string {
	r.t.Helper()
	select {
	case s := <-r.told:
		return s
	case <-time.After(testTimeout):
		r.t.Fatal("nothing was told")
		return ""
	}
}

func (r *recorder) expect(told ...string) {
	r.t.Helper()
	for _, want := range told {
		if got := r.next(); got != want {
			r.t.Fatalf("told %q, want %q", got, want)
		}
	}
}

func observe(t testing.TB, b *Backend, gr schema.GroupResource) *recorder {
	t.Helper()
	r := &recorder{t: t, told: make(chan string, 1<<20), progress: make(chan uint64, 1)}
	run(t, b, gr, r)
	return r
}

// run observes until the test ends.
func run(t testing.TB, b *Backend, gr schema.GroupResource, o Observer) {
	runAs(t, b.Observe, gr, o)
}

func runAs(t testing.TB, observe func(context.Context, schema.GroupResource, Observer) error, gr schema.GroupResource, o Observer) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- observe(ctx, gr, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) && !errors.Is(err, ErrClosed) {
			t.Errorf("observing ended with %v", err)
		}
	})
}

func TestAnObserverIsToldTheStateAndThenEveryChange(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	if _, err := b.Open(configMaps); err != nil {
		t.Fatal(err)
	}
	early := observe(t, b, configMaps.GroupResource) // most likely before the first list
	s := openResource(t, b, configMaps)
	early.expect("REPLACED")
	a, other := cluster{t: t, s: s, r: configMaps, name: "a"}, cluster{t: t, s: s, r: configMaps, name: "b"}
	a.create("default", "x", "1")
	other.create("default", "x", "1")
	a.update("default", "x", "2")
	early.expect("ADDED a:default/x=1", "ADDED b:default/x=1", "MODIFIED a:default/x=2")

	late := observe(t, b, configMaps.GroupResource)
	late.expect("REPLACED a:default/x=2 b:default/x=1")
	other.delete("default", "x")
	a.create("default", "y", "1")
	for _, o := range []*recorder{early, late} {
		o.expect("DELETED b:default/x=1", "ADDED a:default/y=1")
	}
}

func TestAnObserverThatBeginsAmongWritesMissesNothing(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	s := openResource(t, b, configMaps)
	const writers, writes = 4, 200
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			c := cluster{t: t, s: s, r: configMaps, name: fmt.Sprint("c", w)}
			for i := range writes {
				c.create("default", fmt.Sprint("x", i), "")
			}
		})
	}
	var observers []*counter
	for range 8 {
		o := &counter{t: t, done: make(chan struct{}), want: writers * writes, have: map[string]bool{}}
		observers = append(observers, o)
		run(t, b, configMaps.GroupResource, o)
		time.Sleep(time.Millisecond) // they are to begin at different times
	}
	wg.Wait()
	for i, o := range observers {
		select {
		case <-o.done:
		case <-time.After(testTimeout):
			t.Fatalf("observer %d was told of %d of %d", i, len(o.have), o.want)
		}
	}
}

// counter waits until it knows a number of objects, and checks the order of revisions.
type counter struct {
	t        testing.TB
	want     int
	have     map[string]bool
	revision uint64
	done     chan struct{}
}

func (c *counter) Replaced(items []*object.Object, revision uint64) {
	clear(c.have)
	for _, o := range items {
		c.have[o.Cluster()+"/"+o.Name] = true
	}
	c.progress(revision)
}

func (c *counter) Changed(_ watch.EventType, o *object.Object, revision uint64) {
	c.have[o.Cluster()+"/"+o.Name] = true
	c.progress(revision)
}

func (c *counter) Progressed(revision uint64) { c.progress(revision) }

func (c *counter) progress(revision uint64) {
	if revision < c.revision {
		c.t.Errorf("revision %d comes after %d", revision, c.revision)
	}
	c.revision = revision
	if len(c.have) == c.want {
		close(c.done)
		c.want = -1
	}
}

// reader is an Observer that reads the watch cache when it is told something.
type reader struct {
	recorder
	read func(o *object.Object) string
}

func (r *reader) Changed(t watch.EventType, o *object.Object, _ uint64) {
	r.told <- text(o) + " " + r.read(o)
}

func TestWhatACachedObserverIsToldTheWatchCacheHas(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	s := openResource(t, b, configMaps)
	a := cluster{t: t, s: s, r: configMaps, name: "a"}
	inCache := s.(*store).cacher
	o := &reader{recorder: recorder{t: t, told: make(chan string, 1<<20)}, read: func(o *object.Object) string {
		key, err := s.(*store).codec.key(s.(*store).resourcePrefix, o)
		if err != nil {
			return err.Error()
		}
		out := s.(*store).codec.newObject().(*object.Object)
		if err := inCache.Get(context.Background(), key, storage.GetOptions{ResourceVersion: "0"}, out); err != nil {
			return err.Error()
		}
		return text(out)
	}}
	runAs(t, b.ObserveCached, configMaps.GroupResource, o)
	o.expect("REPLACED")
	a.create("default", "x", "0")
	o.expect("0 0")
	for i := 1; i < 300; i++ {
		a.update("default", "x", fmt.Sprint(i))
		told, read, _ := strings.Cut(o.next(), " ")
		if told != read {
			t.Fatalf("told %s, the watch cache has %s", told, read)
		}
	}
}

func TestAnObserverThatIsTooSlowIsGivenTheStateInstead(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	s := openResource(t, b, configMaps)
	a := cluster{t: t, s: s, r: configMaps, name: "a"}
	blocked, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	o := &recorder{t: t, told: make(chan string, 10), block: func() {
		once.Do(func() { close(blocked); <-release })
	}}
	run(t, b, configMaps.GroupResource, o)
	o.expect("REPLACED")
	created := a.create("default", "x", "1")
	o.expect("ADDED a:default/x=1")
	<-blocked
	a.update("default", "x", "2")
	feed := s.(*store).feed
	for range maxNotices + 1 {
		feed.changed(watch.Modified, created) // of a revision that it knows
	}
	close(release)
	o.expect("REPLACED a:default/x=2")
	a.update("default", "x", "3")
	o.expect("MODIFIED a:default/x=3")
}

func TestAnObserverIsGivenTheStateAgainAfterARelist(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	s := openResource(t, b, configMaps)
	a := cluster{t: t, s: s, r: configMaps, name: "a"}
	o := observe(t, b, configMaps.GroupResource)
	o.expect("REPLACED")
	a.create("default", "x", "1")
	o.expect("ADDED a:default/x=1")

	// The watch cache lists page by page when it cannot begin with a watch.
	feed := s.(*store).feed
	all := WithAllClusters(testContext(t))
	for i := range 3 {
		a.create("default", fmt.Sprint("y", i), "1")
		o.next()
	}
	token := ""
	for range 2 {
		l := feed.codec.newList().(*object.List)
		opts := storageEverything()
		opts.Predicate.Limit, opts.Predicate.Continue = 2, token
		if err := feed.GetList(all, feed.resourcePrefix, opts, l); err != nil {
			t.Fatal(err)
		}
		token = l.Continue
	}
	o.expect("REPLACED a:default/x=1 a:default/y0=1 a:default/y1=1 a:default/y2=1")
}

func TestAnObserverIsToldOfProgress(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	s := openResource(t, b, configMaps)
	o := observe(t, b, configMaps.GroupResource)
	o.expect("REPLACED")
	resp, err := b.config.Client.Put(testContext(t), "/elsewhere", "x")
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(testTimeout); ; {
		if err := s.RequestWatchProgress(testContext(t)); err != nil {
			t.Fatal(err)
		}
		select {
		case revision := <-o.progress:
			if revision >= uint64(resp.Header.Revision) {
				return
			}
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatal("no progress was told")
		}
	}
}

func TestObservingEnds(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	o := &recorder{t: t, told: make(chan string, 10)}
	if err := b.Observe(testContext(t), configMaps.GroupResource, o); err == nil {
		t.Error("a resource that is not open is observed")
	}
	openResource(t, b, configMaps)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.Observe(ctx, configMaps.GroupResource, o); !errors.Is(err, context.Canceled) {
		t.Errorf("with its context: got %v", err)
	}
	done := make(chan error)
	go func() { done <- b.Observe(testContext(t), configMaps.GroupResource, o) }()
	o.expect("REPLACED")
	b.Close()
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("with the backend: got %v", err)
	}
	if err := b.Observe(testContext(t), configMaps.GroupResource, o); !errors.Is(err, ErrClosed) {
		t.Errorf("after the backend: got %v", err)
	}
	if _, err := b.Open(configMaps); !errors.Is(err, ErrClosed) {
		t.Errorf("opening after the backend: got %v", err)
	}
}
