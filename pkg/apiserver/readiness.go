package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apiserver/pkg/server/healthz"
)

// readinessChecks are what has to be true before clients are sent here.
func (s *Server) readinessChecks() []healthz.HealthChecker {
	return []healthz.HealthChecker{
		healthz.NamedCheck("etcd", func(*http.Request) error { return s.etcd.check() }),
		healthz.NamedCheck("storage", func(*http.Request) error { return s.storageReady() }),
		healthz.NamedCheck("rbac", func(*http.Request) error { return s.authorizer.Ready() }),
		healthz.NamedCheck("admission", func(*http.Request) error { return s.extension.Ready() }),
		healthz.NamedCheck("kinds", func(*http.Request) error { return s.warm.err() }),
		healthz.NamedCheck("snapshot", func(*http.Request) error { return s.snapshotsReady() }),
	}
}

// snapshotsReady says why there is a mesh whose control planes would not be answered.
func (s *Server) snapshotsReady() error {
	if err := s.sync.Ready(); err != nil {
		return err
	}
	if !s.prepared.Load() {
		return errors.New("the first snapshots of all meshes are being made")
	}
	return nil
}

const (
	// probeTimeout is how long etcd may take to answer before it counts as away.
	probeTimeout = 2 * time.Second
	// probeEvery is for how long an answer is good: anyone may ask whether the server
	// is ready, and not everyone may load etcd.
	probeEvery = time.Second
)

// etcdProbe asks etcd whether it answers. The watch caches cannot tell: to them an
// etcd that is away looks like one in which nothing happens.
type etcdProbe struct {
	name string
	read func(context.Context) error

	mu     sync.Mutex
	asked  time.Time
	result error
}

func newEtcdProbe(client *clientv3.Client, prefix string) *etcdProbe {
	name := "etcd"
	if endpoints := client.Endpoints(); len(endpoints) > 0 {
		name += " at " + strings.Join(endpoints, ", ")
	}
	return &etcdProbe{name: name, read: func(ctx context.Context) error {
		_, err := client.Get(ctx, prefix+"/health", clientv3.WithKeysOnly())
		return err
	}}
}

func (p *etcdProbe) check() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.asked) < probeEvery {
		return p.result
	}
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	if p.result = p.read(ctx); p.result != nil {
		p.result = fmt.Errorf("%s does not answer: %w", p.name, p.result)
	}
	p.asked = time.Now()
	return p.result
}

// withReasons says in the answer of /readyz why a check failed. Upstream keeps that for
// its log, because others may add checks whose errors tell secrets; these do not.
func withReasons(handler http.Handler, checks []healthz.HealthChecker) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path != "/readyz" {
			handler.ServeHTTP(w, req)
			return
		}
		held := &heldResponse{header: w.Header(), code: http.StatusOK}
		handler.ServeHTTP(held, req)
		body := held.body.Bytes()
		if held.code == http.StatusInternalServerError {
			body = giveReasons(body, req, checks)
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		}
		w.WriteHeader(held.code)
		_, _ = w.Write(body) // the caller has gone
	})
}

func giveReasons(body []byte, req *http.Request, checks []healthz.HealthChecker) []byte {
	lines := strings.SplitAfter(string(body), "\n")
	for i, line := range lines {
		name, withheld := strings.CutSuffix(strings.TrimPrefix(line, "[-]"), " failed: reason withheld\n")
		if !withheld {
			continue
		}
		at := slices.IndexFunc(checks, func(c healthz.HealthChecker) bool { return c.Name() == name })
		if at < 0 {
			continue
		}
		if err := checks[at].Check(req); err != nil { // it may have recovered meanwhile
			lines[i] = fmt.Sprintf("[-]%s failed: %v\n", name, err)
		}
	}
	return []byte(strings.Join(lines, ""))
}

// heldResponse keeps an answer back, to be changed.
type heldResponse struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (h *heldResponse) Header() http.Header         { return h.header }
func (h *heldResponse) WriteHeader(code int)        { h.code = code }
func (h *heldResponse) Write(b []byte) (int, error) { return h.body.Write(b) }
