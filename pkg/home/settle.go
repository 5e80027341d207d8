package home

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/settings"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/quota"
	"github.com/vmesh-io/vmesh/pkg/registry/vmesh"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// The keys that istiod reads.
const (
	meshKey     = "mesh"
	networksKey = "meshNetworks"
)

// state is what vmesh remembers in a config map, beside what istiod reads there: it changes in
// one write with it, whichever server writes.
type state struct {
	// AtStart are fingerprints of the settings that istiod reads only when it starts.
	AtStart map[string]string `json:"atStart"`
	// RestartFor are those of them that have changed, the last time at ChangedAt.
	RestartFor []string     `json:"restartFor,omitempty"`
	ChangedAt  *metav1.Time `json:"changedAt,omitempty"`
	WrittenAt  metav1.Time  `json:"writtenAt"`
	// Sources are where control planes read their configuration from, if nobody said so.
	Sources []string `json:"sources,omitempty"`
	// Gateways are the addresses of the services by which networks are reached.
	Gateways map[string][]string `json:"gateways,omitempty"`
}

// homeSetting is what a home that has moved is called among the settings that take a restart.
const homeSetting = "home"

// outcome is what is to be told of a mesh.
type outcome struct {
	home       *v1alpha1.MeshHomeStatus
	networks   []v1alpha1.MeshNetworkStatus
	conditions []metav1.Condition // those of conditionTypes that it has
}

// conditionTypes are those that this package tells.
var conditionTypes = []string{v1alpha1.ConditionHomeReady, v1alpha1.ConditionSettingsCurrent, v1alpha1.ConditionNetworksConnected}

// settle brings the home of a mesh, and its status, to what they are to be. A mesh that
// cannot be read keeps what it has.
func (c *Controller) settle(ctx context.Context, name string) error {
	c.mu.Lock()
	early := len(c.unread) > 0
	c.mu.Unlock()
	if early {
		return nil
	}
	obj, err := c.Config.Meshes.Get(ctx, name, &metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		c.expect(name, "", nil)
		delete(c.asked, name)
		delete(c.looked, name)
		delete(c.last, name)
		delete(c.corrected, name)
		return c.remove(ctx, name, nil)
	}
	if err != nil {
		return err
	}
	o := obj.(*object.Object)
	var mesh v1alpha1.Mesh
	if _, lost := logical.Quarantined(o); lost || o.Into(&mesh) != nil {
		return nil
	}
	out, err := c.bring(ctx, &mesh)
	return errors.Join(err, c.report(ctx, &mesh, out))
}

// bring writes what is to be in the home of a mesh, and removes what is no longer to be. What
// keeps it from that is in the outcome, and an error besides if it is worth trying again.
func (c *Controller) bring(ctx context.Context, mesh *v1alpha1.Mesh) (outcome, error) {
	var out outcome
	all := c.meshMembers(mesh.Name)
	n := c.networks(mesh, all)
	remembered, known := c.last[mesh.Name]
	if told := mesh.Status.Home; !known && told != nil {
		remembered.RestartFor, remembered.ChangedAt = told.RestartFor, told.SettingsChangedAt
	}
	home := mesh.Spec.Home
	if home == nil {
		c.expect(mesh.Name, "", nil)
		delete(c.corrected, mesh.Name)
		told, unknown := n.told(remembered)
		c.last[mesh.Name], c.looked[mesh.Name] = state{Gateways: n.recorded(remembered)}, n.looked
		out.networks, out.conditions = tellNetworks(&mesh.Spec, told, unknown)
		return out, c.remove(ctx, mesh.Name, nil)
	}
	namespace := settings.RootNamespace(&mesh.Spec)
	wanted := map[place]struct{}{}
	var places []place
	for _, name := range settings.ConfigMaps(home) {
		at := place{home.VirtualCluster, namespace, name}
		places = append(places, at)
		wanted[at] = struct{}{}
	}
	c.expect(mesh.Name, home.VirtualCluster, wanted)

	ready := metav1.Condition{Type: v1alpha1.ConditionHomeReady, Status: metav1.ConditionFalse}
	told := func() (outcome, error) {
		networks, unknown := n.told(remembered)
		out.networks, out.conditions = tellNetworks(&mesh.Spec, networks, unknown)
		out.conditions = append(out.conditions, ready)
		// What was written is still there.
		out.home = mesh.Status.Home
		if current := findCondition(mesh.Status.Conditions, v1alpha1.ConditionSettingsCurrent); current != nil && out.home != nil {
			out.conditions = append(out.conditions, settingsCurrent(out.home, mesh.Status.ControlPlanes))
		}
		return out, nil
	}
	vc, problem, err := c.virtualCluster(ctx, mesh)
	if err != nil {
		return outcome{}, err
	}
	if problem != nil {
		ready.Reason, ready.Message = problem.reason, problem.message
		return told()
	}
	if err := c.EnsureNamespaces(ctx, vc); err != nil {
		ready.Reason, ready.Message = ReasonWriteFailed, fmt.Sprintf("namespace %s of virtual cluster %s: %v", namespace, vc.Name, err)
		out, _ := told()
		return out, err
	}

	var errs []error
	var main *state
	wrote := []string{}
	for _, at := range places {
		compose := func(was *state, now time.Time) (map[string]any, *state, error) {
			return c.compose(mesh, n, was, now)
		}
		written, did, err := c.put(ctx, mesh.Name, at, remembered, compose)
		if err != nil {
			var p *problemError
			if errors.As(err, &p) {
				ready.Reason, ready.Message = p.reason, p.message
			} else {
				ready.Reason, ready.Message = ReasonWriteFailed, fmt.Sprintf("config map %s/%s of virtual cluster %s: %v", at.namespace, at.name, at.cluster, err)
				errs = append(errs, err)
			}
			continue
		}
		if main == nil {
			main = written
		}
		if did {
			wrote = append(wrote, at.namespace+"/"+at.name)
		}
	}
	if len(wrote) > 0 {
		c.tellOf(ctx, mesh.Name, ReasonSettingsWritten, fmt.Sprintf("The mesh's settings were written to config map %s of virtual cluster %s", strings.Join(wrote, ", "), vc.Name), false)
	}
	if main == nil {
		out, _ := told()
		return out, errors.Join(errs...)
	}
	remembered = *main
	c.last[mesh.Name] = remembered
	c.looked[mesh.Name] = n.looked
	c.corrected[mesh.Name] = true
	networks, unknown := n.told(remembered)
	out.networks, out.conditions = tellNetworks(&mesh.Spec, networks, unknown)
	out.home = &v1alpha1.MeshHomeStatus{Namespace: namespace, WrittenAt: &remembered.WrittenAt, RestartFor: remembered.RestartFor, SettingsChangedAt: remembered.ChangedAt}
	if ready.Reason == "" {
		ready.Status, ready.Reason = metav1.ConditionTrue, ReasonWritten
		ready.Message = fmt.Sprintf("Virtual cluster %s has the mesh's settings, in namespace %s", vc.Name, namespace)
		if err := c.remove(ctx, mesh.Name, wanted); err != nil {
			errs = append(errs, err)
		}
	}
	out.conditions = append(out.conditions, ready, settingsCurrent(out.home, mesh.Status.ControlPlanes))
	return out, errors.Join(errs...)
}

// problemError is what keeps settings from being written until somebody does something.
type problemError struct{ reason, message string }

func (p *problemError) Error() string { return p.message }

// virtualCluster is the home of a mesh, or why it cannot be.
func (c *Controller) virtualCluster(ctx context.Context, mesh *v1alpha1.Mesh) (*v1alpha1.VirtualCluster, *problemError, error) {
	name := mesh.Spec.Home.VirtualCluster
	obj, err := c.Config.VirtualClusters.Get(ctx, name, &metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		return nil, &problemError{ReasonVirtualClusterNotFound, fmt.Sprintf("There is no virtual cluster %s: create it, or name another in spec.home.virtualCluster", name)}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if reason, lost := logical.Quarantined(obj.(*object.Object)); lost {
		return nil, &problemError{ReasonVirtualClusterNotFound, fmt.Sprintf("Virtual cluster %s cannot be read: %s", name, reason)}, nil
	}
	vc, err := vmesh.Decode(obj.(*object.Object))
	if err != nil {
		return nil, &problemError{ReasonVirtualClusterNotFound, err.Error()}, nil
	}
	switch {
	case vc.DeletionTimestamp != nil:
		return nil, &problemError{ReasonVirtualClusterNotFound, fmt.Sprintf("Virtual cluster %s is being deleted: name another in spec.home.virtualCluster", name)}, nil
	case vc.Spec.Mesh != mesh.Name:
		return nil, &problemError{ReasonOtherMesh, fmt.Sprintf("Virtual cluster %s belongs to mesh %s: name one of mesh %s in spec.home.virtualCluster", name, vc.Spec.Mesh, mesh.Name)}, nil
	}
	return vc, nil, nil
}

// compose makes what is to be in a config map of what vmesh remembers in it.
func (c *Controller) compose(mesh *v1alpha1.Mesh, n *networks, was *state, now time.Time) (map[string]any, *state, error) {
	is := &state{Gateways: n.recorded(*was), RestartFor: was.RestartFor, ChangedAt: was.ChangedAt}
	sources := mesh.Spec.Home.ConfigSources
	if len(sources) == 0 {
		// When it starts, a server says where it is. After that it leaves what another says, or
		// servers with different addresses would correct each other for ever.
		own := c.DefaultSource(mesh.Name)
		switch {
		case own != "" && (!c.corrected[mesh.Name] || len(was.Sources) == 0):
			is.Sources = []string{own}
		case len(was.Sources) > 0:
			is.Sources = was.Sources
		default:
			return nil, nil, &problemError{ReasonNoConfigSource, fmt.Sprintf(
				"Control planes cannot be told where vmesh serves mesh %s: name addresses in spec.home.configSources, as xds://mesh-%s.vmesh.example:15051, whose first label names the mesh", mesh.Name, mesh.Name)}
		}
		sources = is.Sources
	}
	config, atStart, err := settings.MeshConfig(&mesh.Spec, sources)
	if err != nil {
		return nil, nil, &problemError{ReasonInvalid, fmt.Sprintf("spec.home.meshConfig, spec.locality: Istio cannot read what follows from them: %v", err)}
	}
	told, _ := n.told(*is)
	networks, err := settings.MeshNetworks(told)
	if err != nil {
		return nil, nil, &problemError{ReasonInvalid, fmt.Sprintf("spec.networks: Istio cannot read what follows from them: %v", err)}
	}
	is.AtStart = atStart
	is.AtStart[homeSetting] = mesh.Spec.Home.VirtualCluster
	if changed := settings.Changed(was.AtStart, atStart); len(changed) > 0 {
		if current := findCondition(mesh.Status.Conditions, v1alpha1.ConditionSettingsCurrent); current == nil || current.Status != metav1.ConditionTrue {
			changed = append(changed, was.RestartFor...)
		}
		slices.Sort(changed)
		is.RestartFor = slices.Compact(changed)
		is.ChangedAt = &metav1.Time{Time: now.UTC().Truncate(time.Second)}
	}
	return map[string]any{meshKey: config, networksKey: networks}, is, nil
}

// put brings a config map to what compose makes of what vmesh remembers in it, or else of
// what it remembers itself. It returns what is remembered there then, and whether it wrote.
func (c *Controller) put(ctx context.Context, mesh string, at place, remembered state, compose func(*state, time.Time) (map[string]any, *state, error)) (is *state, wrote bool, err error) {
	ctx = logical.WithoutRecord(quota.Exempt(request.WithNamespace(logical.WithCluster(ctx, at.cluster), at.namespace)))
	now := c.now()
	// change makes the config map of the one that there is, if there is one.
	change := func(old *object.Object) (*object.Object, error) {
		was := &remembered
		o := object.New(schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"})
		o.Namespace, o.Name = at.namespace, at.name
		if old != nil {
			if of, ours := ownerOf(old); !ours || of != mesh {
				return nil, foreign(old, at)
			}
			o = old.DeepCopy()
			if kept, ok := stateOf(old); ok {
				was = kept
			}
		}
		data, next, err := compose(was, now)
		if err != nil {
			return nil, err
		}
		next.WrittenAt = was.WrittenAt
		if old != nil && holds(old, data) {
			if kept, ok := stateOf(old); ok && apiequality.Semantic.DeepEqual(kept, next) {
				is = next
				return old, nil
			}
		}
		next.WrittenAt = metav1.Time{Time: now.UTC().Truncate(time.Second)}
		text, err := json.Marshal(next)
		if err != nil {
			return nil, err
		}
		o.Labels, o.Annotations = with(o.Labels, v1alpha1.LabelManagedBy, v1alpha1.ManagedBy), with(with(o.Annotations, v1alpha1.AnnotationSettingsOf, mesh), v1alpha1.AnnotationSettingsState, string(text))
		is = next
		return o, o.SetContent(map[string]any{"data": data})
	}
	const tries = 3
	for range tries {
		old := c.seen(at)
		if old == nil {
			obj, err := c.Config.ConfigMaps.Get(ctx, at.name, &metav1.GetOptions{})
			if err == nil {
				old = obj.(*object.Object)
			} else if !apierrors.IsNotFound(err) {
				return nil, false, err
			}
		}
		o, err := change(old)
		if err != nil {
			return nil, false, err
		}
		if old == nil {
			_, err := c.Config.ConfigMaps.Create(ctx, o, rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
			if err == nil {
				return is, true, nil
			}
			if !apierrors.IsAlreadyExists(err) {
				return nil, false, err
			}
			continue
		}
		if o == old {
			return is, false, nil
		}
		_, _, err = c.Config.ConfigMaps.REST("v1").Update(ctx, at.name, rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
			o, err := change(old.(*object.Object))
			wrote = err == nil && o != old.(*object.Object)
			return o, err
		}), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
		if apierrors.IsNotFound(err) {
			c.forget(at, old)
			continue
		}
		if err != nil {
			return nil, false, err
		}
		return is, wrote, nil
	}
	return nil, false, fmt.Errorf("config map %s/%s comes and goes", at.namespace, at.name)
}

// foreign says why a config map is not touched.
func foreign(o *object.Object, at place) error {
	if of, ours := ownerOf(o); ours {
		return &problemError{ReasonConflict, fmt.Sprintf("Config map %s/%s of virtual cluster %s holds the settings of mesh %s, which is to have another home", at.namespace, at.name, at.cluster, of)}
	}
	return &problemError{ReasonConflict, fmt.Sprintf("Config map %s/%s of virtual cluster %s was not written by vmesh, and is left alone: move what is in its key mesh to spec.home.meshConfig, and delete it", at.namespace, at.name, at.cluster)}
}

// holds says whether a config map holds just this.
func holds(o *object.Object, data map[string]any) bool {
	content, err := o.Content()
	if err != nil {
		return false
	}
	if _, more := content["binaryData"]; more {
		return false
	}
	return apiequality.Semantic.DeepEqual(content["data"], data)
}

// stateOf is what vmesh remembers in a config map.
func stateOf(o *object.Object) (*state, bool) {
	var s state
	if err := json.Unmarshal([]byte(o.Annotations[v1alpha1.AnnotationSettingsState]), &s); err != nil {
		return nil, false
	}
	return &s, true
}

func with(m map[string]string, key, value string) map[string]string {
	out := maps.Clone(m)
	if out == nil {
		out = map[string]string{}
	}
	out[key] = value
	return out
}

// remove deletes the settings of a mesh that are elsewhere than wanted. What vmesh did not
// write it never deletes.
func (c *Controller) remove(ctx context.Context, mesh string, wanted map[place]struct{}) error {
	var errs []error
	for _, at := range c.writtenFor(mesh) {
		if _, stays := wanted[at]; stays {
			continue
		}
		ctx := logical.WithoutRecord(request.WithNamespace(logical.WithCluster(ctx, at.cluster), at.namespace))
		_, _, err := c.Config.ConfigMaps.Delete(ctx, at.name, func(_ context.Context, obj runtime.Object) error {
			if of, ours := ownerOf(obj.(*object.Object)); !ours || of != mesh {
				return errNotOurs
			}
			return nil
		}, &metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) && !errors.Is(err, errNotOurs) {
			errs = append(errs, fmt.Errorf("removing config map %s/%s of virtual cluster %s: %w", at.namespace, at.name, at.cluster, err))
		}
	}
	return errors.Join(errs...)
}

var errNotOurs = errors.New("it is another's")
