// Package chaos kills, again and again and at random, every process of a mesh but those whose calls it is about, while
// configuration is written and calls are made, and holds all that anybody sees against what was acknowledged.
package chaos

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// state is what someone holds of the configuration: the value of each entry by its key, "Kind namespace/name". Each write
// of an entry gives it a value higher than all before.
type state map[string]int

// ledger knows what was asked for and what was acknowledged, and judges by it what others see. It is safe for concurrent use.
//
// An entry is written by one writer, one write after the other, each on condition that the entry is still as the writer saw
// it last. So of a write without an answer nobody knows whether it was done, but none can be done after a later one was
// acknowledged. No name is used for another entry once its entry is deleted.
type ledger struct {
	mu         sync.Mutex
	entries    map[string]*entry
	violations []string
	report     func(violation string)
	counts     map[string]int
}

type entry struct {
	asked     int // the highest value that was asked for
	least     int // the highest value that was acknowledged, or read after that; 0 while its creation was not
	deleting  bool
	deleted   bool         // acknowledged
	permanent bool         // there since before anybody looked, and never deleted
	refused   map[int]bool // values of which a server has said that it did not write them
}

// maxViolations is what is worth reading.
const maxViolations = 50

// newLedger makes an empty one, which gives report each violation at once.
func newLedger(report func(violation string)) *ledger {
	return &ledger{entries: map[string]*entry{}, report: report, counts: map[string]int{}}
}

// violated takes note that something happened that must not.
func (l *ledger) violated(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.violatedLocked(format, args...)
}

func (l *ledger) violatedLocked(format string, args ...any) {
	if len(l.violations) < maxViolations {
		violation := fmt.Sprintf(format, args...)
		l.violations = append(l.violations, violation)
		l.report(violation)
	}
}

// count counts something, for the summary.
func (l *ledger) count(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[what]++
}

func (l *ledger) counted(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts[what]
}

// ask is called before a write is sent, and returns the value to write.
func (l *ledger) ask(key string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entries[key]
	if e == nil {
		e = &entry{}
		l.entries[key] = e
	}
	e.asked++
	return e.asked
}

// acknowledge is called when a write was answered with success.
func (l *ledger) acknowledge(key string, value int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts["acknowledged writes"]++
	e := l.entries[key]
	e.least = max(e.least, value)
}

// refuse is called when a server has answered that a write was not done. Nobody ever sees its value.
func (l *ledger) refuse(key string, value int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts["writes that were not done"]++
	e := l.entries[key]
	if e.refused == nil {
		e.refused = map[int]bool{}
	}
	e.refused[value] = true
}

// keep says that an entry is there for good.
func (l *ledger) keep(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries[key].permanent = true
}

// read judges a value that its writer was given by a consistent read, or 0 for "not found".
func (l *ledger) read(from, key string, value int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.judge(from, key, value)
	if e := l.entries[key]; value >= e.least {
		e.least = value
	}
}

// judge says whether the API may have an entry at a value, 0 being that it has none.
func (l *ledger) judge(from, key string, value int) {
	e := l.entries[key]
	switch {
	case e == nil:
		l.violatedLocked("%s has %s, which nobody wrote", from, key)
	case value == 0 && e.least > 0 && !e.deleting:
		l.violatedLocked("%s has no %s, which was acknowledged and never deleted", from, key)
	case value > 0 && e.deleted:
		l.violatedLocked("%s has %s, whose deletion was acknowledged", from, key)
	case value > 0 && value < e.least:
		l.violatedLocked("%s has %s at value %d, and %d was acknowledged", from, key, value, e.least)
	case value > e.asked:
		l.violatedLocked("%s has %s at value %d, and none above %d was asked for", from, key, value, e.asked)
	case e.refused[value]:
		l.violatedLocked("%s has %s at value %d, of which it was said that it was not written", from, key, value)
	}
}

// deleting is called before a deletion is sent, deleted when it was acknowledged.
func (l *ledger) deleting(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries[key].deleting = true
}

func (l *ledger) deleted(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts["acknowledged deletions"]++
	l.entries[key].deleted = true
}

// settled judges all that the API holds once nobody writes any more.
func (l *ledger) settled(from string, api state) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key := range l.entries {
		l.judge(from, key, api[key])
	}
	for key := range api {
		if l.entries[key] == nil {
			l.judge(from, key, api[key])
		}
	}
}

// differences are where two states differ, sorted and no more than a reader takes in.
func differences(want, got state) []string {
	keys := maps.Clone(want)
	maps.Copy(keys, got)
	var all []string
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if want[key] != got[key] {
			all = append(all, fmt.Sprintf("%s is at %d, want %d", key, got[key], want[key]))
		}
	}
	return all[:min(len(all), 10)]
}

// view judges what one observer sees, one look after the other.
type view struct {
	ledger *ledger
	name   string

	mu    sync.Mutex
	life  int  // which life of the observed process this is
	whole bool // what it has is all there is: nothing may be missing
	seen  state
	gone  map[string]bool
	looks int // in this life
}

func newView(l *ledger, name string) *view { return &view{ledger: l, name: name} }

// die says that what was observed is about to lose what it had. It returns the new life.
func (v *view) die() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.life++
	v.whole, v.seen, v.gone, v.looks = false, nil, nil, 0
}

// ready says that what is observed has been told everything.
func (v *view) ready() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.whole = true
}

// now is the present life, and whether there is something to see in it.
func (v *view) now() (life int, whole bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.life, v.whole
}

// see judges a look that began in a life: nothing that is there for good is missing, nothing that was seen is gone unless
// its deletion was asked for, nothing comes back, and no value is lower than was seen before.
func (v *view) see(life int, s state) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if life != v.life || !v.whole {
		return
	}
	l := v.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts["looks at "+v.name]++
	if v.gone == nil {
		v.gone = map[string]bool{}
	}
	v.looks++
	var wrong []string
	for key, e := range l.entries {
		value, is := s[key]
		before, was := v.seen[key]
		switch {
		case !is && e.permanent:
			wrong = append(wrong, fmt.Sprintf("has no %s, which is there for good", key))
		case !is && was && !e.deleting:
			wrong = append(wrong, fmt.Sprintf("lost %s, which nobody deleted", key))
		case is && v.gone[key]:
			wrong = append(wrong, fmt.Sprintf("has %s again, which it had seen deleted", key))
		case is && value < before:
			wrong = append(wrong, fmt.Sprintf("has %s at value %d, and had %d", key, value, before))
		case is && value > e.asked:
			wrong = append(wrong, fmt.Sprintf("has %s at value %d, and none above %d was asked for", key, value, e.asked))
		case is && e.refused[value]:
			wrong = append(wrong, fmt.Sprintf("has %s at value %d, of which it was said that it was not written", key, value))
		}
		if was && !is {
			v.gone[key] = true
		}
	}
	for key := range s {
		if l.entries[key] == nil {
			wrong = append(wrong, fmt.Sprintf("has %s, which nobody wrote", key))
		}
	}
	if n := len(wrong); n > 0 {
		slices.Sort(wrong)
		const enough = 5
		text := strings.Join(wrong[:min(n, enough)], "; ")
		if n > enough {
			text += fmt.Sprintf("; and %d more", n-enough)
		}
		l.violatedLocked("%s (life %d, look %d) %s", v.name, v.life, v.looks, text)
	}
	v.seen = s
}
