package discovery

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// overlaps are the pod addresses that members of a mesh share that are in one network, and should not.
// They are looked for when somebody asks, and not for more than a hundredth of the time.
type overlaps struct {
	generation atomic.Uint64 // how often addresses have changed

	mu    sync.Mutex
	as    uint64 // the generation that of is of
	found bool
	next  time.Time
	of    map[string]map[string]string // by member, by other member: an example
}

// overlapsOf are a member's: the others by name, with an example.
func (v *View) overlapsOf(name string) map[string]string {
	v.mu.RLock()
	var m *mesh
	if at := v.members[name]; at != nil {
		m = at.mesh
	}
	v.mu.RUnlock()
	if m == nil {
		return nil
	}
	o := &m.overlaps
	o.mu.Lock()
	defer o.mu.Unlock()
	start := v.now()
	if generation := o.generation.Load(); !o.found || o.as != generation && !start.Before(o.next) {
		o.of = findOverlaps(v.addresses(m))
		o.as, o.found = generation, true
		end := v.now()
		o.next = end.Add(100 * end.Sub(start))
	}
	return o.of[name]
}

// owned is an address of a pod, and the member that has it.
type owned struct {
	address [16]byte
	member  int32
}

// addresses are all pods', by network, and the names of the members.
func (v *View) addresses(m *mesh) (networks map[string][]owned, names []string) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	networks = map[string][]owned{}
	for name, at := range m.members {
		if !shown(&at.Member) {
			continue
		}
		number := int32(len(names))
		names = append(names, name)
		all := slices.Grow(networks[at.Network], int(at.total.endpoints))
		for _, s := range at.slices {
			s.each(func(e endpoint) {
				if e.pod {
					all = append(all, owned{e.as16(), number})
				}
			})
		}
		networks[at.Network] = all
	}
	return networks, names
}

// findOverlaps finds the pairs of members that have an address in common.
func findOverlaps(networks map[string][]owned, names []string) map[string]map[string]string {
	var found map[string]map[string]string
	for _, all := range networks {
		slices.SortFunc(all, func(a, b owned) int {
			return cmp.Or(strings.Compare(string(a.address[:]), string(b.address[:])), cmp.Compare(a.member, b.member))
		})
		for from := 0; from < len(all); {
			to := from + 1
			for to < len(all) && all[to].address == all[from].address {
				to++
			}
			for _, a := range all[from:to] {
				for _, b := range all[from:to] {
					if a.member == b.member {
						continue
					}
					if found == nil {
						found = map[string]map[string]string{}
					}
					of := found[names[a.member]]
					if of == nil {
						of = map[string]string{}
						found[names[a.member]] = of
					}
					if _, has := of[names[b.member]]; !has {
						of[names[b.member]] = a.String()
					}
				}
			}
			from = to
		}
	}
	return found
}

// as16 is the address as one of 16 bytes.
func (e endpoint) as16() [16]byte {
	if len(e.address) == 16 {
		return [16]byte([]byte(e.address))
	}
	return netip.AddrFrom4([4]byte([]byte(e.address))).As16()
}

func (o owned) String() string { return netip.AddrFrom16(o.address).Unmap().String() }
