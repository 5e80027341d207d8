package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/pflag"

	"github.com/vmesh-io/vmesh/pkg/storage/embedded"
	"github.com/vmesh-io/vmesh/test/harness"
)

func TestOptionsAreRefusedWithTheirFlag(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Options)
		want   string // part of the error; empty for none
	}{
		{"the defaults", func(*Options) {}, ""},
		{"no data directory", func(o *Options) { o.DataDir = "" }, "--data-dir"},
		{"port zero", func(o *Options) { o.SecurePort = 0 }, "--secure-port"},
		{"port too large", func(o *Options) { o.SecurePort = 65536 }, "--secure-port"},
		{"no control planes at all", func(o *Options) { o.XDSAddress = "" }, ""},
		{"xDS for everybody on every interface", func(o *Options) { o.XDSAddress = ":15051" }, "--xds-allow-anonymous"},
		{"xDS for everybody on every interface, as wanted", func(o *Options) { o.XDSAddress, o.XDSAllowAnonymous = ":15051", true }, ""},
		{"xDS on every interface over TLS", func(o *Options) { o.XDSTLSAddress = ":15052" }, ""},
		{"xDS without a port", func(o *Options) { o.XDSAddress = "localhost" }, "--xds-address"},
		{"xDS on a port that is none", func(o *Options) { o.XDSTLSAddress = ":99999" }, "--xds-tls-address"},
		{"an external URL", func(o *Options) { o.ExternalURL = "https://vmesh.example.com" }, ""},
		{"an external URL of plain HTTP", func(o *Options) { o.ExternalURL = "http://vmesh.example.com" }, "--external-url"},
		{"an external URL with a path", func(o *Options) { o.ExternalURL = "https://vmesh.example.com/x" }, "--external-url"},
		{"an external URL that is a name", func(o *Options) { o.ExternalURL = "vmesh example" }, "--external-url"},
		{"etcd by URL", func(o *Options) { o.Etcd.Servers = []string{"http://a:2379", "https://b"} }, ""},
		{"etcd without a scheme", func(o *Options) { o.Etcd.Servers = []string{"a:2379"} }, "--etcd-servers"},
		{"half of etcd's client certificate", func(o *Options) {
			o.Etcd.Servers, o.Etcd.CertFile = []string{"https://a"}, "x"
		}, "--etcd-certfile and --etcd-keyfile"},
		{"etcd's certificates without an etcd", func(o *Options) { o.Etcd.CAFile = "ca.crt" }, "--etcd-servers"},
		{"no compaction", func(o *Options) { o.Etcd.CompactionInterval = 0 }, ""},
		{"a negative interval", func(o *Options) { o.Etcd.CompactionInterval = -time.Second }, "--etcd-compaction-interval"},
		{"a negative period", func(o *Options) { o.ShutdownPeriod = -time.Second }, "--shutdown-period"},
		{"a host view without a host", func(o *Options) { o.Host.View = "mesh" }, "--host-kubeconfig"},
		{"a host view of the root", func(o *Options) { o.Host.Kubeconfig, o.Host.View = "x", "root" }, "--host-view"},
		{"a host view of what is no name", func(o *Options) { o.Host.Kubeconfig, o.Host.View = "x", "Mesh/x" }, "--host-view"},
		{"a host view", func(o *Options) { o.Host.Kubeconfig, o.Host.View = "x", "mesh" }, ""},
		{"a front proxy of any name", func(o *Options) { o.Host.FrontProxy.ClientCAFile = "ca.crt" }, "--requestheader-allowed-names"},
		{"a front proxy of one name", func(o *Options) {
			o.Host.FrontProxy.ClientCAFile, o.Host.FrontProxy.AllowedNames = "ca.crt", []string{"front-proxy-client"}
		}, ""},
		{"a front proxy's name without its authority", func(o *Options) { o.Host.FrontProxy.AllowedNames = []string{"x"} }, "--requestheader-client-ca-file"},
		{"a front proxy with an empty name", func(o *Options) {
			o.Host.FrontProxy.ClientCAFile, o.Host.FrontProxy.AllowedNames = "ca.crt", []string{""}
		}, "--requestheader-allowed-names"},
		{"a header without a name", func(o *Options) { o.Host.FrontProxy.GroupHeaders = []string{""} }, "--requestheader-group-headers"},
		{"tiny bodies", func(o *Options) { o.MaxBodyBytes = 1 }, "--max-request-body-bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := NewOptions()
			c.change(o)
			err := o.Validate()
			if c.want == "" && err != nil {
				t.Errorf("refused: %v", err)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("the error is %v, want %s in it", err, c.want)
			}
		})
	}
}

func TestFlagsFromAFile(t *testing.T) {
	for _, c := range []struct {
		name, file, want string
	}{
		{"values and lists", "data-dir: d\nsecure-port: 8443\ntls-host: [a, b]\nxds-address: \"\"\n", ""},
		{"a flag that there is not", "secure-prot: 1\n", "secure-prot: there is no such flag"},
		{"itself", "config: other.yaml\n", "config: there is no such flag"},
		{"a value that cannot be", "secure-port: x\n", "secure-port"},
		{"no object", "- data-dir\n", "must be a YAML object"},
		{"the same twice", "secure-port: 1\nsecure-port: 2\n", "already set"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "server.yaml")
			if err := os.WriteFile(file, []byte(c.file), 0o600); err != nil {
				t.Fatal(err)
			}
			o, fs := NewOptions(), pflag.NewFlagSet("", pflag.ContinueOnError)
			fs.String("config", "", "")
			fs.StringVar(&o.DataDir, "data-dir", o.DataDir, "")
			fs.IntVar(&o.SecurePort, "secure-port", o.SecurePort, "")
			fs.StringSliceVar(&o.TLSHosts, "tls-host", nil, "")
			fs.StringVar(&o.XDSAddress, "xds-address", o.XDSAddress, "")
			if err := fs.Parse([]string{"--data-dir", "from-the-command-line"}); err != nil {
				t.Fatal(err)
			}
			err := LoadFile(fs, file)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("the error is %v, want %q in it", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if o.DataDir != "from-the-command-line" || o.SecurePort != 8443 || strings.Join(o.TLSHosts, " ") != "a b" || o.XDSAddress != "" {
				t.Errorf("the options became %+v", o)
			}
		})
	}
}

func TestAServerThatCannotStartSaysWhatToDo(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, c := range []struct {
		name   string
		change func(t *testing.T, o *Options)
		want   []string
	}{
		{"the port is taken", func(_ *testing.T, o *Options) { o.SecurePort = taken.Addr().(*net.TCPAddr).Port },
			[]string{"--secure-port", "in use", "choose another"}},
		{"the xDS port is taken", func(_ *testing.T, o *Options) { o.XDSAddress = taken.Addr().String() },
			[]string{"--xds-address", "in use", "choose another"}},
		{"the address is another machine's", func(_ *testing.T, o *Options) { o.BindAddress = net.ParseIP("203.0.113.1") },
			[]string{"--bind-address", "203.0.113.1"}},
		{"the data directory is a file", func(t *testing.T, o *Options) {
			o.DataDir = filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(o.DataDir, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{"--data-dir", "give a directory"}},
		{"another server has the data directory", func(t *testing.T, o *Options) {
			release, err := openDataDir(o.DataDir)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(release)
		}, []string{"--data-dir", "in use by another", "or give another"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := NewOptions()
			o.DataDir, o.XDSAddress, o.SecurePort = t.TempDir(), "", freePort(t)
			c.change(t, o)
			s, err := New(context.Background(), o)
			if err == nil {
				s.Close()
				t.Fatal("it started")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q lacks %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q has several lines", err)
			}
		})
	}
}

func TestASecondServerLeavesTheKubeconfigOfTheFirst(t *testing.T) {
	o := NewOptions()
	o.DataDir, o.XDSAddress, o.SecurePort = t.TempDir(), "", freePort(t)
	release, err := openDataDir(o.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if err := os.WriteFile(o.AdminKubeconfig(), []byte("the first's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(context.Background(), o); err == nil {
		t.Fatal("the second started")
	}
	if data, err := os.ReadFile(o.AdminKubeconfig()); err != nil || string(data) != "the first's" {
		t.Errorf("the kubeconfig is %q, %v", data, err)
	}
}

func TestDrainEndsAfterTheShutdownPeriod(t *testing.T) {
	for _, c := range []struct {
		name string
		ends bool
	}{
		{"requests that end in time", true},
		{"a request that does not end", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := NewOptions()
				o.ShutdownPeriod = time.Minute
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				ended := make(chan struct{})
				end := sync.OnceFunc(func() { close(ended) })
				defer end()
				if c.ends {
					end()
				}
				err := (&Server{options: o}).drain(ctx, func(context.Context) error { <-ended; return nil })
				if cut := err != nil && strings.Contains(err.Error(), "--shutdown-period"); cut == c.ends {
					t.Errorf("it ended with %v", err)
				}
			})
		})
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	ports, err := harness.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	return ports[0]
}

func TestAnEmbeddedEtcdThatFailsSaysWhatToDo(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"in use", fmt.Errorf("starting: %w", embedded.ErrInUse), "another --data-dir"},
		{"a full disk", errors.New("etcd: failed to commit tx, error: write db: no space left on device"), "make room"},
		{"not permitted", &fs.PathError{Op: "open", Path: "db", Err: syscall.EACCES}, "can write"},
		{"damaged", errors.New("walpb: crc mismatch"), "backup"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := remedy(c.err); !strings.Contains(got, c.want) {
				t.Errorf("the remedy is %q, want %q in it", got, c.want)
			}
		})
	}
}
