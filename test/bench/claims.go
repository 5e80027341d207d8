package main

import (
	"context"
	"fmt"
)

const (
	claimRounds = 25
	claimWrites = 100 // each round
	claimTeams  = 1000
)

// claims measures what it costs a write to be asked who owns what. Two teams of one server take turns: one of a mesh that a
// thousand virtual clusters share, with claims and grants, and one that has a mesh to itself.
func (b *bench) claims(ctx context.Context) error {
	t := b.vmesh("claims")
	defer func() { _ = t.kill() }()
	if _, err := t.start(ctx); err != nil {
		return err
	}
	create := func(path, body string) error {
		_, err := t.client.size(ctx, request{method: "POST", path: path, body: []byte(body)})
		return err
	}
	cluster := func(name, spec string) error {
		return create(clustersPath, fmt.Sprintf(`{"apiVersion":"vmesh.io/v1alpha1","kind":"VirtualCluster","metadata":{"name":%q},"spec":%s}`, name, spec))
	}
	if err := create("/apis/vmesh.io/v1alpha1/meshes", `{"apiVersion":"vmesh.io/v1alpha1","kind":"Mesh","metadata":{"name":"alone"},"spec":{}}`); err != nil {
		return err
	}
	if err := cluster("alone", `{"mesh":"alone","namespaces":["*"],"hosts":["*"]}`); err != nil {
		return err
	}
	if _, err := drive(ctx, 16, claimTeams, nil, func(_ context.Context, i int) error {
		name, next := fmt.Sprintf("team-%d", i), fmt.Sprintf("team-%d", (i+1)%claimTeams)
		return cluster(name, fmt.Sprintf(`{"namespaces":[%q,"%[1]s-x-*"],"hosts":["%[1]s.example.com","*.%[1]s.example.com"],`+
			`"grants":[{"to":%[2]q,"gateways":["%[1]s/public"],"hosts":["open.%[1]s.example.com"]}]}`, name, next))
	}); err != nil {
		return err
	}
	// In the middle, so that it is granted what is before it and grants to what is after it. What it writes speaks for a
	// service, a claimed and a granted host, at a granted gateway; the other writes the same.
	const team, giver = "team-500", "team-499"
	spec := fmt.Sprintf(`{"hosts":["reviews.%[1]s.svc.cluster.local","api.%[1]s.example.com","open.%[2]s.example.com"],"gateways":["mesh","%[2]s/public"],`+
		`"http":[{"match":[{"headers":{"end-user":{"exact":"jason"}}}],"route":[{"destination":{"host":"reviews","subset":"v2"}}]},{"route":[{"destination":{"host":"reviews","subset":"v1"}}]}]}`, team, giver)
	sides := []string{"alone", team}
	for _, name := range sides {
		prefix := "/clusters/" + name + "/api/v1/namespaces"
		if err := create(prefix, fmt.Sprintf(`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":%q}}`, team)); err != nil {
			return err
		}
	}
	latencies, dry, cpu := map[string][]float64{}, map[string][]float64{}, map[string]float64{}
	for round := range claimRounds + 2 {
		for _, name := range sides {
			path := "/clusters/" + name + "/apis/networking.istio.io/v1/namespaces/" + team + "/virtualservices"
			var done, tried load
			write := func(path string) (load, error) {
				return drive(ctx, 1, claimWrites, nil, func(_ context.Context, i int) error {
					return create(path, fmt.Sprintf(`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"vs-%d-%d"},"spec":%s}`, round, i, spec))
				})
			}
			tried, err := write(path + "?dryRun=All")
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			used, err := t.during(func() (err error) {
				done, err = write(path)
				return err
			})
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if round < 2 { // to warm up
				continue
			}
			dry[name] = append(dry[name], tried.latencies...)
			latencies[name] = append(latencies[name], done.latencies...)
			cpu[name] += used.total()
		}
	}
	perWrite := func(name string) float64 { return cpu[name] * 1000 / (claimRounds * claimWrites) }
	p50 := func(of map[string][]float64, name string) float64 { return quantile(of[name], 0.5) * 1000 }
	b.put("claims.alone.p50", t, p50(latencies, "alone"))
	b.put("claims.many.p50", t, p50(latencies, team))
	b.put("claims.p50", t, p50(latencies, team)-p50(latencies, "alone"))
	b.put("claims.dry.p50", t, p50(dry, team)-p50(dry, "alone"))
	b.put("claims.alone.cpu", t, perWrite("alone"))
	b.put("claims.many.cpu", t, perWrite(team))
	b.put("claims.cpu", t, perWrite(team)-perWrite("alone"))
	return nil
}
