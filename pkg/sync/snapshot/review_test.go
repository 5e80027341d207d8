package snapshot

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/watch"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

func planned(all ...ownership.Claims) Plan {
	var p Plan
	for _, c := range all {
		vc := &v1alpha1.VirtualCluster{}
		vc.Name = c.Cluster
		vc.Spec = v1alpha1.VirtualClusterSpec{Mesh: c.Mesh, Namespaces: c.Namespaces, Hosts: c.Hosts, Grants: c.Grants}
		p.VirtualClusters = append(p.VirtualClusters, vc)
	}
	return p
}

func TestAReviewTellsWhatTheChangeThenDoes(t *testing.T) {
	start := []ownership.Claims{claims("shop", "shop", "shop.com"), claims("bank", "bank", "bank.com"), claims("rest", "*", "*")}
	for _, test := range []struct {
		name            string
		plan            []ownership.Claims
		heldBack, letIn string
	}{
		{"nothing changes", start, "", ""},
		{"a host is given up", []ownership.Claims{claims("shop", "shop", "")}, "shop:shop/a=HostNotOwned", "rest:other/b=HostNotOwned"},
		{"a host is claimed", []ownership.Claims{claims("bank", "bank", "bank.com x.com")}, "rest:other/a=HostNotOwned", ""},
		{"a host is granted", []ownership.Claims{claims("bank", "bank", "bank.com", grantOf("shop", "bank.com"))}, "", "shop:shop/b=HostNotOwned"},
		{"a namespace goes over", []ownership.Claims{claims("bank", "", "bank.com"), claims("shop", "shop bank", "shop.com")},
			"bank:bank/a=NotOwner", "shop:bank/z=NotOwner"},
		{"a new one claims a namespace", []ownership.Claims{claims("new", "other", "")}, "rest:other/a=NotOwner rest:other/b=NotOwner", ""},
		{"one goes to a mesh that there is not", []ownership.Claims{{Cluster: "bank", Mesh: "nowhere", Namespaces: []v1alpha1.NamespacePattern{"bank"}}}, "bank:bank/a=NoMesh", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t, guardedKinds(1))
			items := map[string][]*object.Object{
				"meshes": {meshObject("m")},
				"kind0s": {text("shop", "shop", "a", "1@shop.com"), text("shop", "shop", "b", "1@bank.com"), text("bank", "bank", "a", "1@bank.com"),
					text("rest", "other", "a", "1@x.com"), text("rest", "other", "b", "1@shop.com"), text("shop", "bank", "z", "1")},
			}
			if test.name == "a new one claims a namespace" { // else b is held back before and after
				items["kind0s"][4] = text("rest", "other", "b", "1")
			}
			for _, c := range start {
				items["virtualclusters"] = append(items["virtualclusters"], claiming(c))
			}
			if _, err := f.builder.Review(t.Context(), planned(test.plan...)); !errors.Is(err, ErrNotSynced) {
				t.Errorf("before all is read: %v", err)
			}
			f.start(items)
			<-f.builder.Synced()
			s := f.subscribe("m")
			before, err := s.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			review, err := f.builder.Review(t.Context(), planned(test.plan...))
			if err != nil {
				t.Fatal(err)
			}
			show := func(all []Held) string {
				var out []string
				for _, h := range all {
					out = append(out, fmt.Sprintf("%s:%s/%s=%s", h.VirtualCluster, h.Namespace, h.Name, h.Reason))
				}
				return strings.Join(out, " ")
			}
			// An object that only goes from one reason to another is told by neither.
			if got := show(review.HeldBack); got != test.heldBack {
				t.Errorf("held back %q, want %q", got, test.heldBack)
			}
			if got := show(review.LetIn); got != test.letIn {
				t.Errorf("let in %q, want %q", got, test.letIn)
			}
			if now, _ := s.Snapshot(); now != before {
				t.Error("the review changed something")
			}
			for _, c := range test.plan {
				f.observers["virtualclusters"].Changed(watch.Modified, claiming(c), 9)
			}
			want := before.Resources() - len(review.HeldBack) + len(review.LetIn)
			f.wait(s, fmt.Sprint(want, " resources"), func(s *Snapshot, err error) bool { return err == nil && s.Resources() == want })
		})
	}
}

func TestAReviewIsGivenUpWithItsContext(t *testing.T) {
	f := newFixture(t, guardedKinds(1))
	f.start(map[string][]*object.Object{"meshes": {meshObject("m")}})
	<-f.builder.Synced()
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	<-ctx.Done()
	for range 50 { // whichever is first
		if _, err := f.builder.Review(ctx, Plan{}); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
	}
}
