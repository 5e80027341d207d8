package istio

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
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
	before := len(others)
	at, old := -1, map[string]any(nil)
	// kubectl takes the first of a type, and types for the same that differ in case.
	others = slices.DeleteFunc(others, func(other any) bool {
		m, _ := other.(map[string]any)
		return strings.EqualFold(text(m["type"]), kind) && text(m["type"]) != kind
	})
	for i := 0; i < len(others); i++ {
		if m, _ := others[i].(map[string]any); m["type"] != kind {
			continue
		} else if at < 0 && c != nil {
			at, old = i, m
			continue
		}
		others = slices.Delete(others, i, i+1)
		i--
	}
	if c == nil {
		if len(others) == before {
			return nil
		}
		if status["conditions"] = others; len(others) == 0 {
			delete(status, "conditions")
		}
		return o.SetMember("status", status)
	}
	since := now
	if !c.LastTransitionTime.IsZero() {
		since = c.LastTransitionTime
	} else if then, err := time.Parse(time.RFC3339, text(old["lastTransitionTime"])); err == nil && old["status"] == string(c.Status) {
		since = then
	}
	condition := map[string]any{
		"type": kind, "status": string(c.Status), "reason": c.Reason, "message": c.Message,
		"observedGeneration": c.ObservedGeneration, "lastTransitionTime": since.UTC().Format(time.RFC3339),
	}
	if len(others) == before && maps.Equal(scalars(condition), scalars(old)) {
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
