package snapshot

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/policy"
)

// Plan is what somebody thinks of changing.
type Plan struct {
	// VirtualClusters as they would be.
	VirtualClusters []*v1alpha1.VirtualCluster
	// Meshes as they would be.
	Meshes []*v1alpha1.Mesh
}

// Review is what would become of a plan.
type Review struct {
	// HeldBack are the objects that reach their mesh and would not any more, and why; LetIn
	// those that do not and would, with the reason why not now. Both are sorted.
	HeldBack, LetIn []Held
}

// subject is an object that a plan may concern.
type subject struct {
	kind       *Kind
	object     *object.Object
	namespaces []string // its virtual cluster's
}

// Review finds out what a plan would change, and changes nothing. What it takes in the
// builder's goroutine is a look at the objects of the virtual clusters concerned; they are
// judged by the caller's.
func (b *Builder) Review(ctx context.Context, plan Plan) (Review, error) {
	var before, after world
	var subjects []subject
	done := make(chan struct{})
	e := event{source: question, observed: time.Now(), ask: func(m *model) {
		defer close(done)
		before, after, subjects = m.plan(plan)
	}}
	select {
	case <-b.Synced():
	default:
		return Review{}, ErrNotSynced
	}
	select {
	case b.events <- e:
	case <-b.stopped:
		return Review{}, ErrNotSynced
	case <-ctx.Done():
		return Review{}, context.Cause(ctx)
	}
	select {
	case <-done:
	case <-b.stopped:
		return Review{}, ErrNotSynced
	case <-ctx.Done():
		return Review{}, context.Cause(ctx)
	}
	var r Review
	then, err := before.judgeAll(ctx, subjects)
	if err != nil {
		return Review{}, err
	}
	now, err := after.judgeAll(ctx, subjects)
	if err != nil {
		return Review{}, err
	}
	for i, s := range subjects {
		was, is := then[i], now[i]
		h := heldKey(s.object.Cluster(), s.kind.Name, s.object.Namespace, s.object.Name)
		switch {
		case was.in && !is.in:
			h.Reason, h.Message = is.reason, is.message
			r.HeldBack = append(r.HeldBack, h)
		case !was.in && is.in:
			h.Reason, h.Message = was.reason, was.message
			r.LetIn = append(r.LetIn, h)
		}
	}
	slices.SortFunc(r.HeldBack, compareHeld)
	slices.SortFunc(r.LetIn, compareHeld)
	return r, nil
}

// world is what decides about objects, at one time.
type world struct {
	index *ownership.Index
	roots map[string]string // of the meshes that there are
	known map[string]rights
}

// plan is the world as it is and as it would be, and the objects that may see a difference.
func (m *model) plan(plan Plan) (before, after world, subjects []subject) {
	before = world{index: m.index, roots: map[string]string{}, known: map[string]rights{}}
	after = world{index: m.index, roots: map[string]string{}, known: map[string]rights{}}
	for name, mesh := range m.meshes {
		before.roots[name], after.roots[name] = mesh.root, mesh.root
	}
	concerned := map[string]struct{}{}
	for _, mesh := range plan.Meshes {
		root := cmp.Or(mesh.Spec.RootNamespace, defaultRoot)
		if is, ok := after.roots[mesh.Name]; ok && is == root {
			continue
		}
		after.roots[mesh.Name] = root
		for c := range m.index.All() {
			if c.Mesh == mesh.Name {
				concerned[c.Cluster] = struct{}{}
			}
		}
	}
	for _, vc := range plan.VirtualClusters {
		claims := ownership.ClaimsOf(vc)
		old, known := after.index.Claims(claims.Cluster)
		if claims.Created = old.Created; !known {
			claims.Created = time.Now()
		}
		after.index = after.index.With(claims)
		for name := range after.index.Concerned(old, claims) {
			concerned[name] = struct{}{}
		}
		concerned[claims.Cluster] = struct{}{}
	}
	before.index.Sharing(concerned)
	after.index.Sharing(concerned)
	for name := range concerned {
		c := m.clusters[name]
		if c == nil {
			continue
		}
		for _, s := range c.spaces {
			s.each(func(kind int, o *object.Object) {
				subjects = append(subjects, subject{kind: &m.kinds[kind], object: o, namespaces: c.namespaces})
			})
		}
	}
	return before, after, subjects
}

// judgeAll judges objects, and decides between those that speak for the same hosts.
func (w *world) judgeAll(ctx context.Context, subjects []subject) ([]verdict, error) {
	type place struct {
		mesh string
		kind *Kind
	}
	contests := map[place]*contest{}
	verdicts := make([]verdict, len(subjects))
	at := map[*object.Object]int{}
	for i, s := range subjects {
		if i%256 == 0 && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		var said *policy.Shared
		if verdicts[i], said = w.judge(s); said == nil {
			continue
		}
		claims, _ := w.index.Claims(s.object.Cluster())
		in := place{claims.Mesh, s.kind}
		if contests[in] == nil {
			contests[in] = &contest{}
		}
		contests[in].set(key(s.object.Namespace, s.object.Name), s.object, said)
		at[s.object] = i
	}
	for _, c := range contests {
		c.decide(func(s *speaker, _ bool) {
			if v, _ := s.taken(); s.out {
				verdicts[at[s.object]] = verdict{reason: v.Reason, message: shorten(v.Field + ": " + v.Message)}
			}
		})
	}
	return verdicts, nil
}

// verdict is whether an object is in its mesh, and else why not.
type verdict struct {
	in              bool
	reason, message string
}

// judge judges an object by itself. said is what it says for hosts that others may speak for.
func (w *world) judge(s subject) (v verdict, said *policy.Shared) {
	cluster, namespace := s.object.Cluster(), s.object.Namespace
	claims, _ := w.index.Claims(cluster)
	root, ok := w.roots[claims.Mesh]
	if !ok {
		return verdict{reason: ReasonNoMesh, message: "its virtual cluster belongs to no mesh that there is"}, nil
	}
	if owner, _ := w.index.Owner(claims.Mesh, namespace); owner != cluster {
		return verdict{reason: ReasonNotOwner, message: notOwner(claims.Mesh, namespace, owner)}, nil
	}
	if s.kind.Admit == nil {
		return verdict{in: true}, nil
	}
	r, ok := w.known[cluster]
	if !ok {
		r = rightsOf(w.index, cluster, root, s.namespaces)
		w.known[cluster] = r
	}
	// What cannot be read now is what it was: nothing is told of it.
	if _, is := s.object.Annotations[QuarantinedAnnotation]; is {
		return verdict{in: true}, nil
	}
	shown, violations, err := s.kind.Admit(s.object, r.view, r.exports)
	if err == nil && len(violations) > 0 {
		return verdict{reason: violations[0].Reason, message: shorten(violations[0].Field + ": " + violations[0].Message)}, nil
	}
	if err == nil && s.kind.Share != nil {
		said = s.kind.Share(shown, r.view)
	}
	return verdict{in: true}, said
}
