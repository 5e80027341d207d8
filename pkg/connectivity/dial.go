package connectivity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"time"
)

// Attempt is one connection that was tried.
type Attempt struct {
	From string `json:"from"`
	// To is the network.
	To      string `json:"to"`
	Address string `json:"address"`
	// Gateway says whether it is one, by which Service was asked for; otherwise it is an endpoint of Service.
	Gateway bool   `json:"gateway"`
	Service string `json:"service"`
	// Server is who answered there, as far as it said so.
	Server string `json:"server,omitempty"`
	// Error is why it failed; empty if it did not.
	Error string `json:"error,omitempty"`
}

// dialTimeout bounds one attempt.
const dialTimeout = 5 * time.Second

// Dial tries, from where it runs, what proxies of a member are told: a connection to an endpoint of each member of its own
// network, and to each gateway of the others a TLS handshake with an endpoint behind it.
func (r *Report) Dial(ctx context.Context, from string, dial func(context.Context, string) (net.Conn, error)) ([]Attempt, error) {
	i := slices.IndexFunc(r.Members, func(m MemberReport) bool { return m.Name == from })
	if i < 0 {
		return nil, fmt.Errorf("member %q is none of those that were checked", from)
	}
	if dial == nil {
		dial = func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
	}
	network := r.Members[i].Network
	var attempts []Attempt
	tried := map[string]bool{}
	services := slices.Collect(maps.Keys(r.told[from]))
	slices.SortFunc(services, compare)
	cluster := map[string]string{}
	for _, m := range r.Members {
		cluster[m.Name] = m.Network
	}
	for _, s := range services {
		for _, e := range r.told[from][s] {
			if to, is := r.gatewayOf(e); is {
				if !tried[e.Address] {
					tried[e.Address] = true
					attempts = append(attempts, Attempt{From: from, To: to, Address: e.Address, Gateway: true, Service: s.String(), Server: s.SNI()})
				}
				continue
			}
			if of, is := cluster[e.Cluster]; is && of == network && e.Healthy && !tried[e.Cluster] {
				tried[e.Cluster] = true
				attempts = append(attempts, Attempt{From: from, To: network, Address: e.Address, Service: s.String()})
			}
		}
	}
	return attempts, each(ctx, len(attempts), func(ctx context.Context, i int) error {
		a := &attempts[i]
		var err error
		if a.Server, err = try(ctx, dial, a.Address, a.Server); err != nil {
			a.Error = err.Error()
		}
		return ctx.Err()
	})
}

// gatewayOf is the network that an endpoint is a gateway of.
func (r *Report) gatewayOf(e Endpoint) (network string, is bool) {
	for _, network := range slices.Sorted(maps.Keys(r.gateways)) {
		if r.gateways[network][e.Address] && e.Workload == "" && e.Namespace == "" {
			return network, true
		}
	}
	return "", false
}

// try connects; with a server name, it goes on until a server has shown its certificate. That it then wants one, too, shows that it was reached.
func try(ctx context.Context, dial func(context.Context, string) (net.Conn, error), address, name string) (server string, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	connection, err := dial(ctx, address)
	if err != nil {
		return "", err
	}
	defer connection.Close()
	if name == "" {
		return "", nil
	}
	shown := false
	err = tls.Client(connection, &tls.Config{
		ServerName: name, NextProtos: []string{"istio-peer-exchange", "istio", "h2"},
		InsecureSkipVerify: true, // nothing is said; who answers is what is asked
		VerifyConnection: func(state tls.ConnectionState) error {
			shown = true
			if len(state.PeerCertificates) > 0 && len(state.PeerCertificates[0].URIs) > 0 {
				server = state.PeerCertificates[0].URIs[0].String()
			}
			return nil
		},
	}).HandshakeContext(ctx)
	switch {
	case shown:
		return server, nil
	case errors.Is(err, context.DeadlineExceeded):
		return "", fmt.Errorf("nobody behind it answers within %s", dialTimeout)
	}
	return "", fmt.Errorf("it connects, but to no server of %s: %w", name, err)
}
