package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The hostile tenant: what it does at a time, each as fast as it is answered, and again at once when it is refused.
const (
	hostileObjects  = 5000 // that its lists return, 1.2 KB each
	hostileWriters  = 32   // create and change
	hostileListers  = 8    // list everything
	hostileOpeners  = 8    // open watches with initial events, and close them
	hostileHuge     = 6    // send bodies of 1 MiB and of 3 MiB
	hostileReaders  = 100  // watches that read all that happens
	hostileSleepers = 50   // watches that read nothing
	hostileNewcomer = 2    // make a connection for each request
)

// hostileDone is what the hostile tenant got through, and how often it was refused.
type hostileDone struct {
	Writes, Lists, Watches, Huge, Connections, Refused, Events int64
}

// hostileMain is the other process: it plagues the server of a kubeconfig until it gets a SIGTERM, and prints what it did.
func hostileMain(kubeconfig string) error {
	// Who asks must not take the processor from those whose waiting is measured.
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 19); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	h := &hostile{prefix: fmt.Sprintf("hostile-%d", os.Getpid())}
	var wg sync.WaitGroup
	for _, part := range []struct {
		workers     int
		connections int
		work        func(ctx context.Context, c *client, worker int) error
	}{
		{hostileWriters, 4, h.write},
		{hostileListers, hostileListers, h.list},
		{hostileOpeners, 4, h.open},
		{hostileHuge, hostileHuge, h.huge},
		{hostileReaders, 4, h.read},
		{hostileSleepers, hostileSleepers, h.sleep},
		{hostileNewcomer, 1, h.connect},
	} {
		c, err := newClient(kubeconfig)
		if err != nil {
			return err
		}
		for len(c.http) < part.connections {
			c.http = append(c.http, c.connection())
		}
		c.http = c.http[:part.connections]
		for worker := range part.workers {
			wg.Go(func() {
				for ctx.Err() == nil {
					err := part.work(ctx, c, worker)
					var status *statusError
					switch {
					case err == nil:
					case errors.As(err, &status):
						atomic.AddInt64(&h.done.Refused, 1)
					case ctx.Err() == nil:
						// The server ends what it does not like; a moment spares the client's own processor.
						atomic.AddInt64(&h.done.Refused, 1)
						time.Sleep(time.Millisecond)
					}
				}
			})
		}
	}
	wg.Wait()
	return json.NewEncoder(os.Stdout).Encode(h.done)
}

type hostile struct {
	done   hostileDone
	prefix string // of what it creates
	next   atomic.Int64
}

const hostilePath = "/apis/networking.istio.io/v1/namespaces/default/virtualservices"

func hostileBody(prefix string, index, revision int) []byte {
	v := virtualService{prefix, index}
	return bytes.ReplaceAll(v.body(revision, ""), []byte(v.namespace()), []byte("default"))
}

func (h *hostile) write(ctx context.Context, c *client, _ int) error {
	n := int(h.next.Add(1))
	r := request{method: "POST", path: hostilePath, body: hostileBody(h.prefix, n/2, 0)}
	if n%2 == 1 {
		index := rand.IntN(hostileObjects)
		r = request{method: "PUT", path: hostilePath + "/" + virtualService{"hostile", index}.name(), body: hostileBody("hostile", index, n)}
	}
	_, err := c.size(ctx, r)
	if err == nil {
		atomic.AddInt64(&h.done.Writes, 1)
	}
	return err
}

func (h *hostile) list(ctx context.Context, c *client, _ int) error {
	_, err := c.size(ctx, request{method: "GET", path: hostilePath})
	if err == nil {
		atomic.AddInt64(&h.done.Lists, 1)
	}
	return err
}

func (h *hostile) open(ctx context.Context, c *client, _ int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, err := c.open(ctx, c.shared(), request{method: "GET", path: hostilePath + initialEvents})
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err = io.ReadFull(body, make([]byte, 64<<10)); err == nil {
		atomic.AddInt64(&h.done.Watches, 1)
	}
	return err
}

// hugeBodies are a ConfigMap that can be stored, and one that etcd does not take.
var hugeBodies = sync.OnceValue(func() [][]byte {
	var all [][]byte
	for _, size := range []int{1 << 20, 3<<20 - 4096} {
		all = append(all, fmt.Appendf(nil, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"NAME-0"},"data":{"all":%q}}`, bytes.Repeat([]byte("hostile "), size/8)))
	}
	return all
})

func (h *hostile) huge(ctx context.Context, c *client, worker int) error {
	name := fmt.Sprintf("huge-%02d", worker)
	body := bytes.Replace(hugeBodies()[worker%2], []byte("NAME-0"), []byte(name), 1)
	path := "/api/v1/namespaces/default/configmaps"
	_, err := c.size(ctx, request{method: "POST", path: path, body: body})
	if err == nil {
		atomic.AddInt64(&h.done.Huge, 1)
		_, err = c.size(ctx, request{method: "DELETE", path: path + "/" + name})
	}
	return err
}

// from opens a watch from the resource version of what is at a path.
func (h *hostile) from(ctx context.Context, c *client, on *http.Client, path string) (io.ReadCloser, error) {
	body, err := c.open(ctx, on, request{method: "GET", path: path})
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data, err := io.ReadAll(body)
	if err != nil {
		return nil, err
	}
	return c.open(ctx, on, request{method: "GET", path: hostilePath + "?watch=true&resourceVersion=" + resourceVersion(data)})
}

func (h *hostile) read(ctx context.Context, c *client, _ int) error {
	body, err := h.from(ctx, c, c.shared(), hostilePath+"?limit=1")
	if err != nil {
		return err
	}
	defer body.Close()
	lines := bufio.NewReaderSize(body, 64<<10)
	for {
		if _, err := lines.ReadSlice('\n'); err != nil {
			return err
		}
		atomic.AddInt64(&h.done.Events, 1)
	}
}

func (h *hostile) sleep(ctx context.Context, c *client, worker int) error {
	// From before the objects were made, all of which it would have to be told.
	body, err := h.from(ctx, c, c.http[worker%len(c.http)], "/api/v1/namespaces/default")
	if err != nil {
		return err
	}
	defer body.Close()
	<-ctx.Done()
	return nil
}

func (h *hostile) connect(ctx context.Context, c *client, _ int) error {
	fresh := c.connection()
	fresh.Transport.(*http.Transport).DisableKeepAlives = true
	body, err := c.open(ctx, fresh, request{method: "GET", path: hostilePath + "?limit=1"})
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err = io.Copy(io.Discard, body); err == nil {
		atomic.AddInt64(&h.done.Connections, 1)
	}
	return err
}
