// Package apiserver puts the server together: the root's API, the virtual clusters'
// API behind it, and the sources of truth that both share.
package apiserver

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	genericfeatures "k8s.io/apiserver/pkg/features"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/featuregate"
	"k8s.io/klog/v2"
	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/pkg/admission/extension"
	"github.com/vmesh-io/vmesh/pkg/fairness"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// Options are what can be chosen at start. NewOptions has sane defaults: everything on
// loopback, etcd inside the process.
type Options struct {
	DataDir       string
	BindAddress   net.IP
	SecurePort    int
	ExternalURL   string
	TLSHosts      []string
	XDSAddress    string
	XDSTLSAddress string
	// XDSAllowAnonymous has control planes served that show no identity, on addresses beyond loopback too.
	XDSAllowAnonymous bool
	Etcd              EtcdOptions
	MaxBodyBytes      int64
	AnalysisBudget    time.Duration
	ShutdownPeriod    time.Duration
	Encryption        EncryptionOptions
	Host              HostOptions
	// AuthenticationConfig is the file with the issuers of tokens besides vmesh; empty for none.
	AuthenticationConfig string
	// TenantWebhookAllow and TenantWebhookDeny are the CIDRs where virtual clusters'
	// webhooks may be, and may not be but for those.
	TenantWebhookAllow, TenantWebhookDeny []string
	// DefaultRates are for virtual clusters that have none of their own; zero is no limit.
	DefaultRates fairness.Limits
	// Audit are upstream's options of the audit log.
	Audit *genericoptions.AuditOptions
	// TracingConfigFile is a TracingConfiguration of apiserver.config.k8s.io.
	TracingConfigFile string

	// MemberCheckInterval is how often each member cluster is looked at.
	MemberCheckInterval time.Duration

	// History is what is kept of changes.
	History HistoryOptions

	lifetimes lifetimes
}

// EtcdOptions name an etcd cluster to use in place of the embedded one.
type EtcdOptions struct {
	Servers                   []string
	CAFile, CertFile, KeyFile string
	Prefix                    string
	CompactionInterval        time.Duration
}

// NewOptions are the defaults.
func NewOptions() *Options {
	return &Options{
		DataDir:             "data",
		BindAddress:         net.IPv4(127, 0, 0, 1),
		SecurePort:          7443,
		XDSAddress:          "127.0.0.1:15051",
		Etcd:                EtcdOptions{Prefix: "/registry", CompactionInterval: 5 * time.Minute},
		MaxBodyBytes:        3 << 20,
		AnalysisBudget:      100 * time.Millisecond,
		MemberCheckInterval: 15 * time.Second,
		ShutdownPeriod:      30 * time.Second,

		TenantWebhookDeny: extension.DefaultDeny(),
		Audit:             genericoptions.NewAuditOptions(),
		lifetimes:         usualLifetimes(),
		Host:              newHostOptions(),
		History:           newHistoryOptions(),
		// So many writes of one virtual cluster, a burst included, leave the watch caches the
		// history of their 75 seconds, and etcd its room.
		DefaultRates: fairness.Limits{WritesPerSecond: 500, Watches: 5000, Connections: 1000},
	}
}

// AddFlags puts the options into a flag set.
func (o *Options) AddFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.DataDir, "data-dir", o.DataDir, "Where certificates, kubeconfigs and the embedded etcd live; made when absent.")
	fs.IPVar(&o.BindAddress, "bind-address", o.BindAddress, "The address to serve the API on. 0.0.0.0 or :: serve on every interface.")
	fs.IntVar(&o.SecurePort, "secure-port", o.SecurePort, "The port to serve the API on, by HTTPS.")
	fs.StringVar(&o.ExternalURL, "external-url", o.ExternalURL, "The URL under which clients reach the server, for kubeconfigs and status; by default made of the address and port.")
	fs.StringSliceVar(&o.TLSHosts, "tls-host", o.TLSHosts, "Further DNS names and IP addresses that the serving certificate is good for.")
	fs.StringVar(&o.XDSAddress, "xds-address", o.XDSAddress, "The address to serve istiod on, by xDS in plain text; empty for none.")
	fs.StringVar(&o.XDSTLSAddress, "xds-tls-address", o.XDSTLSAddress, "The address to serve relays on, and others that show an identity, by xDS over TLS; empty for none.")
	fs.BoolVar(&o.XDSAllowAnonymous, "xds-allow-anonymous", o.XDSAllowAnonymous, "Serve every mesh to who shows no identity, on addresses beyond loopback too: in plain text on --xds-address, and on --xds-tls-address.")
	fs.StringSliceVar(&o.Etcd.Servers, "etcd-servers", o.Etcd.Servers, "The URLs of an etcd cluster to use in place of the embedded etcd.")
	fs.StringVar(&o.Etcd.CAFile, "etcd-cafile", o.Etcd.CAFile, "The authority of etcd's certificates.")
	fs.StringVar(&o.Etcd.CertFile, "etcd-certfile", o.Etcd.CertFile, "The client certificate to show to etcd.")
	fs.StringVar(&o.Etcd.KeyFile, "etcd-keyfile", o.Etcd.KeyFile, "The key of the client certificate to show to etcd.")
	fs.StringVar(&o.Etcd.Prefix, "etcd-prefix", o.Etcd.Prefix, "The prefix of all keys in etcd.")
	fs.DurationVar(&o.Etcd.CompactionInterval, "etcd-compaction-interval", o.Etcd.CompactionInterval, "How often old revisions are compacted away; 0 for never.")
	fs.Int64Var(&o.MaxBodyBytes, "max-request-body-bytes", o.MaxBodyBytes, "The largest request body that is read.")
	fs.DurationVar(&o.AnalysisBudget, "analysis-budget", o.AnalysisBudget, "How long a write may wait for Istio's analysis of what it would do, which is answered as warnings; 0 for no analysis of writes.")
	fs.StringVar(&o.AuthenticationConfig, "authentication-config", o.AuthenticationConfig, "A file with Kubernetes' AuthenticationConfiguration: the OpenID Connect issuers whose tokens are known, and who may be anonymous. It is read again when it changes.")
	fs.DurationVar(&o.ShutdownPeriod, "shutdown-period", o.ShutdownPeriod, "How long requests that are under way may take to end after SIGTERM.")
	fs.StringSliceVar(&o.TenantWebhookAllow, "tenant-webhook-allow", o.TenantWebhookAllow,
		"CIDRs at which virtual clusters' admission webhooks may be, although --tenant-webhook-deny has them.")
	fs.StringSliceVar(&o.TenantWebhookDeny, "tenant-webhook-deny", o.TenantWebhookDeny,
		"CIDRs at which virtual clusters' admission webhooks may not be. The root's may be anywhere.")
	fs.StringVar(&o.Encryption.ConfigFile, "encryption-provider-config", o.Encryption.ConfigFile, "A file with an EncryptionConfiguration, by which what is stored is encrypted.")
	fs.BoolVar(&o.Encryption.Reload, "encryption-provider-config-automatic-reload", o.Encryption.Reload, "Read the file of --encryption-provider-config again when it changes.")
	fs.DurationVar(&o.MemberCheckInterval, "member-check-interval", o.MemberCheckInterval, "How often it is looked whether the API of each member cluster answers; while one does not, up to four times as rarely.")
	fs.StringVar(&o.TracingConfigFile, "tracing-config-file", o.TracingConfigFile, "A file with a TracingConfiguration, which says where OpenTelemetry spans of requests are sent.")
	addAuditFlags(o.Audit, fs)
	o.Host.addFlags(fs)
	o.History.addFlags(fs)
	fs.Int32Var(&o.DefaultRates.RequestsPerSecond, "default-requests-per-second", o.DefaultRates.RequestsPerSecond, "How many requests a second a virtual cluster gets, unless its spec.rates say otherwise; 0 for no limit.")
	fs.Int32Var(&o.DefaultRates.WritesPerSecond, "default-writes-per-second", o.DefaultRates.WritesPerSecond, "How many writes a second a virtual cluster gets, each 8 KiB of a body counting as one; 0 for no limit.")
	fs.Int32Var(&o.DefaultRates.Watches, "default-watches", o.DefaultRates.Watches, "How many watches a virtual cluster may have open; 0 for no limit.")
	fs.Int32Var(&o.DefaultRates.Connections, "default-connections", o.DefaultRates.Connections, "How many connections the identities of a virtual cluster may have open; 0 for no limit.")
	addFeatureGates(fs)
}

// addAuditFlags adds upstream's flags, and shows those that people use.
func addAuditFlags(o *genericoptions.AuditOptions, fs *pflag.FlagSet) {
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	o.AddFlags(all)
	all.VisitAll(func(f *pflag.Flag) {
		f.Hidden = strings.Contains(f.Name, "-batch-") || strings.Contains(f.Name, "-truncate-") || strings.HasSuffix(f.Name, "-version") || strings.HasSuffix(f.Name, "-backoff")
	})
	all.Lookup("audit-policy-file").Usage = "A file with the audit policy: which requests are recorded, and how much of them."
	all.Lookup("audit-log-path").Usage = "The file that audit events are appended to; - is standard output."
	all.Lookup("audit-webhook-config-file").Usage = "A kubeconfig that says where audit events are sent to."
	fs.AddFlagSet(all)
}

// addFeatureGates adds upstream's feature gates, with two defaults of our own.
func addFeatureGates(fs *pflag.FlagSet) {
	gates := utilfeature.DefaultMutableFeatureGate
	for feature, on := range map[featuregate.Feature]bool{
		// A copy of the cache's index for every change of the last minute costs a fifth of
		// what an object does, to spare etcd the later pages of lists.
		genericfeatures.ListFromCacheSnapshot: false,
		// As what upstream is on its way to: clients may speak CBOR.
		genericfeatures.CBORServingAndStorage: true,
	} {
		if gates.Enabled(feature) == on {
			continue // set by an earlier call: the gates are the process's
		}
		if err := gates.OverrideDefault(feature, on); err != nil {
			klog.Background().Error(err, "Setting the default of a feature gate failed", "feature", feature)
		}
	}
	gates.AddFlag(fs)
	fs.Lookup("feature-gates").Usage = "Kubernetes' feature gates, for experiments: NAME=true or NAME=false, with commas between."
}

// Validate says what is wrong with the options, each with its flag.
func (o *Options) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if o.DataDir == "" {
		bad("--data-dir: must not be empty")
	}
	if o.SecurePort < 1 || o.SecurePort > 65535 {
		bad("--secure-port: %d is not a port: choose one from 1 to 65535", o.SecurePort)
	}
	for flag, address := range map[string]string{"--xds-address": o.XDSAddress, "--xds-tls-address": o.XDSTLSAddress} {
		if _, port, err := net.SplitHostPort(address); address != "" && (err != nil || !isPort(port)) {
			bad("%s: %q is not HOST:PORT, as in 127.0.0.1:15051", flag, address)
		}
	}
	if u, err := url.Parse(o.ExternalURL); o.ExternalURL != "" && (err != nil || u.Scheme != "https" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "") {
		bad("--external-url: %q is not https://HOST or https://HOST:PORT", o.ExternalURL)
	}
	if o.MemberCheckInterval < 15*time.Millisecond {
		bad("--member-check-interval: %s is too short: choose at least a second, as 15s", o.MemberCheckInterval)
	}
	for _, server := range o.Etcd.Servers {
		if u, err := url.Parse(server); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			bad("--etcd-servers: %q is not a URL, as in https://etcd-0:2379", server)
		}
	}
	if len(o.Etcd.Servers) == 0 && o.Etcd.CAFile+o.Etcd.CertFile+o.Etcd.KeyFile != "" {
		bad("--etcd-cafile, --etcd-certfile and --etcd-keyfile are for --etcd-servers, which is not given")
	}
	if (o.Etcd.CertFile == "") != (o.Etcd.KeyFile == "") {
		bad("--etcd-certfile and --etcd-keyfile: give both or neither")
	}
	for flag, d := range map[string]time.Duration{"--etcd-compaction-interval": o.Etcd.CompactionInterval, "--shutdown-period": o.ShutdownPeriod} {
		if d < 0 {
			bad("%s: %s must not be negative", flag, d)
		}
	}
	for flag, cidrs := range map[string][]string{"--tenant-webhook-allow": o.TenantWebhookAllow, "--tenant-webhook-deny": o.TenantWebhookDeny} {
		if _, err := extension.NewEgress(nil, cidrs); err != nil {
			bad("%s: %w", flag, err)
		}
	}
	if o.Encryption.Reload && o.Encryption.ConfigFile == "" {
		bad("--encryption-provider-config-automatic-reload is for --encryption-provider-config, which is not given")
	}
	if o.Audit.PolicyFile == "" && (o.Audit.LogOptions.Path != "" || o.Audit.WebhookOptions.ConfigFile != "") {
		bad("--audit-policy-file: it is not given, and without a policy --audit-log-path and --audit-webhook-config-file record nothing")
	}
	if o.Audit.PolicyFile != "" && o.Audit.LogOptions.Path == "" && o.Audit.WebhookOptions.ConfigFile == "" {
		bad("--audit-policy-file: there is nowhere to record to: give --audit-log-path or --audit-webhook-config-file as well")
	}
	errs = append(errs, o.Audit.Validate()...)
	if o.AnalysisBudget < 0 || o.AnalysisBudget > 10*time.Second {
		bad("--analysis-budget: %s is not from 0 to 10s", o.AnalysisBudget)
	}
	for flag, n := range map[string]int32{
		"--default-requests-per-second": o.DefaultRates.RequestsPerSecond, "--default-writes-per-second": o.DefaultRates.WritesPerSecond, "--default-watches": o.DefaultRates.Watches,
		"--default-connections": o.DefaultRates.Connections,
	} {
		if n < 0 {
			bad("%s: %d must not be negative; 0 is no limit", flag, n)
		}
	}
	o.History.validate(bad)
	if o.MaxBodyBytes < 1<<10 {
		bad("--max-request-body-bytes: %d is too little for any object: at least 1024", o.MaxBodyBytes)
	}
	errs = append(errs, o.validateXDS())
	return errors.Join(append(errs, o.Host.validate()...)...)
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

// LoadFile sets flags from a file: a YAML object whose keys are flag names. Flags on
// the command line come before it.
func LoadFile(fs *pflag.FlagSet, name string) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	values := map[string]any{}
	if err := yaml.UnmarshalStrict(data, &values); err != nil {
		return fmt.Errorf("--config %s: it must be a YAML object of flags and values, as in \"secure-port: 7443\": %w", name, err)
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		value := values[key]
		flag := fs.Lookup(key)
		if flag == nil || key == "config" || key == "help" {
			return fmt.Errorf("--config %s: %s: there is no such flag; see vmesh server --help", name, key)
		}
		if flag.Changed {
			continue
		}
		items, isList := value.([]any)
		if !isList {
			items = []any{value}
		}
		for _, item := range items {
			if err := fs.Set(key, fmt.Sprint(item)); err != nil {
				return fmt.Errorf("--config %s: %s: %w", name, key, err)
			}
		}
	}
	return nil
}

// URL is the address that clients are given.
func (o *Options) URL() string {
	if o.ExternalURL != "" {
		return strings.TrimSuffix(o.ExternalURL, "/")
	}
	host := o.BindAddress.String()
	if o.BindAddress.IsUnspecified() {
		host = "localhost"
		if name, err := os.Hostname(); err == nil {
			host = name
		}
	}
	return "https://" + net.JoinHostPort(host, strconv.Itoa(o.SecurePort))
}

// clusterURL is the address of a virtual cluster's API, or of the root's.
func (o *Options) clusterURL(cluster string) string {
	if cluster == logical.Root {
		return o.URL()
	}
	return o.URL() + "/clusters/" + cluster
}

// hosts are what the serving certificate must be good for.
func (o *Options) hosts() []string {
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	if !o.BindAddress.IsUnspecified() && !o.BindAddress.IsLoopback() {
		hosts = append(hosts, o.BindAddress.String())
	}
	if name, err := os.Hostname(); err == nil {
		hosts = append(hosts, name)
	}
	return append(hosts, o.TLSHosts...)
}

// AdminKubeconfig is the file with the root administrator's access.
func (o *Options) AdminKubeconfig() string { return filepath.Join(o.DataDir, "admin.kubeconfig") }

func (o *Options) pkiDir() string  { return filepath.Join(o.DataDir, "pki") }
func (o *Options) etcdDir() string { return filepath.Join(o.DataDir, "etcd") }
