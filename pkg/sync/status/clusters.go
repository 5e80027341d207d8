package status

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

const (
	// maxHeldBack is how many objects that are held back a virtual cluster's status lists.
	maxHeldBack = 100
	// maxScope is how many hosts, and how many namespaces, of its scope it lists.
	maxScope = 100
)

// sharing is what a virtual cluster's status tells of the mesh that it shares.
type sharing struct {
	HeldBack []v1alpha1.HeldBackResource
	Count    int32
	Grants   []v1alpha1.ReceivedGrant
	Scope    *v1alpha1.SidecarScopeStatus
}

func (s *sharing) empty() bool { return s.Count == 0 && len(s.Grants) == 0 && s.Scope == nil }

// shared are what the snapshots were made of when virtual clusters were reported last.
type shared struct {
	heldBack map[string]*snapshot.HeldBack // by mesh
	scopes   map[string]*snapshot.Scopes   // by mesh
	index    *ownership.Index
	stale    uint64
}

// reportClusters tells in the status of virtual clusters what is held back of them, what
// they are granted and what is in their scope. Those of which there is nothing to tell, and nothing was told, cost
// nothing.
func (r *Reporter) reportClusters(ctx context.Context, snapshots []*snapshot.Snapshot) error {
	index, told, change := r.snapshots.Sharing()
	now := shared{heldBack: map[string]*snapshot.HeldBack{}, scopes: map[string]*snapshot.Scopes{}, index: index, stale: change}
	for _, s := range snapshots {
		now.heldBack[s.Mesh], now.scopes[s.Mesh] = s.HeldBack, s.Scopes
	}
	if index == nil || r.failed == 0 && now.index == r.shared.index && now.stale == r.shared.stale && maps.Equal(now.heldBack, r.shared.heldBack) && maps.Equal(now.scopes, r.shared.scopes) {
		return nil
	}
	desired := map[string]*sharing{}
	of := func(cluster string) *sharing {
		s := desired[cluster]
		if s == nil {
			s = &sharing{}
			desired[cluster] = s
		}
		return s
	}
	for _, cluster := range told {
		of(cluster)
	}
	for cluster := range r.clusters {
		of(cluster)
	}
	for cluster := range index.Grantees() {
		if granted := index.Granted(cluster); len(granted) > 0 {
			of(cluster).Grants = granted
		}
	}
	for _, s := range snapshots {
		for h := range s.HeldBack.All() {
			c := of(h.VirtualCluster)
			if c.Count++; c.Count <= maxHeldBack {
				c.HeldBack = append(c.HeldBack, h.HeldBackResource)
			}
		}
		for cluster, scope := range s.Scopes.All() {
			of(cluster).Scope = &v1alpha1.SidecarScopeStatus{
				Namespaces: int32(scope.Namespaces),
				Hosts:      scope.Hosts[:min(len(scope.Hosts), maxScope)],
				Replaced:   scope.Replaced[:min(len(scope.Replaced), maxScope)],
				Message:    scope.Message,
			}
		}
	}
	var errs []error
	for _, cluster := range slices.Sorted(maps.Keys(desired)) {
		want := desired[cluster]
		if last, known := r.clusters[cluster]; known && equality.Semantic.DeepEqual(last, want) {
			continue
		}
		if err := r.writer.UpdateVirtualClusterStatus(ctx, cluster, func(status *v1alpha1.VirtualClusterStatus) error {
			status.HeldBack, status.HeldBackCount, status.Grants, status.SidecarScope = want.HeldBack, want.Count, want.Grants, want.Scope
			meta.SetStatusCondition(&status.Conditions, conforming(want))
			return nil
		}); err != nil {
			errs = append(errs, fmt.Errorf("virtual cluster %s: %w", cluster, err))
			continue
		}
		if want.empty() {
			delete(r.clusters, cluster)
		} else {
			r.clusters[cluster] = want
		}
	}
	r.shared, r.failed = now, len(errs)
	return errors.Join(errs...)
}

func conforming(s *sharing) metav1.Condition {
	if s.Count == 0 {
		return v1alpha1.Conforming()
	}
	message := "1 object does not reach the mesh"
	if s.Count > 1 {
		message = fmt.Sprintf("%d objects do not reach the mesh", s.Count)
	}
	const shown = 3
	for i, h := range s.HeldBack[:min(len(s.HeldBack), shown)] {
		separator := ", "
		if i == 0 {
			separator = ": "
		}
		message += fmt.Sprintf("%s%s %s/%s (%s)", separator, h.Kind, h.Namespace, h.Name, h.Reason)
	}
	if s.Count > shown {
		message += ", ..."
	}
	return metav1.Condition{
		Type: v1alpha1.ConditionConforming, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonHeldBack, Message: message + "; see status.heldBack",
	}
}
