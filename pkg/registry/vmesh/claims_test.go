package vmesh

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
)

func TestOnlyNewClaimsHaveToBeAlone(t *testing.T) {
	claims := func(mesh string, namespaces ...v1alpha1.NamespacePattern) ownership.Claims {
		return ownership.Claims{Cluster: "shop", Mesh: mesh, Namespaces: namespaces}
	}
	had := virtualCluster(t, `"spec":{"mesh":"default","namespaces":["shop"]}`)
	for _, c := range []struct {
		name   string
		claims ownership.Claims
		old    *object.Object
		anew   bool
	}{
		{"a creation", claims("default", "shop"), nil, true},
		{"hosts", ownership.Claims{Cluster: "shop", Mesh: "default", Namespaces: []v1alpha1.NamespacePattern{"shop"}, Hosts: []v1alpha1.HostPattern{"a.example"}}, had, true},
		{"the creation of a sandbox", claims("default"), nil, false},
		{"the same as before", claims("default", "shop"), had, false},
		{"more than before", claims("default", "shop", "more"), had, true},
		{"the same in another mesh", claims("other", "shop"), had, true},
		{"what it hands over", ownership.Claims{Cluster: "shop", Mesh: "default", Namespaces: []v1alpha1.NamespacePattern{"shop"},
			Handovers: []v1alpha1.VirtualClusterHandover{{To: "new", Namespaces: []v1alpha1.NamespacePattern{"shop"}}}}, had, true},
		{"nothing any more", claims("default"), had, false},
		// Another server may have taken them away, which the index has not seen.
		{"what it had given up", claims("default", "shop"), virtualCluster(t, `"spec":{"mesh":"default"}`), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := claimsAnew(c.claims, c.old); got != c.anew {
				t.Errorf("got %t", got)
			}
		})
	}
}

func TestAnUpdateThatPanicsLetsOthersWrite(t *testing.T) {
	clusters := NewClusters(nil, nil)
	r := &ClusterREST{REST: &resource.REST{}, clusters: clusters} // has no storage, as the worst of admission
	func() {
		defer func() {
			if recover() == nil {
				t.Error("it did not panic")
			}
		}()
		_, _, _ = r.Update(t.Context(), "shop", nil, nil, nil, false, &metav1.UpdateOptions{})
	}()
	if len(clusters.pending) > 0 {
		t.Errorf("under way for ever: %v", clusters.pending)
	}
}

func TestHostsOfServicesAreNotClaimed(t *testing.T) {
	for host, wrong := range map[v1alpha1.HostPattern]string{
		"*": "", "api.example.com": "", "*.example.com": "", "*.com": "",
		"reviews": "without a dot", "*.local": "belong to who owns their namespaces", "cluster.local": "belong to", "a.b.svc.cluster.local": "belong to",
		"*.shop.svc.cluster.local": "belong to", "reviews.shop.svc": "belong to", "*.shop.svc": "belong to",
	} {
		errs := validateHosts(field.NewPath("spec", "hosts"), []v1alpha1.HostPattern{"ok.example.com", host})
		if (len(errs) == 0) != (wrong == "") || len(errs) > 0 && (!strings.Contains(errs[0].Detail, wrong) || errs[0].Field != "spec.hosts[1]") {
			t.Errorf("%s: %v", host, errs)
		}
	}
}

func TestOnlyWhatIsClaimedIsHandedOver(t *testing.T) {
	for handovers, wrong := range map[string]string{
		`{"to":"new","namespaces":["shop","shop-*"]}`:                               "",
		`{"to":"new","namespaces":["shop"]},{"to":"other","namespaces":["shop-*"]}`: "",
		`{"to":"new","namespaces":["shop-eu"]}`:                                     "spec.handovers[0].namespaces[0]",
		`{"to":"shop","namespaces":["shop"]}`:                                       "spec.handovers[0].to",
		`{"to":"new","namespaces":["shop"]},{"to":"other","namespaces":["shop"]}`:   "spec.handovers[1].namespaces[0]",
	} {
		vc, err := Decode(virtualCluster(t, `"spec":{"mesh":"default","namespaces":["shop","shop-*"],"handovers":[`+handovers+`]}`))
		if err != nil {
			t.Fatal(err)
		}
		errs := validateHandovers(field.NewPath("spec", "handovers"), ownership.ClaimsOf(vc))
		if (len(errs) > 0) != (wrong != "") || len(errs) > 0 && errs[0].Field != wrong {
			t.Errorf("%s: %v", handovers, errs)
		}
	}
}

func TestGrantsAreOfOnesOwn(t *testing.T) {
	edge := func(grants string) *object.Object {
		return virtualCluster(t, `"spec":{"mesh":"default","namespaces":["*"],"hosts":["*"],"grants":[`+grants+`]}`)
	}
	other := ownership.Claims{Cluster: "bank", Mesh: "default", Namespaces: []v1alpha1.NamespacePattern{"bank"}, Hosts: []v1alpha1.HostPattern{"bank.io"}}
	far := ownership.Claims{Cluster: "far", Mesh: "other"}
	for _, c := range []struct {
		name           string
		grants         string
		old            *object.Object
		wrong, warning string
	}{
		{"what is its own", `{"to":"bank","gateways":["ingress/public"],"hosts":["api.example.com","*","auth.ingress.svc.cluster.local"]}`, nil, "", ""},
		{"a gateway of another", `{"to":"bank","gateways":["ingress/public","bank/gw"]}`, nil, `spec.grants[0].gateways[1]`, ""},
		{"a host of another", `{"to":"bank","hosts":["bank.io"]}`, nil, `spec.grants[0].hosts[0]`, ""},
		{"a service of another", `{"to":"bank","hosts":["a.bank.svc.cluster.local"]}`, nil, `spec.grants[0].hosts[0]`, ""},
		{"what another has taken since", `{"to":"bank","hosts":["bank.io"],"gateways":["bank/gw"]}`, edge(`{"to":"bank","hosts":["bank.io"],"gateways":["bank/gw"]}`), "", "no effect any more"},
		{"to itself", `{"to":"shop"}`, nil, "spec.grants[0].to", ""},
		{"to nobody yet", `{"to":"new","hosts":["api.example.com"]}`, nil, "", `there is no virtual cluster "new" yet`},
		{"to one of another mesh", `{"to":"far","hosts":["api.example.com"]}`, nil, "", `belongs to mesh "other"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := ownership.New(other, far)
			vc, err := Decode(edge(c.grants))
			if err != nil {
				t.Fatal(err)
			}
			claims := ownership.ClaimsOf(vc)
			var had *ownership.Index
			var before ownership.Claims
			if c.old != nil {
				old, err := Decode(c.old)
				if err != nil {
					t.Fatal(err)
				}
				before = ownership.ClaimsOf(old)
				had = x.With(before)
			}
			warnings, errs := validateGrants(field.NewPath("spec", "grants"), x.With(claims), claims, had, before)
			if (len(errs) > 0) != (c.wrong != "") || len(errs) > 0 && errs[0].Field != c.wrong {
				t.Errorf("refused with %v, want %q", errs, c.wrong)
			}
			if got := strings.Join(warnings, "; "); (got != "") != (c.warning != "") || !strings.Contains(got, c.warning) {
				t.Errorf("warned of %q, want %q", got, c.warning)
			}
		})
	}
}
