package vmesh

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

func TestAMembersNameIsNoneThatControlPlanesUse(t *testing.T) {
	for name, good := range map[string]bool{"west": true, "kubernetes": false, "Kubernetes": false, "west.1": false, "kubernetes-1": true} {
		if got := len(validateMemberName(name, false)) == 0; got != good {
			t.Errorf("%s is good: %t", name, got)
		}
	}
}

func TestAMemberThatNobodyCouldReachIsWarnedOf(t *testing.T) {
	meshes := map[string]*v1alpha1.Mesh{
		"homeless": {ObjectMeta: metav1.ObjectMeta{Name: "homeless"}},
		"default": {ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.MeshSpec{
			Home: &v1alpha1.MeshHome{VirtualCluster: "home"}, Networks: []v1alpha1.MeshNetwork{{Name: "n1"}},
		}},
	}
	read := MeshReader(func(_ context.Context, name string) (*v1alpha1.Mesh, error) {
		if name == "broken" {
			return nil, errors.New("no answer")
		}
		return meshes[name], nil
	})
	for _, c := range []struct {
		reader        MeshReader
		mesh, network string
		warns         string
	}{
		{read, "default", "", ""}, {read, "default", "n1", ""}, {read, "default", "n2", "has no network n2"},
		{read, "none", "", "there is no mesh none"}, {read, "homeless", "", "has no home"}, {read, "broken", "", ""}, {nil, "none", "", ""},
	} {
		m := &v1alpha1.MemberCluster{Spec: v1alpha1.MemberClusterSpec{Mesh: c.mesh, Network: c.network, Access: v1alpha1.MemberClusterAccess{Secret: "x"}}}
		o, err := object.From(m, v1alpha1.GroupVersion.WithKind("MemberCluster"))
		if err != nil {
			t.Fatal(err)
		}
		warnings, errs := c.reader.validateMember(t.Context(), o, nil)
		if len(errs) > 0 || (c.warns == "") != (len(warnings) == 0) || !strings.Contains(strings.Join(warnings, "\n"), c.warns) {
			t.Errorf("%s/%s: %q, %v", c.mesh, c.network, warnings, errs)
		}
	}
}

func TestWhoDrainsAMemberIsToldWhatOnlyItServes(t *testing.T) {
	two := &v1alpha1.MemberOnlyHere{Services: 2, Names: []string{"shop/a", "shop/b"}}
	many := &v1alpha1.MemberOnlyHere{Services: 12, Names: []string{"shop/a"}}
	drain := &v1alpha1.MemberClusterDrain{Reason: "new racks"}
	for _, c := range []struct {
		name          string
		before, after *v1alpha1.MemberClusterDrain
		discovery     v1alpha1.MemberDiscovery
		only          *v1alpha1.MemberOnlyHere
		warns         string
	}{
		{"some services", nil, drain, v1alpha1.DiscoveryEnabled, two, "will fail, in the member, too: shop/a, shop/b"},
		{"many", nil, drain, v1alpha1.DiscoveryEnabled, many, "shop/a and 11 more"},
		{"none", nil, drain, v1alpha1.DiscoveryEnabled, &v1alpha1.MemberOnlyHere{}, ""},
		{"nobody knows", nil, drain, v1alpha1.DiscoveryEnabled, nil, ""},
		{"it is drained already", drain, drain, v1alpha1.DiscoveryEnabled, two, ""},
		{"it is no more", drain, nil, v1alpha1.DiscoveryEnabled, two, ""},
		{"control planes do not read it", nil, drain, v1alpha1.DiscoveryDisabled, two, ""},
	} {
		var objects []*object.Object
		for _, drain := range []*v1alpha1.MemberClusterDrain{c.before, c.after} {
			m := &v1alpha1.MemberCluster{Spec: v1alpha1.MemberClusterSpec{Mesh: "default", Discovery: c.discovery, Drain: drain, Access: v1alpha1.MemberClusterAccess{Secret: "x"}}}
			m.Status.OnlyHere = c.only
			o, err := object.From(m, v1alpha1.GroupVersion.WithKind("MemberCluster"))
			if err != nil {
				t.Fatal(err)
			}
			objects = append(objects, o)
		}
		warnings, errs := MeshReader(nil).validateMember(t.Context(), objects[1], objects[0])
		if len(errs) > 0 || (c.warns == "") != (len(warnings) == 0) || !strings.Contains(strings.Join(warnings, "\n"), c.warns) {
			t.Errorf("%s: %q, %v", c.name, warnings, errs)
		}
	}
}

func TestWhenMembersAreRemovedIsChecked(t *testing.T) {
	after := func(d time.Duration) *metav1.Duration { return &metav1.Duration{Duration: d} }
	for _, c := range []struct {
		members     *v1alpha1.MeshMembers
		warned, bad bool
	}{
		{nil, false, false},
		{&v1alpha1.MeshMembers{WhenAway: v1alpha1.RemoveWhenAway, RemoveAfter: after(0)}, false, false},
		{&v1alpha1.MeshMembers{WhenAway: v1alpha1.RemoveWhenAway, RemoveAfter: after(-time.Second)}, false, true},
		{&v1alpha1.MeshMembers{WhenAway: v1alpha1.KeepWhenAway, RemoveAfter: after(time.Second)}, true, false},
	} {
		if warnings, errs := validateMembers(c.members); (len(warnings) > 0) != c.warned || (len(errs) > 0) != c.bad {
			t.Errorf("%+v: %q, %v", c.members, warnings, errs)
		}
	}
}
