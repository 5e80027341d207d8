package e2e

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// event is a watch event as it is on the wire.
type event struct {
	Type   string
	Object struct {
		Kind     string
		Code     int
		Reason   string
		Message  string
		Metadata metav1.ObjectMeta
	}
}

// watchRaw begins a watch of a path, from now on, and ends it with the test.
func watchRaw(t *testing.T, config *rest.Config, path string) <-chan event {
	t.Helper()
	separator := "?"
	if strings.Contains(path, "?") {
		separator = "&"
	}
	list := mustDo(t, rawClient(t, config), http.MethodGet, path, "")
	return watchFrom(t, config, path+separator+"watch=true&resourceVersion="+list.Text("metadata", "resourceVersion"))
}

// watchFrom begins a watch as a path with a query asks for it.
func watchFrom(t *testing.T, config *rest.Config, path string) <-chan event {
	t.Helper()
	events, stop := stream[event](t, config, path)
	t.Cleanup(stop)
	return events
}

// stream reads a watch until it ends or is stopped. stop returns when nothing comes any
// more, and may be called again.
func stream[Event any](t *testing.T, config *rest.Config, path string) (events <-chan Event, stop func()) {
	t.Helper()
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, config.Host+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	out := make(chan Event, 1000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(out)
		for decoder := json.NewDecoder(resp.Body); ; {
			var e Event
			if decoder.Decode(&e) != nil {
				return // it was stopped, or has ended
			}
			select {
			case out <- e:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, sync.OnceFunc(func() {
		cancel()
		<-done
		resp.Body.Close()
		client.CloseIdleConnections()
	})
}

// next waits for an event.
func next(t *testing.T, events <-chan event) event {
	t.Helper()
	select {
	case e, open := <-events:
		if !open {
			t.Fatal("the watch ended")
		}
		return e
	case <-time.After(time.Minute):
		t.Fatal("no event")
	}
	panic("unreachable")
}
