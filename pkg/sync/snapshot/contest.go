package snapshot

import (
	"fmt"
	"slices"

	"github.com/google/btree"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/policy"
)

// contest decides between the objects of one kind that speak for the same hosts of a mesh.
// The oldest has a host, and one that has lost all of its hosts, and is about nothing else, is
// out: it takes nothing from others. Only hosts that are shared by a grant are here.
type contest struct {
	all   map[string]*speaker   // by key
	hosts map[string][]*speaker // oldest first
	// changed are those to be decided about, oldest first: what is decided of one only
	// matters to younger ones.
	changed *btree.BTreeG[*speaker]
}

// speaker is an object that may be in the mesh.
type speaker struct {
	key    string
	object *object.Object
	said   *policy.Shared
	lostTo []*speaker // who has each of its hosts, nil for one that it has; nil if it has all
	out    bool
}

// taken says which hosts a speaker has lost; false for none.
func (s *speaker) taken() (v policy.Violation, some bool) {
	more := 0
	for i, by := range s.lostTo {
		switch {
		case by == nil:
		case some:
			more++
		default:
			v, some = by.said.Taken(s.said.Hosts[i]), true
		}
	}
	if more > 0 {
		v.Message += fmt.Sprintf(" (hosts taken in all: %d)", more+1)
	}
	return v, some
}

// whose is who has a host of a speaker as far as is known; nil for itself.
func (s *speaker) whose(host string) *speaker {
	if s.lostTo == nil {
		return nil
	}
	at, _ := slices.BinarySearch(s.said.Hosts, host)
	return s.lostTo[at]
}

func olderSpeaker(a, b *speaker) bool {
	if order := a.said.Compare(b.said); order != 0 {
		return order < 0
	}
	return a.key < b.key
}

// set takes in what an object says now; nil for nothing.
func (c *contest) set(key string, o *object.Object, said *policy.Shared) {
	old := c.all[key]
	switch {
	case old == nil && said == nil:
		return
	case c.all == nil:
		c.all, c.hosts = map[string]*speaker{}, map[string][]*speaker{}
		c.changed = btree.NewG(16, olderSpeaker)
	}
	if old != nil {
		for _, host := range old.said.Hosts {
			rest := slices.DeleteFunc(c.hosts[host], func(s *speaker) bool { return s == old })
			if len(rest) == 0 {
				delete(c.hosts, host)
			} else {
				c.hosts[host] = rest
			}
		}
		delete(c.all, key)
		c.changed.Delete(old)
		c.ask(old, nil)
	}
	if said == nil {
		return
	}
	s := &speaker{key: key, object: o, said: said}
	c.all[key] = s
	for _, host := range said.Hosts {
		at, _ := slices.BinarySearchFunc(c.hosts[host], s, func(a, b *speaker) int {
			if olderSpeaker(a, b) {
				return -1
			}
			return 1
		})
		c.hosts[host] = slices.Insert(c.hosts[host], at, s)
	}
	c.changed.ReplaceOrInsert(s)
	c.ask(nil, s)
}

// ask has those decided anew that have lost to one that says so no more, or that one takes
// from.
func (c *contest) ask(gone, came *speaker) {
	hosts := func(s *speaker, concerns func(other *speaker, host string) bool) {
		for _, host := range s.said.Hosts {
			for _, other := range c.hosts[host] {
				if other != s && concerns(other, host) {
					c.changed.ReplaceOrInsert(other)
				}
			}
		}
	}
	if gone != nil {
		hosts(gone, func(other *speaker, _ string) bool { return slices.Contains(other.lostTo, gone) })
	}
	if came != nil {
		hosts(came, func(other *speaker, host string) bool {
			has := other.whose(host)
			return (has == nil || olderSpeaker(came, has)) && came.said.TakesFrom(other.said)
		})
	}
}

// decide finds out what has been lost, or lost to somebody else, and what is won back, among
// those that have changed or depend on them. Of one that is new or was set anew it tells only if it
// has lost something.
func (c *contest) decide(turned func(s *speaker, wasOut bool)) {
	if c.all == nil {
		return
	}
	before := map[*speaker]speaker{}
	for {
		s, some := c.changed.DeleteMin()
		if !some {
			break
		}
		if _, known := before[s]; !known {
			before[s] = *s
		}
		wasOut := s.out
		c.ownHosts(s)
		switch {
		case s.out && !wasOut:
			c.ask(s, nil)
		case wasOut && !s.out:
			c.ask(nil, s)
		}
	}
	for s, was := range before {
		if was.out != s.out || !slices.Equal(was.lostTo, s.lostTo) {
			turned(s, was.out)
		}
	}
}

// ownHosts finds out who has a speaker's hosts.
func (c *contest) ownHosts(s *speaker) {
	s.lostTo = nil
	lost := 0
	for i, host := range s.said.Hosts {
		of := c.hosts[host]
		at := slices.IndexFunc(of, func(other *speaker) bool { return other == s || !other.out && other.said.TakesFrom(s.said) })
		if of[at] == s {
			continue
		}
		if lost++; s.lostTo == nil {
			s.lostTo = make([]*speaker, len(s.said.Hosts))
		}
		s.lostTo[i] = of[at]
	}
	s.out = s.said.Alone() && lost == len(s.said.Hosts)
}

// out says whether an object has lost.
func (c *contest) out(key string) bool {
	s := c.all[key]
	return s != nil && s.out
}
