package logical

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/storage"
)

func TestAStreamingListIsTheStateABookmarkAndThenChanges(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	s := openResource(t, b, configMaps)
	a, other := cluster{t: t, s: s, r: configMaps, name: "a"}, cluster{t: t, s: s, r: configMaps, name: "b"}
	var want []string
	for i := range 5 {
		a.create("default", fmt.Sprint("x", i), "1")
		other.create("default", fmt.Sprint("x", i), "1")
		want = append(want, fmt.Sprintf("ADDED a default/x%d 1", i))
	}
	current := a.list("", storage.ListOptions{}).ResourceVersion
	yes := true
	for _, c := range []struct {
		name, revision string
	}{{"consistent", ""}, {"any", "0"}, {"not older than", current}} {
		t.Run(c.name, func(t *testing.T) {
			opts := storage.ListOptions{ResourceVersion: c.revision, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, SendInitialEvents: &yes, Recursive: true, Predicate: storage.Everything}
			opts.Predicate.AllowWatchBookmarks = true
			raw, err := s.Watch(a.ctx(), a.root(), opts)
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Stop()
			w := &watcher{t: t, w: raw}
			w.expect(want...)
			text, bookmark := w.next()
			if text != "SYNCED" || bookmark.ResourceVersion < current || bookmark.Kind != "ConfigMap" {
				t.Fatalf("the state ends with %s at revision %s, which is not %s", text, bookmark.ResourceVersion, current)
			}
			a.create("default", "new", c.name)
			other.create("default", "new", c.name)
			a.delete("default", "new")
			other.delete("default", "new")
			w.expect("ADDED a default/new "+c.name, "DELETED a default/new "+c.name)
			w.w.Stop()
			for e, _ := w.next(); e != "CLOSED"; e, _ = w.next() {
				if e != "BOOKMARK" {
					t.Errorf("after Stop: %s", e)
				}
			}
		})
	}
}

func TestSelectorsApplyToTheStateAndToChanges(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	s := openResource(t, b, configMaps)
	a := cluster{t: t, s: s, r: configMaps, name: "a"}
	with := func(name, label string) {
		o := a.new("default", name, "")
		o.Labels = map[string]string{"l": label}
		if err := s.Create(a.ctx(), a.key("default", name), o, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	with("x", "yes")
	with("y", "no")
	yes := true
	opts := storage.ListOptions{SendInitialEvents: &yes, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, Recursive: true}
	opts.Predicate = storage.SelectionPredicate{Label: labels.SelectorFromSet(labels.Set{"l": "yes"}), GetAttrs: storage.DefaultNamespaceScopedAttr, AllowWatchBookmarks: true}
	raw, err := s.Watch(a.ctx(), a.root(), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Stop()
	w := &watcher{t: t, w: raw}
	w.expect("ADDED a default/x ", "SYNCED")
	with("z", "no")
	with("w", "yes")
	w.expect("ADDED a default/w ")
}

func TestAWatchThatCannotBeginSaysWhy(t *testing.T) {
	e := startEtcd(t, t.TempDir())
	first := newTestBackend(t, BackendConfig{Client: e.Client()})
	a := cluster{t: t, s: openResource(t, first, configMaps), r: configMaps, name: "a"}
	old := a.create("default", "x", "1").ResourceVersion
	a.create("default", "y", "1")
	first.Close()

	// A watch cache that has just begun knows no history.
	b := newTestBackend(t, BackendConfig{Client: e.Client()})
	a.s = openResource(t, b, configMaps)
	if got, _ := a.watch(old).next(); got != "ERROR 410 Expired" {
		t.Errorf("from an old revision: got %s", got)
	}
	yes := true
	opts := storage.ListOptions{ResourceVersion: "999999", ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, SendInitialEvents: &yes, Recursive: true, Predicate: storage.Everything}
	raw, err := a.s.Watch(a.ctx(), a.root(), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Stop()
	if got, _ := (&watcher{t: t, w: raw}).next(); got != "ERROR 504 Timeout" {
		t.Errorf("from a revision to come: got %s", got)
	}
	opts.ResourceVersion = "junk"
	if _, err := a.s.Watch(a.ctx(), a.root(), opts); err == nil {
		t.Error("a revision that is none is taken")
	}
}

func TestAWatchEndsWithItsContext(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	a := cluster{t: t, s: openResource(t, b, configMaps), r: configMaps, name: "a"}
	for i := range 50 { // more than a watch buffers
		a.create("default", fmt.Sprint("x", i), "")
	}
	yes := true
	for _, initial := range []*bool{nil, &yes} {
		ctx, cancel := context.WithCancel(a.ctx())
		opts := storageEverything()
		if opts.SendInitialEvents = initial; initial != nil {
			opts.ResourceVersionMatch = metav1.ResourceVersionMatchNotOlderThan
		}
		w, err := a.s.Watch(ctx, a.root(), opts)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		deadline := time.After(testTimeout)
		for open := true; open; {
			select {
			case _, open = <-w.ResultChan():
			case <-deadline:
				t.Fatal("the watch goes on")
			}
		}
	}
}

func TestAConsistentListDoesNotWaitForOtherResources(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	a := cluster{t: t, s: openResource(t, b, configMaps), r: configMaps, name: "a"}
	a.create("default", "x", "1")
	var took []time.Duration
	for range 50 {
		if _, err := b.config.Client.Put(testContext(t), "/registry/elsewhere", "x"); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if l := a.list("", storage.ListOptions{}); len(l.Items) != 1 {
			t.Fatalf("listed %d", len(l.Items))
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	// Upstream's request for progress comes every 100 ms. Not the median: a busy machine delays most.
	if usual := took[len(took)/4]; usual > 50*time.Millisecond {
		t.Errorf("a list takes %v", usual)
	} else {
		t.Logf("a list takes %v", usual)
	}
}

func TestAReadSeesTheWritesBefore(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	s := openResource(t, b, configMaps)
	for worker := range 4 {
		c := cluster{t: t, s: s, r: configMaps, name: fmt.Sprint("c", worker)}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for i := range 100 {
				c.create("default", fmt.Sprint("x", i), "")
				if got := len(c.list("", storage.ListOptions{}).Items); got != i+1 {
					t.Fatalf("listed %d of %d", got, i+1)
				}
			}
		})
	}
}

func TestAnInitialListKeepsTheOrderOfKeys(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	a := cluster{t: t, s: openResource(t, b, configMaps), r: configMaps, name: "a"}
	for _, name := range []string{"c", "a", "b"} {
		a.create("default", name, "")
	}
	w := a.watch("")
	var got []string
	for e, _ := w.next(); e != "SYNCED"; e, _ = w.next() {
		got = append(got, strings.Fields(e)[2])
	}
	if !slices.IsSorted(got) || len(got) != 3 {
		t.Errorf("got %q", got)
	}
}

func TestAWatchKeepsABurstForASlowClient(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	a := cluster{t: t, s: openResource(t, b, configMaps), r: configMaps, name: "a"}
	w := a.watch("")
	w.expect("SYNCED")
	for i := range 500 { // nobody reads
		a.create("default", fmt.Sprint("x", i), "")
	}
	for i := range 500 {
		w.expect(fmt.Sprintf("ADDED a default/x%d ", i))
	}
}

func TestAStuckWatchIsEndedAndHoldsUpNoOther(t *testing.T) {
	b := newTestBackend(t, BackendConfig{})
	s := openResource(t, b, configMaps)
	a, other := cluster{t: t, s: s, r: configMaps, name: "a"}, cluster{t: t, s: s, r: configMaps, name: "b"}
	stuck := a.watch("")
	w := other.watch("")
	w.expect("SYNCED")
	a.create("default", "x", "")
	for i := range 2 * maxPending { // nobody reads stuck
		a.update("default", "x", fmt.Sprint(i))
	}
	other.create("default", "x", "")
	w.expect("ADDED b default/x ")
	// Its client begins anew from where it ended: nothing was left out before.
	stuck.expect("SYNCED", "ADDED a default/x ")
	for i := 0; ; i++ {
		got := stuck.change()
		if got == "CLOSED" {
			break
		}
		if want := fmt.Sprintf("MODIFIED a default/x %d", i); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
}
