package apiserver

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/vmesh-io/vmesh/pkg/storage/embedded"
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
			return nil, fmt.Errorf("starting the embedded etcd: %w", err)
		}
		s.closers = append(s.closers, func() { _ = etcd.Close() })
		s.loops = append(s.loops, loop{"embedded etcd", func(ctx context.Context) error {
			select {
			case err := <-etcd.Err():
				return err
			case <-ctx.Done():
				return nil
			}
		}})
		return etcd.Client(), nil
	}
	config := clientv3.Config{
		Endpoints: s.options.Etcd.Servers, DialTimeout: etcdDialTimeout, DialKeepAliveTime: 30 * time.Second, DialKeepAliveTimeout: 10 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithBlock()}, //nolint:staticcheck // an etcd that cannot be reached is an error at start
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

func eventTTL(runtime.Object, uint64, bool) (uint64, error) { return eventSeconds, nil }
