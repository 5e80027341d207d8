package connectivity

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

// Member is a cluster of a mesh.
type Member struct {
	Name    string `json:"name"`
	Network string `json:"network"`
	// Out says why the control planes are not to read its services, if they are not to.
	Out string `json:"out,omitempty"`
}

// Options say what to check.
type Options struct {
	ControlPlane grpc.ClientConnInterface
	Members      []Member
	// Namespace is the one that proxies are said to be in.
	Namespace string
	// Progress, if set, is told what is being asked, from several goroutines.
	Progress func(string)
}

// Reason is why a service is not reached.
type Reason string

// The reasons.
const (
	// NoGateway: proxies are told of endpoints in another network, since the control plane knows no gateway of it.
	NoGateway Reason = "NoGateway"
	// NoNetwork: proxies are told of endpoints of a member without a network as if those were in their own.
	NoNetwork Reason = "NoNetwork"
	// NoMutualTLS: no endpoint in that network takes mutual TLS, and control planes tell other networks of none but those.
	NoMutualTLS Reason = "NoMutualTLS"
	// NotTold: the endpoints are there, and proxies are not told of them.
	NotTold Reason = "NotTold"
	// NotRead: the control plane knows no endpoint of a member.
	NotRead Reason = "NotRead"
)

// Problem is something that is not connected.
type Problem struct {
	Reason Reason `json:"reason"`
	// From is the member whose proxies do not reach it; To is the network where it is.
	From string `json:"from,omitempty"`
	To   string `json:"to"`
	// Services are those that it is about; empty if it is about all.
	Services []string `json:"services,omitempty"`
	Message  string   `json:"message"`
}

// Route is how proxies of one network reach another.
type Route struct {
	From string `json:"from"`
	To   string `json:"to"`
	// How is Direct, Gateways, None, NoEndpoints or Broken.
	How How `json:"how"`
	// Gateways are those that proxies are told of.
	Gateways []string `json:"gateways,omitempty"`
	// Services are how many To has, and Reached how many of them have endpoints there, or gateways, that From is told of.
	Services int `json:"services"`
	Reached  int `json:"reached"`
}

// How is how a network is reached.
type How string

// The ways.
const (
	Direct      How = "Direct"
	Gateways    How = "Gateways"
	NoEndpoints How = "NoEndpoints"
	Broken      How = "Broken"
)

// Report is what a check has found. Its JSON is documented.
type Report struct {
	Members []MemberReport `json:"members"`
	Routes  []Route        `json:"routes"`
	// Problems are what is not connected, and Warnings what is to be known.
	Problems []Problem `json:"problems"`
	Warnings []string  `json:"warnings,omitempty"`

	told     map[string]map[Service][]Endpoint // by member
	own      map[string]map[Service][]Endpoint
	gateways map[string]map[string]bool // addresses, by network
}

// MemberReport is one member of a Report.
type MemberReport struct {
	Member `json:",inline"`
	// Services and Endpoints are how many the control plane knows of it.
	Services  int `json:"services"`
	Endpoints int `json:"endpoints"`
	// As is the address as which the control plane was asked.
	As string `json:"as,omitempty"`
}

// elsewhere is a network that nobody is in: there, a proxy is told of gateways alone.
const elsewhere = "vmesh-check-elsewhere"

// atOnce is how many questions are under way at the same time. An answer may have megabytes.
const atOnce = 4

// Check asks the control plane and judges its answers.
func Check(ctx context.Context, o Options) (*Report, error) {
	progress := func(format string, args ...any) {
		if o.Progress != nil {
			o.Progress(fmt.Sprintf(format, args...))
		}
	}
	place := func(member, network, ip string, view ...string) Place {
		return Place{Cluster: member, Network: network, IP: ip, Namespace: o.Namespace, View: view}
	}
	const nobody = "192.0.2.1" // of no pod
	progress("what services there are")
	services, err := Services(ctx, o.ControlPlane, place("", elsewhere, nobody))
	if err != nil {
		return nil, err
	}
	services = slices.DeleteFunc(services, func(s Service) bool { return isOfCluster(s.Host) })

	members := slices.SortedFunc(slices.Values(o.Members), func(a, b Member) int {
		return cmp.Or(strings.Compare(a.Network, b.Network), strings.Compare(a.Name, b.Name))
	})
	networks := map[string][]Member{}
	for _, m := range members {
		networks[m.Network] = append(networks[m.Network], m)
	}
	r := &Report{Routes: []Route{}, Problems: []Problem{}, told: map[string]map[Service][]Endpoint{}, own: map[string]map[Service][]Endpoint{}, gateways: map[string]map[string]bool{}}

	// First, what each has: what its proxies are told of their own network.
	own := make([]map[Service][]Endpoint, len(members))
	if err := each(ctx, len(members), func(ctx context.Context, i int) (err error) {
		m := members[i]
		progress("what member %s has", m.Name)
		own[i], err = Endpoints(ctx, o.ControlPlane, place(m.Name, m.Network, nobody, nonEmpty(m.Network)...), services)
		if err != nil {
			return fmt.Errorf("as a proxy of member %s: %w", m.Name, err)
		}
		for s, endpoints := range own[i] {
			endpoints = slices.DeleteFunc(endpoints, func(e Endpoint) bool { return e.Cluster != m.Name || !e.Healthy })
			if len(endpoints) == 0 {
				delete(own[i], s)
				continue
			}
			own[i][s] = endpoints
		}
		return nil
	}); err != nil {
		return nil, err
	}
	// Then what gateways each network has, and what its members are told of all, asked as one of their endpoints.
	var asked []string
	for network := range networks {
		if network != "" {
			asked = append(asked, network)
		}
	}
	slices.Sort(asked)
	outside := make([]map[Service][]Endpoint, len(asked))
	if err := each(ctx, len(asked), func(ctx context.Context, i int) (err error) {
		progress("what gateways network %s has", asked[i])
		outside[i], err = Endpoints(ctx, o.ControlPlane, place("", elsewhere, nobody, asked[i]), services)
		if err != nil {
			return fmt.Errorf("about network %s: %w", asked[i], err)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	told := make([]map[Service][]Endpoint, len(members))
	as := make([]string, len(members))
	if err := each(ctx, len(members), func(ctx context.Context, i int) (err error) {
		m := members[i]
		as[i] = anEndpoint(own[i])
		progress("what proxies of member %s are told", m.Name)
		told[i], err = Endpoints(ctx, o.ControlPlane, place(m.Name, m.Network, cmp.Or(as[i], nobody)), services)
		if err != nil {
			return fmt.Errorf("as a proxy of member %s: %w", m.Name, err)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	for i, m := range members {
		r.own[m.Name], r.told[m.Name] = own[i], told[i]
		report := MemberReport{Member: m, As: as[i], Services: len(own[i])}
		for _, endpoints := range own[i] {
			report.Endpoints += len(endpoints)
		}
		r.Members = append(r.Members, report)
	}
	abroad := map[string]map[Service][]Endpoint{}
	for i, network := range asked {
		abroad[network] = outside[i]
		r.gateways[network] = map[string]bool{}
		for _, endpoints := range outside[i] {
			for _, e := range endpoints {
				if e.Workload == "" && e.Namespace == "" {
					r.gateways[network][e.Address] = true
				}
			}
		}
	}
	r.judge(members, networks, abroad)
	return r, nil
}

// judge compares what proxies are told with what there is.
func (r *Report) judge(members []Member, networks map[string][]Member, abroad map[string]map[Service][]Endpoint) {
	names := slices.Sorted(maps.Keys(networks))
	for _, m := range r.Members {
		switch {
		case m.Out != "":
			r.Warnings = append(r.Warnings, fmt.Sprintf("member %s is left out: %s", m.Name, m.Out))
		case m.Endpoints == 0:
			r.Problems = append(r.Problems, Problem{Reason: NotRead, To: m.Network, Message: fmt.Sprintf(
				"the control plane knows no endpoint of member %s: it has no access to it (see its condition AccessGiven), or there is none", m.Name)})
		}
		if m.Network == "" && len(networks) > 1 {
			r.Warnings = append(r.Warnings, fmt.Sprintf("member %s has no network, others have: all proxies are told of its endpoints as if those were in their own network", m.Name))
		}
	}
	for _, from := range names {
		for _, to := range names {
			r.route(from, to, networks, abroad[to])
		}
	}
	slices.SortStableFunc(r.Problems, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.From, b.From), strings.Compare(a.To, b.To), strings.Compare(string(a.Reason), string(b.Reason)))
	})
}

// route judges how the members of one network reach another, or their own.
func (r *Report) route(from, to string, networks map[string][]Member, abroad map[Service][]Endpoint) {
	have := map[Service][]Endpoint{}
	for _, m := range networks[to] {
		for s, endpoints := range r.own[m.Name] {
			have[s] = append(have[s], endpoints...)
		}
	}
	is := Route{From: from, To: to, Services: len(have)}
	gateways := map[string]bool{}
	reached := map[Service]bool{}
	for s := range have {
		reached[s] = true
	}
	if to != from && to != "" {
		bare := 0
		for _, endpoints := range have {
			if i := slices.IndexFunc(endpoints, func(e Endpoint) bool { return e.MutualTLS }); i >= 0 && slices.ContainsFunc(endpoints, func(e Endpoint) bool { return !e.MutualTLS }) {
				bare++
			}
		}
		if bare > 0 && !slices.ContainsFunc(r.Warnings, func(w string) bool { return strings.HasPrefix(w, "network "+to+": ") }) {
			r.Warnings = append(r.Warnings, fmt.Sprintf("network %s: of %d services, some endpoints take no mutual TLS: other networks do not reach those", to, bare))
		}
	}
	for _, m := range networks[from] {
		missing := map[Reason][]Service{}
		for s, endpoints := range have {
			reason, through := r.reach(m, from, to, s, endpoints, abroad)
			for _, g := range through {
				gateways[g] = true
			}
			if reason != "" {
				missing[reason] = append(missing[reason], s)
				delete(reached, s)
			}
		}
		for reason, services := range missing {
			r.Problems = append(r.Problems, problem(reason, m.Name, to, services, len(have)))
		}
	}
	is.Reached, is.Gateways = len(reached), slices.Sorted(maps.Keys(gateways))
	switch {
	case len(have) == 0:
		is.How = NoEndpoints
	case from == to && is.Reached > 0 || from != to && to == "" && is.Reached > 0:
		is.How = Direct
	case is.Reached > 0:
		is.How = Gateways
	default:
		is.How = Broken
	}
	r.Routes = append(r.Routes, is)
}

// reach says why a proxy of a member does not reach a service in a network, or by which gateways it does.
func (r *Report) reach(m Member, from, to string, s Service, have []Endpoint, abroad map[Service][]Endpoint) (why Reason, through []string) {
	type where struct{ address, cluster string }
	there := map[where]bool{}
	for _, e := range have {
		there[where{e.Address, e.Cluster}] = true
	}
	direct := 0
	for _, e := range r.told[m.Name][s] {
		switch {
		case there[where{e.Address, e.Cluster}]:
			direct++
		case r.gateways[to][e.Address]:
			through = append(through, e.Address)
		}
	}
	secure := slices.ContainsFunc(have, func(e Endpoint) bool { return e.MutualTLS })
	switch {
	case from == to && direct > 0:
		return "", nil
	case from != to && to == "" && direct > 0:
		return NoNetwork, nil
	case from != to && direct > 0:
		return NoGateway, nil
	case from != to && len(through) > 0:
		return "", through
	case from != to && !secure:
		return NoMutualTLS, nil
	case from != to && len(abroad[s]) == 0:
		return "", nil // of its own cluster alone, by the mesh's settings
	case from == to && isElsewhere(m, have):
		return "", nil // likewise
	}
	return NotTold, nil
}

// isElsewhere says whether all endpoints are of other members.
func isElsewhere(m Member, have []Endpoint) bool {
	return !slices.ContainsFunc(have, func(e Endpoint) bool { return e.Cluster == m.Name })
}

func problem(reason Reason, from, to string, services []Service, of int) Problem {
	p := Problem{Reason: reason, From: from, To: to}
	network := "network " + to
	if to == "" {
		network = "the network without a name"
	}
	switch reason {
	case NoGateway:
		p.Message = "the control plane knows no gateway of " + network + ": proxies are told of its endpoints as if they reached those; give it one in the Mesh's spec.networks"
	case NoNetwork:
		p.Message = "proxies are told of the endpoints of members without a network as if those were in their own; give these members one in their spec.network"
	case NoMutualTLS:
		p.Message = "no endpoint in " + network + " takes mutual TLS (label security.istio.io/tlsMode of pods, PeerAuthentication): gateways pass nothing else on"
	case NotTold:
		p.Message = "proxies are not told of the endpoints in " + network + ", nor of a gateway for them"
	}
	for _, s := range services {
		p.Services = append(p.Services, s.String())
	}
	slices.Sort(p.Services)
	p.Message += fmt.Sprintf(" (%d of %d services)", len(services), of)
	return p
}

// isOfCluster says whether a service is for its own cluster alone unless the mesh's settings say otherwise.
func isOfCluster(host string) bool {
	return strings.Contains(host, ".kube-system.svc.") || strings.HasPrefix(host, "kubernetes.default.svc.")
}

// anEndpoint is the IP of one of the endpoints, the same each time.
func anEndpoint(own map[Service][]Endpoint) string {
	least := ""
	for _, endpoints := range own {
		for _, e := range endpoints {
			if host, _, err := net.SplitHostPort(e.Address); err == nil && (least == "" || host < least) {
				least = host
			}
		}
	}
	return least
}

func nonEmpty(network string) []string {
	if network == "" {
		return nil
	}
	return []string{network}
}

// each does something n times, some of it at once.
func each(ctx context.Context, n int, do func(context.Context, int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i := range n {
		group.Go(func() error { return do(ctx, i) })
	}
	return group.Wait()
}
