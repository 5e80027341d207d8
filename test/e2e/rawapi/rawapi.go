// Package rawapi speaks to an API server in plain HTTP, so that a test sees what is on
// the wire: status codes, headers and bodies as a client of any language gets them.
package rawapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"
)

// Client is one identity at one endpoint.
type Client struct {
	base string
	http *http.Client
}

// New makes a client from a kubeconfig's current context.
func New(kubeconfig string) (*Client, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	return NewForConfig(config)
}

// NewForConfig makes a client without client-side rate limits.
func NewForConfig(config *rest.Config) (*Client, error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	// What a server redirects to is part of its answer.
	plain := *client
	plain.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &Client{base: strings.TrimSuffix(config.Host, "/"), http: &plain}, nil
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Request is one HTTP request. Path is appended to the endpoint as it is, with its
// query and its escapes.
type Request struct {
	Method, Path        string
	ContentType, Accept string
	Body                []byte
}

// Response is the answer, read to its end.
type Response struct {
	Status int
	Header http.Header
	Body   []byte
}

// Do sends a request. An error means that there was no answer; a refusal is none.
func (c *Client) Do(ctx context.Context, r Request) (*Response, error) {
	req, err := http.NewRequestWithContext(ctx, r.Method, c.base+r.Path, bytes.NewReader(r.Body))
	if err != nil {
		return nil, err
	}
	if r.ContentType != "" {
		req.Header.Set("Content-Type", r.ContentType)
	}
	if r.Accept != "" {
		req.Header.Set("Accept", r.Accept)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: reading the answer: %w", r.Method, r.Path, err)
	}
	return &Response{Status: resp.StatusCode, Header: resp.Header, Body: body}, nil
}

// JSON is the body as a tree; nil when it is not JSON.
func (r *Response) JSON() map[string]any {
	var tree map[string]any
	if err := json.Unmarshal(r.Body, &tree); err != nil {
		return nil
	}
	return tree
}

// Field reads a member of a JSON body by its path, nil when there is none.
func (r *Response) Field(path ...string) any {
	var at any = r.JSON()
	for _, key := range path {
		m, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = m[key]
	}
	return at
}

// Text is Field for what is a string.
func (r *Response) Text(path ...string) string {
	s, _ := r.Field(path...).(string)
	return s
}

func (r *Response) String() string { return fmt.Sprintf("%d %s", r.Status, bytes.TrimSpace(r.Body)) }

// JSONBody turns YAML into a JSON body.
func JSONBody(doc string) ([]byte, error) { return yaml.YAMLToJSON([]byte(doc)) }
