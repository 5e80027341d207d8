package status

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

// holding is a snapshot with objects held back, as virtual cluster/name.
func holding(names ...string) *snapshot.Snapshot {
	var all []snapshot.Held
	for _, name := range names {
		cluster, name, _ := strings.Cut(name, "/")
		all = append(all, snapshot.Held{VirtualCluster: cluster, HeldBackResource: v1alpha1.HeldBackResource{Kind: "VirtualService", Namespace: "n", Name: name, Reason: "NotOwner", Message: "x"}})
	}
	return &snapshot.Snapshot{Mesh: "m", Lists: []*snapshot.List{snapshot.Empty}, HeldBack: snapshot.NewHeldBack(all...)}
}

func TestVirtualClustersAreToldWhatIsHeldBackAndGranted(t *testing.T) {
	w := &world{clusters: map[string]*v1alpha1.VirtualClusterStatus{"shop": {}, "bank": {}, "old": {HeldBackCount: 3}, "quiet": {}}}
	r, _ := newReporter(w)
	expect := func(step string, writes ...string) {
		t.Helper()
		w.clusterWrites = nil
		look(t, r)
		look(t, r) // and nothing more
		if !slices.Equal(w.clusterWrites, writes) {
			t.Errorf("%s: wrote %v, want %v", step, w.clusterWrites, writes)
		}
	}
	w.snapshots = []*snapshot.Snapshot{holding("shop/a", "shop/b")}
	expect("before all is read")

	bank := ownership.Claims{Cluster: "bank", Mesh: "m", Hosts: []v1alpha1.HostPattern{"bank.io"}, Grants: []v1alpha1.VirtualClusterGrant{{To: "shop", Hosts: []v1alpha1.HostPattern{"bank.io"}}}}
	shop := ownership.Claims{Cluster: "shop", Mesh: "m"}
	w.index, w.told = ownership.New(shop), []string{"old"}
	expect("at first", "old", "shop")
	if s := w.clusters["shop"]; s.HeldBackCount != 2 || len(s.HeldBack) != 2 || s.HeldBack[1].Name != "b" {
		t.Errorf("shop's status is %+v", s)
	}
	c := meta.FindStatusCondition(w.clusters["shop"].Conditions, v1alpha1.ConditionConforming)
	if c == nil || c.Status != "False" || c.Reason != v1alpha1.ReasonHeldBack || !strings.Contains(c.Message, "2 objects do not reach the mesh: VirtualService n/a (NotOwner), VirtualService n/b") {
		t.Errorf("condition %+v", c)
	}
	if s := w.clusters["old"]; s.HeldBackCount != 0 || !meta.IsStatusConditionTrue(s.Conditions, v1alpha1.ConditionConforming) {
		t.Errorf("what another run told is still there: %+v", s)
	}
	w.told, w.change = nil, 1
	expect("when that is stored")

	w.index = ownership.New(shop, bank)
	expect("with a grant", "shop")
	if s := w.clusters["shop"]; fmt.Sprint(s.Grants) != "[{bank [] [bank.io]}]" || s.HeldBackCount != 2 {
		t.Errorf("shop's status is %+v", s)
	}
	w.snapshots = []*snapshot.Snapshot{holding("bank/x")}
	w.index = ownership.New(shop)
	expect("when all is another's", "bank", "shop")
	if s := w.clusters["shop"]; len(s.Grants) != 0 || s.HeldBackCount != 0 || len(s.HeldBack) != 0 {
		t.Errorf("shop's status is %+v", s)
	}

	var many []string
	for i := range 2 * maxHeldBack {
		many = append(many, fmt.Sprintf("bank/%04d", i))
	}
	w.snapshots, w.err = []*snapshot.Snapshot{holding(many...)}, errors.New("etcd is away")
	if err := r.reportAll(t.Context()); !errors.Is(err, w.err) {
		t.Errorf("reportAll = %v", err)
	}
	w.err = nil
	expect("when it can be written again", "bank")
	if s := w.clusters["bank"]; s.HeldBackCount != 2*maxHeldBack || len(s.HeldBack) != maxHeldBack {
		t.Errorf("%d of %d are listed", len(s.HeldBack), s.HeldBackCount)
	}
}

func TestVirtualClustersAreToldTheirScope(t *testing.T) {
	w := &world{clusters: map[string]*v1alpha1.VirtualClusterStatus{"shop": {}, "bank": {}}, index: ownership.New()}
	r, _ := newReporter(w)
	expect := func(step string, scopes map[string]*snapshot.Scope, writes ...string) *v1alpha1.SidecarScopeStatus {
		t.Helper()
		s := holding()
		if scopes != nil {
			s.Scopes = snapshot.NewScopes(scopes)
		}
		w.snapshots, w.clusterWrites = []*snapshot.Snapshot{s}, nil
		look(t, r)
		look(t, r)
		if !slices.Equal(w.clusterWrites, writes) {
			t.Errorf("%s: wrote %v, want %v", step, w.clusterWrites, writes)
		}
		return w.clusters["shop"].SidecarScope
	}
	if got := expect("without one", nil); got != nil {
		t.Errorf("told %+v", got)
	}
	many := make([]string, 2*maxScope)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	scope := &snapshot.Scope{Namespaces: 3, Hosts: many, Replaced: []string{"a"}, Message: "x"}
	if got := expect("with one", map[string]*snapshot.Scope{"shop": scope}, "shop"); got.Namespaces != 3 || len(got.Hosts) != maxScope || fmt.Sprint(got.Replaced) != "[a]" || got.Message != "x" {
		t.Errorf("told %+v", got)
	}
	expect("when another's is new", map[string]*snapshot.Scope{"shop": scope, "bank": {Namespaces: 1}}, "bank")
	if got := expect("when it is off", map[string]*snapshot.Scope{"bank": {Namespaces: 1}}, "shop"); got != nil {
		t.Errorf("told %+v", got)
	}
}
