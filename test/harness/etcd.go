package harness

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// EtcdOptions says how to run an etcd.
type EtcdOptions struct {
	// Dir takes the logs and the data. Required.
	Dir string
	// Binary is the etcd to run; built from its module when empty.
	Binary string
	// ExtraArgs go to each member last, so they win.
	ExtraArgs []string
}

// Etcd is a running etcd of one member.
type Etcd struct {
	*Process
	URL string
}

// StartEtcd starts an etcd and waits until it serves.
func StartEtcd(ctx context.Context, options EtcdOptions) (*Etcd, error) {
	cluster, err := newEtcdCluster(ctx, options, 1)
	if err != nil {
		return nil, err
	}
	if err := cluster.start(ctx); err != nil {
		return nil, err
	}
	return &Etcd{Process: cluster.Members[0].Process, URL: cluster.Members[0].URL}, nil
}

// EtcdCluster is an etcd of several members, each of which may be killed and restarted.
type EtcdCluster struct {
	Members []*EtcdMember
}

// EtcdMember is one member of a cluster. Its URL and its data outlive a restart.
type EtcdMember struct {
	*Process
	URL string

	name, log, binary string
	args              []string
}

// StartEtcdCluster starts an etcd of that many members and waits until all of them serve.
func StartEtcdCluster(ctx context.Context, options EtcdOptions, members int) (*EtcdCluster, error) {
	cluster, err := newEtcdCluster(ctx, options, members)
	if err != nil {
		return nil, err
	}
	return cluster, cluster.start(ctx)
}

func newEtcdCluster(ctx context.Context, options EtcdOptions, members int) (*EtcdCluster, error) {
	if options.Binary == "" {
		binary, err := Tool(ctx, "etcd")
		if err != nil {
			return nil, err
		}
		options.Binary = binary
	}
	ports, err := FreePorts(2 * members)
	if err != nil {
		return nil, err
	}
	cluster := &EtcdCluster{}
	var peers []string
	for i := range members {
		peers = append(peers, fmt.Sprintf("etcd-%d=http://%s", i, loopback(ports[2*i+1])))
	}
	for i := range members {
		name, url := fmt.Sprintf("etcd-%d", i), "http://"+loopback(ports[2*i])
		_, peerURL, _ := strings.Cut(peers[i], "=")
		log, data := filepath.Join(options.Dir, name+".log"), filepath.Join(options.Dir, name)
		cluster.Members = append(cluster.Members, &EtcdMember{URL: url, name: name, log: log, binary: options.Binary, args: append([]string{
			"--name", name,
			"--data-dir", data,
			"--listen-client-urls", url,
			"--advertise-client-urls", url,
			"--listen-peer-urls", peerURL,
			"--initial-advertise-peer-urls", peerURL,
			"--initial-cluster", strings.Join(peers, ","),
		}, options.ExtraArgs...)})
	}
	return cluster, nil
}

// start starts all members, which wait for each other, and kills them when not all come up.
func (c *EtcdCluster) start(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Kill())
		}
	}()
	for _, m := range c.Members {
		if err := m.launch(); err != nil {
			return err
		}
	}
	for _, m := range c.Members {
		if err := m.serves(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Restart stops the member, unless it has ended already, starts it again with its data and waits until it serves, which it
// does only with a majority of the others.
func (m *EtcdMember) Restart(ctx context.Context) error {
	if err := m.Stop(ctx); err != nil {
		return err
	}
	if err := m.launch(); err != nil {
		return err
	}
	if err := m.serves(ctx); err != nil {
		return errors.Join(err, m.Kill())
	}
	return nil
}

func (m *EtcdMember) launch() (err error) {
	m.Process, err = StartProcess(m.name, m.log, exec.Command(m.binary, m.args...))
	return err
}

func (m *EtcdMember) serves(ctx context.Context) error {
	return m.waitReady(ctx, func(ctx context.Context) error {
		_, err := get(ctx, http.DefaultClient, m.URL+"/readyz")
		return err
	})
}

// URLs are where the members serve clients.
func (c *EtcdCluster) URLs() []string {
	var urls []string
	for _, m := range c.Members {
		urls = append(urls, m.URL)
	}
	return urls
}

// Leader is the member that leads, as soon as one does. It fails when ctx ends before.
func (c *EtcdCluster) Leader(ctx context.Context) (*EtcdMember, error) {
	client, err := clientv3.New(clientv3.Config{Endpoints: c.URLs(), Logger: zap.NewNop()})
	if err != nil {
		return nil, err
	}
	defer client.Close()
	for {
		var errs []error
		for _, m := range c.Members {
			asked, cancel := context.WithTimeout(ctx, 2*time.Second)
			status, err := client.Status(asked, m.URL)
			cancel()
			switch {
			case err != nil:
				errs = append(errs, fmt.Errorf("%s: %w", m.name, err))
			case status.Leader != 0 && status.Leader == status.Header.MemberId:
				return m, nil
			}
		}
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			return nil, fmt.Errorf("no member of etcd leads: %w", errors.Join(append(errs, ctx.Err())...))
		}
	}
}

// Kill ends all members as a crash would.
func (c *EtcdCluster) Kill() error {
	var errs []error
	for _, m := range c.Members {
		if m.Process != nil {
			errs = append(errs, m.Kill())
		}
	}
	return errors.Join(errs...)
}
