// Package embedded runs an etcd server inside the process. It has no listener
// at all: what it stores is reached through the process only.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/features"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/dirlock"
)

const (
	memberName = "vmesh"
	// peerURL is the member's name in etcd's own records; nothing listens on it.
	peerURL = "unix://vmesh"

	// DefaultQuotaBytes bounds the database unless Config says otherwise.
	DefaultQuotaBytes = 8 << 30

	// Elections of a single member are won by waiting: two or three ticks.
	tick          = 25 * time.Millisecond
	electionTicks = 2

	// The raft log serves followers that lag, and there are none: a short tail is
	// kept in memory, and a start replays few entries.
	catchUpEntries = 64
	snapshotCount  = 5000

	progressNotifyInterval = 5 * time.Second
	maxRequestBytes        = 1.5 * 1024 * 1024
	maxTxnOps              = 128

	// closeTimeout bounds Close when the server has failed and can no longer
	// finish its work.
	closeTimeout = 10 * time.Second
)

// Config says where an embedded etcd keeps its data, and how much.
type Config struct {
	// Dir is the directory of the data. It is created, for this user only, when it
	// is not there.
	Dir string
	// QuotaBytes bounds the size of the database; a write beyond it fails with
	// etcd's "database space exceeded". Zero means DefaultQuotaBytes.
	QuotaBytes int64
	// Logger receives what etcd has to say from warnings upwards. The zero value
	// is klog's global logger.
	Logger klog.Logger
}

// Etcd is a running server. Its methods may be called from several goroutines.
type Etcd struct {
	server *etcdserver.EtcdServer
	client *clientv3.Client
	lock   *dirlock.Lock
	fatal  *fatalHook
	errc   chan error

	closeOnce sync.Once
	closing   chan struct{}
	watcher   sync.WaitGroup
}

// Start opens the data and returns once the server serves reads and writes. An
// acknowledged write is on the disk: it outlives the process, however it ends.
//
// Start fails at once, naming the directory, when another process uses it, when it
// cannot be written, and when what it holds cannot be read.
func Start(ctx context.Context, c Config) (*Etcd, error) {
	if c.Dir == "" {
		return nil, errors.New("starting the embedded etcd: no data directory given")
	}
	if c.QuotaBytes == 0 {
		c.QuotaBytes = DefaultQuotaBytes
	}
	if c.Logger.GetSink() == nil {
		c.Logger = klog.Background()
	}
	lock, err := openDir(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("starting the embedded etcd in %s: %w", c.Dir, err)
	}
	e, err := start(ctx, c, lock)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting the embedded etcd in %s: %w", c.Dir, err), lock.Release())
	}
	return e, nil
}

func start(ctx context.Context, c Config, lock *dirlock.Lock) (*Etcd, error) {
	e := &Etcd{lock: lock, fatal: newFatalHook(), errc: make(chan error, 1), closing: make(chan struct{})}
	var err error
	if e.server, err = newServer(serverConfig(c, e.fatal), e.fatal); err != nil {
		return nil, err
	}
	e.server.Start()
	select {
	case <-e.server.ReadyNotify():
	case <-ctx.Done():
		e.stopServer()
		return nil, fmt.Errorf("waiting until it serves: %w", ctx.Err())
	case err := <-e.fatal.failed:
		e.stopServer()
		return nil, err
	}
	e.client = v3client.New(e.server)
	e.watcher.Add(1)
	go e.watch()
	return e, nil
}

// newServer opens the data. etcd ends the process or panics on data that it cannot
// read; here both become errors.
func newServer(cfg config.ServerConfig, fatal *fatalHook) (server *etcdserver.EtcdServer, err error) {
	fatal.starting.Store(true)
	defer fatal.starting.Store(false)
	defer func() {
		if p := recover(); p != nil {
			server, err = nil, fmt.Errorf("reading the data: %v", p)
		}
	}()
	return etcdserver.NewServer(cfg)
}

func serverConfig(c Config, fatal *fatalHook) config.ServerConfig {
	logger := newLogger(c.Logger.WithName("etcd"), fatal)
	peers := types.MustNewURLs([]string{peerURL})
	return config.ServerConfig{
		Name:                memberName,
		DataDir:             c.Dir,
		Logger:              logger,
		PeerURLs:            peers,
		ClientURLs:          types.URLs{url.URL{Scheme: "unix", Host: memberName}},
		InitialPeerURLsMap:  types.URLsMap{memberName: peers},
		InitialClusterToken: memberName,
		NewCluster:          true,

		TickMs:                     uint(tick / time.Millisecond),
		ElectionTicks:              electionTicks,
		InitialElectionTickAdvance: true,
		PreVote:                    true,

		SnapshotCount:          snapshotCount,
		SnapshotCatchUpEntries: catchUpEntries,
		MaxSnapFiles:           2,
		MaxWALFiles:            2,

		BackendFreelistType: bolt.FreelistMapType,
		QuotaBackendBytes:   c.QuotaBytes,
		MaxTxnOps:           maxTxnOps,
		MaxRequestBytes:     maxRequestBytes,

		WatchProgressNotifyInterval: progressNotifyInterval,
		WarningApplyDuration:        500 * time.Millisecond,
		WarningUnaryRequestDuration: time.Second,

		StrictReconfigCheck: true,
		BcryptCost:          10,
		V2Deprecation:       config.V2DeprDefault,
		ServerFeatureGate:   features.NewDefaultServerFeatureGate(memberName, logger),
		Metrics:             "basic",
	}
}

// Client calls the server directly, without a connection. It is shared: Close of
// the Etcd closes it.
func (e *Etcd) Client() *clientv3.Client { return e.client }

// Err yields at most one error, when the server has failed (a disk that is full or
// broken) and serves no more, and is closed when it has ended.
func (e *Etcd) Err() <-chan error { return e.errc }

// watch reports the server's end unless it was asked for.
func (e *Etcd) watch() {
	defer e.watcher.Done()
	defer close(e.errc)
	select {
	case <-e.closing:
	case err := <-e.fatal.failed:
		e.errc <- err
	case <-e.server.StopNotify():
		select {
		case <-e.closing:
		default:
			e.errc <- errors.New("the embedded etcd has stopped by itself")
		}
	}
}

// Close ends the server and waits until its files are closed. It may be called
// more than once.
func (e *Etcd) Close() error {
	var err error
	e.closeOnce.Do(func() {
		close(e.closing)
		e.watcher.Wait()
		if cerr := e.client.Close(); cerr != nil && !errors.Is(cerr, context.Canceled) {
			err = fmt.Errorf("closing the embedded etcd's client: %w", cerr)
		}
		e.stopServer()
		err = errors.Join(err, e.lock.Release())
	})
	return err
}

func (e *Etcd) stopServer() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.server.Stop()
	}()
	if !e.fatal.happened() {
		<-done
		return
	}
	// A server whose log has failed may never finish; the process is about to end.
	select {
	case <-done:
	case <-time.After(closeTimeout):
	}
}
