package release

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

// state is where the releases of a mesh stand, as etcd has it.
type state struct {
	// Initializing says that the base is not whole yet.
	Initializing bool `json:"initializing,omitempty"`
	// Dirty says that somebody began to write more than fits into one transaction: logs beyond
	// Last may be there, which mean nothing.
	Dirty bool `json:"dirty,omitempty"`
	// Rollout is the number of the present rollout, or of the last.
	Rollout int64 `json:"rollout"`
	// Last is the last generation that was given to anybody, Head that of the first stage, and
	// Good that which all stages have had.
	Last int64 `json:"last"`
	Head int64 `json:"head"`
	Good int64 `json:"good"`
	// Stages are in the order of the mesh's.
	Stages []stageState `json:"stages"`
	// Versions are those of the contents of generations that are in use.
	Versions map[int64]string `json:"versions"`
	// Seen are the revisions of the last changes that the generations have in them, by source.
	Seen []uint64 `json:"seen,omitempty"`
	// Aborted are generations that were taken back.
	Aborted []span `json:"aborted,omitempty"`
	// WasAborted says that the last rollout was.
	WasAborted bool      `json:"wasAborted,omitempty"`
	StartedAt  time.Time `json:"startedAt,omitzero"`
	ChangedAt  time.Time `json:"changedAt,omitzero"`
}

type stageState struct {
	Name       string `json:"name"`
	Generation int64  `json:"generation"`
}

type span struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

func (s *state) clone() *state {
	out := *s
	out.Dirty = false
	out.Stages, out.Aborted = slices.Clone(s.Stages), slices.Clone(s.Aborted)
	out.Versions = map[int64]string{}
	for _, g := range s.generations() {
		out.Versions[g] = s.Versions[g]
	}
	return &out
}

// underway says that some stage does not have what the first has.
func (s *state) underway() bool { return s.Good != s.Head }

// frontier is the stage that the rollout has come to: it and all before it have the newest.
func (s *state) frontier() int {
	at := 0
	for at+1 < len(s.Stages) && s.Stages[at+1].Generation == s.Head {
		at++
	}
	return at
}

// id names exactly what can be promoted.
func (s *state) id() string { return fmt.Sprintf("%d.%d.%d", s.Rollout, s.Head, s.frontier()) }

// names says whether an id is one of the present rollout.
func (s *state) names(id string) bool {
	number, _, _ := strings.Cut(id, ".")
	return number == strconv.FormatInt(s.Rollout, 10)
}

// generations are those in use, the oldest first.
func (s *state) generations() []int64 {
	all := []int64{s.Good, s.Head}
	for _, stage := range s.Stages {
		all = append(all, stage.Generation)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// oldest is the oldest generation in use.
func (s *state) oldest() int64 { return s.generations()[0] }

func (s *state) aborted(gen int64) bool {
	return slices.ContainsFunc(s.Aborted, func(a span) bool { return a.From <= gen && gen <= a.To })
}

// arrange brings the stages into the mesh's order, and says whether that changes anything. A
// stage that is new has what all have had; but if it is the first, the newest.
func (s *state) arrange(stages []snapshot.Stage) (*state, bool) {
	if slices.EqualFunc(s.Stages, stages, func(a stageState, b snapshot.Stage) bool { return a.Name == b.Name }) {
		return s, false
	}
	out := s.clone()
	out.Stages = nil
	for _, stage := range stages {
		generation := s.Good
		if at := slices.IndexFunc(s.Stages, func(have stageState) bool { return have.Name == stage.Name }); at >= 0 {
			generation = s.Stages[at].Generation
		}
		out.Stages = append(out.Stages, stageState{stage.Name, generation})
	}
	out.Stages[0].Generation = out.Head
	return out.settle(), true
}

// settle counts what is the same as the newest as that: the rollout has come to the stages that
// have it, and ends when that is all.
func (s *state) settle() *state {
	for i, stage := range s.Stages {
		if stage.Generation != s.Head && s.Versions[stage.Generation] != s.Versions[s.Head] {
			return s
		}
		s.Stages[i].Generation = s.Head
	}
	s.Good = s.Head
	return s
}
