package logical

import (
	"context"
	"testing"
	"time"

	"github.com/vmesh-io/vmesh/pkg/storage/embedded"
)

func startEtcd(t testing.TB, dir string) *embedded.Etcd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	e, err := embedded.Start(ctx, embedded.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func newTestBackend(t testing.TB, c BackendConfig) *Backend {
	t.Helper()
	if c.Client == nil {
		c.Client = startEtcd(t, t.TempDir()).Client()
	}
	b, err := NewBackend(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}
