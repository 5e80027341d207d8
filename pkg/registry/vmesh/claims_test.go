package vmesh

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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
		{"the creation of a sandbox", claims("default"), nil, false},
		{"the same as before", claims("default", "shop"), had, false},
		{"more than before", claims("default", "shop", "more"), had, true},
		{"the same in another mesh", claims("other", "shop"), had, true},
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
