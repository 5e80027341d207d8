package relay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
	"github.com/vmesh-io/vmesh/test/leak"
)

// cacheWriterDir makes the test binary a process that writes a cache until it is killed.
const cacheWriterDir = "VMESH_TEST_CACHE_DIR"

// TestWriteCacheUntilKilled is no test but what the child process does: each line that it
// prints is a state that put has returned for.
func TestWriteCacheUntilKilled(t *testing.T) {
	dir := os.Getenv(cacheWriterDir)
	if dir == "" {
		t.Skip("it is for another test")
	}
	kinds := meshKinds()
	c, held, err := openCache(dir, "east", kinds, 4, nil)
	if err != nil && !errors.Is(err, errNoCache) {
		t.Fatal(err)
	}
	s := emptyState(4, len(kinds))
	if held != nil {
		s = held.state
	}
	go c.run(t.Context(), func() bool { return false })
	// A counter that only grows, in one resource, beside others that make the log long.
	value := 0
	if got := counterOf(t, s); got > 0 {
		value = got
	}
	for {
		value++
		updates := []snapshot.Update{set(t, "ns/counter", fmt.Sprint(value)), set(t, fmt.Sprintf("ns/%d", value%50), strings.Repeat("x", 20_000)+fmt.Sprint(value))}
		list := snapshot.Empty
		for _, l := range s.kindLists(0) {
			for e := range l.All() {
				u, err := snapshot.Received(e.Name(), e.Version(), e.Resource())
				if err != nil {
					t.Fatal(err)
				}
				list = list.With([]snapshot.Update{u}, time.Now())
			}
		}
		list = list.With(updates, time.Now())
		next, err := s.with(change{typeURL: kinds[0].TypeURL, updates: updates, version: list.Version()}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		s = next
		c.put(t.Context(), s)
		if _, err := os.Stat(filepath.Join(dir, cacheFile)); err == nil { // the first is left to run
			fmt.Printf("put %d\n", value)
		}
	}
}

func counterOf(t testing.TB, s *state) (value int) {
	if text := content(t, s)[0]["ns/counter"]; text != "" {
		if _, err := fmt.Sscan(text, &value); err != nil {
			t.Fatal(err)
		}
	}
	return value
}

func TestARelayThatIsKilledHasAllThatItServed(t *testing.T) {
	dir := t.TempDir()
	rnd := rand.New(rand.NewPCG(3, 3))
	last := 0
	for round := range 4 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestWriteCacheUntilKilled$")
		cmd.Env = append(os.Environ(), cacheWriterDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := func() { _ = cmd.Process.Kill() }
		timer := time.AfterFunc(time.Minute, kill)
		lines := bufio.NewScanner(out)
		first, put := true, 0
		for lines.Scan() {
			if _, err := fmt.Sscanf(lines.Text(), "put %d", &put); err == nil {
				if first && round > 0 && put < last {
					t.Errorf("kill %d: it went on at %d, and %d was put before", round, put, last)
				}
				if first {
					// From the first write on, and into the writing anew of long logs.
					first = false
					timer.Reset(300*time.Millisecond + time.Duration(rnd.IntN(1700))*time.Millisecond)
				}
			} else if strings.HasPrefix(lines.Text(), "---") {
				t.Fatal(lines.Text())
			}
		}
		timer.Stop()
		_ = cmd.Wait()
		file, err := os.ReadFile(filepath.Join(dir, cacheFile))
		if err != nil {
			t.Fatalf("kill %d: %v", round, err)
		}
		c, err := readCache(file, "east", meshKinds(), 2)
		if err != nil {
			t.Fatalf("kill %d: %v", round, err)
		}
		if got := counterOf(t, c.state); got < put || put == 0 {
			t.Errorf("kill %d: the cache has %d, and %d was put", round, got, put)
		}
		last = put
	}
}

// From the moment in which a new file takes the old one's place, a relay may be killed: it has
// all that was put until then. Here the new file cannot take that place.
func TestAFileThatIsWrittenAnewHasWhatCameMeanwhile(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, cacheFile, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	kinds := meshKinds()
	c := &cache{dir: dir, mesh: "east", kinds: kinds, wake: make(chan struct{}, 1)}
	put := func(s *state, value string) *state {
		t.Helper()
		updates := []snapshot.Update{set(t, "ns/counter", value)}
		next, err := s.with(change{typeURL: kinds[0].TypeURL, updates: updates, version: snapshot.Empty.With(updates, time.Now()).Version()}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		c.put(t.Context(), next)
		return next
	}
	first := put(emptyState(2, len(kinds)), "1")
	file, writer, err := c.whole(first, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	put(first, "2")
	c.replace(t.Context(), file, writer, first)
	data, err := os.ReadFile(filepath.Join(dir, cacheNext))
	if err != nil {
		t.Fatal(err)
	}
	held, err := readCache(data, "east", kinds, 2)
	if err != nil {
		t.Fatal(err)
	}
	if got := counterOf(t, held.state); got != 2 {
		t.Errorf("the new file has %d, and 2 was put", got)
	}
}

func TestALongLogIsWrittenAnew(t *testing.T) {
	defer leak.VerifyNone(t, goleak.IgnoreCurrent())
	dir := t.TempDir()
	kinds := meshKinds()
	ctx, cancel := context.WithCancel(t.Context())
	c, _, err := openCache(dir, "east", kinds, 2, nil)
	if !errors.Is(err, errNoCache) {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.run(ctx, func() bool { return true })
	}()
	s := emptyState(2, len(kinds))
	list := snapshot.Empty
	for i := range 30 {
		u := []snapshot.Update{set(t, "ns/big", strings.Repeat("x", 1<<20)+fmt.Sprint(i))}
		list = list.With(u, time.Now())
		if s, err = s.with(change{typeURL: kinds[0].TypeURL, updates: u, version: list.Version()}, time.Now()); err != nil {
			t.Fatal(err)
		}
		c.put(ctx, s)
	}
	eventually(t, "the log to be short", func() bool {
		info, err := os.Stat(filepath.Join(dir, cacheFile))
		return err == nil && info.Size() < 8<<20 && !c.isLong()
	})
	cancel()
	<-ended
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	_, held, err := openCache(dir, "east", kinds, 3, nil)
	if err != nil || held.state.version(0) != list.Version() {
		t.Errorf("it is read as %v, %v", held, err)
	}
}

func TestACacheThatIsRefusedIsPutAside(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, cacheFile), []byte("nothing of ours"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, held, err := openCache(dir, "east", meshKinds(), 1, nil)
	if held != nil || !errors.Is(err, errNotCache) || !strings.Contains(err.Error(), refusedFile) {
		t.Errorf("got %v, %v", held, err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, refusedFile)); err != nil || string(data) != "nothing of ours" {
		t.Errorf("it is not kept: %q, %v", data, err)
	}
	if _, _, err := openCache(dir, "east", meshKinds(), 1, nil); !errors.Is(err, errNoCache) {
		t.Errorf("after that: got %v", err)
	}
}
