package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// AnnotationPromote, on a Mesh, lets the next stage have what the present one has. Its
	// value is status.rollout.id as it was seen: should the rollout have moved on since, it
	// means nothing.
	AnnotationPromote = "vmesh.io/promote"
	// AnnotationAbort, on a Mesh, ends the rollout that status.rollout.id names, whatever has
	// joined it since: all stages return to what they had before it.
	AnnotationAbort = "vmesh.io/abort"

	// LabelRevision, LabelPod and LabelControlPlaneNamespace are labels of control planes.
	LabelRevision              = "vmesh.io/revision"
	LabelPod                   = "vmesh.io/pod"
	LabelControlPlaneNamespace = "vmesh.io/namespace"

	// DefaultRevision is the LabelRevision of a control plane that has no revision.
	DefaultRevision = "default"
)

// RolloutPhase is where the releases of a mesh stand.
type RolloutPhase string

const (
	// RolloutComplete: all stages have the newest configuration.
	RolloutComplete RolloutPhase = "Complete"
	// RolloutWaiting: the control planes of the present stage do not all have it yet.
	RolloutWaiting RolloutPhase = "Waiting"
	// RolloutBaking: they have it, and the stage's bake time is running.
	RolloutBaking RolloutPhase = "Baking"
	// RolloutPaused: they have it, and the next stage waits for a promotion.
	RolloutPaused RolloutPhase = "Paused"
	// RolloutAborted: the last rollout was aborted, and what it changed is pinned.
	RolloutAborted RolloutPhase = "Aborted"
)

// MeshRolloutStatus is where the releases of a mesh stand.
type MeshRolloutStatus struct {
	// What is to be given to promote or abort exactly this: see the annotations vmesh.io/promote
	// and vmesh.io/abort. Empty while there is nothing to promote.
	// +optional
	ID string `json:"id,omitempty"`
	// Complete, Waiting, Baking, Paused or Aborted.
	Phase RolloutPhase `json:"phase"`
	// What is being waited for, in words.
	// +optional
	Message string `json:"message,omitempty"`
	// The stage that the rollout has come to.
	// +optional
	Stage string `json:"stage,omitempty"`
	// When the rollout began, and when the last change joined it.
	// +optional
	StartedAt *metav1.Time `json:"startedAt,omitempty"`
	// +optional
	ChangedAt *metav1.Time `json:"changedAt,omitempty"`
	// When the next stage receives it by itself, if nothing happens before.
	// +optional
	PromotionAt *metav1.Time `json:"promotionAt,omitempty"`
	// How many resources differ between the first stage and the last.
	// +optional
	Changes int32 `json:"changes"`
	// The stages, in order.
	// +optional
	// +listType=map
	// +listMapKey=name
	Stages []MeshStageStatus `json:"stages,omitempty"`
	// How many resources are held at their last good form, or kept from appearing, because the
	// rollout that changed them was aborted. They are released when they are written again.
	// +optional
	Pinned int32 `json:"pinned"`
	// Which they are. At most 100 are listed.
	// +optional
	// +listType=atomic
	PinnedResources []PinnedResource `json:"pinnedResources,omitempty"`
}

// MeshStageStatus is where a stage stands.
type MeshStageStatus struct {
	// Its name.
	Name string `json:"name"`
	// The version of the snapshot that its control planes are to have.
	Version string `json:"version"`
	// How many of its control planes are connected, and how many of them have that.
	ControlPlanes int32 `json:"controlPlanes"`
	Current       int32 `json:"current"`
}

// PinnedResource is a resource that is held back by an aborted rollout.
type PinnedResource struct {
	// Its kind.
	Kind string `json:"kind"`
	// Its namespace.
	Namespace string `json:"namespace"`
	// Its name.
	Name string `json:"name"`
	// What its control planes have instead: Previous, or Absent when there was none.
	Held string `json:"held"`
}
