package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// row is one figure. Its value is the median of its samples.
type row struct {
	id     string
	number int // in the list that --only takes
	what   string
	unit   string
	reach  string
	more   bool // is better
}

// The servers that are measured.
const (
	nameVmesh = "vmesh"
	namePeer  = "kube-apiserver"
)

// rows are all figures, in the order in which they are shown.
var rows = []row{
	{id: "start.empty", number: 1, what: "start to /readyz, nothing stored", unit: "s", reach: "1 s"},
	{id: "start.loaded", number: 1, what: "start to /readyz, 10 000 stored", unit: "s", reach: "2 s"},
	{id: "start.list", number: 1, what: "start to the first full LIST answered, 10 000 stored", unit: "s", reach: "2.5 s"},
	{id: "rss.idle", number: 2, what: "RSS idle, etcd included", unit: "MiB", reach: "120 MiB"},
	{id: "rss.idle.api", number: 2, what: "of it, the API server", unit: "MiB"},
	{id: "anon.object", number: 3, what: "anonymous RSS for each stored VirtualService, after a load of 10 000, as it settles", unit: "KiB", reach: "8 KiB"},
	{id: "anon.object.gc", number: 3, what: "the same after a forced collection", unit: "KiB"},
	{id: "rss.cluster", number: 4, what: "RSS for each idle virtual cluster, 10 000 of them", unit: "KiB", reach: "20 KiB"},
	{id: "cluster.rate", number: 4, what: "virtual clusters created, 16 clients", unit: "/s", reach: "200/s", more: true},
	{id: "cluster.ready", number: 4, what: "from asking for a virtual cluster to its first LIST, p50", unit: "ms", reach: "100 ms"},
	{id: "tenant.list", number: 5, what: "LIST of a tenant's 100 objects among 10 000 tenants, p50", unit: "ms"},
	{id: "tenant.list.ratio", number: 5, what: "against among 10 tenants", unit: "times", reach: "1.2"},
	{id: "tenant.watchlist", number: 5, what: "WatchList of a tenant's 100 objects among 10 000 tenants, p50", unit: "ms"},
	{id: "tenant.watchlist.ratio", number: 5, what: "against among 10 tenants", unit: "times", reach: "1.2"},
	{id: "list.cpu", number: 6, what: "full LIST of 10 000 as JSON: CPU of the server", unit: "ms", reach: "10 times less"},
	{id: "list.latency", number: 6, what: "full LIST of 10 000 as JSON: latency p50", unit: "ms", reach: "5 times less"},
	{id: "list.gzip.cpu", number: 6, what: "the same with gzip: CPU of the server", unit: "ms"},
	{id: "list.gzip.latency", number: 6, what: "the same with gzip: latency p50", unit: "ms"},
	{id: "create.16", number: 7, what: "creates, 16 clients", unit: "/s", reach: "5 times more", more: true},
	{id: "create.64", number: 7, what: "creates, 64 clients", unit: "/s", reach: "5 times more", more: true},
	{id: "create.cpu", number: 7, what: "CPU of the server for one create, etcd included", unit: "ms", reach: "6 times less"},
	{id: "create.cpu.api", number: 7, what: "of it, the API server", unit: "ms"},
	{id: "etcd.puts", number: 8, what: "raw etcd puts of the same size, 64 clients", unit: "/s", more: true},
	{id: "create.share", number: 8, what: "creates with 64 clients as a share of raw etcd puts", unit: "times", reach: "0.25", more: true},
	{id: "apply.16", number: 9, what: "server-side applies, 16 clients (half create, half change)", unit: "/s", reach: "5 times more", more: true},
	{id: "apply.create", number: 9, what: "of them, applies that create", unit: "/s", more: true},
	{id: "apply.change", number: 9, what: "of them, applies that change", unit: "/s", more: true},
	{id: "apply.cpu", number: 9, what: "CPU of the server for one apply, etcd included", unit: "ms"},
	{id: "event.p50", number: 10, what: "100 watchers, 120 updates/s: from sending the write to its event, p50", unit: "ms", reach: "3 ms"},
	{id: "event.p99", number: 10, what: "the same, p99", unit: "ms", reach: "10 ms"},
	{id: "event.write", number: 10, what: "of it, from sending the write to its answer, p50", unit: "ms"},
	{id: "event.cpu", number: 10, what: "CPU of the server during it", unit: "cores"},
	{id: "push.1000.p50", number: 11, what: "from a write's 200 to the whole response at an xDS client, 1 000 objects, p50", unit: "ms", reach: "3 ms"},
	{id: "push.1000.p99", number: 11, what: "the same, p99", unit: "ms"},
	{id: "push.10000.p50", number: 11, what: "from a write's 200 to the whole response at an xDS client, 10 000 objects, p50", unit: "ms", reach: "15 ms"},
	{id: "push.10000.p99", number: 11, what: "the same, p99", unit: "ms"},
	{id: "push.size", number: 11, what: "size of that response", unit: "MiB"},
	{id: "push.cpu", number: 12, what: "CPU for one change, 10 000 objects, 10 SotW clients", unit: "ms", reach: "25 ms"},
	{id: "push.cpu.none", number: 12, what: "the same with no client", unit: "ms"},
	{id: "push.entries", number: 12, what: "entries marshalled for one change", unit: "", reach: "1"},
	{id: "quiet.alone.p50", number: 13, what: "requests of nine quiet tenants, alone, p50", unit: "ms"},
	{id: "quiet.alone.p99", number: 13, what: "the same, p99", unit: "ms"},
	{id: "quiet.with.p50", number: 13, what: "beside a hostile tenant at full speed, p50", unit: "ms"},
	{id: "quiet.with.p99", number: 13, what: "the same, p99", unit: "ms"},
	{id: "quiet.ratio", number: 13, what: "p99 beside the hostile tenant against p99 alone", unit: "times", reach: "1.5"},
	{id: "quiet.errors", number: 13, what: "errors of the quiet tenants", unit: "", reach: "0"},
	{id: "quiet.lost", number: 13, what: "events that the quiet tenants lost", unit: "", reach: "0"},
	{id: "quiet.expired", number: 13, what: "watches of the quiet tenants that expired, those that resumed after 25 s included", unit: "", reach: "0"},
	{id: "hostile.writes", number: 13, what: "writes of the hostile tenant that went through", unit: "/s", more: true},
	{id: "hostile.lists", number: 13, what: "its lists of 5 000 objects and more", unit: "/s", more: true},
	{id: "hostile.rss", number: 13, what: "the most memory that the server had", unit: "MiB"},
	{id: "roles.rss", number: 14, what: "RSS for three roles and three bindings in each of 10 000 virtual clusters, for each virtual cluster", unit: "KiB"},
	{id: "roles.rss.all", number: 14, what: "RSS of the server with all of them", unit: "MiB"},
	{id: "roles.review.p50", number: 14, what: "SubjectAccessReview of a user of one of them, over HTTPS, p50", unit: "ms"},
	{id: "roles.review.p99", number: 14, what: "the same, p99", unit: "ms"},
	{id: "planes.p50", number: 16, what: "from a write's 200 until the last of 100 control planes has it by delta, 10 000 objects, p50", unit: "ms", reach: "100 ms"},
	{id: "planes.p99", number: 16, what: "the same, p99", unit: "ms"},
	{id: "planes.cpu", number: 16, what: "CPU for that change, the write included", unit: "ms", reach: "30 ms"},
	{id: "planes.anon", number: 16, what: "anonymous RSS for each of the control planes, as it settles", unit: "KiB", reach: "1024 KiB"},
	{id: "planes.anon.gc", number: 16, what: "the same after a forced collection", unit: "KiB"},
	{id: "scope.all.cpu", number: 17, what: "istiod's CPU for a changed VirtualService: 10 000 objects exported to all, 20 proxies", unit: "ms"},
	{id: "scope.all.bytes", number: 17, what: "what it sends to proxies for it", unit: "KiB"},
	{id: "scope.all.last", number: 17, what: "from sending the write to the last proxy's response, debounce of 100 ms included", unit: "ms"},
	{id: "scope.all.rss", number: 17, what: "anonymous RSS of istiod", unit: "MiB"},
	{id: "scope.own.cpu", number: 17, what: "istiod's CPU for a changed VirtualService: the same, exported to their own namespaces", unit: "ms"},
	{id: "scope.own.bytes", number: 17, what: "what it sends to proxies for it", unit: "KiB"},
	{id: "scope.own.last", number: 17, what: "from sending the write to the last proxy's response, debounce of 100 ms included", unit: "ms"},
	{id: "scope.own.rss", number: 17, what: "anonymous RSS of istiod", unit: "MiB"},
	{id: "scope.own.cpu.ratio", number: 17, what: "CPU against exported to all: less by", unit: "times", more: true},
	{id: "scope.own.bytes.ratio", number: 17, what: "bytes against exported to all: less by", unit: "times", more: true},
	{id: "scope.sidecar.cpu", number: 17, what: "istiod's CPU for a changed VirtualService: the same, exported to all, and a Sidecar in each namespace that imports its own", unit: "ms"},
	{id: "scope.sidecar.bytes", number: 17, what: "what it sends to proxies for it", unit: "KiB"},
	{id: "scope.sidecar.last", number: 17, what: "from sending the write to the last proxy's response, debounce of 100 ms included", unit: "ms"},
	{id: "scope.sidecar.rss", number: 17, what: "anonymous RSS of istiod", unit: "MiB"},
	{id: "scope.sidecar.cpu.ratio", number: 17, what: "CPU against exported to all: less by", unit: "times", more: true},
	{id: "scope.sidecar.bytes.ratio", number: 17, what: "bytes against exported to all: less by", unit: "times", more: true},
	{id: "scope.managed.cpu", number: 17, what: "istiod's CPU for a changed VirtualService: the same, exported to all, and vmesh adds such Sidecars (spec.sidecarScope)", unit: "ms"},
	{id: "scope.managed.bytes", number: 17, what: "what it sends to proxies for it", unit: "KiB"},
	{id: "scope.managed.last", number: 17, what: "from sending the write to the last proxy's response, debounce of 100 ms included", unit: "ms"},
	{id: "scope.managed.rss", number: 17, what: "anonymous RSS of istiod", unit: "MiB"},
	{id: "scope.managed.cpu.ratio", number: 17, what: "CPU against exported to all: less by", unit: "times", more: true},
	{id: "scope.managed.bytes.ratio", number: 17, what: "bytes against exported to all: less by", unit: "times", more: true},
	{id: "claims.alone.p50", number: 19, what: "a create by one that has its mesh to itself, 1 client, p50", unit: "µs"},
	{id: "claims.many.p50", number: 19, what: "the same by one of 1 000 that share a mesh, with claims and grants, p50", unit: "µs"},
	{id: "claims.p50", number: 19, what: "what who owns what adds to a create", unit: "µs", reach: "100 µs"},
	{id: "claims.dry.p50", number: 19, what: "what it adds to a dry run, which is all but storing it and bringing it to the mesh", unit: "µs"},
	{id: "claims.alone.cpu", number: 19, what: "CPU for a create by one that has its mesh to itself, its place in the snapshot included", unit: "µs"},
	{id: "claims.many.cpu", number: 19, what: "CPU for a create by one of 1 000 that share a mesh, likewise", unit: "µs"},
	{id: "claims.cpu", number: 19, what: "what who owns what adds to that", unit: "µs"},
	{id: "view.anon", number: 20, what: "the services of 50 member clusters, 200 each with 10 endpoints: anonymous RSS, after a collection (peer: client-go's shared informers)", unit: "MiB"},
	{id: "view.heap.service", number: 20, what: "of it, the live heap for each service of a member with its 10 endpoints, connections included", unit: "KiB", reach: "10 times less"},
	{id: "view.heap.endpoint", number: 20, what: "the same for each endpoint, service included", unit: "B"},
	{id: "view.complete", number: 20, what: "from the start until all of them have been read", unit: "s"},
	{id: "view.complete.cpu", number: 20, what: "CPU for that", unit: "ms"},
	{id: "view.change.p50", number: 21, what: "from a change of a member's endpoints to the view, p50 (peer: to an informer's handler)", unit: "ms", reach: "1 s"},
	{id: "view.change.p99", number: 21, what: "the same, p99", unit: "ms"},
	{id: "view.change.cpu", number: 21, what: "CPU for it", unit: "µs"},
	{id: "join.called", number: 22, what: "from the start of vmesh join to the first call that the new member answers (peer: from the write of a remote secret)", unit: "ms"},
	{id: "join.steps", number: 22, what: "to the end of the command's own steps (--wait=false)", unit: "ms"},
	{id: "join.ready", number: 22, what: "to the MemberCluster's being ready", unit: "ms"},
	{id: "join.rest", number: 22, what: "from the end of the steps to the first call", unit: "ms"},
	{id: "join.leave", number: 22, what: "vmesh leave, drained for a second, until nothing is left", unit: "ms"},
}

func rowOf(id string) row {
	i := slices.IndexFunc(rows, func(r row) bool { return r.id == id })
	return rows[i]
}

// parseRows reads --only.
func parseRows(only string) (map[int]bool, error) {
	if only == "" {
		return nil, nil
	}
	numbers := map[int]bool{}
	for _, text := range strings.Split(only, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil || !slices.ContainsFunc(rows, func(r row) bool { return r.number == n }) {
			return nil, fmt.Errorf("--only: there is no row %q", text)
		}
		numbers[n] = true
	}
	return numbers, nil
}

func (r row) format(value float64) string {
	var number string
	switch {
	case value >= 100:
		number = strconv.FormatFloat(value, 'f', 0, 64)
	case value >= 10:
		number = strconv.FormatFloat(value, 'f', 1, 64)
	default:
		number = strconv.FormatFloat(value, 'f', 2, 64)
	}
	switch r.unit {
	case "":
		return number
	case "/s":
		return number + "/s"
	case "times":
		return number
	}
	return number + " " + r.unit
}

// results are the samples of each figure, by row and server.
type results map[string]map[string][]float64

func (r results) add(id, server string, value float64) {
	if r[id] == nil {
		r[id] = map[string][]float64{}
	}
	r[id][server] = append(r[id][server], value)
}

// median is the figure itself; false when it was not measured.
func (r results) median(id, server string) (float64, bool) {
	samples := r[id][server]
	if len(samples) == 0 {
		return 0, false
	}
	return quantile(samples, 0.5), true
}

func (r results) markdown() string {
	var out strings.Builder
	fmt.Fprintf(&out, "| row | work | reach | vmesh | kube-apiserver + etcd | vmesh is better by |\n|---|---|---|---|---|---|\n")
	for _, row := range rows {
		ours, ok := r.median(row.id, nameVmesh)
		if !ok {
			continue
		}
		theirs, ratio := "", ""
		if peer, ok := r.median(row.id, namePeer); ok {
			theirs = row.format(peer)
			better, worse := peer, ours
			if row.more {
				better, worse = ours, peer
			}
			if worse > 0 {
				digits := 1
				if better/worse < 2 {
					digits = 2 // whether it is better at all
				}
				ratio = strconv.FormatFloat(better/worse, 'f', digits, 64) + " times"
			}
		}
		fmt.Fprintf(&out, "| %d | %s | %s | %s | %s | %s |\n", row.number, row.what, row.reach, row.format(ours), theirs, ratio)
	}
	return out.String()
}

func (r results) writeJSON(w io.Writer) error {
	type figure struct {
		ID      string               `json:"id"`
		Row     int                  `json:"row"`
		What    string               `json:"what"`
		Unit    string               `json:"unit,omitempty"`
		Reach   string               `json:"reach,omitempty"`
		Median  map[string]float64   `json:"median"`
		Samples map[string][]float64 `json:"samples"`
	}
	var figures []figure
	for _, row := range rows {
		if r[row.id] == nil {
			continue
		}
		f := figure{ID: row.id, Row: row.number, What: row.what, Unit: row.unit, Reach: row.reach, Median: map[string]float64{}, Samples: r[row.id]}
		for server, samples := range r[row.id] {
			f.Median[server] = quantile(samples, 0.5)
		}
		figures = append(figures, f)
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(figures)
}

// quantile is the value below which a share q of the samples lies, between neighbours by interpolation. The samples
// stay as they are.
func quantile(samples []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(samples))
	at := q * float64(len(sorted)-1)
	low := int(at)
	if low == len(sorted)-1 {
		return sorted[low]
	}
	return sorted[low] + (sorted[low+1]-sorted[low])*(at-float64(low))
}
