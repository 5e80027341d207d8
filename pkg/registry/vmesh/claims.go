package vmesh

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// Claims is the index of who owns what.
func (c *Clusters) Claims() *ownership.Index {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.claims
}

// saw is called under c.mu when the index has all claims up to a revision.
func (c *Clusters) saw(revision uint64) {
	c.seen = max(c.seen, revision)
	if c.waiting != nil {
		close(c.waiting)
		c.waiting = nil
	}
}

// catchUp waits until the index has all claims that etcd holds.
func (c *Clusters) catchUp(ctx context.Context) error {
	// A consistent list also makes etcd tell at once how far its changes go.
	list, err := c.store.List(RootContext(ctx), &internalversion.ListOptions{Limit: 1})
	if err != nil {
		return err
	}
	current, err := strconv.ParseUint(list.(*object.List).ResourceVersion, 10, 64)
	if err != nil {
		return err
	}
	for {
		c.mu.Lock()
		done := c.seen >= current
		if !done && c.waiting == nil {
			c.waiting = make(chan struct{})
		}
		more := c.waiting
		c.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// validate refuses claims that another virtual cluster of the mesh holds, and grants of
// what is not the virtual cluster's own.
func (c *Clusters) validate(ctx context.Context, o, old *object.Object) ([]string, field.ErrorList) {
	vc, err := Decode(o)
	if err != nil {
		return nil, field.ErrorList{field.InternalError(nil, err)}
	}
	if errs := c.validateQuota(vc, old); len(errs) > 0 {
		return nil, errs
	}
	claims := ownership.ClaimsOf(vc)
	path := field.NewPath("spec")
	if errs := append(validateHosts(path.Child("hosts"), claims.Hosts), validateHandovers(path.Child("handovers"), claims)...); len(errs) > 0 {
		return nil, errs
	}
	if err := c.claimAlone(ctx, claims, old); err != nil {
		return nil, field.ErrorList{field.InternalError(path.Child("namespaces"), err)}
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	index := c.claims.With(claims)
	conflict := overlap(index, path, claims)
	for name, p := range c.pending {
		if conflict == nil && name != claims.Cluster && p.claims.Mesh == claims.Mesh {
			conflict = overlap(ownership.New(p.claims, claims), path, claims)
		}
	}
	if conflict != nil {
		return nil, field.ErrorList{conflict}
	}
	var had *ownership.Index
	var before ownership.Claims
	if old != nil && len(claims.Grants) > 0 {
		if vc, err := Decode(old); err == nil {
			before = ownership.ClaimsOf(vc)
			had = c.claims.With(before)
		}
	}
	warnings, errs := validateGrants(path.Child("grants"), index, claims, had, before)
	if len(errs) > 0 {
		return nil, errs
	}
	if w, writing := c.pending[claims.Cluster]; writing {
		w.claims = claims
	}
	warnings = append(warnings, c.accessWarnings(ctx, vc)...)
	if _, err := c.meshes.Get(RootContext(ctx), claims.Mesh, &metav1.GetOptions{ResourceVersion: "0"}); apierrors.IsNotFound(err) {
		warnings = append(warnings, fmt.Sprintf("spec.mesh: there is no mesh %q yet: until it is created, nothing of this virtual cluster reaches a control plane", claims.Mesh))
	}
	return warnings, nil
}

// overlap is what is wrong with claims, which are in the index, of which another virtual
// cluster of the mesh owns a part.
func overlap(x *ownership.Index, spec *field.Path, claims ownership.Claims) *field.Error {
	refuse := func(path *field.Path, pattern, theirs, owner, remedy string) *field.Error {
		return field.Forbidden(path, fmt.Sprintf("%q overlaps with %q, which virtual cluster %q owns in mesh %q: %s",
			pattern, theirs, owner, claims.Mesh, remedy))
	}
	if owner, theirs, pattern, found := x.Conflict(claims.Mesh, claims.Cluster, claims.Namespaces); found {
		return refuse(spec.Child("namespaces"), string(pattern), string(theirs), owner,
			fmt.Sprintf("choose other namespaces, or have %q handed over in spec.handovers of %q, or take it from that first", theirs, owner))
	}
	if owner, theirs, pattern, found := x.HostConflict(claims.Mesh, claims.Cluster, claims.Hosts); found {
		return refuse(spec.Child("hosts"), string(pattern), string(theirs), owner, "choose other hosts, or take them from it first")
	}
	return nil
}

// validateHosts refuses claims of hosts that are services of the mesh, or could be.
func validateHosts(path *field.Path, hosts []v1alpha1.HostPattern) field.ErrorList {
	var errs field.ErrorList
	for i, host := range hosts {
		name := strings.TrimPrefix(string(host), "*.")
		switch {
		case host == v1alpha1.AnyHost:
		case name == "local" || name == "cluster.local" || strings.HasSuffix(name, ".cluster.local") || strings.HasSuffix(name, ".svc"):
			errs = append(errs, field.Invalid(path.Index(i), host, "hosts of the mesh's services belong to who owns their namespaces: claim those, in spec.namespaces"))
		case !strings.Contains(string(host), "."):
			errs = append(errs, field.Invalid(path.Index(i), host, "a name without a dot is a service of the namespace that it is used in: claim a host with its domain"))
		}
	}
	return errs
}

// validateHandovers refuses to hand over what is not claimed.
func validateHandovers(path *field.Path, claims ownership.Claims) field.ErrorList {
	var errs field.ErrorList
	seen := map[v1alpha1.NamespacePattern]string{}
	for i, h := range claims.Handovers {
		at := path.Index(i)
		if h.To == claims.Cluster {
			errs = append(errs, field.Invalid(at.Child("to"), h.To, "what is its own is not handed over: name another virtual cluster"))
		}
		for j, p := range h.Namespaces {
			at := at.Child("namespaces").Index(j)
			if !slices.Contains(claims.Namespaces, p) {
				errs = append(errs, field.Invalid(at, p, "is not in spec.namespaces as it is written here: hand over what is claimed, or leave it out once it is given up"))
			}
			if to, twice := seen[p]; twice {
				errs = append(errs, field.Invalid(at, p, fmt.Sprintf("is handed over to %q already: one virtual cluster can have it", to)))
			}
			seen[p] = h.To
		}
	}
	return errs
}

// validateGrants refuses grants of what is not the virtual cluster's to give, as of index;
// had, which may be nil, and before are what was until then.
func validateGrants(path *field.Path, index *ownership.Index, claims ownership.Claims, had *ownership.Index, before ownership.Claims) (warnings []string, errs field.ErrorList) {
	// What others have taken, as names from a star, is no reason to refuse other changes.
	lost := func(to string, has func(v1alpha1.VirtualClusterGrant) bool, owned func(*ownership.Index, ownership.Claims) bool) bool {
		return had != nil && !owned(had, before) && slices.ContainsFunc(before.Grants, func(g v1alpha1.VirtualClusterGrant) bool { return g.To == to && has(g) })
	}
	for i, g := range claims.Grants {
		at := path.Index(i)
		if g.To == claims.Cluster {
			errs = append(errs, field.Invalid(at.Child("to"), g.To, "what is its own needs no grant: name another virtual cluster"))
			continue
		}
		to, known := index.Claims(g.To)
		switch {
		case !known:
			warnings = append(warnings, fmt.Sprintf("%s: there is no virtual cluster %q yet", at.Child("to"), g.To))
		case to.Mesh != claims.Mesh:
			warnings = append(warnings, fmt.Sprintf("%s: virtual cluster %q belongs to mesh %q, and this one to %q: the grant has no effect", at.Child("to"), g.To, to.Mesh, claims.Mesh))
		}
		for j, gateway := range g.Gateways {
			owned := func(x *ownership.Index, c ownership.Claims) bool { return x.OwnsGateway(c, gateway) }
			if owned(index, claims) {
				continue
			}
			detail := "is in a namespace that this virtual cluster does not own: only its own gateways can be granted"
			if lost(g.To, func(g v1alpha1.VirtualClusterGrant) bool { return slices.Contains(g.Gateways, gateway) }, owned) {
				warnings = append(warnings, fmt.Sprintf("%s: %q %s, and the grant has no effect any more", at.Child("gateways").Index(j), gateway, detail))
				continue
			}
			errs = append(errs, field.Invalid(at.Child("gateways").Index(j), gateway, detail))
		}
		for j, host := range g.Hosts {
			owned := func(x *ownership.Index, c ownership.Claims) bool { return x.OwnsHost(c, host) }
			if owned(index, claims) {
				continue
			}
			detail := "is neither a host that this virtual cluster claims nor a service of its namespaces, as NAME.NAMESPACE.svc.cluster.local: only what it owns can be granted"
			if lost(g.To, func(g v1alpha1.VirtualClusterGrant) bool { return slices.Contains(g.Hosts, host) }, owned) {
				warnings = append(warnings, fmt.Sprintf("%s: %q %s, and the grant has no effect any more", at.Child("hosts").Index(j), host, detail))
				continue
			}
			errs = append(errs, field.Invalid(at.Child("hosts").Index(j), host, detail))
		}
	}
	return warnings, errs
}

// claimAlone makes sure, for a write that claims something new, that nobody else claims
// anything of the mesh until the write is done, whichever server they ask. What is new is
// told by what etcd holds: the index may lag behind what another server wrote.
func (c *Clusters) claimAlone(ctx context.Context, claims ownership.Claims, old *object.Object) error {
	if !c.backend.Shared() {
		return nil // the pending writes are all that there are
	}
	c.mu.Lock()
	w := c.pending[claims.Cluster]
	c.mu.Unlock()
	if w == nil || w.unlock != nil || !claimsAnew(claims, old) {
		return nil
	}
	unlock, err := c.backend.Lock(ctx, "meshes/"+claims.Mesh)
	if err != nil {
		return err
	}
	w.unlock = unlock // writes of one virtual cluster go one after the other
	return c.catchUp(ctx)
}

// claimsAnew says whether claims are others than those of the object that is replaced, if
// there is one.
func claimsAnew(claims ownership.Claims, old *object.Object) bool {
	if len(claims.Namespaces)+len(claims.Hosts) == 0 {
		return false
	}
	if old == nil {
		return true
	}
	vc, err := Decode(old)
	if err != nil {
		return true
	}
	had := ownership.ClaimsOf(vc)
	return had.Mesh != claims.Mesh || !slices.Equal(had.Namespaces, claims.Namespaces) || !slices.Equal(had.Hosts, claims.Hosts) ||
		!equality.Semantic.DeepEqual(had.Handovers, claims.Handovers)
}

// write is a write of one virtual cluster that is under way.
type write struct {
	claims ownership.Claims // known once it is validated
	unlock func()           // set while others have to wait
	done   chan struct{}
}

// writeKey is for the write that a request has begun, in its context.
type writeKey struct{}

// begin announces a write, so that two that claim the same cannot both pass validation.
// Writes of one virtual cluster go one after the other.
func (c *Clusters) begin(ctx context.Context, name string) (*write, error) {
	w := &write{claims: ownership.Claims{Cluster: name}, done: make(chan struct{})}
	for {
		c.mu.Lock()
		other, writing := c.pending[name]
		if !writing {
			c.pending[name] = w
		}
		c.mu.Unlock()
		if !writing {
			break
		}
		select {
		case <-other.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return w, nil
}

// end is when a write has succeeded or failed. revision, if known, is what was written.
func (c *Clusters) end(w *write, success bool, revision uint64) {
	c.mu.Lock()
	if success && w.claims.Mesh != "" && (revision == 0 || revision > c.seen) {
		// The watch brings the same; until then nobody else may have it.
		c.claims = c.claims.With(w.claims)
	}
	delete(c.pending, w.claims.Cluster)
	c.mu.Unlock()
	close(w.done)
	if w.unlock != nil {
		w.unlock()
	}
}
