package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"
)

const (
	fewTenants     = 10
	tenantObjects  = 100
	tenantSamples  = 400
	readyTimes     = 50
	clustersPath   = "/apis/vmesh.io/v1alpha1/virtualclusters"
	initialEvents  = "?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
	observedTenant = 0
)

func tenantName(index int) string { return fmt.Sprintf("tenant-%05d", index) }

// tenants measures many virtual clusters. Two servers run side by side, one with few and one with many, so that the
// latencies can be compared sample by sample.
func (b *bench) tenants(ctx context.Context) error {
	few, many := b.vmesh("few"), b.vmesh("many")
	targets := []*target{few, many}
	defer func() { _ = each(targets, (*target).kill) }()
	if err := each(targets, func(t *target) error { _, err := t.start(ctx); return err }); err != nil {
		return err
	}
	if err := b.createTenants(ctx, few, 0, fewTenants); err != nil {
		return err
	}
	if err := b.manyTenants(ctx, many); err != nil {
		return err
	}
	if b.options.profileDir != "" {
		if err := b.profileTenants(ctx, many, b.scaled(10000)); err != nil {
			return err
		}
	}
	if b.want(14) {
		if err := b.tenantRoles(ctx, many, b.scaled(10000)); err != nil {
			return err
		}
	}
	if !b.want(5) {
		return nil
	}
	if err := fillTenants(ctx, few, fewTenants); err != nil {
		return err
	}
	if err := fillTenants(ctx, many, b.scaled(10000)); err != nil {
		return err
	}
	return b.tenantReads(ctx, few, many)
}

// manyTenants creates the many, measuring rate and memory.
func (b *bench) manyTenants(ctx context.Context, t *target) error {
	targets := []*target{t}
	total := b.scaled(10000)
	if err := b.createTenants(ctx, t, 0, fewTenants); err != nil { // to warm up
		return err
	}
	if b.want(4) {
		if err := b.tenantReady(ctx, t); err != nil {
			return err
		}
		if err := t.collect(ctx); err != nil {
			return err
		}
		if err := settle(ctx, targets); err != nil {
			return err
		}
	}
	before, err := t.rss()
	if err != nil {
		return err
	}
	const parts = 5
	for part := range parts {
		from, to := fewTenants+part*(total-fewTenants)/parts, fewTenants+(part+1)*(total-fewTenants)/parts
		begun := time.Now()
		if err := b.createTenants(ctx, t, from, to); err != nil {
			return err
		}
		if b.want(4) {
			b.put("cluster.rate", t, float64(to-from)/time.Since(begun).Seconds())
		}
	}
	if !b.want(4) {
		return nil
	}
	if err := settle(ctx, targets); err != nil {
		return err
	}
	after, err := t.rss()
	if err != nil {
		return err
	}
	b.put("rss.cluster", t, after.since(before).total()*1024/float64(total-fewTenants))
	return nil
}

// createTenants creates virtual clusters that each own a part of the mesh.
func (b *bench) createTenants(ctx context.Context, t *target, first, last int) error {
	_, err := drive(ctx, 16, last-first, nil, func(ctx context.Context, i int) error {
		return createTenant(ctx, t, tenantName(first+i))
	})
	return err
}

func createTenant(ctx context.Context, t *target, name string) error {
	body := fmt.Appendf(nil, `{"apiVersion":"vmesh.io/v1alpha1","kind":"VirtualCluster","metadata":{"name":%q},"spec":{"namespaces":["%[1]s-*"]}}`, name)
	_, err := t.client.size(ctx, request{method: "POST", path: clustersPath, body: body})
	return err
}

// tenantReady measures how soon a new virtual cluster can be used.
func (b *bench) tenantReady(ctx context.Context, t *target) error {
	var latencies []float64
	for i := range readyTimes {
		name := fmt.Sprintf("new-%02d", i)
		asked := time.Now()
		if err := createTenant(ctx, t, name); err != nil {
			return err
		}
		if _, err := t.client.eventually(ctx, request{method: "GET", path: "/clusters/" + name + resourcePath}); err != nil {
			return err
		}
		latencies = append(latencies, milliseconds(time.Since(asked)))
	}
	b.put("cluster.ready", t, quantile(latencies, 0.5))
	return nil
}

// fillTenants gives the observed tenant its objects, and every other one.
func fillTenants(ctx context.Context, t *target, tenants int) error {
	_, err := drive(ctx, 16, tenants+tenantObjects, nil, func(ctx context.Context, i int) error {
		tenant := max(0, i-tenantObjects)
		_, err := t.client.size(ctx, request{
			method: "POST", path: "/clusters/" + tenantName(tenant) + "/apis/networking.istio.io/v1/namespaces/default/virtualservices",
			body: bytes.ReplaceAll(virtualService{"route", i}.body(0, ""), []byte(virtualService{index: i}.namespace()), []byte("default")),
		})
		return err
	})
	return err
}

// tenantReads compares reads of one tenant's objects, among many and among few.
func (b *bench) tenantReads(ctx context.Context, few, many *target) error {
	for _, form := range []struct {
		id   string
		read func(context.Context, *target) error
	}{{"tenant.list", tenantList}, {"tenant.watchlist", tenantWatchList}} {
		latencies := map[*target][]float64{}
		for i := range tenantSamples + tenantSamples/10 {
			if err := each([]*target{few, many}, func(t *target) error {
				asked := time.Now()
				if err := form.read(ctx, t); err != nil {
					return err
				}
				if i >= tenantSamples/10 { // the first ones warm up
					latencies[t] = append(latencies[t], milliseconds(time.Since(asked)))
				}
				return nil
			}); err != nil {
				return err
			}
		}
		amongMany, amongFew := quantile(latencies[many], 0.5), quantile(latencies[few], 0.5)
		b.put(form.id, many, amongMany)
		b.put(form.id+".ratio", many, amongMany/amongFew)
	}
	return nil
}

// tenantRoles gives every virtual cluster three roles and three bindings of its own, and measures what they cost and how
// long decisions take with them.
func (b *bench) tenantRoles(ctx context.Context, t *target, tenants int) error {
	targets := []*target{t}
	if err := t.collect(ctx); err != nil {
		return err
	}
	if err := settle(ctx, targets); err != nil {
		return err
	}
	before, err := t.rss()
	if err != nil {
		return err
	}
	const group = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/"
	if _, err := drive(ctx, 16, 3*tenants, nil, func(ctx context.Context, i int) error {
		name, prefix := fmt.Sprintf("role-%d", i%3), "/clusters/"+tenantName(i/3)+group
		role := fmt.Appendf(nil, `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"Role","metadata":{"name":%q},"rules":[`+
			`{"apiGroups":["networking.istio.io"],"resources":["virtualservices"],"resourceNames":["of-%s-%d"],"verbs":["get","update"]}]}`, name, tenantName(i/3), i%3)
		if _, err := t.client.size(ctx, request{method: "POST", path: prefix + "roles", body: role}); err != nil {
			return err
		}
		binding := fmt.Appendf(nil, `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"RoleBinding","metadata":{"name":%q},`+
			`"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":%[1]q},"subjects":[{"apiGroup":"rbac.authorization.k8s.io","kind":"User","name":"alice"}]}`, name)
		_, err := t.client.size(ctx, request{method: "POST", path: prefix + "rolebindings", body: binding})
		return err
	}); err != nil {
		return err
	}
	if err := settle(ctx, targets); err != nil {
		return err
	}
	after, err := t.rss()
	if err != nil {
		return err
	}
	b.put("roles.rss", t, after.since(before).total()*1024/float64(tenants))
	b.put("roles.rss.all", t, after.total())
	asked, err := drive(ctx, 1, 5000, nil, func(ctx context.Context, i int) error {
		tenant := tenantName(i * 7919 % tenants)
		answer, err := t.client.do(ctx, request{
			method: "POST", path: "/clusters/" + tenant + "/apis/authorization.k8s.io/v1/subjectaccessreviews",
			body: fmt.Appendf(nil, `{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","spec":{"user":"alice","resourceAttributes":{`+
				`"group":"networking.istio.io","resource":"virtualservices","verb":"get","namespace":"default","name":"of-%s-1"}}}`, tenant),
		})
		if err == nil && !bytes.Contains(answer, []byte(`"allowed":true`)) {
			err = fmt.Errorf("alice is refused: %s", answer)
		}
		return err
	})
	if err != nil {
		return err
	}
	b.put("roles.review.p50", t, quantile(asked.latencies, 0.5))
	b.put("roles.review.p99", t, quantile(asked.latencies, 0.99))
	return nil
}

func observedPath() string { return "/clusters/" + tenantName(observedTenant) + resourcePath }

func tenantList(ctx context.Context, t *target) error {
	_, err := t.client.size(ctx, request{method: "GET", path: observedPath()})
	return err
}

func tenantWatchList(ctx context.Context, t *target) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, err := t.client.open(ctx, t.client.shared(), request{method: "GET", path: observedPath() + initialEvents})
	if err != nil {
		return err
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 64<<10), 1<<20)
	for events := 0; lines.Scan(); events++ {
		if strings.Contains(lines.Text(), `"k8s.io/initial-events-end"`) {
			if events <= tenantObjects {
				return fmt.Errorf("a WatchList has %d events", events)
			}
			return nil
		}
	}
	return fmt.Errorf("a WatchList has ended early: %w", lines.Err())
}
