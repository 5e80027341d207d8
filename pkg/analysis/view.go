package analysis

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"

	"istio.io/api/networking/v1alpha3"
	"istio.io/istio/pkg/config"
	"istio.io/istio/pkg/config/analysis"
	"istio.io/istio/pkg/config/analysis/analyzers/util"
	"istio.io/istio/pkg/config/analysis/diag"
	"istio.io/istio/pkg/config/analysis/msg"
	"istio.io/istio/pkg/config/mesh"
	"istio.io/istio/pkg/config/resource"
	"istio.io/istio/pkg/config/schema/collections"
	"istio.io/istio/pkg/config/schema/gvk"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// state is a virtual cluster as analyses of it read it: kinds are listed and decoded when
// they are first asked for.
type state struct {
	ctx     context.Context
	engine  *Engine
	cluster string
	known   memory // from analyses before
	seen    memory
	kinds   map[config.GroupVersionKind][]*resource.Instance
}

// load lists kinds, all at once.
func (s *state) load(kinds []config.GroupVersionKind) error {
	var sources []*source
	for _, k := range kinds {
		if src := s.engine.sources[k]; src != nil && s.kinds[k] == nil && !slices.Contains(sources, src) {
			sources = append(sources, src)
		}
	}
	lists := make([][]object.Object, len(sources))
	group, ctx := errgroup.WithContext(s.ctx)
	for i, src := range sources {
		group.Go(func() (err error) {
			if lists[i], err = s.engine.list(ctx, src.resource, s.cluster); err != nil {
				return fmt.Errorf("listing %s: %w", src.resource, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for i, src := range sources {
		instances := make([]*resource.Instance, 0, len(lists[i]))
		seen := make(map[string]decoded, len(lists[i]))
		for j := range lists[i] {
			o := &lists[i][j]
			if !src.wants(o) {
				continue
			}
			if err := s.ctx.Err(); err != nil {
				return err
			}
			k := key(o)
			d, ok := s.known[src.gvk][k]
			if !ok || d.resourceVersion != o.ResourceVersion {
				instance, err := src.instance(o)
				if err != nil {
					continue // istiod cannot read it either; the write was refused or is older than the rule
				}
				d = decoded{o.ResourceVersion, instance}
			}
			seen[k] = d
			instances = append(instances, d.instance)
		}
		s.kinds[src.gvk], s.seen[src.gvk] = instances, seen
	}
	return nil
}

// instances are the objects of a kind.
func (s *state) instances(k config.GroupVersionKind) ([]*resource.Instance, error) {
	if known, ok := s.kinds[k]; ok {
		return known, nil
	}
	switch k {
	case gvk.MeshConfig, gvk.MeshNetworks:
		if err := s.loadMesh(); err != nil {
			return nil, err
		}
	default:
		if err := s.load([]config.GroupVersionKind{k}); err != nil {
			return nil, err
		}
	}
	return s.kinds[k], nil
}

// loadMesh reads the mesh's settings where istioctl reads them: in the config map of
// istiod, as far as there is one. What is missing or wrong is Istio's default.
func (s *state) loadMesh() error {
	maps, err := s.instances(gvk.ConfigMap)
	if err != nil {
		return err
	}
	meshConfig, networks := mesh.DefaultMeshConfig(), mesh.DefaultMeshNetworks()
	for _, m := range maps {
		cm, ok := m.Message.(*corev1.ConfigMap)
		if !ok || cm.Name != "istio" {
			continue
		}
		if c, err := mesh.ApplyMeshConfigDefaults(cm.Data["mesh"]); err == nil && cm.Data["mesh"] != "" {
			meshConfig = c
			if n, err := mesh.ParseMeshNetworks(cm.Data["meshNetworks"]); err == nil && cm.Data["meshNetworks"] != "" {
				networks = n
			}
		}
	}
	s.kinds[gvk.MeshConfig] = []*resource.Instance{newInstance(&config.Config{
		Meta: config.Meta{GroupVersionKind: gvk.MeshConfig, Name: "meshconfig", Namespace: istioNamespace}, Spec: meshConfig,
	}, collections.MeshConfig)}
	s.kinds[gvk.MeshNetworks] = []*resource.Instance{newInstance(&config.Config{
		Meta: config.Meta{GroupVersionKind: gvk.MeshNetworks, Name: "meshnetworks", Namespace: istioNamespace}, Spec: networks,
	}, collections.MeshNetworks)}
	return nil
}

// change is what a write does to a virtual cluster.
type change struct {
	kind config.GroupVersionKind
	name resource.FullName
	to   *resource.Instance // nil for a deletion
}

// apply puts the change where the next list would have it: what some analyzers find depends
// on the order.
func (c *change) apply(all []*resource.Instance) []*resource.Instance {
	out := make([]*resource.Instance, 0, len(all)+1)
	at := -1
	for _, r := range all {
		if at < 0 && r.Metadata.FullName.String() >= c.name.String() {
			at = len(out)
		}
		if r.Metadata.FullName != c.name {
			out = append(out, r)
		}
	}
	if c.to == nil {
		return out
	}
	if at < 0 {
		at = len(out)
	}
	return slices.Insert(out, at, c.to)
}

// view is what the analyzers see of a state: all of it, or as it would be after a change.
// It implements analysis.Context.
type view struct {
	*state
	change   *change
	index    map[config.GroupVersionKind]map[resource.FullName]*resource.Instance
	own      map[config.GroupVersionKind][]*resource.Instance // what differs from the state's
	messages diag.Messages
	err      error // why the messages are not to be used
}

var _ analysis.Context = (*view)(nil)

// get is a kind's objects. When the time is up there are none, so that analyzers end soon.
func (v *view) get(k config.GroupVersionKind) []*resource.Instance {
	if v.err == nil {
		v.err = v.ctx.Err()
	}
	if v.err != nil {
		return nil
	}
	if own, ok := v.own[k]; ok {
		return own
	}
	var all []*resource.Instance
	if all, v.err = v.instances(k); v.err != nil {
		return nil
	}
	own := all
	if v.change != nil && v.change.kind == k {
		own = v.change.apply(all)
	}
	if k == gvk.Gateway {
		// virtualservice.GatewayAnalyzer writes into gateways, which others are to see as they are.
		own = slices.Clone(own)
		for i, r := range own {
			if message, ok := r.Message.(proto.Message); ok {
				private := *r
				private.Message = proto.Clone(message)
				own[i] = &private
			}
		}
	}
	v.own[k] = own
	return own
}

// ForEach implements analysis.Context.
func (v *view) ForEach(k config.GroupVersionKind, fn analysis.IteratorFn) {
	for _, r := range v.get(k) {
		if v.Canceled() || !fn(r) {
			return
		}
	}
}

// Find implements analysis.Context.
func (v *view) Find(k config.GroupVersionKind, name resource.FullName) *resource.Instance {
	byName, ok := v.index[k]
	if !ok {
		all := v.get(k)
		byName = make(map[resource.FullName]*resource.Instance, len(all))
		for _, r := range all {
			byName[r.Metadata.FullName] = r
		}
		v.index[k] = byName
	}
	return byName[name]
}

// Exists implements analysis.Context.
func (v *view) Exists(k config.GroupVersionKind, name resource.FullName) bool {
	return v.Find(k, name) != nil
}

// Report implements analysis.Context.
func (v *view) Report(_ config.GroupVersionKind, m diag.Message) {
	if !v.unfounded(&m) {
		v.messages.Add(m)
	}
}

// unfounded says whether a finding misses what member clusters have: a host, or the pods of one. Analyzers
// are not given the services of members instead, since they would tell of those, and what a
// virtual cluster may not see.
func (s *state) unfounded(m *diag.Message) bool {
	if s.engine.inMembers == nil || m.Resource == nil {
		return false
	}
	var host string
	switch m.Type {
	case msg.ReferencedResourceNotFound:
		if what := fmt.Sprint(m.Parameters[0]); what != "host" && what != "mirror host" {
			return false
		}
		host = fmt.Sprint(m.Parameters[1])
	case msg.UnknownDestinationRuleHost, msg.DestinationRuleSubsetNotSelectPods:
		rule, ok := m.Resource.Message.(*v1alpha3.DestinationRule)
		if !ok {
			return false
		}
		host = rule.GetHost()
	default:
		return false
	}
	service := util.GetResourceNameFromHost(m.Resource.Metadata.FullName.Namespace, host)
	return s.engine.inMembers(s.cluster, service.Namespace.String(), service.Name.String())
}

// Canceled implements analysis.Context.
func (v *view) Canceled() bool { return v.err != nil || v.ctx.Err() != nil }

// SetAnalyzer implements analysis.Context.
func (v *view) SetAnalyzer(string) {}
