package istio

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// ConditionDistributed is the type of the condition that says whether the control planes
// have an object as it is.
const ConditionDistributed = "Distributed"

// Condition is one of an object's conditions, in the form that all of Istio's kinds share.
type Condition struct {
	Status             metav1.ConditionStatus
	Reason             string
	Message            string
	ObservedGeneration int64
	// LastTransitionTime is since when the status is what it is. SetCondition sees to it.
	LastTransitionTime time.Time
}

// Is says whether two conditions differ in nothing but their messages and times.
func (c Condition) Is(other Condition) bool {
	return c.Status == other.Status && c.Reason == other.Reason && c.ObservedGeneration == other.ObservedGeneration
}

// GetCondition is an object's condition of a type. What cannot be read is none.
func GetCondition(o *object.Object, kind string) (Condition, bool) {
	raw := o.Field("status")
	if !bytes.Contains(raw, []byte(kind)) {
		return Condition{}, false
	}
	var status struct {
		Conditions []struct {
			Type, Status, Reason, Message string
			LastTransitionTime            metav1.Time
			ObservedGeneration            json.RawMessage
		}
	}
	if json.Unmarshal(raw, &status) != nil {
		return Condition{}, false
	}
	for _, c := range status.Conditions {
		if c.Type == kind {
			// Istio's definitions let it be a string as well; vmesh writes a number, as kubectl wants it.
			observed, _ := strconv.ParseInt(string(bytes.Trim(c.ObservedGeneration, `"`)), 10, 64)
			return Condition{
				Status: metav1.ConditionStatus(c.Status), Reason: c.Reason, Message: c.Message,
				ObservedGeneration: observed, LastTransitionTime: c.LastTransitionTime.Time,
			}, true
		}
	}
	return Condition{}, false
}

// SetCondition gives an object a condition of a type, in place of the one it has, and nil
// takes that away. Everything else in the status stays. It fails for a status that is not
// of the form that Istio's definitions demand.
func SetCondition(o *object.Object, kind string, c *Condition, now time.Time) error {
	status := map[string]any{}
	if raw := o.Field("status"); len(raw) > 0 && string(raw) != "null" {
		if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &status); err != nil {
			return fmt.Errorf("status: %w", err)
		}
	}
	var others []any
	switch present := status["conditions"].(type) {
	case nil:
	case []any:
		others = present
	default:
		return fmt.Errorf("status.conditions: must be a list, not %T", present)
	}
	at, old := -1, map[string]any(nil)
	for i, other := range others {
		if m, _ := other.(map[string]any); m["type"] == kind {
			at, old = i, m
			break
		}
	}
	if c == nil {
		if at < 0 {
			return nil
		}
		status["conditions"] = slices.Delete(others, at, at+1)
		if len(others) == 1 {
			delete(status, "conditions")
		}
		return o.SetMember("status", status)
	}
	since := now
	if !c.LastTransitionTime.IsZero() {
		since = c.LastTransitionTime
	} else if before, err := time.Parse(time.RFC3339, text(old["lastTransitionTime"])); err == nil && old["status"] == string(c.Status) {
		since = before
	}
	condition := map[string]any{
		"type": kind, "status": string(c.Status), "reason": c.Reason, "message": c.Message,
		"observedGeneration": c.ObservedGeneration, "lastTransitionTime": since.UTC().Format(time.RFC3339),
	}
	if maps.Equal(scalars(condition), scalars(old)) {
		return nil
	}
	if at < 0 {
		others = append(others, condition)
	} else {
		others[at] = condition
	}
	status["conditions"] = others
	return o.SetMember("status", status)
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

// scalars makes a condition comparable: anything that is not plain makes it unlike all others.
func scalars(m map[string]any) map[string]string {
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[k] = fmt.Sprintf("%T %v", v, v)
	}
	return out
}
