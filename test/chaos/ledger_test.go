package chaos

import (
	"slices"
	"strings"
	"testing"
)

// wrote makes a ledger of three entries: one for good, one that was written twice, the second time without an answer, and
// one whose deletion was acknowledged.
func wrote() *ledger {
	l := newLedger(func(string) {})
	for _, key := range []string{"good", "twice", "deleted"} {
		l.acknowledge(key, l.ask(key))
	}
	l.keep("good")
	l.ask("twice")
	return l
}

func (l *ledger) delete(key string) {
	l.deleting(key)
	l.deleted(key)
}

func expect(t *testing.T, l *ledger, want string) {
	t.Helper()
	switch {
	case want == "" && len(l.violations) > 0:
		t.Errorf("found %q where all is well", l.violations)
	case want != "" && !slices.ContainsFunc(l.violations, func(v string) bool { return strings.Contains(v, want) }):
		t.Errorf("found %q, want %q", l.violations, want)
	}
}

func TestTheAPIHasWhatWasAcknowledged(t *testing.T) {
	for _, c := range []struct {
		name string
		api  state
		want string
	}{
		{"all as acknowledged", state{"good": 1, "twice": 1}, ""},
		{"a write without an answer was done", state{"good": 1, "twice": 2}, ""},
		{"an entry is lost", state{"twice": 1}, "no good, which was acknowledged"},
		{"a value was never asked for", state{"good": 1, "twice": 3}, "none above 2"},
		{"a deletion is lost", state{"good": 1, "twice": 1, "deleted": 1}, "deleted, whose deletion was acknowledged"},
		{"something is there that nobody wrote", state{"good": 1, "twice": 1, "odd": 1}, "odd, which nobody wrote"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := wrote()
			l.delete("deleted")
			l.settled("the API", c.api)
			expect(t, l, c.want)
		})
	}
}

func TestAnAcknowledgedValueDoesNotGoBack(t *testing.T) {
	l := wrote()
	l.read("the API", "twice", 2) // the write without an answer was done, as its writer sees
	expect(t, l, "")
	l.settled("the API", state{"good": 1, "twice": 1, "deleted": 1})
	expect(t, l, "twice at value 1, and 2 was acknowledged")
}

func TestWhatWasNotDoneIsSeenByNobody(t *testing.T) {
	l := wrote()
	v := newView(l, "istiod")
	v.ready()
	l.refuse("twice", 2)
	l.settled("the API", state{"good": 1, "twice": 1, "deleted": 1})
	v.see(0, state{"good": 1, "twice": 1})
	expect(t, l, "")
	v.see(0, state{"good": 1, "twice": 2})
	expect(t, l, "(life 0, look 2) has twice at value 2, of which it was said that it was not written")
	l.settled("the API", state{"good": 1, "twice": 2, "deleted": 1})
	expect(t, l, "the API has twice at value 2, of which it was said")
}

func TestAnObserverLosesNothing(t *testing.T) {
	all := state{"good": 1, "twice": 1, "deleted": 1}
	later := state{"good": 1, "twice": 2}
	for _, c := range []struct {
		name  string
		looks []state
		want  string
	}{
		{"changes and deletions arrive", []state{all, later, later}, ""},
		{"what was written last may be missing at first", []state{{"good": 1}, all, later}, ""},
		{"a short list", []state{all, {"good": 1}, all}, "lost twice, which nobody deleted"},
		{"an empty list", []state{all, {}}, "no good, which is there for good"},
		{"an empty list at first", []state{{}, all}, "no good, which is there for good"},
		{"an older list", []state{later, {"good": 1, "twice": 1}}, "twice at value 1, and had 2"},
		{"an older list from before a deletion", []state{all, later, {"good": 1, "twice": 2, "deleted": 1}}, "deleted again"},
		{"something that nobody wrote", []state{{"good": 1, "odd": 1}}, "odd, which nobody wrote"},
		{"a value from the future", []state{{"good": 2}}, "none above 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := wrote()
			v := newView(l, "istiod")
			v.ready()
			life, _ := v.now()
			for i, look := range c.looks {
				if i == 1 {
					l.deleting("deleted")
				}
				v.see(life, look)
			}
			expect(t, l, c.want)
		})
	}
}

func TestWhatADeadProcessHadDoesNotCount(t *testing.T) {
	l := wrote()
	v := newView(l, "istiod")
	v.see(0, state{}) // it is not ready
	v.ready()
	v.see(0, state{"good": 1, "twice": 2})
	v.die()
	v.see(1, state{}) // it is not ready again
	v.ready()
	v.see(0, state{})                      // a look that began before
	v.see(1, state{"good": 1, "twice": 1}) // from a server that is behind
	expect(t, l, "")
	if l.counted("looks at istiod") != 2 {
		t.Errorf("counted %d looks, want 2", l.counted("looks at istiod"))
	}
	v.see(1, state{"twice": 1})
	expect(t, l, "(life 1, look 2) has no good")
}

func TestDifferencesAreNamed(t *testing.T) {
	got := differences(state{"a": 1, "b": 2, "c": 3}, state{"a": 1, "b": 1, "d": 1})
	if want := []string{"b is at 1, want 2", "c is at 0, want 3", "d is at 1, want 0"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
