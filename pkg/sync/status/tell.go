package status

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

const (
	// tellGone is how long a control plane must have been gone to be told of: istiods come
	// back by themselves when a server is started anew, or go to another.
	tellGone = 10 * time.Second
	// tellBehind is how long one must have acknowledged nothing that it was sent.
	tellBehind = 30 * time.Second
	// Of one mesh there are tellBurst events at once, and then one every tellEvery: what
	// happens meanwhile is told together.
	tellBurst = 6
	tellEvery = 20 * time.Second
	tellNames = 3
	// tellKept bounds what waits to be told.
	tellKept = 1000
)

// happening is a kind of event about control planes.
type happening int

const (
	refused happening = iota
	gonePlane
	behind
	connected
	caughtUp
	happenings
)

// words are those of each kind of event: about one control plane, and about several.
var words = [happenings]struct{ kind, reason, one, several string }{
	refused:   {corev1.EventTypeWarning, "ControlPlaneRefused", "Control plane %s", "%d control planes have refused what they were sent: %s"},
	gonePlane: {corev1.EventTypeWarning, "ControlPlaneGone", "Control plane %s is no longer connected", "%d control planes are no longer connected: %s"},
	behind:    {corev1.EventTypeWarning, "ControlPlaneBehind", "Control plane %s has acknowledged nothing for 30 seconds", "%d control planes have acknowledged nothing for 30 seconds: %s"},
	connected: {corev1.EventTypeNormal, "ControlPlaneConnected", "Control plane %s is connected", "%d control planes are connected: %s"},
	caughtUp:  {corev1.EventTypeNormal, "ControlPlaneCaughtUp", "Control plane %s has acknowledged everything again", "%d control planes have acknowledged everything again: %s"},
}

// teller remembers what was told of a mesh's control planes, and what is yet to be.
type teller struct {
	began   time.Time
	planes  map[string]*toldOf // by id
	pending [happenings][]string
	tokens  float64
	filled  time.Time
}

// toldOf is what was told of one control plane.
type toldOf struct {
	gone, behind bool
	refused      string
}

func newTeller(now time.Time) *teller {
	return &teller{began: now, planes: map[string]*toldOf{}, tokens: tellBurst, filled: now}
}

// heardOf takes in what was stored: that one of these is connected is not news, unless it had
// gone.
func (t *teller) heardOf(stored []v1alpha1.ControlPlaneStatus, server string, known map[string]v1alpha1.ControlPlaneStatus, now time.Time) {
	for i := range stored {
		c := &stored[i]
		gone := !c.Connected && (c.DisconnectedAt == nil || now.Sub(c.DisconnectedAt.Time) >= tellGone)
		if had := t.planes[c.ID]; had == nil {
			t.planes[c.ID] = &toldOf{gone: gone}
		} else if gone && c.Server != server && known[c.ID].Connected {
			had.gone = true // as another server has told
		}
	}
}

// isGone says whether there is to be told that a control plane has gone.
func (t *teller) isGone(c *v1alpha1.ControlPlaneStatus, now time.Time) bool {
	if c.Connected || now.Sub(c.DisconnectedAt.Time) < tellGone {
		return false
	}
	had := t.planes[c.ID]
	return had != nil && !had.gone
}

// doubts says whether it has to be asked once more whether somebody is gone: another server
// may have it.
func (t *teller) doubts(merged []v1alpha1.ControlPlaneStatus, asked, now time.Time) bool {
	return slices.ContainsFunc(merged, func(c v1alpha1.ControlPlaneStatus) bool {
		return t.isGone(&c, now) && asked.Sub(c.DisconnectedAt.Time) < tellGone
	})
}

// tell tells what has happened to the control planes of a mesh since it was called last.
func (r *Reporter) tell(ctx context.Context, mesh string, m *report, now time.Time) {
	if r.Tell == nil {
		return
	}
	t := m.told
	for _, id := range slices.Sorted(maps.Keys(m.known)) {
		if c := m.known[id]; c.Connected {
			t.look(&c, now)
		}
	}
	present := make(map[string]struct{}, len(m.merged))
	for i := range m.merged {
		c := &m.merged[i]
		present[c.ID] = struct{}{}
		if !t.isGone(c, now) {
			continue
		}
		if c.Server != r.Servers.Name() {
			// The server that it was connected to tells, if it can.
			alive, err := r.Servers.Alive(ctx, c.Server)
			if err != nil {
				continue
			}
			if alive {
				t.planes[c.ID].gone = true
				continue
			}
		}
		t.planes[c.ID].gone = true
		t.add(gonePlane, c.Name())
	}
	for id := range t.planes {
		_, merged := present[id]
		if _, known := m.known[id]; !merged && !known {
			delete(t.planes, id)
		}
	}
	t.tokens = min(tellBurst, t.tokens+float64(now.Sub(t.filled))/float64(tellEvery))
	t.filled = now
	for h, names := range t.pending {
		if len(names) == 0 || t.tokens < 1 {
			continue
		}
		t.tokens--
		w := words[h]
		message := fmt.Sprintf(w.one, names[0])
		if len(names) > 1 {
			message = fmt.Sprintf(w.several, len(names), enumerate(names))
		}
		t.pending[h] = nil
		r.Tell(ctx, mesh, w.kind, w.reason, message)
	}
}

// look finds what is new of a control plane that is connected to this server.
func (t *teller) look(c *v1alpha1.ControlPlaneStatus, now time.Time) {
	had := t.planes[c.ID]
	if had == nil {
		had = &toldOf{gone: true}
		t.planes[c.ID] = had
	}
	if had.gone {
		had.gone = false
		t.add(connected, c.Name())
	}
	since := c.ConnectedSince
	if c.BehindSince != nil {
		since = *c.BehindSince
	}
	refusal := ""
	if k := c.Refused(); k != nil {
		refusal = fmt.Sprintf("%s has refused %s: %s", c.Name(), k.Kind(), k.Error)
	}
	switch {
	case refusal != "":
		if had.refused != refusal {
			t.add(refused, refusal)
		}
		had.behind = true
	case c.Acknowledged():
		if had.behind {
			t.add(caughtUp, c.Name())
		}
		had.behind = false
	case !had.behind && now.Sub(since.Time) >= tellBehind:
		had.behind = true
		t.add(behind, c.Name())
	}
	had.refused = refusal
}

func (t *teller) add(h happening, name string) {
	if len(t.pending[h]) < tellKept && !slices.Contains(t.pending[h], name) {
		t.pending[h] = append(t.pending[h], name)
	}
}

// enumerate names a few.
func enumerate(names []string) string {
	if len(names) <= tellNames {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:tellNames], ", "), len(names)-tellNames)
}
