package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"k8s.io/component-base/metrics/legacyregistry"
)

// NotReady is why the relay is not ready, or nil: it has nothing to serve, or what it serves is older than it may be.
func (r *Relay) NotReady() error {
	stale, serves := r.staleness()
	switch limit := r.options.MaxStaleness; {
	case !serves:
		return errors.New("there is nothing to serve yet: no vmesh has told all of the mesh, and there is no cache")
	case limit > 0 && stale > limit:
		return fmt.Errorf("what is served is %s old, and --max-staleness is %s: no vmesh answers", stale.Round(time.Second), limit)
	}
	return nil
}

func (r *Relay) listenHealth() (net.Listener, error) {
	if r.options.HealthAddress == "" {
		return nil, nil
	}
	return listen("--health-address", r.options.HealthAddress)
}

// serveHealth answers on a listener, if there is one, until ctx ends.
func (r *Relay) serveHealth(ctx context.Context, l net.Listener) error {
	if l == nil {
		<-ctx.Done()
		return nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := r.NotReady(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	handler := legacyregistry.Handler()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, req *http.Request) {
		stale, _ := r.staleness()
		r.metrics.stale(stale)
		handler.ServeHTTP(w, req)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("--health-address: %w", err)
	}
	return nil
}
