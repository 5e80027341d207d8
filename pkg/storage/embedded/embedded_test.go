package embedded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"

	"github.com/vmesh-io/vmesh/test/leak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerDirEnv); dir != "" {
		writeUntilKilled(dir)
		return
	}
	leak.VerifyTestMain(m)
}

func open(t testing.TB, dir string) *Etcd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	e, err := Start(ctx, Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shut(t, e) })
	return e
}

func shut(t testing.TB, e *Etcd) {
	t.Helper()
	if err := e.Close(); err != nil {
		t.Errorf("closing: %v", err)
	}
	for err := range e.Err() {
		t.Errorf("it failed: %v", err)
	}
}

// fails wants Start to fail soon, naming the directory.
func fails(t *testing.T, dir string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	begin := time.Now()
	e, err := Start(ctx, Config{Dir: dir})
	if err == nil {
		shut(t, e)
		t.Fatal("it started")
	}
	if d := time.Since(begin); d > 30*time.Second {
		t.Errorf("it took %v to fail", d)
	}
	if !strings.Contains(err.Error(), dir) {
		t.Errorf("the error does not name %s: %v", dir, err)
	}
	return err
}

func put(t testing.TB, e *Etcd, key, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := e.Client().Put(ctx, key, value); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, e *Etcd, key string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	resp, err := e.Client().Get(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

func TestWhatWasWrittenIsThereAfterARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	e := open(t, dir)
	put(t, e, "a", "1")
	shut(t, e)
	if err := e.Close(); err != nil {
		t.Errorf("closing twice: %v", err)
	}
	e = open(t, dir)
	if got := get(t, e, "a"); got != "1" {
		t.Errorf("read %q", got)
	}
}

func TestNothingListens(t *testing.T) {
	sockets := func() map[string]bool {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		found := map[string]bool{}
		for _, fd := range fds {
			if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, "socket:") {
				found[to] = true
			}
		}
		return found
	}
	before := sockets()
	e := open(t, t.TempDir())
	put(t, e, "a", "1")
	for s := range sockets() {
		if !before[s] {
			t.Errorf("there is a new %s", s)
		}
	}
}

func TestWatchesAndProgressWorkInProcess(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	e := open(t, t.TempDir())
	w := e.Client().Watch(ctx, "k", clientv3.WithPrevKV(), clientv3.WithCreatedNotify())
	<-w
	put(t, e, "k", "1")
	if got := <-w; len(got.Events) != 1 || string(got.Events[0].Kv.Value) != "1" {
		t.Errorf("got %v", got)
	}
	if err := e.Client().RequestProgress(ctx); err != nil {
		t.Fatal(err)
	}
	if got := <-w; !got.IsProgressNotify() {
		t.Errorf("got %v for progress", got)
	}
}

func TestLeasesExpire(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	e := open(t, t.TempDir())
	w := e.Client().Watch(ctx, "k", clientv3.WithCreatedNotify())
	<-w
	for {
		lease, err := e.Client().Grant(ctx, 1)
		if err != nil {
			t.Fatal(err)
		}
		_, err = e.Client().Put(ctx, "k", "v", clientv3.WithLease(lease.ID))
		if err == nil {
			break
		}
		if !errors.Is(err, rpctypes.ErrLeaseNotFound) { // a machine that was busy for so long let it expire
			t.Fatal(err)
		}
	}
	for got := range w {
		if got.Events[0].Type == clientv3.EventTypeDelete {
			return
		}
	}
	t.Fatal("the key did not expire")
}

func TestADirectoryInUseIsAnErrorAtOnce(t *testing.T) {
	t.Run("by this program", func(t *testing.T) {
		dir := t.TempDir()
		e := open(t, dir)
		if err := fails(t, dir); !errors.Is(err, ErrInUse) {
			t.Errorf("got %v", err)
		}
		put(t, e, "a", "1") // the first one is not disturbed
	})
	t.Run("by a foreign etcd", func(t *testing.T) {
		dir := t.TempDir()
		shut(t, open(t, dir))
		db, err := bolt.Open(filepath.Join(dir, "member", "snap", "db"), 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := fails(t, dir); !errors.Is(err, ErrInUse) {
			t.Errorf("got %v", err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		shut(t, open(t, dir))
	})
}

func TestADirectoryThatCannotBeUsedIsAnError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("a file", func(t *testing.T) { _ = fails(t, file) })
	t.Run("below a file", func(t *testing.T) { _ = fails(t, filepath.Join(file, "dir")) })
	t.Run("not writable", func(t *testing.T) {
		if os.Geteuid() == 0 {
			t.Skip("root writes anywhere")
		}
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o500); err != nil {
			t.Fatal(err)
		}
		_ = fails(t, dir)
	})
	t.Run("none", func(t *testing.T) {
		if _, err := Start(context.Background(), Config{}); err == nil {
			t.Error("it started")
		}
	})
}

func TestCorruptDataIsAnError(t *testing.T) {
	edit := func(t *testing.T, path string, edit func([]byte) []byte) {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, edit(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name  string
		keys  int
		spoil func(t *testing.T, member string)
	}{
		{"the database is something else", 50, func(t *testing.T, member string) {
			edit(t, filepath.Join(member, "snap", "db"), func(d []byte) []byte { return []byte(strings.Repeat("junk", 4096)) })
		}},
		{"the database is gone and the log no longer holds all", snapshotCount + 200, func(t *testing.T, member string) {
			if err := os.Remove(filepath.Join(member, "snap", "db")); err != nil {
				t.Fatal(err)
			}
		}},
		{"the log is garbled", 50, func(t *testing.T, member string) {
			wals, err := filepath.Glob(filepath.Join(member, "wal", "*.wal"))
			if err != nil || len(wals) == 0 {
				t.Fatal(wals, err)
			}
			edit(t, wals[0], func(d []byte) []byte {
				for i := 200; i < 2000; i++ {
					d[i] ^= 0x5a
				}
				return d
			})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			e := open(t, dir)
			var wg sync.WaitGroup
			for w := range 16 {
				wg.Go(func() {
					for i := w; i < c.keys; i += 16 {
						put(t, e, fmt.Sprint("k", i), strings.Repeat("v", 100))
					}
				})
			}
			wg.Wait()
			shut(t, e)
			c.spoil(t, filepath.Join(dir, "member"))
			t.Log(fails(t, dir))
			t.Log(fails(t, dir)) // the first attempt has let go of the directory
		})
	}
}

func TestStartGivesUpWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	dir := t.TempDir()
	e, err := Start(ctx, Config{Dir: dir})
	if err == nil { // it was ready before it looked
		shut(t, e)
	} else if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	shut(t, open(t, dir))
}

func TestAFirstStartThatWasCutOffIsBegunAnew(t *testing.T) {
	dir := t.TempDir()
	log, err := wal.Create(zap.NewNop(), filepath.Join(dir, "member", "wal"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	e := open(t, dir)
	put(t, e, "a", "1")
	shut(t, e)
	e = open(t, dir) // a log that has begun stays
	if resp, err := e.Client().Get(t.Context(), "a"); err != nil || resp.Count != 1 {
		t.Errorf("got %v, %v", resp, err)
	}
	shut(t, e)
}

func TestWritesBeyondTheQuotaFail(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	e, err := Start(ctx, Config{Dir: t.TempDir(), QuotaBytes: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer shut(t, e)
	value := strings.Repeat("v", 1<<20)
	for i := range 20 {
		if _, err := e.Client().Put(ctx, fmt.Sprint("k", i), value); err != nil {
			if !strings.Contains(err.Error(), "database space exceeded") {
				t.Errorf("got %v", err)
			}
			return
		}
	}
	t.Error("20 MiB went into 4")
}

func TestTheDirectoryIsKeptFromOtherUsers(t *testing.T) {
	for _, mode := range []os.FileMode{0o755, 0o777, 0o700} {
		dir := filepath.Join(t.TempDir(), "etcd")
		if err := os.Mkdir(dir, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, mode); err != nil { // whatever the umask
			t.Fatal(err)
		}
		lock, err := openDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%v became %v, %v", mode, info.Mode(), err)
		}
		if err := lock.Release(); err != nil {
			t.Error(err)
		}
	}
}
