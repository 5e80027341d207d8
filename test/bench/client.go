package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// connections is how many HTTP/2 connections the workers of a load share.
const connections = 4

// client asks one server over HTTP/2 and TLS. Bodies are bytes in both directions: what a client library spends on
// objects would be taken from the server, which shares the cores.
type client struct {
	url  string // without a path
	tls  *tls.Config
	http []*http.Client // each has a connection of its own
	next atomic.Uint32
	// buffers are for reading what nobody keeps; *[]byte
	buffers sync.Pool
}

func newClient(kubeconfig string) (*client, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	tlsConfig, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, err
	}
	c := &client{url: strings.TrimSuffix(config.Host, "/"), tls: tlsConfig}
	c.buffers.New = func() any {
		b := make([]byte, 128<<10)
		return &b
	}
	for range connections {
		c.http = append(c.http, c.connection())
	}
	return c, nil
}

// connection is a client on a connection of its own.
func (c *client) connection() *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig:    c.tls.Clone(),
		ForceAttemptHTTP2:  true,
		DisableCompression: true, // headers are as the callers give them
		ReadBufferSize:     64 << 10,
	}}
}

func (c *client) close() {
	for _, h := range c.http {
		h.CloseIdleConnections()
	}
}

// request is what to ask.
type request struct {
	method, path string
	contentType  string // of the body; JSON when empty
	gzip         bool   // accept a compressed answer
	body         []byte
}

// statusError is an answer that is not a success.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return e.text }

// open sends a request on a connection and returns the answer's body.
func (c *client) open(ctx context.Context, on *http.Client, r request) (io.ReadCloser, error) {
	var body io.Reader
	if r.body != nil {
		body = bytes.NewReader(r.body)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, c.url+r.path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	if r.gzip {
		req.Header.Set("Accept-Encoding", "gzip")
	} else {
		req.Header.Set("Accept-Encoding", "identity")
	}
	if r.body != nil {
		contentType := r.contentType
		if contentType == "" {
			contentType = "application/json"
		}
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := on.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // no more than a help for the reader
		resp.Body.Close()
		return nil, &statusError{resp.StatusCode, fmt.Sprintf("%s %s: %s: %s", r.method, r.path, resp.Status, text)}
	}
	return resp.Body, nil
}

// do sends a request on one of the shared connections and returns the answer.
func (c *client) do(ctx context.Context, r request) ([]byte, error) {
	body, err := c.open(ctx, c.shared(), r)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

// size sends a request and reads the answer without keeping it.
func (c *client) size(ctx context.Context, r request) (int64, error) {
	body, err := c.open(ctx, c.shared(), r)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	buffer := c.buffers.Get().(*[]byte)
	defer c.buffers.Put(buffer)
	return io.CopyBuffer(struct{ io.Writer }{io.Discard}, body, *buffer)
}

func (c *client) shared() *http.Client { return c.http[int(c.next.Add(1))%len(c.http)] }

// eventually repeats a request until it succeeds: a server may be ready and yet send clients away.
func (c *client) eventually(ctx context.Context, r request) (int64, error) {
	for {
		n, err := c.size(ctx, r)
		var status *statusError
		if err == nil || !errors.As(err, &status) {
			return n, err
		}
		select {
		case <-ctx.Done():
			return 0, err
		case <-time.After(10 * time.Millisecond):
		}
	}
}
