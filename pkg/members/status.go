package members

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

const (
	// countsEvery is how often a status is written for counts and latencies alone.
	countsEvery = time.Minute
	// seenEvery is how often one is written to say that all is as it was.
	seenEvery = 5 * time.Minute
	// maxLocalities are listed in a status.
	maxLocalities = 100
	// maxOnlyHere are the services listed that a member alone serves.
	maxOnlyHere = 10
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// request is what Go puts before the cause of a request's failure. In a watch's it is never the same twice, and a status that
// quoted it would be written over and over.
var request = regexp.MustCompile(`\b(Get|Post) "[^"]*": `)

// conditions say how the member is.
func (w *worker) conditions(m *v1alpha1.MemberCluster, given metav1.Condition, reading *Reading) []metav1.Condition {
	condition := func(kind string, status metav1.ConditionStatus, reason, message string) metav1.Condition {
		return metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message}
	}
	reachable := condition(v1alpha1.ConditionReachable, metav1.ConditionTrue, "Answers", "its API answers")
	if w.down != nil {
		reachable = condition(v1alpha1.ConditionReachable, metav1.ConditionFalse, w.down.Reason, w.down.Message)
	}

	discovered := condition(v1alpha1.ConditionDiscovered, metav1.ConditionUnknown, "NotRead", "nobody reads its services here")
	if reading != nil {
		trouble := request.ReplaceAllString(reading.Trouble, "")
		if w.down != nil && trouble != "" {
			trouble = w.down.Message
		}
		switch {
		case w.own == nil && !reading.Synced:
			discovered = condition(v1alpha1.ConditionDiscovered, metav1.ConditionFalse, "NoAccess", "its services cannot be read without access to it")
		case reading.Trouble != "" && reading.Synced:
			discovered = condition(v1alpha1.ConditionDiscovered, metav1.ConditionFalse, "Stale", "its services are as they were last seen: "+trouble)
		case reading.Trouble != "":
			discovered = condition(v1alpha1.ConditionDiscovered, metav1.ConditionFalse, "Failing", "its services could not be read yet: "+trouble)
		case !reading.Synced:
			discovered = condition(v1alpha1.ConditionDiscovered, metav1.ConditionFalse, "Reading", "its services are being read")
		default:
			discovered = condition(v1alpha1.ConditionDiscovered, metav1.ConditionTrue, "Read", "its services have been read")
		}
	}

	conflicting := condition(v1alpha1.ConditionConflicting, metav1.ConditionFalse, "None", "it clashes with no other member")
	if twin, _ := w.twin(m); twin != "" {
		conflicting = condition(v1alpha1.ConditionConflicting, metav1.ConditionTrue, ReasonSameCluster,
			fmt.Sprintf("it is the same cluster as member %s (their namespaces kube-system have one UID), so that its endpoints would count twice: delete one of the two", twin))
	} else if reading != nil && len(reading.Overlaps) > 0 {
		conflicting = condition(v1alpha1.ConditionConflicting, metav1.ConditionTrue, "SharedAddresses",
			fmt.Sprintf("in the same network its pods have addresses that those of other members have too: %s; give the members networks of their own (spec.network), with gateways between them", overlaps(reading.Overlaps)))
	}

	ready := condition(v1alpha1.ConditionReady, metav1.ConditionTrue, "Ready", "control planes have its services as they are to have them")
	switch wanted := given.Reason == ReasonDrained || given.Reason == ReasonDiscoveryDisabled; {
	case given.Status != metav1.ConditionTrue && !wanted:
		ready = condition(v1alpha1.ConditionReady, metav1.ConditionFalse, given.Reason, given.Message)
	case reachable.Status == metav1.ConditionFalse:
		ready = condition(v1alpha1.ConditionReady, metav1.ConditionFalse, reachable.Reason, reachable.Message)
	case given.Status == metav1.ConditionTrue && given.Reason != ReasonGiven:
		ready = condition(v1alpha1.ConditionReady, metav1.ConditionFalse, given.Reason, given.Message)
	case conflicting.Status == metav1.ConditionTrue:
		ready = condition(v1alpha1.ConditionReady, metav1.ConditionFalse, conflicting.Reason, conflicting.Message)
	case wanted:
		ready = condition(v1alpha1.ConditionReady, metav1.ConditionTrue, given.Reason, given.Message)
	}
	return []metav1.Condition{ready, reachable, discovered, given, conflicting}
}

// report writes the status if what changed is worth it: conditions, versions and credentials at once, counts and
// latencies within a minute, and that all is as it was every five.
func (w *worker) report(ctx context.Context, m *v1alpha1.MemberCluster, given metav1.Condition) error {
	var reading *Reading
	if w.keeper.config.Reader != nil {
		r := w.keeper.config.Reader.Reading(m.Name)
		reading = &r
	}
	now := time.Now()
	if reading != nil && reading.Synced && now.Sub(w.onlyAt) >= countsEvery {
		services, names := w.keeper.config.Reader.OnlyIn(m.Name, maxOnlyHere)
		w.only, w.onlyAt = &v1alpha1.MemberOnlyHere{Services: int32(services), Names: names}, now
	}
	conditions := w.conditions(m, given, reading)
	type transition struct {
		from *metav1.Condition
		to   metav1.Condition
	}
	var transitions []transition
	change := func(s *v1alpha1.MemberClusterStatus) {
		transitions = nil
		for _, c := range conditions {
			c.ObservedGeneration = m.Generation
			old := meta.FindStatusCondition(s.Conditions, c.Type)
			if old == nil || old.Status != c.Status || old.Reason != c.Reason {
				t := transition{to: c}
				if old != nil {
					was := *old
					t.from = &was
				}
				transitions = append(transitions, t)
			}
			if old != nil && old.Status != c.Status && c.Type == v1alpha1.ConditionReachable && !w.awaySince.IsZero() {
				c.LastTransitionTime = metav1.NewTime(w.awaySince)
			}
			meta.SetStatusCondition(&s.Conditions, c)
		}
		if w.last.version != "" {
			s.Version = w.last.version
		}
		s.Credentials = w.credentials(s.Credentials)
		s.ClockSkew = nil
		if skew := w.last.skew; skew.Abs() > time.Second {
			s.ClockSkew = &metav1.Duration{Duration: coarse(skew)}
		}
		if w.last.latency > 0 {
			s.Latency = &metav1.Duration{Duration: coarse(w.last.latency)}
		}
		if !w.lastSeen.IsZero() {
			s.LastSeen = &metav1.Time{Time: w.lastSeen.Truncate(time.Second)}
		}
		// After a start, what was counted before is better than what has been read so far.
		if reading != nil && reading.Synced {
			s.Services, s.Endpoints, s.ReadyEndpoints, s.Nodes = int32(reading.Services), int32(reading.Endpoints), int32(reading.ReadyEndpoints), int32(reading.Nodes)
			s.Localities = reading.Localities[:min(len(reading.Localities), maxLocalities)]
		}
		if w.only != nil {
			s.OnlyHere = w.only.DeepCopy()
		}
	}
	if w.written != nil {
		next := w.written.DeepCopy()
		change(next)
		if !w.worthWriting(next, m.Generation, now) {
			return nil
		}
	}
	var written *v1alpha1.MemberClusterStatus
	if err := w.keeper.config.Storage.UpdateStatus(ctx, m.Name, m.UID, func(s *v1alpha1.MemberClusterStatus) {
		change(s)
		written = s.DeepCopy()
	}); err != nil {
		return err
	}
	w.written, w.writtenG, w.softAt = written, m.Generation, now
	for _, t := range transitions {
		w.event(ctx, m, t.from, t.to)
	}
	return nil
}

func (w *worker) worthWriting(next *v1alpha1.MemberClusterStatus, generation int64, now time.Time) bool {
	was, is := w.written.DeepCopy(), next.DeepCopy()
	for _, s := range []*v1alpha1.MemberClusterStatus{was, is} {
		s.LastSeen = nil
	}
	since := now.Sub(w.softAt)
	switch {
	case generation != w.writtenG || since >= seenEvery:
		return true
	case since >= countsEvery && !equality.Semantic.DeepEqual(was, is):
		return true
	}
	for _, s := range []*v1alpha1.MemberClusterStatus{was, is} {
		s.Latency, s.ClockSkew, s.Localities, s.OnlyHere = nil, nil, nil, nil
		s.Services, s.Endpoints, s.ReadyEndpoints, s.Nodes = 0, 0, 0, 0
	}
	return !equality.Semantic.DeepEqual(was, is)
}

// event tells of a condition that has changed. A reason alone that is another is worth it if something is wrong.
func (w *worker) event(ctx context.Context, m *v1alpha1.MemberCluster, old *metav1.Condition, c metav1.Condition) {
	kind, reason := corev1.EventTypeWarning, c.Reason
	same := old != nil && old.Status == c.Status
	switch {
	case c.Type == v1alpha1.ConditionReachable && c.Status == metav1.ConditionTrue:
		kind, reason = corev1.EventTypeNormal, "Reachable"
	case c.Type == v1alpha1.ConditionReachable:
	case c.Type == v1alpha1.ConditionAccessGiven && c.Status == metav1.ConditionTrue:
		if same {
			return // they keep what they have, and Reachable tells why that is worth a word
		}
		kind, reason = corev1.EventTypeNormal, "AccessGiven"
	case c.Type == v1alpha1.ConditionAccessGiven:
		if reason = "AccessWithheld"; c.Reason == ReasonDrained || c.Reason == ReasonDiscoveryDisabled {
			kind = corev1.EventTypeNormal
		}
	case c.Type == v1alpha1.ConditionConflicting && c.Status == metav1.ConditionTrue:
		reason = "Conflicting"
	case c.Type == v1alpha1.ConditionDiscovered && c.Status == metav1.ConditionFalse && c.Reason != "Reading" && !same && w.down == nil:
		reason = "NotDiscovered"
	default:
		return
	}
	w.keeper.config.Storage.Event(ctx, m.Name, m.UID, kind, reason, c.Message)
}

// coarse rounds a duration to steps of about a half, so that it changes when that says something.
func coarse(d time.Duration) time.Duration {
	if d < 0 {
		return -coarse(-d)
	}
	for step := time.Millisecond; ; step *= 10 {
		for _, n := range []time.Duration{1, 2, 3, 5, 7} {
			if d <= step*n {
				return step * n
			}
		}
	}
}
