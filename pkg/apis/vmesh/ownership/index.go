// Package ownership says which virtual cluster owns a namespace of a mesh.
package ownership

import (
	"cmp"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/google/btree"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// Claims are what one virtual cluster claims of its mesh.
type Claims struct {
	// Cluster is the virtual cluster's name.
	Cluster string
	// Mesh is the mesh that it contributes to.
	Mesh string
	// Namespaces are the patterns that it claims; not modified, and not to be modified.
	Namespaces []v1alpha1.NamespacePattern
	// Created decides between overlapping claims: the older wins, then the lesser name.
	Created time.Time
}

// ClaimsOf are the claims of a virtual cluster. One that is being deleted keeps its
// claims to the end: what it contributes goes when its objects go, and until then
// nobody else may take their place.
func ClaimsOf(vc *v1alpha1.VirtualCluster) Claims {
	return Claims{
		Cluster:    vc.Name,
		Mesh:       cmp.Or(vc.Spec.Mesh, v1alpha1.DefaultName),
		Namespaces: vc.Spec.Namespaces,
		Created:    vc.CreationTimestamp.Time,
	}
}

// Index answers who owns what. It never changes, so any number of goroutines may
// ask one; With and Without make a new one that shares nearly all of the old one's
// memory, in a time that grows with the logarithm of the number of claims.
//
// An exact name or a prefix comes before "*" alone. Admission keeps all other
// patterns of a mesh apart; should two overlap nevertheless, the oldest virtual
// cluster owns what both claim.
type Index struct {
	clone    sync.Mutex // cloning a tree writes to it
	claims   *btree.BTreeG[claim]
	clusters *btree.BTreeG[Claims]
	// lengths counts, for each mesh, the prefix claims by the length of their
	// prefix, so that a look-up tries only prefixes that can exist.
	lengths map[string]prefixLengths
}

// claim is one pattern of one virtual cluster. "*" is the empty prefix.
type claim struct {
	mesh    string
	text    string // the name or the prefix
	prefix  bool
	created time.Time
	cluster string
}

type prefixLengths [64]int32

const degree = 16

// New indexes claims.
func New(claims ...Claims) *Index {
	x := &Index{
		claims:   btree.NewG(degree, compareClaims),
		clusters: btree.NewG(degree, func(a, b Claims) bool { return a.Cluster < b.Cluster }),
		lengths:  map[string]prefixLengths{},
	}
	for _, c := range claims {
		x.remove(c.Cluster)
		x.add(c)
	}
	return x
}

// The claims of one pattern lie next to each other, the oldest first; a pattern's
// extensions follow it.
func compareClaims(a, b claim) bool {
	if c := cmp.Compare(a.mesh, b.mesh); c != 0 {
		return c < 0
	}
	if c := cmp.Compare(a.text, b.text); c != 0 {
		return c < 0
	}
	if a.prefix != b.prefix {
		return b.prefix
	}
	return a.older(b)
}

func (c claim) older(than claim) bool {
	if order := c.created.Compare(than.created); order != 0 {
		return order < 0
	}
	return c.cluster < than.cluster
}

func (c claim) pattern() v1alpha1.NamespacePattern {
	if c.prefix {
		return v1alpha1.NamespacePattern(c.text + "*")
	}
	return v1alpha1.NamespacePattern(c.text)
}

func (c Claims) each(visit func(claim)) {
	for _, p := range c.Namespaces {
		text, prefix := strings.CutSuffix(string(p), "*")
		if len(text) >= len(prefixLengths{}) {
			continue // longer than a namespace's name can be
		}
		visit(claim{mesh: c.Mesh, text: text, prefix: prefix, created: c.Created, cluster: c.Cluster})
	}
}

// Claims are what a virtual cluster claims, and whether it is known.
func (x *Index) Claims(cluster string) (Claims, bool) {
	return x.clusters.Get(Claims{Cluster: cluster})
}

// Owner is the virtual cluster that owns a namespace of a mesh.
func (x *Index) Owner(mesh, namespace string) (cluster string, ok bool) {
	oldest, found := x.first(mesh, namespace, false)
	if lengths, some := x.lengths[mesh]; some {
		for n := 1; n <= len(namespace) && n < len(lengths); n++ {
			if lengths[n] == 0 {
				continue
			}
			if c, ok := x.first(mesh, namespace[:n], true); ok && (!found || c.older(oldest)) {
				oldest, found = c, true
			}
		}
	}
	if !found {
		oldest, found = x.first(mesh, "", true)
	}
	return oldest.cluster, found
}

// first is the oldest claim of one pattern.
func (x *Index) first(mesh, text string, prefix bool) (first claim, found bool) {
	x.others(mesh, "", text, prefix, func(c claim) bool {
		first, found = c, true
		return false
	})
	return first, found
}

// others visits, oldest first, the claims of one pattern that are not self's.
func (x *Index) others(mesh, self, text string, prefix bool, visit func(claim) bool) {
	x.claims.AscendGreaterOrEqual(claim{mesh: mesh, text: text, prefix: prefix}, func(c claim) bool {
		if c.mesh != mesh || c.text != text || c.prefix != prefix {
			return false
		}
		return c.cluster == self || visit(c)
	})
}

// Conflict finds a claim of another virtual cluster of the mesh that overlaps with
// one of the patterns, which self claims or wants to claim.
func (x *Index) Conflict(mesh, self string, patterns []v1alpha1.NamespacePattern) (owner string, ownersPattern, pattern v1alpha1.NamespacePattern, found bool) {
	for _, p := range patterns {
		if c, found := x.conflict(mesh, self, p); found {
			return c.cluster, c.pattern(), p, true
		}
	}
	return "", "", "", false
}

func (x *Index) conflict(mesh, self string, p v1alpha1.NamespacePattern) (found claim, conflicts bool) {
	take := func(c claim) bool {
		found, conflicts = c, true
		return false
	}
	text, prefix := strings.CutSuffix(string(p), "*")
	if text == "" {
		x.others(mesh, self, text, prefix, take)
		return found, conflicts
	}
	if lengths, some := x.lengths[mesh]; some {
		for n := 1; n <= len(text) && n < len(lengths) && !conflicts; n++ {
			if lengths[n] > 0 {
				x.others(mesh, self, text[:n], true, take)
			}
		}
	}
	switch {
	case conflicts:
	case !prefix:
		x.others(mesh, self, text, false, take)
	default:
		x.claims.AscendGreaterOrEqual(claim{mesh: mesh, text: text}, func(c claim) bool {
			if c.mesh != mesh || !strings.HasPrefix(c.text, text) {
				return false
			}
			return c.cluster == self || take(c)
		})
	}
	return found, conflicts
}

// With is the index with a virtual cluster's claims added, in place of those that
// it had.
func (x *Index) With(c Claims) *Index {
	y := x.copy()
	y.remove(c.Cluster)
	y.add(c)
	return y
}

// Without is the index without a virtual cluster's claims.
func (x *Index) Without(cluster string) *Index {
	y := x.copy()
	y.remove(cluster)
	return y
}

func (x *Index) copy() *Index {
	x.clone.Lock()
	defer x.clone.Unlock()
	return &Index{claims: x.claims.Clone(), clusters: x.clusters.Clone(), lengths: x.lengths}
}

// add and remove are only for an index that nobody else has seen yet.
func (x *Index) add(c Claims) {
	x.clusters.ReplaceOrInsert(c)
	c.each(func(c claim) {
		if _, had := x.claims.ReplaceOrInsert(c); !had {
			x.count(c, 1)
		}
	})
}

func (x *Index) remove(cluster string) {
	old, ok := x.clusters.Delete(Claims{Cluster: cluster})
	if !ok {
		return
	}
	old.each(func(c claim) {
		if _, had := x.claims.Delete(c); had {
			x.count(c, -1)
		}
	})
}

func (x *Index) count(c claim, by int32) {
	if !c.prefix || c.text == "" {
		return
	}
	x.lengths = maps.Clone(x.lengths)
	lengths := x.lengths[c.mesh]
	lengths[len(c.text)] += by
	if lengths == (prefixLengths{}) {
		delete(x.lengths, c.mesh)
	} else {
		x.lengths[c.mesh] = lengths
	}
}
