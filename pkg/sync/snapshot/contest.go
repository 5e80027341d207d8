package snapshot

import (
	"slices"

	"github.com/google/btree"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/policy"
)

// contest decides between the objects of one kind that speak for the same hosts of a mesh.
// The oldest has a host, and one that has lost all of its hosts has lost: then it is out, and
// takes nothing from others. Only hosts that are shared by a grant are here.
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
	lostTo []*speaker // one for each host; nil when it is in
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
	hosts := func(s *speaker, concerns func(*speaker) bool) {
		for _, host := range s.said.Hosts {
			for _, other := range c.hosts[host] {
				if other != s && concerns(other) {
					c.changed.ReplaceOrInsert(other)
				}
			}
		}
	}
	if gone != nil {
		hosts(gone, func(other *speaker) bool { return slices.Contains(other.lostTo, gone) })
	}
	if came != nil {
		hosts(came, func(other *speaker) bool { return other.lostTo == nil && came.said.TakesFrom(other.said) })
	}
}

// decide finds out who has lost, or lost to somebody else, and who is in again, among those
// that have changed or depend on them. Of one that is new or was set anew it tells only if it
// has lost.
func (c *contest) decide(lost func(s *speaker, reason policy.Violation), in func(*speaker)) {
	if c.all == nil {
		return
	}
	turned := map[*speaker][]*speaker{} // to whom they had lost
	for {
		s, some := c.changed.DeleteMin()
		if !some {
			break
		}
		had := s.lostTo
		if _, before := turned[s]; !before {
			turned[s] = had
		}
		s.lostTo = c.losesTo(s)
		switch {
		case had == nil && s.lostTo != nil:
			c.ask(s, nil)
		case had != nil && s.lostTo == nil:
			c.ask(nil, s)
		}
	}
	for s, had := range turned {
		switch {
		case s.lostTo != nil && !slices.Equal(had, s.lostTo):
			lost(s, s.lostTo[0].said.Taken(s.said.Hosts[0]))
		case had != nil && s.lostTo == nil:
			in(s)
		}
	}
}

// losesTo are those who have a speaker's hosts, one for each; nil unless all are taken.
func (c *contest) losesTo(s *speaker) []*speaker {
	if !s.said.Yields() {
		return nil
	}
	by := make([]*speaker, 0, len(s.said.Hosts))
	for _, host := range s.said.Hosts {
		of := c.hosts[host]
		at := slices.IndexFunc(of, func(other *speaker) bool { return other == s || other.lostTo == nil && other.said.TakesFrom(s.said) })
		if of[at] == s {
			return nil
		}
		by = append(by, of[at])
	}
	return by
}

// out says whether an object has lost.
func (c *contest) out(key string) bool {
	s := c.all[key]
	return s != nil && s.lostTo != nil
}
