package extension

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"syscall"
	"time"
)

// Egress says to which addresses the server goes for a virtual cluster, that is: for
// somebody who may name any host and does not see the network from where the server does.
// It looks at the address that is dialled, after the name has been resolved.
type Egress struct{ allow, deny []netip.Prefix }

// DefaultDeny are addresses of the machine itself and of its link, where clouds keep
// credentials.
func DefaultDeny() []string {
	return []string{
		"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32",
		"::/128", "::1/128", "fe80::/10", "ff00::/8", "fd00:ec2::/32",
	}
}

// NewEgress denies the addresses of deny but for those of allow. Both are CIDRs.
func NewEgress(allow, deny []string) (*Egress, error) {
	e := &Egress{}
	for _, list := range []struct {
		from []string
		to   *[]netip.Prefix
	}{{allow, &e.allow}, {deny, &e.deny}} {
		for _, cidr := range list.from {
			prefix, err := netip.ParsePrefix(cidr)
			if err != nil {
				return nil, fmt.Errorf("%q is not a CIDR, as in 10.0.0.0/8: %w", cidr, err)
			}
			*list.to = append(*list.to, prefix.Masked())
		}
	}
	return e, nil
}

// nat64 holds IPv4 addresses in its last four bytes.
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

func (e *Egress) allowed(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	if nat64.Contains(addr) {
		bytes := addr.As16()
		addr = netip.AddrFrom4([4]byte(bytes[12:]))
	}
	within := func(p netip.Prefix) bool { return p.Contains(addr) }
	return slices.ContainsFunc(e.allow, within) || !slices.ContainsFunc(e.deny, within)
}

func (e *Egress) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := &net.Dialer{Timeout: clientTimeout, KeepAlive: 30 * time.Second, Control: e.control}
	return d.DialContext(ctx, network, address)
}

func (e *Egress) control(_, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("webhooks of virtual clusters may not be at %s", address)
	}
	if !e.allowed(to.Addr()) {
		return fmt.Errorf("webhooks of virtual clusters may not be at %s: ask the platform's operators for another place (--tenant-webhook-allow)", to.Addr())
	}
	return nil
}

// maxAnswer is the most that a webhook may answer. Upstream reads answers of any length.
const maxAnswer = 8 << 20

// careful takes away from webhooks the means to send the server elsewhere, with another
// method, and be told in an error what is there; and to fill its memory.
func careful(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		resp, err := next.RoundTrip(req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode >= 300 && resp.StatusCode < 400 {
			_ = resp.Body.Close() // nobody reads it
			return nil, fmt.Errorf("a webhook may not redirect: it answered %s", resp.Status)
		}
		resp.Body = &limitedBody{resp.Body, maxAnswer}
		return resp, nil
	})
}

type limitedBody struct {
	io.ReadCloser
	left int64
}

func (b *limitedBody) Read(p []byte) (int, error) {
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("a webhook may not answer more than %d MiB", maxAnswer>>20)
	}
	return n, err
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }
