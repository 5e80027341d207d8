package vmesh

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/watch"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// recordOf makes a record as the storage shows it.
func recordOf(t *testing.T, name, fingerprint string, revision int, life time.Duration, deleting bool) *object.Object {
	t.Helper()
	deletion := ""
	if deleting {
		deletion = `,"deletionTimestamp":"2026-01-01T00:00:00Z"`
	}
	o := &object.Object{}
	if err := o.UnmarshalJSON([]byte(fmt.Sprintf(`{"apiVersion":"vmesh.io/v1alpha1","kind":"Kubeconfig","metadata":{"name":%q,"resourceVersion":"%d","creationTimestamp":%q%s},`+
		`"spec":{"virtualCluster":"shop","user":"alice","expires":%q,"fingerprint":%q}}`,
		name, revision, time.Now().UTC().Format(time.RFC3339), deletion, time.Now().Add(life).UTC().Format(time.RFC3339), fingerprint))); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestARevokedKubeconfigStaysRevoked(t *testing.T) {
	const name = "shop-alice-x"
	for _, c := range []struct {
		name string
		do   func(k *Kubeconfigs, record *object.Object)
		good bool
	}{
		{"nothing happened", func(*Kubeconfigs, *object.Object) {}, true},
		{"it was seen again", func(k *Kubeconfigs, record *object.Object) { k.Replaced([]*object.Object{record}, 9) }, true},
		{"it was deleted", func(k *Kubeconfigs, record *object.Object) { k.Changed(watch.Deleted, record, 8) }, false},
		{"it is not there after a gap", func(k *Kubeconfigs, _ *object.Object) { k.Replaced(nil, 9) }, false},
		{"the watch is behind its creation", func(k *Kubeconfigs, _ *object.Object) { k.Replaced(nil, 3) }, true},
		{"it was deleted here, and the watch is behind", func(k *Kubeconfigs, record *object.Object) {
			k.revoke(name)
			k.Changed(watch.Added, record, 7)
			k.Replaced([]*object.Object{record}, 7)
		}, false},
		{"it is being deleted", func(k *Kubeconfigs, _ *object.Object) {
			k.Changed(watch.Modified, recordOf(t, name, "f", 8, time.Hour, true), 8)
		}, false},
		{"another was deleted", func(k *Kubeconfigs, _ *object.Object) {
			k.Changed(watch.Deleted, recordOf(t, "shop-alice-y", "f", 8, time.Hour, false), 8)
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := NewKubeconfigs()
			record := recordOf(t, name, "f", 7, time.Hour, false)
			k.know(record)
			ctx, done := k.While(t.Context(), name)
			defer done()
			c.do(k, record)
			good, err := k.Good(t.Context(), name, "f")
			if err != nil || good != c.good {
				t.Errorf("good is %t, %v", good, err)
			}
			if ended := errors.Is(context.Cause(ctx), ErrRevoked); ended == c.good {
				t.Errorf("its watch has ended: %t", ended)
			}
			after, done := k.While(t.Context(), name)
			defer done()
			if ended := after.Err() != nil; ended == c.good {
				t.Errorf("a watch that was let in before has ended: %t", ended)
			}
			if good, _ := k.Good(t.Context(), name, "another certificate"); good {
				t.Error("another certificate is good by its record")
			}
		})
	}
}

func TestWatchesThatEndAreForgotten(t *testing.T) {
	k := NewKubeconfigs()
	k.know(recordOf(t, "a", "f", 1, time.Hour, false))
	_, first := k.While(t.Context(), "a")
	_, second := k.While(t.Context(), "a")
	first()
	if len(k.open["a"]) != 1 {
		t.Errorf("%d are open", len(k.open["a"]))
	}
	second()
	if len(k.open) != 0 {
		t.Errorf("%d kubeconfigs have open watches", len(k.open))
	}
}

func TestUsesAreNotedOnceInTenMinutes(t *testing.T) {
	k := NewKubeconfigs()
	k.know(recordOf(t, "a", "f", 1, 1000*time.Hour, false))
	now := time.Now()
	noted := func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		_, ok := k.used["a"]
		delete(k.used, "a")
		return ok
	}
	for _, c := range []struct {
		after time.Duration
		want  bool
	}{{0, true}, {0, false}, {9 * time.Minute, false}, {10 * time.Minute, true}, {19 * time.Minute, false}, {21 * time.Minute, true}} {
		k.Used("a", now.Add(c.after), false)
		if got := noted(); got != c.want {
			t.Errorf("after %s it was noted: %t", c.after, got)
		}
	}
	k.Used("unknown", now, false)
	if len(k.used) != 0 {
		t.Error("what is not known was noted")
	}
}

func TestHoldersAreWarnedBeforeTheEnd(t *testing.T) {
	const day = 24 * time.Hour
	for _, c := range []struct {
		name string
		life time.Duration
		at   time.Duration // from the end
		want string
	}{
		{"a year, with 31 days left", 365 * day, 31 * day, ""},
		{"a year, with 6 days left", 365 * day, 6*day + time.Hour, "expires in 6 days"},
		{"ten years, with 31 days left", 3650 * day, 31 * day, ""},
		{"a day, with 3 hours left", day, 3 * time.Hour, ""},
		{"a day, with 2 hours left", day, 2*time.Hour + time.Minute, "expires in 2 hours"},
		{"an hour, with 5 minutes left", time.Hour, 5*time.Minute + 10*time.Second, "expires in 5 minutes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := NewKubeconfigs()
			k.know(recordOf(t, "a", "f", 1, c.life, false))
			at := time.Now().Add(c.life - c.at)
			for _, ask := range []struct {
				kubectl bool
				want    string
			}{{true, c.want}, {true, c.want}, {false, c.want}, {false, ""}} {
				got := k.Used("a", at, ask.kubectl)
				if (got == "") != (ask.want == "") || !strings.Contains(got, ask.want) {
					t.Errorf("by kubectl %t: warned %q, want %q", ask.kubectl, got, ask.want)
				}
			}
		})
	}
}

func TestAWatchEndsWhenItsCertificateExpires(t *testing.T) {
	k := NewKubeconfigs()
	k.know(recordOf(t, "a", "f", 1, -time.Second, false))
	ctx, done := k.While(t.Context(), "a")
	defer done()
	select {
	case <-ctx.Done():
		if cause := context.Cause(ctx); !errors.Is(cause, ErrExpired) {
			t.Error(cause)
		}
	case <-time.After(time.Minute):
		t.Error("it goes on")
	}
}

// What every request with a kubeconfig pays.
func BenchmarkRequest(b *testing.B) {
	k := NewKubeconfigs()
	o := &object.Object{}
	if err := o.UnmarshalJSON([]byte(`{"apiVersion":"vmesh.io/v1alpha1","kind":"Kubeconfig","metadata":{"name":"a","resourceVersion":"1","creationTimestamp":"2026-01-01T00:00:00Z"},` +
		`"spec":{"virtualCluster":"shop","user":"alice","expires":"2126-01-01T00:00:00Z","fingerprint":"f"}}`)); err != nil {
		b.Fatal(err)
	}
	k.know(o)
	b.ReportAllocs()
	for b.Loop() {
		if good, err := k.Good(b.Context(), "a", "f"); !good || err != nil {
			b.Fatal(err)
		}
		k.Used("a", time.Now(), false)
	}
}
