package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

const (
	cacheFile   = "snapshot"
	cacheNext   = "snapshot.next"
	refusedFile = "snapshot.refused"

	// syncEvery is how often at most what was written is waited for to be on the disk. A
	// relay that is killed loses nothing; a machine that is, loses so much.
	syncEvery = time.Second
	// noteEvery is how often a cache in which nothing changes is told that it is still right.
	noteEvery = 30 * time.Second
	// cacheSlack is how much longer than twice what it holds a log gets before it is written anew.
	cacheSlack = 4 << 20
)

// cache keeps the state on disk. A change costs a write of its own size. Its methods are safe
// for concurrent use.
type cache struct {
	dir     string
	mesh    string
	kinds   []snapshot.Kind
	metrics *Metrics

	mu     sync.Mutex
	file   *os.File // nil: it must be written whole
	writer *cacheWriter
	state  *state // what is in the file
	latest *state // what should be
	at     time.Time
	dirty  bool // something has been written since the file was synced
	wake   chan struct{}
}

// openCache opens the cache of a mesh in a directory, and gives what it holds over so many
// shards. One that cannot be trusted is put aside: the error says why, and the cache is a new
// one, which holds nothing yet.
func openCache(dir, mesh string, kinds []snapshot.Kind, shards int, metrics *Metrics) (*cache, *cached, error) {
	c := &cache{dir: dir, mesh: mesh, kinds: kinds, metrics: metrics, wake: make(chan struct{}, 1)}
	name := filepath.Join(dir, cacheFile)
	held, err := c.open(name, shards)
	if err == nil || errors.Is(err, errNoCache) {
		return c, held, err
	}
	aside := filepath.Join(dir, refusedFile)
	err = fmt.Errorf("the cache %s is not used: %w; it is kept as %s", name, err, aside)
	return c, nil, errors.Join(err, os.Rename(name, aside))
}

func (c *cache) open(name string, shards int) (*cached, error) {
	file, err := os.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoCache
	}
	if err != nil {
		return nil, err
	}
	held, err := c.read(file, shards)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return held, nil
}

func (c *cache) read(file *os.File, shards int) (*cached, error) {
	data, err := io.ReadAll(file)
	if err != nil {
		return nil, err
	}
	held, err := readCache(data, c.mesh, c.kinds, shards)
	if err != nil {
		return nil, err
	}
	if held.size < int64(len(data)) {
		if err := file.Truncate(held.size); err != nil {
			return nil, err
		}
	}
	if _, err := file.Seek(held.size, io.SeekStart); err != nil {
		return nil, err
	}
	// How much of it is on the disk is not known, but for what an earlier process' successor sees.
	if err := file.Sync(); err != nil {
		return nil, err
	}
	c.file, c.state, c.latest, c.at = file, held.state, held.state, held.at
	c.writer = &cacheWriter{out: file, digest: held.digest, size: held.size, synced: held.size}
	return held, nil
}

// reshard has it hold the same over another number of shards.
func (c *cache) reshard(s *state) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state, c.latest = s, s
}

// put takes note of a newer state, as of now. It is written when put returns, though the
// machine may lose it for another second; but for the first, which is left to run, as is what could not be written.
func (c *cache) put(ctx context.Context, s *state) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.latest, c.at = s, time.Now()
	if c.file != nil {
		c.append(ctx)
		return
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// append must be called with the lock held, with a file.
func (c *cache) append(ctx context.Context) {
	if err := c.writer.group(c.kinds, c.state, c.latest, c.at); err != nil {
		c.failed(ctx, err)
		return
	}
	c.state, c.dirty = c.latest, true
}

// note says that what it holds is vmesh's still.
func (c *cache) note(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at = time.Now(); c.file != nil {
		c.append(ctx)
	}
}

// failed gives the file up: it ends in what may be half a record, which readers pass over.
func (c *cache) failed(ctx context.Context, err error) {
	klog.FromContext(ctx).Error(err, "Writing the cache failed; it is written anew", "dir", c.dir)
	c.metrics.cacheFailed()
	if c.file != nil {
		_ = c.file.Close() // what it could say is not news
	}
	c.file, c.writer, c.state = nil, nil, nil
}

// run syncs what is written, and writes the log anew when it has become long, until ctx ends.
func (c *cache) run(ctx context.Context, inStep func() bool) {
	tick := time.NewTicker(syncEvery)
	defer tick.Stop()
	noted := time.Now()
	for {
		select {
		case <-tick.C:
		case <-c.wake:
		case <-ctx.Done():
			return
		}
		if time.Since(noted) >= noteEvery && inStep() {
			noted = time.Now()
			c.note(ctx)
		}
		c.sync(ctx)
		if c.isLong() {
			c.rewrite(ctx)
		}
	}
}

func (c *cache) sync(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.dirty || c.file == nil {
		return
	}
	file, writer, size := c.file, c.writer, c.writer.size
	c.dirty = false
	c.mu.Unlock()
	err := file.Sync()
	c.mu.Lock()
	switch {
	case c.file != file: // given up meanwhile
	case err != nil:
		c.failed(ctx, err)
	default:
		writer.synced = max(writer.synced, size)
	}
}

func (c *cache) isLong() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.latest == nil {
		return false
	}
	return c.file == nil || c.writer.size > 2*int64(c.latest.bytes())+cacheSlack
}

// rewrite writes the file anew while the present one is being appended to.
func (c *cache) rewrite(ctx context.Context) {
	c.mu.Lock()
	s, at := c.latest, c.at
	c.mu.Unlock()
	file, writer, err := c.whole(s, at)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.failed(ctx, err)
		return
	}
	c.replace(ctx, file, writer, s)
}

// whole writes a state into a file that is not the cache yet.
func (c *cache) whole(s *state, at time.Time) (*os.File, *cacheWriter, error) {
	file, err := os.OpenFile(filepath.Join(c.dir, cacheNext), os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, nil, err
	}
	writer, err := writeCache(file, c.mesh, c.kinds, s, at)
	if err == nil {
		if err = file.Sync(); err == nil {
			writer.synced = writer.size
			return file, writer, nil
		}
	}
	return nil, nil, errors.Join(err, file.Close())
}

// replace makes a file that holds a state the cache, once it holds what came meanwhile as well:
// all of that was on the disk by the file that is replaced.
func (c *cache) replace(ctx context.Context, file *os.File, writer *cacheWriter, s *state) {
	var err error
	if c.latest != s {
		if err = writer.group(c.kinds, s, c.latest, c.at); err == nil {
			err = file.Sync()
		}
		writer.synced = writer.size
	}
	if err == nil {
		err = os.Rename(filepath.Join(c.dir, cacheNext), filepath.Join(c.dir, cacheFile))
	}
	if err == nil {
		err = syncDir(c.dir)
	}
	if err != nil {
		_ = file.Close() // what it could say is not news
		c.failed(ctx, err)
		return
	}
	if c.file != nil {
		_ = c.file.Close() // all that is in it is in the new one
	}
	c.file, c.writer, c.state, c.dirty = file, writer, c.latest, false
}

// close ends the use of the file. It must be the last call.
func (c *cache) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file == nil {
		return nil
	}
	err := errors.Join(c.file.Sync(), c.file.Close())
	c.file = nil
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
