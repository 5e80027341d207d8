package ownership

import "github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"

// View is an Index as one virtual cluster sees it, for those who decide what it may do. It
// never changes, and any number of goroutines may ask it.
type View struct {
	index  *Index
	claims Claims
	root   string
	grants []v1alpha1.ReceivedGrant
}

// View is what a virtual cluster sees of its mesh, whose root namespace is given.
func (x *Index) View(cluster, rootNamespace string) *View {
	claims, _ := x.Claims(cluster)
	claims.Cluster = cluster
	return &View{index: x, claims: claims, root: rootNamespace, grants: x.Granted(cluster)}
}

// Cluster is the virtual cluster's name.
func (v *View) Cluster() string { return v.claims.Cluster }

// RootNamespace is the mesh's.
func (v *View) RootNamespace() string { return v.root }

// Namespaces are the patterns of namespaces that it claims.
func (v *View) Namespaces() []v1alpha1.NamespacePattern { return v.claims.Namespaces }

// Rails are its guard rails; nil for none.
func (v *View) Rails() *v1alpha1.VirtualClusterGuardRails { return v.claims.Rails }

// Grants are what others let it use.
func (v *View) Grants() []v1alpha1.ReceivedGrant { return v.grants }

// Given are what it lets others use, as it says.
func (v *View) Given() []v1alpha1.VirtualClusterGrant { return v.claims.Grants }

// TakesOver says whether it may claim a namespace that another one owns, who hands it over.
func (v *View) TakesOver(namespace string) bool {
	c, found := v.index.namespaces.owner(v.claims.Mesh, namespace)
	return found && c.yields && v.index.handsOver(c.cluster, c.namespace(), v.claims.Cluster)
}

// NamespaceOwner is who owns a namespace, and by which pattern; empty if nobody does.
func (v *View) NamespaceOwner(namespace string) (cluster string, by v1alpha1.NamespacePattern) {
	c, found := v.index.namespaces.owner(v.claims.Mesh, namespace)
	if !found {
		return "", ""
	}
	return c.cluster, c.namespace()
}

// HostOwner is Index.HostOwner.
func (v *View) HostOwner(host string) (cluster string, by v1alpha1.HostPattern) {
	return v.index.HostOwner(v.claims.Mesh, v.claims.Cluster, host)
}

// Neighbour is another virtual cluster that claims namespaces of the mesh; empty if there
// is none.
func (v *View) Neighbour() string { return v.index.Neighbour(v.claims.Mesh, v.claims.Cluster) }
