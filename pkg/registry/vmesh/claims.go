package vmesh

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
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

// validate refuses claims that another virtual cluster of the mesh holds.
func (c *Clusters) validate(ctx context.Context, o, old *object.Object) ([]string, field.ErrorList) {
	vc, err := Decode(o)
	if err != nil {
		return nil, field.ErrorList{field.InternalError(nil, err)}
	}
	if errs := c.validateQuota(vc, old); len(errs) > 0 {
		return nil, errs
	}
	claims := ownership.ClaimsOf(vc)
	path := field.NewPath("spec", "namespaces")
	if err := c.claimAlone(ctx, claims, old); err != nil {
		return nil, field.ErrorList{field.InternalError(path, err)}
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	owner, owners, pattern, found := c.claims.Conflict(claims.Mesh, claims.Cluster, claims.Namespaces)
	if !found {
		for name, p := range c.pending {
			if name == claims.Cluster || p.claims.Mesh != claims.Mesh {
				continue
			}
			if owner, owners, pattern, found = ownership.New(p.claims).Conflict(claims.Mesh, claims.Cluster, claims.Namespaces); found {
				break
			}
		}
	}
	if found {
		return nil, field.ErrorList{field.Forbidden(path, fmt.Sprintf(
			"%q overlaps with %q, which virtual cluster %q owns in mesh %q: choose other namespaces, or take them from it first",
			pattern, owners, owner, claims.Mesh))}
	}
	if w, writing := c.pending[claims.Cluster]; writing {
		w.claims = claims
	}
	warnings := c.accessWarnings(ctx, vc)
	if _, err := c.meshes.Get(RootContext(ctx), claims.Mesh, &metav1.GetOptions{ResourceVersion: "0"}); apierrors.IsNotFound(err) {
		warnings = append(warnings, fmt.Sprintf("spec.mesh: there is no mesh %q yet: until it is created, nothing of this virtual cluster reaches a control plane", claims.Mesh))
	}
	return warnings, nil
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
	if len(claims.Namespaces) == 0 {
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
	return had.Mesh != claims.Mesh || !slices.Equal(had.Namespaces, claims.Namespaces)
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
