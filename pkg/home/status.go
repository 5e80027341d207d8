package home

import (
	"context"
	"fmt"
	"slices"
	"strings"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// Reasons of conditions, and of events.
const (
	ReasonWritten                = "Written"
	ReasonVirtualClusterNotFound = "VirtualClusterNotFound"
	ReasonOtherMesh              = "OtherMesh"
	ReasonNoConfigSource         = "NoConfigSource"
	ReasonConflict               = "Conflict"
	ReasonInvalid                = "Invalid"
	ReasonWriteFailed            = "WriteFailed"

	ReasonCurrent       = "Current"
	ReasonRestartNeeded = "RestartNeeded"

	ReasonConnected      = "Connected"
	ReasonNotNeeded      = "NotNeeded"
	ReasonMissingGateway = "MissingGateway"
	ReasonLookingUp      = "LookingUp"

	ReasonSettingsWritten = "SettingsWritten" // of an event
)

// settingsCurrent says whether all control planes have started since settings changed that they
// read only then. vmesh sees their streams and not their processes: one that only
// connected anew counts as started.
func settingsCurrent(home *v1alpha1.MeshHomeStatus, planes []v1alpha1.ControlPlaneStatus) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionSettingsCurrent, Status: metav1.ConditionTrue, Reason: ReasonCurrent,
		Message: "All connected control planes have the settings that are read when they start"}
	if len(home.RestartFor) == 0 || home.SettingsChangedAt == nil {
		return c
	}
	var before []string
	for i := range planes {
		// Times have seconds: one that connected in the second of the change may have been first.
		if p := &planes[i]; p.Connected && !p.ConnectedSince.After(home.SettingsChangedAt.Time) {
			before = append(before, p.Name())
		}
	}
	if len(before) == 0 {
		return c
	}
	slices.Sort(before)
	before = slices.Compact(before)
	const shown = 3
	more := ""
	if len(before) > shown {
		before, more = before[:shown], fmt.Sprintf(" and %d more", len(before)-shown)
	}
	c.Status, c.Reason = metav1.ConditionFalse, ReasonRestartNeeded
	c.Message = fmt.Sprintf("%s changed, which istiod reads only when it starts: restart %s%s", strings.Join(home.RestartFor, ", "), strings.Join(before, ", "), more)
	return c
}

// report writes the status of a mesh if it is another, and tells of conditions that are.
func (c *Controller) report(ctx context.Context, mesh *v1alpha1.Mesh, out outcome) error {
	if same(&mesh.Status, out) {
		return nil
	}
	var before, after []metav1.Condition
	if err := c.UpdateStatus(ctx, mesh.Name, func(status *v1alpha1.MeshStatus) error {
		before = slices.Clone(status.Conditions)
		status.Home, status.Networks = out.home, out.networks
		for _, t := range conditionTypes {
			if is := findCondition(out.conditions, t); is != nil {
				is := *is
				is.ObservedGeneration = 0
				meta.SetStatusCondition(&status.Conditions, is)
			} else {
				meta.RemoveStatusCondition(&status.Conditions, t)
			}
		}
		after = status.Conditions
		return nil
	}); err != nil {
		return err
	}
	for _, t := range conditionTypes {
		was, is := findCondition(before, t), findCondition(after, t)
		switch {
		case is == nil:
		case was == nil && is.Status == metav1.ConditionTrue: // nothing has changed for anybody
		case was == nil || was.Status != is.Status || was.Reason != is.Reason:
			c.tellOf(ctx, mesh.Name, is.Reason, is.Message, is.Status == metav1.ConditionFalse)
		}
	}
	return nil
}

// same says whether a status tells just that.
func same(status *v1alpha1.MeshStatus, out outcome) bool {
	if !apiequality.Semantic.DeepEqual(status.Home, out.home) || !apiequality.Semantic.DeepEqual(status.Networks, out.networks) {
		return false
	}
	for _, t := range conditionTypes {
		was, is := findCondition(status.Conditions, t), findCondition(out.conditions, t)
		if (was == nil) != (is == nil) || was != nil && (was.Status != is.Status || was.Reason != is.Reason || was.Message != is.Message) {
			return false
		}
	}
	return true
}

func findCondition(all []metav1.Condition, t string) *metav1.Condition {
	return meta.FindStatusCondition(all, t)
}
