package rbac

import (
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

const benchClusters = 10_000

// fill gives every virtual cluster three roles and three bindings, the same in all of
// them or each with rules of its own.
func fill(b *testing.B, f *feeder, own bool) {
	states := map[string][]*object.Object{}
	for i := range benchClusters {
		cluster := fmt.Sprintf("cluster-%d", i)
		names := []string(nil)
		if own {
			names = []string{cluster}
		}
		named := func(r rbacv1.PolicyRule) rbacv1.PolicyRule { r.ResourceNames = names; return r }
		add := func(resource string, o *object.Object) { states[resource] = append(states[resource], o) }
		add("clusterroles", of(b, cluster, clusterRoleOf("routes", nil, named(rule(readWrite, "networking.istio.io", "virtualservices", "destinationrules")))))
		add("roles", of(b, cluster, roleOf("shop", "config", named(rule(read, "", "configmaps")), named(rule(write, "", "services")))))
		add("roles", of(b, cluster, roleOf("pay", "secrets", named(rule(read, "", "secrets")))))
		add("clusterrolebindings", of(b, cluster, globally("routes", "routes", rbacv1.Subject{Kind: "Group", Name: "leads-" + cluster})))
		add("rolebindings", of(b, cluster, within("shop", "config", "Role", "config", toUser("alice"), rbacv1.Subject{Kind: "ServiceAccount", Name: "deployer"})))
		add("rolebindings", of(b, cluster, within("pay", "secrets", "Role", "secrets", toUser("alice"))))
	}
	for _, resource := range []string{"clusterroles", "roles", "clusterrolebindings", "rolebindings"} {
		f.by[resource].Replaced(states[resource], 1)
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkDecision is one decision among 10 000 virtual clusters with three roles and
// three bindings each, and what the index keeps of each of them.
func BenchmarkDecision(b *testing.B) {
	for _, own := range []bool{false, true} {
		name := "equal-rules"
		if own {
			name = "rules-of-their-own"
		}
		f := newFeeder().ready()
		before := heap()
		fill(b, f, own)
		size := float64(heap()-before) / benchClusters
		clusters := make([]string, benchClusters)
		for i := range clusters {
			clusters[i] = fmt.Sprintf("cluster-%d", i)
		}
		alice := &user.DefaultInfo{Name: "alice", Groups: []string{"dev", "ops", user.AllAuthenticated}}
		for _, c := range []struct {
			name string
			verb string
			want bool
		}{{"allowed", "list", !own}, {"refused", "delete", false}} {
			b.Run(name+"/"+c.name, func(b *testing.B) {
				b.ReportAllocs()
				a := asking(c.verb, "shop", "configmaps")
				i := 0
				for b.Loop() {
					i = (i + 7919) % benchClusters
					ok, _ := f.Allows(Subject{Cluster: clusters[i], User: alice}, a)
					if ok != c.want {
						b.Fatal(ok)
					}
				}
				b.ReportMetric(size, "B/cluster")
			})
		}
		b.Run(name+"/p99", func(b *testing.B) {
			a := asking("list", "shop", "configmaps")
			var took []time.Duration
			i := 0
			for b.Loop() {
				i = (i + 7919) % benchClusters
				start := time.Now()
				f.Allows(Subject{Cluster: clusters[i], User: alice}, a)
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
		})
		b.Run(name+"/parallel", func(b *testing.B) {
			a := asking("list", "shop", "configmaps")
			var n atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				i := int(n.Add(1)) * 31
				for pb.Next() {
					i = (i + 7919) % benchClusters
					f.Allows(Subject{Cluster: clusters[i], User: alice}, a)
				}
			})
		})
		runtime.KeepAlive(f)
	}
}
