package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/storage/embedded"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

const (
	etcdDialTimeout = 20 * time.Second
	// eventSeconds is how long events are kept, as upstream does.
	eventSeconds = 60 * 60
)

// openEtcd gives a client of the embedded etcd, or of the cluster that the options name.
func (s *Server) openEtcd(ctx context.Context) (*clientv3.Client, error) {
	if len(s.options.Etcd.Servers) == 0 {
		etcd, err := embedded.Start(ctx, embedded.Config{Dir: s.options.etcdDir()})
		if err != nil {
			return nil, fmt.Errorf("%w: %s", err, remedy(err))
		}
		s.closers = append(s.closers, func() { _ = etcd.Close() })
		s.loops = append(s.loops, loop{"embedded etcd", func(ctx context.Context) error {
			select {
			case err := <-etcd.Err():
				if err != nil {
					err = fmt.Errorf("%w: %s", err, remedy(err))
				}
				return err
			case <-ctx.Done():
				return nil
			}
		}})
		return etcd.Client(), nil
	}
	config := clientv3.Config{
		Logger: zap.NewNop(), // what fails is told by who asked
		// It connects when it can: until then the server is not ready, and says why.
		Endpoints: s.options.Etcd.Servers, DialTimeout: etcdDialTimeout, DialKeepAliveTime: 30 * time.Second, DialKeepAliveTimeout: 10 * time.Second,
		DialOptions: traceEtcd(s.tracer),
	}
	tls := transport.TLSInfo{CertFile: s.options.Etcd.CertFile, KeyFile: s.options.Etcd.KeyFile, TrustedCAFile: s.options.Etcd.CAFile}
	if !tls.Empty() || tls.TrustedCAFile != "" {
		tlsConfig, err := tls.ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("--etcd-cafile, --etcd-certfile, --etcd-keyfile: %w", err)
		}
		config.TLS = tlsConfig
	}
	client, err := clientv3.New(config)
	if err != nil {
		return nil, fmt.Errorf("--etcd-servers: connecting to %v: %w", s.options.Etcd.Servers, err)
	}
	s.closers = append(s.closers, func() { _ = client.Close() })
	return client, nil
}

// remedy says what to do about an embedded etcd that does not start, or has ended.
func remedy(err error) string {
	switch {
	case errors.Is(err, embedded.ErrInUse):
		return "stop that first, or give another --data-dir"
	case errors.Is(err, context.Canceled):
		return "the server was stopped"
	case strings.Contains(err.Error(), syscall.ENOSPC.Error()): // etcd passes on the text alone
		return "make room on the disk, and start again"
	case errors.Is(err, fs.ErrPermission):
		return "give a --data-dir that this user can write"
	}
	return "if the data is damaged, put a backup of --data-dir in its place"
}

// etcdRetry is how long to wait before etcd is asked again.
const etcdRetry = 200 * time.Millisecond

// untilAnswered does something, and again for as long as it fails because etcd does not answer. What it does must bear
// being done twice: without an answer nobody knows whether it was done.
func untilAnswered(ctx context.Context, do func(context.Context) error) error {
	for {
		err := do(ctx)
		if err == nil || !etcdIsAway(err) || ctx.Err() != nil {
			return err
		}
		klog.FromContext(ctx).Info("etcd does not answer; trying again", "reason", err.Error())
		select {
		case <-time.After(etcdRetry):
		case <-ctx.Done():
			return err
		}
	}
}

// etcdIsAway tells whether an error is that of an etcd which cannot answer now: it cannot be reached, has no leader, or lost
// the one that was asked. It may have done what it was asked for.
func etcdIsAway(err error) bool {
	return logical.Away(err) || apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err) || apierrors.IsServiceUnavailable(err) || apierrors.IsTooManyRequests(err)
}

func eventTTL(runtime.Object, uint64, bool) (uint64, error) { return eventSeconds, nil }
