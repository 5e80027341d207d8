package snapshot

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// Policy is what a mesh says about who receives what, and when. It never changes.
type Policy struct {
	// UID is the mesh's.
	UID string
	// Stages are those of its releases, in order; none when all receive everything at once.
	Stages []Stage
	// Epoch tells apart the times in which the mesh has stages.
	Epoch uint64
	// Promote and Abort are the rollouts that somebody wants promoted or aborted.
	Promote, Abort string

	rootNamespace string
	filters       []filter
	clusters      *clusterLabels // nil when no filter asks for them
	unknown       bool           // the mesh could never be read
	order         uint64
}

const defaultRootNamespace = "istio-system"

// Stage is one step of a release.
type Stage struct {
	v1alpha1.MeshStage
	controlPlanes labels.Selector
}

// filter is a v1alpha1.MeshFilter that has been read.
type filter struct {
	text            string // equal for filters that say the same
	controlPlanes   labels.Selector
	virtualClusters labels.Selector // nil for all
	kinds           []string
	namespaces      []v1alpha1.NamespacePattern
}

// clusterLabels are the labels of virtual clusters. It never changes once it is in a policy.
type clusterLabels struct {
	of     map[string]labels.Set
	shared bool
}

// ControlPlane is who a subscriber is.
type ControlPlane struct {
	// Revision is istiod's; empty when it has none.
	Revision string
	// Labels are what the selectors of filters and stages see.
	Labels map[string]string
}

// meshSource is the part of a Mesh that its policy is made of.
type meshSource struct{ uid, spec, promote, abort string }

// Stage is the name of the stage that a control plane belongs to; empty when there are none.
func (p *Policy) Stage(who ControlPlane) string {
	if p == nil || len(p.Stages) == 0 {
		return ""
	}
	for _, s := range p.Stages {
		if s.controlPlanes.Matches(labels.Set(who.Labels)) {
			return s.Name
		}
	}
	return p.Stages[len(p.Stages)-1].Name
}

// readPolicy takes in what a mesh says now.
func (m *model) readPolicy(mesh *mesh, o *object.Object) error {
	if reason, is := o.Annotations[QuarantinedAnnotation]; is {
		if !mesh.known {
			mesh.policy, mesh.changed = &Policy{unknown: true, order: nextOrder()}, true
		}
		return fmt.Errorf("mesh %s cannot be read: %s", o.Name, reason)
	}
	source := meshSource{
		uid: string(o.UID), spec: string(o.Field("spec")),
		promote: o.Annotations[v1alpha1.AnnotationPromote], abort: o.Annotations[v1alpha1.AnnotationAbort],
	}
	if mesh.known && source == mesh.read {
		return nil
	}
	policy, err := parsePolicy(source)
	if err != nil {
		if !mesh.known {
			mesh.policy, mesh.changed = &Policy{unknown: true, order: nextOrder()}, true
		}
		return fmt.Errorf("reading mesh %s: %w", o.Name, err)
	}
	if policy != nil {
		switch old := mesh.policy; {
		case len(policy.Stages) == 0:
		case old != nil && len(old.Stages) > 0 && old.UID == policy.UID:
			policy.Epoch = old.Epoch
		default:
			m.epochs++
			policy.Epoch = m.epochs
		}
		if policy.asksForClusters() {
			m.labels.shared, policy.clusters = true, m.labels
		}
	}
	mesh.policy, mesh.read, mesh.known, mesh.changed = policy, source, true, true
	return nil
}

func parsePolicy(source meshSource) (*Policy, error) {
	var spec v1alpha1.MeshSpec
	if source.spec != "" {
		if err := json.Unmarshal([]byte(source.spec), &spec); err != nil {
			return nil, err
		}
	}
	if len(spec.Filters) == 0 && spec.Rollout == nil {
		return nil, nil
	}
	p := &Policy{UID: source.uid, Promote: source.promote, Abort: source.abort, rootNamespace: spec.RootNamespace, order: nextOrder()}
	if p.rootNamespace == "" {
		p.rootNamespace = defaultRootNamespace
	}
	for _, f := range spec.Filters {
		selector, err := metav1.LabelSelectorAsSelector(&f.ControlPlanes)
		if err != nil {
			return nil, fmt.Errorf("filter %s: controlPlanes: %w", f.Name, err)
		}
		read := filter{controlPlanes: selector, kinds: f.Kinds, namespaces: f.Namespaces}
		if f.VirtualClusters != nil {
			if read.virtualClusters, err = metav1.LabelSelectorAsSelector(f.VirtualClusters); err != nil {
				return nil, fmt.Errorf("filter %s: virtualClusters: %w", f.Name, err)
			}
		}
		f.Name, f.ControlPlanes = "", metav1.LabelSelector{}
		text, err := json.Marshal(f)
		if err != nil {
			return nil, err
		}
		read.text = string(text)
		p.filters = append(p.filters, read)
	}
	if spec.Rollout != nil {
		for _, s := range spec.Rollout.Stages {
			selector, err := metav1.LabelSelectorAsSelector(&s.ControlPlanes)
			if err != nil {
				return nil, fmt.Errorf("stage %s: controlPlanes: %w", s.Name, err)
			}
			p.Stages = append(p.Stages, Stage{s, selector})
		}
	}
	return p, nil
}

func (p *Policy) asksForClusters() bool {
	return slices.ContainsFunc(p.filters, func(f filter) bool { return f.virtualClusters != nil })
}

// label takes note of a virtual cluster's labels. Those of one that is gone are kept no longer:
// what is left of it stays where it is.
func (m *model) label(cluster string, to map[string]string, exists bool) {
	if old, had := m.labels.of[cluster]; had == exists && maps.Equal(old, to) {
		return
	}
	if m.labels.shared || m.labels.of == nil {
		m.labels = &clusterLabels{of: maps.Clone(m.labels.of)}
		if m.labels.of == nil {
			m.labels.of = map[string]labels.Set{}
		}
	}
	if exists {
		m.labels.of[cluster] = to
	} else {
		delete(m.labels.of, cluster)
	}
}

// relabel brings the labels of virtual clusters to the policies that ask for them.
func (m *model) relabel() {
	for _, mesh := range m.meshes {
		if p := mesh.policy; p != nil && p.clusters != nil && p.clusters != m.labels {
			next := *p
			next.clusters, next.order, m.labels.shared = m.labels, nextOrder(), true
			mesh.policy, mesh.changed = &next, true
		}
	}
}
