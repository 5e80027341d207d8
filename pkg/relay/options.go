package relay

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// Options are what can be chosen at start.
type Options struct {
	// Upstream are the addresses of vmesh, HOST:PORT, of which the first that answers is used.
	Upstream []string
	Mesh     string
	// Identity is what is shown to vmesh.
	Identity Identity
	// Name tells this relay from the mesh's others. Labels and Revision are its control plane's.
	Name     string
	Labels   map[string]string
	Revision string
	// ListenBase is the loopback address of the first source; the others are on the ports behind it.
	ListenBase string
	// Shards is a number, or "auto".
	Shards          string
	CacheDir        string
	MaxStaleness    time.Duration // 0: no limit
	HealthAddress   string
	IstiodDebug     string // istiod's debug pages, to report its proxies; empty for none
	MeshConfig      string // read, if not empty
	WriteMeshConfig string // written, if not empty
}

const (
	autoShardsFlag = "auto"
	maxShards      = 256
)

// NewOptions are the defaults.
func NewOptions() *Options {
	name, err := os.Hostname()
	if err != nil {
		name = ""
	}
	return &Options{
		Mesh: v1alpha1.DefaultName, Name: name, ListenBase: "127.0.0.1:15100", Shards: autoShardsFlag,
		CacheDir: "relay-data", HealthAddress: "127.0.0.1:15099", IstiodDebug: DefaultDebugURL,
	}
}

// AddFlags puts the options into a flag set.
func (o *Options) AddFlags(fs *pflag.FlagSet) {
	fs.StringSliceVar(&o.Upstream, "upstream", o.Upstream, "The addresses of vmesh's xDS over TLS, HOST:PORT with commas between. The first that answers is used.")
	fs.StringVar(&o.Mesh, "mesh", o.Mesh, "The mesh to receive.")
	o.Identity.addFlags(fs)
	fs.StringVar(&o.Name, "name", o.Name, "The relay's name, by which the mesh's status shows it; by default the host's.")
	fs.StringToStringVar(&o.Labels, "labels", o.Labels, "Labels of the control plane, KEY=VALUE with commas between, for the selectors of the mesh's filters and stages.")
	fs.StringVar(&o.Revision, "revision", o.Revision, "The revision of the istiod beside it; empty when that has none.")
	fs.StringVar(&o.HealthAddress, "health-address", o.HealthAddress, "The address of /readyz, /livez and /metrics, by HTTP; empty for none.")
	fs.StringVar(&o.IstiodDebug, "istiod-debug-url", o.IstiodDebug, "Where istiod answers /debug/syncz on loopback (its --monitoringAddr or --httpAddr), to report how many of its proxies are up to date; empty for no reports.")
	fs.DurationVar(&o.MaxStaleness, "max-staleness", o.MaxStaleness, "How old what is served may be before /readyz fails; 0 for no limit. It goes on being served in any case.")
	o.AddSourceFlags(fs)
	fs.StringVar(&o.WriteMeshConfig, "write-mesh-config", o.WriteMeshConfig, "A file to write istiod's mesh configuration to, with the relay as its source, before istiod starts.")
}

// AddSourceFlags adds those that say where istiod finds the relay.
func (o *Options) AddSourceFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.ListenBase, "listen-base", o.ListenBase, "The loopback address to serve istiod on: of the first shard; the others have the ports behind it.")
	fs.StringVar(&o.Shards, "shards", o.Shards, "Over how many sources to spread the mesh, or auto. What auto has chosen stays, in --cache-dir, for as long as an istiod may run that was told of it: istiod reads its sources at start only.")
	fs.StringVar(&o.CacheDir, "cache-dir", o.CacheDir, "Where the last good snapshot is kept; made when absent.")
	fs.StringVar(&o.MeshConfig, "mesh-config", o.MeshConfig, "A file with istiod's mesh configuration, whose configSources are replaced; without it there is nothing but those.")
}

// Validate says what is wrong with the options, each with its flag.
func (o *Options) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(o.Upstream) == 0 {
		bad("--upstream: must not be empty: give the address of vmesh's --xds-tls-address, as in vmesh.example.com:15052")
	}
	for _, address := range o.Upstream {
		if host, port, err := net.SplitHostPort(address); err != nil || host == "" || !isPort(port) {
			bad("--upstream: %q is not HOST:PORT, as in vmesh.example.com:15052", address)
		}
	}
	if msgs := validation.IsDNS1123Subdomain(o.Mesh); len(msgs) > 0 {
		bad("--mesh: %q is not the name of a mesh: %s", o.Mesh, strings.Join(msgs, "; "))
	}
	if o.Name == "" || len(o.Name) > 200 {
		bad("--name: %q must have from 1 to 200 characters", o.Name)
	}
	for key, value := range o.Labels {
		if msgs := append(validation.IsQualifiedName(key), validation.IsValidLabelValue(value)...); len(msgs) > 0 {
			bad("--labels: %s=%s is not a label: %s", key, value, strings.Join(msgs, "; "))
		}
		if strings.HasPrefix(key, v1alpha1.GroupVersion.Group+"/") {
			bad("--labels: %s: vmesh.io/ is for labels that vmesh gives", key)
		}
	}
	if _, err := NewPoller(o.IstiodDebug); o.IstiodDebug != "" && err != nil {
		bad("--istiod-debug-url: %v", err)
	}
	if o.MaxStaleness < 0 {
		bad("--max-staleness: %s must not be negative; 0 is no limit", o.MaxStaleness)
	}
	if _, _, err := net.SplitHostPort(o.HealthAddress); o.HealthAddress != "" && err != nil {
		bad("--health-address: %q is not HOST:PORT, as in 127.0.0.1:15099", o.HealthAddress)
	}
	if o.MeshConfig != "" && o.WriteMeshConfig == "" {
		bad("--mesh-config is for --write-mesh-config, which is not given")
	}
	errs = append(errs, o.Identity.validate(), o.ValidateSource())
	return errors.Join(errs...)
}

// ValidateSource is Validate for the flags of AddSourceFlags.
func (o *Options) ValidateSource() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	n := 1
	if o.Shards != autoShardsFlag {
		var err error
		if n, err = strconv.Atoi(o.Shards); err != nil || n < 1 || n > maxShards {
			bad("--shards: %q is not auto, or a number from 1 to %d", o.Shards, maxShards)
			n = 1
		}
	}
	host, port, err := net.SplitHostPort(o.ListenBase)
	if err != nil || !isPort(port) {
		bad("--listen-base: %q is not HOST:PORT, as in 127.0.0.1:15100", o.ListenBase)
	} else if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		bad("--listen-base: %s is not a loopback address: istiod is served in plain text and without authentication, from beside it only", host)
	} else if first, _ := strconv.Atoi(port); first+n-1 > 65535 {
		bad("--listen-base: %d shards from port %d on go beyond the last port, 65535", n, first)
	}
	if o.CacheDir == "" {
		bad("--cache-dir: must not be empty")
	}
	return errors.Join(errs...)
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

// address is that of a shard.
func (o *Options) address(shard int) string {
	host, port, _ := net.SplitHostPort(o.ListenBase)
	first, _ := strconv.Atoi(port)
	return net.JoinHostPort(host, strconv.Itoa(first+shard))
}
