package harness

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

func TestAnEtcdOfThreeOutlivesItsLeader(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute) // etcd may have to be built
	defer cancel()
	cluster, err := StartEtcdCluster(ctx, EtcdOptions{Dir: t.TempDir()}, 3)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Kill(); err != nil {
			t.Error(err)
		}
	})
	client, err := clientv3.New(clientv3.Config{Endpoints: cluster.URLs(), Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	put := func(value string) {
		t.Helper()
		for {
			_, err := client.Put(ctx, "key", value)
			if err == nil {
				return
			}
			if ctx.Err() != nil {
				t.Fatalf("writing %q: %v", value, err)
			}
		}
	}
	put("before")
	leader, err := cluster.Leader(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := leader.Kill(); err != nil {
		t.Fatal(err)
	}
	next, err := cluster.Leader(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if next == leader {
		t.Errorf("%s leads, and is dead", leader.name)
	}
	put("after")
	if err := leader.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	alone, err := clientv3.New(clientv3.Config{Endpoints: []string{leader.URL}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer alone.Close()
	if got, err := alone.Get(ctx, "key"); err != nil || string(got.Kvs[0].Value) != "after" {
		t.Errorf("the restarted member has %v, %v", got, err)
	}
}
