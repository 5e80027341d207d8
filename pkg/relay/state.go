package relay

import (
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"istio.io/istio/pkg/config/schema/collections"

	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

// meshKinds are the kinds that istiod asks its config sources for. Nothing is stored or
// rendered here, so that they have no more than names.
func meshKinds() []snapshot.Kind {
	var kinds []snapshot.Kind
	for _, s := range collections.Pilot.All() {
		kinds = append(kinds, snapshot.Kind{Name: s.Kind(), TypeURL: s.GroupVersionKind().String(), MessageName: s.Proto()})
	}
	return kinds
}

// state is the whole configuration of a mesh, spread over shards. It never changes; the
// states after and before it share what is equal.
type state struct {
	// shards are the lists of each shard, one for each kind, in the order of the kinds.
	shards [][]*snapshot.List
	// generation counts the responses that were taken in.
	generation uint64
}

// emptyState is a state without resources.
func emptyState(shards, kinds int) *state {
	s := &state{shards: make([][]*snapshot.List, shards)}
	for i := range s.shards {
		s.shards[i] = slices.Repeat([]*snapshot.List{snapshot.Empty}, kinds)
	}
	return s
}

// shardOf is the shard of a resource: the same in every relay, and for as long as the
// number of shards is the same.
func shardOf(typeURL, name string, shards int) int {
	if shards == 1 {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(typeURL))
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(name))
	// The low bits of FNV are its weakest.
	sum := h.Sum64()
	return int((sum ^ sum>>32) % uint64(shards))
}

// kindLists are the lists of one kind in all shards.
func (s *state) kindLists(kind int) []*snapshot.List {
	lists := make([]*snapshot.List, len(s.shards))
	for i := range s.shards {
		lists[i] = s.shards[i][kind]
	}
	return lists
}

// version is that of the list of a kind which all shards together are.
func (s *state) version(kind int) string { return snapshot.VersionOf(s.kindLists(kind)...) }

// all is the version of all kinds together.
func (s *state) all() string { return snapshot.VersionOf(slices.Concat(s.shards...)...) }

func (s *state) resources() (n int) {
	for _, shard := range s.shards {
		for _, l := range shard {
			n += l.Len()
		}
	}
	return n
}

// largest is how many resources the kind has that has the most.
func (s *state) largest() (most int) {
	for kind := range s.shards[0] {
		n := 0
		for _, l := range s.kindLists(kind) {
			n += l.Len()
		}
		most = max(most, n)
	}
	return most
}

func (s *state) bytes() (n int) {
	for _, shard := range s.shards {
		for _, l := range shard {
			n += l.Bytes()
		}
	}
	return n
}

// versions are the versions of all resources of a kind, by name.
func (s *state) versions(kind int) map[string]string {
	versions := map[string]string{}
	for _, l := range s.kindLists(kind) {
		for e := range l.All() {
			versions[e.Name()] = e.Version()
		}
	}
	return versions
}

// change is what happens to the resources of one kind at once.
type change struct {
	kind    int
	typeURL string
	// whole says that what is not among the updates does not exist.
	whole   bool
	updates []snapshot.Update
	// version is what the kind has afterwards: a change that leads elsewhere is refused whole.
	version string
}

// with is the state after a change.
func (s *state) with(c change, observed time.Time) (*state, error) {
	next := &state{shards: slices.Clone(s.shards), generation: s.generation + 1}
	parts := make([][]snapshot.Update, len(s.shards))
	for _, u := range c.updates {
		i := shardOf(c.typeURL, u.Name(), len(s.shards))
		parts[i] = append(parts[i], u)
	}
	for i, part := range parts {
		before := s.shards[i][c.kind]
		if c.whole {
			part = append(missing(before, part), part...)
		}
		if after := before.With(part, observed); after != before {
			next.shards[i] = slices.Clone(s.shards[i])
			next.shards[i][c.kind] = after
		}
	}
	if got := next.version(c.kind); got != c.version {
		return nil, fmt.Errorf("%s: what came leads to version %s and not to %s", c.typeURL, got, c.version)
	}
	return next, nil
}

// missing removes what a list has and the updates do not name.
func missing(l *snapshot.List, updates []snapshot.Update) []snapshot.Update {
	named := make(map[string]struct{}, len(updates))
	for _, u := range updates {
		named[u.Name()] = struct{}{}
	}
	var removals []snapshot.Update
	for e := range l.All() {
		if _, ok := named[e.Name()]; !ok {
			removals = append(removals, snapshot.Removed(e.Name()))
		}
	}
	return removals
}

// spread is the same configuration over another number of shards.
func (s *state) spread(shards int, kinds []snapshot.Kind) (*state, error) {
	if len(s.shards) == shards {
		return s, nil
	}
	next := emptyState(shards, len(kinds))
	for kind := range kinds {
		c := change{kind: kind, typeURL: kinds[kind].TypeURL, whole: true, version: s.version(kind)}
		for _, l := range s.kindLists(kind) {
			for e := range l.All() {
				u, err := snapshot.Received(e.Name(), e.Version(), e.Resource())
				if err != nil {
					return nil, err
				}
				c.updates = append(c.updates, u)
			}
		}
		var err error
		if next, err = next.with(c, time.Now()); err != nil {
			return nil, err
		}
	}
	next.generation = s.generation
	return next, nil
}

// changeOf is what a response says.
func changeOf(r *response, kind int, whole bool) (change, error) {
	c := change{kind: kind, typeURL: r.typeURL, whole: whole, version: r.version, updates: make([]snapshot.Update, 0, len(r.resources)+len(r.removed))}
	for _, name := range r.removed {
		c.updates = append(c.updates, snapshot.Removed(name))
	}
	for _, res := range r.resources {
		u, err := snapshot.Received(res.name, res.version, res.body)
		if err != nil {
			return change{}, fmt.Errorf("%s: %w", r.typeURL, err)
		}
		c.updates = append(c.updates, u)
	}
	return c, nil
}

// autoShards is how many shards suit a kind of so many resources: so many that one change has istiod read no more than a
// few hundred again, at which it costs istiod about what a change of its own watch does. Other kinds are not read again.
// Each costs istiod 0.8 MiB, and the relay a third of that.
func autoShards(resources int) int {
	const each, least, most = 300, 4, 128
	n := least
	for n < most && resources > n*each {
		n *= 2
	}
	return n
}
