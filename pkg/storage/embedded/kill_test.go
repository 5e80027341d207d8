package embedded

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// writerDirEnv makes the test binary a process that writes to a directory, says what
// was acknowledged, and waits to be killed.
const writerDirEnv = "VMESH_TEST_WRITER_DIR"

func writeUntilKilled(dir string) {
	e, err := Start(context.Background(), Config{Dir: dir})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	run := time.Now().UnixNano()
	var mu sync.Mutex
	for worker := range 16 {
		go func() {
			for i := 0; ; i++ {
				key := fmt.Sprintf("k/%d/%d/%d", run, worker, i)
				if _, err := e.Client().Put(context.Background(), key, key+strings.Repeat("v", 1000)); err != nil {
					return
				}
				mu.Lock()
				fmt.Println("ack", key)
				mu.Unlock()
			}
		}()
	}
	select {}
}

func TestNoAcknowledgedWriteIsLostWhenTheProcessIsKilled(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var acknowledged []string
	for round := range 5 {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), writerDirEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		target := len(acknowledged) + 300 + 500*round
		deadline := time.AfterFunc(3*time.Minute, func() { _ = cmd.Process.Kill() })
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			key, ok := strings.CutPrefix(lines.Text(), "ack ")
			if !ok {
				t.Errorf("the writer says %q", lines.Text())
				continue
			}
			acknowledged = append(acknowledged, key)
			deadline.Reset(time.Minute)
			if len(acknowledged) == target {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		deadline.Stop()
		if err := cmd.Wait(); err == nil {
			t.Fatal("the writer ended by itself")
		}
		if len(acknowledged) < target {
			t.Fatalf("the writer got no further than %d of %d", len(acknowledged), target)
		}

		e := open(t, dir)
		resp, err := e.Client().Get(context.Background(), "k/", clientv3.WithPrefix())
		if err != nil {
			t.Fatal(err)
		}
		stored := map[string]string{}
		for _, kv := range resp.Kvs {
			stored[string(kv.Key)] = string(kv.Value)
		}
		for _, key := range acknowledged {
			if stored[key] != key+strings.Repeat("v", 1000) {
				t.Fatalf("round %d: %s was acknowledged and is not there", round, key)
			}
		}
		shut(t, e)
	}
	t.Logf("%d acknowledged writes, none lost", len(acknowledged))
}

// BenchmarkStart measures the time until the server serves.
func BenchmarkStart(b *testing.B) {
	for _, keys := range []int{0, 10000} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			dir := b.TempDir()
			e := open(b, dir)
			for i := range keys {
				put(b, e, fmt.Sprintf("/registry/k/%d", i), strings.Repeat("v", 1200))
			}
			shut(b, e)
			b.ResetTimer()
			for b.Loop() {
				if keys == 0 {
					b.StopTimer()
					dir = b.TempDir()
					b.StartTimer()
				}
				e := open(b, dir)
				b.StopTimer()
				shut(b, e)
				b.StartTimer()
			}
		})
	}
}
