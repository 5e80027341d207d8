package distribution

import (
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
	"github.com/vmesh-io/vmesh/pkg/sync/xds"
)

// revisionLabel is by which istiods that have a revision choose what is theirs.
const revisionLabel = "istio.io/rev"

// judgement is what there is to know for deciding about all pending objects of a kind.
type judgement struct {
	mesh      string
	kind      int
	snapshot  *snapshot.Snapshot // as of before the receivers were asked
	after     *snapshot.Snapshot // as of afterwards
	receivers []xds.Receiver
	peers     map[string]*peer
	typeURL   string
	recent    []*snapshot.List

	quarantined map[quarantinedKey]string
	proxies     string
}

type quarantinedKey struct{ cluster, namespace, name string }

// judge collects what there is to know; the lock must be held.
func (t *Tracker) judge(mesh string, kind int, s *snapshot.Snapshot, m *meshPending) *judgement {
	j := &judgement{mesh: mesh, kind: kind, snapshot: s}
	if s == nil {
		return j
	}
	j.receivers, j.peers, j.typeURL = t.receivers.Receivers(mesh, kind), t.peersOf(mesh), t.kinds[kind].TypeURL
	if j.after = t.snapshots.Snapshot(mesh); j.after == nil {
		j.snapshot = nil
		return j
	}
	j.proxies = proxies(j.receivers)
	for _, q := range s.Quarantined {
		if q.Kind == t.kinds[kind].Name {
			if j.quarantined == nil {
				j.quarantined = map[quarantinedKey]string{}
			}
			j.quarantined[quarantinedKey{q.VirtualCluster, q.Namespace, q.Name}] = q.Message
		}
	}
	for _, p := range j.peers {
		if !p.elsewhere {
			continue
		}
		list := s.Lists[kind]
		recent := slices.DeleteFunc(m.recent[kind], func(l *snapshot.List) bool { return l.Version() == list.Version() })
		recent = append(recent, list)
		m.recent[kind] = recent[max(0, len(recent)-recentLists):]
		j.recent = m.recent[kind]
		break
	}
	return j
}

// proxies are those that are reported, in words; empty when none are. Whether the reports
// tell of a change yet is not known, so they are told as what they are.
func proxies(receivers []xds.Receiver) string {
	var connected, synced int32
	reported := false
	for _, r := range receivers {
		if r.Proxies != nil {
			reported = true
			connected, synced = connected+r.Proxies.Connected, synced+r.Proxies.Synced
		}
	}
	if !reported {
		return ""
	}
	return fmt.Sprintf("; as reported last, %d of %d proxies were up to date", synced, connected)
}

// tally counts the control planes that are to have an object.
type tally struct {
	meant, have           int
	behind, gone, refused []string
	waiting               []string // stages of releases
	why                   string   // the first refusal
}

// verdict is what the condition of an object is to be, but for its generation; nil while
// that is open. A final one stays until the object or its place changes.
func (t *Tracker) verdict(p *pending, j *judgement, now time.Time) (verdict *istio.Condition, final bool) {
	as := func(status metav1.ConditionStatus, reason, format string, args ...any) *istio.Condition {
		c := condition(status, reason, fmt.Sprintf(format, args...), 0)
		return &c
	}
	p.why = ""
	if p.mesh == "" {
		c := notInMesh(p.id.cluster, p.id.namespace)
		return &c, true
	}
	if j.snapshot == nil {
		return nil, false
	}
	kind := t.kinds[j.kind].Name
	if reason, message, held := j.snapshot.HeldBackReason(p.id.cluster, kind, p.id.namespace, p.id.name); held {
		p.why = message
		return as(metav1.ConditionFalse, reason, "%s", message), false
	}
	if message, is := j.quarantined[quarantinedKey{p.id.cluster, p.id.namespace, p.id.name}]; is {
		return as(metav1.ConditionFalse, ReasonCannotBeSent, "It cannot be sent to control planes: %s", message), false
	}
	entry, listed := j.snapshot.Lists[j.kind].Get(p.key)
	if still, is := j.after.Lists[j.kind].Get(p.key); !listed || !is || !still.Same(entry) {
		return nil, false // it is just changing
	}
	late := now.Sub(p.since) >= t.options.Patience
	c := t.count(p, j, entry, now, late)
	if !late && c.have < c.meant && len(c.refused) == 0 {
		return nil, false
	}
	of := fmt.Sprintf("%d of %d control planes", c.have, c.meant)
	if c.meant == 1 {
		of = fmt.Sprintf("%d of 1 control plane", c.have)
	}
	switch {
	case c.meant > 0 && c.have == c.meant:
		if message, lacks := j.snapshot.LacksHosts(kind, p.id.namespace, p.id.name); lacks {
			p.why = message
			return as(metav1.ConditionTrue, ReasonInPart, "Acknowledged by %s%s, but %s", of, j.proxies, message), true
		}
		return as(metav1.ConditionTrue, ReasonDistributed, "Acknowledged by %s%s", of, j.proxies), true
	case c.meant == 0 && len(j.receivers) == 0 && len(j.peers) == 0:
		v := noControlPlanes(j.mesh)
		return &v, false
	case c.meant == 0:
		if _, none := t.without.Load(j.mesh); none {
			v := noControlPlanes(j.mesh)
			return &v, false
		}
		return as(metav1.ConditionFalse, ReasonNotSelected, "Mesh %s has control planes, but it is for none of them%s", j.mesh, selecting(p)), false
	case len(c.refused) > 0:
		return as(metav1.ConditionFalse, ReasonRefused, "Acknowledged by %s; refused by %s: %s", of, some(c.refused), c.why), false
	case len(c.waiting) > 0:
		slices.Sort(c.waiting)
		return as(metav1.ConditionFalse, ReasonRollingOut, "Acknowledged by %s; not yet released to %s: see vmesh rollout status", of, some(slices.Compact(c.waiting))), false
	case len(c.gone) > 0:
		return as(metav1.ConditionFalse, ReasonGone, "Acknowledged by %s; no longer connected: %s", of, some(c.gone)), false
	default:
		return as(metav1.ConditionFalse, ReasonBehind, "Acknowledged by %s; behind: %s", of, some(c.behind)), false
	}
}

func selecting(p *pending) string {
	if revision := p.object.Labels[revisionLabel]; revision != "" {
		return ": it is labelled " + revisionLabel + "=" + revision
	}
	return ""
}

// lookup finds one name in lists, of which those after one another are mostly the same.
type lookup struct {
	list  *snapshot.List
	entry snapshot.Entry
	found bool
}

func (l *lookup) in(list *snapshot.List, name string) (snapshot.Entry, bool) {
	if list == nil {
		return snapshot.Entry{}, false
	}
	if list != l.list {
		l.list = list
		l.entry, l.found = list.Get(name)
	}
	return l.entry, l.found
}

// count counts, and with named set also names those that do not have it.
func (t *Tracker) count(p *pending, j *judgement, entry snapshot.Entry, now time.Time, named bool) tally {
	var c tally
	var acked lookup
	for i := range j.receivers {
		r := &j.receivers[i]
		if !inRevision(p, r.Revision) {
			continue
		}
		if r.Asked {
			if !r.Wants(entry) {
				continue // it is filtered for this one
			}
		} else if now.Sub(r.Began) >= t.options.Patience {
			continue // it does not want any
		}
		c.meant++
		if has, ok := acked.in(r.Acked, p.key); ok && has.Same(entry) {
			c.have++
			continue
		}
		switch {
		case r.Refusal != "":
			c.refused = append(c.refused, shortID(r.ID))
			if c.why == "" {
				c.why = r.Refusal
			}
		case !named:
		case r.Stage != "" && !released(r.Due, p.key, entry):
			c.waiting = append(c.waiting, r.Stage)
		case !r.Unanswered.IsZero():
			c.behind = append(c.behind, shortID(r.ID)+" since "+r.Unanswered.UTC().Format(time.TimeOnly))
		default:
			c.behind = append(c.behind, shortID(r.ID))
		}
	}
	for id, peer := range j.peers {
		switch {
		case peer.here || !inRevision(p, peer.revision):
		case peer.elsewhere:
			c.meant++
			if peer.has(p, j, entry) {
				c.have++
			} else if named {
				c.behind = append(c.behind, shortID(id))
			}
		case now.Sub(peer.since) < t.options.Grace:
			c.meant++
			if named {
				c.gone = append(c.gone, shortID(id)+" since "+peer.since.UTC().Format(time.TimeOnly))
			}
		}
	}
	return c
}

// has says of a control plane that another server serves whether it has acknowledged a
// list that is known here and has the entry, or the whole of this snapshot, of which filters
// may keep the entry from it. Versions follow from the content alone.
func (p *peer) has(of *pending, j *judgement, entry snapshot.Entry) bool {
	if p.version != "" && p.version == j.snapshot.Version {
		return true
	}
	for _, k := range p.kinds {
		if k.TypeURL != j.typeURL || k.AckedVersion == "" {
			continue
		}
		for _, l := range j.recent {
			if l.Version() == k.AckedVersion {
				e, ok := l.Get(of.key)
				return ok && e.Same(entry)
			}
		}
	}
	return false
}

// inRevision says whether a control plane would take an object, as istiod decides it.
func inRevision(p *pending, revision string) bool {
	label := p.object.Labels[revisionLabel]
	return label == "" || revision == "" || label == revision
}

// shortID is what a control plane calls itself: the third part of an istiod's node id.
func shortID(id string) string {
	if parts := strings.Split(id, "~"); len(parts) > 3 && parts[2] != "" {
		_, copies, several := strings.Cut(parts[len(parts)-1], "#")
		if several {
			return parts[2] + "#" + copies
		}
		return parts[2]
	}
	return id
}

// released says whether what a control plane is to have by now has an entry as it is.
func released(due *snapshot.List, key string, entry snapshot.Entry) bool {
	e, ok := due.Get(key)
	return ok && e.Same(entry)
}
