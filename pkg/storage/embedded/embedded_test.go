package embedded

import (
	"context"
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func start10k(t testing.TB, dir string) *Etcd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	begin := time.Now()
	e, err := Start(ctx, Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("started in %v", time.Since(begin))
	return e
}

func TestTmp(t *testing.T) {
	dir := t.TempDir()
	e := start10k(t, dir)
	c := e.Client()
	val := string(make([]byte, 1200))
	done := make(chan error)
	begin := time.Now()
	for w := 0; w < 64; w++ {
		go func() {
			for i := w; i < 10000; i += 64 {
				if _, err := c.Put(context.Background(), fmt.Sprintf("/registry/x/%d", i), val); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for w := 0; w < 64; w++ {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("10000 puts %v", time.Since(begin))
	begin = time.Now()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("closed in %v", time.Since(begin))
	e = start10k(t, dir)
	r, err := e.Client().Get(context.Background(), "/registry/x/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil || r.Count != 10000 {
		t.Fatal(err, r)
	}
	_, err = Start(context.Background(), Config{Dir: dir})
	t.Log(err)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}
