// Package ownership says which virtual cluster owns a namespace or a host of a mesh, and
// what virtual clusters let each other use.
package ownership

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/btree"
	"k8s.io/apimachinery/pkg/api/equality"

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
	// Hosts are the patterns of hosts that it claims; likewise.
	Hosts []v1alpha1.HostPattern
	// Rails are its guard rails, nil for none; likewise.
	Rails *v1alpha1.VirtualClusterGuardRails
	// Grants are what it lets others use; likewise.
	Grants []v1alpha1.VirtualClusterGrant
	// Scope is what its sidecars see, nil for all; likewise.
	Scope *v1alpha1.VirtualClusterSidecarScope
	// Handovers are what others may take over; likewise.
	Handovers []v1alpha1.VirtualClusterHandover
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
		Hosts:      vc.Spec.Hosts,
		Rails:      vc.Spec.GuardRails,
		Grants:     vc.Spec.Grants,
		Scope:      vc.Spec.SidecarScope,
		Handovers:  vc.Spec.Handovers,
		Created:    vc.CreationTimestamp.Time,
	}
}

// Same says whether claims are in all the same as others.
func (c Claims) Same(as Claims) bool {
	return c.Cluster == as.Cluster && c.Mesh == as.Mesh && c.Created.Equal(as.Created) &&
		slices.Equal(c.Namespaces, as.Namespaces) && slices.Equal(c.Hosts, as.Hosts) &&
		equality.Semantic.DeepEqual(c.Rails, as.Rails) && equality.Semantic.DeepEqual(c.Grants, as.Grants) &&
		equality.Semantic.DeepEqual(c.Scope, as.Scope) && equality.Semantic.DeepEqual(c.Handovers, as.Handovers)
}

// handsOver says whether a pattern that is claimed may be taken over, by one virtual cluster
// or, if none is named, by any.
func (c Claims) handsOver(p v1alpha1.NamespacePattern, to string) bool {
	return slices.ContainsFunc(c.Handovers, func(h v1alpha1.VirtualClusterHandover) bool {
		return (to == "" || h.To == to) && slices.Contains(h.Namespaces, p)
	})
}

// SameClaim says whether a pattern that both claim is as good a claim of either.
func (c Claims) SameClaim(p v1alpha1.NamespacePattern, as Claims) bool {
	return slices.Contains(c.Namespaces, p) && slices.Contains(as.Namespaces, p) && c.Mesh == as.Mesh && c.Created.Equal(as.Created) &&
		c.handsOver(p, "") == as.handsOver(p, "")
}

// Index answers who owns what. It never changes, so any number of goroutines may
// ask one; With and Without make a new one that shares nearly all of the old one's
// memory, in a time that grows with the logarithm of the number of claims.
//
// A pattern that says something comes before "*" alone. Who hands a pattern over to another
// owns what it names until that claims it as well. Admission keeps all other patterns of a
// mesh apart; should two overlap nevertheless, the oldest virtual cluster owns what both claim.
type Index struct {
	clone      sync.Mutex // cloning a tree writes to it
	namespaces patterns
	hosts      patterns
	grants     *btree.BTreeG[grant]
	clusters   *btree.BTreeG[Claims]
	claimants  *btree.BTreeG[claimant]
	endings    *btree.BTreeG[ending]
}

// grant says that one virtual cluster lets another use something.
type grant struct{ to, from string }

// claimant is a virtual cluster that claims namespaces.
type claimant struct{ mesh, cluster string }

// ending is the last label of hosts that a virtual cluster claims.
type ending struct{ mesh, label, cluster string }

// patterns are the claims of one sort. Those of hosts are held from right to left, so
// that what is below a domain begins with it.
type patterns struct {
	tree *btree.BTreeG[claim]
	// lengths counts, for each mesh, the prefix claims by the length of their
	// prefix, so that a look-up tries only prefixes that can exist. Of hosts only what
	// ends in a dot can be one, and there are no counts.
	lengths map[string]prefixLengths
	hosts   bool
}

// claim is one pattern of one virtual cluster. "*" is the empty prefix.
type claim struct {
	mesh    string
	text    string // the name or the prefix
	prefix  bool
	yields  bool // it is handed over, and comes after who claims the same
	created time.Time
	cluster string
}

type prefixLengths [64]int32

const degree = 16

// New indexes claims.
func New(claims ...Claims) *Index {
	x := &Index{
		namespaces: patterns{tree: btree.NewG(degree, compareClaims), lengths: map[string]prefixLengths{}},
		hosts:      patterns{tree: btree.NewG(degree, compareClaims), hosts: true},
		grants: btree.NewG(degree, func(a, b grant) bool {
			return cmp.Or(cmp.Compare(a.to, b.to), cmp.Compare(a.from, b.from)) < 0
		}),
		clusters: btree.NewG(degree, func(a, b Claims) bool { return a.Cluster < b.Cluster }),
		claimants: btree.NewG(degree, func(a, b claimant) bool {
			return cmp.Or(cmp.Compare(a.mesh, b.mesh), cmp.Compare(a.cluster, b.cluster)) < 0
		}),
		endings: btree.NewG(degree, func(a, b ending) bool {
			return cmp.Or(cmp.Compare(a.mesh, b.mesh), cmp.Compare(a.label, b.label), cmp.Compare(a.cluster, b.cluster)) < 0
		}),
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
	if c.yields != than.yields {
		return than.yields
	}
	if order := c.created.Compare(than.created); order != 0 {
		return order < 0
	}
	return c.cluster < than.cluster
}

func (c claim) namespace() v1alpha1.NamespacePattern {
	if c.prefix {
		return v1alpha1.NamespacePattern(c.text + "*")
	}
	return v1alpha1.NamespacePattern(c.text)
}

func (c claim) host() v1alpha1.HostPattern {
	if c.cluster == "" {
		return ""
	}
	if c.prefix {
		return v1alpha1.HostPattern("*" + reversed(c.text))
	}
	return v1alpha1.HostPattern(reversed(c.text))
}

// reversed is a text from right to left. Hosts are ASCII.
func reversed(s string) string {
	b := []byte(s)
	slices.Reverse(b)
	return string(b)
}

func splitNamespace(p v1alpha1.NamespacePattern) (text string, prefix bool) {
	return strings.CutSuffix(string(p), "*")
}

func splitHost(p string) (text string, prefix bool) { return strings.CutSuffix(reversed(p), "*") }

func (c Claims) eachNamespace(visit func(claim)) {
	for _, p := range c.Namespaces {
		text, prefix := splitNamespace(p)
		if len(text) >= len(prefixLengths{}) {
			continue // longer than a namespace's name can be
		}
		visit(claim{mesh: c.Mesh, text: text, prefix: prefix, yields: c.handsOver(p, ""), created: c.Created, cluster: c.Cluster})
	}
}

func (c Claims) eachHost(visit func(claim)) {
	for _, p := range c.Hosts {
		text, prefix := splitHost(string(p))
		visit(claim{mesh: c.Mesh, text: text, prefix: prefix, created: c.Created, cluster: c.Cluster})
	}
}

// Claims are what a virtual cluster claims, and whether it is known.
func (x *Index) Claims(cluster string) (Claims, bool) {
	return x.clusters.Get(Claims{Cluster: cluster})
}

// All are the claims of all virtual clusters, in the order of their names.
func (x *Index) All() iter.Seq[Claims] {
	return func(yield func(Claims) bool) { x.clusters.Ascend(yield) }
}

// Owner is the virtual cluster that owns a namespace of a mesh.
func (x *Index) Owner(mesh, namespace string) (cluster string, ok bool) {
	c, found := x.namespaces.owner(mesh, namespace)
	return c.cluster, found
}

// HostOwner is the virtual cluster that owns a host of a mesh, and by which pattern; both
// are empty if nobody does. Of a wildcard (*.example.com, or *) it is the one that owns
// every host that it matches, or else one that owns some of them, but not self unless
// nobody else does. Services of the mesh are not asked here: their namespaces' owners own
// them.
func (x *Index) HostOwner(mesh, self, host string) (cluster string, by v1alpha1.HostPattern) {
	text, wildcard := splitHost(host)
	var c claim
	if !wildcard {
		c, _ = x.hosts.owner(mesh, text)
		return c.cluster, c.host()
	}
	c, _ = x.hosts.covers(mesh, text)
	if c.cluster != self {
		if c.cluster != "" {
			return c.cluster, c.host()
		}
		// Nobody owns it whole.
		other, found := x.hosts.below(mesh, self, text)
		if found {
			return other.cluster, other.host()
		}
		return "", ""
	}
	// All of it is self's, unless some of it is another's: always, if it is self's only by
	// yielding, and else if the other is older.
	if other, found := x.hosts.below(mesh, self, text); found && (c.text == "" || other.older(c)) {
		return other.cluster, other.host()
	}
	return c.cluster, c.host()
}

// owner is the claim by which a name is owned.
func (p *patterns) owner(mesh, text string) (owner claim, found bool) {
	owner, found = p.first(mesh, text, false)
	for prefix := range p.prefixes(mesh, text) {
		if c, ok := p.first(mesh, prefix, true); ok && (!found || c.older(owner)) {
			owner, found = c, true
		}
	}
	if !found {
		owner, found = p.first(mesh, "", true)
	}
	return owner, found
}

// covers is the oldest claim of a prefix with which all begins that begins with a text.
func (p *patterns) covers(mesh, text string) (owner claim, found bool) {
	for prefix := range p.prefixes(mesh, text) {
		if c, ok := p.first(mesh, prefix, true); ok && (!found || c.older(owner)) {
			owner, found = c, true
		}
	}
	if !found {
		owner, found = p.first(mesh, "", true)
	}
	return owner, found
}

// below is the first claim, not self's, of something that begins with a text, and of more
// than everything that does.
func (p *patterns) below(mesh, self, text string) (found claim, ok bool) {
	p.tree.AscendGreaterOrEqual(claim{mesh: mesh, text: text}, func(c claim) bool {
		if c.mesh != mesh || !strings.HasPrefix(c.text, text) {
			return false
		}
		if c.cluster == self || c.text == "" {
			return true
		}
		found, ok = c, true
		return false
	})
	return found, ok
}

// prefixes are those of a text, and the text itself, that somebody may claim, but for the
// empty one.
func (p *patterns) prefixes(mesh, text string) iter.Seq[string] {
	return func(yield func(string) bool) {
		if p.hosts {
			for i := range len(text) {
				if text[i] == '.' && !yield(text[:i+1]) {
					return
				}
			}
			return
		}
		lengths, some := p.lengths[mesh]
		for n := 1; some && n <= len(text) && n < len(lengths); n++ {
			if lengths[n] > 0 && !yield(text[:n]) {
				return
			}
		}
	}
}

// first is the oldest claim of one pattern.
func (p *patterns) first(mesh, text string, prefix bool) (first claim, found bool) {
	p.others(mesh, "", text, prefix, func(c claim) bool {
		first, found = c, true
		return false
	})
	return first, found
}

// others visits, oldest first, the claims of one pattern that are not self's.
func (p *patterns) others(mesh, self, text string, prefix bool, visit func(claim) bool) {
	p.tree.AscendGreaterOrEqual(claim{mesh: mesh, text: text, prefix: prefix}, func(c claim) bool {
		if c.mesh != mesh || c.text != text || c.prefix != prefix {
			return false
		}
		return c.cluster == self || visit(c)
	})
}

// Conflict finds a claim of another virtual cluster of the mesh that overlaps with
// one of the patterns, which self claims or wants to claim. Of what one hands over to
// the other both may claim the same pattern.
func (x *Index) Conflict(mesh, self string, patterns []v1alpha1.NamespacePattern) (owner string, ownersPattern, pattern v1alpha1.NamespacePattern, found bool) {
	for _, p := range patterns {
		text, prefix := splitNamespace(p)
		var other claim
		x.namespaces.overlapping(mesh, self, text, prefix, func(c claim) bool {
			if c.namespace() != p || !x.handsOver(c.cluster, p, self) && !x.handsOver(self, p, c.cluster) {
				other = c
			}
			return other.cluster == ""
		})
		if other.cluster != "" {
			return other.cluster, other.namespace(), p, true
		}
	}
	return "", "", "", false
}

func (x *Index) handsOver(from string, p v1alpha1.NamespacePattern, to string) bool {
	c, _ := x.Claims(from)
	return c.handsOver(p, to)
}

// HostConflict is Conflict for hosts.
func (x *Index) HostConflict(mesh, self string, hosts []v1alpha1.HostPattern) (owner string, ownersPattern, pattern v1alpha1.HostPattern, found bool) {
	for _, p := range hosts {
		text, prefix := splitHost(string(p))
		if c, found := x.hosts.conflict(mesh, self, text, prefix); found {
			return c.cluster, c.host(), p, true
		}
	}
	return "", "", "", false
}

func (p *patterns) conflict(mesh, self, text string, prefix bool) (found claim, conflicts bool) {
	p.overlapping(mesh, self, text, prefix, func(c claim) bool {
		found, conflicts = c, true
		return false
	})
	return found, conflicts
}

// overlapping visits the claims that are not self's and overlap with a pattern, for as
// long as visit says so.
func (p *patterns) overlapping(mesh, self, text string, prefix bool, visit func(claim) bool) {
	more := true
	take := func(c claim) bool {
		more = visit(c)
		return more
	}
	if text == "" {
		p.others(mesh, self, text, prefix, take)
		return
	}
	for other := range p.prefixes(mesh, text) {
		if prefix && other == text {
			break // among those that follow
		}
		if p.others(mesh, self, other, true, take); !more {
			return
		}
	}
	if !prefix {
		p.others(mesh, self, text, false, take)
		return
	}
	p.tree.AscendGreaterOrEqual(claim{mesh: mesh, text: text}, func(c claim) bool {
		if c.mesh != mesh || !strings.HasPrefix(c.text, text) {
			return false
		}
		return c.cluster == self || take(c)
	})
}

// Concerned are the virtual clusters, besides the one whose claims change, of which it may
// have to be decided anew what they may: those that yield to what is claimed or overlap
// with it, those that are granted something, and, where a mesh gets its second claimant or
// is left with one, all that claim something of it. Old and claims are what it was and
// what it becomes; x is the index with either.
func (x *Index) Concerned(old, claims Claims) map[string]struct{} {
	out := map[string]struct{}{}
	visit := func(c claim) bool {
		out[c.cluster] = struct{}{}
		return true
	}
	changed := func(a, b Claims) {
		whole := a.Mesh != b.Mesh || !a.Created.Equal(b.Created)
		for _, p := range a.Namespaces {
			if a.SameClaim(p, b) {
				continue
			}
			text, prefix := splitNamespace(p)
			x.namespaces.overlapping(a.Mesh, a.Cluster, text, prefix, visit)
			x.namespaces.others(a.Mesh, a.Cluster, "", true, visit)
			// A host that ends like a namespace may be one of its services.
			x.hosts.others(a.Mesh, a.Cluster, "", true, visit)
			switch {
			case text == "":
			case !prefix:
				last, _ := splitHost("*." + text)
				x.hosts.overlapping(a.Mesh, a.Cluster, last, true, visit)
			default:
				x.endings.AscendGreaterOrEqual(ending{mesh: a.Mesh, label: text}, func(e ending) bool {
					if e.mesh != a.Mesh || !strings.HasPrefix(e.label, text) {
						return false
					}
					out[e.cluster] = struct{}{}
					return true
				})
			}
		}
		for _, p := range a.Hosts {
			if !whole && slices.Contains(b.Hosts, p) {
				continue
			}
			text, prefix := splitHost(string(p))
			x.hosts.overlapping(a.Mesh, a.Cluster, text, prefix, visit)
			x.hosts.others(a.Mesh, a.Cluster, "", true, visit)
			// Whose services are called like hosts.
			x.namespaces.others(a.Mesh, a.Cluster, "", true, visit)
			if c, found := x.namespaces.owner(a.Mesh, lastLabel(text)); found {
				visit(c)
			}
		}
		for _, g := range a.Grants {
			out[g.To] = struct{}{}
		}
	}
	old.Cluster = cmp.Or(old.Cluster, claims.Cluster)
	changed(old, claims)
	changed(claims, old)
	for _, mesh := range []string{old.Mesh, claims.Mesh} {
		if (old.Mesh == mesh && len(old.Namespaces) > 0) == (claims.Mesh == mesh && len(claims.Namespaces) > 0) {
			continue
		}
		if alone, only := x.onlyOther(mesh, claims.Cluster); only {
			out[alone] = struct{}{}
		}
	}
	// What somebody may not give any more, others may not use.
	for _, name := range slices.Collect(maps.Keys(out)) {
		c, _ := x.Claims(name)
		for _, g := range c.Grants {
			out[g.To] = struct{}{}
		}
	}
	delete(out, claims.Cluster)
	return out
}

// lastLabel is a host's, of its reversed text.
func lastLabel(text string) string {
	label, _, _ := strings.Cut(text, ".")
	return reversed(label)
}

// onlyOther is the one virtual cluster besides self that claims namespaces of a mesh, if
// there is just one.
func (x *Index) onlyOther(mesh, self string) (other string, only bool) {
	count := 0
	x.claimants.AscendGreaterOrEqual(claimant{mesh: mesh}, func(c claimant) bool {
		if c.mesh != mesh {
			return false
		}
		if c.cluster != self {
			count++
			other = c.cluster
		}
		return count < 2
	})
	return other, count == 1
}

// Neighbour is the first virtual cluster besides self that claims namespaces of a mesh;
// empty if there is none.
func (x *Index) Neighbour(mesh, self string) (first string) {
	x.claimants.AscendGreaterOrEqual(claimant{mesh: mesh}, func(c claimant) bool {
		if c.mesh == mesh && c.cluster == self {
			return true
		}
		if c.mesh == mesh {
			first = c.cluster
		}
		return false
	})
	return first
}

// Granted are the grants of others of its mesh to a virtual cluster, of what is theirs to
// give, in the order of the givers' names.
func (x *Index) Granted(to string) []v1alpha1.ReceivedGrant {
	var all []v1alpha1.ReceivedGrant
	mine, known := x.Claims(to)
	if !known {
		return nil
	}
	x.grants.AscendGreaterOrEqual(grant{to: to}, func(g grant) bool {
		if g.to != to {
			return false
		}
		giver, _ := x.Claims(g.from)
		if giver.Mesh != mine.Mesh {
			return true
		}
		for _, given := range giver.Grants {
			if given.To != to {
				continue
			}
			r := v1alpha1.ReceivedGrant{From: g.from}
			for _, gateway := range given.Gateways {
				if x.OwnsGateway(giver, gateway) {
					r.Gateways = append(r.Gateways, gateway)
				}
			}
			for _, host := range given.Hosts {
				if x.OwnsHost(giver, host) {
					r.Hosts = append(r.Hosts, host)
				}
			}
			if len(r.Gateways)+len(r.Hosts) > 0 {
				all = append(all, r)
			}
		}
		return true
	})
	return all
}

// Sharing adds to some virtual clusters those with whom they share hosts by grants, and those
// with whom these do.
func (x *Index) Sharing(clusters map[string]struct{}) {
	todo := slices.Collect(maps.Keys(clusters))
	add := func(name string) {
		if _, has := clusters[name]; !has {
			clusters[name] = struct{}{}
			todo = append(todo, name)
		}
	}
	for len(todo) > 0 {
		name := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		of, _ := x.Claims(name)
		for _, g := range of.Grants {
			if len(g.Hosts) > 0 {
				add(g.To)
			}
		}
		for _, g := range x.Granted(name) {
			if len(g.Hosts) > 0 {
				add(g.From)
			}
		}
	}
}

// Grantees are the virtual clusters that somebody grants something, in order.
func (x *Index) Grantees() iter.Seq[string] {
	return func(yield func(string) bool) {
		last := ""
		x.grants.Ascend(func(g grant) bool {
			if g.to == last {
				return true
			}
			last = g.to
			return yield(g.to)
		})
	}
}

// OwnsGateway says whether a gateway, as namespace/name, is in a namespace that a virtual
// cluster owns.
func (x *Index) OwnsGateway(c Claims, gateway string) bool {
	namespace, _, _ := strings.Cut(gateway, "/")
	owner, ok := x.Owner(c.Mesh, namespace)
	return ok && owner == c.Cluster
}

// OwnsHost says whether all that a pattern matches is a virtual cluster's: hosts that it
// claims, or services of its namespaces. AnyHost is what it has not to yield to others.
func (x *Index) OwnsHost(c Claims, host v1alpha1.HostPattern) bool {
	if namespace, service := v1alpha1.ServiceNamespace(string(host)); service {
		owner, ok := x.Owner(c.Mesh, namespace)
		return ok && owner == c.Cluster
	}
	if host == v1alpha1.AnyHost {
		first, ok := x.hosts.first(c.Mesh, "", true)
		return ok && first.cluster == c.Cluster
	}
	owner, _ := x.HostOwner(c.Mesh, c.Cluster, string(host))
	return owner == c.Cluster && owner != ""
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
	return &Index{
		namespaces: x.namespaces.copy(), hosts: x.hosts.copy(),
		grants: x.grants.Clone(), clusters: x.clusters.Clone(), claimants: x.claimants.Clone(), endings: x.endings.Clone(),
	}
}

func (p patterns) copy() patterns {
	p.tree = p.tree.Clone()
	return p
}

// add and remove are only for an index that nobody else has seen yet.
func (x *Index) add(c Claims) {
	x.clusters.ReplaceOrInsert(c)
	c.eachNamespace(x.namespaces.add)
	c.eachHost(func(h claim) {
		x.hosts.add(h)
		x.endings.ReplaceOrInsert(ending{c.Mesh, lastLabel(h.text), c.Cluster})
	})
	for _, g := range c.Grants {
		x.grants.ReplaceOrInsert(grant{g.To, c.Cluster})
	}
	if len(c.Namespaces) > 0 {
		x.claimants.ReplaceOrInsert(claimant{c.Mesh, c.Cluster})
	}
}

func (x *Index) remove(cluster string) {
	old, ok := x.clusters.Delete(Claims{Cluster: cluster})
	if !ok {
		return
	}
	old.eachNamespace(x.namespaces.remove)
	old.eachHost(func(h claim) {
		x.hosts.remove(h)
		x.endings.Delete(ending{old.Mesh, lastLabel(h.text), cluster})
	})
	for _, g := range old.Grants {
		x.grants.Delete(grant{g.To, cluster})
	}
	x.claimants.Delete(claimant{old.Mesh, cluster})
}

func (p *patterns) add(c claim) {
	if _, had := p.tree.ReplaceOrInsert(c); !had {
		p.count(c, 1)
	}
}

func (p *patterns) remove(c claim) {
	if _, had := p.tree.Delete(c); had {
		p.count(c, -1)
	}
}

func (p *patterns) count(c claim, by int32) {
	if p.hosts || !c.prefix || c.text == "" {
		return
	}
	p.lengths = maps.Clone(p.lengths)
	lengths := p.lengths[c.mesh]
	lengths[len(c.text)] += by
	if lengths == (prefixLengths{}) {
		delete(p.lengths, c.mesh)
	} else {
		p.lengths[c.mesh] = lengths
	}
}
