package fairness

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
)

// Connections counts the open connections of each virtual cluster. Nothing is kept of
// those that have none. It is safe for concurrent use.
type Connections struct {
	mu   sync.Mutex
	open map[string]int32
}

// NewConnections makes the counter.
func NewConnections() *Connections { return &Connections{open: map[string]int32{}} }

// Listen has the connections of a listener counted once they are claimed.
func (c *Connections) Listen(l net.Listener) net.Listener { return &listener{l, c} }

// Claim makes the connection of a request that of a virtual cluster, until it is closed,
// unless another has claimed it before: a connection belongs to whoever asks first. It
// fails with a Refusal when the virtual cluster has as many as it may, zero being no limit;
// the connection should be closed then. ctx is the request's, as http.Server made it.
func (c *Connections) Claim(ctx context.Context, cluster string, limit int32) error {
	local, ok := ctx.Value(http.LocalAddrContextKey).(*address)
	if !ok || local.conn.of != c {
		return nil // not one of the listener's
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	conn := local.conn
	if conn.closed || conn.cluster != "" {
		return nil
	}
	if open := c.open[cluster]; limit > 0 && open >= limit {
		return &Refusal{Reason: "connections", RetryAfter: 5, Message: fmt.Sprintf(
			"virtual cluster %q has %d connections open, which is its limit (rates.connections): share them, close some, or ask the platform team for more", cluster, open)}
	}
	c.open[cluster]++
	conn.cluster = cluster
	return nil
}

type listener struct {
	net.Listener
	of *Connections
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, of: l.of}, nil
}

// conn is a connection that knows whose it is.
type conn struct {
	net.Conn
	of      *Connections
	cluster string // guarded by of.mu, as closed is
	closed  bool
}

// address is how a request finds its connection: http.Server tells handlers no more of it
// than this, and TLS and HTTP/2 pass it on as it is.
type address struct {
	net.Addr
	conn *conn
}

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return &address{c.Conn.LocalAddr(), c} }

// Close implements net.Conn.
func (c *conn) Close() error {
	c.of.mu.Lock()
	if !c.closed && c.cluster != "" {
		if c.of.open[c.cluster]--; c.of.open[c.cluster] == 0 {
			delete(c.of.open, c.cluster)
		}
	}
	c.closed = true
	c.of.mu.Unlock()
	return c.Conn.Close()
}
